"""Pictures of runs with edits: drawn from their folders, alone and as a map over merges and injections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.report.edits import Line, edited_history, edits, epochs_of_gradients, epochs_of_spectra
from tests.report.histories import mixed_history
from tests.runs.conftest import Make

from rankwise import Disable
from rankwise.report import Outcome
from rankwise.rules.records import HISTORY_FILE, to_lines
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.results import pictures as reporting
from rankwise.runs.results.pictures import write_report
from rankwise.runs.results.sources import read_source
from rankwise.runs.training.train import train


def lines(records: Sequence[Line]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def run(
    folder: Path,
    merges: int = 1,
    injections: int = 1,
    *,
    seed: int = 0,
    score: float | None = None,
    splits: Sequence[str] = ("dev", "validation"),
    **method: Any,
) -> Path:
    """A LoR2C's run folder as far as a report reads it; with a score it is finished."""
    folder.mkdir(parents=True)
    options = {"name": "lor2c", "merges": merges, "injections": injections, "r": 8, **method}
    recipe = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": options, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if merges or injections:
        (folder / HISTORY_FILE).write_text(to_lines(edited_history()), encoding="utf-8")
    (folder / "spectra.jsonl").write_text(lines(epochs_of_spectra()), encoding="utf-8")
    if score is not None:
        last = {"step": 40, "epoch": 4.0, "dev": {}, **{split: {"loss": 1.0, "accuracy": score} for split in splits}}
        figures = {
            **{"model": "m", "task": "mrpc", "task_type": "SEQ_CLS", "model_arguments": {}, "method": "lor2c"},
            **{"seed": seed, "headline": "accuracy", "metrics": {"last": last, "dev_selected": last}},
            "parameters": {"trainable": 8, "head": 2, "total": 100},
            "seconds": {"train": 1.0, "search": 0.0, "search_share": 0.0},
        }
        (folder / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    return folder


def words(picture: Path) -> str:
    """The text of an SVG, which matplotlib keeps in comments."""
    found = picture.read_text(encoding="utf-8").splitlines()
    return " ".join(line.strip("<!- >") for line in found if "<!--" in line)


def test_a_run_with_edits_gets_its_structure_and_its_spectra_and_no_picture_of_searches(tmp_path: Path) -> None:
    report = write_report([run(tmp_path / "mine")], tmp_path / "out", picture_format="svg")
    assert [path.name for path in report.written] == ["structure.svg", "spectra.svg"]
    assert report.left_out == []
    shown = words(report.written[0])
    assert "mine: IMLoR2C, 1 merge, 1 injection" in shown
    assert "step 10, epoch 1" in shown  # the epoch comes from the singular values


def test_gradients_are_drawn_where_they_were_recorded(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", 0, 0)
    (folder / "gradients.jsonl").write_text(lines(epochs_of_gradients(2, 3)), encoding="utf-8")
    drawn = write_report([folder], tmp_path / "out").written
    assert [path.stem for path in drawn] == ["spectra", "gradients", "gradients-flat"]


def test_searches_with_edits_by_hand_get_both_kinds_of_pictures(tmp_path: Path) -> None:
    searches = mixed_history(2, 3)
    before = searches[1].chosen
    by_hand = edits([Disable(before[0])], before, before[1:], step=70)
    file, alone = tmp_path / "both" / "run.jsonl", tmp_path / "alone" / "run.jsonl"
    for place, records in ((file, [*searches[:2], by_hand, *searches[2:]]), (alone, searches)):
        place.parent.mkdir()
        place.write_text(to_lines(records), encoding="utf-8")
    report = write_report([file], tmp_path / "out")
    assert [path.stem for path in report.written] == ["frequency", "share", "scores", "overlap", "structure"]
    without = write_report([alone], tmp_path / "without")
    assert [one.read_bytes() for one in report.written[:4]] == [other.read_bytes() for other in without.written]
    assert read_source(file).settings == read_source(alone).settings == {"proxy": "grad_norm"}


def test_a_line_that_is_neither_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(to_lines(edited_history()) + '{"edits": [], "step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 5 is not a search or an edit"):
        read_source(tmp_path / "x.jsonl")


def test_several_runs_get_a_map_and_each_its_own_pictures(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"m{merges}-i{injections}-s{seed}", merges, injections, seed=seed, score=0.8 + merges / 100)
        for merges, injections, seed in [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 2, 0)]
    ]
    report = write_report(runs, tmp_path / "out", picture_format="svg")
    written = [path.stem for path in report.written]
    assert written.count("merges-injections") == 1
    assert len(written) == 2 + 2 * 2 + 1  # two without edits have no structure
    shown = words(report.written[-1])
    assert "m on mrpc, last epoch: accuracy on dev, 1 to 2 seeds" in shown.replace("\n", " ")
    assert "0.8100" in shown


def test_the_map_falls_back_on_validation_and_says_where_there_is_no_common_split(tmp_path: Path) -> None:
    first = run(tmp_path / "a", 0, 0, score=0.8, splits=["validation"])
    second = run(tmp_path / "b", 1, 0, score=0.9)
    assert read_source(first).outcome("dev") is None
    assert read_source(second).outcome("dev") == Outcome(1, 0, 0, 0.9)
    shown = words(write_report([first, second], tmp_path / "out", picture_format="svg").written[-1])
    assert "accuracy on validation, one seed" in shown
    third = run(tmp_path / "c", 2, 0, score=0.9, splits=["dev"])
    report = write_report([first, third], tmp_path / "none")
    assert not (tmp_path / "none" / "merges-injections.png").exists()
    assert "no merges-injections: the runs were not all measured on one split" in report.left_out[-1]


@pytest.mark.slow
def test_runs_that_differ_in_more_than_merges_and_injections_are_not_mixed(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"{r}-{m}", m, 0, score=0.5, r=r) for r in (8, 16) for m in (0, 1)]
    stems = {path.stem for path in write_report(runs, tmp_path / "out").written}
    assert {"merges-injections-1", "merges-injections-2"} < stems
    one_each = write_report([runs[0], runs[3]], tmp_path / "one-each")
    assert not [path for path in one_each.written if "merges" in path.stem]


