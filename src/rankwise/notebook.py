"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable


def html_table(names: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """Return an HTML table, every cell escaped.

    Args:
        names: The heading of each column.
        lines: The cells of each line.
    """
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
