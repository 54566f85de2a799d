"""Searches drive themselves in any loop that steps an optimizer."""

from __future__ import annotations

import contextlib
import copy
import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.models import adapted, class_batches, fill_, keep_only_, tiny_bert
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.paths.session import Listening
from rankwise.search.allocator import Allocator
from rankwise.search.optimizer import DRIVER


def listener_of(model: Any) -> Listening:
    """What listens to the model's optimizer."""
    listener = path_set(model).session.listener
    assert listener is not None
    return listener


def searching(**fields: Any) -> Any:
    options = {"mode": "dynamic", "budget": 0.5, "search_every": 2, "score_batches": 2, **fields}
    return adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query", "value"], **options).train()


def trainable(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def steps(model: Any, optimizer: Optimizer, count: int) -> None:
    for batch in class_batches(count):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def searched_at(model: Any) -> list[int]:
    return [record["step"] for record in rankwise.history(model)]


def test_a_plain_loop_needs_nothing_else() -> None:
    model = searching()
    steps(model, torch.optim.AdamW(trainable(model), 1e-2), 7)
    assert searched_at(model) == [2, 4, 6]
    assert {record["how"] for record in rankwise.history(model)} == {"online"}
    for record in rankwise.history(model):
        assert record["counts"]["enabled"] <= rankwise.plan(model).budget
        assert record["tap_seconds"] > 0


def test_a_static_search_runs_once() -> None:
    model = searching(mode="static", search_every=None)
    steps(model, torch.optim.AdamW(trainable(model), 1e-2), 6)
    assert searched_at(model) == [2]


def test_without_a_length_it_searches_every_50_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = searching(search_every=None, proxy="constant")
    with caplog.at_level("INFO", logger="rankwise"):
        steps(model, torch.optim.SGD(trainable(model), 1e-2), 101)
    assert searched_at(model) == [0, 50, 100]
    assert sum("every 50 optimizer steps" in message for message in caplog.messages) == 1


def test_accumulated_micro_batches_are_one_step() -> None:
    model = searching()
    optimizer = torch.optim.AdamW(trainable(model), 1e-2)
    for number, batch in enumerate(class_batches(8)):
        (model(**batch).loss / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert searched_at(model) == [2, 4]


def test_accelerate_drives_it_too() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = searching()
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(trainable(model), 1e-2))
    for batch in class_batches(8):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    assert searched_at(model) == [2, 4]


def test_other_optimizers_and_nested_steps_do_not_count() -> None:
    class Nested(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, other = searching(), torch.nn.Linear(2, 2)
    optimizer, stranger = Nested(trainable(model), 1e-2), torch.optim.SGD(other.parameters(), 1e-2)
    plain = torch.optim.AdamW(other.parameters())  # torch patches both classes' step
    for batch in class_batches(4):
        model(**batch).loss.backward()
        for each in (optimizer, stranger, plain):
            each.step()
        optimizer.zero_grad()
    assert listener_of(model).step == 4
    assert searched_at(model) == [2, 4]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_raised_is_not_counted_and_those_after_it_are(error: type[BaseException]) -> None:
    """In a notebook a step is interrupted and the same loop is run again."""
    model = searching()
    optimizer = torch.optim.SGD(trainable(model), 1e-2, momentum=0.9)

    def broken() -> float:
        raise error

    steps(model, optimizer, 1)
    model(**class_batches(1)[0]).loss.backward()
    with pytest.raises(error):
        optimizer.step(broken)
    optimizer.zero_grad()
    steps(model, optimizer, 6)
    assert listener_of(model).step == 7
    assert searched_at(model) == [2, 4, 6]


def test_an_adapter_that_is_gone_ends_its_search_beside_the_hooks_of_others() -> None:
    """Torch walks through its hooks while ours finds out, and can't have one taken out under its feet."""
    model = tiny_bert()
    config = rankwise.HeteroLoraConfig(
        r=2, target_modules=["query", "value"], mode="dynamic", search_every=2, score_batches=2
    )
    model.add_adapter(config, "mine")
    model.train()
    steps(model, torch.optim.SGD(trainable(model), 1e-2), 2)
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after")),
    ]
    model.delete_adapter("mine")
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        for _ in range(2):
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]).step()
    assert seen == ["before", "after"] * 2


def test_two_models_are_searched_apart() -> None:
    first, second = searching(), searching(search_every=3)
    a, b = (torch.optim.AdamW(trainable(model), 1e-2) for model in (first, second))
    steps(first, a, 2)
    steps(second, b, 6)
    assert searched_at(first) == [2]
    assert searched_at(second) == [2, 3, 6]


@pytest.mark.parametrize("overflow", ["in the loss", "in the head alone"])
def test_a_step_that_a_gradient_scaler_skips_leaves_no_trace(overflow: str) -> None:
    assert scaled_scores(overflow) == pytest.approx(scaled_scores("none"), rel=1e-6)


