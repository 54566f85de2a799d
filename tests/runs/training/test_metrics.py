from __future__ import annotations

import pytest

from rankwise.rules.records import EditRecord, SearchRecord
from rankwise.runs.training.metrics import dev_by_epoch, plain, seconds

LOG = [
    {"loss": 0.7, "epoch": 0.5, "step": 5},
    {"eval_loss": 0.6, "eval_accuracy": 0.5, "eval_runtime": 2.0, "epoch": 1.0, "step": 10, "rankwise/enabled": 3},
    {"eval_loss": 0.4, "eval_accuracy": 0.8, "eval_runtime": 1.0, "epoch": 2.0, "step": 20},
    {"train_runtime": 9.0, "train_loss": 0.5, "epoch": 2.0, "step": 20},
]


def test_metrics_lose_their_prefix_and_timings() -> None:
    given = {"validation_loss": 1.0, "validation_f1": 0.5, "validation_samples_per_second": 3.0, "epoch": 1.0}
    assert plain(given, "validation") == {"loss": 1.0, "f1": 0.5}


def test_dev_figures_come_from_the_log() -> None:
    assert dev_by_epoch(LOG) == [
        {"epoch": 1.0, "step": 10, "loss": 0.6, "accuracy": 0.5},
        {"epoch": 2.0, "step": 20, "loss": 0.4, "accuracy": 0.8},
    ]


def test_seconds_of_the_search_are_a_share_of_training() -> None:
    done = [
        SearchRecord(step=0, search=0, proxy="snip", seconds=1.0, tap_seconds=0.5),
        EditRecord(step=5, edits=[], before=[], seconds=0.25, tap_seconds=0.25),
    ]
    found = seconds(20.0, LOG, done)
    assert found == {"train": 20.0, "evaluate": 3.0, "search": 2.0, "search_share": pytest.approx(0.1)}
