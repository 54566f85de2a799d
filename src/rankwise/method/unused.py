"""What a config says of modules that there are none of, or doesn't say of a head, and would be lost silently."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from rankwise.errors import nearest
from rankwise.method.heads import TASKS, WRAPPED, forgotten_heads
from rankwise.method.targets import unmatched

# What PEFT itself adds, together: the usual names of heads, of which a model has one.
ADDED = (frozenset(SEQ_CLS_HEAD_NAMES), frozenset({"qa_outputs"}))


def unused(config: LoraConfig, modules: Sequence[str], targeted: Sequence[str]) -> list[Warning]:
    """Return what of a config has no effect, each with the nearest name that would have one.

    Where PEFT warns too, the words begin as PEFT's, and ours say the nearest name.

    Args:
        config: The config.
        modules: The full names of all modules of the base model.
        targeted: Those that LoRA is put on.
    """
    return [*_patterns(config, targeted), *_saved(config, modules), *_excluded(config, modules)]


def warn_unused(config: LoraConfig, modules: Sequence[str], targeted: Sequence[str]) -> None:
    """Warn of what of a config has no effect; see ``unused``."""
    for words in unused(config, modules, targeted):
        warnings.warn(words, stacklevel=2)


def warn_forgotten(config: LoraConfig, model: nn.Module) -> None:
    """Warn of a part of the head that would stay as it is, which is random where the checkpoint has none.

    Args:
        config: The config of an adapter that is to be trained.
        model: The base model.
    """
    if config.task_type not in TASKS or config.inference_mode:
        return
    left = forgotten_heads(model, config.modules_to_save or ())
    if left:
        warnings.warn(
            f"{', '.join(left)} belongs to the model's head, and PEFT trains and saves no head under that name by "
            f"itself: give modules_to_save={left!r}, unless it was trained before and shall stay",
            stacklevel=2,
        )


@contextmanager
def told_by_us() -> Iterator[None]:
    """Leave out PEFT's warnings inside of what ``unused`` tells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match any targeted")
        warnings.filterwarnings("ignore", message="You have passed exclude_modules=")
        yield


def _patterns(config: LoraConfig, targeted: Sequence[str]) -> Iterator[Warning]:
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field) or {}:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in targeted):  # as PEFT matches it
                yield RuntimeWarning(
                    f"The following {field} keys did not match any targeted module and were ignored: [{key!r}]"
                    f"{_hint(key, targeted)} (LoRA is on {len(targeted)} modules): correct it or leave it out"
                )


def _saved(config: LoraConfig, modules: Sequence[str]) -> Iterator[Warning]:
    named = dict.fromkeys(config.modules_to_save or ())
    added = {name for group in ADDED if group <= set(named) for name in group}
    for name in named:
        if name not in added and not any(f"{WRAPPED}{module}".endswith(name) for module in modules):
            yield UserWarning(
                f"modules_to_save names {name!r}, which no module's name ends in, so it will be neither trained nor "
                f"saved{_hint(name, modules)}: correct it or leave it out"
            )


def _excluded(config: LoraConfig, modules: Sequence[str]) -> Iterator[Warning]:
    excluded = config.exclude_modules or ()
    if isinstance(excluded, str):
        lost = [] if any(re.fullmatch(excluded, module) for module in modules) else [excluded]
    else:
        lost = unmatched(excluded, modules)
    some = "" if isinstance(excluded, str) or len(lost) == len(excluded) else f" by {', '.join(map(repr, lost))}"
    if lost:
        hints = "".join(_hint(name, modules) for name in lost[:1])
        yield UserWarning(
            f"You have passed exclude_modules={config.exclude_modules!r} but no modules were excluded{some}{hints}: "
            "correct it or leave it out"
        )


def _hint(given: str, names: Sequence[str]) -> str:
    """Return the nearest name: among last names, or of a name with dots among the full ones."""
    plain = given.replace("\\", "").strip("^$")
    return nearest(plain, names if "." in plain else {name.rpartition(".")[2] for name in names})
