"""Words for error messages that correct the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    found = difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def check_choice(field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise a ``ValueError`` naming the field, the value and what is allowed, unless the value is allowed."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, names))}{nearest(str(value), names)}")
