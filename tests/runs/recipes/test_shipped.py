"""Recipes that ship, found by their names; a path that is there wins."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tests.commands import call

from rankwise.runs.recipes import shipped
from rankwise.runs.recipes.recipe import load_recipe
from rankwise.runs.recipes.shipped import find_recipe, first_line, shipped_folder, shipped_recipes
from rankwise_exits import USER_ERROR

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the recipes as a wheel installs it, with recipes of its own."""
    folder = tmp_path / "site" / shipped.SHIPPED
    for name in ("a.yaml", "deep/b-é.yaml", "deep/_base.yaml", "deep/deeper/c.yaml", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}, a recipe\nmodel: x\n", encoding="utf-8")
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_shipped_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("minilm/mrpc-uniform").method.name == "lora"
    assert load_recipe("recipes/minilm/mrpc-uniform.yaml").method.name == "lora"
    assert "modernbert-base/mrpc-lora" in call("recipes", "modernbert").output
    refused = call("plan", "minilm/mrpc-unifrom")
    assert refused.exit_code == USER_ERROR
    assert "did you mean 'minilm/mrpc-uniform'" in refused.output


def test_every_recipe_of_the_checkout_ships_but_what_others_are_based_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", "no_such_package_of_recipes")  # as if nothing were installed
    files = {file for file in (ROOT / "recipes").rglob("*.yaml") if not file.name.startswith("_")}
    assert set(shipped_recipes().values()) == files
    assert all(find_recipe(name) == file for name, file in shipped_recipes().items())


def test_an_installed_folder_comes_before_the_checkouts(installed: Path) -> None:
    assert shipped_folder() == installed
    assert list(shipped_recipes()) == ["a", "deep/b-é", "deep/deeper/c"]
    assert find_recipe("deep/b-é") == installed / "deep" / "b-é.yaml"
    assert first_line(find_recipe("deep/b-é")) == "deep/b-é.yaml, a recipe"


def test_a_path_that_is_there_wins(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("model: mine\n")
    assert find_recipe("a") == Path("a")
    assert find_recipe("a.yaml") == installed / "a.yaml"
    assert find_recipe(tmp_path / "a") == tmp_path / "a"
    assert find_recipe("./deep/deeper/c.yaml") == installed / "deep" / "deeper" / "c.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("deep/deper/c", ", did you mean 'deep/deeper/c'?"), ("deep/_base", ""), ("deep", ""), ("zzz.yaml", "")],
)
def test_what_is_neither_is_refused_with_the_nearest_name(installed: Path, name: str, hint: str) -> None:
    (Path.cwd() / "deep").mkdir(exist_ok=True)  # a folder is no recipe
    with pytest.raises(FileNotFoundError) as caught:
        find_recipe(name)
    said = str(caught.value)
    assert said.startswith(f"no recipe at {name}{hint}")
    assert said.endswith("rankwise recipes lists; rankwise init writes one")


def test_a_package_without_recipes_lists_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", "no_such_package_of_recipes")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "src" / "rankwise" / "runs" / "recipes" / "shipped.py"))
    assert shipped_folder() is None
    assert shipped_recipes() == {}
    with pytest.raises(FileNotFoundError, match="no recipe at minilm/mrpc-uniform: give the path"):
        find_recipe("minilm/mrpc-uniform")
