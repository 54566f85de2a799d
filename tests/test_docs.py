"""What the pages say can be typed: commands have their options, Python is Python, the site has no dead link."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rankwise_cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line of a page, those that go on in the next line joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?: {4})?(?:\.venv/bin/)?(rankwise +[a-z].*)$", text, re.MULTILINE):
        yield shlex.split(line.split("|")[0], comments=True)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    known = getattr(group, "commands")  # noqa: B009 (click's groups have it, its type here does not)
    for _, name, *words in commands(page):
        if not re.fullmatch(r"[a-z]+", name) or name in ("is", "takes"):
            continue
        assert name in known, f"{named(page)}: rankwise {name}"
        command = known[name]
        for word in words:  # of a group the command inside it
            command = getattr(command, "commands", {}).get(word, command)
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        asked = {word.split("=")[0] for word in words if word.startswith("--")}
        assert asked <= options, f"{named(page)}: rankwise {name}"


def test_there_are_commands_to_check() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) >= 25


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_is_python_and_names_what_there_is(page: Path) -> None:
    import rankwise

    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rankwise":
                assert node.attr in rankwise.__all__, f"{named(page)}: rankwise.{node.attr}"


OURS = re.compile(r"(?<![\w./-])rankwise((?:\.\w+)+)")
PYTHON = [file for folder in ("src", "examples", "studies") for file in sorted((ROOT / folder).rglob("*.py"))]


def said(file: Path) -> Iterator[str]:
    """What a page or a Python file says to people: all of the page; docstrings, messages and other texts."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def lacking(text: str) -> list[str]:
    """The names below ``rankwise`` in a text that lead nowhere."""
    import rankwise

    missing = []
    for name in OURS.findall(text):
        found: Any = rankwise
        path = "rankwise"
        for part in name[1:].split("."):
            path = f"{path}.{part}"
            try:
                found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
            except ModuleNotFoundError:
                missing.append(path)
                break
    return missing


def test_every_name_of_ours_that_is_said_is_there() -> None:
    known = [*PAGES, *ROOT.glob("*.md"), *PYTHON]
    assert {named(file): missing for file in known for text in said(file) if (missing := lacking(text))} == {}


def test_a_name_that_is_not_there_is_found() -> None:
    assert lacking("``rankwise.prefix_cache``, rankwise.prefix.cache.prefix_cache(model)") == ["rankwise.prefix_cache"]
    assert lacking("see rankwise.Allocator. And `rankwise.prefix.gone`") == ["rankwise.prefix.gone"]
    assert lacking("runs/rankwise.yaml and my-rankwise.toml") == []


def test_the_reference_has_every_public_name() -> None:
    import rankwise

    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert set(re.findall(r"^::: rankwise\.(\w+)$", pages, re.MULTILINE)) == set(rankwise.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "[a](gone.md)", "[a](../gone.yaml)", "[a](faq.md#gone)", "::: rankwise.gone"])
def test_the_site_builds_and_a_dead_link_is_an_error(tmp_path: Path, broken: str) -> None:
    pytest.importorskip("mkdocs")
    for name in ("docs", "tools", "results", "recipes", "examples", "src", "tests", "README.md", "CONTRIBUTING.md"):
        if name == "docs":
            shutil.copytree(ROOT / name, tmp_path / name)
        elif (ROOT / name).is_dir():
            (tmp_path / name).symlink_to(ROOT / name)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "faq.md").open("a", encoding="utf-8") as page:
        page.write(f"\n\n{broken}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # with -q warnings are not counted
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is (broken == ""), done.stderr
    if not broken:
        made = (tmp_path / "build" / "site" / "reference" / "configs.html").read_text(encoding="utf-8")
        assert "searches_per_epoch" in made
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://(?!www\.mkdocs)", made)
