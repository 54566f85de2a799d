"""``AllocationCallback``: tells a search what only Trainer knows."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.distributed import rank, world_size
from rankwise.paths.path_set import PathSet, path_sets
from rankwise.scores.probe import Batch, ComputeLoss
from rankwise.search.checkpoint import load_search, save_search
from rankwise.search.listener import Training, warn_if_idle
from rankwise.search.listeners import make_listener
from rankwise.seeds import stable_seed

logger = logging.getLogger("rankwise")
CLAIMS: weakref.WeakKeyDictionary[PathSet, AllocationCallback] = weakref.WeakKeyDictionary()


class AllocationCallback(TrainerCallback):
    """Brings epochs, the length of training, probe batches, logs and checkpoints to a search.

    ``import rankwise`` adds one to every Trainer, TRL's included, that does nothing for other models. Add one yourself
    for what it can't guess.

    Args:
        compute_loss: Called with (model, batch), for losses that the model does not compute itself.
        resume_from: The checkpoint folder whose search to continue, where it is not the one that the adapter's weights
            were loaded from.
        measure: Called with the model before and after each scheduled edit of LoR2C; what it returns goes into the
            history. The model is in evaluation mode then, without gradients, and everything is put back afterwards.

    Raises:
        ValueError: When training begins: the model has no rankwise paths.
        FileNotFoundError: When training resumes: the checkpoint holds no search.
    """

    required = True

    def __init__(
        self,
        compute_loss: ComputeLoss | None = None,
        resume_from: str | Path | None = None,
        measure: Callable[[nn.Module], float] | None = None,
    ) -> None:
        self.compute_loss = compute_loss
        self.measure = measure
        self.resume_from = resume_from
        self._started: weakref.WeakSet[PathSet] = weakref.WeakSet()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Claim the model's searches; one given by the user goes before the automatic one."""
        if args.n_gpu > 1 and self._searchable(model):
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would run torch.nn.DataParallel, whose replicas can't be searched: "
                "start with accelerate launch or torchrun, or show this process one GPU"
            )
        for paths in self._searchable(model):  # Trainer asks its own callbacks before the user's
            CLAIMS[paths] = self
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
                listener = make_listener(model, paths, self._training(args, state, **kwargs))
                listener.automatic = True
            if state.global_step:
                load_search(listener, self.resume_from or _checkpoint_folder(args, state, paths))
            elif not listener.begun:
                listener.begin()

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any) -> None:
        """Add the enabled and contributing parameters to the logs."""
        for paths in self._claimed(model):
            if logs is not None:
                counts = paths.counts()
                logs.update({f"rankwise/{name}": counts[name] for name in ("enabled", "contributing")})

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write the search beside the checkpoint's adapter."""
        for paths in self._claimed(model):
            if paths.session.listener is not None:
                save_search(paths.session.listener, _checkpoint_folder(args, state, paths))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Say loudly if no search ever ran, and end each search."""
        for paths in self._claimed(model):
            warn_if_idle(paths)
            if paths.session.listener is not None:
                paths.session.listener.close()
            del CLAIMS[paths]

    def _searchable(self, model: Any) -> list[PathSet]:
        try:
            sets = path_sets(model)
        except ValueError:
            if self.required:
                raise
            return []
        return [paths for paths in sets.values() if paths.config.acts and paths.trains]

    def _claimed(self, model: Any) -> list[PathSet]:
        return [paths for paths, callback in list(CLAIMS.items()) if callback is self and _has(model, paths)]

    def _training(self, args: Any, state: Any, *, optimizer: Any, train_dataloader: Any, **_: Any) -> Training:
        """Gather what Trainer knows."""
        sized = isinstance(train_dataloader, DataLoader) and hasattr(train_dataloader.dataset, "__len__")
        scaler = getattr(optimizer, "scaler", None)  # accelerate's wrapper has one, torch's optimizers don't
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        return Training(
            steps_per_epoch=math.ceil(len(train_dataloader) / args.gradient_accumulation_steps) if sized else None,
            total_steps=state.max_steps,
            batches=self._batches(train_dataloader, args) if sized else None,
            compute_loss=self.compute_loss,
            autocast=partial(torch.autocast, args.device.type, dtype=dtype) if dtype else nullcontext,
            loss_scale=scaler.get_scale if scaler is not None else None,
            measure=self.measure,
        )

    def _batches(self, dataloader: DataLoader[Any], args: Any) -> Any:
        batches = partial(probe_batches, dataloader, args.per_device_train_batch_size)
        if self.compute_loss is None and not _has_labels(dataloader):
            logger.warning(
                "the training batches have no labels that the model takes, so the first search can't probe: it runs "
                "after score_batches steps; rankwise.AllocationCallback(compute_loss=...) makes a probe possible"
            )
            return None
        return batches


class AutomaticAllocationCallback(AllocationCallback):
    """The one that every Trainer gets; it leaves models without rankwise paths alone."""

    required = False


def probe_batches(
    dataloader: DataLoader[Any], batch_size: int, config: HeteroLoraConfig, search: int
) -> Iterator[Batch]:
    """Yield a search's probe batches, drawn by (seed, search) or always the first ones; the loader is not touched.

    Each process yields its own share.

    Args:
        dataloader: The training loader, for its dataset and collator.
        batch_size: Examples in a batch.
        config: ``score_batches``, ``probe_data`` and ``seed``.
        search: Number of the search.
    """
    dataset: Any = dataloader.dataset
    wanted = min(len(dataset), config.score_batches * batch_size * world_size())
    if config.probe_data == "fixed":
        indices: Iterable[int] = range(wanted)
    else:
        generator = np.random.default_rng(stable_seed(config.seed, "probe", search))
        indices = generator.permutation(len(dataset))[:wanted]
    own = [int(index) for index in indices][rank() :: world_size()]
    for start in range(0, len(own), batch_size):
        yield dataloader.collate_fn([dataset[index] for index in own[start : start + batch_size]])


def _has_labels(dataloader: DataLoader[Any]) -> bool:
    with torch.random.fork_rng(devices=[]):
        dataset: Any = dataloader.dataset
        batch: Batch = dataloader.collate_fn([dataset[0]]) if len(dataset) else {}
    return any(key in batch for key in ("labels", "label", "start_positions"))


def _has(model: Any, paths: PathSet) -> bool:
    return any(paths is own for own in path_sets(model).values())


def _checkpoint_folder(args: Any, state: Any, paths: PathSet) -> Path:
    """Return the folder of this step's checkpoint: where the adapter was last read or written, if that is one."""
    name = f"checkpoint-{state.global_step}"
    if paths.session.folder is not None and name in paths.session.folder.parts:
        return paths.session.folder
    folder = Path(args.output_dir) / name
    return folder if paths.adapter == "default" else folder / paths.adapter


def register_with_trainer() -> None:
    """Give every Trainer made from now on an ``AutomaticAllocationCallback``, once."""
    callbacks: list[type[TrainerCallback]] = DEFAULT_CALLBACKS  # type: ignore[assignment]
    if AutomaticAllocationCallback not in callbacks:
        callbacks.append(AutomaticAllocationCallback)
