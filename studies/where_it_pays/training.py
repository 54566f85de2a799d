"""Adapters by layout and one training loop for all arms: AdamW, linear decay from the first step on, no warm-up."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import get_linear_schedule_with_warmup

import rankwise
from rankwise import HeteroLoraConfig

SCALE = 2.0  # alpha / r of every path
KINDS = ("res1", "res2", "layer")
Batch = dict[str, torch.Tensor]


class Candidates:
    """The paths that a model offers.

    Args:
        model: A base model; it is left as it was.
        kinds: Kinds of block path.

    Attributes:
        costs: Parameters of a rank-1 component, by path.
        modules: Full name of the module a path belongs to, by path.
        largest: The largest rank that is not redundant, by path.
    """

    def __init__(self, model: nn.Module, kinds: Iterable[str] = KINDS) -> None:
        config = HeteroLoraConfig(
            r=1, lora_alpha=2, shortcut_alpha=2, target_modules=projections(model), shortcuts=list(kinds), mode="off"
        )
        trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        wrapped = get_peft_model(model, config)
        paths = rankwise.named_paths(wrapped)
        self.costs = {name: path.num_parameters for name, path in paths.items()}
        self.modules = {name: path.module for name, path in paths.items() if path.kind == "linear"}
        self.largest = {name: min(path.lora_A.shape[1], path.lora_B.shape[0]) for name, path in paths.items()}
        wrapped.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trains[name]

    def only(self, *leaves: str) -> dict[str, int]:
        """Return the costs of the paths whose name ends in one of the leaves; all linear ones if there are none."""
        names = [name for name in self.costs if name in self.modules] if not leaves else self._ending(leaves)
        return {name: self.costs[name] for name in names}

    def _ending(self, leaves: tuple[str, ...]) -> list[str]:
        return [name for name in self.costs if name.rpartition(".")[2] in leaves]


def projections(model: nn.Module) -> list[str]:
    """Return the full names of the linear maps inside the blocks."""
    pattern = re.compile(r"\.layers?\.\d+\.")
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and pattern.search(name)]


def adapter_config(
    layout: Mapping[str, int], candidates: Candidates, *, seed: int, task_type: str | None
) -> LoraConfig:
    """Return the config that builds a layout with ``alpha / r = 2`` on every path: plain LoRA where it can be.

    Args:
        layout: Rank of each path.
        candidates: The model's paths.
        seed: Seeds the initial values of block paths.
        task_type: PEFT's.
    """
    linear = {candidates.modules[name]: rank for name, rank in layout.items() if name in candidates.modules}
    across = {name: rank for name, rank in layout.items() if name not in candidates.modules}
    fields: dict[str, Any] = {
        "task_type": task_type,
        "target_modules": list(linear),
        "r": max(linear.values(), default=1),
    }
    fields["lora_alpha"] = SCALE * fields["r"]
    fields["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in linear.items() if rank != fields["r"]}
    fields["alpha_pattern"] = {name: SCALE * rank for name, rank in fields["rank_pattern"].items()}
    if not across:
        return LoraConfig(**fields)
    fields |= {"shortcuts": sorted({name.rpartition(".")[2] for name in across}), "mode": "off", "seed": seed}
    if len(set(across.values())) == 1 and set(across) == set(candidates.only(*fields["shortcuts"])):
        rank = max(across.values())
        return HeteroLoraConfig(**fields, shortcut_r=rank, shortcut_alpha=SCALE * rank)
    return HeteroLoraConfig(**fields, shortcut_r=1, shortcut_alpha=SCALE, shortcut_ranks=dict(across))


def trained(model: nn.Module) -> dict[str, int]:
    """Return how many parameters of a wrapped model train: of its paths, and of its head."""
    counts = {"adapter": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["adapter" if ".lora_" in name else "head"] += parameter.numel()
    return counts


def train(model: nn.Module, batches: Iterable[Batch], *, steps: int, rate: float, decay: bool = True) -> float:
    """Train what requires a gradient and return the seconds that took; one batch is one step.

    Args:
        model: A model that returns a loss.
        batches: At least ``steps`` batches.
        steps: Optimizer steps.
        rate: The first learning rate.
        decay: Linear decay to zero, else constant.
    """
    began = time.perf_counter()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps if decay else 10**9)
    model.train()
    for _, batch in zip(range(steps), batches, strict=False):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - began
