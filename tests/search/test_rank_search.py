from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.models import Batch, adapted, bert_config, build, class_batches, logits, tiny_bert, tokens
from tests.processes import in_two_processes
from tests.search.test_callback import StopAt
from torch import Tensor, nn
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.scores.batches import to_device
from rankwise.search.trainer import probe_batches

FIELDS: dict[str, Any] = {
    "task_type": "SEQ_CLS",
    "target_modules": ["query", "value"],
    "shortcuts": ["res2", "cut"],
    "mode": "static",
    "granularity": "rank",
    "r": 4,
    "lora_alpha": 8,
    "budget": 300,
    "score_batches": 6,
}


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a two-class task."""

    def __init__(self, count: int = 48) -> None:
        self.ids = tokens(count, seed=5)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.ids[row], "labels": int(self.ids[row].sum()) % 2}


def undecided(**fields: Any) -> PeftModel:
    return adapted(tiny_bert(3), **{**FIELDS, **fields})


def trainer_of(model: PeftModel, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    return Trainer(model, TrainingArguments(**arguments), train_dataset=Rows(), callbacks=list(callbacks))


def weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_trainer_chooses_before_it_makes_its_optimizer(tmp_path: Path) -> None:
    model = undecided()
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    (record,) = rankwise.history(model)
    assert record["proxy"] == "newton"
    paths = rankwise.named_paths(model)
    assert {name: path.r for name, path in paths.items()} == record["ranks"]
    assert 0 < sum(path.num_parameters for path in paths.values()) <= 300
    assert all(path.enabled for path in paths.values())
    assert any(path.lora_B.any() for path in paths.values())
    optimizer: Any = trainer.optimizer
    owned = sum(p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad)
    assert owned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    resident = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert resident == sum(path.num_parameters for path in paths.values()), "what was not chosen is gone"


def test_batches_that_draw_leave_the_generators_as_they_were() -> None:
    """Training draws what it would have drawn without the choice."""

    def drawn() -> Iterator[Batch]:
        for batch in class_batches(6, size=8):
            torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
            yield batch

    model = undecided(task_type=None)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    rankwise.Allocator(model, batches=drawn())
    assert len(rankwise.history(model)) == 1
    assert (random.getstate(), str(np.random.get_state())) == before[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_it_is_what_a_plan_with_the_same_batches_chooses(tmp_path: Path) -> None:
    model = undecided(task_type=None, shortcuts=[])
    batches = class_batches(6, size=8)
    rankwise.Allocator(model, batches=batches)
    plan = rankwise.rank_plan(tiny_bert(3), batches, budget=300, target_modules=["query", "value"])
    assert rankwise.history(model)[0]["ranks"] == plan.chosen


def test_the_adapter_is_saved_and_loaded_with_its_ranks(tmp_path: Path) -> None:
    model = undecided()
    trainer_of(model, tmp_path / "run").train()
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_bert(3), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))
    assert rankwise.history(loaded)[0]["ranks"] == rankwise.history(model)[0]["ranks"]
    assert [path.r for path in rankwise.named_paths(loaded).values()] == list(
        rankwise.history(model)[0]["ranks"].values()
    )


@pytest.mark.slow
def test_trained_on_it_does_not_choose_again(tmp_path: Path) -> None:
    model = undecided()
    trainer_of(model, tmp_path / "run").train()
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(tiny_bert(3), str(tmp_path / "adapter"), is_trainable=True)
    trainer_of(again, tmp_path / "again").train()
    assert len(rankwise.history(again)) == 1


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resumed_is_the_same_as_never_stopped(tmp_path: Path, checkpointing: bool) -> None:
    options: dict[str, Any] = {"activation_checkpointing": checkpointing}
    whole = undecided()
    trainer_of(whole, tmp_path / "whole", **options).train()
    trainer_of(undecided(), tmp_path / "half", StopAt(4), **options).train()
    resumed = undecided()
    trainer_of(resumed, tmp_path / "half", **options).train(resume_from_checkpoint=True)
    expected = weights(whole)
    assert expected.keys() == weights(resumed).keys()
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert rankwise.history(resumed)[0]["ranks"] == rankwise.history(whole)[0]["ranks"]


def test_a_plain_loop_gives_batches_before_the_optimizer() -> None:
    model = undecided()
    rankwise.Allocator(model, batches=class_batches(6, size=8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for batch in class_batches(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(path.lora_B.any() for path in rankwise.named_paths(model).values())
    assert len(rankwise.history(model)) == 1


def test_a_loop_that_gives_none_is_told_what_to_do() -> None:
    model = undecided().train()
    with pytest.raises(ValueError, match=r"ranks of adapter 'default' are not chosen.*rank_plan.*mode='off'"):
        model(**class_batches(1)[0])


def test_an_optimizer_made_before_is_refused() -> None:
    model = undecided()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="the optimizer was made before"):
        rankwise.Allocator(model, optimizer, batches=class_batches(6, size=8))
    assert path_set(model).config.undecided


def test_an_optimizer_made_before_that_nobody_told_of_is_refused_at_its_first_step() -> None:
    """It would go on with the candidates, which are gone, and with a head, if there is one."""
    model = undecided()
    stale = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    rankwise.Allocator(model, batches=class_batches(6, size=8))
    model.train()
    model(**class_batches(1)[0]).loss.backward()
    with pytest.raises(ValueError, match="the optimizer was made before"):
        stale.step()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05).step()
    assert any(path.lora_B.any() for path in rankwise.named_paths(model).values())


def test_a_trainer_that_goes_on_refuses_an_optimizer_made_before(tmp_path: Path) -> None:
    trainer_of(undecided(), tmp_path, StopAt(4)).train()
    model = undecided()
    trainer = trainer_of(model, tmp_path)
    trainer.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="the optimizer was made before"):
        trainer.train(resume_from_checkpoint=True)


def test_a_fraction_is_one_of_the_candidates_at_their_rank() -> None:
    model = undecided(budget=0.25, shortcuts=[])
    rankwise.Allocator(model, batches=class_batches(6, size=8))
    spent = sum(path.num_parameters for path in rankwise.named_paths(model).values())
    assert 0 < spent <= 0.25 * 4 * 6 * 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "dynamic"}, "set mode='static'"),
        ({"proxy": "snip"}, "proxy='snip' is about whole paths"),
        ({"budget_unit": "paths"}, "budget_unit='paths' is about whole paths"),
        ({"rank_pattern": {"query": 2}}, "leave rank_pattern and alpha_pattern out"),
        ({"shortcut_ranks": {"layers.0.res2": 1}}, "shortcut_ranks"),
    ],
)
def test_options_that_need_whole_paths_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rankwise.HeteroLoraConfig(**{**FIELDS, **fields})


def test_plain_peft_use_of_the_base_is_untouched_by_a_failed_choice() -> None:
    model = undecided(budget=2)
    with pytest.raises(ValueError, match="below the cheapest component"):
        rankwise.Allocator(model, batches=class_batches(6, size=8))
    assert {path.r for path in rankwise.named_paths(model).values()} == {1}
    base = model.unload()
    assert get_peft_model(base, rankwise.HeteroLoraConfig(target_modules=["query"], mode="off"))


def confident() -> BertForSequenceClassification:
    """A classifier whose loss is far from that of smoothed labels."""
    base = tiny_bert(3)
    with torch.no_grad():
        base.classifier.weight *= 20
    return base


def smoothed(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that Trainer makes of a classifier's logits with ``label_smoothing_factor=0.1``."""
    found = model(**to_device(batch, model)).logits
    return nn.functional.cross_entropy(found, batch["labels"], label_smoothing=0.1)


