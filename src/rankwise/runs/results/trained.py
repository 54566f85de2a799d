"""What a finished run trained, as a model that can be asked."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from peft import PeftModel

from rankwise.runs.building.models import load_base
from rankwise.runs.building.quantised import prepare
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import ModelSpec


def trained_spec(folder: RunFolder) -> ModelSpec:
    """Return what names the run's own folder as a model: its tokenizer, and after full fine-tuning its weights."""
    own = {"name": str(folder.adapter.absolute()), "revision": None, "chat_template": None}
    return folder.recipe().model.model_copy(update=own)


def load_trained(folder: RunFolder, *, base: bool = False, dense: bool = False) -> Any:
    """Load what a run trained, in the precision it was trained in, in evaluation mode on the device there is.

    Args:
        folder: Of a finished run.
        base: The pretrained model in its place.
        dense: With weights that are not quantised, whatever the run trained on: to merge into.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: It is not finished, or its base model can't be had.
    """
    recipe, trained = folder.recipe(), folder.figures()
    whole = recipe.method.name == "full" and not base
    spec = trained_spec(folder) if whole else recipe.model
    recipe = recipe.model_copy(update={"model": spec.model_copy(update={"load_in": None} if dense else {})})
    model: Any = load_base(recipe, task_type=trained["task_type"], arguments=trained["model_arguments"])
    model = prepare(model, recipe)  # what a run did to a quantised base before it trained
    if not base and not whole:
        if recipe.method.name == "adapterdrop":
            import rankwise.baselines  # noqa: F401 (registers the method with PEFT)
        model = PeftModel.from_pretrained(model, str(folder.adapter))
    device = PartialState().device
    if model.device.type != device.type:  # quantised weights are there already, and can't be moved
        model.to(device)
    return model.eval()
