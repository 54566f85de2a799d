"""lm-evaluation-harness: its tasks found, checked and run on a model; the only place that imports it.

The harness is the extra ``eval``. It finds a task by name among its own (their data is on the hub) or in a YAML file of
the user's, whose data lies beside it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rankwise.errors import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTALL = "pip install 'rankwise[eval]'"
ALLOW_CODE = "HF_ALLOW_CODE_EVAL"  # what the code_eval metric reads before it runs anything
# The paper's tasks and shots (arXiv 2503.00572). Answers without a chain of thought, so `bbh_fewshot` and not `bbh`.
SUITES: Mapping[str, Mapping[str, int]] = {"paper": {"mmlu": 5, "bbh_fewshot": 3, "drop": 3, "humaneval": 0}}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A task that was asked for.

    Args:
        task: A name of the harness, or the path of a YAML file.
        shots: Worked examples before each question; none leaves the task's own number.
    """

    task: str | Path
    shots: int | None = None


@dataclass(frozen=True)
class Ready:
    """A task with its data loaded.

    Args:
        name: The name of the task or group.
        shots: As in ``Asked``.
        parts: What the harness runs: the task, its group, or the tasks of a tag.
        leaves: The tasks in it.
    """

    name: str
    shots: int | None
    parts: Sequence[Any]
    leaves: Sequence[Any]


def harness_version() -> str:
    """Return the harness's version.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise ModuleNotFoundError(f"evaluate needs lm-evaluation-harness: {INSTALL}") from error
    return version("lm_eval")


def prepare(asked: Sequence[Asked], *, allow_code_execution: bool) -> list[Ready]:
    """Find the tasks and load their data.

    Args:
        asked: What to evaluate on.
        allow_code_execution: Accept tasks that run what the model writes; their metrics run code as they load.

    Raises:
        ValueError: A task is unknown or asked for twice, runs generated code without that being allowed, fixes another
            number of shots, or its data can't be had.
    """
    files: dict[str | Path, dict[str, Any]] = {
        each.task: _head(each.task) for each in asked if isinstance(each.task, Path)
    }
    manager = _manager(any(isinstance(each.task, str) for each in asked))
    for each in asked:
        if isinstance(each.task, str) and each.task not in manager.task_index:
            raise ValueError(f"task={each.task!r} is no task of the harness{nearest(each.task, manager.all_tasks)}")
        definition = each.task if isinstance(each.task, str) else files[each.task]
        coders = _coders(definition, manager.task_index)
        _check_code(coders, allow_code_execution)  # before loading, which already runs a metric's own example
    ready = [_load(each, manager, files) for each in asked]
    seen: set[str] = set()
    for task in ready:
        names = {leaf.task_name for leaf in task.leaves}
        if names & seen:
            raise ValueError(f"task {min(names & seen)!r} is asked for twice: name it once, or in one group")
        seen |= names
        _check_code([leaf.task_name for leaf in task.leaves if leaf.get_config("unsafe_code")], allow_code_execution)
        _check_shots(task)
    return ready


def language_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, mixed_precision: str | None
) -> Any:
    """Return a causal model, with or without an adapter, as the harness wants it; it stays on its device.

    Raises:
        ValueError: The tokenizer ends every text, so that the harness would score its end in place of the answer.
    """
    if tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        raise ValueError(
            "the tokenizer puts its end of sequence after every text, and an answer can't follow that: say "
            "add_eos_token: false in the tokenizer_config.json of the run's adapter folder, or save a tokenizer there "
            "that does not"
        )
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=batch_size,
        mixed_precision_dtype=mixed_precision,
        softmax_dtype="float32",
    )


def run_task(lm: Any, task: Ready, *, limit: int | None, allow_code_execution: bool) -> Figures:
    """Run one task and return its figures: shots, examples, metrics, and those of the tasks in a group.

    The harness seeds Python, numpy and torch by fixed numbers first, so that the shots are always the same.
    """
    from lm_eval.evaluator import simple_evaluate

    found = simple_evaluate(
        model=lm,
        tasks=[*task.parts],
        num_fewshot=task.shots,
        limit=limit,
        log_samples=False,
        confirm_run_unsafe_code=allow_code_execution,
    )
    assert found is not None  # one process
    names = [leaf.task_name for leaf in task.leaves]
    shots = {found["n-shot"][name] for name in names}
    figures: Figures = {
        "shots": shots.pop() if len(shots) == 1 else None,
        "examples": sum(found["n-samples"][name]["effective"] for name in names),
        "metrics": _metrics(found["results"].get(task.name, {})),
    }
    if names != [task.name]:
        figures["tasks"] = {name: _metrics(found["results"][name]) for name in names}
    return figures | {"version": {name: found["versions"].get(name) for name in names}}


@contextmanager
def harness_quiet() -> Iterator[None]:
    """Keep the harness's notices off the screen, its progress bars aside."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "evaluate", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def code_execution(allowed: bool) -> Iterator[None]:
    """Tell the harness's metrics inside whether they may run what a model wrote; put the variable back afterwards."""
    before = os.environ.pop(ALLOW_CODE, None)
    if allowed:
        os.environ[ALLOW_CODE] = "1"
    try:
        yield
    finally:
        os.environ.pop(ALLOW_CODE, None)
        if before is not None:
            os.environ[ALLOW_CODE] = before


