"""What a report page gets of a study: its tables as plain data, or why there are none yet."""

from __future__ import annotations

import json
from pathlib import Path

from tests.study.conftest import Write
from tests.study.test_tables import table

from rankwise.study.folder import StudyFolder
from rankwise.study.spec import load_study
from rankwise.study.statistics_page import page_tables, plain


def test_a_table_becomes_texts_and_numbers_that_json_knows() -> None:
    made = table()
    found = json.loads(json.dumps(plain(made)))
    assert found["header"] == made.header
    assert [row[0] for row in found["rows"]] == ["a", "b_%"]
    losses = [row[made.header.index("loss, last")] for row in found["rows"]]
    assert losses == ["0.6000 ± 0.1414", "0.3333 ± 0.2082"]
    assert "`" not in found["note"]
    assert [point["arm"] for point in found["points"]] == ["a", "b_%"]
    assert all(point["low"] < point["loss"] < point["high"] for point in found["points"])


def test_a_study_without_a_finished_run_says_so_and_other_folders_are_passed_over(write: Write, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.start(load_study(write()), "rankwise study run study.yaml")
    tables, reasons = page_tables([tmp_path / "study", tmp_path])
    assert tables == []
    assert len(reasons) == 1
    assert "no run of the report has finished yet" in reasons[0]
