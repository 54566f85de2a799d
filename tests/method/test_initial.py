"""The values that paths start with depend on seed, module and adapter, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import adapted, one_of_trio, tiny_bert, tiny_llama
from torch import nn

import rankwise
from rankwise.method.initial import initial_value, seeded
from rankwise.paths.path_set import path_set


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rankwise.named_paths(one_of_trio("bert", seed=5))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours"
    torch.manual_seed(2)
    fewer = rankwise.named_paths(adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["value"], seed=5))
    other = rankwise.named_paths(one_of_trio("bert", seed=6))
    for name, path in fewer.items():
        assert torch.equal(path.lora_A, first[name].lora_A)
        assert not torch.equal(path.lora_A, other[name].lora_A)
        assert not path.lora_B.any()
        bound = 1 / path.lora_A.shape[1] ** 0.5  # kaiming-uniform with a = sqrt 5
        assert 0.5 * bound < path.lora_A.abs().max() <= bound


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_what_a_file_may_lack_is_what_the_model_drew(init: object) -> None:
    model = one_of_trio("llama", init_lora_weights=init, seed=3)
    paths = path_set(model)
    for path in paths.resident:
        for factor, value in (("lora_A", path.lora_A), ("lora_B", path.lora_B)):
            assert torch.equal(initial_value(f"{path.module}.{factor}.default.weight", paths), value)


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_initial_values_have_the_distribution_they_are_said_to_have(init: object) -> None:
    """Kolmogorov and Smirnov's test over 40 seeds: bounds 1 / sqrt(i), a = sqrt 5, or standard deviation 1 / r."""
    drawn = []
    for seed in range(40):
        (path,) = rankwise.named_paths(
            adapted(nn.Sequential(nn.Linear(400, 8)), target_modules=["0"], r=4, seed=seed, init_lora_weights=init)
        ).values()
        drawn.append(path.lora_A.detach().flatten())
    values = torch.cat(drawn).double().sort().values
    wanted = torch.special.ndtr(values * 4) if init == "gaussian" else (values * 400**0.5 + 1) / 2
    steps = torch.arange(len(values) + 1) / len(values)
    distance = torch.maximum((wanted - steps[:-1]).abs(), (wanted - steps[1:]).abs()).max()
    assert distance < 1.63 / len(values) ** 0.5  # exceeded by one true sample in a hundred


def test_another_adapter_draws_other_values_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    drawn = []
    for adapter in ("default", "other", "default"):
        with seeded(0, "encoder.query", adapter):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_where_tensors_are_made_by_default_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator would draw by a generator of its own; that of tensors without values stands for it here."""
    fields: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "shortcuts": ["res1"], "mode": "off"}
    wanted = rankwise.named_paths(adapted(tiny_llama(), **fields))
    base = tiny_llama()
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    torch.set_default_device("meta")
    try:
        found = rankwise.named_paths(adapted(base, **fields))
    finally:
        torch.set_default_device(None)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(path.lora_A, wanted[name].lora_A) for name, path in found.items())
