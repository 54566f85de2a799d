from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.dryrun import RANK_BUDGET, UNMARKED, dry_run, stand_in, tiny_config, tiny_tokenizer
from rankwise.runs.recipes.recipe import ModelSpec, parse_recipe
from rankwise.tasks.chat import training_template

LORA = {"name": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe({"model": {"name": "facebook/opt-125m"}, "data": {"task": "cola"}, "method": LORA})
    assert dry_run(recipe).metrics["metrics"]["last"]["step"] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("facebook/opt-350m", "opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
        ("facebook/opt-125m", "opt", {"do_layer_norm_before": True, "word_embed_proj_dim": 32}),
        ("FacebookAI/roberta-large", "roberta", {"layer_norm_eps": 1e-5}),
        ("google/gemma-2b", "gemma", {"num_key_value_heads": 1}),
    ],
)
def test_a_stand_in_is_of_the_family(name: str, kind: str, fields: dict[str, Any]) -> None:
    config = tiny_config(ModelSpec(name=name))
    assert config.model_type == kind
    assert {key: config.to_dict()[key] for key in fields} == fields


@pytest.mark.parametrize(("budget", "left"), [(100_000, 1024), (600, 600), (0.5, 1024)])
def test_a_rank_choice_asks_for_no_more_than_few_rows_tell(budget: float, left: int, tmp_path: Path) -> None:
    method = {"name": "heterolora", "granularity": "rank", "mode": "static", "budget": budget}
    method["target_modules"] = ["q_proj", "v_proj"]
    recipe = parse_recipe({"model": {"name": "facebook/opt-125m"}, "data": {"task": "cola"}, "method": method})
    assert stand_in(recipe, tmp_path).method.options["budget"] == left
    if budget > RANK_BUDGET:
        assert dry_run(recipe).metrics["searches"] == 1


def test_packed_conversations_are_enough_for_a_plan() -> None:
    method = {"name": "heterolora", "granularity": "rank", "mode": "static", "budget": 0.25, "r": 8, "lora_alpha": 16}
    content = {
        "model": {"name": "Qwen/Qwen3-0.6B"},
        "data": {"task": "chat", "dataset": "trl-lib/Capybara", "packing": True},
        "method": {**method, "target_modules": ["q_proj", "v_proj"]},
        "training": {"batch_size": 1},
    }
    assert dry_run(parse_recipe(content)).metrics["searches"] == 1


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"r": 4096, "lora_alpha": 8192}, {"r": 1024}),
        ({"r": 8, "rank_budget": 9_437_184, "shortcuts": ["res1"]}, {"r": 8, "rank_budget": 32_768}),
    ],
)
def test_ranks_of_a_wide_model_are_cut_to_what_a_narrow_one_may_have(
    options: dict[str, Any], left: dict[str, Any], tmp_path: Path
) -> None:
    method = {"name": "heterolora", "mode": "off", "target_modules": ["q_proj", "v_proj"], **options}
    recipe = parse_recipe({"model": {"name": "facebook/opt-125m"}, "data": {"task": "cola"}, "method": method})
    cut = stand_in(recipe, tmp_path).method.options
    assert {key: cut[key] for key in left} == left
    assert dry_run(recipe).metrics["metrics"]["last"]["step"] == 2


def test_a_local_model_is_shrunk(tmp_path: Path) -> None:
    tiny = tiny_config(ModelSpec(name="facebook/opt-350m"))
    tiny.update({"hidden_size": 64, "word_embed_proj_dim": 24})
    tiny.save_pretrained(tmp_path)
    again = tiny_config(ModelSpec(name=str(tmp_path)))
    assert (again.hidden_size, again.word_embed_proj_dim, again.do_layer_norm_before) == (32, 16, False)


def test_a_model_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="nobody/nothing"):
        tiny_config(ModelSpec(name="nobody/nothing"))


def test_local_data_is_used_and_missing_data_is_made_up(tmp_path: Path) -> None:
    base = {"model": {"name": "facebook/opt-125m"}, "method": LORA}
    made = stand_in(parse_recipe({**base, "data": {"task": "rte", "data_dir": "not-there"}}), tmp_path / "a")
    assert made.data.data_dir == tmp_path / "a" / "data"
    table = tmp_path / "own.csv"
    table.write_text("words,kind\n" + "".join(f"ban bar bas,{k % 2}\n" for k in range(40)))
    own = {"train_file": str(table), "text_columns": ["words"], "label_column": "kind"}
    assert stand_in(parse_recipe({**base, "data": own}), tmp_path / "b").data.train_file == table
    with pytest.raises(ValueError, match="what its columns hold can't be guessed"):
        stand_in(parse_recipe({**base, "data": {**own, "train_file": "gone.csv"}}), tmp_path / "c")


def test_words_of_the_made_up_rows_are_known() -> None:
    ids = tiny_tokenizer()("ban bar", "bas")["input_ids"]
    assert ids[0] == 2
    assert ids[-1] == 3
    assert 1 not in ids


CHAT = {"task": "chat", "dataset": "some/where"}


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", False),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", False),
        ("Qwen/Qwen3-0.6B", True),
        ("google/gemma-3-1b-it", True),
    ],
)
def test_a_dry_run_finds_answers_as_the_family_needs_it(tmp_path: Path, name: str, marks: bool) -> None:
    recipe = parse_recipe({"model": {"name": name}, "data": CHAT, "method": LORA})
    tokenizer = load_tokenizer(stand_in(recipe, tmp_path).model)
    assert training_template(tokenizer).marks == marks
    assert dry_run(recipe).metrics["data"]["train"]["rows"] > 0


def test_a_dry_run_reads_the_users_own_template(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    model = {"name": "Qwen/Qwen3-0.6B", "chat_template": str(file)}
    recipe = parse_recipe({"model": model, "data": CHAT, "method": LORA})
    with pytest.raises(ValueError, match=r"own\.jinja'?: no such file"):
        dry_run(recipe)
    file.write_text("{{ raise_exception('not I') }}")
    with pytest.raises(ValueError, match=r"train\.jsonl, row \d+: the chat template refuses it: not I"):
        dry_run(recipe)
    file.write_text("Some words first. " * 20 + UNMARKED)
    assert dry_run(recipe).metrics["data"]["train"]["dropped"] == 0


def test_a_dry_run_reads_the_template_of_a_model_on_this_machine(tmp_path: Path) -> None:
    tiny_config(ModelSpec(name="Qwen/Qwen3-0.6B")).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not I') }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="refuses it: not I"):
        dry_run(parse_recipe({"model": {"name": str(tmp_path)}, "data": CHAT, "method": LORA}))
