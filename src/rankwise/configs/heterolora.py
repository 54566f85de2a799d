"""``HeteroLoraConfig``: what is searched, under which budget, when and by which score."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftType

from rankwise.configs.path import BlockPaths, PathConfig
from rankwise.errors import check_choice
from rankwise.rules.kinds import BLOCK_KINDS, kind_of
from rankwise.rules.policy import Policy
from rankwise.rules.proxies import PROXIES

CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("dynamic", "static", "off"),
    "granularity": ("path", "rank"),
    "proxy": tuple(PROXIES),
    "score_on": ("weight", "factors"),
    "scoring": ("online", "probe"),
    "probe_data": ("rotating", "fixed"),
    "probe_mode": ("eval", "train"),
    "budget_unit": ("parameters", "paths"),
    "allocation": ("combined", "separated"),
    "shortcut_norm": ("inside", "reapply"),
    "rank_shape": ("same", "shortcuts"),
    "on_disable": ("keep", "reset", "freeze"),
    "synflow_loss": ("logits", "loss"),
}

AUTO = "auto"
# What a choice of ranks has no use for, with the values that say nothing.
OF_WHOLE_PATHS: dict[str, tuple[Any, ...]] = {
    "proxy": ("grad_norm", "newton"),  # earlier versions' default, which meant the second here
    "score_on": ("weight",),
    "budget_unit": ("parameters",),
    "allocation": ("combined",),
    "on_disable": ("keep",),
    "warmup_searches": (0,),
    "rank_budget": (None,),
    "shortcut_ranks": (None,),
}
OF_DYNAMIC_SEARCHES: dict[str, tuple[Any, ...]] = {
    "search_every": (None,),
    "searches_per_epoch": (5,),
    "stop_searching_at": (1.0,),
}


@dataclass
class HeteroLoraConfig(PathConfig):
    """LoRA modules and shortcuts, switched on and off under a budget by zero-cost saliency proxies (HeteroLoRA).

    Every targeted projection gets a candidate path ``s B A x`` with ``s = lora_alpha / r``, and every block one for
    each kind in ``shortcuts``; at any time the enabled paths cost at most ``budget``. Paper: "Unlocking the Global
    Synergies in Low-Rank Adapters", arXiv 2406.14956. On top of the fields of ``peft.LoraConfig``, which size the
    linear paths (``target_modules=[]`` has none, where there are shortcuts):

    The shortcuts. ``"res1"`` runs from the block's input to the attention's residual sum, ``"res2"`` from mid (the
    feed-forward's input on the residual stream) to the feed-forward's sum, ``"in"`` from the block's input to its
    output, ``"cut"`` from the mid of the block before to this block's, ``"layer"`` from the block's input to its output
    after the last norm (LoR2C). ``layers_to_transform`` limits them to some blocks, as it does the linear paths.

    The ranks. ``rank_budget=2_359_296`` computes the ranks, so that all candidates together have at most that many
    parameters: ``rank_shape="same"`` gives linear paths and shortcuts the same largest rank; ``"shortcuts"`` keeps
    ``r`` and gives the rest to the shortcuts (the two shapes of the paper's Table 3).

    The budget. ``budget=0.25`` is a quarter of the candidates' parameters, ``budget=100_000`` that many parameters,
    ``budget_unit="paths"`` counts paths instead. Heads and ``modules_to_save`` always train and never count.

    What is chosen, and how often. Left alone, a config gives each path a rank, once, before training
    (``mode="static"``, ``granularity="rank"``): what was ahead of uniform LoRA or level with it wherever both were
    measured, but for one study (docs/when-to-use-which.md). The paper's method switches whole paths: again and again
    with ``mode="dynamic"``, which ended at a higher loss than uniform LoRA wherever both were measured, or once with
    ``mode="static"`` alone, which did on three tasks of four.

    The schedule of ``mode="dynamic"``, in optimizer steps. ``search_every=100`` searches after every hundredth step.
    Otherwise ``searches_per_epoch`` where the length of an epoch is known (Trainer,
    ``Allocator(steps_per_epoch=...)``), otherwise every 50 steps.

    Args:
        shortcuts: The kinds of block path: ``"res1"``, ``"res2"``, ``"in"``, ``"cut"``, ``"layer"``.
        shortcut_r: Rank of the shortcuts; ``r`` if left out.
        shortcut_alpha: Alpha of the shortcuts; ``lora_alpha / 4`` if left out.
        shortcut_dropout: Dropout in front of the shortcuts.
        shortcut_ranks: The rank of each shortcut by its name (``{"layers.3.res1": 2}``); those without one are not
            built. The scale stays ``shortcut_alpha / shortcut_r``. ``RankPlan.to_config`` makes them.
        shortcut_norm: ``"inside"`` adds ``in`` and ``cut`` to the sum that the block's own norm takes in, so that the
            model starts as the base model; ``"reapply"`` adds them after that norm and runs the norm again, as in the
            paper (models with norms after the sums only; the start is not the base model).
        rank_budget: Number of parameters of all candidates that the ranks are computed from.
        rank_shape: ``"same"`` rank everywhere, or ``"shortcuts"`` take what ``r`` leaves.
        mode: ``"dynamic"`` searches again and again, ``"static"`` once before training, ``"off"`` never: every path is
            on. ``"auto"`` is ``"static"``, but with ``granularity="path"`` ``"dynamic"``, as in the paper.
        granularity: ``"path"`` switches whole paths (the paper). ``"rank"``, with ``mode="static"``, lets the one
            search give every path a rank of its own by a joint second-order choice (``rankwise.rank_plan``). Until
            then each candidate is there at rank 1 and off; afterwards the config says ``mode="off"`` and has the ranks
            chosen, and only those are in memory. ``target_modules`` left out then means all projections but the head,
            as in ``rankwise.rank_plan``; ``r`` says what a fractional budget is a fraction of, and which
            scale every rank has. The search needs batches before the optimizer is made: Trainer has them, a plain
            loop gives them with ``rankwise.Allocator(model, batches=...)``. Options of the choice go into ``plan=`` of
            that or of ``rankwise.AllocationCallback``. ``"auto"`` is ``"rank"`` where no ``mode`` is given, else
            ``"path"``.
        proxy: The score of a path: ``"constant"``, ``"random"``, ``"grad_norm"``, ``"snip"``, ``"synflow"`` or
            ``"newton"`` (second order; needs ``scoring="probe"``). ``"auto"`` is ``"grad_norm"`` for whole paths;
            ranks go by ``"newton"``.
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
        searches_per_epoch: Searches in an epoch where its length is known.
        search_every: Optimizer steps between searches; overrides ``searches_per_epoch``.
        warmup_searches: How many first searches draw at random (``constant``) before ``proxy`` is asked.
        stop_searching_at: Fraction of training after which the choice stays.
        total_steps: Optimizer steps of the whole training, where no callback tells it.
        on_disable: ``"keep"`` the weights and moments of a path that is switched off, ``"reset"`` them (``B = 0``,
            moments cleared), or ``"freeze"`` it: no training, but it keeps contributing. The paper has ``"keep"``;
            ``"freeze"`` ended lower where both were measured (docs/studies/search-options.md).
        seed: Seeds the initial values of each path, the draws and the sketches; the global generator is not used.

    Raises:
        ValueError: A value is outside what is allowed, or an option of PEFT's LoRA does not fit a search.
    """

    shortcuts: list[str] = field(default_factory=list)
    shortcut_r: int | None = None
    shortcut_alpha: float | None = None
    shortcut_dropout: float = 0.0
    shortcut_ranks: dict[str, int] | None = None
    shortcut_norm: str = "inside"
    rank_budget: int | None = None
    rank_shape: str = "same"
    mode: str = "auto"
    granularity: str = "auto"
    proxy: str = "auto"
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
    searches_per_epoch: int = 5
    search_every: int | None = None
    warmup_searches: int = 0
    stop_searching_at: float = 1.0
    total_steps: int | None = None
    on_disable: str = "keep"

    def __post_init__(self) -> None:
        """Check every field against the others."""
        super().__post_init__()
        self.peft_type = PeftType["HETEROLORA"]
        by_default = self._decide()
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        if self.granularity == "rank":
            self._check_by_rank(by_default)
        if self.proxy == "newton" and self.acts:
            self._check_newton()
        self._check_shortcuts()
        self._check_budget()
        self._check_numbers()

    def _decide(self) -> bool:
        """Put what they mean in the place of ``"auto"``; return whether neither mode nor granularity was given."""
        by_default = self.mode == self.granularity == AUTO
        if self.granularity == AUTO:
            self.granularity = "rank" if by_default else "path"
        if self.mode == AUTO:
            self.mode = "static" if self.granularity == "rank" else "dynamic"
        if self.proxy == AUTO:
            self.proxy = "newton" if self.undecided else "grad_norm"
        return by_default

    def _check_shortcuts(self) -> None:
        given: Any = self.shortcuts
        self.shortcuts = [] if given is None else given
        if isinstance(given, str):
            raise ValueError(f"shortcuts={given!r} must be a list: shortcuts=[{given!r}]")
        if not isinstance(self.shortcuts, (list, tuple, set)):
            raise ValueError(f"shortcuts={given!r} must be a list of {', '.join(map(repr, BLOCK_KINDS))}")
        for kind in self.shortcuts:
            check_choice("shortcuts", kind, BLOCK_KINDS)
        self.shortcuts = [kind for kind in BLOCK_KINDS if kind in set(self.shortcuts)]  # each once, in one order
        if self.shortcuts and self.init_lora_weights == "orthogonal":
            raise ValueError(
                "init_lora_weights='orthogonal' sets B from W0, and shortcuts have no W0: use True or 'gaussian', or "
                "leave shortcuts out"
            )
        if not isinstance(self.shortcut_dropout, (int, float)) or not 0.0 <= self.shortcut_dropout < 1.0:
            raise ValueError(f"shortcut_dropout={self.shortcut_dropout!r} must lie in [0, 1)")
        if self.shortcut_alpha is not None:
            self.check_alpha("shortcut_alpha", self.shortcut_alpha, ", or None for lora_alpha / 4")
        if self.rank_budget is not None and (self.rank_pattern or self.alpha_pattern or self.shortcut_ranks):
            raise ValueError(
                "rank_budget computes the ranks, so rank_pattern and alpha_pattern can't be given with it, nor can "
                "shortcut_ranks"
            )
        self._check_shortcut_ranks()
        if self.rank_budget is not None and self.rank_shape == "shortcuts" and not self.shortcuts:
            raise ValueError("rank_shape='shortcuts' gives what r leaves to shortcuts, and there are none: name some")

    def _check_shortcut_ranks(self) -> None:
        given: Any = self.shortcut_ranks
        if given is not None and (not isinstance(given, dict) or not all(isinstance(name, str) for name in given)):
            raise ValueError(f"shortcut_ranks={given!r} must give names a rank, as in {{'layers.3.res1': 2}}")
        for name, rank in (self.shortcut_ranks or {}).items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(
                    f"shortcut_ranks[{name!r}]={rank!r} must be a whole number of at least 1; leave a path out that "
                    "shall not be built"
                )
            if kind_of(name) not in self.shortcuts:
                raise ValueError(
                    f"shortcut_ranks names {name!r}, whose kind is none of shortcuts={self.shortcuts!r}; linear paths "
                    "get theirs from rank_pattern"
                )

    def _check_by_rank(self, by_default: bool) -> None:
        if self.mode == "dynamic":
            raise ValueError(
                "granularity='rank' chooses once, before the optimizer is made: set mode='static', or "
                "granularity='path'"
            )
        if not self.undecided:
            return
        instead = "set granularity='path'"
        allowed = OF_WHOLE_PATHS
        if by_default:  # nobody said that ranks are to be chosen, so what only a search of paths has is no slip
            instead = "say how whole paths are to be searched: mode='dynamic' (again and again) or mode='static' (once)"
            allowed = {**OF_WHOLE_PATHS, "proxy": ("newton",), **OF_DYNAMIC_SEARCHES}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is about whole paths, and granularity='rank'"
                    f"{', the default,' if by_default else ''} gives each path a rank by a second-order choice: leave "
                    f"{name} out, or {instead}"
                )
        if self.rank_pattern or self.alpha_pattern:
            raise ValueError(
                f"granularity='rank'{', the default,' if by_default else ''} finds the ranks: leave rank_pattern and "
                "alpha_pattern out, or set mode"
            )
        self.proxy, self.scoring = "newton", "probe"

    def linear_paths(self) -> LoraConfig:
        """Return the config that sizes the linear paths: candidates whose ranks are to be chosen have rank 1."""
        if not self.undecided:
            return self
        view: Any = copy.copy(self)
        view.r, view.lora_alpha = 1, self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)
        sized: LoraConfig = view
        return sized

    @property
    def undecided(self) -> bool:
        """Whether ranks are still to be chosen."""
        return self.granularity == "rank" and self.mode == "static"

    def _check_newton(self) -> None:
        if self.scoring == "online":
            raise ValueError(
                "proxy='newton' needs a second backward pass, with labels drawn from the model, which the steps of "
                "training don't make: set scoring='probe'"
            )
        if self.score_on != "weight":
            raise ValueError(
                f"proxy='newton' scores the matrix a path makes: score_on={self.score_on!r} must be 'weight'"
            )

    @property
    def acts(self) -> bool:
        """Whether there is a search."""
        return self.mode != "off"

    def policy(self) -> Policy | None:
        """Return what a search chooses by; None where there is none that switches paths."""
        return self.switching() if self.acts and not self.undecided else None

    def switching(self) -> Policy:
        """Return what paths would be switched by."""
        return Policy(self.proxy, self.warmup_searches, self.budget, self.budget_unit, self.allocation, self.seed)

    @property
    def final(self) -> bool:
        """Whether what the first search chose stays."""
        return self.mode == "static"

    @property
    def moments_stay(self) -> bool:
        """Whether paths that were switched off keep their optimizer moments while others train."""
        return self.mode == "dynamic" and self.on_disable != "reset"

    def block_paths(self) -> BlockPaths:
        """Return what the shortcuts are and their sizes."""
        r = self.r if self.shortcut_r is None else self.shortcut_r
        alpha = self.lora_alpha / 4 if self.shortcut_alpha is None else self.shortcut_alpha
        if self.undecided:  # candidates at rank 1, with the scale that every rank has
            r, alpha = 1, alpha / (r**0.5 if self.use_rslora else r)
        return BlockPaths(
            kinds=tuple(self.shortcuts),
            r=r,
            alpha=alpha,
            dropout=self.shortcut_dropout,
            norm=self.shortcut_norm,
            ranks=self.shortcut_ranks,
        )

    def _check_budget(self) -> None:
        budget = self.budget
        if isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise ValueError(f"budget={budget!r} must be a fraction (float in [0, 1]) or a count (int)")
        if isinstance(budget, int) and budget == 1 and self.budget_unit == "parameters":
            raise ValueError("budget=1 is ambiguous: write 1.0 for all candidates, or the number of parameters")
        if isinstance(budget, float) and not 0.0 <= budget <= 1.0:
            raise ValueError(
                f"budget={budget!r} is a float, so it is a fraction of the candidates and must lie in [0, 1]; "
                f"for a number of {self.budget_unit} write it as an int"
            )
        if isinstance(budget, int) and budget < 0:
            raise ValueError(f"budget={budget!r} must not be negative; 0 switches every path off")

    def _check_numbers(self) -> None:
        self.check_whole_numbers(
            score_batches=1,
            searches_per_epoch=1,
            search_every=1,
            warmup_searches=0,
            total_steps=1,
            shortcut_r=1,
            rank_budget=1,
            optional=("search_every", "total_steps", "shortcut_r", "rank_budget"),
        )
        if not isinstance(self.stop_searching_at, (int, float)) or not 0.0 < self.stop_searching_at <= 1.0:
            raise ValueError(f"stop_searching_at={self.stop_searching_at!r} must lie in (0, 1]")
        columns = self.sketch
        if columns not in ("auto", None) and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
            raise ValueError(f"sketch={self.sketch!r} must be 'auto', None (exact) or a number of columns >= 1")
