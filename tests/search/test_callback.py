"""In Trainer, and in what derives from it, a search knows epochs, probes first, and resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import adapted, tiny_bert, tiny_llama
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import rankwise
from rankwise.paths.path_set import path_set

EXAMPLES = 32


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token rows with labels, a function of their index."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(4, 40, (6,), generator=generator), "labels": torch.tensor(index % 2)}


class StopAt(TrainerCallback):
    """Ends a run early, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def searching(**fields: Any) -> PeftModel:
    options = {
        "mode": "dynamic",
        "budget": 0.5,
        "score_batches": 2,
        "lora_dropout": 0.1,
        "target_modules": ["query", "value"],
        **fields,
    }
    return adapted(tiny_bert(), task_type="SEQ_CLS", **options)


def trainer(
    model: nn.Module, out: Path, *callbacks: TrainerCallback, evaluate: bool = False, **arguments: Any
) -> Trainer:
    options: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": [],
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **arguments,
    }
    evaluated = Examples() if evaluate else None
    made = TrainingArguments(str(out), **options)
    return Trainer(model, made, train_dataset=Examples(), eval_dataset=evaluated, callbacks=[*callbacks])


def searched_at(model: nn.Module) -> list[tuple[int, str]]:
    return [(record["step"], record["how"]) for record in rankwise.history(model)]


