"""Makes PEFT know the methods that are defined here: the one file that extends PEFT's closed tables."""

from __future__ import annotations

import functools
from typing import Any

from aenum import extend_enum
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from safetensors import SafetensorError

NAMES = ("HETEROLORA", "LOR2C", "BOTTLENECK")


def extend_peft_type() -> None:
    """Add the members to ``PeftType``, once; the configs need them before anything else is imported.

    Raises:
        RuntimeError: PEFT's enum no longer takes a new member.
    """
    for name in NAMES:
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
    if PeftType(name) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=name.lower(), config_cls=config_cls, model_cls=model_cls, prefix=prefix, is_mixed_compatible=False
        )


def wrap_peft_model(before_saving: Any, after_saving: Any, after_loading: Any) -> None:
    """Let ``PeftModel`` save and load what belongs to an adapter of this library beside its tensors, once.

    Args:
        before_saving: Called with (model, keyword arguments) of ``save_pretrained``, which thereby takes
            ``enabled_only``; returns the keyword arguments for PEFT's own method.
        after_saving: Called with (model, folder) when PEFT has written its files.
        after_loading: Called with (model, folder or hub id, adapter name) when PEFT has read its files.
    """
    save, load = PeftModel.save_pretrained, PeftModel.load_adapter
    if "rankwise" in save.__dict__:
        return

    @functools.wraps(save)
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        save(self, save_directory, *args, **before_saving(self, kwargs))
        after_saving(self, save_directory)

    @functools.wraps(load)
    def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            result = load(self, model_id, adapter_name, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{model_id} holds an adapter_model.safetensors that is not whole ({error}); copy or train it again"
            ) from error
        after_loading(self, model_id, adapter_name)
        return result

    save_pretrained.__dict__["rankwise"] = load_adapter.__dict__["rankwise"] = True
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
    PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]
