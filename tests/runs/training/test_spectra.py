"""What a run writes at each epoch's end: the numbers themselves, and the same ones after a resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import adapted, tiny_bert
from tests.runs.conftest import Make
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

import rankwise
from rankwise.paths.path_set import path_set
from rankwise.report import gradient_ratio, read_gradients, read_spectra, spectra
from rankwise.runs.folder import RunFolder
from rankwise.runs.training.spectra import GradientsFile, SpectraFile, watchers
from rankwise.runs.training.train import train

STEPS = 3  # in an epoch


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random token rows with labels, a function of their index."""

    def __len__(self) -> int:
        return 4 * STEPS

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


class ByHand(TrainerCallback):
    """Each path's gradients and ``B``, step by step, as they are."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = {}
        for name, path in rankwise.named_paths(kwargs["model"]).items():
            assert path.lora_A.grad is not None
            assert path.lora_B.grad is not None
            step[name] = (path.lora_A.grad.clone(), path.lora_B.grad.clone(), path.lora_B.detach().clone())
        self.steps.append(step)


def lor2c(**fields: Any) -> PeftModel:
    config = rankwise.Lor2cConfig(task_type="SEQ_CLS", r=4, **fields)
    model = get_peft_model(tiny_bert(4), config)
    assert isinstance(model, PeftModel)
    return model


def both() -> PeftModel:
    return adapted(tiny_bert(3), task_type="SEQ_CLS", target_modules=["query", "value"], shortcuts=["layer"])


def trainer(model: PeftModel, out: Path, *callbacks: TrainerCallback, **arguments: Any) -> Trainer:
    options: dict[str, Any] = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": [],
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **arguments,
    }
    made = TrainingArguments(str(out), **options)
    return Trainer(model, made, train_dataset=Examples(), callbacks=[*callbacks, *watchers(model, RunFolder(out))])


def test_singular_values_of_each_path_at_each_epochs_end(tmp_path: Path) -> None:
    model = lor2c(merges=1, injections=1)
    trainer(model, tmp_path).train()
    records = read_spectra(tmp_path / "spectra.jsonl")
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert [record["step"] for record in rankwise.history(model)] == [3, 3]
    left = {name: path for name, path in rankwise.named_paths(model).items() if path.kind == "layer"}
    assert [len(record["paths"]) for record in records] == [2, 2, 2, 2]  # 4, less one merged and one replaced
    assert list(records[-1]["paths"]) == list(left)
    for name, values in records[-1]["paths"].items():
        dense = torch.linalg.svdvals(left[name].lora_B.double() @ left[name].lora_A.double())
        assert values == pytest.approx(dense[:4].tolist(), rel=1e-4)
    assert spectra(records).paths == [2, 2, 2, 2]
    assert not (tmp_path / "gradients.jsonl").exists()  # the LoRA came later, so there is no ratio


def test_a_frozen_path_is_still_seen_and_part_of_an_epoch_is_written(tmp_path: Path) -> None:
    model = lor2c(merges=1, freeze_merged=True)
    trainer(model, tmp_path, StopAt(5)).train()
    records = read_spectra(tmp_path / "spectra.jsonl")
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 3), (pytest.approx(5 / 3, abs=1e-4), 5)]
    (span,) = (name for name in records[-1]["paths"] if "-" in name)
    assert records[0]["paths"][span] == records[1]["paths"][span] != [0.0] * 4


def test_a_path_that_diverged_is_left_out_and_does_not_end_the_run(tmp_path: Path) -> None:
    model = lor2c()
    with torch.no_grad():
        rankwise.named_paths(model)["layers.1.layer"].lora_A[0, 0] = float("inf")
    line = SpectraFile(tmp_path / "spectra.jsonl").line(path_set(model))
    assert list(line["paths"]) == ["layers.0.layer", "layers.2.layer", "layers.3.layer"]


@pytest.mark.parametrize("stop", [4, 6])
def test_a_resumed_run_writes_what_the_uninterrupted_one_does(tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(both(), whole).train()
    trainer(both(), parts, StopAt(stop)).train()
    for file in ("spectra.jsonl", "gradients.jsonl"):  # as if the run had gone on before it was cut off
        lines = (parts / file).read_text(encoding="utf-8")
        (parts / file).write_text(lines + json.dumps({"epoch": 9.0, "step": 99}) + "\n", encoding="utf-8")
    trainer(both(), parts).train(resume_from_checkpoint=str(parts / f"checkpoint-{stop}"))
    for file in ("spectra.jsonl", "gradients.jsonl"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes()


def test_gradients_are_the_means_of_what_each_step_had(tmp_path: Path) -> None:
    by_hand = ByHand()
    trainer(both(), tmp_path, by_hand, num_train_epochs=2).train()
    records = read_gradients(tmp_path / "gradients.jsonl")
    assert [record["steps"] for record in records] == [3, 3]
    for epoch, record in enumerate(records):
        steps = by_hand.steps[STEPS * epoch : STEPS * (epoch + 1)]
        assert list(record["blocks"]) == ["0", "1", "2"]
        for block, kinds in record["blocks"].items():
            for kind, names in (("layer", ["layer"]), ("linear", ["query", "value"])):
                seen = [step[f"layers.{block}.{name}"] for step in steps for name in names]
                flat_a, flat_b = (torch.cat([each[place].flatten().abs() for each in seen]) for place in (0, 1))
                assert kinds[kind] == {
                    "grad_A": pytest.approx(float(flat_a.mean()), rel=1e-4),
                    "grad_B": pytest.approx(float(flat_b.mean()), rel=1e-4),
                    "size_A": flat_a.numel() / STEPS,
                    "size_B": flat_b.numel() / STEPS,
                    "norm_B": pytest.approx(sum(float(each[2].norm()) for each in seen) / len(seen), rel=1e-4),
                }
    first = {name: grads[0] for name, grads in by_hand.steps[0].items()}
    assert not any(gradient.any() for gradient in first.values())  # at B = 0, A has none
    assert all(value > 0 for row in gradient_ratio(records).values for value in row)


def test_a_merged_path_counts_in_each_of_its_blocks(tmp_path: Path) -> None:
    model = both()
    rankwise.apply_(model, [rankwise.Merge("layers.0.layer", "layers.1.layer")])
    trainer(model, tmp_path, num_train_epochs=1).train()
    (record,) = read_gradients(tmp_path / "gradients.jsonl")
    assert record["blocks"]["0"]["layer"] == record["blocks"]["1"]["layer"] != record["blocks"]["2"]["layer"]


@pytest.mark.parametrize(
    ("make_model", "expected"),
    [
        (both, {SpectraFile: 1, GradientsFile: 1}),
        (lor2c, {SpectraFile: 1}),
        (lambda: adapted(tiny_bert(), target_modules=["query"]), {}),
        (lambda: adapted(tiny_bert(), target_modules=[], shortcuts=["layer"]), {SpectraFile: 1}),
        (
            lambda: adapted(tiny_bert(), target_modules=["query"], shortcuts=["layer"], mode="dynamic", budget=0.5),
            {SpectraFile: 1},
        ),
        (lambda: get_peft_model(tiny_bert(), LoraConfig(r=2, target_modules=["query"])), {}),
        (tiny_bert, {}),
    ],
)
def test_only_what_a_model_can_tell_is_recorded(make_model: Any, expected: dict[type, int], tmp_path: Path) -> None:
    found = watchers(make_model(), RunFolder(tmp_path))
    assert Counter(type(each) for each in found) == expected


def test_the_runner_records_and_clears_away(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = make("heterolora", method={"mode": "off", "shortcuts": ["layer"], "budget": 1.0})
    train(recipe, out)
    records = read_spectra(out / "spectra.jsonl")
    assert records[-1]["step"] == 6
    assert read_gradients(out / "gradients.jsonl")[-1]["step"] == 6
    train(make("lora"), out, overwrite=True)
    assert not {"spectra.jsonl", "gradients.jsonl"} & {path.name for path in out.iterdir()}
