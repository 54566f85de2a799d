from __future__ import annotations

import copy
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import trl
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl.chat_template_utils import get_training_chat_template

from rankwise.runs.dryrun import UNMARKED, tiny_tokenizer
from rankwise.tasks import IGNORED, DataSpec, load_task
from rankwise.tasks.chat import chat_encoder, chat_opening
from rankwise.tasks.read import Source

Row = dict[str, Any]


def turn(role: str, content: Any, **more: Any) -> Row:
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


def test_a_template_without_marks_learns_the_same_or_there_is_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    marked = load(tmp_path, tokenizer, {"messages": CHAT})
    tokenizer.chat_template = UNMARKED
    plain = load(tmp_path, tokenizer, {"messages": CHAT})
    assert plain.train[0] == marked.train[0]
    assert learned(load(tmp_path, tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]})) == "lit [SEP]"
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        load(tmp_path, tokenizer, {"messages": CHAT})
    assert learned(load(tmp_path, tokenizer, {"prompt": "bar ", "completion": "dot"})) == "dot [SEP]"


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
SAID = [turn("user", "one?"), turn("assistant", "Yes, one."), turn("user", "two"), turn("assistant", "No.\n\nTwo.")]
CALLED = [
    turn("user", "one and one"),
    {"role": "assistant", "tool_calls": [CALL]},
    turn("tool", "2", name="add"),
    turn("assistant", "It is two."),
    turn("user", "thanks"),
    turn("assistant", "Yes."),
]
CONVERSATIONS: dict[str, Row] = {
    "turns": {"messages": SAID},
    "system": {"messages": [turn("system", "Be kind."), *SAID]},
    "greeting": {"messages": [turn("assistant", "Hello."), *SAID, turn("user", "bye")]},
    "tools": {"messages": SAID, "tools": [TOOL]},
    "calls": {"messages": CALLED, "tools": [TOOL]},
    "parts": {"messages": [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in SAID]},
}
# Written after SmolLM2-Instruct's: no marks, no white space control, a system turn of its own.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with marks around what an assistant writes.
CHATML_MARKED = CHATML.replace(
    "'\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "'\n'}}{% if message['role'] == 'assistant' %}{% generation %}{{message['content'] + '<|im_end|>\n'}}"
    "{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>\n'}}{% endif %}",
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARK = re.compile(r"(?m)(?:^[ \t]+(?=\{%[^-]))?\{%(-?)\s*(end)?generation\s*(-?)%\}(\n?)")
TRAINED = {file.stem: file.read_text("utf-8") for file in sorted(TEMPLATES.glob("*_training.jinja"))} | {
    "chatml": CHATML_MARKED
}
# What the model is asked with is not how its answer reads, or an answer reads otherwise once more follows.
NO_PREFIX = {"deepseek_r1_distill", "deepseekv3", "gptoss", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"}
NO_PREFIX |= {"nemotron_3_5_lightning", "phi3", "phi3_5"}
ASKS_FIRST = {"qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"}  # no answer without a question before it
# The marks begin before the end of what the model is asked with, or end before a space.
OTHERWISE = {
    "qwen2_5",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "muse_glimmer",
    "diffusion_gemma",
    "llava_next",
}


PARTS_ALONE = {"idefics3", "smolvlm"}  # of a content that is a text they write nothing


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerBase:
    """A token for each byte, so that masks are told letter by letter, and some special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=100_000
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | dict[str, str]) -> PreTrainedTokenizerBase:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def without_marks(template: str) -> str:
    """The same template, as far as what it writes goes."""
    return MARK.sub(
        lambda found: f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}{found[4]}", template
    )


def by_hand(template: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The ids and what the marks enclose, told by two letters that the marks are made to write."""
    lettered = MARK.sub(lambda found: f"{{{{{found[1]} '{chr(2) if found[2] else chr(1)}' {found[3]}}}}}", template)
    messages = [{"content": "", **each} if "tool_calls" not in each else each for each in row["messages"]]
    text = str(
        tokenizer.apply_chat_template(
            messages, tools=row.get("tools"), chat_template=lettered, tokenize=False, date_string="26 Jul 2024"
        )
    )
    ids: list[int] = []
    learned: list[bool] = []
    for outside, within in re.findall(r"([^\x01\x02]*)(?:\x01([^\x02]*)\x02)?", text):
        for piece, counts in ((outside, False), (within, True)):
            tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += tokens
            learned += [counts] * len(tokens)
    return ids, learned


@pytest.mark.parametrize("name", TRAINED)
def test_answers_are_found_without_marks_where_the_marks_are(name: str, letters: PreTrainedTokenizerBase) -> None:
    family, compared = name.removesuffix("_training"), 0
    marked = chat_encoder(with_template(letters, TRAINED[name]))
    plain = chat_encoder(with_template(letters, without_marks(TRAINED[name])))
    for what, row in CONVERSATIONS.items():
        try:
            expected = by_hand(TRAINED[name], row, letters)
        except (ValueError, TypeError, TemplateError):  # a template that knows no system turn, no tools, no parts
            continue
        if what == "calls" and "add" not in letters.decode(
            [token for token, counts in zip(*expected, strict=True) if counts]
        ):
            with pytest.raises(ValueError, match="row 1: calls the tool 'add', and the chat template leaves"):
                marked(dict(row), "row 1")
            continue
        if family in PARTS_ALONE and what != "parts":
            with pytest.raises(ValueError, match="row 1: the chat template writes nothing of the answer"):
                marked(dict(row), "row 1")
            continue
        compared += 1
        assert any(expected[1])
        assert marked(dict(row), "row 1") == expected
        if family in NO_PREFIX or (what == "greeting" and family in ASKS_FIRST):
            with pytest.raises(ValueError, match=r"^row 1(: .* can't be found |, up to message 1: .*No user query)"):
                plain(dict(row), "row 1")
        elif family in OTHERWISE:
            ids, learned = plain(dict(row), "row 1")
            assert ids == expected[0]
            assert (learned == expected[1]) == (family == "diffusion_gemma" and what != "calls")
        else:
            assert plain(dict(row), "row 1") == expected
    assert compared >= 1


def answers(tokenizer: PreTrainedTokenizerBase, template: str, row: Row) -> list[str]:
    """The texts that are learned, one for each run of learned tokens."""
    ids, learned = chat_encoder(with_template(tokenizer, template))(dict(row), "row 1")
    runs = groupby(zip(ids, learned, strict=True), key=lambda pair: pair[1])
    return [str(tokenizer.decode([token for token, _ in run])) for counts, run in runs if counts]


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "gemma4", "gemma4_v5", "chatml"])
def test_a_template_that_trl_has_no_marks_for_learns_its_answers(name: str, letters: PreTrainedTokenizerBase) -> None:
    template = CHATML if name == "chatml" else (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    end = {"c": "<|im_end|>\n", "l": "<|eot_id|>", "g": "<turn|>\n"}[name[0]]
    said = [f"Yes, one.{end}", f"No.\n\nTwo.{end}"]
    assert answers(letters, template, CONVERSATIONS["turns"]) == said
    assert answers(letters, template, CONVERSATIONS["system"]) == said
    assert answers(letters, template, CONVERSATIONS["tools"]) == said
    assert answers(letters, template, CONVERSATIONS["greeting"]) == [f"Hello.{end}", *said]
    if name == "chatml":
        with pytest.raises(ValueError, match="row 1: calls the tool 'add', and the chat template leaves tool calls"):
            answers(letters, template, {"messages": [{"content": "", **each} for each in CALLED], "tools": [TOOL]})
    if name == "llama3_2":
        call = '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'
        assert answers(letters, template, CONVERSATIONS["calls"]) == [call, f"It is two.{end}", f"Yes.{end}"]


def test_marks_that_begin_with_white_space_lose_no_answer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    template = str(tokenizer.chat_template)
    tokenizer.chat_template = template.replace("{{ message['content'] +", "{{ '   ' + message['content'] +")
    assert learned(load(tmp_path, tokenizer, {"messages": CHAT})) == "dot dun [SEP] lit [SEP]"


def test_llamas_date_is_the_same_every_day(letters: PreTrainedTokenizerBase) -> None:
    tokenizer = with_template(letters, (TEMPLATES / "llama3_2.jinja").read_text("utf-8"))
    ids, _ = chat_encoder(tokenizer)({"messages": SAID}, "row 1")
    assert "Today Date: 26 Jul 2024" in letters.decode(ids)
    asked = chat_opening(SAID[:1], None, tokenizer, "row 1").ids
    assert ids[: len(asked)] == asked


def test_a_template_of_its_own_for_tools_is_the_one_that_is_used(letters: PreTrainedTokenizerBase) -> None:
    both = {"default": CHATML, "tool_use": CHATML.replace("You are helpful", "You have tools")}
    encode_row = chat_encoder(with_template(letters, both))
    for row, words in (({"messages": SAID}, "You are helpful"), (CONVERSATIONS["tools"], "You have tools")):
        assert words in letters.decode(encode_row(dict(row), "row 1")[0])


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        ("gemma", [*CHAT[:1], *CHAT], r"row 3: the chat template refuses it: Conversation roles must alternate"),
        ("chatml", [{**CHAT[0], "content": [{"type": "text", "text": "bar"}]}, CHAT[1]], "row 3: .*it: TypeError: can"),
        ("chatml", [CHAT[0], {"role": "assistant", "tool_calls": [CALL]}], "row 3: .*refuses it: .*'content'"),
        ("think", CHAT, r"row 1: .* message 2 can't be found .*assistant\\n<think>' by themselves"),
        ("{% for %}", CHAT, r"the chat template is no valid Jinja \(line 1: "),
        ("{{ raise_exception('no\nmore') }}", CHAT, "row 1: the chat template refuses it: no more: change the row"),
    ],
)
def test_what_a_template_refuses_names_the_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, template: str, row: list[Row], message: str
) -> None:
    think = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")
    gemma = (TEMPLATES / "gemma.jinja").read_text("utf-8")
    tokenizer.chat_template = {"gemma": gemma, "chatml": CHATML, "think": think}.get(template, template)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tokenizer, {"messages": CHAT}, {"messages": CHAT[:2]}, {"messages": row})


