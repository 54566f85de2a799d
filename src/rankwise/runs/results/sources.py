"""What a report finds in the runs it is given: searches, edits, singular values, gradients, figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.report import Outcome, read_gradients, read_history, read_spectra
from rankwise.rules.records import HISTORY_FILE, Record, edits, searches
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.reading import read_yaml

# What may tell runs apart, the most telling first; those in BARE explain themselves.
SETTINGS = ("allocation", "proxy", "mode", "score_on", "scoring", "budget", "on_disable", "search_every", "r", "seed")
BARE = ("allocation", "proxy", "mode")
CELL = ("merges", "injections")
LOR2C = (*CELL, "share", "freeze_merged", "inject_targets")  # what a LoR2C has beside
FAMILY = {(False, False): "LoR2C", (True, False): "MergeLoR2C", (False, True): "InjectLoR2C", (True, True): "IMLoR2C"}
EXPECTED = f"a run folder of rankwise train, an adapter folder that a search was saved in, or a {HISTORY_FILE}"
NOT_YET = "the run has not searched yet"
SPLITS = ("dev", "validation")  # where cells are compared: on held-out training data if there is any

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """What one run left to draw.

    Args:
        place: What the user named.
        history: One record per search or edit.
        settings: The fields of the method's config that are known.
        spectra: Singular values by epoch.
        gradients: Gradients by epoch.
        figures: The content of ``metrics.json`` where the run is finished and a LoR2C.
        recipe: Its recipe without merges, injections and seed, as one text.
    """

    place: Path
    history: list[Record]
    settings: dict[str, Any]
    spectra: Records = field(default_factory=list)
    gradients: Records = field(default_factory=list)
    figures: dict[str, Any] | None = None
    recipe: str = ""

    @property
    def name(self) -> str:
        """The folder's name (of an adapter inside a run the run's), or the file's."""
        place = self.place.resolve()
        if place.is_file():
            if place.name != HISTORY_FILE:
                return place.stem
            place = place.parent
        return place.parent.name if place.name == "adapter" else place.name

    @property
    def searched(self) -> bool:
        """Whether there were searches."""
        return bool(searches(self.history))

    @property
    def edited(self) -> bool:
        """Whether there were edits beside searches."""
        return bool(edits(self.history))

    @property
    def cell(self) -> tuple[int, int]:
        """How many merges and injections a LoR2C was told to make."""
        return self.settings["merges"], self.settings["injections"]

    @property
    def family(self) -> str | None:
        """What the paper calls a LoR2C with these settings; None for another method."""
        if "merges" not in self.settings:
            return None
        merges, injections = self.cell
        told = [("Share" if self.settings.get("share") else "") + FAMILY[merges > 0, injections > 0]]
        if merges:
            frozen = " then frozen" if self.settings.get("freeze_merged") else ""
            told.append(f"{merges} merge{'s' * (merges > 1)}{frozen}")
        if injections:
            what = "deletion" if self.settings.get("inject_targets") == [] else "injection"
            told.append(f"{injections} {what}{'s' * (injections > 1)}")
        return ", ".join(told)

    def told(self, keys: Sequence[str]) -> str:
        """Return these settings as words: ``grad_norm, dynamic, seed 13``."""
        known = [key for key in keys if key in self.settings]
        return ", ".join(f"{self.settings[key]}" if key in BARE else f"{key} {self.settings[key]}" for key in known)

    def outcome(self, split: str) -> Outcome | None:
        """Return the headline metric of the last epoch on a split, if the run has that."""
        if self.figures is None:
            return None
        value = self.figures["metrics"]["last"].get(split, {}).get(self.figures["headline"])
        if value is None:
            return None
        return Outcome(*self.cell, self.figures["seed"], value)


def read_source(place: str | Path) -> Source:
    """Read what there is to draw in a run folder, an adapter folder or a history file.

    Raises:
        FileNotFoundError: There is nothing at that place, or nothing to draw; the message says what is expected.
        ValueError: A file there holds something else, or nothing yet.
    """
    given = Path(place)
    if not given.exists():
        raise FileNotFoundError(f"there is no {given}: give {EXPECTED}")
    try:
        return _source(given)
    except (  # no record of ours looks like that
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"a file of {given} is damaged or of another kind ({error!r}): give {EXPECTED}") from error


def _source(given: Path) -> Source:
    file = given / HISTORY_FILE if given.is_dir() else given
    history = _read(file, read_history)
    known = _settings(file.parent) if file.name == HISTORY_FILE else {}
    settings = {key: known[key] for key in (*SETTINGS, *LOR2C) if known.get(key) is not None}
    found = searches(history)
    if found:
        settings = {"proxy": found[-1].proxy, **settings}
    beside: dict[str, Any] = {}
    if given.is_dir():
        run = RunFolder(given)
        beside = {
            "spectra": _read(run.spectra, read_spectra),
            "gradients": _read(run.gradients, read_gradients),
            **(_figures(run) if "merges" in settings else {}),
        }
    if not history and not any(beside.values()):
        if file.is_file():
            raise ValueError(f"{file} is empty: {_why_none(file.parent) if given.is_dir() else NOT_YET}")
        raise FileNotFoundError(f"{given} holds no {HISTORY_FILE}: {_why_none(given)}")
    return Source(given, history, settings, **beside)


def _read(file: Path, read: Callable[[Path], list[Any]]) -> list[Any]:
    """Read a file of records, none where it is missing."""
    try:
        return read(file) if file.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: give {EXPECTED}") from error


def _figures(run: RunFolder) -> dict[str, Any]:
    if not (run.finished and run.config.is_file()):
        return {}
    recipe = {key: value for key, value in read_yaml(run.config).items() if key != "seed"}
    recipe["method"] = {key: value for key, value in recipe["method"].items() if key not in (*CELL, "seed")}
    return {"figures": run.figures(), "recipe": json.dumps(recipe, sort_keys=True)}


def _why_none(folder: Path) -> str:
    run = RunFolder(folder)
    if run.config.is_file():
        method = read_yaml(run.config)["method"]["name"]
        if method in ("heterolora", "lor2c"):
            return NOT_YET if method == "heterolora" else "no epoch of the run is over yet"
        return f"its method is {method!r}, which searches nothing"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{HISTORY_FILE}"))
    meant = f"; did you mean {folder / inside[0]}?" if inside else ""
    return f"give {EXPECTED}{meant}"


def _settings(folder: Path) -> dict[str, Any]:
    """Return what is known of the method: the adapter's config, which is complete, or else the recipe."""
    for file in (folder / "adapter" / "adapter_config.json", folder / "adapter_config.json"):
        if file.is_file():
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return config
    run = RunFolder(folder)
    if not run.config.is_file():
        return {}
    recipe = read_yaml(run.config)
    unsaid = dict.fromkeys(CELL, 0) if recipe["method"]["name"] == "lor2c" else {}
    return {"seed": recipe.get("seed", 0), **unsaid, **recipe["method"]}
