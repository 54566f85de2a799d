"""rankwise: low-rank paths under a budget that goes where it pays, as PEFT methods.

What importing it does, each once, and how to undo it:

- It adds its methods to PEFT's enum ``PeftType`` and tables, so that ``get_peft_model`` and ``from_pretrained`` know
  ``HeteroLoraConfig`` and ``Lor2cConfig``. This stays for the process; other methods are not touched.
- It wraps ``PeftModel.save_pretrained`` and ``PeftModel.load_adapter``, which write and read a search's history and
  allocation beside the tensors; ``PeftModel.from_pretrained``, which leaves nothing behind where it refuses; and
  ``PeftModel.__init__`` and ``PeftMixedModel.__init__``, which refuse to build over paths. For other adapters they do
  what they did. The originals are their ``__wrapped__``.
- It wraps transformers' own ``model.load_adapter``, which reads the history, too, and ``PreTrainedModel``'s
  ``save_pretrained``, which writes it beside an adapter that was put on without a ``PeftModel`` (again
  ``__wrapped__``).
- It wraps ``transformers.Trainer.train`` (again ``__wrapped__``), which notes for as long as it lasts which Trainer
  trains: callbacks are not told, and a probe has to know whose loss it is.
- It adds a callback to the defaults of transformers' Trainer, which leaves models without paths alone:
  ``trainer.remove_callback(rankwise.search.callback.AutomaticAllocationCallback)`` takes it out of one Trainer.
- It registers an exit hook that warns of searches that were asked for and never ran.

torch's optimizer step hooks come with the first training forward of a model with paths and go with
``rankwise.detach(model)``.
"""

from __future__ import annotations

from rankwise.method.registration import (
    extend_peft_type,
    register_with_peft,
    wrap_peft_model,
    wrap_transformers,
)

extend_peft_type("HETEROLORA", "LOR2C")  # before the config, whose class needs the new member

from rankwise.configs.heterolora import HeteroLoraConfig  # noqa: E402
from rankwise.configs.lor2c import Lor2cConfig  # noqa: E402
from rankwise.edits import apply_  # noqa: E402
from rankwise.method.export import export_lora  # noqa: E402
from rankwise.method.tuner import HeteroLoraModel, Lor2cModel  # noqa: E402
from rankwise.paths.low_rank_path import LowRankPath  # noqa: E402
from rankwise.paths.path_set import named_paths  # noqa: E402
from rankwise.planning.lora import plan_lora  # noqa: E402
from rankwise.planning.rank_plan import RankPlan  # noqa: E402
from rankwise.planning.ranks import rank_plan  # noqa: E402
from rankwise.planning.sizes import Plan, plan  # noqa: E402
from rankwise.rules.budget import allocate  # noqa: E402
from rankwise.rules.edits import Disable, Enable, Inject, Merge  # noqa: E402
from rankwise.scores.probe import score_paths  # noqa: E402
from rankwise.scores.spectrum import sfs  # noqa: E402
from rankwise.search.allocator import Allocator  # noqa: E402
from rankwise.search.callback import AllocationCallback, register_with_trainer  # noqa: E402
from rankwise.search.editor import Editor  # noqa: E402
from rankwise.search.history import after_loading, after_saving, after_saving_alone, before_saving, history  # noqa: E402
from rankwise.search.optimizer import detach  # noqa: E402
from rankwise.wiring.anatomy import Anatomy, register_anatomy  # noqa: E402

register_with_peft("HETEROLORA", HeteroLoraConfig, HeteroLoraModel)
register_with_peft("LOR2C", Lor2cConfig, Lor2cModel)
wrap_peft_model(before_saving, after_saving, after_loading)
wrap_transformers(after_saving_alone, after_loading)
register_with_trainer()

__all__ = [
    "AllocationCallback",
    "Allocator",
    "Anatomy",
    "Disable",
    "Editor",
    "Enable",
    "HeteroLoraConfig",
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
