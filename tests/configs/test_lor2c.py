from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.models import fill_, logits, tiny_bert, tiny_llama
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

import rankwise
from rankwise import Disable, Inject, Lor2cConfig, Merge


def adapted(blocks: int = 3, **fields: Any) -> Any:
    return get_peft_model(tiny_bert(blocks), Lor2cConfig(**{"r": 4, **fields})).eval()


def roberta() -> Any:
    """RoBERTa-base's shape."""
    return RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=12, hidden_size=768))


def llama_2_7b() -> Any:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "fields", "wanted"),
    [
        (roberta, {"r": 8}, 147_456),
        (roberta, {"r": 8, "share": True}, 79_872),
        (llama_2_7b, {"r": 64}, 16_777_216),
    ],
)
def test_the_parameter_counts_of_the_paper(make: Any, fields: dict[str, Any], wanted: int) -> None:
    with torch.device("meta"):
        model = make()
    assert rankwise.plan(model, Lor2cConfig(**fields)).enabled == wanted


def test_an_injection_keeps_the_count_and_with_a_shared_down_it_grows() -> None:
    for share, sizes in ((False, [384, 384]), (True, [256, 320])):  # d = 16, r = 4: d r against 2 d r
        model = adapted(share=share, injections=1, edit_unit="steps", total_steps=8)
        counts = [rankwise.plan(model).enabled]
        rankwise.apply_(model, [Inject("layers.1.layer")])
        assert [*counts, rankwise.plan(model).enabled] == sizes
    model = adapted(share=True, merges=1, edit_unit="steps", total_steps=8)
    rankwise.apply_(model, [Merge("layers.0.layer", "layers.1.layer")])
    assert rankwise.plan(model).enabled == 192  # one B less, A stays


def test_the_defaults_are_the_contract() -> None:
    config = Lor2cConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.0)
    assert (config.share, config.merges, config.injections) == (False, 0, 0)
    assert (config.metric, config.sfs_k, config.merge_select, config.merge_survivor) == ("sfs", 1, "lowest", "higher")
    assert (config.max_span, config.inject_select, config.edit_unit) == (None, "lowest", "epochs")
    assert (config.separate_edits, config.strict_neighbours, config.total_steps, config.seed) == (False, False, None, 0)
    injected = Lor2cConfig(r=6, lora_alpha=12, injections=1).linear_paths()
    assert (injected.r, injected.lora_alpha, injected.lora_dropout) == (3, 6.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "svd"}, "metric='svd' is not one of 'sfs', 'mean_sv'"),
        ({"merges": -1}, "merges=-1 must be a whole number of at least 0"),
        ({"merges": 1, "sfs_k": 8}, r"sfs_k=8 must be below r=8"),
        ({"merges": 1, "r": 1}, r"r=1 has no SFS, use metric='mean_sv'"),
        ({"injections": 1, "r": 1, "metric": "mean_sv"}, r"r=1 leaves inject_r = r // 2 = 0: give inject_r"),
        ({"target_modules": ["query"]}, r"the projections that injected LoRA runs along are inject_targets"),
        ({"max_span": 1}, "max_span=1 must be a whole number of at least 2"),
        ({"inject_dropout": 1.0}, r"inject_dropout=1.0 must lie in \[0, 1\)"),
        ({"use_dora": True}, "use_dora=True can't be searched"),
        ({"init_lora_weights": "orthogonal"}, "LoR2C has no W0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lor2cConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"merges": 3}, r"merges=3: 3 blocks have at most 2 merges"),
        ({"injections": 4}, r"injections=4: 3 blocks have at most 3 injections"),
        (
            {"layers_to_transform": [0, 1], "merges": 2},
            r"merges=2: 2 blocks have at most 1 merge \(layers_to_transform=\[0, 1\]\)",
        ),
        ({"injections": 1, "inject_targets": ["querry"]}, r"inject_targets names 'querry'.*did you mean 'query'"),
    ],
)
def test_more_edits_than_blocks_are_refused_at_the_start(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adapted(3, **fields)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([Merge("layers.0.layer", "layers.2.layer")], "ends at block 0 and layers.2.layer starts at block 2"),
        ([Merge("layers.1.layer", "layers.0.layer")], "the one in front first"),
        ([Inject("layers.1.layer"), Merge("layers.0.layer", "layers.2.layer")], "never across a block whose path"),
        ([Merge("layers.0.layer", "layers.1.layer", "layers.2.layer")], "survivor must be"),
        ([Merge("layers.0.layer", "layers.1.layer"), Inject("layers.0-1.layer")], "only a 'layer' path of one block"),
        ([Inject("layers.1.layer"), Inject("layers.1.layer")], "names no path"),
        ([Inject("layers.1.layer"), Inject("layers.1.query")], "only a 'layer' path of one block"),
        ([Inject("layers.1.layer"), Merge("layers.1.query", "layers.2.layer")], "is a 'linear' path"),
        ([Disable("layers.0.layer"), Merge("layers.9.layer", "layers.0.layer")], "did you mean"),
    ],
)
def test_a_wrong_edit_changes_nothing(edits: list[Any], words: str) -> None:
    model = adapted(injections=1, edit_unit="steps", total_steps=8)
    fill_(model)
    before, names = logits(model), list(rankwise.named_paths(model))
    with pytest.raises(ValueError, match=words):
        rankwise.apply_(model, edits)
    assert torch.equal(logits(model), before)
    assert list(rankwise.named_paths(model)) == names
    assert all(path.enabled for path in rankwise.named_paths(model).values())


def test_nothing_waits_where_nothing_is_to_be_injected() -> None:
    with pytest.raises(ValueError, match=r"no LoRA waits in block 1; .*Lor2cConfig\(injections=\.\.\.\)"):
        rankwise.apply_(adapted(), [Inject("layers.1.layer")])


def test_an_optimizer_that_lacks_what_an_edit_brings_in_is_refused() -> None:
    model = adapted(injections=1, edit_unit="steps", total_steps=8)
    on = [p for path in rankwise.named_paths(model).values() for p in path.parameters]
    with pytest.raises(ValueError, match=r"layers\.1\.query, layers\.1\.value would be on, but the optimizer"):
        rankwise.apply_(model, [Inject("layers.1.layer")], torch.optim.SGD(on))
    assert list(rankwise.named_paths(model)) == [f"layers.{block}.layer" for block in range(3)]


def test_merging_into_the_base_is_refused_until_only_lora_is_left() -> None:
    model = adapted(2, injections=2, edit_unit="steps", total_steps=8)
    fill_(model)
    with pytest.raises(ValueError, match=r"2 live block paths.*layers\.0\.layer, layers\.1\.layer.*save_pretrained"):
        model.merge_and_unload()
    rankwise.apply_(model, [Inject("layers.0.layer"), Inject("layers.1.layer")])
    fill_(model)
    wanted = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted, rtol=1e-4, atol=1e-5)


def test_layer_paths_alone_are_searched_over_blocks() -> None:
    config = rankwise.HeteroLoraConfig(
        r=2, target_modules=[], shortcuts=["layer"], budget=2, budget_unit="paths", mode="static"
    )
    model = get_peft_model(tiny_llama(4), config)
    names = rankwise.named_paths(model)
    assert list(names) == [f"layers.{block}.layer" for block in range(4)]
    assert sum(path.enabled for path in names.values()) == 2
