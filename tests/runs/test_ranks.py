from __future__ import annotations

import ast
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import in_a_clean_process
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import rankwise
from rankwise.planning.rank_plan import RankPlan
from rankwise.runs.building import job
from rankwise.runs.building.job import build
from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.ranks import as_markdown, from_blocks, loading, plan_ranks, snippets_of
from rankwise.runs.recipes.recipe import Recipe
from rankwise.tasks import load_task

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
    ("task", "kind"),
    [
        ("mrpc", AutoModelForSequenceClassification.from_pretrained),
        ("copa", partial(AutoModelForSequenceClassification.from_pretrained, num_labels=1)),
        ("text", AutoModelForCausalLM.from_pretrained),
    ],
)
def test_what_is_written_is_the_plan(make: Make, tmp_path: Path, task: str, kind: Any) -> None:
    recipe = make("lora", task)
    found = plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)
    assert 0 < found.plan.spent <= 400
    wanted = {found.plan.modules[name]: rank for name, rank in found.plan.chosen.items()}
    assert ranks_of(PeftModel.from_pretrained(kind(recipe.model.name), str(tmp_path / "planned"))) == wanted
    saved = json.loads((tmp_path / "planned" / "rank_plan.json").read_text())
    assert RankPlan.from_dict(saved).ranks == found.plan.ranks
    assert (tmp_path / "planned" / "rank_plan.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="holds an adapter already"):
        plan_ranks(recipe, budget=400, out=tmp_path / "planned", **PLAN)


def test_the_snippets_say_the_plan(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "text")
    found = plan_ranks(recipe, budget=400, out=tmp_path / "planned #1: a", **PLAN)
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
    assert factory["adapter_name_or_path"] == str(tmp_path / "planned #1: a")
    axolotl = yaml.safe_load(found.snippets["Axolotl"])
    assert set(axolotl["lora_target_modules"]) == names
    assert axolotl["lora_model_dir"] == str(tmp_path / "planned #1: a")
    page = (tmp_path / "planned #1: a" / "snippets.md").read_text()
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


def keywords(snippet: str, function: str) -> dict[str, Any]:
    """The keyword arguments that a script calls a function with, names as their own text."""
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if ast.unparse(call.func) == function]
    values = {each.arg: each.value for each in call.keywords}
    return {
        str(name): value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        for name, value in values.items()
    }


KEPT = ["classifier", "score", "lm_head"]  # heads stay as they are
FOUR = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
    "llm_int8_skip_modules": KEPT,
}


@pytest.mark.parametrize(
    ("bits", "fields", "factory", "axolotl"),
    [
        (
            "4bit",
            FOUR,
            {"quantization_bit": 4, "quantization_method": "bnb"},
            {"adapter": "qlora", "load_in_4bit": True},
        ),
        (
            "8bit",
            {"load_in_8bit": True, "llm_int8_skip_modules": KEPT},
            {"quantization_bit": 8, "quantization_method": "bnb"},
            {"adapter": "lora", "load_in_8bit": True},
        ),
        (None, {}, {}, {"adapter": "lora"}),
    ],
)
def test_the_snippets_load_the_base_in_as_many_bits_as_the_recipe(
    make: Make, bits: str | None, fields: dict[str, Any], factory: dict[str, Any], axolotl: dict[str, Any]
) -> None:
    recipe = make("lora", "text", model={"load_in": bits})
    data = load_task(recipe.data, load_tokenizer(recipe.model))
    plan = RankPlan({"layers.0.q_proj": 1}, {"layers.0.q_proj": "model.layers.0.self_attn.q_proj"}, {}, (), 8, 2.0)
    modules = list(plan.modules.values())
    found = snippets_of(plan, None, "CAUSAL_LM", loading(recipe, data), modules)
    for name in ("Python", "TRL"):
        loads = keywords(found[name], "AutoModelForCausalLM.from_pretrained")
        if bits is None:
            assert "quantization_config" not in loads
            assert "BitsAndBytesConfig" not in found[name]
            assert "kbit" not in found[name]
            continue
        assert loads["quantization_config"] == "quantised"
        assert keywords(found[name], "BitsAndBytesConfig") == fields
        assert keywords(found[name], "prepare_model_for_kbit_training") == {"use_gradient_checkpointing": False}
        lines = found[name].splitlines()
        order = [lines.index(line) for line in lines if line.startswith(("quantised =", "base =", "config ="))]
        assert order == sorted(order)
        assert len(order) == 4
        imported: dict[str, Any] = {}
        exec("\n".join(line for line in lines if line.startswith("from ")), imported)
        assert set(imported) >= {"BitsAndBytesConfig", "prepare_model_for_kbit_training", "LoraConfig"}
    headed = snippets_of(replace(plan, heads=("pooler",)), None, "SEQ_CLS", loading(recipe, data), modules)
    assert keywords(headed["Python"], "LoraConfig")["modules_to_save"] == ["pooler"]
    assert "modules_to_save" not in found["Python"]
    told = yaml.safe_load(found["LLaMA-Factory"])
    assert {name: told[name] for name in told if name.startswith("quantization")} == factory
    told = yaml.safe_load(found["Axolotl"])
    assert {name: told[name] for name in told if name.startswith("load_in") or name == "adapter"} == axolotl