def test_a_row_keeps_its_number_through_drops_splits_and_samples(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = (TEMPLATES / "gemma.jinja").read_text("utf-8")
    rows: list[Row] = [{"messages": CHAT} for _ in range(20)]
    rows[2], rows[11] = {"messages": None}, {"messages": [CHAT[0], *CHAT]}
    spec = DataSpec(task="chat", train_file=write(tmp_path, *rows), dev_fraction=0.5, missing="drop")
    with pytest.raises(ValueError, match=r"chat\.jsonl, row 12: the chat template refuses it"):
        load_task(spec, tokenizer)


def test_a_table_gives_no_call_the_arguments_of_another(tmp_path: Path, letters: PreTrainedTokenizerBase) -> None:
    def called(arguments: Row) -> Row:
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        return {"messages": [turn("user", "one"), {"role": "assistant", "content": None, "tool_calls": [call]}]}

    template = (TEMPLATES / "llama3_2.jinja").read_text("utf-8")
    rows = [called({"a": 1}), called({"b": "x"})]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    tokenizer = with_template(letters, template)
    spec = DataSpec(task="chat", train_file=tmp_path / "chat.parquet", dev_fraction=0, max_length=9999)
    table, lines = load_task(spec, tokenizer), load(tmp_path, tokenizer, *rows, max_length=9999)
    assert table.train["input_ids"][:] == lines.train["input_ids"][:]
    assert learned(lines, 1) == '{"name": "add", "parameters": {"b": "x"}}<|eot_id|>'
    own = load(tmp_path, tokenizer, called({"a": None}), max_length=9999)  # JSON says what its author wrote
    assert learned(own) == '{"name": "add", "parameters": {"a": null}}<|eot_id|>'


def test_the_template_of_a_current_model_marks_its_answers(
    tmp_path: Path, llama_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text("utf-8")
    assert get_training_chat_template(tokenizer) is not None
    words = learned(load(tmp_path, tokenizer, {"messages": CHAT}))
    assert "dot dun" in words
    assert "lit" in words
    assert "bar" not in words
    assert "kar" not in words


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
