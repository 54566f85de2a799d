"""Whether a run fits: its memory, by running a training step on tensors that have sizes and no values.

A step's forward and backward pass runs under torch's ``FakeTensorMode``: every operation says what it would allocate,
nothing is computed. The live storages are summed as they come and go, so the peak has what autograd keeps for the
backward pass, what operations need in between, and the gradients. Weights, optimizer state and the search's sums are
counted. The attention is the one torch chooses on a CPU; a fused one of a GPU keeps no more.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.loss.loss_utils import ForCausalLMLoss

import rankwise
from rankwise.runs.building.job import CHECKPOINTING
from rankwise.runs.building.models import load_config, model_class
from rankwise.runs.building.quantised import OUTPUTS
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.methods import WITH_PATHS
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.tables import in_words
from rankwise.runs.sizes import head_size, kind_of, plan_recipe
from rankwise.tasks import ANSWERS, choice_loss
from rankwise.tasks.encode import LONGEST
from rankwise.tasks.losses import regression_loss, token_sums

# Bytes of a weight that bitsandbytes quantises: 4 bits and 8-bit constants per 64, themselves in groups; 8 bits.
QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
CHOICES = 2  # sequences in a row of a choice


class Meter(TorchDispatchMode):
    """Sums the sizes of the storages that are alive, and keeps the largest sum.

    Attributes:
        live: Bytes that are alive now.
        peak: The most that ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += self.sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def ignore(self, model: nn.Module) -> None:
        """Leave a model's own tensors out: they are counted apart."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.sizes[tensor.untyped_storage()._cdata] = 0

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def plan_memory(recipe: Recipe) -> dict[str, int]:
    """Return the bytes that a run needs at its peak, and what for.

    ``weights``: the frozen model. ``adapter``: what the method adds, and the head. ``optimizer``: AdamW's moments.
    ``gradients``, ``window``: of what trains, and of an open scoring window. ``activations``: the most that a training
    step of the recipe's batch size and greatest length needs beside. ``evaluation``: the most that a batch of an
    evaluation needs. ``total``: all but the last two, and the larger of activations with gradients and evaluation.

    Raises:
        ValueError: The model's config can't be had, or the method does not fit the model.
    """
    sizes = plan_recipe(recipe)
    with quiet():
        model = _hollow(recipe)
        trained = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if _is_added(name))
        weights = _weights(model, recipe)
        length = sequence_length(recipe, model)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            step = _peak(model, recipe, length, training=True)
            evaluation = _peak(model, recipe, length, training=False)
    found = {
        "weights": weights,
        "adapter": trained,
        "optimizer": sizes["optimizer_bytes"],
        "gradients": sizes["gradient_bytes"],
        "window": sizes.get("window_bytes", 0),
        "activations": max(step - sizes["gradient_bytes"], 0),
        "evaluation": evaluation,
    }
    moving = max(found["activations"] + found["gradients"], evaluation)
    return {**found, "total": weights + trained + found["optimizer"] + found["window"] + moving}


def sequence_length(recipe: Recipe, model: Any) -> int:
    """Return the greatest length of a sequence, as the data is cut: the tokenizer's limit is taken for the model's."""
    asked = recipe.data.block_size if recipe.data.task == "text" else recipe.data.max_length
    return asked or min(getattr(model.config, "max_position_embeddings", LONGEST), LONGEST)


def _hollow(recipe: Recipe) -> Any:
    """Return the run's model without memory, ready to be trained."""
    causal = kind_of(recipe) == "causal"
    task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
    config = load_config(recipe.model, **head_size(recipe))
    dtype = getattr(config, "dtype", None) if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    with torch.device("meta"):
        model = model_class(task_type).from_config(config, dtype=dtype or torch.float32)
    method = recipe.method.build(task_type, seed=recipe.seed)
    if method is not None:
        if recipe.method.name not in WITH_PATHS and hasattr(method, "init_lora_weights"):
            method.init_lora_weights = True  # the others look at weights, and there are none
        model = get_peft_model(model, method, low_cpu_mem_usage=True)
    if recipe.method.name == "prefix":
        model.word_embeddings = None  # the base's own, held a second time: it can't be given memory twice
    if recipe.method.name in WITH_PATHS:
        rankwise.detach(model)  # nothing is searched here
    if recipe.training.gradient_checkpointing:
        enable = getattr(model, f"{CHECKPOINTING}_enable")  # the name has changed within transformers 5
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def _is_added(name: str) -> bool:
    parts = set(name.split("."))
    return "modules_to_save" in parts or any(
        part.startswith(("lora_", "bottleneck", "prompt_encoder")) for part in parts
    )


def _is_quantised(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not _is_added(name) and not set(OUTPUTS) & set(name.split("."))


def _weights(model: nn.Module, recipe: Recipe) -> int:
    """Return the bytes of what the method does not add; in 4 or 8 bits what bitsandbytes quantises."""
    rate = QUANTISED.get(recipe.model.load_in or "")
    quantised = {
        id(module.weight) for name, module in model.named_modules() if rate is not None and _is_quantised(name, module)
    }
    total = 0.0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _is_added(name):
            own = rate if rate is not None and id(tensor) in quantised else tensor.element_size()
            total += tensor.numel() * own
    return round(total)


def _peak(model: Any, recipe: Recipe, length: int, *, training: bool) -> int:
    """Return the peak of what one batch needs beside the model's own tensors."""
    kind = kind_of(recipe)
    rows = recipe.training.batch_size if training else recipe.training.eval_batch_size
    batch = _batch(rows, length, kind, packed=training and recipe.data.packing)
    answers = recipe.data.task in ANSWERS and training
    meter = Meter()
    model.train(training)
    with meter, torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.bf16):
        meter.ignore(model)
        labels = batch.pop("labels")
        if answers:
            batch["logits_to_keep"] = 1  # TRL's loss makes the logits in tiles: none are kept
        if kind == "causal":
            batch["use_cache"] = False
        outputs = model(**batch)
        if not training:
            if kind == "causal":
                token_sums(outputs.logits, labels)
            return meter.peak
        loss = _loss(outputs, labels, kind, answers=answers)
        del outputs
        loss.backward()
    return meter.peak


def _batch(rows: int, length: int, kind: str, *, packed: bool) -> dict[str, Any]:
    if packed:  # one row, no padding
        ids = torch.zeros(1, rows * length, dtype=torch.long)
        return {"input_ids": ids, "position_ids": ids.clone(), "labels": ids}
    count = rows * CHOICES if kind == "choice" else rows
    ids = torch.zeros(count, length, dtype=torch.long)
    labels = {"causal": ids, "regression": torch.zeros(rows)}.get(kind, torch.zeros(rows, dtype=torch.long))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _loss(outputs: Any, labels: Tensor, kind: str, *, answers: bool) -> Tensor:
    if answers:
        whole: Tensor = outputs.logits.float().sum()
        return whole
    if kind == "causal":
        loss: Tensor = ForCausalLMLoss(outputs.logits, labels, outputs.logits.shape[-1])
        return loss
    return regression_loss(outputs, labels) if kind == "regression" else choice_loss(outputs, labels)


def verdict(memory: Mapping[str, int], room: float | None) -> str:
    """Say whether it fits into so many bytes; by default those of this machine's accelerator.

    Args:
        memory: From ``plan_memory``.
        room: Bytes.
    """
    if room is None and torch.cuda.is_available():
        room = float(torch.cuda.mem_get_info()[1])
    total = memory["total"]
    if room is None:
        return f"needs about {in_words(total)} at its peak"
    return f"{'fits' if total <= room else 'does not fit'}: about {in_words(total)} of {in_words(room)}"
