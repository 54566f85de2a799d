"""From run folders to the data of the report page: every kind of run, unfinished and damaged ones, hostile texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankwise.runs.results.found import DAMAGED, FAILED, FINISHED, UNFINISHED, find_runs, summarise
from rankwise.runs.results.page import MOST_DETAILED, write_page

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


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


def test_a_study_that_kept_only_figures_is_its_tables(tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / "cells" / "a").mkdir(parents=True)
    (study / "study.json").write_text("{}")
    (study / "cells" / "a" / "metrics.json").write_text("{}")
    table = {"title": "loss", "header": ["arm"], "rows": [["a"]], "note": "", "points": []}
    page = write_page([study], tmp_path / "report.html", tables=[table])
    found = data_of(page.file)
    assert (page.runs, found["runs"], found["comparison"], found["tables"]) == (0, [], None, [table])
    assert found["title"] == str(study)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_page([study], tmp_path / "other.html")
