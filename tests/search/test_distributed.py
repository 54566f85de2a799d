"""Two processes under DistributedDataParallel stay replicas and choose what one process would choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import adapted, class_batches, tiny_bert
from tests.processes import in_two_processes

import rankwise

STEPS = 8


def model(find_unused: bool | None, **fields: Any) -> Any:
    made = adapted(
        tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        mode="dynamic",
        budget=0.5,
        search_every=2,
        score_batches=2,
        **fields,
    ).train()
    if find_unused is None:
        return made
    return torch.nn.parallel.DistributedDataParallel(made, find_unused_parameters=find_unused)


def train(wrapped: Any, share: slice) -> dict[str, Any]:
    """Train on a share of each batch; report what is on, what moved while off, and every number."""
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    drift = 0.0
    for batch in class_batches(STEPS):
        wrapped(**{key: value[share] for key, value in batch.items()}).loss.backward()
        off = [p for path in rankwise.named_paths(wrapped).values() if not path.enabled for p in path.parameters]
        before = [parameter.detach().clone() for parameter in off]
        optimizer.step()
        optimizer.zero_grad()
        drift = max([drift, *((a - b).abs().max().item() for a, b in zip(off, before, strict=True))])
    paths = rankwise.named_paths(wrapped)
    return {
        "chosen": [record["chosen"] for record in rankwise.history(wrapped)],
        "scores": [record["scores"] for record in rankwise.history(wrapped)],
        "weights": [path.lora_B.flatten().tolist() + path.lora_A.flatten().tolist() for path in paths.values()],
        "drift": drift,
    }


def replica(share: slice, find_unused: bool, fields: dict[str, Any]) -> dict[str, Any]:
    return train(model(find_unused, **fields), share)


def static(share: slice, mode: str) -> str:
    """What is told where the first step's graph is taken for all steps'."""
    fields: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["query"], "budget": 0.5, "mode": mode}
    wrapped = torch.nn.parallel.DistributedDataParallel(adapted(tiny_bert(), **fields).train(), static_graph=True)
    try:
        wrapped(**{key: value[share] for key, value in class_batches(1)[0].items()}).loss.backward()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_static_graph_is_refused_where_what_trains_changes(tmp_path: Path) -> None:
    told = in_two_processes(static, tmp_path, "dynamic")
    assert told[0] == told[1]
    assert told[0].startswith("DistributedDataParallel(static_graph=True) reduces what the first step needed")
    assert in_two_processes(static, tmp_path, "off") == ["", ""]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("find_unused", "fields"),
    [(False, {}), (True, {"sketch": 4}), (False, {"proxy": "constant"})],
    ids=["exact", "sketch", "constant"],
)
def test_two_processes_are_replicas_and_agree_with_one(
    find_unused: bool, fields: dict[str, Any], tmp_path: Path
) -> None:
    first, second = in_two_processes(replica, tmp_path, find_unused, fields)
    assert first == second
    assert first["drift"] == 0.0
    assert len(first["chosen"]) >= 3
    alone = train(model(None, **fields), slice(0, 4))
    assert alone["chosen"] == first["chosen"]
    for one, two in zip(alone["scores"], first["scores"], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
