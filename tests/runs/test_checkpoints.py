from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.runs.checkpoints import MANIFEST, checkpoints, complete, fault, newest_whole, remove, rotate
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]
SEARCH = ("rankwise_search.json", "rankwise_search.safetensors")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run with a search: at steps 2, 4 and 6."""
    from tests.runs.conftest import content

    from rankwise.runs.dryrun import stand_in
    from rankwise.runs.recipes.recipe import parse_recipe

    room = tmp_path_factory.mktemp("run")
    small = stand_in(parse_recipe(content("heterolora")), room / "stand-in").to_dict()
    small["training"] |= {"max_steps": 6, "evaluate": "steps", "every": 2, "report_to": [], "keep_checkpoints": None}
    return train(parse_recipe(small), room / "run").out / "checkpoints"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def gone(file: Path) -> None:
    file.unlink()


READ = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "allocation.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "search_history.jsonl",
    "trainer_state.json",
    *SEARCH,
)


def test_every_file_that_a_resume_reads_is_in_the_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "checkpoint-6" / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(READ)
    assert manifest["seconds"] > 0
    for name, described in manifest["files"].items():
        assert described["bytes"] == (folder / "checkpoint-6" / name).stat().st_size
    assert newest_whole(folder, SEARCH) == (folder / "checkpoint-6", {})


@pytest.mark.parametrize("damage", [truncate, flip, empty, gone])
@pytest.mark.parametrize("name", [*READ, MANIFEST])
def test_damage_to_any_of_them_is_told_and_the_one_before_counts(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / "checkpoint-6" / name)
    found = fault(folder / "checkpoint-6", SEARCH)
    assert found is not None
    assert found.interrupted == (name == MANIFEST and damage is gone)
    assert name in found.reason or (name == MANIFEST and damage is flip)  # then what it says of another file is wrong
    newest, passed = newest_whole(folder, SEARCH)
    assert newest == folder / "checkpoint-4"
    assert passed == {folder / "checkpoint-6": found}


OF_0_1 = [name for name in READ if name not in ("adapter_config.json", "allocation.json", "search_history.jsonl")]


@pytest.mark.parametrize("damage", [truncate, empty, gone])
@pytest.mark.parametrize("name", [name for name in OF_0_1 if name not in SEARCH])
def test_without_digests_what_must_be_there_is_looked_at(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    checkpoint = folder / "checkpoint-6"
    (checkpoint / MANIFEST).write_text('{"seconds": 1.5}')  # as version 0.1 wrote it
    assert fault(checkpoint, SEARCH) is None
    damage(checkpoint / name)
    found = fault(checkpoint, SEARCH)
    assert found is not None
    assert not found.interrupted
    assert name in found.reason


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_flipped_bit_in_a_pickle_of_0_1_is_told_by_its_checksum(folder: Path, name: str) -> None:
    checkpoint = folder / "checkpoint-6"
    (checkpoint / MANIFEST).write_text('{"seconds": 1.5}')
    content = (checkpoint / name).read_bytes()
    at = content.index(b"last_epoch" if name == "scheduler.pt" else b"python" if "rng" in name else b"param_groups")
    (checkpoint / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    found = fault(checkpoint)
    assert found is not None
    assert name in found.reason


class Touches:
    """What a pickle may run when it is loaded without protection."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "scaler.pt"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    checkpoint = folder / "checkpoint-6"
    torch.save({"state": Touches(tmp_path / "ran")}, checkpoint / name)
    complete(checkpoint, seconds=1.0)
    found = fault(checkpoint)
    assert found is not None
    assert found.reason == f"{name} is damaged or holds more than tensors and numbers (UnpicklingError)"
    (checkpoint / name).write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    complete(checkpoint, seconds=1.0)
    assert fault(checkpoint) is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (MANIFEST, "[]"),
        (MANIFEST, "{}"),
        (MANIFEST, '{"seconds": NaN}'),
        (MANIFEST, '{"seconds": "1"}'),
        (MANIFEST, '{"seconds": 1, "files": []}'),
        (MANIFEST, '{"seconds": 1, "files": {"../checkpoint-4/optimizer.pt": {}}}'),
        (MANIFEST, '{"seconds": 1, "files": {"/etc/hostname": {}}}'),
        (MANIFEST, '{"seconds": 1, "files": {"optimizer.pt": 3}}'),
        ("trainer_state.json", "{}"),
        ("trainer_state.json", "[]"),
        ("trainer_state.json", "[" * 3000),
        ("trainer_state.json", '{"global_step": 6, "log_history": 3}'),
        ("trainer_state.json", '{"global_step": 6, "log_history": [{}]}'),
        ("trainer_state.json", '{"global_step": "6"}'),
        ("trainer_state.json", '{"global_step": 4}'),
        ("trainer_state.json", '{"global_step": 6, "best_global_step": "4"}'),
        ("trainer_state.json", '{"global_step": 6, "epoch": "2"}'),
        ("trainer_state.json", '{"global_step": 6, "no_such_field": 1}'),
    ],
)
def test_state_of_the_wrong_kind_names_its_file(folder: Path, name: str, content: str) -> None:
    checkpoint = folder / "checkpoint-6"
    (checkpoint / MANIFEST).write_text('{"seconds": 1.5}')
    (checkpoint / name).write_text(content)
    found = fault(checkpoint)
    assert found is not None
    assert name in found.reason


