"""A first recipe from a few answers: what is asked, what is written, what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.commands import call

from rankwise.runs.recipes.recipe import load_recipe
from rankwise.runs.recipes.starting import METHODS, MODELS, QUESTIONS, TRAINING, Answers, compose, write_first

OWN = Answers("classification", "reviews.csv", "text", "stars", "m", "lora")


@pytest.mark.parametrize("task", ["classification", "regression", "chat", "instruction", "text", "mrpc"])
def test_every_first_recipe_loads(tmp_path: Path, task: str) -> None:
    out = tmp_path / "a.yaml"
    options = ["--task", task, "--data", "a/b", "--text", "t", "--label", "l", "--model", "m", "--method", "lora"]
    assert call("init", out, *options).exit_code == 0
    recipe = load_recipe(out)
    assert (recipe.data.task or recipe.data.kind) == task
    assert "rankwise train" in out.read_text().partition("model:")[0]
    again = call("init", out, "--task", "mrpc", "--model", "m", "--method", "lora")
    assert again.exit_code == 2
    assert "exists already" in again.output


class Asks:
    """Answers questions by the start of their text, else with the default; keeps what was asked."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, question: str, default: str | None) -> str:
        name = next(name for name, text in QUESTIONS.items() if text == question)
        self.asked.append((name, default))
        return self.answers.get(name) or str(default)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        (
            {"data": "a/b"},
            [
                ("task", "classification"),
                ("data", None),
                ("text", "text"),
                ("label", "label"),
                ("model", MODELS["classification"]),
                ("method", "lora"),
            ],
        ),
        ({"task": "mrpc"}, ["task", "model", "method"]),  # a benchmark's data is on the hub
        ({"task": "docstrings"}, ["task", "model", "method"]),
        ({"task": "chat", "data": "a/b"}, ["task", "data", "model", "method"]),
    ],
)
def test_only_what_is_not_known_is_asked(answers: dict[str, str], asked: list[Any]) -> None:
    asks = Asks(**answers)
    compose(Answers(), asks)
    assert [each if isinstance(asked[0], tuple) else each[0] for each in asks.asked] == asked


def test_what_was_said_beforehand_is_not_asked() -> None:
    asks = Asks()
    assert compose(OWN, asks).method.name == "lora"
    assert asks.asked == []


@pytest.mark.parametrize("name", ["task", "data", "text", "label", "model", "method"])
def test_what_nobody_can_be_asked_is_named_as_an_option(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name} is missing and nobody can be asked here: ") as caught:
        compose(Answers(**{**vars(OWN), name: None}), None)
    assert str(caught.value).endswith(QUESTIONS[name])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"task": "clasification"}, "task='clasification' is not one of .*did you mean 'classification'"),
        ({"method": "lor"}, "method='lor' is not one of 'lora', 'heterolora', 'lor2c', did you mean 'lora'"),
        ({"text": "a,b,c"}, "text_columns"),
        ({"text": " , "}, "text_columns missing"),
        ({"label": ""}, "label_column missing"),
        ({"data": ""}, "data"),
    ],
)
def test_answers_that_are_not_allowed_are_refused(answers: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose(Answers(**{**vars(OWN), **answers}), None)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("there.dat", "train_file"),  # it is there, so its ending is the reader's to refuse
        ("Gone.CSV", "train_file"),
        ("gone.jsonl.gz", "train_file"),
        ("folder", "dataset"),
        ("folder.json", "dataset"),
        ("stanfordnlp/imdb", "dataset"),
    ],
)
def test_data_is_a_file_or_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.dat").touch()
    Path("folder").mkdir()
    Path("folder.json").mkdir()
    data = compose(Answers(**{**vars(OWN), "data": given}), None).data
    other = "dataset" if key == "train_file" else "train_file"
    assert (str(getattr(data, key)), getattr(data, other)) == (given, None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["classification", "text"])
def test_method_and_model_bring_their_defaults(method: str, task: str) -> None:
    recipe = compose(Answers(**{**vars(OWN), "method": method, "task": task}), None)
    family = "causal" if task == "text" else "classification"
    assert {key: recipe.method.options[key] for key in METHODS[method]} == METHODS[method]
    assert ("target_modules" in recipe.method.options) == (method != "lor2c")
    assert {key: getattr(recipe.training, key) for key in TRAINING[family]} == TRAINING[family]
    assert recipe.model.dtype == ("bfloat16" if family == "causal" else "float32")


def test_the_file_holds_what_was_chosen_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.yaml"
    made = compose(Answers(**{**vars(OWN), "text": "titre, corps é"}), None)
    assert write_first(made, out) == out
    text = out.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {
        "model": {"name": "m"},
        "data": {
            "train_file": "reviews.csv",
            "text_columns": ["titre", "corps é"],
            "label_column": "stars",
            "kind": "classification",
        },
        "method": {"name": "lora", **METHODS["lora"], "target_modules": "all-linear"},
        "training": TRAINING["classification"],
    }
    assert "corps é" in text
    assert load_recipe(out) == made
    assert [path.name for path in out.parent.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize("name", ["a.yaml", "my first recipe.yaml", "it's.yaml", "$HOME.yaml"])
def test_the_header_can_be_typed_into_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_first(compose(OWN, None), Path(name))
    lines = [line.partition(":")[2] for line in Path(name).read_text().splitlines() if line.startswith("#")]
    assert [shlex.split(line) for line in lines] == [
        ["rankwise", "train", name, "--dry-run"],
        ["rankwise", "plan", name],
        ["rankwise", "train", name],
    ]


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "a.yaml"
    out.write_text("mine\n")
    with pytest.raises(ValueError, match=r"a\.yaml exists already: give another name, or say --overwrite"):
        write_first(compose(OWN, None), out)
    assert out.read_text() == "mine\n"
    write_first(compose(OWN, None), out, overwrite=True)
    assert load_recipe(out).model.name == "m"
