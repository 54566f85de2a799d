"""Pydantic's findings as sentences that correct the user."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rankwise.errors import nearest


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
            allowed = [field.alias or name for name, field in fields.items()]
            section = f" in {'.'.join(place[:-1])}" if place[:-1] else ""
            return f"{key}: no such key{section}{nearest(place[-1], allowed)} (allowed: {', '.join(sorted(allowed))})"
        case "literal_error":
            allowed = [str(choice) for choice in _choices(model, place)]
            hint = nearest(str(given), allowed)
            return f"{key}={given!r} is not one of {', '.join(map(repr, allowed))}{hint}"
        case "missing":
            return f"{key}: missing; a recipe must say it"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}"
        case _:
            return f"{key}={given!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


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


def _choices(model: type[BaseModel], place: list[str]) -> list[Any]:
    field = _inside(model, place[:-1]).model_fields[place[-1]]
    options = [*get_args(field.annotation)]
    return [choice for option in options for choice in (get_args(option) or [option]) if isinstance(choice, str)]
