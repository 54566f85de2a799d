"""One self-contained HTML page: figures as embedded JSON, drawn by scripts that come with it; nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from rankwise.files import write_text_atomic

WEB = files("rankwise.report") / "web"
SCRIPTS = ("base.js", "charts.js", "model.js", "run.js", "comparison.js", "start.js")
# What would end the script element or a string inside it, written as JSON's own escapes.
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def embedded(data: Any) -> str:
    """Return data as JSON that is safe inside a ``script`` element, whatever the texts in it say.

    Numbers that JSON does not know (NaN, infinities) become ``null``.
    """
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in UNSAFE.items():
        text = text.replace(character, escape)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def render_page(data: Mapping[str, Any], *, title: str) -> str:
    """Return the page.

    Its content security policy allows this very script and style and nothing else: no text of a run can run, and no
    address is ever asked.

    Args:
        data: What ``rankwise.runs.results.page`` gathers.
        title: The page's title.
    """
    style = (WEB / "page.css").read_text(encoding="utf-8")
    script = "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": embedded(data),
        "SCRIPT": script,
    }
    page = (WEB / "page.html").read_text(encoding="utf-8")
    pieces = page.split("%%")  # text, name, text, name, ..., text: what is put in is not searched again
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def save_page(data: Mapping[str, Any], path: str | Path, *, title: str) -> Path:
    """Write the page in one move, the same bytes for the same data, and return its path.

    Raises:
        ValueError: The file's name does not end in ``.html``.
    """
    target = Path(path)
    if target.suffix not in (".html", ".htm"):
        raise ValueError(
            f"out={str(path)!r} must end in .html (a folder for pictures is meant with the format png or svg)"
        )
    write_text_atomic(target, render_page(data, title=title))
    return target
