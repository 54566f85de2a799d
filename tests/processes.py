"""Two processes of ``torch.distributed`` on the CPU, as a test starts them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def in_two_processes(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Run a function of a test module in two processes; each gets its half of a batch of four, as a slice, first.

    Args:
        function: Returns what JSON can hold.
        folder: An empty one.
        arguments: What follows the slice; plain values.

    Returns:
        What each process returned, by rank.
    """
    call = f"work({function.__module__!r}, {function.__name__!r}, {str(folder)!r}, {arguments!r})"
    script = folder / "run.py"
    script.write_text(f"from tests.processes import work; {call}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def work(module: str, function: str, folder: str, arguments: tuple[Any, ...]) -> None:
    """Do one process's part."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = getattr(importlib.import_module(module), function)(slice(2 * rank, 2 * rank + 2), *arguments)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # what is left of gloo's threads may abort an interpreter that takes itself apart
