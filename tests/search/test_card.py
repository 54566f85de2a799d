from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tests.models import adapted, tiny_bert
from torch import nn

import rankwise
from rankwise.search.card import CARD, picture


def head(folder: Path) -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load((folder / CARD).read_text(encoding="utf-8").split("---")[1])
    return content


def test_a_saved_adapter_says_what_it_is_and_needs(tmp_path: Path) -> None:
    model = adapted(tiny_bert(3), target_modules=["query", "value"], mode="off", shortcuts=["res1"], shortcut_alpha=4)
    rankwise.apply_(model, [rankwise.Disable("layers.1.query")])
    model.save_pretrained(str(tmp_path))
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert head(tmp_path)["library_name"] == "peft"
    assert head(tmp_path)["license"] == "unknown"
    assert {"heterolora", "peft", "rankwise"} <= set(head(tmp_path)["tags"])  # type: ignore[call-overload]
    assert "import rankwise" in card
    assert "8 of 9" in card
    assert "Model Card for Model ID" not in card


def test_a_model_without_a_config_is_saved_too(tmp_path: Path) -> None:
    adapted(nn.Sequential(nn.Linear(4, 4)), target_modules=["0"]).save_pretrained(str(tmp_path))
    assert "import rankwise" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_the_picture_has_a_row_for_each_block() -> None:
    model = adapted(tiny_bert(3), target_modules=["query", "value"], mode="off")
    rankwise.apply_(model, [rankwise.Disable("layers.1.query"), rankwise.Disable("layers.2.value")])
    assert picture(rankwise.named_paths(model)).splitlines() == [
        "   query  value",
        "0    ●      ●",
        "1    ·      ●",
        "2    ●      ·",
    ]


def test_the_words_of_somebody_else_stay(tmp_path: Path) -> None:
    ModelCard("---\nlicense: mit\ntags: [mine]\n---\n# My adapter\n").save(tmp_path / CARD)
    adapted(tiny_bert(2), target_modules=["query"], mode="off").save_pretrained(str(tmp_path))
    assert "# My adapter" in (tmp_path / CARD).read_text(encoding="utf-8")
    assert head(tmp_path)["license"] == "mit"


def test_another_methods_card_is_left_alone(tmp_path: Path) -> None:
    get_peft_model(tiny_bert(2), LoraConfig(target_modules=["query"])).save_pretrained(str(tmp_path))
    assert "rankwise" not in (tmp_path / CARD).read_text(encoding="utf-8")


@pytest.mark.parametrize("share", [False, True])
def test_lor2c_has_a_card_too(tmp_path: Path, share: bool) -> None:
    model = get_peft_model(tiny_bert(3), rankwise.Lor2cConfig(r=4, share=share))
    model.save_pretrained(str(tmp_path))
    assert "LoR2C (arXiv 2503.00572)" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_layers_that_have_names_are_no_rows(tmp_path: Path) -> None:
    base = nn.ModuleDict({"layers": nn.ModuleDict({"up": nn.Sequential(nn.Linear(4, 4))})})
    model = get_peft_model(base, rankwise.HeteroLoraConfig(r=2, target_modules=["0"], mode="off"))
    assert picture(rankwise.named_paths(model)) == "● layers.up.0"
    model.save_pretrained(str(tmp_path))
