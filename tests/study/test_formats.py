"""Tables as Markdown, CSV, LaTeX and on the terminal: every number once, nothing read as markup."""

from __future__ import annotations

import csv
import io
import math

import pytest
from rich.console import Console
from tests.study.test_tables import run, table

from rankwise.study.formats import FORMATS, as_csv, interval, latex, markdown, terminal, text
from rankwise.study.statistics import Difference, Summary
from rankwise.study.tables import Span, Table, Value, compared


def test_formats_hold_every_row() -> None:
    shown = markdown([table()])
    assert "| b_% |" in shown
    assert "detectable" in shown
    assert "5 of 5 runs: `rankwise study run`" in shown
    tex = latex([table()])
    assert r"b\_\%" in tex
    assert tex.count(r"\\") == 3
    rows = list(csv.DictReader(io.StringIO(as_csv([table()]))))
    assert float(rows[1]["loss, last, mean"]) == pytest.approx(1 / 3)
    assert float(rows[1]["loss minus a, bootstrap low"]) == pytest.approx(-0.1)
    assert rows[0]["loss minus a, low"] == ""
    assert (rows[1]["parameters, low"], rows[1]["parameters, high"]) == ("1001", "1003")
    assert "| 1,001 to 1,003 |" in shown


def test_latex_keeps_what_a_command_line_may_hold() -> None:
    made = Table("a", ["arm", "x"], [["[b]", None]], r"--set method.target_modules='.*\.(q|v)^~'")
    shown = latex([made])
    assert r"'.*\textbackslash{}.(q\textbar{}v)\textasciicircum{}\textasciitilde{}'" in shown
    assert "\n{}[b] & " in shown


def test_a_command_can_be_copied_from_what_latex_sets() -> None:
    made = latex([Table("t", ["a"], [["b"]], "it's `rankwise run --set 'a=1' ---b`, as typed")])
    command = r"\texttt{rankwise run -{}-set \textquotesingle{}a=1\textquotesingle{} -{}-{}-b}"
    assert rf"it's {command}, as typed" in made


def test_runs_without_a_partner_and_runs_that_diverged_are_told() -> None:
    runs = [run("a", 1, 0.5), run("a", 2, 0.7), run("b", 1, 0.4), run("b", 2, 0.5), run("b", 3, 0.1)]
    made = compared(
        [*runs, *(run("c", seed, math.nan if seed > 1 else 0.1) for seed in (1, 2))], baseline="a", title="t", about=""
    )
    shown = markdown([made])
    assert shown.count("; 2 pairs |") == 2, "of b's three runs two have a partner, in both metrics"
    assert "| diverged: 1 of 2 |" in shown
    assert "nan" not in shown
    first, second, third = csv.DictReader(io.StringIO(as_csv([made])))
    assert (second["n"], second["loss minus a, pairs"], first["loss minus a, pairs"]) == ("3", "2", "")
    assert (third["loss minus a, diverged"], third["loss, last, diverged"], third["loss, last, mean"]) == ("1", "1", "")
    assert "loss minus a" not in first, "a column without a value is none"


def test_a_difference_of_one_seed_has_no_interval() -> None:
    runs = [run("a", 1, 0.5), run("b", 1, 0.4)]
    made = compared(runs, baseline="a", title="", about="")
    assert "| -0.0500 (one seed) |" in markdown([made])
    (row,) = [row for row in csv.DictReader(io.StringIO(as_csv([made]))) if row["arm"] == "b"]
    assert row["loss minus a, low"] == ""
    assert row["loss, last, sd"] == ""


NAN = math.nan
DIFFERENCE = Difference(-0.125, -0.25, 0.0, 3, 0.3, -0.2, -0.05)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, ""),
        ("a|b", "a|b"),
        (3, "3"),
        (0.001, "0.001"),
        (1234567.0, "1.23457e+06"),
        (Summary(0.5, 0.25, 4), "0.5000 ± 0.2500"),
        (Summary(0.5, NAN, 1), "0.5000"),
        (DIFFERENCE, "-0.1250 [-0.2500, +0.0000]; bootstrap [-0.2000, -0.0500]; detectable 0.3000"),
        (Difference(0.125, NAN, NAN, 1, NAN), "+0.1250 (one seed)"),
        (
            Difference(0.125, -1.0, 1.25, 2, 0.5, 0.0, 0.25),
            "+0.1250 [-1.0000, +1.2500]; bootstrap [+0.0000, +0.2500]; detectable 0.5000",
        ),
        (
            Difference(0.0, 0.0, 0.0, 2, NAN, 0.0, 0.0),
            "+0.0000 [+0.0000, +0.0000]; bootstrap [+0.0000, +0.0000]; detectable unknown",
        ),
        (Summary(NAN, NAN, 3, 2), "diverged: 2 of 3"),
        (Difference(0.125, NAN, NAN, 1, NAN, runs=3), "+0.1250 (1 pair)"),
        (DIFFERENCE._replace(runs=3), "-0.1250 [-0.2500, +0.0000]; bootstrap [-0.2000, -0.0500]; detectable 0.3000"),
        (
            Difference(NAN, NAN, NAN, 3, NAN, diverged=1, baseline_diverged=2, runs=4),
            "diverged: 1 of 3; baseline diverged: 2 of 3; 3 pairs",
        ),
        (Span(1000, 2000), "1,000 to 2,000"),
        (Span(1000, 1000), "1,000"),
        (Span(0.001, 0.01), "0.001 to 0.01"),
    ],
    ids=str,
)
def test_a_value_as_people_read_it(value: Value, said: str) -> None:
    assert text(value) == said


