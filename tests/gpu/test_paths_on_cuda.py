"""Paths on a GPU: the values and gradients of the CPU, edits, files, several dtypes, a kept prefix, compiled."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import PeftModel, get_peft_model
from tests.families import FAMILIES
from tests.gpu.cuda import CUDA, ON_CUDA, adamw, moved, one_step, there
from tests.models import adapted, fill_, keep_only_, logits, text_batches, tiny_llama, tokens
from tests.prefix.test_cache import equal, train, upper
from tests.shortcuts import FIVE, batches, checkpointed, half_on_, made, names

import rankwise
from rankwise.paths.fused import plain_paths
from rankwise.prefix.cache import prefix_cache

pytestmark = ON_CUDA


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", FIVE)
def test_a_step_is_that_of_the_cpu(name: str, plain: bool, checkpointing: bool) -> None:
    model = made(name).double()
    half_on_(model)
    if checkpointing:
        checkpointed(model)
    there = copy.deepcopy(model).to(CUDA)
    (batch,) = batches(name)
    with plain_paths() if plain else nullcontext():
        found = one_step(there, moved([batch])[0])
    wanted = one_step(model, batch)
    assert found.keys() == wanted.keys()
    # Norms of LLaMA-like models and OPT's softmax are computed in float32 whatever the weights are.
    rtol, atol = (1e-9, 1e-12) if name == "bert" else (1e-4, 1e-6)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=rtol, atol=atol, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FIVE)
def test_under_autocast_the_fused_path_is_the_plain_one(name: str, dtype: torch.dtype) -> None:
    model = made(name, lora_dropout=0.0).to(CUDA)
    (batch,) = moved(batches(name))
    found = []
    for plain in (False, True):
        with torch.autocast("cuda", dtype), plain_paths() if plain else nullcontext():
            found.append(one_step(model, batch))
    for key, tensor in found[1].items():
        assert (found[0][key] - tensor).norm() <= 0.03 * tensor.norm() + 1e-6, key


@pytest.mark.parametrize("method", ["heterolora", "lor2c"])
def test_files_go_from_one_device_to_the_other(method: str, tmp_path: Path) -> None:
    config = rankwise.Lor2cConfig(r=4, task_type="CAUSAL_LM") if method == "lor2c" else None
    base = tiny_llama()
    model: Any = made("llama", tiny_llama()) if config is None else get_peft_model(base, config)
    fill_(model)
    model.to(CUDA)
    wanted = logits(model, tokens().to(CUDA)).cpu()
    model.save_pretrained(str(tmp_path))
    for device in ("cpu", "cuda"):
        back = PeftModel.from_pretrained(there(tiny_llama(), device), str(tmp_path))
        assert {p.device.type for p in back.parameters()} == {device}
        torch.testing.assert_close(logits(back, tokens().to(device)).cpu(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", FIVE)
def test_a_file_that_is_loaded_without_memory_goes_where_the_base_is(name: str, device: str, tmp_path: Path) -> None:
    """PEFT reads its tensors onto the GPU, wherever the base is."""
    model = made(name)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(FAMILIES[name]().to(device), str(tmp_path), low_cpu_mem_usage=True)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {device}
    torch.testing.assert_close(logits(loaded, tokens().to(device)).cpu(), logits(model), rtol=1e-3, atol=1e-4)


def test_edits_are_made_where_the_weights_are(tmp_path: Path) -> None:
    """What is merged and injected after the move has the values that it has on the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        model: Any = get_peft_model(
            tiny_llama(3), rankwise.Lor2cConfig(r=4, merges=1, injections=1, task_type="CAUSAL_LM")
        )
        fill_(model)
        model.to(device)
        first, second, third = names(model, "layer")
        rankwise.apply_(model, [rankwise.Merge(first, second), rankwise.Inject(third)])
        assert {p.device.type for p in model.parameters()} == {device}
        fill_(model)
        found.append(logits(model, tokens().to(device)).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_merging_and_generating() -> None:
    model: Any = adapted(tiny_llama(), task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    fill_(model)
    model.to(CUDA)
    ids = tokens().to(CUDA)
    wanted = logits(model, ids)
    written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, ids), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0), written)


