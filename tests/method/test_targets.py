"""What ``target_modules`` may name: what a model has, and a path can run along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from tests.families import FAMILIES
from tests.method.test_surface import ours
from tests.models import VOCABULARY, adapted, bert_config, build, keep_only_, text_batches, tiny_bert
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    MambaConfig,
    MambaForCausalLM,
)

import rankwise
from rankwise.method.targets import (
    NOT_LINEAR,
    all_linear,
    check_gated_merge,
    check_linear,
    linear_names,
    module_names,
    unmatched,
)
from rankwise.paths.path_set import path_set


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query", "attention.self.query", "bert.encoder.layer.0.attention.self.query", "0.attention.self.query"], []),
        (["uery", "self.quer", "bert", "layer.0"], ["bert", "layer.0", "self.quer", "uery"]),
        (["value", "key"], ["key", "value"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_a_target_is_a_full_name_or_its_end_after_a_dot(targets: list[str], expected: list[str]) -> None:
    """As PEFT's own ``endswith``, told by brute force."""
    names = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.query"]
    assert unmatched(targets, names) == expected
    by_hand = {t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)}
    assert set(expected) == by_hand


def test_names_are_those_of_the_base_model_whatever_wraps_it() -> None:
    base = tiny_bert()
    modules, linear = module_names(base), linear_names(base)
    assert linear == {"query", "key", "value", "dense", "classifier"}
    model: Any = adapted(base, task_type="SEQ_CLS", target_modules=["query", "dense"])  # PEFT copies the head
    assert module_names(model.get_base_model()) == modules
    assert linear_names(model.get_base_model()) == linear


def test_the_names_of_adapters_are_no_layers_to_target() -> None:
    model = ours()
    with pytest.raises(NoMatchingPeftModuleError, match=r"layers are classifier, dense, key, query, value$"):
        model.add_adapter("b", rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["default"]))
    assert list(model.peft_config) == ["default"]


def test_the_transposed_projections_of_gpt2_are_linear_layers() -> None:
    words = r"names 'c_atn'.* did you mean 'c_attn'\?; its linear layers are c_attn, c_fc, c_proj, lm_head"
    with pytest.raises(NoMatchingPeftModuleError, match=words):
        adapted(FAMILIES["gpt2"](), target_modules=["c_atn"])


def test_a_string_that_is_no_regular_expression_is_told() -> None:
    words = r"target_modules='\*\.query' is a string, so a regular expression .* \(nothing to repeat.*names in a list"
    with pytest.raises(ValueError, match=words):
        ours(target_modules="*.query")


def test_a_regular_expression_has_to_match_a_whole_name() -> None:
    assert len(rankwise.named_paths(ours(target_modules=r".*\.(query|value)"))) == 4
    with pytest.raises(NoMatchingPeftModuleError, match="regular expression that matches no module"):
        ours(target_modules="query")


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["quary", "value"], "names 'quary', which matches no module of BertFor.*did you mean 'query'.*dense, key"),
        (["zzz"], "names 'zzz', which matches no module"),
        (["word_embeddings"], "'bert.embeddings.word_embeddings', a Embedding; .*target linear layers only"),
        ([], "leaves nothing to search"),
    ],
)
def test_a_target_that_is_no_projection_is_named(targets: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adapted(tiny_bert(), target_modules=targets)


def test_targets_that_match_nothing_name_the_nearest_and_build_nothing() -> None:
    base = tiny_bert()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"names 'querry'.* did you mean 'query'.*linear layers are .*value"):
        adapted(base, target_modules=["querry", "value"])
    with pytest.raises(ValueError, match="a path runs along a linear projection"):
        adapted(base, target_modules=["word_embeddings", "query"])
    with pytest.raises(ValueError, match="leaves nothing to search"):
        adapted(base, target_modules=[])
    assert [name for name, _ in base.named_modules()] == names


def test_a_layer_without_a_switch_is_refused() -> None:
    """Some of PEFT's quantised layers sum every adapter themselves; a stand-in for those that need a GPU to load."""

    class EetqLoraLinear(Linear):
        pass

    config = rankwise.HeteroLoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], mode="off")
    config._register_custom_module({nn.Linear: EetqLoraLinear})
    with pytest.raises(ValueError, match=r"became PEFT's EetqLoraLinear, whose LoRA can't be switched"):
        get_peft_model(tiny_bert(), config)


def test_a_regular_expression_that_matches_nothing_names_the_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"regular expression that matches no module .* linear layers are .*query"):
        adapted(tiny_bert(), target_modules=r".*\.querry")


@pytest.mark.parametrize("targets", [["qery"], ".*qery"])
def test_a_target_that_matches_nothing_is_pefts_error_with_our_words(targets: Any) -> None:
    with pytest.raises(NoMatchingPeftModuleError, match="did you mean 'query'"):
        ours(target_modules=targets)


