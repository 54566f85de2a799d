"""What PEFT offers around an adapter: it works as in PEFT, or is refused with words, and a refusal leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from tests.models import adapted, class_batches, fill_, keep_only_, logits, tiny_bert, tiny_llama
from torch import nn

import rankwise

TARGETS = ["query", "value"]
PLAIN: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 2, "target_modules": TARGETS}


def ours(base: Any = None, **fields: Any) -> Any:
    return adapted(tiny_bert() if base is None else base, task_type="SEQ_CLS", **{"target_modules": TARGETS, **fields})


def structure(model: nn.Module) -> dict[str, Any]:
    """Everything that an injection changes: modules, hooks, attributes, what trains."""
    found: dict[str, Any] = {name: flag.requires_grad for name, flag in model.named_parameters()}
    for name, module in model.named_modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        found[f"{name}()"] = type(module).__name__, sorted(module.__dict__), hooks
    return found


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize(
    "again",
    [
        lambda model, folder: ours(model.get_base_model()),
        lambda model, folder: ours(model),
        lambda model, folder: get_peft_model(model.get_base_model(), LoraConfig(**PLAIN)),
        lambda model, folder: get_peft_model(model, LoraConfig(**PLAIN), adapter_name="other"),
        lambda model, folder: get_peft_model(model.get_base_model(), LoraConfig(**PLAIN), mixed=True),
        lambda model, folder: PeftModel.from_pretrained(model, folder),
        lambda model, folder: PeftModel.from_pretrained(model.get_base_model(), folder),
    ],
    ids=["twice", "twice-wrapped", "plain", "plain-other-name", "mixed", "load-wrapped", "load"],
)
def test_a_second_wrapping_is_refused_and_changes_nothing(again: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    model = ours(shortcuts=["res1"])
    fill_(model)
    model.save_pretrained(str(tmp_path))
    before, wanted = structure(model), logits(model)
    with pytest.raises(ValueError, match=r"already has rankwise paths \(adapter 'default'\).*unload\(\).*add_adapter"):
        again(model, tmp_path)
    assert structure(model) == before
    assert torch.equal(logits(model), wanted)
    base = model.unload()
    assert isinstance(get_peft_model(base, LoraConfig(**PLAIN)), PeftModel)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_a_trained_plain_adapter_is_not_built_over() -> None:
    model = get_peft_model(tiny_bert(), LoraConfig(**PLAIN))
    before = structure(model)
    with pytest.raises(ValueError, match=r"already has an adapter of another method.*HeteroLoraConfig.*unload"):
        ours(model.get_base_model())
    assert structure(model) == before
    assert len(rankwise.named_paths(ours(model.unload()))) == 4


def test_each_file_belongs_to_one_adapter(tmp_path: Path) -> None:
    model = ours(mode="static", score_batches=1)
    model.add_adapter("b", rankwise.HeteroLoraConfig(r=2, mode="off", target_modules=["key"]))
    rankwise.Allocator(model, batches=class_batches(1), adapter="default").search()
    model.save_pretrained(str(tmp_path))
    files = [tmp_path / name for name in ("search_history.jsonl", "allocation.json", "adapter_config.json")]
    before = [file.read_text() for file in files]
    keep_only_(model)
    rankwise.history(model)  # what is on differs from what was saved now
    model.save_pretrained(str(tmp_path), selected_adapters=["b"])
    model.save_pretrained(str(tmp_path), True, ["b"])
    assert [file.read_text() for file in files] == before
    assert json.loads((tmp_path / "b" / "allocation.json").read_text())["enabled"] == [
        "layers.0.key",
        "layers.1.key",
    ]


def test_adapters_of_equal_configs_start_apart_and_alone_as_ever() -> None:
    fields: dict[str, Any] = {"r": 2, "mode": "off", "target_modules": TARGETS, "shortcuts": ["res1"]}
    model = get_peft_model(tiny_bert(), rankwise.HeteroLoraConfig(task_type="SEQ_CLS", **fields))
    model.add_adapter("b", rankwise.HeteroLoraConfig(**fields))
    first, second = rankwise.named_paths(model, "default"), rankwise.named_paths(model, "b")
    assert not any(torch.equal(first[name].lora_A, second[name].lora_A) for name in first)
    alone = get_peft_model(tiny_bert(), rankwise.HeteroLoraConfig(**fields), adapter_name="b")
    for name, path in rankwise.named_paths(alone).items():
        assert torch.equal(path.lora_A, second[name].lora_A)


@pytest.mark.parametrize("adapter", ["default", "b"])
def test_paths_left_out_of_a_file_start_the_same_with_and_without_memory(adapter: str, tmp_path: Path) -> None:
    model = ours(shortcuts=["res1"])
    keep_only_(model, "layers.0.query")
    model.save_pretrained(str(tmp_path), enabled_only=True)
    loaded = [
        PeftModel.from_pretrained(tiny_bert(), tmp_path, adapter_name=adapter, low_cpu_mem_usage=low)
        for low in (False, True)
    ]
    for name, path in rankwise.named_paths(loaded[0]).items():
        assert torch.equal(path.lora_A, rankwise.named_paths(loaded[1])[name].lora_A), name


def test_tying_the_head_to_a_targeted_embedding_is_refused() -> None:
    base = tiny_llama(tie_word_embeddings=True)
    before = structure(base)
    with pytest.raises(ValueError, match=r"ensure_weight_tying=True .*LoRA on the embedding"):
        adapted(base, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)
    assert structure(base) == before
    assert len(rankwise.named_paths(adapted(base, target_modules=["q_proj"]))) == 2


def test_a_conversion_does_not_bring_back_what_is_off() -> None:
    model = ours()
    keep_only_(model, "layers.0.query")
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=2)


def test_a_conversion_of_the_start_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path_initial_model_for_weight_conversion=.*leave it out"):
        ours().save_pretrained(str(tmp_path / "a"), path_initial_model_for_weight_conversion=str(tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_a_head_of_another_size_starts_anew_where_that_is_asked_for(tmp_path: Path) -> None:
    saved = ours()
    fill_(saved)
    saved.save_pretrained(str(tmp_path))
    base = tiny_bert(num_labels=5)
    with pytest.raises(ValueError, match=r"another number of labels.*ignore_mismatched_sizes=True"):
        PeftModel.from_pretrained(base, tmp_path)
    with pytest.warns(UserWarning, match="ignore_mismatched_sizes"):
        loaded: Any = PeftModel.from_pretrained(base, tmp_path, ignore_mismatched_sizes=True)
    assert logits(loaded).shape[-1] == 5
    for name, path in rankwise.named_paths(saved).items():
        assert torch.equal(path.lora_B, rankwise.named_paths(loaded)[name].lora_B)


def test_a_path_of_another_rank_is_refused_whatever_is_asked_for(tmp_path: Path) -> None:
    ours().save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    (tmp_path / "allocation.json").unlink()  # whose digest would tell first
    with pytest.raises(ValueError, match="another r"):
        PeftModel.from_pretrained(tiny_bert(), tmp_path, ignore_mismatched_sizes=True)
