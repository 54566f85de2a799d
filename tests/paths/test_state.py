"""What is on travels with the adapter's tensors."""

from __future__ import annotations

import copy

import pytest

from rankwise.paths.state import AllocationState, Status

ON, GONE = Status(True, True, 1, 2, True), Status(False, False, 0, 0, False)


def made(**status: Status) -> AllocationState:
    state = AllocationState()
    for adapter, value in status.items():
        state.put(adapter, value)
    return state


@pytest.mark.parametrize("assign", [False, True])
def test_it_is_read_again_whenever_tensors_are_loaded(assign: bool) -> None:
    state = made(default=GONE, other=GONE)
    state.load_state_dict(made(default=ON, other=GONE).state_dict(), assign=assign)
    assert state.status == {"default": ON, "other": GONE}


def test_a_copy_changes_alone_and_a_removed_adapter_is_gone() -> None:
    state = made(default=ON, other=ON)
    twin = copy.deepcopy(state)
    twin.put("default", GONE)
    assert state.status["default"] == ON
    assert state["default"].tolist() == [1, 1, 1, 2, 1]
    assert twin["default"].tolist() == [0, 0, 0, 0, 0]
    state.remove("other")
    assert list(state.state_dict()) == ["default"]
