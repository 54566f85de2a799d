"""The methods of a recipe by name: which PEFT config each one has, and what of it a recipe may say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from rankwise.errors import nearest
from rankwise.fields import wrong_field

if TYPE_CHECKING:
    from peft import PeftConfig

    from rankwise.planning.options import PlanOptions

# PEFT's bookkeeping: the run fills these in.
FILLED_IN = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
FILLED_IN |= {"inference_mode", "rankwise_version", "runtime_config", "total_steps"}
ADALORA_FILLED_IN = {"total_step", "rank_pattern", "r"}  # the length of training, its state, and a field it ignores
# Keys that are no field of the PEFT config, by the method that has them.
OWN = {"dylora": {"eval_rank"}, "heterolora": {"plan"}}
# What HeteroLoRA chooses where a recipe doesn't say it: now, and in what versions up to 0.1 kept of a run or a study.
NOW = {"mode": "static", "granularity": "rank"}
BEFORE = {"mode": "dynamic"}
UNTYPED = {"init_lora_weights"}  # PEFT takes more than its annotation says
WIDER = {"lora_alpha": float}  # PEFT says int and takes any number
WITH_PATHS = ("heterolora", "lor2c")


class Method(BaseModel):
    """What is trained, with the fields of its PEFT config.

    - ``heterolora``: ``HeteroLoraConfig``; where ranks are chosen (``granularity: rank``, as without a ``mode``),
      ``plan`` has options of ``rankwise.rank_plan``.
    - ``lor2c``: ``Lor2cConfig``.
    - ``lora``: PEFT's ``LoraConfig``; PiSSA is ``init_lora_weights: pissa``, EVA ``init_lora_weights: eva``, QLoRA
      ``model.load_in: 4bit``.
    - ``adalora``: PEFT's ``AdaLoraConfig``; its ``total_step`` is the run's number of steps.
    - ``dylora``: ``LoraConfig``, each step at a rank drawn from 1 to ``r``; ``eval_rank`` is the rank that is evaluated
      and saved, ``r`` if left out.
    - ``adapterdrop``: ``rankwise.baselines.BottleneckConfig``.
    - ``prefix``: PEFT's ``PrefixTuningConfig``, keys and values of ``num_virtual_tokens`` positions before the text's;
      of causal language models.
    - ``full``: every weight; no fields.
    """

    model_config = ConfigDict(extra="allow")
    name: Literal["heterolora", "lor2c", "lora", "adalora", "dylora", "adapterdrop", "prefix", "full"]

    @property
    def options(self) -> dict[str, Any]:
        """The fields of the PEFT config that the recipe gives, and the method's own keys, as copies: PEFT extends."""
        return copy.deepcopy(self.model_extra or {})

    @property
    def eval_rank(self) -> int | None:
        """The rank that DyLoRA is evaluated and saved at, if not the full one."""
        rank: int | None = self.options.get("eval_rank")
        return rank

    @property
    def plan(self) -> PlanOptions | None:
        """The options of the plan that a search by rank makes."""
        plan: PlanOptions | None = self.options.get("plan")
        return plan

    @model_validator(mode="before")
    @classmethod
    def _default_is_written_out(cls, given: Any) -> Any:
        return written_out(given)

    @model_validator(mode="after")
    def _options_exist(self) -> Method:
        allowed = self._allowed()
        for key in self.options:
            if key not in allowed:
                takes = "takes no options" if not allowed else f"has no option {key!r}{nearest(key, allowed)}"
                raise ValueError(f"method {self.name!r} {takes} (given: {key}={self.options[key]!r})")
        return self

    @model_validator(mode="after")
    def _options_have_their_types(self) -> Method:
        types = {**get_type_hints(config_class(self.name)), **WIDER} if self.options else {}
        for key, value in self.options.items():
            if key in UNTYPED or key not in types:  # the method's own keys are in no config
                continue
            inside = isinstance(value, Mapping) and config_within(types[key])  # PEFT makes the config within of these
            if inside:
                self._check_within(key, value, inside)
            try:
                TypeAdapter(types[key]).validate_python(inside(**value) if inside else value, strict=True)
            except ValidationError as error:
                wanted = "; ".join(dict.fromkeys(each["msg"] for each in error.errors()))
                raise ValueError(f"method {self.name!r}: {key}={value!r} does not fit: {wanted}") from error
        return self

    @model_validator(mode="after")
    def _starts_are_the_methods(self) -> Method:
        if self.options.get("init_lora_weights") == "eva" and self.name != "lora":
            raise ValueError(f"method {self.name!r} has no start by EVA: leave init_lora_weights out, or use 'lora'")
        return self

    @model_validator(mode="after")
    def _prefixes_have_a_length(self) -> Method:
        length = self.options.get("num_virtual_tokens")
        if self.name == "prefix" and (length is None or length < 1):
            raise ValueError(
                f"method 'prefix': num_virtual_tokens={length!r}: give the number of positions, at least 1"
            )
        return self

    @model_validator(mode="after")
    def _plan_is_of_ranks(self) -> Method:
        if self.plan is None:
            return self
        from rankwise.planning.options import choice_from

        choice_from(self.plan, seed=0)
        if self.plan.get("step_time") is not None:
            raise ValueError("method.plan.step_time is measured by the run: leave it out")
        if self.options.get("granularity") != "rank":
            raise ValueError(
                f"method.plan={dict(self.plan)!r:.80} has options of a choice of ranks, and none is made: say "
                "granularity: rank (with mode: static), or leave plan out"
            )
        return self

    def _check_within(self, key: str, value: Mapping[str, Any], within: type[Any]) -> None:
        """Refuse names that the config within a config doesn't have: PEFT passes over them."""
        known = {field.name for field in fields(within) if field.init}
        for name in value:
            if name not in known:
                raise ValueError(f"method {self.name!r}: {key} has no field {name!r}{nearest(name, known)}")
        wrong = wrong_field(within, value)
        if wrong is not None:
            raise ValueError(f"method {self.name!r}: {key}.{wrong}")

    def _allowed(self) -> set[str]:
        if self.name == "full":
            return set()
        own = {field.name for field in fields(config_class(self.name))} - FILLED_IN
        if self.name == "adalora":
            return own - ADALORA_FILLED_IN
        return own | OWN.get(self.name, set())

    def build(self, task_type: str, *, seed: int) -> PeftConfig | None:
        """Return the PEFT config (``full``: none); a method with a seed of its own takes the run's.

        Raises:
            ValueError: The options do not fit each other.
        """
        if self.name == "full":
            return None
        if self.name == "prefix" and task_type != "CAUSAL_LM":  # PEFT hands heads of encoders what they can't read
            raise ValueError("method 'prefix' is for causal language models: take another method for this task")
        options = {key: value for key, value in self.options.items() if key not in OWN.get(self.name, ())}
        if "seed" in self._allowed():
            options = {"seed": seed, **options}
        if options.get("init_lora_weights") == "eva":
            options = {"eva_config": {}, **options}  # PEFT warns of its own defaults
        if self.name == "adalora":  # PEFT wants a length before there is one
            options["total_step"] = max(options.get("tinit", 0), 0) + max(options.get("tfinal", 0), 0) + 2
        config = config_class(self.name)(task_type=task_type, **options)
        if self.name == "adalora":
            from rankwise.baselines.adalora import check_schedule

            check_schedule(config)  # type: ignore[arg-type]
        return config


