"""How a command ends: one line and an exit code that means something, whatever stopped it.

Beside the command line, and like it without anything of ``rankwise``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from types import FrameType

import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

RUN_FAILED, USER_ERROR = 1, 2
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as a shell counts
MISTAKES = (
    ValueError,
    SafetensorError,
    FileNotFoundError,
    NotADirectoryError,
    FileExistsError,
    PermissionError,
    ModuleNotFoundError,
)
errors = Console(stderr=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it, taken like Ctrl-C: what is open is closed."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def explained(debug: bool, *, on: str = "a run with a checkpoint goes on with --resume") -> Iterator[None]:
    """Turn an error into one red line and an exit code: 2 for the user's mistake, 1 for a run that failed.

    Args:
        debug: Raise it as it is.
        on: How a command that was stopped goes on.
    """
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGTERM, _terminate) if ours else None
    try:
        yield
    except (ValueError, SafetensorError, OSError, RuntimeError, ModuleNotFoundError, KeyboardInterrupt) as error:
        if debug:
            raise
        text, code = str(error) or type(error).__name__, USER_ERROR if isinstance(error, MISTAKES) else RUN_FAILED
        if isinstance(error, (KeyboardInterrupt, typer.Abort)):  # the latter at a prompt
            terminated = isinstance(error, _Terminated)
            text = f"{'terminated' if terminated else 'interrupted'}; {on}"
            code = TERMINATED if terminated else INTERRUPTED
        errors.print(f"[bold red]Error:[/] {escape(text)}", soft_wrap=True, highlight=False)
        raise typer.Exit(code) from error
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Show a warning as one line, without the place in the code that raised it."""
    errors.print(f"[yellow]Warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)


def show_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        Console().print(f"rankwise {installed_version('rankwise')}", highlight=False)
        raise typer.Exit
