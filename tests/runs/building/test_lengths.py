from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rankwise.runs.building.job import build
from rankwise.runs.building.lengths import fitting_tokenizer, positions
from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.ranks import plan_ranks
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.study.working import load_data
from rankwise.tasks import load_task

Make = Callable[..., Recipe]
MOST = 24
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embedding_size", "word_embed_proj_dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads"), 2),
    **{"decoder_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 40, "pad_token_id": 1},
    **{"eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2},
}


def tiny(kind: str, **more: Any) -> Any:
    """The config of a tiny model of a family with 24 positions, by the name that it has for them."""
    there = {*AutoConfig.for_model(kind).to_dict(), "pad_token_id", "eos_token_id", "bos_token_id"}
    places = "n_positions" if "n_positions" in there else "max_position_embeddings"
    shape = {name: value for name, value in SMALL.items() if name in there}
    return AutoConfig.for_model(kind, **shape, **{places: MOST}, **more)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *[(kind, MOST) for kind in ("albert", "bart", "bert", "distilbert", "electra", "gpt2", "opt")],
        *[(kind, MOST - 2) for kind in ("camembert", "mpnet", "roberta", "xlm-roberta")],
    ],
)
def test_a_model_reads_as_many_tokens_as_it_has_positions_and_no_more(kind: str, most: int) -> None:
    config = tiny(kind)
    head = AutoModelForCausalLM if kind in ("gpt2", "opt") else AutoModelForSequenceClassification
    model = head.from_config(config).eval()
    assert positions(config, config.pad_token_id) == most
    ids = torch.full((1, most + 1), 5)
    ids[0, -2:] = 2
    model(input_ids=ids[:, 1:])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids)


@pytest.mark.parametrize("kind", ["llama", "modernbert", "t5", "xlnet", "bloom", "roformer"])
def test_a_model_that_knows_distances_alone_has_no_last_position(kind: str) -> None:
    assert positions(AutoConfig.for_model(kind), 1) is None
    assert positions(AutoConfig.for_model("deberta-v2", position_biased_input=False), 0) is None
    assert positions(AutoConfig.for_model("deberta-v2", position_biased_input=True), 0) == 512


def limited(recipe: Recipe, limit: int, **data: Any) -> Recipe:
    """The recipe on a model of its own with so many positions, and a tokenizer that names no limit."""
    folder = Path(recipe.model.name)
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": limit}))
    content = recipe.to_dict()
    return parse_recipe({**content, "data": {**content["data"], **data}})


def test_a_length_above_the_positions_is_refused_before_anything_is_loaded(make: Make) -> None:
    recipe = limited(make("lora", "mrpc"), 11, max_length=11)
    words = r"data\.max_length=11 is more than model\.name='.*' \(roberta\) has positions for: give 10 at most"
    for start in (build, partial(plan_ranks, budget=400), load_data):
        with pytest.raises(ValueError, match=words):
            start(recipe)
    fits = limited(recipe, 11, max_length=10)
    prepared = load_data(fits)  # the tiny tokenizer pads with 0
    with pytest.raises(ValueError, match="give 10 at most"):
        build(recipe, prepared)


def test_the_length_by_default_is_one_that_the_model_reads(make: Make) -> None:
    recipe = limited(make("lora", "mrpc"), 9, max_length=None)
    assert max(map(len, load_data(recipe).train["input_ids"])) == 8
    assert fitting_tokenizer(recipe.model, recipe.data).model_max_length == 8
    assert load_tokenizer(recipe.model).model_max_length > 10**6


def test_a_block_of_text_is_checked_and_its_other_length_is_not(make: Make) -> None:
    recipe = make("lora", "text")
    tiny("opt").save_pretrained(recipe.model.name)
    small = limited(recipe, 12, block_size=13, max_length=None)
    with pytest.raises(ValueError, match=r"data\.block_size=13 .* \(opt\) has positions for: give 12 at most"):
        load_data(small)
    blocks = load_data(limited(recipe, 12, block_size=None, max_length=64)).train["input_ids"]
    assert max(map(len, blocks)) == 12


def test_a_model_with_rotary_positions_is_not_refused(make: Make) -> None:
    recipe = limited(make("lora", "text"), 12, block_size=40)
    data = load_task(recipe.data, fitting_tokenizer(recipe.model, recipe.data))
    assert max(map(len, data.train["input_ids"])) == 40
