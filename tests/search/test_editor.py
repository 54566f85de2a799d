"""Edits on their schedule, in real training loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.models import class_batches, fill_, logits, tiny_bert, tiny_llama
from torch import Tensor
from transformers import Trainer, TrainingArguments

import rankwise
from rankwise.rules.edits import Merge
from rankwise.rules.records import edits
from rankwise.search.listener import warn_if_idle

Snapshot = dict[str, Tensor]


def model_of(blocks: int = 4, **fields: Any) -> Any:
    options = {"r": 4, "merges": 1, "injections": 1, "edit_unit": "steps", "total_steps": 8, **fields}
    return get_peft_model(tiny_bert(blocks), rankwise.Lor2cConfig(task_type="SEQ_CLS", **options))


def trainable(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def snapshot(model: Any) -> Snapshot:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def step(model: Any, optimizer: Any, batch: dict[str, Tensor]) -> set[str]:
    """Take a step and return the names of the tensors that it changed."""
    model.train()
    model(**batch).loss.backward()
    before = snapshot(model)
    optimizer.step()
    optimizer.zero_grad()
    return {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}


def owned(model: Any) -> set[str]:
    """Names of the parameters of enabled paths and of the head."""
    on = {id(p) for path in rankwise.named_paths(model).values() if path.enabled for p in path.parameters}
    return {n for n, p in model.named_parameters() if id(p) in on or (p.requires_grad and ".lora_" not in n)}


def edits_of(model: Any) -> list[tuple[int, str]]:
    return [(r.step, type(edit).__name__) for r in edits(rankwise.history(model)) for edit in r.edits]


@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
def test_a_step_changes_what_is_on_and_the_head_before_and_after_each_edit(share: bool) -> None:
    model = model_of(share=share, total_steps=16, separate_edits=True)  # a merge after step 4, an injection after 5
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.1)
    for number, batch in enumerate(class_batches(16)):
        wanted = owned(model)
        changed = step(model, optimizer, batch)
        assert changed == wanted, f"step {number}"
    assert edits_of(model) == [(4, "Merge"), (5, "Inject")]
    names = list(rankwise.named_paths(model))
    assert sum(name.endswith(".layer") for name in names) == 2
    assert sum(name.endswith((".query", ".value")) for name in names) == 2


def test_measuring_around_an_edit_leaves_the_training_as_it_is() -> None:
    batch = class_batches(1)[0]
    losses: list[float] = []

    def measure(model: Any) -> float:
        assert not model.training
        torch.rand(3)
        losses.append(float(model(**batch).loss))
        return losses[-1]

    models = []
    for given in (None, measure):
        torch.manual_seed(0)  # the head, then the dropout
        model = model_of()
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        editor = rankwise.Editor(model, optimizer, measure=given)
        for each in class_batches(8):
            step(model, optimizer, each)
        editor.close()
        models.append(model)
    plain, measured = models
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), measured.parameters(), strict=True))
    assert [record["measured"] for record in rankwise.history(plain)] == [[None, None], [None, None]]
    merge, inject = (record["measured"] for record in rankwise.history(measured))
    assert [*merge, *inject] == losses
    assert merge[0] != merge[1] == inject[0] != inject[1]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step)),
    ],
    ids=["plateau", "lambda"],
)
def test_injected_lora_follows_the_schedule_and_really_trains(schedule: Callable[[Any], Any]) -> None:
    model = model_of(merges=0)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    scheduler = schedule(optimizer)
    for batch in class_batches(2):
        step(model, optimizer, batch)
        scheduler.step(1.0) if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else scheduler.step()
    assert edits_of(model) == [(2, "Inject")]
    injected = [path for name, path in rankwise.named_paths(model).items() if name.endswith(("query", "value"))]
    rate = optimizer.param_groups[0]["lr"]
    assert rate < 1.0
    assert len(optimizer.param_groups) == 1
    model(**class_batches(1)[0]).loss.backward()
    wanted = [path.lora_B.detach() - rate * path.lora_B.grad for path in injected]
    assert all(path.lora_B.grad is not None and path.lora_B.grad.any() for path in injected)
    optimizer.step()
    for path, value in zip(injected, wanted, strict=True):
        torch.testing.assert_close(path.lora_B.detach(), value)
        assert path.lora_B.any()


def test_the_survivor_keeps_weights_and_moments_and_the_loser_frees_them() -> None:
    models = [model_of(injections=0, merges=merges) for merges in (0, 1)]
    models[1].load_state_dict(models[0].state_dict())  # the same head
    optimizers = [torch.optim.AdamW(trainable(model), lr=1e-2) for model in models]
    for batch in class_batches(2):
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(0)  # the same dropout
            step(model, optimizer, batch)
    never, merged = (rankwise.named_paths(model) for model in models)
    (record,) = edits(rankwise.history(models[1]))
    (edit,) = record.edits
    assert isinstance(edit, Merge)
    assert edit.survivor is not None
    span = next(name for name in merged if "-" in name)
    loser = edit.first if edit.survivor == edit.second else edit.second
    for kept, same in zip(merged[span].parameters, never[edit.survivor].parameters, strict=True):
        assert torch.equal(kept, same)
        for key, value in optimizers[0].state[same].items():
            assert torch.equal(optimizers[1].state[kept][key], value), key
    gone = [path for path in merged_set(models[1]).resident if path.own_name == loser]
    assert all(parameter not in optimizers[1].state for path in gone for parameter in path.parameters)
    assert all(parameter in optimizers[0].state for parameter in never[loser].parameters)


def merged_set(model: Any) -> Any:
    return model.get_base_model().rankwise_paths["default"]


def test_frozen_after_a_merge_and_deleted_instead_of_injected() -> None:
    model = model_of(freeze_merged=True, inject_targets=[])
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for batch in class_batches(8):
        step(model, optimizer, batch)
    paths = rankwise.named_paths(model)
    span = next(name for name in paths if "-" in name)
    assert not paths[span].enabled
    assert paths[span].contributing
    assert len(paths) == 2  # four blocks: two merged into one, one deleted
    assert rankwise.plan(model).frozen == paths[span].num_parameters


def test_what_finds_no_candidate_is_skipped_and_recorded() -> None:
    model = model_of(blocks=2, merges=1, injections=2, total_steps=16)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for batch in class_batches(16):
        step(model, optimizer, batch)
    assert [(r.due, r.skipped) for r in edits(rankwise.history(model))] == [
        ("inject", False),
        ("merge", True),
        ("inject", False),
    ]


def test_zero_paths_are_no_candidates() -> None:
    model = model_of()
    editor = rankwise.Editor(model)
    record = editor.edit("merge")
    assert record.skipped
    assert record["unscored"] == [f"layers.{block}.layer" for block in range(4)]
    editor.close()


@pytest.mark.parametrize("metric", ["sfs", "mean_sv"])
def test_finite_factors_whose_product_is_not_have_no_score_and_can_be_saved(tmp_path: Path, metric: str) -> None:
    model = model_of(metric=metric)
    fill_(model)
    with torch.no_grad():
        for factor in rankwise.named_paths(model)["layers.2.layer"].parameters:
            factor.mul_(1e19 / factor.abs().max())
    editor = rankwise.Editor(model)
    record = editor.edit("merge")
    editor.close()
    assert record.unscored == ["layers.2.layer"]
    (edit,) = record.edits
    assert isinstance(edit, Merge)
    assert (edit.first, edit.second) == ("layers.0.layer", "layers.1.layer")
    model.save_pretrained(tmp_path)
    assert rankwise.history(PeftModel.from_pretrained(tiny_bert(4), tmp_path)) == [record]


class Data(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, size: int = 16) -> None:
        (batch,) = class_batches(1, size)
        self.rows = [{key: value[i] for key, value in batch.items()} for i in range(size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def trainer_of(folder: Path, model: Any, **arguments: Any) -> Trainer:
    options = {
        "num_train_epochs": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "epoch",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return Trainer(
        model, TrainingArguments(str(folder), **{**options, **arguments}), train_dataset=Data(), eval_dataset=Data()
    )


def by_epochs(**fields: Any) -> Any:
    torch.manual_seed(0)
    return model_of(edit_unit="epochs", total_steps=None, lora_dropout=0.1, separate_edits=True, **fields)


def same_state(one: Any, other: Any) -> None:
    for (name, tensor), value in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, value), name


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_run_with_a_merge_and_an_injection_is_bit_identical(tmp_path: Path, checkpointing: bool) -> None:
    """Eight epochs of two steps: a merge after epoch 2, an injection after 3; resumed before, between and after."""
    whole = by_epochs()
    options = {"activation_checkpointing": checkpointing, "optim": "adamw_torch_fused", "lr_scheduler_type": "cosine"}
    straight = trainer_of(tmp_path / "whole", whole, **options)
    straight.train()
    assert edits_of(whole) == [(4, "Merge"), (6, "Inject")]
    for number in (2, 4, 6):
        again = by_epochs()
        resumed = trainer_of(tmp_path / "whole", again, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{number}"))
        same_state(whole, again)
        assert edits_of(again) == edits_of(whole)
        assert list(rankwise.named_paths(again)) == list(rankwise.named_paths(whole))
        optimizers: list[Any] = [straight.optimizer, resumed.optimizer]
        ours, theirs = (optimizer.state_dict()["state"] for optimizer in optimizers)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert all(torch.equal(ours[key][name], theirs[key][name]) for name in ours[key])


def test_load_best_at_end_returns_to_the_structure_that_belonged_to_it(tmp_path: Path) -> None:
    model = by_epochs()
    losses = iter([0.5, 0.1, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1])  # the best one comes between the edits
    trainer = trainer_of(
        tmp_path,
        model,
        load_best_model_at_end=True,
        eval_strategy="epoch",
        metric_for_best_model="eval_score",
        greater_is_better=False,
    )
    trainer.compute_metrics = lambda _: {"score": next(losses)}
    trainer.train()
    assert edits_of(model) == [(4, "Merge")]
    saved = PeftModel.from_pretrained(tiny_bert(4), tmp_path / "checkpoint-4").eval()
    assert list(rankwise.named_paths(model)) == list(rankwise.named_paths(saved))
    same_state(model.get_base_model(), saved.get_base_model())


def test_errors_of_the_length_of_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set edit_unit='steps' and total_steps"):
        rankwise.Editor(model_of(edit_unit="epochs", total_steps=None))
    with pytest.raises(ValueError, match=r"whole number of epochs.*set edit_unit='steps'"):
        trainer_of(tmp_path, by_epochs(), num_train_epochs=8.5).train()
    with pytest.raises(ValueError, match=r"not in the first half\. Train for 4 epochs"):
        trainer_of(tmp_path, by_epochs(), num_train_epochs=2).train()
    hetero = get_peft_model(
        tiny_llama(), rankwise.HeteroLoraConfig(target_modules=["q_proj"], mode="dynamic", budget=1.0)
    )
    with pytest.raises(ValueError, match="HeteroLoraConfig, which has no scheduled edits"):
        rankwise.Editor(hetero)
    with pytest.raises(ValueError, match="Lor2cConfig, which has no search"):
        rankwise.Allocator(model_of())


def test_training_in_evaluation_mode_is_told(tmp_path: Path) -> None:
    model = model_of().eval()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    model.save_pretrained(tmp_path)  # nothing was trained yet
    model(**class_batches(1)[0]).loss.backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"'default' seems to have been trained in evaluation mode.*model\.train\(\)"):
        model.save_pretrained(tmp_path)
    rankwise.detach(model)
    model.save_pretrained(tmp_path)


def test_a_run_that_was_cut_short_says_so() -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    step(model, optimizer, class_batches(1)[0])
    with pytest.warns(UserWarning, match="2 of 2 edits .* never came in 1 optimizer steps of 8"):
        warn_if_idle(merged_set(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in class_batches(7):
            step(model, optimizer, batch)
        warn_if_idle(merged_set(model))


def test_a_loop_for_adalora_and_a_copy(tmp_path: Path) -> None:
    import copy

    model = model_of()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for number, batch in enumerate(class_batches(8)):
        step(model, optimizer, batch)
        model.base_model.update_and_allocate(number)
    assert edits_of(model) == [(2, "Merge"), (2, "Inject")]
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), logits(model))
    fill_(copied)
    assert not torch.equal(logits(copied), logits(model))


def test_the_structure_record_is_written_beside_the_tensors(tmp_path: Path) -> None:
    import json

    model = model_of(share=True)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for batch in class_batches(3):
        step(model, optimizer, batch)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "allocation.json").read_text())
    assert [path["name"] for path in written["paths"]] == list(rankwise.named_paths(model))
    assert [(edit["step"], edit["edit"]) for edit in written["edits"]] == [(2, "Merge"), (2, "Inject")]
    assert written["shared"] is True
    assert written["step"] == 3
    again = PeftModel.from_pretrained(tiny_bert(4), tmp_path)
    assert rankwise.history(again) == rankwise.history(model)
