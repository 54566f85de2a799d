"""From what runs left to pictures: what is drawn of which, what they are called, how runs are told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import check_choice
from rankwise.report import (
    Outcome,
    compare_frequency,
    plot_edit_grid,
    plot_gradient_ratio,
    plot_overlap,
    plot_scores,
    plot_share,
    plot_spectra,
    plot_structure,
    save_figure,
)
from rankwise.report.drawing import FORMATS, figure_class
from rankwise.report.history import searched
from rankwise.rules.kinds import is_shortcut
from rankwise.runs.results.sources import SETTINGS, SPLITS, Source, read_source
from rankwise.tasks.metrics import SMALLER_IS_BETTER

Draw = Callable[[], Any]  # returns a figure
OVER_TIME = {"share": plot_share, "scores": plot_scores, "overlap": plot_overlap}
NONE_OVER_TIME = ", ".join(OVER_TIME)
MOST_ALONE = 12  # LoR2C runs that are drawn one by one beside their map


class Report(NamedTuple):
    """What was drawn.

    Args:
        written: The pictures.
        left_out: Why some were not drawn, a sentence each.
    """

    written: list[Path]
    left_out: list[str]

    def draw(self, file: Path, whose: str, make: Draw) -> None:
        """Save a picture, or remember why nothing can be drawn, such as scores that all are infinite."""
        try:
            figure = make()
        except ValueError as reason:
            self.left_out.append(f"{whose}: {reason}")
        else:
            self.written.append(save_figure(figure, file))


def write_report(runs: Sequence[str | Path], out: str | Path, *, picture_format: str = "png") -> Report:
    """Draw what runs did.

    Searches: all heat maps in one picture; share, scores and overlap over time for each run. Edits: the structure
    before and after each one. LoR2C: singular values, and gradients beside LoRA's (as bars, and as a map), over the
    epochs; of runs that differ in merges and injections, a map of their metric.

    Args:
        runs: Run folders, adapter folders or history files.
        out: The folder for the pictures; those of an earlier report are replaced.
        picture_format: ``"png"`` or ``"svg"``.

    Raises:
        FileNotFoundError: One of the runs does not exist or has nothing to draw.
        ValueError: A file there holds something else or nothing yet, ``out`` is a file, or the format is another one.
        ModuleNotFoundError: matplotlib is not installed.
    """
    folder = Path(out)
    check_choice("format", picture_format, FORMATS)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the pictures with --out")
    figure_class()
    found = [read_source(run) for run in runs]
    names = _unique([run.name for run in found])
    report = Report([], [])
    _draw_frequency(report, found, names, folder / f"frequency.{picture_format}")
    maps = _maps(found)
    report.left_out.extend(_not_mapped(found, maps))
    mapped = {id(run) for group in maps for run in group}
    few = len(mapped) <= MOST_ALONE
    for run, name in zip(found, names, strict=True):
        ending = f".{picture_format}" if len(found) == 1 else f"-{name}.{picture_format}"
        for what, make in _pictures(run, report) if few or id(run) not in mapped else []:
            report.draw(folder / f"{what}{ending}", f"{run.place}, no {what}", make)
    if not few:
        report.left_out.append(f"{len(mapped)} runs are in a map; to see one alone, name at most {MOST_ALONE} of them")
    for number, group in enumerate(maps, start=1):
        name = "merges-injections" if len(maps) == 1 else f"merges-injections-{number}"
        report.draw(folder / f"{name}.{picture_format}", f"{group[0].place}, no {name}", partial(_map, group))
    if not report.written and not report.left_out:
        report.left_out.append(
            "nothing was recorded over time, and there is no map of a single pair (merges, injections)"
        )
    return report


def _draw_frequency(report: Report, found: Sequence[Source], names: Sequence[str], file: Path) -> None:
    """Draw the heat maps of all runs that searched in one picture."""
    both = [(run, name) for run, name in zip(found, names, strict=True) if run.searched]
    if not both:
        return
    runs = [run for run, _ in both]
    labels = _labels(runs, [name for _, name in both])
    heading = _heading(runs[0]) if len(runs) == 1 else _common(runs)
    panels = {"" if len(runs) == 1 else label: run.history for label, run in zip(labels, runs, strict=True)}
    report.written.append(save_figure(compare_frequency(panels, title=heading or None), file))


def _pictures(run: Source, report: Report) -> list[tuple[str, Draw]]:
    """Return what is to be drawn of one run alone, by name."""
    title = _heading(run)
    pictures: list[tuple[str, Draw]] = []
    if run.searched and len(searched(run.history)) == 1:
        report.left_out.append(f"{run.place} searched once, so there is nothing over time: no {NONE_OVER_TIME}")
    elif run.searched:
        pictures += [(what, partial(plot, run.history, title=title)) for what, plot in OVER_TIME.items()]
    if run.edited:
        epochs = {record["step"]: record["epoch"] for record in run.spectra}
        pictures.append(("structure", partial(plot_structure, run.history, title=title, epochs=epochs)))
    if run.spectra:
        pictures.append(("spectra", partial(plot_spectra, run.spectra, history=run.history, title=title)))
    if run.gradients:
        pictures.append(("gradients", partial(plot_gradient_ratio, run.gradients, title=title)))
        pictures.append(("gradients-flat", partial(plot_gradient_ratio, run.gradients, title=title, flat=True)))
    return pictures


def _maps(found: Sequence[Source]) -> list[list[Source]]:
    """Return the finished LoR2C runs that differ in merges and injections, and in nothing else but the seed."""
    groups: dict[str, list[Source]] = {}
    for run in found:
        if run.figures is not None:
            groups.setdefault(run.recipe, []).append(run)
    return [runs for runs in groups.values() if len({run.cell for run in runs}) > 1]


def _not_mapped(found: Sequence[Source], maps: Sequence[Sequence[Source]]) -> list[str]:
    """Say which LoR2C runs a map can't show: those without figures, and all but the last of a cell and seed."""
    unfinished = [run for run in found if maps and "merges" in run.settings and run.figures is None]
    told = [f"{run.place} is not finished: not in the map" for run in unfinished]
    for runs in maps:
        last = {(run.cell, (run.figures or {}).get("seed")): run for run in runs}
        told += [
            f"{run.place} has the merges, injections and seed of another run: not in the map"
            for run in runs
            if run not in last.values()
        ]
    return told


