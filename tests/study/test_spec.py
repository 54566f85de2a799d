"""A study's file: what it makes, and what it says to a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.study.conftest import Write

from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.study.spec import laid_over, load_study


def test_every_arm_stands_at_every_point(write: Write) -> None:
    study = load_study(write(axes={"training.batch_size": [2, 4], "size": {"small": {"method.r": 1}, "own": {}}}))
    assert [(group.arm, *group.point.values()) for group in study.groups] == [
        (arm, batch, size) for batch in ("2", "4") for size in ("small", "own") for arm in ("four", "two")
    ]
    recipes = {group.name: parse_recipe(group.content) for group in study.groups}
    assert recipes["two-4-small"].method.options["r"] == 1  # an axis goes over an arm
    assert recipes["two-4-own"].method.options["r"] == 2
    assert recipes["four-2-own"].training.batch_size == 2
    assert study.baseline == "four"


def test_a_base_may_be_named_by_an_axis_and_a_method_with_a_name_is_whole(write: Write, base: Path) -> None:
    base.with_name("base-a.yaml").write_text(base.read_text())
    lor2c = {"name": "lor2c", "r": 2, "lora_alpha": 4}
    study = load_study(
        write(base="base-{word}.yaml", axes={"word": {"a": {}}}, arms={"lora": None, "lor2c": {"method": lor2c}})
    )
    assert [group.content["method"] for group in study.groups] == [yaml.safe_load(base.read_text())["method"], lor2c]


def test_overrides_reach_all_cells(write: Write) -> None:
    study = load_study(write(), ["training.batch_size=2"])
    assert {group.content["training"]["batch_size"] for group in study.groups} == {2}


def test_overrides_that_the_study_itself_says_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"study\.yaml: arms\.four: training\.learning_rate is chosen from `rates`"):
        load_study(write(), ["training.learning_rate=1e-3"])
    with pytest.raises(ValueError, match="seed is the study's to say"):
        load_study(write(), ["seed=3"])
    study = load_study(write(rates=None), ["training.learning_rate=1e-3"])
    assert {group.content["training"]["learning_rate"] for group in study.groups} == {1e-3}


def test_fields_lie_over_each_other_by_section() -> None:
    content = {"method": {"name": "lora", "r": 8}, "seed": 1}
    assert laid_over(content, {"method.r": 2}) == {"method": {"name": "lora", "r": 2}, "seed": 1}
    assert laid_over(content, {"method": {"name": "full"}}) == {"method": {"name": "full"}, "seed": 1}
    assert laid_over(content, {"method.r": 2, "method.lora_alpha": 4})["method"] == {
        "name": "lora",
        "r": 2,
        "lora_alpha": 4,
    }


OWN = {
    "task": None,
    "data_dir": None,
    "train_file": "reviews.csv",
    "text_columns": ["text"],
    "label_column": "stars",
}


def test_own_files_without_a_choice_or_with_a_part_set_apart_are_taken(write: Write) -> None:
    assert load_study(write(arms={"a": {"data": OWN}}, rates=None)).groups
    assert load_study(write(arms={"a": {"data": {**OWN, "validation_fraction": 0.1}}})).groups
    assert load_study(write(arms={"a": {"data": {**OWN, "validation_file": "other.csv"}}})).groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"method.rr": 2}}}, r"study\.yaml: arms\.a: method: method 'lora' has no option 'rr'"),
        ({"seeds": {"choose": [0, 1], "report": [1, 2]}}, r"seeds \[1\] are in `choose` and in `report`"),
        ({"seeds": {"report": [1]}}, "rates are chosen with seeds.choose, and there are none"),
        ({"seeds": {"choose": [0, 0], "report": [1]}}, "has a seed twice"),
        ({"baseline": "three"}, "baseline='three' is not one of 'four', 'two'"),
        ({"rates": {"from": 1e-2, "to": 1e-3}}, "from=0.01 is above to=0.001"),
        ({"rates": {"form": 1e-2, "to": 1e-3}}, r"rates\.form: no such key in rates.*did you mean 'from'"),
        ({"arm": {}}, r"arm: no such key, did you mean 'arms'"),
        ({"axes": {"method.r": []}}, r"axes\.method\.r has no values"),
        ({"arms": {"a/b": {}, "a b": {}}}, "would write to the same folder"),
        ({"arms": {"a": {"data.dev_fraction": 0}}}, "leaves none"),
        ({"arms": {"a": {"method": None}}}, r"study\.yaml: arms\.a: method"),
        (
            {"arms": {"a": {}, "b": {"data.task": "stsb"}}},
            "arms.a and arms.b have different tasks .mrpc, stsb. and no figure in common: make the task an axis",
        ),
        (
            {"arms": {"a": {"data": OWN}}},
            r"arms\.a: rates are chosen on the dev split, and there is no other to.*data\.validation_fraction=0\.1",
        ),
        (
            {"arms": {"a": {"data": {**OWN, "test_file": "test.csv"}}}},
            r"arms\.a: rates are chosen on the dev split, and there is no other to.*data\.validation_fraction=0\.1",
        ),
        (
            {"arms": {"a": {"data": OWN, "select": "dev", "training.evaluate": "epoch"}}, "rates": None},
            r"arms\.a: the epoch is chosen on the dev split",
        ),
        ({"base": "nowhere"}, r"study\.yaml: arms\.four: base: no recipe at nowhere"),
        (
            {"arms": {"a": {"method": 3}}},
            r"study\.yaml: arms\.a: method=3: a method is a mapping, method: \{name: lora",
        ),
        ({"arms": {"a": {"method": "lora"}}}, r"arms\.a: method='lora': a method is a mapping"),
        ({"arms": {"a": {"base": 5}}}, r"study\.yaml: arms\.a: base=5: give a recipe's file, or the name of one"),
        ({"arms": {False: {}}}, r"study\.yaml: arms: False is no text, .*: quote it"),
        (
            {"seeds": {"choose": [0], "report": [-1]}},
            r"seeds\.report has -1: a seed is a whole number from 0 to 4294967295",
        ),
        ({"seeds": {"choose": [2**32], "report": [1]}}, r"seeds\.choose has 4294967296: a seed is"),
        ({"set": {"seed": 3}}, r"arms\.four: seed is the study's to say: give seeds\.report"),
        ({"arms": {"a": {"training.learning_rate": 1e-3}}}, r"arms\.a: training\.learning_rate is chosen from `rates`"),
    ],
)
def test_a_mistake_is_explained(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_study(write(**changes))


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study at"):
        load_study(tmp_path / "none.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- a\n")
    with pytest.raises(ValueError, match="holds list, not a mapping"):
        load_study(path)
