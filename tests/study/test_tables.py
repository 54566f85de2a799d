"""Tables of made-up figures, computed again by hand."""

from __future__ import annotations

import math

import pytest

from rankwise.study.statistics import Difference, Summary, paired
from rankwise.study.tables import Run, Table, compared, verdict

LOSSES = {"a": {1: 0.5, 2: 0.7}, "b_%": {1: 0.4, 2: 0.5, 3: 0.1}}


def run(arm: str, seed: int, loss: float) -> Run:
    last = {"step": 3, "epoch": 1.0, "dev": {"loss": 9.0, "accuracy": 0.0}}
    figures = {
        "headline": "accuracy",
        "parameters": {"trainable": 1000 + seed},
        "seconds": {"train": 2.0 * seed},
        "metrics": {
            "last": {**last, "validation": {"loss": loss, "accuracy": 1 - loss}},
            "dev_selected": {**last, "validation": {"loss": loss / 2, "accuracy": 1 - loss}},
        },
    }
    return Run(arm, 1e-3, seed, "dev_selected", figures)


def table() -> Table:
    runs = [run(arm, seed, loss) for arm, own in LOSSES.items() for seed, loss in own.items()]
    return compared(runs, baseline="a", title="MRPC", about="5 of 5 runs: `rankwise study run`.")


def column(name: str) -> list[object]:
    found = table()
    return [row[found.header.index(name)] for row in found.rows]


def test_a_row_has_what_a_hand_computes() -> None:
    assert column("arm") == ["a", "b_%"]
    assert column("n") == [2, 3]
    assert column("parameters") == [(1001, 1002), (1001, 1003)]
    first = column("loss, last")[0]
    assert isinstance(first, Summary)
    assert first.mean == pytest.approx(0.6)
    assert first.sd == pytest.approx(0.02**0.5)
    base, other = column("loss minus a")
    assert base is None
    assert isinstance(other, Difference)
    assert other.n == 2  # seed 3 has no partner
    assert other.mean == pytest.approx(((0.4 - 0.5) + (0.5 - 0.7)) / 2 / 2)  # of the selected epoch, where it is half
    assert (other.bootstrap_low, other.bootstrap_high) == pytest.approx((-0.1, -0.05))
    half = 12.7062 * 0.0353553 / 2**0.5  # t of one degree of freedom times the deviation of -0.05 and -0.1
    assert (other.low, other.high) == pytest.approx((-0.075 - half, -0.075 + half), rel=1e-4)


def test_a_point_of_the_picture_is_an_arms_mean_with_its_interval() -> None:
    first, second = table().points
    assert (first.arm, first.n, first.parameters, first.seconds) == ("a", 2, 1001.5, 3.0)
    assert first.loss == pytest.approx(0.3)  # of the selected epoch, where it is half
    half = 12.7062 * 0.0707107 / 2**0.5  # t of one degree of freedom times the deviation of 0.25 and 0.35
    assert (first.low, first.high) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-4)
    assert (second.arm, second.n, second.seconds) == ("b_%", 3, 4.0)
    (alone,) = compared([run("a", 1, 0.5)], baseline="a", title="MRPC", about="").points
    assert math.isnan(alone.low)


def test_a_column_that_repeats_the_last_epoch_is_left_out() -> None:
    assert "loss, selected" in table().header
    assert "accuracy, selected" not in table().header


def test_runs_of_different_splits_or_tasks_are_not_averaged() -> None:
    good = run("a", 1, 0.5)
    dev = good._replace(figures={**good.figures, "metrics": {"last": {"dev": {"loss": 1.0, "accuracy": 0.1}}}})
    with pytest.raises(ValueError, match=r"MRPC: its runs report different splits \(dev, validation\)"):
        compared([good, dev], baseline="a", title="MRPC", about="")
    other = good._replace(figures={**good.figures, "headline": "pearson"})
    with pytest.raises(ValueError, match=r"different metrics \(accuracy, pearson\)"):
        compared([good, other], baseline="a", title="MRPC", about="")


def test_a_table_of_the_dev_split_says_that_it_chose() -> None:
    both = {"dev": {"loss": 1.0, "accuracy": 0.1}}
    good = run("a", 1, 0.5)
    dev = good._replace(figures={**good.figures, "metrics": {"last": both, "dev_selected": both}})
    told = compared([dev], baseline="a", title="MRPC", about="")
    assert told.title == "MRPC (dev)"
    assert "on this very split: the figures are too good" in told.note
    assert "never the best" not in told.note
    assert "never the best on the reported split" in table().note


def test_a_verdict_never_says_more_than_the_seeds_do() -> None:
    assert verdict(Difference(-0.5, -0.5, -0.5, 1, float("nan"))).startswith("one seed")
    assert verdict(Difference(-0.5, -0.6, 0.1, 3, 0.2)).startswith("can't tell")
    assert verdict(Difference(0.0, 0.0, 0.0, 3, float("nan"))) == "the same to the last digit in all 3 seeds"
    assert verdict(Difference(-0.1, -0.2, -0.05, 3, 0.2)) == "lower"  # by the interval that is shown
    assert verdict(Difference(-0.5, -0.6, -0.4, 3, 0.2)) == "lower"
    assert verdict(Difference(0.5, 0.4, 0.6, 3, 0.2)) == "higher"


def test_a_loss_that_is_no_number_tells_nothing_and_says_whose_it_is() -> None:
    nan, inf = math.nan, math.inf
    found = paired({1: nan, 2: 0.5, 3: 0.5}, {1: 0.5, 2: inf, 3: -inf})
    assert (found.n, found.diverged, found.baseline_diverged) == (3, 1, 2)
    assert verdict(found, "mine", "yours") == (
        "can't tell: 1 of 3 runs of mine and 2 of 3 runs of yours diverged, with a loss that is no number"
    )
    assert verdict(paired({1: nan}, {1: 0.5})).startswith("can't tell: 1 of 1 runs of the arm diverged")


def test_an_arm_that_diverged_has_no_point_in_the_picture() -> None:
    points = compared([run("a", 1, 0.5), run("b", 1, math.nan)], baseline="a", title="", about="").points
    assert [point.arm for point in points] == ["a"]


def test_which_checkpoint_is_compared_is_said_of_each_arm_where_they_differ() -> None:
    mixed = [run("a", 1, 0.5), run("b", 1, 0.4)._replace(select="last")]
    assert "Differences to a (a: selected, b: last) are" in compared(mixed, baseline="a", title="", about="").note
    assert "Differences to a (selected) are" in table().note