@cache
def _manager(its_own: bool) -> Any:
    """Return what loads tasks: from files, and by name where ``its_own`` 14,000, which take a while, are read in."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=its_own)


class _Keys(yaml.SafeLoader):
    """Reads a task file without importing the functions that it names."""


_Keys.add_multi_constructor("!", lambda loader, tag, node: f"!{tag}")


def _head(file: Path) -> dict[str, Any]:
    """Return what a task file says, functions aside."""
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise ValueError(f"no task file {file}{nearest(file.name, siblings)}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Keys)  # noqa: S506, a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("task"), str):
        raise ValueError(
            f"{file} describes no task: it needs a key 'task' with its name, and dataset_path, test_split and so on (a "
            "group can't be given as a file: give each of its tasks)"
        )
    return content


def _coders(task: str | Mapping[str, Any], index: Mapping[str, Any]) -> list[str]:
    """Return the tasks in a task, group or tag (a name or a definition) that run generated code; none is loaded."""
    if isinstance(task, str):
        if task not in index:
            return []
        entry = index[task]
        return (
            _coders(entry.cfg, index) if entry.cfg else [c for tag in sorted(entry.tags) for c in _coders(tag, index)]
        )
    own = [str(task.get("task", ""))] if task.get("unsafe_code") else []
    members = task["task"] if isinstance(task.get("task"), list) else []
    # A member that changes a task of the harness names it; what it changes comes on top.
    found = [coder for each in members for coder in _coders(each, index)]
    named = [each.get("task") for each in members if isinstance(each, Mapping)]
    return [*own, *found, *(coder for name in named if isinstance(name, str) for coder in _coders(name, index))]


def _check_code(coders: Sequence[str], allowed: bool) -> None:
    if coders and not allowed:
        raise ValueError(
            f"task {coders[0]!r} runs Python code that the model writes, on this machine and with your rights: say "
            "--allow-code-execution if that is acceptable here (a container without a network is a good place)"
        )


def _check_shots(task: Ready) -> None:
    for leaf in task.leaves:
        if task.shots and leaf.get_config("num_fewshot") == 0:
            raise ValueError(f"task {leaf.task_name!r} is defined with 0 shots, {task.shots} were asked for: use 0")


def _load(asked: Asked, manager: Any, files: Mapping[str | Path, dict[str, Any]]) -> Ready:
    if isinstance(asked.task, str):
        name, spec, place = asked.task, asked.task, None
    else:
        name, spec, place = files[asked.task]["task"], str(asked.task.absolute()), asked.task.absolute().parent
    try:
        with _working_in(place):
            loaded = manager.load([spec])
    except OSError as error:
        what = " ".join(str(error).split())
        if place is not None:
            raise ValueError(
                f"the data of {asked.task} can't be read ({what}); its paths are relative to it"
            ) from error
        raise ValueError(
            f"task {name!r} needs data that is not on this machine ({what}): run this once with a network, without "
            "HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, which fills the cache, or evaluate on files with --task-file"
        ) from error
    except (TypeError, KeyError, ValueError, AttributeError, ImportError) as error:
        if place is None:
            raise
        raise ValueError(f"{asked.task} is not a task the harness can load: {error}") from error
    leaves = list(loaded["tasks"].values())
    group = loaded["groups"].get(name)
    return Ready(name, asked.shots, leaves if group is None else [group], leaves)


@contextmanager
def _working_in(folder: Path | None) -> Iterator[None]:
    """Make relative paths mean those in ``folder``: where the harness looks for a task's data files."""
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)


def _metrics(row: Mapping[str, Any]) -> Figures:
    """Return the numbers of a row: ``acc``, ``acc_stderr``; a filter's name follows its metric where there is one."""
    numbers = {key: value for key, value in row.items() if "," in key and isinstance(value, int | float)}
    return {key.removesuffix(",none"): float(value) if math.isfinite(value) else None for key, value in numbers.items()}
