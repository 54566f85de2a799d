"""What is on travels with the adapter's tensors."""

from __future__ import annotations

import copy

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from rankwise.paths.state import AllocationState, Status, check_name

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
    assert not state.stale("other")
    assert list(state.state_dict()) == [*state.status] == ["default"]


def test_a_tensor_that_somebody_writes_to_is_read_again() -> None:
    """In place, as averages of weights do; what is written here is known already."""
    state = made(default=ON, other=ON)
    state["default"].copy_(made(default=GONE)["default"])
    assert [state.stale(adapter) for adapter in ("default", "other")] == [True, False]
    state.read("default")
    assert state.status == {"default": GONE, "other": ON}
    state.status["other"] = GONE  # staged, and not in the tensor yet
    assert not state.stale("other")
    state.write_("other", made(other=GONE)["other"])
    assert [state.stale(adapter) for adapter in ("default", "other")] == [False, False]


def test_a_copy_is_told_from_what_it_was_copied_from() -> None:
    """Both were written to as often; that says nothing of the copy."""
    state = made(default=GONE)
    for _ in range(3):
        state.write_("default", made(default=GONE)["default"])
        twin = copy.deepcopy(state)
        for _ in range(3):
            for status in (ON, GONE):
                twin["default"].copy_(made(default=status)["default"])
                assert twin.stale("default")
                twin.read("default")
                assert twin.status == {"default": status}


def test_what_has_no_values_is_not_read() -> None:
    """The meta device, and torch's stand-ins for tensors, by which a run's memory is told beforehand."""
    state = made(default=ON)
    state.to("meta").read("default")
    with FakeTensorMode(allow_non_fake_inputs=True):
        state.to_empty(device="cpu").read("default")
    assert state.status == {"default": ON}


def test_a_name_that_a_module_has_for_itself_is_refused() -> None:
    for name in ("status", "marks", "keys", "training"):
        with pytest.raises(ValueError, match=f"an adapter can't be called '{name}'"):
            check_name(name)
    check_name("default")