@pytest.mark.parametrize("kept_on", ["cpu", "cuda"])
def test_a_base_that_is_partly_offloaded(kept_on: str) -> None:
    """As ``device_map`` lays it out: weights of a block lie in main memory until the block runs."""
    base: Any = tiny_llama(3)
    model = made("llama", base)
    wanted = logits(model)
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": kept_on if kept_on == "cpu" else 0,
              "model.layers.2": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}  # fmt: skip
    model.get_base_model().hf_device_map = places
    dispatch_model(model.get_base_model(), places, main_device=0, force_hooks=True)
    torch.testing.assert_close(logits(model, tokens().to(CUDA)).cpu(), wanted, rtol=1e-4, atol=1e-5)


def on_two(base: Any) -> Any:
    """Lay the blocks behind the first on the CPU, where they run, and all else on the GPU."""
    base.to(CUDA)
    for block in base.model.layers[1:]:
        add_hook_to_module(block.to("cpu"), AlignDevicesHook(execution_device=torch.device("cpu")))
        block._hf_hook.io_same_device = False
    add_hook_to_module(base.model.norm, AlignDevicesHook(execution_device=CUDA))
    return base


def test_blocks_that_run_on_two_devices_give_the_logits_of_one() -> None:
    for kinds in (["res1", "res2", "in", "cut"], ["layer"]):
        fields = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "shortcuts": kinds, "mode": "off"}
        model, there = adapted(tiny_llama(3), **fields), adapted(on_two(tiny_llama(3)), **fields)
        for each in (model, there):
            fill_(each)
        wanted = logits(model)
        torch.testing.assert_close(logits(there, tokens().to(CUDA)).cpu(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["linear", "all"])
def test_a_model_on_two_devices_is_planned_as_one(space: str) -> None:
    data = text_batches(8)
    wanted = rankwise.rank_plan(tiny_llama(3), data, budget=600, space=space)
    found = rankwise.rank_plan(on_two(tiny_llama(3)), moved(data), budget=600, space=space)
    assert found.gain == pytest.approx(wanted.gain, rel=1e-2)
    assert found.spent <= 600


@pytest.mark.parametrize("name", FIVE)
def test_a_run_with_a_kept_prefix_is_the_run_without_bit_for_bit(name: str) -> None:
    found = []
    for keeps in (True, False):
        model = upper(name).to(CUDA)
        with prefix_cache(model) if keeps else nullcontext() as cache:
            found.append(train(model, moved(batches(name, 3))))
        assert cache is None or (cache.hits, cache.misses) == (6, 3)
    equal(found)


def test_a_kept_prefix_lets_random_numbers_be(tmp_path: Path) -> None:
    model = upper("bert", lora_dropout=0.3).to(CUDA)
    found = []
    for keeps in (True, False):
        torch.manual_seed(3)
        with prefix_cache(model) if keeps else nullcontext():
            for batch in moved(batches("bert", 2)) * 2:
                model(**batch).loss.backward()
                model.zero_grad()
        found.append(torch.cuda.get_rng_state())
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FIVE)
def test_compiled_steps_are_the_eager_ones(name: str) -> None:
    torch._dynamo.reset()
    model = made(name).to(CUDA)
    (batch,) = moved(batches(name))
    wanted = one_step(model, batch)
    compiled: Any = torch.compile(model)
    found = one_step(compiled, batch)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found.get(key, found.get(f"_orig_mod.{key}")), tensor, rtol=1e-3, atol=1e-4, msg=key)
    torch._dynamo.reset()


def test_what_is_off_costs_no_memory_of_the_step() -> None:
    """A path that is off computes nothing: the step's peak is that of a model that never had it."""
    peaks = []
    (batch,) = moved(text_batches(1, 16))
    for shortcuts in ([], ["res1", "res2"]):
        model: Any = adapted(tiny_llama(), task_type="CAUSAL_LM", target_modules=["q_proj"], shortcuts=shortcuts)
        model.to(CUDA).train()
        keep_only_(model, *[name for name, path in rankwise.named_paths(model).items() if path.kind == "linear"])
        optimizer = adamw(model)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(**batch).loss.backward()
            peaks.append(torch.cuda.max_memory_allocated() - before)
            optimizer.step()
            optimizer.zero_grad()
    assert peaks[3] <= peaks[1] * 1.02
