"""The command line as a test calls it, and a recipe that it trains in a second."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.recipe import parse_recipe
from rankwise_cli import app


def call(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def small_recipe(folder: Path) -> Path:
    """Write a recipe of a searched method on stand-ins for RoBERTa and RTE."""
    method = {"name": "heterolora", "r": 4, "target_modules": ["query", "value"], "mode": "dynamic", "budget": 0.5}
    full = {"model": {"name": "FacebookAI/roberta-base"}, "data": {"task": "rte"}, "method": method}
    path = folder / "small.yaml"
    path.write_text(stand_in(parse_recipe(full), folder / "room").to_yaml())
    return path
