"""Edits as data, and those between two sets of enabled paths."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from rankwise.rules.edits import Disable, Edit, Enable, Inject, Merge, switches

NAMES = ["layers.0.query", "layers.1.res1", "layers.10.query"]
SUBSETS = [set(some) for size in range(len(NAMES) + 1) for some in combinations(NAMES, size)]


def done(enabled: set[str], edits: list[Edit]) -> set[str]:
    """Do one edit after the other, each on a path that is in the other state."""
    now = set(enabled)
    for edit in edits:
        if isinstance(edit, Enable):
            assert edit.path not in now
            now.add(edit.path)
        else:
            assert isinstance(edit, Disable)
            now.remove(edit.path)
    return now


@pytest.mark.parametrize(("before", "after"), list(product(SUBSETS, SUBSETS)))
def test_they_lead_from_one_set_to_the_other_and_at_no_time_beyond_both(before: set[str], after: set[str]) -> None:
    edits = switches(before, after)
    assert done(before, edits) == after
    for length in range(len(edits)):
        assert len(done(before, edits[:length])) <= max(len(before), len(after))  # first off, then on
    assert len(edits) == len(before ^ after)
    assert edits == switches(iter([*before, *before]), iter(sorted(after, reverse=True)))


@pytest.mark.parametrize("edit", [Enable("a"), Disable("a"), Merge("a", "b"), Merge("a", "b", "b"), Inject("a")])
def test_an_edit_is_a_value(edit: Edit) -> None:
    twin = type(edit)(**vars(edit))
    assert twin == edit
    assert len({twin, edit}) == 1
    with pytest.raises(AttributeError):
        edit.path = "c"  # type: ignore[misc, union-attr]


def test_edits_of_the_same_path_differ_by_what_they_do() -> None:
    assert len({Enable("a"), Disable("a"), Inject("a")}) == 3
    assert Merge("a", "b") != Merge("b", "a")
