from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from tests.families import FAMILIES
from tests.models import adapted, build, fill_, in_a_clean_process, keep_only_, logits, tiny_bert, tiny_llama
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import rankwise

BERT_TARGETS = ["query", "value", "attention.output.dense"]
LLAMA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Other ranks and alphas for some paths, so that padding and scaling show.
UNEQUAL: dict[str, Any] = {
    **{"rank_pattern": {"v_proj": 5, r"layers\.1\..*\.q_proj": 1}, "alpha_pattern": {"v_proj": 3, "down_proj": 7}},
    "target_modules": ["q_proj", "v_proj", "down_proj"],
}


def tiny_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    config.initializer_range = 0.2
    model: GPT2LMHeadModel = build(GPT2LMHeadModel, config)
    return model


def bert() -> PeftModel:
    base = tiny_bert()
    model = adapted(base, task_type="SEQ_CLS", target_modules=["query", "value"], on_disable="freeze")
    fill_(model)
    with torch.no_grad():  # as training would; the classifier that the base has stays behind
        next(p for name, p in base.classifier.named_parameters() if "modules_to_save" in name).add_(1.0)
    keep_only_(model, "layers.0.query", "layers.1.value")  # the others are frozen and still contribute
    return model


def some_of_bert() -> PeftModel:
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=BERT_TARGETS)
    fill_(model)
    keep_only_(model, "layers.1.query", "layers.0.attention.output.dense")
    return model


def llama(**fields: Any) -> PeftModel:
    model = adapted(tiny_llama(), task_type="CAUSAL_LM", **fields)
    fill_(model)
    rankwise.apply_(model, [rankwise.Disable("layers.0.q_proj"), rankwise.Disable("layers.1.v_proj")])
    return model


def many() -> PeftModel:
    """22 of 28 modules: PEFT shortens longer lists of names by their suffixes."""
    model = adapted(tiny_llama(4), task_type="CAUSAL_LM", target_modules=LLAMA_ALL)
    fill_(model)
    names = list(rankwise.named_paths(model))
    rankwise.apply_(model, [rankwise.Disable(name) for name in names[::5]])
    return model


def gpt2() -> PeftModel:
    model = adapted(tiny_gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn", "mlp.c_fc"])
    fill_(model)
    rankwise.apply_(model, [rankwise.Disable("layers.1.c_attn")])
    return model


def outside() -> PeftModel:
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query", "pooler.dense"])
    fill_(model)
    keep_only_(model, "layers.1.query", "bert.pooler.dense")
    return model


Case = tuple[Callable[[], PeftModel], bool]
CASES: dict[str, Case] = {
    "a frozen path and a head": (bert, False),
    "some of many": (some_of_bert, False),
    "one rank": (lambda: llama(target_modules=["q_proj", "v_proj"]), False),
    "unequal ranks, padded": (lambda: llama(**UNEQUAL), False),
    "unequal ranks, by pattern": (lambda: llama(**UNEQUAL), True),
    "rslora": (lambda: llama(target_modules=["q_proj", "v_proj"], use_rslora=True), False),
    "rslora, unequal ranks": (lambda: llama(**UNEQUAL, use_rslora=True), False),
    "rslora, unequal ranks, by pattern": (lambda: llama(**UNEQUAL, use_rslora=True), True),
    "an alpha that is no whole number": (lambda: llama(target_modules=["q_proj", "v_proj"], lora_alpha=2.5), False),
    "more than twenty modules": (many, False),
    "more than twenty modules, by pattern": (many, True),
    "transposed weights": (gpt2, False),
    "outside the blocks": (outside, False),
}

CLEAN = """
import json, sys
from pathlib import Path
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
import transformers

root = Path(sys.argv[1])
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    base = getattr(transformers, json.loads((folder / "base" / "config.json").read_text())["architectures"][0])
    model = PeftModel.from_pretrained(base.from_pretrained(folder / "base"), folder / "adapter").eval()
    modules = [n for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)]
    ids = load_file(folder / "ids.safetensors")["ids"]
    save_file({"logits": model(input_ids=ids).logits.detach()}, folder / "logits.safetensors")
    found = {"modules": modules, "type": str(model.active_peft_config.peft_type)}
    (folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PeftModel, Path, Tensor]]:
    """Every case, exported here and loaded by one clean process: (model, folder, logits here)."""
    root = tmp_path_factory.mktemp("exported")
    made = {}
    for number, (name, (make, by_pattern)) in enumerate(CASES.items()):
        folder, model = root / f"{number:02}", make()
        bare = make().unload()
        bare.save_pretrained(folder / "base")
        rankwise.export_lora(model, folder / "adapter", rank_pattern=by_pattern)
        ids = torch.arange(5, 17).reshape(2, 6)
        save_file({"ids": ids}, folder / "ids.safetensors")
        assert not torch.allclose(logits(model, ids), logits(bare, ids), atol=1e-2)
        made[name] = model, folder, logits(model, ids)
    in_a_clean_process(CLEAN, root)
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_clean_process_finds_the_same_logits(name: str, exported: dict[str, tuple[PeftModel, Path, Tensor]]) -> None:
    _, folder, expected = exported[name]
    exact = 0.0 if name in ("some of many", "one rank", "outside the blocks") else 2e-5
    torch.testing.assert_close(load_file(folder / "logits.safetensors")["logits"], expected, rtol=exact, atol=exact)


@pytest.mark.parametrize("name", CASES)
def test_it_names_exactly_the_contributing_modules(
    name: str, exported: dict[str, tuple[PeftModel, Path, Tensor]]
) -> None:
    model, folder, _ = exported[name]
    live = {path.module for path in rankwise.named_paths(model).values() if path.contributing}
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = json.loads((folder / "found.json").read_text())
    assert (config["peft_type"], found["type"]) == ("LORA", "PeftType.LORA")
    assert sorted(config["target_modules"]) == sorted(live)
    assert sorted(found["modules"]) == sorted(live)
    assert {m[1] for m in map(re.compile(r"base_model\.model\.(.*)\.lora_A\.weight").fullmatch, tensors) if m} == live
    assert not [key for key in tensors if "allocation" in key]
    assert not [key for key in config if "rankwise" in key or key in ("budget", "proxy", "sketch", "shortcuts")]


@pytest.mark.parametrize("name", CASES)
def test_patterns_only_where_asked_for(name: str, exported: dict[str, tuple[PeftModel, Path, Tensor]]) -> None:
    model, folder, _ = exported[name]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    live = {path.module: path for path in rankwise.named_paths(model).values() if path.contributing}
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    largest = max(path.r for path in live.values())
    assert (config["r"], config["use_rslora"], config["inference_mode"]) == (largest, False, True)
    if not CASES[name][1]:
        assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    for module, path in live.items():
        rank = config["rank_pattern"].get(module, config["r"])
        assert tensors[f"base_model.model.{module}.lora_A.weight"].shape[0] == rank
        assert rank == (path.r if CASES[name][1] else largest)
        own = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank
        b, a = (tensors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "BA")
        expected = path.scaling * (path.lora_B @ path.lora_A).detach()
        torch.testing.assert_close(own * (b @ a), expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_kept(exported: dict[str, tuple[PeftModel, Path, Tensor]]) -> None:
    model, folder, _ = exported["a frozen path and a head"]
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    head = {key.rpartition("classifier.")[2]: value for key, value in tensors.items() if "classifier" in key}
    assert set(head) == {"weight", "bias"}
    assert torch.equal(head["weight"], model.state_dict()["base_model.model.classifier.modules_to_save.default.weight"])
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["modules_to_save"]


def test_a_head_is_named_once_after_loading(
    exported: dict[str, tuple[PeftModel, Path, Tensor]], tmp_path: Path
) -> None:
    """PEFT adds a classifier's names to those that a saved config has already."""
    model, _, _ = exported["a frozen path and a head"]
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(tiny_bert(), str(tmp_path / "saved"))
    rankwise.export_lora(loaded, tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "adapter_config.json").read_text())["modules_to_save"] == [
        "classifier",
        "score",
    ]


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    model = bert()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    config = model.peft_config["default"].to_dict()
    rankwise.export_lora(model, tmp_path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.peft_config["default"].to_dict() == config
    assert model.peft_config["default"].inference_mode is False


def test_nothing_to_export_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj"])
    keep_only_(model)
    with pytest.raises(ValueError, match="no path contributes, so there is nothing to export"):
        rankwise.export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="LlamaForCausalLM has no rankwise paths"):
        rankwise.export_lora(tiny_llama(), tmp_path / "out")  # type: ignore[arg-type]


