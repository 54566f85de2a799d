"""The kinds of block path: where each runs, and how a path's name tells its kind."""

from __future__ import annotations

import pytest

from rankwise.rules.kinds import (
    ATTENTION_SUM,
    BLOCK_INPUT,
    BLOCK_KINDS,
    BLOCK_OUTPUT,
    FEED_FORWARD_SUM,
    MID,
    MID_BEFORE,
    is_shortcut,
    kind_of,
)

FORWARD = [MID_BEFORE, BLOCK_INPUT, ATTENTION_SUM, MID, FEED_FORWARD_SUM, BLOCK_OUTPUT]
SKIPS = {(BLOCK_INPUT, ATTENTION_SUM), (MID, FEED_FORWARD_SUM)}  # a transformer's own residual connections


def test_every_kind_goes_forward_between_points_of_its_own() -> None:
    ends = {(kind.source, kind.destination) for kind in BLOCK_KINDS.values()}
    assert len(ends) == len(BLOCK_KINDS)
    for source, destination in ends:
        assert FORWARD.index(source) < FORWARD.index(destination)


def test_a_kind_runs_beside_a_skip_where_a_block_has_one() -> None:
    for kind in BLOCK_KINDS.values():
        assert kind.identity == ((kind.source, kind.destination) in SKIPS), kind.name


def test_the_table_is_by_name() -> None:
    assert {name: kind.name for name, kind in BLOCK_KINDS.items()} == {name: name for name in BLOCK_KINDS}


@pytest.mark.parametrize("kind", BLOCK_KINDS)
@pytest.mark.parametrize("blocks", ["0", "31", "1-2", "9-11"])
def test_a_block_path_is_told_by_its_name(blocks: str, kind: str) -> None:
    assert kind_of(f"layers.{blocks}.{kind}") == kind
    assert is_shortcut(f"layers.{blocks}.{kind}")


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.in_proj",
        "layers.0.attention.layer",  # a projection whose own name is that of a kind
        "encoder.block.0.layer",
        "h.0.layer",
        "layers.0.layer.1",
        "layers.a.res1",
        "layers.0-.layer",
        "layers.res1",
        "res1",
        "layers.0.",
        "",
    ],
)
def test_every_other_name_is_of_a_linear_path(name: str) -> None:
    assert kind_of(name) == "linear"
    assert not is_shortcut(name)
