"""What the configs of all methods here have in common: LoRA's fields, a seed, and the sizes of block paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

from peft import LoraConfig

from rankwise.fields import plain, wrong_field
from rankwise.rules.policy import Policy

# Options of PEFT's LoRA that give a path another formula than W0 + s B A, or change W0 while building it.
UNSUPPORTED: dict[str, str] = {
    "use_dora": "a DoRA layer rescales W0, so switching it off would not give the base model back",
    "use_bdlora": "block-diagonal factors are not one A and one B",
    "lora_bias": "a path is B A alone",
    "use_qalora": "QA-LoRA pools the path's input",
    "layer_replication": "replicated layers share their base weights",
    "target_parameters": "bare parameters have no input to score a path by",
    "alora_invocation_tokens": "an activated LoRA is on for part of a sequence only",
    "arrow_config": "a routed LoRA is several adapters at once",
    "velora_config": "VeLoRA approximates the path's input",
    "monteclora_config": "a sampled LoRA is not one A and one B",
    "kasa_config": "KaSA truncates W0 while building",
    "megatron_config": "Megatron's parallel layers are not supported",
}
LARGEST = 3.4028234663852886e38  # of float32, and about that of bfloat16
RETIRED = {"cost": "parameters"}
INITS = (True, False, "gaussian", "orthogonal")
# What PEFT fills in, or checks by itself.
UNTYPED = {"task_type", "peft_type", "auto_mapping", "runtime_config", "init_lora_weights", *UNSUPPORTED}
TYPED = tuple(field.name for field in fields(LoraConfig) if field.name not in UNTYPED)
WIDER: dict[str, Any] = {  # PEFT takes other numbers than its annotation says, and says nothing of what is inside
    "lora_alpha": float,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
}
NONE_STANDS_FOR: dict[str, Any] = {
    "fan_in_fan_out": False,
    "inference_mode": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


class BlockPaths(NamedTuple):
    """What block paths a config asks for, and their sizes.

    Args:
        kinds: Their kinds.
        r: Rank.
        alpha: Alpha; the scale is ``alpha / r``.
        dropout: Dropout in front of them.
        norm: ``"inside"`` or ``"reapply"``.
        share: Whether all blocks use one ``A``.
        ranks: The rank of each path by name, where they differ; paths without one are not built. The scale stays that
            of ``r`` and ``alpha``.
    """

    kinds: tuple[str, ...]
    r: int
    alpha: float
    dropout: float = 0.0
    norm: str = "inside"
    share: bool = False
    ranks: Mapping[str, int] | None = None


@dataclass
class PathConfig(LoraConfig):
    """Base of the configs.

    Args:
        seed: Seeds the initial values of each path, the draws and the sketches; the global generator is not used.

    Raises:
        ValueError: An option of PEFT's LoRA does not fit paths that can be switched.
    """

    linear_waits: ClassVar[bool] = False
    """Whether linear paths are there to be brought in by an edit, and off until then."""

    seed: int = 0
    rankwise_version: str | None = None

    def __post_init__(self) -> None:
        """Check PEFT's options."""
        for name in TYPED:
            value = getattr(self, name)
            setattr(self, name, plain(NONE_STANDS_FOR.get(name) if value is None else value))  # a copy of each
        self.check_types(*TYPED, "seed")  # first: PEFT counts on them
        super().__post_init__()
        self.rankwise_version = self.rankwise_version or version("rankwise")
        self._check_lora_options()

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Drop the fields that adapters of earlier versions were saved with and that never had another value."""
        given = super().check_kwargs(**kwargs)
        return {name: value for name, value in given.items() if name not in RETIRED or value != RETIRED[name]}

    def block_paths(self) -> BlockPaths:
        """Return what the block paths are and their sizes."""
        raise NotImplementedError

    @property
    def acts(self) -> bool:
        """Whether something is switched while the model trains."""
        raise NotImplementedError

    def policy(self) -> Policy | None:
        """Return what a search chooses by; None where nothing is searched and everything is on as built."""
        return None

    @property
    def undecided(self) -> bool:
        """Whether the ranks of the paths are still to be chosen, so that nothing may train yet."""
        return False

    @property
    def final(self) -> bool:
        """Whether what the first search chose stays."""
        return False

    @property
    def moments_stay(self) -> bool:
        """Whether paths that were switched off keep their optimizer moments while others train."""
        return False

    def check_blocks(self, blocks: list[int]) -> None:
        """Refuse what a model with these blocks can't have."""

    def check_waiting(self, blocks: set[int]) -> None:
        """Refuse more than the blocks in which linear paths wait allow."""

    @property
    def deletes(self) -> bool:
        """Whether an injection removes a path and puts nothing in its place."""
        return False

    def linear_targets(self, family: list[str]) -> Any:
        """Return what ``target_modules`` the linear paths run along.

        Args:
            family: The family's query and value projections, "" where its description names none.
        """
        return self.target_modules

    def linear_paths(self) -> LoraConfig:
        """Return the config that sizes the linear paths."""
        return self

    @staticmethod
    def check_alpha(name: str, alpha: Any, otherwise: str = "") -> None:
        """Refuse an alpha that is no positive number, or that no scale of float32 can come of."""
        number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        if not number or not 0 < alpha <= LARGEST:
            beyond = f" and at most {LARGEST:.3g}, the largest of float32" if number and alpha > LARGEST else ""
            raise ValueError(f"{name}={alpha!r:.60} must be positive{beyond}{otherwise}")

    def check_types(self, *names: str) -> None:
        """Refuse values of these fields that are not of the field's type."""
        wrong = wrong_field(type(self), {name: getattr(self, name) for name in names}, **WIDER)
        if wrong is not None:
            raise ValueError(wrong)

    def check_whole_numbers(self, *, optional: tuple[str, ...] = (), **least: int) -> None:
        """Refuse fields that are no whole numbers of at least the given size."""
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {lowest}")

    def _check_expressions(self, name: str) -> None:
        """Refuse what PEFT would take for a regular expression and can't: it would say so without the field."""
        value = getattr(self, name)
        listed = [] if value is None or (name == "exclude_modules" and not isinstance(value, str)) else value
        for expression in [listed] if isinstance(listed, str) else listed:
            try:
                re.compile(f"({expression})")
            except re.error as error:
                raise ValueError(
                    f"{name}: {expression!r} is taken for a regular expression, and is not a valid one ({error}): "
                    "write .* for any characters"
                ) from error

    def _check_lora_options(self) -> None:
        self.check_whole_numbers(r=1)
        alphas, ranks = self.alpha_pattern or {}, self.rank_pattern or {}
        sizes = {"lora_alpha": self.lora_alpha} | {f"alpha_pattern[{k!r}]": v for k, v in alphas.items()}
        for name, alpha in sizes.items():
            self.check_alpha(name, alpha)
        for key, rank in ranks.items():
            if rank < 1:
                raise ValueError(f"rank_pattern[{key!r}]={rank!r} must be a whole number of at least 1")
        for name in ("exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
            self._check_expressions(name)
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout={self.lora_dropout!r} must lie in [0, 1)")
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} can't be searched: {reason}; leave {name} out")
        start = self.init_lora_weights
        if start not in INITS or not isinstance(start, (bool, str)):  # 1 equals True
            raise ValueError(
                f"init_lora_weights={start!r} changes W0 or the ranks after the paths are built; "
                f"use one of {', '.join(map(repr, INITS))}"
            )
