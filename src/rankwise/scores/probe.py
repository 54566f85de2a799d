"""Scoring in a pass of its own that leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rankwise.configs.heterolora import CHOICES
from rankwise.errors import check_choice
from rankwise.passes import passed, work
from rankwise.paths.path_set import PathSet, path_set
from rankwise.rules.proxies import PASSES, PROXIES
from rankwise.scores.batches import beside, to_device
from rankwise.scores.components import component_statistic, gradients_of, truncation_of
from rankwise.scores.curvature import curvature_pass, drawn_loss, gradient_pass, newton_scores
from rankwise.scores.flow import absolute_float64, plain_experts, token_embeddings, widened
from rankwise.scores.likelihood import DrawLosses
from rankwise.scores.proxies import Scores, checked_scores, score_from_means, score_without_data
from rankwise.scores.recorder import StatisticRecorder
from rankwise.scores.statistics import FactorGradients, Statistic, WeightFlow, gradient_statistic
from rankwise.wiring.checkpointing import is_reentrant

Batch = Any
ComputeLoss = Callable[[nn.Module, Batch], Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]
FLOW_TOKENS = 8
SETTINGS = ("problem_type", "use_cache")  # transformers' loss writes the first, the other is set while scoring
NONE_LEFT = "; an iterator has none left after it was gone through once: give a list, or a DataLoader"


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that the model computes itself from a batch with labels, moved to the model's device.

    Raises:
        ValueError: The model returned no loss.
    """
    output = model(**to_device(batch, model))
    loss = part_of(output, "loss")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(
            f"the model returned no loss for a batch with the keys {', '.join(sorted(batch))}: add labels, or pass "
            "compute_loss=lambda model, batch: ..."
        )
    return loss


def part_of(output: Any, name: str) -> Any:
    """Return a part of what a model returns: by name, or the first of a tuple, as Trainer takes it."""
    if isinstance(output, Mapping):
        return output.get(name)
    return output[0] if isinstance(output, tuple) else getattr(output, name, None)


def check_weights(model: nn.Module) -> None:
    """Refuse what is no model, and a model whose weights are not there.

    Raises:
        ValueError: It is none, on the meta device, or under ``torch.inference_mode()``.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={model!r:.80} is a {type(model).__name__} and no torch module: load the model first")
    if torch.is_inference_mode_enabled() or next(model.parameters()).is_inference():
        where = "called inside of it" if torch.is_inference_mode_enabled() else "the model was made inside of it"
        raise ValueError(f"torch.inference_mode() leaves no gradients, which scores are made of, and this is {where}")
    if next(model.parameters()).is_meta:
        raise ValueError(
            f"this {type(model).__name__} is on the meta device, so it has no weights to compute with: load them, onto "
            "one device, not offloaded (rankwise.plan(config, lora_config) says what a search would cost without any)"
        )


def check_runs(paths: PathSet) -> None:
    """Refuse an adapter that a forward pass does not run through as it is now, so that no loss depends on it.

    Raises:
        ValueError: It is not active, disabled, or an adapter is merged into the base.
    """
    host, adapter = paths.host, paths.adapter
    if adapter not in host.active_adapters:
        raise ValueError(f"adapter {adapter!r} is not the active one: call model.set_adapter({adapter!r}) before")
    if host.disable_adapters:
        raise ValueError(f"adapter {adapter!r} is disabled: score its paths outside of disable_adapter()")
    merged = [path.host.merged_adapters for path in paths.resident if path.host.merged_adapters]
    if merged:
        raise ValueError(f"adapter {merged[0][0]!r} is merged into the base: call model.unmerge_adapter() before")


@contextmanager
def same_draws(model: nn.Module | None = None) -> Iterator[None]:
    """Put back the generators' states: Python's, numpy's, torch's, and those of the devices that a model is on."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's, kept as it is
    parameters = [] if model is None else model.parameters()
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back the generators' states, modes, buffers and what a forward pass writes to configs, whatever happens.

    Reentrant checkpointing, which hides its region from a backward pass to given points, becomes non-reentrant. Models
    keep no keys and values: with them, rows that are packed without a mask would see each other.
    """
    reentrant: list[Any] = [module for module in model.modules() if is_reentrant(module)]
    functions = [module._gradient_checkpointing_func for module in reentrant]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    settings = _settings(model)
    with same_draws(model):
        try:
            for config, name, _ in settings:
                if name == "use_cache":
                    config.use_cache = False
            for module in reentrant:
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            yield
        finally:
            for module, function in zip(reentrant, functions, strict=True):
                module._gradient_checkpointing_func = function
            for module, mode in modes:
                module.training = mode
            for config, name, value in settings:
                setattr(config, name, value)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _settings(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """Return config, name and value of what is to be put back in the configs of a model's parts, where they have it."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return [(each, name, vars(each)[name]) for each in configs.values() for name in SETTINGS if name in vars(each)]


