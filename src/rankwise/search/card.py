"""The card beside a saved adapter (``README.md``): what it is, what it needs, how it is loaded, what is on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.files import write_text_atomic
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet

CARD = "README.md"
MARK = "<!-- written by rankwise: replaced when the adapter is saved again -->"
BLANK = "# Model Card for Model ID"  # how the template that PEFT leaves empty begins
CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
ON, FROZEN, OFF, NONE = "●", "○", "·", " "


def write_card(folder: Path, sets: Mapping[str, PathSet], classes: int | None) -> None:
    """Write or renew the card of a saved adapter; words that somebody else wrote stay, its tags are added.

    Args:
        folder: Where PEFT has just written its card.
        sets: The paths of each saved adapter.
        classes: How many labels the base model's head has, where it has one.
    """
    base: str | None = next(iter(sets.values())).config.base_model_name_or_path or None
    card = read_card(folder)
    methods = {paths.config.peft_type.value.lower() for paths in sets.values()}
    tag_card(card, base, {"peft", "rankwise", *methods})
    if BLANK in card.text or MARK in card.text or not card.text.strip():
        parts = [_load_lines(next(iter(sets.values())), base, classes), *(_describe(paths) for paths in sets.values())]
        card.text = "\n\n".join([MARK, f"# {' and '.join(sorted(_title(p) for p in sets.values()))}", *parts]) + "\n"
    write_text_atomic(folder / CARD, str(card))


def read_card(folder: Path) -> ModelCard:
    """Return the card in a folder, an empty one where there is none."""
    file = folder / CARD
    return ModelCard.load(file) if file.is_file() else ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n")


def tag_card(card: ModelCard, base: str | None, tags: set[str], *, library: str = "peft") -> None:
    """Fill in what a model hub reads; what somebody has filled in before stays, the library and tags aside."""
    card.data["library_name"] = library
    card.data["tags"] = sorted({*(card.data.get("tags") or ()), *tags})
    if base:
        card.data["base_model"] = base
    if not card.data.get("license"):
        card.data["license"] = "unknown"  # the base model's terms hold for what was made from it


def _title(paths: PathSet) -> str:
    return f"{paths.config.peft_type.value} adapter"


def _load_lines(paths: PathSet, base: str | None, classes: int | None) -> str:
    auto = CLASSES.get(str(getattr(paths.config.task_type, "value", paths.config.task_type)), "AutoModel")
    head = f", num_labels={classes}" if classes is not None and auto == CLASSES["SEQ_CLS"] else ""
    return (
        "Loading it needs the package `rankwise`, whose import tells PEFT the method:\n\n"
        "```python\n"
        "import rankwise  # registers the method with PEFT: without it, KeyError\n"
        "from peft import PeftModel\n"
        f"from transformers import {auto}\n\n"
        f'base = {auto}.from_pretrained("{base or "BASE MODEL"}"{head})\n'
        'model = PeftModel.from_pretrained(base, "THIS FOLDER OR ID")\n'
        "```"
    )


def _describe(paths: PathSet) -> str:
    counts = paths.counts()
    live = [path for path in paths.paths.values() if path.contributing]
    rows = {
        **_settings(paths.config),
        "paths that contribute": f"{len(live)} of {len(paths.paths)}",
        "parameters that contribute": f"{counts['contributing']:,} of {counts['resident']:,}",
        "searches and edits made": len(paths.history),
    }
    return (
        f"## Adapter `{paths.adapter}`\n\n{facts_table(rows)}\n\n"
        f"Which paths are on ({ON} on, {FROZEN} frozen, {OFF} off), a row for each block:\n\n"
        f"```text\n{picture(paths.paths)}\n```"
    )


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings that make a method what it is."""
    if isinstance(config, HeteroLoraConfig):
        return {
            "method": f"HeteroLoRA (arXiv 2406.14956), mode `{config.mode}`, scored by `{config.proxy}`",
            "rank and alpha": f"{config.r}, {config.lora_alpha:g}",
            "budget": f"{config.budget} ({config.budget_unit})" if config.mode != "off" else "none, all paths are on",
        }
    return {
        "method": "LoR2C (arXiv 2503.00572)",
        "rank and alpha": f"{config.r}, {config.lora_alpha:g}",
        "merges, injections asked for": f"{config.merges}, {config.injections}",
    }


def picture(paths: Mapping[str, LowRankPath]) -> str:
    """Draw the paths as text: a row for each block or span of blocks, a column for each place in it."""
    cells: dict[str, dict[str, str]] = {}
    outside: list[str] = []
    for name, path in paths.items():
        mark = ON if path.enabled else FROZEN if path.contributing else OFF
        first, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("layers.") and rest and re.fullmatch(r"\d+(-\d+)?", first):
            cells.setdefault(first, {})[rest] = mark
        else:
            outside.append(f"{mark} {name}")
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    order = sorted(cells, key=lambda row: [int(part) for part in row.split("-")])
    width = max((len(row) for row in order), default=0)
    lines = [f"{row:>{width}}  " + "  ".join(f"{cells[row].get(c, NONE):^{len(c)}}" for c in columns) for row in order]
    heading = [" " * width + "  " + "  ".join(columns)] if columns else []
    return "\n".join(line.rstrip() for line in [*heading, *lines, *outside])


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return facts as a table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])
