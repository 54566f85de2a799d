"""Recipes: what a run is, checked before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankwise.errors import nearest
from rankwise.run.problems import explain
from rankwise.run.reading import read_yaml, with_overrides
from rankwise.tasks import DataSpec

if TYPE_CHECKING:
    from peft import LoraConfig

# PEFT's bookkeeping: the run fills these in.
FILLED_IN = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
FILLED_IN |= {"inference_mode", "rankwise_version", "runtime_config"}


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
    """

    name: str = Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    dropout: float | None = Field(default=None, ge=0, lt=1)


class Method(BaseModel):
    """What is trained: ``heterolora`` or ``lora`` with the fields of their PEFT configs, or ``full`` with none."""

    model_config = ConfigDict(extra="allow")
    name: Literal["heterolora", "lora", "full"]

    @property
    def options(self) -> dict[str, Any]:
        """The fields of the PEFT config that the recipe gives."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _options_exist(self) -> Method:
        allowed = self._allowed()
        for key in self.options:
            if key not in allowed:
                takes = "takes no options" if not allowed else f"has no option {key!r}{nearest(key, allowed)}"
                raise ValueError(f"method {self.name!r} {takes} (given: {key}={self.options[key]!r})")
        return self

    def _allowed(self) -> set[str]:
        if self.name == "full":
            return set()
        return {field.name for field in fields(config_class(self.name))} - FILLED_IN

    def build(self, task_type: str, *, seed: int) -> LoraConfig | None:
        """Return the PEFT config (``full``: none); a method with a seed of its own takes the run's."""
        if self.name == "full":
            return None
        own = {"seed": seed} if "seed" in self._allowed() else {}
        return config_class(self.name)(task_type=task_type, **{**own, **self.options})


def config_class(name: str) -> type[LoraConfig]:
    """Return the PEFT config class of a method; importing it is what takes time."""
    if name == "lora":
        from peft import LoraConfig

        return LoraConfig
    from rankwise import HeteroLoraConfig

    return HeteroLoraConfig


class Training(Spec):
    """What the Hugging Face Trainer is told; ``extra`` takes any other field of ``TrainingArguments`` by its name.

    Args:
        epochs: Passes over the training data.
        max_steps: Optimizer steps; overrides ``epochs`` when positive.
        batch_size: Examples per device and micro-batch.
        accumulation: Micro-batches per optimizer step.
        schedule: A learning-rate schedule of transformers, for example ``linear``, ``cosine`` or ``constant``.
        warmup: Warm-up, as a fraction of the steps (below 1) or a number of steps.
        max_grad_norm: Clip gradients to this norm; 0 does not clip.
        evaluate: When the dev split is scored and a checkpoint written. ``never`` writes them by epoch.
        every: Optimizer steps between evaluations for ``evaluate: steps``.
        keep_checkpoints: Checkpoints that stay on disk (the newest and the best always do); none keeps all.
        workers: Processes that load data.
        extra: Further fields of ``TrainingArguments``.
    """

    epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    learning_rate: float = Field(default=1e-3, gt=0)
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
    extra: dict[str, Any] = {}

    @field_validator("schedule")
    @classmethod
    def _schedule_exists(cls, value: str) -> str:
        from transformers.trainer_utils import SchedulerType

        allowed = [kind.value for kind in SchedulerType]
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
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
        select: Whether ``adapter/`` holds the checkpoint that was best on dev, or the last one.
    """

    model: ModelSpec
    data: DataSpec
    method: Method
    training: Training = Field(default_factory=Training)
    seed: int = Field(default=0, ge=0)
    select: Literal["dev", "last"] = "dev"

    @model_validator(mode="after")
    def _dev_is_scored(self) -> Recipe:
        if self.select == "dev" and self.training.evaluate == "never":
            raise ValueError("select='dev' needs training.evaluate to be 'epoch' or 'steps'; or say select: last")
        if self.data.dev_fraction == 0 and self.training.evaluate != "never":
            raise ValueError("data.dev_fraction=0 leaves no dev split: say training.evaluate: never and select: last")
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
    """Read a recipe file, apply ``key.inner=value`` overrides and check the result.

    Raises:
        FileNotFoundError: The file or its base is not there.
        ValueError: Something in it is wrong; the message starts with the file's name.
    """
    content = with_overrides(read_yaml(path), overrides)
    try:
        return parse_recipe(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
