"""``load_task``: from a ``DataSpec`` to tokenized splits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rankwise.tasks.conversations import PLAIN_TEXTS, begins_with, complete_chats, form_of, with_origin
from rankwise.tasks.data import TaskData
from rankwise.tasks.docstrings import Docstring, find_docstrings, split_docstrings
from rankwise.tasks.encode import Encoded, cut_into_blocks, encode, longest, with_pad_token
from rankwise.tasks.labels import LABELS, add_labels, describe_files, is_hidden
from rankwise.tasks.missing import Missing, check_text, without_missing
from rankwise.tasks.packing import pack
from rankwise.tasks.read import Source, read_splits
from rankwise.tasks.registry import CHAT, INSTRUCTION, TASKS, Task
from rankwise.tasks.spec import DataSpec
from rankwise.tasks.split import carve_dev, sample

CUT_ANSWERS = 0.1  # the share of answers that may be cut without asking


def load_task(spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Read, check, split and tokenize the data a recipe asks for.

    The same spec and data give the same splits and rows; no global generator is read or advanced, nothing is written
    to disk (a dataset of the hub is cached where ``datasets`` caches it, and needs a network the first time).

    Raises:
        ValueError: The data isn't there, is empty, unreadable, lacks a column or has a label outside the range; the
            message names the file, the row and what is allowed.
    """
    if spec.task == "docstrings":
        splits = split_docstrings(find_docstrings(), dev=int(240 * spec.dev_fraction), seed=spec.split_seed)
        return _label_docstrings(splits, spec, tokenizer)
    known = TASKS[spec.task] if spec.task else None
    sources = read_splits(spec, known)
    whole = {split: _complete(source, split, known, spec) for split, source in sources.items()}
    task = known or describe_files(spec, whole["train"][0])
    tokenizer = with_pad_token(tokenizer)
    rows = {split: _prepare(source, split, task, spec, tokenizer) for split, (source, _) in whole.items()}
    return _assemble(rows, task, spec, tokenizer, missing={split: lost for split, (_, lost) in whole.items()})


def load_docstrings(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    train: int = 240,
    dev: int = 24,
    test: int = 60,
    held_out_files: bool = False,
    seed: int = 0,
) -> TaskData:
    """Return the demo's data: which part of the standard library is a docstring from (``rankwise.tasks.docstrings``).

    ``validation`` holds what is reported. The same Python and seed give the same rows.

    Args:
        tokenizer: The model's.
        max_length: Tokens of a docstring, cut beyond; by default the tokenizer's limit, at most 512.
        train: Docstrings per group to train on.
        dev: Docstrings per group to choose the epoch by; 0 for none.
        test: Docstrings per group to report on.
        held_out_files: Report on files of which nothing is trained on.
        seed: Of the draw.

    Raises:
        ValueError: A group is too small in this Python.
    """
    found = find_docstrings()
    splits = split_docstrings(found, train=train, dev=dev, test=test, held_out_files=held_out_files, seed=seed)
    return _label_docstrings(splits, DataSpec(task="docstrings", max_length=max_length, dev_fraction=0), tokenizer)


def _label_docstrings(
    splits: dict[str, list[Docstring]], spec: DataSpec, tokenizer: PreTrainedTokenizerBase
) -> TaskData:
    rows = {split: _as_rows(docstrings) for split, docstrings in splits.items() if docstrings}
    return _assemble(rows, TASKS["docstrings"], spec, with_pad_token(tokenizer))


def _as_rows(docstrings: list[Docstring]) -> Dataset:
    names = TASKS["docstrings"].label_names
    return Dataset.from_dict(
        {"text": [each.text for each in docstrings], LABELS: [names.index(each.group) for each in docstrings]}
    )


def _complete(source: Source, split: str, known: Task | None, spec: DataSpec) -> tuple[Source, int]:
    """Return the rows of a split that have their texts and labels, and how many had not."""
    rule: Missing = spec.missing or ("keep" if known and known.keeps_empty else "refuse")
    if known is None:
        assert spec.label_column is not None
        hidden = split == "test" and is_hidden(source, spec.label_column)
        labels = () if hidden else (spec.label_column,)
        return without_missing(source, spec.text_columns, labels, missing=rule)
    if known.name == CHAT:
        return complete_chats(source, rule)
    if known.name == INSTRUCTION and "input" in source.rows.column_names:  # optional: it may be empty, not a number
        check_text(source, "input")
    texts = {INSTRUCTION: ("instruction", "output"), "text": (*spec.text_columns, "text")[:1]}
    return without_missing(source, texts.get(known.name, known.columns), missing=rule)