@pytest.mark.parametrize("blocks", [[0, 7], 7])
def test_a_block_beyond_the_model_is_named(blocks: Any) -> None:
    with pytest.raises(ValueError, match=r"layers_to_transform=.*names block 7"):
        ours(layers_to_transform=blocks)


def test_blocks_that_are_there_are_taken() -> None:
    model = ours(layers_to_transform=[1])
    assert list(rankwise.named_paths(model)) == ["layers.1.query", "layers.1.value"]
    assert not any(isinstance(module, BaseTunerLayer) for module in model.unload().modules())


def test_a_block_in_which_nothing_is_targeted_is_named() -> None:
    """One of several; the others have targets."""
    with pytest.raises(NoMatchingPeftModuleError, match=r"names block 0, in which .* has none of the targets"):
        ours(target_modules=["1.attention.self.query"], layers_to_transform=[1, 0])


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_what_is_no_linear_map_is_refused(kind: type[nn.Module]) -> None:
    sizes = {nn.Embedding: (2, 2), nn.MultiheadAttention: (2, 1)}.get(kind, (2, 2, 1))
    make: Any = kind
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": make(*sizes)})
    check_linear(model, lambda name: name == "a")
    with pytest.raises(ValueError, match=f"target_modules matches 'b', a {kind.__name__}; a path runs along a linear"):
        check_linear(model, lambda name: name == "b")


@pytest.mark.parametrize("library", ["GPTQLoraLinear", "TorchaoLoraLinear"])
def test_a_layer_that_merges_without_asking_is_not_merged_while_its_path_is_off(library: str) -> None:
    """Stand-ins by name for layers that need their library to be made."""
    model = adapted(tiny_bert(1), target_modules=["query", "value"])
    keep_only_(model, "layers.0.query")
    paths = path_set(model).resident
    check_gated_merge(paths)
    for path in paths:
        path.host.__class__ = type(library, (type(path.host),), {})
    with pytest.raises(ValueError, match=rf"layers\.0\.value is off, and PEFT's {library} would merge it all the same"):
        check_gated_merge(paths)
    keep_only_(model, "layers.0.query", "layers.0.value")
    check_gated_merge(paths)


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2", "vit"])
def test_all_linear_is_every_projection_outside_the_head(family: str) -> None:
    model = FAMILIES[family]()
    kinds = ("Linear", "Conv1D")
    linear = {name for name, module in model.named_modules() if type(module).__name__ in kinds}
    head = {name for name in linear if name.startswith(("classifier", "lm_head"))}
    assert set(all_linear(model)) == linear - head
    assert head


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_projections_that_have_pefts_lora_already_are_said_to() -> None:
    base = tiny_bert(1)
    get_peft_model(base, LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match=r"attention\.self\.query' has LoRA of PEFT's own already: take it off first"):
        inject_adapter_in_model(rankwise.HeteroLoraConfig(target_modules=["query"], mode="dynamic"), base)


def test_what_peft_puts_no_lora_on_is_no_candidate_and_is_refused_by_name() -> None:
    """Mamba's kernel takes the weight of ``out_proj`` itself, so a path beside it would be passed over."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    model: Any = build(MambaForCausalLM, config)
    names = [name.rpartition(".")[2] for name in all_linear(model)]
    assert names == ["dt_proj", "in_proj", "x_proj"]
    with pytest.raises(ValueError, match="Module 'out_proj' is incompatible with Mamba-based models"):
        adapted(model, target_modules=["in_proj", "out_proj"])
    plan = rankwise.rank_plan(model, text_batches(4, 4), budget=200, components=2)
    assert plan.chosen
    assert get_peft_model(model, plan.to_lora_config()) is not None


@pytest.mark.parametrize(
    ("task", "make", "head"),
    [
        ("TOKEN_CLS", BertForTokenClassification, "classifier"),
        ("QUESTION_ANS", BertForQuestionAnswering, "qa_outputs"),
        ("SEQ_CLS", BertForSequenceClassification, "classifier"),
    ],
)
def test_all_linear_leaves_the_head_of_a_task_to_be_trained_as_a_whole(
    task: str, make: Any, head: str, tmp_path: Path
) -> None:
    model = adapted(build(make, bert_config(1)), task_type=task, target_modules="all-linear")
    linear = {name for name, module in build(make, bert_config(1)).named_modules() if isinstance(module, nn.Linear)}
    assert {path.module for path in rankwise.named_paths(model).values()} == linear - {head}
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n} == {
        f"base_model.model.{head}.modules_to_save.default.{factor}" for factor in ("weight", "bias")
    }
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(build(make, bert_config(1)), tmp_path)
    assert list(rankwise.named_paths(loaded)) == list(rankwise.named_paths(model))


def test_a_name_that_is_no_list_is_told_as_one() -> None:
    with pytest.raises(
        NoMatchingPeftModuleError, match=r"did you mean \['query'\], a list of names; its linear layers are"
    ):
        get_peft_model(tiny_bert(), rankwise.HeteroLoraConfig(target_modules="query", r=2, mode="off"))
