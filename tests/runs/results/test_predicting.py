from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tasks.test_chat_borders import merging
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import export_merged
from rankwise.runs.results.predicting import _openings, _rows, _task, answer_table, predict
from rankwise.runs.results.trained import load_trained
from rankwise.runs.training.train import train
from rankwise.tasks import IGNORED, TASKS, DataSpec, load_task
from rankwise.tasks.opening import opening
from rankwise.tasks.read import Source, read_file

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


def test_a_row_without_text_is_refused_with_what_helps_here(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "instruction")
    (tmp_path / "new.csv").write_text("instruction\nGo\n \n")
    with pytest.raises(ValueError, match=r"row 2: column 'instruction' has no text .*leave such rows out of the file$"):
        _rows([str(tmp_path / "new.csv")], _task(recipe, {"model_arguments": {}}), recipe)


def test_an_input_that_is_not_there_shows_as_nothing() -> None:
    table = answer_table([{"instruction": "Go", "input": None, "answer": "on"}])
    assert [str(cell) for column in table.columns for cell in column.cells] == ["Go", "", "on"]


def test_too_few_texts_and_a_file_that_is_not_there_are_said(make: Make, tmp_path: Path) -> None:
    train(make("lora", training={"max_steps": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 texts for a task that reads 2 \(sentence1, sentence2\): give both"):
        predict(tmp_path / "run", ["bar"])
    with pytest.raises(ValueError, match=r"no file new\.csv"):
        predict(tmp_path / "run", ["new.csv"])


PROMPT = "bar bin"
PAIRS = [{"prompt": PROMPT, "completion": f"dot {word}"} for word in ("dun", "kar", "lit", "bat") * 6]


def test_a_run_asks_in_the_form_that_its_rows_had(make: Make, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    turns: list[Any] = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": "dot"}],
        }
        for row in PAIRS
    ]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    for name, form in (("texts", "prompt-completion"), ("turns", "conversation")):
        data = {"data_dir": None, "train_file": str(tmp_path / f"{name}.jsonl"), "validation_fraction": 0}
        train(make("lora", "chat", training={"max_steps": 2}, data=data), tmp_path / name)
        assert RunFolder(tmp_path / name).figures()["form"] == form
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "texts" / "adapter")
    assert tokenizer.chat_template is not None
    plain = tokenizer.convert_tokens_to_ids(["[CLS]", "bar", "bin"])  # as in training, without what closes
    by_template: Any = tokenizer.apply_chat_template(turns[0]["prompt"], add_generation_prompt=True)
    assert asked_ids(tmp_path / "texts") == plain
    assert [opening(text, tokenizer, special_tokens=True).ids for text in ("", " ")] == [plain[:1]] * 2
    assert asked_ids(tmp_path / "turns") == by_template["input_ids"]
    assert RunFolder(tmp_path / "texts").figures()["answers_begin"] == "d"  # of "dot"
    assert RunFolder(tmp_path / "turns").figures()["answers_begin"] is None
    (tmp_path / "new.jsonl").write_text(json.dumps({"messages": turns[0]["prompt"]}) + "\n")
    with pytest.raises(ValueError, match=r"new\.jsonl, row 1 is a conversation, and the run learned prompts that are"):
        predict(tmp_path / "texts", [str(tmp_path / "new.jsonl")])
    figures = tmp_path / "texts" / "metrics.json"  # of an earlier version, which decided by the tokenizer
    figures.write_text(
        json.dumps({key: each for key, each in json.loads(figures.read_text()).items() if key != "form"})
    )
    assert asked_ids(tmp_path / "texts") == by_template["input_ids"]
    assert len(predict(tmp_path / "texts", [str(tmp_path / "new.jsonl")], max_new_tokens=2)) == 1


def test_a_prompt_that_leaves_nothing_to_read_is_refused() -> None:
    tokenizer = merging()
    source = Source(Dataset.from_list([{"text": "x"}, {"text": ""}]), "new.jsonl")
    with pytest.raises(
        ValueError, match=r"new\.jsonl, row 2: the prompt is blank, and this tokenizer opens a text with"
    ):
        list(_openings(source, TASKS["text"], tokenizer, {"form": "text"}))


def asked_ids(run: Path) -> list[int]:
    """The token ids that a run would be asked with about ``PROMPT``."""
    folder = RunFolder(run)
    recipe, trained = folder.recipe(), folder.figures()
    task = _task(recipe, trained)
    tokenizer = AutoTokenizer.from_pretrained(folder.adapter)
    (asked,) = _openings(_rows([PROMPT], task, recipe), task, tokenizer, trained)
    return asked.ids


@pytest.mark.parametrize("task", ["instruction", "text", "mrpc", "stsb", "copa", "chat"])
def test_a_run_records_the_form_of_its_rows(make: Make, tmp_path: Path, task: str) -> None:
    recipe = make("lora", task)
    forms = {"mrpc": "classification", "stsb": "regression", "copa": "choice", "chat": "conversation"}
    assert load_task(recipe.data, load_tokenizer(recipe.model)).form == forms.get(task, task)


def test_a_run_on_instructions_asks_alpacas_prompt_and_no_template(make: Make, tmp_path: Path) -> None:
    recipe = make("lora", "instruction")
    tokenizer = load_tokenizer(recipe.model)
    assert tokenizer.chat_template is not None
    task = _task(recipe, {"model_arguments": {}})
    data = load_task(recipe.data.model_copy(update={"max_length": 500}), tokenizer)
    assert recipe.data.data_dir is not None
    source = read_file(recipe.data.data_dir / "instruction" / "train.jsonl", texts=("instruction",))
    first = data.train[0]
    learned = [label != IGNORED for label in first["labels"]]
    begun = {tuple(asked.ids) for asked in _openings(source, task, tokenizer, {"form": data.form})}
    assert tuple(first["input_ids"][: learned.index(True)]) in begun
    (tmp_path / "new.csv").write_text("instruction,input\nbar,3\nbin,4\n")
    assert _rows([str(tmp_path / "new.csv")], task, recipe).rows["input"][:] == ["3", "4"]
    (tmp_path / "new.jsonl").write_text('{"instruction": "bar", "input": 3, "output": "bin"}\n')
    words = r"new\.jsonl: column 'input' holds int64, not text"
    with pytest.raises(ValueError, match=words):
        _rows([str(tmp_path / "new.jsonl")], task, recipe)
    with pytest.raises(ValueError, match=words):
        load_task(DataSpec(task="instruction", train_file=tmp_path / "new.jsonl"), tokenizer)


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
