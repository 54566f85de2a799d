"""The folder of a study: what is run, what has come to its end, and what may be added."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout
from tests.study.cells import RECIPE, finish, started, two_arms
from tests.study.conftest import Write

from rankwise.study.folder import StudyFolder, selected
from rankwise.study.grid import Rates
from rankwise.study.plan import Cell, Group
from rankwise.study.race import Race, Rung
from rankwise.study.running import study_status
from rankwise.study.spec import load_study


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"groups": None}, r"study\.json is damaged, plan\.groups is missing: delete it and run the command again"),
        ({"seeds": {"report": "x"}}, r"study\.json is damaged, plan\.seeds\.report: .*: delete it"),
        ({"kind": "x"}, "kind"),
    ],
)
def test_a_damaged_plan_is_told(write: Write, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.start(load_study(write()), "rankwise study run study.yaml")
    content = json.loads(folder.plan_file.read_text())
    folder.plan_file.write_text(json.dumps({**content, "plan": {**content["plan"], **damage}}))
    with pytest.raises(ValueError, match=message):
        folder.planner()


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return started(tmp_path / "study")


def cells_of(folder: StudyFolder) -> list[Cell]:
    return folder.plan(folder.planner()).cells


def test_what_is_run_is_read_back_with_its_command_and_queue(folder: StudyFolder) -> None:
    assert folder.planner() == two_arms()
    assert folder.command == "rankwise study run study.yaml"
    queue = folder.queue
    assert queue.startswith("study-")
    folder.start(two_arms(), "rankwise study run study.yaml --workers 2")
    assert (folder.queue, folder.command) == (queue, "rankwise study run study.yaml --workers 2")
    assert started(folder.root.with_name("other") / "study").queue != queue, "one storage may hold many studies"
    assert [path.name for path in folder.root.iterdir()] == ["study.json"]


def test_a_race_is_read_back_as_one(tmp_path: Path) -> None:
    group = Group(arm="a", point={}, content=RECIPE, rates=None)
    race = Race(groups=[group], rungs=[], default="a", yours="yours", seed=1, confirm=[2], full=10)
    folder = StudyFolder(tmp_path)
    folder.start(race, "rankwise tune")
    assert folder.planner() == race


def test_without_a_plan_there_is_no_study(tmp_path: Path) -> None:
    for ask in (StudyFolder.planner, lambda folder: folder.queue, lambda folder: folder.command):
        with pytest.raises(FileNotFoundError, match=r"holds no study: study\.json is missing"):
            ask(StudyFolder(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is no JSON"),
        (b"\xff", "it is no JSON"),
        (b"[]", "it holds a list and no object"),
        (b"{}", "command is missing"),
        (b'{"queue": "q", "command": "c"}', "plan is missing"),
        (b'{"queue": "q", "command": "c", "plan": []}', "plan.groups is missing"),
        (b'{"queue": "q", "command": "c", "plan": {"groups": {}}}', "plan.groups is missing"),
    ],
)
def test_a_damaged_file_is_named_with_its_remedy_also_where_a_study_goes_on(
    folder: StudyFolder, content: bytes, words: str
) -> None:
    folder.plan_file.write_bytes(content)
    for go_on in (folder.planner, lambda: folder.start(two_arms(), "rankwise study run")):
        with pytest.raises(
            ValueError, match=rf"study\.json is damaged, {words}.*: delete it and run the command again"
        ):
            go_on()
    assert folder.plan_file.read_bytes() == content


def test_a_group_that_is_none_is_told_before_a_study_goes_on(folder: StudyFolder) -> None:
    content = json.loads(folder.plan_file.read_text())
    content["plan"]["groups"][1] = {"arm": 3}
    folder.plan_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"study\.json is damaged, plan\.groups\.1\.arm: .*: delete it and run"):
        folder.start(two_arms(), "rankwise study run")


def test_what_never_ran_may_change_and_a_recipe_that_ran_may_not(folder: StudyFolder) -> None:
    other = {**RECIPE, "method": {"name": "lora", "r": 8}}
    cell = next(cell for cell in cells_of(folder) if cell.group == "b")
    folder.fail(cell, "it failed before it began")
    folder.start(two_arms(b=other), "rankwise study run")
    finish(folder, cell, 0.5)
    folder.start(two_arms(b=other, c=RECIPE, report=(7, 8, 9)), "rankwise study run")  # arms and seeds may be added
    before = folder.plan_file.read_bytes()
    with pytest.raises(
        ValueError, match=r"study has runs of b with method\.r=8, and it is 4 now\. Arms, values of axes"
    ):
        folder.start(two_arms(), "rankwise study run")
    assert folder.plan_file.read_bytes() == before
    said_more = {**RECIPE, "method": {"name": "lora", "r": 8, "lora_alpha": 16}}
    with pytest.raises(ValueError, match=r"with method\.lora_alpha=None, and it is 16 now"):
        folder.start(two_arms(b=said_more), "rankwise study run")


def test_a_study_of_version_0_1_does_not_go_on_with_another_search(folder: StudyFolder) -> None:
    """A recipe without a mode meant a search of whole paths then, and a choice of ranks now."""
    content = json.loads(folder.plan_file.read_text())
    content["plan"]["groups"][1]["content"]["method"] = {"name": "heterolora", "budget": 0.5}
    folder.plan_file.write_text(json.dumps(content))
    cell = next(cell for cell in cells_of(folder) if cell.group == "b")
    assert cell.content["method"] == {"name": "heterolora", "budget": 0.5, "mode": "dynamic"}
    finish(folder, cell, 0.5)
    now = {**RECIPE, "method": {"name": "heterolora", "budget": 0.5, "mode": "static", "granularity": "rank"}}
    with pytest.raises(ValueError, match=r"has runs of b with method\.granularity=None, and it is 'rank' now"):
        folder.start(two_arms(b=now), "rankwise study run")
    folder.start(two_arms(b={**RECIPE, "method": cell.content["method"]}), "rankwise study run")


OTHER = {**RECIPE, "method": {"name": "lora", "r": 8}}


def test_an_arm_that_comes_back_is_the_one_that_ran(folder: StudyFolder) -> None:
    for cell in cells_of(folder):
        finish(folder, cell, 0.5)
    both = two_arms()
    one = both.model_copy(update={"groups": both.groups[:1]})
    folder.start(one, "rankwise study run")
    with pytest.raises(ValueError, match=r"study has runs of b with method\.r=4, and it is 8 now\. Arms, values of"):
        folder.start(two_arms(b=OTHER), "rankwise study run")
    for changed in ({"max_steps": 50}, {"learning_rate": 1e-2}):  # without `rates` the rate is the recipe's
        with pytest.raises(ValueError, match=rf"study has runs of b with training\.{next(iter(changed))}="):
            folder.start(two_arms(b={**RECIPE, "training": changed}), "rankwise study run")
    folder.start(two_arms(b={**RECIPE, "training": {"workers": 2}}, report=(7, 9)), "rankwise study run")


def test_an_arm_that_comes_back_may_have_other_rates(tmp_path: Path) -> None:
    rates = Rates.model_validate({"from": 1e-3, "to": 4e-3, "factor": 2})
    folder = started(tmp_path, two_arms(rates))
    for cell in cells_of(folder):
        finish(folder, cell, 0.5)
    folder.plan_file.unlink()
    folder.start(two_arms(Rates.model_validate({"from": 1e-2, "to": 4e-2, "factor": 2})), "rankwise study run")


def test_a_plan_that_was_deleted_does_not_let_other_recipes_in(folder: StudyFolder) -> None:
    """Deleting it is the remedy for a damaged one."""
    finish(folder, cells_of(folder)[0], 0.5)
    folder.plan_file.unlink()
    with pytest.raises(ValueError, match=r"study has runs of a with method\.r=4, and it is 8 now"):
        folder.start(two_arms(a=OTHER), "rankwise study run")
    assert not folder.plan_file.exists()
    folder.start(two_arms(b=OTHER), "rankwise study run")  # nothing of b ran


def test_a_race_whose_plan_was_deleted_goes_on_with_its_own_recipe_only(tmp_path: Path) -> None:
    rates = Rates.model_validate({"from": 1e-3, "to": 4e-3, "factor": 2})

    def race(**method: Any) -> Race:
        content = {**RECIPE, "method": {"name": "lora", "r": 4, **method}, "training": {"warmup": 30}}
        group = Group(arm="a", point={}, content=content, rates=rates)
        rungs = [Rung(candidates=3, steps=10)]
        return Race(groups=[group], rungs=rungs, default="a", yours="yours", seed=1, confirm=[2], full=100)

    folder = StudyFolder(tmp_path)
    folder.start(race(), "rankwise tune")
    finish(folder, folder.plan(race()).cells[0], 0.5)
    folder.plan_file.unlink()
    with pytest.raises(ValueError, match=r"has runs of a with method\.r=4, and it is 8 now"):
        folder.start(race(r=8), "rankwise tune")
    folder.start(race(), "rankwise tune")


def test_a_folder_keeps_its_kind_and_some_of_what_ran(folder: StudyFolder) -> None:
    group = Group(arm="a", point={}, content=RECIPE, rates=None)
    race = Race(groups=[group], rungs=[], default="a", yours="yours", seed=1, confirm=[2], full=10)
    before = folder.plan_file.read_bytes()
    with pytest.raises(ValueError, match="study holds a study, and this is a race: give another --out"):
        folder.start(race, "rankwise tune")
    other = two_arms()
    other = other.model_copy(update={"groups": [Group(arm="x", point={}, content=RECIPE, rates=None)], "baseline": "x"})
    finish(folder, cells_of(folder)[-1], 0.5)
    with pytest.raises(ValueError, match=r"has runs of b, and there is none of these now \(x\): give another --out"):
        folder.start(other, "rankwise study run")
    assert folder.plan_file.read_bytes() == before
    raced = StudyFolder(folder.root.with_name("raced"))
    raced.start(race, "rankwise tune")
    with pytest.raises(ValueError, match="raced holds a race, and this is a study"):
        raced.start(other, "rankwise study run")


def test_a_run_without_figures_says_what_the_study_needs(folder: StudyFolder) -> None:
    cell = cells_of(folder)[0]
    finish(folder, cell, 0.5, dev={"loss": 0.5})
    figures = json.loads(folder.run(cell).metrics.read_text())
    for which in ("last", "dev_selected"):
        del figures["metrics"][which]["dev"]
    folder.run(cell).metrics.write_text(json.dumps(figures))
    with pytest.raises(
        ValueError, match=r"metrics\.json has no figures of any split.*data\.dev_fraction, .* another --out"
    ):
        folder.loss(cell)
    lenient = StudyFolder(folder.root, lenient=True)
    assert lenient.loss(cell) == math.inf
    assert lenient.without_figures(lenient.plan(two_arms())) == [cell.name]
    status = study_status(folder.root)
    assert f"{cell.name} has no figures of any split: it can't be compared" in str(status.renderables[2])


@pytest.mark.parametrize(
    ("select", "splits", "loss"),
    [
        (None, {"dev": {"loss": 0.25}, "validation": {"loss": 9.0}}, 0.25),
        ("dev", {"dev": {"loss": 0.25}}, 0.25),
        ("last", {"dev": {"loss": 0.25}}, 0.5),  # twice that, as ``finish`` writes it
        ("last", {"validation": {"loss": 0.25}}, 0.5),
        (None, {"dev": {}, "validation": {"loss": 3.0}}, 3.0),
        (None, {"dev": {"loss": math.nan}}, math.inf),
        (None, {"dev": {"loss": -math.inf}}, math.inf),
    ],
)
def test_the_loss_of_a_cell_is_that_of_the_checkpoint_it_selects(
    folder: StudyFolder, select: str | None, splits: dict[str, dict[str, float]], loss: float
) -> None:
    cell = cells_of(folder)[0]
    cell = cell._replace(content={**cell.content, **({} if select is None else {"select": select})})
    held: dict[str, Any] = {name: split or {"loss": 0.0} for name, split in splits.items()}
    finish(folder, cell, 0.0, **held)
    figures = json.loads(folder.run(cell).metrics.read_text())
    for which in ("last", "dev_selected"):
        for name, split in splits.items():
            figures["metrics"][which][name] = figures["metrics"][which][name] if split else {}
    folder.run(cell).metrics.write_text(json.dumps(figures))
    assert folder.loss(cell) == loss
    assert selected(figures, cell) == figures["metrics"]["last" if select == "last" else "dev_selected"]


def test_a_cell_has_no_loss_before_its_end_and_infinity_where_it_failed(folder: StudyFolder) -> None:
    cell = cells_of(folder)[0]
    assert folder.loss(cell) is None
    folder.fail(cell, "out of memory, é")
    assert folder.loss(cell) == math.inf
    assert folder.error_file(cell).read_text(encoding="utf-8") == "out of memory, é"
    assert [path.name for path in folder.run(cell).root.iterdir()] == ["error.txt"]
    finish(folder, cell, 0.5)
    assert folder.loss(cell) == 0.5, "figures count for more than an error before them"


def test_figures_that_are_damaged_are_told(folder: StudyFolder) -> None:
    cell = cells_of(folder)[0]
    finish(folder, cell, 0.5)
    folder.run(cell).metrics.write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        cells_of(folder)


def test_a_plan_grows_by_what_has_finished_since(tmp_path: Path) -> None:
    rates = Rates.model_validate({"from": 1e-3, "to": 4e-3, "factor": 2})
    folder = started(tmp_path, two_arms(rates))
    assert {cell.role for cell in cells_of(folder)} == {"choose"}
    for cell in cells_of(folder):
        if cell.group == "a":
            finish(folder, cell, abs(math.log((cell.rate or 0) / 2e-3)))
    report = [cell for cell in cells_of(folder) if cell.role == "report"]
    assert [(cell.group, cell.rate, cell.seed) for cell in report] == [("a", 2e-3, 7), ("a", 2e-3, 8)]
    assert cells_of(folder) == cells_of(StudyFolder(tmp_path))


def test_errors_that_are_forgotten_let_their_cells_run_again(folder: StudyFolder) -> None:
    first, second, third, _ = cells_of(folder)
    finish(folder, first, 0.5)
    for cell in (second, third):
        folder.fail(cell, "out of memory")
    assert folder.forget_errors(folder.planner()) == [second.name, third.name]
    assert [folder.loss(cell) for cell in (first, second, third)] == [0.5, None, None]
    assert folder.forget_errors(folder.planner()) == []
    folder.fail(second, "again")
    assert folder.forget_errors(folder.planner(), ["b"]) == []
    assert folder.error_file(second).is_file()
    assert folder.forget_errors(folder.planner(), ["a"]) == [second.name]


def test_one_process_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    folder, other = StudyFolder(tmp_path / "deep" / "study"), StudyFolder(tmp_path / "deep" / "study")
    with folder.lock(), pytest.raises(Timeout):
        other.lock().acquire(timeout=0)
    with other.lock():
        pass
