"""Options that several commands share, and where they write."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

console = Console(soft_wrap=not sys.stdout.isatty())  # a file or a pipe gets whole lines

RecipeFile = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the name of one that ships.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be given again.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder already holds.")]
Seed = Annotated[int, typer.Option(help="Seeds everything that is drawn.", min=0)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
