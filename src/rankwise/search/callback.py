"""``AllocationCallback``: tells a search what only Trainer knows."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.trainer_utils import get_last_checkpoint, has_length

from rankwise.errors import called
from rankwise.paths.path_set import PathSet, holders
from rankwise.planning.options import PlanOptions, choice_from
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.probe import Autocast, ComputeLoss
from rankwise.search.checkpoint import STATE, load_search, save_search
from rankwise.search.listener import Training, warn_if_idle
from rankwise.search.listeners import make_listener
from rankwise.search.logged import draw_at_the_end, figures
from rankwise.search.rank_search import check_not_owned, check_plan, choose_ranks_, restore_ranks_, undecided_error
from rankwise.search.trainer import bar_of_passes, current_run, obstacle, probe_batches, wrap_trainer

CLAIMS: weakref.WeakKeyDictionary[PathSet, AllocationCallback] = weakref.WeakKeyDictionary()


class AllocationCallback(TrainerCallback):
    """Brings epochs, the length of training, probe batches, logs and checkpoints to a search.

    ``import rankwise`` adds one to every Trainer, TRL's included, that does nothing for other models. Add one yourself
    for what it can't guess.

    Args:
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        resume_from: The checkpoint folder whose search to continue, where it is not the one that the adapter's weights
            were loaded from.
        measure: Called with the model before and after each scheduled edit of LoR2C; what it returns goes into the
            history. The model is in evaluation mode then, without gradients, and everything is put back afterwards.
        draw_losses: For losses that the model does not compute itself, with ``proxy="newton"`` or
            ``granularity="rank"``; see ``rankwise.rank_plan``.
        plan: Options of ``rankwise.rank_plan`` for ``granularity="rank"``: ``{"halves": False}``.

    A model in which several parts are adapted has a search for each; their state lies in folders by the parts' names.

    Raises:
        ValueError: ``plan`` has a name or value that is not allowed. When training begins: the model has no rankwise
            paths, none whose ranks ``plan`` could be for, or it would be trained in a way that can't be
            searched (``torch.nn.DataParallel``, DeepSpeed).
        FileNotFoundError: When training resumes: the checkpoint holds no search.
    """

    required = True

    def __init__(
        self,
        compute_loss: ComputeLoss | None = None,
        resume_from: str | Path | None = None,
        measure: Callable[[nn.Module], float] | None = None,
        *,
        draw_losses: DrawLosses | None = None,
        plan: PlanOptions | None = None,
    ) -> None:
        choice_from(plan, seed=0)
        self.compute_loss = compute_loss
        self.draw_losses = draw_losses
        self.plan = plan
        self.measure = measure
        self.resume_from = resume_from
        self._started: weakref.WeakSet[PathSet] = weakref.WeakSet()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Claim the model's searches; one given by the user goes before the automatic one."""
        searchable = self._searchable(model)
        check_plan(self.plan, [paths.config for paths in _folders(model)])
        for paths in searchable:
            if paths.config.undecided:  # a Trainer whose own train() does not call the one that chooses
                raise undecided_error(paths.adapter)
        if searchable and (args.deepspeed or args.deepspeed_plugin):
            raise ValueError(
                "DeepSpeed steps parameters of its own, flattened and perhaps sharded, so a search sees neither its "
                "steps nor keeps paths that are off still: train with DDP or FSDP2 (accelerate launch, torchrun), or "
                "set mode='off' (LoR2C: no merges and injections)"
            )
        if args.n_gpu > 1 and searchable:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would run torch.nn.DataParallel, whose replicas can't be searched: "
                "start with accelerate launch or torchrun, or show this process one GPU"
            )
        run = current_run()
        for paths in searchable:  # Trainer asks its own callbacks before the user's
            CLAIMS[paths] = self
            if run is not None:
                run.begin(paths)
        self._started.clear()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin, or resume, each claimed search before the first step."""
        for paths in self._claimed(model):
            if paths in self._started:
                continue
            self._started.add(paths)
            listener = paths.session.listener
            if (
                listener is None or listener.automatic or not listener.knows_epochs
            ):  # one of an interrupted run is stale
                listener = make_listener(model, paths, self._training(args, state, paths, **kwargs))
                listener.automatic = True
            if state.global_step:
                load_search(listener, self._resumed_from(args, state, model, paths))
            elif not listener.begun:
                with bar_of_passes(args):  # the first search; before the first step nothing else moves
                    listener.begin()

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any) -> None:
        """Add what was decided to the logs, whoever claimed the search: the automatic one comes before the loggers."""
        for paths in _claimed_by_any(model) if logs is not None else []:
            logs.update(figures(paths))

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write the search beside the checkpoint's adapter."""
        for paths in self._claimed(model):
            if paths.session.listener is not None:
                save_search(paths.session.listener, _checkpoint_folder(args, state, model, paths))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Say loudly if no search ever ran, and end each search."""
        for paths in self._claimed(model):
            warn_if_idle(paths)
            if paths.session.listener is not None:
                paths.session.listener.close()
            del CLAIMS[paths]

    def _searchable(self, model: Any) -> list[PathSet]:
        found = holders(model)
        if self.required and not found:
            raise ValueError(
                f"an AllocationCallback was given to a Trainer whose {type(model).__name__} has no rankwise paths; "
                "make some with peft.get_peft_model(model, rankwise.HeteroLoraConfig(...)), or leave the callback out"
            )
        sets = [paths for holder in found.values() for paths in holder.rankwise_paths.values()]
        return [paths for paths in sets if paths.config.acts and paths.trains]

    def _claimed(self, model: Any) -> list[PathSet]:
        present = _folders(model)
        return [paths for paths, callback in list(CLAIMS.items()) if callback is self and paths in present]

    def _training(
        self, args: Any, state: Any, paths: PathSet, *, optimizer: Any, train_dataloader: Any, **_: Any
    ) -> Training:
        """Gather what Trainer knows."""
        reason = None
        if paths.config.policy() is not None:
            run = current_run()
            labels = (run.trainer.label_names if run is not None else args.label_names) or []
            reason = obstacle(train_dataloader, labels, own_loss=self.compute_loss is not None)
        length = len(train_dataloader) if has_length(train_dataloader) else None
        size = state.train_batch_size if args.auto_find_batch_size else args.per_device_train_batch_size
        scaler = getattr(optimizer, "scaler", None)  # accelerate's wrapper has one, torch's optimizers don't
        return Training(
            steps_per_epoch=math.ceil(length / args.gradient_accumulation_steps) if length else None,
            total_steps=state.max_steps,
            batches=partial(probe_batches, train_dataloader, size) if reason is None else None,
            obstacle=reason,
            compute_loss=self.compute_loss,
            draw_losses=self.draw_losses,
            autocast=_autocast(args),
            loss_scale=scaler.get_scale if scaler is not None else None,
            measure=self.measure,
        )

    def _resumed_from(self, args: Any, state: Any, model: Any, paths: PathSet) -> Path:
        if self.resume_from is None:
            return _checkpoint_folder(args, state, model, paths)
        folder = Path(self.resume_from)
        own = folder / _folders(model)[paths]
        return own if (own / STATE).is_file() else folder


class AutomaticAllocationCallback(AllocationCallback):
    """The one that every Trainer gets; it leaves models without rankwise paths alone."""

    required = False

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Draw for the loggers, which the callbacks that come after this one close."""
        run = current_run()
        if run is not None:
            for paths in _claimed_by_any(model):
                draw_at_the_end(run.trainer, paths, state.global_step)
        super().on_train_end(args, state, control, model, **kwargs)


