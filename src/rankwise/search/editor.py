"""Merges and injections on their schedule."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rankwise.configs.lor2c import Lor2cConfig
from rankwise.distributed import check_same_everywhere
from rankwise.edits import apply_to_paths_
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import trainable_of
from rankwise.rules.edit_policy import Candidate, choose_injection, choose_merge
from rankwise.rules.edit_schedule import EditSchedule
from rankwise.rules.edits import Disable, Edit
from rankwise.rules.records import EditRecord, edits
from rankwise.rules.schedule import check_length
from rankwise.scores.probe import untouched
from rankwise.scores.spectrum import singular_values, tail_share
from rankwise.search.listener import Listener, Training

logger = logging.getLogger("rankwise")


class Editor(Listener):
    """Makes the edits of one LoR2C adapter when they are due, between optimizer steps.

    Trainer's callback makes one that knows epochs. In another loop the first training forward makes one, for
    ``edit_unit="steps"`` with ``total_steps`` in the config; make it yourself to go by epochs::

        rankwise.Editor(model, optimizer, steps_per_epoch=len(loader), total_steps=epochs * len(loader))

    What is done is done: edits in the history of an adapter that is trained on, loaded or in a second
    ``trainer.train()``, count; only those that are left are spread over the new training.

    ``torch.compile(model, fullgraph=True)`` needs one that was made before: making it is a graph break.

    Args:
        model: A model with LoR2C paths; under DDP the unwrapped one.
        optimizer: The optimizer to listen to; any that owns the paths' parameters if left out.
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Optimizer steps of the whole training.
        measure: Called with the model before and after each edit; what it returns goes into the record. The model is in
            evaluation mode then, without gradients, and everything is put back afterwards.
        adapter: The adapter to edit; the active one if left out.

    Raises:
        ValueError: The adapter is no LoR2C, the length of training is unknown, is no whole number of epochs, or leaves
            no room for the edits, or there are fewer blocks than edits.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        measure: Callable[[nn.Module], float] | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(model, optimizer, adapter=adapter)
        self._measure = measure
        config = self.config
        if not isinstance(config, Lor2cConfig):
            raise ValueError(
                f"adapter {self.paths.adapter!r} is a {type(config).__name__}, which has no scheduled edits: its "
                "search is run by rankwise.Allocator; edits by hand are made by rankwise.apply_"
            )
        check_length("steps_per_epoch", steps_per_epoch)
        check_length("total_steps", total_steps)
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps or config.total_steps
        self.schedule = self._schedule()
        self.listen()
        self.begun = True  # there is nothing to wait for

    @classmethod
    def of(cls, model: nn.Module, adapter: str, training: Training) -> Editor:
        """Make one for an adapter, with what the training loop knows."""
        return cls(
            model,
            steps_per_epoch=training.steps_per_epoch,
            total_steps=training.total_steps,
            measure=training.measure,
            adapter=adapter,
        )

    def _schedule(self) -> EditSchedule | None:
        """Return when the edits that an earlier training left are due; None where it left none."""
        config, before = self.config, edits(self.paths.history[: self.earlier])
        merges, injections = (
            max(0, wanted - sum(record.due == kind for record in before))
            for kind, wanted in (("merge", config.merges), ("inject", config.injections))
        )
        if not merges + injections:
            return None
        return EditSchedule(self._length(config), merges, injections, config.edit_unit, config.separate_edits)

    def _length(self, config: Lor2cConfig) -> int:
        """Return the length of training in the config's unit."""
        if self.total_steps is None:
            raise ValueError(
                f"merges={config.merges}, injections={config.injections} are spread over training, but its length is "
                "unknown here: set edit_unit='steps' and total_steps in the config, train with transformers' Trainer, "
                "or make rankwise.Editor(model, optimizer, steps_per_epoch=..., total_steps=...)"
            )
        if config.edit_unit == "steps":
            return self.total_steps
        if self.steps_per_epoch is None or self.total_steps % self.steps_per_epoch:
            raise ValueError(
                f"edit_unit='epochs' needs a whole number of epochs, but training has {self.total_steps} steps and an "
                f"epoch {self.steps_per_epoch or 'an unknown number'} of them: set edit_unit='steps'"
            )
        return self.total_steps // self.steps_per_epoch

    @property
    def knows_epochs(self) -> bool:
        """Whether it was told the length of an epoch, as a callback tells it."""
        return self.steps_per_epoch is not None

    @property
    def planned_changes(self) -> int:
        """How many edits there will be."""
        return int(max(0, self.config.edits - self.edits_due))

    @property
    def edits_due(self) -> int:
        """How many edits were due so far, those of earlier trainings among them."""
        return len(edits(self.paths.history))

    def after_step(self) -> None:
        """Count the step, and edit if that is due."""
        super().after_step()
        size = 1 if self.config.edit_unit == "steps" else self.steps_per_epoch
        if self.schedule is not None and size is not None and self.step % size == 0:
            merge, inject = self.schedule.due(self.step // size)
            if merge and self._left("merge"):
                self.edit("merge")
            if inject and self._left("inject"):  # after the merge, on new scores
                self.edit("inject")

    def _left(self, kind: str) -> bool:
        """Tell whether an edit of a kind is still to be made: training may be longer than its schedule was made for."""
        wanted: int = self.config.merges if kind == "merge" else self.config.injections
        return sum(record.due == kind for record in edits(self.paths.history)) < wanted

    def edit(self, kind: str) -> EditRecord:
        """Score the paths, choose, edit, and return the record that was added to the history.

        Args:
            kind: ``"merge"`` or ``"inject"``.
        """
        began = time.perf_counter()
        scores = self.scores()
        before = [path.name for path in self.paths.enabled]
        made = self._choose(kind, scores)
        check_same_everywhere(
            [repr(edit) for edit in made], f"the {kind} at step {self.step}", self.paths.resident[0].lora_B.device
        )
        # What the user's own measurement takes is not what the edit costs.
        seconds = time.perf_counter() - began
        measured = [self._measured(made)]
        began = time.perf_counter()
        apply_to_paths_(self.paths, made, self.optimizer)
        seconds += time.perf_counter() - began
        measured.append(self._measured(made))
        record = EditRecord(
            step=self.step,
            due=kind,
            edits=made,
            metric=self.config.metric,
            scores=scores,
            unscored=[name for name, score in scores.items() if score is None],
            before=before,
            chosen=[path.name for path in self.paths.enabled],
            counts={**self.paths.counts(), "head": trainable_of(self.beside)},
            seconds=seconds,
            measured=measured,
        )
        self.paths.history.append(record)
        self.seen = self.edits_due
        logger.info("step %d: %s", self.step, ", ".join(map(repr, made)) or f"no candidate for a {kind}: skipped")
        return record

    def _measured(self, edits: list[Edit]) -> float | None:
        if self._measure is None or not edits:
            return None
        with untouched(self.model), torch.no_grad():
            found = float(self._measure(self.model.eval()))
        return found if math.isfinite(found) else None

    def scores(self) -> dict[str, float | None]:
        """Return the score of each ``layer`` path that trains; None where its matrix is all zero or not finite."""
        paths = [path for path in self.paths.enabled if path.kind == "layer"]
        return {path.name: self._score(path) for path in paths}

    def _score(self, path: LowRankPath) -> float | None:
        if not all(bool(parameter.isfinite().all()) for parameter in path.parameters):
            return None
        try:
            sigma = singular_values(path)
        except RuntimeError:  # finite factors may have a product that is not
            return None
        if not bool(sigma.any()):
            return None
        score = tail_share(sigma, self.config.sfs_k) if self.config.metric == "sfs" else float(sigma.mean())
        return score if math.isfinite(score) else None

    def _choose(self, kind: str, scores: dict[str, float | None]) -> list[Edit]:
        config, paths = self.config, self.paths.paths
        candidates = [Candidate(name, *paths[name].blocks, score) for name, score in scores.items()]
        if kind == "inject":
            waiting = {path.blocks for path in self.paths.resident if path.kind == "linear" and not path.available}
            able = [c for c in candidates if config.deletes or (c.first, c.last) in waiting]
            injection = choose_injection(able, select=config.inject_select)
            return [injection] if injection is not None else []
        merge = choose_merge(
            candidates,
            select=config.merge_select,
            survivor=config.merge_survivor,
            max_span=config.max_span,
            injected=self.injected_blocks(),
            strict_neighbours=config.strict_neighbours,
        )
        if merge is None:
            return []
        span = f"layers.{paths[merge.first].blocks[0]}-{paths[merge.second].blocks[1]}.layer"
        return [merge, Disable(span)] if config.freeze_merged else [merge]

    def injected_blocks(self) -> set[int]:
        """Return the blocks whose path was replaced."""
        layers = [path for path in self.paths.resident if path.kind == "layer"]
        spanned = {block for p in layers if p.available for block in range(p.blocks[0], p.blocks[1] + 1)}
        return {path.built_block for path in layers if not path.available} - spanned

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        super().load_state_dict(state)
        self.schedule = self._schedule()

    def idleness(self) -> str | None:
        """Say that edits were asked for and some never came."""
        due = self.config.edits - max(self.seen, self.edits_due)
        if due <= 0:
            return None
        return (
            f"{due} of {self.config.edits} edits of adapter {self.paths.adapter!r} never came in {self.step} optimizer "
            f"steps of {self.total_steps}: training was cut short, or the optimizer does not own the paths' parameters"
        )
