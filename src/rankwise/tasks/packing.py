"""Several rows in one sequence: no padding is computed, and each row still sees itself alone.

A row's place in the sequence is told by positions that start anew, from which transformers makes an attention mask in
blocks (and flash attention its boundaries); ``check_packing`` finds out whether a model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from rankwise.tasks.encode import Encoded
from rankwise.tasks.labels import LABELS
from rankwise.tasks.read import quiet

LENGTHS = "seq_lengths"  # TRL's name for the lengths of the rows in a sequence


def pack(part: Encoded, length: int) -> Encoded:
    """Return the rows packed into as few sequences of ``length`` as best-fit decreasing finds, none cut."""
    from trl.data_utils import pack_dataset  # importing TRL is what takes time

    with quiet():
        rows = pack_dataset(part.rows.select_columns(["input_ids", LABELS]), length, strategy="bfd")
    return part._replace(rows=rows)


@dataclass
class PackedCollator:
    """Join packed sequences end to end: ``input_ids``, ``labels`` and ``position_ids`` (1, T), and no attention mask.

    Rows that are not packed (an evaluation's) are padded.

    Args:
        tokenizer: Pads.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch."""
        if LENGTHS not in examples[0]:
            padded: dict[str, Tensor] = DataCollatorForSeq2Seq(self.tokenizer)(examples)
            return padded
        places = [torch.arange(length) for example in examples for length in example[LENGTHS]]
        joined = {
            name: torch.tensor([token for example in examples for token in example[name]])[None]
            for name in ("input_ids", LABELS)
        }
        return {**joined, "position_ids": torch.cat(places)[None]}


def check_packing(model: nn.Module, vocabulary: int) -> None:
    """Raise unless rows in one sequence get the logits they get alone, which only the model can show.

    Args:
        model: A causal language model; it is left as it is.
        vocabulary: How many tokens there are.

    Raises:
        ValueError: They see each other.
    """
    device = next(model.parameters()).device
    rows = [(torch.arange(size) * 7 + size) % vocabulary for size in (5, 7)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([model(input_ids=row[None].to(device), use_cache=False).logits[0] for row in rows])
            places = torch.cat([torch.arange(len(row)) for row in rows])[None].to(device)
            together = model(input_ids=torch.cat(rows)[None].to(device), position_ids=places, use_cache=False).logits[0]
    finally:
        for module, mode in modes:
            module.training = mode
    off = float((alone - together).float().abs().max() / alone.float().abs().max())
    if off > torch.finfo(alone.dtype).eps ** 0.5:  # rounding is below, rows that see each other are above
        raise ValueError(
            f"data.packing: in one sequence the rows of {type(model).__name__} see each other (logits move by "
            f"{off:.1%}): leave packing out, or choose another attention (flash_attention_2)"
        )
