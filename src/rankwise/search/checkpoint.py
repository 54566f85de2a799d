"""The search's state as two files in a checkpoint folder."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.distributed import rank, sum_over_processes_, with_those_of_others
from rankwise.files import read_json_object, sha256, write_atomic, write_json_atomic
from rankwise.paths.session import Listening
from rankwise.rules.records import record_of, searches
from rankwise.scores.recorder import StatisticRecorder

STATE = "rankwise_search.json"
SUMS = "rankwise_search.safetensors"
ELSE = "copy the checkpoint again, or continue from another one"
COUNTS = ("step", "earlier", "searches", "window_steps")
SUM_NAME = re.compile(r"^(finite|sum\d+)/(?P<path>.+)$")


def save_search(listener: Listening, folder: str | Path) -> None:
    """Write a search's counters, history and open window into a folder; every process must call it.

    The window's sums are added up over processes and written by the first, and their digest beside the counters.

    Args:
        listener: The search.
        folder: The checkpoint's folder; made if it is not there.
    """
    state = listener.state_dict()
    own = {name: tensor.clone().contiguous() for name, tensor in state.pop("sums").items()}
    window = listener.paths.session.recorder  # an editor has none
    sums = with_those_of_others(own, window.absent if isinstance(window, StatisticRecorder) else lambda key: 0.0)
    sum_over_processes_(sums.values())
    if rank() == 0:
        write_atomic(Path(folder) / SUMS, lambda path: save_file(sums, path))
        write_json_atomic(Path(folder) / STATE, {**state, "sums_sha256": sha256(Path(folder) / SUMS)})


def load_search(listener: Listening, folder: str | Path) -> None:
    """Continue the search that ``save_search`` wrote.

    Raises:
        FileNotFoundError: The folder holds no search.
        ValueError: A file is damaged, or it is the search of other paths.
    """
    state = read_state(folder)
    lacking = sorted(set(listener.state_dict()) - {*state, "sums", "earlier"})
    if lacking:
        raise ValueError(f"{Path(folder) / STATE} is damaged, it lacks {lacking[0]!r}: {ELSE}")
    sums = read_sums(folder, state.pop("sums_sha256", None))
    state["sums"] = sums if rank() == 0 else {}  # the sums of all processes are in the file: one takes them back
    names = {key.partition("/")[2] for key in state["sums"]}
    unknown = sorted(names - set(listener.paths.paths))
    if unknown:
        raise ValueError(f"{folder} holds the search of another model: this one has no path {unknown[0]!r}")
    listener.load_state_dict(state)


def read_sums(folder: str | Path, digest: str | None) -> dict[str, Tensor]:
    """Return the sums of an open window.

    Args:
        folder: The checkpoint's folder.
        digest: Their SHA-256; version 0.1 wrote none.

    Raises:
        FileNotFoundError: They are missing.
        ValueError: They are damaged.
    """
    file = Path(folder) / SUMS
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, so the search can't be resumed: {ELSE}")
    if digest is not None and sha256(file) != digest:
        raise ValueError(f"{file} is not as it was saved (its SHA-256 differs from that in {STATE}): {ELSE}")
    try:
        sums = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}): {ELSE}") from error
    wrong = [key for key, tensor in sums.items() if not (SUM_NAME.match(key) and tensor.is_floating_point())]
    if wrong:
        raise ValueError(f"{file} is damaged, {wrong[0]!r} is no sum of a search: {ELSE}")
    return sums


def read_state(folder: str | Path) -> dict[str, Any]:
    """Return the counters and history of a saved search.

    Raises:
        FileNotFoundError: The folder holds no search.
        ValueError: The file is damaged.
    """
    path = Path(folder) / STATE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {STATE}, so the search can't be resumed: give the checkpoint's folder with "
            "rankwise.AllocationCallback(resume_from=...), or train from the start"
        )
    state = read_json_object(path, ELSE)
    try:
        _check_state(state)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, {error}: {ELSE}") from error
    return state


def _check_state(state: dict[str, Any]) -> None:
    for name in COUNTS:
        value = state.get(name, 0 if name != "step" else None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name!r} is {value!r:.60} and no count")
    seconds = state.get("tap_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise ValueError(f"'tap_seconds' is {seconds!r:.60} and no time")
    if not isinstance(state.get("history"), list):
        raise ValueError(f"'history' is {state.get('history')!r:.60} and no list")
    history = [record_of(record) for record in state["history"]]
    if "searches" in state and state["searches"] != len(searches(history)):
        raise ValueError(f"'searches' is {state['searches']}, but the history holds {len(searches(history))}")
    earlier = state.get("earlier", 0)
    if earlier > len(history):
        raise ValueError(f"'earlier' is {earlier}, but the history holds {len(history)}")
    if any(record.step > state["step"] for record in history[earlier:]):
        raise ValueError(f"its history goes beyond its step {state['step']}")
