"""Which listener an adapter gets, and for which part of a model."""

from __future__ import annotations

from typing import Any

import pytest
from peft import get_peft_model
from tests.models import Batch, adapted, class_batches, tiny_bert
from torch import Tensor, nn

import rankwise
from rankwise.configs.path import PathConfig
from rankwise.paths.path_set import path_set
from rankwise.search.allocator import Allocator
from rankwise.search.editor import Editor
from rankwise.search.listener import Listener, Training
from rankwise.search.listeners import LISTENERS, make_listener


def searching(**fields: Any) -> Any:
    options = {"mode": "dynamic", "budget": 0.5, "score_batches": 1, "target_modules": ["query", "value"], **fields}
    return adapted(tiny_bert(1), task_type="SEQ_CLS", **options)


def editing(**fields: Any) -> Any:
    options = {"merges": 1, "edit_unit": "steps", "total_steps": 8, **fields}
    return get_peft_model(tiny_bert(2), rankwise.Lor2cConfig(task_type="SEQ_CLS", r=2, **options))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (searching, Allocator),
        (editing, Editor),
        (lambda: searching(mode="off"), Listener),  # keeps idle paths still, and no more
        (lambda: editing(merges=0), Listener),
    ],
    ids=["search", "edits", "no search", "no edits"],
)
def test_a_config_has_its_listener_where_it_acts(make: Any, expected: type[Listener]) -> None:
    model = make()
    paths = path_set(model)
    made = make_listener(model, paths)
    assert type(made) is expected
    assert made.paths is paths
    assert paths.session.listener is made
    assert made.begun == (expected is Editor), "edits wait for no probe"
    made.close()


def test_every_config_of_a_method_has_one() -> None:
    assert set(LISTENERS) == {cls for cls in PathConfig.__subclasses__() if cls.__module__.startswith("rankwise")}


class Part(nn.Module):
    """A model of which the adapted one is a part, with a loss of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **batch: Tensor) -> Any:
        found = self.inner(**batch)
        return {"loss": 2 * found.loss, "logits": found.logits}


def test_what_is_called_is_the_whole_model_and_what_is_searched_its_part() -> None:
    inner = searching(scoring="probe")
    whole, paths = Part(inner), path_set(inner)
    asked: list[nn.Module] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        asked.append(model)
        found: Tensor = model(**batch)["loss"]
        return found

    training = Training(batches=lambda config, search: class_batches(1), compute_loss=loss)
    made = make_listener(whole, paths, training)
    assert made.model is whole
    made.begin()
    assert asked == [whole]
    (record,) = rankwise.history(inner)
    expected = rankwise.score_paths(inner, class_batches(1))
    assert record["scores"] == pytest.approx({name: 2 * score for name, score in expected.items()}, rel=1e-4)
    made.close()


def test_of_two_adapted_parts_each_has_its_own() -> None:
    left, right = searching(), searching(mode="off")
    whole = nn.ModuleDict({"left": left, "right": right})
    for inner, expected in ((left, Allocator), (right, Listener)):
        made = make_listener(whole, path_set(inner))
        assert type(made) is expected
        assert made.paths is path_set(inner)
        made.close()


def test_what_the_loop_knows_reaches_the_listener() -> None:
    model = editing(edit_unit="epochs", total_steps=None)
    made = make_listener(model, path_set(model), Training(steps_per_epoch=2, total_steps=8))
    assert made.knows_epochs
    made.close()
