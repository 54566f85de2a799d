"""YAML files as plain dictionaries: a base file underneath, overrides on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

Section = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading ``1e-4`` as a number (YAML 1.1 asks for a dot, so it would be a string).

    A key that stands twice is an error, and so is a value that its tag or form does not allow; both say the line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; PyYAML's own errors (``month must be in 1..12``) don't say where."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise ConstructorError(
                None,
                None,
                f"{str(getattr(node, 'value', ''))[:40]!r} can't be read as {node.tag.rpartition(':')[2]}: "
                f"{error}; quote it if it is text",
                node.start_mark,
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are different."""
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and isinstance(key, yaml.ScalarNode):
                raise ConstructorError(
                    None,
                    None,
                    f"key {name!r} stands twice (first in line {seen[name].line + 1}): keep one of them",
                    key.start_mark,
                )
            seen[name] = key.start_mark
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse ``text``; ``where`` names its origin in the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (derives from SafeLoader: plain values only)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is not valid YAML: brackets are nested too deeply") from error


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
    content = parse_yaml(_text(file), str(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, not a mapping of keys to values")
    base = content.pop("base", None)
    if base is None:
        return content
    return merged(read_yaml(file.parent / str(base), (*_seen, file.resolve())), content)


def _text(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}, line {line}: a recipe is UTF-8 text, and this is "
            f"{'UTF-16' if marked else f'not (byte 0x{raw[error.start]:02x})'}: save it as UTF-8"
        ) from error


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
