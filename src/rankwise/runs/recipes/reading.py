"""YAML files as plain dictionaries: a base file underneath, overrides on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Section = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading ``1e-4`` as a number (YAML 1.1 asks for a dot, so it would be a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse ``text``; ``where`` names its origin in the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (derives from SafeLoader: plain values only)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> Section:
    """Read a mapping and merge it over the file its top-level ``base`` names (relative to its own folder).

    Raises:
        FileNotFoundError: The file or its base is not there.
        ValueError: It is no mapping, or the bases go in a circle.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no recipe at {file}: give the path of a YAML file")
    if file.resolve() in _seen:
        raise ValueError(f"{file} is its own base: {' -> '.join(p.name for p in (*_seen, file))}")
    content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, not a mapping of keys to values")
    base = content.pop("base", None)
    if base is None:
        return content
    return merged(read_yaml(file.parent / str(base), (*_seen, file.resolve())), content)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Section:
    """Return ``under`` with the keys of ``over`` on top, section by section."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> Section:
    """Apply ``key.inner=value`` texts; a value is read as YAML.

    Raises:
        ValueError: An override has no ``=``, or goes through a key that holds no section.
    """
    result = dict(content)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set {override!r} must look like key=value, for example training.epochs=3")
        parts = key.strip().split(".")
        _check_sections(result, parts)
        over: Section = {parts[-1]: parse_yaml(text, f"--set {override}") if text else None}
        for part in reversed(parts[:-1]):
            over = {part: over}
        result = merged(result, over)
    return result


def _check_sections(content: Mapping[str, Any], parts: Sequence[str]) -> None:
    inner: Any = content
    for depth, part in enumerate(parts[:-1], start=1):
        inner = inner.get(part)
        if inner is None:
            return
        if not isinstance(inner, Mapping):
            raise ValueError(
                f"--set {'.'.join(parts)}: {'.'.join(parts[:depth])} is {inner!r}, not a section with keys of its own"
            )


def flat(content: Mapping[str, Any], prefix: str = "") -> Section:
    """Return ``{"a.b": value}`` for nested mappings."""
    result: Section = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
