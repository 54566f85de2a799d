"""Which modules of a model are its head: what follows the network that was pretrained, and trains as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

TRAINED_BY_PEFT = (*SEQ_CLS_HEAD_NAMES, "qa_outputs")  # by the task type alone
OTHERS = ("classification_head", "sequence_summary", "logits_proj")  # BART and T5, XLM, XLNet
BESIDE_A_CLASSIFIER = ("pre_classifier", "pooler")  # DistilBERT, DeBERTa; elsewhere part of what was pretrained
HEADS = (*TRAINED_BY_PEFT, *OTHERS)
TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # whose head PEFT trains and saves as a whole


def head_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model's head by name, where it has one under usual names."""
    children = dict(model.named_children())
    return {name: children[name] for name in _heads(children)}


def forgotten_heads(names: Iterable[str]) -> list[str]:
    """Return what of a head PEFT neither trains nor saves unless ``modules_to_save`` names it.

    Args:
        names: The full names of a model's modules.
    """
    return [name for name in _heads(names) if name not in TRAINED_BY_PEFT]


def _heads(names: Iterable[str]) -> list[str]:
    present = [name for name in names if "." not in name]
    beside = BESIDE_A_CLASSIFIER if "classifier" in present else ()
    return [name for name in present if name in HEADS or name in beside]
