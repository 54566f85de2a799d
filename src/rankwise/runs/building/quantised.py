"""A frozen base in 4 or 8 bits, by bitsandbytes, which is imported only where a recipe asks for it.

QLoRA: Dettmers et al., arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig

from rankwise.runs.recipes.recipe import Recipe

HEADS = ("classifier", "score")  # what PEFT trains and saves beside a SEQ_CLS adapter
OUTPUTS = (*HEADS, "lm_head")  # what stays unquantised


def quantisation(recipe: Recipe) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to quantise the weights as ``model.load_in`` says.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    spec = recipe.model
    fields = quantisation_fields(recipe)
    if not fields:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            f"model.load_in={spec.load_in!r} needs bitsandbytes: pip install 'rankwise[quantised]', or leave "
            "model.load_in out"
        )
    return {"quantization_config": BitsAndBytesConfig(**fields)}


def quantisation_fields(recipe: Recipe) -> dict[str, Any]:
    """Return what ``BitsAndBytesConfig`` is told for ``model.load_in``; nothing where that is left out."""
    spec = recipe.model
    if spec.load_in is None:
        return {}
    kept = [*OUTPUTS, *(recipe.method.options.get("modules_to_save") or ())]
    if spec.load_in == "8bit":
        return {"load_in_8bit": True, "llm_int8_skip_modules": kept}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16" if spec.dtype == "auto" else spec.dtype,
        "llm_int8_skip_modules": kept,
    }


def keep_unpacked_(model: Any, recipe: Recipe) -> None:
    """Let gradients pass the layers of a quantised model also after an evaluation.

    On CPUs with AVX512-BF16, bitsandbytes packs a 4-bit weight for good at the first evaluation, and a packed one
    passes no gradient on to the layers below: training would go on with most of the adapter standing still, and a rank
    plan would not see them, without a word. So that is switched off.
    """
    if recipe.model.load_in is None:
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def prepare(model: Any, recipe: Recipe) -> Any:
    """Return a quantised model that can be trained through; any other as it is."""
    if recipe.model.load_in is None:
        return model
    keep_unpacked_(model, recipe)
    checkpointing = recipe.training.gradient_checkpointing
    return prepare_model_for_kbit_training(model, checkpointing, {"use_reentrant": False})