def test_an_interval_has_its_signs() -> None:
    assert interval(Difference(0.5, -0.25, 1.25, 3, 0.1)) == "+0.5000 [-0.2500, +1.2500]"


MADE = Table("a_b [red] & 50 %", ["arm", "x"], [["q|v", 0.5], ["[b]", None]], "note: `x` ± 2")
OTHER = Table("second", ["arm", "y"], [['é, "x"', Summary(1.0, NAN, 1)]], "")


def test_markdown_escapes_what_ends_a_cell() -> None:
    assert markdown([MADE, OTHER]) == (
        "### a_b [red] & 50 %\n\n"
        "| arm | x |\n| --- | --- |\n| q\\|v | 0.5 |\n| [b] |  |\n\n"
        "note: `x` ± 2\n\n"
        "### second\n\n"
        '| arm | y |\n| --- | --- |\n| é, "x" | 1.0000 |\n\n\n'
    )
    assert markdown([]) == ""


def test_csv_has_one_column_for_each_number_of_all_tables() -> None:
    rows = list(csv.reader(io.StringIO(as_csv([MADE, OTHER]))))
    assert rows == [
        ["table", "arm", "x", "y, mean", "y, sd", "note"],
        ["a_b [red] & 50 %", "q|v", "0.5", "", "", MADE.note],
        ["a_b [red] & 50 %", "[b]", "", "", "", MADE.note],
        ["second", 'é, "x"', "", "1.0", "", OTHER.note],
    ]
    (row,) = csv.DictReader(io.StringIO(as_csv([Table("t", ["d", "s"], [[DIFFERENCE, Span(1, 2)]], "")])))
    ends = ("mean", "low", "high", "detectable", "bootstrap low", "bootstrap high")
    assert {name: float(row[f"d, {name}"]) for name in ends} == dict(
        zip(ends, (-0.125, -0.25, 0.0, 0.3, -0.2, -0.05), strict=True)
    )
    assert (row["s, low"], row["s, high"]) == ("1", "2")


def test_latex_escapes_every_letter_that_it_reads_as_a_command() -> None:
    letters = r"\^~<>|&%_#$" + "{}"
    made = latex([Table("t", ["a"], [[letters]], "")])
    (line,) = (line for line in made.splitlines() if "textbackslash" in line)
    assert line == (
        r"\textbackslash{}\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}\textbar{}"
        r"\&\%\_\#\$\{\} \\"
    )
    made = latex([MADE])
    assert r"\caption{a\_b [red] \& 50 \%. note: \texttt{x} $\pm$ 2}" in made
    assert r"\begin{tabular}{lr}" in made


def test_nothing_in_a_table_is_read_as_markup_on_the_terminal() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(terminal(Table("[red]t[/]", ["[b]"], [["[i]x"], ["[/]"]], "[u]note")))
    shown = "".join(out.getvalue().split())  # a title wraps to the width of its table
    assert [shown.count(word) for word in ("[red]t[/]", "[b]", "[i]x", "[/]", "[u]note")] == [1, 1, 1, 2, 1]


def test_every_format_has_its_writer() -> None:
    assert {"markdown": markdown, "csv": as_csv, "latex": latex} == FORMATS


def test_a_table_of_a_race_is_whole_on_a_terminal_of_80_columns() -> None:
    header = ["arm", "parameters", "rate", "n", "accuracy, last", "accuracy minus yours", "loss, last"]
    row: list[Value] = ["all-linear at 0.006325", Span(42240, 42240), 0.006325, 2]
    row += [Summary(0.45, 0.0129, 2), DIFFERENCE, Summary(1.8355, 0.028, 2)]
    out = io.StringIO()
    Console(file=out, width=80).print(terminal(Table("t", [*header, "loss minus yours"], [[*row, DIFFERENCE]], "")))
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("accuracy", "parameters", "42,240", "0.006325", "bootstrap", "[-0.2500,", "detectable", "0.3000"):
        assert word in shown
    assert shown.count("detectable") == 2
