"""The lock: everything pyproject asks for, at one version each, from no place in particular."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKED_EXTRAS = ("report", "demo", "docs", "study", "postgres", "dev")  # the others are for those who need them


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def wanted() -> Iterator[str]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    yield from content["build-system"]["requires"]
    yield from content["project"]["dependencies"]
    for extra in LOCKED_EXTRAS:
        yield from content["project"]["optional-dependencies"][extra]


@pytest.mark.parametrize("text", [text for text in wanted() if not text.startswith("rankwise[")])
def test_a_requirement_is_pinned_within_its_range(text: str) -> None:
    requirement = Requirement(text)
    (pin,) = locked()[canonicalize_name(requirement.name)].specifier
    assert requirement.specifier.contains(pin.version)


def test_every_line_pins_one_plain_version() -> None:
    for requirement in locked().values():
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert "+" not in str(requirement.specifier), f"{requirement}: a local version exists in one place only"
        assert requirement.url is None, requirement
