"""Makes PEFT know the methods that are defined here: the one file that extends PEFT's closed tables."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

from aenum import extend_enum
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from safetensors import SafetensorError

from rankwise.method.folders import check_folder

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
        after_loading: Called with (model, folder or hub id, adapter name, what ``check_folder`` returned) when PEFT has
            read its files.
    """
    save, load, make = PeftModel.save_pretrained, PeftModel.load_adapter, PeftModel.from_pretrained.__func__  # type: ignore[attr-defined]
    if "rankwise" in save.__dict__:
        return

    @functools.wraps(save)
    def save_pretrained(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        save(self, save_directory, *args, **before_saving(self, kwargs))
        after_saving(self, save_directory)

    @functools.wraps(load)
    def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        folder = Path(model_id, kwargs.get("subfolder") or "")
        vouched = check_folder(folder)
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
        return make(cls, model, model_id, *args, **kwargs)

    save_pretrained.__dict__["rankwise"] = load_adapter.__dict__["rankwise"] = True
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
    PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]
    PeftModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
