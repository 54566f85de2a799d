"""EVA: LoRA that starts at the leading right singular vectors of its inputs, found on training batches (2410.07170).

PEFT leaves the factors of ``init_lora_weights="eva"`` at ordinary values until it is given batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import prepare_layer_inputs_fn_language_modeling
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rankwise.scores.probe import untouched

MOST_ROUNDS = 20


def find_start_(model: PeftModel, batches: DataLoader[Any], *, by_token: bool) -> None:
    """Let PEFT find the factors' start, and how the ranks are shared out; all else of the model is as before.

    Args:
        model: LoRA with ``init_lora_weights="eva"``, on its device.
        batches: Training batches; all processes put their inputs together and find the same.
        by_token: Labels belong to tokens, and EVA leaves out what has none.

    Raises:
        ValueError: The start of a projection is not found however often the batches are gone through.
    """
    with untouched(model):
        initialize_lora_eva_weights(
            model.eval(),
            Inputs(batches, labelled=by_token),
            forward_fn=Forward(MOST_ROUNDS * len(batches)),
            prepare_layer_inputs_fn=inputs_of,
            adapter_name=model.active_adapter,
            show_progress_bar=False,
        )


def take_start_(model: PeftModel, folder: Path) -> None:
    """Give the factors the ranks that a checkpoint has, and its values; what its start had dropped is dropped.

    Args:
        model: LoRA with ``init_lora_weights="eva"``, whose start is not found yet.
        folder: A checkpoint of a run that began as this one.

    Raises:
        FileNotFoundError: It holds no adapter.
    """
    adapter = model.active_adapter
    saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    starts = {
        name: saved.get(f"{name}.lora_A.weight", model.get_parameter(f"{name}.lora_A.{adapter}.weight")[:0].detach())
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    initialize_lora_eva_weights(model, eva_state_dict=starts, adapter_name=adapter)


class Forward:
    """A forward pass that is made so many times and no more: PEFT goes on until every projection's start is found.

    Args:
        most: How many times.

    Raises:
        ValueError: On the call after those.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Return what the model makes of a batch."""
        if not self._left:
            raise ValueError(
                f"EVA finds no start for some projection in {MOST_ROUNDS} rounds through the batches: each has to have "
                "as many rows (tokens, or texts where a pooler is among the targets) as r * eva_config.rho, and its "
                "directions have to settle to a cosine of eva_config.tau from batch to batch. Raise the batch size, "
                "lower r or rho, lower eva_config.tau, or leave the pooler out of target_modules"
            )
        self._left -= 1
        return model(**inputs)


class Inputs:
    """Batches as dicts, as often as they are asked for.

    Args:
        batches: What gives them.
        labelled: Leave the labels in.
    """

    def __init__(self, batches: DataLoader[Any], *, labelled: bool) -> None:
        self._batches = batches
        self._left_out = () if labelled else ("labels",)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            yield {name: value for name, value in batch.items() if name not in self._left_out}


def inputs_of(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:
    """Return a projection's inputs as rows: of all tokens that count, or of each text where there is one (a pooler)."""
    first: Tensor = layer_input if isinstance(layer_input, Tensor) else layer_input[0]  # a hook has them as a tuple
    if first.dim() == 2:
        return first.contiguous()  # PEFT views it as one row
    rows: Tensor = prepare_layer_inputs_fn_language_modeling(first, model_input, layer_name)
    return rows
