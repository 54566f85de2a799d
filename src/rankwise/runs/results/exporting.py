"""From a run folder to a plain LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

import rankwise
from rankwise.runs.building.models import load_base
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.methods import WITH_PATHS

PLAIN = "is a plain LoRA adapter already: there is nothing to export"
NO_EXPORT = {
    "full": "is a whole model: there is nothing to export",
    "lora": PLAIN,
    "dylora": PLAIN,
    "adalora": "is an AdaLoRA adapter, which PEFT loads without rankwise: there is nothing to export",
    "adapterdrop": "holds bottleneck adapters, which no LoRA can express: load it with PEFT after import "
    "rankwise.baselines",
}


def export_run(run: str | Path, out: str | Path, *, rank_pattern: bool = False) -> Path:
    """Write a run's adapter as ``peft_type: LORA``, which loads without rankwise.

    Args:
        run: The folder of a finished run.
        out: Where the plain adapter goes.
        rank_pattern: Keep each module's own rank (for PEFT only; others mis-scale it).

    Raises:
        FileNotFoundError: There is no run.
        ValueError: It is not finished, its method needs no export, or ``out`` has an adapter already.
    """
    folder, target = RunFolder(Path(run)), Path(out)
    recipe = folder.recipe()
    metrics = folder.figures()
    if recipe.method.name not in WITH_PATHS:
        raise ValueError(f"{folder.adapter} {NO_EXPORT[recipe.method.name]}")
    check_no_adapter(target)
    with quiet():
        base = load_base(recipe, task_type=metrics["task_type"], arguments=metrics["model_arguments"])
        rankwise.export_lora(PeftModel.from_pretrained(base, str(folder.adapter)), target, rank_pattern=rank_pattern)
    return target


def check_no_adapter(folder: str | Path) -> None:
    """Raise a ``ValueError`` if a folder holds an adapter: nothing is written over."""
    if (Path(folder) / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter already: give another folder, or delete it")
