"""What of the harness is told before it is asked: task files, generated code, figures, settings put back."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankwise.evaluation import harness
from rankwise.evaluation.harness import (
    ALLOW_CODE,
    Asked,
    Ready,
    _coders,
    _head,
    _metrics,
    _working_in,
    code_execution,
    harness_quiet,
    harness_version,
    language_model,
    prepare,
)
from rankwise.runs.dryrun import tiny_tokenizer


def fail_with(found: object) -> None:
    """Leave a context by an error that tells what was found inside."""
    raise RuntimeError(repr(found))


LOGGERS = ("lm_eval", "evaluate", "datasets")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"no task file .*own\.yaml, did you mean 'own\.yml'"),
        (b"task: [\n", r"own\.yaml is not YAML: .*line 2"),
        (b"task: \xff\n", r"own\.yaml is not YAML: 'utf-8' codec can't decode byte 0xff"),
        (b"", r"own\.yaml describes no task: it needs a key 'task'"),
        (b"- task\n", "describes no task"),
        (b"dataset_path: json\n", "describes no task"),
        (b"group: all\ntask: [a, b]\n", "a group can't be given as a file"),
        (b"task: 3\n", "describes no task"),
    ],
)
def test_a_task_file_that_is_none_is_refused_before_the_harness_is_read_in(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "own.yaml"
    (tmp_path / "own.yml").write_text("task: a\n")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        prepare([Asked(file)], allow_code_execution=True)


def test_a_task_file_in_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no task file .*gone.own\.yaml$"):
        prepare([Asked(tmp_path / "gone" / "own.yaml")], allow_code_execution=False)


def test_functions_that_a_task_file_names_are_not_run_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    file = tmp_path / "own.yaml"
    file.write_text("task: é\nprocess_docs: !function own.clean\nunsafe_code: true\n", encoding="utf-8")
    assert _head(file) == {"task": "é", "process_docs": "!function", "unsafe_code": True}
    file.write_text("task: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="not YAML"):
        _head(file)
    assert not (tmp_path / "ran").exists()


def entry(cfg: dict[str, Any] | None = None, *tags: str) -> SimpleNamespace:
    """What the harness's index has of a task or group (``cfg``), or of a tag (the names of its tasks)."""
    return SimpleNamespace(cfg=cfg, tags=set(tags))


INDEX = {
    "safe": entry({"task": "safe"}),
    "codes": entry({"task": "codes", "unsafe_code": True}),
    "other": entry({"task": "other", "unsafe_code": True}),
    "tag": entry(None, "safe", "other", "codes"),
    "group": entry({"group": "group", "task": ["safe", "codes"]}),
    "outer": entry({"group": "outer", "task": ["group", {"task": "other", "num_fewshot": 2}]}),
    "inline": entry(
        {"group": "inline", "task": [{"task": "new", "unsafe_code": True}, {"group": "g", "task": ["codes"]}]}
    ),
}


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ("safe", []),
        ("nowhere", []),
        ("codes", ["codes"]),
        ("tag", ["codes", "other"]),
        ("group", ["codes"]),
        ("outer", ["codes", "other"]),
        ("inline", ["new", "codes"]),
        ({"task": "mine", "unsafe_code": True}, ["mine"]),
        ({"task": "mine"}, []),
        ({"group": "mine", "task": ["outer", "safe"]}, ["codes", "other"]),
    ],
    ids=str,
)
def test_tasks_that_run_generated_code_are_found_at_any_depth(task: Any, found: list[str]) -> None:
    assert _coders(task, INDEX) == found


@pytest.mark.parametrize("before", [None, "0", "before"])
@pytest.mark.parametrize("allowed", [False, True])
def test_code_runs_inside_only_and_the_variable_is_put_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None, allowed: bool
) -> None:
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    if before is not None:
        monkeypatch.setenv(ALLOW_CODE, before)
    with pytest.raises(RuntimeError, match="^'1'$" if allowed else "^None$"), code_execution(allowed):
        fail_with(os.environ.get(ALLOW_CODE))
    assert os.environ.get(ALLOW_CODE) == before


def test_notices_are_kept_off_the_screen_inside_only() -> None:
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        logging.getLogger("evaluate").setLevel(logging.DEBUG)
        with pytest.raises(RuntimeError, match=r"^\[40, 40, 40\]$"), harness_quiet():
            fail_with([logging.getLogger(name).level for name in LOGGERS])
        assert logging.getLogger("evaluate").level == logging.DEBUG
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def test_a_missing_harness_is_named_and_a_broken_one_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"evaluate needs lm-evaluation-harness: pip install 'rankwise\[eval\]'"
    ):
        harness_version()
    monkeypatch.delitem(sys.modules, "lm_eval")
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("import a_part_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_part_that_is_not_there'"):
        harness_version()


def test_a_tokenizer_that_ends_every_text_is_refused_before_anything_is_loaded() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer("bar")["input_ids"][-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"say add_eos_token: false in the tokenizer_config\.json"):
        language_model(None, tokenizer, batch_size=1, mixed_precision=None)


