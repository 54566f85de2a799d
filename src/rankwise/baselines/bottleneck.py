"""Bottleneck adapters after the feed-forward part of each block, absent from the lowest blocks (AdapterDrop)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from rankwise.errors import check_choice
from rankwise.method.registration import register_with_peft
from rankwise.wiring.anatomy import locate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
}
# The last projection of the feed-forward part, by family.
BERT = r".*\.layer\.\d+\.output\.dense"
LLAMA = r".*\.layers\.\d+\.mlp\.down_proj"
TARGETS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), BERT),
    "opt": r".*\.layers\.\d+\.fc2",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3"), LLAMA),
}


@dataclass
class BottleneckConfig(PeftConfig):
    """Sizes and places of bottleneck adapters.

    Adapters: Houlsby et al., arXiv 1902.00751; without those of the lowest blocks: AdapterDrop, arXiv 2010.11918.

    Args:
        bottleneck: Width m of the adapters.
        first_block: Blocks below this one have none.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.
        target_modules: What the adapters follow, as in ``LoraConfig``; the last projection of each feed-forward part
            if left out.
        modules_to_save: Modules that train and are saved beside the adapters.

    Raises:
        ValueError: A value is outside what is allowed.
    """

    bottleneck: int = 64
    first_block: int = 0
    activation: str = "gelu"
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]
        check_choice("activation", self.activation, ACTIVATIONS)
        for name, least in (("bottleneck", 1), ("first_block", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer and the adapter that follows it.

    ``y = W x``, ``out = y + U f(D y + c) + e`` with D (m x d) down, U (d x m) up; U and e start at zero, so the start
    is the base model. ``2 m d + m + d`` parameters.

    Args:
        base_layer: The linear layer.
        adapter: Name of the adapter.
        config: Its sizes.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Linear, adapter: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activation: dict[str, Callable[[Tensor], Tensor]] = {}
        self.add(adapter, config)

    def add(self, adapter: str, config: BottleneckConfig) -> None:
        """Add an adapter and make it the active one."""
        width = self.base_layer.out_features
        self.bottleneck_down[adapter] = nn.Linear(width, config.bottleneck)
        up = nn.Linear(config.bottleneck, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_up[adapter] = up
        self.activation[adapter] = ACTIVATIONS[config.activation]
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(adapter, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output (.., d) with what the active adapters add; ``x`` is (.., i)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for adapter in self.active_adapters:
            if adapter in self.bottleneck_down:
                down: Any = self.bottleneck_down[adapter]
                inner = self.activation[adapter](down(result.to(down.weight.dtype)))
                result = result + self.bottleneck_up[adapter](inner).to(result.dtype)
        return result


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters, built by ``peft.get_peft_model(model, BottleneckConfig(...))``."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: Any = TARGETS

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        """Fill in what the adapters follow in this family.

        Raises:
            ValueError: The family is unknown.
        """
        kind = model_config.get("model_type")
        if peft_config.target_modules is None and kind not in TARGETS:
            raise ValueError(
                f"target_modules: which projection ends a feed-forward part of {kind!r} is not known here (known are "
                f"{', '.join(sorted(TARGETS))}): name it, for example target_modules=['fc2']"
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Check the targets before anything is built.

        Raises:
            ValueError: They match nothing, no linear layer, or only blocks below the first one that gets an adapter.
        """
        found = {n: m for n, m in model.named_modules() if n and check_target_module_exists(peft_config, n)}
        if not found:
            raise ValueError(
                f"target_modules={peft_config.target_modules!r} matches no module of {type(model).__name__}"
            )
        for name, module in found.items():
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            if not isinstance(base, nn.Linear):
                raise ValueError(
                    f"target_modules matches {name!r}, a {type(base).__name__}: an adapter follows a linear layer"
                )
        highest = max(_block(name) for name in found)
        if highest < peft_config.first_block:
            raise ValueError(
                f"first_block={peft_config.first_block}: the blocks go up to {highest}, so none would get an adapter; "
                f"give at most {highest}"
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        """Leave out the lowest blocks."""
        found = check_target_module_exists(peft_config, key)
        return found and _block(key) >= peft_config.first_block

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.add(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge.

        Raises:
            ValueError: Always; says what to do instead.
        """
        raise ValueError(
            "bottleneck adapters have a non-linearity inside, so no weight can take them in: keep the adapter as it is "
            "(save_pretrained)"
        )


def _block(name: str) -> int:
    place = locate(name)
    return place.index if place is not None else 0


register_with_peft("BOTTLENECK", BottleneckConfig, BottleneckModel, prefix=BottleneckModel.prefix)
