from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tests.models import fill_, tiny_bert

import rankwise
from rankwise.scores.spectrum import mean_sv, sfs, singular_values


def path_of(r: int = 4, *, filled: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    base: Any = tiny_bert(1)
    model = get_peft_model(base.to(dtype), rankwise.Lor2cConfig(r=r, lora_alpha=7))
    if filled:
        fill_(model)
    return rankwise.named_paths(model)["layers.0.layer"]


def dense(path: Any) -> np.ndarray:
    """The singular values of the dense d x d product."""
    product = path.lora_B.detach().double() @ path.lora_A.detach().double()
    return np.linalg.svd(product.numpy(), compute_uv=False)[: path.r]


@pytest.mark.parametrize("r", [1, 2, 4, 15])
def test_the_core_has_the_singular_values_of_the_dense_product(r: int) -> None:
    path = path_of(r)
    np.testing.assert_allclose(singular_values(path).numpy(), dense(path), rtol=1e-10, atol=1e-12)
    assert mean_sv(path) == pytest.approx(dense(path).mean(), rel=1e-10)
    for k in range(1, r):
        assert sfs(path, k) == pytest.approx(1 - dense(path)[:k].sum() / dense(path).sum(), abs=1e-10)


def test_float32_weights_are_enough_and_half_precision_is_widened() -> None:
    path = path_of(dtype=torch.float32)
    assert singular_values(path).dtype == torch.float32
    np.testing.assert_allclose(singular_values(path).numpy(), dense(path), rtol=1e-4)
    with torch.no_grad():
        path.host.lora_A[path.adapter].bfloat16()
        path.host.lora_B[path.adapter].bfloat16()
    assert singular_values(path).dtype == torch.float32
    np.testing.assert_allclose(singular_values(path).numpy(), dense(path), rtol=1e-3)


def test_sfs_depends_on_no_scale() -> None:
    path = path_of()
    before = sfs(path, 2)
    with torch.no_grad():
        path.lora_A.mul_(3)
        path.lora_B.mul_(-0.5)
    path.host.scaling[path.adapter] = 100.0
    assert sfs(path, 2) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4, -1, 5, True, 1.0])
def test_k_out_of_range(k: Any) -> None:
    with pytest.raises(ValueError, match=r"1 <= k < r; layers\.0\.layer has r=4"):
        sfs(path_of(), k)


def test_an_all_zero_path_has_no_sfs() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.layer has no SFS: its B A is all zero"):
        sfs(path_of(filled=False))
    assert mean_sv(path_of(filled=False)) == 0.0
