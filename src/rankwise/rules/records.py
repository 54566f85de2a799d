"""What searches and edits did, as data: the only place that knows the fields of a history's records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from rankwise.rules.edits import Disable, Edit, Enable, Inject, Merge
from rankwise.rules.kinds import kind_of

EDITS: dict[str, type[Edit]] = {edit.__name__: edit for edit in (Enable, Disable, Merge, Inject)}
HISTORY_FILE = "search_history.jsonl"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all records have in common.

    ``record["step"]`` reads a field, as it did when records were dictionaries.

    Args:
        step: Optimizer steps done before it.
        how: How the scores were had: ``"probe"``, ``"online"``, ``"random"``, or ``"edit"`` for a scheduled edit.
        scores: Each path's score, None where it was not finite or could not be had.
        unscored: Paths without a score of their own.
        chosen: The paths that train from then on.
        counts: Parameters ``enabled``, ``contributing``, ``resident``, ``frozen`` and in the ``head``, afterwards.
        seconds: Wall time of the search or edit itself.
        tap_seconds: Wall time spent collecting in the training steps before it.
    """

    LABEL: ClassVar[str]
    """The field whose value names the score."""

    step: int
    how: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    unscored: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    tap_seconds: float = 0.0

    def __getitem__(self, name: str) -> Any:
        """Return a field; a KeyError if there is none of that name."""
        return vars(self)[name]

    @property
    def paths(self) -> list[str]:
        """The paths that it was about."""
        return list(dict.fromkeys([*self.scores, *self.unscored, *self.chosen]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per path: step, how, the score's name and value, and whether the path trains."""
        on = set(self.chosen)
        return [
            {
                "step": self.step,
                "how": self.how,
                "score_name": self[self.LABEL],
                "path": name,
                "kind": kind_of(name),
                "score": self.scores.get(name),
                "enabled": name in on,
            }
            for name in self.paths
        ]


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Record):
    """A search: all paths scored, some of them chosen.

    Args:
        search: Its number, counted from 0.
        proxy: The score.
        score_on: ``"weight"`` or ``"factors"``.
        switched_on: What it switched on.
        switched_off: What it switched off.
        ranks: The rank that each path got, where ranks were chosen.
        budget: The config's budget.
        unspent: What is left of it and why, in words; empty where nothing is.
    """

    LABEL: ClassVar[str] = "proxy"

    search: int
    proxy: str
    score_on: str = ""
    switched_on: list[str] = field(default_factory=list)
    switched_off: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    budget: float | int | None = None
    unspent: str = ""


@dataclass(frozen=True, kw_only=True)
class EditRecord(Record):
    """A scheduled edit of LoR2C.

    Args:
        edits: What was done; nothing where there was no candidate.
        before: The paths that trained before.
        due: ``"merge"`` or ``"inject"``.
        metric: The score.
        measured: A loss just before and just after, None where there is nothing to measure by.
    """

    LABEL: ClassVar[str] = "metric"

    edits: list[Edit]
    before: list[str]
    how: str = "edit"
    due: str = ""
    metric: str | None = None
    measured: list[float | None] = field(default_factory=list)

    @property
    def skipped(self) -> bool:
        """Whether there was no candidate."""
        return not self.edits

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        edits = [{"edit": type(edit).__name__, **asdict(edit)} for edit in self.edits]
        return {**super().to_dict(), "edits": edits, "skipped": self.skipped}


AnyRecord = TypeVar("AnyRecord", bound=Record)


def searches(history: Iterable[Record]) -> list[SearchRecord]:
    """Return the searches of a history, without the edits in between."""
    return [record for record in history if isinstance(record, SearchRecord)]


def edits(history: Iterable[Record]) -> list[EditRecord]:
    """Return the edits of a history, without the searches."""
    return [record for record in history if isinstance(record, EditRecord)]


def record_of(content: object) -> Record:
    """Return the record that ``to_dict`` made this of.

    Raises:
        ValueError: It is no record; says what is wrong with which field.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"a record is a JSON object, got {content!r:.60}")
    if "edits" not in content:
        return _make(SearchRecord, dict(content))
    made = [_edit(edit) for edit in _checked("edits", content["edits"], list)]
    return _make(EditRecord, {**{key: content[key] for key in content if key != "skipped"}, "edits": made})


def _edit(content: object) -> Edit:
    given = dict(content) if isinstance(content, Mapping) else {}
    kind = given.pop("edit", None)
    made = EDITS.get(kind) if isinstance(kind, str) else None
    may_be_none = {each.name: each.default is None for each in fields(made)} if made else {}
    if made is None or not set(given) <= set(may_be_none):
        raise ValueError(f"field 'edits' holds no edit: {content!r:.80}; there are {', '.join(EDITS)}")
    if not all(isinstance(value, str) or (value is None and may_be_none[name]) for name, value in given.items()):
        raise ValueError(f"field 'edits' holds an edit of no path: {content!r:.80}")
    try:
        return made(**given)
    except TypeError as error:
        raise ValueError(f"field 'edits' holds half an edit: {content!r:.80}") from error


def _make(cls: type[AnyRecord], content: dict[str, Any]) -> AnyRecord:
    unknown = set(content) - {each.name for each in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {min(unknown)!r}")
    for name, kind in TYPES.items():
        if name in content:
            _checked(name, content[name], kind)
    for name, kind in ITEMS.items():
        given = content.get(name, ())
        for item in given.values() if isinstance(given, dict) else given:
            _checked(name, item, kind)
    for name, score in content.get("scores", {}).items():
        if score is not None and not abs(score) <= sys.float_info.max:  # false of NaN too
            raise ValueError(f"field 'scores' gives {name!r} the score {score!r:.60}, which is no finite number")
    for name in ("step", "search"):
        if name in content and content[name] < 0:
            raise ValueError(f"field {name!r} is {content[name]!r:.60}, which is no count")
    try:
        return cls(**content)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} lacks a field: {error}") from error


TYPES: dict[str, Any] = {
    "step": int,
    "search": int,
    "how": str,
    "proxy": str,
    "score_on": str,
    "due": str,
    "metric": str | None,
    "budget": float | int | None,
    "seconds": float | int,
    "tap_seconds": float | int,
    "scores": dict,
    "counts": dict,
    "ranks": dict,
    "unspent": str,
    "unscored": list,
    "chosen": list,
    "switched_on": list,
    "switched_off": list,
    "before": list,
    "measured": list,
}
ITEMS: dict[str, Any] = {
    "scores": float | int | None,
    "counts": int,
    "ranks": int,
    "unscored": str,
    "chosen": str,
    "switched_on": str,
    "switched_off": str,
    "before": str,
    "measured": float | int | None,
}


def _checked(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"field {name!r} has {value!r:.60} where {wanted} belongs")
    return value


def to_lines(history: Iterable[Record]) -> str:
    """Return a history as JSON lines, the content of ``search_history.jsonl``."""
    return "".join(json.dumps(record.to_dict()) + "\n" for record in history)


def from_lines(text: str, source: object) -> list[Record]:
    """Return the history that ``to_lines`` made this text of.

    Args:
        text: The content of ``search_history.jsonl``.
        source: The file, for messages.

    Raises:
        ValueError: A line is no record; says which and why.
    """
    history = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            history.append(record_of(json.loads(line)))
        except (ValueError, RecursionError) as error:  # what json raises
            raise ValueError(
                f"{source}, line {number} is not a search or an edit of rankwise ({error}): {line[:60]!r}"
            ) from error
    return history
