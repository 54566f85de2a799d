"""The search's state as two files in a checkpoint folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rankwise.distributed import rank, sum_over_processes_
from rankwise.files import write_atomic, write_json_atomic
from rankwise.paths.session import Listening

STATE = "rankwise_search.json"
SUMS = "rankwise_search.safetensors"


def save_search(listener: Listening, folder: str | Path) -> None:
    """Write a search's counters, history and open window into a folder; every process must call it.

    The window's sums are added up over processes and written by the first.

    Args:
        listener: The search.
        folder: The checkpoint's folder; made if it is not there.
    """
    state = listener.state_dict()
    sums = {name: tensor.clone().contiguous() for name, tensor in sorted(state.pop("sums").items())}
    sum_over_processes_(sums.values())
    if rank() == 0:
        write_atomic(Path(folder) / SUMS, lambda path: save_file(sums, path))
        write_json_atomic(Path(folder) / STATE, state)


def load_search(listener: Listening, folder: str | Path) -> None:
    """Continue the search that ``save_search`` wrote.

    Raises:
        FileNotFoundError: The folder holds no search.
        ValueError: A file is not whole, or it is the search of other paths.
    """
    state = read_state(folder)
    try:
        state["sums"] = load_file(Path(folder) / SUMS)
    except SafetensorError as error:
        raise ValueError(
            f"{Path(folder) / SUMS} is not a whole safetensors file ({error}); use another checkpoint"
        ) from error
    if rank() != 0:  # the sums of all processes are in the file, so one of them takes them back
        state["sums"] = {}
    names = {key.partition("/")[2] for key in state["sums"]}
    unknown = sorted(names - set(listener.paths.paths))
    if unknown:
        raise ValueError(f"{folder} holds the search of another model: this one has no path {unknown[0]!r}")
    listener.load_state_dict(state)


def read_state(folder: str | Path) -> dict[str, Any]:
    """Return the counters and history of a saved search.

    Raises:
        FileNotFoundError: The folder holds no search.
    """
    path = Path(folder) / STATE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {STATE}, so the search can't be resumed: give the checkpoint's folder with "
            "rankwise.AllocationCallback(resume_from=...), or train from the start"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert math.isfinite(state["tap_seconds"])
    return state