def test_a_frozen_path_whose_b_is_zero_contributes_nothing_and_is_left_out(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj"], on_disable="freeze")
    rankwise.apply_(model, [rankwise.Disable("layers.0.q_proj")])
    rankwise.export_lora(model, tmp_path)
    assert LoraConfig.from_pretrained(str(tmp_path)).target_modules == {"model.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize("on", [True, False])
def test_no_frozen_weight_of_the_base_is_written_along(tmp_path: Path, on: bool) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj", "lm_head"])
    rankwise.apply_(model, [] if on else [rankwise.Disable("lm_head")])
    rankwise.export_lora(model, tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert [key for key in keys if ".lora_" not in key] == []


def test_trained_token_embeddings_are_kept(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj"], trainable_token_indices=[5, 6, 7])
    fill_(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name and parameter.requires_grad:
                parameter.add_(1.0)
    rankwise.export_lora(model, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    back = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    torch.testing.assert_close(logits(back, ids), logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_are_kept(tmp_path: Path, bias: str) -> None:
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query"], bias=bias)
    fill_(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.add_(1.0)
    rankwise.export_lora(model, tmp_path)
    back = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=1e-6)


def test_the_adapter_asked_for_is_exported(tmp_path: Path) -> None:
    model = llama(target_modules=["q_proj", "v_proj"])
    model.add_adapter("other", rankwise.HeteroLoraConfig(r=3, target_modules=["k_proj"], mode="off"))
    rankwise.export_lora(model, tmp_path, adapter="other")
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert config.r == 3
    assert config.target_modules == {f"model.layers.{i}.self_attn.k_proj" for i in range(2)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    model = llama(**UNEQUAL).to(dtype)
    rankwise.export_lora(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {dtype}


def test_a_folder_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    rankwise.export_lora(llama(**UNEQUAL), tmp_path)
    rankwise.export_lora(some_of_bert(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    back = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(back), logits(some_of_bert()), rtol=0, atol=0)


def test_paths_on_what_peft_takes_for_experts_are_not_exported_as_others(tmp_path: Path) -> None:
    family = FAMILIES["qwen3-moe"]
    model = adapted(family(2), target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM")
    fill_(model)
    with pytest.raises(ValueError, match=r"PEFT takes model\.layers\.1\.mlp\.down_proj for .*model.save_pretrained"):
        rankwise.export_lora(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    model.save_pretrained(str(tmp_path / "own"))
    back = PeftModel.from_pretrained(family(2), str(tmp_path / "own"))
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=0)
    keep_only_(model, "layers.0.v_proj", "layers.1.v_proj")
    rankwise.export_lora(model, tmp_path / "plain")
    back = PeftModel.from_pretrained(family(2), str(tmp_path / "plain"))
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=1e-6)
