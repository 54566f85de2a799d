from __future__ import annotations

import io
import logging
import warnings

import pytest
import transformers
from rich.console import Console

from rankwise.passes import passed, watched_by, work
from rankwise.runs.progress import RichProgress, follow, passes_shown, quiet


def test_quiet_ends_also_after_an_error() -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    seen = []
    try:
        with quiet():
            seen = [transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()]
            raise RuntimeError
    except RuntimeError:
        pass
    assert seen == [logging.ERROR, False]
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


def test_quiet_hides_known_notices_only() -> None:
    with quiet():
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found", stacklevel=1)
        with pytest.raises(UserWarning, match="a real problem"):
            warnings.warn("a real problem", stacklevel=1)


def test_a_search_has_a_bar_of_its_own_for_as_long_as_it_lasts() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = RichProgress(console, "accuracy")
    descriptions: list[list[str]] = []
    try:
        with watched_by(follow(bar.bar)), work("scoring 4 paths by grad_norm", 2):
            passed()
            descriptions.append([task.description for task in bar.bar.tasks])
            assert bar.bar.live.is_started
            assert (bar.bar.tasks[0].completed, bar.bar.tasks[0].total) == (1, 2)
        descriptions.append([task.description for task in bar.bar.tasks])
    finally:
        bar.close()
    assert descriptions == [["scoring 4 paths by grad_norm"], []]


def test_the_passes_of_a_command_are_shown_and_leave_nothing() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with passes_shown(console), work("planning ranks", 2):
        passed()
    assert "planning ranks" in console.file.getvalue()  # type: ignore[attr-defined]
    silent = Console(file=io.StringIO())
    with passes_shown(silent), work("planning ranks", 2):
        passed()
    assert not silent.file.getvalue()  # type: ignore[attr-defined]
