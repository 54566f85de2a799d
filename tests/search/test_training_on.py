"""What is done is done: an adapter that is trained on keeps its choice, its edits and its history."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.models import adapted, class_batches, tiny_bert
from tests.search.test_callback import StopAt, searched_at, searching, trainer
from torch import nn

import rankwise
from rankwise.rules.records import EditRecord, SearchRecord, edits


def merging(**fields: Any) -> Any:
    options = {"r": 4, "merges": 1, "edit_unit": "steps", **fields}
    return get_peft_model(tiny_bert(4), rankwise.Lor2cConfig(task_type="SEQ_CLS", **options))


def edits_at(model: nn.Module) -> list[int]:
    return [record.step for record in edits(rankwise.history(model))]


def on(model: nn.Module) -> list[str]:
    return [name for name, path in rankwise.named_paths(model).items() if path.enabled]


def reloaded(model: Any, folder: Path, blocks: int = 2) -> Any:
    model.save_pretrained(str(folder))
    return PeftModel.from_pretrained(tiny_bert(blocks), folder, is_trainable=True)


def in_a_bare_loop(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for batch in class_batches(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("scoring", ["online", pytest.param("probe", marks=pytest.mark.slow)])
def test_a_static_adapter_does_not_search_again(scoring: str, tmp_path: Path) -> None:
    model = searching(mode="static", scoring=scoring)
    run = trainer(model, tmp_path)
    run.train()
    before, chosen = searched_at(model), on(model)
    assert len(before) == 1
    run.train()
    assert (searched_at(model), on(model)) == (before, chosen)
    again = reloaded(model, tmp_path / "adapter")
    trainer(again, tmp_path).train()
    assert (searched_at(again), on(again)) == (before, chosen)
    alone = reloaded(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a search that was done is not missing
        in_a_bare_loop(alone, 4)
        rankwise.detach(alone)
    assert (searched_at(alone), on(alone)) == (before, chosen)


def test_nor_when_transformers_itself_has_loaded_it(tmp_path: Path) -> None:
    model = searching(mode="static", scoring="online")
    trainer(model, tmp_path).train()
    model.save_pretrained(str(tmp_path / "adapter"))
    alone = tiny_bert()
    alone.load_adapter(str(tmp_path / "adapter"), is_trainable=True)
    assert rankwise.history(alone) == rankwise.history(model)
    in_a_bare_loop(alone, 4)
    assert (searched_at(alone), on(alone)) == (searched_at(model), on(model))


def test_nor_when_transformers_itself_has_saved_it(tmp_path: Path) -> None:
    config = rankwise.HeteroLoraConfig(r=2, target_modules=["query", "value"], mode="static", score_batches=2)
    model = tiny_bert()
    model.add_adapter(config, "mine")
    in_a_bare_loop(model, 4)
    assert len(searched_at(model)) == 1
    model.save_pretrained(str(tmp_path))
    alone = tiny_bert()
    alone.load_adapter(str(tmp_path), "mine", is_trainable=True)
    assert rankwise.history(alone) == rankwise.history(model)
    in_a_bare_loop(alone, 4)
    assert (searched_at(alone), on(alone)) == (searched_at(model), on(model))
    assert rankwise.history(PeftModel.from_pretrained(tiny_bert(), tmp_path)) == rankwise.history(model)


def test_a_base_is_saved_as_ever(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_damaged_folder_leaves_transformers_model_as_it_was(tmp_path: Path) -> None:
    adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query"]).save_pretrained(str(tmp_path))
    (tmp_path / "search_history.jsonl").write_text("not a record\n")
    plain = tiny_bert()
    names = [name for name, _ in plain.named_modules()]
    with pytest.raises(ValueError, match=r"search_history\.jsonl"):
        plain.load_adapter(str(tmp_path))
    assert [name for name, _ in plain.named_modules()] == names


def test_a_dynamic_adapter_goes_on_searching_and_counting(tmp_path: Path) -> None:
    model = searching(search_every=4, warmup_searches=1)
    run = trainer(model, tmp_path)
    run.train()
    run.train()
    records = [record for record in rankwise.history(model) if isinstance(record, SearchRecord)]
    assert [(r.step, r.search, r.proxy) for r in records] == [
        (0, 0, "constant"),
        (4, 1, "grad_norm"),
        (0, 2, "grad_norm"),
        (4, 3, "grad_norm"),
    ]
    again = reloaded(model, tmp_path / "adapter")
    trainer(again, tmp_path).train()
    assert [record["search"] for record in rankwise.history(again)] == list(range(6))


def test_a_warm_up_is_over_in_a_second_training_without_a_probe() -> None:
    """Its first search waits for gradients, where that of the first training needed none."""
    model = searching(search_every=4, score_batches=2, warmup_searches=1)
    for _ in range(2):
        in_a_bare_loop(model, 6)
        rankwise.detach(model)
        rankwise.Allocator(model)
    assert searched_at(model) == [(0, "random"), (4, "online"), (2, "online"), (4, "online")]


@pytest.mark.slow
def test_a_second_training_resumes_as_it_would_have_gone_on(tmp_path: Path) -> None:
    first = searching(search_every=3, score_batches=3)
    trainer(first, tmp_path).train()
    first.save_pretrained(str(tmp_path / "adapter"))
    models = [PeftModel.from_pretrained(tiny_bert(), tmp_path / "adapter", is_trainable=True) for _ in range(3)]
    whole, half, resumed = models
    trainer(whole, tmp_path / "whole").train()
    trainer(half, tmp_path / "halves", StopAt(4)).train()
    trainer(resumed, tmp_path / "halves").train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    assert searched_at(resumed) == searched_at(whole)
    assert len(searched_at(whole)) == 6
    for (name, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_an_edit_that_was_made_counts(tmp_path: Path) -> None:
    model = merging()
    run = trainer(model, tmp_path)
    run.train()
    (step,), names = edits_at(model), list(rankwise.named_paths(model))
    assert len(names) == 3
    run.train()
    assert (edits_at(model), list(rankwise.named_paths(model))) == ([step], names)
    again = reloaded(model, tmp_path / "adapter", blocks=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(again, tmp_path, max_steps=1).train()  # too short for an edit, and none is left
        in_a_bare_loop(again, 2)
    assert (edits_at(again), list(rankwise.named_paths(again))) == ([step], names)


@pytest.mark.slow
def test_edits_that_are_left_are_made(tmp_path: Path) -> None:
    model = merging(merges=2)
    with pytest.warns(UserWarning, match="1 of 2 edits"):
        trainer(model, tmp_path, StopAt(3), max_steps=16).train()
    assert edits_at(model) == [2]
    trainer(model, tmp_path, max_steps=16).train()
    assert edits_at(model) == [2, 4]
    trainer(model, tmp_path, max_steps=16).train()
    assert edits_at(model) == [2, 4]


@pytest.mark.slow
def test_a_checkpoint_loaded_before_it_is_resumed_keeps_its_schedule(tmp_path: Path) -> None:
    """The edits in its history are this training's own, so they don't shift those that are left."""
    whole, half = merging(merges=2), merging(merges=2)
    trainer(whole, tmp_path / "whole", max_steps=16).train()
    with pytest.warns(UserWarning, match="1 of 2 edits"):
        trainer(half, tmp_path / "halves", StopAt(3), max_steps=16).train()
    checkpoint = tmp_path / "halves" / "checkpoint-3"
    resumed = PeftModel.from_pretrained(tiny_bert(4), checkpoint, is_trainable=True)
    trainer(resumed, tmp_path / "halves", max_steps=16).train(resume_from_checkpoint=str(checkpoint))
    assert edits_at(resumed) == edits_at(whole) == [2, 4]
    assert all(isinstance(record, EditRecord) for record in rankwise.history(resumed))


def test_a_history_is_kept_when_a_search_is_made_by_hand() -> None:
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query", "value"], mode="static", score_batches=2)
    for _ in range(2):
        rankwise.Allocator(model, batches=class_batches(2))
        in_a_bare_loop(model, 2)
    assert searched_at(model) == [(0, "probe")]
