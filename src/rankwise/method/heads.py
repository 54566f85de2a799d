"""Which modules of a model are its head: what follows the network that was pretrained, and trains as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

QA_HEAD = "qa_outputs"
TRAINED_BY_PEFT = (*SEQ_CLS_HEAD_NAMES, QA_HEAD)  # what ends in such a name, by the task type alone
OTHERS = ("classification_head", "sequence_summary", "logits_proj")  # BART and T5, XLM, XLNet
# DistilBERT, DeBERTa, EuroBERT, models of speech; elsewhere such a name is part of what was pretrained.
BESIDE_A_CLASSIFIER = ("pre_classifier", "pooler", "dense", "projector")
HEADS = (*TRAINED_BY_PEFT, *OTHERS)
TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # whose head PEFT trains and saves as a whole
WRAPPED = "base_model.model."  # what PEFT puts before a name, in files and where it matches modules_to_save


def head_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model's head by name, where it has one under usual names.

    A head stands right in the model, or right in one of transformers' that the user's own module holds, or beside such
    a one; elsewhere the same names mean other things (a router of experts has a ``classifier``).
    """
    holders = {name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    outermost = {name for name in holders if not any(within(name, [other]) for other in holders - {name})}
    around = {place for name in outermost for place in _and_around(name)}  # with the user's own modules that hold one
    found: dict[str, nn.Module] = {}
    for place in ["", *sorted(around)] if "" not in holders else [""]:
        children = dict(model.get_submodule(place).named_children())
        beside = BESIDE_A_CLASSIFIER if "classifier" in children else ()
        found |= {
            f"{place}.{child}".lstrip("."): part
            for child, part in children.items()
            if child in HEADS or child in beside
        }
    return found


def within(name: str, modules: Iterable[str]) -> bool:
    """Tell whether a module or parameter is one of the modules, or lies in one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def trained_by_peft(model: nn.Module) -> tuple[str, ...]:
    """Return the names whose modules PEFT trains whole by the task type that such a model is for.

    With QUESTION_ANS that is ``qa_outputs`` alone; ModernBERT's head for it has another name.
    """
    kinds = {
        kind.__name__
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for kind in type(module).mro()
    }
    return (QA_HEAD,) if any(kind.endswith("ForQuestionAnswering") for kind in kinds) else TRAINED_BY_PEFT


def saved_whole(modules: Iterable[str], task_type: object, saved: Iterable[str] | None) -> list[str]:
    """Return those of the modules that PEFT would train whole, or in a whole, and so put no LoRA on.

    Args:
        modules: Full names.
        task_type: PEFT's task type; it says which heads are taken.
        saved: What ``modules_to_save`` names; PEFT takes every module whose name ends so.
    """
    by_task = {"SEQ_CLS": SEQ_CLS_HEAD_NAMES, "TOKEN_CLS": SEQ_CLS_HEAD_NAMES, "QUESTION_ANS": [QA_HEAD]}
    taken = (*by_task.get(getattr(task_type, "value", str(task_type)), ()), *(saved or ()))
    return [name for name in modules if any(f"{WRAPPED}{part}".endswith(taken) for part in _and_around(name))]


def _and_around(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules it lies in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def inside_heads(model: nn.Module) -> list[str]:
    """Return the modules inside of a head that PEFT trains whole, the head itself not among them."""
    heads = [name for name in head_of(model) if name.endswith(trained_by_peft(model))]
    return [name for name, _ in model.named_modules() if name not in heads and within(name, heads)]


def forgotten_heads(model: nn.Module, saved: Iterable[str] = (), candidates: Iterable[str] = ()) -> list[str]:
    """Return the parts of a head that PEFT neither trains nor saves, for ``modules_to_save`` to name.

    Left out are those without parameters, and those whose name another module's ends in, which PEFT would take too.

    Args:
        model: The base model.
        saved: What ``modules_to_save`` names already; PEFT takes every module whose name ends so.
        candidates: Modules that LoRA is to be on: PEFT puts none on what is saved as a whole.
    """
    names = [name for name, _ in model.named_modules()]
    taken, known = tuple(saved), trained_by_peft(model)
    found = []
    for head, module in head_of(model).items():
        parts = [f"{WRAPPED}{name}" for name in names if within(name, [head])]
        if (
            not head.endswith(known)
            and any(True for _ in module.parameters())
            and not any(name != head and name.endswith(head) for name in names)
            and not any(part.endswith(taken) for part in parts)
            and not any(name.startswith(f"{head}.") for name in candidates)
        ):
            found.append(head)
    return found
