"""Training with shortcuts: searches over all kinds resume exactly, agree over processes, and run in other loops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from tests.families import FAMILIES
from tests.models import tokens
from tests.processes import in_two_processes
from tests.shortcuts import batches, checkpointed, gradients, kinds, made
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import rankwise
from rankwise.rules.records import Record, searches

SEARCH: dict[str, Any] = {"mode": "dynamic", "budget": 0.5, "score_batches": 2, "filled": False}


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token rows, a function of their index; the labels are a class, or the row itself."""

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = tokens(1, seed=index)[0]
        return {"input_ids": ids, "labels": ids if self.causal else torch.tensor(index % 2)}


class StopAt(TrainerCallback):
    """Ends a run early, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def trainer(name: str, model: nn.Module, out: Path, *callbacks: TrainerCallback, **arguments: Any) -> Trainer:
    options: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": [],
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **arguments,
    }
    made_of = TrainingArguments(str(out), **options)
    data = Texts(causal=FAMILIES[name].causal)
    return Trainer(model, made_of, train_dataset=data, callbacks=[*callbacks])


def records(model: nn.Module) -> list[Record]:
    """Return the history without what a clock said."""
    return [replace(record, seconds=0.0, tap_seconds=0.0) for record in rankwise.history(model)]


def searched_kinds(model: nn.Module) -> set[str]:
    """Return the kinds that were switched on or off by some search."""
    paths = rankwise.named_paths(model)
    return {paths[name].kind for r in searches(rankwise.history(model)) for name in (*r.switched_on, *r.switched_off)}


# Resumed.


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bert", {"search_every": 2, "proxy": "constant", "shortcut_norm": "reapply"}),
        pytest.param("opt-pre", {"search_every": 3, "score_batches": 3}, marks=pytest.mark.slow),
        ("llama", {"search_every": 3, "score_batches": 3, "sketch": 4, "on_disable": "reset", "shortcut_dropout": 0.1}),
        pytest.param(
            "gemma2",
            {"search_every": 3, "proxy": "snip", "score_on": "factors", "on_disable": "freeze"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resumed_is_the_same_as_never_stopped(
    name: str, fields: dict[str, Any], checkpointing: bool, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"activation_checkpointing": checkpointing, "lr_scheduler_type": "cosine"}
    whole, half, resumed = (made(name, **{**SEARCH, **fields}) for _ in range(3))
    trainer(name, whole, tmp_path / "whole", **arguments).train()
    trainer(name, half, tmp_path / "halves", StopAt(4), **arguments).train()
    checkpoint = str(tmp_path / "halves" / "checkpoint-4")
    trainer(name, resumed, tmp_path / "halves", **arguments).train(resume_from_checkpoint=checkpoint)
    for (key, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), key
    assert records(whole) == records(resumed)
    assert len({tuple(record["chosen"]) for record in records(whole)}) > 1
    assert searched_kinds(whole) - {"linear"}


def test_checkpointing_does_not_change_a_search(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = made("opt-post", **SEARCH, search_every=2)
        trainer("opt-post", model, tmp_path, activation_checkpointing=checkpointing).train()
        found.append(records(model))
    for plain, recomputed in zip(*found, strict=True):
        assert plain["chosen"] == recomputed["chosen"]
        assert recomputed["scores"] == pytest.approx(plain["scores"], rel=1e-4)


def test_reentrant_checkpointing_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = made("llama", **SEARCH)
    arguments = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"'cut' path and reentrant .*use_reentrant.: False.*or leave this kind out"):
        trainer("llama", model, tmp_path, **arguments).train()


@pytest.mark.parametrize("name", ["bert", "opt-pre"])
def test_off_paths_stand_still_and_the_budget_holds(name: str) -> None:
    model = made(name, **{**SEARCH, "filled": True}, search_every=1, proxy="constant").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    ever: set[str] = set()
    for batch in batches(name, 6):
        model(**batch).loss.backward()  # the first pass makes the first search
        paths = rankwise.named_paths(model)
        off = {key: [p.detach().clone() for p in path.parameters] for key, path in paths.items() if not path.enabled}
        ever |= paths.keys() - off.keys()
        assert sum(path.num_parameters for path in paths.values() if path.enabled) <= rankwise.plan(model).budget
        before = {key: path.lora_B.detach().clone() for key, path in paths.items() if path.enabled}
        optimizer.step()
        optimizer.zero_grad()
        for key, kept in off.items():
            assert all(torch.equal(a, b) for a, b in zip(kept, paths[key].parameters, strict=True)), key
        assert all(not torch.equal(paths[key].lora_B, was) for key, was in before.items())
    assert {rankwise.named_paths(model)[key].kind for key in ever} == {"linear", *kinds(name)}


# Several processes.

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert, the norm twice, checkpointed": ("bert", {"shortcut_norm": "reapply", "checkpointing": True}),
    "opt-pre": ("opt-pre", {"proxy": "constant"}),
    "llama, checkpointed": ("llama", {"sketch": 4, "checkpointing": True}),
}


def run(case: str, share: slice, *, parallel: bool) -> dict[str, Any]:
    """Train on a share of each batch; report what is on, what moved while off, and every number."""
    name, given = CASES[case]
    fields = {key: value for key, value in given.items() if key != "checkpointing"}
    wrapped = made(name, **{**SEARCH, "search_every": 2, **fields}).train()
    if "checkpointing" in given:
        checkpointed(wrapped)
    if parallel:
        wrapped = nn.parallel.DistributedDataParallel(wrapped, find_unused_parameters=False)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    drift = 0.0
    for seed in range(7):
        ids = tokens(4, seed=seed)
        labels = ids if FAMILIES[name].causal else torch.arange(4) % 2
        wrapped(input_ids=ids[share], labels=labels[share]).loss.backward()
        off = [p for path in rankwise.named_paths(wrapped).values() if not path.enabled for p in path.parameters]
        before = [parameter.detach().clone() for parameter in off]
        optimizer.step()
        optimizer.zero_grad()
        drift = max([drift, *((a - b).abs().max().item() for a, b in zip(off, before, strict=True))])
    found = {
        "chosen": [record["chosen"] for record in rankwise.history(wrapped)],
        "scores": [record["scores"] for record in rankwise.history(wrapped)],
        "weights": [p.flatten().tolist() for path in rankwise.named_paths(wrapped).values() for p in path.parameters],
        "drift": drift,
    }
    rankwise.detach(wrapped)
    return found


def replicas(share: slice) -> dict[str, Any]:
    return {case: run(case, share, parallel=True) for case in CASES}


@pytest.mark.distributed
def test_two_processes_are_replicas_and_agree_with_one(tmp_path: Path) -> None:
    ranks = in_two_processes(replicas, tmp_path)
    for case in CASES:
        first, second = (found[case] for found in ranks)
        assert first == second, case
        assert first["drift"] == 0.0, case
        assert len({tuple(chosen) for chosen in first["chosen"]}) >= 2, case
        assert len(first["chosen"]) >= 3, case
        alone = run(case, slice(0, 4), parallel=False)
        assert alone["chosen"] == first["chosen"], case
        for one, two in zip(alone["scores"], first["scores"], strict=True):
            assert two == pytest.approx(one, rel=1e-3), case


# Other loops.


def test_accelerate_accumulates_and_searches() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = made("gemma2", **SEARCH, search_every=2).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameters, 1e-2))
    for batch in batches("gemma2", 8):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    assert [record["step"] for record in records(model)] == [2, 4]
    assert {name.rpartition(".")[2] for name in records(model)[0]["scores"]} == {*kinds("gemma2"), "q_proj", "v_proj"}


def test_accumulated_micro_batches_give_the_gradient_of_the_whole() -> None:
    """A path's source and destination never mix between the micro-batches of a step."""
    model = made("opt-pre", FAMILIES["opt-pre"]().double()).train()
    ids = tokens(4, 6)
    model(input_ids=ids).logits.square().sum().backward()
    whole = gradients(model)
    for micro in ids.split(2):
        model(input_ids=micro).logits.square().sum().backward()
    for key, found in gradients(model).items():
        torch.testing.assert_close(found, whole[key], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")  # what TRL still says
def test_trl_fine_tunes_shortcuts_through_the_config_alone(tmp_path: Path, shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = str(shared / "models" / "stories260k")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    lines = (shared / "data" / "alpaca" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:32]]
    arguments = SFTConfig(
        str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=4,
        max_length=48,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    config = rankwise.HeteroLoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "v_proj"],
        shortcuts=["res1", "res2", "in", "cut"],
        mode="dynamic",
        search_every=2,
        score_batches=2,
    )
    process = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": row["instruction"], "completion": " " + row["output"]} for row in rows]
        ),
        processing_class=tokenizer,
        peft_config=config,
    )
    process.train()
    model: Any = process.model
    assert [record["step"] for record in records(model)] == [0, 2, 4]
    assert {path.kind for path in rankwise.named_paths(model).values()} == {"linear", "res1", "res2", "in", "cut"}
    for record in records(model):
        assert record["counts"]["enabled"] <= rankwise.plan(model).budget
        assert all(score is not None for score in record["scores"].values())