@contextmanager
def recording(paths: PathSet, statistic: Statistic, *, probing: bool) -> Iterator[StatisticRecorder]:
    """Open a window: all paths are recorded, and with ``probing`` all contribute."""
    before = paths.session.recorder, paths.session.probing
    recorder = StatisticRecorder(statistic)
    paths.session.recorder, paths.session.probing = recorder, probing
    try:
        yield recorder
    finally:
        paths.session.recorder, paths.session.probing = before


def collect(recorder: StatisticRecorder, loss: Tensor) -> None:
    """Run the backward pass of a loss down to the taps and no further: no ``.grad`` is touched."""
    torch.autograd.grad(loss, recorder.anchor, allow_unused=True)
    recorder.fold()


def score_paths(
    model: nn.Module,
    batches: Iterable[Batch] = (),
    *,
    proxy: str = "grad_norm",
    score_on: str = "weight",
    compute_loss: ComputeLoss | None = None,
    autocast: Autocast = nullcontext,
    mode: str = "eval",
    sketch: int | str | None = None,
    synflow_loss: str = "logits",
    seed: int = 0,
    adapter: str | None = None,
    draw_losses: DrawLosses | None = None,
) -> dict[str, float]:
    """Score every path of a model on the given batches; higher is more worth having.

    ``grad_norm``: ``sum |G|_2``; ``snip``: ``sum |theta * G|``; ``synflow``: ``sum theta * G`` of the network of
    absolute values (arXiv 2406.14956, section 3.1); ``newton``: ``lin^2 / (2 q)``, what the loss falls by at best along
    the rank-r truncation of ``G``, by the quadratic model of the true Fisher (two passes; see
    ``rankwise.scores.curvature``). ``G`` is the mean over batches of the gradient of the batch's mean loss. On
    ``"weight"`` a score does not depend on ``s``; on ``"factors"`` it grows with ``s``. All paths contribute while they
    are scored. Gradients, generators, modes, buffers and the allocation are as before afterwards, also when the model
    raises.

    Args:
        model: A model with rankwise paths, wrapped or not.
        batches: Training batches; each a mapping that the model takes as keyword arguments, with labels.
        proxy: ``"constant"``, ``"random"``, ``"grad_norm"``, ``"snip"``, ``"synflow"`` or ``"newton"``.
        score_on: ``"weight"`` or ``"factors"`` (not ``newton``).
        compute_loss: Called with (model, batch), for losses that the model does not compute itself; the batch is on
            the model's device.
        autocast: Makes the context of each forward pass, for training in mixed precision.
        mode: ``"eval"`` scores without dropout, ``"train"`` with it.
        sketch: Columns of the random sketch for ``grad_norm`` on the weight; None for exact.
        synflow_loss: ``"logits"`` or ``"loss"`` (of the first batch).
        seed: Seeds ``random``, the sketch and the labels drawn for ``newton``.
        adapter: The adapter to score; the active one if left out.
        draw_losses: For ``newton`` with a loss that the model does not compute itself; called with (model, batch,
            generator), returns each example's summed loss under labels drawn from the prediction, and the number of
            loss terms.

    Raises:
        ValueError: A name is not allowed, there are no batches, or the model returns no loss.
    """
    check_choice("proxy", proxy, PROXIES)
    check_choice("score_on", score_on, CHOICES["score_on"])
    check_choice("mode", mode, CHOICES["probe_mode"])
    if isinstance(sketch, int) and sketch < 1:
        raise ValueError(f"sketch={sketch!r} must be a number of columns >= 1, 'auto' or None (exact)")
    check_weights(model)
    paths = path_set(model, adapter)
    if PROXIES[proxy].needs != "nothing":
        check_runs(paths)
    with work(f"scoring {len(paths.paths)} paths by {proxy}", PASSES[PROXIES[proxy].needs] * size_of(batches)):
        return probe(
            model,
            paths,
            batches,
            proxy=proxy,
            score_on=score_on,
            compute_loss=compute_loss or model_loss,
            autocast=autocast,
            mode=mode,
            sketch=sketch,
            synflow_loss=synflow_loss,
            seed=seed,
            draw_losses=draw_losses,
        ).values


