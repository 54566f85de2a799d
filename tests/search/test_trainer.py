"""A probe sees the loss that is trained on, or says why it can't and leaves the search to the steps of training."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import adapted, tiny_bert
from tests.search.test_callback import EXAMPLES, Examples, StopAt, searched_at, searching, trainer
from tests.search.test_training_on import on
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.rules.records import EditRecord, SearchRecord
from rankwise.search.trainer import Run, current_run, obstacle, probe_batches

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
        (lambda run: vars(run.args).update(loss_type="dft"), {}, "loss_type='dft' changes the loss"),  # SFTConfig's
        (streamed, {}, "can be iterated only"),
    ],
    ids=["method", "function", "smoothing", "type", "iterable"],
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


@pytest.mark.slow
def test_a_probe_has_batches_of_the_size_that_fits(tmp_path: Path) -> None:
    model = searching(scoring="probe", search_every=4)
    Limited(model, largest=5)
    trainer(model, tmp_path, per_device_train_batch_size=8, auto_find_batch_size=True).train()
    assert searched_at(model) == [(0, "probe"), (4, "probe")]


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


@contextmanager
def as_process(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be one of two processes, as far as torch says."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.is_initialized", lambda: True)
        patch.setattr("torch.distributed.get_world_size", lambda: 2)
        patch.setattr("torch.distributed.get_rank", lambda: number)
        yield


class Numbers(torch.utils.data.Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def rows_of(length: int, size: int, search: int = 0, **fields: Any) -> list[list[int]]:
    """The numbers of the rows of a search's probe batches."""
    loader = DataLoader(Numbers(length), batch_size=99, shuffle=True, collate_fn=list)
    config = rankwise.HeteroLoraConfig(**{"mode": "dynamic", "score_batches": 3, **fields})
    found: Any = list(probe_batches(loader, size, config, search))
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize(
    ("length", "size", "sizes"), [(100, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (3, 4, [3]), (1, 1, [1])]
)
def test_a_probe_has_so_many_batches_while_the_data_last(length: int, size: int, sizes: list[int]) -> None:
    before = torch.get_rng_state()
    fixed, rotating = (rows_of(length, size, probe_data=data) for data in ("fixed", "rotating"))
    assert [len(batch) for batch in fixed] == [len(batch) for batch in rotating] == sizes
    assert flat(fixed) == list(range(sum(sizes)))
    assert len(set(flat(rotating))) == sum(sizes), "no row twice"
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_are_drawn_by_the_seed_and_the_number_of_the_search() -> None:
    first = rows_of(1000, 4)
    assert rows_of(1000, 4) == first
    others = [rows_of(1000, 4, search=1), rows_of(1000, 4, seed=1), rows_of(1000, 4, probe_data="fixed")]
    assert all(other != first for other in others)
    assert rows_of(1000, 4, search=1, probe_data="fixed") == others[2]


@pytest.mark.parametrize("data", ["fixed", "rotating"])
def test_processes_share_the_rows_of_a_batch_that_is_as_much_larger(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = rows_of(1000, 8, probe_data=data)
    shares = []
    for number in range(2):
        with as_process(number, monkeypatch):
            shares.append(flat(rows_of(1000, 4, probe_data=data)))
    assert [len(share) for share in shares] == [12, 12]
    assert [row for pair in zip(*shares, strict=True) for row in pair] == flat(alone)


class Endless(torch.utils.data.Dataset[int]):
    """Rows by number without end."""

    def __getitem__(self, index: int) -> int:
        return index


def labelled(**row: Any) -> DataLoader[Any]:
    rows: Any = [row]
    return DataLoader(rows, collate_fn=lambda rows: {key: [each[key] for each in rows] for key in rows[0]})


@pytest.mark.parametrize(
    ("loader", "own_loss", "words"),
    [
        ([{"labels": 1}], True, "come from a list, which is no torch DataLoader"),
        (DataLoader(Stream()), True, "can be iterated only, and a probe draws its rows by number"),
        (DataLoader(Endless(), sampler=[0]), True, "can be iterated only"),
        (DataLoader(Numbers(2), batch_size=None), True, r"are batches already \(batch_size=None\)"),
        (labelled(input_ids=1), False, "the training batches have no labels that the model takes"),
        (DataLoader(Numbers(0), sampler=[], collate_fn=list), False, "have no labels"),
        (DataLoader(Numbers(2), collate_fn=list), False, "have no labels"),  # no mapping
        (DataLoader(Numbers(2), collate_fn=lambda rows: {"labels": None}), False, "have no labels"),
        (labelled(input_ids=1), True, None),  # a loss of one's own needs none
        (labelled(labels=1), False, None),
        (labelled(label=1), False, None),
        (labelled(start_positions=1), False, None),
        (labelled(own=1), False, None),
    ],
)
def test_why_a_probe_can_not_be_had(loader: Any, own_loss: bool, words: str | None) -> None:
    found = obstacle(loader, ["own"], own_loss=own_loss)
    if words is None:
        assert found is None
        return
    assert found is not None
    assert re.search(words, found)
    remedy = "compute_loss" if "labels" in words else "batches"
    assert f"{remedy}=...) makes a probe possible" in found


def test_looking_for_labels_draws_nothing() -> None:
    """A collator that masks draws, from whichever generator."""

    def masking(rows: list[Any]) -> dict[str, Any]:
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
        return {"labels": rows}

    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert obstacle(DataLoader(Numbers(2), collate_fn=masking), [], own_loss=False) is None
    assert (random.getstate(), str(np.random.get_state())) == before[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_who_trains_is_known_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    seen: list[Any] = []
    model = searching(mode="off")

    class Looking(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            run = current_run()
            assert run is not None
            seen.append(run.trainer)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    run = trainer(model, tmp_path, Looking())
    assert current_run() is None
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert seen == [run]
    assert current_run() is None, "after an interruption too"


def test_a_training_that_begins_again_forgets_its_searches_but_not_its_edits(tmp_path: Path) -> None:
    model = searching(mode="dynamic")
    paths = path_set(model)
    names = list(paths.paths)
    rankwise.apply_(model, [rankwise.Enable(name) for name in names])
    paths.history.append(SearchRecord(step=1, search=0, proxy="constant"))  # an earlier training's
    whole = trainer(model, tmp_path)
    run = Run(whole)
    run.begin(paths)
    for _ in range(2):
        paths.history.append(SearchRecord(step=2, search=1, proxy="constant"))
        rankwise.apply_(model, [rankwise.Disable(names[0])])
        run.begin(paths)
        assert [record.step for record in paths.history] == [1]
        assert paths.paths[names[0]].enabled
    paths.history.append(EditRecord(step=2, due="merge", edits=[], before=names, chosen=names))
    rankwise.apply_(model, [rankwise.Disable(names[0])])
    run.begin(paths)
    assert [record.step for record in paths.history] == [1, 2]
    assert not paths.paths[names[0]].enabled


@pytest.mark.parametrize("probe_data", ["fixed", "rotating"])
def test_probe_batches_come_from_the_training_set(probe_data: str, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        rows = [Examples()[index]["input_ids"].tolist() for index in range(EXAMPLES)]
        seen.append([rows.index(row.tolist()) for row in batch["input_ids"]])
        return model(**batch).loss

    model = searching(search_every=4, scoring="probe", probe_data=probe_data)
    trainer(model, tmp_path, rankwise.AllocationCallback(compute_loss=loss)).train()
    assert [len(batch) for batch in seen] == [4] * 4
    first, second = seen[0] + seen[1], seen[2] + seen[3]
    assert len(set(first)) == 8
    assert (first == second == list(range(8))) == (probe_data == "fixed")
    assert (first != second) == (probe_data == "rotating")


@pytest.mark.slow
def test_a_retry_with_smaller_batches_counts_nothing_twice(tmp_path: Path) -> None:
    """``auto_find_batch_size`` starts the whole training again; what it comes to is the run at that size."""
    found = []
    for size, auto in ((8, True), (5, False)):  # 8, 7, 6, 5: accelerate takes a tenth off each time
        model = searching(search_every=4, warmup_searches=1)
        limited = Limited(model, largest=5)
        run = trainer(model, tmp_path, per_device_train_batch_size=size, auto_find_batch_size=auto)
        run.train()
        limited.remove()
        found.append((searched_at(model), on(model), [r["search"] for r in rankwise.history(model)]))
    assert found[0] == found[1]


class Limited:
    """Lets a model run out of memory on batches that are too large."""

    def __init__(self, model: nn.Module, largest: int) -> None:
        self.largest = largest
        self.handle = model.register_forward_pre_hook(self.check, with_kwargs=True)
        self.remove = self.handle.remove

    def check(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > self.largest:
            raise RuntimeError("CUDA out of memory.")
