"""What a study of budgets is asked to run: a grid, or every run of a results file again."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.where_it_pays.arms import ARMS

KEY = ("arm", "budget", "rate", "seed", "variant")


def add_grid(parser: argparse.ArgumentParser, *, budgets: Sequence[int], rates: Sequence[float], out: str) -> None:
    """Add the options that say what runs.

    Args:
        parser: To which.
        budgets: The default.
        rates: The default.
        out: The default results file.
    """
    parser.add_argument("--budgets", type=int, nargs="+", default=list(budgets))
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(rates))
    parser.add_argument("--variant", default="", help="a name for what the options change, such as damping=10")
    parser.add_argument("--options", type=json.loads, help="for the plan, as JSON; by default what the variant says")
    parser.add_argument("--again", type=Path, help="a results file whose runs are all run, in place of a grid")
    parser.add_argument("--out", type=Path, default=Path(out))


def asked(given: argparse.Namespace, **common: str) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Yield the key of each run that is asked for, and the plan's options.

    Args:
        given: The options of ``add_grid``.
        common: Further fields of every key.

    Raises:
        ValueError: Runs are to be run again into the file that holds them, or with other options.
    """
    if given.again and given.options is not None:
        raise ValueError("--again runs each variant with its own options: leave --options out")
    if given.again and given.again.resolve() == given.out.resolve():
        raise ValueError(f"--again and --out are both {given.out}, where nothing is left to run: give another --out")
    grid = itertools.product(given.budgets, given.rates, given.seeds, given.arms)
    keys: Iterator[dict[str, Any]] = (
        {**common, **dict(zip(KEY, (arm, budget, rate, seed, given.variant), strict=True))}
        for budget, rate, seed, arm in grid
    )
    for key in recorded(given.again, (*common, *KEY)) if given.again else keys:
        if all(key[name] == value for name, value in common.items()):
            yield key, options_of(key["variant"]) if given.options is None else given.options


def recorded(file: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the key of every run that trained within a budget, to run it again.

    Args:
        file: A study's results.
        names: The fields of a key.
    """
    for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
        if "budget" in run:
            yield {name: run[name] for name in names}


def options_of(variant: str) -> dict[str, Any]:
    """Return the plan's options that a variant is named by: ``damping=10`` says ``{"damping": 10}``.

    Raises:
        ValueError: The name says none.
    """
    name, equals, value = variant.partition("=")
    if variant and not equals:
        raise ValueError(f"--variant {variant!r} does not say an option: name it like damping=10, or give --options")
    return {name: json.loads(value)} if equals else {}
