"""Tables as Markdown, CSV, LaTeX and on the terminal; numbers are written in one place."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from rankwise.study.statistics import Difference, Summary
from rankwise.study.tables import Span, Table, Value

NOTE = "note"  # a column of the CSV
TEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
}


def text(value: Value) -> str:
    """Return a value as people read it; intervals and ``detectable`` stand in the cell of their difference."""
    match value:
        case None:
            return ""
        case Summary(diverged=lost) if lost:
            return f"diverged: {lost} of {value.n}"
        case Summary():
            spread = "" if math.isnan(value.sd) else f" ± {value.sd:.4f}"
            return f"{value.mean:.4f}{spread}"
        case Difference():
            pairs = "" if value.runs in (None, value.n) else f"{value.n} pair{'s' if value.n > 1 else ''}"
            if value.diverged or value.baseline_diverged:
                counts = {"diverged": value.diverged, "baseline diverged": value.baseline_diverged}
                told = [f"{words}: {count} of {value.n}" for words, count in counts.items() if count]
                return "; ".join([*told, *([pairs] if pairs else [])])
            if value.n < 2:
                return f"{value.mean:+.4f} ({pairs or 'one seed'})"
            bootstrap = f"bootstrap [{value.bootstrap_low:+.4f}, {value.bootstrap_high:+.4f}]"
            seen = "unknown" if math.isnan(value.detectable) else f"{value.detectable:.4f}"
            return "; ".join([interval(value), bootstrap, f"detectable {seen}", *([pairs] if pairs else [])])
        case Span():
            ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in value]
            return " to ".join(dict.fromkeys(ends))
        case float():
            return f"{value:g}"
    return str(value)


def interval(value: Difference) -> str:
    """Return a difference of two seeds or more with Student's interval."""
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for table in tables:
        rows = [table.header, ["---"] * len(table.header), *([text(value) for value in row] for row in table.rows)]
        lines = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
        parts.append(f"### {table.title}\n\n{lines}\n\n{table.note}\n")
    return "\n".join(parts)


def latex(tables: Sequence[Table]) -> str:
    """Return the tables as LaTeX (``booktabs``)."""
    parts = []
    for table in tables:
        rows = [[_tex(text(value)) for value in row] for row in table.rows]
        head, body = " & ".join(map(_tex, table.header)), "\n".join(_tex_row(row) for row in rows)
        columns = "l" + "r" * (len(table.header) - 1)
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{_tex(table.title)}. {_tex(table.note)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(parts)


def _tex_row(cells: Sequence[str]) -> str:
    """Return a row; a bracket at its beginning would be an argument of the line's end before it."""
    row = " & ".join(cells)
    return ("{}" if row.startswith("[") else "") + row + r" \\"


def _tex(words: str) -> str:
    """Return a text for LaTeX; what stands between backticks is set as it is typed, so that it can be copied."""
    parts = [
        re.sub("-(?=-)", "-{}", "".join(TEX.get(letter, letter) for letter in part)).replace("±", r"$\pm$")
        for part in words.split("`")
    ]
    parts[1::2] = [rf"\texttt{{{part}}}".replace("'", r"\textquotesingle{}") for part in parts[1::2]]
    return "".join(parts)


def as_csv(tables: Sequence[Table]) -> str:
    """Return the tables as one CSV, a number in each cell: means, deviations, interval ends in columns of their own.

    The last column has the table's note, with the number of runs and the command.
    """
    out = io.StringIO()
    rows = [row for table in tables for row in _records(table)]
    fields = list(dict.fromkeys(name for row in rows for name in row if name != NOTE))
    fields += [NOTE] * any(NOTE in row for row in rows)
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _records(table: Table) -> list[dict[str, object]]:
    records = []
    for row in table.rows:
        record: dict[str, object] = {"table": table.title}
        for name, value in zip(table.header, row, strict=True):
            if isinstance(value, Summary | Difference):
                record |= {f"{name}, {part}": number for part, number in _numbers(value).items()}
            elif isinstance(value, Span):
                record |= {f"{name}, {part}": number for part, number in value._asdict().items()}
            elif value is not None:  # a column of its own for what has no value would stay empty
                record[name] = value
        records.append({**record, NOTE: table.note} if table.note else record)
    return records


def _numbers(value: Summary | Difference) -> dict[str, object]:
    """Return what a CSV has of a value: not the number of runs, a column already, nor that none of them diverged."""
    fields = value._asdict()
    n = fields.pop("n")
    fields.pop("runs", None)
    fields = {part: number for part, number in fields.items() if number or "diverged" not in part}
    if isinstance(value, Difference):
        fields["pairs"] = n
    return {part.replace("_", " "): "" if math.isnan(number) else number for part, number in fields.items()}


def terminal(table: Table) -> RichTable:
    """Return a table for the terminal: nothing of it is cut off at 80 columns."""
    title, note = escape(table.title), escape(table.note)
    shown = RichTable(
        title=title,
        title_justify="left",
        caption=note,
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
        collapse_padding=True,
    )
    shown.caption_justify = "left"
    rows = [[_in_lines(value) for value in row] for row in table.rows]
    for place, name in enumerate(table.header):
        words = " ".join([name, *(row[place] for row in rows)]).split()
        shown.add_column(
            escape(name), justify="right" if place else "left", overflow="fold", min_width=max(map(len, words))
        )
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _in_lines(value: Value) -> str:
    """Return a value with a line for each of its parts."""
    match value:
        case Summary():
            return text(value).replace(" ±", "\n±")
        case Difference():
            return text(value).replace("; ", "\n").replace(" [", "\n[")
    return text(value)


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": markdown, "csv": as_csv, "latex": latex}
