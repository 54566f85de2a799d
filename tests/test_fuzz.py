"""Damaged folders, recipes, data and config values: no raw error, no hang, nothing silently different.

``tools/fuzz.py`` tries more.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tests.damage import adapter_outcome, damage, resume_outcome, save_adapters, save_runs, use_outcome
from tests.malformed import (
    OWN,
    ROWS,
    STARTS,
    config_outcome,
    damage_data,
    damage_recipe,
    data_outcome,
    odd_fields,
    recipe_outcome,
    small_recipe,
    write,
)
from tests.models import logits, tiny_bert
from torch import Tensor

from rankwise.runs.dryrun import tiny_tokenizer
from rankwise.tasks import DataSpec

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEWER = settings(FEW, max_examples=6)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    found = save_adapters(tmp_path_factory.mktemp("adapters"))
    return {
        name: (folder, logits(PeftModel.from_pretrained(tiny_bert(4), str(folder)))) for name, folder in found.items()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return save_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@FEW
@given(data=st.data(), name=st.sampled_from(["heterolora", "lor2c", "heterolora-0.1", "lor2c-0.1"]))
def test_a_damaged_adapter_is_the_same_or_refused(
    adapters: dict[str, tuple[Path, Tensor]], data: Any, name: str
) -> None:
    folder, expected = adapters[name]
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folder, Path(room) / "adapter")
        told = damage(data.draw, copy)
        outcome = adapter_outcome(copy, expected)
    # Without digests a changed number can't be told from a trained one.
    assert outcome in ("same", "refused") or name.endswith("0.1") or told.startswith("allocation.json"), told


@pytest.mark.slow
@FEWER
@given(data=st.data())
def test_a_damaged_run_goes_on_as_if_nothing_had_been_or_is_refused(
    runs: tuple[Path, dict[str, Path]], data: Any
) -> None:
    recipe, folders = runs
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folders["interrupted"], Path(room) / "run")
        told = damage(data.draw, copy)
        assert resume_outcome(recipe, copy, folders["finished"]) in ("same", "refused"), told


@pytest.mark.slow
@FEWER
@given(data=st.data())
def test_a_damaged_finished_run_is_used_or_refused(runs: tuple[Path, dict[str, Path]], data: Any) -> None:
    _, folders = runs
    with tempfile.TemporaryDirectory() as room:
        copy = shutil.copytree(folders["finished"], Path(room) / "run", ignore=shutil.ignore_patterns("checkpoints"))
        damage(data.draw, copy)
        assert use_outcome(copy) in ("done", "refused")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_recipe(tmp_path_factory.mktemp("small")).to_dict()


@FEW
@given(data=st.data())
def test_a_malformed_recipe_is_read_or_refused(recipe: dict[str, Any], data: Any) -> None:
    with tempfile.TemporaryDirectory() as room:
        told = damage_recipe(data.draw, copy.deepcopy(recipe), Path(room) / "recipe.yaml")
        assert recipe_outcome(Path(room) / "recipe.yaml") in ("read", "refused"), told


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_data_that_nothing_happened_to_is_read(kind: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**OWN, "kind": kind} if kind in ("classification", "regression") else {"task": kind}
    for ending in (".jsonl", ".json.gz", ".parquet"):
        write([ROWS[kind](number) for number in range(12)], tmp_path / f"rows{ending}")
        spec = DataSpec(train_file=tmp_path / f"rows{ending}", **fields)
        assert data_outcome(spec, tiny_tokenizer()) == "read", ending


@FEW
@given(data=st.data())
def test_malformed_data_is_read_or_refused(data: Any) -> None:
    with tempfile.TemporaryDirectory() as room:
        told, spec = damage_data(data.draw, Path(room))
        assert data_outcome(spec, tiny_tokenizer()) in ("read", "refused"), told


@FEW
@given(data=st.data(), name=st.sampled_from(sorted(STARTS)))
def test_a_config_is_valid_or_names_the_field_that_is_not(data: Any, name: str) -> None:
    fields = odd_fields(data.draw, name)
    assert config_outcome(name, fields) in ("valid", "refused"), fields


@pytest.mark.parametrize("name", sorted(STARTS))
def test_a_config_that_nothing_is_odd_about_is_valid(name: str) -> None:
    assert config_outcome(name, STARTS[name][1], build=True) == "valid"