def test_a_smoothed_loss_is_refused_with_what_to_pass_and_then_chosen_by(tmp_path: Path) -> None:
    options: dict[str, Any] = {"label_smoothing_factor": 0.1, "max_steps": 2}
    with pytest.raises(ValueError, match=r"rankwise\.AllocationCallback\(compute_loss=\.\.\.\) makes a probe possible"):
        trainer_of(adapted(confident(), **FIELDS), tmp_path, **options).train()
    callback = rankwise.AllocationCallback(compute_loss=smoothed)
    with pytest.raises(ValueError, match=r"say rankwise\.AllocationCallback\(plan=\{'reduction': 'mean'\}\)"):
        trainer_of(adapted(confident(), **FIELDS), tmp_path, callback, **options).train()
    model = adapted(confident(), **FIELDS)
    callback = rankwise.AllocationCallback(compute_loss=smoothed, plan={"reduction": "mean"})
    trainer = trainer_of(model, tmp_path, callback, **options)
    batches = list(probe_batches(trainer.get_train_dataloader(), 8, path_set(model).config, 0))
    trainer.train()
    plan = rankwise.rank_plan(
        confident(),
        batches,
        budget=300,
        space=["linear", "res2", "cut"],
        target_modules=["query", "value"],
        compute_loss=smoothed,
        reduction="mean",
    )
    (record,) = rankwise.history(model)
    assert record["ranks"] == plan.chosen


