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
from rankwise.method.folders import AGAIN, ALLOCATION, CONFIG, DIGESTS, SEALED, config_class
from rankwise.rules.records import HISTORY_FILE

# What PEFT passes on of a load's keyword arguments, without those that say what is loaded.
OPTIONS = {*inspect.signature(hf_hub_download).parameters} - {"repo_id", "filename"}


def adapter_folder(model_id: str | Path, **options: Any) -> Path:
    """Return the folder that an adapter is loaded from: the one that is given, or the hub's in the cache.

    Of an adapter of this library the history and the digests are fetched into the cache, too, with what they vouch for:
    without the history a finished search or edit would begin again when training goes on.

    Args:
        model_id: A folder, or an id on the hub.
        options: Of a load: ``subfolder``, ``revision``, ``token``, ``cache_dir`` and the like; others are ignored.

    Returns:
        A folder that is not there if nothing of the hub could be had: PEFT says why.
    """
    folder = Path(model_id, options.get("subfolder") or "")
    if (folder / CONFIG).is_file():
        return folder
    known = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    if "revision" in known:
        known["revision"] = str(known["revision"])  # transformers' own kind brings the commit of the base's repository
    try:
        config = Path(hf_hub_download(str(model_id), CONFIG, **known))
    except (HfHubHTTPError, HFValidationError, OSError):
        return folder
    kind = config_class(read_json_object(config, AGAIN).get("peft_type"))
    if kind is not None and issubclass(kind, PathConfig):
        _fetch_beside(str(model_id), known)
    return config.parent


def _fetch_beside(model_id: str, options: dict[str, Any]) -> None:
    """Fetch the digests and what they are of; where there are none, the history."""
    seal, certain = _fetch(model_id, ALLOCATION, options)
    sealed = read_json_object(seal, AGAIN).get(DIGESTS) if seal is not None else None
    if isinstance(sealed, dict):
        for name in {*SEALED} & {*sealed}:
            _fetch(model_id, name, options)
        return
    certain &= _fetch(model_id, HISTORY_FILE, options)[1]
    if not certain:
        warnings.warn(
            f"whether {model_id} has a {HISTORY_FILE} and an {ALLOCATION} can't be told without the hub: nothing "
            "vouches for the adapter, and training on may search or edit anew what was finished. Load it once with "
            "the hub in reach",
            stacklevel=4,
        )


def _fetch(model_id: str, name: str, options: dict[str, Any]) -> tuple[Path | None, bool]:
    """Return a file of the hub's in the cache, None where there is none, and whether that is certain."""
    try:
        return Path(hf_hub_download(model_id, name, **options)), True
    except LocalEntryNotFoundError:
        place = "/".join(part for part in (options.get("subfolder"), name) if part)
        cached = try_to_load_from_cache(
            model_id, place, cache_dir=options.get("cache_dir"), revision=options.get("revision")
        )
        return None, cached is _CACHED_NO_EXIST
    except EntryNotFoundError:
        return None, True
    except (HfHubHTTPError, OSError):  # the repository is gone, or the cache can't be written to
        return None, False
