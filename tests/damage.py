"""Folders as accidents and strangers leave them: one file damaged, and what a loader makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import class_batches, fill_, logits, tiny_bert
from torch import Tensor
from transformers import TrainerCallback
from typer.testing import CliRunner

import rankwise
import rankwise_cli
from rankwise.rules.edits import Inject, Merge
from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise.runs.training.train import train

Draw = Callable[[st.SearchStrategy[Any]], Any]
SECONDS = 60  # what takes longer hangs
VALUES: list[Any] = [None, True, -1, 0, 3, 2.5, 10**40, float("nan"), float("inf"), "", "x", "../../etc", [], [1], {}]
VALUES += [{"a": []}, "True", [[]], ["query"], "query"]
GARBAGE = [b"", b"{}", b"[]", b"null", b"\xff\xfe\x00", b"nonsense", b"[" * 5000, b'{"a":', b"NaN", b"0" * 200]
TENSORS = ["dtype", "shape", "nan", "drop", "add", "state"]


class HangError(Exception):
    """Something took longer than ``SECONDS``."""


@contextmanager
def in_time() -> Iterator[None]:
    """End what hangs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(draw: Draw, folder: Path) -> str:
    """Damage one file in a folder, and say which and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "tokenizer" not in path.name)
    file = draw(st.sampled_from(files))
    kinds = {"json": ["value"], "jsonl": ["value"], "safetensors": ["tensor"]}.get(file.suffix[1:], [])
    general = ["flip", "truncate", "garbage", "delete", "link", "folder"]
    kind = draw(st.sampled_from([*(kinds * len(general)), *general]))
    how = {"value": _value, "tensor": _tensor, "flip": _flip, "truncate": _truncate, "garbage": _garbage}
    told = how[kind](draw, file) if kind in how else _replace(draw, file, kind)
    return f"{file.relative_to(folder)}: {kind} {told}"


def _flip(draw: Draw, file: Path) -> str:
    content = bytearray(file.read_bytes() or b"\0")
    at = draw(st.integers(0, len(content) - 1))
    bit = draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at}"


def _truncate(draw: Draw, file: Path) -> str:
    size = draw(st.integers(0, max(file.stat().st_size - 1, 0)))
    os.truncate(file, size)
    return f"to {size} bytes"


def _garbage(draw: Draw, file: Path) -> str:
    content = draw(st.sampled_from(GARBAGE))
    file.write_bytes(content)
    return repr(content[:20])


def _replace(draw: Draw, file: Path, kind: str) -> str:
    file.unlink()
    if kind == "link":
        target = draw(st.sampled_from(["/etc/hostname", "/nowhere", "..", file.name, "/dev/null"]))
        file.symlink_to(target)
        return str(target)
    if kind == "folder":
        file.mkdir()
    return ""


def _value(draw: Draw, file: Path) -> str:
    """Replace, delete or add a value anywhere in a JSON document."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = draw(st.integers(0, len(lines) - 1))
    document = json.loads(lines[number])
    container, key = draw(st.sampled_from(list(places(document))))
    value = draw(st.sampled_from([*VALUES, "DELETE", "ADD"]))
    if value == "DELETE":
        del container[key]
    elif value == "ADD" and isinstance(container, dict):
        container["no_such_key"] = 1
    else:
        container[key] = value
    lines[number] = json.dumps(document)
    file.write_text("\n".join(lines) + "\n")
    return f"{key} -> {value!r}"


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a document with every key, or place, that it has."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, each in items:
        yield value, key
        yield from places(each)


def _tensor(draw: Draw, file: Path) -> str:
    """Change a tensor in a way that leaves a whole safetensors file."""
    tensors = load_file(file)
    kind = draw(st.sampled_from(TENSORS))
    states = [name for name in tensors if name.endswith("lora_allocation")]
    name = draw(st.sampled_from(states if kind == "state" and states else sorted(tensors) or [""]))
    if kind == "drop":
        tensors.pop(name, None)
    elif kind == "add" or not name:
        tensors[draw(st.sampled_from(["x", "../../up", "base_model.model.bert.lora_A.weight"]))] = torch.ones(2)
    else:
        tensors[name] = _changed(draw, tensors[name], kind)
    save_file(tensors, file)
    return f"{kind} {name}"


def _changed(draw: Draw, tensor: Tensor, kind: str) -> Tensor:
    match kind:
        case "dtype":
            return tensor.to(
                draw(st.sampled_from([torch.int32, torch.float64, torch.bool, torch.uint8, torch.float16]))
            )
        case "shape":
            return tensor.reshape(-1).repeat(2) if draw(st.booleans()) else tensor[..., :1].contiguous()
        case "nan":
            return torch.full_like(tensor.float(), draw(st.sampled_from([float("nan"), float("inf")])))
        case _:
            return torch.tensor([draw(st.integers(-1, 3)) for _ in range(tensor.numel())]).reshape(tensor.shape)


