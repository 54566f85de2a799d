"""The acceptance list while a LoR2C model changes its structure: a merge and an injection in real use, each point."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.families import FAMILIES
from tests.models import fill_, in_a_clean_process, logits, tiny_bert, tokens
from tests.search.test_editor import by_epochs, edits_of, owned, same_state, snapshot, trainable, trainer_of
from tests.shortcuts import assert_same_gradients, batches, checkpointed
from transformers import TrainerCallback

import rankwise
from rankwise import Inject, Lor2cConfig, Merge

BOTH = [(2, "Merge"), (3, "Inject")]
SHARE = pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
STEPS: dict[str, Any] = {"edit_unit": "steps", "total_steps": 8, "separate_edits": True}


def made(name: str = "bert", base: Any = None, *, blocks: int = 4, **fields: Any) -> Any:
    """A family's tiny model that merges after the second of eight steps and injects after the third."""
    options = {"r": 4, "merges": 1, "injections": 1, **STEPS, **fields}
    task = "CAUSAL_LM" if FAMILIES[name].causal else "SEQ_CLS"
    return get_peft_model(FAMILIES[name](blocks) if base is None else base, Lor2cConfig(task_type=task, **options))


def by_hand(name: str, base: Any = None, **fields: Any) -> Any:
    """Blocks 0 and 1 under the second's path, block 2 plain, LoRA in block 3; all that contributes has a ``B``."""
    model = made(name, base, **fields).eval()
    edits: list[Any] = [Merge("layers.0.layer", "layers.1.layer", "layers.1.layer"), Inject("layers.3.layer")]
    rankwise.apply_(model, edits)
    fill_(model)
    return model


def optimizer_of(model: Any, rate: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), rate, weight_decay=0.1)


def train(
    model: Any, name: str = "bert", count: int = 8, *, between: Callable[[], None] | None = None, call: Any = None
) -> Any:
    """Train a few steps; ``between`` runs before each backward pass, ``call`` is what is run instead of the model."""
    optimizer = optimizer_of(model)
    for batch in batches(name, count):
        loss = (model.train() if call is None else call)(**batch).loss
        if between is not None:
            between()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def structure(model: Any, adapter: str = "default") -> dict[str, tuple[bool, bool, tuple[int, int]]]:
    paths = rankwise.named_paths(model, adapter)
    return {name: (path.enabled, path.contributing, path.blocks) for name, path in paths.items()}


def resident(model: Any) -> list[Any]:
    paths: list[Any] = model.get_base_model().rankwise_paths["default"].resident
    return paths


# 1. Saved and loaded.


@SHARE
def test_after_a_trained_run_every_way_to_load_gives_the_same_logits(share: bool, tmp_path: Path) -> None:
    model = by_epochs(share=share)
    trainer_of(tmp_path, model, save_strategy="no").train()
    assert edits_of(model) == [(4, "Merge"), (6, "Inject")]
    wanted = logits(model)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "lean", enabled_only=True)
    transformed: Any = tiny_bert(4)
    transformed.load_adapter(str(tmp_path / "whole"))
    found = [
        transformed,
        PeftModel.from_pretrained(tiny_bert(4), tmp_path / "whole"),
        PeftModel.from_pretrained(tiny_bert(4), tmp_path / "lean", low_cpu_mem_usage=True),
    ]
    for loaded in found:
        assert torch.equal(logits(loaded), wanted)
        assert structure(loaded) == structure(model)


CLEAN = """
import sys
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

root = sys.argv[1]
model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(root + "/base"), root + "/adapter").eval()
ids = load_file(root + "/ids.safetensors")["ids"]
save_file({"logits": model(input_ids=ids).logits.detach()}, root + "/logits.safetensors")
"""


@pytest.mark.slow
def test_with_every_path_injected_the_export_needs_no_rankwise(tmp_path: Path) -> None:
    model = made("llama", blocks=2, merges=0, injections=2)
    with pytest.raises(ValueError, match=r"2 live block paths"):
        rankwise.export_lora(model, tmp_path / "adapter")
    train(model, "llama")
    assert edits_of(model) == [(1, "Inject"), (2, "Inject")]
    rankwise.export_lora(model, tmp_path / "adapter")
    FAMILIES["llama"](2).save_pretrained(tmp_path / "base")
    save_file({"ids": tokens()}, tmp_path / "ids.safetensors")
    in_a_clean_process(CLEAN, tmp_path)
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(FAMILIES["llama"](2)), atol=1e-3)
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], wanted, rtol=0, atol=1e-5)


# 2. Resumed.


