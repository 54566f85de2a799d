"""What a callback is not told: which Trainer trains, since when, and whether a probe would see its loss."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.distributed import rank, world_size
from rankwise.passes import watched, watched_by
from rankwise.paths.low_rank_path import write_
from rankwise.paths.path_set import PathSet
from rankwise.paths.state import Status
from rankwise.rules.records import edits
from rankwise.scores.probe import Batch, same_draws
from rankwise.seeds import stable_seed

LOSS_OF_THE_MODEL = ("transformers.", "trl.trainer.sft_trainer")  # whose compute_loss is what the model returns
GIVE_LOSS = "rankwise.AllocationCallback(compute_loss=...) makes a probe possible"
GIVE_BATCHES = "rankwise.Allocator(model, batches=...) makes a probe possible"


class Run:
    """One call of ``Trainer.train``.

    Args:
        trainer: Who trains.
        resume: The checkpoint to resume from, as given.
    """

    def __init__(self, trainer: Trainer, resume: str | bool | None = None) -> None:
        self._trainer = weakref.ref(trainer)
        self.resume = resume
        self._began: weakref.WeakKeyDictionary[PathSet, tuple[int, list[Status]]] = weakref.WeakKeyDictionary()

    @property
    def trainer(self) -> Trainer:
        """Who trains."""
        trainer = self._trainer()
        assert trainer is not None
        return trainer

    def begin(self, paths: PathSet) -> None:
        """Note how an adapter was when training began; when it begins again, put that back.

        ``auto_find_batch_size`` begins again with smaller batches when memory runs out. Searches made until then don't
        count. Edits do: what they made of the adapter stays.
        """
        if paths not in self._began:
            statuses = [path.status for path in paths.resident]
            self._began[paths] = len(paths.history), statuses
            return
        length, statuses = self._began[paths]
        if edits(paths.history[length:]):
            return
        del paths.history[length:]
        for path, status in zip(paths.resident, statuses, strict=True):
            path.stage_(**status._asdict())
        write_(paths.resident)


_RUN: ContextVar[Run | None] = ContextVar("rankwise_run", default=None)


def current_run() -> Run | None:
    """Return the call of ``Trainer.train`` that is under way in this thread, if there is one."""
    return _RUN.get()


@contextmanager
def _running(trainer: Trainer, resume: str | bool | None) -> Iterator[None]:
    token = _RUN.set(Run(trainer, resume))
    try:
        yield
    finally:
        _RUN.reset(token)


def wrap_trainer(before: Callable[[Trainer, Any], None]) -> None:
    """Let ``Trainer.train`` say who trains for as long as it lasts, once; callbacks are not told.

    Args:
        before: Called with (trainer, checkpoint to resume from) before anything of the training is made but the model.
    """
    train, make_model = Trainer.train, Trainer.call_model_init
    if "rankwise" in train.__dict__:
        return

    @functools.wraps(train)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        resume = args[0] if args else kwargs.get("resume_from_checkpoint")
        with _running(self, resume):
            if self.model_init is None:
                before(self, resume)
            return train(self, *args, **kwargs)

    @functools.wraps(make_model)
    def made(self: Any, *args: Any, **kwargs: Any) -> nn.Module:
        model, run = make_model(self, *args, **kwargs), current_run()
        if run is not None and run.trainer is self:  # not the one that Trainer makes for itself, to have one
            self.model, self.optimizer = model, None  # as Trainer does with what this returns
            if self.place_model_on_device:
                self._move_model_to_device(model, self.args.device)
            before(self, run.resume)
        return model

    wrapped.__dict__["rankwise"] = True
    Trainer.train, Trainer.call_model_init = wrapped, made  # type: ignore[method-assign]


class _PassBar:
    """Transformers' kind of bar for the passes of a search."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show a bar, move it, take it away at the end."""
        if self.bar is None:
            self.bar = transformers.logging.tqdm(total=total or None, desc=what, leave=False)
        self.bar.update(done - self.bar.n)
        if done and done == total:
            self.bar.close()
            self.bar = None


@contextmanager
def bar_of_passes(args: Any) -> Iterator[None]:
    """Show how far the searches inside are, unless Trainer shows no bars or somebody else shows it.

    Args:
        args: ``TrainingArguments``.
    """
    hidden = args.disable_tqdm or not transformers.logging.is_progress_bar_enabled()
    if hidden or rank() or watched():
        yield
        return
    with watched_by(_PassBar()):
        yield


def obstacle(dataloader: Any, label_names: list[str], *, own_loss: bool) -> str | None:
    """Return why a probe can't be had in this training and what makes it possible; None where it can.

    Args:
        dataloader: The training loader.
        label_names: Keys that hold labels.
        own_loss: Whether the user gave the probe a loss, which settles all but the data.
    """
    if not isinstance(dataloader, DataLoader):
        return (
            f"the training data come from a {type(dataloader).__name__}, which is no torch DataLoader; {GIVE_BATCHES}"
        )
    if isinstance(dataloader.dataset, IterableDataset) or not isinstance(dataloader.dataset, Sized):
        return f"the training data can be iterated only, and a probe draws its rows by number; {GIVE_BATCHES}"
    if dataloader.batch_size is None and dataloader.batch_sampler is None:
        return f"the training data are batches already (batch_size=None), and a probe makes its own; {GIVE_BATCHES}"
    if own_loss:
        return None
    run = current_run()
    foreign = _foreign_loss(run.trainer) if run is not None else None
    if foreign is not None:
        return f"{foreign}, which a probe of the model's own loss would not see; {GIVE_LOSS}"
    if not _has_labels(dataloader, label_names):
        return f"the training batches have no labels that the model takes; {GIVE_LOSS}"
    return None


def _foreign_loss(trainer: Any) -> str | None:
    """Say who computes the loss, where it is not the model."""
    method = getattr(trainer.compute_loss, "__func__", trainer.compute_loss)
    if not method.__module__.startswith(LOSS_OF_THE_MODEL):
        return f"{type(trainer).__name__} computes the loss itself (compute_loss of {method.__module__})"
    if trainer.compute_loss_func is not None:
        return "compute_loss_func computes the loss"
    if trainer.label_smoother is not None:
        return f"label_smoothing_factor={trainer.args.label_smoothing_factor} changes the loss"
    kind = vars(trainer.args).get("loss_type", "nll")  # of TRL's SFTConfig
    if kind != "nll":
        return f"loss_type={kind!r} changes the loss"
    return None


def _has_labels(dataloader: DataLoader[Any], names: list[str]) -> bool:
    with same_draws():
        dataset: Any = dataloader.dataset
        batch: Batch = dataloader.collate_fn([dataset[0]]) if len(dataset) else {}
    present = batch if isinstance(batch, Mapping) else {}
    return any(isinstance(present.get(key), (Tensor, list)) for key in {*names, "labels", "label", "start_positions"})


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
        indices: Any = range(wanted)
    else:
        generator = np.random.default_rng(stable_seed(config.seed, "probe", search))
        indices = generator.permutation(len(dataset))[:wanted]
    own = [int(index) for index in indices][rank() :: world_size()]
    for start in range(0, len(own), batch_size):
        yield dataloader.collate_fn([dataset[index] for index in own[start : start + batch_size]])