class Scorer(BertForSequenceClassification):
    """A classifier whose output has scores and no logits."""

    def forward(self, input_ids: Any = None, labels: Any = None, **inputs: Any) -> Any:
        output = super().forward(input_ids, labels=labels, **inputs)
        return {"loss": output.loss, "scores": output.logits}


def drawing(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
    scores = model(**batch)["scores"]
    labels = torch.multinomial(scores.detach().softmax(-1), 1, generator=generator)[:, 0]
    losses = nn.functional.cross_entropy(scores, labels, reduction="none")
    return losses, len(losses)


def scorer(**fields: Any) -> PeftModel:
    return adapted(build(Scorer, bert_config(3)), **{**FIELDS, "task_type": None, **fields})


@pytest.mark.parametrize(
    "fields",
    [{}, {"granularity": "path", "proxy": "newton", "scoring": "probe", "budget": 0.5}],
    ids=["by rank", "by path"],
)
def test_a_model_without_logits_is_refused_with_what_to_pass_and_then_chosen_by(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no logits .* pass rankwise\.AllocationCallback\(draw_losses=lambda"):
        trainer_of(scorer(**fields), tmp_path).train()
    model = scorer(**fields)
    trainer_of(model, tmp_path, rankwise.AllocationCallback(draw_losses=drawing), max_steps=2).train()
    assert [(record["how"], record["proxy"]) for record in rankwise.history(model)] == [("probe", "newton")]
    batches = class_batches(6, size=8)
    refused = scorer(**fields)  # an Allocator holds it by a weak reference
    with pytest.raises(ValueError, match=r"no logits .* pass rankwise\.Allocator\(draw_losses=lambda"):
        rankwise.Allocator(refused, batches=batches).begin()
    model = scorer(**fields)
    rankwise.Allocator(model, batches=batches, draw_losses=drawing).begin()
    assert len(rankwise.history(model)) == 1


def test_every_guard_can_be_switched_off() -> None:
    one = class_batches(1, size=16)
    words = r"got 1: give more, or rankwise\.Allocator\(plan=\{'halves': False, 'cross_validate': False\}\)"
    with pytest.raises(ValueError, match=words):
        rankwise.Allocator(undecided(), batches=one)
    model = undecided(task_type=None, shortcuts=[])
    batches = class_batches(6, size=8)
    options: Any = {"halves": False, "breadth": 0.5, "damping": 0.3, "head_warmup": 0, "components": 3}
    rankwise.Allocator(model, batches=batches, plan=options)
    plan = rankwise.rank_plan(tiny_bert(3), batches, budget=300, target_modules=["query", "value"], **options)
    assert rankwise.history(model)[0]["ranks"] == plan.chosen
    uniform = undecided(task_type=None, shortcuts=[], budget=2 * 6 * 32)
    rankwise.Allocator(uniform, batches=one, plan={"halves": False, "breadth": 1.0})
    assert set(rankwise.history(uniform)[0]["ranks"].values()) == {2}
    assert len(rankwise.named_paths(uniform)) == 6


def test_a_time_limit_is_kept_and_leaves_a_model_that_trains() -> None:
    batches = class_batches(6, size=8)
    options: dict[str, Any] = {"budget": 300, "target_modules": ["query", "value"]}
    found = rankwise.rank_plan(tiny_bert(3), batches, time_limit=9.0, **options).time
    assert found is not None
    # a backward pass of one block and no more
    still, backward = (0.01,) * 3, (1.0,) * 3
    step = replace(found.step, outside=0.01, still=still, forward=still, backward=backward)
    step = replace(step, first=dict.fromkeys(step.first, 1e-3), more=dict.fromkeys(step.more, 0.0))
    limited = rankwise.rank_plan(tiny_bert(3), batches, time_limit=0.5, step_time=step, **options)
    assert {name.split(".")[1] for name in limited.chosen} == {"2"}
    model = undecided(task_type=None, shortcuts=[])
    rankwise.Allocator(model, batches=batches, plan={"time_limit": 0.5, "step_time": step})
    assert rankwise.history(model)[0]["ranks"] == limited.chosen
    measured = undecided(task_type=None, shortcuts=[])
    rankwise.Allocator(measured, batches=batches, plan={"time_limit": 9.0})
    measured.train()(**batches[0]).loss.backward()
    assert all(path.enabled and path.lora_B.grad is not None for path in rankwise.named_paths(measured).values())
    assert all(".lora_" in name for name, p in measured.named_parameters() if p.requires_grad)


def test_options_of_a_plan_that_nothing_makes_are_refused(tmp_path: Path) -> None:
    misspelt: Any = {"halfs": False}
    with pytest.raises(ValueError, match="no option of a rank plan, did you mean 'halves'"):
        rankwise.AllocationCallback(plan=misspelt)
    by_path = undecided(granularity="path")
    with pytest.raises(ValueError, match=r"plan=\{'halves': False\} .* set granularity='rank'"):
        rankwise.Allocator(by_path, batches=class_batches(2), plan={"halves": False})
    with pytest.raises(ValueError, match=r"plan=\{'halves': False\} .* set granularity='rank'"):
        trainer_of(by_path, tmp_path, rankwise.AllocationCallback(plan={"halves": False})).train()


def replica(_: slice | None, folder: str, size: int) -> dict[str, Any]:
    """Train in this process, one of two or alone, and report what it chose and every number it ended with."""
    model = adapted(
        tiny_bert(3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), **{**FIELDS, "score_batches": 6}
    )
    # the probe's rows are dealt over the processes: two of half the batch see what one of the whole batch sees
    trainer_of(model, Path(folder), per_device_train_batch_size=size, ddp_find_unused_parameters=False).train()
    (record,) = rankwise.history(model)
    trained = {name: value.flatten().tolist() for name, value in weights(model).items()}
    return {"ranks": record["ranks"], "weights": trained}


@pytest.mark.distributed
def test_two_processes_choose_the_ranks_that_one_does_and_stay_replicas(tmp_path: Path) -> None:
    first, second = in_two_processes(replica, tmp_path, str(tmp_path / "two"), 4)
    assert first == second
    assert first["ranks"] == replica(None, str(tmp_path / "one"), 8)["ranks"]


def test_a_trainer_that_finds_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no checkpoint: leave it out to start anew"):
        trainer_of(undecided(), tmp_path).train(resume_from_checkpoint=True)