def _claimed_by_any(model: Any) -> list[PathSet]:
    present = _folders(model)
    return [paths for paths in list(CLAIMS) if paths in present]


def _folders(model: Any) -> dict[PathSet, Path]:
    """Return where each search's state lies in a checkpoint: as PEFT does it, the default adapter's on top."""
    found = holders(model)
    return {
        paths: Path(name if len(found) > 1 else "", "" if adapter == "default" else adapter)
        for name, holder in found.items()
        for adapter, paths in holder.rankwise_paths.items()
    }


def _checkpoint_folder(args: Any, state: Any, model: Any, paths: PathSet) -> Path:
    """Return the folder of this step's checkpoint: where the adapter was last read or written, if that is one."""
    name = f"checkpoint-{state.global_step}"
    if paths.session.folder is not None and name in paths.session.folder.parts:
        return paths.session.folder
    return Path(args.output_dir) / name / _folders(model)[paths]


def _autocast(args: Any) -> Autocast:
    """Return what makes the context of the forward passes of a training with these arguments."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return partial(torch.autocast, args.device.type, dtype=dtype) if dtype else nullcontext


def choose_ranks_before_training(trainer: Trainer, resume: str | bool | None) -> None:
    """Give candidates of ``granularity="rank"`` their ranks, chosen on training batches or as a checkpoint has them.

    Trainer makes its optimizer after this and tells its callbacks afterwards only.

    Args:
        trainer: Who is about to train.
        resume: The checkpoint that training goes on from; True for the newest in the output folder.

    Raises:
        ValueError: This training can't have a probe, or its optimizer exists already and owns the candidates.
    """
    folders = _folders(trainer.model)
    for paths in [paths for paths in folders if paths.config.undecided and paths.trains]:
        if resume:
            folder = get_last_checkpoint(trainer.args.output_dir) if resume is True else resume
            if folder is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, and {trainer.args.output_dir} holds no checkpoint: leave it out to "
                    "start anew, or give the checkpoint's folder"
                )
            if trainer.optimizer is not None:
                check_not_owned(paths, trainer.optimizer)
            restore_ranks_(paths, Path(folder) / folders[paths])
            continue
        each = [c for c in trainer.callback_handler.callbacks if isinstance(c, AllocationCallback)]
        given = each[-1] if each else AllocationCallback()  # the user's own comes after the automatic one
        dataloader = trainer.get_train_dataloader()
        reason = obstacle(dataloader, trainer.label_names or [], own_loss=given.compute_loss is not None)
        if reason is not None:
            raise ValueError(
                f"granularity='rank' chooses ranks by a probe before training, which can't be had: {reason}; or plan "
                "beforehand with rankwise.rank_plan and train plan.to_config()"
            )
        assert isinstance(trainer.model, nn.Module)
        with bar_of_passes(trainer.args), called("rankwise.AllocationCallback", mapped=True):
            choose_ranks_(
                trainer.model,
                paths,
                probe_batches(dataloader, trainer.args.per_device_train_batch_size, paths.config, 0),
                optimizer=trainer.optimizer,
                compute_loss=given.compute_loss,
                draw_losses=given.draw_losses,
                autocast=_autocast(trainer.args),
                plan=given.plan,
            )


def register_with_trainer() -> None:
    """Give every Trainer made from now on an ``AutomaticAllocationCallback``, and let it say that it trains, once."""
    wrap_trainer(choose_ranks_before_training)
    callbacks: list[type[TrainerCallback]] = DEFAULT_CALLBACKS  # type: ignore[assignment]
    if AutomaticAllocationCallback not in callbacks:
        callbacks.append(AutomaticAllocationCallback)
