"""From a run folder to a plain LoRA adapter."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from peft import PeftModel

import rankwise
from rankwise.method.own_weights import check_own_weights
from rankwise.paths.path_set import check_mergeable, path_set
from rankwise.runs.building.models import load_base, load_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.methods import WITH_PATHS
from rankwise.runs.results.trained import load_trained, trained_spec
from rankwise.runs.training.card import describe_run

PLAIN = "is a plain LoRA adapter already: there is nothing to export"
NO_EXPORT = {
    "full": "is a whole model: there is nothing to export",
    "lora": PLAIN,
    "dylora": PLAIN,
    "adalora": "is an AdaLoRA adapter, which PEFT loads without rankwise: there is nothing to export",
    "adapterdrop": "holds bottleneck adapters, which no LoRA can express: load it with PEFT after import "
    "rankwise.baselines",
    "prefix": "holds a prefix, which no LoRA can express: load it with PEFT",
}
NO_MERGE = {
    "adapterdrop": "holds bottleneck adapters, which stand between the layers and have no weight to be merged into: "
    "keep the adapter (load it with PEFT after import rankwise.baselines)",
    "prefix": "holds a prefix, which stands before the text and has no weight to be merged into: keep the adapter "
    "(load it with PEFT)",
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


def export_merged(run: str | Path, out: str | Path) -> Path:
    """Write a run's model whole, its adapter merged into the weights: transformers loads it without PEFT.

    With the label names in its config and the tokenizer beside it, ``pipeline("text-classification", model=out)``
    works. A base that was quantised for training is merged into in the precision that the recipe loads it in.

    Args:
        run: The folder of a finished run.
        out: Where the model goes; nothing may be there.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: It is not finished, something of it has no weight to be merged into (the message lists it), or
            ``out`` holds something.
    """
    folder, target = RunFolder(Path(run)), Path(out)
    recipe = folder.recipe()
    figures = folder.figures()
    if recipe.method.name in NO_MERGE:
        raise ValueError(f"{folder.adapter} {NO_MERGE[recipe.method.name]}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} holds something already: give another folder, or empty it")
    with quiet():
        model = load_trained(folder, dense=True)
        if recipe.method.name in WITH_PATHS:
            check_mergeable(path_set(model))
        elif isinstance(model, PeftModel):
            check_own_weights(model.get_base_model())
        whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = Path(scratch) / "model"
            whole.save_pretrained(made)
            load_tokenizer(trained_spec(folder)).save_pretrained(made)
            describe_run(made, figures, recipe.license, merged=True)
            os.replace(made, target)
    return target


def check_no_adapter(folder: str | Path) -> None:
    """Raise a ``ValueError`` if a folder holds an adapter: nothing is written over."""
    if (Path(folder) / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter already: give another folder, or delete it")