def _prepare(source: Source, split: str, task: Task, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Bring a split's labels, or for plain text its blocks, into the form that is split and sampled."""
    if task.name == CHAT:
        return with_origin(source)
    if task.name == INSTRUCTION:
        return source.rows
    if task.name == "text":
        column = (*spec.text_columns, "text")[0]
        return cut_into_blocks(source.rows, column, tokenizer, block_size=longest(tokenizer, spec.block_size))
    return add_labels(source, task, optional=split == "test")


def _assemble(
    rows: dict[str, Dataset],
    task: Task,
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    missing: Mapping[str, int] | None = None,
) -> TaskData:
    rows = _set_apart(rows, task, spec)
    encoded = {split: _encode(part, split, task, spec, tokenizer) for split, part in rows.items()}
    for split, part in encoded.items():
        if not len(part.rows):
            raise ValueError(
                f"split {split!r} is empty: all {part.dropped} examples lost their answer at "
                f"max_length={longest(tokenizer, spec.max_length)}: raise it"
            )
        _check_answers(part, split, spec, longest(tokenizer, spec.max_length))
    if spec.packing:
        encoded["train"] = pack(encoded["train"], longest(tokenizer, spec.max_length))
    form = _form(rows["train"], task)
    return TaskData(
        task=task,
        tokenizer=tokenizer,
        train=encoded["train"].rows,
        dev=encoded["dev"].rows if "dev" in encoded else None,
        validation=encoded["validation"].rows if "validation" in encoded else None,
        test=encoded["test"].rows if "test" in encoded else None,
        extra={name: encoded[name].rows for name in task.extra if name in encoded},
        truncated={split: part.truncated for split, part in encoded.items()},
        dropped={split: part.dropped for split, part in encoded.items()},
        cut_answers={split: part.cut_answers for split, part in encoded.items()},
        missing=missing or {},
        form=form,
        answers_begin=begins_with(rows["train"]) if form == PLAIN_TEXTS else None,
    )


def _form(rows: Dataset, task: Task) -> str:
    if task.name == CHAT:
        return form_of(rows)
    return task.name if task.kind == "causal" else task.kind


def _set_apart(rows: dict[str, Dataset], task: Task, spec: DataSpec) -> dict[str, Dataset]:
    """Return the splits with those parts of train that the spec sets apart."""
    if spec.validation_fraction and "validation" in rows:
        raise ValueError(
            f"validation_fraction={spec.validation_fraction} beside a validation split that the data has: leave it out"
        )
    stratify = task.kind in ("classification", "choice")
    for split, fraction in (("validation", spec.validation_fraction), ("dev", spec.dev_fraction)):
        if split not in rows:
            rest, part = carve_dev(
                rows["train"], fraction, at_most=spec.dev_max, seed=spec.split_seed, stratify=stratify, split=split
            )
            rows = {**rows, "train": rest} | ({split: part} if part is not None else {})
    return rows


def _check_answers(part: Encoded, split: str, spec: DataSpec, max_length: int) -> None:
    """Warn where answers lost a part at the greatest length, refuse where more than a tenth of them did."""
    lost, rows = part.cut_answers + part.dropped, len(part.rows) + part.dropped
    if not lost:
        return
    said = (
        f"split {split!r}: {part.cut_answers:,} of {rows:,} answers are cut at max_length={max_length} and "
        f"{part.dropped:,} are lost whole ({lost / rows:.1%})"
    )
    if lost > CUT_ANSWERS * rows and not spec.allow_cut_answers:
        raise ValueError(
            f"{said}: raise data.max_length, or say data.allow_cut_answers: true to train on what is left of them"
        )
    warnings.warn(
        f"{said}: the model learns to stop nowhere in those; a larger data.max_length avoids it", stacklevel=2
    )


def _encode(rows: Dataset, split: str, task: Task, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    at_most = spec.max_train_samples if split == "train" else spec.max_eval_samples
    rows = sample(rows, at_most, seed=spec.split_seed)
    if task.name == "text":
        return Encoded(rows, 0, 0)
    return encode(
        rows, task, tokenizer, max_length=longest(tokenizer, spec.max_length), train_on_prompt=spec.train_on_prompt
    )
