"""Tasks by name, files of the user's own and the demo's docstrings, ready for ``transformers.Trainer``."""

from rankwise.tasks.data import TaskData
from rankwise.tasks.encode import IGNORED
from rankwise.tasks.labels import LABELS
from rankwise.tasks.load import load_docstrings, load_task
from rankwise.tasks.losses import choice_loss
from rankwise.tasks.registry import INSTRUCTION, TASKS, Task
from rankwise.tasks.spec import DataSpec

__all__ = [
    "IGNORED",
    "INSTRUCTION",
    "LABELS",
    "TASKS",
    "DataSpec",
    "Task",
    "TaskData",
    "choice_loss",
    "load_docstrings",
    "load_task",
]
