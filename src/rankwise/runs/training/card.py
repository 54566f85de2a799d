"""What a run adds to the card of what it saved: data, figures, the command, versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.files import write_text_atomic
from rankwise.runs.building.models import PACKAGE
from rankwise.search.card import BLANK, CARD, MARK, facts_table, read_card, tag_card

HEADING = "## How it was trained"
NEXT = re.compile(r"^#{1,2} ", re.MULTILINE)
WHOLE = "A whole model, with tokenizer and label names: transformers alone loads it."
PLAIN = {
    "adapterdrop": "A bottleneck adapter: `import rankwise.baselines` registers it with PEFT, then load it with PEFT.",
    "prefix": "A prefix, keys and values before the text's own: PEFT loads it.",
}


def describe_run(folder: Path, figures: Mapping[str, Any], license_name: str | None, *, merged: bool = False) -> None:
    """Write what ``metrics.json`` says into the card of the adapter (or whole model) in ``folder``.

    Args:
        folder: Where it lies.
        figures: The content of ``metrics.json``.
        license_name: The licence field; none leaves what is there.
        merged: Whether it is a whole model that the adapter was merged into.
    """
    card = read_card(folder)
    model = str(figures["model"])
    whole = merged or figures["method"] == "full"
    here = model.startswith((PACKAGE, ".", "/", "~")) or Path(model).is_dir()
    tag_card(
        card, None if here else model, {"rankwise", figures["method"]}, library="transformers" if whole else "peft"
    )
    if license_name:
        card.data["license"] = license_name
    if BLANK in card.text or not card.text.strip():
        text = (
            WHOLE
            if whole
            else PLAIN.get(figures["method"], "A plain adapter of PEFT: load it with `PeftModel.from_pretrained`.")
        )
        card.text = f"{MARK}\n\n# {figures['method']} on {figures['task']}\n\n{text}\n"
    before, _, rest = card.text.partition(HEADING)
    after = NEXT.search(rest)  # what somebody wrote below stays
    below = f"\n{rest[after.start() :]}" if after else ""
    card.text = f"{before.rstrip()}\n\n{_section(figures)}\n{below}"
    write_text_atomic(folder / CARD, str(card))


def _section(figures: Mapping[str, Any]) -> str:
    facts = {
        "base model": f"`{figures['model']}`",
        "data": figures["task"],
        "parameters that train": f"{figures['parameters']['trainable']:,}",
        "parameters of the head": f"{figures['parameters']['head']:,}",
        "seed": figures["seed"],
    }
    if "data" in figures:  # runs of earlier versions kept no counts
        facts["training rows"] = f"{figures['data']['train']['rows']:,}"
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    command = f"\n\n```\n{figures['command']}\n```" if figures["command"] else ""
    return "\n".join([HEADING, "", facts_table(facts), *_figures_table(figures), command, "", f"With {versions}."])


def _figures_table(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of all figures, none where nothing was measured."""
    measured = _measured(figures)
    if not measured:
        return []
    names = sorted({name for rows in measured.values() for name in rows})
    head = f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
    rows = [
        f"| {what} | {' | '.join(f'{found[name]:.4f}' if name in found else '' for name in names)} |"
        for what, found in measured.items()
    ]
    return ["", "Figures:", "", head, *rows]


def _measured(figures: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Return the figures of each split, for the last and the dev-selected checkpoint."""
    return {
        f"{which.replace('_', ' ')}, {split}": found
        for which in ("last", "dev_selected")
        for split, found in figures["metrics"][which].items()
        if isinstance(found, Mapping) and found
    }
