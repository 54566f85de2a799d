"""Scores, plans and searches on a GPU: what the CPU finds, nothing left behind, and runs that can go on exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from tests.gpu.cuda import CUDA, ON_CUDA, adamw, moved, there
from tests.models import adapted, build, class_batches, fill_, text_batches, tiny_bert, tiny_llama
from tests.planning.test_ranks import plan_of
from tests.search.test_callback import StopAt, searching, trainer
from tests.shortcuts import FIVE, batches, made
from tests.traces import assert_same, snapshot
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import rankwise
from rankwise.rules.records import Record, searches

pytestmark = ON_CUDA
PROXIES = ["grad_norm", "snip", "synflow", "newton"]
QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", FIVE)
def test_scores_are_those_of_the_cpu(name: str, proxy: str) -> None:
    model = made(name, proxy=proxy).double()
    data = batches(name, 3)
    wanted = rankwise.score_paths(model, data, proxy=proxy)
    found = rankwise.score_paths(copy.deepcopy(model).to(CUDA), moved(data), proxy=proxy)
    inside = name in ("llama", "gemma2")  # norms in float32, and labels drawn by what they give
    assert found == pytest.approx(wanted, rel=2e-3 if inside else 1e-6, abs=1e-7 if inside else None)


@pytest.mark.parametrize("proxy", PROXIES)
def test_batches_that_lie_on_the_cpu_are_brought_there(proxy: str) -> None:
    model = made("llama").double().to(CUDA)
    data = batches("llama", 2)
    assert rankwise.score_paths(model, data, proxy=proxy) == pytest.approx(
        rankwise.score_paths(model, moved(data), proxy=proxy)
    )


@pytest.mark.parametrize("proxy", PROXIES)
def test_batches_on_the_cpu_are_brought_to_losses_of_ones_own(proxy: str) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss

    def drawn(model: Any, batch: Any, generator: torch.Generator) -> Any:
        logits = model(input_ids=batch["input_ids"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"), len(logits)

    model, data = made("bert").to(CUDA), class_batches(6)
    assert rankwise.score_paths(model, data, proxy=proxy, compute_loss=loss, draw_losses=drawn, synflow_loss="loss")
    losses: Any = {"compute_loss": loss, "draw_losses": drawn}
    assert plan_of(there(tiny_bert()), data, budget=300, head_warmup=2, **losses).ranks


@pytest.mark.parametrize("space", ["linear", "all"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_a_plan_is_that_of_the_cpu(make: Any, space: str) -> None:
    data = class_batches(6) if make is tiny_bert else text_batches(6, 4)
    wanted = plan_of(make().double(), data, space=space)
    found = plan_of(make().double().to(CUDA), moved(data), space=space)
    assert found.ranks == wanted.ranks
    assert found.gain == pytest.approx(wanted.gain, rel=1e-6)
    model: Any = get_peft_model(make().to(CUDA), found.to_config())
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    model(**moved(data)[0]).loss.backward()


@pytest.mark.parametrize("time_limit", [None, 2.0])
def test_a_plan_leaves_nothing_behind_and_no_random_number_is_drawn(time_limit: float | None) -> None:
    model = there(tiny_bert()).train()
    data = moved(class_batches(6))
    model(**data[0]).loss.backward()
    before, random = snapshot(model), torch.cuda.get_rng_state()
    held = torch.cuda.memory_allocated()
    plan = plan_of(model, data, budget=300, space="all", head_warmup=2, time_limit=time_limit)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert_same(before, snapshot(model))
    assert plan.step_share is None or 0 < plan.step_share <= 2.0
    torch._C._cuda_clearCublasWorkspaces()
    assert torch.cuda.memory_allocated() <= held


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_plan_for_a_base_in_half_precision(dtype: torch.dtype) -> None:
    base = there(tiny_llama(), dtype)
    data = moved(text_batches(6, 4))
    plan = plan_of(base, data, space="all")
    assert plan.gain > 0
    assert {p.dtype for p in base.parameters()} == {dtype}
    model: Any = get_peft_model(base, plan.to_config()).train()
    optimizer = adamw(model)
    with torch.autocast("cuda", dtype):
        losses = []
        for _ in range(20):
            loss = model(**data[0]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def records(model: Any) -> list[Record]:
    return [replace(record, seconds=0.0, tap_seconds=0.0) for record in rankwise.history(model)]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=["float32", "bf16", "fp16"])
@pytest.mark.parametrize("fields", [{}, {"sketch": 4}, {"shortcuts": ["res1", "layer"]}, {"scoring": "probe"}])
def test_a_resumed_run_is_the_one_that_never_stopped(
    fields: dict[str, Any], precision: dict[str, Any], tmp_path: Path
) -> None:
    """The scaled loss of fp16 included: its scores are finite, and what is off does not move."""
    options = {"use_cpu": False, "max_grad_norm": 1.0, **precision}
    whole = searching(search_every=2, **fields)
    trainer(whole, tmp_path / "whole", **options).train()
    assert {p.device.type for p in whole.parameters()} == {"cuda"}
    found = searches(rankwise.history(whole))
    assert [record.step for record in found] == [0, 2, 4, 6]
    for record in found:
        scores = [score for score in (record.scores or {}).values() if score is not None]
        assert scores
        assert all(0 < score < 1e4 for score in scores), record

    trainer(searching(search_every=2, **fields), tmp_path / "parts", StopAt(5), **options).train()
    second = searching(search_every=2, **fields)
    trainer(second, tmp_path / "parts", **options).train(resume_from_checkpoint=True)
    assert records(second) == records(whole)
    for (name, one), (_, other) in zip(second.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("optimizer", [{}, {"fused": True}, {"foreach": True}, {"capturable": True}])
def test_what_is_off_stands_still_in_every_kind_of_adamw(optimizer: dict[str, Any]) -> None:
    model = made("bert", mode="dynamic", budget=0.5, search_every=2, score_batches=2, filled=False).to(CUDA).train()
    adam = adamw(model, **optimizer)
    for batch in moved(class_batches(8)):
        model(**batch).loss.backward()
        paths = rankwise.named_paths(model).values()
        off = [p for path in paths if not path.enabled for p in path.parameters]
        before = [p.detach().clone() for p in off]
        adam.step()
        adam.zero_grad()
        assert all(torch.equal(one, two) for one, two in zip(before, off, strict=True))
    assert len(searches(rankwise.history(model))) >= 4


def test_a_loop_with_a_grad_scaler_scores_what_a_loop_without_does() -> None:
    found = []
    for scaled in (False, True):
        model = made("bert", mode="dynamic", budget=0.5, search_every=3, score_batches=3, filled=False)
        model.to(CUDA).train()
        optimizer = adamw(model)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=scaled)
        rankwise.Allocator(model, optimizer)
        for batch in moved(class_batches(3)):
            scaler.scale(model(**batch).loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found.append(searches(rankwise.history(model))[-1])
    assert found[1].chosen == found[0].chosen


def test_ranks_are_chosen_in_trainer_and_the_memory_is_that_of_what_was_chosen(tmp_path: Path) -> None:
    model: Any = adapted(
        tiny_bert(), task_type="SEQ_CLS", target_modules="all-linear", mode="static", granularity="rank", r=8,
        budget=300, score_batches=6,
    )  # fmt: skip
    run = trainer(model, tmp_path, use_cpu=False, bf16=True)
    run.train()
    paths = rankwise.named_paths(model).values()
    assert sum(p.numel() for path in paths for p in path.parameters) <= 300
    kept = [p for name, p in model.named_parameters() if "lora_" in name]
    assert sum(p.numel() for p in kept) <= 300
    optimizer: Any = run.optimizer
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in kept} <= owned


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own, once
@pytest.mark.filterwarnings("ignore:\\s*Online softmax is disabled:UserWarning")  # inductor's own, of short rows
def test_a_compiled_run_chooses_as_an_eager_one(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = searching(search_every=2, lora_dropout=0.0)
        trainer(model, tmp_path, use_cpu=False, learning_rate=1e-3, torch_compile=compiled).train()
        found.append(rankwise.history(model))
    assert [r.chosen for r in found[1]] == [r.chosen for r in found[0]]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_a_process_group_of_nccl(how: str, tmp_path: Path) -> None:
    """One process: NCCL takes tensors on the GPU alone, so what is agreed on must lie there."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1, device_id=0)
    try:
        found = []
        for wrapped in (False, True):
            model: Any = adapted(
                tiny_bert(**QUIET), task_type="SEQ_CLS", target_modules=["query", "value"], mode="dynamic",
                budget=0.5, search_every=2, score_batches=2, shortcuts=["res1"],
            ).to(CUDA).train()  # fmt: skip
            runs = model
            if wrapped and how == "ddp":
                runs = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0], find_unused_parameters=True)
            elif wrapped:
                for block in model.get_base_model().bert.encoder.layer:
                    fully_shard(block)
                fully_shard(model)
            optimizer = adamw(model)
            rankwise.Allocator(runs, optimizer)
            for batch in moved(class_batches(8)):
                runs(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(rankwise.history(model))
        assert [r.chosen for r in found[1]] == [r.chosen for r in found[0]]
        data = moved(class_batches(4))
        assert rankwise.score_paths(adapted(tiny_bert(), task_type="SEQ_CLS").to(CUDA), data, proxy="newton")
        assert plan_of(there(tiny_bert()), data, budget=300).ranks
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated:UserWarning")  # none is merged
@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Int4WeightOnlyConfig"]
)
def test_paths_beside_weights_quantised_there(config: str) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is installed for the quantised step only")
    wide = LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    base: Any = there(build(LlamaForCausalLM, wide), torch.bfloat16)
    options = {"group_size": 32} if config.startswith("Int4") else {}
    try:
        torchao.quantize_(base.model.layers, getattr(torchao, config)(**options))
    except (ImportError, AssertionError) as error:
        pytest.skip(f"torchao can't quantise so here: {error}")
    data = moved(text_batches(6, 4))
    assert plan_of(base, data, budget=1200).ranks
    model = adapted(base, task_type="CAUSAL_LM", target_modules="all-linear", shortcuts=["res1"]).train()
    optimizer = adamw(model)
    with torch.autocast("cuda", torch.bfloat16):
        for batch in data:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    fill_(model)
    assert all(score is not None for score in rankwise.score_paths(model, data, proxy="grad_norm").values())