def save_adapters(room: Path) -> dict[str, Path]:
    """Write the adapters to damage: of both methods, with digests and as version 0.1 wrote them, without."""
    searched: Any = rankwise.HeteroLoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["query", "value"],
        shortcuts=["res1", "cut"],
        budget=0.5,
        mode="dynamic",
        search_every=1,
        score_batches=1,
    )
    edited: Any = rankwise.Lor2cConfig(
        task_type="SEQ_CLS", r=4, merges=1, injections=1, edit_unit="steps", total_steps=8
    )
    found = {}
    for name, config in {"heterolora": searched, "lor2c": edited}.items():
        model: Any = get_peft_model(tiny_bert(4), config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for batch in class_batches(4):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        fill_(model)
        for kind in ("", "-0.1"):
            folder = found[name + kind] = room / (name + kind)
            model.save_pretrained(str(folder))
        listed = json.loads((folder / "allocation.json").read_text())
        del listed["sha256"]
        (folder / "allocation.json").write_text(json.dumps(listed))
    assert {Merge, Inject} == {type(edit) for record in rankwise.history(model) for edit in record["edits"]}
    return found


def adapter_outcome(folder: Path, expected: Tensor) -> str:
    """Load an adapter folder, and say what came of it: ``same``, ``refused`` or ``different``; raise what is neither.

    A refusal is a ``ValueError`` or an ``OSError`` with words in it.
    """
    model: Any = tiny_bert(4)
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of fields that it doesn't know
            loaded = logits(PeftModel.from_pretrained(model, str(folder)))
    except (ValueError, OSError) as error:
        check_words(str(error))
        return "refused"
    return "same" if torch.equal(loaded, expected) else "different"


def check_words(text: str) -> None:
    """Refuse a message that advises to turn a protection off, or says nothing."""
    if len(text) < 20 or "weights_only" in text or "allow_pickle" in text:
        raise AssertionError(f"no help: {text!r}")


def save_runs(room: Path) -> tuple[Path, dict[str, Path]]:
    """Write a recipe, and its run folders to damage: interrupted after the second checkpoint, and finished.

    The adapter of the uninterrupted run is in the finished one.
    """
    content: dict[str, Any] = {
        "model": {"name": "FacebookAI/roberta-base"},
        "data": {"task": "mrpc"},
        "method": {
            "name": "heterolora",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["query", "value"],
            "mode": "dynamic",
            "budget": 0.5,
            "search_every": 2,
            "score_batches": 2,
        },
    }
    small = stand_in(parse_recipe(content), room / "stand-in").to_dict()
    small["training"] |= {"max_steps": 6, "evaluate": "steps", "every": 2, "report_to": [], "learning_rate": 1e-2}
    recipe = parse_recipe(small)
    (room / "recipe.yaml").write_text(recipe.to_yaml())
    train(recipe, room / "finished")
    with contextlib.suppress(CablePulledError):
        train(recipe, room / "interrupted", callbacks=[Stops()])
    return room / "recipe.yaml", {name: room / name for name in ("interrupted", "finished")}


class CablePulledError(Exception):
    """What stops a run."""


class Stops(TrainerCallback):
    """Pulls the cable after the second checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise CablePulledError


def resume_outcome(recipe: Path, folder: Path, finished: Path) -> str:
    """Resume a run, and say ``same``, ``refused`` or ``different``."""
    outcome = command_outcome("train", str(recipe), "--out", str(folder), "--resume")
    if outcome == "refused":
        return outcome
    weights = [(place / "adapter" / "adapter_model.safetensors").read_bytes() for place in (folder, finished)]
    return "same" if weights[0] == weights[1] else "different"


def use_outcome(folder: Path) -> str:
    """Export, draw, list and ask a finished run, and say ``done`` or ``refused``."""
    found = {command_outcome("export", str(folder), str(folder.parent / "exported"))}
    shutil.rmtree(folder.parent / "exported", ignore_errors=True)
    found.add(command_outcome("report", str(folder), "--out", str(folder.parent / "report")))
    found.add(command_outcome("runs", str(folder.parent)))
    found.add(command_outcome("predict", str(folder), "one text", "and another"))
    return "refused" if "refused" in found else "done"


def command_outcome(*arguments: str) -> str:
    """Run a command and say how it ended: ``done`` or ``refused``; raise what is neither."""
    began = time.perf_counter()
    with in_time():
        result = CliRunner().invoke(rankwise_cli.app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert time.perf_counter() - began < SECONDS
    if result.exit_code == 0:
        return "done"
    assert result.exit_code in (1, 2), result.output
    check_words(result.output)
    return "refused"
