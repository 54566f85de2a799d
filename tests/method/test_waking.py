"""Before each forward pass: whose search wakes, and whose does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.models import adapted, class_batches, fill_, tiny_bert
from torch import Tensor, nn

import rankwise
from rankwise.method.waking import before_forward
from rankwise.paths.path_set import path_set
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import WeightGradient
from rankwise.search.allocator import Allocator
from rankwise.search.listener import Listener


def made(**fields: Any) -> Any:
    """A model whose search begins at its first training forward."""
    options = {"mode": "dynamic", "budget": 0.5, "target_modules": ["query", "value"], **fields}
    return adapted(tiny_bert(1), **options).train()


def listener_of(model: Any, adapter: str | None = None) -> Any:
    return path_set(model, adapter).session.listener


def forward(model: Any) -> None:
    before_forward(model.get_base_model(), ())


def test_a_training_forward_wakes_a_search_and_the_next_one_keeps_it() -> None:
    model = made()
    assert listener_of(model) is None
    model(**class_batches(1)[0])  # by way of the hook
    listener = listener_of(model)
    assert type(listener) is Allocator
    assert listener.begun
    forward(model)
    assert listener_of(model) is listener
    assert path_set(model).session.tied is False  # one process
    rankwise.detach(model)


def test_a_search_that_was_made_by_hand_begins() -> None:
    model = made()
    Allocator(model)
    listener = listener_of(model)
    assert not listener.begun
    forward(model)
    assert listener_of(model) is listener
    assert listener.begun
    rankwise.detach(model)


def test_without_gradients_nothing_happens() -> None:
    model = made()
    with torch.no_grad():
        forward(model)
        forward(model.eval())
    assert listener_of(model) is None
    assert not path_set(model).session.unheard


def test_gradients_in_evaluation_mode_are_noticed_unless_a_probe_makes_them() -> None:
    model = made().eval()
    session: Any = path_set(model).session
    session.probing = True
    forward(model)
    assert not session.unheard
    session.probing = False
    forward(model)
    assert session.unheard
    assert session.listener is None
    session.probing = True
    forward(model)
    assert session.unheard, "it is not forgotten"


def ended(model: Any) -> None:
    rankwise.detach(model)


def probed(model: Any) -> None:
    path_set(model).session.probing = True


def frozen(model: Any) -> None:
    for path in path_set(model).resident:
        for parameter in path.parameters:
            parameter.requires_grad_(False)


def inactive(model: Any) -> None:
    model.add_adapter("other", rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["key"]))
    model.set_adapter("other")


@pytest.mark.parametrize("change", [ended, probed, frozen, inactive], ids=lambda change: change.__name__)
def test_a_search_that_nobody_wants_sleeps_on(change: Any) -> None:
    model = made()
    change(model)
    forward(model)
    assert listener_of(model, "default") is None


def test_where_nothing_is_searched_idle_paths_are_watched_and_only_those() -> None:
    model = made(mode="off")
    forward(model)
    assert listener_of(model) is None
    rankwise.apply_(model, [rankwise.Disable("layers.0.query")])
    forward(model)
    assert type(listener_of(model)) is Listener
    rankwise.detach(model)


def test_every_adapter_of_a_model_wakes_by_itself() -> None:
    model = made()
    config = rankwise.HeteroLoraConfig(r=2, mode="dynamic", budget=0.5, target_modules=["key", "value"])
    model.add_adapter("b", config)
    forward(model)
    assert listener_of(model, "default") is not None
    assert listener_of(model, "b") is None
    model.base_model.set_adapter(["default", "b"])
    forward(model)
    assert listener_of(model, "b").paths is path_set(model, "b")
    rankwise.detach(model)


@pytest.mark.parametrize("stepped", [False, True])
def test_what_was_recorded_goes_with_gradients_that_were_cleared(stepped: bool) -> None:
    """A gradient scaler that skips a step clears them; one that accumulates leaves them."""
    model = made(mode="off")
    paths = path_set(model)
    path, other = paths.resident
    recorder = paths.session.recorder = StatisticRecorder(WeightGradient())
    recorder.staged = {path.name: (torch.ones(16, 16),)}
    other.lora_B.grad = None if stepped else torch.zeros_like(other.lora_B)
    forward(model)
    assert bool(recorder.staged) == (not stepped)


def test_a_probe_and_paths_that_are_all_off_say_nothing_of_a_step() -> None:
    """Paths that are off have no gradients, so none tell whether a step was skipped."""
    model = made(mode="off")
    paths = path_set(model)
    recorder = paths.session.recorder = StatisticRecorder(WeightGradient())
    recorder.staged = {paths.resident[0].name: (torch.ones(16, 16),)}
    paths.session.probing = True
    forward(model)
    assert recorder.staged
    paths.session.probing, paths.session.detached = False, True
    rankwise.apply_(model, [rankwise.Disable(name) for name in paths.paths])
    forward(model)
    assert recorder.staged


def test_a_lor2c_wakes_its_editor() -> None:
    config = rankwise.Lor2cConfig(r=2, merges=1, edit_unit="steps", total_steps=8)
    model: Any = get_peft_model(tiny_bert(2), config).train()
    forward(model)
    assert type(listener_of(model)) is rankwise.Editor
    rankwise.detach(model)


def test_an_ensemble_of_adapters_runs_at_once() -> None:
    """By ``torch.func``, whose tensors hold several and have no values of their own."""
    models = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model: Any = adapted(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), target_modules=["0", "1"], mode="off")
        fill_(model.eval(), seed)
        models.append(model)
    x = torch.ones(2, 4)

    def run(parameters: Any, buffers: Any) -> Tensor:
        made: Tensor = torch.func.functional_call(models[0], (parameters, buffers), (x,))
        return made

    with torch.no_grad():
        wanted = torch.stack([model(x) for model in models])
        torch.testing.assert_close(torch.func.vmap(run)(*torch.func.stack_module_state(models)), wanted)
