"""``RankPlan``: how much rank each path gets, and the config that builds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.fields import wrong_field
from rankwise.method.conversion import refuse_converted
from rankwise.method.heads import saved_whole
from rankwise.method.ranks import rank_fields
from rankwise.planning.step_time import StepTime
from rankwise.rules.kinds import BLOCK_KINDS, kind_of

BY_TARGETS = "plan for other modules with rankwise.rank_plan(..., target_modules=...)"
BY_SPACE = "plan for other paths with rankwise.rank_plan(..., space=...)"
SET_BY_PLAN = {
    **dict.fromkeys(("r", "lora_alpha"), "the scale alpha / r is rankwise.rank_plan(..., scale=...)"),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), "its ranks and its scale are in them"),
    **dict.fromkeys(("target_modules", "layers_to_transform", "layers_pattern"), BY_TARGETS),
    **dict.fromkeys(("mode", "shortcuts", "shortcut_ranks", "shortcut_r", "shortcut_alpha"), BY_SPACE),
}


class Pick(NamedTuple):
    """One rank given to a path.

    Args:
        path: Its name.
        gain: By how much the loss is predicted to fall by it, given those before.
        cost: Its parameters.
    """

    path: str
    gain: float
    cost: int


class Depth(NamedTuple):
    """The best choice whose backward pass goes no deeper than a block.

    Args:
        block: The lowest block whose backward pass may run; the number of blocks where none does.
        share: What the choice's step is predicted to take, in steps of uniform LoRA.
        gain: Its predicted gain.
    """

    block: int
    share: float
    gain: float


class Time(NamedTuple):
    """What a plan's training step takes, in steps of uniform LoRA.

    Args:
        limit: The most that was asked for.
        share: What it is predicted to take.
        prefix_cache: Whether that is with the frozen prefix kept, from the second epoch on.
        step: The parts of a step, in seconds; the same plan comes out of ``rank_plan(..., step_time=step)``.
        depths: What each depth that fits into the limit would bring, the shallowest first; the plan is of the first
            with the largest gain.
    """

    limit: float
    share: float
    prefix_cache: bool
    step: StepTime
    depths: tuple[Depth, ...] = ()


@dataclass(frozen=True)
class RankPlan:
    """Ranks under a budget, and what they are expected to bring.

    Args:
        ranks: The rank of every candidate; 0 where it gets none.
        modules: The full name of each linear candidate's module in the base model.
        costs: What one rank of each candidate costs, ``i + o`` parameters.
        picks: The ranks in the order they were given, each with its marginal gain.
        budget: The limit, in parameters.
        scale: ``alpha / r`` of every path.
        unspent_because: Why the rest of the budget is left.
        overlap: How much of the cost the choices made on two halves of the batches share, 0 to 1; None if not asked.
        kept: How much of the gain predicted on one half of the batches the ranks chosen on the other half keep, the
            mean of both ways; twins that stand in for each other lower ``overlap`` and not this. None if not asked.
        breadth: How far the plan was shrunk towards the uniform one.
        loss: The model's mean loss on the batches of all processes, before anything is trained; of a term where it is a
            sum over terms.
        directions: Which optimizer's first step the components match.
        damping: The damping of the joint choice.
        seconds: How long planning took.
        passes: Forward and backward passes made, over all batches.
        warnings: What to know before trusting the plan.
        time: What a step takes, where that was limited.
        lookalikes: Modules that are no candidates and whose names end in one's: PEFT would take them for it.
        heads: Parts of the model's head that PEFT trains only where ``modules_to_save`` names them, as its configs do.
        converted: Modules with candidates that PEFT takes for experts, so that plain LoRA can't be on them.
    """

    ranks: dict[str, int]
    modules: dict[str, str]
    costs: dict[str, int]
    picks: tuple[Pick, ...]
    budget: int
    scale: float
    unspent_because: str = ""
    overlap: float | None = None
    kept: float | None = None
    breadth: float = 0.0
    loss: float = math.nan
    directions: str = "adam"
    damping: float = 1.0
    seconds: float = 0.0
    passes: int = 0
    warnings: tuple[str, ...] = field(default=())
    time: Time | None = None
    lookalikes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()

    @property
    def spent(self) -> int:
        """The parameters of the plan."""
        return sum(pick.cost for pick in self.picks)

    @property
    def unspent(self) -> int:
        """What is left of the budget."""
        return self.budget - self.spent

    @property
    def gain(self) -> float:
        """By how much the loss is predicted to fall, by the damped quadratic model, in the units of ``loss``.

        With labels drawn by ``draw_losses`` the curvature is that of what it returns.
        Gains of different spaces or targets are not comparable: the damping is relative to the mean curvature of the
        components on offer, so the same ranks have another gain among other candidates.
        """
        return sum(pick.gain for pick in self.picks)

    @property
    def step_share(self) -> float | None:
        """What a training step is predicted to take, in steps of uniform LoRA; None where time was not limited."""
        return None if self.time is None else self.time.share

    @property
    def depths(self) -> tuple[Depth, ...]:
        """What other depths of the backward pass would bring; none where time was not limited."""
        return () if self.time is None else self.time.depths

    @property
    def chosen(self) -> dict[str, int]:
        """The ranks of the paths that get any."""
        return {name: rank for name, rank in self.ranks.items() if rank}

    @property
    def has_block_paths(self) -> bool:
        """Whether block paths have a rank, which plain LoRA can't have."""
        return any(kind_of(name) in BLOCK_KINDS for name in self.chosen)

    @property
    def beyond_plain(self) -> list[str]:
        """The modules with a rank that plain LoRA can't be on, because PEFT takes them for experts."""
        return [self.modules[name] for name in self.chosen if self.modules.get(name) in self.converted]

    def curve(self) -> list[tuple[int, float]]:
        """Return (parameters, predicted gain) after each pick."""
        points, cost, gain = [], 0, 0.0
        for pick in self.picks:
            cost, gain = cost + pick.cost, gain + pick.gain
            points.append((cost, gain))
        return points

    def parameters_for(self, share: float = 0.5) -> int:
        """Return how many parameters have that share of the whole predicted gain.

        Raises:
            ValueError: The share lies outside (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share={share!r} must lie in (0, 1]")
        return next((cost for cost, gain in self.curve() if gain >= share * self.gain), self.spent)

    def to_lora_config(self, *, use_rslora: bool = False, **fields: Any) -> LoraConfig:
        """Return PEFT's own config with these ranks.

        ``alpha / r`` is ``scale`` everywhere; with ``use_rslora`` it is ``alpha / sqrt(r)``.

        Args:
            use_rslora: Whether PEFT shall scale by ``alpha / sqrt(r)``.
            **fields: Other fields of ``LoraConfig``, such as ``task_type`` and ``lora_dropout``. What they train
                besides, such as the magnitudes of ``use_dora``, is not in the plan's budget. A ``modules_to_save``
                stands in the place of ``heads``.

        Raises:
            ValueError: Block paths have a rank, or modules that PEFT takes for experts, which plain LoRA can't have:
                ``to_config`` builds them. Or a field is one that the plan sets, or has PEFT train a module with a rank
                as a whole.
        """
        _check_fields(fields)
        blocks = [name for name in self.chosen if kind_of(name) in BLOCK_KINDS]
        if blocks:
            raise ValueError(
                f"the plan gives ranks to {len(blocks)} block paths ({', '.join(blocks[:5])}), which plain LoRA can't "
                "have: use plan.to_config(), which is a HeteroLoraConfig, or plan with space='linear'"
            )
        refuse_converted(
            self.beyond_plain,
            "use plan.to_config(), which is a HeteroLoraConfig, or plan for other modules with target_modules=[...]",
        )
        return LoraConfig(use_rslora=use_rslora, **self._linear_fields(use_rslora, fields))

    def to_config(self, *, use_rslora: bool = False, **fields: Any) -> LoraConfig:
        """Return the config that builds the plan: PEFT's, or a ``HeteroLoraConfig`` where that can't have the ranks.

        It can't have those of block paths, nor of modules that PEFT takes for experts.

        Args:
            use_rslora: Whether PEFT shall scale by ``alpha / sqrt(r)``.
            **fields: Other fields of the config, such as ``task_type`` and ``lora_dropout``; see ``to_lora_config``.

        Raises:
            ValueError: A field is one that the plan sets, or has PEFT train a module with a rank as a whole.
        """
        _check_fields(fields)
        blocks = {name: rank for name, rank in self.chosen.items() if kind_of(name) in BLOCK_KINDS}
        if not blocks and not self.beyond_plain:
            return self.to_lora_config(use_rslora=use_rslora, **fields)
        return HeteroLoraConfig(
            mode="off",
            shortcuts=sorted({kind_of(name) for name in blocks}),
            shortcut_ranks=blocks,
            shortcut_r=1,
            shortcut_alpha=self.scale,
            use_rslora=use_rslora,
            **self._linear_fields(use_rslora, fields),
        )

    def _linear_fields(self, use_rslora: bool, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return targets, ranks and alphas of the linear paths, what else has to train, and the fields given."""
        ranks = {self.modules[name]: rank for name, rank in self.chosen.items() if name in self.modules}
        others = [*self.modules.values(), *self.lookalikes]
        made = {**rank_fields(ranks, self.scale, use_rslora=use_rslora, others=others), **given}
        if self.heads and given.get("modules_to_save") is None:
            made["modules_to_save"] = self.heads
        saved = made.get("modules_to_save")
        check_not_saved(ranks, made.get("task_type"), saved)
        if isinstance(saved, (list, tuple)):
            made["modules_to_save"] = list(saved)  # PEFT extends it
        return made

    def plot(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write the ranks by block, beside the curve of predicted gain, as a picture; return its path.

        Args:
            path: A file name that ends in ``.png`` or ``.svg``.
            title: Heading above the picture.

        Raises:
            ValueError: The name ends otherwise.
            ModuleNotFoundError: matplotlib is not installed.
        """
        from rankwise.report.rank_map import draw_ranks

        return draw_ranks(self, path, title=title)

    def _repr_html_(self) -> str:
        """Show the ranks by block in a notebook."""
        from rankwise.report.rank_map import html_of

        return html_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        made = {**asdict(self), "picks": [pick._asdict() for pick in self.picks]}
        if self.time is not None:
            depths = [depth._asdict() for depth in self.time.depths]
            made["time"] = {**self.time._asdict(), "step": self.time.step.to_dict(), "depths": depths}
        return made

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RankPlan:
        """Return the plan that ``to_dict`` gave.

        Raises:
            ValueError: It is none; says what is missing, unknown or of another type.
        """
        _check_saved(cls, saved)
        picks = tuple(Pick(**pick) for pick in saved["picks"])
        time = saved.get("time")  # plans of earlier versions have none
        if time is not None:
            depths = tuple(Depth(**depth) for depth in time.get("depths", ()))  # the first plans with a time had none
            time = Time(**{**time, "step": StepTime.from_dict(time["step"]), "depths": depths})
        tuples = {name: tuple(saved.get(name, ())) for name in ("warnings", "lookalikes", "heads", "converted")}
        return cls(**{**saved, **tuples, "picks": picks, "time": time})


def check_not_saved(modules: Iterable[str], task_type: object, saved: Any) -> None:
    """Refuse ranks for what PEFT would train as a whole: it puts no LoRA there, and they would be lost unsaid.

    Args:
        modules: What has a rank.
        task_type: PEFT's task type.
        saved: What ``modules_to_save`` names.

    Raises:
        ValueError: Names them.
    """
    lost = saved_whole(modules, task_type, [saved] if isinstance(saved, str) else saved)
    if lost:
        task = getattr(task_type, "value", task_type)
        raise ValueError(
            f"the plan gives ranks to {', '.join(lost[:5])}, which task_type={task!r} "
            f"and modules_to_save={saved!r} have PEFT train as a whole, without LoRA: plan for modules without them "
            "(rankwise.rank_plan(..., target_modules=...)), or leave modules_to_save out"
        )


def _check_saved(cls: type[RankPlan], saved: Mapping[str, Any]) -> None:
    needed = {field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING}
    missing = sorted(needed - set(saved))
    unknown = sorted(set(saved) - {field.name for field in fields(cls)})
    wrong = wrong_field(cls, saved, time=Any)
    if missing:
        wrong = f"it lacks {', '.join(missing)}"
    elif unknown:
        wrong = f"it has {', '.join(unknown)}, which no plan of this version has: a newer one may have written it"
    if wrong is not None:
        raise ValueError(f"this is no plan as RankPlan.to_dict() gives it: {wrong}")


def _check_fields(given: Mapping[str, Any]) -> None:
    """Refuse fields that the plan sets, and those that PEFT passes over where modules are named in full."""
    for name, value in given.items():
        if name in SET_BY_PLAN:
            raise ValueError(f"{name}={value!r:.80} can't be given, the plan says it: {SET_BY_PLAN[name]}")
