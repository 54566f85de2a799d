"""Words for error messages that correct the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_CALLER: ContextVar[tuple[str, bool]] = ContextVar("rankwise_caller", default=("", False))


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


def remedy(**options: Any) -> str:
    """Return options of a rank plan as the user passes them: ``halves=False``, or ``f(plan={'halves': False})``."""
    caller, mapped = _CALLER.get()
    text = f"plan={options!r}" if mapped else ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{caller}({text})" if caller else text


def argument(text: str) -> str:
    """Return an argument as the user passes it: ``name=value``, or ``f(name=value)``."""
    caller, _ = _CALLER.get()
    return f"{caller}({text})" if caller else text
