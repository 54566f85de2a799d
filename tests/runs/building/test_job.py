from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from rankwise.rules.records import from_lines, searches
from rankwise.runs.building.job import SAME, build, check_extra, check_launch, training_arguments
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe, Training, load_recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


def test_every_recipe_key_has_a_field_of_the_trainer() -> None:
    assert set(SAME) <= set(Training.model_fields)
    assert set(SAME.values()) <= {field.name for field in fields(TrainingArguments)}


def test_the_recipe_reaches_the_trainer(make: Make, tmp_path: Path) -> None:
    recipe = make(
        seed=7,
        training={
            "warmup": 0.25,
            "accumulation": 3,
            "max_grad_norm": 0,
            "schedule": "cosine",
            "extra": {"adam_beta2": 0.95},
        },
    )
    with quiet():
        arguments = training_arguments(recipe, build(recipe).data, tmp_path)
    assert (arguments.seed, arguments.gradient_accumulation_steps, arguments.max_grad_norm) == (7, 3, 0)
    assert arguments.get_warmup_steps(8) == 2
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.adam_beta2 == 0.95
    assert (arguments.eval_strategy, arguments.save_strategy, arguments.eval_steps) == ("steps", "steps", 2)
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("eval_accuracy", True)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("adam_bta2", "no such field, did you mean 'adam_beta2'"),
        ("learning_rate", "say it as training.learning_rate instead"),
        ("seed", "say it as seed instead"),
        ("save_strategy", "say it as training.evaluate instead"),
        ("save_total_limit", "say it as training.keep_checkpoints instead"),
        ("output_dir", "is set by the run itself"),
        ("load_best_model_at_end", "has no effect here: .*`select` says which to save"),
        ("label_smoothing_factor", "has no effect here"),
        ("fsdp", "training.extra.fsdp is not for a run: .*with_fsdp2.py"),
        ("fsdp_config", "training.extra.fsdp_config is not for a run: .*DDP"),
        ("deepspeed", "training.extra.deepspeed is not for a run: .*DDP"),
    ],
)
def test_extra_is_checked(key: str, words: str) -> None:
    given = {**dict.fromkeys(SAME.values()), "seed": 0, "save_strategy": "epoch", "output_dir": "x"}
    with pytest.raises(ValueError, match=words):
        check_extra({key: 1}, given)


@pytest.mark.parametrize(("name", "kind"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_what_the_launcher_shards_is_refused(name: str, kind: str) -> None:
    check_launch({name: "false"})
    with pytest.raises(ValueError, match=f"told to use {kind} .*with_fsdp2.py"):
        check_launch({name: "true"})


def test_a_sharded_run_is_refused_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    for key, value in (("fsdp", "full_shard"), ("deepspeed", {"zero_optimization": {"stage": 2}})):
        with pytest.raises(ValueError, match=f"training.extra.{key} is not for a run"):
            train(make("lora", training={"extra": {key: value}}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_head_does_not_depend_on_who_loaded_the_data(make: Make) -> None:
    recipe = make()
    with quiet():
        first = build(recipe)
        second = build(recipe, data=first.data)
    assert all(a.equal(b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


BY_RANK = {"granularity": "rank", "mode": "static", "budget": 512, "search_every": None, "score_batches": 1}


def test_options_of_a_choice_of_ranks_reach_it_from_a_recipe(make: Make, tmp_path: Path) -> None:
    """One batch can't be halved: the recipe's own option makes the run possible, and the error names its key."""
    with pytest.raises(ValueError, match=r"need at least 2 batches.*: give more, or method\.plan\.halves: false"):
        train(make("heterolora", method=BY_RANK), tmp_path / "refused")
    recipe = make("heterolora", method={**BY_RANK, "plan": {"halves": False, "breadth": 1.0, "components": 4}})
    found = train(recipe, tmp_path / "run")
    history = RunFolder(found.out).history
    (search,) = searches(from_lines(history.read_text(encoding="utf-8"), history))
    assert list(search.ranks.values()) == [2] * 4, "breadth 1 is the uniform choice: four paths of 64 parameters a rank"
    assert load_recipe(found.out / "config.yaml").method.plan == recipe.method.plan
