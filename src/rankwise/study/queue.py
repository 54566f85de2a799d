"""Cells in an Optuna storage, which any number of workers take from: each is one worker's at a time.

Optuna's samplers are not used: the cells are made up front, a worker takes the next and says by a heartbeat that it is
alive. Filling and taking happen under the lock of the study's folder (``working.take``): in SQLite, Optuna's change of
a trial's state reads first and writes then, so that two at once would both have the cell.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

logger = logging.getLogger("rankwise")
CELL = "cell"  # the attribute of a trial that names its cell
HEARTBEAT = 30
GRACE = 3  # heartbeats without a sign of life after which a worker is taken for dead
DEATHS = 3  # so many workers may die on one cell
POSTGRES = "postgresql://"


class StorageError(RuntimeError):
    """The storage did not do what it was asked for: away, locked, or full."""


@contextmanager
def _told() -> Iterator[None]:
    """Say of whatever the storage fails with what it means for the study."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        raise StorageError(
            f"the study's storage failed ({str(cause).splitlines()[0]}): see that it can be reached and written to; "
            "the same command goes on with what has finished"
        ) from error


class Claim(NamedTuple):
    """A cell that this worker has taken."""

    trial: int
    name: str


class Queue:
    """The queue of one study.

    What the storage fails with is a ``StorageError``.

    Args:
        url: Of the storage, as SQLAlchemy says it: ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``.
        name: Of the queue in it.
        heartbeat: Seconds between two signs of life; without one for ``GRACE`` times as long a worker is taken for
            dead.
    """

    def __init__(self, url: str, name: str, *, heartbeat: int = HEARTBEAT) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.heartbeat = heartbeat
        self.storage = _open(url, heartbeat)
        with _told():
            self.study = optuna.create_study(storage=self.storage, study_name=name, load_if_exists=True)
            self.id = self.storage.get_study_id_from_name(name)

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @_told()
    def trials(self, *states: str) -> list[FrozenTrial]:
        """Return the trials in these states (``WAITING``, ``RUNNING``, ``COMPLETE``, ``FAIL``)."""
        from optuna.trial import TrialState

        wanted = tuple(TrialState[state] for state in states)
        return self.storage.get_all_trials(self.id, deepcopy=False, states=wanted)

    def names(self, *states: str) -> list[str]:
        """Return the cells of these trials; one with several trials stands there as often."""
        return [str(trial.user_attrs[CELL]) for trial in self.trials(*states)]

    @_told()
    def fill(self, names: Collection[str]) -> list[str]:
        """Add cells that nobody has or waits for; return those that too many workers died on, which are not added.

        Call it under the lock of the study's folder: two at once would add a cell twice.
        """
        known = set(self.names("WAITING", "RUNNING"))
        given_up = [name for name in names if name not in known and self._deaths(name) >= DEATHS]
        for name in names:
            if name not in known and name not in given_up:
                self.study.enqueue_trial({}, user_attrs={CELL: name})
        return given_up

    def _deaths(self, name: str) -> int:
        """Return how many workers were lost with a cell since it last came to an end or was forgiven."""
        states = [trial.state.name for trial in self.trials("COMPLETE", "FAIL") if trial.user_attrs[CELL] == name]
        return states[::-1].index("COMPLETE") if "COMPLETE" in states else len(states)

    @_told()
    def forgive(self, name: str) -> None:
        """Forget how often workers died on a cell."""
        from optuna.trial import create_trial

        self.study.add_trial(create_trial(value=math.inf, user_attrs={CELL: name}))

    @_told()
    def give_back_lost(self) -> None:
        """Mark cells whose worker has shown no sign of life as failed: ``fill`` adds them again."""
        from optuna.storages import fail_stale_trials

        with _experimental():
            fail_stale_trials(self.study)

    @_told()
    def claim(self, names: Collection[str] | None = None) -> Claim | None:
        """Take the first cell that waits, of these if any are given; none if there is none.

        Call it under the lock of the study's folder: two at once may take the same cell.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for trial in self.trials("WAITING"):
            if names is not None and trial.user_attrs[CELL] not in names:
                continue
            number = self._id(trial)
            # Before it is ours: a worker that dies between the two would leave a cell that never counts as lost.
            self.storage.record_heartbeat(number)
            try:
                if self.storage.set_trial_state_values(number, state=TrialState.RUNNING):
                    return Claim(number, str(trial.user_attrs[CELL]))
            except UpdateFinishedTrialError:
                continue
        return None

    @contextmanager
    def alive(self, claim: Claim, lost: Callable[[], None]) -> Iterator[None]:
        """Show signs of life inside, and call ``lost`` once if the cell was given to another meanwhile.

        A storage that fails is asked again; after as long a time as makes others take the cell, it counts as lost.
        """
        ended = threading.Event()

        def beat() -> None:
            seen = time.monotonic()
            while not ended.wait(self.heartbeat):
                try:
                    if not self._beat(claim):
                        return lost()
                    seen = time.monotonic()
                except StorageError as error:
                    logger.warning("%s: no sign of life: %s", claim.name, error)
                    if time.monotonic() - seen >= GRACE * self.heartbeat:
                        return lost()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @_told()
    def _beat(self, claim: Claim) -> bool:
        """Give a sign of life; return whether the cell is still ours."""
        if self.storage.get_trial(claim.trial).state.is_finished():
            return False
        self.storage.record_heartbeat(claim.trial)
        return True

    @_told()
    def finish(self, claim: Claim, loss: float) -> None:
        """Say that a cell has come to its end, well or not."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self.storage.set_trial_state_values(claim.trial, state=TrialState.COMPLETE, values=[loss])
        except UpdateFinishedTrialError:  # taken for dead just now; the run folder says that it is finished
            return

    @_told()
    def put_back(self, claim: Claim) -> None:
        """Let another worker take a cell that this one was stopped at."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            self.storage.set_trial_state_values(claim.trial, state=TrialState.WAITING)
        except UpdateFinishedTrialError:
            return

    def _id(self, trial: FrozenTrial) -> int:
        return int(self.storage.get_trial_id_from_study_id_trial_number(self.id, trial.number))


def default_storage(folder: Path) -> str:
    """Return the SQLite storage of a study's folder."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str((folder / "queue.db").absolute())).render_as_string()


def check_installed() -> None:
    """Refuse to begin without Optuna.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("studies need Optuna: pip install 'rankwise[study]'") from error


def _open(url: str, heartbeat: int) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

    options: dict[str, Any] = {"pool_pre_ping": True}  # a connection that the server has closed is opened again
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # workers wait for each other's writes
    if url.startswith(POSTGRES):  # SQLAlchemy's own choice for this name is the driver before
        url = f"postgresql+psycopg://{url.removeprefix(POSTGRES)}"
    elif "://" not in url:
        raise ValueError(f"--storage {url!r} is no URL: give sqlite:///FILE or postgresql://USER@HOST/NAME")
    try:
        with _experimental():
            return RDBStorage(url, engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=GRACE * heartbeat)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"the storage's driver is not installed ({error}): pip install 'rankwise[postgres]' and give "
            "postgresql://USER@HOST/NAME, or take SQLite by sqlite:///FILE"
        ) from error
    except (ArgumentError, NoSuchModuleError, OperationalError) as error:
        raise ValueError(
            f"the storage can't be opened ({str(error).splitlines()[0]}): give sqlite:///FILE or "
            "postgresql://USER@HOST/NAME"
        ) from error


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep to ourselves that Optuna calls its heartbeat experimental; a test kills a worker."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
