"""Which modules of a model are its head: what follows the network that was pretrained, and trains as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

TRAINED_BY_PEFT = (*SEQ_CLS_HEAD_NAMES, "qa_outputs")  # what ends in such a name, by the task type alone
OTHERS = ("classification_head", "sequence_summary", "logits_proj")  # BART and T5, XLM, XLNet
# DistilBERT, DeBERTa, EuroBERT, models of speech; elsewhere such a name is part of what was pretrained.
BESIDE_A_CLASSIFIER = ("pre_classifier", "pooler", "dense", "projector")
HEADS = (*TRAINED_BY_PEFT, *OTHERS)
TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # whose head PEFT trains and saves as a whole
WRAPPED = "base_model.model."  # what PEFT puts before a name, in files and where it matches modules_to_save


def head_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model's head by name, where it has one under usual names."""
    children = dict(model.named_children())
    beside = BESIDE_A_CLASSIFIER if "classifier" in children else ()
    return {name: module for name, module in children.items() if name in HEADS or name in beside}


def forgotten_heads(model: nn.Module, saved: Iterable[str] = (), candidates: Iterable[str] = ()) -> list[str]:
    """Return the parts of a head that PEFT neither trains nor saves, for ``modules_to_save`` to name.

    Left out are those without parameters, and those whose name another module's ends in, which PEFT would take too.

    Args:
        model: The base model.
        saved: What ``modules_to_save`` names already; PEFT takes every module whose name ends so.
        candidates: Modules that LoRA is to be on: PEFT puts none on what is saved as a whole.
    """
    names = [name for name, _ in model.named_modules()]
    taken = tuple(saved)
    found = []
    for head, module in head_of(model).items():
        parts = [f"{WRAPPED}{name}" for name in names if f"{name}.".startswith(f"{head}.")]
        if (
            not head.endswith(TRAINED_BY_PEFT)
            and any(True for _ in module.parameters())
            and not any(name != head and name.endswith(head) for name in names)
            and not any(part.endswith(taken) for part in parts)
            and not any(name.startswith(f"{head}.") for name in candidates)
        ):
            found.append(head)
    return found
