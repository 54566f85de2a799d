"""A study that was kept says nothing of the machine it ran on, and its tables are read from the copy."""

from __future__ import annotations

import json
from pathlib import Path

from studies.kept import _switching_of, keep, kept_tables

from rankwise.rules.records import SearchRecord, to_lines
from rankwise.study.folder import StudyFolder

ROOT = Path(__file__).resolve().parents[2]


def test_places_are_named_and_training_curves_left_out(tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "kept"
    cell = study / "arm" / "report-rate-0.1-seed-0"
    cell.mkdir(parents=True)
    (study / "study.json").write_text(json.dumps({"command": "run --model /here/models/small --data /here/text"}))
    (cell / "metrics.json").write_text(json.dumps({"model": "/here/models/small", "metrics": {"last": 1, "log": [2]}}))
    (cell / "config.yaml").write_text("model: /here/models/small")
    chosen = [SearchRecord(search=0, proxy="snip", step=0, chosen=names) for names in (["0.q"], ["0.v", "1.v"])]
    (cell / "search_history.jsonl").write_text(to_lines(chosen))
    assert keep(study, out, {"/here/models/small": "MODEL", "/here": "DATA"}) == 1
    assert json.loads((out / "study.json").read_text()) == {"command": "run --model MODEL --data DATA/text"}
    choices, kept = sorted(file for file in out.rglob("*") if file.is_file() and file.name != "study.json")
    assert kept.relative_to(out) == (cell / "metrics.json").relative_to(study)
    assert json.loads(kept.read_text()) == {"model": "MODEL", "metrics": {"last": 1}}
    assert json.loads(choices.read_text()) == [["0.q"], ["0.v", "1.v"]]


def test_what_searches_chose_is_counted_over_runs() -> None:
    """Overlaps 1/2, 1 and 0; ever on three paths in the one run, two in the other."""
    runs = [[["0.q", "0.v"], ["0.v", "1.v"], ["0.v"]], [["0.q"], ["1.k"]]]
    assert _switching_of(runs) == ["2.5", "1.4", "2.5", "0.50", "v 57%, q 29%, k 14%"]
    assert _switching_of([[["0.q"]]])[3] == "", "one search has none before it"
    dense = [[["l.0.attention.output.dense", "l.1.output.dense", "l.0.value", "l.1.value"]]]
    assert _switching_of(dense)[4] == "value 50%, attention.output.dense 25%, output.dense 25%"


def test_every_study_that_was_kept_has_tables_and_its_names() -> None:
    root = ROOT / "results" / "studies"
    folders = [file.parent for file in root.glob("*/study.json")]
    assert len(kept_tables(root)) >= len(folders) > 0
    for folder in folders:
        assert " /" not in StudyFolder(folder).command
        for file in folder.rglob("*.json"):
            assert '"/' not in file.read_text(encoding="utf-8"), f"{file} names a place of one machine"
