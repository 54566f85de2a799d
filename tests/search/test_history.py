from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from tests.models import adapted, class_batches, fill_, keep_only_, logits, tiny_bert

import rankwise
from rankwise.method.folders import ALLOCATION
from rankwise.notebook import html_table
from rankwise.rules.records import HISTORY_FILE, SearchRecord
from rankwise.search.history import History

FIELDS: dict[str, Any] = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", "mode": "dynamic"}
KEPT = ("layers.0.query", "layers.1.value")
COST = 2 * (16 + 16)
HEAD = 2 * 16 + 2


def make(**fields: Any) -> PeftModel:
    return adapted(tiny_bert(), **{**FIELDS, "budget": 0.5, **fields})


def searched(**fields: Any) -> PeftModel:
    """A model after three searches in five steps."""
    model = make(search_every=2, **fields)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    allocator = rankwise.Allocator(model, optimizer, batches=class_batches())
    allocator.begin()
    model.train()
    for batch in class_batches(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    allocator.close()
    return model.eval()


def stored(folder: Path) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {key.removeprefix("base_model.model.bert.encoder.layer.") for key in file.keys() if ".lora_" in key}  # noqa: SIM118


def test_a_record_says_what_a_search_did() -> None:
    records = rankwise.history(searched(seed=3))
    assert [record["step"] for record in records] == [0, 2, 4]
    assert [record["search"] for record in records] == [0, 1, 2]
    assert [record["how"] for record in records] == ["probe", "online", "online"]
    before: set[str] = set()
    for number, record in enumerate(records):
        chosen = set(record["chosen"])
        if number:
            assert chosen == before - set(record["switched_off"]) | set(record["switched_on"])
        assert not set(record["switched_on"]) & set(record["switched_off"])
        assert len(chosen) == 2
        assert min(record["scores"][n] for n in chosen) >= max(
            v for n, v in record["scores"].items() if n not in chosen
        )
        assert record["counts"] == {
            **{"enabled": 2 * COST, "contributing": 2 * COST, "resident": 4 * COST, "frozen": 0, "head": HEAD}
        }
        assert (record["proxy"], record["score_on"], record["budget"], record["unscored"]) == (
            *("grad_norm", "weight", 0.5, []),
        )
        assert record["seconds"] > 0
        assert (record["tap_seconds"] > 0) == (number > 0)
        before = chosen


def test_frozen_paths_are_counted_apart() -> None:
    model = searched(proxy="constant", on_disable="freeze", seed=1)
    last = rankwise.history(model)[-1]
    assert {record["how"] for record in rankwise.history(model)} == {"random"}
    ever = set().union(*(record["switched_off"] for record in rankwise.history(model))) - set(last["chosen"])
    assert ever, "this seed switches nothing off, so the test shows nothing"
    assert last["counts"]["frozen"] == len(ever) * COST
    assert last["counts"]["contributing"] == last["counts"]["enabled"] + last["counts"]["frozen"]


def test_what_is_on_lies_beside_the_adapter(tmp_path: Path) -> None:
    model = make(on_disable="freeze")
    keep_only_(model, *KEPT)
    rankwise.apply_(model, [rankwise.Enable("layers.0.value"), rankwise.Disable("layers.0.value")])
    model.save_pretrained(str(tmp_path))
    listed = json.loads((tmp_path / ALLOCATION).read_text())
    assert set(listed["enabled"]) == set(KEPT)
    assert "layers.0.value" in listed["frozen"]
    assert sorted(listed["enabled"] + listed["frozen"] + listed["disabled"]) == sorted(rankwise.named_paths(model))
    assert listed["parameters"]["enabled"] == 2 * COST
    assert listed["parameters"]["resident"] == 4 * COST
    assert not (tmp_path / HISTORY_FILE).exists()


def test_history_and_allocation_come_back(tmp_path: Path) -> None:
    model = searched()
    model.save_pretrained(str(tmp_path))
    lines = (tmp_path / HISTORY_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_dict() for record in rankwise.history(model)]
    back = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    assert rankwise.history(back) == rankwise.history(model)
    assert {n for n, path in rankwise.named_paths(back).items() if path.enabled} == set(
        rankwise.history(model)[-1]["chosen"]
    )
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=0)


