from __future__ import annotations

import pytest

from rankwise.tasks.metrics import METRICS, SMALLER_IS_BETTER
from rankwise.tasks.registry import TASKS, find_task

GLUE = {"mrpc", "rte", "sst2", "cola", "stsb", "qnli", "qqp", "mnli", "wnli"}
SUPERGLUE = {"boolq", "cb", "copa"}


def test_the_tasks_of_glue_and_superglue_are_there_and_on_the_hub() -> None:
    assert {name for name, task in TASKS.items() if task.hub and task.hub[0] == "nyu-mll/glue"} == GLUE
    assert {name for name, task in TASKS.items() if task.hub and task.hub[0] == "aps/super_glue"} == SUPERGLUE
    assert set(TASKS) == GLUE | SUPERGLUE | {"instruction", "chat", "text", "docstrings"}


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_the_table_is_whole(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.columns
    assert task.reference
    assert set(task.metrics) <= {*METRICS, *SMALLER_IS_BETTER}
    assert (task.label is None) == (task.kind == "causal")
    assert bool(task.label_names) == (task.kind in ("classification", "choice"))


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("mrpc", ("accuracy", "f1")),
        ("qqp", ("accuracy", "f1")),
        ("cola", ("matthews",)),
        ("stsb", ("pearson", "spearman")),
        ("cb", ("accuracy", "f1_macro")),
        ("text", ("loss", "perplexity")),
    ],
)
def test_metrics_follow_the_benchmark(name: str, metrics: tuple[str, ...]) -> None:
    assert TASKS[name].metrics == metrics


def test_an_unknown_task_gets_the_nearest_name_and_all_names() -> None:
    with pytest.raises(ValueError, match="task='mprc' is unknown, did you mean 'mrpc'") as error:
        find_task("mprc")
    assert all(name in str(error.value) for name in TASKS)