@pytest.mark.parametrize(("task", "labels"), [("mrpc", 2), ("copa", 1)])
def test_the_script_of_a_classifier_makes_its_head_and_is_all_that_trains_one(
    make: Make, task: str, labels: int
) -> None:
    found = plan_ranks(make("lora", task), budget=400, **PLAN)
    assert list(found.snippets) == ["Python"]
    made: dict[str, Any] = {}
    exec(found.snippets["Python"], made)
    assert made["base"].config.num_labels == labels
    assert made["config"].task_type == "SEQ_CLS"
    assert sum(p.numel() for n, p in made["model"].named_parameters() if ".lora_" in n) == found.plan.spent


def test_what_a_plan_warns_of_is_in_it_and_not_logged_too(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("rankwise")
    before = logger.level
    found = plan_ranks(make("lora", "text"), budget=100, **PLAN)
    assert found.plan.warnings
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logger.level == before


def bart(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on a tiny BART, whose encoder and decoder have blocks of the same names."""
    tokenizer = load_tokenizer(recipe.model)
    small = {f"{side}_{what}": 4 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
    small |= {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64, "num_labels": 2}
    small |= {"pad_token_id": 0, "bos_token_id": 2, "decoder_start_token_id": 3, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model("bart", **small, eos_token_id=3, forced_eos_token_id=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(folder)})})


def test_the_script_gives_no_rank_to_modules_with_the_same_end_of_their_name(make: Make, tmp_path: Path) -> None:
    recipe = bart(make("lora", "mrpc"), tmp_path / "bart")
    found = plan_ranks(recipe, budget=100, **PLAN)
    wanted = {found.plan.modules[name]: rank for name, rank in found.plan.chosen.items()}
    ends = {from_blocks(module) for module in wanted}
    assert any(from_blocks(module) in ends for module in set(found.plan.modules.values()) - set(wanted))
    made: dict[str, Any] = {}
    exec(found.snippets["Python"], made)
    assert ranks_of(made["model"]) == wanted


def targets_in(snippets: dict[str, str]) -> list[Any]:
    """The targets that each of the snippets for a causal model names."""
    factory = yaml.safe_load(snippets["LLaMA-Factory"])["lora_target"]
    axolotl = yaml.safe_load(snippets["Axolotl"])["lora_target_modules"]
    scripts = [keywords(snippets[name], "LoraConfig")["target_modules"] for name in ("Python", "TRL")]
    return [*scripts, factory.split(","), axolotl]


QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("others", "names"),
    [
        (["model.layers.1.self_attn.q_proj", "model.xlayers.0.self_attn.q_proj"], ["layers.0.self_attn.q_proj"]),
        (["teacher.layers.0.self_attn.q_proj"], [QUERY]),
        (["layers.0.self_attn.q_proj"], [QUERY]),
    ],
)
def test_a_short_name_is_one_that_no_other_module_ends_in(make: Make, others: list[str], names: list[str]) -> None:
    recipe = make("lora", "text")
    loads = loading(recipe, load_task(recipe.data, load_tokenizer(recipe.model)))
    plan = RankPlan({"layers.0.q_proj": 1}, {"layers.0.q_proj": QUERY}, {}, (), 8, 2.0)
    assert targets_in(snippets_of(plan, None, "CAUSAL_LM", loads, [QUERY, *others])) == [names] * 4
    alike = replace(plan, lookalikes=(f"teacher.{QUERY}",))
    *scripts, factory, axolotl = targets_in(snippets_of(alike, None, "CAUSAL_LM", loads, [QUERY, *alike.lookalikes]))
    assert [*scripts, axolotl] == [QUERY.replace(".", r"\.")] * 3
    assert factory == [QUERY]


def test_ranks_are_planned_on_packed_rows_as_a_run_sees_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make("lora", "chat", data={"packing": True}, training={"batch_size": 1})
    seen: list[Any] = []

    class Stop(Exception):
        pass

    def stop(model: Any, batches: Any, **_: Any) -> None:
        seen.extend((model, next(iter(batches))))
        raise Stop

    monkeypatch.setattr(rankwise, "rank_plan", stop)
    with pytest.raises(Stop):
        plan_ranks(recipe, budget=400, batches=1)
    model, batch = seen
    assert (batch["position_ids"] == 0).sum() > 1
    model.eval()
    apart = model(**batch, use_cache=False).logits
    assert torch.equal(model(**batch).logits, apart)
    of_run = build(recipe).model.eval()
    assert torch.equal(of_run(**batch).logits, apart)


def test_packed_rows_that_see_each_other_are_refused_for_a_plan_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("data.packing: they see each other")

    monkeypatch.setattr(job, "check_packing", refuse)
    recipe = make("lora", "chat", data={"packing": True}, training={"batch_size": 1})
    with pytest.raises(ValueError, match="see each other"):
        build(recipe)
    with pytest.raises(ValueError, match="see each other"):
        plan_ranks(recipe, budget=400, **PLAN)
