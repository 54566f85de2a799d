"""Which ``layer`` paths and which injected LoRA a model has, before and after each edit, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rankwise.report.history import IN_BLOCKS, History, in_order
from rankwise.rules import records
from rankwise.rules.edits import Disable, Edit, Enable, Inject, Merge
from rankwise.rules.kinds import kind_of
from rankwise.rules.records import EditRecord

SHORT = {"query": "q", "key": "k", "value": "v"}  # how a projection is called where there is little room
MOST_NAMES = 3


class Bar(NamedTuple):
    """A path across blocks, or the LoRA of one block.

    Args:
        first: Its first block.
        last: Its last one.
        kind: ``"layer"``, or ``"linear"`` for LoRA.
        label: The projections that LoRA runs along, empty for a path across blocks.
        frozen: Whether it contributes without being trained.
        score: What it was chosen by in the next edit, where it had a score.
        edited: Whether the next edit changes it.
    """

    first: int
    last: int
    kind: str
    label: str = ""
    frozen: bool = False
    score: float | None = None
    edited: bool = False


class Structure(NamedTuple):
    """What was there between two edits.

    Args:
        step: The optimizer step after which it was so.
        title: What made it so: ``start``, ``merge 4 + 5``.
        bars: The paths across blocks, by block, and then the LoRA.
        enabled: How many parameters trained then, if the record says.
        metric: The name of the scores, if there are any.
    """

    step: int
    title: str
    bars: list[Bar]
    enabled: int | None
    metric: str | None


class _Moment(NamedTuple):
    step: int
    title: str
    on: frozenset[str]
    frozen: frozenset[str]
    enabled: int | None
    following: EditRecord | None


def structures(history: History) -> list[Structure]:
    """Return what was there before the first edit and after each one.

    Where searches in between changed what was on, what the next edit found is listed too. Paths of other kinds than
    ``layer`` and LoRA are left out.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.

    Raises:
        ValueError: The history holds no edit.
    """
    made = records.edits(history)
    if not made:
        raise ValueError("the history holds no edit, so the structure never changed")
    moments: list[_Moment] = []
    frozen: frozenset[str] = frozenset()
    for record in made:
        found = frozenset(record.before)
        if moments and moments[-1].on == found:
            moments[-1] = moments[-1]._replace(following=record)
        else:
            as_built = not moments and not records.searches(history)
            step = 0 if as_built else record.step
            moments.append(_Moment(step, "start" if as_built else "before the edit", found, frozen, None, record))
        frozen = frozen_after(frozen, record)
        enabled = record.counts.get("enabled")
        moments.append(_Moment(record.step, words(record), frozenset(record.chosen), frozen, enabled, None))
    return [_structure(moment) for moment in moments]


def words(record: EditRecord) -> str:
    """Say what a record of edits did: ``merge 4 + 5``, ``inject 3``, ``no merge possible``."""
    if record.skipped:
        return f"no {record.due or 'edit'} possible"
    return ", ".join(_words(edit, record) for edit in record.edits)


def _words(edit: Edit, record: EditRecord) -> str:
    if isinstance(edit, Merge):
        return f"merge {block(edit.first)} + {block(edit.second)}"
    path = edit.path
    if isinstance(edit, Inject):
        lora = {block(name) for name in record.chosen if kind_of(name) == "linear"}
        return f"{'inject' if block(path) in lora else 'delete'} {block(path)}"
    verb = "switch on" if isinstance(edit, Enable) else "freeze" if _freezes(record) else "switch off"
    return f"{verb} {block(path) if kind_of(path) == 'layer' else path.removeprefix('layers.')}"


def block(name: str) -> str:
    """Return the blocks of a path's name as they stand there, ``4`` or ``4-5``; the name itself outside the blocks."""
    match = IN_BLOCKS.match(name)
    return name.split(".")[1] if match else name


def frozen_after(frozen: frozenset[str], record: EditRecord) -> frozenset[str]:
    """Return the paths that contribute without being trained after a record's edits."""
    names = set(frozen)
    for edit in record.edits:
        names -= touched(edit)
        if isinstance(edit, Disable) and _freezes(record):
            names.add(edit.path)
    return frozenset(names - set(record.chosen))


def touched(edit: Edit) -> set[str]:
    """Return the names of the paths that an edit is about."""
    return {edit.first, edit.second} if isinstance(edit, Merge) else {edit.path}


def _freezes(record: EditRecord) -> bool:
    return bool(record.counts.get("frozen", 0))


def _structure(moment: _Moment) -> Structure:
    following = moment.following
    scores: Mapping[str, float | None] = following.scores if following else {}
    changed = {name for edit in (following.edits if following else ()) for name in touched(edit)}
    bars = []
    for name in sorted(moment.on | moment.frozen):
        match = IN_BLOCKS.match(name)
        if match and match["row"] == "layer":
            first = int(match["first"])
            last = int(match["last"] or first)
            bars.append(Bar(first, last, "layer", "", name not in moment.on, scores.get(name), name in changed))
    lora = _lora(moment.on | moment.frozen, moment.frozen, changed)
    metric = following.metric if following and any(bar.score is not None for bar in bars) else None
    return Structure(moment.step, moment.title, sorted(bars) + lora, moment.enabled, metric)


def _lora(names: Iterable[str], frozen: frozenset[str], changed: set[str]) -> list[Bar]:
    by_block: dict[int, list[str]] = {}
    for name in names:
        match = IN_BLOCKS.match(name)
        if match and kind_of(name) == "linear":
            by_block.setdefault(int(match["first"]), []).append(name)
    return [
        Bar(
            place,
            place,
            "linear",
            _label(inside),
            all(name in frozen for name in inside),
            None,
            not changed.isdisjoint(inside),
        )
        for place, inside in sorted(by_block.items())
    ]


def _label(names: list[str]) -> str:
    rows = in_order(str(IN_BLOCKS.sub(r"\g<row>", name)) for name in names)
    short = [SHORT.get(last, last.removesuffix("_proj")) for last in (row.rpartition(".")[2] for row in rows)]
    return ", ".join(short) if len(short) <= MOST_NAMES else f"{len(short)} LoRA"
