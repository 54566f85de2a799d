"""An adapter on the hub is what its folder would be: with its history, and looked at before it is trusted."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ResolvedRevision
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import tiny_bert, tiny_llama

import rankwise
from rankwise.method.folders import check_folder
from rankwise.method.hub import adapter_folder

COMMIT = "a" * 40
CACHED: dict[str, Any] = {"local_files_only": True}


def searched(folder: Path) -> list[str]:
    """Save an adapter whose one search is done, and return what it chose."""
    config = rankwise.HeteroLoraConfig(target_modules=["q_proj", "v_proj"], mode="static", budget=0.5, score_batches=1)
    model = get_peft_model(tiny_llama(), config)
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(input_ids=(ids := torch.arange(8)[None]), labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(str(folder))
    assert len(rankwise.history(model)) == 1
    return [name for name, path in rankwise.named_paths(model).items() if path.enabled]


def cached(folder: Path, cache: Path, *absent: str) -> Path:
    """Put a folder where the cache has a repository ``u/r``; ``absent``: what the hub has said to be without."""
    repository = cache / "models--u--r"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in absent:
        (repository / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
        (repository / ".no_exist" / COMMIT / name).touch()
    return snapshot


@pytest.mark.parametrize("by", ["peft", "second", "transformers"])
def test_an_adapter_of_the_hub_keeps_its_history(by: str, tmp_path: Path) -> None:
    chosen = searched(tmp_path / "saved")
    cached(tmp_path / "saved", tmp_path / "cache")
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}
    if by == "transformers":
        model: Any = tiny_llama()
        model.load_adapter("u/r", adapter_kwargs=options)
    elif by == "peft":
        model = PeftModel.from_pretrained(tiny_llama(), "u/r", **options, **CACHED)
    else:
        model = PeftModel.from_pretrained(tiny_llama(), "u/r", adapter_name="first", **options, **CACHED)
        model.load_adapter("u/r", "default", **options, **CACHED)
        model.set_adapter("default")
        model.delete_adapter("first")
    assert len(rankwise.history(model)) == 1
    assert [name for name, path in rankwise.named_paths(model).items() if path.enabled] == chosen


def test_a_damaged_file_of_the_hub_is_refused(tmp_path: Path) -> None:
    searched(tmp_path / "saved")
    weights = cached(tmp_path / "saved", tmp_path / "cache") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not as it was saved"):
        PeftModel.from_pretrained(tiny_llama(), "u/r", cache_dir=str(tmp_path / "cache"), **CACHED)


def test_what_can_not_be_known_offline_is_said(tmp_path: Path) -> None:
    """An adapter whose tensors alone are in the cache loads, with a warning, unless the hub has no more of it."""
    searched(tmp_path / "saved")
    for name in (lost := ("search_history.jsonl", "allocation.json")):
        (tmp_path / "saved" / name).unlink()
    cached(tmp_path / "saved", tmp_path / "partly")
    cached(tmp_path / "saved", tmp_path / "whole", *lost)
    with pytest.warns(
        UserWarning, match=r"whether u/r has a search_history\.jsonl and an allocation\.json can't be told"
    ):
        model = PeftModel.from_pretrained(tiny_llama(), "u/r", cache_dir=str(tmp_path / "partly"), **CACHED)
    assert not rankwise.history(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*can't be told")
        PeftModel.from_pretrained(tiny_llama(), "u/r", cache_dir=str(tmp_path / "whole"), **CACHED)


def test_a_whole_folder_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    """Digests say that there is no history, and name tensors in two files where a folder was saved to twice."""
    config = rankwise.HeteroLoraConfig(target_modules=["q_proj", "v_proj"], mode="off")
    model = get_peft_model(tiny_llama(), config)
    for safe in (True, False):
        model.save_pretrained(str(tmp_path / "saved"), safe_serialization=safe)
    assert len([*(tmp_path / "saved").glob("adapter_model.*")]) == 2
    cached(tmp_path / "saved", tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*can't be told")
        folder = adapter_folder("u/r", cache_dir=tmp_path / "cache", **CACHED)
        assert check_folder(folder)


def test_a_folder_of_that_name_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched(tmp_path / "saved")
    snapshot = cached(tmp_path / "saved", tmp_path / "cache")
    (tmp_path / "u" / "r").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert adapter_folder("u/r", cache_dir=tmp_path / "cache", **CACHED) == snapshot


def test_transformers_asks_for_an_adapter_in_ways_of_its_own(tmp_path: Path) -> None:
    """With the commit of the base's repository in what looks like a name, or with options in a dictionary."""
    searched(tmp_path / "saved")
    snapshot = cached(tmp_path / "saved", tmp_path / "cache")
    other = ResolvedRevision("b" * 40, "main")
    assert adapter_folder("u/r", revision=other, cache_dir=tmp_path / "cache", **CACHED) == snapshot
    model: Any = tiny_llama()
    model.load_adapter("u/r", download_kwargs={"cache_dir": str(tmp_path / "cache")})
    assert len(rankwise.history(model)) == 1