def test_what_was_added_to_a_checkpoint_is_told(folder: Path) -> None:
    torch.save({}, folder / "checkpoint-6" / "scaler.pt")
    found = fault(folder / "checkpoint-6")
    assert found is not None
    assert found.reason == "scaler.pt was not saved with it"


def test_a_note_beside_the_files_is_nobodys_business(folder: Path) -> None:
    (folder / "checkpoint-6" / "notes.txt").write_text("mine")
    assert fault(folder / "checkpoint-6") is None


def test_a_checkpoint_counts_with_its_best_one_only(folder: Path) -> None:
    for step in (2, 4, 6):
        file = folder / f"checkpoint-{step}" / "trainer_state.json"
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "best_global_step": 2 if step == 2 else 4}))
        complete(folder / f"checkpoint-{step}", seconds=1.0)
    flip(folder / "checkpoint-4" / "adapter_model.safetensors")
    newest, passed = newest_whole(folder)
    assert newest == folder / "checkpoint-2"
    assert "the best checkpoint on dev, checkpoint-4, can't be had back" in passed[folder / "checkpoint-6"].reason


def marked(folder: Path, *steps: int, without: tuple[int, ...] = ()) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}" / "inner").mkdir(parents=True)
        if step not in without:
            (folder / f"checkpoint-{step}" / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [2, 4, 6, 8, 10]),
        (1, None, [6, 8, 10]),
        (2, 2, [2, 8, 10]),
        (2, 8, [6, 8, 10]),
        (3, None, [4, 6, 8, 10]),
        (9, None, [2, 4, 6, 8, 10]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int | None, best: int | None, left: list[int]
) -> None:
    marked(tmp_path, 2, 4, 6, 8, 10)  # 10 is of a later step: a resume passed it over
    rotate(tmp_path, newest=8, best=best, keep=keep)
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == left


def test_rotation_takes_away_what_killed_saves_left(tmp_path: Path) -> None:
    marked(tmp_path, 2, 4, 6, without=(2,))
    rotate(tmp_path, newest=6, best=None, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_the_manifest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked(tmp_path, 2)
    seen: list[bool] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append((Path(path) / MANIFEST).exists()))
    remove(tmp_path / "checkpoint-2")
    assert seen == [False]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    marked(tmp_path / "elsewhere", 2)
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "elsewhere" / "checkpoint-2")
    remove(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2").exists()
    assert (tmp_path / "elsewhere" / "checkpoint-2" / MANIFEST).exists()


def test_nothing_written_is_nothing_to_continue_from(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, {})
