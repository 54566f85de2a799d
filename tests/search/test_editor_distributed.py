"""LoR2C in two processes, replicated (DDP) and sharded (FSDP2): they stay alike and make the edits that one would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.families import FAMILIES
from tests.models import tokens
from tests.processes import in_two_processes
from tests.search.test_editor import edits_of, owned, snapshot, trainable
from tests.shortcuts import checkpointed
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import rankwise

STEPS = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bert", {}),
    "shared": ("bert", {"share": True}),
    "plain, llama, checkpointed": ("llama", {"checkpointing": True}),
    "shared, llama, frozen after the merge": ("llama", {"share": True, "freeze_merged": True}),
}


def made(case: str) -> Any:
    """A merge is due after the second of eight steps, an injection after the third."""
    name, given = CASES[case]
    fields = {key: value for key, value in given.items() if key != "checkpointing"}
    config = rankwise.Lor2cConfig(
        task_type="CAUSAL_LM" if FAMILIES[name].causal else "SEQ_CLS",
        r=4,
        merges=1,
        injections=1,
        edit_unit="steps",
        total_steps=STEPS,
        separate_edits=True,
        **fields,
    )
    model: Any = get_peft_model(FAMILIES[name](4), config).train()
    return checkpointed(model) if "checkpointing" in given else model


def run(case: str, share: slice, *, parallel: bool) -> dict[str, Any]:
    """Train on a share of each batch; report the edits, what a step moved that was off, and every number."""
    model = made(case)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=False) if parallel else model
    optimizer = torch.optim.AdamW(trainable(wrapped), 1e-2, weight_decay=0.1)
    paths = model.get_base_model().rankwise_paths["default"]
    drift, strange = 0.0, []
    for seed in range(STEPS):
        ids = tokens(4, seed=seed)
        labels = ids if FAMILIES[CASES[case][0]].causal else torch.arange(4) % 2
        wrapped(input_ids=ids[share], labels=labels[share]).loss.backward()
        off = [(p, p.detach().clone()) for p in paths.idle_parameters()]
        wanted, before = owned(model), snapshot(model)
        optimizer.step()
        optimizer.zero_grad()
        changed = {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
        strange += sorted(changed ^ wanted)
        drift = max([drift, *((p - kept).abs().max().item() for p, kept in off)])
    found = {
        "edits": edits_of(model),
        "records": [[r.to_dict()["edits"], r["chosen"], r["counts"]] for r in rankwise.history(model)],
        "scores": [record["scores"] for record in rankwise.history(model)],
        "names": list(rankwise.named_paths(model)),
        "weights": {key: tensor.flatten().tolist() for key, tensor in model.state_dict().items()},
        "drift": drift,
        "strange": strange,
    }
    rankwise.detach(model)
    return found


def sharded(share: slice) -> dict[str, Any]:
    """The first case under FSDP2: what is sharded, the edits, what off paths drifted by, every number in full."""
    model = made("plain")
    for block in model.get_base_model().bert.encoder.layer:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(trainable(model), 1e-2, weight_decay=0.1)
    paths = model.get_base_model().rankwise_paths["default"]
    drift = 0.0
    for seed in range(STEPS):
        model(input_ids=tokens(4, seed=seed)[share], labels=(torch.arange(4) % 2)[share]).loss.backward()
        off = [(p, whole(p).clone()) for p in paths.idle_parameters()]
        optimizer.step()
        optimizer.zero_grad()
        drift = max([drift, *((whole(p) - kept).abs().max().item() for p, kept in off)])
    found = {
        "sharded": sum(isinstance(parameter, DTensor) for parameter in model.parameters()),
        "edits": edits_of(model),
        "drift": drift,
        "weights": {name: whole(p).flatten().tolist() for name, p in model.named_parameters()},
    }
    rankwise.detach(model)
    return found


def whole(parameter: torch.Tensor) -> torch.Tensor:
    tensor = parameter.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def both(share: slice) -> dict[str, Any]:
    return {case: run(case, share, parallel=True) for case in CASES} | {"FSDP": sharded(share)}


@pytest.mark.distributed
def test_two_processes_are_replicas_and_edit_as_one(tmp_path: Path) -> None:
    ranks = in_two_processes(both, tmp_path)
    for case in CASES:
        first, second = (found[case] for found in ranks)
        assert first == second, case
        assert [edit for _, edit in first["edits"] if edit != "Disable"] == ["Merge", "Inject"], case
        assert first["drift"] == 0.0, case
        assert first["strange"] == [], case
        alone = json.loads(json.dumps(run(case, slice(0, 4), parallel=False)))
        for key in ("edits", "records", "names"):
            assert alone[key] == first[key], case
        for one, two in zip(alone["scores"], first["scores"], strict=True):
            assert two == pytest.approx(one, rel=1e-3), case
        for name, values in alone["weights"].items():
            assert first["weights"][name] == pytest.approx(values, rel=1e-2, abs=1e-3), f"{case}: {name}"
    first, second = (found["FSDP"] for found in ranks)
    replicated = ranks[0]["plain"]
    assert first == second
    assert first["sharded"] > 0
    assert first["edits"] == replicated["edits"]
    assert first["drift"] == 0.0
    for name, values in first["weights"].items():
        assert replicated["weights"][name] == pytest.approx(values, rel=1e-2, abs=1e-3), f"FSDP: {name}"
