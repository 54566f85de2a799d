"""``rankwise tune``: what is raced, at which price, and the report of how it ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape

from rankwise.errors import check_choice
from rankwise.files import write_text_atomic
from rankwise.runs.recipes.methods import WITH_PATHS, config_class
from rankwise.runs.recipes.reading import flat
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.runs.sizes import kind_of
from rankwise.study.arms import DEFAULT, NAMES, PLANNED, YOURS, Arms, arms_of
from rankwise.study.folder import StudyFolder
from rankwise.study.formats import interval, markdown, terminal
from rankwise.study.grid import Rates
from rankwise.study.plan import Found, Group
from rankwise.study.queue import check_installed
from rankwise.study.race import Candidate, Race, Standing, rungs
from rankwise.study.running import failures_told, run_study
from rankwise.study.statistics import paired
from rankwise.study.tables import Run, Table, Value, compared, finished_run, made_by, verdict
from rankwise.study.working import Work, load_data

FACTOR = 10**0.5
PLANNED_ON = 24  # batches that the rank plan is made on, and fewer where that would be long beside a run
AT_LEAST = 12


@dataclass(frozen=True)
class Wish:
    """What a race may cost.

    Args:
        cost: The rounds' price, at most, in whole runs.
        rates: How many learning rates around the recipe's own each arm has.
        seeds: With how many fresh seeds the winner is run against the default.
        budget: Parameters of each arm; none takes those of the recipe's method.
        without: Arms that stay out.
    """

    cost: float = 4.0
    rates: int = 3
    seeds: int = 3
    budget: int | None = None
    without: Sequence[str] = ()


def make_race(recipe: Recipe, wish: Wish, say: Callable[[str], None] = lambda text: None) -> tuple[Race, Arms]:
    """Return the race for a recipe and its arms; the rank plan is made here, once.

    Args:
        recipe: What the user has.
        wish: What was asked for.
        say: Gets a line before the plan is made, which takes its time.

    Raises:
        ValueError: There is no dev split, the price is too low, or an arm is unknown.
    """
    if recipe.data.dev_fraction == 0:
        raise ValueError("a race goes by the dev split's loss, and data.dev_fraction=0 leaves none")
    asked = as_asked(recipe, wish)
    for name in wish.without:
        check_choice("--without", name, [name for name in NAMES if name != DEFAULT])  # the default always runs
    data = load_data(recipe)
    if data.validation is None and not data.extra:
        recipe = with_validation(recipe)
        data = load_data(recipe)
    full = full_steps(recipe, len(data.train))
    rungs((len(NAMES) - len(set(wish.without))) * wish.rates, full=full, cost=wish.cost)  # before anything is spent
    if PLANNED not in wish.without:
        say(f"planning ranks for one of the arms first: at most {planning(recipe, full)} passes over a batch")
    arms = arms_of(recipe, data, budget=wish.budget, without=wish.without, batches=plan_batches(full))
    rate, side = recipe.training.learning_rate, (wish.rates - 1) // 2
    rates = Rates.model_validate(
        {"from": rate / FACTOR**side, "to": rate * FACTOR ** (wish.rates - 1 - side), "factor": FACTOR}
    )
    content = recipe.to_dict()
    groups = [
        Group(
            arm=name,
            point={},
            content={**content, "method": method},
            rates=None if name == YOURS and arms.twin else rates,  # it runs under its twin's name
        )
        for name, method in arms.methods.items()
    ]
    for group in groups:
        parse_recipe(group.content)
    race = Race(
        groups=groups,
        rungs=rungs(sum(group.rates is not None for group in groups) * wish.rates, full=full, cost=wish.cost),
        default=DEFAULT,
        yours=YOURS,
        seed=recipe.seed,
        confirm=[recipe.seed + 1 + number for number in range(wish.seeds)],
        full=full,
        asked=asked,
    )
    return race, arms


def with_validation(recipe: Recipe) -> Recipe:
    """Return a recipe that sets a part of train apart to be reported: dev is what the race goes by."""
    content = recipe.to_dict()
    return parse_recipe({**content, "data": {**content["data"], "validation_fraction": recipe.data.dev_fraction}})


def as_asked(recipe: Recipe, wish: Wish) -> dict[str, Any]:
    """Return what was asked for, as JSON keeps it."""
    found: dict[str, Any] = json.loads(json.dumps({**recipe.to_dict(), "wish": asdict(wish)}))
    return found


def too_dear(arms: Arms) -> str:
    """Return which arms are above the budget, as the end of a sentence."""
    told = ", ".join(f"{name} {cost:,}" for name, cost in arms.above.items())
    return f"; above that: {told}" if told else ""


def check_same(root: Path, race: Race, recipe: Recipe, wish: Wish) -> None:
    """Refuse to go on with a race for another recipe or at another price.

    Raises:
        ValueError: Something differs; says what.
    """
    before, now = flat(race.asked), flat(as_asked(recipe, wish))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{root} holds a race with {key.removeprefix('wish.')}={before.get(key)!r}, and it is "
                f"{now.get(key)!r} now: give another --out, or the command as it was to go on with that one"
            )


def full_steps(recipe: Recipe, rows: int) -> int:
    """Return the optimizer steps of a run on so many rows."""
    training = recipe.training
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(rows / (training.batch_size * PartialState().num_processes))
    return max(1, math.ceil(math.ceil(batches / training.accumulation) * training.epochs))


def plan_batches(full: int) -> int:
    """Return how many batches the rank plan of a race is made on, by the steps of a whole run."""
    return max(AT_LEAST, min(PLANNED_ON, full // 4))


def planning(recipe: Recipe, full: int) -> int:
    """Return how many passes over a batch the rank plan takes at most: two for each, as many that train a head."""
    return (2 if kind_of(recipe) == "causal" else 4) * plan_batches(full)


def price(race: Race) -> str:
    """Return what a race costs at most, in whole runs, before anything is spent."""
    rounds = ", ".join(f"{rung.candidates} x {rung.steps} steps" for rung in race.rungs)
    planned = any(group.arm == PLANNED for group in race.groups)
    plan = planning(parse_recipe(race.groups[0].content), race.full) / race.full if planned else 0.0
    confirm = 2.0 * len(race.confirm)
    return (
        f"A whole run is {race.full} steps. The race: {rounds}, at most {race.cost:.2f} runs; the winner and what it "
        f"is compared with, {len(race.confirm)} fresh seeds each: {confirm:.0f} runs"
        + (f"; the rank plan, made already: at most {plan:.2f}" if planned else "")
        + f". At most {race.cost + confirm + plan:.2f} runs in all, evaluations aside."
    )


def tune(recipe: Recipe, task: Work, wish: Wish, *, console: Console, command: str, retry_failed: bool = False) -> Path:
    """Race arms and rates on a recipe's task, and write the winner's recipe, a snippet and the report.

    Args:
        recipe: The user's.
        task: Where and with how many workers.
        wish: What it may cost.
        console: Where progress and report go.
        command: The command line.
        retry_failed: Run what failed again.

    Returns:
        The report's file.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        RuntimeError: Runs failed; the report is written where there is a winner all the same.
        ValueError: The recipe or the price does not allow a race, or nothing in it has trained.
    """
    check_installed()
    folder = StudyFolder(task.root)
    if folder.plan_file.is_file():  # the rank plan is made once, and what was promised stays
        race = folder.planner()
        if not isinstance(race, Race):
            raise ValueError(f"{task.root} holds a study and no race: give another --out")
        check_same(task.root, race, recipe, wish)
        console.print(escape(f"going on with the race in {task.root}"), highlight=False)
    else:
        race, arms = make_race(recipe, wish, lambda text: console.print(text, highlight=False))
        console.print(f"{len(race.groups)} arms of at most {arms.budget:,} parameters{too_dear(arms)}", highlight=False)
        apart = race.groups[0].content["data"].get("validation_fraction")
        if apart and not recipe.data.validation_fraction:
            console.print(
                f"no validation split: {apart:g} of train is set apart to be reported, since dev chooses the winner "
                "(data.validation_file names one of your own)",
                highlight=False,
                soft_wrap=True,
            )
        if arms.twin is not None:
            console.print(
                f"{YOURS} is {arms.twin} at the same rank: it runs the rounds under that name",
                highlight=False,
                soft_wrap=True,
            )
        for reason in arms.left_out:
            console.print(f"[yellow]left out: {escape(reason)}[/]", soft_wrap=True, highlight=False)
    console.print(price(race), highlight=False, soft_wrap=True)
    run_study(race, task, console=console, command=command, retry_failed=retry_failed)
    with failures_told(folder, race):
        return write_report(folder, race, console)


def write_report(folder: StudyFolder, race: Race, console: Console) -> Path:
    """Write ``report.md``, the winner's recipe and how to train it without rankwise.

    Raises:
        ValueError: The race has no winner.
    """
    cells = folder.plan(race).cells
    found = {cell.name: loss for cell in cells if (loss := folder.loss(cell)) is not None}
    standing = race.standing(found)
    if standing.winner is None:
        said = " ".join(f"{note}." for note in standing.notes)
        raise ValueError(f"{folder.root}: no winner. {said} See rankwise study status {folder.root}")
    runs = confirmed(folder, race, standing)
    tables = race_tables(folder, race)
    winner = parse_recipe(race.groups[standing.winner[0]].cell(standing.winner[1], race.seed, "report").content)
    said = ending(race, standing, runs)
    write_text_atomic(folder.root / "winner.yaml", winner.to_yaml())
    report = folder.root / "report.md"
    script = snippet(winner)
    write_text_atomic(report, f"# What pays\n\n{said}\n\n{markdown(tables)}\n## The winner\n\n```python\n{script}```\n")
    for table in tables:
        console.print(terminal(table))
    console.print(script, markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(said)}[/]", soft_wrap=True, highlight=False)
    files = escape(f"recipe: {folder.root / 'winner.yaml'}; report: {report}")
    console.print(files, soft_wrap=True, highlight=False)
    return report


def race_tables(folder: StudyFolder, race: Race) -> list[Table]:
    """Return what was tried, and the winner's figures with fresh seeds where there are some.

    Raises:
        ValueError: Nothing has finished yet.
    """
    cells = folder.plan(race).cells
    found = {cell.name: loss for cell in cells if (loss := folder.loss(cell)) is not None}
    if not found:
        raise ValueError(f"{folder.root}: no run of the race has finished yet")
    standing = race.standing(found)
    tables = [tried_table(race, standing, found)]
    runs = confirmed(folder, race, standing)
    if runs and standing.winner is not None:
        about = " ".join([*made_by(folder, cells), *(f"{note}." for note in standing.notes)])
        baseline = _label(race, standing.rival or standing.winner)
        tables.append(compared(runs, baseline=baseline, title="The winner anew, with fresh seeds", about=about))
    return tables


def tried_table(race: Race, standing: Standing, found: Found) -> Table:
    """Return every candidate with its dev loss in each round that it ran in, those that came furthest first."""
    header = ["arm", "rate", *(f"{rung.steps} steps" for rung in race.rungs)]
    rows: list[tuple[int, float, list[Value]]] = []
    for candidate in standing.rounds[0]:
        cells = [own[candidate].name for own in standing.rounds if candidate in own]
        losses = [found[name] for name in cells if name in found]
        texts = ["failed" if math.isinf(loss) else f"{loss:.4f}" for loss in losses]
        place, rate = candidate
        row: list[Value] = [race.groups[place].arm, rate, *texts, *[None] * (len(race.rungs) - len(texts))]
        rows.append((-len(losses), losses[-1] if losses else math.inf, row))
    rows.sort(key=lambda row: row[:2])  # those that came furthest first, by their last loss
    note = "Dev loss after each round, all with one seed and the same batches; the rounds' schedules have their length."
    return Table("What was tried", header, [row for *_, row in rows], note)


def confirmed(folder: StudyFolder, race: Race, standing: Standing) -> list[Run]:
    """Return the finished runs with fresh seeds."""
    return [
        finished_run(folder, cell, _label(race, candidate))
        for candidate, cells in standing.confirm.items()
        for cell in cells
        if folder.run(cell).finished
    ]


def _label(race: Race, candidate: Candidate) -> str:
    return f"{race.groups[candidate[0]].arm} at {candidate[1]:g}"


def ending(race: Race, standing: Standing, runs: Sequence[Run]) -> str:
    """Return in two sentences who won and whether the race paid."""
    assert standing.winner is not None
    name = _label(race, standing.winner)
    first = f"{name} won the race, which cost {race.cost:.2f} whole runs at most."
    if standing.rival is None:
        return f"{first} Your recipe did not race, so that nothing can be said against it: leave {YOURS} in for that."
    if standing.rival == standing.winner:
        return f"{first} It is what there was before: the race confirmed it and changed nothing."
    rival = _label(race, standing.rival)
    losses = {arm: {run.seed: run.value(run.select, "loss") for run in runs if run.arm == arm} for arm in (name, rival)}
    if not set(losses[name]) & set(losses[rival]):
        return f"{first} Its runs with fresh seeds against {rival} are missing, so nothing can be said of it."
    found = paired(losses[name], losses[rival])
    said = verdict(found, name, rival)
    words = {"lower": "it paid", "higher": "it did not pay: keep what you had"}.get(said, said)
    seeds = f"{found.n} fresh seeds" if found.n > 1 else "one fresh seed"
    if not math.isfinite(found.mean):
        return f"{first} With {seeds} against {rival}: {words}."
    told = interval(found) if found.n > 1 else f"{found.mean:+.4f}"
    return f"{first} With {seeds} its {runs[0].split} loss is {told} against {rival}: {words}."


def snippet(recipe: Recipe) -> str:
    """Return the winner's config as Python: PEFT's own, where plain LoRA can express it."""
    options: Mapping[str, Any] = recipe.method.options
    if recipe.method.name in ("full", "dylora", "adapterdrop"):
        return f"# {recipe.method.name}: rankwise train winner.yaml\n"
    if recipe.method.name == "prefix":  # which PEFT can't build without
        options = {"task_type": "CAUSAL_LM", **options}
    fields = "".join(f"    {key}={value!r},\n" for key, value in options.items())
    training = recipe.training
    rate = f"# learning rate {training.learning_rate:g}, {training.schedule} schedule"
    if training.loraplus_lr_ratio is not None:
        rate += f"; of lora_B {training.loraplus_lr_ratio:g} times that"
    name = config_class(recipe.method.name).__name__
    owner = "rankwise" if recipe.method.name in WITH_PATHS else "peft"
    return f"from {owner} import {name}\n\nconfig = {name}(\n{fields})  {rate}\n"
