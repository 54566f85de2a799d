"""One path seen through the module that holds its weights."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from tests.models import adapted, build, fill_, one_of_trio, tiny_bert
from transformers import GPT2Config, GPT2LMHeadModel

import rankwise
from rankwise.paths.low_rank_path import write_


@pytest.mark.parametrize("absolute", [False, True])
def test_the_matrix_of_a_linear_path_is_what_it_maps_by(absolute: bool) -> None:
    model = one_of_trio("llama").double()
    fill_(model)
    path = rankwise.named_paths(model)["layers.0.v_proj"]
    base, down, up = (tensor.detach() for tensor in (path.base_weight(), path.lora_A, path.lora_B))
    if absolute:
        base, down, up = base.abs(), down.abs(), up.abs()
    # delta(x) for each unit vector, one column at a time: s B A e_j
    columns = [base[:, j] + path.scaling * up @ down[:, j] for j in range(base.shape[1])]
    expected = torch.stack(columns, dim=1)
    torch.testing.assert_close(path.effective_weight(absolute=absolute), expected, rtol=0, atol=1e-14)
    assert path.effective_weight().shape == (8, 16)  # o x i, values of grouped-query attention


@pytest.mark.parametrize(("kind", "along"), [("res1", "identity"), ("in", "zero"), ("cut", "zero")])
def test_a_block_path_runs_along_the_identity_or_nothing(kind: str, along: str) -> None:
    model = adapted(tiny_bert(), shortcuts=[kind], target_modules=[])
    fill_(model)
    path = next(p for p in rankwise.named_paths(model).values() if p.kind == kind)
    low_rank = path.scaling * path.lora_B @ path.lora_A
    base = path.effective_weight() - low_rank.detach()
    kinds = {"identity": torch.eye(16), "zero": torch.zeros(16, 16)}
    torch.testing.assert_close(base, kinds[along], rtol=0, atol=1e-6)


def test_a_transposed_weight_is_turned() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=40)
    base = build(GPT2LMHeadModel, config)
    weight = base.transformer.h[0].attn.c_attn.weight.detach().clone()  # Conv1D: i x o
    path = rankwise.named_paths(adapted(base, target_modules=["c_attn"]))["layers.0.c_attn"]
    assert torch.equal(path.base_weight(), weight.T)


def test_a_shared_down_projection_is_nobodys_cost() -> None:
    model = get_peft_model(tiny_bert(), rankwise.Lor2cConfig(r=2, share=True))
    assert [path.num_parameters for path in rankwise.named_paths(model).values()] == [2 * 16] * 2


def test_it_says_what_it_is_and_whether_it_is_on() -> None:
    model = one_of_trio("bert", on_disable="freeze")
    path = rankwise.named_paths(model)["layers.0.query"]
    assert repr(path) == "LowRankPath('layers.0.query', r=2, 64 parameters, enabled)"
    rankwise.apply_(model, [rankwise.Disable("layers.0.query")])
    assert repr(path).endswith("frozen)")
    assert not path.live, "B is zero: frozen, it makes no difference"
    fill_(model)
    assert path.live


def test_a_factor_that_a_wrapper_keeps_as_a_plain_attribute_is_found() -> None:
    """As FSDP's flat shards do: the module's own dictionary of parameters has it no longer."""
    path = next(iter(rankwise.named_paths(one_of_trio("bert")).values()))
    module = path.host.lora_B[path.adapter]
    view = module._parameters.pop("weight")
    module.__dict__["weight"] = view
    assert path.lora_B is view


def test_staged_statuses_are_written_together() -> None:
    paths = list(rankwise.named_paths(adapted(tiny_bert(), mode="off")).values())
    on = [path.state[path.adapter].tolist() for path in paths]
    for path in paths[::2]:
        path.stage_(enabled=False, contributing=False)
    assert [path.enabled for path in paths[:2]] == [False, True]
    assert [path.state[path.adapter].tolist() for path in paths] == on
    write_(paths)
    off = [[0, 0, *values[2:]] if number % 2 == 0 else values for number, values in enumerate(on)]
    assert [path.state[path.adapter].tolist() for path in paths] == off
    assert [path.state[path.adapter].dtype for path in paths] == [torch.int64] * len(paths)
