"""The pytest plugin of ``peft_suite.py``: runs PEFT's tests with another config in the place of ``LoraConfig``.

The variant is named by the environment. Each test list gets rows of ours, made from its rows for LoRA; the name
``LoraConfig`` in the test modules stands for our config; everything that is not about LoRA is left out. PEFT's files
stay as they are.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest

import rankwise

SOURCE = str(Path(rankwise.__file__).parent)


@dataclass
class HeteroLoraOff(rankwise.HeteroLoraConfig):
    """HeteroLoRA that searches nothing: every path is on."""

    mode: str = "off"


@dataclass
class HeteroLoraDynamic(rankwise.HeteroLoraConfig):
    """HeteroLoRA that searches after every step, with a budget for everything.

    A smaller budget would switch off the only path of most of PEFT's models.
    """

    mode: str = "dynamic"
    budget: float | int = 1.0
    search_every: int | None = 1
    score_batches: int = 1


HeteroLoraOff.__name__ = HeteroLoraDynamic.__name__ = rankwise.HeteroLoraConfig.__name__  # as PEFT will load it
VARIANTS: dict[str, type[peft.LoraConfig]] = {
    "lora": peft.LoraConfig,
    "off": HeteroLoraOff,
    "dynamic": HeteroLoraDynamic,
    "lor2c": rankwise.Lor2cConfig,
}
VARIANT = os.environ["RANKWISE_VARIANT"]
OUTCOMES = Path(os.environ["RANKWISE_OUTCOMES"])  # one line of JSON for each test: its name, how it ended, the words
PART = OUTCOMES.with_suffix(".part")
CONFIG = VARIANTS[VARIANT]
UNNAMED = {"target_modules", "fan_in_fan_out"}  # what LoR2C has no use for


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put our rows into the lists of configs."""
    _stand_in(metafunc.module)
    parametrize = metafunc.parametrize

    def ours(argnames: Any, argvalues: Any, *args: Any, **kwargs: Any) -> None:
        rows = list(argvalues)
        if any(_config_of(row) is not None for row in rows):
            rows = [_translated(row, number) for number, row in enumerate(rows) if _config_of(row) is peft.LoraConfig]
            kwargs.pop("ids", None)
        parametrize(argnames, rows, *args, **kwargs)

    metafunc.parametrize = ours  # type: ignore[method-assign]


pytest_generate_tests.tryfirst = True  # type: ignore[attr-defined]


def _stand_in(module: Any) -> None:
    """Let ``LoraConfig`` mean our config, and every model be one that was fetched before."""
    package = module.__name__.rpartition(".")[0]
    for name in (module.__name__, f"{package}.testing_common", f"{package}.testing_utils"):
        known = vars(sys.modules.get(name) or importlib.import_module(name))
        if "LoraConfig" in known:
            known["LoraConfig"] = CONFIG
        if "_HUB_MODEL_ACCESSES" in known:
            known["_HUB_MODEL_ACCESSES"] = _All()


class _All(dict[str, int]):
    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> int:
        return 0


def _values(row: Any) -> list[Any]:
    values = row.values if hasattr(row, "marks") else row
    return list(values) if isinstance(values, (tuple, list)) else [values]


def _config_of(row: Any) -> type[peft.PeftConfig] | None:
    classes = [v for v in _values(row) if isinstance(v, type) and issubclass(v, peft.PeftConfig)]
    return classes[0] if classes else None


def _translated(row: Any, number: int) -> Any:
    values = [CONFIG if value is peft.LoraConfig else value for value in _values(row)]
    if VARIANT == "lor2c":
        values = [_without(v, UNNAMED) if isinstance(v, dict) else v for v in values]
    name = values[0] if isinstance(values[0], str) else f"row {number}"
    return pytest.param(*values, id=name, marks=getattr(row, "marks", ()))


def _without(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not about LoRA."""
    only = set(json.loads(os.environ.get("RANKWISE_ONLY", "[]")))
    kept = [item for item in items if _concerns(item) and (not only or _name(item) in only)]
    kept = kept[:: int(os.environ.get("RANKWISE_EVERY", "1"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _name(item: pytest.Item) -> str:
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


@functools.cache
def _source(code: Any) -> str:
    return inspect.getsource(code)


def _concerns(item: Any) -> bool:
    given = getattr(item, "callspec", None)
    params = list(given.params.values()) if given is not None else []
    classes = [p for p in params if isinstance(p, type) and issubclass(p, peft.PeftConfig)]
    if classes or VARIANT == "lor2c":
        return classes == [CONFIG]
    if any(isinstance(p, peft.PeftConfig) for p in params):  # made when the module was read, before ours stood in
        return False
    own = _source(item.function)
    if re.search(r"\w+Config\(", own):
        return re.search(r"\bLoraConfig\(", own) is not None
    return item.cls is not None and re.search(r"\bLoraConfig\(", _source(item.cls)) is not None


def pytest_configure() -> None:
    """Start anew."""
    PART.unlink(missing_ok=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note how a test ended, and whether an error is a refusal: raised by rankwise, as a ``ValueError``."""
    report = (yield).get_result()
    if report.when != "call" and report.outcome == "passed":
        return
    outcome, words = report.outcome, ""
    if call.excinfo is not None:
        words = " ".join(f"{call.excinfo.typename}: {call.excinfo.value}".split())[:400]
        by_us = str(call.excinfo.traceback[-1].path).startswith(SOURCE) and call.excinfo.errisinstance(ValueError)
        outcome = "refused" if outcome == "failed" and by_us else outcome
    with PART.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps([_name(item), outcome, words]) + "\n")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Give the outcomes the name that the script asked for, once they are whole."""
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        PART.touch()
        PART.replace(OUTCOMES)
