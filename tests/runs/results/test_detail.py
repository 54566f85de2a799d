"""Everything a page shows of one run: searched, edited, without either, unfinished."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.runs.conftest import Make

from rankwise.report import read_history
from rankwise.rules.records import searches
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.detail import detail
from rankwise.runs.results.found import UNFINISHED, summarise
from rankwise.runs.training.train import train

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


def told(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    return detail(run, summarise(run, folder))


def test_a_searched_run_tells_what_was_on_when(make: Make, tmp_path: Path) -> None:
    train(make("heterolora", method={"shortcuts": ["res1", "cut"]}), tmp_path / "run", command="rankwise train x.yaml")
    found = told(tmp_path / "run")
    history = searches(read_history(tmp_path / "run" / "search_history.jsonl"))
    names = [path["name"] for path in found["paths"]]
    assert set(names) == set(history[0].paths)
    assert [[names[place] for place in each["on"]] for each in found["moments"]] == [
        sorted(each.chosen, key=names.index) for each in history
    ]
    assert [each["enabled"] for each in found["moments"]] == [each.counts["enabled"] for each in history]
    assert {path["r"] for path in found["paths"]} == {4}
    assert {path["name"] for path in found["paths"] if path["on"]} == set(history[-1].chosen)
    assert found["curves"]["end"] == 6
    assert found["curves"]["train"]["step"], "the training loss is in the figures"
    assert found["curves"]["dev"]["step"] == [2, 4, 6]
    assert len(found["overlap"]["values"]) == len(history) - 1
    assert found["command"] == "rankwise train x.yaml"
    assert "seed: 0" in found["recipe"]
    on = dict.fromkeys(history[-1].chosen, 4)
    heat = found["heat"]
    for row, values in zip(heat["rows"], heat["ranks"], strict=True):
        for column, value in zip(heat["columns"], values, strict=True):
            name = f"layers.{column}.{row}"
            assert value == on.get(name, 0) if name in names else value != value


def test_ranks_are_those_that_the_search_chose(make: Make, tmp_path: Path) -> None:
    options = {"mode": "static", "granularity": "rank", "budget": 600, "search_every": None}
    train(make("heterolora", method=options), tmp_path / "run")
    found = told(tmp_path / "run")
    figures = RunFolder(tmp_path / "run").figures()
    assert figures["parameters"]["at_start"] == figures["parameters"]["trainable"] > 0
    assert 0 < figures["seconds"]["search"] < figures["seconds"]["train"]
    ranks = searches(read_history(tmp_path / "run" / "search_history.jsonl"))[0].ranks
    assert {path["name"]: path["r"] for path in found["paths"] if path["on"]} == {n: r for n, r in ranks.items() if r}
    assert {path["r"] for path in found["paths"] if not path["on"]} <= {None}


def test_an_edited_run_starts_as_built_and_has_spectra(make: Make, tmp_path: Path) -> None:
    train(make("lor2c"), tmp_path / "run")
    found = told(tmp_path / "run")
    assert found["moments"][0]["title"] == "start"
    assert found["moments"][0]["step"] == 0
    assert found["moments"][1]["title"] == found["edits"][0]["what"] == "merge 0 + 1"
    names = [path["name"] for path in found["paths"]]
    assert [names[place] for place in found["moments"][1]["gained"]] == ["layers.0-1.layer"]
    assert [names[place] for place in found["moments"][1]["lost"]] == ["layers.0.layer", "layers.1.layer"]
    merged = next(path for path in found["paths"] if path["name"] == "layers.0-1.layer")
    assert merged["blocks"] == [0, 1]
    assert merged["r"] == 4
    assert found["curves"]["edits"] == [{"step": found["edits"][0]["step"], "what": "merge 0 + 1"}]
    assert found["spectra"]["moments"][0]["paths"]["layers.0-1.layer"]


@pytest.mark.parametrize("method", ["lora", "adalora", "full"])
def test_runs_without_searches_are_shown_too(make: Make, tmp_path: Path, method: str) -> None:
    train(make(method), tmp_path / "run")
    found = told(tmp_path / "run")
    assert found["edits"] == []
    assert found["scores"] is found["overlap"] is None
    if method == "full":
        assert found["moments"] == []
        return
    assert [each["title"] for each in found["moments"]] == ["throughout"]
    assert [path["name"] for path in found["paths"]][:2] == ["layers.0.query", "layers.0.value"]
    if method == "lora":
        assert {path["r"] for path in found["paths"]} == {4}
        assert set(found["spectra"]["moments"][0]["paths"]) == {path["name"] for path in found["paths"]}


@pytest.mark.parametrize("method", ["heterolora", "lor2c"])
def test_an_unfinished_run_says_so_and_shows_what_is_known(method: str) -> None:
    run = RunFolder(KEPT / method / "interrupted")
    summary = summarise(run, run.root)
    assert summary.state == UNFINISHED
    assert summary.note == "at step 4 of 6"
    found = detail(run, summary)
    assert found["curves"]["end"] == 4
    assert found["curves"]["planned"] == 6
    assert found["curves"]["dev"]["step"] == [2, 4]
    assert found["moments"]


def copied(tmp_path: Path, method: str, state: str = "finished") -> Path:
    return Path(shutil.copytree(KEPT / method / state, tmp_path / "my run"))


def test_curves_sizes_and_the_command_to_run_it_again_are_those_of_the_files(tmp_path: Path) -> None:
    folder = copied(tmp_path, "heterolora")
    found, figures = told(folder), json.loads((folder / "metrics.json").read_text())
    dev = figures["metrics"]["per_epoch"]
    assert found["curves"]["dev"]["step"] == [entry["step"] for entry in dev]
    for name in found["curves"]["metrics"]:
        assert found["curves"]["dev"][name] == [entry[name] for entry in dev]
    assert not {"step", "epoch"} & set(found["curves"]["metrics"])
    counts = dict(found["sizes"])
    assert counts["adapter parameters that train at the end"] == figures["parameters"]["trainable"]
    assert counts["parameters of the whole model"] == figures["parameters"]["total"]
    assert found["spent"] == figures["seconds"]
    assert shlex.split(found["again"]) == [
        *("rankwise", "train", str(folder / "config.yaml")),
        *("--out", f"{folder}-again"),
    ]
    assert found["recipe"] == (folder / "config.yaml").read_text()


def test_the_training_loss_of_an_unfinished_run_is_its_checkpoints(tmp_path: Path) -> None:
    folder = copied(tmp_path, "lor2c", "interrupted")
    checkpoint = folder / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state = json.loads(checkpoint.read_text())
    log = [{"step": step, "epoch": step / 6, "loss": 1 / step, "learning_rate": 0.1} for step in (1, 3)]
    log[1].pop("learning_rate")
    checkpoint.write_text(json.dumps({**state, "log_history": [*log, {"step": 4, "epoch": 0.5, "train_runtime": 1}]}))
    found = told(folder)
    assert found["curves"]["train"] == {"step": [1, 3], "loss": [1, 1 / 3], "rate": [0.1, None]}
    assert found["curves"]["dev"] == {"step": []}
    assert found["command"] is found["spent"] is found["data"] is None
    assert [label for label, _ in found["sizes"]] == ["adapter parameters that train at the end"]


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: m}\nmethod: {name: lora}\ntraining: {max_steps: 9}\n")
    found = told(tmp_path)
    assert (found["state"], found["moments"], found["heat"], found["spectra"]) == ("unfinished", [], None, None)
    assert (found["curves"]["end"], found["curves"]["planned"]) == (0, 9)
    assert found["sizes"] == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("search_history.jsonl", b"nonsense\n"),
        ("spectra.jsonl", b"nonsense\n"),
        ("gradients.jsonl", b"nonsense\n"),
        ("adapter/allocation.json", b"[]"),
        ("adapter/adapter_model.safetensors", b"nonsense"),
        ("metrics.json", b"{}"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    folder = copied(tmp_path, "lor2c")
    run = RunFolder(folder)
    summary = summarise(run, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(folder / file))):
        detail(run, summary)
