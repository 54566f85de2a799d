"""What Trainer and the model don't do alone: batches of choices, their loss, and sums in place of means.

Letters: B examples, C choices each, T tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from rankwise.tasks.encode import CHOICES, IGNORED
from rankwise.tasks.labels import LABELS


@dataclass
class ChoiceCollator:
    """Pad the C sequences of B examples into one batch of B C rows; ``labels`` stay (B,).

    Args:
        tokenizer: Pads; it needs a pad token.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch: inputs (B C, T), ``labels`` (B,) where the examples have them."""
        names = [name for name in examples[0] if name != LABELS]
        rows = [
            {name: example[name][choice] for name in names}
            for example in examples
            for choice in range(len(example[names[0]]))
        ]
        batch: dict[str, Tensor] = dict(DataCollatorWithPadding(self.tokenizer)(rows))
        if LABELS in examples[0]:
            batch[LABELS] = torch.tensor([example[LABELS] for example in examples])
        return batch


def choice_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy over the choices of each example, for Trainer's ``compute_loss_func``.

    ``loss = - sum_b log softmax(z_b)[y_b] / n`` with ``z`` the logits (B C, 1) as (B, C), and ``n`` the examples of
    the optimizer step (B when not given).
    """
    scores = outputs.logits.reshape(len(labels), -1).float()
    loss: Tensor = functional.cross_entropy(scores, labels, reduction="sum") / _items(labels, num_items_in_batch)
    return loss


def regression_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Squared error over the examples of the optimizer step, for Trainer's ``compute_loss_func``.

    The model's own regression loss is a mean per micro-batch that Trainer takes for scaled, so that gradient
    accumulation over k micro-batches would multiply the gradient by k.
    """
    difference = outputs.logits.reshape(-1).float() - labels.float()
    loss: Tensor = difference.square().sum() / _items(labels, num_items_in_batch)
    return loss


def first_logits(logits: Any, labels: Tensor | None) -> Tensor:
    """Keep the logits of what the model returned, for ``preprocess_logits_for_metrics``."""
    kept: Tensor = logits[0] if isinstance(logits, tuple) else logits
    return kept


def choice_logits(logits: Any, labels: Tensor | None) -> Tensor:
    """Return one row per example, (B C, 1) -> (B, C): gathering over processes counts rows."""
    return first_logits(logits, labels).reshape(-1, len(CHOICES))


def token_sums(logits: Any, labels: Tensor) -> Tensor:
    """Reduce logits (B, T, V) to the summed token loss and the token count of each sequence, (B, 2).

    So an evaluation keeps two numbers per sequence and not its logits, and its loss is
    ``sum of token losses / number of tokens`` over the whole set, whatever the batches.
    """
    targets = labels[:, 1:]
    predictions = first_logits(logits, labels)[:, :-1].float().transpose(1, 2)
    losses = functional.cross_entropy(predictions, targets, ignore_index=IGNORED, reduction="none")
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1)], dim=1)


def _items(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | int:
    if isinstance(num_items_in_batch, Tensor):
        return num_items_in_batch.to(labels.device)
    return len(labels) if num_items_in_batch is None else num_items_in_batch
