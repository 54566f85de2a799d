from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from rankwise.tasks.split import carve_dev, sample


def rows(*labels: int) -> Dataset:
    return Dataset.from_dict({"idx": list(range(len(labels))), "labels": list(labels)})


UNEVEN = rows(*([0] * 900 + [1] * 90 + [2] * 10))


def test_dev_is_a_stratified_tenth_and_nothing_is_lost() -> None:
    train, dev = carve_dev(UNEVEN, 0.1, at_most=1000, seed=0, stratify=True)
    assert dev is not None
    assert Counter(dev["labels"]) == {0: 90, 1: 9, 2: 1}
    assert Counter(train["labels"]) == {0: 810, 1: 81, 2: 9}
    assert sorted([*train["idx"], *dev["idx"]]) == list(range(1000))
    assert list(train["idx"]) == sorted(train["idx"])


def test_dev_has_at_most_so_many_rows_and_as_many_as_classes_at_least() -> None:
    _, dev = carve_dev(UNEVEN, 0.5, at_most=100, seed=0, stratify=True)
    assert dev is not None
    assert len(dev) == 100
    _, small = carve_dev(rows(0, 0, 0, 1, 1, 1, 2, 2, 2), 0.1, at_most=100, seed=0, stratify=True)
    assert small is not None
    assert sorted(small["labels"]) == [0, 1, 2]


def test_no_fraction_no_dev() -> None:
    train, dev = carve_dev(UNEVEN, 0.0, at_most=1000, seed=0, stratify=True)
    assert dev is None
    assert len(train) == 1000


@pytest.mark.usefixtures("untouched_generators")
def test_a_seed_gives_one_split_and_leaves_the_global_generators_alone() -> None:
    drawn = [carve_dev(UNEVEN, 0.1, at_most=1000, seed=seed, stratify=True)[1] for seed in (0, 0, 1)]
    ids = [list(dev["idx"]) for dev in drawn if dev is not None]
    assert ids[0] == ids[1] != ids[2]
    assert list(sample(UNEVEN, 10, seed=0)["idx"]) == list(sample(UNEVEN, 10, seed=0)["idx"])


@pytest.mark.parametrize(
    ("few", "message"),
    [
        (rows(0, 0, 1), "label 1 has one training row"),
        (rows(0, 0, 1, 1), "4 training rows are too few to set 3 apart"),
    ],
)
def test_too_few_rows_say_what_to_change(few: Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=message + ".*dev_fraction=0"):
        carve_dev(few, 0.9, at_most=100, seed=0, stratify=True)
    with pytest.raises(ValueError, match=message + ".*validation_fraction=0"):
        carve_dev(few, 0.9, at_most=100, seed=0, stratify=True, split="validation")


def test_a_sample_is_ordered_and_no_larger_than_there_is() -> None:
    assert list(sample(UNEVEN, 5, seed=0)["idx"]) == sorted(sample(UNEVEN, 5, seed=0)["idx"])
    assert len(sample(UNEVEN, 5, seed=0)) == 5
    assert sample(UNEVEN, None, seed=0) is UNEVEN
    assert sample(UNEVEN, 5000, seed=0) is UNEVEN
