"""The command under ``torchrun``: two processes train one run, one that dies ends it, and it goes on from there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.processes import ROOT
from tests.runs.training.test_train import same, weights

from rankwise.rules.records import from_lines
from rankwise.runs.recipes.recipe import Recipe

DIES = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from rankwise.runs.recipes.reading import read_yaml
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.training.train import train

class Dies(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

train(parse_recipe(read_yaml(Path(sys.argv[1]))), sys.argv[2], callbacks=[Dies()])
"""


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
        cwd=ROOT,
    )


@pytest.mark.distributed
@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_then_goes_on(make: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "dies.py"
    recipe.write_text(make("heterolora").to_yaml())
    script.write_text(DIES)
    whole = torchrun("-m", "rankwise_cli", "train", recipe, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    died = torchrun(script, recipe, tmp_path / "run")
    assert died.returncode != 0
    assert "SIGKILL" in died.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()
    resumed = torchrun("-m", "rankwise_cli", "train", recipe, "--out", tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    histories = [from_lines((tmp_path / name / "search_history.jsonl").read_text(), name) for name in ("whole", "run")]
    chosen = [[(record.step, record.chosen) for record in history] for history in histories]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 3
