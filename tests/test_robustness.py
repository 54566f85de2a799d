"""What goes wrong around a training: interruptions, files without some tensors, adapters deleted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.models import class_batches, fill_, logits, tiny_bert, tokens
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

import rankwise
from rankwise import Disable, HeteroLoraConfig, Inject, Lor2cConfig, Merge
from rankwise.rules.records import edits

STEPS: dict[str, Any] = {"edit_unit": "steps", "total_steps": 8}


def lor2c(blocks: int = 4, **fields: Any) -> Any:
    return get_peft_model(tiny_bert(blocks), Lor2cConfig(r=4, **fields)).eval()


@pytest.mark.parametrize(
    "fields", [{}, {"shortcuts": ["res1"]}, {"rank_budget": 400, "mode": "off"}], ids=["linear", "shortcuts", "ranks"]
)
def test_targets_left_out_are_the_familys(fields: dict[str, Any]) -> None:
    model: Any = get_peft_model(tiny_bert(), HeteroLoraConfig(**{"r": 2, "budget": 1.0, "mode": "dynamic", **fields}))
    linear = [name for name, path in rankwise.named_paths(model).items() if path.kind == "linear"]
    assert linear == [f"layers.{block}.{name}" for block in range(2) for name in ("query", "value")]
    assert rankwise.plan(tiny_bert(), HeteroLoraConfig(r=2, budget=1.0, mode="dynamic")).candidates == 4
    assert rankwise.plan_lora(tiny_bert(), class_batches(), budget=0.5, granularity="path").r == 8


@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
def test_a_file_without_idle_paths_loads_without_memory(share: bool, tmp_path: Path) -> None:
    model = lor2c(share=share, injections=4, **STEPS)
    edits: list[Any] = [Inject("layers.0.layer"), Merge("layers.1.layer", "layers.2.layer", "layers.2.layer")]
    rankwise.apply_(model, edits)
    fill_(model)
    model.save_pretrained(tmp_path, enabled_only=True)
    lean: Any = PeftModel.from_pretrained(tiny_bert(4), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(lean), logits(model))
    assert not any(parameter.is_meta for parameter in lean.parameters())
    fresh = get_peft_model(tiny_bert(4), Lor2cConfig(r=4, share=share, injections=4, **STEPS))
    idle = {n for n, p in lean.get_base_model().rankwise_paths["default"].paths.items() if not p.contributing}
    assert not idle
    for ours, theirs in zip(resident(lean), resident(fresh), strict=True):
        if not ours.contributing and not share:
            assert torch.equal(ours.lora_A, theirs.lora_A), ours.own_name
            assert torch.equal(ours.lora_B, theirs.lora_B), ours.own_name
    lean.save_pretrained(tmp_path / "again")
    lean.to("cpu")


def resident(model: Any) -> Any:
    return model.get_base_model().rankwise_paths["default"].resident


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] for key, value in class_batches(index + 1, 1)[index].items()}


class Interrupt(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


def trainer_of(folder: Path, model: Any, *callbacks: TrainerCallback) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=8,
        per_device_train_batch_size=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="epoch",
    )
    return Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks))


def edits_of(model: Any) -> list[tuple[int, str]]:
    return [(r.step, type(edit).__name__) for r in edits(rankwise.history(model)) for edit in r.edits]


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False], ids=["same trainer", "new trainer"])
def test_an_interrupted_run_leaves_no_stale_listener(same: bool, tmp_path: Path) -> None:
    model = lor2c(merges=1, injections=1)
    interrupt = Interrupt(3)
    trainer = trainer_of(tmp_path, model, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    interrupt.at = -1
    again = trainer if same else trainer_of(tmp_path / "new", model)
    again.train()
    assert edits_of(model) == [(4, "Merge"), (4, "Inject")]
    assert (Path(str(again.args.output_dir)) / "checkpoint-16" / "rankwise_search.json").is_file()


@pytest.mark.slow
def test_an_editor_made_by_hand_is_resumed_with_trainer(tmp_path: Path) -> None:
    whole = lor2c(merges=1, injections=1)
    trainer_of(tmp_path, whole).train()
    again = lor2c(merges=1, injections=1)
    rankwise.Editor(again, steps_per_epoch=2, total_steps=16)
    trainer_of(tmp_path, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert edits_of(again) == edits_of(whole) == [(4, "Merge"), (4, "Inject")]


def test_an_adapter_that_transformers_deletes_takes_its_edits_along() -> None:
    model = tiny_bert(3)
    model.add_adapter(Lor2cConfig(r=4, merges=1, **STEPS), "a")
    model.train()
    model(**class_batches(1)[0]).loss.backward()
    model.delete_adapter("a")
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    with pytest.raises(ValueError, match="has no rankwise paths"):
        rankwise.named_paths(model, "a")


def test_blocks_that_are_dropped_leave_a_span_without_its_source() -> None:
    base: Any = FAMILIES["opt-pre"](4)
    base.model.decoder.layerdrop = 0.5
    model: Any = get_peft_model(base, Lor2cConfig(r=4)).train()
    fill_(model)
    rankwise.apply_(model, [Merge("layers.1.layer", "layers.2.layer")])
    for seed in range(20):
        torch.manual_seed(seed)
        assert model(input_ids=tokens()).logits.isfinite().all()


def test_idle_paths_stay_still_where_nothing_is_searched() -> None:
    model: Any = lor2c(3).train()
    fill_(model)
    rankwise.apply_(model, [Disable("layers.1.layer")])
    path = rankwise.named_paths(model)["layers.1.layer"]
    before = path.lora_B.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    model(**class_batches(1)[0]).loss.backward()
    path.lora_B.grad = torch.zeros_like(path.lora_B)  # what a reduction over processes leaves
    optimizer.step()
    assert torch.equal(path.lora_B, before)
    assert rankwise.history(model) == []


def test_detached_edits_stay_away_until_an_editor_is_made() -> None:
    model: Any = lor2c(4, merges=1, **STEPS).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    rankwise.detach(model)
    for batch in class_batches(4):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert rankwise.history(model) == []
    rankwise.Editor(model, optimizer)
    for batch in class_batches(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert edits_of(model) == [(2, "Merge")]


def test_edits_go_by_the_structure_and_not_by_its_history() -> None:
    model = lor2c(4, merges=1, injections=1, strict_neighbours=True, metric="mean_sv", **STEPS)
    fill_(model)
    rankwise.apply_(model, [Inject("layers.1.layer")])
    editor = rankwise.Editor(model)
    assert editor.injected_blocks() == {1}
    assert editor.edit("merge").skipped  # of blocks 0, 2 and 3 two lie beside the injected one
    with torch.no_grad():
        rankwise.named_paths(model)["layers.3.layer"].lora_A.fill_(float("nan"))
    assert editor.edit("inject")["unscored"] == ["layers.3.layer"]
    editor.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers_to_transform": [0, 2], "merges": 1}, "merges=1: 2 blocks have at most 0 merges"),
        ({"inject_targets": ["layer.0.attention.self.query"], "injections": 2}, "are in 1 blocks only"),
        ({"inject_targets": "query", "injections": 1}, r"inject_targets='query' must be a list: \['query'\]"),
        ({"inject_alpha": -1, "injections": 1}, "inject_alpha=-1 must be positive"),
        ({"share": "no"}, "share='no' must be True or False"),
    ],
)
def test_late_errors_come_early(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lor2c(3, **fields)


def test_one_adapter_merges_beside_anothers_shortcuts() -> None:
    model: Any = get_peft_model(tiny_bert(2), HeteroLoraConfig(r=2, target_modules=["query"], mode="off"), "linear")
    model.add_adapter("block", HeteroLoraConfig(r=2, target_modules=[], shortcuts=["res1"], mode="off"))
    fill_(model)
    wanted = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload(adapter_names=["linear"])), wanted)


def test_blocks_may_return_tuples_and_model_outputs() -> None:
    from rankwise.wiring.block_hooks import output_tensor, with_output_tensor

    x, y = torch.ones(2), torch.zeros(2)
    for output in (x, (x, None), BaseModelOutput(last_hidden_state=x, attentions=(y,))):
        assert output_tensor(output) is x
        changed = with_output_tensor(output, y)
        assert type(changed) is type(output)
        assert output_tensor(changed) is y
        assert output_tensor(output) is x
