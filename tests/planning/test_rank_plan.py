from __future__ import annotations

import json
from pathlib import Path

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
