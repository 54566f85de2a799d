"""What PEFT's AdaLoRA leaves to the training loop: its length, the update after each step, its loss, its state.

AdaLoRA: Zhang et al., arXiv 2303.10512. ``W = W0 + (alpha / r) B diag(E) A``; a triplet is one column of ``B``, one
entry of ``E`` and one row of ``A``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.files import write_atomic

STATE = "rankwise_adalora.safetensors"
Loss = Callable[..., Tensor]


def check_schedule(config: AdaLoraConfig) -> None:
    """Check what of the schedule does not depend on the length of training.

    Raises:
        ValueError: Ranks would not be taken away, or a field is out of its range.
    """
    for name, least in (("target_r", 1), ("deltaT", 1), ("tinit", 0), ("tfinal", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)}: {least} is the least")
    for name in ("beta1", "beta2"):
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be above 0 and below 1")
    if config.init_lora_weights is not True:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r}: AdaLoRA's triplets start in its own way; leave it out"
        )
    if config.target_r >= config.init_r:
        raise ValueError(
            f"target_r={config.target_r} must be below init_r={config.init_r}: AdaLoRA takes ranks away; for one fixed "
            "rank use the method 'lora'"
        )


class AdaLoraCallback(TrainerCallback):
    """Runs AdaLoRA in a Trainer: steps are counted from 1, and step ``total - tfinal`` makes the final choice.

    The adapter stays at ``init_r`` with the entries of ``E`` that are out at zero, also in its files: PEFT would cut
    its tensors when it saves them, and a cut checkpoint no longer fits the model that is to be resumed. What PEFT does
    not save, the running means of the importance and which triplets are in, is a file of its own in each checkpoint.

    Args:
        model: A model made with ``AdaLoraConfig``; its ``total_step`` is filled in.

    Raises:
        ValueError: When training begins: it is too short for ``tinit`` and ``tfinal``.
        FileNotFoundError: When training resumes: the checkpoint holds no state of AdaLoRA.
        RuntimeError: A step made no gradients to update by.
    """

    def __init__(self, model: PeftModel) -> None:
        self.tuner: Any = model.base_model
        self.adapter = model.active_adapter
        self.kept: dict[str, list[bool]] | None = None

    @property
    def config(self) -> Any:
        """AdaLoRA's config, which PEFT's allocator reads at every step."""
        return self.tuner.peft_config[self.adapter]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fill in the length of training; continue where a checkpoint was written."""
        config = self.config
        if state.max_steps - config.tinit - config.tfinal < 2:
            raise ValueError(
                f"tinit={config.tinit} and tfinal={config.tfinal} leave {state.max_steps} steps of training no room to "
                f"take ranks away: train for at least {config.tinit + config.tfinal + 2}, or lower them"
            )
        self.tuner.rankallocator.set_total_step(state.max_steps)
        if state.global_step:
            self._load(_checkpoint(args, state) / STATE)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the importance and take ranks away, while the step's gradients are still there."""
        if any(p.grad is None for layer in layers(self.tuner) for p in self._triplets(layer)):
            raise RuntimeError("AdaLoRA's update found no gradients: they were cleared before on_optimizer_step")
        self.config.rank_pattern = self.kept
        self.tuner.update_and_allocate(state.global_step + 1)
        self.kept, self.config.rank_pattern = self.config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the running means and what is in beside the checkpoint."""
        if state.is_world_process_zero:
            allocator = self.tuner.rankallocator
            tensors = {f"importance/{name}": t.contiguous() for name, t in allocator.exp_avg_ipt.items()}
            tensors |= {f"uncertainty/{name}": t.contiguous() for name, t in allocator.exp_avg_unc.items()}
            tensors |= {f"kept/{name}": torch.tensor(each) for name, each in (self.kept or {}).items()}
            write_atomic(_checkpoint(args, state) / STATE, lambda path: save_file(tensors, path))

    def _load(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file.parent} holds no {STATE}, so AdaLoRA can't be resumed from it")
        device = next(layers(self.tuner)).lora_E[self.adapter].device
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        try:
            loaded = load_file(file, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}): copy the checkpoint again") from error
        for key, tensor in loaded.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise ValueError(f"{file} is damaged, {key!r} is no part of AdaLoRA's state: copy the checkpoint again")
            parts[part][name] = tensor
        allocator = self.tuner.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = parts["importance"], parts["uncertainty"]
        allocator.ipt = {name: torch.zeros_like(tensor) for name, tensor in parts["importance"].items()}
        self.kept = {name: tensor.tolist() for name, tensor in parts["kept"].items()} or None

    def _triplets(self, layer: Any) -> tuple[Tensor, ...]:
        return tuple(factors[self.adapter] for factors in (layer.lora_A, layer.lora_E, layer.lora_B))


def layers(model: torch.nn.Module) -> Iterator[Any]:
    """Yield AdaLoRA's layers."""
    return (module for module in model.modules() if isinstance(module, AdaLoraLayer))


def kept_parameters(model: PeftModel) -> int:
    """Count the parameters of the triplets that are in: those whose entry of ``E`` is not zero."""
    adapter, found = model.active_adapter, 0
    for layer in layers(model):
        one = layer.lora_A[adapter].shape[1] + layer.lora_B[adapter].shape[0] + 1
        found += one * int(torch.count_nonzero(layer.lora_E[adapter]))
    return found


def orthogonality(model: PeftModel) -> Tensor:
    """Return the mean over all ``A`` and ``B`` of ``|A A^T - I|`` and ``|B^T B - I|``, Frobenius norms."""
    adapter = model.active_adapter
    products = []
    for layer in layers(model):
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        products += [a @ a.T, b.T @ b]
    norms = [torch.linalg.norm(p - torch.eye(len(p), dtype=p.dtype, device=p.device)) for p in products]
    return torch.stack(norms).mean()


def penalty(model: PeftModel) -> Tensor:
    """Return what AdaLoRA adds to the loss of an optimizer step: ``orth_reg_weight`` times ``orthogonality``."""
    config: Any = model.peft_config[model.active_adapter]
    weighted: Tensor = config.orth_reg_weight * orthogonality(model)
    return weighted


def with_orthogonality(loss: Loss, model: PeftModel) -> Loss:
    """Return a loss for Trainer's ``compute_loss_func`` with AdaLoRA's penalty added while the model trains.

    PEFT adds it to a loss that the model computes itself, so a loss computed outside goes without, silently. It is
    added once an optimizer step: each micro-batch bears the share of its labels, as Trainer counts them.

    Args:
        loss: Called with (outputs, labels, number of items in the optimizer step).
        model: A model made with ``AdaLoraConfig``.
    """

    def penalised(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        if not model.training:
            return value
        share = 1.0 if num_items_in_batch is None else labels.ne(-100).sum() / num_items_in_batch
        return value + share * penalty(model)

    return penalised


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
