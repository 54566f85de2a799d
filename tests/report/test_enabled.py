"""How often each path was on: counted right, laid out as in the paper."""

from __future__ import annotations

import math

import pytest
from tests.report.histories import paths, record

from rankwise.report import frequency
from rankwise.report.enabled import Frequency, aligned


def test_the_share_of_searches_that_chose_a_path() -> None:
    names = paths(2, "value", "query")
    history = [
        record(["layers.0.query"], names),
        record(["layers.0.query", "layers.1.value"], names),
        record(["layers.1.value"], names, unscored=("layers.1.query",)),
        record(["layers.1.value"], names),
    ]
    rows, columns, values = frequency(history)
    assert rows == ["query", "value"]
    assert columns == [0, 1]
    assert values == [[0.5, 0.0], [0.0, 0.75]]


def test_a_path_that_was_never_scored_or_chosen_has_a_cell_of_its_own() -> None:
    rows, columns, values = frequency([record([], ["layers.3.q_proj"], unscored=("layers.3.q_proj",))])
    assert (rows, columns, values) == (["q_proj"], [3], [[0.0]])


def test_rows_stand_in_the_papers_order_whatever_the_family_calls_them() -> None:
    kinds = ["cut", "in", "res2", "res1"]
    others = ["self_attn.out_proj", "k_proj", "v_proj", "q_proj"]
    rows, _, _ = frequency([record([], paths(2, *kinds, *others))])
    assert rows == ["q_proj", "v_proj", "k_proj", "self_attn.out_proj", "res1", "res2", "in", "cut"]


def test_a_span_counts_in_each_block_it_runs_across() -> None:
    rows, columns, values = frequency([record(["layers.1-3.layer"], ["layers.0.layer", "layers.1-3.layer"])])
    assert (rows, columns, values) == (["layer"], [0, 1, 2, 3], [[0.0, 1.0, 1.0, 1.0]])


def test_blocks_are_ordered_by_number_and_what_lies_outside_comes_last() -> None:
    names = [*paths(11, "query"), "lm_head"]
    rows, columns, values = frequency([record(["lm_head"], names)])
    assert columns == [*range(11), -1]
    assert rows == ["query", "lm_head"]
    assert values[1][-1] == 1.0
    assert all(math.isnan(share) for share in values[1][:-1])


def test_two_stacks_of_blocks_get_rows_of_their_own() -> None:
    names = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.q"]
    rows, columns, _ = frequency([record(names, names)])
    assert rows == ["decoder.block.layer.0.SelfAttention.q", "encoder.block.layer.0.SelfAttention.q"]
    assert columns == [0, 1]


def test_an_empty_history_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="holds no search"):
        frequency([])


def test_aligned_tables_have_all_rows_and_columns_in_order() -> None:
    first = Frequency(["value", "cut"], [0, 10], [[0.1, 0.2], [0.3, 0.4]])
    second = Frequency(["query", "value"], [2, -1], [[0.5, 0.6], [0.7, 0.8]])
    one, two = aligned([first, second])
    assert one.rows == two.rows == ["query", "value", "cut"]
    assert one.columns == two.columns == [0, 2, 10, -1]
    nan = math.nan
    expected = [[nan] * 4, [0.1, nan, 0.2, nan], [0.3, nan, 0.4, nan]]
    assert str(one.values) == str(expected)  # NaN equals no number, itself included
    assert str(two.values) == str([[nan, 0.5, nan, 0.6], [nan, 0.7, nan, 0.8], [nan] * 4])
