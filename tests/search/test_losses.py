"""A probe sees the loss that is trained on, or says why it can't and leaves the search to the steps of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer
from tests.models import adapted, class_batches, tiny_bert
from tests.search.test_callback import EXAMPLES, Examples, StopAt, searched_at, searching, trainer
from tests.search.test_training_on import Limited
from torch import Tensor, nn
from transformers import Trainer

import rankwise
from rankwise.scores.probe import score_paths

ONLINE = [(2, "online"), (4, "online"), (6, "online")]
FIELDS: dict[str, Any] = {"search_every": 2, "score_batches": 2}


class Weighted(Trainer):
    """The loss of a user who weighs classes."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, torch.tensor([1.0, 5.0]))
        return (loss, outputs) if return_outputs else loss


class Stream(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Rows in their order, and a length."""

    def __len__(self) -> int:
        return EXAMPLES

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (Examples()[index] for index in range(EXAMPLES))


def squared(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return (outputs.logits[:, 0] - labels).square().mean()


def own_method(run: Trainer) -> None:
    run.__class__ = Weighted


def own_function(run: Trainer) -> None:
    run.compute_loss_func = squared


def streamed(run: Trainer) -> None:
    run.train_dataset = Stream()


@pytest.mark.parametrize(
    ("prepare", "arguments", "reason"),
    [
        (own_method, {}, "Weighted computes the loss itself"),
        (own_function, {}, "compute_loss_func computes the loss"),
        (None, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 changes the loss"),
        (streamed, {}, "can be iterated only"),
    ],
    ids=["method", "function", "smoothing", "iterable"],
)
def test_what_a_probe_would_not_see_is_searched_online(
    prepare: Any, arguments: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = searching(**FIELDS)
    run = trainer(model, tmp_path, **arguments)
    if prepare is not None:
        prepare(run)
    with caplog.at_level("WARNING", logger="rankwise"):
        run.train()
    assert reason in caplog.text
    assert "so the first search can't probe" in caplog.text
    assert "makes a probe possible" in caplog.text
    assert searched_at(model) == ONLINE
    insisting = trainer(searching(scoring="probe", **FIELDS), tmp_path, **arguments)
    if prepare is not None:
        prepare(insisting)
    with pytest.raises(ValueError, match=f"scoring='probe' can't be had: .*{reason}.*scoring='online'"):
        insisting.train()


def test_a_loss_of_ones_own_that_the_probe_is_given(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        rest = dict(batch)
        labels = rest.pop("labels")
        return nn.functional.cross_entropy(model(**rest).logits, labels, torch.tensor([1.0, 5.0]))

    model = searching(**FIELDS)
    run = trainer(model, tmp_path, rankwise.AllocationCallback(compute_loss=loss))
    own_method(run)
    run.train()
    assert searched_at(model)[0] == (0, "probe")


def test_an_iterable_with_a_length_knows_its_epochs(tmp_path: Path) -> None:
    model = searching(searches_per_epoch=4, score_batches=1)
    run = trainer(model, tmp_path)
    streamed(run)
    run.train()
    assert [step for step, _ in searched_at(model)] == [1, 2, 4, 6]


class Plain(nn.Module):
    """Returns what it is told: a tuple, a dictionary."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        found = self.inner(input_ids=input_ids, labels=labels)
        return (found.loss, found.logits) if self.kind == "tuple" else {"loss": found.loss, "logits": found.logits}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_models_return_what_they_like(kind: str, tmp_path: Path) -> None:
    """A probe takes the loss as Trainer does, whatever it comes in; synflow the logits."""
    inner = searching(**FIELDS)
    run = trainer(Plain(inner, kind), tmp_path)
    run.train()
    assert searched_at(inner)[0] == (0, "probe")
    one, other = (score_paths(model, class_batches(1)) for model in (inner, Plain(inner, kind)))
    assert one == other


def test_a_model_told_to_return_tuples(tmp_path: Path) -> None:
    model = searching(**FIELDS)
    config: Any = model.get_base_model().config
    config.return_dict = False
    trainer(model, tmp_path).train()
    assert searched_at(model)[0] == (0, "probe")
    scores = score_paths(model, proxy="synflow")
    config.return_dict = True
    assert scores == score_paths(model, proxy="synflow")


@pytest.mark.slow
def test_a_probe_has_batches_of_the_size_that_fits(tmp_path: Path) -> None:
    model = searching(scoring="probe", search_every=4)
    Limited(model, largest=5)
    trainer(model, tmp_path, per_device_train_batch_size=8, auto_find_batch_size=True).train()
    assert searched_at(model) == [(0, "probe"), (4, "probe")]


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


class Two(nn.Module):
    """Two adapted models that one loss trains, as a teacher and a student or two towers."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        found = [part(input_ids=input_ids, labels=labels) for part in (self.left, self.right)]
        return {"loss": found[0].loss + found[1].loss, "logits": found[0].logits + found[1].logits}


def two() -> Two:
    return Two(searching(search_every=3), searching(search_every=4, target_modules=["key"]))


def test_two_adapted_models_in_one_trainer(tmp_path: Path) -> None:
    whole = two()
    trainer(whole, tmp_path / "whole").train()
    half, resumed = two(), two()
    trainer(half, tmp_path / "halves", StopAt(5)).train()
    checkpoint = tmp_path / "halves" / "checkpoint-5"
    assert all((checkpoint / part / "rankwise_search.json").is_file() for part in ("left", "right"))
    trainer(resumed, tmp_path / "halves").train(resume_from_checkpoint=str(checkpoint))
    for model in (whole, resumed):
        assert searched_at(model.left) == [(0, "probe"), (3, "online"), (6, "online")]
        assert searched_at(model.right) == [(0, "probe"), (4, "online")]
    for (name, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    with pytest.raises(ValueError, match=r"2 parts of this Two have rankwise paths \('left', 'right'\)"):
        rankwise.named_paths(whole)
    counts = {r["counts"]["head"] for part in (whole.left, whole.right) for r in rankwise.history(part)}
    assert counts == {2 * sum(p.numel() for n, p in whole.left.named_parameters() if "modules_to_save" in n)}


def test_two_active_adapters_are_both_searched_and_saved(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "dynamic", "budget": 0.5, "score_batches": 2}
    model = adapted(tiny_bert(), search_every=3, target_modules=["query"], **options)
    model.add_adapter("b", rankwise.HeteroLoraConfig(r=2, search_every=4, target_modules=["key"], **options))
    base: Any = model.base_model
    base.set_adapter(["default", "b"])
    trainer(model, tmp_path, StopAt(5)).train()
    steps = [[record["step"] for record in rankwise.history(model, name)] for name in ("default", "b")]
    assert steps == [[0, 3], [0, 4]]
    checkpoint = tmp_path / "checkpoint-5"
    assert (checkpoint / "rankwise_search.json").is_file()
    assert (checkpoint / "b" / "rankwise_search.json").is_file()


def test_deepspeed_is_refused_before_training(tmp_path: Path) -> None:
    run = trainer(searching(**FIELDS), tmp_path)
    run.args.deepspeed = {"zero_optimization": {"stage": 2}}
    with pytest.raises(ValueError, match=r"DeepSpeed .*train with DDP or FSDP2.*mode='off'"):
        run.train()


def test_a_trainer_trains_as_before_where_nothing_is_adapted(tmp_path: Path) -> None:
    base: Any = tiny_bert().train()
    run = trainer(base, tmp_path)
    own_method(run)
    assert math.isfinite(run.train().training_loss)
    assert Trainer.train.__wrapped__ is not Trainer.train  # type: ignore[attr-defined]
