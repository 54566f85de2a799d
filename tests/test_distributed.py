"""The one file that talks to other processes: alone it changes nothing, in two processes both hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import in_two_processes

from rankwise.distributed import (
    check_same_everywhere,
    from_first_process,
    gather_rows,
    of_every_process,
    rank,
    sum_over_processes_,
    with_those_of_others,
    world_size,
)

CPU = torch.device("cpu")


def test_alone_there_is_one_process_and_nothing_changes() -> None:
    assert (world_size(), rank()) == (1, 0)
    tensor, rows = torch.tensor([1.0, 2.0]), torch.ones(0, 3)
    sum_over_processes_(iter([tensor]))
    assert tensor.tolist() == [1.0, 2.0]
    assert gather_rows(rows) is rows
    check_same_everywhere(["a"], "the choice", CPU)
    assert from_first_process([1.0, 2.5], CPU) == [1.0, 2.5]
    assert of_every_process([1.0, 2.5], CPU) == [[1.0, 2.5]]
    assert list(with_those_of_others({"b": rows, "a": tensor}, lambda name: 7.0)) == ["a", "b"]


def both(share: slice) -> dict[str, Any]:
    """What one of two processes finds; the first has one row more than the second, and other names."""
    mine = rank()
    sums = [torch.tensor([1.0 + mine, 10.0]), torch.tensor(3 + mine)]
    sum_over_processes_(sums)
    rows = torch.arange(6.0).reshape(3, 2)[: 3 - mine] + 100 * mine
    gathered = gather_rows(rows)
    told = []
    for names in (["a", "é"], [], ["a", "b"][: 1 + mine], ["a", "b"][:: 1 - 2 * mine]):
        try:
            check_same_everywhere(names, "the chosen paths", CPU)
            told.append("")
        except RuntimeError as error:
            told.append(str(error))
    named = with_those_of_others({"ab"[mine]: torch.full((2,), 1.5, dtype=torch.float64)}, lambda name: 7.0)
    empty = gather_rows(torch.zeros(mine, 2) + 7)
    return {
        "place": [share.start, world_size(), mine],
        "sums": [tensor.tolist() for tensor in sums],
        "gathered": gathered.tolist(),
        "empty": empty.tolist(),
        "rows": rows.tolist(),
        "told": told,
        "first": from_first_process([1.0 + mine, 2.5], CPU),
        "each": of_every_process([1.0 + mine, 2.5], CPU),
        "named": {name: tensor.tolist() for name, tensor in named.items()},
        "dtypes": [str(tensor.dtype) for tensor in named.values()],
    }


@pytest.mark.distributed
def test_two_processes_hold_the_same_or_say_so(tmp_path: Path) -> None:
    first, second = in_two_processes(both, tmp_path)
    assert [found["place"] for found in (first, second)] == [[0, 2, 0], [2, 2, 1]]
    assert first["sums"] == second["sums"] == [[3.0, 20.0], 7]
    expected = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [100.0, 101.0], [102.0, 103.0], [0.0, 0.0]]
    assert first["gathered"] == second["gathered"] == expected
    assert [len(found["rows"]) for found in (first, second)] == [3, 2]  # what was given stays
    assert first["empty"] == second["empty"] == [[0.0, 0.0], [7.0, 7.0]]
    words = "the processes disagree on the chosen paths; this one has "
    assert first["told"] == ["", "", f"{words}a", f"{words}a, b"]
    assert second["told"] == ["", "", f"{words}a, b", f"{words}b, a"]
    assert first["first"] == second["first"] == [1.0, 2.5]
    assert first["each"] == second["each"] == [[1.0, 2.5], [2.0, 2.5]]
    assert first["named"] == {"a": [1.5, 1.5], "b": [7.0, 7.0]}
    assert second["named"] == {"a": [7.0, 7.0], "b": [1.5, 1.5]}
    assert {*first["dtypes"], *second["dtypes"]} == {"torch.float64"}
