"""The search under way: collects scores between optimizer steps and switches paths when one is due."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.distributed import check_same_everywhere
from rankwise.edits import apply_to_paths_
from rankwise.errors import called
from rankwise.passes import work
from rankwise.paths.path_set import path_set, trainable_of
from rankwise.planning.options import PlanOptions
from rankwise.rules.budget import resolve_budget, why_unspent
from rankwise.rules.edits import switches
from rankwise.rules.proxies import PASSES, PROXIES
from rankwise.rules.records import SearchRecord, searches
from rankwise.rules.schedule import FALLBACK_EVERY, Schedule
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import Autocast, Batch, ComputeLoss, model_loss, probe
from rankwise.scores.proxies import Scores, score_from_means, score_without_data
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import gradient_statistic
from rankwise.search.listener import Listener, Training
from rankwise.search.rank_search import check_plan, choose_ranks_, undecided_error

logger = logging.getLogger("rankwise")
Batches = Callable[[int], Iterable[Batch]]


class Allocator(Listener):
    """Runs the search of one adapter. Everything it does happens between optimizer steps.

    A training loop needs none of its own: the first training forward makes one that listens to whatever optimizer owns
    the paths' parameters, and Trainer's callback makes one that knows epochs. Make it yourself to say what a bare loop
    can't tell::

        rankwise.Allocator(model, optimizer, batches=loader, steps_per_epoch=len(loader))
        for batch in loader: ...  # as before

    What is done is done: an adapter that is trained on, loaded or in a second ``trainer.train()``, keeps its history. A
    static one that has searched does not search again; a dynamic one goes on searching, and its searches go on
    counting.

    Args:
        model: A model with rankwise paths; under DDP the unwrapped one.
        optimizer: The optimizer to listen to; any that owns the paths' parameters if left out.
        batches: Training batches to probe with: an iterable that can be iterated again, or a function of the search's
            number. Without them the first search waits until ``score_batches`` steps have been seen.
        steps_per_epoch: Optimizer steps in an epoch, for ``searches_per_epoch``.
        total_steps: Optimizer steps of the whole training, for ``stop_searching_at``.
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        draw_losses: For such losses with ``proxy="newton"`` or ``granularity="rank"``, see ``rankwise.rank_plan``.
        plan: Options of ``rankwise.rank_plan`` for ``granularity="rank"``: ``{"halves": False}``.
        autocast: Makes the context of a probe's forward pass, for training in mixed precision.
        loss_scale: Returns the factor that losses are scaled by, with a gradient scaler: ``scaler.get_scale``.
        adapter: The adapter to search; the active one if left out.

    Attributes:
        step: Optimizer steps done.
        begun: Whether the first forward pass has been seen, or a checkpoint loaded.

    Raises:
        ValueError: The model has no rankwise paths, or the config needs something that is not given here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        batches: Iterable[Batch] | Batches | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        compute_loss: ComputeLoss | None = None,
        draw_losses: DrawLosses | None = None,
        plan: PlanOptions | None = None,
        autocast: Autocast = nullcontext,
        loss_scale: Callable[[], float] | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(model, optimizer, adapter=adapter)
        self._batches = batches
        self._compute_loss, self._draw_losses = compute_loss or model_loss, draw_losses
        self._caller = "rankwise.Allocator"  # what the user calls to say something about a search
        self._autocast, self._loss_scale, self.tap_seconds = autocast, loss_scale, 0.0
        config = self.config
        if not isinstance(config, HeteroLoraConfig):
            raise ValueError(
                f"adapter {self.paths.adapter!r} is a {type(config).__name__}, which has no search: its edits are made "
                "by rankwise.Editor(model, optimizer, steps_per_epoch=..., total_steps=...)"
            )
        # First: choosing makes the paths anew, and leaves a config that switches nothing to what follows.
        check_plan(plan, [config])
        if config.undecided:
            self._choose_ranks(optimizer, plan)
        self.policy = config.switching()
        if config.acts and self._wants_probe and config.scoring == "probe" and batches is None:
            online = "" if config.proxy == "newton" else ", or set scoring='online'"
            raise ValueError(
                f"scoring='probe' with proxy={config.proxy!r} needs training batches: train with transformers' "
                f"Trainer or pass rankwise.Allocator(..., batches=...){online}"
            )
        self.schedule = Schedule(
            mode=config.mode,
            every=config.search_every,
            per_epoch=config.searches_per_epoch,
            steps_per_epoch=steps_per_epoch,
            first=self._first_step(),
            stop_at=config.stop_searching_at,
            total_steps=config.total_steps if total_steps is None else total_steps,
        )
        if self.schedule.falls_back:
            logger.info("the length of an epoch is unknown here: searching every %d optimizer steps", FALLBACK_EVERY)
        self.listen()

    def _choose_ranks(self, optimizer: Optimizer | None, plan: PlanOptions | None) -> None:
        """Make the one search of ``granularity="rank"`` at once; afterwards the config searches nothing."""
        batches = self._batches(0) if callable(self._batches) else self._batches
        # No falling back to the first training steps: by then the optimizer owns the candidates.
        if batches is None:
            raise undecided_error(self.paths.adapter)
        losses: Any = {"compute_loss": self._compute_loss, "draw_losses": self._draw_losses, "autocast": self._autocast}
        with called(self._caller, mapped=True):
            choose_ranks_(self.model, self.paths, batches, optimizer=optimizer, plan=plan, **losses)

    @classmethod
    def of(cls, model: nn.Module, adapter: str, training: Training) -> Allocator:
        """Make one for an adapter, with what the training loop knows.

        Raises:
            ValueError: The config insists on a probe, and this training can't have one.
        """
        config = path_set(model, adapter).config
        if training.obstacle is not None and config.scoring == "probe" and cls._needs_batches(config.proxy):
            raise ValueError(
                f"scoring='probe' can't be had: {training.obstacle}"
                + ("" if config.proxy == "newton" else ", and scoring='online' scores by the steps of training")
            )
        made = cls(
            model,
            batches=partial(training.batches, config) if training.batches is not None else None,
            steps_per_epoch=training.steps_per_epoch,
            total_steps=training.total_steps,
            compute_loss=training.compute_loss,
            draw_losses=training.draw_losses,
            autocast=training.autocast,
            loss_scale=training.loss_scale,
            adapter=adapter,
        )
        made._caller = "rankwise.AllocationCallback"
        if training.obstacle is not None and made._wants_probe:
            logger.warning(
                "%s, so the first search can't probe: it runs after score_batches steps and scores by the losses of "
                "training; %s",
                *training.obstacle.split("; ", 1),
            )
        return made

    @property
    def knows_epochs(self) -> bool:
        """Whether it was told the length of training, as a callback tells it."""
        return self.schedule.steps_per_epoch is not None or self.schedule.total_steps is not None

    @property
    def searches(self) -> int:
        """Searches done, those of earlier trainings among them."""
        return len(searches(self.paths.history))

    @property
    def _wants_probe(self) -> bool:
        """Whether the searches to come would probe if there were batches."""
        return self._needs_batches(self.config.proxy) and not self.done

    @property
    def done(self) -> bool:
        """Whether there is nothing left to search: the one search of a static adapter has been."""
        return self.config.final and self.searches > 0

    @property
    def planned_changes(self) -> int:
        """How many searches there will be; 100 where the length of training is unknown."""
        total = self.schedule.total_steps
        if total is None:
            return 100
        count, step = 0, self._next_search(0)
        while step is not None and step < total:
            count, step = count + 1, self._next_search(step + 1)
        return count

    @property
    def limit(self) -> int:
        """The budget as a number, of the candidates as built: an edit does not change it."""
        limit: int = resolve_budget(self.config.budget, self.paths.built_costs(), self.config.budget_unit)
        return limit

    def _first_step(self) -> int:
        """Return the step before which the first search comes: at once, or when enough steps have been seen."""
        # Counted from what an earlier training left, not from now: a resumed run must come to the same first step.
        config, before = self.config, len(searches(self.paths.history[: self.earlier]))
        if self._batches is not None or not self._needs_batches(self.policy.proxy_of(before)):
            return 0
        return int(min(config.score_batches, config.search_every or config.score_batches))

    @staticmethod
    def _needs_batches(proxy: str) -> bool:
        return PROXIES[proxy].needs in ("gradients", "curvature")

    def begin(self) -> None:
        """Search before the first step if that is due, and open the next search's window."""
        super().begin()
        self._search_if_due()

    def fold(self) -> None:
        """Take the statistics of the step that is being made."""
        recorder = self.paths.session.recorder
        if isinstance(recorder, StatisticRecorder):
            recorder.fold(self._loss_scale() if self._loss_scale is not None else 1.0)

    def after_step(self) -> None:
        """Count the step, and search if that is due."""
        super().after_step()
        self._search_if_due()

    def _search_if_due(self) -> None:
        # The history tells whether this step's search was made, as it survives a checkpoint taken right after it.
        if self._next_search(self.step) == self.step and self._last_search_step() != self.step:
            self.search()
        self._open_window()

    def _next_search(self, step: int) -> int | None:
        return None if self.done else self.schedule.next_search(step)

    def _last_search_step(self) -> int | None:
        """Return the step of the last search of this training."""
        own = searches(self.paths.history[self.earlier :])
        return own[-1].step if own else None

    def _open_window(self) -> StatisticRecorder | None:
        """Record the ``score_batches`` steps before the next search, where they are what it scores by."""
        proxy = self.policy.proxy_of(self.searches)
        # A window opens only as long before a search as it has to be: each recorded step costs time.
        due = self._next_search(self.step + 1 if self._last_search_step() == self.step else self.step)
        online = self.config.scoring == "online" and self._needs_batches(proxy)
        if due is None or not online or due - self.step > self.config.score_batches:
            self.paths.session.recorder = None
            return None
        # Open already; a new one would lose the steps it has seen.
        if isinstance(self.paths.session.recorder, StatisticRecorder):
            return self.paths.session.recorder
        statistic = gradient_statistic(
            proxy, self.config.score_on, self.paths.paths.values(), sketch=self.config.sketch, seed=self.config.seed
        )
        recorder = StatisticRecorder(statistic)
        self.paths.session.recorder = recorder
        return recorder

    def idleness(self) -> str | None:
        """Say that a search was asked for and none ever ran."""
        if not self.config.acts or max(self.seen, self.searches):
            return None
        return (
            f"mode={self.config.mode!r} asked for a search of adapter {self.paths.adapter!r}, but none ran in "
            f"{self.step} optimizer steps (the first is due before step {self.schedule.first}): the "
            "allocation is still the random one drawn at the start. If steps were taken, the optimizer does not own "
            "the paths' parameters; if training is short, lower score_batches or give rankwise.Allocator(..., "
            "batches=...)"
        )

    @torch.no_grad()
    def search(self) -> SearchRecord:
        """Score all paths, choose, switch, and return the record that was added to the history.

        Raises:
            ValueError: The scores need training batches, and there are none.
        """
        began = time.perf_counter()
        how, scores = self._scores()
        before = {path.name for path in self.paths.enabled}
        costs, limit = self.paths.costs(), self.limit
        chosen = self.policy.choose(scores.values, costs, self.searches, limit=limit)
        if chosen is None:
            warnings.warn(
                f"no path has a finite {self.policy.proxy} score at step {self.step}: the allocation stays as it is; "
                "look for NaN or overflow in the loss",
                stacklevel=2,
            )
            # Keeping what is on beats choosing by nothing; training goes on, the record says that no score was finite.
            chosen = before
        names = [name for name in costs if name in chosen]
        # Before the switch, not after: processes that disagree must stop while all of them are still whole.
        check_same_everywhere(names, f"the allocation at step {self.step}", self.paths.resident[0].lora_A.device)
        apply_to_paths_(self.paths, switches(before, chosen), self.optimizer)
        unspent = why_unspent(names, self.policy.prices(costs), limit)
        record = self._record(how, scores, names, before, unspent, time.perf_counter() - began)
        self.paths.history.append(record)
        self.seen = self.searches
        logger.info("search %d at step %d: %d paths on", record.search, self.step, len(names))
        if unspent:
            logger.info("search %d: %s", record.search, unspent)
        return record

    def _scores(self) -> tuple[str, Scores]:
        """Return how the scores were had, and the scores."""
        proxy, config = self.policy.proxy_of(self.searches), self.config
        # Closed before a probe runs: its passes are no training steps and must not be counted among them.
        recorder, self.paths.session.recorder = self.paths.session.recorder, None
        if PROXIES[proxy].needs == "nothing":
            return "random", score_without_data(proxy, list(self.paths.paths), config.seed)
        if isinstance(recorder, StatisticRecorder):
            self.tap_seconds += recorder.seconds
            # A window with no step in it (training just begun) is none: probe if that can be had.
            if recorder.steps:
                return "online", score_from_means(proxy, self.paths.paths, recorder.means())
        batches = self._batches(self.searches) if callable(self._batches) else self._batches
        if batches is None and proxy != "synflow":
            raise ValueError(
                f"a search by {proxy!r} needs gradients, but no training step was seen since the last one and "
                "there are no batches to probe with: pass rankwise.Allocator(..., batches=...)"
            )
        passes = PASSES[PROXIES[proxy].needs] * config.score_batches
        # A search runs without gradients, its probe is the exception.
        what = f"scoring {len(self.paths.paths)} paths by {proxy}"
        with torch.enable_grad(), work(what, passes), called(self._caller):
            scores = probe(
                self.model,
                self.paths,
                islice(batches or (), config.score_batches),
                proxy=proxy,
                score_on=config.score_on,
                compute_loss=self._compute_loss,
                draw_losses=self._draw_losses,
                autocast=self._autocast,
                mode=config.probe_mode,
                sketch=config.sketch,
                synflow_loss=config.synflow_loss,
                seed=config.seed,
            )
        return "probe", scores

    def _record(
        self, how: str, scores: Scores, chosen: list[str], before: set[str], unspent: str, seconds: float
    ) -> SearchRecord:
        # What taps cost since the last search belongs to this one.
        tap_seconds, self.tap_seconds = self.tap_seconds, 0.0
        return SearchRecord(
            step=self.step,
            search=self.searches,
            how=how,
            proxy=self.policy.proxy_of(self.searches),
            score_on=self.config.score_on,
            scores={name: value if math.isfinite(value) else None for name, value in scores.values.items()},
            unscored=list(scores.unscored),
            chosen=chosen,
            switched_on=sorted(set(chosen) - before),
            switched_off=sorted(before - set(chosen)),
            counts={**self.paths.counts(), "head": trainable_of(self.beside)},
            budget=self.config.budget,
            unspent=unspent,
            seconds=seconds,
            tap_seconds=tap_seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed search needs that is not in the adapter's tensors: counters, history, sums."""
        recorder = self.paths.session.recorder
        open_window = recorder if isinstance(recorder, StatisticRecorder) else None
        return {
            **super().state_dict(),
            "searches": self.searches,
            "tap_seconds": self.tap_seconds + (open_window.seconds if open_window else 0.0),
            "window_steps": open_window.steps if open_window else 0,
            "sums": dict(open_window.tensors()) if open_window else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        super().load_state_dict(state)
        # The checkpoint's history was loaded after this object was made.
        self.schedule = replace(self.schedule, first=self._first_step())
        self.tap_seconds = state["tap_seconds"]
        self.paths.session.recorder = None
        recorder = self._open_window()
        if recorder is not None:
            devices = {name: path.lora_A.device for name, path in self.paths.paths.items()}
            recorder.restore(state["sums"], state["window_steps"], devices)
