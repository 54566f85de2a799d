"""``load_task``: from a ``DataSpec`` to tokenized splits."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rankwise.tasks.data import TaskData
from rankwise.tasks.docstrings import Docstring, find_docstrings, split_docstrings
from rankwise.tasks.encode import Encoded, cut_into_blocks, encode, longest, with_pad_token
from rankwise.tasks.labels import LABELS, add_labels, describe_files
from rankwise.tasks.read import Source, check_column, check_texts, read_splits
from rankwise.tasks.registry import INSTRUCTION, TASKS, Task
from rankwise.tasks.spec import DataSpec
from rankwise.tasks.split import carve_dev, sample


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
    task = known or describe_files(spec, sources["train"])
    tokenizer = with_pad_token(tokenizer)
    rows = {split: _prepare(source, split, task, spec, tokenizer) for split, source in sources.items()}
    return _assemble(rows, task, spec, tokenizer)


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


def _prepare(source: Source, split: str, task: Task, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Check a split and bring its labels, or for plain text its blocks, into the form that is split and sampled."""
    if task.name == INSTRUCTION:
        check_texts(source, ("instruction", "output"))
        check_column(source, "input")
        return source.rows
    if task.name == "text":
        column = (*spec.text_columns, "text")[0]
        check_texts(source, (column,))
        return cut_into_blocks(source.rows, column, tokenizer, block_size=longest(tokenizer, spec.block_size))
    check_texts(source, task.columns)
    return add_labels(source, task, optional=split == "test")


def _assemble(rows: dict[str, Dataset], task: Task, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    if "dev" not in rows:
        stratify = task.kind in ("classification", "choice")
        rows["train"], dev = carve_dev(
            rows["train"], spec.dev_fraction, at_most=spec.dev_max, seed=spec.split_seed, stratify=stratify
        )
        rows |= {"dev": dev} if dev is not None else {}
    encoded = {split: _encode(part, split, task, spec, tokenizer) for split, part in rows.items()}
    for split, part in encoded.items():
        if not len(part.rows):
            raise ValueError(
                f"split {split!r} is empty: all {part.dropped} examples lost their answer at "
                f"max_length={longest(tokenizer, spec.max_length)}: raise it"
            )
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
    )


def _encode(rows: Dataset, split: str, task: Task, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    at_most = spec.max_train_samples if split == "train" else spec.max_eval_samples
    rows = sample(rows, at_most, seed=spec.split_seed)
    if task.name == "text":
        return Encoded(rows, 0, 0)
    return encode(
        rows, task, tokenizer, max_length=longest(tokenizer, spec.max_length), train_on_prompt=spec.train_on_prompt
    )