def test_relative_paths_are_those_of_the_task_file_inside_only(tmp_path: Path) -> None:
    before = Path.cwd()
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path.resolve()))), _working_in(tmp_path):
        fail_with(Path.cwd())
    assert Path.cwd() == before
    with _working_in(None):
        assert Path.cwd() == before


def test_figures_are_numbers_under_their_metrics_name() -> None:
    row = {
        "alias": " - own",
        "sample_len": 5,
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
        "f1,none": 1,
        "exact_match,strict-match": math.nan,
        "em,": math.inf,
    }
    assert _metrics(row) == {"acc": 0.5, "f1": 1.0, "exact_match,strict-match": None, "em,": None}
    assert _metrics({}) == {}


class Manager:
    """What loads tasks in the harness: an index of them, and the tasks and groups that a name or a file stands for."""

    def __init__(self, index: dict[str, Any], **loads: Any) -> None:
        self.task_index, self.all_tasks, self.loads = index, sorted(index), loads
        self.loaded: list[str] = []

    def load(self, names: list[str]) -> Any:
        (name,) = names
        self.loaded.append(name)
        found = self.loads[Path(name).stem]
        if isinstance(found, Exception):
            raise found
        return {"tasks": {leaf.task_name: leaf for leaf in found}, "groups": {"group": "the group"}}


def leaf(name: str, **config: Any) -> SimpleNamespace:
    return SimpleNamespace(task_name=name, get_config=config.get)


def prepared(
    monkeypatch: pytest.MonkeyPatch, manager: Manager, *asked: Asked, allowed: bool = False
) -> dict[str, Ready]:
    monkeypatch.setattr(harness, "_manager", lambda its_own: manager)
    return {task.name: task for task in prepare(asked, allow_code_execution=allowed)}


def test_a_group_is_run_as_one_and_a_task_or_tag_by_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = leaf("a"), leaf("b"), leaf("c")
    found = prepared(
        monkeypatch, Manager(INDEX, group=[a, b], safe=[c]), Asked("group", 2), Asked("safe"), allowed=True
    )
    assert (found["group"].parts, found["group"].leaves, found["group"].shots) == (["the group"], [a, b], 2)
    assert (found["safe"].parts, found["safe"].leaves, found["safe"].shots) == ([c], [c], None)


def test_a_task_may_stand_in_one_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(INDEX, safe=[leaf("a"), leaf("c")], group=[leaf("b"), leaf("a")])
    with pytest.raises(ValueError, match="task 'a' is asked for twice: name it once, or in one group"):
        prepared(monkeypatch, manager, Asked("safe"), Asked("group"), allowed=True)


def test_generated_code_is_refused_before_anything_is_loaded_or_where_loading_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = Manager(INDEX, safe=[leaf("a"), leaf("hidden", unsafe_code=True)], outer=[leaf("a")])
    with pytest.raises(ValueError, match="task 'codes' runs Python code that the model writes"):
        prepared(monkeypatch, manager, Asked("safe"), Asked("outer"))
    assert manager.loaded == []
    with pytest.raises(ValueError, match=r"task 'hidden' runs Python code .*say --allow-code-execution"):
        prepared(monkeypatch, manager, Asked("safe"))
    assert list(prepared(monkeypatch, manager, Asked("safe"), allowed=True)) == ["safe"]


@pytest.mark.parametrize(("own", "shots", "fits"), [(0, 3, False), (0, 0, True), (0, None, True), (5, 3, True)])
def test_a_task_without_worked_examples_takes_none(
    monkeypatch: pytest.MonkeyPatch, own: int, shots: int | None, fits: bool
) -> None:
    manager = Manager(INDEX, safe=[leaf("a", num_fewshot=own)])
    if fits:
        assert prepared(monkeypatch, manager, Asked("safe", shots))["safe"].shots == shots
        return
    with pytest.raises(ValueError, match="task 'a' is defined with 0 shots, 3 were asked for: use 0"):
        prepared(monkeypatch, manager, Asked("safe", shots))


def test_a_name_that_is_none_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="task='grup' is no task of the harness, did you mean 'group'"):
        prepared(monkeypatch, Manager(INDEX), Asked("grup"))


def test_what_can_not_be_loaded_says_whose_data_or_file_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: mine\n")
    offline, wrong = OSError("no\nnetwork"), TypeError("unexpected key")
    file = Asked(tmp_path / "own.yaml")
    before = Path.cwd()
    with pytest.raises(
        ValueError, match=r"task 'safe' needs data that is not on this machine \(no network\): run this"
    ):
        prepared(monkeypatch, Manager(INDEX, safe=offline), Asked("safe"))
    with pytest.raises(
        ValueError, match=r"the data of .*own\.yaml can't be read \(no network\); its paths are relative"
    ):
        prepared(monkeypatch, Manager(INDEX, own=offline), file)
    with pytest.raises(ValueError, match=r"own\.yaml is not a task the harness can load: unexpected key"):
        prepared(monkeypatch, Manager(INDEX, own=wrong), file)
    with pytest.raises(TypeError, match="unexpected key"):  # of the harness's own task it is no mistake of the user
        prepared(monkeypatch, Manager(INDEX, safe=wrong), Asked("safe"))
    assert Path.cwd() == before
