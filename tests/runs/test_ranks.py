from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import in_a_clean_process
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rankwise
from rankwise.planning.rank_plan import RankPlan
from rankwise.runs.ranks import as_markdown, from_blocks, plan_ranks
from rankwise.runs.recipes.recipe import Recipe

Make = Callable[..., Recipe]
PLAN: dict[str, Any] = {"batches": 4, "components": 2, "least_overlap": 0.0}


def ranks_of(model: PeftModel) -> dict[str, int]:
    """The rank of each module with a LoRA of its own."""
    return {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


@pytest.mark.parametrize(
    ("task", "kind"), [("mrpc", AutoModelForSequenceClassification), ("text", AutoModelForCausalLM)]
)
def test_what_is_written_is_the_plan(make: Make, tmp_path: Path, task: str, kind: Any) -> None:
    recipe = make("lora", task)
    found = plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)
    assert 0 < found.plan.spent <= 400
    wanted = {found.plan.modules[name]: rank for name, rank in found.plan.chosen.items()}
    base = kind.from_pretrained(recipe.model.name)
    assert ranks_of(PeftModel.from_pretrained(base, str(tmp_path / "planned"))) == wanted
    saved = json.loads((tmp_path / "planned" / "rank_plan.json").read_text())
    assert RankPlan.from_dict(saved).ranks == found.plan.ranks
    assert (tmp_path / "planned" / "rank_plan.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="holds an adapter already"):
        plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)


def test_the_snippets_say_the_plan(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text")
    found = plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)
    wanted = {found.plan.modules[name]: rank for name, rank in found.plan.chosen.items()}
    made: dict[str, Any] = {}
    exec(found.snippets["Python"], made)
    assert isinstance(made["config"], LoraConfig)
    assert ranks_of(made["model"]) == wanted
    assert type(made["base"]).__name__ == "LlamaForCausalLM"
    of_trl: dict[str, Any] = {}
    exec(found.snippets["TRL"].split("data = ")[0].replace("from trl import SFTTrainer\n", ""), of_trl)
    assert ranks_of(get_peft_model(of_trl["base"], of_trl["config"])) == wanted
    names = {from_blocks(module) for module in wanted}
    factory = yaml.safe_load(found.snippets["LLaMA-Factory"])
    assert set(factory["lora_target"].split(",")) == names
    assert factory["adapter_name_or_path"] == str(tmp_path / "planned")
    axolotl = yaml.safe_load(found.snippets["Axolotl"])
    assert set(axolotl["lora_target_modules"]) == names
    assert axolotl["lora_model_dir"] == str(tmp_path / "planned")
    page = (tmp_path / "planned" / "snippets.md").read_text()
    assert page == as_markdown(found.snippets)
    assert all(f"## {name}\n" in page for name in ("Python", "TRL", "LLaMA-Factory", "Axolotl"))


def test_a_process_without_rankwise_trains_what_is_written(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text")
    found = plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)
    code = """
    import sys
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model = PeftModel.from_pretrained(base, sys.argv[2], is_trainable=True)
    print(sum(p.numel() for p in model.parameters() if p.requires_grad))
    """
    printed = in_a_clean_process(code, recipe.model.name, tmp_path / "planned")
    assert int(printed) == found.plan.spent


def test_a_plan_with_block_paths_is_loaded_with_rankwise(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text")
    found = plan_ranks(recipe, budget=600, space="all", out=tmp_path / "planned", **PLAN)
    assert found.plan.has_block_paths
    assert list(found.snippets) == ["Python"]
    made: dict[str, Any] = {}
    exec(found.snippets["Python"], made)
    assert {name: path.r for name, path in rankwise.named_paths(made["model"]).items()} == found.plan.chosen
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(recipe.model.name), str(tmp_path / "planned")
    )
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n) == found.plan.spent


def test_the_script_of_a_classifier_makes_its_head(make: Make) -> None:
    found = plan_ranks(make("lora", "mrpc"), budget=400, **PLAN)
    made: dict[str, Any] = {}
    exec(found.snippets["Python"], made)
    assert made["base"].config.num_labels == 2
    assert sum(p.numel() for n, p in made["model"].named_parameters() if ".lora_" in n) == found.plan.spent


def test_what_a_plan_warns_of_is_in_it_and_not_logged_too(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("rankwise")
    before = logger.level
    found = plan_ranks(make("lora", "text"), budget=100, **PLAN)
    assert found.plan.warnings
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logger.level == before
