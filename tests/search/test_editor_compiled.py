"""LoR2C under ``torch.compile`` (backend ``aot_eager``): a change of structure costs one compilation and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.families import FAMILIES
from tests.models import fill_
from tests.search.test_editor import edits_of
from tests.search.test_editor_acceptance import BOTH, made, structure, train
from tests.shortcuts import assert_same_gradients, batches, gradients

import rankwise
from rankwise import Lor2cConfig, Merge


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):  # torch's own, which edits raise
        yield
    torch._dynamo.reset()


def small(blocks: int = 3) -> Any:
    base = FAMILIES["bert"](blocks)
    base.config.problem_type = "single_label_classification"  # else the first call sets it, and compiles anew
    return base


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_makes_the_edits_of_an_eager_one() -> None:
    """Three compilations, one per structure, and never a fourth."""
    eager, model = train(made(base=small())), made(base=small())
    torch._dynamo.utils.counters.clear()
    train(model, call=torch.compile(model.train(), backend="aot_eager"))
    assert edits_of(model) == edits_of(eager) == BOTH
    assert structure(model) == structure(eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    for (name, tensor), wanted in zip(model.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_as_one_graph_it_follows_a_merge_with_no_eager_pass_before() -> None:
    (batch,) = batches("bert")
    found: list[list[Any]] = []
    for compiled in (True, False):
        model = get_peft_model(small(2), Lor2cConfig(r=4)).train()
        fill_(model)
        run: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        found.append([])
        for edits in ([], [Merge("layers.0.layer", "layers.1.layer")]):
            rankwise.apply_(model, edits)
            output = run(**batch)
            output.loss.backward()
            found[-1].append((output.logits.detach(), gradients(model)))
    for (seen, grads), (wanted, exact) in zip(*found, strict=True):
        torch.testing.assert_close(seen, wanted)
        assert_same_gradients(grads, exact)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_with_an_editor_made_before_a_run_is_one_graph_per_structure() -> None:
    model = made(base=small(2), injections=0)
    editor = rankwise.Editor(model)
    train(model, count=4, call=torch.compile(model.train(), backend="aot_eager", fullgraph=True))
    assert edits_of(model) == [(2, "Merge")]
    editor.close()
