"""A recipe made real: model, data and a Trainer that writes into a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.loss.loss_utils import ForCausalLMLoss

import rankwise
from rankwise.baselines import (
    AdaLoraCallback,
    DyLoraCallback,
    Truncation,
    find_start_,
    penalty,
    take_start_,
    with_orthogonality,
)
from rankwise.errors import nearest
from rankwise.runs.building.best_checkpoint import after_edits, after_pruning
from rankwise.runs.building.edit_loss import edit_loss
from rankwise.runs.building.lengths import check_lengths, fitting_tokenizer
from rankwise.runs.building.models import adapt, load_base
from rankwise.runs.building.rates import with_own_rates
from rankwise.runs.building.saving import with_whole_checkpoints
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.methods import WITH_PATHS
from rankwise.runs.recipes.recipe import Recipe
from rankwise.scores.probe import model_loss
from rankwise.tasks import TaskData, check_packing, choice_loss, load_task

FIELDS = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing"  # transformers' name for it
if CHECKPOINTING not in FIELDS:
    CHECKPOINTING = "gradient_checkpointing"
# Fields that a run has its own way for, and what that is.
TAKEN = {
    "load_best_model_at_end": "the last and the dev-selected checkpoint are both measured, `select` says which to save",
    "label_smoothing_factor": "a run's losses are not smoothed",
}
# Fields, and what accelerate's launcher sets, that would leave no process with whole weights.
SHARDING = ("fsdp", "fsdp_config", "deepspeed")
LAUNCHED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
WHOLE = (
    "a run measures, saves and resumes whole weights, and a search needs the parameters that the optimizer steps: "
    "train with DDP (torchrun, accelerate launch), or shard with FSDP2 in a loop of your own, as "
    "examples/training/with_fsdp2.py does"
)
# Recipe key -> field of TrainingArguments, where one is the other's value unchanged.
SAME = {
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": CHECKPOINTING,
    "bf16": "bf16",
    "logging_steps": "logging_steps",
    "workers": "dataloader_num_workers",
}


RENAMED = {
    "seed": "seed",
    "save_total_limit": "training.keep_checkpoints",
    "report_to": "training.report_to",
    "eval_strategy": "training.evaluate",
    "save_strategy": "training.evaluate",
    "eval_steps": "training.every",
    "save_steps": "training.every",
}


@dataclass(frozen=True)
class Job:
    """What a recipe builds; ``model`` is a ``PeftModel`` unless the method is ``full``."""

    recipe: Recipe
    data: TaskData
    model: Any

    @property
    def has_paths(self) -> bool:
        """Whether the method has paths that are switched: by a search or by edits."""
        return self.recipe.method.name in WITH_PATHS


def build(recipe: Recipe, data: TaskData | None = None) -> Job:
    """Load the data and the model and put the method on it, from the recipe's seed.

    Raises:
        ValueError: Something named in the recipe is not there or does not fit.
    """
    data, model = load_parts(recipe, data)
    return Job(recipe, data, adapt(model, recipe, data.task_type))


def load_parts(recipe: Recipe, data: TaskData | None = None) -> tuple[TaskData, PreTrainedModel]:
    """Load the data and the pretrained model as they are trained, and ranks planned, from the recipe's seed.

    Args:
        recipe: Names them.
        data: Prepared data in place of what ``recipe.data`` names.

    Raises:
        ValueError: Something is not there, sequences are longer than the model reads, or rows that share a sequence
            see each other.
    """
    set_seed(recipe.seed)
    if data is None:
        data = load_task(recipe.data, fitting_tokenizer(recipe.model, recipe.data))
    else:
        check_lengths(recipe.model, recipe.data, data.tokenizer)
    set_seed(recipe.seed)  # the head's values must not depend on what loading the data drew
    model = load_base(recipe, task_type=data.task_type, arguments=data.model_arguments())
    if data.packed:
        check_packing(model, len(data.tokenizer))
        model.config.use_cache = False  # with a cache, transformers takes the rows of a sequence for one
    return data, model


def training_arguments(recipe: Recipe, data: TaskData, output: Path) -> TrainingArguments:
    """Translate the recipe's ``training`` for the Trainer.

    Raises:
        ValueError: ``extra`` names no field of ``TrainingArguments``, or one that the recipe has a key for; or the
            weights would be sharded.
    """
    training = recipe.training
    rhythm = {"epoch": "epoch", "steps": "steps", "never": "no"}[training.evaluate]
    given: dict[str, Any] = {name: getattr(training, key) for key, name in SAME.items()}
    given |= {
        "output_dir": str(output),
        "save_total_limit": None,  # Trainer deletes old ones before the new one is complete: see runs.checkpoints
        "seed": recipe.seed,
        "eval_strategy": rhythm,
        "save_strategy": "epoch" if rhythm == "no" else rhythm,
        "metric_for_best_model": None if rhythm == "no" else f"eval_{data.headline}",
        "greater_is_better": data.greater_is_better,
        "report_to": [name for name in training.report_to if name != "tensorboard"],  # that one gets its own folder
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),  # said aloud, bf16 is allowed there
        "label_names": ["labels"],
    }
    if training.every is not None:
        given |= {"eval_steps": training.every, "save_steps": training.every}
    check_extra(training.extra, given)
    check_launch(os.environ)
    if data.learns_answers:
        from rankwise.runs.building.instruction import instruction_arguments

        return instruction_arguments(**given, **training.extra)
    return TrainingArguments(**given, **training.extra)


def check_extra(extra: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse keys that ``TrainingArguments`` doesn't have, and those that would say a thing twice."""
    own = {name: f"training.{key}" for key, name in SAME.items()} | RENAMED
    for key in extra:
        if key not in FIELDS:
            raise ValueError(f"training.extra.{key}: TrainingArguments has no such field{nearest(key, FIELDS)}")
        if key in SHARDING:
            raise ValueError(f"training.extra.{key} is not for a run: {WHOLE}")
        if key in TAKEN:
            raise ValueError(f"training.extra.{key} has no effect here: {TAKEN[key]}; leave it out")
        if key in own:
            raise ValueError(f"training.extra.{key}: say it as {own[key]} instead")
        if key in given:
            raise ValueError(f"training.extra.{key} is set by the run itself ({given[key]!r}): leave it out")


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse processes that were launched to shard the weights.

    Raises:
        ValueError: Says what to launch instead.
    """
    for name, kind in LAUNCHED.items():
        if environment.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise ValueError(f"accelerate was told to use {kind} ({name} is set), which is not for a run: {WHOLE}")


def loss_function(data: TaskData) -> Any:
    """Return the loss that Trainer computes from the logits; none where the model's own is right.

    BERT, RoBERTa and OPT classifiers return a mean per micro-batch, which Trainer takes for one over the optimizer
    step: k micro-batches or processes would multiply loss and gradient by k. Over the columns of the logits,
    ``choice_loss`` is the cross entropy of a classification too.
    """
    return choice_loss if data.kind == "classification" else data.loss_func


def causal_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return what a causal model's own loss is, for Trainer's ``compute_loss_func``."""
    count: Any = num_items_in_batch
    loss: Tensor = ForCausalLMLoss(outputs.logits, labels, outputs.logits.shape[-1], count)
    return loss


