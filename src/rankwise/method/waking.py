"""What happens before each forward pass of a model with paths: its search wakes, a skipped step is noticed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rankwise.distributed import world_size
from rankwise.paths.driver import driver
from rankwise.paths.fused import transformed
from rankwise.paths.path_set import PathSet


def before_forward(module: Any, args: Any) -> None:
    """Wake the search of each adapter at its first training forward, and notice a step that was skipped."""
    if not torch.compiler.is_compiling():
        _refresh(module)
    if not torch.is_grad_enabled():
        return
    for paths in module.rankwise_paths.values():
        session = paths.session
        # Gradients in evaluation mode: a loop that forgot model.train() would search nothing and never know.
        if not module.training:
            session.unheard = session.unheard or not (session.probing or torch.compiler.is_compiling())
            continue
        # Here and not once: the process group is often made after the model.
        session.tied = world_size() > 1
        if session.recorder is not None and not session.probing and not torch.compiler.is_compiling():
            _drop_skipped_step(paths)
        idle = session.listener is None or not session.listener.begun
        wanted = paths.config.acts or (paths.moves and not torch.compiler.is_compiling())  # a whole graph stays whole
        if idle and wanted and not session.detached and not session.probing and paths.trains:
            _wake(module, paths)


def _refuse_static_graph(paths: PathSet) -> None:
    """Refuse what takes the first step's graph for all steps': gradients of paths that come on later stay apart.

    Raises:
        ValueError: Says what to leave out.
    """
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if getattr(wrapper, "static_graph", False):
        raise ValueError(
            f"DistributedDataParallel(static_graph=True) reduces what the first step needed, and what adapter "
            f"{paths.adapter!r} trains changes, so processes would drift apart: leave static_graph out (with gradient "
            'checkpointing say {"use_reentrant": False}, which does not need it), or set mode="off"'
        )


def _drop_skipped_step(paths: PathSet) -> None:
    """Forget what was recorded of gradients that were cleared without an optimizer step, as gradient scalers do."""
    enabled, recorder = paths.enabled, paths.session.recorder
    if recorder is not None and enabled and all(path.lora_B.grad is None for path in enabled):
        recorder.drop()


@torch.compiler.disable
def _wake(model: nn.Module, paths: PathSet) -> None:
    if paths.session.tied:
        _refuse_static_graph(paths)
    driver().wake(model, paths)


@torch.compiler.disable
def _refresh(model: Any) -> None:
    """Notice that somebody has written to what says which paths are on: an average of weights does, in its copy.

    What several processes train writes to all buffers before each forward pass, and always the same.
    """
    if world_size() == 1 and not transformed():
        for paths in model.rankwise_paths.values():
            paths.refresh()
