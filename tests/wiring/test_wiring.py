"""Forward passes through shortcuts: precisions, compiled, generating, odd calls, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.families import FAMILIES, opt_config
from tests.models import build, keep_only_, logits, tokens
from tests.shortcuts import (
    CAUSAL,
    FIVE,
    POST,
    assert_same_gradients,
    base_logits,
    batches,
    checkpointed,
    gradients,
    held,
    made,
    names,
)
from transformers import OPTForCausalLM

import rankwise
from rankwise.paths.path_set import path_sets


def wiring(model: Any) -> Any:
    return path_sets(model).wiring  # type: ignore[attr-defined]


def dtypes(model: Any) -> set[torch.dtype]:
    return {path.lora_A.dtype for path in rankwise.named_paths(model).values()}


# Precisions.


@pytest.mark.parametrize("name", FIVE)
def test_half_precision_models_keep_their_dtype_and_shortcuts_train_in_float32(name: str) -> None:
    """PEFT's ``autocast_adapter_dtype`` keeps every path of a half precision model in float32."""
    expected = logits(made(name))
    for dtype in (torch.bfloat16, torch.float16):
        model = made(name, FAMILIES[name]().to(dtype)).train()
        assert dtypes(model) == {torch.float32}
        output = model(**batches(name)[0])
        output.loss.backward()
        assert output.logits.dtype == dtype
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(model).values())
        torch.testing.assert_close(logits(model).float(), expected, rtol=0.2, atol=0.6)


@pytest.mark.parametrize("name", FIVE)
def test_float64_models_have_float64_shortcuts(name: str) -> None:
    model = made(name, FAMILIES[name]().double())
    assert dtypes(model) == {torch.float64}
    assert logits(model).dtype == torch.float64
    torch.testing.assert_close(logits(model).float(), logits(made(name)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FIVE)
def test_autocast_gives_the_dtypes_of_the_base_model(name: str) -> None:
    model, base = made(name).train(), FAMILIES[name]()
    expected = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(model)
        assert found.dtype == logits(base).dtype
        model.train()(**batches(name)[0]).loss.backward()
    torch.testing.assert_close(found.float(), expected, rtol=0.2, atol=0.6)
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients(model).values())


