"""FSDP2, a sharded checkpoint, and going on from it.

Run: torchrun --nproc_per_node 2 examples/training/with_fsdp2.py FOLDER
or alone, without a folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from _tiny import classifier, labelled, report
from peft import get_peft_model
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard

import rankwise
from rankwise.search.checkpoint import load_search, save_search


def made() -> tuple[Any, torch.optim.Optimizer]:
    config = rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        target_modules=["query", "value"],
        mode="dynamic",
        budget=0.5,
        search_every=4,
        score_batches=2,
    )
    model: Any = get_peft_model(classifier(), config).train()
    for block in model.get_base_model().bert.encoder.layer:
        fully_shard(block)
    fully_shard(model)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, search: Any) -> None:
    """Write every process's shards, and the search beside them."""
    weights, moments = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": moments}, checkpoint_id=str(folder))
    save_search(search, folder)


def load_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and moments, before a search listens.

    torch fills what is there already, and a path that was never on has no moments: they are made for the others only.
    """
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    rates = [group["lr"] for group in optimizer.param_groups]
    for name, parameter in model.named_parameters():
        if f"optimizer.state.{name}.step" in saved:
            parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    weights, moments = get_state_dict(model, optimizer)
    load({"model": weights, "optimizer": moments}, checkpoint_id=str(folder))
    not_all = StateDictOptions(strict=False)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=not_all)


def train(model: Any, optimizer: torch.optim.Optimizer, rows: Any) -> None:
    for start in range(dist.get_rank() * 4, len(rows), 4 * dist.get_world_size()):
        model(**rows[start : start + 4]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(folder: Path) -> None:
    rows = labelled().with_format("torch")
    model, optimizer = made()
    search = rankwise.Allocator(model, optimizer)
    train(model, optimizer, rows)
    save_checkpoint(folder, model, optimizer, search)

    again, optimizer = made()
    load_checkpoint(folder, again, optimizer)
    load_search(rankwise.Allocator(again, optimizer), folder)
    train(again, optimizer, rows)
    if dist.get_rank() == 0:
        report(again)


if __name__ == "__main__":
    alone = "RANK" not in os.environ
    if not alone and len(sys.argv) < 2:
        sys.exit("several processes need a folder that all of them see: with_fsdp2.py FOLDER")
    dist.init_process_group("gloo", **({"store": dist.HashStore(), "rank": 0, "world_size": 1} if alone else {}))
    with TemporaryDirectory() as temporary:
        main(Path(temporary if alone else sys.argv[1]))
    dist.destroy_process_group()
