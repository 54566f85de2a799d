"""What a saved adapter's tensors say: modules, ranks, singular values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.runs.conftest import Make
from torch import Tensor

from rankwise.runs.folder import RunFolder
from rankwise.runs.results.detail import detail
from rankwise.runs.results.found import summarise
from rankwise.runs.results.weights import LARGEST, _names, read_weights
from rankwise.runs.training.train import train

FILE = "adapter_model.safetensors"


def test_weights_are_named_as_the_other_files_name_them(make: Make, tmp_path: Path) -> None:
    targets = {"target_modules": ["attention.output.dense", "value"]}
    train(
        make("heterolora", method={**targets, "shortcuts": ["res2"], "mode": "off", "search_every": None}),
        tmp_path / "run",
    )
    run = RunFolder(tmp_path / "run")
    found = detail(run, summarise(run, run.root))
    names = {path["name"] for path in found["paths"]}
    assert {"layers.0.attention.output.dense", "layers.0.value", "layers.0.res2"} <= names
    weights = read_weights(tmp_path / "run" / "adapter", names, values=True)
    assert {weight.name for weight in weights} == names

    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    a, b = (next(t for key, t in tensors.items() if f"layer.0.attention.self.value.lora_{f}." in key) for f in "AB")
    dense = torch.linalg.svdvals(b.double() @ a.double())[:4]
    value = next(weight for weight in weights if weight.name == "layers.0.value")
    assert (value.r, value.size) == (4, a.numel() + b.numel())
    assert torch.allclose(torch.tensor(value.sigma, dtype=torch.float64), dense, rtol=1e-4, atol=1e-6)


def save(folder: Path, **tensors: Tensor) -> Path:
    """Write an adapter file whose keys have dots for double underscores."""
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / FILE)
    return folder


def factors(r: int, width: int, height: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, width, generator=generator), torch.randn(height, r, generator=generator)


@pytest.mark.parametrize(("r", "width", "height"), [(1, 5, 7), (3, 8, 4), (6, 4, 5)])
def test_singular_values_are_those_of_the_product(tmp_path: Path, r: int, width: int, height: int) -> None:
    a, b = factors(r, width, height)
    save(tmp_path, base_model__model__bert__layer__0__query__lora_A__weight=a,
         base_model__model__bert__layer__0__query__lora_B__weight=b)  # fmt: skip
    (weight,) = read_weights(tmp_path, values=True)
    assert (weight.name, weight.r, weight.size) == ("layers.0.query", r, a.numel() + b.numel())
    dense = torch.linalg.svdvals(b.double() @ a.double())
    kept = min(r, width, height)
    assert list(weight.sigma[:kept]) == pytest.approx(dense[:kept].tolist(), rel=1e-4)
    assert all(value < 1e-4 for value in weight.sigma[kept:])
    assert read_weights(tmp_path) == [replace(weight, sigma=())]


def test_a_wide_factor_is_not_measured_and_half_a_pair_is_none(tmp_path: Path) -> None:
    a, b = factors(2, LARGEST + 1, 3)
    save(tmp_path, m__layer__0__wide__lora_A__weight=a, m__layer__0__wide__lora_B__weight=b,
         m__layer__0__half__lora_A__weight=a.clone(), head__weight=torch.ones(2))  # fmt: skip
    (weight,) = read_weights(tmp_path, values=True)
    assert (weight.name, weight.sigma) == ("layers.0.wide", ())


def test_half_precision_is_measured_in_full(tmp_path: Path) -> None:
    a, b = (factor.bfloat16() for factor in factors(2, 6, 4))
    save(tmp_path, m__layer__0__q__lora_A__weight=a, m__layer__0__q__lora_B__weight=b)
    dense = torch.linalg.svdvals(b.double() @ a.double())[:2]
    assert list(read_weights(tmp_path, values=True)[0].sigma) == pytest.approx(dense.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("modules", "known", "named"),
    [
        (["bert.layer.0.att.query"], [], {"bert.layer.0.att.query": "layers.0.query"}),
        (["bert.layer.0.att.query"], ["layers.0.att.query"], {"bert.layer.0.att.query": "layers.0.att.query"}),
        (["bert.layer.3.rankwise.path_res1"], [], {"bert.layer.3.rankwise.path_res1": "layers.3.res1"}),
        (["bert.layer.3.rankwise.path_layer"], [], {"bert.layer.3.rankwise.path_layer": "layers.3.layer"}),
        (["bert.layer_paths.a.0"], ["layers.0-1.layer"], {}),  # its tensors don't name its span
        (["score"], ["layers.0.query"], {"score": "score"}),
        ([], ["layers.0.query"], {}),
        (
            ["b.layer.0.output.dense", "b.layer.0.attention.output.dense"],
            ["layers.0.output.dense", "layers.0.attention.output.dense"],
            {
                "b.layer.0.output.dense": "layers.0.output.dense",
                "b.layer.0.attention.output.dense": "layers.0.attention.output.dense",
            },
        ),
        (
            ["encoder.layers.0.q_proj", "decoder.layers.0.q_proj"],
            ["encoder.layers.0.q_proj", "decoder.layers.0.q_proj"],
            {name: name for name in ("encoder.layers.0.q_proj", "decoder.layers.0.q_proj")},
        ),
    ],
    ids=["unknown", "known", "res1", "layer", "span", "outside", "none", "one ends as the other", "two stacks"],
)
def test_names_are_those_of_the_runs_other_files(modules: list[str], known: list[str], named: dict[str, str]) -> None:
    assert _names(modules, known) == named
    assert _names(modules, known[::-1]) == named


def test_a_folder_without_weights_has_none_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_weights(tmp_path) == []
    for content in (b"", b"nonsense", b"\xff" * 100):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged .*: copy it again"):
            read_weights(tmp_path)
