"""What the commands share: where they write, and options that mean the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from tests.commands import call
from typer.main import get_command
from typer.testing import CliRunner

import rankwise_options
from rankwise_cli import app

LONG = "word " * 60


def test_a_pipe_gets_a_long_line_whole() -> None:
    code = f"from rankwise_options import console; console.print({LONG.strip()!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{LONG.strip()}\n"


def test_options_import_nothing_of_the_package() -> None:
    code = "import rankwise_options, rankwise_exits, sys; print('rankwise' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("option", "commands"),
    [
        ("--debug", "demo init recipes train score plan ranks export predict evaluate runs report tune"),
        ("--set", "train score plan ranks tune"),
        ("--overwrite", "demo init train evaluate"),
    ],
)
def test_a_shared_option_is_where_it_belongs(option: str, commands: str) -> None:
    known = getattr(get_command(app), "commands")  # noqa: B009 (click's groups have it, its type here does not)
    having = [name for name, command in known.items() if option in {o for p in command.params for o in p.opts}]
    assert sorted(having) == sorted(commands.split())


def test_a_seed_is_no_negative_number() -> None:
    refused = call("demo", "--seed", "-1")
    assert refused.exit_code == 2
    assert "Invalid value for '--seed'" in refused.output


def test_overrides_may_be_given_again() -> None:
    probe = typer.Typer()

    @probe.command()
    def command(overrides: rankwise_options.Overrides = None) -> None:
        typer.echo(repr(overrides))

    assert CliRunner().invoke(probe, ["--set", "a=1", "--set", "b=2"]).output == "['a=1', 'b=2']\n"
    assert CliRunner().invoke(probe, []).output == "None\n"
