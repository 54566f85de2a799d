from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.planning.test_ranks import plan_of

import rankwise


def test_a_plan_comes_back_from_json() -> None:
    plan = plan_of(space="all")
    assert rankwise.RankPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_under_a_time_limit_comes_back_with_its_times() -> None:
    plan = plan_of(space="all", time_limit=2.0, prefix_cache=True)
    back = rankwise.RankPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert back == plan
    assert back.time is not None
    assert back.step_share == back.time.share <= 2.0
    assert f"a step takes {plan.step_share:.0%} of uniform LoRA" in plan._repr_html_()


def test_a_plan_of_an_earlier_version_has_no_times() -> None:
    saved = plan_of().to_dict()
    assert saved.pop("time") is None
    assert rankwise.RankPlan.from_dict(saved).step_share is None


def test_a_plan_has_a_picture_and_a_table(tmp_path: Path) -> None:
    plan = plan_of(space="all")
    assert plan.plot(tmp_path / "plan.png").stat().st_size > 10_000
    table = plan._repr_html_()
    assert f"{plan.spent:,} of 500 parameters" in table
    assert table.count("<tr>") == 1 + len({name.split(".", 2)[2] for name in plan.ranks})
    with pytest.raises(ValueError, match=r"must end in one of"):
        plan.plot(tmp_path / "plan.pdf")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"r": 4}, r"r=4 can't be given, the plan says it: the scale alpha / r is rankwise\.rank_plan\(\.\.\., scale="),
        ({"lora_alpha": 4}, "lora_alpha=4 can't be given"),
        ({"rank_pattern": {}}, "its ranks and its scale are in them"),
        ({"target_modules": ["q_proj"]}, r"plan for other modules with .*target_modules="),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\] can't be given"),  # PEFT would pass over it
        ({"mode": "dynamic"}, r"plan for other paths with .*space="),
    ],
)
def test_a_field_that_the_plan_sets_is_refused(field: dict[str, Any], words: str) -> None:
    for plan in (plan_of(), plan_of(space=["res1"], components=4)):
        with pytest.raises(ValueError, match=words):
            plan.to_config(**field)
    with pytest.raises(ValueError, match=words):
        plan_of().to_lora_config(**field)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picks": None}, "it lacks picks"),
        ({"layers": 3}, "it has layers, which no plan of this version has"),
        ({"budget": "500"}, "budget='500' must be an int"),
    ],
)
def test_what_is_no_saved_plan_is_refused(change: dict[str, Any], words: str) -> None:
    saved = {name: value for name, value in {**plan_of().to_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=f"no plan as RankPlan.to_dict.. gives it: {words}"):
        rankwise.RankPlan.from_dict(saved)
