"""The wheel holds what the package needs, and its page on an index leads somewhere."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
URL = "https://example.org/rankwise"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A release, built from a copy of the files that go into it."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source") / "rankwise", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    built = subprocess.run(
        [*command, str(source)],
        env={**os.environ, "RANKWISE_URL": URL},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_every_file_of_the_package_and_every_recipe_is_in_it(wheel: zipfile.ZipFile) -> None:
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    recipes = {
        f"rankwise_recipes/{path.relative_to(ROOT / 'recipes').as_posix()}"
        for path in (ROOT / "recipes").rglob("*")
        if path.suffix in (".yaml", ".py")
    }
    assert there == source | recipes


def test_the_page_of_a_release_has_absolute_links(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    version = metadata["Version"]
    links = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    assert links["Source"] == URL
    assert links["Changelog"] == f"{URL}/blob/v{version}/CHANGELOG.md"
    page = metadata.get_payload(decode=True)
    assert isinstance(page, bytes)
    readme, shown = (ROOT / "README.md").read_text(encoding="utf-8"), page.decode()
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", readme)) > 20
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "![The search space" in shown
    assert f"]({URL}/raw/v{version}/docs/search_space.svg)" in shown
    assert f"]({URL}/blob/v{version}/docs/index.md)" in shown
    for target in targets:
        if target.startswith(URL):
            assert (ROOT / target.split(f"/v{version}/")[1].partition("#")[0]).exists(), target
