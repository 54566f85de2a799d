"""Instruction tuning with TRL's ``SFTTrainer`` on rows that are tokenized and masked already.

What is learned is decided once, by ``rankwise.tasks.encode``: labels are -100 on the prompt, unless a recipe says
``data.train_on_prompt: true``. So TRL prepares nothing, and its loss is

``loss = - sum over tokens with a label of log p(token | what precedes it) / number of these tokens``,

both over the whole optimizer step; a method's penalty comes on top, once a step. TRL computes it without a table of all
logits, which at 32,000 words is most of a step's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rankwise.tasks import IGNORED, LABELS


def instruction_arguments(**given: Any) -> SFTConfig:
    """Return the arguments of an ``InstructionTrainer``: those of a Trainer, and nothing left for TRL to prepare."""
    return SFTConfig(max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **given)


def with_penalty(trainer_class: type[InstructionTrainer], penalty: Callable[[], Tensor]) -> type[InstructionTrainer]:
    """Return the class with a penalty added to its training loss."""
    return type(trainer_class.__name__, (trainer_class,), {"penalty": staticmethod(penalty)})


class InstructionTrainer(SFTTrainer):
    """TRL's trainer, evaluating in one forward pass a batch and telling nobody about the run.

    TRL computes the loss from log-probabilities and ignores the one in the model's output, where PEFT's AdaLoRA adds
    its penalty: that has to be given to ``with_penalty``.
    """

    penalty: Callable[[], Tensor] | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss of a micro-batch, and its share of the penalty: that of its tokens in the step's."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.penalty is None:
            return found
        loss, *outputs = found if return_outputs else (found,)
        share: Tensor | float = 1.0
        if num_items_in_batch is not None:
            share = (inputs[LABELS] != IGNORED).sum() / num_items_in_batch
            if (
                self.args.average_tokens_across_devices
            ):  # the step's tokens of all processes, whose gradients are averaged
                share = share * self.accelerator.num_processes
        loss = loss + share * self.penalty()
        return (loss, *outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return loss (), logits (B, T, V) and labels (B, T) of a batch; TRL's own runs the model twice for them."""
        batch = self._prepare_inputs(dict(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**batch, use_cache=False)
        if prediction_loss_only:
            return outputs.loss, None, None
        return outputs.loss, outputs.logits, batch[LABELS]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run folder says what was trained, TRL's card would call a checkpoint a model by that name."""

    def _send_telemetry(self) -> None:
        """Do nothing: whoever starts a run here has not asked for TRL, which would report it to its authors."""