def test_nothing_but_the_config_is_needed(tmp_path: Path) -> None:
    model = searching(searches_per_epoch=3)
    logged: list[int] = []

    class Note(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append(logs["rankwise/enabled"])

    trainer(model, tmp_path, Note(), max_steps=-1, num_train_epochs=2).train()
    assert searched_at(model) == [(0, "probe"), *((step, "online") for step in (2, 5, 8, 10, 13))]
    assert path_set(model).session.listener is None
    assert len(logged) == 17  # sixteen steps and the summary
    assert set(logged) == {record["counts"]["enabled"] for record in rankwise.history(model)}


def test_the_choice_stays_after_stop_searching_at(tmp_path: Path) -> None:
    model = searching(search_every=2, stop_searching_at=0.5)
    trainer(model, tmp_path).train()
    assert [step for step, _ in searched_at(model)] == [0, 2]


def test_every_search_probes_when_asked(tmp_path: Path) -> None:
    model = searching(search_every=4, scoring="probe", warmup_searches=1)
    trainer(model, tmp_path).train()
    assert searched_at(model) == [(0, "random"), (4, "probe")]


def test_searching_does_not_change_what_the_run_draws(tmp_path: Path) -> None:
    """The order of the data and the dropout masks are those of a run that never searches."""
    losses = []
    for fields in ({"mode": "off"}, {"mode": "dynamic", "budget": 1.0, "search_every": 2}):
        run = trainer(searching(**fields), tmp_path)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ["adamw_torch", pytest.param("adamw_torch_fused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fields",
    [
        {"search_every": 3, "score_batches": 3},
        {"search_every": 3, "score_batches": 3, "sketch": 4, "on_disable": "reset"},
        {"search_every": 3, "proxy": "snip", "score_on": "factors", "on_disable": "freeze"},
        {"search_every": 2, "scoring": "probe"},
        {"mode": "static"},
    ],
    ids=["online", "sketch-reset", "snip-freeze", "probe", "static"],
)
def test_resumed_is_the_same_as_never_stopped(
    fields: dict[str, Any], checkpointing: bool, optimizer: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "activation_checkpointing": checkpointing,
        "optim": optimizer,
        "lr_scheduler_type": "cosine",
    }
    whole = searching(**fields)
    trainer(whole, tmp_path / "whole", **arguments).train()
    half = searching(**fields)
    trainer(half, tmp_path / "halves", StopAt(4), **arguments).train()
    resumed = searching(**fields)
    run = trainer(resumed, tmp_path / "halves", **arguments)
    run.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    for (name, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    strip = [[replace(r, seconds=0.0, tap_seconds=0.0) for r in rankwise.history(m)] for m in (whole, resumed)]
    assert strip[0] == strip[1]


def test_the_best_model_brings_its_allocation_back(tmp_path: Path) -> None:
    model = searching(search_every=2, proxy="constant", budget=0.25)
    saved: dict[int, list[str]] = {}

    class Note(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved[state.global_step] = [n for n, path in rankwise.named_paths(model).items() if path.enabled]

    run = trainer(
        model,
        tmp_path,
        Note(),
        evaluate=True,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    run.train()
    best = int(Path(str(run.state.best_model_checkpoint)).name.rpartition("-")[2])
    assert [name for name, path in rankwise.named_paths(model).items() if path.enabled] == saved[best]
    assert len({tuple(names) for names in saved.values()}) > 1


def test_a_checkpoint_without_its_search_is_refused(tmp_path: Path) -> None:
    trainer(searching(search_every=3), tmp_path, StopAt(4)).train()
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / "rankwise_search.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no rankwise_search\.json.*resume_from="):
        trainer(searching(search_every=3), tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_a_truncated_search_is_refused(tmp_path: Path) -> None:
    trainer(searching(search_every=3, score_batches=3), tmp_path, StopAt(4)).train()
    sums = tmp_path / "checkpoint-4" / "rankwise_search.safetensors"
    sums.write_bytes(sums.read_bytes()[:20])
    with pytest.raises(ValueError, match="is not as it was saved"):
        trainer(searching(search_every=3, score_batches=3), tmp_path).train(resume_from_checkpoint=str(sums.parent))


def test_a_moved_search_can_be_named(tmp_path: Path) -> None:
    trainer(searching(search_every=3), tmp_path, StopAt(4)).train()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("rankwise_search.json", "rankwise_search.safetensors"):
        (tmp_path / "checkpoint-4" / name).rename(elsewhere / name)
    model = searching(search_every=3)
    callback = rankwise.AllocationCallback(resume_from=elsewhere)
    trainer(model, tmp_path, callback).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [step for step, _ in searched_at(model)] == [0, 3, 6]


def test_a_callback_that_saves_elsewhere_does_not_lead_the_search_astray(tmp_path: Path) -> None:
    class SaveBeside(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.save_pretrained(str(tmp_path / "best"))

    trainer(searching(search_every=3), tmp_path, SaveBeside(), StopAt(4)).train()
    resumed = searching(search_every=3)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [step for step, _ in searched_at(resumed)] == [0, 3, 6]


def test_the_saved_folder_tells_the_story(tmp_path: Path) -> None:
    model = searching(search_every=4)
    trainer(model, tmp_path / "run").train()
    model.save_pretrained(str(tmp_path / "adapter"))
    records = [json.loads(line) for line in (tmp_path / "adapter" / "search_history.jsonl").read_text().splitlines()]
    assert records == [record.to_dict() for record in rankwise.history(model)]
    listed = json.loads((tmp_path / "adapter" / "allocation.json").read_text())
    assert sorted(listed["enabled"]) == sorted(records[-1]["chosen"])
    assert not list((tmp_path / "adapter").glob("*.bin"))
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "adapter")
    assert rankwise.history(loaded) == rankwise.history(model)


def test_a_callback_given_to_a_model_without_paths_fails_and_the_automatic_one_does_not(tmp_path: Path) -> None:
    def plain() -> PeftModel:
        model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
        assert isinstance(model, PeftModel)
        return model

    trainer(plain(), tmp_path).train()
    with pytest.raises(ValueError, match="has no rankwise paths"):
        trainer(plain(), tmp_path, rankwise.AllocationCallback()).train()


def test_a_run_that_ends_before_its_first_search_says_so(tmp_path: Path) -> None:
    model = searching(score_batches=9)

    def unlabelled(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack([row["input_ids"] for row in rows])}

    run = trainer(model, tmp_path, max_steps=2)
    run.data_collator = unlabelled
    run.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
    with pytest.warns(UserWarning, match="none ran in 2 optimizer steps"):
        run.train()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")  # what TRL still says
def test_trl_fine_tunes_through_the_config_alone(tmp_path: Path, shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = str(shared / "models" / "stories260k")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    lines = (shared / "data" / "alpaca" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:32]]
    data = Dataset.from_list([{"prompt": r["instruction"], "completion": " " + r["output"]} for r in rows])
    config = rankwise.HeteroLoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], mode="dynamic", search_every=2, score_batches=2
    )
    arguments = SFTConfig(
        str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=4,
        max_length=64,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    run = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=config,
    )
    run.train()
    model: Any = run.model
    assert [step for step, _ in searched_at(model)] == [0, 2, 4]
    costs = {path.num_parameters for path in rankwise.named_paths(model).values()}
    assert len(costs) == 2, "grouped-query attention: q and v cost differently"
    for record in rankwise.history(model):
        assert record["counts"]["enabled"] <= rankwise.plan(model).budget


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")  # what TRL still says
def test_dpo_searches_online_and_its_reference_stays_the_base_model(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    folder = str(shared / "models" / "stories260k")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    pair = {"prompt": "Once upon a time", "chosen": " there was a girl.", "rejected": " cats dogs."}
    arguments = DPOConfig(
        str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    run = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=Dataset.from_list([pair] * 16),
        processing_class=tokenizer,
        peft_config=rankwise.HeteroLoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["q_proj", "v_proj"],
            mode="dynamic",
            search_every=2,
            score_batches=2,
        ),
    )
    with caplog.at_level("WARNING", logger="rankwise"):
        run.train()
    model: Any = run.model
    assert "DPOTrainer computes the loss itself" in caplog.text
    assert "so the first search can't probe" in caplog.text
    assert searched_at(model) == [(2, "online"), (4, "online")]
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(
            model(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        )


def test_a_causal_model_with_accumulation_and_bf16(tmp_path: Path) -> None:
    model = adapted(
        tiny_llama(), task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], mode="dynamic", search_every=2
    )

    class Text(Examples):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            ids = super().__getitem__(index)["input_ids"]
            return {"input_ids": ids, "labels": ids}

    run = trainer(model, tmp_path, max_steps=4, gradient_accumulation_steps=2, bf16=True)
    run.train_dataset = Text()
    run.train()
    assert searched_at(model) == [(0, "probe"), (2, "online")]
    assert all(score is not None for record in rankwise.history(model) for score in record["scores"].values())


@pytest.mark.parametrize("hidden", [False, True])
def test_the_first_search_has_a_bar_where_trainer_has_one(
    hidden: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(searching(), tmp_path, max_steps=1, disable_tqdm=hidden).train()
    assert ("paths by grad_norm" in capsys.readouterr().err) is not hidden


def test_a_search_needs_no_bar(tmp_path: Path) -> None:
    """Where transformers shows none, what stands in for its bars can't even count."""
    model = searching()
    transformers.logging.disable_progress_bar()
    try:
        trainer(model, tmp_path, max_steps=1, disable_tqdm=False).train()
    finally:
        transformers.logging.enable_progress_bar()
    assert searched_at(model) == [(0, "probe")]
