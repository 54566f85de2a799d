"""The commands that read finished and unfinished runs: ``runs`` lists them, ``report`` draws them.

Beside the command line, and like it without anything of ``rankwise`` until a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rankwise_exits import explained
from rankwise_options import Debug, console

results = typer.Typer(rich_markup_mode="rich")


@results.command(
    epilog="Examples:\n\n"
    "[bold]rankwise runs runs[/]\n\n"
    "[bold]rankwise runs runs --sort loss --split validation[/]   the lowest loss first\n\n"
    "[bold]rankwise runs runs --json[/]"
)
def runs(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it, at any depth.", show_default=False)],
    sort: Annotated[
        str,
        typer.Option(
            help="A column: run, state, method, task, model, seed, rate, budget, parameters, seconds, or a metric."
        ),
    ] = "run",
    descending: Annotated[bool, typer.Option("--descending", help="The largest first.")] = False,
    split: Annotated[
        str | None, typer.Option(help="The split whose metrics are shown; by default the one most runs have.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything known of each run as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List and compare the runs in a folder: state, method, budget, parameters, last metrics, seconds."""
    with explained(debug):
        from rankwise.runs.results.listing import list_runs, runs_table, to_json

        found = list_runs(folder, sort=sort, descending=descending, split=split)
        if as_json:
            console.print(to_json(found), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(runs_table(found, split=split, width=console.width))


@results.command(
    epilog="Examples:\n\n"
    "[bold]rankwise report runs/mine[/]   one page about a run, report.html\n\n"
    "[bold]rankwise report demo-run --out demo.html[/]   all runs in a folder compared, a race with its tables\n\n"
    "[bold]rankwise report runs/mrpc-combined-seed0 runs/mrpc-separated-seed0 --format svg --out pictures[/]"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Runs, or folders with runs, a study's too; for pictures also adapter folders and history files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page, by default report.html; for pictures a folder, by default report."),
    ] = None,
    report_format: Annotated[
        str, typer.Option("--format", metavar="html|png|svg", help="One page, or a picture for each thing.")
    ] = "html",
    debug: Debug = False,
) -> None:
    """Show what runs were asked, what they did and what came out, in one HTML page that loads nothing."""
    with explained(debug):
        from rankwise.errors import check_choice

        check_choice("format", report_format, ("html", "png", "svg"))
        if report_format == "html":
            from rankwise.runs.results.page import write_page
            from rankwise.study.statistics_page import page_tables

            tables, reasons = page_tables(runs)
            page = write_page(runs, out or Path("report.html"), tables=tables)
            for reason in (*reasons, *page.left_out):
                console.print(f"[yellow]{escape(reason)}[/]", soft_wrap=True, highlight=False)
            console.print(f"report: [bold]{escape(str(page.file))}[/]", soft_wrap=True, highlight=False)
            return
        from rankwise.runs.results.pictures import write_report

        drawn = write_report(runs, out or Path("report"), picture_format=report_format)
        for reason in drawn.left_out:
            console.print(f"[yellow]{escape(reason)}[/]", soft_wrap=True, highlight=False)
        for picture in drawn.written:
            console.print(f"{picture.stem}: [bold]{escape(str(picture))}[/]", soft_wrap=True, highlight=False)
