"""LoR2C as a method of the runner: its edits in the history and the figures, what resumes, what is selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.runs.conftest import Make
from tests.runs.results.test_tables import shown
from tests.runs.training.test_train import Fails, same, weights
from transformers import TrainerCallback

import rankwise
from rankwise.rules.records import HISTORY_FILE
from rankwise.runs.building.best_checkpoint import AfterChanges, last_edit
from rankwise.runs.building.job import build, method_callbacks
from rankwise.runs.building.models import load_base
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import export_run
from rankwise.runs.results.tables import result_table
from rankwise.runs.score import score
from rankwise.runs.sizes import plan_recipe
from rankwise.runs.training.train import train

PATH = 2 * 4 * 32  # of one block: r = 4, d = 32
STEPS = 8


def edited(make: Make, **method: Any) -> Recipe:
    """Three blocks, eight steps: a merge and an injection, both after the second step unless told otherwise."""
    shape = {"max_steps": STEPS, "every": 2}
    return make("lor2c", "mrpc", method={"injections": 1, **method}, training=shape, select="last")


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / HISTORY_FILE).read_text(encoding="utf-8").splitlines()]


def test_the_edits_are_in_the_history_the_figures_and_the_table(make: Make, tmp_path: Path) -> None:
    metrics = train(edited(make), tmp_path / "run").metrics
    records = history(tmp_path / "run")
    assert [(record["step"], record["due"]) for record in records] == [(2, "merge"), (2, "inject")]
    assert metrics["searches"] == 0
    assert [(edit["step"], edit["due"], edit["enabled"]) for edit in metrics["edits"]] == [
        (2, "merge", 2 * PATH),
        (2, "inject", 2 * PATH),
    ]
    assert metrics["edits"][0]["what"].startswith("merge ")
    assert metrics["edits"][1]["what"].startswith("inject ")
    merge, inject = (edit["dev_loss"] for edit in metrics["edits"])
    assert merge[0] == pytest.approx(metrics["metrics"]["per_epoch"][0]["loss"], abs=0.2)
    assert merge[0] != merge[1] == inject[0] != inject[1]
    counts = metrics["parameters"]
    assert (counts["at_start"], counts["trainable"], counts["enabled"]) == (3 * PATH, 2 * PATH, 2 * PATH)
    assert counts["resident"] == 6 * PATH
    assert metrics["chosen"]["last"] == records[-1]["chosen"]
    assert 0 < metrics["seconds"]["search"] < metrics["seconds"]["train"]
    text = shown(result_table(metrics))
    assert "of them editing" in text
    assert f"start ({3 * PATH:,}); after step 2 merge" in text
    assert f"dev loss {merge[0]:.4f} -> {merge[1]:.4f}" in " ".join(text.split())


def test_a_shared_down_projection_counts_once(make: Make, tmp_path: Path) -> None:
    recipe = edited(make, merges=0, injections=0, share=True)
    metrics = train(recipe, tmp_path / "run").metrics
    assert metrics["parameters"]["trainable"] == metrics["parameters"]["resident"] == 4 * 4 * 32
    assert metrics["edits"] == history(tmp_path / "run") == []
    assert plan_recipe(recipe)["enabled"] == 4 * 4 * 32


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(make: Make, tmp_path: Path, stop: int) -> None:
    recipe = edited(make)
    whole = train(recipe, tmp_path / "whole").metrics
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(recipe, tmp_path / "parts", callbacks=[Fails(stop)])
    resumed = train(recipe, tmp_path / "parts", resume=True).metrics
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for key in ("metrics", "chosen", "parameters", "edits"):
        assert resumed[key] == whole[key]


def test_the_saved_adapter_has_the_structure_that_was_measured(make: Make, tmp_path: Path) -> None:
    recipe = edited(make)
    result = train(recipe, tmp_path / "run")
    with quiet():
        base = load_base(recipe, task_type="SEQ_CLS", arguments=result.metrics["model_arguments"])
    loaded = PeftModel.from_pretrained(base, str(result.out / "adapter"))
    on = [name for name, path in rankwise.named_paths(loaded).items() if path.enabled]
    assert on == result.metrics["chosen"]["last"]


class Judge(TrainerCallback):
    """Says which evaluation was the best: the one right after the edits, and of the others the third."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_accuracy"] = {2: 1.0, 4: 0.5, 6: 0.75, 8: 0.25}[state.global_step]


def test_only_what_was_trained_after_the_last_edit_is_selected(make: Make, tmp_path: Path) -> None:
    recipe = edited(make).model_copy(update={"select": "dev"})
    metrics = train(recipe, tmp_path / "run", callbacks=[Judge()]).metrics
    assert metrics["metrics"]["dev_selected"]["step"] == 6
    assert set(metrics["chosen"]["dev_selected"]) == set(metrics["chosen"]["last"])
    unedited = edited(make, merges=0, injections=0).model_copy(update={"select": "dev"})
    found = train(unedited, tmp_path / "unedited", callbacks=[Judge()]).metrics["metrics"]
    assert found["dev_selected"]["step"] == 2


def test_a_plan_shows_the_start(make: Make) -> None:
    planned = plan_recipe(edited(make))
    assert (planned["enabled"], planned["resident"], planned["candidates"]) == (3 * PATH, 6 * PATH, 3)
    assert not {"budget", "budget_unit", "window_bytes"} & planned.keys()


def test_score_and_export_say_what_to_do(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'lor2c' chooses while it trains.*shortcuts: \[layer\]"):
        score(edited(make))
    train(edited(make), tmp_path / "run")
    with pytest.raises(ValueError, match=r"live block paths.*Keep the adapter as it is"):
        export_run(tmp_path / "run", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_with_injected_lora_alone_the_run_exports(make: Make, tmp_path: Path) -> None:
    shape = {"max_steps": 40, "every": 40}
    recipe = edited(make, merges=0, injections=3)
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=shape)})
    result = train(recipe, tmp_path / "run")
    assert [edit["what"].split()[0] for edit in result.metrics["edits"]] == ["inject"] * 3
    export_run(tmp_path / "run", tmp_path / "plain")
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = []
    with quiet(), torch.no_grad():
        for adapter in (RunFolder(result.out).adapter, tmp_path / "plain"):
            base = load_base(recipe, task_type="SEQ_CLS", arguments=result.metrics["model_arguments"])
            logits.append(PeftModel.from_pretrained(base, str(adapter)).eval()(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-6)


def test_edits_that_do_not_fit_are_refused_before_training(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set edit_unit='steps'"):
        train(edited(make, edit_unit="epochs"), tmp_path / "run")


def test_the_callbacks_of_a_run_without_edits_leave_it_alone(make: Make) -> None:
    with quiet():
        job = build(edited(make, merges=0, injections=0))
    assert any(isinstance(callback, AfterChanges) for callback in method_callbacks(job))
    assert last_edit(rankwise.history(job.model)) == 0
