"""The baselines as methods of the runner: each starts as the base model, trains, resumes exactly and reloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from tests.runs.conftest import Make
from tests.runs.results.test_tables import shown
from tests.runs.training.test_train import Fails, same, weights
from torch import Tensor
from transformers import TrainerCallback

from rankwise.baselines.adalora import AdaLoraCallback, kept_parameters
from rankwise.runs.building.job import build, make_trainer, training_arguments
from rankwise.runs.building.models import load_base
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import export_merged, export_run
from rankwise.runs.results.tables import result_table
from rankwise.runs.results.trained import load_trained
from rankwise.runs.sizes import plan_recipe
from rankwise.runs.training.train import train

D = 32
PISSA = {"init_lora_weights": "pissa"}
# Method, options, trainable parameters: two blocks, LoRA on query and value.
METHODS: list[Any] = [
    pytest.param("adalora", {"tfinal": 2}, 4 * 4 * (2 * D + 1), id="adalora"),
    pytest.param("dylora", {}, 4 * 4 * 2 * D, id="dylora"),
    pytest.param("dylora", {"eval_rank": 2}, 4 * 4 * 2 * D, id="dylora-rank2"),
    pytest.param("adapterdrop", {}, 2 * 4 * D + 4 + D, id="adapterdrop"),
    pytest.param("lora", PISSA, 4 * 4 * 2 * D, id="pissa"),
    pytest.param("lora", {"init_lora_weights": "eva"}, 4 * 4 * 2 * D, id="eva"),
]
ALL = pytest.mark.parametrize(("method", "options", "size"), METHODS)


def logits(model: Any) -> Tensor:
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


def base_of(recipe: Recipe, arguments: dict[str, Any]) -> Any:
    with quiet():
        return load_base(recipe, task_type="SEQ_CLS", arguments=arguments)


def states(model: Any) -> Tensor:
    """What the blocks make of an input, ahead of the head, which differs from one model to the next."""
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return found


@ALL
def test_the_start_is_the_base_model(make: Make, method: str, options: dict[str, Any], size: int) -> None:
    recipe = make(method, method=options)
    with quiet():
        job = build(recipe)
    start = states(job.model)
    torch.testing.assert_close(start, states(base_of(recipe, job.data.model_arguments())), rtol=1e-5, atol=1e-5)


# With these, ranks move from one projection to another before the first step.
SHARED_OUT = {
    "init_lora_weights": "eva",
    "eva_config": {"rho": 2.0, "tau": 0.8},
    "target_modules": ["query", "attention.output.dense"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options", "size"), [*METHODS, pytest.param("lora", SHARED_OUT, 0, id="eva-moved")])
def test_a_resumed_run_is_the_uninterrupted_one(
    make: Make, tmp_path: Path, method: str, options: dict[str, Any], size: int
) -> None:
    recipe = make(method, model={"dropout": 0.1}, method=options)
    whole = train(recipe, tmp_path / "whole").metrics
    with pytest.raises(RuntimeError, match="cable pulled"):
        train(recipe, tmp_path / "parts", callbacks=[Fails(5)])
    resumed = train(recipe, tmp_path / "parts", resume=True).metrics
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["parameters"] == whole["parameters"]


@ALL
def test_it_trains_is_counted_and_reloads_as_it_was_measured(
    make: Make, tmp_path: Path, method: str, options: dict[str, Any], size: int
) -> None:
    recipe = make(method, method=options, select="last")
    result = train(recipe, tmp_path / "run")
    counts = result.metrics["parameters"]
    assert counts["trainable"] == plan_recipe(recipe)["enabled"] == size
    assert result.metrics["metrics"]["last"]["step"] == 6
    base = base_of(recipe, result.metrics["model_arguments"])
    before = states(base)
    loaded = PeftModel.from_pretrained(base, str(result.out / "adapter"))
    assert not torch.allclose(states(loaded), before, atol=1e-5)
    with quiet():
        job = build(recipe)
    folder = RunFolder(tmp_path / "other")
    job.model.load_adapter(str(RunFolder(result.out).checkpoints / "checkpoint-6"), "default")
    make_trainer(job, training_arguments(recipe, job.data, folder.checkpoints), folder, [])  # cuts to the eval rank
    torch.testing.assert_close(logits(loaded), logits(job.model), rtol=1e-5, atol=1e-6)


def test_a_prefix_trains_is_counted_and_reloads_as_it_was_measured(make: Make, tmp_path: Path) -> None:
    recipe = make("prefix", "text", select="last")
    result = train(recipe, tmp_path / "run")
    size = 3 * 2 * 2 * D  # keys and values of three positions, in two blocks
    assert result.metrics["parameters"]["trainable"] == plan_recipe(recipe)["enabled"] == size
    assert result.metrics["chosen"]["last"] == []
    with pytest.raises(ValueError, match="holds a prefix, which no LoRA can express"):
        export_run(tmp_path / "run", tmp_path / "plain")
    with pytest.raises(ValueError, match="holds a prefix, which stands before the text and has no weight to be merged"):
        export_merged(tmp_path / "run", tmp_path / "whole")
    loaded = load_trained(RunFolder(tmp_path / "run"))
    with quiet():
        job = build(recipe)
    checkpoint = str(RunFolder(result.out).checkpoints / "checkpoint-6")
    before = logits(job.model)
    job.model.load_adapter(checkpoint, "default")
    torch.testing.assert_close(logits(loaded), logits(job.model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(loaded), before, atol=1e-4)
    with pytest.raises(ValueError, match="method 'prefix' is for causal language models"):
        build(make("prefix"))


def test_adalora_takes_ranks_away_and_says_how_many_parameters_are_left(make: Make, tmp_path: Path) -> None:
    metrics = train(make("adalora"), tmp_path / "run").metrics
    assert metrics["parameters"]["kept"] == 4 * 2 * (2 * D + 1)
    assert "520 of the trainable parameters are in triplets that were kept" in shown(result_table(metrics))


def test_adaloras_penalty_is_in_the_loss(make: Make, tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 10.0):
        recipe = make("adalora", method={"orth_reg_weight": weight}, model={"dropout": 0}, training={"max_steps": 2})
        state = train(recipe, tmp_path / str(weight)).out / "checkpoints" / "checkpoint-2" / "trainer_state.json"
        losses.append(state.read_text(encoding="utf-8").split('"loss": ')[1].split(",")[0])
    assert float(losses[1]) > float(losses[0]) + 5


def test_adaloras_update_sees_gradients_and_the_runs_length(make: Make, tmp_path: Path) -> None:
    recipe = make("adalora", training={"max_steps": 4, "accumulation": 2, "batch_size": 2})
    with quiet():
        job = build(recipe)
        folder = RunFolder(tmp_path)
        trainer = make_trainer(job, training_arguments(recipe, job.data, folder.checkpoints), folder, [])
        trainer.train()
    assert any(isinstance(callback, AdaLoraCallback) for callback in trainer.callback_handler.callbacks)
    assert job.model.peft_config["default"].total_step == 4
    seen = job.model.base_model.rankallocator
    assert seen.exp_avg_ipt == {}  # forgotten with the final choice, which was made


def test_adalora_that_can_not_take_ranks_away_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave 6 steps of training no room"):
        train(make("adalora", method={"tinit": 5}), tmp_path / "run")
    with pytest.raises(ValueError, match="target_r=4 must be below init_r=4"):
        plan_recipe(make("adalora", method={"target_r": 4}))


def test_dylora_writes_a_plain_lora_of_the_rank_it_was_evaluated_at(make: Make, tmp_path: Path) -> None:
    found = []
    for rank in (None, 3):
        recipe = make("dylora", method={} if rank is None else {"eval_rank": rank}, training={"max_steps": 2})
        out = train(recipe, tmp_path / str(rank)).out
        config = PeftConfig.from_pretrained(str(out / "adapter"))
        assert isinstance(config, LoraConfig)
        found.append(config.r)
    assert found == [4, 3]
    with pytest.raises(ValueError, match="eval_rank=9 must be a whole number from 1 to r=4"):
        train(make("dylora", method={"eval_rank": 9}), tmp_path / "wrong")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("adalora", "an AdaLoRA adapter, which PEFT loads"),
        ("dylora", "a plain LoRA adapter already"),
        ("adapterdrop", "holds bottleneck adapters, which no LoRA can express"),
    ],
)
def test_what_needs_no_export_says_so(make: Make, tmp_path: Path, method: str, words: str) -> None:
    shape = {"max_steps": 4, "every": 4}
    train(make(method, training=shape), tmp_path / "run")
    with pytest.raises(ValueError, match=words):
        export_run(tmp_path / "run", tmp_path / "plain")


class FirstIsBest(TrainerCallback):
    """Says that the earliest evaluation was the best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_accuracy"] = 1.0 / state.global_step


