"""The limit on a step's time: depth is paid once, own work by each path, and the choice keeps to both limits."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.models import text_batches, tiny_llama

import rankwise
from rankwise.planning.step_time import StepTime
from rankwise.planning.time_limit import TimeLimit, uniform_ranks

STILL, FORWARD, BACKWARD = (1.0, 2.0, 3.0), (1.5, 2.25, 3.5), (4.0, 5.0, 6.0)
DEPTHS = {"layers.0.q": 0, "layers.1.q": 1, "layers.2.q": 2, "layers.2.layer": 3}
SOURCES = {"layers.0.q": 0, "layers.1.q": 1, "layers.2.q": 2, "layers.2.layer": 2}
STEP = StepTime(
    outside=10.0,
    still=STILL,
    forward=FORWARD,
    backward=BACKWARD,
    first=dict.fromkeys(DEPTHS, 0.5),
    more=dict.fromkeys(DEPTHS, 0.25),
    sources=SOURCES,
    depths=DEPTHS,
)


def by_hand(ranks: dict[str, int], *, prefix_cache: bool) -> float:
    on = [name for name, rank in ranks.items() if rank]
    seconds = 10.0
    for block in range(3):
        if any(DEPTHS[name] <= block for name in on):
            seconds += FORWARD[block] + BACKWARD[block]
        elif not prefix_cache or any(SOURCES[name] <= block for name in on):
            seconds += STILL[block]
    return seconds + sum(0.5 + 0.25 * (ranks[name] - 1) for name in on)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_step_is_the_sum_of_what_has_to_run(prefix_cache: bool) -> None:
    for ranks in itertools.product((0, 1, 3), repeat=len(DEPTHS)):
        given = dict(zip(DEPTHS, ranks, strict=True))
        assert STEP.step(given, prefix_cache=prefix_cache) == pytest.approx(by_hand(given, prefix_cache=prefix_cache))


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95, 1.2])
def test_whatever_fits_into_a_room_is_within_the_limit_and_every_such_set_has_one(
    share: float, prefix_cache: bool
) -> None:
    limit = TimeLimit(share, STEP, uniform_ranks(dict.fromkeys(DEPTHS, 8), 24), prefix_cache)
    rooms = list(limit.rooms())
    for ranks in itertools.product((0, 1, 2), repeat=len(DEPTHS)):
        given = {name: rank for name, rank in zip(DEPTHS, ranks, strict=True) if rank}
        if not given:
            continue
        fits = any(set(given) <= allowed and STEP.own(given) <= room.limit for allowed, room in rooms)
        lowest = min(DEPTHS[name] for name in given)
        sure = prefix_cache and min(SOURCES[name] for name in given) > min(
            SOURCES[name] for name in DEPTHS if DEPTHS[name] >= lowest
        )
        if fits:
            assert limit.share_of(given) <= share + 1e-9
        elif not sure:  # a room counts the forward pass from the lowest source that it allows
            assert limit.share_of(given) > share - 1e-9


def test_the_widest_choice_is_what_a_room_s_time_can_hold() -> None:
    costs = {"layers.0.q": 10, "layers.1.q": 20, "layers.2.q": 30, "layers.2.layer": 40}
    uniform = uniform_ranks(costs, 1)
    whole = STEP.step(uniform)
    assert TimeLimit(9.0, STEP, uniform).widest(costs) == 100
    # Time for block 2 and half of the own work of its two paths, or for the layer path alone with time to spare.
    tight = TimeLimit((10.0 + 3.0 + 9.5 + 0.5) / whole, STEP, uniform)
    assert tight.widest(costs) == pytest.approx(40.0)
    assert [sorted(allowed) for allowed, _ in tight.rooms()] == [["layers.2.layer"], ["layers.2.layer", "layers.2.q"]]


def test_uniform_ranks_are_those_of_the_projections() -> None:
    costs = {"layers.0.q": 10, "layers.1.q": 20, "layers.1.layer": 16}
    assert uniform_ranks(costs, 70) == {"layers.0.q": 2, "layers.1.q": 2}
    assert uniform_ranks(costs, 5) == {"layers.0.q": 1, "layers.1.q": 1}
    assert uniform_ranks({"layers.1.layer": 16}, 48) == {"layers.1.layer": 3}


def plan(time_limit: float | None, step_time: StepTime | None = None, **fields: Any) -> rankwise.RankPlan:
    return rankwise.rank_plan(
        tiny_llama(), text_batches(6, 4), budget=600, time_limit=time_limit, step_time=step_time, **fields
    )


def times(space: str) -> StepTime:
    """Times in which depth is all that counts, whatever this machine measures."""
    measured = plan(9.0, space=space).time
    assert measured is not None
    blocks = len(measured.step.forward)
    same = dict.fromkeys(measured.step.first, 0.01)
    return StepTime(1.0, *(((1.0,) * blocks,) * 3), same, same, measured.step.sources, measured.step.depths)


@pytest.mark.parametrize("space", ["linear", "all"])
def test_a_plan_keeps_to_its_time_and_says_what_it_takes(space: str) -> None:
    step = times(space)
    blocks = len(step.forward)
    free = plan(9.0, step, space=space)
    assert free.ranks == plan(None, space=space).ranks  # nothing is paid for time that nobody counts
    shallow = (1.0 + blocks + 1.5) / step.step(uniform_ranks(free.costs, 600))  # room for one block's backward pass
    limited = plan(shallow, step, space=space)
    assert limited.step_share is not None
    assert limited.step_share <= shallow
    assert {step.depths[name] for name in limited.chosen} <= {blocks - 1, blocks}
    assert 0 < limited.gain <= free.gain
    assert limited == rankwise.RankPlan.from_dict(limited.to_dict())


@pytest.mark.parametrize("space", ["linear", "all"])
def test_each_depth_has_what_a_plan_that_may_go_no_deeper_brings(space: str) -> None:
    step = times(space)
    nothing = dict.fromkeys(step.first, 0.0)  # else what is left for own work weighs in a choice
    step = replace(step, first=nothing, more=nothing)
    whole = plan(9.0, step, space=space, components=8)
    depths = whole.depths
    assert [depth.block for depth in depths] == sorted({*step.depths.values()}, reverse=True)
    assert whole.gain == max(depth.gain for depth in depths)
    for depth in depths:
        limited = plan(depth.share + 1e-6, step, space=space, components=8)
        expected = [each for each in depths if each.block >= depth.block]
        assert [each.block for each in limited.depths] == [each.block for each in expected]
        for one, other in zip(limited.depths, expected, strict=True):
            assert (one.share, one.gain) == pytest.approx((other.share, other.gain))
        assert limited.gain == pytest.approx(max(each.gain for each in limited.depths))
        assert min(step.depths[name] for name in limited.chosen) >= depth.block
    assert plan(None, space=space).depths == ()
    saved = json.loads(json.dumps(whole.to_dict()))
    assert rankwise.RankPlan.from_dict(saved) == whole
    del saved["time"]["depths"]  # as the first plans with a time were saved
    assert rankwise.RankPlan.from_dict(saved).depths == ()


def test_after_a_fall_back_the_depths_are_those_of_the_uniform_choice() -> None:
    step = times("all")
    with pytest.warns(UserWarning, match="the data can't tell the paths apart"):
        fallen = plan(9.0, step, space="all", components=8, least_overlap=1.0)
    uniform = plan(9.0, step, space="all", components=8, breadth=1.0)
    assert fallen.ranks == uniform.ranks
    assert fallen.depths == uniform.depths
    assert fallen.depths != plan(9.0, step, space="all", components=8, least_overlap=0.0).depths
    assert fallen.gain == max(depth.gain for depth in fallen.depths)


def test_a_kept_prefix_makes_room_for_more() -> None:
    step = times("linear")
    with pytest.raises(ValueError, match=r"below the quickest step, which takes 0\.\d\d .* prefix_cache=True"):
        plan(0.5, step)
    kept = plan(0.62, step, prefix_cache=True)
    assert kept.step_share is not None
    assert kept.step_share <= 0.62
    assert kept.step_share < step.step(kept.ranks) / step.step(uniform_ranks(kept.costs, 600))


def test_few_paths_offer_more_ranks_but_no_more_than_examples_tell_apart() -> None:
    """With room for little but the last block, the budget goes into ranks, which cost hardly any time."""
    step = times("all")
    tight = (1.0 + len(step.forward) + 0.5) / step.step(uniform_ranks(plan(None, space="all").costs, 600))
    batches = text_batches(12, 8)
    deep = rankwise.rank_plan(
        tiny_llama(), batches, budget=2000, space="all", time_limit=tight, step_time=step, least_overlap=0.0
    )
    assert {step.depths[name] for name in deep.chosen} == {len(step.forward)}
    assert max(deep.ranks.values()) > 8
    assert deep.spent > 8 * sum(deep.costs[name] for name in deep.chosen)
    few = rankwise.rank_plan(
        tiny_llama(), text_batches(6, 4), budget=2000, space="all", time_limit=tight, step_time=step, components=None
    )
    assert max(few.ranks.values()) <= 12  # of 24 examples, each half has 12


def test_times_in_another_order_give_the_same_plan() -> None:
    """As JSON and YAML write them, sorted by name."""
    step = times("all")
    mixed = StepTime(
        step.outside,
        step.still,
        step.forward,
        step.backward,
        {name: 0.001 + 0.002 * number for number, name in enumerate(step.first)},
        step.more,
        step.sources,
        step.depths,
    )
    turned = StepTime.from_dict(json.loads(json.dumps(mixed.to_dict(), sort_keys=True)))
    assert list(turned.first) != list(mixed.first)
    assert plan(0.8, turned, space="all").ranks == plan(0.8, mixed, space="all").ranks
