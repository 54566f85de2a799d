"""What a config says of modules that there are none of is told, and what matches is not."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import tiny_bert, tiny_llama

import rankwise
from rankwise.method.targets import module_names
from rankwise.method.unused import unused

IGNORED = "keys did not match any targeted module and were ignored: "
SILENT: list[tuple[str, dict[str, Any]]] = [
    (f"The following rank_pattern {IGNORED}['q_prj'], did you mean 'q_proj'? (LoRA is", {"rank_pattern": {"q_prj": 4}}),
    # It is there, and no path runs along it.
    (f"The following rank_pattern {IGNORED}['o_proj'], did you mean 'q_proj'?", {"rank_pattern": {"o_proj": 4}}),
    # PEFT looks for whole names from a dot on.
    (f"The following alpha_pattern {IGNORED}['proj']", {"alpha_pattern": {"proj": 4}}),
    (
        f"The following alpha_pattern {IGNORED}['^model\\\\.layers\\\\.7\\\\.q_proj'], did you mean 'model.layers.",
        {"alpha_pattern": {r"^model\.layers\.7\.q_proj": 2}},
    ),
    (
        "modules_to_save names 'embed_token', which no module's name ends in, so it will be neither trained nor saved, "
        "did you mean 'embed_tokens'?",
        {"modules_to_save": ["embed_token"]},
    ),
    ("You have passed exclude_modules={'vision'} but no modules were excluded: ", {"exclude_modules": ["vision"]}),
    (
        "You have passed exclude_modules='.*[.]9[.].*' but no modules were excluded: ",
        {"exclude_modules": ".*[.]9[.].*"},
    ),
]
HEARD: list[dict[str, Any]] = [
    {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {r"layers\.1\..*": 8, r"^model\.layers\.0\.self_attn\.q_proj": 2}},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    {"exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"exclude_modules": r"model\.layers\.1\..*"},
]


@pytest.mark.parametrize(("words", "fields"), SILENT)
def test_what_matches_nothing_is_warned_of_with_the_nearest_that_there_is(words: str, fields: dict[str, Any]) -> None:
    config = rankwise.HeteroLoraConfig(target_modules=["q_proj"], r=2, mode="off", **fields)
    with pytest.warns((UserWarning, RuntimeWarning), match=f"^{re.escape(words)}") as found:
        get_peft_model(tiny_llama(), config)
    assert len([each for each in found if each.category is not FutureWarning]) == 1  # and not PEFT's beside it
    lor2c = rankwise.Lor2cConfig(injections=1, inject_targets=["q_proj"], r=2, **fields)
    with pytest.warns((UserWarning, RuntimeWarning), match=f"^{re.escape(words)}"):
        get_peft_model(tiny_llama(), lor2c)


def test_a_name_of_several_that_excludes_nothing_is_told() -> None:
    config = rankwise.HeteroLoraConfig(target_modules=["q_proj"], mode="off", exclude_modules=["lm_head", "q_porj"])
    with pytest.warns(UserWarning, match="no modules were excluded by 'q_porj', did you mean 'q_proj'"):
        get_peft_model(tiny_llama(), config)


@pytest.mark.parametrize("fields", HEARD)
def test_what_matches_is_not_warned_of_nor_when_it_is_loaded(fields: dict[str, Any], tmp_path: Path) -> None:
    model = get_peft_model(
        tiny_llama(), rankwise.HeteroLoraConfig(target_modules=["q_proj"], r=2, mode="off", **fields)
    )
    model.save_pretrained(str(tmp_path))
    PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    model.add_adapter("second", rankwise.HeteroLoraConfig(target_modules=["q_proj"], r=2, mode="off", **fields))


def test_heads_that_peft_adds_by_itself_are_not_warned_of(tmp_path: Path) -> None:
    config = rankwise.HeteroLoraConfig(
        target_modules=["query"], task_type="SEQ_CLS", mode="off", modules_to_save=["pooler"]
    )
    get_peft_model(tiny_bert(), config).save_pretrained(str(tmp_path))
    loaded: Any = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    loaded.add_adapter("plain", rankwise.HeteroLoraConfig(target_modules=["query"], mode="off"))  # of no task
    alone = rankwise.HeteroLoraConfig(target_modules=["query"], mode="off", modules_to_save=["score"])
    with pytest.warns(UserWarning, match="modules_to_save names 'score'"):  # the user's own word
        get_peft_model(tiny_bert().bert, alone)
    assert {"classifier", "score", "pooler"} == set(loaded.peft_config["default"].modules_to_save)  # BERT has no score


def test_what_peft_gives_a_rank_is_what_is_not_told() -> None:
    """PEFT's own word for it: a key has an effect where some module's rank becomes its value."""
    keys = ["q_proj", "proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.9.*", ".*q_proj", "q_", "v_proj"]
    base = tiny_llama()
    names = module_names(base)
    for key in keys:
        config = LoraConfig(target_modules=["q_proj"], r=2, rank_pattern={key: 5})
        with warnings.catch_warnings():  # PEFT tells it, too
            warnings.simplefilter("ignore", RuntimeWarning)
            model: Any = get_peft_model(tiny_llama(), config)
        ranks = {module.r["default"] for _, module in model.named_modules() if hasattr(module, "lora_A") and module.r}
        told = unused(config, names, model.base_model.targeted_module_names)
        assert (5 in ranks) == (not told), key


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shortcuts": ["res1"], "shortcut_ranks": {"layers.9.res1": 2}}, r"layers\.9\.res1"),
        ({"shortcuts": ["res1"], "target_modules": [], "layers_to_transform": [9]}, r"layers_to_transform=\[9\]"),
    ],
)
def test_blocks_that_there_are_none_of_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_peft_model(
            tiny_llama(), rankwise.HeteroLoraConfig(**{"target_modules": ["q_proj"], "mode": "dynamic", **fields})
        )


def test_lor2c_in_blocks_that_there_are_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers_to_transform=\[9\]"):
        get_peft_model(tiny_llama(), rankwise.Lor2cConfig(layers_to_transform=[9]))


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was() -> None:
    base = tiny_llama()
    before = [name for name, _ in base.named_modules()]
    config = rankwise.HeteroLoraConfig(target_modules=["q_proj"], mode="off", rank_pattern={"q_prj": 4})
    with pytest.raises(RuntimeWarning, match=r"q_prj.*did you mean"):  # warnings are errors here
        get_peft_model(base, config)
    assert [name for name, _ in base.named_modules()] == before
