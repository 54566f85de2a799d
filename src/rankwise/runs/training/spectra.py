"""What a run writes at the end of each epoch: the singular values of its paths, and how large their gradients were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rankwise.files import write_json_atomic, write_text_atomic
from rankwise.paths.low_rank_path import LowRankPath
from rankwise.paths.path_set import PathSet, path_set
from rankwise.runs.folder import RunFolder
from rankwise.scores.spectrum import singular_values

OPEN_EPOCH = "rankwise_gradients.json"  # in a checkpoint: the sums of the epoch under way
KINDS = ("layer", "linear")
Sums = dict[tuple[int, str], dict[str, Any]]  # counts are numbers, sums over entries tensors on their device


def watchers(model: Any, folder: RunFolder) -> list[TrainerCallback]:
    """Return the callbacks that a run's model calls for.

    Singular values where it has ``layer`` paths; gradients where it trains LoRA beside them from beginning to end.

    Args:
        model: Any model.
        folder: The run folder.
    """
    try:
        paths = path_set(model)
    except ValueError:
        return []
    found: list[TrainerCallback] = []
    if any(path.kind == "layer" for path in paths.resident):
        found.append(SpectraFile(folder.spectra))
        if paths.config.policy() is None and any(path.kind == "linear" for path in paths.enabled):
            found.append(GradientsFile(folder.gradients))
    return found


class EpochFile(TrainerCallback):
    """A file of JSON lines, one for each epoch; a resumed run keeps those that its checkpoint had."""

    def __init__(self, path: Path) -> None:
        """Write to ``path``."""
        self.path = path
        self.records: list[dict[str, Any]] = []

    def line(self, paths: PathSet) -> dict[str, Any] | None:
        """Return what is to be written at the end of an epoch, if anything."""
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back the whole epochs before the checkpoint that training continues from."""
        self.records = []
        if state.global_step and self.path.is_file():
            lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
            self.records = [line for line in lines if line["step"] <= state.global_step and _is_whole(line["epoch"])]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write at the end of an epoch, before the checkpoint of that step."""
        if _is_whole(state.epoch):
            self._write(state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the part of an epoch after which training stops."""
        if not self.records or self.records[-1]["step"] < state.global_step:
            self._write(state, kwargs["model"])

    def _write(self, state: Any, model: Any) -> None:
        line = self.line(path_set(model))  # by every process, in case the weights are spread over them
        if line is not None:
            self.records.append({"epoch": round(state.epoch, 4), "step": state.global_step, **line})
            if state.is_world_process_zero:
                write_text_atomic(self.path, "".join(json.dumps(record) + "\n" for record in self.records))


class SpectraFile(EpochFile):
    """The singular values of the ``B A`` of each ``layer`` path that contributes, largest first."""

    def line(self, paths: PathSet) -> dict[str, Any]:
        """Return the values by path, without those that diverged."""
        there = [path for path in paths.resident if path.kind == "layer" and path.contributing and _is_finite(path)]
        return {"paths": {path.name: singular_values(path).tolist() for path in there}}


class GradientsFile(EpochFile):
    """Mean absolute gradients of ``layer`` and ``linear`` paths by block, over the optimizer steps of each epoch.

    They are read just before the optimizer's step, after clipping, which scales all of them alike. For each block and
    kind: ``grad_A`` and ``grad_B``, means over the entries and the steps; ``size_A`` and ``size_B``, the numbers of
    entries; ``norm_B``, the Frobenius norm of ``B``, a mean over the paths and the steps. A merged path counts in each
    block that it spans.
    """

    def __init__(self, path: Path) -> None:
        """Write to ``path``."""
        super().__init__(path)
        self._restart()

    def _restart(self) -> None:
        self.sums: Sums = {}
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take back the epochs, and the part of one, before the checkpoint that training continues from."""
        super().on_train_begin(args, state, control, **kwargs)
        self._restart()
        file = _checkpoint(args, state) / OPEN_EPOCH
        if state.global_step and file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.steps = kept["steps"]
            self.sums = {(block, kind): sums for block, kind, sums in kept["sums"]}

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add a step; the numbers stay on the device."""
        self.steps += 1
        for path in path_set(kwargs["model"]).enabled:
            first, last = path.blocks
            if path.kind in KINDS and first >= 0 and path.lora_B.grad is not None:
                measured = _measured(path)
                for block in range(first, last + 1):
                    sums = self.sums.setdefault((block, path.kind), {})
                    for name, value in measured.items():
                        sums[name] = sums.get(name, 0.0) + value

    def line(self, paths: PathSet) -> dict[str, Any] | None:
        """Return the means since the epoch began."""
        if not self.steps:
            return None
        blocks: dict[str, dict[str, dict[str, float]]] = {}
        for (block, kind), sums in sorted(self.sums.items()):
            total = {name: float(value) for name, value in sums.items()}
            blocks.setdefault(str(block), {})[kind] = {
                "grad_A": total["A"] / total["entries_A"],
                "grad_B": total["B"] / total["entries_B"],
                "size_A": round(total["entries_A"] / self.steps),
                "size_B": round(total["entries_B"] / self.steps),
                "norm_B": total["norm"] / total["seen"],
            }
        return {"steps": self.steps, "blocks": blocks}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write at the end of an epoch, and start again."""
        super().on_step_end(args, state, control, **kwargs)
        if _is_whole(state.epoch):
            self._restart()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the sums of the epoch under way beside the checkpoint."""
        if state.is_world_process_zero and self.steps:
            sums = [
                [block, kind, {name: float(value) for name, value in each.items()}]
                for (block, kind), each in sorted(self.sums.items())
            ]
            write_json_atomic(_checkpoint(args, state) / OPEN_EPOCH, {"steps": self.steps, "sums": sums})


def _is_finite(path: LowRankPath) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in path.parameters)


def _is_whole(epoch: float) -> bool:
    return float(epoch).is_integer()


def _measured(path: LowRankPath) -> dict[str, Any]:
    """Return what a path adds to the sums of its blocks in one step."""
    a, b = path.parameters
    return {
        "seen": 1,
        "entries_A": a.numel(),
        "entries_B": b.numel(),
        "A": _absolute(a.grad),
        "B": _absolute(b.grad),
        "norm": b.float().norm(),
    }


def _absolute(gradient: Tensor | None) -> Any:
    return 0.0 if gradient is None else gradient.float().abs().sum()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