def trainer_class(job: Job) -> type[Trainer]:
    """Return what trains on the job's data: TRL's trainer for instructions; importing it is what takes time."""
    if not job.data.learns_answers:
        return Trainer
    from rankwise.runs.building.instruction import InstructionTrainer, with_penalty

    if job.recipe.method.name == "adalora":
        return with_penalty(InstructionTrainer, partial(penalty, job.model))
    return InstructionTrainer


def method_callbacks(job: Job) -> list[TrainerCallback]:
    """Return the callbacks that the job's method calls for."""
    match job.recipe.method.name:
        case "heterolora":
            compute_loss = job.data.loss if job.data.loss_func is not None else model_loss
            return [rankwise.AllocationCallback(compute_loss=compute_loss, plan=job.recipe.method.plan)]
        case "lor2c":
            return [rankwise.AllocationCallback(measure=edit_loss(job.data, job.recipe.training)), after_edits()]
        case "adalora":
            callback = AdaLoraCallback(job.model)
            return [callback, after_pruning(callback.config.tfinal)]
        case "dylora":
            return [DyLoraCallback(Truncation(job.model, job.recipe.method.eval_rank), job.recipe.seed)]
        case _:
            return []


def make_trainer(
    job: Job, arguments: TrainingArguments, folder: RunFolder, callbacks: Sequence[TrainerCallback]
) -> Trainer:
    """Return a Trainer for the job, with TensorBoard and what the method calls for."""
    more = method_callbacks(job)
    if "tensorboard" in job.recipe.training.report_to:
        board = TensorBoardCallback()
        board.logging_dir = str(folder.tensorboard)
        more.append(board)
    compute_loss = loss_function(job.data)
    if job.recipe.method.name == "adalora" and not job.data.learns_answers:
        compute_loss = with_orthogonality(compute_loss or causal_loss, job.model)
    trainer = with_whole_checkpoints(with_own_rates(trainer_class(job), job.recipe.training))(
        model=job.model,
        args=arguments,
        train_dataset=job.data.train,
        eval_dataset=job.data.dev,
        callbacks=[*more, *callbacks],
        **{**job.data.trainer_arguments(), "compute_loss_func": compute_loss},
    )
    trainer.remove_callback(PrinterCallback)  # what Trainer puts in place of the bars it was told to leave out
    return trainer


def start_(job: Job, trainer: Trainer, checkpoint: Path | None) -> None:
    """Find the start of factors that start where EVA finds; a run that goes on takes the ranks of its checkpoint."""
    if job.recipe.method.name != "lora" or job.recipe.method.options.get("init_lora_weights") != "eva":
        return
    job.model.to(trainer.args.device)
    if checkpoint:
        take_start_(job.model, checkpoint)
    else:
        find_start_(job.model, trainer.get_train_dataloader(), by_token=job.data.task_type == "CAUSAL_LM")
