"""Pydantic's findings as sentences that correct the user."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rankwise.errors import nearest

OF_A_KEY = "[key]"  # how pydantic ends the place of a mapping's key


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line per problem: the key, what was given, what is allowed, the nearest name."""
    return "\n".join(_sentence(problem, model) for problem in error.errors())


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place) or "recipe"
    given = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            fields = _inside(model, place[:-1]).model_fields
            return _no_such_key(place, [field.alias or name for name, field in fields.items()])
        case "literal_error" if place[-1:] == [OF_A_KEY]:
            return _no_such_key(place[:-1], _choices(model, place))
        case "literal_error":
            allowed = _choices(model, place)
            hint = nearest(str(given), allowed)
            return f"{key}={given!r} is not one of {', '.join(map(repr, allowed))}{hint}"
        case "missing":
            return f"{key}: missing; a recipe must say it"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}"
        case _:
            return f"{key}={given!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _no_such_key(place: list[str], allowed: list[str]) -> str:
    section = f" in {'.'.join(place[:-1])}" if place[:-1] else ""
    return (
        f"{'.'.join(place)}: no such key{section}{nearest(place[-1], allowed)} (allowed: {', '.join(sorted(allowed))})"
    )


def _inside(model: type[BaseModel], place: list[str]) -> type[BaseModel]:
    """Return the model of the section at ``place``."""
    for part in place:
        field = model.model_fields.get(part)
        options = [] if field is None else [field.annotation, *get_args(field.annotation)]
        found = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not found:
            return model
        model = found[0]
    return model


def _choices(model: type[BaseModel], place: list[str]) -> list[str]:
    """Return the texts that the value at ``place`` may be; of a mapping also its keys."""
    annotation: Any = None
    for part in place:
        field = model.model_fields.get(part)
        if field is not None:  # else the place in a list, or a key of a mapping
            annotation, model = field.annotation, _inside(model, [part])
    return _texts(annotation)


def _texts(annotation: Any) -> list[str]:
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [choice for choice in inner if isinstance(choice, str)]
    return [text for each in inner for text in _texts(each)]
