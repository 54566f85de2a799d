"""Values of a damaged file against annotations: what fits, what does not, and how a type is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest

from rankwise.fields import fits, plain, words, wrong_field


class Mode(str, Enum):
    FAST = "fast"


@dataclass
class Inner:
    size: int = 0


@dataclass
class Given:
    r: int = 8
    alpha: float = 1.0
    mode: Literal["off", "static", 1] = "off"
    targets: list[str] | str | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    share: bool = False
    inner: Inner = field(default_factory=Inner)
    kind: Mode = Mode.FAST
    anything: Any = None


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (3, float),  # JSON writes 1.0 as 1 in places
        (10**40, float),
        (float("nan"), float),
        (True, bool),
        (True, object),
        ("x", str),
        (None, int | None),
        (None, Optional[int]),  # noqa: UP045 (older annotations read so)
        (None, type(None)),
        ("a", Union[int, str]),  # noqa: UP007
        ("off", Literal["off", "on"]),
        (["a"], list[str]),
        (("a",), list[str]),
        ({"a"}, list[str]),
        (["a"], set[str]),
        ([1, 2], tuple[int, int]),
        ([], list[int]),
        ({}, dict[str, int]),
        ({"a": 1}, dict[str, int]),
        ({"a": [1]}, dict[str, list[int]]),
        (["a", 1], list),
        ("fast", Mode),
        (Mode.FAST, Mode),
        ({"size": 1}, Inner),
        (Inner(), Inner),
        ([{"size": 1}], list[Inner]),
        (..., Any),
        (3, "a name that was not resolved"),
    ],
    ids=str,
)
def test_what_fits(value: Any, hint: Any) -> None:
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),  # Python's True is an int, a count never is one
        (True, float),
        (True, str | None),
        (1, bool),
        (3.0, int),
        ("3", int),
        ("3", float),
        (None, int),
        (1, Literal[True]),
        (True, Literal[1]),
        ("On", Literal["off", "on"]),
        (["off"], Literal["off", "on"]),
        ("abc", list[str]),  # or each letter would be one
        ([1], list[str]),
        ([None], list[str]),
        ({"a": 1}, list[str]),
        ({"a"}, tuple[str, ...]),
        ({"a": "1"}, dict[str, int]),
        ({1: 1}, dict[str, int]),
        ({"a": [1.5]}, dict[str, list[int]]),
        ([("a", 1)], dict[str, int]),
        (3, Mode),
        ([], Inner),
        ([3], list[Inner]),
        (1j, float),
    ],
    ids=str,
)
def test_what_does_not_fit(value: Any, hint: Any) -> None:
    assert not fits(value, hint)


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({}, None),
        ({"r": 4, "no_such_field": object()}, None),
        ({"r": True}, "r=True must be an int"),
        ({"alpha": "2"}, "alpha='2' must be a float"),
        ({"mode": "fast"}, "mode='fast' must be one of 'off', 'static', 1"),
        ({"targets": 3}, "targets=3 must be a list of a str, a str or None"),
        ({"ranks": {"a": 1.5}}, "ranks={'a': 1.5} must be a dict of a str to an int"),
        ({"share": "no"}, "share='no' must be a bool"),
        ({"inner": [1]}, "inner=[1] must be an Inner"),
        ({"share": 0, "r": None}, "r=None must be an int"),  # in the order of the class
    ],
)
def test_the_first_wrong_field_is_named_with_its_value_and_what_is_allowed(
    values: dict[str, Any], wrong: str | None
) -> None:
    assert wrong_field(Given, values) == wrong


def test_a_long_value_is_cut_and_a_wider_type_is_taken() -> None:
    found = wrong_field(Given, {"r": "x" * 500})
    assert found == f"r={repr('x' * 500)[:80]} must be an int"
    assert wrong_field(Given, {"r": "all"}, r=int | str) is None
    assert wrong_field(Given, {"r": None}, r=int | str) == "r=None must be an int or a str"


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (int, "an int"),
        (float, "a float"),
        (int | None, "an int or None"),
        (str | int | None, "a str, an int or None"),
        (Literal["a", 1], "one of 'a', 1"),
        (Literal["a"] | None, "one of 'a' or None"),
        (list[str], "a list of a str"),
        (list, "a list"),
        (dict[str, int], "a dict of a str to an int"),
        (Inner, "an Inner"),
        (str | Literal["a"] | str, "a str or one of 'a'"),
    ],
    ids=str,
)
def test_types_in_words(hint: Any, said: str) -> None:
    assert words(hint) == said


def test_values_are_made_what_json_has() -> None:
    given = {"r": np.int64(8), "p": np.float32(0.5), "t": frozenset({"a"}), "l": range(2), "k": {"b": 1}.keys()}
    made = plain(given)
    assert made == {"r": 8, "p": 0.5, "t": {"a"}, "l": [0, 1], "k": ["b"]}
    assert [type(value) for value in made.values()] == [int, float, set, list, list]
    assert plain(["a", np.int64(1)]) == ["a", 1]
    assert plain(("a", True, None)) == ("a", True, None)
