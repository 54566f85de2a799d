"""An adapter on the Hugging Face hub: its folder in the cache, with what PEFT doesn't fetch beside the tensors."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rankwise.configs.path import PathConfig
from rankwise.files import read_json_object
from rankwise.method.folders import AGAIN, ALLOCATION, CONFIG, SEALED, config_class
from rankwise.rules.records import HISTORY_FILE

# What PEFT passes on of a load's keyword arguments, without those that say what is loaded, or to fetch all anew.
OPTIONS = {*inspect.signature(hf_hub_download).parameters} - {"repo_id", "filename", "force_download"}


def adapter_folder(model_id: str | Path, **options: Any) -> Path:
    """Return the folder that an adapter is loaded from: the one that is given, or the hub's in the cache.

    Of an adapter of this library the history and the digests are fetched into the cache, too, with the tensors that
    they vouch for: without the history a finished search or edit would begin again when training goes on.

    Args:
        model_id: A folder, or an id on the hub.
        options: Of a load: ``subfolder``, ``revision``, ``token``, ``cache_dir`` and the like; others are ignored.

    Returns:
        A folder that is not there if nothing of the hub could be had: PEFT says why.
    """
    subfolder = options.get("subfolder") or ""
    folder = Path(model_id, subfolder)
    if folder.is_dir():
        return folder
    known = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    try:
        config = Path(hf_hub_download(str(model_id), CONFIG, **known))
    except (HfHubHTTPError, HFValidationError, OSError):
        return folder
    kind = config_class(read_json_object(config, AGAIN).get("peft_type"))
    if kind is not None and issubclass(kind, PathConfig):
        _fetch_beside(str(model_id), known)
    return config.parent


def _fetch_beside(model_id: str, options: dict[str, Any]) -> None:
    """Fetch what is sealed, and the seal; of two files with tensors the one that PEFT would take."""
    safe, pickled = (name for name in SEALED if name != HISTORY_FILE)
    unknown = [name for name in (HISTORY_FILE, ALLOCATION) if _fetch(model_id, name, options) is None]
    if _fetch(model_id, safe, options) is not True:
        _fetch(model_id, pickled, options)
    if unknown:
        warnings.warn(
            f"{' and '.join(unknown)} of {model_id} can't be fetched, and the cache doesn't say that there is none: "
            "nothing vouches for the adapter, and training on would search or edit anew what was finished. Load it "
            "once with the hub in reach",
            stacklevel=4,
        )


def _fetch(model_id: str, name: str, options: dict[str, Any]) -> bool | None:
    """Return whether the hub has a file, which is in the cache then; None if that can't be told without a network."""
    try:
        hf_hub_download(model_id, name, **options)
    except LocalEntryNotFoundError:
        place = "/".join(part for part in (options.get("subfolder"), name) if part)
        cached = try_to_load_from_cache(
            model_id, place, cache_dir=options.get("cache_dir"), revision=options.get("revision")
        )
        return False if cached is _CACHED_NO_EXIST else None
    except EntryNotFoundError:
        return False
    return True
