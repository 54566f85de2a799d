"""Shortcuts and LoR2C on a small causal LM, in a plain loop: the loss before and after, beside LoRA of the same size.

Run: python examples/wikitext2.py MODEL DATA [--seeds 0 13] [--steps 150] [--only LoR2C]
MODEL is the folder of stories260k (5 blocks, grouped-query attention), DATA holds WikiText-2 as validation.txt and
test.txt. Trains on the validation text and reports the test text, token-weighted. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

import rankwise
from rankwise import HeteroLoraConfig, Lor2cConfig

BLOCK, BATCH = 128, 32
SIZE = 13_440  # adapter parameters that a method may train at a time
ALL: dict[str, Any] = {"shortcuts": ["res1", "res2", "in", "cut"]}
QUARTER = {**ALL, "r": 15, "lora_alpha": 30, "shortcut_alpha": 7.5, "budget": SIZE, "score_batches": 8}
ACROSS: dict[str, Any] = {"r": 21, "lora_alpha": 42}
EDITS = {"merges": 1, "injections": 1, "edit_unit": "steps"}
# alpha / r is 2 for LoRA and LoR2C and 0.5 for shortcuts, so that methods differ in where their parameters are.
METHODS: dict[str, dict[str, Any]] = {
    "LoRA on q and v": {"mode": "off", "r": 12, "lora_alpha": 24},
    "LoRA and all shortcuts": {**ALL, "mode": "off", "r": 3, "lora_alpha": 6, "shortcut_alpha": 1.5},
    "a quarter, searched once": {**QUARTER, "mode": "static"},
    "a quarter, searched every 50 steps": {**QUARTER, "mode": "dynamic", "search_every": 50},
    "LoR2C": ACROSS,
    "ShareLoR2C": {"share": True, "r": 35, "lora_alpha": 70},
    "IMLoR2C": {**ACROSS, **EDITS},
    "IMLoR2C, delete instead of inject": {**ACROSS, **EDITS, "inject_targets": []},
    "IMLoR2C, freeze after merge": {**ACROSS, **EDITS, "freeze_merged": True},
}


def config_of(name: str, steps: int, seed: int) -> HeteroLoraConfig | Lor2cConfig:
    """Return the config of a method."""
    if "LoR2C" in name:
        return Lor2cConfig(task_type="CAUSAL_LM", total_steps=steps, seed=seed, **METHODS[name])
    return HeteroLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], seed=seed, **METHODS[name])


def blocks_of(tokenizer: Any, file: Path) -> torch.Tensor:
    """Return a text as rows of ``BLOCK`` tokens."""
    ids = torch.tensor(tokenizer(file.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    return ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)


@torch.no_grad()
def loss_on(model: Any, rows: torch.Tensor) -> float:
    """Return the mean loss per predicted token; every row predicts as many."""
    model.eval()
    losses = [model(input_ids=batch, labels=batch).loss.double() * len(batch) for batch in rows.split(BATCH)]
    return float(torch.stack(losses).sum() / len(rows))


def train(model: Any, rows: torch.Tensor, test: torch.Tensor, steps: int, seed: int) -> None:
    """Train in a plain loop; searches and edits need nothing more than this, measuring around edits an ``Editor``."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    if model.peft_config["default"].acts and isinstance(model.peft_config["default"], Lor2cConfig):
        rankwise.Editor(model, optimizer, measure=lambda edited: loss_on(edited, test[:512]))
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 16, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def main() -> None:
    """Train each method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 13])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", default="", help="methods with this in their name")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    text, test = (blocks_of(tokenizer, arguments.data / f"{name}.txt") for name in ("validation", "test"))
    base = loss_on(AutoModelForCausalLM.from_pretrained(arguments.model), test)
    print(f"base model: loss {base:.4f}", flush=True)
    for name in (name for name in METHODS if arguments.only in name):
        for seed in arguments.seeds:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_pretrained(arguments.model)
            config = config_of(name, arguments.steps, seed)
            adapted = get_peft_model(model, config)
            start = loss_on(adapted, test)
            before = rankwise.plan(adapted).enabled
            train(adapted, text, test, arguments.steps, seed)
            sizes = f"r {config.r}, {before} -> {rankwise.plan(adapted).enabled} parameters on"
            same = "exactly the base's" if start == base else "NOT the base's"
            end = loss_on(adapted, test)
            print(f"{name}, seed {seed}: {sizes}; loss {start:.4f} ({same}) -> {end:.4f}", flush=True)
            for record in rankwise.history(adapted):
                if record["how"] == "edit":
                    before_edit, after_edit = record["measured"]
                    print(f"  step {record['step']}, {record['due']}: loss {before_edit:.4f} -> {after_edit:.4f}")


if __name__ == "__main__":
    main()
