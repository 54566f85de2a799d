"""What a study of budgets runs: each cell of a grid, or every run that a page rests on again."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from studies.where_it_pays.arms import ARMS
from studies.where_it_pays.asking import KEY, add_grid, asked, options_of

RESULTS = Path(__file__).resolve().parents[2] / "results" / "where-it-pays"


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_grid(parser, budgets=[10, 20], rates=[0.1], out="out.json")
    return parser.parse_args(words)


def test_a_grid_is_every_cell_with_the_options_that_its_variant_says() -> None:
    cells = list(asked(given("--arms", "layer", "newton", "--seeds", "3", "--variant", "damping=10"), task="trec"))
    assert len(cells) == 4
    assert cells[0] == (
        dict(zip(("task", *KEY), ("trec", "layer", 10, 0.1, 3, "damping=10"), strict=True)),
        {"damping": 10},
    )
    assert {(key["arm"], key["budget"]) for key, _ in cells} == {(a, b) for a in ("layer", "newton") for b in (10, 20)}
    (_, options), *_ = asked(given("--variant", "wider", "--options", '{"breadth": 1}'))
    assert options == {"breadth": 1}


@pytest.mark.parametrize(("name", "common", "least"), [("curve", {}, 400), ("classify", {"task": "trec"}, 200)])
def test_what_a_page_rests_on_can_be_run_again(name: str, common: dict[str, str], least: int) -> None:
    cells = list(asked(given("--again", str(RESULTS / f"{name}.json")), **common))
    assert len({tuple(key.values()) for key, _ in cells}) == len(cells) > least
    for key, options in cells:
        assert key["arm"] in ARMS
        assert set(options) <= {"breadth", "damping"}
        assert set(options) == ({key["variant"].partition("=")[0]} if key["variant"] else set())


@pytest.mark.parametrize(("more", "words"), [(["--options", "{}"], "leave --options out"), ([], "give another --out")])
def test_running_again_into_the_same_file_or_with_other_options_is_refused(more: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(asked(given("--again", "out.json", *more)))


def test_a_variant_says_its_option() -> None:
    assert options_of("") == {}
    assert options_of("damping=10") == {"damping": 10}
    assert options_of("cross_validate=true") == {"cross_validate": True}
    with pytest.raises(ValueError, match="'wider' does not say an option"):
        options_of("wider")
