"""What pydantic found, as sentences: the key, what was given, what is allowed, the nearest name."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankwise.runs.recipes.problems import explain
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import parse_recipe

SMALL: dict[str, Any] = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": "lora", "r": 4}}


def wrong(**changes: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_recipe(merged(SMALL, changes))
    return str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    text = wrong(sede=1, training={"epoch": 3})
    assert "sede" in text
    assert "training.epoch" in text


def test_what_must_be_said() -> None:
    with pytest.raises(ValueError, match="data: missing; a recipe must say it"):
        parse_recipe({key: SMALL[key] for key in ("model", "method")})


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, ge=1)
    shape: Literal["round", "square"] = "round"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: float = Field(default=1.0, alias="from")
    inner: Inner = Inner()
    maybe: Inner | None = None
    splits: dict[Literal["train", "test"], str] = {}
    more: list[Inner] = []
    colours: list[Literal["red", "blue"]] = []
    bits: Literal["4bit", "8bit"] | None = None
    needed: str

    @field_validator("needed")
    @classmethod
    def _is_short(cls, value: str) -> str:
        if len(value) > 3:
            raise ValueError(f"{value!r} is longer than three letters")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Outer:
        if self.low > self.inner.size:
            raise ValueError("from is above inner.size: lower it")
        return self


def explained(**content: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"needed": "x", **content})
    return explain(caught.value, Outer).splitlines()


KEYS = "(allowed: bits, colours, from, inner, maybe, more, needed, splits)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"iner": {}}, f"iner: no such key, did you mean 'inner'? {KEYS}"),
        ({"fro": 1}, f"fro: no such key, did you mean 'from'? {KEYS}"),  # as a file calls it
        ({"zzz": 1}, f"zzz: no such key {KEYS}"),
        ({"inner": {"sise": 1}}, "inner.sise: no such key in inner, did you mean 'size'? (allowed: shape, size)"),
        ({"maybe": {"x": 1}}, "maybe.x: no such key in maybe (allowed: shape, size)"),
        (
            {"inner": {"shape": "sqare"}},
            "inner.shape='sqare' is not one of 'round', 'square', did you mean 'square'?",
        ),
        ({"maybe": {"shape": None}}, "maybe.shape=None is not one of 'round', 'square'"),
        ({"bits": "4bits"}, "bits='4bits' is not one of '4bit', '8bit', did you mean '4bit'?"),
        ({"bits": 4}, "bits=4 is not one of '4bit', '8bit'"),
        (
            {"splits": {"tets": "x"}},
            "splits.tets: no such key in splits, did you mean 'test'? (allowed: test, train)",
        ),
        ({"splits": {3: "x"}}, "splits.3: no such key in splits (allowed: test, train)"),
        ({"colours": ["red", "bleu"]}, "colours.1='bleu' is not one of 'red', 'blue', did you mean 'blue'?"),
        ({"more": [{}, {"shape": "rnd"}]}, "more.1.shape='rnd' is not one of 'round', 'square', did you mean 'round'?"),
        ({"inner": {"size": 0}}, "inner.size=0: input should be greater than or equal to 1"),
        ({"inner": {"size": "é"}}, "inner.size='é': input should be a valid integer"),
        ({"inner": 3}, "inner=3: input should be a valid dictionary or instance of Inner"),
        ({"needed": "long"}, "needed: 'long' is longer than three letters"),
        ({"from": 2.0}, "recipe: from is above inner.size: lower it"),
    ],
)
def test_a_mistake_is_one_sentence(content: dict[str, Any], said: str) -> None:
    (line,) = explained(**content)
    assert line.startswith(said)


def test_what_is_missing_and_what_is_no_mapping_is_said() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({})
    assert explain(caught.value, Outer) == "needed: missing; a recipe must say it"
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate([])
    assert explain(caught.value, Outer).startswith("recipe=[]: input should be")


def test_a_split_that_no_dataset_has_is_corrected_in_a_recipe() -> None:
    text = wrong(data={"task": None, "dataset": "a/b", "splits": {"validaton": "dev"}})
    assert "data.splits.validaton: no such key in data.splits, did you mean 'validation'?" in text
