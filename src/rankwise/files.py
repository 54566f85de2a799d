"""Files that are whole or not there: written beside their place, then moved into it; and told by their digest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the target's folder and move it to ``path`` when it is complete.

    Raises:
        OSError: The disk is full, or the folder can't be written to; the message names the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_beside(target, write)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk doesn't say where


def _write_beside(target: Path, write: Callable[[Path], object]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; the final file gets the usual rights
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` in one move."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` in one move."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json_object(path: str | Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object that a file of ours holds.

    Args:
        path: The file.
        remedy: What to do about a damaged one, the end of the message.

    Raises:
        ValueError: It holds something else; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"{path} is damaged, it is no JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, it holds a {type(content).__name__} and no object: {remedy}")
    return content


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def delete(path: str | Path) -> None:
    """Delete a file, a folder with what is in it, or a link and not what it points to; nothing there is fine."""
    target = Path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
