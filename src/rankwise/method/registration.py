"""Makes PEFT know the methods that are defined here: the one file that extends PEFT's closed tables."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections import ChainMap
from pathlib import Path
from typing import Any

from aenum import extend_enum
from peft import PeftConfig, PeftMixedModel, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from safetensors import SafetensorError
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel
from transformers.integrations.peft import PeftAdapterMixin

from rankwise.configs.path import PathConfig
from rankwise.method.folders import check_folder
from rankwise.method.hub import adapter_folder
from rankwise.method.loading import other_heads
from rankwise.method.unwinding import unwound
from rankwise.paths.path_set import has_adapter, holders


def extend_peft_type(*names: str) -> None:
    """Add members to ``PeftType``, once; the configs need them before anything else is imported.

    A member without its rows in PEFT's tables breaks whoever walks through the enum, so a method's comes with it.

    Raises:
        RuntimeError: PEFT's enum no longer takes a new member.
    """
    for name in names:
        if name in PeftType.__members__:
            continue
        extend_enum(PeftType, name, name)
        if PeftType(name).value != name:
            raise RuntimeError(
                f"this version of peft does not take a new PeftType ({PeftType(name)!r}); rankwise works with "
                "peft >= 0.21"
            )


def register_with_peft(name: str, config_cls: type, model_cls: type, prefix: str = "lora_") -> None:
    """Fill PEFT's tables for a method, once."""
    extend_peft_type(name)
    if PeftType(name) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=name.lower(), config_cls=config_cls, model_cls=model_cls, prefix=prefix, is_mixed_compatible=False
        )


def wrap_peft_model(before_saving: Any, after_saving: Any, after_loading: Any) -> None:
    """Let ``PeftModel`` save and load what belongs to an adapter of this library beside its tensors, once.

    A load that is refused leaves nothing behind, and neither does wrapping a model that has an adapter already.

    Args:
        before_saving: Called with (model, keyword arguments) of ``save_pretrained``, which thereby takes
            ``enabled_only``; returns the keyword arguments for PEFT's own method.
        after_saving: Called with (model, folder, selected adapters or None for all) when PEFT has written its files.
        after_loading: Called with (model, folder, adapter name, what ``check_folder`` returned) when PEFT has
            read its files.
    """
    save, load, make = PeftModel.save_pretrained, PeftModel.load_adapter, PeftModel.from_pretrained.__func__  # type: ignore[attr-defined]
    if "rankwise" in save.__dict__:
        return

    @functools.wraps(save)
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(save).bind_partial(self, save_directory, *args).arguments
        kwargs |= {name: value for name, value in bound.items() if name not in ("self", "save_directory")}
        selected = kwargs.get("selected_adapters")
        save(self, save_directory, **before_saving(self, kwargs))
        after_saving(self, save_directory, selected)

    @functools.wraps(load)
    def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        folder = adapter_folder(model_id, **kwargs)
        vouched = check_folder(folder)
        with unwound(self, always=False), other_heads(bool(kwargs.get("ignore_mismatched_sizes"))):
            try:
                result = load(self, model_id, adapter_name, *args, **kwargs)
            except (SafetensorError, pickle.UnpicklingError) as error:
                # Of a pickle only the kind of the error is told: torch advises to load it without protection.
                reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else error
                raise ValueError(
                    f"{model_id} holds weights that are no whole safetensors file ({reason}); copy or train it again"
                ) from error
            after_loading(self, folder, adapter_name, vouched)
        return result

    @functools.wraps(make)
    def from_pretrained(cls: type[PeftModel], model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        check_folder(Path(model_id, kwargs.get("subfolder") or ""))  # PEFT reads the config before it loads
        with unwound(model, always=False):
            return make(cls, model, model_id, *args, **kwargs)

    save_pretrained.__dict__["rankwise"] = load_adapter.__dict__["rankwise"] = True
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
    PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]
    PeftModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
    for wrapper in (PeftModel, PeftMixedModel):
        wrapper.__init__ = _checked_first(wrapper.__init__)  # type: ignore[method-assign]


def wrap_transformers(after_saving: Any, after_loading: Any) -> None:
    """Let transformers' own saving and ``model.load_adapter`` know what lies beside an adapter's tensors, too, once.

    They know config and tensors; without the history a static adapter would search again when trained on.

    Args:
        after_saving: Called with (model, folder) when transformers has written its files.
        after_loading: As in ``wrap_peft_model``.
    """
    load, save = PeftAdapterMixin.load_adapter, PreTrainedModel.save_pretrained
    if "rankwise" in load.__dict__:
        return

    @functools.wraps(load)
    def load_adapter(
        self: Any, peft_model_id: Any = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if peft_model_id is None:  # config and tensors were given, there is no folder
            return load(self, peft_model_id, adapter_name, *args, **kwargs)
        configured = getattr(kwargs.get("load_config"), "download_kwargs", None)
        options = [configured, kwargs, kwargs.get("download_kwargs"), kwargs.get("adapter_kwargs")]
        folder = adapter_folder(peft_model_id, **ChainMap(*(each for each in reversed(options) if each)))
        vouched = check_folder(folder)
        with unwound(self, always=False):
            result = load(self, peft_model_id, adapter_name, *args, **kwargs)
            after_loading(self, folder, adapter_name or "default", vouched)
        return result

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        save(self, save_directory, *args, **kwargs)
        after_saving(self, save_directory)

    load_adapter.__dict__["rankwise"] = True
    PeftAdapterMixin.load_adapter = load_adapter  # type: ignore[method-assign]
    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


def _checked_first(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        check_bare(model, peft_config)
        init(self, model, peft_config, *args, **kwargs)

    return __init__


def check_bare(model: nn.Module, config: PeftConfig) -> None:
    """Refuse to wrap a model that has an adapter already, where one of the two is of this library, or a wrapper.

    PEFT would build the second adapter over the first one, of the same name, layer by layer. Inside a wrapper all
    modules have other names, by which nothing that is saved or planned would fit the model again.

    Raises:
        ValueError: Says how to take the first one off, or to put another beside it; or which model to give.
    """
    compiled = "_orig_mod" in model._modules  # by torch.compile, whose class takes a second to import
    if isinstance(config, PathConfig) and (compiled or isinstance(model, (DataParallel, DistributedDataParallel))):
        inside = "_orig_mod" if compiled else "module"
        raise ValueError(
            f"this model is wrapped by {type(model).__name__}, which renames its modules: give the model inside "
            f"(model.{inside}), and compile or wrap what get_peft_model returns"
        )
    present = [adapter for holder in holders(model).values() for adapter in holder.rankwise_paths]
    if present:
        raise ValueError(
            f"this model already has rankwise paths (adapter {', '.join(map(repr, present))}): take them off first "
            "(base = model.unload(), or model.merge_and_unload()), or put another adapter beside them with "
            "model.add_adapter(name, config) or model.load_adapter(folder, name)"
        )
    if isinstance(config, PathConfig) and has_adapter(model):
        raise ValueError(
            f"this model already has an adapter of another method, and a {type(config).__name__} needs the base model: "
            "take it off first (base = model.unload(), or model.merge_and_unload())"
        )
