"""The script that runs PEFT's tests: what it makes of outcomes, and what it refuses to run on."""

from __future__ import annotations

import importlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("peft_suite")


def test_every_rule_says_what_it_expects_and_why(suite: Any) -> None:
    for rule in json.loads((TOOLS / "peft_expected.json").read_text(encoding="utf-8")):
        found = suite.Rule(**rule)
        assert found.outcome in ("refused", "differs")
        assert found.reason
        assert "|" not in found.reason  # it becomes a cell of a table
        assert not set("[]") & set(found.tests)  # a test's row is in brackets, which would be a set of characters
        re.compile(found.says)


def test_a_verdict_is_the_rule_that_covers_it_or_what_plain_lora_does(suite: Any) -> None:
    rules = [
        suite.Rule("off/*::test_a*", "leave it out", "refused", "why"),
        suite.Rule("*::test_b*", "0 == 1", "differs", "on purpose"),
    ]
    outcomes = {
        "f.py::test_a[x]": ("refused", "ValueError: leave it out"),
        "f.py::test_a[y]": ("failed", "ValueError: leave it out"),  # not raised here
        "f.py::test_b": ("failed", "AssertionError: 0 == 1"),
        "f.py::test_c": ("failed", "OSError: no network"),
        "f.py::test_d": ("passed", ""),
        "f.py::test_e": ("skipped", "no GPU"),
    }
    found = suite.judge({"off": outcomes}, {"f.py::test_c": ("failed", "OSError: no network")}, rules)
    assert [verdict for verdict, _ in found.values()] == [
        *("refused", "unexpected", "differs", "not here", "passed", "skipped"),
    ]
    page = suite.report(found)
    assert "| f.py | 6 | 1 | 1 | 1 | 1 | 1 | 1 |" in page
    assert "| refused | 1 | why |" in page


def test_another_version_of_peft_is_refused(suite: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no src/peft/__init__\.py"):
        suite.check(tmp_path)
    source = tmp_path / "src" / "peft" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text('__version__ = "0.1.2"\n', encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"is PEFT 0\.1\.2, and {re.escape(version('peft'))} is installed"):
        suite.check(tmp_path)
