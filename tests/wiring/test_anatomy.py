"""Where things are in a family's blocks: what is described, what is not, and what a description has to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import distilbert_config, gpt2_config
from tests.models import adapted, build, fill_, keep_only_, logits, tiny_bert
from tests.shortcuts import made, names, own_hooks
from torch import Tensor, nn
from transformers import (
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

import rankwise
from rankwise.wiring.anatomy import FAMILIES as DESCRIBED
from rankwise.wiring.anatomy import Anatomy


def tiny_starcoder() -> Any:
    """A Starcoder 2, whose family is not described."""
    fields: dict[str, Any] = {
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    return build(
        Starcoder2ForCausalLM, Starcoder2Config(vocab_size=40, hidden_size=16, intermediate_size=24, **fields, **ids)
    )


class Attention(nn.Module):
    """Mixes tokens; what it does with keyword arguments differs between the tests."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.value(x).cumsum(dim=1)
        return mixed


class Block(nn.Module):
    def __init__(self, width: int, *, passes_keywords_on: bool = True) -> None:
        super().__init__()
        self.first_norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.second_norm, self.feed_forward = nn.LayerNorm(width), nn.Linear(width, width)
        self.passes_keywords_on = passes_keywords_on

    def forward(self, x: Tensor, **keywords: Any) -> Tensor:
        passed = keywords if self.passes_keywords_on else {}
        mid = x + self.attention(self.first_norm(x), **passed)
        out: Tensor = mid + self.feed_forward(self.second_norm(mid))
        return out


class Toy(nn.Module):
    """A transformer that no library knows; its blocks take and give tensors."""

    def __init__(self, *widths: int, model_type: str | None = "toy", passes_keywords_on: bool = True) -> None:
        super().__init__()
        if model_type:
            self.config = SimpleNamespace(model_type=model_type, to_dict=dict)
        self.blocks = nn.ModuleList(Block(width, passes_keywords_on=passes_keywords_on) for width in widths)

    def forward(self, input_ids: Tensor) -> Any:
        x = torch.sin(input_ids[..., None] * torch.arange(1, 5))
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(logits=x)


TOY = Anatomy(
    blocks="blocks",
    norm="pre",
    attention="attention",
    block_input=("first_norm", "input"),
    attention_sum=("attention", "output"),
    mid=("second_norm", "input"),
    feed_forward_sum=("feed_forward", "output"),
)


STARCODER = Anatomy(
    blocks="model.layers",
    norm="pre",
    attention="self_attn",
    block_input=("input_layernorm", "input"),
    attention_sum=("self_attn", "output"),
    mid=("post_attention_layernorm", "input"),
    feed_forward_sum=("mlp", "output"),
)


@pytest.fixture
def register() -> Iterator[Callable[[str, Any], None]]:
    """Describe families for the length of a test."""
    before = dict(DESCRIBED)
    yield rankwise.register_anatomy
    DESCRIBED.clear()
    DESCRIBED.update(before)


def test_an_unknown_family_is_named_with_the_way_to_describe_it() -> None:
    base = tiny_starcoder()
    modules = [name for name, _ in base.named_modules()]
    words = (
        r"family 'starcoder2' of Starcoder2ForCausalLM is not described; described are bert, .*opt.*"
        r"register_anatomy\('starcoder2', "
    )
    with pytest.raises(ValueError, match=words + r".*or leave shortcuts out: linear paths work in every model"):
        adapted(base, target_modules=["v_proj"], shortcuts=["res1"])
    assert [name for name, _ in base.named_modules()] == modules
    assert own_hooks(base) == []
    assert names(adapted(base, target_modules=["v_proj"]))


def test_a_model_without_a_family_is_told_to_the_user() -> None:
    with pytest.raises(ValueError, match=r"Toy has no config.model_type.*register_anatomy"):
        adapted(Toy(4, 4, model_type=None), target_modules=["value"], shortcuts=["res1"])


@pytest.mark.parametrize("describe", [STARCODER, lambda config: STARCODER if config.num_hidden_layers == 3 else None])
def test_a_described_family_has_every_kind(register: Callable[[str, Any], None], describe: Any, tmp_path: Path) -> None:
    register("starcoder2", describe)
    expected = logits(tiny_starcoder())
    fields = {"target_modules": ["v_proj"], "shortcuts": ["res1", "res2", "in", "cut"]}
    model = adapted(tiny_starcoder(), **fields)
    assert torch.equal(logits(model), expected), "with B = 0 it is the base model"
    fill_(model)
    model.save_pretrained(str(tmp_path))
    whole = logits(model)
    for name in names(model):
        keep_only_(model, name)
        assert (logits(model) - expected).abs().max() > 1e-2, name
    keep_only_(model)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_starcoder(), tmp_path)), whole)
    assert names(model, "cut") == ["layers.1.cut", "layers.2.cut"]


