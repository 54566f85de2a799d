"""The slot through which a model wakes the search that lies above it."""

from __future__ import annotations

import pytest
from tests.models import one_of_trio

from rankwise.paths.driver import _Slot, driver, install
from rankwise.paths.path_set import path_set
from rankwise.search.optimizer import OptimizerDriver


def test_importing_rankwise_fills_the_slot() -> None:
    model = one_of_trio("bert", mode="dynamic", budget=0.5)
    paths = path_set(model)
    driver().wake(model, paths)
    assert paths.session.listener is not None
    listener = paths.session.listener
    assert listener.paths is paths
    listener.close()
    assert paths.session.listener is None


def test_what_was_put_in_last_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Slot, "driver", driver())  # put back afterwards
    other = OptimizerDriver()
    install(other)
    assert driver() is other


def test_an_empty_slot_is_our_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Slot, "driver", None)
    with pytest.raises(AssertionError):
        driver()
