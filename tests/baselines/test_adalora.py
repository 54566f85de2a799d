from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from tests.models import class_batches, logits, tiny_bert
from torch.nn import functional
from transformers import TrainerControl, TrainerState, TrainingArguments

from rankwise.baselines.adalora import (
    STATE,
    AdaLoraCallback,
    check_schedule,
    kept_parameters,
    layers,
    orthogonality,
    with_orthogonality,
)

STEPS = 8


def base() -> Any:
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def adalora(**fields: Any) -> PeftModel:
    options = {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["query", "value"], **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base(), AdaLoraConfig(task_type="SEQ_CLS", **options))
    assert isinstance(model, PeftModel)
    return model.train()


def run(model: PeftModel, folder: Path, *, start: int = 0, stop: int = STEPS, optimizer: Any = None) -> Any:
    """What Trainer does, in its order: step, ``on_optimizer_step``, zero_grad, and a checkpoint at the end."""
    args, control = TrainingArguments(output_dir=str(folder), report_to=[]), TrainerControl()
    state = TrainerState(global_step=start, max_steps=STEPS, is_world_process_zero=True)
    callback = AdaLoraCallback(model)
    callback.on_train_begin(args, state, control)
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(start, stop):
        model(**class_batches(STEPS)[step]).loss.backward()
        optimizer.step()
        callback.on_optimizer_step(args, state, control)
        optimizer.zero_grad()
        state.global_step += 1
    callback.on_save(args, state, control)
    return optimizer


def ranks(model: PeftModel) -> list[int]:
    return [int(torch.count_nonzero(layer.lora_E["default"])) for layer in layers(model)]


def test_the_start_is_the_base_model_and_ranks_are_taken_away(tmp_path: Path) -> None:
    model = adalora(tinit=1, tfinal=2)
    assert torch.equal(logits(model), logits(base()))
    run(model.train(), tmp_path)
    assert sum(ranks(model)) == 4 * 2
    assert kept_parameters(model) == 4 * 2 * (16 + 16 + 1)
    config: Any = model.peft_config["default"]
    assert config.total_step == STEPS
    assert not torch.equal(logits(model), logits(base()))


def test_without_the_final_phase_the_last_step_makes_the_choice(tmp_path: Path) -> None:
    model = adalora(deltaT=5)
    run(model, tmp_path)
    assert sum(ranks(model)) == 4 * 2


def test_the_choice_of_the_final_phase_stays(tmp_path: Path) -> None:
    model = adalora(tfinal=4)
    optimizer = run(model, tmp_path, stop=4)
    chosen = ranks(model)
    assert sum(chosen) == 4 * 2
    run(model, tmp_path, start=4, optimizer=optimizer)
    assert ranks(model) == chosen


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_it_resumes_exactly_also_where_ranks_are_gone(tmp_path: Path, stop: int) -> None:
    whole = adalora(tfinal=3)
    run(whole, tmp_path / "whole")
    model = adalora(tfinal=3)
    optimizer = run(model, tmp_path, stop=stop)
    folder = tmp_path / f"checkpoint-{stop}"
    model.save_pretrained(str(folder))
    resumed = adalora(tfinal=3)
    resumed.load_adapter(str(folder), "default", is_trainable=True)
    fresh = torch.optim.AdamW([p for p in resumed.parameters() if p.requires_grad], lr=1e-2)
    fresh.load_state_dict(optimizer.state_dict())
    run(resumed.train(), tmp_path, start=stop, optimizer=fresh)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_saved_and_reloaded_with_pefts_own_means(tmp_path: Path) -> None:
    model = adalora(tfinal=3)
    run(model, tmp_path)
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    assert ranks(again) == ranks(model)


def test_a_checkpoint_without_its_state_is_refused(tmp_path: Path) -> None:
    run(adalora(), tmp_path, stop=2)
    (tmp_path / "checkpoint-2" / STATE).unlink()
    with pytest.raises(FileNotFoundError, match="can't be resumed"):
        run(adalora(), tmp_path, start=2)


def test_an_update_without_gradients_is_an_error(tmp_path: Path) -> None:
    callback = AdaLoraCallback(adalora())
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="found no gradients"):
        callback.on_optimizer_step(arguments, TrainerState(max_steps=STEPS), TrainerControl())


@pytest.mark.parametrize(("tinit", "tfinal"), [(7, 0), (3, 4), (0, 9)])
def test_a_training_that_is_too_short_is_refused(tmp_path: Path, tinit: int, tfinal: int) -> None:
    model = adalora(tinit=tinit, tfinal=tfinal, total_step=100)
    words = rf"tinit={tinit} and tfinal={tfinal} leave 8 steps .*at least {tinit + tfinal + 2}, or"
    with pytest.raises(ValueError, match=words):
        run(model, tmp_path)


def test_a_target_that_takes_nothing_away_is_refused() -> None:
    with pytest.raises(ValueError, match="target_r=4 must be below init_r=4"):
        check_schedule(AdaLoraConfig(init_r=4, target_r=4, total_step=10))


def test_the_penalty_is_pefts() -> None:
    model = adalora(orth_reg_weight=0.3)
    batch = class_batches(1)[0]
    with_penalty = model(**batch).loss
    outputs = model(input_ids=batch["input_ids"])

    def plain(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return functional.cross_entropy(outputs.logits, labels)

    loss = with_orthogonality(plain, model)
    torch.testing.assert_close(loss(outputs, batch["labels"]), with_penalty)
    torch.testing.assert_close(with_penalty - plain(outputs, batch["labels"]), 0.3 * orthogonality(model))
    # Two micro-batches of a step of eight bear half of the penalty each.
    half = loss(outputs, batch["labels"], 8) - plain(outputs, batch["labels"])
    torch.testing.assert_close(half, 0.15 * orthogonality(model))
    model.eval()
    assert torch.equal(loss(outputs, batch["labels"]), plain(outputs, batch["labels"]))
