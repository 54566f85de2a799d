"""Values against the annotations of a dataclass: what a damaged or hand-edited file may hold instead."""

from __future__ import annotations

import types
from collections.abc import Collection, KeysView, Mapping, ValuesView
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# What may stand for an annotation: JSON knows no tuples and sets, PEFT makes sets of lists, and 1 is a float.
STANDS_FOR: dict[type, tuple[type, ...]] = {
    float: (float, int),
    list: (list, tuple, set),
    set: (list, tuple, set),
    tuple: (list, tuple),
    dict: (dict,),
}


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy's numbers as Python's, ranges and views of dictionaries as lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (range, KeysView, ValuesView)):
        return list(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return (set if isinstance(value, frozenset) else type(value))(map(plain, value))
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape else value


def wrong_field(cls: type, values: Mapping[str, Any], **wider: Any) -> str | None:
    """Return what is wrong with the first value that doesn't fit its field: its name, the value, what is allowed.

    Args:
        cls: A dataclass.
        values: Values by field; names that the class doesn't have are passed over.
        wider: Types of fields that take more than their annotation says.
    """
    hints = {**get_type_hints(cls), **wider}
    for field in fields(cls):
        if field.name in values and not fits(values[field.name], hints[field.name]):
            return f"{field.name}={values[field.name]!r:.80} must be {words(hints[field.name])}"
    return None


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type: through unions, lists and dictionaries, and no further than that."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, str):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool):
        return kind in (bool, object)
    if issubclass(kind, Enum):
        return isinstance(value, (str, kind))
    if is_dataclass(kind):
        return isinstance(value, (dict, kind))
    if not isinstance(value, STANDS_FOR.get(kind, (kind,))):
        return False
    return _inside_fits(value, inner)


def _inside_fits(value: Any, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if isinstance(value, Collection) and not isinstance(value, (str, bytes)) and len(inner) == 1:
        return all(fits(each, inner[0]) for each in value)
    return True


def words(hint: Any) -> str:
    """Return a type as people say it: ``a list of a str, a str or None``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = list(dict.fromkeys(words(option) for option in inner if option is not type(None)))
        options += ["None"] if type(None) in inner else []
        return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    kind = origin or hint
    name = getattr(kind, "__name__", str(kind))
    if kind in (list, set, tuple) and inner:
        return f"a {name} of {words(inner[0])}"
    if kind is dict and len(inner) == 2:
        return f"a dict of {words(inner[0])} to {words(inner[1])}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
