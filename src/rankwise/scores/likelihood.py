"""Labels drawn from a model's own prediction, and the loss they give: what a true Fisher is made of.

Letters: ``b`` examples (rows of a batch), ``t`` positions of an example that have a loss, ``c`` classes or outputs,
``s`` sequences of an example, of which a choice has several.
The empirical Fisher, with the data's labels in place of drawn ones, is not the curvature of the loss and ranks paths no
better than a first-order score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING

from rankwise.errors import argument
from rankwise.seeds import stable_seed

IGNORED = -100
TINY = 1e-30
TOLD_APART = 1e-4  # relative: a class that computes as its name says repeats its loss closer than that
DRAW_LOSSES = "draw_losses=lambda model, batch, generator: ..."  # as an error names it
SHIFTED = ("ForCausalLM", "ForConditionalGeneration")
SAME_LOSS = 0.01  # relative; a model in bfloat16 repeats its loss to half of that


@dataclass(frozen=True)
class Drawn:
    """The loss of a batch under drawn labels.

    Args:
        losses: The negative log-likelihood of each example's drawn labels, summed over its positions (b,).
        terms: How many loss terms the batch has: positions, or examples.
        mean: The mean loss of the labels that the batch came with, as transformers reduces it; None if unknown.
        sequences: How many sequences of its own an example has, one behind the other in what the model runs on.
        unit: What a term's negative log-likelihood is of its loss, as transformers has it: ``c/2`` for c squares, of
            which it takes the mean without a half, ``c`` for c labels by themselves.
    """

    losses: Tensor
    terms: int
    mean: float | None = None
    sequences: int = 1
    unit: float = 1.0


DrawLosses = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, int]]
"""Called with (model, batch, generator); returns each example's summed loss under labels drawn with the generator from
the model's prediction, (b,), and the number of loss terms."""


def draw(model: nn.Module, batch: Mapping[str, Any], seed: int) -> Drawn:
    """Run the model on a batch and return its loss under labels drawn from what it predicts.

    Classification draws from the softmax, multi-label classification each label by itself, regression from a normal
    distribution of variance 1 around the prediction, a language model a token at every position whose label is not
    -100. Multiple choice draws from the softmax over an example's sequences; a batch may have them (b, s, t), as
    transformers' models for it do, or one behind the other (b s, t), each with one score. What is drawn for an example
    depends on the seed and the example, not on the batch it comes in.

    Args:
        model: A transformers model, wrapped or not.
        batch: What it takes as keyword arguments, labels included.
        seed: Seeds the draws.

    Raises:
        ValueError: The batch has no labels, or the model's loss is none of these; says how to give one's own.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"the curvature needs batches with labels, which say where the loss is, and this one has "
            f"{', '.join(sorted(batch))}. Add labels, or pass {argument(DRAW_LOSSES)} that returns each example's "
            "summed loss under labels drawn from the prediction, and the number of loss terms"
        )
    sequences, apart = _choices(batch, labels)
    # With labels a model that scores sequences would compute the loss of a regression, which this is not.
    output = model(**(without_labels(batch) if apart else batch))
    logits = _logits(output)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    keys = _keys(batch, labels, sequences)
    generators = [torch.Generator().manual_seed(stable_seed(seed, key)) for key in keys]
    if sequences > 1 and wide.numel() == sequences * len(labels):  # whatever a config says about classes
        scores = wide.reshape(len(labels), sequences)
        return replace(_categorical(scores, labels, generators), sequences=sequences)
    kind = _kind(model, wide, labels)
    if kind == "regression":
        return _normal(wide, labels, generators)
    if kind == "multi_label_classification":
        return _bernoulli(wide, labels, generators)
    if kind in ("shifted", "tokens") and _shifts(output, wide, labels, guess=kind == "shifted"):
        wide, labels = wide[:, :-1], labels[:, 1:]
    return replace(_categorical(wide, labels, generators), sequences=sequences)


def sequences_of(batch: Any, examples: int) -> int:
    """Return how many sequences of token ids each example has where a batch says so by its shape (b, s, t), else 1."""
    tensors = without_labels(batch).values() if isinstance(batch, Mapping) else ()
    whole = [each for each in tensors if isinstance(each, Tensor) and not each.is_floating_point()]
    shapes = [each.shape for each in whole if each.ndim > 1 and len(each) == examples]
    if any(len(shape) == 2 for shape in shapes):  # its tokens; what has three sizes beside them is a mask by query
        return 1
    sizes = {shape[1] for shape in shapes if len(shape) == 3}
    return sizes.pop() if len(sizes) == 1 else 1


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as a model takes it that shall compute no loss."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _choices(batch: Mapping[str, Any], labels: Tensor) -> tuple[int, bool]:
    """Return how many sequences an example has, and whether they are rows of their own, (b s, t)."""
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        return 1, False
    rows = {len(v) for v in without_labels(batch).values() if isinstance(v, Tensor) and v.ndim > 1}
    count = rows.pop() if len(rows) == 1 else 0
    if count > len(labels) and count % len(labels) == 0:
        return count // len(labels), True
    return sequences_of(batch, len(labels)), False


def _logits(output: Any) -> Tensor:
    if isinstance(output, tuple):
        found, has = output[1] if len(output) > 1 else None, f"a tuple of {len(output)}"
    elif isinstance(output, Mapping):
        found, has = output.get("logits"), f"one that has {', '.join(output)}"
    else:
        found, has = getattr(output, "logits", None), f"a {type(output).__name__}"
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model's output has no logits to draw labels from (it is {has}): pass {argument(DRAW_LOSSES)} that "
            "returns each example's summed loss under labels drawn from the prediction, and the number of loss terms"
        )
    return found


def _keys(batch: Mapping[str, Any], labels: Tensor, sequences: int) -> list[str]:
    """Return a digest of each example's inputs, without what pads them."""
    rows = (len(labels), len(labels) * sequences)
    tensors = {
        name: value.detach().cpu().reshape(len(labels), *([-1] * (len(value) != rows[0])), *value.shape[1:])
        for name, value in sorted(batch.items())
        if isinstance(value, Tensor) and value.ndim and len(value) in rows and name != "labels"
    }
    mask = tensors.pop("attention_mask", None)
    inputs = tensors
    digests = []
    for row in range(len(labels)):
        digest = hashlib.sha256()
        for name, value in inputs.items():
            kept = value[row]
            if mask is not None and kept.shape[: mask.ndim - 1] == mask[row].shape:
                kept = kept[mask[row].bool()]
            kept = kept.float() if kept.is_floating_point() else kept  # numpy has no bfloat16
            digest.update(name.encode() + kept.contiguous().numpy().tobytes())
        digests.append(digest.hexdigest())
    return digests


