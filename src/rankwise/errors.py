"""Words for error messages that correct the user."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_CALLER: ContextVar[tuple[str, bool]] = ContextVar("rankwise_caller", default=("", False))
_IN_RECIPE: ContextVar[bool] = ContextVar("rankwise_in_recipe", default=False)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    found = difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def check_choice(field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise a ``ValueError`` naming the field, the value and what is allowed, unless the value is allowed."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, names))}{nearest(str(value), names)}")


@contextmanager
def called(caller: str, *, mapped: bool = False) -> Iterator[None]:
    """Let messages made inside name what to pass as an argument of the call that the user makes.

    Args:
        caller: What the user calls: ``rankwise.Allocator``.
        mapped: Whether it takes the options of a rank plan as one mapping, ``plan=``.
    """
    token = _CALLER.set((caller, mapped))
    try:
        yield
    finally:
        _CALLER.reset(token)


@contextmanager
def in_recipe() -> Iterator[None]:
    """Let messages made inside name keys of a recipe: the user wrote no call."""
    token = _IN_RECIPE.set(True)
    try:
        yield
    finally:
        _IN_RECIPE.reset(token)


def remedy(**options: Any) -> str:
    """Return options of a rank plan as the user says them.

    ``halves=False``, ``f(plan={'halves': False})`` or, in a recipe, ``method.plan.halves: false``.
    """
    caller, mapped = _CALLER.get()
    if _IN_RECIPE.get():
        return ", ".join(f"method.plan.{name}: {json.dumps(value)}" for name, value in options.items())
    text = f"plan={options!r}" if mapped else ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{caller}({text})" if caller else text


def argument(text: str) -> str:
    """Return an argument as the user passes it: ``name=value``, or ``f(name=value)``; a recipe can't say it."""
    caller, _ = _CALLER.get()
    where = " in a script of your own" if _IN_RECIPE.get() else ""
    return f"{caller}({text}){where}" if caller else f"{text}{where}"
