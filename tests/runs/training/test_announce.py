from __future__ import annotations

from rankwise.rules.edits import Merge
from rankwise.rules.records import EditRecord, SearchRecord
from rankwise.runs.training.announce import told


def test_a_search_is_told_in_a_line_the_best_first() -> None:
    scores: dict[str, float | None] = {f"layers.{n}.value": float(n) for n in range(9)} | {"layers.9.value": None}
    record = SearchRecord(
        step=23,
        search=1,
        proxy="grad_norm",
        how="online",
        scores=scores,
        chosen=[f"layers.{n}.value" for n in range(1, 9)],
        switched_on=["layers.1.value"],
        switched_off=["layers.0.value", "layers.9.value"],
        seconds=4.26,
    )
    assert told(record) == (
        "step 23: search 2 (online, 4.3 s) chose 8 of 10 paths (+1, -2): layers.8.value, layers.7.value, "
        "layers.6.value, layers.5.value, layers.4.value, layers.3.value and 2 more"
    )


def test_an_edit_is_told_with_the_loss_around_it_where_there_is_one() -> None:
    edit = Merge("layers.4.layer", "layers.5.layer")
    record = EditRecord(step=8, edits=[edit], before=[], due="merge", counts={"enabled": 1200}, measured=[0.5, 0.75])
    assert told(record) == "step 8: merge 4 + 5; 1,200 parameters on; dev loss 0.5000 -> 0.7500"
    unmeasured = EditRecord(step=8, edits=[], before=[], due="inject", counts={"enabled": 7}, measured=[None, None])
    assert told(unmeasured) == "step 8: no inject possible; 7 parameters on"
