"""HeteroLoRA under FSDP2 in two processes: it chooses what one process does, and goes on from a sharded checkpoint."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from tests.models import adapted, class_batches, tiny_bert
from tests.processes import ROOT, in_two_processes
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import rankwise
from rankwise.search.checkpoint import load_search

STEPS, SAVED_AFTER = 9, 5  # searches after steps 2, 4, 6, 8: a window is open when it is saved
QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FIELDS: dict[str, dict[str, Any]] = {
    "grad_norm": {},
    "sketch": {"sketch": 4},
    "shortcuts": {"shortcuts": ["res1", "layer"], "on_disable": "freeze"},
}


def made(case: str, *, shard: bool) -> Any:
    model: Any = adapted(
        tiny_bert(**QUIET),
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        mode="dynamic",
        budget=0.5,
        search_every=2,
        score_batches=2,
        **FIELDS[case],
    ).train()
    if shard:
        for block in model.get_base_model().bert.encoder.layer:
            fully_shard(block)
        fully_shard(model)
    return model


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)


def train(model: Any, optimizer: torch.optim.Optimizer, share: slice, steps: range) -> None:
    for batch in class_batches(STEPS)[steps.start : steps.stop]:
        model(**{key: value[share] for key, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def report(model: Any) -> dict[str, Any]:
    found = {
        "chosen": [[record.step, record["chosen"]] for record in rankwise.history(model)],
        "scores": [record["scores"] for record in rankwise.history(model)],
        "weights": {name: whole(p).flatten().tolist() for name, p in model.named_parameters() if "lora_" in name},
        "sharded": sum(isinstance(parameter, DTensor) for parameter in model.parameters()),
    }
    rankwise.detach(model)
    return found


def sharded(share: slice, folder: str) -> dict[str, Any]:
    """Train in one go; and until a checkpoint, from which a fresh model and optimizer go on as the example does it."""
    sys.path.insert(0, str(ROOT / "examples" / "training"))
    example = importlib.import_module("with_fsdp2")
    found: dict[str, Any] = {}
    for case in FIELDS:
        at = Path(folder) / case
        model = made(case, shard=True)
        optimizer = optimizer_of(model)
        search = rankwise.Allocator(model, optimizer)
        train(model, optimizer, share, range(SAVED_AFTER))
        example.save_checkpoint(at, model, optimizer, search)
        gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:
            model.save_pretrained(str(at / "adapter"), state_dict=gathered)
        half = {name: whole(p).flatten().tolist() for name, p in model.named_parameters() if "lora_" in name}
        train(model, optimizer, share, range(SAVED_AFTER, STEPS))
        found[case] = {"uninterrupted": report(model), "saved": half}

        fresh = made(case, shard=True)
        optimizer = optimizer_of(fresh)
        example.load_checkpoint(at, fresh, optimizer)
        load_search(rankwise.Allocator(fresh, optimizer), at)
        train(fresh, optimizer, share, range(SAVED_AFTER, STEPS))
        found[case]["resumed"] = report(fresh)
    return found


@pytest.mark.distributed
def test_shards_choose_as_one_and_go_on_from_their_checkpoint(tmp_path: Path) -> None:
    first, second = in_two_processes(sharded, tmp_path, str(tmp_path))
    assert first == second
    for case, found in first.items():
        assert found["uninterrupted"]["sharded"] > 0
        for key in ("chosen", "weights"):
            assert found["resumed"][key] == found["uninterrupted"][key], (case, key)
        for scores, others in zip(found["resumed"]["scores"], found["uninterrupted"]["scores"], strict=True):
            assert scores == pytest.approx(others, rel=1e-4), case  # an open window's sums are added in another order
        alone = made(case, shard=False)
        optimizer = optimizer_of(alone)
        rankwise.Allocator(alone, optimizer)
        train(alone, optimizer, slice(0, 4), range(STEPS))
        one = report(alone)
        assert len(one["chosen"]) >= 4
        assert one["chosen"] == found["uninterrupted"]["chosen"], case
        for name, values in one["weights"].items():
            assert found["uninterrupted"]["weights"][name] == pytest.approx(values, rel=1e-2, abs=1e-3), name
        loaded: Any = PeftModel.from_pretrained(tiny_bert(**QUIET), tmp_path / case / "adapter")
        for name, values in found["saved"].items():
            assert loaded.get_parameter(name).flatten().tolist() == values, name
