from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from rankwise.files import write_atomic, write_json_atomic, write_text_atomic


def test_text_and_json_come_back_and_folders_are_made(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a" / "b" / "text", "Grüße\n")
    write_json_atomic(str(tmp_path / "value.json"), {"b": [1, None], "a": 0.5})
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "Grüße\n".encode()
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == [("b", [1, None]), ("a", 0.5)]
    assert text.endswith("}\n")


@pytest.mark.parametrize("existing", [None, "old"])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path, existing: str | None) -> None:
    target = tmp_path / "file"
    if existing is not None:
        target.write_text(existing)

    def half(temporary: Path) -> None:
        temporary.write_text("hal")
        assert not target.exists() or target.read_text() == existing
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomic(target, half)
    assert os.listdir(tmp_path) == ([] if existing is None else ["file"])
    assert existing is None or target.read_text() == existing


def test_the_temporary_file_lies_beside_the_target_and_is_gone_afterwards(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_text("new")

    write_atomic(tmp_path / "file", write)
    assert seen[0].parent == tmp_path, "a move within one file system is atomic, across two it is not"
    assert seen[0].name.startswith(".")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_gets_the_usual_rights(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text_atomic(tmp_path / "file", "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_value_that_json_lacks_leaves_the_old_file(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "file", 1)
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_text() == "1\n"
