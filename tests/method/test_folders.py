"""An adapter folder before PEFT reads it: what is vouched for, what is damaged, what is left to others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.method.test_loading import CONFIGS, accept, change_config, load, saved
from tests.models import logits, tiny_bert

from rankwise.method.folders import FREE, check_folder, digests

WEIGHTS, HISTORY = "adapter_model.safetensors", "search_history.jsonl"


def test_a_digest_is_of_a_files_bytes(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / HISTORY).write_bytes(b"one line\n")
    found = digests(tmp_path)
    assert set(found) == {WEIGHTS, HISTORY, "adapter_config.json"}
    for name in (WEIGHTS, HISTORY):
        assert found[name] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert digests(tmp_path / "nowhere") == {}


def test_the_digest_of_the_settings_is_of_what_they_say(tmp_path: Path) -> None:
    """Not of their order, nor of where an adapter is used."""
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings, before = json.loads(file.read_text()), digests(tmp_path)
    for same in (dict(reversed(settings.items())), {**settings, **dict.fromkeys(FREE, "another")}):
        file.write_text(json.dumps(same))
        assert digests(tmp_path) == before
    for name in set(settings) - FREE:
        file.write_text(json.dumps({**settings, name: "another"}))
        assert digests(tmp_path) != before, name


def test_a_folder_is_vouched_for_while_it_has_its_digests(tmp_path: Path) -> None:
    saved(tmp_path)
    assert check_folder(tmp_path)
    accept(tmp_path)
    assert not check_folder(tmp_path)
    (tmp_path / "allocation.json").unlink()  # as a tool leaves it that knows tensors and config only
    assert not check_folder(tmp_path)


def test_what_is_no_adapter_of_this_library_is_not_looked_at(tmp_path: Path) -> None:
    assert not check_folder(tmp_path)
    assert not check_folder(Path("someone/an-adapter-on-the-hub"))
    get_peft_model(tiny_bert(), LoraConfig(r=2, target_modules=["query"])).save_pretrained(str(tmp_path))
    (tmp_path / "allocation.json").write_text("nonsense")
    change_config(tmp_path, r="2")
    assert not check_folder(tmp_path)


def test_a_sealed_file_that_is_gone_or_was_added_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / HISTORY).write_text("\n")
    with pytest.raises(ValueError, match=rf"{HISTORY} is not as it was saved \(its SHA-256 differs\)"):
        check_folder(tmp_path)
    (tmp_path / HISTORY).unlink()
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is missing: copy the adapter again"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("HETEROLRA", "peft_type='HETEROLRA', which is no method that is known here, did you mean 'HETEROLORA'"),
        (3, "peft_type=3, which is no method"),
        (None, "peft_type=None, which is no method"),
        ("x" * 500, "import the package that defines it"),
    ],
)
def test_an_unknown_method_is_named(tmp_path: Path, kind: Any, words: str) -> None:
    saved(tmp_path)
    change_config(tmp_path, peft_type=kind)
    with pytest.raises(ValueError, match=words) as caught:
        check_folder(tmp_path)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_flipped_bit_is_told_and_can_be_accepted(tmp_path: Path, method: str) -> None:
    model = saved(tmp_path, method)
    torch.testing.assert_close(logits(load(tmp_path)), logits(model), rtol=0, atol=0)
    file = tmp_path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not as it was saved.*delete 'sha256' from"):
        load(tmp_path)
    accept(tmp_path)
    load(tmp_path)


def test_settings_are_sealed_and_places_are_not(tmp_path: Path) -> None:
    saved(tmp_path)
    change_config(tmp_path, base_model_name_or_path="elsewhere", revision="main")
    load(tmp_path)
    change_config(tmp_path, lora_alpha=99)
    with pytest.raises(ValueError, match=r"adapter_config\.json is not as it was saved"):
        load(tmp_path)
    accept(tmp_path)
    load(tmp_path)


def test_a_second_save_into_the_same_folder_is_the_one_that_counts(tmp_path: Path) -> None:
    saved(tmp_path)
    model = saved(tmp_path, "lor2c")
    torch.testing.assert_close(logits(load(tmp_path)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("r", "2", "r='2' must be an int"),
        ("r", None, "r=None must be an int"),
        ("r", 2.5, "r=2.5 must be an int"),
        ("lora_alpha", "16", "lora_alpha='16' must be a float"),
        ("lora_dropout", [], "lora_dropout=[] must be a float"),
        ("target_modules", 3, "target_modules=3 must be"),
        ("target_modules", [3], "target_modules=[3] must be"),
        ("rank_pattern", [], "rank_pattern=[] must be a dict"),
        ("shortcuts", "res1", "shortcuts='res1' must be a list of a str"),
        ("shortcuts", [["res1"]], "shortcuts=[['res1']] must be"),
        ("budget", "0.5", "budget='0.5' must be"),
        ("budget", 1.5, "must lie in [0, 1]"),
        ("seed", "x", "seed='x' must be an int"),
        ("modules_to_save", {"a": 1}, "modules_to_save="),
        ("proxy", 3, "proxy=3 must be a str"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(tmp_path: Path, field: str, value: Any, words: str) -> None:
    saved(tmp_path)
    change_config(tmp_path, **{field: value})
    with pytest.raises(ValueError, match=r"adapter_config\.json") as caught:
        load(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"peft_type": 3}', '{"peft_type": "HETEROLRA"}', "{"])
def test_a_config_that_is_none_names_its_file(tmp_path: Path, content: str) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("allocation.json", "[]"),
        ("allocation.json", '{"sha256": 3}'),
        ("allocation.json", '{"sha256": {"adapter_model.safetensors": 3}}'),
        ("search_history.jsonl", "{}\n"),
        ("search_history.jsonl", "nonsense\n"),
    ],
)
def test_what_lies_beside_the_weights_is_named_too(tmp_path: Path, name: str, content: str) -> None:
    saved(tmp_path)
    if name != "allocation.json":
        accept(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(tmp_path)


def test_other_methods_folders_are_left_to_peft(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    plain.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_bert(), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=0, atol=0)
