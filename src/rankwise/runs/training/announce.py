"""What a run is about to do, said before it does; and each search and edit when it happens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import rankwise
from rankwise.report.structure import words
from rankwise.rules.edit_schedule import ends_of
from rankwise.rules.records import EditRecord, Record, SearchRecord
from rankwise.runs.building.job import Job
from rankwise.runs.training.metrics import parameters
from rankwise.tasks import TaskData

SHOWN = 6  # labels, and paths of a search, that are named; the rest is counted


class Announce(TrainerCallback):
    """Prints the lines of ``before`` when training begins, and one line for each search and edit.

    Args:
        console: Where to print.
        job: What is trained.
    """

    def __init__(self, console: Console, job: Job) -> None:
        self.console = console
        self.job = job
        self.told = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print what is going to happen; after a resume what has happened already stays untold, but for its ranks."""
        if state.is_world_process_zero:
            self._say(*before(self.job, args, state.max_steps))
            self.told = len(self._records())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print what was searched or edited since."""
        if state.is_world_process_zero:
            records = self._records()
            self._say(*(told(record) for record in records[self.told :]))
            self.told = len(records)

    on_train_end = on_epoch_end = on_step_end

    def _records(self) -> list[Record]:
        return list(rankwise.history(self.job.model)) if self.job.has_paths else []

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(escape(line), soft_wrap=True, highlight=False)


def before(job: Job, args: TrainingArguments, steps: int) -> list[str]:
    """Return what a run is going to do: data, device, parameters, length, searches."""
    counts = parameters(job)
    resident = f", {counts['resident']:,} resident" if "resident" in counts else ""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    precision = f"{next(job.model.parameters()).dtype}".removeprefix("torch.") + (
        ", bfloat16 autocast" if job.recipe.training.bf16 else ""
    )
    return [
        *data_lines(job.data),
        f"device: {args.device}{f' x {args.world_size}' if args.world_size > 1 else ''}, {precision}",
        f"parameters: {counts['trainable']:,} on{resident}, {counts['head']:,} in the head, {counts['total']:,} in all",
        f"training: {steps:,} optimizer steps of {batch} {'packed sequences' if job.data.packed else 'rows'}",
        *_plans(job, args, steps),
    ]


def data_lines(data: TaskData) -> Iterator[str]:
    """Yield a line for each split: rows, lengths, labels, and what of it was cut or left out."""
    for name, found in data.counts().items():
        rows, tokens = found["rows"], found["tokens"]
        line = f"{name}: {rows:,} rows of {tokens['median']:,} tokens (median; {tokens['longest']:,} the longest)"
        if "packed_sequences" in found:
            line += f" in {found['packed_sequences']:,} packed sequences"
        for what, said in (
            ("truncated", "cut at that length"),
            ("cut_answers", "answers cut"),
            ("dropped", "left out, nothing to learn"),
            ("missing", "left out, a text or label missing"),
        ):
            count = found[what]
            line += f"; {count:,} {said} ({count / (rows + found['dropped']):.1%})" if count else ""
        labels = sorted(found.get("labels", {}).items(), key=lambda item: -item[1])
        shown = _first([f"{label} {count:,}" for label, count in labels])
        yield line + (f"; labels {shown}" if labels else "")


def _plans(job: Job, args: TrainingArguments, steps: int) -> Iterator[str]:
    """Yield the ranks that were chosen, and what the method is going to search or edit, and when."""
    if not job.has_paths:
        return
    yield from (
        told(record) for record in rankwise.history(job.model) if isinstance(record, SearchRecord) and record.ranks
    )
    config: Any = job.model.peft_config[job.model.active_adapter]
    if isinstance(config, rankwise.Lor2cConfig):
        total = math.ceil(args.num_train_epochs) if config.edit_unit == "epochs" else steps
        ends = ends_of(total, config.merges, config.injections, separate=config.separate_edits)
        for what, due in zip(("merges", "injections"), ends, strict=True):
            if due:
                yield f"{what}: at the end of {config.edit_unit} {', '.join(map(str, due))}, chosen by {config.metric}"
    elif config.mode != "off":
        often = "once" if config.mode == "static" else _often(config)
        limit = f"{config.budget:.0%}" if isinstance(config.budget, float) else f"{config.budget:,}"
        yield (
            f"search: {often}, {len(rankwise.named_paths(job.model))} paths by {config.proxy} on {config.score_on} "
            f"({config.scoring}), {limit} of the {config.budget_unit} stay on"
        )


def _often(config: Any) -> str:
    if config.search_every is not None:
        often = f"every {config.search_every} steps"
    else:
        often = f"{config.searches_per_epoch} times an epoch"
    return often + (f" until {config.stop_searching_at:.0%} of training" if config.stop_searching_at < 1 else "")


def told(record: Record) -> str:
    """Return a search or an edit as one line."""
    if isinstance(record, EditRecord):
        loss = record.measured and record.measured[0] is not None
        measured = f"; dev loss {record.measured[0]:.4f} -> {record.measured[1]:.4f}" if loss else ""
        return f"step {record.step}: {words(record)}; {record.counts['enabled']:,} parameters on{measured}"
    assert isinstance(record, SearchRecord)
    if record.ranks:
        return _ranks_told(record)
    changes = f" (+{len(record.switched_on)}, -{len(record.switched_off)})"
    names = sorted(record.chosen, key=lambda name: -(record.scores.get(name) or 0.0))
    return (
        f"step {record.step}: search {record.search + 1} ({record.how}, {record.seconds:.1f} s) chose {len(names)} of "
        f"{len(record.paths)} paths{changes}: {_first(names)}"
    )


def _ranks_told(record: SearchRecord) -> str:
    """Return a choice of ranks as one line, the largest first."""
    ranks = sorted(record.ranks.items(), key=lambda item: -item[1])
    return (
        f"ranks: chosen in {record.seconds:.1f} s for {len(ranks)} of {len(record.paths)} paths: "
        f"{_first([f'{name} {rank}' for name, rank in ranks])}"
        + (f"; unspent {record.unspent}" if record.unspent else "")
    )


def _first(words: Sequence[str]) -> str:
    """Return the first of them in a line, and how many more there are."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
