"""The examples of training loops run as they stand, each in a process of its own, offline."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "training"
NEEDS = {"with_lightning": "lightning", "with_ray": "ray", "with_sentence_transformers": "sentence_transformers"}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def test_there_is_an_example_for_each_loop() -> None:
    assert len(SCRIPTS) == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed, and rankwise does not ask for it")
    source = str(FOLDER.parents[1] / "src")
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "TRL_EXPERIMENTAL_SILENCE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = "the same logits" if name == "export_for_serving" else "paths on"
    assert said in done.stdout
