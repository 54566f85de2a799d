"""What a report finds in a run folder, an adapter folder or a history file, and why it finds nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.report.edits import epochs_of_spectra
from tests.report.histories import mixed_history
from tests.runs.results.test_pictures import adapter, run, write_history

from rankwise.report import Outcome
from rankwise.rules.records import HISTORY_FILE, to_lines
from rankwise.runs.results.sources import SETTINGS, Source, read_source

KEPT = Path(__file__).resolve().parents[2] / "data" / "version-0.1"


def test_a_run_that_is_not_finished_is_told_by_its_recipe(tmp_path: Path) -> None:
    folder = run(tmp_path, mode="dynamic", proxy="snip", target_modules=["query"]).root
    write_history(folder, mixed_history(2, 2))
    assert read_source(folder).settings == {"mode": "dynamic", "proxy": "snip", "seed": 0}


def test_what_is_no_run_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone: give a run folder of rankwise train"):
        read_source(tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=rf"holds no {HISTORY_FILE}: give a run folder of rankwise train, an adapter"
    ):
        read_source(tmp_path)
    adapter(tmp_path / "inside")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*inside\?"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("method", "words"), [("lora", "its method is 'lora', which searches nothing"), ("full", "'full'")]
)
def test_a_run_that_never_searches_is_explained(tmp_path: Path, method: str, words: str) -> None:
    with pytest.raises(FileNotFoundError, match=words):
        read_source(run(tmp_path, method).root)


def test_a_run_that_has_not_searched_yet_is_explained(tmp_path: Path) -> None:
    folder = run(tmp_path, target_modules=["query"]).root
    with pytest.raises(FileNotFoundError, match="the run has not searched yet"):
        read_source(folder)
    write_history(folder, [])
    with pytest.raises(ValueError, match="is empty: the run has not searched yet"):
        read_source(folder)


@pytest.mark.parametrize(
    ("content", "words"), [(b"hello\n", "line 1 is not a search"), (b"\xff\xfe\x00", "not a text file")]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "notes.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_source(tmp_path / "notes.jsonl")


def test_every_setting_that_may_tell_runs_apart_is_one() -> None:
    import rankwise

    known = set(rankwise.HeteroLoraConfig.__dataclass_fields__)
    assert set(SETTINGS) <= known


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("trained", "trained"),
        ("trained/adapter", "trained"),
        (f"trained/{HISTORY_FILE}", "trained"),
        (f"trained/adapter/{HISTORY_FILE}", "trained"),
        ("trained/first.jsonl", "first"),
    ],
)
def test_a_source_is_called_by_its_run(tmp_path: Path, place: str, name: str) -> None:
    for folder in (tmp_path / "trained", tmp_path / "trained" / "adapter"):
        write_history(folder, mixed_history(2, 2))
    (tmp_path / "trained" / "first.jsonl").write_text(to_lines(mixed_history(2, 2)))
    source = read_source(tmp_path / place)
    assert source.name == name
    assert (source.searched, source.edited) == (True, False)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"{", b"[" * 5000, b"3"])
def test_a_damaged_config_beside_the_history_names_its_folder(tmp_path: Path, content: bytes) -> None:
    folder = adapter(tmp_path / "mine")
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a file of .*mine is damaged or of another kind .*: give a run folder"):
        read_source(folder)


def test_settings_are_those_that_may_tell_runs_apart_and_the_proxy_that_ran(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "mine", proxy="snip", lora_dropout=0.1, r=8, budget=None)
    assert read_source(folder).settings == {"proxy": "snip", "mode": "dynamic", "seed": 0, "r": 8}
    bare = write_history(tmp_path / "bare", mixed_history(2, 2))
    assert read_source(bare).settings == {"proxy": "grad_norm"}


def test_settings_in_words() -> None:
    source = Source(Path("x"), [], {"proxy": "snip", "seed": 13, "mode": "static", "r": 8})
    assert source.told(["mode", "budget", "proxy", "r", "seed"]) == "static, snip, r 8, seed 13"
    assert source.told(["budget"]) == ""
    assert source.family is None


FIGURES: dict[str, Any] = {
    "seed": 7,
    "headline": "f1",
    "metrics": {"last": {"step": 3, "dev": {"f1": 0.5}, "validation": {"f1": 0.0}, "test": {"loss": 1.0}}},
}


@pytest.mark.parametrize(("split", "value"), [("dev", 0.5), ("validation", 0.0), ("test", None), ("gone", None)])
def test_an_outcome_is_the_headline_of_the_last_epoch(split: str, value: float | None) -> None:
    source = Source(Path("x"), [], {"merges": 2, "injections": 1}, figures=FIGURES)
    assert source.outcome(split) == (None if value is None else Outcome(2, 1, 7, value))
    assert replace(source, figures=None).outcome(split) is None


@pytest.mark.parametrize(
    ("merges", "injections", "more", "said"),
    [
        (0, 0, {}, "LoR2C"),
        (0, 0, {"share": True}, "ShareLoR2C"),
        (2, 0, {}, "MergeLoR2C, 2 merges"),
        (0, 1, {}, "InjectLoR2C, 1 injection"),
        (1, 2, {"share": True}, "ShareIMLoR2C, 1 merge, 2 injections"),
        (1, 0, {"freeze_merged": True}, "MergeLoR2C, 1 merge then frozen"),
        (0, 2, {"inject_targets": []}, "InjectLoR2C, 2 deletions"),
    ],
)
def test_runs_are_called_what_the_paper_calls_them(
    tmp_path: Path, merges: int, injections: int, more: dict[str, Any], said: str
) -> None:
    folder = run(tmp_path / "run", "lor2c", merges=merges, injections=injections, **more)
    folder.spectra.write_text("".join(json.dumps(each) + "\n" for each in epochs_of_spectra()))
    assert read_source(folder.root).family == said


def test_of_a_finished_lor2c_the_figures_and_what_others_may_share_are_kept(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "a"))
    source = read_source(folder)
    assert source.figures == json.loads((folder / "metrics.json").read_text())
    assert source.cell == (1, 0)
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    other = {**recipe, "seed": 99, "method": {**recipe["method"], "merges": 0, "injections": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(other))
    assert read_source(folder).recipe == source.recipe != ""
    (folder / "config.yaml").write_text(yaml.safe_dump({**recipe, "select": "last"}))
    assert read_source(folder).recipe != source.recipe
    (folder / "metrics.json").unlink()
    assert (read_source(folder).figures, read_source(folder).recipe) == (None, "")
    assert read_source(KEPT / "heterolora" / "finished").figures is None
