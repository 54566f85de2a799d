"""What the paths are compared with and PEFT does not have, or not in a form that a run can be left to.

Importing this package registers bottleneck adapters with PEFT.
"""

from rankwise.baselines.adalora import AdaLoraCallback, penalty, with_orthogonality
from rankwise.baselines.bottleneck import BottleneckConfig, BottleneckModel
from rankwise.baselines.dylora import DyLoraCallback, Truncation, save_truncated
from rankwise.baselines.eva import find_start_, take_start_

__all__ = [
    "AdaLoraCallback",
    "BottleneckConfig",
    "BottleneckModel",
    "DyLoraCallback",
    "Truncation",
    "find_start_",
    "penalty",
    "save_truncated",
    "take_start_",
    "with_orthogonality",
]