def test_adalora_selects_among_what_has_its_final_ranks(make: Make, tmp_path: Path) -> None:
    recipe = make("adalora", method={"tfinal": 3}).model_copy(update={"select": "dev"})
    result = train(recipe, tmp_path / "run", callbacks=[FirstIsBest()])
    assert result.metrics["metrics"]["dev_selected"]["step"] == 4  # of 2, 4 and 6: the final choice comes at step 3
    with quiet():
        base = load_base(recipe, task_type="SEQ_CLS", arguments=result.metrics["model_arguments"])
    saved = PeftModel.from_pretrained(base, str(result.out / "adapter"))
    assert kept_parameters(saved) == result.metrics["parameters"]["kept"]


def test_adalora_adds_its_penalty_once_a_step_to_text(make: Make, tmp_path: Path) -> None:
    found = []
    for micro in (4, 2):
        shape = {"batch_size": micro, "accumulation": 4 // micro, "max_steps": 2, "every": 2, "logging_steps": 1}
        result = train(make("adalora", "text", training=shape), tmp_path / str(micro))
        state = json.loads((result.out / "checkpoints/checkpoint-2/trainer_state.json").read_text())
        found.append(next(entry["loss"] for entry in state["log_history"] if "loss" in entry))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("adalora", {"deltaT": 0}, "deltaT=0: 1 is the least"),
        ("adalora", {"beta1": 2.0}, "beta1=2.0: must be above 0 and below 1"),
        ("adalora", {"init_lora_weights": "pissa"}, "start in its own way"),
        ("lora", {"r": "abc"}, "r='abc' does not fit: Input should be a valid integer"),
        ("lora", {"modules_to_save": ["clasifier"]}, "'clasifier' names no module.*did you mean 'classifier'"),
    ],
)
def test_options_out_of_range_are_refused(make: Make, method: str, changes: dict[str, Any], words: str) -> None:
    with quiet(), pytest.raises(ValueError, match=words):
        build(make(method, method=changes))


def test_a_name_that_a_config_within_the_config_lacks_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="eva_config has no field 'roh', did you mean 'rho'"):
        make("lora", method={"init_lora_weights": "eva", "eva_config": {"roh": 1.0}})
    with pytest.raises(ValueError, match=r"method 'lora': eva_config\.rho='2' must be a float"):
        make("lora", method={"init_lora_weights": "eva", "eva_config": {"rho": "2"}})
    with pytest.raises(ValueError, match="method 'dylora' has no start by EVA"):
        make("dylora", method={"init_lora_weights": "eva"})
