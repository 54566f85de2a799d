"""What listens to an optimizer: whose steps count, what they may move, and what a checkpoint has of it."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer
from tests.models import adapted, class_batches, fill_, keep_only_, tiny_bert
from tests.search.test_callback import searched_at, searching
from tests.search.test_trainer import FIELDS, ONLINE
from torch import nn

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.rules.records import SearchRecord
from rankwise.search.listener import Listener, Training, _allow_recompiling, warn_if_idle
from rankwise.search.optimizer import DRIVER


def listening(**fields: Any) -> tuple[Any, Listener]:
    """A model of two paths, the second one off, and what listens to its optimizer."""
    model = adapted(tiny_bert(1), target_modules=["query", "value"], **fields)
    fill_(model)
    keep_only_(model, "layers.0.query")
    listener = Listener(model)
    listener.listen()
    return model, listener


def optimizer_of(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)


def test_the_optimizer_that_owns_a_path_is_the_one_whose_steps_count() -> None:
    model, listener = listening()
    path = rankwise.named_paths(model)["layers.0.query"]
    assert listener.owns(optimizer_of(*model.parameters()))
    assert listener.owns(optimizer_of(path.lora_B))
    assert not listener.owns(optimizer_of(path.lora_A)), "one parameter decides, and it is the first that trains"
    assert not listener.owns(optimizer_of(model.get_base_model().classifier.weight))
    path.lora_B.requires_grad_(False)
    assert listener.owns(optimizer_of(path.lora_A))
    listener.close()


def test_a_parameter_that_sharding_replaced_is_looked_for_anew() -> None:
    model, listener = listening()
    host = rankwise.named_paths(model)["layers.0.query"].host
    before = host.lora_B.default.weight
    host.lora_B.default.weight = nn.Parameter(before.detach().clone())
    assert not listener.owns(optimizer_of(before))
    assert listener.owns(optimizer_of(host.lora_B.default.weight))
    listener.close()


def test_with_its_adapter_gone_it_ends() -> None:
    model = tiny_bert(1)
    model.add_adapter(rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["query"]), "a")
    listener = Listener(model, adapter="a")
    listener.listen()
    parameters = list(model.parameters())
    model.delete_adapter("a")
    assert not listener.owns(optimizer_of(*parameters))
    assert listener.paths.session.listener is None


def test_a_step_moves_what_is_on_whatever_gradients_idle_paths_have() -> None:
    model, listener = listening()
    paths = rankwise.named_paths(model)
    on, off = paths["layers.0.query"], paths["layers.0.value"]
    optimizer = optimizer_of(*(p for p in model.parameters() if p.requires_grad))
    before = [p.detach().clone() for path in (on, off) for p in path.parameters]
    for path in (on, off):
        for parameter in path.parameters:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # by way of the driver's hooks
    assert listener.step == 1
    assert listener.optimizer is optimizer
    assert [p.grad is None for p in (*on.parameters, *off.parameters)] == [False, False, True, True]
    same = [torch.equal(p, old) for p, old in zip((*on.parameters, *off.parameters), before, strict=True)]
    assert same == [False, False, True, True]  # weight decay moved what has a gradient of zeros
    listener.close()


def train(model: nn.Module, optimizer: Any, steps: int = 4) -> None:
    model.train()
    for batch in class_batches(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_optimizer_that_wants_every_gradient_is_refused(tmp_path: Path) -> None:
    model = searching(**FIELDS)
    optimizer = create_lorafa_optimizer(model, r=2, lora_alpha=4, lr=1e-2)
    with pytest.raises(ValueError, match=r"LoraFAOptimizer needs gradients of all paths.*requires_grad_\(False\)"):
        train(model, optimizer)
    everything = searching(mode="off")
    train(everything, create_lorafa_optimizer(everything, r=2, lora_alpha=4, lr=1e-2))


def test_an_optimizer_that_goes_by_earlier_gradients_of_all_is_refused() -> None:
    model = searching(**FIELDS)
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(**class_batches(1)[0]).loss
        loss.backward()
        return float(loss.detach())

    model.train()
    optimizer.step(closure)  # the search begins inside of it
    with pytest.raises(ValueError, match=r"LBFGS needs gradients of all paths.*torch\.optim\.AdamW"):
        optimizer.step(closure)


def test_another_state_laid_over_the_model_before_a_step_keeps_nothing_still() -> None:
    """A teacher that is the model with an earlier state, in which other paths are on."""
    model = searching(**{**FIELDS, "search_every": 50})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    train(model, optimizer)
    paths = rankwise.named_paths(model)
    earlier = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    on = [name for name, path in paths.items() if path.enabled]
    keep_only_(model, *(name for name in paths if name not in on))
    before = {name: path.lora_B.detach().clone() for name, path in paths.items()}
    batch = class_batches(1)[0]
    loss = model(**batch).loss
    with torch.no_grad():
        torch.func.functional_call(model, earlier, (), batch)
    loss.backward()
    optimizer.step()
    moved = [name for name, path in paths.items() if not torch.equal(path.lora_B, before[name])]
    assert moved == [name for name in paths if name not in on] != []


def test_with_every_down_projection_frozen_the_search_wakes() -> None:
    model = searching(**FIELDS)
    paths = rankwise.named_paths(model).values()
    for path in paths:
        path.lora_A.requires_grad_(False)
    before = [path.lora_A.clone() for path in paths]
    train(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1))
    assert searched_at(model) == ONLINE[:2]
    assert all(torch.equal(path.lora_A, old) for path, old in zip(paths, before, strict=True))
    assert all(bool(path.lora_B.any()) for path in paths if path.enabled)


def test_it_continues_where_its_state_was_taken() -> None:
    model, listener = listening()
    paths = path_set(model)
    paths.history.append(SearchRecord(step=0, search=0, proxy="constant"))
    later = Listener(model)
    later.step = 7
    state = later.state_dict()
    assert (state["step"], state["earlier"], state["sums"]) == (7, 1, {})
    paths.history.append(SearchRecord(step=3, search=1, proxy="constant"))
    fresh: Any = Listener(model)
    assert not fresh.begun
    fresh.load_state_dict(state)
    assert (fresh.step, fresh.earlier, fresh.begun) == (7, 1, True)
    assert [record.step for record in paths.history] == [0]
    del state["earlier"]  # as version 0.1 wrote it
    fresh.load_state_dict(state)
    assert fresh.earlier == 0
    listener.close()


def test_it_takes_a_path_set_over_and_gives_it_back() -> None:
    model = adapted(tiny_bert(1), target_modules=["query"])
    session: Any = path_set(model).session
    session.recorder, session.detached, session.tied = object(), True, True
    listener = Listener(model)
    made = session.listener
    listener.listen()
    assert [made, session.listener] == [None, listener], "making one is not listening yet"
    assert (session.recorder, session.detached, session.tied) == (None, False, False)
    assert path_set(model) in DRIVER._listening
    listener.close()
    assert (session.listener, session.recorder) == (None, None)
    assert path_set(model) not in DRIVER._listening


def test_it_holds_neither_model_nor_optimizer() -> None:
    model, listener = listening()
    optimizer = optimizer_of(*model.parameters())
    listener.before_step(optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert listener.optimizer is None
    base = weakref.ref(model.get_base_model())
    del model
    gc.collect()
    assert base() is None


def test_what_a_loop_does_not_say_is_unknown() -> None:
    model, listener = listening()
    plain = Listener.of(model, "default", Training(steps_per_epoch=3, total_steps=9))
    assert (plain.knows_epochs, plain.planned_changes, plain.idleness(), plain.automatic) == (False, 0, None, False)
    assert plain.config is path_set(model).config
    listener.close()


def test_a_search_that_never_came_is_warned_of_and_nothing_else_is() -> None:
    model, listener = listening()
    warn_if_idle(path_set(model))
    listener.close()
    warn_if_idle(path_set(model))  # nothing listens
    waiting = searching(score_batches=9).train()
    train(waiting, optimizer_of(*(p for p in waiting.parameters() if p.requires_grad)), steps=2)
    with pytest.warns(UserWarning, match="none ran in 2 optimizer steps"):
        warn_if_idle(path_set(waiting))
    rankwise.detach(waiting)


def test_a_compiled_model_may_change_as_often_as_is_planned() -> None:
    """Twice, in training and in evaluation, on top of torch's own limit; a higher one of the user's stays."""
    import torch._dynamo

    assert "torch._dynamo" in sys.modules
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=8):
        _allow_recompiling(10)
        assert config.recompile_limit == 28
        _allow_recompiling(0)
        assert config.recompile_limit == 28


def test_batches_in_the_place_of_the_optimizer_are_told() -> None:
    with pytest.raises(ValueError, match=r"optimizer is a list, which has no param_groups: .* batches="):
        rankwise.Allocator(searching(), class_batches(2))  # type: ignore[arg-type]
