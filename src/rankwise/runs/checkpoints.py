"""What makes a checkpoint whole: a manifest with the size and the digest of every file that a resume reads.

The manifest is the last file written into a checkpoint and the first one removed from it, so a process may be killed
at any moment: what has a manifest was written to its end, and what has none does not count.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from rankwise.fields import wrong_field
from rankwise.files import delete, read_json_object, sha256, write_json_atomic
from rankwise.rules.records import HISTORY_FILE

logger = logging.getLogger("rankwise")

MANIFEST = "rankwise_run.json"
STATE = "trainer_state.json"
AGAIN = "copy the checkpoint again"
CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
# At the top of a checkpoint; of what lies in its folders (other adapters, shards) everything is read.
READ_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".index.json")
READ_NAMES = (STATE, "adapter_config.json", "config.json", "allocation.json", HISTORY_FILE)
NOT_READ = (MANIFEST, "training_args.bin")
# What continuing needs, whatever the method: any one of each.
NEEDED: dict[str, tuple[str, ...]] = {
    STATE: (STATE,),
    "the weights (adapter_model.safetensors)": (
        "adapter_model.safetensors",
        "model*.safetensors",
        "*/adapter_model.safetensors",
        "pytorch_model_fsdp*",
    ),
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    "scheduler.pt": ("scheduler.pt",),
    "rng_state.pth": ("rng_state*.pth",),
}
# What loading a damaged pickle has been seen to raise; the restricted unpickler runs nothing.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    ImportError,
    AssertionError,
    OverflowError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Fault:
    """Why a checkpoint does not count.

    Args:
        reason: What is missing or damaged.
        interrupted: Whether it was never written to its end, or half deleted: nothing that was there is lost.
    """

    reason: str
    interrupted: bool = False


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not, by their step."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.match(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def complete(checkpoint: Path, *, seconds: float, data: str | None = None) -> None:
    """Write the manifest, when everything else is there.

    Args:
        checkpoint: Its folder.
        seconds: Seconds of training that led to it.
        data: The digest of the rows it was trained on and chosen by.
    """
    files = {name: {"bytes": (checkpoint / name).stat().st_size} for name in _read_files(checkpoint)}
    described = {name: {**size, "sha256": sha256(checkpoint / name)} for name, size in files.items()}
    write_json_atomic(checkpoint / MANIFEST, {"seconds": seconds, "data": data, "files": described})


def seconds_before(checkpoint: Path | None) -> float:
    """Return the training seconds that led to a checkpoint."""
    return float(_manifest(checkpoint)["seconds"]) if checkpoint is not None else 0.0


def data_before(checkpoint: Path) -> str | None:
    """Return the digest of the rows that led to a checkpoint; version 0.1 kept none."""
    found = _manifest(checkpoint).get("data")
    return None if found is None else str(found)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first: killed half way, what is left does not count."""
    if not checkpoint.is_symlink():
        (checkpoint / MANIFEST).unlink(missing_ok=True)
    try:
        delete(checkpoint)
    except OSError as error:  # no reason to end a training; the next rotation tries again
        logger.warning("%s could not be deleted: %s", checkpoint, error)


def rotate(folder: Path, *, newest: int, best: int | None, keep: int | None) -> None:
    """Delete what is too many, the oldest first, and what older saves that were killed have left.

    Call it when the newest checkpoint is complete. Those of later steps stay: a resume passed them over.

    Args:
        folder: The folder of the checkpoints.
        newest: Step of the newest, which stays.
        best: Step of the best on dev, which stays.
        keep: How many shall be left, at least two; none deletes nothing.
    """
    if keep is None:
        return
    present = [checkpoint for checkpoint in checkpoints(folder) if step_of(checkpoint) <= newest]
    marked = [checkpoint for checkpoint in present if (checkpoint / MANIFEST).is_file()]
    surplus = len(marked) - max(keep, 2)
    spare = [checkpoint for checkpoint in marked if step_of(checkpoint) not in (newest, best)]
    for checkpoint in [*(each for each in present if each not in marked), *spare[: max(surplus, 0)]]:
        remove(checkpoint)


def newest_whole(folder: Path, needs: Iterable[str] = ()) -> tuple[Path | None, dict[Path, Fault]]:
    """Return the newest checkpoint that counts, and those that were passed over with their faults.

    One whose best checkpoint on dev is gone does not count: in the end that is to be measured and saved.

    Args:
        folder: The folder of the checkpoints.
        needs: Files that the method's own state lies in.
    """
    passed: dict[Path, Fault] = {}
    for checkpoint in reversed(checkpoints(folder)):
        found = fault(checkpoint, needs) or _fault_of_best(checkpoint)
        if found is None:
            return checkpoint, passed
        passed[checkpoint] = found
    return None, passed


