"""What a finished run says to new text: a label, a score, a choice, or a continuation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from rankwise.files import write_text_atomic
from rankwise.runs.building.models import load_tokenizer
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.trained import load_trained, trained_spec
from rankwise.tasks import CHAT, INSTRUCTION, TASKS, Task
from rankwise.tasks.conversations import MESSAGES, PLAIN_TEXTS, PROMPT, TOOLS, prompts
from rankwise.tasks.encode import encode, longest, prompt_of, with_pad_token
from rankwise.tasks.losses import ChoiceCollator
from rankwise.tasks.missing import check_text, without_missing
from rankwise.tasks.opening import Opening, opening
from rankwise.tasks.parse import SUFFIXES
from rankwise.tasks.read import Source, read_file
from rankwise.tasks.registry import Kind

Answer = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A loaded run: its model, tokenizer, recipe and task."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    task: Task


def predict(
    run: str | Path,
    inputs: Sequence[str],
    *,
    out: str | Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 128,
) -> list[Answer]:
    """Ask a finished run about texts.

    Args:
        run: Its folder.
        inputs: One file in a format that training reads, or the text (for pairs two, for a choice four). Of a
            conversation's ``messages`` the answer that they end with is not read.
        out: A file for the answers as JSON lines, beside the row they are about.
        batch_size: Rows in a forward pass.
        max_new_tokens: The longest answer of a causal model, greedily decoded.

    Returns:
        For each row its texts with ``label`` and ``probability`` of a classification, ``score`` of a regression,
        ``choice`` of a choice, or ``answer``.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: It is not finished, a file lacks a column or a text, there are too few or too many texts, the
            chat template refuses a row, or a row is a conversation and the run learned plain prompts.
    """
    folder = RunFolder(Path(run))
    recipe, trained = folder.recipe(), folder.figures()
    task = _task(recipe, trained)
    source = _rows(inputs, task, recipe)
    rows = source.rows
    with quiet():
        tokenizer = with_pad_token(load_tokenizer(trained_spec(folder)))
        opened = list(_openings(source, task, tokenizer, trained)) if task.kind == "causal" else []
        asked = Asked(load_trained(folder), tokenizer, recipe, task)
        answers = _generate(asked, opened, max_new_tokens) if opened else _decide(asked, rows, batch_size)
        found = [{**row, **answer} for row, answer in zip(rows.to_list(), answers, strict=True)]
    if out is not None:
        write_text_atomic(out, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found))
    return found


def answer_table(answers: Sequence[Answer]) -> Table:
    """Return the answers, a row each; a long text is cut on the screen."""
    table = Table()
    for name in answers[0]:
        table.add_column(Text(name), overflow="fold")
    for answer in answers:
        cells = (
            f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
            for value in answer.values()
        )
        table.add_row(*(Text(cell if len(cell) <= 500 else f"{cell[:500]} ...") for cell in cells))
    return table


def _task(recipe: Recipe, trained: dict[str, Any]) -> Task:
    """Return the run's task; of the user's own files the labels are those it was trained with."""
    if recipe.data.task is not None:
        return TASKS[recipe.data.task]
    labels = trained["model_arguments"].get("id2label", {})
    kind: Kind = "classification" if labels else "regression"
    return Task("custom", kind, recipe.data.text_columns, None, tuple(labels.values()), (), "the user's own files")


def _rows(inputs: Sequence[str], task: Task, recipe: Recipe) -> Source:
    """Return the rows asked about, with the columns that the model reads and no others."""
    columns = {INSTRUCTION: ("instruction",), CHAT: (PROMPT,), "text": (*recipe.data.text_columns, "text")[:1]}
    needed = columns.get(task.name, task.columns)
    names_file = len(inputs) == 1 and Path(inputs[0]).suffix.lower() in (*SUFFIXES, ".gz") and " " not in inputs[0]
    if names_file or (len(inputs) == 1 and len(inputs[0]) < 256 and Path(inputs[0]).is_file()):
        data = recipe.data
        texts = (*needed, "input") if task.name == INSTRUCTION else needed
        source = read_file(inputs[0], texts=texts, encoding=data.encoding, delimiter=data.delimiter)
        names = source.rows.column_names
        if task.name == CHAT:
            prompts(source)  # before the model is loaded
            form = PROMPT if PROMPT in names else MESSAGES
            return source._replace(rows=source.rows.select_columns([name for name in (form, TOOLS) if name in names]))
        source, _ = without_missing(source, needed, remedy="leave such rows out of the file")
        more = ["input"] if task.name == INSTRUCTION and "input" in names else []
        for column in more:
            check_text(source, column)
        return source._replace(rows=source.rows.select_columns([*needed, *more]))
    optional = 1 if task.name == INSTRUCTION else 0
    if not len(needed) <= len(inputs) <= len(needed) + optional:
        raise ValueError(
            f"{len(inputs)} texts for a task that reads {len(needed)} ({', '.join(needed)}): give "
            f"{'both' if len(needed) == 2 else 'all of them' if len(needed) > 2 else 'one'}, each in quotes, or a file "
            f"({', '.join(SUFFIXES)}) with such columns"
        )
    return Source(Dataset.from_list([dict(zip((*needed, "input"), inputs, strict=False))]), "the text")


def _decide(asked: Asked, rows: Dataset, batch_size: int) -> Iterator[Answer]:
    """Yield a label, a score or a choice for each row."""
    task, tokenizer = asked.task, asked.tokenizer
    encoded = encode(rows, task, tokenizer, max_length=longest(tokenizer, asked.recipe.data.max_length)).rows
    choice = task.kind == "choice"
    collate = ChoiceCollator(tokenizer) if choice else DataCollatorWithPadding(tokenizer)
    device = asked.model.device
    for batch in DataLoader(encoded, batch_size, collate_fn=collate):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=asked.recipe.training.bf16):
            logits = asked.model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu()
        if task.kind == "regression":
            yield from ({"score": float(value)} for value in logits.reshape(-1))
            continue
        shares = (logits.reshape(-1, 2) if choice else logits).softmax(-1)
        for row in shares:
            best = int(row.argmax())
            yield {"choice" if choice else "label": task.label_names[best], "probability": float(row[best])}


def _openings(
    source: Source, task: Task, tokenizer: PreTrainedTokenizerBase, trained: Mapping[str, Any]
) -> Iterator[Opening]:
    """Yield each row's prompt in the form that the run's rows had.

    Raises:
        ValueError: A prompt leaves the model nothing to read.
    """
    if task.name == CHAT:
        found = _chat_openings(source, tokenizer, trained.get("form"), trained.get("answers_begin"))
    else:
        texts = (
            prompt_of(row["instruction"], row.get("input")) if task.name == INSTRUCTION else next(iter(row.values()))
            for row in source.rows
        )
        found = (_text_opening(text, tokenizer) for text in texts)
    for index, each in enumerate(found):
        if not each.ids:
            raise ValueError(
                f"{source.where}, row {source.number(index)}: the prompt is blank, and this tokenizer opens a text "
                "with no token of its own: give a prompt with a word in it"
            )
        yield each


def _text_opening(text: str, tokenizer: PreTrainedTokenizerBase) -> Opening:
    """Read a text behind the token that opens one, where the tokenizer has such, and none of its others."""
    begin = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]
    ids, left = opening(text, tokenizer, special_tokens=False)
    return Opening([*begin, *ids], left)


def _chat_openings(
    source: Source, tokenizer: PreTrainedTokenizerBase, form: str | None, follows: str | None
) -> Iterator[Opening]:
    """Yield plain prompts for a run on plain texts, else what the chat template makes: a text is the user's turn.

    Runs of earlier versions kept no form: there a text is a turn where the tokenizer has a template.
    """
    from rankwise.tasks.chat import chat_opening  # importing TRL is what takes time

    for index, (asked, tools) in enumerate(prompts(source)):
        where = f"{source.where}, row {source.number(index)}"
        if form == PLAIN_TEXTS:
            if not isinstance(asked, str):
                raise ValueError(
                    f"{where} is a conversation, and the run learned prompts that are plain texts, which no chat "
                    "template wrote: give the prompt as a text, as in the rows it was trained on"
                )
            yield opening(asked, tokenizer, special_tokens=True, follows=follows)
        elif form is None and tokenizer.chat_template is None and isinstance(asked, str):
            yield _text_opening(asked, tokenizer)
        else:
            yield chat_opening(asked, tools, tokenizer, where)


def _generate(asked: Asked, openings: Sequence[Opening], max_new_tokens: int) -> Iterator[Answer]:
    """Yield the continuation of each prompt, one at a time: nothing is padded."""
    tokenizer, model = asked.tokenizer, asked.model
    for prompt in openings:
        ids = torch.tensor([prompt.ids], device=model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=asked.recipe.training.bf16):
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        text = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        yield {"answer": prompt.answer(text)}
