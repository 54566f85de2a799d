"""From run folders to the data of the report page: every kind of run, unfinished and damaged ones, hostile texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.report.histories import paths as path_names
from tests.report.histories import record
from tests.runs.conftest import Make

from rankwise.report import read_history
from rankwise.report.moments import moments
from rankwise.rules.records import searches
from rankwise.runs.folder import RunFolder
from rankwise.runs.results.detail import detail
from rankwise.runs.results.found import DAMAGED, FAILED, FINISHED, UNFINISHED, find_runs, summarise
from rankwise.runs.results.page import MOST_DETAILED, write_page
from rankwise.runs.results.path_detail import MOST_MOMENTS, paths_shown
from rankwise.runs.results.weights import read_weights
from rankwise.runs.training.train import train

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


def told(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder)
    return detail(run, summarise(run, folder))


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


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


@pytest.mark.parametrize("method", ["heterolora", "lor2c"])
def test_a_finished_run_of_the_first_release_is_shown(method: str, tmp_path: Path) -> None:
    page = write_page([KEPT / method / "finished"], tmp_path / "report.html")
    assert page.left_out == []
    assert data_of(page.file)["runs"][0]["state"] == FINISHED


def test_texts_of_a_run_can_not_leave_the_data(tmp_path: Path) -> None:
    run = tmp_path / "</script><script>alert(1)<!--"
    shutil.copytree(KEPT / "heterolora" / "finished", run)
    evil = "</script><img src=x onerror=alert(2)>\u2028&amp;%%SCRIPT%%"
    figures = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**figures, "command": evil, "task": evil}))
    page = write_page([run], tmp_path / "report.html").file
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 2
    assert text.count("<script") == 2
    assert "<img" not in text
    assert "<!--" not in text
    assert data_of(page)["runs"][0]["command"] == evil
    assert data_of(page)["title"] == run.name


def test_a_folder_of_runs_is_a_comparison_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    for name in ("heterolora", "lor2c"):
        shutil.copytree(KEPT / name / "finished", tmp_path / "study" / "cells" / name)
    shutil.copytree(KEPT / "lor2c" / "interrupted", tmp_path / "study" / "stopped")
    (tmp_path / "study" / "broken").mkdir()
    (tmp_path / "study" / "broken" / "config.yaml").write_text("model: [")
    (tmp_path / "study" / "notes").mkdir()
    (tmp_path / "study" / "notes" / "config.yaml").write_text("title: no run of ours")
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "error.txt").write_text("of something else")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_runs(tmp_path / "elsewhere")
    (tmp_path / "study" / "failed").mkdir()
    (tmp_path / "study" / "failed" / "error.txt").write_text("Traceback\nValueError: no such file")
    runs = find_runs(tmp_path / "study")
    states = {run.root.name: summarise(run, tmp_path).state for run in runs}
    assert states == {
        "heterolora": FINISHED,
        "lor2c": FINISHED,
        "stopped": UNFINISHED,
        "broken": DAMAGED,
        "failed": FAILED,
    }
    page = write_page([tmp_path / "study"], tmp_path / "report.html")
    found = data_of(page.file)
    assert [each["name"] for each in found["comparison"]] == ["cells/heterolora", "cells/lor2c", "stopped"]
    assert [each["name"] for each in found["runs"]] == [each["name"] for each in found["comparison"]]
    assert "broken is damaged" in page.left_out[0]
    assert page.left_out[1].endswith("failed failed, ValueError: no such file")
    again = write_page([tmp_path / "study"], tmp_path / "again.html")
    assert again.file.read_bytes() == page.file.read_bytes()


def test_many_runs_are_compared_without_their_details(tmp_path: Path) -> None:
    for number in range(MOST_DETAILED + 1):
        shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "study" / str(number))
    page = write_page([tmp_path / "study"], tmp_path / "report.html")
    found = data_of(page.file)
    assert len(found["comparison"]) == page.runs == MOST_DETAILED + 1
    assert found["runs"] == []
    assert "its own page" in page.left_out[0]


def test_mistakes_are_corrected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone: give a run folder"):
        write_page([tmp_path / "gone"], tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_page([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"must end in .html"):
        write_page([KEPT / "lor2c" / "finished"], tmp_path / "report")
    shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "run")
    (tmp_path / "run" / "spectra.jsonl").write_text('{"epoch": 1, "step": 2, "paths": 3}\n')
    with pytest.raises(ValueError, match=r"a file of .*run is damaged or of another kind"):
        write_page([tmp_path / "run"], tmp_path / "report.html")
    (tmp_path / "run" / "config.yaml").write_text("model: [a]\nmethod: [b]\n")
    with pytest.raises(ValueError, match="is damaged, no file of a run looks like that"):
        write_page([tmp_path / "run"], tmp_path / "report.html")
    (tmp_path / "run" / "metrics.json").write_text("{")
    shutil.copy(KEPT / "lor2c" / "finished" / "config.yaml", tmp_path / "run")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        write_page([tmp_path / "run"], tmp_path / "report.html")


def test_a_long_history_is_thinned_and_says_so() -> None:
    names = path_names(2, "query", "value")
    history = [record([names[place % 4]], names, step=place) for place in range(1000)]
    found = paths_shown(history, moments(history), {})
    assert len(found["moments"]) == MOST_MOMENTS
    assert found["thinned"] == 1000
    assert [found["moments"][place]["step"] for place in (0, -1)] == [0, 999]
    assert found["paths"][0]["share"] == 0.25


def test_weights_are_named_as_the_other_files_name_them(make: Make, tmp_path: Path) -> None:
    targets = {"target_modules": ["attention.output.dense", "value"]}
    train(
        make("heterolora", method={**targets, "shortcuts": ["res2"], "mode": "off", "search_every": None}),
        tmp_path / "run",
    )
    found = told(tmp_path / "run")
    names = {path["name"] for path in found["paths"]}
    assert {"layers.0.attention.output.dense", "layers.0.value", "layers.0.res2"} <= names
    weights = read_weights(tmp_path / "run" / "adapter", names, values=True)
    assert {weight.name for weight in weights} == names
    import torch
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    a, b = (next(t for key, t in tensors.items() if f"layer.0.attention.self.value.lora_{f}." in key) for f in "AB")
    dense = torch.linalg.svdvals(b.double() @ a.double())[:4]
    value = next(weight for weight in weights if weight.name == "layers.0.value")
    assert (value.r, value.size) == (4, a.numel() + b.numel())
    assert torch.allclose(torch.tensor(value.sigma, dtype=torch.float64), dense, rtol=1e-4, atol=1e-6)
