from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import export_merged
from rankwise.runs.results.predicting import _rows, _task, predict
from rankwise.runs.results.trained import load_trained
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]
BATCH = {"input_ids": torch.tensor([[2, 9, 14, 30, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


@pytest.mark.parametrize(
    ("task", "texts", "keys"),
    [
        ("mrpc", ["bar bin", "dot dun"], {"label", "probability"}),
        ("stsb", ["bar bin", "dot dun"], {"score"}),
        ("copa", ["bar bin", "cause", "dot", "dun"], {"choice", "probability"}),
        ("instruction", ["bar bin"], {"answer"}),
        ("text", ["bar bin"], {"answer"}),
        ("chat", ["bar bin"], {"answer"}),
    ],
)
def test_every_kind_of_run_answers_text_and_files(
    make: Make, tmp_path: Path, task: str, texts: list[str], keys: set[str]
) -> None:
    train(make("lora", task, training={"max_steps": 2}), tmp_path / "run")
    (answer,) = predict(tmp_path / "run", texts, max_new_tokens=4)
    assert set(answer) >= keys
    columns = [name for name in answer if name not in keys]
    rows = [dict(zip(columns, texts, strict=True))] * 3
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = predict(tmp_path / "run", [str(tmp_path / "new.jsonl")], max_new_tokens=4, out=tmp_path / "out.jsonl")
    assert len(again) == 3
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == again
    for name, value in answer.items():
        assert again[0][name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)


def test_a_run_on_conversations_answers_them_and_says_what_it_can_not_read(make: Make, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "new.jsonl"
    train(make("lora", "chat", training={"max_steps": 2}), run)
    asked = [{"role": "user", "content": "bar bin"}, {"role": "assistant", "content": "dot"}]
    asked.append({"role": "user", "content": "kar"})
    tool = {"type": "function", "function": {"name": "bat", "parameters": {}}}

    def answers(*rows: Any) -> list[Any]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return predict(run, [str(file)], max_new_tokens=4, out=tmp_path / "out.jsonl")

    answered = {"messages": [*asked, {"role": "assistant", "content": "lit"}]}
    found = answers(answered, {"messages": asked}, {"messages": asked[:1]})
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == found
    assert found[0] == {**answered, "answer": found[0]["answer"]}
    (first,) = answers({"prompt": asked})
    assert found[0]["answer"] == found[1]["answer"] == first["answer"]
    (text,) = predict(run, ["bar bin"], max_new_tokens=4)
    assert text["answer"] == found[2]["answer"]
    (listed,), (as_text,) = (
        answers({"prompt": asked, "tools": [tool]}),
        answers({"prompt": asked, "tools": f"[{json.dumps(tool)}]"}),
    )
    assert listed["answer"] == as_text["answer"]
    for row, message in (
        ({"text": "bar"}, r"new\.jsonl has neither 'prompt' nor 'messages' to answer; its columns are text"),
        ({"messages": [{"role": "user"}]}, r"new\.jsonl, row 2: messages, message 1 \(user\) has no content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"row 2: the chat template refuses it: TypeErr",
        ),
    ):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=message):
            answers(*([row] if "text" in row else [{"messages": asked}, row]))
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("task", ["chat", "instruction", "text", "mrpc"])
@pytest.mark.parametrize(("name", "content"), [("new.jsonl", ""), ("new.json", "[]"), ("new.csv", "prompt,messages\n")])
def test_a_file_without_rows_is_no_answer(make: Make, tmp_path: Path, task: str, name: str, content: str) -> None:
    task_of = _task(make("lora", task), {"model_arguments": {}})
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is empty: it has no rows"):
        _rows([str(tmp_path / name)], task_of, make("lora", task))


def test_too_few_texts_and_a_file_that_is_not_there_are_said(make: Make, tmp_path: Path) -> None:
    train(make("lora", training={"max_steps": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 texts for a task that reads 2 \(sentence1, sentence2\): give both"):
        predict(tmp_path / "run", ["bar"])
    with pytest.raises(ValueError, match=r"no file new\.csv"):
        predict(tmp_path / "run", ["new.csv"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["heterolora", "lora", "dylora", "adalora", "full"])
def test_a_merged_model_is_the_trained_one(make: Make, tmp_path: Path, method: str) -> None:
    train(make(method), tmp_path / "run")
    whole = AutoModelForSequenceClassification.from_pretrained(export_merged(tmp_path / "run", tmp_path / "whole"))
    assert whole.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").pad_token is not None
    with torch.no_grad():
        expected = load_trained(RunFolder(tmp_path / "run"))(**BATCH).logits
        torch.testing.assert_close(whole.eval()(**BATCH).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_merged_causal_model_is_the_trained_one(make: Make, tmp_path: Path) -> None:
    train(make("heterolora", "text"), tmp_path / "run")
    whole = AutoModelForCausalLM.from_pretrained(export_merged(tmp_path / "run", tmp_path / "whole"))
    with torch.no_grad():
        expected = load_trained(RunFolder(tmp_path / "run"))(**BATCH).logits
        torch.testing.assert_close(whole.eval()(**BATCH).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("lor2c", {"merges": 0}, r"live block paths.*layers\.0\.layer, layers\.1\.layer"),
        ("heterolora", {"shortcuts": ["res1"], "mode": "off"}, r"live block paths.*layers\.0\.res1"),
        ("adapterdrop", {}, "bottleneck adapters, which stand between the layers"),
    ],
)
def test_what_cannot_be_merged_is_listed(
    make: Make, tmp_path: Path, method: str, options: dict[str, Any], words: str
) -> None:
    train(make(method, method=options), tmp_path / "run")
    with pytest.raises(ValueError, match=words):
        export_merged(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
