"""The recipes that come with the package, found by name: ``minilm/mrpc-uniform``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rankwise.errors import nearest

SHIPPED = "rankwise_recipes"  # what the folder recipes/ is called once it is installed
ENDING = ".yaml"


def shipped_folder() -> Path | None:
    """Return the folder of the recipes: the installed one, or that of the checkout the package runs from."""
    found = importlib.util.find_spec(SHIPPED)
    if found is not None and found.origin is not None:
        return Path(found.origin).parent
    checkout = Path(__file__).resolve().parents[4] / "recipes"
    return checkout if checkout.is_dir() else None


def shipped_recipes() -> dict[str, Path]:
    """Return every recipe that ships, by name; files that others are based on are left out."""
    folder = shipped_folder()
    files = sorted(folder.rglob(f"[!_]*{ENDING}")) if folder is not None else []
    return {file.relative_to(folder or file).with_suffix("").as_posix(): file for file in files}


def find_recipe(name: str | Path) -> Path:
    """Return the file that a path or a name means; a path that is there wins.

    Raises:
        FileNotFoundError: There is neither a file nor a recipe of that name.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped_recipes()
    asked = Path(name).as_posix().removesuffix(ENDING).removeprefix("recipes/")
    if asked in known:
        return known[asked]
    raise FileNotFoundError(
        f"no recipe at {name}{nearest(asked, known)}: give the path of a YAML file or a name that rankwise recipes "
        "lists; rankwise init writes one"
    )


def first_line(file: Path) -> str:
    """Return what a recipe says of itself in its first line."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
