"""``rankwise tune``: the arms of a recipe, their sizes, and a race from beginning to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model
from rich.console import Console
from tests.models import tiny_llama
from tests.study.cells import finish
from tests.study.test_arms import enabled
from typer.testing import CliRunner

from rankwise.runs.recipes.methods import Method
from rankwise.runs.recipes.recipe import Recipe, load_recipe, parse_recipe
from rankwise.study import tuning
from rankwise.study.arms import DEFAULT, NAMES, PLANNED, YOURS, arms_of
from rankwise.study.folder import StudyFolder
from rankwise.study.race import Race
from rankwise.study.tuning import Wish, check_same, full_steps, make_race, plan_batches, price, snippet, too_dear, tune
from rankwise.study.working import Work, load_data
from rankwise_cli import app


def test_arms_that_are_too_dear_at_rank_one_are_named(base: Path) -> None:
    recipe = load_recipe(base)
    arms = arms_of(recipe, load_data(recipe), budget=100, without=[PLANNED])
    assert arms.above == {name: enabled(recipe, method) for name, method in arms.methods.items()}
    assert f"; above that: {DEFAULT} {arms.above[DEFAULT]:,}, q,v" in too_dear(arms)
    assert too_dear(arms_of(recipe, load_data(recipe), budget=10**6, without=[PLANNED])) == ""


def test_a_whole_run_is_counted_as_the_trainer_does(base: Path) -> None:
    recipe = load_recipe(base, ["training.max_steps=-1", "training.epochs=2", "training.batch_size=4"])
    assert full_steps(recipe, 10) == 6
    assert full_steps(load_recipe(base), 10) == 4


def test_the_price_is_said_and_kept(base: Path) -> None:
    recipe = load_recipe(base, ["training.max_steps=100"])
    race, _ = make_race(recipe, Wish(cost=6, rates=2, seeds=2, without=("LoR2C",)))
    assert [group.arm for group in race.groups] == [DEFAULT, "q,v", "MLP", "all-linear + residual", PLANNED, YOURS]
    assert race.cost <= 6
    assert "2 fresh seeds each: 4 runs" in price(race)
    total = float(price(race).split("At most ")[-1].split(" ")[0])
    assert total == pytest.approx(race.cost + 4 + 0.96, abs=0.01)  # 48 passes, after 48 steps of the head


def test_planning_is_told_before_it_begins_and_only_where_it_does(base: Path) -> None:
    told: list[str] = []
    recipe = load_recipe(base, ["training.max_steps=100"])
    with pytest.raises(ValueError, match=r"--cost 0\.5 is too little"):
        make_race(recipe, Wish(cost=0.5), told.append)
    with pytest.raises(ValueError, match="--without='lor2c' is not one of"):
        make_race(recipe, Wish(without=("lor2c",)), told.append)
    with pytest.raises(ValueError, match="leaves none"):
        make_race(load_recipe(base, ["data.dev_fraction=0"]), Wish(), told.append)
    make_race(recipe, Wish(without=(PLANNED,)), told.append)
    assert told == []
    make_race(recipe, Wish(without=tuple(name for name in NAMES if name not in (DEFAULT, PLANNED))), told.append)
    assert told == ["planning ranks for one of the arms first: at most 96 passes over a batch"]


def test_a_plan_for_short_runs_is_made_on_fewer_batches() -> None:
    assert [plan_batches(steps) for steps in (10, 40, 60, 96, 1000)] == [12, 12, 15, 24, 24]


def own_rows(base: Path, tmp_path: Path) -> Recipe:
    """A recipe on one file of made-up rows, as ``rankwise init`` writes it: no validation split."""
    rows = "".join(f"{'good' if row % 2 else 'bad'} film {row},{row % 2}\n" for row in range(40))
    (tmp_path / "reviews.csv").write_text(f"text,stars\n{rows}")
    content = yaml.safe_load(base.read_text())
    data = {"train_file": str(tmp_path / "reviews.csv"), "text_columns": ["text"], "label_column": "stars"}
    return parse_recipe({**content, "data": data})


def test_without_a_validation_split_a_part_is_set_apart_that_chose_nothing(base: Path, tmp_path: Path) -> None:
    recipe = own_rows(base, tmp_path)
    assert load_data(recipe).validation is None
    wish = Wish(cost=30, rates=1, without=("MLP", "LoR2C", "all-linear + residual", PLANNED))
    race, _ = make_race(recipe, wish)
    data = load_data(parse_recipe(race.groups[0].content))
    assert data.dev is not None
    assert data.validation is not None
    assert (len(data.train), len(data.dev), len(data.validation)) == (33, 3, 4)
    named = parse_recipe({**recipe.to_dict(), "data": {**recipe.to_dict()["data"], "validation_fraction": 0.3}})
    assert len(load_data(named).validation or ()) == 12


def test_a_race_is_not_gone_on_with_for_another_recipe_or_price(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base, ["training.max_steps=100"])
    wish = Wish(cost=6, rates=2, without=("MLP", "LoR2C", "all-linear + residual", PLANNED))
    race = Race.model_validate_json(make_race(recipe, wish)[0].model_dump_json())
    check_same(tmp_path, race, recipe, wish)
    with pytest.raises(ValueError, match=r"holds a race with cost=6.*, and it is 7.* now: give another --out"):
        check_same(tmp_path, race, recipe, replace(wish, cost=7))
    with pytest.raises(ValueError, match=r"a race with without=\['MLP',"):
        check_same(tmp_path, race, recipe, replace(wish, without=()))
    with pytest.raises(ValueError, match=r"a race with training\.max_steps=100, and it is 90 now"):
        check_same(tmp_path, race, load_recipe(base, ["training.max_steps=90"]), wish)


def raced(
    base: Path, monkeypatch: pytest.MonkeyPatch, *, fails: int, loss: float = 0.5
) -> tuple[Recipe, Wish, list[bool]]:
    """A race whose runs are made up: the first ones fail; says whether failed ones were to run again."""
    asked: list[bool] = []

    def made_up(race: Race, task: Work, *, retry_failed: bool, command: str, **_: object) -> None:
        folder = StudyFolder(task.root)
        folder.start(race, command)
        asked.append(retry_failed)
        while fresh := [cell for cell in folder.plan(race).cells if folder.loss(cell) is None]:
            for number, cell in enumerate(fresh):
                if number < fails:
                    folder.fail(cell, "OutOfMemoryError: 3 GiB\n\nTraceback")
                else:
                    finish(folder, cell, loss if cell.role == "report" else 1 / (cell.rate or 1))

    monkeypatch.setattr(tuning, "run_study", made_up)
    without = ("MLP", "LoR2C", "all-linear + residual", PLANNED)
    return load_recipe(base, ["training.max_steps=100"]), Wish(cost=6, rates=2, seeds=2, without=without), asked


def test_failed_runs_of_a_race_are_told_after_its_report(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, wish, asked = raced(base, monkeypatch, fails=1)
    task = Work(tmp_path / "out")
    with pytest.raises(
        RuntimeError, match=r"runs failed \(.*: OutOfMemoryError: 3 GiB.*--retry-failed runs them again"
    ):
        tune(recipe, task, wish, console=Console(quiet=True), command="rankwise tune", retry_failed=True)
    assert (task.root / "report.md").is_file()
    assert (task.root / "winner.yaml").is_file()
    assert asked == [True]


def test_where_every_run_of_a_race_fails_the_error_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, wish, _ = raced(base, monkeypatch, fails=100)
    with pytest.raises(RuntimeError, match=r"4 of 4 runs failed \(.*OutOfMemoryError: 3 GiB"):
        tune(recipe, Work(tmp_path / "out"), wish, console=Console(quiet=True), command="rankwise tune")


def test_a_winner_that_diverged_did_not_pay_nor_fail_to(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, wish, _ = raced(base, monkeypatch, fails=0, loss=float("nan"))
    report = tune(
        recipe, Work(tmp_path / "out"), wish, console=Console(quiet=True), command="rankwise tune"
    ).read_text()
    assert "With 2 fresh seeds against" in report
    assert "can't tell: 2 of 2 runs of" in report
    assert "nan" not in report.partition("## The winner\n")[0]


@pytest.mark.slow
def test_a_race_ends_with_a_recipe_that_loads_a_snippet_and_an_honest_sentence(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["tune", str(base), "--out", str(out), "--rates", "1", "--seeds", "2", "--cost", "5"]
    done = CliRunner().invoke(app, [*arguments, "--set", "training.max_steps=40"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert said.index("At most") < said.index("won the race")
    winner = load_recipe(out / "winner.yaml")
    assert winner.training.max_steps == 40
    report = (out / "report.md").read_text()
    assert "### What was tried" in report
    assert "The winner anew, with fresh seeds" in report
    assert snippet(winner) in report
    assert any(words in report for words in ("can't tell", "it paid", "it did not pay"))
    again = CliRunner().invoke(app, [*arguments, "--set", "training.max_steps=40"])
    assert "going on with the race" in again.output
    assert (out / "report.md").read_text().splitlines()[:4] == report.splitlines()[:4]


def test_the_snippet_of_a_prefix_builds(base: Path) -> None:
    recipe = load_recipe(base)
    method = Method.model_validate({"name": "prefix", "num_virtual_tokens": 3})
    names: dict[str, Any] = {}
    exec(snippet(recipe.model_copy(update={"method": method})), names)
    model = get_peft_model(tiny_llama(), names["config"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


def test_the_snippet_is_python_that_makes_the_config(base: Path) -> None:
    recipe = load_recipe(base)
    names: dict[str, object] = {}
    exec(snippet(recipe), names)
    config = names["config"]
    assert getattr(config, "r", None) == yaml.safe_load(base.read_text())["method"]["r"]