def written_out(method: Any, default: Mapping[str, str] = NOW) -> Any:
    """Return the fields of a method with what HeteroLoRA chooses said, so that what is kept says it."""
    says = not isinstance(method, Mapping) or method.get("name") != "heterolora" or NOW.keys() & method.keys()
    return method if says else {**method, **default}


def as_kept(content: Any) -> Any:
    """Return a recipe that lay in the folder of a run or a study as the version meant it that wrote it there."""
    if not isinstance(content, Mapping) or "method" not in content:
        return content  # damaged: checking it says so
    return {**content, "method": written_out(content["method"], BEFORE)}


def config_within(annotation: Any) -> type[Any] | None:
    """Return the dataclass that a field of a config is annotated with, if there is one."""
    return next((kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)), None)  # type: ignore[return-value]


def config_class(name: str) -> type[PeftConfig]:
    """Return the PEFT config class of a method; importing it is what takes time."""
    if name == "heterolora":
        from rankwise import HeteroLoraConfig

        return HeteroLoraConfig
    if name == "lor2c":
        from rankwise import Lor2cConfig

        return Lor2cConfig
    if name == "adapterdrop":
        from rankwise.baselines import BottleneckConfig

        return BottleneckConfig
    from peft import AdaLoraConfig, LoraConfig, PrefixTuningConfig

    return {"adalora": AdaLoraConfig, "prefix": PrefixTuningConfig}.get(name, LoraConfig)
