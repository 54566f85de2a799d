from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.runs.conftest import Make

from rankwise.runs.building.job import Job, build, make_trainer, training_arguments
from rankwise.runs.building.models import is_head
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe


def optimizer_of(recipe: Recipe, folder: Path) -> tuple[Job, Any]:
    with quiet():
        job = build(recipe)
        run = RunFolder(folder)
        trainer = make_trainer(job, training_arguments(recipe, job.data, run.checkpoints), run, [])
        trainer.create_optimizer_and_scheduler(10)
    return job, trainer


@pytest.mark.parametrize("method", ["lor2c", "heterolora", "lora", "full", "adapterdrop"])
def test_the_head_has_its_own_rate_and_the_decay_it_had(make: Make, tmp_path: Path, method: str) -> None:
    shape = {"learning_rate": 4e-4, "weight_decay": 0.01, "warmup": 0, "schedule": "linear"}
    _, plain = optimizer_of(make(method, training=shape), tmp_path)
    job, trainer = optimizer_of(make(method, training={**shape, "head_learning_rate": 2e-4}), tmp_path)
    names = {id(parameter): name for name, parameter in job.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    seen = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(name for name, p in job.model.named_parameters() if p.requires_grad)
    for group in groups:
        heads = {is_head(names[id(parameter)]) for parameter in group["params"]}
        assert heads in ({True}, {False}, set())
        assert group["lr"] == (2e-4 if heads == {True} else 4e-4)
    decay = {n: group["weight_decay"] for group in groups for n in (names[id(p)] for p in group["params"])}
    before = trainer.get_decay_parameter_names(job.model)
    assert {name for name, value in decay.items() if value} == {name for name in seen if name in before}
    assert sum(len(group["params"]) for group in plain.optimizer.param_groups) == len(seen)
    assert len(plain.optimizer.param_groups) == 2
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert sorted({round(group["lr"], 9) for group in groups if group["params"]}) == [1.8e-4, 3.6e-4]


@pytest.mark.parametrize("method", ["lor2c", "heterolora", "lora", "adalora"])
@pytest.mark.parametrize("head", [None, 2e-4])
def test_lora_plus_trains_the_factor_that_starts_at_zero_faster(
    make: Make, tmp_path: Path, method: str, head: float | None
) -> None:
    shape = {"learning_rate": 4e-4, "loraplus_lr_ratio": 16, "head_learning_rate": head, "warmup": 0}
    job, trainer = optimizer_of(make(method, training=shape), tmp_path)
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    trained = {name: rates.pop(id(p)) for name, p in job.model.named_parameters() if p.requires_grad}
    assert not rates
    ups = {name for name in trained if ".lora_B." in name}
    heads = {name for name in trained if is_head(name)}
    assert ups
    assert {trained[name] for name in ups} == {16 * 4e-4}
    assert {trained[name] for name in heads} == {head or 4e-4}
    assert {trained[name] for name in trained.keys() - ups - heads} == {4e-4}


@pytest.mark.parametrize(("method", "task"), [("full", "mrpc"), ("prefix", "text"), ("adapterdrop", "mrpc")])
def test_lora_plus_is_refused_where_there_are_no_factors(make: Make, tmp_path: Path, method: str, task: str) -> None:
    with pytest.raises(ValueError, match=r"training\.loraplus_lr_ratio=4: the method trains no factors"):
        optimizer_of(make(method, task, training={"loraplus_lr_ratio": 4}), tmp_path)


def test_a_run_without_a_head_is_told(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text", training={"head_learning_rate": 1e-3})
    with pytest.raises(ValueError, match=r"training\.head_learning_rate=0\.001: the model has no head that trains"):
        optimizer_of(recipe, tmp_path)