def test_an_8_bit_model_searches_its_shortcuts(tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    FAMILIES["llama"]().save_pretrained(tmp_path)
    bits = BitsAndBytesConfig(load_in_8bit=True)

    def base() -> Any:
        return LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=bits, device_map={"": "cpu"})

    fields = {"mode": "dynamic", "budget": 0.5, "search_every": 2, "score_batches": 2}
    model = made("llama", base(), filled=False, **fields)
    before = logits(base())
    torch.testing.assert_close(logits(model), before)
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], 1e-2)
    for batch in batches("llama", 5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [record["step"] for record in rankwise.history(model)] == [2, 4]
    assert not torch.allclose(logits(model), before)


# Compiled.


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FIVE)
def test_hooks_lie_in_the_order_that_they_run_in(name: str) -> None:
    """torch.compile goes by the dictionary's own order, which ``prepend`` leaves as it is (torch 2.11 then fails)."""
    model = made(name)
    hooks = [module._forward_hooks for module in model.modules()]
    assert any(len(each) > 1 for each in hooks)
    assert [list(dict.keys(each)) for each in hooks] == [list(each) for each in hooks]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("name", "norm"), [("bert", "reapply"), pytest.param("opt-pre", "inside", marks=pytest.mark.slow)]
)
def test_compiled_it_is_one_graph_and_the_same_before_and_after_a_reallocation(name: str, norm: str) -> None:
    model = made(name, FAMILIES[name](2), shortcut_norm=norm)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    (batch,) = batches(name)
    for kept in (names(model), names(model)[::2]):
        keep_only_(model, *kept)
        model.train()
        output = compiled(**batch)
        output.loss.backward()
        found = gradients(model)
        expected = model(**batch)
        expected.loss.backward()
        torch.testing.assert_close(output.logits, expected.logits)
        assert_same_gradients(found, gradients(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo looks
@pytest.mark.usefixtures("compiler")
def test_compiled_with_checkpointing_the_gradients_are_the_same() -> None:
    model = checkpointed(made("llama", FAMILIES["llama"](2)))
    (batch,) = batches("llama")
    model(**batch).loss.backward()
    expected = gradients(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    compiled(**batch).loss.backward()
    assert_same_gradients(gradients(model), expected)


# Generation.


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_generation_is_the_same_with_and_without_a_cache(name: str) -> None:
    model, ids = made(name), tokens(2, 5)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    found = model.generate(input_ids=ids, use_cache=True, **options)
    assert torch.equal(found, model.generate(input_ids=ids, use_cache=False, **options))
    assert not torch.equal(found, FAMILIES[name]().generate(input_ids=ids, **options))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_padded_row_generates_what_it_generates_alone(name: str) -> None:
    model, ids = made(name), tokens(2, 5)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[0, :2], mask[0, :2] = 1, 0
    both = model.generate(input_ids=padded, attention_mask=mask, **options)
    alone = model.generate(input_ids=ids[:1, 2:], attention_mask=mask[:1, 2:], **options)
    assert torch.equal(both[0, 5:], alone[0, 3:])


# Odd calls.


@pytest.mark.parametrize("name", FIVE)
def test_every_way_to_call_gives_the_same_logits(name: str) -> None:
    model = made(name)
    base, expected = model.get_base_model(), logits(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens(), return_dict=False)[0], expected)
        embedded = model.get_input_embeddings()(tokens())
        assert torch.equal(model(inputs_embeds=embedded).logits, expected)
        base.set_attn_implementation("eager")
        output = model(input_ids=tokens(), output_attentions=True)
        assert len(output.attentions) == 3
        torch.testing.assert_close(output.logits, expected)
        inner = base.base_model(input_ids=tokens())[0]
        torch.testing.assert_close(inner, model(input_ids=tokens(), output_hidden_states=True).hidden_states[-1])
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=tokens()).logits, expected)
    model.train()(**batches(name)[0]).loss.backward()
    assert all(gradient is not None for gradient in gradients(model).values())


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("name", ["bert", "opt-pre"])
def test_hidden_states_are_what_the_next_block_takes_in(name: str, asked_before: bool) -> None:
    """transformers records them with hooks of its own, put on the blocks when they are first asked for."""
    base = FAMILIES[name]()
    if asked_before:
        base(input_ids=tokens(), output_hidden_states=True)
    model = made(name, base)
    taken: list[torch.Tensor] = []

    def note(block: Any, args: Any, kwargs: Any) -> None:
        taken.append(args[0] if args else kwargs["hidden_states"])

    for block in wiring(model).blocks.values():
        block.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        recorded = model(input_ids=tokens(), output_hidden_states=True).hidden_states
    for found, expected in zip(recorded, taken, strict=False):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", FIVE)
def test_two_forwards_of_other_lengths_before_a_backward(name: str) -> None:
    model = made(name, FAMILIES[name]().double()).train()
    apart = []
    for ids in (tokens(2, 4), tokens(3, 7)):
        model(input_ids=ids).logits.square().mean().backward()
        apart.append(gradients(model))
    losses = [model(input_ids=ids).logits.square().mean() for ids in (tokens(2, 4), tokens(3, 7))]
    (losses[0] + losses[1]).backward()
    found = gradients(model)
    pairs = zip(*(each.values() for each in apart), strict=True)
    sums = [one + two for one, two in pairs if one is not None and two is not None]
    assert_same_gradients(found, dict(zip(found, sums, strict=True)), 1e-10)