def _kind(model: nn.Module, logits: Tensor, labels: Tensor) -> str:
    """Return which likelihood transformers' loss for this model and these labels is made of."""
    base: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    config: Any = None if base is None else base.config
    if logits.ndim == 3 and labels.shape == logits.shape[:2] and not labels.is_floating_point():
        return "shifted" if shifts_by_class(base) else "tokens"
    if logits.ndim == 2 and len(labels) == len(logits):
        if config is not None and config.problem_type is not None:
            return str(config.problem_type)
        if logits.shape[1] == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    raise ValueError(
        f"logits of shape {tuple(logits.shape)} with labels of shape {tuple(labels.shape)} are no classification, "
        f"regression or language modelling that is known here: pass {argument(DRAW_LOSSES)} that returns each "
        "example's summed loss under labels drawn from the prediction, and the number of loss terms"
    )


def shifts_by_class(model: nn.Module | None) -> bool:
    """Tell whether a model's loss compares a token's logits with the next token's label, as its class says."""
    if not isinstance(model, PreTrainedModel):
        return False
    # A class whose name says no task, such as GPT2LMHeadModel, has the loss that transformers falls back to.
    known = model.loss_type in LOSS_MAPPING and model.loss_type not in SHIFTED
    return not model.config.is_encoder_decoder and not known


def _shifts(output: Any, logits: Tensor, labels: Tensor, *, guess: bool) -> bool:
    """Tell whether a token's logits are for the next label: by the loss the model returned, else as guessed.

    Classes that end in ``ForCausalLM`` and compute the loss themselves (BART's) don't shift, whatever their name says.
    """
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    own = output[0] if isinstance(output, tuple) else found
    if not isinstance(own, Tensor) or own.numel() != 1:
        return guess
    loss = float(own.detach())

    @torch.no_grad()
    def gap(shift: bool) -> float:
        rows, asked = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        mean = float(F.cross_entropy(rows.movedim(-1, 1), asked.to(rows.device), ignore_index=IGNORED))
        return abs(mean - loss) / max(abs(mean), abs(loss), TINY)

    as_guessed = gap(guess)
    # A small term of the loss's own is no reason to doubt the class; a loss that only the other reading gives is.
    doubted = as_guessed > TOLD_APART and gap(not guess) <= min(SAME_LOSS, as_guessed / 10)
    return not guess if doubted else guess


def _categorical(logits: Tensor, labels: Tensor, generators: list[torch.Generator]) -> Drawn:
    """Draw by inverting the distribution function; ``logits`` (b, t, c) or (b, c), ``labels`` (b, t) or (b,)."""
    labels = labels.to(logits.device).reshape(len(labels), -1)
    logits = logits.reshape(*labels.shape, -1)
    counted = labels != IGNORED
    drawn = torch.full_like(labels, IGNORED)
    with torch.no_grad():
        for row, generator in enumerate(generators):
            below = logits[row, counted[row]].softmax(-1).cumsum(-1)
            chance = torch.rand(len(below), 1, generator=generator, device="cpu", dtype=torch.float64).to(below)
            drawn[row, counted[row]] = torch.searchsorted(below, chance).clamp_(max=below.shape[-1] - 1)[:, 0]
    by_class = logits.movedim(-1, 1)
    losses = F.cross_entropy(by_class, drawn, reduction="none", ignore_index=IGNORED).sum(1)
    with torch.no_grad():
        mean = F.cross_entropy(by_class, labels, ignore_index=IGNORED)
    return Drawn(losses, int(counted.sum()), float(mean))


def _normal(logits: Tensor, labels: Tensor, generators: list[torch.Generator]) -> Drawn:
    """Draw from N(prediction, 1); both (b, c)."""
    noise = [
        torch.randn(logits.shape[1], generator=generator, device="cpu", dtype=torch.float64) for generator in generators
    ]
    losses = (logits - (logits.detach() + torch.stack(noise).to(logits))).square().sum(1) / 2
    mean = F.mse_loss(logits.detach().reshape(-1), labels.to(logits).reshape(-1))
    return Drawn(losses, len(logits), float(mean), unit=logits.shape[1] / 2)


def _bernoulli(logits: Tensor, labels: Tensor, generators: list[torch.Generator]) -> Drawn:
    """Draw each label by itself; both (b, c)."""
    chances = [
        torch.rand(logits.shape[1], generator=generator, device="cpu", dtype=torch.float64) for generator in generators
    ]
    drawn = (torch.stack(chances).to(logits) < logits.detach().sigmoid()).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, drawn, reduction="none").sum(1)
    mean = F.binary_cross_entropy_with_logits(logits.detach(), labels.to(logits))
    return Drawn(losses, len(logits), float(mean), unit=logits.shape[1])
