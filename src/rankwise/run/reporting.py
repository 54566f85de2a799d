"""From the searches of runs to pictures: where the histories lie, what the runs are called, what is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.allocation.record import HISTORY
from rankwise.errors import check_choice
from rankwise.kinds import is_shortcut
from rankwise.report import compare_frequency, plot_overlap, plot_scores, plot_share, read_history, save_figure
from rankwise.report.drawing import FORMATS, figure_class
from rankwise.report.history import candidates
from rankwise.run.folder import RunFolder

OVER_TIME = {"share": plot_share, "scores": plot_scores, "overlap": plot_overlap}
NONE_OVER_TIME = ", ".join(OVER_TIME)
# What may tell runs apart, the most telling first; those in BARE explain themselves.
SETTINGS = ("allocation", "proxy", "mode", "score_on", "scoring", "budget", "on_disable", "search_every", "r", "seed")
BARE = ("allocation", "proxy", "mode")
EXPECTED = f"a run folder of rankwise train, an adapter folder that a search was saved in, or a {HISTORY}"


@dataclass(frozen=True)
class Searched:
    """The searches of one run.

    Args:
        place: What the user named.
        history: One record per search.
        settings: The fields of the method's config that are known.
    """

    place: Path
    history: list[dict[str, Any]]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name (of an adapter inside a run the run's), or the file's."""
        place = self.place.resolve()
        if place.is_file():
            if place.name != HISTORY:
                return place.stem
            place = place.parent
        return place.parent.name if place.name == "adapter" else place.name

    def told(self, keys: Sequence[str]) -> str:
        """Return these settings as words: ``grad_norm, dynamic, seed 13``."""
        known = [key for key in keys if key in self.settings]
        return ", ".join(f"{self.settings[key]}" if key in BARE else f"{key} {self.settings[key]}" for key in known)


class Report(NamedTuple):
    """What was drawn.

    Args:
        written: The pictures.
        left_out: Why some were not drawn, a sentence each.
    """

    written: list[Path]
    left_out: list[str]


def write_report(runs: Sequence[str | Path], out: str | Path, *, picture_format: str = "png") -> Report:
    """Draw the searches of runs: all heat maps in one picture, share, scores and overlap over time for each run.

    Args:
        runs: Run folders, adapter folders or history files.
        out: The folder for the pictures; those of an earlier report are replaced.
        picture_format: ``"png"`` or ``"svg"``.

    Raises:
        FileNotFoundError: One of the runs does not exist or has no history.
        ValueError: A history is no history or empty, ``out`` is a file, or the format is another one.
        ModuleNotFoundError: matplotlib is not installed.
    """
    folder = Path(out)
    check_choice("format", picture_format, FORMATS)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the pictures with --out")
    figure_class()
    found = [read_searches(run) for run in runs]
    names = _unique([run.name for run in found])
    labels = _labels(found, names)
    heading = _heading(found[0]) if len(found) == 1 else _common(found)
    panels = {"" if len(found) == 1 else label: run.history for label, run in zip(labels, found, strict=True)}
    report = Report([], [])
    together = compare_frequency(panels, title=heading or None)
    report.written.append(save_figure(together, folder / f"frequency.{picture_format}"))
    for run, name in zip(found, names, strict=True):
        ending = "" if len(found) == 1 else f"-{name}"
        if len(run.history) == 1:
            report.left_out.append(f"{run.place} searched once, so there is nothing over time: no {NONE_OVER_TIME}")
            continue
        for what, plot in OVER_TIME.items():
            try:
                figure = plot(run.history, title=_heading(run))
            except ValueError as reason:  # one that nothing can be drawn of, such as scores that all are infinite
                report.left_out.append(f"{run.place}, no {what}: {reason}")
            else:
                report.written.append(save_figure(figure, folder / f"{what}{ending}.{picture_format}"))
    return report


def read_searches(place: str | Path) -> Searched:
    """Read the history of a run folder, an adapter folder or a file.

    Raises:
        FileNotFoundError: There is nothing at that place, or no history in it; the message says what is expected.
        ValueError: What is there is no history, or an empty one.
    """
    given = Path(place)
    if not given.exists():
        raise FileNotFoundError(f"there is no {given}: give {EXPECTED}")
    file = given / HISTORY if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(f"{given} holds no {HISTORY}: {_why_none(given)}")
    try:
        history = read_history(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: give {EXPECTED}") from error
    if not history:
        raise ValueError(f"{file} is empty: the run has not searched yet")
    known = _settings(file.parent) if file.name == HISTORY else {}
    settings = {key: known[key] for key in SETTINGS if known.get(key) is not None}
    return Searched(given, history, {"proxy": history[-1]["proxy"], **settings})


def _why_none(folder: Path) -> str:
    run = RunFolder(folder)
    if run.config.is_file():
        method = run.recipe().method.name
        if method in ("lora", "full"):
            return f"its method is {method!r}, which searches nothing"
        return "the run has not searched yet"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{HISTORY}"))
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
    recipe = run.recipe()
    return {"seed": recipe.seed, **recipe.method.options}


def _heading(run: Searched) -> str:
    """Return a run's name and how it searched; how kinds were ranked matters only where there are several."""
    mixed = any(is_shortcut(name) for name in candidates(run.history[0]))
    how = run.told(["proxy", "mode", *(["allocation"] if mixed else [])])
    return f"{run.name}: {how}" if how else run.name


def _labels(found: Sequence[Searched], names: Sequence[str]) -> list[str]:
    """Tell the runs apart: by the settings they differ in where that suffices, else by their names."""
    labels = [run.told(_differing(found)) for run in found]
    return labels if all(labels) and len(set(labels)) == len(labels) else list(names)


def _differing(found: Sequence[Searched]) -> list[str]:
    return [key for key in SETTINGS if len({run.settings.get(key) for run in found}) > 1]


def _common(found: Sequence[Searched]) -> str:
    """Return what the runs share, as the heading above their heat maps."""
    same = [key for key in ("proxy", "mode") if key not in _differing(found)]
    return found[0].told(same)


def _unique(names: Sequence[str]) -> list[str]:
    """Number the names that occur again, so that no picture replaces another."""
    unique: list[str] = []
    for name in names:
        free = (f"{name}-{count}" for count in range(2, len(names) + 2))
        unique.append(next(each for each in (name, *free) if each not in unique))
    return unique
