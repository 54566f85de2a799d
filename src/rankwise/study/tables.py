"""A study's tables: for every point of the axes the arms, their figures over fresh seeds, and what these can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import check_choice
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.study.folder import StudyFolder
from rankwise.study.plan import Cell, Study
from rankwise.study.statistics import Difference, Summary, paired, summarise

SELECTED = {"last": "last", "dev_selected": "selected"}
NOTE = (
    "Mean and standard deviation over n seeds; `last` is the last epoch, `selected` the one with the best dev figure, "
    "{honest}. Differences to {baseline} ({compared}) are paired over seeds, with Student's 95 % interval and, beside "
    "it, the percentile bootstrap's, which few seeds make too narrow (three: 74 %, five: 84 %). `detectable` is the "
    "smallest true difference that a paired t-test of as many seeds finds in four cases of five: an interval that "
    'holds zero, where less than that was to be seen, is not "none" but "can\'t tell".'
)
HONEST = {
    False: "never the best on the reported split",
    True: "and where rates, arms or epochs were chosen it was on this very split: the figures are too good",
}


class Span(NamedTuple):
    """The lowest and the highest of some numbers."""

    low: float
    high: float


Value = str | int | float | Summary | Difference | Span | None


class Point(NamedTuple):
    """An arm in a picture: means over its seeds.

    Args:
        arm: Its name.
        parameters: The mean number of parameters that train.
        seconds: The mean time of training.
        loss: The mean loss on the reported split, of the checkpoint that is compared.
        low: Lower end of Student's 95 % interval of that mean; not a number where there is one seed.
        high: Its upper end.
        n: How many seeds.
    """

    arm: str
    parameters: float
    seconds: float
    loss: float
    low: float
    high: float
    n: int


class Table(NamedTuple):
    """A table without a format.

    Args:
        title: Above it.
        header: The names of the columns.
        rows: As many values as columns.
        note: Below it.
        points: The arms for a picture of it.
    """

    title: str
    header: list[str]
    rows: list[list[Value]]
    note: str
    points: Sequence[Point] = ()


class Run(NamedTuple):
    """A finished run of the report, with the content of its ``metrics.json``."""

    arm: str
    rate: float
    seed: int
    select: str
    figures: Mapping[str, Any]

    @property
    def split(self) -> str:
        """The split that is reported: validation, or dev where there is nothing else."""
        names = [name for name, split in self.figures["metrics"]["last"].items() if isinstance(split, dict) and split]
        return next((name for name in names if name != "dev"), "dev")

    @property
    def metrics(self) -> list[str]:
        """The metric that the task goes by, and the loss."""
        return list(dict.fromkeys((str(self.figures["headline"]), "loss")))

    def value(self, which: str, metric: str) -> float:
        """Return a figure of the last or the dev-selected checkpoint."""
        return float(self.figures["metrics"][which][self.split][metric])


def finished_run(folder: StudyFolder, cell: Cell, arm: str) -> Run:
    """Return a finished cell as a run of an arm."""
    recipe = parse_recipe(cell.content)
    select = "last" if recipe.select == "last" else "dev_selected"
    return Run(arm, recipe.training.learning_rate, recipe.seed, select, folder.run(cell).figures())


def study_tables(folder: StudyFolder, study: Study, *, baseline: str | None = None) -> list[Table]:
    """Return a table for every point of the axes at which a run of the report has finished.

    Args:
        folder: Where the study is.
        study: Its plan.
        baseline: The arm that the others are paired with; by default the study's own.

    Raises:
        ValueError: None has, or there is no such arm.
    """
    if baseline is not None:
        check_choice("--baseline", baseline, dict.fromkeys(group.arm for group in study.groups))
    plan = folder.plan(study)
    about, said = made_by(folder, plan.cells), [f"{note}." for note in plan.notes]
    points: dict[str, list[Run]] = {}
    for group in study.groups:
        where = ", ".join(f"{axis} {label}" for axis, label in group.point.items()) or study.title
        points.setdefault(where, []).extend(
            finished_run(folder, cell, group.arm)
            for cell in plan.cells
            if cell.group == group.name and cell.role == "report" and folder.run(cell).finished
        )
    tables = [
        compared(runs, baseline=baseline or study.baseline, title=where, about=" ".join([*about, *said]))
        for where, runs in points.items()
        if runs
    ]
    if not tables:
        raise ValueError(
            f"{folder.root}: no run of the report has finished yet. {' '.join(said)} "
            f"See rankwise study status {folder.root}"
        )
    return tables


def made_by(folder: StudyFolder, cells: Sequence[Cell]) -> list[str]:
    """Return how many runs there are and by which command."""
    failed = sum(folder.error_file(cell).is_file() for cell in cells)
    finished = sum(folder.run(cell).finished for cell in cells)
    return [f"{finished} of {len(cells)} runs{f', {failed} failed' if failed else ''}: `{folder.command}`."]


def compared(runs: Sequence[Run], *, baseline: str, title: str, about: str) -> Table:
    """Return the table of some runs, the arms in the order they come.

    Args:
        runs: Finished runs with the same task.
        baseline: The arm that the others are paired with.
        title: Above the table.
        about: What there is to say before the explanation of the columns.

    Raises:
        ValueError: They report different splits or metrics, which no mean goes over.
    """
    for word, found in (("splits", {run.split for run in runs}), ("metrics", {run.metrics[0] for run in runs})):
        if len(found) > 1:
            raise ValueError(f"{title}: its runs report different {word} ({', '.join(sorted(found))}): compare others")
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    base = arms.get(baseline, [])
    columns: dict[str, list[Value]] = {
        "arm": list(arms),
        "parameters": [_span([run.figures["parameters"]["trainable"] for run in own]) for own in arms.values()],
        "rate": [_span([run.rate for run in own]) for own in arms.values()],
        "n": [len(own) for own in arms.values()],
    }
    for metric in runs[0].metrics:
        for which, word in SELECTED.items():
            values = [summarise([run.value(which, metric) for run in own]) for own in arms.values()]
            if which == "last" or values != columns[f"{metric}, last"]:
                columns[f"{metric}, {word}"] = list(values)
        against = {run.seed: run.value(run.select, metric) for run in base}
        columns[f"{metric} minus {baseline}"] = [
            _difference({run.seed: run.value(run.select, metric) for run in own}, against if own is not base else {})
            for own in arms.values()
        ]
    note = NOTE.format(baseline=baseline, compared=_selects(arms), honest=HONEST[runs[0].split == "dev"])
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    points = [point for arm, own in arms.items() if math.isfinite((point := _point(arm, own)).loss)]
    return Table(f"{title} ({runs[0].split})", list(columns), rows, f"{about} {note}", points)


def _selects(arms: Mapping[str, Sequence[Run]]) -> str:
    """Return which checkpoint is compared, of each arm where they differ."""
    words = {arm: SELECTED[own[0].select] for arm, own in arms.items()}
    same = len(set(words.values())) == 1
    return next(iter(words.values())) if same else ", ".join(f"{arm}: {word}" for arm, word in words.items())


def _point(arm: str, runs: Sequence[Run]) -> Point:
    loss = summarise([run.value(run.select, "loss") for run in runs])
    parameters = summarise([run.figures["parameters"]["trainable"] for run in runs]).mean
    seconds = summarise([run.figures["seconds"]["train"] for run in runs]).mean
    return Point(arm, parameters, seconds, loss.mean, *loss.interval(), loss.n)


def _difference(own: Mapping[int, float], against: Mapping[int, float]) -> Difference | None:
    return paired(own, against)._replace(runs=len(own)) if set(own) & set(against) else None


def _span(values: Sequence[float]) -> Span:
    return Span(min(values), max(values))


def verdict(found: Difference, arm: str = "the arm", baseline: str = "the baseline") -> str:
    """Return in words what a paired difference of losses says, by Student's interval."""
    diverged = [(found.diverged, arm), (found.baseline_diverged, baseline)]
    told = " and ".join(f"{count} of {found.n} runs of {name}" for count, name in diverged if count)
    if told:
        return f"can't tell: {told} diverged, with a loss that is no number"
    if found.n < 2:
        return "one seed: no interval, so nothing can be told"
    if found.mean == found.low == found.high == 0:
        return f"the same to the last digit in all {found.n} seeds"
    if found.low <= 0 <= found.high:
        return f"can't tell: {found.n} seeds would have seen a difference of {found.detectable:.4f}"
    return "lower" if found.mean < 0 else "higher"
