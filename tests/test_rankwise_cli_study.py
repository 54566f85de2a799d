"""``rankwise study`` and ``rankwise tune``: their help, what they refuse, where they write by default."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.commands import call

from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Group, Seeds, Study
from rankwise_exits import USER_ERROR


@pytest.mark.parametrize("command", ["run", "status", "table"])
def test_help_has_an_example(command: str) -> None:
    shown = call("study", command, "--help")
    assert shown.exit_code == 0
    assert f"rankwise study {command}" in " ".join(shown.output.split())


def test_the_commands_of_a_study_are_listed_where_none_is_named() -> None:
    shown = call("study")
    assert all(f" {command} " in shown.output for command in ("run", "status", "table"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("study", "run", "gone.yaml"), "gone.yaml"),
        (("study", "status", "gone"), "gone holds no study: study.json is missing"),
        (("study", "table", "gone"), "gone holds no study: study.json is missing"),
        (("study", "table", "gone", "--format", "html"), "--format='html' is not one of 'markdown', 'csv', 'latex'"),
        (("tune", "gone.yaml"), "no recipe at gone.yaml"),
        (("tune", "gone.yaml", "--cost", "0"), "Invalid value for '--cost'"),
        (("tune", "gone.yaml", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("study", "run", "gone.yaml", "--workers", "0"), "Invalid value for '--workers'"),
    ],
)
def test_mistakes_say_what_is_wrong_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == USER_ERROR, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("study", "run"), ("tune",)])
def test_what_failed_can_run_again(command: tuple[str, ...]) -> None:
    assert "--retry-failed" in " ".join(call(*command, "--help").output.split())


def test_the_storage_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(arm="a", point={}, content={}, rates=None)
    study = Study(title="", groups=[group], seeds=Seeds(report=[1]), baseline="a")
    StudyFolder(tmp_path).start(study, "rankwise study run")
    assert call("study", "status", tmp_path).exit_code == 0
    monkeypatch.setenv("RANKWISE_STORAGE", "nosuch://somewhere/queue")
    refused = call("study", "status", tmp_path)
    assert refused.exit_code == USER_ERROR
    assert "sqlite:///FILE or postgresql://USER@HOST/NAME" in refused.output
