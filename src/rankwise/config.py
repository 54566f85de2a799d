"""``HeteroLoraConfig``: what is searched, under which budget, when and by which score."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from peft import LoraConfig, PeftType

from rankwise.errors import check_choice

PROXIES = ("constant", "random", "grad_norm", "snip", "synflow")
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("dynamic", "static", "off"),
    "proxy": PROXIES,
    "score_on": ("weight", "factors"),
    "scoring": ("online", "probe"),
    "probe_data": ("rotating", "fixed"),
    "probe_mode": ("eval", "train"),
    "budget_unit": ("parameters", "paths"),
    "allocation": ("combined", "separated"),
    "cost": ("parameters",),
    "on_disable": ("keep", "reset", "freeze"),
    "synflow_loss": ("logits", "loss"),
}
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
INITS = (True, False, "gaussian", "orthogonal")


@dataclass
class HeteroLoraConfig(LoraConfig):
    """LoRA modules switched on and off under a budget by zero-cost saliency proxies (HeteroLoRA).

    Every targeted projection gets a candidate path ``s B A x`` with ``s = lora_alpha / r``; at any time the enabled
    paths cost at most ``budget``. Paper: "Unlocking the Global Synergies in Low-Rank Adapters", arXiv 2406.14956.
    On top of the fields of ``peft.LoraConfig``, which size the paths:

    The budget. ``budget=0.25`` is a quarter of the candidates' parameters, ``budget=100_000`` that many parameters,
    ``budget_unit="paths"`` counts paths instead. Heads and ``modules_to_save`` always train and never count.

    The schedule, in optimizer steps. ``search_every=100`` searches after every hundredth step. Otherwise
    ``searches_per_epoch`` where the length of an epoch is known (Trainer, ``Allocator(steps_per_epoch=...)``),
    otherwise every 50 steps. ``mode="static"`` searches once; ``mode="off"`` enables every path and never searches.

    Args:
        shortcuts: Block paths to add beside the linear ones; none exist for this model family yet.
        mode: ``"dynamic"`` searches again and again, ``"static"`` once before training, ``"off"`` never.
        proxy: The score of a path: ``"constant"``, ``"random"``, ``"grad_norm"``, ``"snip"`` or ``"synflow"``.
        score_on: ``"weight"`` scores the effective matrix ``W0 + s B A``; it does not depend on ``s``.
            ``"factors"`` scores ``A`` and ``B``; that score grows with ``s``, so paths with a larger
            ``lora_alpha / r`` outrank others by construction.
        scoring: ``"online"`` takes the gradients of the training steps before a search, with no pass of its own;
            ``"probe"`` runs ``score_batches`` batches apart.
        score_batches: Optimizer steps (online) or batches (probe) that a score is the mean of.
        probe_data: ``"rotating"`` draws a probe's batches by seed and search, ``"fixed"`` takes the first ones.
        probe_mode: ``"eval"`` probes without dropout, ``"train"`` with it.
        synflow_loss: ``"logits"`` propagates the sum of the logits, ``"loss"`` the task's loss.
        sketch: Columns of the random sketch of a gradient (``grad_norm`` on ``"weight"``), ``None`` for exact,
            ``"auto"`` for exact while all sums fit in 256 MB, else 16.
        budget: A fraction of the candidates (float in [0, 1]) or a number of parameters or paths (int).
        budget_unit: ``"parameters"`` or ``"paths"``.
        allocation: ``"combined"`` ranks all paths together, ``"separated"`` linear paths and shortcuts apart.
        cost: What a path costs: ``"parameters"``.
        searches_per_epoch: Searches in an epoch where its length is known.
        search_every: Optimizer steps between searches; overrides ``searches_per_epoch``.
        warmup_searches: How many first searches draw at random (``constant``) before ``proxy`` is asked.
        stop_searching_at: Fraction of training after which the choice stays.
        total_steps: Optimizer steps of the whole training, where no callback tells it.
        on_disable: ``"keep"`` the weights and moments of a path that is switched off, ``"reset"`` them (``B = 0``,
            moments cleared), or ``"freeze"`` it: no training, but it keeps contributing.
        seed: Seeds the initial values of each path, the draws and the sketches; the global generator is not used.

    Raises:
        ValueError: A value is outside what is allowed, or an option of PEFT's LoRA does not fit a search.
    """

    shortcuts: list[str] = field(default_factory=list)
    mode: str = "dynamic"
    proxy: str = "grad_norm"
    score_on: str = "weight"
    scoring: str = "online"
    score_batches: int = 32
    probe_data: str = "rotating"
    probe_mode: str = "eval"
    synflow_loss: str = "logits"
    sketch: int | str | None = "auto"
    budget: float | int = 0.25
    budget_unit: str = "parameters"
    allocation: str = "combined"
    cost: str = "parameters"
    searches_per_epoch: int = 5
    search_every: int | None = None
    warmup_searches: int = 0
    stop_searching_at: float = 1.0
    total_steps: int | None = None
    on_disable: str = "keep"
    seed: int = 0
    rankwise_version: str | None = None

    def __post_init__(self) -> None:
        """Check every field against the others."""
        super().__post_init__()
        self.peft_type = PeftType["HETEROLORA"]
        self.rankwise_version = self.rankwise_version or version("rankwise")
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        self._check_lora_options()
        self._check_shortcuts()
        self._check_budget()
        self._check_numbers()

    def _check_lora_options(self) -> None:
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} can't be searched: {reason}; leave {name} out")
        if self.init_lora_weights not in INITS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r} changes W0 or the ranks after the paths are built; "
                f"use one of {', '.join(map(repr, INITS))}"
            )

    def _check_shortcuts(self) -> None:
        if self.shortcuts:
            raise ValueError(
                f"shortcuts={self.shortcuts!r}: this version searches linear paths only; leave shortcuts out"
            )

    def _check_budget(self) -> None:
        budget = self.budget
        if isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise ValueError(f"budget={budget!r} must be a fraction (float in [0, 1]) or a count (int)")
        if isinstance(budget, int) and budget == 1:
            raise ValueError("budget=1 is ambiguous: write 1.0 for all candidates, or the number of parameters")
        if isinstance(budget, float) and not 0.0 <= budget <= 1.0:
            raise ValueError(
                f"budget={budget!r} is a float, so it is a fraction of the candidates and must lie in [0, 1]; "
                f"for a number of {self.budget_unit} write it as an int"
            )
        if isinstance(budget, int) and budget < 0:
            raise ValueError(f"budget={budget!r} must not be negative; 0 switches every path off")

    def _check_numbers(self) -> None:
        lowest: dict[str, tuple[Any, int]] = {
            "score_batches": (self.score_batches, 1),
            "searches_per_epoch": (self.searches_per_epoch, 1),
            "search_every": (self.search_every, 1),
            "warmup_searches": (self.warmup_searches, 0),
            "total_steps": (self.total_steps, 1),
        }
        optional = ("search_every", "total_steps")
        for name, (value, least) in lowest.items():
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        if not isinstance(self.stop_searching_at, (int, float)) or not 0.0 < self.stop_searching_at <= 1.0:
            raise ValueError(f"stop_searching_at={self.stop_searching_at!r} must lie in (0, 1]")
        columns = self.sketch
        if columns not in ("auto", None) and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
            raise ValueError(f"sketch={self.sketch!r} must be 'auto', None (exact) or a number of columns >= 1")
