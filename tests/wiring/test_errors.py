"""What shortcuts refuse, in words that say what was given, what is allowed and what to change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES, distilbert_config, gpt2_config
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
from rankwise.method.folders import ALLOCATION
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


# Families.


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


# Kinds that a model can't have.


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama", {"shortcuts": ["in", "layer"]}, "names 'in' and 'layer', which are the same path.*name one of them"),
        ("opt-pre", {"shortcut_norm": "reapply"}, "shortcut_norm='reapply'.*use shortcut_norm='inside'"),
        ("gemma2", {"shortcut_norm": "reapply", "shortcuts": ["res1"]}, "use shortcut_norm='inside'"),
        ("llama", {"layers_to_transform": [7]}, r"layers_to_transform=\[7\] names block 7, and .* blocks 0 to 2"),
        ("bert", {"layers_to_transform": 0, "shortcuts": ["cut"]}, r"\['cut'\] with .*=0 leaves no path"),
        ("llama", {"rank_budget": 10}, "rank_budget=10 .* leaves less than rank 1.*name fewer shortcuts"),
    ],
)
def test_what_a_model_cannot_have_is_refused_and_nothing_is_built(
    name: str, fields: dict[str, Any], words: str
) -> None:
    base = FAMILIES[name]()
    modules, expected = [key for key, _ in base.named_modules()], logits(base)
    with pytest.raises(ValueError, match=words):
        made(name, base, filled=False, **{"target_modules": [], **fields})
    assert [key for key, _ in base.named_modules()] == modules
    assert own_hooks(base) == []
    assert torch.equal(logits(base), expected)


def test_one_block_has_no_cut() -> None:
    with pytest.raises(ValueError, match="'cut', which comes from the block before, and this model has one block"):
        made("llama", FAMILIES["llama"](1))


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


def test_synflow_from_the_embeddings_of_a_model_of_images_is_refused_and_from_its_loss_works() -> None:
    model = made("vit", task_type=None)
    images = {"pixel_values": torch.ones(2, 2, 8, 8), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"no token embeddings.*synflow_loss='loss'"):
        rankwise.score_paths(model, [images], proxy="synflow")
    for options in ({"proxy": "synflow", "synflow_loss": "loss"}, {"proxy": "grad_norm"}):
        scores = rankwise.score_paths(model, [images], **options)  # type: ignore[arg-type]
        assert set(scores) == set(names(model))
        assert all(math.isfinite(score) and score != 0 for score in scores.values())


def test_synflow_runs_experts_in_float64() -> None:
    """The default implementation has no kernel for it."""
    fast = FAMILIES["mixtral"]()
    fast.set_experts_implementation("grouped_mm")
    scores = rankwise.score_paths(made("mixtral", fast), proxy="synflow")
    assert fast.config._experts_implementation == "grouped_mm"
    assert scores == rankwise.score_paths(made("mixtral"), proxy="synflow")


# Config values.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shortcuts": "res1"}, r"shortcuts='res1' must be a list: shortcuts=\['res1'\]"),
        ({"shortcuts": ["res"]}, r"shortcuts='res' is not one of 'res1', 'res2', 'in', 'cut', 'layer', did you mean"),
        ({"shortcuts": ["lyer"]}, "did you mean 'layer'"),
        ({"shortcuts": ["linear"]}, "shortcuts='linear' is not one of"),
        ({"shortcut_r": 0}, "shortcut_r=0 must be a whole number of at least 1"),
        ({"shortcut_r": 2.5}, r"shortcut_r=2\.5 must be a whole number"),
        ({"shortcut_alpha": -1}, "shortcut_alpha=-1 must be positive, or None for lora_alpha / 4"),
        ({"shortcut_alpha": "4"}, "shortcut_alpha='4' must be positive"),
        ({"shortcut_dropout": 1.0}, r"shortcut_dropout=1\.0 must lie in \[0, 1\)"),
        ({"shortcut_norm": "outside"}, "shortcut_norm='outside' is not one of 'inside', 'reapply', did you mean"),
        ({"init_lora_weights": "orthogonal"}, "sets B from W0, and shortcuts have no W0: use True or 'gaussian'"),
        ({"rank_shape": "shortcuts", "rank_budget": 9, "shortcuts": []}, "there are none: name some"),
    ],
)
def test_a_value_that_makes_no_sense_is_explained(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rankwise.HeteroLoraConfig(**{"target_modules": ["q_proj"], "shortcuts": ["res1"], **fields})


def test_values_that_slip_through_are_explained_too() -> None:
    with pytest.raises(ValueError, match="shortcut_alpha=nan must be positive"):
        rankwise.HeteroLoraConfig(target_modules=["q_proj"], shortcuts=["res1"], shortcut_alpha=float("nan"))
    none: Any = None
    assert rankwise.HeteroLoraConfig(target_modules=["q_proj"], shortcuts=none).shortcuts == []


# Files of other shortcuts.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["res1", "cut"], r"lacks 2 of this model's paths.*layers\.1\.path_cut"),
        (["cut"], r"tensors that this model has no place for, the first .*path_res1"),
        ([], r"tensors that this model has no place for, the first .*path_res1"),
    ],
)
def test_an_adapter_with_other_shortcuts_is_not_loaded_into_a_present_one(
    given: list[str], words: str, tmp_path: Path
) -> None:
    made("llama", shortcuts=["res1"]).save_pretrained(str(tmp_path))
    model = made("llama", shortcuts=given)
    with pytest.raises(ValueError, match=words):
        model.load_adapter(tmp_path, "default")


def test_a_config_and_weights_that_disagree_are_refused(tmp_path: Path) -> None:
    made("llama", shortcuts=["res1"]).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    allocation = json.loads((tmp_path / ALLOCATION).read_text())
    del allocation["sha256"]  # what follows is changed on purpose
    (tmp_path / ALLOCATION).write_text(json.dumps(allocation))
    file.write_text(json.dumps({**config, "shortcuts": ["res1", "res2"]}))
    with pytest.raises(ValueError, match=r"lacks 3 of this model's paths.*path_res2"):
        PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path)
    file.write_text(json.dumps({**config, "shortcut_r": 5}))
    with pytest.raises(ValueError, match=r"path_res1.* is \(2, 16\) but this model's is \(5, 16\)"):
        PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tensors that this model has no place for.*layers\.2\.path_res1"):
        PeftModel.from_pretrained(FAMILIES["llama"](2), tmp_path)


def test_an_edit_of_a_path_that_is_not_there_names_the_nearest() -> None:
    model = made("llama", shortcuts=["res1", "cut"])
    with pytest.raises(ValueError, match=r"'layers\.0\.cut'.* names no path.*did you mean 'layers\.\d\.cut'"):
        rankwise.apply_(model, [rankwise.Enable("layers.0.cut")])
