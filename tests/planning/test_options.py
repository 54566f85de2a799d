"""The options of a rank plan: what they may be, and that a mapping of them is checked by name, type and range."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

import rankwise
from rankwise.planning.options import ELSEWHERE, Choice, PlanOptions, choice_from

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"directions": "lion"}, "directions='lion' is not one of 'adam', 'sgd'"),
        ({"reduction": "avg"}, "reduction='avg' is not one of 'auto', 'mean', 'sum'"),
        ({"components": 0}, "components=0 must be a whole number of at least 1, or None"),
        ({"components": True}, "components=True must be a whole number"),
        ({"components": 2.0}, r"components=2\.0 must be a whole number"),
        ({"least_overlap": 1.1}, r"least_overlap=1\.1 must lie in \[0, 1\]; 0 never falls back"),
        ({"least_overlap": math.nan}, "least_overlap=nan must lie"),
        ({"breadth": -0.1}, r"breadth=-0\.1 must lie in \[0, 1\]: 0 goes by gain alone"),
        ({"breadth": math.nan}, "breadth=nan must lie"),
        ({"damping": 0.0}, r"damping=0\.0 must be positive"),
        ({"damping": math.nan}, "damping=nan must be positive"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_pass(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Choice(**fields)


@pytest.mark.parametrize("fields", [{}, {"halves": False, "cross_validate": True}])
def test_two_halves_need_two_batches(fields: dict[str, Any]) -> None:
    choice = Choice(**fields)
    assert choice.check_batches([{}, {}], CPU) == 2
    with pytest.raises(ValueError, match="need at least 2 batches, got 1: give more, or halves=False"):
        choice.check_batches([{}], CPU)


def test_one_batch_is_enough_without_halves_and_none_is_never() -> None:
    choice = Choice(halves=False)
    assert choice.check_batches([{}], CPU) == 1
    with pytest.raises(ValueError, match="needs training batches, got none"):
        choice.check_batches([], CPU)


def test_a_mapping_is_a_choice_and_the_steps_of_the_head() -> None:
    assert choice_from(None, seed=3) == (Choice(seed=3), None)
    assert choice_from({}, seed=3) == (Choice(seed=3), None)
    given: PlanOptions = {"halves": False, "breadth": 0.5, "reduction": "mean", "components": None, "head_warmup": 0}
    assert choice_from(given, seed=1) == (Choice(halves=False, breadth=0.5, reduction="mean", seed=1), 0)


def test_every_option_of_a_rank_plan_is_one_of_a_search_or_said_to_be_elsewhere() -> None:
    options = set(inspect.signature(rankwise.rank_plan).parameters) - {"model", "batches"}
    assert options == {*PlanOptions.__annotations__, *ELSEWHERE}
    assert not set(PlanOptions.__annotations__) & set(ELSEWHERE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"halfs": False},
            r"'halfs': ...\} is no option of a rank plan, did you mean 'halves'\? It has damping, .*breadth",
        ),
        ({7: 1}, r"\{7: ...\} is no option of a rank plan\. It has damping"),
        ({"budget": 100}, r"'budget': ...\} can't be set for a search: it is a field of HeteroLoraConfig"),
        ({"draw_losses": None}, "it is an argument beside plan="),
        ({"halves": "no"}, "plan: halves='no' must be a bool"),
        ({"breadth": True}, "plan: breadth=True must be a float"),
        ({"breadth": 2.0}, r"breadth=2.0 must lie in \[0, 1\]"),
        ({"reduction": "avg"}, "reduction='avg' is not one of"),
        ({"head_warmup": -1}, "plan: head_warmup=-1 must be a whole number of steps, or None"),
        ({"head_warmup": True}, "plan: head_warmup=True must be"),
        ({"prefix_cache": True}, "prefix_cache= belongs to a time limit"),
        (["halves"], r"plan=\['halves'\] must be a mapping of options"),
    ],
)
def test_what_is_no_option_is_refused_with_the_nearest_name(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choice_from(given, seed=0)
