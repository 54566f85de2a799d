"""Recipes: what a run is, checked before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankwise.errors import nearest
from rankwise.runs.recipes.methods import Method
from rankwise.runs.recipes.problems import explain
from rankwise.runs.recipes.reading import read_yaml, with_overrides
from rankwise.runs.recipes.shipped import find_recipe
from rankwise.tasks import DataSpec


class Spec(BaseModel):
    """A section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class ModelSpec(Spec):
    """The pretrained model.

    Args:
        name: A Hugging Face id, a folder, or ``package:NAME`` for the folder ``model`` inside an installed package.
        dtype: The precision the weights are loaded in.
        revision: The commit or branch of a hub model.
        trust_remote_code: Run code that comes with the model.
        dropout: One value for every dropout of the base model; none keeps the model's own.
        chat_template: A file with the chat template (Jinja) to use in place of the tokenizer's own.
        load_in: ``4bit`` or ``8bit`` keeps the frozen weights quantised by bitsandbytes (QLoRA, arXiv 2305.14314: NF4,
            its constants quantised again).
    """

    name: str = Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    dropout: float | None = Field(default=None, ge=0, lt=1)
    chat_template: str | None = None
    load_in: Literal["4bit", "8bit"] | None = None


class KeptPrefix(Spec):
    """How the blocks below everything that trains are run once per training row; see ``rankwise.prefix.cache``.

    Args:
        ram_mb: What may be kept in memory, in MiB; the rest goes to files in the run folder, deleted at the end.
        half: Keep 16 bits of each number.
        evaluating: Leave dropout out of these blocks; without it, dropout there is refused.
    """

    ram_mb: int = Field(default=2048, ge=0)
    half: bool = False
    evaluating: bool = False


class Training(Spec):
    """What the Hugging Face Trainer is told; ``extra`` takes any other field of ``TrainingArguments`` by its name.

    Args:
        epochs: Passes over the training data.
        max_steps: Optimizer steps; overrides ``epochs`` when positive.
        head_learning_rate: The rate of the head alone, on the same schedule; none trains it at ``learning_rate``.
        loraplus_lr_ratio: LoRA+ (Hayou et al. 2024): the rate of the factors ``B`` over that of ``A``, at least 1.
        batch_size: Examples per device and micro-batch.
        accumulation: Micro-batches per optimizer step.
        schedule: A learning-rate schedule of transformers, for example ``linear``, ``cosine`` or ``constant``.
        warmup: Warm-up, as a fraction of the steps (below 1) or a number of steps.
        max_grad_norm: Clip gradients to this norm; 0 does not clip.
        evaluate: When the dev split is scored and a checkpoint written. ``never`` writes them by epoch.
        every: Optimizer steps between evaluations for ``evaluate: steps``.
        keep_checkpoints: Checkpoints that stay on disk (the newest and the best always do); none keeps all.
        workers: Processes that load data.
        prefix_cache: Run the blocks below everything that trains once per training row, not once per epoch; ``{}``
            takes the defaults of ``KeptPrefix``.
        extra: Further fields of ``TrainingArguments``.
    """

    epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    learning_rate: float = Field(default=1e-3, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    loraplus_lr_ratio: float | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    eval_batch_size: int = Field(default=64, ge=1)
    accumulation: int = Field(default=1, ge=1)
    schedule: str = "linear"
    warmup: float = Field(default=0.06, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    gradient_checkpointing: bool = False
    bf16: bool = False
    evaluate: Literal["epoch", "steps", "never"] = "epoch"
    every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int | None = Field(default=2, ge=1)
    logging_steps: int = Field(default=10, ge=1)
    report_to: list[str] = ["tensorboard"]
    workers: int = Field(default=0, ge=0)
    prefix_cache: KeptPrefix | None = None
    extra: dict[str, Any] = {}

    @field_validator("schedule")
    @classmethod
    def _schedule_exists(cls, value: str) -> str:
        from transformers.trainer_utils import SchedulerType

        allowed = [kind.value for kind in SchedulerType]
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
        return value

    @field_validator("warmup")
    @classmethod
    def _warmup_is_a_fraction_or_steps(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"{value} is neither a fraction of the steps (below 1) nor a whole number of steps")
        return value

    @model_validator(mode="after")
    def _steps_have_a_number(self) -> Training:
        if (self.evaluate == "steps") != (self.every is not None):
            raise ValueError(f"evaluate={self.evaluate!r} with every={self.every!r}: give `every` with `steps`, only")
        return self


class Recipe(Spec):
    """One run: a model, data, a method and how to train it.

    Args:
        model: The pretrained model.
        data: The task and where its data is.
        method: What is trained.
        training: What the Trainer is told.
        seed: Seeds the head, the order of the data, dropout and the method.
        select: Whether ``adapter/`` holds the checkpoint that was best on dev, or the last one. Where a method changes
            the model (LoR2C's edits, AdaLoRA's ranks), the best of those after the last change.
        license: What the card of the result says, by the hub's names (``apache-2.0``); none says ``unknown``.
    """

    model: ModelSpec
    data: DataSpec
    method: Method
    training: Training = Field(default_factory=Training)
    seed: int = Field(default=0, ge=0)
    select: Literal["dev", "last"] = "dev"
    license: str | None = None

    @model_validator(mode="after")
    def _dev_is_scored(self) -> Recipe:
        if self.select == "dev" and self.training.evaluate == "never":
            raise ValueError("select='dev' needs training.evaluate to be 'epoch' or 'steps'; or say select: last")
        if self.data.dev_fraction == 0 and self.training.evaluate != "never":
            raise ValueError("data.dev_fraction=0 leaves no dev split: say training.evaluate: never and select: last")
        return self

    @model_validator(mode="after")
    def _kept_rows_come_back(self) -> Recipe:
        if self.training.prefix_cache is not None and self.data.packing and self.training.batch_size > 1:
            raise ValueError(
                "training.prefix_cache keeps what the prefix makes of a row, and data.packing joins "
                f"training.batch_size={self.training.batch_size} of them anew in every epoch, so none would come back: "
                "say batch_size: 1 (with accumulation), or leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _a_prefix_is_read_once(self) -> Recipe:
        if self.method.name == "prefix" and self.training.gradient_checkpointing:
            raise ValueError(
                "training.gradient_checkpointing runs blocks a second time, and method 'prefix' would put its keys and "
                "values before the text's twice: leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _quantised_weights_stay(self) -> Recipe:
        if self.model.load_in is None:
            return self
        if self.method.name == "full":
            raise ValueError(
                f"model.load_in={self.model.load_in!r} keeps the weights quantised and frozen, and method 'full' would "
                "train them: leave one of the two out"
            )
        start = self.method.options.get("init_lora_weights")
        if isinstance(start, str) and start != "gaussian":
            raise ValueError(
                f"method.init_lora_weights={start!r} changes the weights that model.load_in={self.model.load_in!r} "
                "keeps quantised: leave one of the two out"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that ``load_recipe`` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """Check a nested mapping.

    Raises:
        ValueError: Says each wrong key with what is allowed and the nearest name.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(explain(error, Recipe)) from error


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its path or the name it ships under, apply ``key.inner=value`` overrides and check the result.

    Raises:
        FileNotFoundError: The file or its base is not there.
        ValueError: Something in it is wrong; the message starts with the file's name.
    """
    path = find_recipe(path)
    content = with_overrides(read_yaml(path), overrides)
    try:
        return parse_recipe(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
