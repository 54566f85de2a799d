"""An adapter folder before PEFT reads it: its config has the right types, its files are as they were saved."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from rankwise.configs.path import PathConfig
from rankwise.errors import nearest
from rankwise.fields import wrong_field
from rankwise.files import read_json_object, sha256
from rankwise.rules.records import HISTORY_FILE

CONFIG = "adapter_config.json"
ALLOCATION = "allocation.json"
DIGESTS = "sha256"
SEALED = ("adapter_model.safetensors", "adapter_model.bin", HISTORY_FILE)
AGAIN = "copy the adapter again"
# Fields that say where an adapter is used, not what it computes: these may be edited.
FREE = {"base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "runtime_config"}
FREE |= {"peft_version", "rankwise_version"}
WIDER: dict[str, Any] = {"init_lora_weights": Any, "lora_alpha": float}  # PEFT takes more than its annotations say


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of what an adapter folder's contents depend on: its tensors, history and settings.

    Args:
        folder: A folder that ``save_pretrained`` has written.
    """
    found = {name: sha256(folder / name) for name in SEALED if (folder / name).is_file()}
    if (folder / CONFIG).is_file():
        found[CONFIG] = _settings_digest(read_json_object(folder / CONFIG, AGAIN))
    return found


def config_class(kind: object) -> type[PeftConfig] | None:
    """Return the class of a method's configs, or None for a method that is not known.

    Args:
        kind: ``peft_type`` of a config that was saved.
    """
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)] if isinstance(kind, str) and kind in _methods() else None


def _methods() -> set[str]:
    return {str(each.value) for each in PEFT_TYPE_TO_CONFIG_MAPPING}


def check_folder(folder: Path) -> bool:
    """Refuse a damaged adapter folder, and return whether digests vouch for it; other methods' are left to PEFT.

    Folders of version 0.1 have no digests.

    Raises:
        ValueError: A file is damaged; the message names it, and the field.
    """
    if not (folder / CONFIG).is_file():
        return False  # PEFT's to refuse
    config = read_json_object(folder / CONFIG, AGAIN)
    cls = config_class(kind := config.get("peft_type"))
    if cls is None:
        raise ValueError(
            f"{folder / CONFIG} has peft_type={kind!r:.60}, which is no method that is known here"
            f"{nearest(str(kind)[:60], _methods())}; {AGAIN}, or import the package that defines it"
        )
    if not issubclass(cls, PathConfig):
        return False
    _check_config(folder, cls, config)
    return _check_digests(folder)


def _check_config(folder: Path, cls: type[PathConfig], config: dict[str, Any]) -> None:
    """Refuse values of the wrong type and those that the config itself refuses; of unknown fields PEFT warns."""
    wrong = wrong_field(cls, config, **WIDER)
    try:
        if wrong is not None:
            raise ValueError(wrong)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cls.from_pretrained(str(folder))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}; correct it, or {AGAIN}") from error


def _check_digests(folder: Path) -> bool:
    file = folder / ALLOCATION
    if not file.is_file():
        return False
    saved = read_json_object(file, f"{AGAIN}, or delete this file to load the adapter unchecked").get(DIGESTS)
    if saved is None:
        return False
    if not isinstance(saved, dict) or not all(isinstance(value, str) for value in saved.values()):
        raise ValueError(f"{file} is damaged, its {DIGESTS!r} is {saved!r:.60}: {AGAIN}")
    present = digests(folder)
    differing = sorted(name for name in {*saved, *present} if saved.get(name) != present.get(name))
    if differing:
        name = differing[0]
        what = "is missing" if name not in present else "is not as it was saved (its SHA-256 differs)"
        raise ValueError(
            f"{folder / name} {what}: {AGAIN}. If you changed it on purpose, delete {DIGESTS!r} from {file} to load "
            "it all the same"
        )
    return True


def _settings_digest(config: dict[str, Any]) -> str:
    settings = {key: value for key, value in config.items() if key not in FREE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