def _map(runs: Sequence[Source]) -> Any:
    figures = runs[0].figures or {}
    by_split: dict[str, list[Outcome | None]] = {split: [run.outcome(split) for run in runs] for split in SPLITS}
    for split, outcomes in by_split.items():
        measured = [outcome for outcome in outcomes if outcome is not None]
        if len(measured) == len(runs):
            return plot_edit_grid(
                measured,
                metric=figures["headline"],
                split=split,
                greater_is_better=figures["headline"] not in SMALLER_IS_BETTER,
                title=f"{figures['model']} on {figures['task']}, last epoch",
            )
    raise ValueError(f"the runs were not all measured on one split ({' or '.join(SPLITS)})")


def _heading(run: Source) -> str:
    """Return a run's name and its method; how kinds were ranked matters only where there are several."""
    if run.family is not None:
        return f"{run.name}: {run.family}"
    if not run.searched:
        return run.name
    mixed = any(is_shortcut(name) for name in searched(run.history)[0].paths)
    how = run.told(["proxy", "mode", *(["allocation"] if mixed else [])])
    return f"{run.name}: {how}" if how else run.name


def _labels(found: Sequence[Source], names: Sequence[str]) -> list[str]:
    """Tell the runs apart: by the settings they differ in where that suffices, else by their names."""
    labels = [run.told(_differing(found)) for run in found]
    return labels if all(labels) and len(set(labels)) == len(labels) else list(names)


def _differing(found: Sequence[Source]) -> list[str]:
    return [key for key in SETTINGS if len({run.settings.get(key) for run in found}) > 1]


def _common(found: Sequence[Source]) -> str:
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