def fault(checkpoint: Path, needs: Iterable[str] = ()) -> Fault | None:
    """Return why a checkpoint can't be continued from, None where it can.

    One of version 0.1 has a manifest without digests; what it must hold is looked at then, file by file.
    """
    if not (checkpoint / MANIFEST).is_file():
        return Fault(f"it was not written to its end (no {MANIFEST})", interrupted=True)
    try:
        files = _manifest(checkpoint).get("files")
        if files is not None:
            _check_digests(checkpoint, files)
            added = sorted(set(_read_files(checkpoint)) - set(files))
            if added:
                raise ValueError(f"{added[0]} was not saved with it")
        for what, patterns in {**NEEDED, **{name: (name,) for name in needs}}.items():
            if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
                raise ValueError(f"{what} is missing")
        _state(checkpoint)
        for file in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth")]):
            _check_pickle(file, crc=files is None)
        if files is None:
            _check_weights(checkpoint)
    except (ValueError, OSError) as error:
        return Fault(str(error))
    return None


def _read_files(checkpoint: Path) -> list[str]:
    """Return the files that a resume reads, as paths relative to the checkpoint."""
    found = []
    for path in checkpoint.rglob("*"):
        inside = path.parent != checkpoint
        ours = path.name.startswith("rankwise_") or path.name in READ_NAMES or path.name.endswith(READ_ENDINGS)
        if path.is_file() and (inside or (ours and path.name not in NOT_READ)):
            found.append(path.relative_to(checkpoint).as_posix())
    return sorted(found)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / MANIFEST
    content = read_json_object(file, AGAIN)
    seconds = content.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"{file} is damaged, its 'seconds' are {seconds!r:.60}: {AGAIN}")
    return content


def _check_digests(checkpoint: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise ValueError(f"{checkpoint / MANIFEST} is damaged, its 'files' are {files!r:.60}: {AGAIN}")
    for name, described in files.items():
        parts = PurePosixPath(name).parts
        if not isinstance(described, dict) or ".." in parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{checkpoint / MANIFEST} is damaged, it lists {name!r:.80}: {AGAIN}")
        file = checkpoint / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != described.get("bytes"):
            raise ValueError(
                f"{name} has {file.stat().st_size} bytes, not the {described.get('bytes')} it was saved with"
            )
        if sha256(file) != described.get("sha256"):
            raise ValueError(f"{name} is not as it was saved (its SHA-256 differs)")


def _state(checkpoint: Path) -> dict[str, Any]:
    """Return what Trainer wrote of its progress, checked."""
    content = read_json_object(checkpoint / STATE, AGAIN)
    unknown = sorted(set(content) - {field.name for field in fields(TrainerState)})
    # These two Trainer writes as something else than it annotates.
    annotated = {key: value for key, value in content.items() if key not in ("log_history", "stateful_callbacks")}
    wrong = f"there is no field {unknown[0]!r:.60}" if unknown else wrong_field(TrainerState, annotated)
    if wrong is None and content.get("global_step") != step_of(checkpoint):
        wrong = f"global_step={content.get('global_step')!r} must be {step_of(checkpoint)}"
    entries = content.get("log_history")
    listed = isinstance(entries, list) and all(isinstance(entry, dict) and "step" in entry for entry in entries)
    if wrong is None and not listed:
        wrong = f"log_history={entries!r:.80} must be a list of entries with a step"
    if wrong is not None:
        raise ValueError(f"{STATE} is damaged: {wrong}")
    return content


def progress(checkpoint: Path) -> tuple[int, float]:
    """Return the optimizer steps and the epochs that a checkpoint comes after."""
    content = _state(checkpoint)
    return step_of(checkpoint), float(content.get("epoch") or 0.0)


def _check_pickle(file: Path, *, crc: bool) -> None:
    """Refuse a damaged file of torch.save; only tensors and plain values are read, and nothing is run."""
    try:
        if crc:
            with zipfile.ZipFile(file) as archive:
                if (member := archive.testzip()) is not None:
                    raise ValueError(f"its part {member} has another checksum")
        with safe_globals():
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except PICKLE_ERRORS as error:
        # The message of torch's own error advises to turn the protection off: only its kind is told.
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{file.name} is damaged or holds more than tensors and numbers ({reason})") from error
    keys = _keys(file.name)
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in keys.items()):
        raise ValueError(f"{file.name} is damaged: it must hold {', '.join(keys)}")


def _keys(name: str) -> dict[str, type]:
    if name == "optimizer.pt":
        return {"state": dict, "param_groups": list}
    if name.startswith("rng_state"):
        return {"python": tuple, "numpy": tuple, "cpu": torch.Tensor}
    return {"last_epoch": int} if name == "scheduler.pt" else {}


def _check_weights(checkpoint: Path) -> None:
    for file in sorted(checkpoint.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except SafetensorError as error:
            raise ValueError(f"{file.name} is not a whole safetensors file ({error})") from error


def _fault_of_best(checkpoint: Path) -> Fault | None:
    """Return why the best checkpoint of this one's time can't be had back, if that is so."""
    step = _state(checkpoint).get("best_global_step")
    if step is None or step == step_of(checkpoint):
        return None
    best = checkpoint.parent / f"checkpoint-{step}"
    try:
        if not (best / MANIFEST).is_file():
            raise ValueError("it is gone")
        files = _manifest(best).get("files")
        if isinstance(files, dict):
            _check_digests(best, {name: each for name, each in files.items() if name.endswith(".safetensors")})
        _check_weights(best)
    except (ValueError, OSError) as error:
        return Fault(f"the best checkpoint on dev, {best.name}, can't be had back: {error}")
    return None
