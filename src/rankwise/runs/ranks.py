"""How much rank each projection should get, from a recipe's model and data, and what other tools need to train it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import set_seed

import rankwise
from rankwise.files import write_json_atomic, write_text_atomic
from rankwise.planning.rank_plan import RankPlan
from rankwise.runs.building.models import load_base, load_tokenizer
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import check_no_adapter
from rankwise.search.callback import probe_batches
from rankwise.tasks import TaskData, load_task


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
    with quiet():
        set_seed(recipe.seed)
        data = data or load_task(recipe.data, load_tokenizer(recipe.model))
        set_seed(recipe.seed)
        model: Any = load_base(recipe, task_type=data.task_type, arguments=data.model_arguments())
        model.to(PartialState().device)
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
        snippets = {} if plan.has_block_paths else snippets_of(plan, target, task_type)
        if target is not None:
            config_out = plan.to_config(task_type=task_type, base_model_name_or_path=recipe.model.name)
            get_peft_model(model, config_out).save_pretrained(str(target))
            write_json_atomic(target / "rank_plan.json", plan.to_dict())
            write_text_atomic(target / "snippets.md", as_markdown(snippets))
            plan.plot(target / "rank_plan.png")
    return Planned(plan, snippets, target)


def snippets_of(plan: RankPlan, folder: Path | None, task_type: str) -> dict[str, str]:
    """Return what to write for PEFT, TRL, LLaMA-Factory and Axolotl to train a plan of plain LoRA.

    A tool that has no field for a rank per module starts from the adapter folder, which holds the ranks.

    Args:
        plan: A plan without block paths.
        folder: Where the adapter at its start was written; a name stands in where it was not.
        task_type: PEFT's.
    """
    config = plan.to_lora_config()
    start = str(folder or "FOLDER")
    names = [from_blocks(module) for module in sorted(config.target_modules or ())]
    fields = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": names,
        "rank_pattern": dict(config.rank_pattern or {}),
        "alpha_pattern": dict(config.alpha_pattern or {}),
        "task_type": task_type,
    }
    arguments = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    script = f"from peft import LoraConfig\n\nconfig = LoraConfig(\n{arguments})\n"
    targets = "".join(f"  - {name}\n" for name in names)
    ranks = f"# the ranks of the {len(names)} modules are in {start}/adapter_config.json\n"
    return {
        "Python": f"{script}model = get_peft_model(base, config)  # from peft import get_peft_model\n",
        "TRL": f"{script}trainer = SFTTrainer(model, train_dataset=data, peft_config=config)\n",
        "LLaMA-Factory": (
            f"{ranks}finetuning_type: lora\nadapter_name_or_path: {start}\nlora_target: {','.join(names)}\n"
            f"lora_rank: {config.r}\nlora_alpha: {config.lora_alpha}\n"
        ),
        "Axolotl": (
            f"{ranks}adapter: lora\nlora_model_dir: {start}\nlora_target_modules:\n{targets}"
            f"lora_r: {config.r}\nlora_alpha: {config.lora_alpha}\n"
        ),
    }


def from_blocks(module: str) -> str:
    """Return a module's name from its list of blocks on (``layers.3.self_attn.q_proj``), which every wrapper keeps."""
    parts = module.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[max(first - 1, 0) :])


def as_markdown(snippets: dict[str, str]) -> str:
    """Return the snippets as a page."""
    if not snippets:
        return "The plan has block paths, which plain LoRA can't have: PEFT loads this folder after import rankwise.\n"
    languages = {"Python": "python", "TRL": "python"}
    return "\n".join(f"## {name}\n\n```{languages.get(name, 'yaml')}\n{text}```\n" for name, text in snippets.items())
