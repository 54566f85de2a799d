from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftConfig, PeftModel
from tests.models import adapted, in_a_clean_process, tiny_bert, tiny_llama

import rankwise
from rankwise.configs.heterolora import CHOICES

EVERYTHING: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.125,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": ["lm_head"],
    "mode": "static",
    "proxy": "snip",
    "score_on": "factors",
    "scoring": "probe",
    "score_batches": 7,
    "probe_data": "fixed",
    "probe_mode": "train",
    "synflow_loss": "loss",
    "sketch": 4,
    "budget": 0.5,
    "budget_unit": "paths",
    "allocation": "separated",
    "searches_per_epoch": 2,
    "search_every": 9,
    "warmup_searches": 3,
    "stop_searching_at": 0.7,
    "total_steps": 100,
    "on_disable": "freeze",
    "seed": 13,
}


def config_of(**fields: Any) -> rankwise.HeteroLoraConfig:
    """A config of a search of whole paths."""
    return rankwise.HeteroLoraConfig(**{"mode": "dynamic", **fields})


def test_the_defaults_are_those_of_the_contract() -> None:
    """But for mode and granularity, which are what the evidence favours."""
    config = rankwise.HeteroLoraConfig()
    expected = {
        **{"budget": 0.25, "budget_unit": "parameters", "allocation": "combined"},
        **{"mode": "static", "granularity": "rank", "proxy": "newton", "scoring": "probe"},
        **{"score_on": "weight", "score_batches": 32},
        **{"searches_per_epoch": 5, "search_every": None, "warmup_searches": 0, "stop_searching_at": 1.0},
        **{"total_steps": None, "on_disable": "keep", "probe_data": "rotating", "probe_mode": "eval"},
        **{"sketch": "auto", "seed": 0, "synflow_loss": "logits"},
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert {name: getattr(config, name) for name in ("r", "lora_alpha", "lora_dropout")} == {
        name: getattr(LoraConfig(), name) for name in ("r", "lora_alpha", "lora_dropout")
    }
    assert config.peft_type == "HETEROLORA"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("static", "rank", "newton", "probe")),
        ({"proxy": "newton"}, ("static", "rank", "newton", "probe")),
        ({"granularity": "rank"}, ("static", "rank", "newton", "probe")),
        ({"granularity": "rank", "mode": "static", "proxy": "grad_norm"}, ("static", "rank", "newton", "probe")),
        ({"granularity": "path"}, ("dynamic", "path", "grad_norm", "online")),
        ({"mode": "dynamic"}, ("dynamic", "path", "grad_norm", "online")),
        ({"mode": "static"}, ("static", "path", "grad_norm", "online")),
        ({"mode": "off"}, ("off", "path", "grad_norm", "online")),
    ],
)
def test_what_is_left_out_follows_from_what_is_said(given: dict[str, Any], expected: tuple[str, ...]) -> None:
    config = rankwise.HeteroLoraConfig(**given)
    assert (config.mode, config.granularity, config.proxy, config.scoring) == expected
    again = rankwise.HeteroLoraConfig(**{key: getattr(config, key) for key in ("mode", "granularity", "proxy")})
    assert (again.mode, again.granularity, again.proxy, again.scoring) == expected


