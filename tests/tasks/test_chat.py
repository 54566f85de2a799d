from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from rankwise.runs.dryrun import CHATML, tiny_tokenizer
from rankwise.tasks import IGNORED, DataSpec, load_task
from rankwise.tasks.read import Source

Row = dict[str, Any]


def turn(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


CHAT = [turn("user", "bar bin"), turn("assistant", "dot dun"), turn("user", "kar"), turn("assistant", "lit")]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def write(folder: Path, *rows: Row) -> Path:
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "chat.jsonl"


def load(folder: Path, tokenizer: PreTrainedTokenizerBase, *rows: Row, **more: Any) -> Any:
    spec = DataSpec(task="chat", train_file=write(folder, *rows), dev_fraction=0, **more)
    return load_task(spec, tokenizer)


def learned(data: Any, row: int = 0) -> str:
    labels = [label for label in data.train["labels"][row] if label != IGNORED]
    return str(data.tokenizer.decode(labels))


def test_of_messages_the_assistants_turns_are_learned(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = load(tmp_path, tokenizer, {"messages": CHAT}, {"messages": CHAT[:2]})
    assert learned(data, 0) == "dot dun [SEP] lit [SEP]"
    assert learned(data, 1) == "dot dun [SEP]"
    whole: Any = tokenizer.apply_chat_template(CHAT, return_dict=True)
    assert whole["input_ids"] == data.train["input_ids"][0]
    everything = load(tmp_path, tokenizer, {"messages": CHAT}, train_on_prompt=True)
    assert everything.train["labels"][0][1:] == everything.train["input_ids"][0][1:]


def test_of_a_prompt_and_its_completion_the_completion_is_learned(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    turns = load(tmp_path, tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]})
    assert learned(turns) == "lit [SEP]"
    texts = load(tmp_path, tokenizer, {"prompt": "bar bin ", "completion": "dot dun"})
    assert learned(texts) == "dot dun [SEP]"


def test_tools_go_into_the_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tools = [{"type": "function", "function": {"name": "bat", "parameters": {}}}]
    row = {"messages": CHAT[:2], "tools": tools}
    with_tools, as_text, without = (
        load(tmp_path, tokenizer, each).train["input_ids"][0]
        for each in (row, {**row, "tools": json.dumps(tools)}, {"messages": CHAT[:2]})
    )
    assert with_tools == as_text
    assert len(with_tools) > len(without)


def test_a_template_without_marks_is_trained_with_trls_variant_or_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer.chat_template = plain
    with pytest.raises(ValueError, match="does not mark the assistant's turns"):
        load(tmp_path, tokenizer, {"messages": CHAT})
    assert learned(load(tmp_path, tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]})) == "lit [SEP]"
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        load(tmp_path, tokenizer, {"messages": CHAT})
    assert learned(load(tmp_path, tokenizer, {"prompt": "bar ", "completion": "dot"})) == "dot [SEP]"


def test_the_template_of_a_current_model_marks_its_answers(
    tmp_path: Path, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    import copy

    import trl

    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    assert get_training_chat_template(tokenizer) is not None
    words = learned(load(tmp_path, tokenizer, {"messages": CHAT}))
    assert "dot dun" in words
    assert "lit" in words
    assert "bar" not in words
    assert "kar" not in words


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"row 2: messages holds \[\], not a list of messages"),
        ({"messages": None}, r"row 2: messages holds None"),
        ({"messages": [{"content": "x"}]}, r"row 2: messages, message 1 is .* it needs a role"),
        ({"messages": CHAT[:1]}, r"row 2: no message is the assistant's"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Row, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"chat\.jsonl, {message}"):
        load(tmp_path, tokenizer, {"messages": CHAT}, row)


def test_other_columns_and_an_empty_completion_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="has neither 'messages' nor 'prompt' and 'completion'; its columns are text"):
        load(tmp_path, tokenizer, {"text": "x"})
    with pytest.raises(ValueError, match="row 1: the completion is empty"):
        load(tmp_path, tokenizer, {"prompt": "x", "completion": " "})


def test_cut_answers_are_counted_warned_of_and_refused_above_a_tenth(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    short = {"prompt": "bar ", "completion": "dot"}
    long = {"prompt": "bar ", "completion": "dot " * 30}
    with pytest.raises(ValueError, match=r"1 of 4 answers are cut at max_length=16 .*25.0%.*allow_cut_answers"):
        load(tmp_path, tokenizer, *[short] * 3, long, max_length=16)
    with pytest.warns(UserWarning, match=r"1 of 20 answers are cut"):
        data = load(tmp_path, tokenizer, *[short] * 19, long, max_length=16)
    assert data.counts()["train"]["cut_answers"] == 1
    with pytest.warns(UserWarning, match=r"1 of 4 answers"):
        assert len(load(tmp_path, tokenizer, *[short] * 3, long, max_length=16, allow_cut_answers=True).train) == 4


def test_alpacas_input_is_optional(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[Row] = [{"instruction": "bar", "output": "dot"}, {"instruction": "bar", "input": "", "output": "dot"}]
    ids = []
    for row in (*rows, {**rows[0], "input": None}):
        file = write(tmp_path, row, {**row, "instruction": "kar"})
        data = load_task(DataSpec(task="instruction", train_file=file, dev_fraction=0, max_length=99), tokenizer)
        ids.append(data.train["input_ids"][0])
    assert ids[0] == ids[1] == ids[2]


def test_a_folder_of_files_is_a_dataset_too(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, size in (("train", 8), ("test", 3)):
        rows = [{"title": "bar", "topic": "ab"[n % 2]} for n in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own: dict[str, Any] = {
        "dataset": str(folder),
        "text_columns": ("title",),
        "label_column": "topic",
        "dev_fraction": 0,
    }
    data = load_task(DataSpec(**own, splits={"validation": "test[:2]"}), tokenizer)
    assert (len(data.train), data.validation and len(data.validation), data.test and len(data.test)) == (8, 2, 3)
    with pytest.raises(ValueError, match=r"has no split 'tets', did you mean 'test'"):
        load_task(DataSpec(**own, splits={"validation": "tets"}), tokenizer)
    with pytest.raises(ValueError, match=r"data\.dataset='gone/there' can't be loaded"):
        load_task(DataSpec(**{**own, "dataset": "gone/there"}), tokenizer)


def test_a_hub_datasets_class_labels_become_their_names() -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    from rankwise.tasks.read import _named_classes

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    assert Source(_named_classes(rows), "x").rows["label"][:] == ["yes", "no", None]
