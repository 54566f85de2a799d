"""What was on, moment by moment, from searches, edits and both."""

from __future__ import annotations

from tests.report.edits import edited_history, edits, inject, layers, lora, merge
from tests.report.histories import record

from rankwise.report.moments import moments
from rankwise.rules.edits import Disable
from rankwise.rules.records import EditRecord, SearchRecord
from rankwise.runs.results.path_detail import paths_shown

NAMES = ["layers.0.query", "layers.0.value", "layers.1.query"]


def test_searches_say_what_came_and_went() -> None:
    found = moments([record(NAMES[:2], NAMES), record(NAMES[1:], NAMES, step=5)])
    assert [(each.step, each.title) for each in found] == [(0, "search 1"), (5, "search 1")]
    assert found[0].gained == found[0].lost == frozenset()
    assert (set(found[1].gained), set(found[1].lost)) == ({NAMES[2]}, {NAMES[0]})
    assert found[1].frozen == frozenset()


def test_what_is_frozen_stays_so_until_it_is_chosen_again() -> None:
    def search(chosen: list[str], step: int, frozen: int) -> SearchRecord:
        return SearchRecord(search=0, proxy="snip", step=step, chosen=chosen, counts={"enabled": 8, "frozen": frozen})

    choices = ((NAMES[:1], 0), (NAMES[1:2], 4), (NAMES[2:], 8), (NAMES[:1], 8))
    found = moments([search(chosen, step, frozen) for step, (chosen, frozen) in enumerate(choices)])
    assert [set(each.frozen) for each in found] == [set(), {NAMES[0]}, set(NAMES[:2]), set(NAMES[1:])]


def test_edits_begin_with_what_was_built() -> None:
    history = edited_history()
    found = moments(history)
    assert len(found) == len(history) + 1
    assert (found[0].title, found[0].step, set(found[0].on)) == ("start", 0, set(layers(*range(6))))
    assert [each.on for each in found[1:]] == [set(each.chosen) for each in history]


def frozen_merge() -> list[EditRecord]:
    """A merge whose span is frozen, and an injection later."""
    start, after = layers(*range(4)), layers(0, 3)
    span = Disable("layers.1-2.layer")
    return [
        edits([merge("1", "2"), span], start, after, frozen=50),
        edits([inject(3)], after, [*layers(0), *lora(3)], step=20, due="inject", frozen=50),
    ]


def test_of_a_frozen_merge_the_span_is_frozen_and_neither_its_halves_nor_what_is_replaced_later() -> None:
    found = moments(frozen_merge())
    assert [set(each.frozen) for each in found] == [set(), {"layers.1-2.layer"}, {"layers.1-2.layer"}]
    shown = paths_shown(frozen_merge(), found, {})
    names = [path["name"] for path in shown["paths"]]
    assert [[names[place] for place in each["frozen"]] for each in shown["moments"]][1:] == [["layers.1-2.layer"]] * 2


def test_ranks_travel_and_an_empty_history_has_no_moment() -> None:
    search = SearchRecord(search=0, proxy="newton", step=0, chosen=NAMES[:1], ranks={NAMES[0]: 3})
    assert moments([search])[0].ranks == {NAMES[0]: 3}
    assert moments([]) == []