def size_of(batches: Iterable[Batch]) -> int:
    """Return how many batches there are, 0 where that is not known."""
    return len(batches) if isinstance(batches, Sized) else 0


def probe(
    model: nn.Module,
    paths: PathSet,
    batches: Iterable[Batch],
    *,
    proxy: str,
    score_on: str,
    compute_loss: ComputeLoss,
    autocast: Autocast,
    mode: str,
    sketch: int | str | None,
    synflow_loss: str,
    seed: int,
    draw_losses: DrawLosses | None = None,
) -> Scores:
    """Score a path set; see ``score_paths``."""
    candidates, needs = paths.paths, PROXIES[proxy].needs
    if needs == "curvature" and score_on != "weight":
        raise ValueError(f"proxy={proxy!r} scores the matrix a path makes, so score_on={score_on!r} must be 'weight'")
    if needs == "nothing":
        return score_without_data(proxy, list(candidates), seed)
    if needs == "flow":
        return _probe_flow(model, paths, batches, score_on, synflow_loss, loss_in(compute_loss, nullcontext))
    loss_of = loss_in(compute_loss, autocast)
    if needs == "curvature":
        with untouched(model), torch.enable_grad():
            model.train(mode == "train")
            draw_of = drawn_loss(draw_losses, autocast, seed)
            return _probe_curvature(model, paths, list(batches), loss_of, draw_of, seed)
    statistic = gradient_statistic(proxy, score_on, candidates.values(), sketch=sketch, seed=seed)
    with untouched(model), recording(paths, statistic, probing=True) as recorder, torch.enable_grad():
        model.train(mode == "train")
        for batch in batches:
            collect(recorder, loss_of(model, batch))
            passed()
        if not recorder.steps:
            raise ValueError(f"proxy={proxy!r} needs training batches, got none{NONE_LEFT}")
        return score_from_means(proxy, candidates, recorder.means())


def loss_in(compute_loss: ComputeLoss, autocast: Autocast) -> ComputeLoss:
    """Return what computes the loss of a batch, brought to the model's device, in the context of mixed precision."""

    def run(model: nn.Module, batch: Batch) -> Tensor:
        with autocast():
            return compute_loss(model, beside(batch, model))

    return run


def _probe_curvature(
    model: nn.Module, paths: PathSet, batches: list[Batch], loss_of: ComputeLoss, draw_of: Any, seed: int
) -> Scores:
    """Score by ``newton``: a pass for ``G``, one for the curvature along its rank-r truncation."""
    candidates = paths.paths
    if not batches:
        raise ValueError(f"proxy='newton' needs training batches, got none{NONE_LEFT}")
    largest = max(path.r for path in candidates.values())
    statistic = component_statistic(candidates.values(), largest, parts=1, seed=seed)
    means, _ = gradient_pass(model, paths, batches, statistic, loss_of)
    gradients = gradients_of(statistic, means[0])
    directions = {name: truncation_of(gradient, candidates[name].r) for name, gradient in gradients.items()}
    examples = curvature_pass(model, paths, list(enumerate(batches)), directions, draw_of)
    return checked_scores("newton", newton_scores(candidates, gradients, examples, directions))


def _probe_flow(
    model: nn.Module,
    paths: PathSet,
    batches: Iterable[Batch],
    score_on: str,
    synflow_loss: str,
    compute_loss: ComputeLoss,
) -> Scores:
    """Push ones through the network of absolute values in float64: ``inputs_embeds`` 1 x 8 x width."""
    statistic: Statistic = FactorGradients() if score_on == "factors" else WeightFlow()
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        recorder = stack.enter_context(recording(paths, statistic, probing=True))
        stack.enter_context(torch.enable_grad())
        batch = next(iter(batches), None) if synflow_loss == "loss" else None
        if synflow_loss == "loss" and batch is None:
            raise ValueError("synflow_loss='loss' needs a training batch, got none")
        stack.enter_context(absolute_float64(model))
        stack.enter_context(plain_experts(model))
        model.eval()
        if batch is not None:
            loss = compute_loss(model, widened(batch))
        else:
            embedding = token_embeddings(model)
            size = 1, FLOW_TOKENS, embedding.weight.shape[1]
            ones = torch.ones(size, dtype=torch.float64, device=embedding.weight.device)
            decoder = {"decoder_inputs_embeds": ones} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
            loss = part_of(model(inputs_embeds=ones, **decoder), "logits").sum()
        collect(recorder, loss)
        return score_from_means("synflow", paths.paths, recorder.means())