def test_a_history_is_not_taken_from_another_adapter_saved_there_before(tmp_path: Path) -> None:
    searched().save_pretrained(str(tmp_path))
    make().save_pretrained(str(tmp_path))
    assert rankwise.history(PeftModel.from_pretrained(tiny_bert(), str(tmp_path))) == []


def test_each_adapter_has_a_record_of_its_own(tmp_path: Path) -> None:
    model = searched()
    model.add_adapter("other", rankwise.HeteroLoraConfig(**{**FIELDS, "r": 2, "mode": "off"}))
    model.save_pretrained(str(tmp_path))
    assert len(json.loads((tmp_path / ALLOCATION).read_text())["enabled"]) == 2
    assert len(json.loads((tmp_path / "other" / ALLOCATION).read_text())["enabled"]) == 4
    assert not (tmp_path / "other" / HISTORY_FILE).exists()
    assert rankwise.history(model, "other") == []
    assert len(rankwise.history(model, "default")) == 3


@pytest.mark.parametrize(
    ("mode", "asked", "contributing_only"),
    [
        ("dynamic", None, False),
        ("dynamic", True, True),
        ("dynamic", False, False),
        ("static", None, True),
        ("static", False, False),
        ("static", True, True),
    ],
)
def test_which_paths_are_stored(tmp_path: Path, mode: str, asked: bool | None, contributing_only: bool) -> None:
    model = searched(mode=mode)
    fill_(model)
    options: dict[str, Any] = {} if asked is None else {"enabled_only": asked}
    model.save_pretrained(str(tmp_path), **options)
    on = {path.module.split("layer.")[1] for path in rankwise.named_paths(model).values() if path.contributing}
    everything = {path.module.split("layer.")[1] for path in rankwise.named_paths(model).values()}
    assert len(on) == 2
    expected = on if contributing_only else everything
    assert {key for key in stored(tmp_path) if "lora_allocation" not in key} == {
        f"{module}.lora_{factor}.weight" for module in expected for factor in "AB"
    }
    back = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=0)


def test_a_frozen_path_is_stored_with_the_enabled_ones(tmp_path: Path) -> None:
    model = make(on_disable="freeze", mode="off")
    fill_(model)
    rankwise.apply_(model, [rankwise.Disable("layers.0.query")])
    model.save_pretrained(str(tmp_path), enabled_only=True)
    assert "0.attention.self.query.lora_B.weight" in stored(tmp_path)
    back = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=0)


def test_a_static_run_that_has_not_searched_yet_stores_all(tmp_path: Path) -> None:
    make(mode="static").save_pretrained(str(tmp_path))
    assert len({key.split(".lora_")[0] for key in stored(tmp_path)}) == 4
    assert len(stored(tmp_path)) == 4 * 3


def test_the_list_of_records_is_the_callers_own() -> None:
    model = searched()
    rankwise.history(model).clear()
    assert len(rankwise.history(model)) == 3
    other = copy.deepcopy(model)
    assert rankwise.history(other) == rankwise.history(model)


def test_a_history_as_a_table_has_a_row_for_each_record_and_path() -> None:
    model = searched(seed=3)
    history = rankwise.history(model)
    rows = history.rows()
    names = list(rankwise.named_paths(model))
    assert [(row["record"], row["step"], row["path"]) for row in rows] == [
        (number, step, name) for number, step in enumerate((0, 2, 4)) for name in names
    ]
    for row in rows:
        record = history[row["record"]]
        assert (row["how"], row["score_name"], row["kind"]) == (record.how, "grad_norm", "linear")
        assert row["score"] == record.scores[row["path"]]
        assert row["enabled"] == (row["path"] in record.chosen)
    assert [sum(row["enabled"] for row in rows if row["record"] == number) for number in range(3)] == [2, 2, 2]
    assert rankwise.history(make()).rows() == []


