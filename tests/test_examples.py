"""The gradient study among the examples: its controls, on models of width 16."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import adapted, class_batches, text_batches, tiny_bert, tiny_llama

import rankwise
from rankwise.report import gradient_ratio


@pytest.fixture(scope="module")
def study() -> Any:
    file = Path(__file__).resolve().parents[1] / "examples" / "gradient_ratio.py"
    spec = importlib.util.spec_from_file_location("gradient_ratio_example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bert(*kinds: str) -> Any:
    targets = ["query", "value"] if "linear" in kinds else []
    shortcuts = ["layer"] if "layer" in kinds else []
    return adapted(tiny_bert(3), target_modules=targets, shortcuts=shortcuts, shortcut_alpha=4)


def blocks_of(record: Any, name: str) -> list[float]:
    return [kind[name] for block in record["blocks"].values() for kind in block.values()]


def test_without_b_no_a_has_a_gradient_and_one_model_measures_what_two_do(study: Any) -> None:
    apart = study.joined([study.measure(bert(kind), class_batches()) for kind in ("linear", "layer")])
    together = study.measure(bert("linear", "layer"), class_batches())
    assert blocks_of(together, "grad_A") == [0.0] * 6
    assert blocks_of(apart, "grad_A") == [0.0] * 6
    assert min(blocks_of(together, "grad_B")) > 0
    assert together["blocks"] == apart["blocks"]
    assert study.summary([together])["A"] is None


def test_every_b_gets_the_same_norm_and_its_own_direction(study: Any) -> None:
    model, other = bert("linear", "layer"), bert("layer")
    for each in (model, other):
        study.set_norms_(each, 1.5, seed=3)
    paths = rankwise.named_paths(model)
    assert [float(path.lora_B.detach().norm()) for path in paths.values()] == pytest.approx([1.5] * len(paths))
    assert not torch.allclose(paths["layers.0.query"].lora_B, paths["layers.1.query"].lora_B)
    for name, path in rankwise.named_paths(other).items():
        assert torch.equal(path.lora_B, paths[name].lora_B)
    assert set(blocks_of(study.measure(model, class_batches(1)), "grad_A")).isdisjoint({0.0})


def test_the_ratio_is_the_one_worked_out_from_the_gradients(study: Any) -> None:
    model = adapted(tiny_llama(2), target_modules=["q_proj", "v_proj"], shortcuts=["layer"], shortcut_alpha=4)
    study.set_norms_(model, 1.0, seed=0)
    (batch,) = text_batches(1)
    record = study.measure(model, [batch])
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch).loss.backward()
    paths = rankwise.named_paths(model)

    def mean(letter: str, *names: str) -> float:
        gradients = [getattr(paths[name], f"lora_{letter}").grad.flatten() for name in names]
        return float(torch.cat(gradients).abs().mean())  # v is half as wide as q, so weighs less in B

    for letter in "AB":
        expected = [
            mean(letter, f"layers.{block}.layer") / mean(letter, f"layers.{block}.q_proj", f"layers.{block}.v_proj")
            for block in (0, 1)
        ]
        found = gradient_ratio([study.part_of(record, letter)])
        assert [value for (value,) in found.values] == pytest.approx(expected, rel=1e-5)


def test_it_runs_from_end_to_end_and_keeps_the_other_models_part(
    study: Any, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ratio.json"
    out.write_text('{"other": {}}', encoding="utf-8")
    words = (shared / "data/wikitext2/validation.txt").read_text(encoding="utf-8")[:4000]
    (tmp_path / "validation.txt").write_text(words, encoding="utf-8")
    model = str(shared / "models/stories260k")
    study.main([model, str(tmp_path), "--out", str(out), "--seeds", "0", "--batches", "1", "--steps", "0"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found) == ["other", "wikitext2"]
    assert [rung["A_has_no_gradient"] for rung in found["wikitext2"]["ladder"]] == [True] * 2 + [False] * 4
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert "correlation" in capsys.readouterr().out


def test_a_folder_without_data_is_refused(study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["model", str(tmp_path), "--out", str(tmp_path / "ratio.json")])
    assert "neither train.jsonl" in capsys.readouterr().err
