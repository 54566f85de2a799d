"""What was on, moment by moment: the start, and after each search or edit."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.report.history import History
from rankwise.report.structure import frozen_after, words
from rankwise.rules.records import EditRecord, Record, SearchRecord


class Moment(NamedTuple):
    """What was on from a step to the next moment.

    Args:
        step: Optimizer steps done before it.
        title: What happened: ``search 3 (online)``, ``merge 4 + 5``, ``start``.
        on: The paths that train from then on, by name.
        frozen: Paths that contribute without being trained.
        gained: What is on and was not before; nothing at the first moment.
        lost: What was on before and is not any more.
        ranks: The rank of each path, where the search chose ranks.
        enabled: Parameters that train from then on, where it was recorded.
    """

    step: int
    title: str
    on: frozenset[str]
    frozen: frozenset[str]
    gained: frozenset[str]
    lost: frozenset[str]
    ranks: dict[str, int]
    enabled: int | None


def moments(history: History) -> list[Moment]:
    """Return the moments of a history, oldest first; none of an empty one.

    Args:
        history: The records of ``rankwise.history(model)`` or the lines of ``search_history.jsonl``.
    """
    found: list[Moment] = []
    if history and isinstance(history[0], EditRecord):
        nothing: frozenset[str] = frozenset()
        found.append(Moment(0, "start", frozenset(history[0].before), nothing, nothing, nothing, {}, None))
    for record in history:
        on = frozenset(record.chosen)
        before = found[-1].on if found else on
        was_frozen = found[-1].frozen if found else frozenset()
        lost = before - on
        if isinstance(record, EditRecord):
            frozen = frozen_after(was_frozen, record)
        else:
            frozen = ((was_frozen | lost) - on) if record.counts.get("frozen") else frozenset()
        ranks = record.ranks if isinstance(record, SearchRecord) else {}
        enabled = record.counts.get("enabled")
        found.append(Moment(record.step, title_of(record), on, frozen, on - before, lost, dict(ranks), enabled))
    return found


def title_of(record: Record) -> str:
    """Say what a record was about."""
    if isinstance(record, SearchRecord):
        return f"search {record.search + 1} ({record.how})" if record.how else f"search {record.search + 1}"
    assert isinstance(record, EditRecord)
    return words(record)
