"""The way of somebody who has a file of labelled text and has not seen rankwise before, from one end to the other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from rankwise.runs.dryrun import WORDS, stand_in
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise_cli import app
from rankwise_exits import USER_ERROR

LABELS = ("praise", "complaint")
WITHOUT_RANKWISE = """
import json, sys
from transformers import pipeline
found = pipeline("text-classification", model=sys.argv[1], device="cpu")(json.loads(sys.argv[2]))
assert not any(name.split(".")[0] in ("rankwise", "peft") for name in sys.modules), "only transformers is needed"
print(json.dumps(found))
"""


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny RoBERTa with random weights, which a user would name by its id."""
    content = {"model": {"name": "FacebookAI/roberta-base"}, "data": {"task": "sst2"}, "method": {"name": "full"}}
    stand_in(parse_recipe(content), tmp_path / "room")
    return tmp_path / "room" / "model"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [(f"{WORDS[n % 2]} {WORDS[3 + n % 7]} {WORDS[20 + n % 5]}", LABELS[n % 2]) for n in range(64)]
    file = tmp_path / "Reviews.CSV"
    file.write_text("review;verdict\n" + "".join(f"{text};{label}\n" for text, label in rows), encoding="utf-8-sig")
    return file


@pytest.mark.slow
def test_from_a_file_to_a_pipeline(tmp_path: Path, model: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"task": "classification", "data": reviews, "text": "review", "label": "verdict", "model": model}
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    call("init", "mine.yaml", *options, "--method", "heterolora")
    fast = {"training.batch_size": 8, "training.learning_rate": 3e-3, "training.epochs": 2, "training.report_to": []}
    settings = [word for key, value in fast.items() for word in ("--set", f"{key}={value}")]
    settings += ["--set", "method.target_modules=[query,value]"]

    said = call("plan", "mine.yaml", *settings, "--room", 8).output
    assert "fits: about" in said
    shown = call("train", "mine.yaml", *settings, "--out", "run").output
    assert "train: 58 rows" in shown
    assert "labels complaint 29, praise 29" in shown
    assert re.search(r"ranks: chosen in \d+\.\d s for \d of 4 paths: \S*\.(query|value) \d", shown)
    assert "finished already" in call("train", "mine.yaml", *settings, "--out", "run", "--resume").output
    longer = call("train", "run/config.yaml", "--out", "run", "--resume", "--set", "training.epochs=3").output
    assert "3.00" in longer
    call("report", "run")
    assert '"state":"finished"' in Path("report.html").read_text()
    assert "run" in call("runs", ".").output

    call("predict", "run", reviews, "--out", "answers.jsonl")
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 64
    assert {answer["label"] for answer in answers} <= set(LABELS)
    one = answers[0]
    assert one["label"] in call("predict", "run", one["review"]).output

    card = Path("run/adapter/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft"
    assert head["license"] == "unknown"
    assert {"rankwise", "heterolora", "peft"} <= set(head["tags"])
    assert "import rankwise" in card
    assert "How it was trained" in card

    call("export", "run", "whole", "--merged")
    texts = json.dumps([answer["review"] for answer in answers[:8]])
    process = [sys.executable, "-c", WITHOUT_RANKWISE, "whole", texts]
    done = subprocess.run(process, capture_output=True, text=True, check=True)
    served = json.loads(done.stdout.splitlines()[-1])
    assert [each["label"] for each in served] == [answer["label"] for answer in answers[:8]]
    assert [each["score"] for each in served] == pytest.approx([a["probability"] for a in answers[:8]], abs=1e-4)
    refused = call("export", "run", "whole", "--merged", code=USER_ERROR).output
    assert "holds something already" in refused


def test_a_recipe_that_cannot_be_asked_for_says_which_option_is_missing(tmp_path: Path) -> None:
    said = call("init", tmp_path / "a.yaml", "--task", "chat", code=USER_ERROR).output
    assert "--data is missing" in said
    assert not (tmp_path / "a.yaml").exists()