@pytest.mark.parametrize(
    "field",
    [
        *({"search_every": 5}, {"searches_per_epoch": 2}, {"stop_searching_at": 0.5}, {"warmup_searches": 1}),
        *({"proxy": "grad_norm"}, {"proxy": "snip"}, {"score_on": "factors"}, {"budget_unit": "paths"}),
        *({"allocation": "separated"}, {"on_disable": "freeze"}, {"rank_budget": 900}),
    ],
    ids=str,
)
def test_an_option_of_a_search_of_whole_paths_needs_a_mode(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(ValueError, match=f"^{name}=.* the default,.*: mode='dynamic' .* or mode='static'"):
        rankwise.HeteroLoraConfig(**field)
    assert rankwise.HeteroLoraConfig(mode="dynamic", **field).granularity == "path"


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_needs_a_mode(field: str) -> None:
    given: dict[str, Any] = {field: {"query": 2}}
    with pytest.raises(ValueError, match="granularity='rank', the default, finds the ranks"):
        rankwise.HeteroLoraConfig(**given)
    assert rankwise.HeteroLoraConfig(mode="off", **given).granularity == "path"


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_a_wrong_choice_is_corrected(field: str) -> None:
    for allowed in CHOICES[field]:
        typo = allowed[:-1] + "_"
        with pytest.raises(ValueError, match=f"^{field}='{typo}'") as caught:
            config_of(**{field: typo})
        assert all(repr(name) in str(caught.value) for name in CHOICES[field])
        assert f"did you mean {allowed!r}?" in str(caught.value)
        besides = {"newton": {"scoring": "probe"}, "rank": {"mode": "static"}}.get(allowed, {})
        assert getattr(config_of(**{field: allowed}, **besides), field) == allowed
    with pytest.raises(ValueError, match=f"^{field}=None is not one of"):
        config_of(**{field: None})


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (True, "budget=True must be a fraction"),
        (False, "budget=False must be a fraction"),
        ("0.25", "budget='0.25' must be a fraction"),
        (None, "budget=None must be a fraction"),
        (1.5, r"budget=1\.5 is a float.*write it as an int"),
        (2.0, r"budget=2\.0 is a float"),
        (-0.1, r"budget=-0\.1 is a float"),
        (float("nan"), "budget=nan is a float"),
        (-3, "budget=-3 must not be negative"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(budget: Any, words: str) -> None:
    for unit in ("parameters", "paths"):
        with pytest.raises(ValueError, match=words):
            config_of(budget=budget, budget_unit=unit)


def test_one_is_a_number_of_paths_but_an_odd_number_of_parameters() -> None:
    with pytest.raises(ValueError, match=r"budget=1 is ambiguous: write 1\.0"):
        config_of(budget=1)
    assert config_of(budget=1, budget_unit="paths").budget == 1


@pytest.mark.parametrize("budget", [0, 0.0, 1.0, 2, 10**12, 1e-9])
def test_a_budget_that_means_something_is_kept(budget: float) -> None:
    kept = config_of(budget=budget).budget
    assert (kept, type(kept)) == (budget, type(budget))


@pytest.mark.parametrize("value", [-1, 0.5, "5", True])
@pytest.mark.parametrize(
    "field", ["score_batches", "searches_per_epoch", "search_every", "warmup_searches", "total_steps"]
)
def test_a_number_that_counts_something_is_whole(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r} must be a whole number of at least"):
        config_of(**{field: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score_batches": 0}, "score_batches=0 must be a whole number of at least 1"),
        pytest.param({"score_batches": None}, "score_batches=None"),
        pytest.param({"searches_per_epoch": None}, "searches_per_epoch=None"),
        pytest.param({"warmup_searches": None}, "warmup_searches=None"),
        ({"search_every": 0}, "search_every=0"),
        ({"stop_searching_at": 0.0}, r"stop_searching_at=0\.0 must lie in \(0, 1\]"),
        ({"stop_searching_at": 1.01}, r"stop_searching_at=1\.01"),
        ({"stop_searching_at": float("nan")}, "stop_searching_at=nan"),
        ({"sketch": 0}, "sketch=0 must be 'auto', None"),
        ({"sketch": "exact"}, "sketch='exact' must be 'auto', None"),
        ({"sketch": 2.5}, r"sketch=2\.5"),
        pytest.param({"sketch": True}, "sketch=True"),
        ({"shortcuts": ["res3"]}, r"shortcuts='res3' is not one of .*did you mean 'res2'"),
    ],
)
def test_a_value_outside_what_is_allowed_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(**fields)


def test_every_field_survives_json(tmp_path: Path) -> None:
    config = config_of(**EVERYTHING)
    config.save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "HETEROLORA"
    assert stored["rankwise_version"] == version("rankwise")
    back = PeftConfig.from_pretrained(str(tmp_path))
    assert type(back) is rankwise.HeteroLoraConfig
    assert asdict(back) == asdict(config)
    plain = config_of()
    untouched = {name for name, value in EVERYTHING.items() if getattr(plain, name) == value}
    assert untouched == set(), "give these another value than the default, or the round trip shows nothing"


@pytest.mark.parametrize(
    ("fields", "name"), [({"sketch": None}, "sketch"), ({"budget": 70}, "budget"), ({"budget": 1.0}, "budget")]
)
def test_a_value_keeps_its_type_through_json(tmp_path: Path, fields: dict[str, Any], name: str) -> None:
    config_of(**fields).save_pretrained(str(tmp_path))
    value = getattr(PeftConfig.from_pretrained(str(tmp_path)), name)
    assert (value, type(value)) == (fields[name], type(fields[name]))


def test_a_folder_says_which_version_wrote_it(tmp_path: Path) -> None:
    config_of(rankwise_version="0.0.7").save_pretrained(str(tmp_path))
    back = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(back, rankwise.HeteroLoraConfig)
    assert back.rankwise_version == "0.0.7"


def test_an_adapter_keeps_its_config_and_plain_peft_refuses_it(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), **{**EVERYTHING, "modules_to_save": None})
    model.save_pretrained(str(tmp_path))
    back = PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).peft_config["default"]
    assert isinstance(back, rankwise.HeteroLoraConfig)
    assert {name: getattr(back, name) for name in EVERYTHING} == {
        name: getattr(model.peft_config["default"], name) for name in EVERYTHING
    }
    refused = in_a_clean_process(
        """
        import sys
        from peft import PeftConfig
        try:
            PeftConfig.from_pretrained(sys.argv[1])
        except KeyError as error:
            print("KeyError", error)
        """,
        tmp_path,
    )
    assert refused.strip() == "KeyError 'HETEROLORA'"


def test_one_path_is_a_budget() -> None:
    model = adapted(tiny_bert(), task_type="SEQ_CLS", target_modules=["query"], mode="static", proxy="random", budget=1,
                    budget_unit="paths")  # fmt: skip
    rankwise.Allocator(model).search()
    assert sum(path.enabled for path in rankwise.named_paths(model).values()) == 1
