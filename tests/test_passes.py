"""Whoever watches a search is told of every pass over a batch, and nobody is told of anything else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from peft import get_peft_model
from tests.models import text_batches, tiny_llama

import rankwise
from rankwise.passes import passed, watched, watched_by, work

Told = list[tuple[str, int, int]]


def told() -> tuple[Told, Any]:
    seen: Told = []
    return seen, lambda *given: seen.append(given)


def test_every_pass_is_told_with_a_beginning_and_an_end() -> None:
    seen, watcher = told()
    with watched_by(watcher), work("scoring", 3):
        passed()
        passed()
    assert seen == [("scoring", 0, 3), ("scoring", 1, 3), ("scoring", 2, 3), ("scoring", 2, 2)]  # one batch fewer came
    assert not watched()


def test_it_ends_after_an_error_and_where_no_pass_was_made() -> None:
    seen, watcher = told()
    with pytest.raises(KeyError), watched_by(watcher), work("scoring", 0):
        raise KeyError
    assert seen == [("scoring", 0, 0), ("scoring", 1, 1)]
    passed()  # outside of any work: nobody is told
    assert len(seen) == 2


def test_work_inside_other_work_counts_as_part_of_it() -> None:
    seen, watcher = told()
    with watched_by(watcher), work("planning", 2):
        passed()
        with work("scoring", 5):
            passed()
    assert [done for what, done, total in seen if what == "planning"] == [0, 1, 2, 2]
    assert {what for what, _, _ in seen} == {"planning"}


@pytest.mark.parametrize(("proxy", "passes"), [("grad_norm", 4), ("newton", 8), ("constant", 0)])
def test_scoring_tells_of_each_of_its_passes(proxy: str, passes: int, caplog: pytest.LogCaptureFixture) -> None:
    config = rankwise.HeteroLoraConfig(r=2, target_modules=["q_proj"], mode="off")
    model = get_peft_model(tiny_llama(), config)
    seen, watcher = told()
    with watched_by(watcher), caplog.at_level(logging.INFO, "rankwise"):
        rankwise.score_paths(model, text_batches(4, 4), proxy=proxy)
    paths = len(rankwise.named_paths(model))
    assert [done for _, done, _ in seen[:-1]] == list(range(passes + 1))
    assert seen[-1][1:] == (max(passes, 1),) * 2
    assert {what for what, _, _ in seen} == {f"scoring {paths} paths by {proxy}"}
    assert f"scoring {paths} paths by {proxy}" in caplog.text


def test_a_plan_tells_of_its_passes_and_its_head_warm_up() -> None:
    seen, watcher = told()
    with watched_by(watcher):
        plan = rankwise.rank_plan(tiny_llama(), text_batches(4, 4), budget=500)
    assert seen[0] == ("planning ranks", 0, 8)
    assert seen[-2] == ("planning ranks", 8, 8)
    assert plan.passes == 8


def test_an_error_of_the_watcher_leaves_nothing_under_way() -> None:
    def broken(what: str, done: int, total: int) -> None:
        raise KeyError(what)

    with pytest.raises(KeyError), watched_by(broken), work("scoring", 2):
        pass
    seen, watcher = told()
    with watched_by(watcher), work("planning", 1):
        passed()
    assert [what for what, _, _ in seen] == ["planning"] * 3
