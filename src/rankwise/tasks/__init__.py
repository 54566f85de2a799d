"""Tasks by name, files of the user's own and the demo's docstrings, ready for ``transformers.Trainer``."""

from rankwise.tasks.data import TaskData
from rankwise.tasks.digest import digest_of
from rankwise.tasks.encode import IGNORED, with_pad_token
from rankwise.tasks.labels import LABELS
from rankwise.tasks.load import load_docstrings, load_task
from rankwise.tasks.losses import choice_loss
from rankwise.tasks.packing import check_packing
from rankwise.tasks.registry import ANSWERS, CHAT, INSTRUCTION, TASKS, Task
from rankwise.tasks.spec import DataSpec

__all__ = [
    "ANSWERS",
    "CHAT",
    "IGNORED",
    "INSTRUCTION",
    "LABELS",
    "TASKS",
    "DataSpec",
    "Task",
    "TaskData",
    "check_packing",
    "choice_loss",
    "digest_of",
    "load_docstrings",
    "load_task",
    "with_pad_token",
]