def scaled_scores(overflow: str) -> dict[str, float]:
    model = searching()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # so that the skipped forward pass draws nothing
    optimizer = torch.optim.SGD(trainable(model), 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    Allocator(model, optimizer, loss_scale=scaler.get_scale)
    for number, batch in enumerate(class_batches(3)):
        skipped = number == 1
        if skipped and overflow == "none":
            continue
        loss = model(**batch).loss
        scaler.scale(loss * float("inf") if skipped and overflow == "in the loss" else loss).backward()
        if skipped and overflow == "in the head alone":
            head = next(p for p in trainable(model) if p.dim() == 1)
            head.grad = torch.full_like(head, float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert listener_of(model).step == 2
    found: dict[str, float] = rankwise.history(model)[0]["scores"]
    return found


def test_sums_are_wide_whatever_autocast_says() -> None:
    model = searching(search_every=9, score_batches=9)
    optimizer = torch.optim.SGD(trainable(model), 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**class_batches(1)[0]).loss.backward()
    optimizer.step()
    recorder: Any = path_set(model).session.recorder
    assert {total.dtype for totals in recorder.sums.values() for total in totals} == {torch.float32}


def test_the_explicit_way_probes_before_the_first_step_and_knows_epochs() -> None:
    model = searching(search_every=None, searches_per_epoch=2)
    optimizer = torch.optim.AdamW(trainable(model), 1e-2)
    data = class_batches(5)
    Allocator(model, optimizer, batches=data, steps_per_epoch=5)
    for _ in range(2):
        for batch in data:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert searched_at(model) == [0, 2, 5, 7, 10]
    assert [record["how"] for record in rankwise.history(model)] == ["probe"] + ["online"] * 4


def test_update_and_allocate_is_harmless_beside_the_hooks() -> None:
    model, twin = searching(), searching()
    for each, calls in ((model, 0), (twin, 1)):
        optimizer = torch.optim.SGD(trainable(each), 0.0)
        for number, batch in enumerate(class_batches(6)):
            each(**batch).loss.backward()
            optimizer.step()
            for _ in range(calls):
                each.base_model.update_and_allocate(number)
            optimizer.zero_grad()
    assert searched_at(model) == searched_at(twin) == [2, 4, 6]


def test_update_and_allocate_drives_an_optimizer_that_is_not_torchs() -> None:
    model = searching()
    for number, batch in enumerate(class_batches(4)):
        model(**batch).loss.backward()
        for parameter in trainable(model):  # gradient descent by hand
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        model.base_model.update_and_allocate(number)
    assert searched_at(model) == [2, 4]
    assert {record["how"] for record in rankwise.history(model)} == {"online"}


def test_detach_ends_a_search_and_keeps_the_allocation() -> None:
    model = searching()
    optimizer = torch.optim.AdamW(trainable(model), 1e-2)
    steps(model, optimizer, 3)
    on = {name: path.enabled for name, path in rankwise.named_paths(model).items()}
    rankwise.detach(model)
    assert path_set(model).session.recorder is None
    assert {name: path.enabled for name, path in rankwise.named_paths(model).items()} == on
    DRIVER._before(optimizer, (), {})
    DRIVER._after(optimizer, (), {})
    assert searched_at(model) == [2]


def test_a_dropped_model_is_not_kept_alive() -> None:
    model = searching()
    steps(model, torch.optim.AdamW(trainable(model), 1e-2), 3)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_starts_a_search_of_its_own() -> None:
    model = searching()
    optimizer = torch.optim.AdamW(trainable(model), 1e-2)
    steps(model, optimizer, 3)  # a window is open
    twin = copy.deepcopy(model)
    assert path_set(twin).session.recorder is None
    assert path_set(twin).session.listener is None
    assert searched_at(twin) == [2]
    steps(twin, torch.optim.AdamW(trainable(twin), 1e-2), 2)
    steps(model, optimizer, 1)
    assert searched_at(model) == [2, 4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scoring": "probe"}, "scoring='probe' .* needs training batches"),
        ({"stop_searching_at": 0.5}, "stop_searching_at=0.5 is a fraction of training, but its length is unknown"),
    ],
)
def test_what_a_bare_loop_cannot_know_is_an_error(fields: dict[str, Any], words: str) -> None:
    model = searching(**fields)
    with pytest.raises(ValueError, match=words):
        model(**class_batches(1)[0])


@pytest.mark.parametrize("length", [0, "3", True, 6.25, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["steps_per_epoch", "total_steps"])
def test_a_length_that_is_no_number_of_steps_is_refused(name: str, length: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={length!r} must be a whole number of optimizer steps"):
        Allocator(searching(), **{name: length})


def test_steps_of_frozen_and_reset_paths() -> None:
    """A path that was switched off with ``reset`` comes back as if new."""
    model = searching(mode="off", on_disable="reset")
    fill_(model)
    optimizer = torch.optim.AdamW(trainable(model), 1e-1)
    steps(model, optimizer, 2)
    first = next(iter(rankwise.named_paths(model)))
    path = rankwise.named_paths(model)[first]
    assert path.lora_B in optimizer.state
    rankwise.apply_(model, [rankwise.Disable(first)], optimizer)
    assert not path.lora_B.any()
    assert path.lora_B not in optimizer.state
    steps(model, optimizer, 2)
    assert not path.lora_B.any()
    keep_only_(model, first)
    steps(model, optimizer, 1)
    assert path.lora_B.any()


def test_a_search_that_never_ran_says_so_at_the_end(tmp_path: Any) -> None:
    model = searching(search_every=None, score_batches=9)
    steps(model, torch.optim.AdamW(trainable(model), 1e-2), 3)
    with pytest.warns(UserWarning, match=r"asked for a search .* none ran in 3 optimizer steps .* before step 9"):
        model.save_pretrained(tmp_path)
    rankwise.detach(model)


@pytest.mark.slow
def test_a_search_that_never_ran_says_so_when_python_ends() -> None:
    code = """
import torch
from tests.search.test_optimizer import searching, class_batches
model = searching()
for batch in class_batches(3):
    model(**batch).loss.backward()  # no optimizer that is torch's
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "asked for a search of adapter 'default', but none ran in 0 optimizer steps" in done.stderr
