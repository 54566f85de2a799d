"""rankwise: low-rank paths under a budget that goes where it pays, as PEFT methods."""

from __future__ import annotations

from rankwise.peft_registration import extend_peft_type, register_with_peft, wrap_peft_model

extend_peft_type()  # before the config, whose class needs the new member

from rankwise.allocation.allocator import Allocator  # noqa: E402
from rankwise.allocation.budget import allocate  # noqa: E402
from rankwise.allocation.editor import Editor  # noqa: E402
from rankwise.allocation.record import after_loading, after_saving, before_saving, history  # noqa: E402
from rankwise.anatomy import Anatomy, register_anatomy  # noqa: E402
from rankwise.config import HeteroLoraConfig  # noqa: E402
from rankwise.edits import Disable, Enable, Inject, Merge, apply_  # noqa: E402
from rankwise.export import export_lora  # noqa: E402
from rankwise.integrations.callback import AllocationCallback, register_with_trainer  # noqa: E402
from rankwise.integrations.optimizer import detach  # noqa: E402
from rankwise.lor2c_config import Lor2cConfig  # noqa: E402
from rankwise.paths.low_rank_path import LowRankPath  # noqa: E402
from rankwise.paths.path_set import named_paths  # noqa: E402
from rankwise.planned_ranks import RankPlan  # noqa: E402
from rankwise.planning import Plan, plan, plan_lora  # noqa: E402
from rankwise.rank_planning import rank_plan  # noqa: E402
from rankwise.scores.probe import score_paths  # noqa: E402
from rankwise.scores.spectrum import sfs  # noqa: E402
from rankwise.tuner import HeteroLoraModel, Lor2cModel  # noqa: E402

register_with_peft("HETEROLORA", HeteroLoraConfig, HeteroLoraModel)
register_with_peft("LOR2C", Lor2cConfig, Lor2cModel)
wrap_peft_model(before_saving, after_saving, after_loading)
register_with_trainer()

__all__ = [
    "AllocationCallback",
    "Allocator",
    "Anatomy",
    "Disable",
    "Editor",
    "Enable",
    "HeteroLoraConfig",
    "HeteroLoraModel",
    "Inject",
    "Lor2cConfig",
    "LowRankPath",
    "Merge",
    "Plan",
    "RankPlan",
    "allocate",
    "apply_",
    "detach",
    "export_lora",
    "history",
    "named_paths",
    "plan",
    "plan_lora",
    "rank_plan",
    "register_anatomy",
    "score_paths",
    "sfs",
]