@pytest.mark.slow
def test_a_shared_down_projection_resumes_between_the_edits(tmp_path: Path) -> None:
    models = [by_epochs(share=True) for _ in range(2)]
    trainer_of(tmp_path, models[0]).train()
    trainer_of(tmp_path, models[1]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    same_state(*models)
    assert edits_of(models[1]) == edits_of(models[0]) == [(4, "Merge"), (6, "Inject")]


# 4. Only what is on moves.

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 1e-1, momentum=0.9, weight_decay=0.1),
}


@SHARE
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_step_moves_enabled_paths_and_the_head_alone(name: str, kind: str, share: bool) -> None:
    """Gradients are zeroed, not dropped, so that momentum and decay would move whatever still has one."""
    model = made(name, share=share).train()
    optimizer = OPTIMIZERS[kind](trainable(model))
    for number, batch in enumerate(batches(name, 8)):
        model(**batch).loss.backward()
        wanted, before = owned(model), snapshot(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        changed = {key for key, value in snapshot(model).items() if not torch.equal(value, before[key])}
        assert changed == wanted, f"step {number}"
    assert edits_of(model) == BOTH


# 5. What users do to a model that is being edited.


@SHARE
def test_reference_passes_switches_and_a_second_adapter_change_no_run(share: bool) -> None:
    undisturbed, model = (made(share=share) for _ in range(2))
    train(undisturbed)
    model.add_adapter("other", Lor2cConfig(r=2, injections=1, **STEPS))
    for path in rankwise.named_paths(model, "other").values():
        torch.nn.init.ones_(path.lora_B)
    model.set_adapter("default")
    plain = FAMILIES["bert"](4).train()
    (batch,) = batches("bert")

    def disturb() -> None:
        with torch.no_grad(), model.disable_adapter():
            assert torch.equal(model(**batch).logits, plain(**batch).logits)
        here, now = structure(model), [p.requires_grad for p in model.parameters()]
        model.set_adapter("other")
        with torch.no_grad():
            model(**batch)
        model.set_adapter("default")
        assert structure(model) == here
        assert [p.requires_grad for p in model.parameters()] == now

    train(model, between=disturb)
    assert edits_of(model) == edits_of(undisturbed) == BOTH
    assert structure(model) == structure(undisturbed)
    for mine, theirs in zip(resident(model), resident(undisturbed), strict=True):
        assert torch.equal(mine.lora_A, theirs.lora_A)
        assert torch.equal(mine.lora_B, theirs.lora_B)
    assert rankwise.history(model, "other") == []


@SHARE
def test_an_adapter_from_the_same_config_object_takes_over_the_structure(share: bool) -> None:
    """DPO makes its reference adapter this way and copies parameters only; what is trained then leaves it alone."""
    model = by_hand("bert", share=share)
    wanted = logits(model)
    model.add_adapter("reference", model.peft_config["default"])
    state = model.state_dict()
    with torch.no_grad():
        for key, tensor in state.items():
            if ".reference." in key or key.endswith(".reference"):
                tensor.copy_(state[key.replace(".reference", ".default")])
    assert structure(model, "reference") == structure(model)
    rankwise.detach(train(model, count=2))
    assert not torch.equal(logits(model), wanted)
    model.set_adapter("reference")
    assert torch.equal(logits(model), wanted)


def test_a_copy_has_spans_of_its_own() -> None:
    model = by_hand("llama", share=True)
    wanted, here = logits(model), structure(model)
    twin = copy.deepcopy(model)
    rankwise.apply_(twin, [Merge("layers.0-1.layer", "layers.2.layer")])
    fill_(twin, seed=1)
    assert list(rankwise.named_paths(twin)) == ["layers.3.q_proj", "layers.3.v_proj", "layers.0-2.layer"]
    assert structure(model) == here
    assert torch.equal(logits(model), wanted)
    assert not torch.allclose(logits(twin), wanted, atol=1e-3)


# 6. Edits that never came.


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 5


def test_a_trainer_that_stops_between_the_edits_says_so(tmp_path: Path) -> None:
    model = by_epochs()
    trainer = trainer_of(tmp_path, model, save_strategy="no")
    trainer.add_callback(Stop())
    with pytest.warns(UserWarning, match=r"1 of 2 edits of adapter 'default' never came in 5 optimizer steps of 16"):
        trainer.train()
    assert edits_of(model) == [(4, "Merge")]


def test_saving_says_that_edits_are_outstanding(tmp_path: Path) -> None:
    model = train(made(), count=2)
    with pytest.warns(UserWarning, match=r"1 of 2 edits of adapter 'default' never came in 2 optimizer steps of 8"):
        model.save_pretrained(tmp_path)
    rankwise.detach(model)


@pytest.mark.slow
def test_edits_that_never_came_are_said_when_python_ends(repo_root: Path) -> None:
    code = "from tests.search.test_editor_acceptance import made, train; model = train(made(), count=1)"
    command = [sys.executable, "-W", "ignore::FutureWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=repo_root)
    assert "2 of 2 edits of adapter 'default' never came in 1 optimizer steps of 8" in done.stderr


# 8. An edit leaves no trace besides.


def test_an_edit_leaves_everything_else_as_found() -> None:
    model = train(made(), count=1)
    rankwise.detach(model)
    editor = rankwise.Editor(model)
    (batch,) = batches("bert")
    model(**batch).loss.backward()

    def state() -> dict[str, Any]:
        return {
            "rng": torch.get_rng_state(),
            "threads": torch.get_num_threads(),
            "modes": [module.training for module in model.modules()],
            "flags": [(p.requires_grad, p.dtype) for p in model.parameters()],
            "gradients on": torch.is_grad_enabled(),
        }

    before, weights = state(), snapshot(model)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert [editor.edit(kind).skipped for kind in ("merge", "inject")] == [False, False]
    after = state()
    assert torch.equal(before.pop("rng"), after.pop("rng"))
    assert before == after
    assert all(torch.equal(value, weights[name]) for name, value in snapshot(model).items())
    left = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gone = {f"{path.module}.lora_{f}" for path in resident(model) if not path.available for f in "AB"}
    assert {name for name in grads if name not in left} == {n for n in grads if any(part in n for part in gone)}
    assert all(torch.equal(grad, grads[name]) for name, grad in left.items() if grad is not None)
    editor.close()


# 9. Checkpointing.


@SHARE
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_checkpointed_gradients_are_the_same_before_between_and_after_the_edits(
    name: str, reentrant: bool, share: bool
) -> None:
    dropout: dict[str, Any] = {"lora_dropout": 0.2, "inject_dropout": 0.2}
    models = [made(name, FAMILIES[name](4).double(), share=share, **dropout).double().train() for _ in range(2)]
    models[1].enable_input_require_grads()
    checkpointed(models[1], reentrant=reentrant)
    optimizers = [torch.optim.SGD(trainable(model), 0.1) for model in models]
    for number, batch in enumerate(batches(name, 5)):
        found = []
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(number)
            model(**batch).loss.backward()
            paths = rankwise.named_paths(model).items()
            found.append({f"{key} {i}": p.grad for key, path in paths for i, p in enumerate(path.parameters)})
            optimizer.step()
        assert_same_gradients(found[1], found[0], 1e-9)
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert edits_of(models[0]) == edits_of(models[1]) == BOTH


# 10. Precisions and generation; compiled is in test_editor_compiled.py.


def dtypes(model: Any) -> set[torch.dtype]:
    return {path.lora_A.dtype for path in rankwise.named_paths(model).values()}


@SHARE
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_in_half_precision_the_same_edits_are_made_and_paths_stay_in_float32(name: str, how: str, share: bool) -> None:
    base = FAMILIES[name](4).to(torch.bfloat16) if how == "bfloat16" else None
    dtype = logits(FAMILIES[name](4) if base is None else base).dtype
    with torch.autocast("cpu", dtype=torch.bfloat16) if how == "autocast" else nullcontext():
        model = train(made(name, base, share=share), name)
    assert [edit for _, edit in edits_of(model)] == ["Merge", "Inject"]
    assert all(isinstance(score, float) for record in rankwise.history(model) for score in record["scores"].values())
    assert dtypes(model) == {torch.float32}
    assert logits(model).dtype == dtype
    exact = by_hand(name, share=share)
    wanted = logits(exact)
    half = by_hand(name, FAMILIES[name](4).to(torch.bfloat16), share=share)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(logits(half).float(), wanted, rtol=0.2, atol=0.6)
        torch.testing.assert_close(logits(exact).float(), wanted, rtol=0.2, atol=0.6)


@SHARE
@pytest.mark.parametrize("name", ["llama", "opt-pre", "gemma2"])
def test_generation_with_a_cache_is_the_same_as_all_at_once(name: str, share: bool) -> None:
    model, ids = by_hand(name, share=share), tokens(2, 5)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache, apart = None, []
        for column in ids.split(1, dim=1):
            output = model(input_ids=column, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            apart.append(output.logits)
    torch.testing.assert_close(torch.cat(apart, dim=1), whole, rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    found = model.generate(input_ids=ids, use_cache=True, **options)
    assert torch.equal(found, model.generate(input_ids=ids, use_cache=False, **options))