def test_the_map_says_which_runs_it_leaves_out(tmp_path: Path) -> None:
    cells = [(0, 1), (1, 1), (1, 1)]
    runs = [run(tmp_path / f"{number}", *cell, score=0.5) for number, cell in enumerate(cells)]
    runs.append(run(tmp_path / "open", 1, 0))
    report = write_report(runs, tmp_path / "pictures")
    assert f"{runs[1]} has the merges, injections and seed of another run: not in the map" in report.left_out
    assert f"{runs[3]} is not finished: not in the map" in report.left_out
    assert len(report.left_out) == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [("metrics.json", "{"), ("spectra.jsonl", "{}"), ("config.yaml", "model: 3")],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder = run(tmp_path / "run", score=0.5)
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=str(folder)):
        write_report([folder], tmp_path / "pictures")


def test_many_runs_in_a_map_are_not_drawn_one_by_one(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"{m}-{i}", m, i, score=0.5 + m / 10) for m in range(4) for i in range(4)]
    report = write_report(runs, tmp_path / "out")
    assert [path.name for path in report.written] == ["merges-injections.png"]
    assert len(runs) > reporting.MOST_ALONE
    assert "16 runs are in a map; to see one alone, name at most 12" in report.left_out[0]


def test_what_was_recorded_nothing_of_is_explained(tmp_path: Path) -> None:
    folder = run(tmp_path / "begun", 1, 1)
    (folder / "spectra.jsonl").unlink()
    (folder / HISTORY_FILE).write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty: no epoch of the run is over yet"):
        read_source(folder)
    (folder / HISTORY_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="no epoch of the run is over yet"):
        read_source(folder)
    done = run(tmp_path / "done", 0, 0, score=0.5)
    (done / "spectra.jsonl").unlink()
    report = write_report([done], tmp_path / "out")
    assert report.written == []
    assert "there is no map of a single pair" in report.left_out[0]


def test_a_trained_run_is_drawn(make: Make, tmp_path: Path) -> None:
    shape = {"max_steps": -1, "epochs": 2, "evaluate": "epoch", "every": None}
    method = {"mode": "off", "shortcuts": ["layer"], "budget": 1.0}
    train(make("heterolora", method=method, training=shape), tmp_path / "run")
    report = write_report([tmp_path / "run"], tmp_path / "out", picture_format="svg")
    assert [path.stem for path in report.written] == ["spectra", "gradients", "gradients-flat"]
    assert report.left_out == []
    assert "2 paths" in words(report.written[0])


@pytest.mark.slow
def test_trained_lor2cs_are_drawn_alone_and_as_a_map(make: Make, tmp_path: Path) -> None:
    shape = {"max_steps": -1, "epochs": 4, "evaluate": "epoch", "every": None}
    base = make("lora", training=shape).to_dict()
    for merges in (0, 1):
        method = {"name": "lor2c", "r": 4, "merges": merges}
        train(parse_recipe({**base, "method": method, "select": "last"}), tmp_path / f"m{merges}")
    runs = [tmp_path / "m0", tmp_path / "m1"]
    report = write_report(runs, tmp_path / "out", picture_format="svg")
    assert [path.stem for path in report.written] == ["spectra-m0", "structure-m1", "spectra-m1", "merges-injections"]
    assert report.left_out == []
    assert "m1: MergeLoR2C, 1 merge" in words(report.written[1])
    dev = [read_source(place).outcome("dev") for place in runs]
    assert [each.merges for each in dev if each is not None] == [0, 1]
    for place, each in zip(runs, dev, strict=True):
        last = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["metrics"]["last"]
        assert each is not None
        assert each.value == last["dev"]["accuracy"]