def test_what_is_not_on_the_hub_is_left_to_peft(tmp_path: Path) -> None:
    for name in ("u/r", "no id at all", "a/b/c"):
        assert adapter_folder(name, cache_dir=str(tmp_path), **CACHED) == Path(name)
        assert adapter_folder(name, cache_dir=str(tmp_path), subfolder="x", **CACHED) == Path(name) / "x"
    with pytest.raises((ValueError, OSError), match=r"adapter_config\.json"):
        PeftModel.from_pretrained(tiny_llama(), "u/r", cache_dir=str(tmp_path), **CACHED)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download asks for: files of one repository at one commit."""

    def __init__(self, root: Path, asked: list[str], *args: Any) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        name = self.path.rpartition("/")[2]
        self.asked.append(f"{self.command} {name}")
        found = (self.root / name).is_file()
        content = (self.root / name).read_bytes() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        missing = "EntryNotFound" if self.root.is_dir() else "RepoNotFound"
        self.send_header(*(("ETag", f'"{name}"') if found else ("X-Error-Code", missing)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: Any) -> None:
        """Not to the console."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine: its address, and what it was asked for."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "saved", asked)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_lies_beside_the_tensors_is_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    searched(tmp_path / "saved")
    folder = adapter_folder("u/r", subfolder="inner", endpoint=address, cache_dir=tmp_path / "cache")
    assert folder.parts[-2:] == (COMMIT, "inner")
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "allocation.json", "search_history.jsonl",
    }  # fmt: skip
    assert (folder / "allocation.json").read_bytes() == (tmp_path / "saved" / "allocation.json").read_bytes()
    assert not any("adapter_model.bin" in each for each in asked), "the tensors are there already"


def test_what_the_hub_does_not_have_is_none(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """Without a warning, then and offline: that there is none is in the cache."""
    searched(tmp_path / "saved")
    for name in ("search_history.jsonl", "allocation.json"):
        (tmp_path / "saved" / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"subfolder": "inner"}):
            place: dict[str, Any] = {"cache_dir": tmp_path / "cache", **options}
            folder = adapter_folder("u/r", endpoint=hub[0], **place)
            assert [file.name for file in folder.glob("*.*")] == ["adapter_config.json"], "nothing asks for more"
            assert adapter_folder("u/r", **place, **CACHED) == folder


def test_of_other_methods_only_the_config_is_asked_for(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    torch.manual_seed(0)
    get_peft_model(tiny_bert(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(str(tmp_path / "saved"))
    folder = adapter_folder("u/r", endpoint=address, cache_dir=tmp_path / "cache")
    assert [file.name for file in folder.iterdir()] == ["adapter_config.json"]
    assert {each.partition(" ")[2] for each in asked} == {"adapter_config.json"}


def test_a_damaged_cache_is_mended_by_force(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    searched(tmp_path / "saved")
    place: dict[str, Any] = {"endpoint": hub[0], "cache_dir": tmp_path / "cache"}
    weights = adapter_folder("u/r", **place) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not as it was saved"):
        check_folder(adapter_folder("u/r", **place))
    assert check_folder(adapter_folder("u/r", force_download=True, **place))


def test_a_repository_that_is_gone_leaves_what_is_in_the_cache(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = hub
    searched(tmp_path / "saved")
    place: dict[str, Any] = {"endpoint": address, "cache_dir": tmp_path / "cache"}
    folder = adapter_folder("u/r", **place)
    (folder / "allocation.json").unlink()
    shutil.rmtree(tmp_path / "saved")
    with pytest.warns(UserWarning, match="nothing vouches"):
        assert adapter_folder("u/r", **place) == folder
