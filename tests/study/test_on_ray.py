"""Cells as tasks of Ray: trained where they are placed, their errors kept."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.study.cells import RECIPE, started, two_arms
from tests.study.conftest import Write
from typer.testing import CliRunner, Result

from rankwise.runs.folder import RunFolder
from rankwise.study.on_ray import run_on_ray, train_cell
from rankwise.study.working import Work
from rankwise_cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ONE_ARM: dict[str, Any] = {"arms": {"four": {}}, "rates": None, "seeds": {"report": [1]}}


@pytest.mark.slow
def test_cells_are_tasks_of_a_ray_cluster_of_two_machines(write: Write, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="comes with the extra 'ray'")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=environment)
        out = tmp_path / "out"
        study = write(**{**ONE_ARM, "arms": {"four": {}, "wrong": {"method.target_modules": ["nothing"]}}})
        done = call("study", "run", study, "--out", out, "--engine", "ray")
        assert done.exit_code == 1, done.output
        assert RunFolder(out / "four" / "report-rate-own-seed-1").finished
        assert "names no module" in (out / "wrong" / "report-rate-own-seed-1" / "error.txt").read_text()
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_cell_that_fails_in_its_task_keeps_its_error(tmp_path: Path) -> None:
    folder = started(tmp_path, two_arms(b={**RECIPE, "method": {"name": "lroa"}}))
    cell = next(cell for cell in folder.plan(folder.planner()).cells if cell.group == "b")
    train_cell(str(tmp_path), tuple(cell))
    error = folder.error_file(cell).read_text(encoding="utf-8")
    assert error.startswith("ValueError: method.name='lroa' is not one of ")
    assert "Traceback" in error
    assert folder.loss(cell) == math.inf
    assert json.loads(json.dumps(tuple(cell))) == list(cell), "plain values travel to another machine"


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"--engine ray needs Ray: pip install 'rankwise\[ray\]'"):
        run_on_ray(Work(tmp_path), Console())