def test_a_custom_model_whose_blocks_take_tensors(register: Callable[[str, Any], None]) -> None:
    register("toy", TOY)
    base = Toy(4, 4)
    expected = logits(base)
    model = adapted(base, target_modules=["value"], shortcuts=["res1", "res2", "in"])
    fill_(model)
    for name in names(model):
        keep_only_(model, name)
        assert (logits(model) - expected).abs().max() > 1e-3, name
    keep_only_(model)
    assert torch.equal(logits(model), expected)


def test_blocks_that_keep_keywords_from_their_attention_can_have_no_cut(register: Callable[[str, Any], None]) -> None:
    register("toy", TOY)
    base = Toy(4, 4, passes_keywords_on=False)
    expected = logits(base)
    try:
        model = adapted(base, target_modules=[], shortcuts=["cut"])
        fill_(model)
        found = logits(model)
    except ValueError:
        return
    assert not torch.equal(found, expected)


def test_blocks_of_other_widths_are_refused(register: Callable[[str, Any], None]) -> None:
    register("toy", TOY)
    words = r"one hidden size in all blocks, but blocks\.0 has 4 and blocks\.2 has 6: leave shortcuts out"
    with pytest.raises(ValueError, match=words):
        adapted(Toy(4, 4, 6), target_modules=["value"], shortcuts=["res1"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": "layers"}, r"Toy has 0 lists of blocks named 'layers'.*exactly one; its lists are blocks"),
        (
            {"attention": "atention"},
            r"block 0 of Toy has no module 'atention', did you mean 'attention'.*register_anat",
        ),
        ({"mid": ("norm", "input")}, r"block 0 of Toy has no module 'norm'"),
    ],
)
def test_a_description_that_does_not_fit_names_what_is_missing(
    register: Callable[[str, Any], None], fields: dict[str, Any], words: str
) -> None:
    register("toy", Anatomy(**{**TOY.__dict__, **fields}))
    with pytest.raises(ValueError, match=words):
        adapted(Toy(4, 4), target_modules=["value"], shortcuts=["res1"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm": "middle"}, "norm='middle' is not one of 'post', 'pre'"),
        ({"mid": ("second_norm", "in")}, "the side of a point='in' is not one of 'input', 'output'"),
    ],
)
def test_a_description_is_checked_when_it_is_made(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Anatomy(**{**TOY.__dict__, **fields})


def test_only_descriptions_are_registered() -> None:
    with pytest.raises(ValueError, match=r"anatomy='llama' must be a rankwise\.Anatomy, or a function"):
        rankwise.register_anatomy("toy", "llama")  # type: ignore[arg-type]


def test_a_bert_that_feeds_mid_in_pieces_or_has_two_mids_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk_size_feed_forward=2 .*set it to 0.*or leave shortcuts out"):
        made("bert", tiny_bert(chunk_size_feed_forward=2))
    with pytest.raises(ValueError, match=r"cross-attention has two mids.*leave shortcuts out"):
        made("bert", tiny_bert(is_decoder=True, add_cross_attention=True))
    crossing = gpt2_config(2)
    crossing.add_cross_attention = True
    with pytest.raises(ValueError, match=r"cross-attention has two mids.*leave shortcuts out"):
        made("gpt2", build(GPT2LMHeadModel, crossing))
    pieces = distilbert_config(2)
    pieces.chunk_size_feed_forward = 2
    with pytest.raises(ValueError, match=r"chunk_size_feed_forward=2 .*set it to 0.*or leave shortcuts out"):
        made("distilbert", build(DistilBertForSequenceClassification, pieces))


def test_an_injection_without_a_query_to_inject_into_says_so(register: Callable[[str, Any], None]) -> None:
    register("starcoder2", STARCODER)
    with pytest.raises(ValueError, match=r"names no query and value.*give inject_targets"):
        get_peft_model(tiny_starcoder(), rankwise.Lor2cConfig(injections=1))
    assert get_peft_model(tiny_starcoder(), rankwise.Lor2cConfig(injections=1, inject_targets=["o_proj"]))
