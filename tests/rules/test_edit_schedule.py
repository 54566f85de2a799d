from __future__ import annotations

import itertools
import math
import re

import pytest

from rankwise.rules.edit_schedule import EditSchedule, due_at, ends_of

# Last due epoch for 1 to 6 merges, by epochs of the whole training (arXiv 2503.00572, the published schedule).
LAST = {30: [8, 8, 9, 8, 10, 12], 40: [10, 10, 12, 12, 10, 12], 60: [15, 16, 15, 16, 15, 18]}
LAST[80] = [20, 20, 21, 20, 20, 24]


@pytest.mark.parametrize("epochs", LAST)
def test_the_published_table(epochs: int) -> None:
    assert [due_at(epochs, merges)[-1] for merges in range(1, 7)] == LAST[epochs]


def test_an_edit_is_due_every_so_many_epochs() -> None:
    for epochs, count in itertools.product(range(1, 60), range(1, 9)):
        every = math.ceil(epochs / (4 * count))
        assert due_at(epochs, count) == [every * k for k in range(1, count + 1)], (epochs, count)


def test_both_kinds_may_be_due_at_once_or_one_later() -> None:
    assert ends_of(30, 3, 3) == ([3, 6, 9], [3, 6, 9])
    assert ends_of(30, 3, 3, separate=True) == ([3, 6, 9], [4, 7, 10])
    assert ends_of(8, 2, 2, separate=True) == ([1, 2], [3, 4])  # never two at one boundary
    schedule = EditSchedule(30, 3, 1)
    assert {end: schedule.due(end) for end in (3, 6, 8, 9, 10)} == {
        3: (True, False),
        6: (True, False),
        8: (False, True),
        9: (True, False),
        10: (False, False),
    }
    assert not any(any(EditSchedule(10, 0, 0).due(end)) for end in range(12))


@pytest.mark.parametrize(
    ("merges", "injections", "separate", "total"),
    list(itertools.product(range(4), range(4), [False, True], [1, 3, 5, 9])),
)
def test_the_error_names_what_fits(merges: int, injections: int, separate: bool, total: int) -> None:
    last = max([0, *itertools.chain(*ends_of(total, merges, injections, separate=separate))])
    if 2 * last <= total:
        EditSchedule(total, merges, injections, separate=separate)
        return
    with pytest.raises(ValueError, match=f"merges={merges}, injections={injections} in {total} epochs") as caught:
        EditSchedule(total, merges, injections, separate=separate)
    words = str(caught.value)
    fits = int(words.split("at most ")[1].split(",")[0]) if "at most " in words else 0
    longer = int(re.split("[tT]rain for ", words)[1].split(" ")[0])
    EditSchedule(total, min(merges, fits), min(injections, fits), separate=separate)
    EditSchedule(longer, merges, injections, separate=separate)
    assert longer > total
