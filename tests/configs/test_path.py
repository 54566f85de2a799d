"""What every config here has in common: which of LoRA's options it takes, and what it says of the others."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pytest
from peft import LoraConfig

import rankwise
from rankwise.configs.path import INITS, UNSUPPORTED, PathConfig

CONFIGS: list[type[PathConfig]] = [rankwise.HeteroLoraConfig, rankwise.Lor2cConfig]


OTHER_FORMULAS: dict[str, Any] = {
    "use_dora": True,
    "use_bdlora": {"nblocks": 2},
    "lora_bias": True,
    "use_qalora": True,
    "layer_replication": [(0, 2), (1, 2)],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 2},
    "velora_config": {},
    "monteclora_config": {},
    "kasa_config": {},
    "megatron_config": {"a": 1},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("field", OTHER_FORMULAS)
def test_an_option_of_lora_that_does_not_fit_a_search_is_refused(field: str, config: type[PathConfig]) -> None:
    with pytest.raises(ValueError, match=f"{field}=.* can't be searched: .*; leave {field} out"):
        config(task_type="CAUSAL_LM", **{field: OTHER_FORMULAS[field]})


def test_every_refused_option_is_one_that_lora_has_and_that_is_off_by_default() -> None:
    assert set(OTHER_FORMULAS) == set(UNSUPPORTED) <= {field.name for field in fields(LoraConfig)}
    assert not any(getattr(LoraConfig(), name) for name in UNSUPPORTED)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", None])
def test_a_start_that_changes_w0_is_refused(init: Any, config: type[PathConfig]) -> None:
    with pytest.raises(ValueError, match=f"init_lora_weights={init!r} changes W0.*use one of True, False, 'gaussian'"):
        config(init_lora_weights=init)


@pytest.mark.parametrize("init", INITS)
def test_a_start_that_leaves_w0_alone_is_taken(init: Any) -> None:
    assert rankwise.HeteroLoraConfig(init_lora_weights=init).init_lora_weights == init


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_says_which_version_made_it(config: type[PathConfig]) -> None:
    assert config().rankwise_version == version("rankwise")
    assert config(rankwise_version="0.0.1").rankwise_version == "0.0.1"


def test_a_field_of_earlier_versions_is_dropped_where_it_has_the_value_it_always_had() -> None:
    assert PathConfig.check_kwargs(r=3, cost="parameters") == {"r": 3}
    assert PathConfig.check_kwargs(r=3, cost="flops") == {"r": 3, "cost": "flops"}


@pytest.mark.parametrize("value", [True, 2.0, "2", 1, None])
def test_a_number_that_counts_something_is_whole_and_large_enough(value: Any) -> None:
    config = rankwise.HeteroLoraConfig()
    config.seed = value
    with pytest.raises(ValueError, match=f"seed={value!r} must be a whole number of at least 2"):
        config.check_whole_numbers(seed=2)


def test_a_number_may_be_left_out_only_where_that_is_said() -> None:
    config = rankwise.HeteroLoraConfig()
    config.search_every, config.seed = None, 2
    config.check_whole_numbers(seed=2, search_every=1, optional=("search_every",))
    with pytest.raises(ValueError, match="search_every=None must be a whole number of at least 1"):
        config.check_whole_numbers(search_every=1)


def test_a_config_that_says_nothing_else_switches_nothing() -> None:
    plain = PathConfig(r=3, target_modules=["q"])
    assert plain.policy() is None
    assert not any([plain.undecided, plain.final, plain.moments_stay, plain.deletes, plain.linear_waits])
    assert plain.linear_paths() is plain
    assert plain.linear_targets(["query", "value"]) == {"q"}
    plain.check_blocks([])
    plain.check_waiting(set())
    for part in (plain.block_paths, lambda: plain.acts):
        with pytest.raises(NotImplementedError):
            part()
