"""How a command ends: one line on stderr, and a code that says whose fault it was."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import typer
from safetensors import SafetensorError

from rankwise_exits import (
    INTERRUPTED,
    RUN_FAILED,
    TERMINATED,
    USER_ERROR,
    explained,
    show_version,
    show_warning,
)


@pytest.fixture(autouse=True)
def handler() -> Iterator[Callable[[int, FrameType | None], None]]:
    """What hears SIGTERM before the command, and has to hear it after."""

    def hears(number: int, frame: FrameType | None) -> None:
        raise AssertionError("nobody sends it outside")

    before = signal.signal(signal.SIGTERM, hears)
    yield hears
    after = signal.signal(signal.SIGTERM, before)
    assert after is hears


def code_of(error: BaseException, **options: str) -> int:
    with pytest.raises(typer.Exit) as caught, explained(False, **options):
        raise error
    assert caught.value.__cause__ is error
    return int(caught.value.exit_code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), USER_ERROR),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), USER_ERROR),
        (SafetensorError("x"), USER_ERROR),
        (FileNotFoundError("x"), USER_ERROR),
        (NotADirectoryError("x"), USER_ERROR),
        (FileExistsError("x"), USER_ERROR),
        (PermissionError("x"), USER_ERROR),
        (ModuleNotFoundError("x"), USER_ERROR),
        (OSError(28, "No space left on device"), RUN_FAILED),
        (RuntimeError("x"), RUN_FAILED),
        (typer.Abort(), INTERRUPTED),  # Ctrl-C or Ctrl-D at a prompt
        (NotImplementedError("x"), RUN_FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_the_code_says_whose_fault_it_was(error: BaseException, code: int) -> None:
    assert code_of(error) == code


def test_the_codes_are_those_that_the_help_promises() -> None:
    assert (RUN_FAILED, USER_ERROR, INTERRUPTED, TERMINATED) == (1, 2, 130, 143)


def test_the_message_is_one_line_on_stderr_with_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    text = "method.target_modules=['query'] [/red] é " + "word " * 60
    code_of(ValueError(text))
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", f"Error: {text}\n")


def test_an_error_without_words_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code_of(RuntimeError())
    assert capsys.readouterr().err == "Error: RuntimeError\n"


def test_a_stopped_command_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    code_of(KeyboardInterrupt())
    code_of(KeyboardInterrupt(), on="the same command goes on with it")
    assert capsys.readouterr().err.splitlines() == [
        "Error: interrupted; a run with a checkpoint goes on with --resume",
        "Error: interrupted; the same command goes on with it",
    ]


def test_sigterm_is_taken_like_ctrl_c_and_only_inside(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def works_until_it_is_stopped() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)

    with pytest.raises(typer.Exit) as caught, explained(False):
        works_until_it_is_stopped()
    assert closed == [True]
    assert caught.value.exit_code == TERMINATED
    assert capsys.readouterr().err.startswith("Error: terminated; ")


def test_debug_raises_the_error_itself() -> None:
    error = ValueError("x")
    with pytest.raises(ValueError, match="x") as caught, explained(True):
        raise error
    assert caught.value is error


def test_a_thread_that_may_set_no_handler_is_explained_too() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(code_of(ValueError("x"))))
    thread.start()
    thread.join()
    assert found == [USER_ERROR]


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("x"), TypeError("x")])
def test_our_own_mistakes_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), explained(False):
        raise error


def test_a_warning_is_one_line_without_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show_warning)
        warnings.warn("budget=[4] is small", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "Warning: budget=[4] is small\n"


def test_the_version_ends_the_command_only_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    show_version(False)
    assert capsys.readouterr().out == ""
    with pytest.raises(typer.Exit):
        show_version(True)
    assert capsys.readouterr().out == f"rankwise {version('rankwise')}\n"
