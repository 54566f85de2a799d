"""The parts of a training step: which are measured, that they add up, and which block a path pulls the pass to."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.models import class_batches, text_batches, tiny_bert, tiny_llama
from torch import Tensor, nn

from rankwise.paths.path_set import path_set
from rankwise.planning import step_time
from rankwise.planning.candidates import with_candidates
from rankwise.planning.step_time import StepTime, measure_step
from rankwise.scores.probe import model_loss
from rankwise.wiring.anatomy import anatomy_of, find_blocks


def measured(model: Any, batch: Any, space: str = "all", loss_of: Any = model_loss) -> StepTime:
    with with_candidates(model, space, None, seed=0) as wrapped:
        return measure_step(wrapped, path_set(wrapped).paths, batch, loss_of)


@pytest.mark.parametrize(("make", "batches"), [(tiny_llama, text_batches), (tiny_bert, class_batches)])
def test_every_part_is_measured_and_comes_back_from_a_dictionary(make: Any, batches: Any) -> None:
    step = measured(make(), batches(1)[0])
    blocks = len(find_blocks(make(), anatomy_of(make())))
    assert len(step.still) == len(step.forward) == len(step.backward) == blocks
    parts = [step.outside, *step.still, *step.forward, *step.backward, *step.first.values()]
    assert all(0 < part < 60 for part in parts)
    assert all(0 <= part < 60 for part in step.more.values())
    assert StepTime.from_dict(step.to_dict()) == step


class Clock:
    """Stands in for ``time``: each look at it takes a millisecond, and otherwise it stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        self.now += 1e-3
        return self.now

    perf_counter = process_time


class Slow(nn.Module):
    """A block's own norm, whose forward pass takes a second by the clock."""

    def __init__(self, norm: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.norm, self.clock = norm, clock
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += 1
        found: Tensor = self.norm(x)
        return found


def test_time_goes_to_the_block_that_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(step_time, "time", clock)
    model: Any = tiny_llama()
    block = model.model.layers[1]
    block.input_layernorm = Slow(block.input_layernorm, clock)
    step = measured(model, text_batches(1)[0], "linear")
    others = [seconds for index, seconds in enumerate(step.forward) if index != 1]
    assert step.forward[1] == pytest.approx(1, abs=0.01)
    assert step.still[1] == pytest.approx(1, abs=0.01)
    assert 0 < max(*others, step.outside, *step.backward) < 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_ends_at_the_lowest_block_and_leaves_no_gradient(checkpointing: bool) -> None:
    model: Any = tiny_llama()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seen: list[Tensor] = []

    def looking(wrapped: nn.Module, batch: Any) -> Tensor:
        loss = model_loss(wrapped, batch)
        seen.append(loss)
        return loss

    step = measured(model, text_batches(1)[0], loss_of=looking)
    assert [loss.requires_grad for loss in seen] == [False, True] * (len(seen) // 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(math.isfinite(seconds) for seconds in step.backward)


def test_a_path_that_ends_behind_its_block_needs_no_backward_pass_of_it() -> None:
    step = measured(tiny_bert(), class_batches(1)[0])
    last = len(step.backward) - 1
    assert step.depths[f"layers.{last}.layer"] == last + 1
    assert step.depths[f"layers.{last}.res2"] == last + 1
    assert step.depths[f"layers.{last}.res1"] == last
    assert step.depths[f"layers.{last}.query"] == last
    assert step.depths[f"layers.{last}.cut"] == last
    assert step.sources[f"layers.{last}.cut"] == last - 1
    assert step.sources[f"layers.{last}.layer"] == last


def test_where_the_embeddings_require_a_gradient_depth_saves_nothing() -> None:
    """As with gradient checkpointing: the backward pass goes to the bottom, unless the prefix is kept."""
    model: Any = tiny_llama()
    model.enable_input_require_grads()
    assert set(measured(model, text_batches(1)[0]).depths.values()) == {0}
    with with_candidates(model, "all", None, seed=0) as wrapped:
        kept = measure_step(wrapped, path_set(wrapped).paths, text_batches(1)[0], model_loss, prefix_cache=True)
    assert max(kept.depths.values()) == len(kept.backward)


def test_a_projection_behind_the_blocks_needs_none_of_their_backward_passes() -> None:
    model: Any = tiny_bert()
    with with_candidates(model, "linear", ["query", "pooler.dense"], seed=0) as wrapped:
        step = measure_step(wrapped, path_set(wrapped).paths, class_batches(1)[0], model_loss)
    (pooler,) = (name for name in step.depths if "pooler" in name)
    assert step.depths[pooler] == step.sources[pooler] == len(step.backward)


def test_unknown_blocks_are_told_in_the_words_of_the_option() -> None:
    model: Any = tiny_bert()
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match=r"time_limit= goes by the model's blocks, .*'unheard_of'"):
        measured(model, class_batches(1)[0], "linear")