def test_a_history_is_a_data_frame() -> None:
    history = rankwise.history(searched())
    frame = history.to_pandas()
    assert list(frame.columns) == [
        "record",
        "step",
        "how",
        "score_name",
        "path",
        "kind",
        "score",
        "unscored",
        "enabled",
    ]
    assert frame.to_dict("records") == history.rows()
    assert frame[frame.enabled].groupby("record").size().tolist() == [2, 2, 2]
    assert (frame.score.dtype, frame.enabled.dtype) == (float, bool)
    assert len(rankwise.history(make()).to_pandas()) == 0


def cells(shown: str, tag: str) -> list[str]:
    """What the cells of a notebook's table hold; it has to be well-formed."""
    return [cell.text or "" for cell in ElementTree.fromstring(shown).iter(tag)]


def test_a_notebook_shows_a_line_for_each_record() -> None:
    history = rankwise.history(searched())
    shown = history._repr_html_()
    assert cells(shown, "th") == ["step", "how", "paths on", "parameters on", "seconds"]
    found = cells(shown, "td")
    assert [found[number : number + 4] for number in range(0, 15, 5)] == [
        [str(record.step), record.how, "2", str(2 * COST)] for record in history
    ]
    assert [float(seconds) for seconds in found[4::5]] == pytest.approx([each.seconds for each in history], abs=0.006)
    assert len(cells(shown, "tr")) == 1 + len(history)


def test_what_a_notebook_shows_is_escaped() -> None:
    how = "<script>alert('a & b')</script>"
    shown = History([SearchRecord(step=0, search=0, proxy="snip", how=how)])._repr_html_()
    assert "<script" not in shown
    assert cells(shown, "td") == ["0", how, "0", "", "0.00"]
    table = html_table(['<a href="x">', "&"], [["<b>", 'a "quote"']])
    assert cells(table, "th") == ['<a href="x">', "&"]
    assert cells(table, "td") == ["<b>", 'a "quote"']
    assert cells(History()._repr_html_(), "td") == []


def test_a_damaged_history_is_refused_with_its_place(tmp_path: Path) -> None:
    searched().save_pretrained(str(tmp_path))
    file = tmp_path / HISTORY_FILE
    first, *others = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([first, "{}", *others]), encoding="utf-8")
    allocation = json.loads((tmp_path / ALLOCATION).read_text(encoding="utf-8"))
    del allocation["sha256"]  # as it was changed on purpose
    (tmp_path / ALLOCATION).write_text(json.dumps(allocation), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE}, line 2 is not a search or an edit.*lacks a field.*'step'"):
        PeftModel.from_pretrained(tiny_bert(), str(tmp_path))


def test_a_model_of_another_method_is_left_as_it_is(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_bert(), LoraConfig(r=2, target_modules=["query"]))
    assert isinstance(plain, PeftModel)
    with pytest.raises(ValueError, match="enabled_only=True: this model has no rankwise paths"):
        plain.save_pretrained(str(tmp_path), enabled_only=True)
    plain.save_pretrained(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(ValueError, match="no rankwise paths"):
        rankwise.history(plain)


def test_loading_over_an_adapter_takes_its_history_away_too(tmp_path: Path) -> None:
    """A static search would not run again, and LoR2C would not merge, for what was loaded over."""
    fresh = make(mode="static")
    fresh.save_pretrained(str(tmp_path / "fresh"))
    model: Any = searched()
    model.save_pretrained(str(tmp_path / "searched"))
    assert len(rankwise.history(model)) == 3
    model.load_adapter(str(tmp_path / "fresh"), "default", is_trainable=True)
    assert len(rankwise.history(model)) == 0
    model.load_adapter(str(tmp_path / "searched"), "default", is_trainable=True)
    assert len(rankwise.history(model)) == 3


def test_a_model_that_is_trained_by_another_method_than_its_forward_searches_where_it_is_begun_by_hand() -> None:
    """As CLIP is by ``get_text_features``: no forward pass of the model wakes a search."""
    begun: Any = make(search_every=2).train()
    rankwise.Allocator(begun).begin()
    encoder = begun.get_base_model().bert
    optimizer = torch.optim.AdamW([p for p in begun.parameters() if p.requires_grad], lr=0.01)
    for batch in class_batches(4):
        encoder(input_ids=batch["input_ids"]).pooler_output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [record["step"] for record in rankwise.history(begun)] == [2, 4]
    rankwise.detach(begun)