@pytest.mark.parametrize("name", FIVE)
def test_with_checkpointing_dropout_and_inputs_that_require_grad(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = made(name, FAMILIES[name]().double(), target_modules=[], shortcut_dropout=0.3).train()
        if checkpointing:
            checkpointed(model)
        model.enable_input_require_grads()
        torch.manual_seed(3)
        model(**batches(name)[0]).loss.backward()
        found.append(gradients(model))
    assert_same_gradients(found[1], found[0], 1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_opt_may_drop_layers(pre_norm: bool, checkpointing: bool) -> None:
    config = opt_config(3, pre_norm=pre_norm)
    config.layerdrop = 0.4
    model = made("opt-pre" if pre_norm else "opt-post", build(OPTForCausalLM, config)).train()
    if checkpointing:
        checkpointed(model)
    model.enable_input_require_grads()
    with torch.random.fork_rng(devices=[]):
        for seed in range(8):
            torch.manual_seed(seed)
            model(**batches("opt-pre")[0]).loss.backward()
            assert held(model) == []
    keep_only_(model)
    assert torch.equal(logits(model), logits(build(OPTForCausalLM, config)))


def test_an_inner_model_may_drop_layers() -> None:
    config = opt_config(3, pre_norm=True)
    config.layerdrop = 0.5
    model = made("opt-pre", build(OPTForCausalLM, config)).train()
    inner = model.get_base_model().model
    model.enable_input_require_grads()
    with torch.random.fork_rng(devices=[]):
        for seed in range(30):
            torch.manual_seed(seed)
            inner(input_ids=tokens(2, 4 + seed % 3))[0].sum().backward()


@pytest.mark.parametrize("name", ["bert", "opt-pre", "llama"])
def test_threads_do_not_see_each_others_activations(name: str) -> None:
    """A model in eval mode is served from several threads at once; PEFT's own layers allow it."""
    model = made(name)
    expected = logits(model)
    (main, pool), blocks = (threading.current_thread(), ThreadPoolExecutor(1)), list(wiring(model).blocks.values())

    def serve_another(*_: Any) -> None:
        if threading.current_thread() is main:
            pool.submit(logits, model, tokens(seed=5)).result()

    blocks[1].get_submodule(wiring(model).anatomy.attention).register_forward_hook(serve_another)
    with pool:
        assert torch.equal(logits(model), expected)


# Nothing left behind.


@pytest.mark.parametrize("norm", ["inside", "reapply"])
@pytest.mark.parametrize("name", FIVE)
def test_no_activation_outlives_its_pass(name: str, norm: str) -> None:
    if norm == "reapply" and name not in POST:
        pytest.skip("norms inside the branches don't run twice")
    for checkpointing in (False, True):
        model = made(name, shortcut_norm=norm).train()
        if checkpointing:
            checkpointed(model)
        every = names(model)
        for kept in (every, every[::3], every[1::3], every[2::3], [every[-1]]):
            keep_only_(model.train(), *kept)
            loss = model(**batches(name)[0]).loss
            assert held(model) == []
            loss.backward()  # recomputing stops early, in the middle of a block
            assert held(model) == []


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bert", "opt-pre", "llama"])
def test_every_activation_dies_with_its_step(name: str, checkpointing: bool) -> None:
    model = made(name, mode="dynamic", budget=0.5, search_every=1, score_batches=1).train()
    if checkpointing:
        checkpointed(model)
    seen: list[weakref.ref[torch.Tensor]] = []

    def note(module: Any, args: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        seen.extend(weakref.ref(found) for found in outputs if isinstance(found, torch.Tensor))

    for module in model.modules():
        module.register_forward_hook(note)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in batches(name, 3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(rankwise.history(model)) == 3
    rankwise.detach(model)
    gc.collect()
    assert len(seen) > 100
    assert [ref for ref in seen if ref() is not None] == []


@pytest.mark.parametrize("name", FIVE)
def test_a_pass_that_raises_midway_leaves_nothing_and_the_next_is_right(name: str) -> None:
    model = made(name)
    expected = logits(model)
    blocks, anatomy = list(wiring(model).blocks.values()), wiring(model).anatomy

    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    for module in (blocks[1], blocks[1].get_submodule(anatomy.mid[0]), blocks[2].get_submodule(anatomy.attention)):
        hook = module.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no more memory"):
            model.train()(**batches(name)[0])
        hook.remove()
        assert held(model) == []
        assert torch.equal(logits(model), expected)


def test_an_adapter_that_is_off_costs_no_hook_a_tensor() -> None:
    model = made("gemma2")
    keep_only_(model.train())
    before = base_logits("gemma2")
    assert torch.equal(logits(model), before)
    assert not model.train()(**batches("gemma2")[0]).logits.requires_grad
