"""A run whose frozen prefix runs once per training row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from rankwise.prefix.cache import prefix_cache
from rankwise.runs.building.job import Job
from rankwise.runs.folder import RunFolder


@contextmanager
def kept_prefix(job: Job, folder: RunFolder, console: Console | None) -> Iterator[None]:
    """Keep the prefix of a run that asks for it, and say so.

    Raises:
        ValueError: Something trains in block 0 or before it.
    """
    chosen = job.recipe.training.prefix_cache
    if chosen is None:
        yield
        return
    with prefix_cache(
        job.model,
        ram_bytes=chosen.ram_mb * 2**20,
        folder=folder.root,
        half=chosen.half,
        evaluating=chosen.evaluating,
    ) as cache:
        if console is not None:
            still = ", without their dropout" if chosen.evaluating else ""
            console.print(f"Prefix: the lowest {len(cache.prefix.blocks)} blocks run once per training row{still}")
        yield
        if console is not None:
            passes = cache.hits + cache.misses
            console.print(f"Prefix: left out of {cache.hits:,} of {passes:,} forward passes in training")
