"""How much rank each projection should get, from a recipe's model and data, and what other tools need to train it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

import rankwise
from rankwise.files import write_json_atomic, write_text_atomic
from rankwise.method.ranks import lookalikes
from rankwise.method.targets import module_names
from rankwise.planning.rank_plan import RankPlan
from rankwise.runs.building.job import load_parts
from rankwise.runs.building.models import model_class, resolve_name
from rankwise.runs.building.quantised import keep_unpacked_, quantisation_fields
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import check_no_adapter
from rankwise.search.trainer import probe_batches
from rankwise.tasks import TaskData


@dataclass(frozen=True)
class Planned:
    """A plan for a recipe's model.

    Args:
        plan: The plan.
        snippets: What to write into a script or another tool's config, by its name.
        out: Where the adapter and the plan were written, if anywhere.
    """

    plan: RankPlan
    snippets: dict[str, str]
    out: Path | None


def plan_ranks(
    recipe: Recipe,
    *,
    budget: int,
    space: str = "linear",
    batches: int = 24,
    out: str | Path | None = None,
    data: TaskData | None = None,
    **options: Any,
) -> Planned:
    """Plan ranks for a recipe's model on its training data; nothing is trained.

    Args:
        recipe: Names the model and the data; its method is not used.
        budget: The most parameters the plan may have.
        space: ``"linear"`` or ``"all"``.
        batches: How many training batches to plan on.
        out: Where an adapter at its start, the plan and the snippets go.
        data: Prepared data in place of what ``recipe.data`` names.
        **options: For ``rankwise.rank_plan``.

    Raises:
        ValueError: ``out`` has an adapter already, or what ``rankwise.rank_plan`` raises.
    """
    if out is not None:
        check_no_adapter(out)
    with quiet(), _not_logged():
        data, loaded = load_parts(recipe, data)
        model: Any = loaded
        if recipe.model.load_in is None:  # quantised weights are there already, and can't be moved
            model.to(PartialState().device)
        keep_unpacked_(model, recipe)
        config = rankwise.HeteroLoraConfig(score_batches=batches, seed=recipe.seed)
        size = recipe.training.batch_size
        loader: Any = DataLoader(data.train, batch_size=size, collate_fn=data.collator)
        plan = rankwise.rank_plan(
            model,
            probe_batches(loader, size, config, 0),
            budget=budget,
            space=space,
            compute_loss=data.loss if data.loss_func is not None else None,
            seed=recipe.seed,
            **options,
        )
        task_type = data.task_type
        target = None if out is None else Path(out)
        snippets = snippets_of(plan, target, task_type, loading(recipe, data), module_names(model))
        if target is not None:
            config_out = plan.to_config(task_type=task_type, base_model_name_or_path=recipe.model.name)
            get_peft_model(model, config_out).save_pretrained(str(target))
            write_json_atomic(target / "rank_plan.json", plan.to_dict())
            write_text_atomic(target / "snippets.md", as_markdown(snippets))
            plan.plot(target / "rank_plan.png")
    return Planned(plan, snippets, target)


@contextmanager
def _not_logged() -> Iterator[None]:
    """Log no warning inside: whoever shows a plan shows its warnings."""
    logger = logging.getLogger("rankwise")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class Loading(NamedTuple):
    """How a script or another tool comes to the base model.

    Args:
        imports: The lines of a script that import what it needs.
        base: Those that load ``base``.
        prepare: Those that make a quantised ``base`` one to train through.
        load_in: ``"4bit"``, ``"8bit"`` or none, as the recipe has it.
    """

    imports: str
    base: str
    prepare: str = ""
    load_in: str | None = None

    @property
    def used(self) -> list[str]:
        """What of PEFT the lines need."""
        return ["prepare_model_for_kbit_training"] if self.prepare else []


def loading(recipe: Recipe, data: TaskData) -> Loading:
    """Return how a recipe's base model is loaded with its task's head, quantised where the recipe has it so."""
    spec, kind = recipe.model, model_class(data.task_type).__name__
    head = data.model_arguments()
    if data.kind == "causal":
        head = {}
    asked = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code, "dtype": spec.dtype}
    asked |= {name: head.get(name) for name in ("num_labels", "problem_type", "pad_token_id")}
    arguments = "".join(f", {name}={value!r}" for name, value in asked.items() if value not in (None, False))
    call = f"base = {kind}.from_pretrained({resolve_name(spec.name)!r}{arguments}"
    fields = quantisation_fields(recipe)
    if not fields:
        return Loading(f"from transformers import {kind}\n", f"{call})\n")
    told = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    checkpointing = recipe.training.gradient_checkpointing
    return Loading(
        imports=f"from transformers import {kind}, BitsAndBytesConfig\n",
        base=f"quantised = BitsAndBytesConfig(\n{told})\n{call}, quantization_config=quantised)\n",
        prepare=f"base = prepare_model_for_kbit_training(base, use_gradient_checkpointing={checkpointing})\n",
        load_in=spec.load_in,
    )


def snippets_of(
    plan: RankPlan, folder: Path | None, task_type: str, loads: Loading, modules: Sequence[str]
) -> dict[str, str]:
    """Return what to write for PEFT, TRL, LLaMA-Factory and Axolotl to train a plan.

    A plan that plain LoRA can't have, as one with block paths, and one for a classifier, which those tools don't train,
    is for Python alone. A tool that has no field for a rank per module starts from the adapter folder, which holds the
    ranks.

    Args:
        plan: A plan.
        folder: Where the adapter at its start was written; a name stands in where it was not.
        task_type: PEFT's.
        loads: How the base model is loaded, see ``loading``.
        modules: The full names of all its modules.
    """
    config = plan.to_config()
    planned = sorted(plan.modules[name] for name in plan.chosen if name in plan.modules)
    names = target_names(planned, config, modules)
    made = _config_lines(config, names, task_type)
    used = ["get_peft_model", *loads.used]
    ours = "from rankwise import HeteroLoraConfig\n" if isinstance(config, rankwise.HeteroLoraConfig) else ""
    used = used if ours else ["LoraConfig", *used]
    python = (
        f"from peft import {', '.join(used)}\n{ours}{loads.imports}\n"
        f"{loads.base}{loads.prepare}{made}model = get_peft_model(base, config)\n"
    )
    if ours or task_type != "CAUSAL_LM":
        return {"Python": python}
    return {"Python": python, **_causal_tools(config, names, planned, made, str(folder or "FOLDER"), loads)}


def _causal_tools(
    config: LoraConfig, names: list[str] | str, planned: Sequence[str], made: str, start: str, loads: Loading
) -> Mapping[str, str]:
    """Return what to write for the tools that train causal language models."""
    # LLaMA-Factory reads no expression, and lets the adapter that it starts from say which modules are meant.
    listed = ",".join(planned if isinstance(names, str) else names)
    targets = f" {_scalar(names)}\n" if isinstance(names, str) else "".join(f"\n  - {name}" for name in names) + "\n"
    place = _scalar(start)
    bits = loads.load_in.removesuffix("bit") if loads.load_in else ""
    return {
        "TRL": (
            f"from datasets import load_dataset\nfrom peft import {', '.join(['LoraConfig', *loads.used])}\n"
            f"{loads.imports}from trl import SFTTrainer\n\n"
            f"{loads.base}{loads.prepare}{made}"
            'data = load_dataset("json", data_files="train.jsonl", split="train")  # yours\n'
            "trainer = SFTTrainer(base, train_dataset=data, peft_config=config)\n"
        ),
        "LLaMA-Factory": (
            "# It has no field for a rank per module: the ranks are those of the adapter that training starts from.\n"
            f"finetuning_type: lora\nadapter_name_or_path: {place}\nlora_target: {listed}\n"
            f"lora_rank: {config.r}\nlora_alpha: {config.lora_alpha}\n"
            + (f"quantization_bit: {bits}\nquantization_method: bnb\n" if bits else "")
        ),
        "Axolotl": (
            "# Only since July 2026 it has lora_rank_pattern: the ranks are those of the adapter in lora_model_dir.\n"
            f"adapter: {'qlora' if bits == '4' else 'lora'}\nlora_model_dir: {place}\nlora_target_modules:{targets}"
            f"lora_r: {config.r}\nlora_alpha: {config.lora_alpha}\n" + (f"load_in_{bits}bit: true\n" if bits else "")
        ),
    }


def _scalar(text: str) -> str:
    """Return a text as YAML has it, in quotes if need be."""
    return yaml.safe_dump([text], allow_unicode=True, width=math.inf).removeprefix("- ").rstrip()


def _config_lines(config: LoraConfig, names: list[str] | str, task_type: str) -> str:
    """Return the lines that make a plan's config with these targets."""
    fields: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": names,
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "task_type": task_type,
    }
    if config.modules_to_save:
        fields["modules_to_save"] = config.modules_to_save
    if isinstance(config, rankwise.HeteroLoraConfig):
        more = ("mode", "shortcuts", "shortcut_ranks", "shortcut_r", "shortcut_alpha")
        fields |= {name: getattr(config, name) for name in more}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    return f"config = {type(config).__name__}(\n{arguments})\n"


def target_names(planned: Sequence[str], config: LoraConfig, modules: Sequence[str]) -> list[str] | str:
    """Return targets that find a plan's modules and no others: their names from the list of blocks on, if those do.

    ``layers.0.fc1`` is in the encoder and in the decoder of BART: the config's own targets tell them apart.

    Args:
        planned: The full names of the plan's modules.
        config: The plan's.
        modules: The full names of all modules of the base model.
    """
    short = [from_blocks(module) for module in planned]
    found = {*set(short).intersection(modules), *lookalikes(short, modules)}
    if found <= set(planned) and len(set(short)) == len(short):
        return short
    targets = config.target_modules
    return targets if isinstance(targets, str) else sorted(targets or ())


def from_blocks(module: str) -> str:
    """Return a module's name from its list of blocks on (``layers.3.self_attn.q_proj``), which every wrapper keeps."""
    parts = module.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[max(first - 1, 0) :])


def as_markdown(snippets: dict[str, str]) -> str:
    """Return the snippets as a page."""
    languages = {"Python": "python", "TRL": "python"}
    return "\n".join(f"## {name}\n\n```{languages.get(name, 'yaml')}\n{text}```\n" for name, text in snippets.items())
