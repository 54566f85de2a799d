from __future__ import annotations

import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rankwise.tasks import DataSpec, load_docstrings, load_task
from rankwise.tasks.docstrings import GROUPS, SHORTEST, Docstring, find_docstrings, split_docstrings

FOUND = find_docstrings()


def test_eleven_groups_without_modules_that_some_systems_leave_out() -> None:
    modules = [module for group in GROUPS.values() for module in group]
    assert len(GROUPS) == 11
    assert len(modules) == len(set(modules))
    assert not {"tkinter", "turtle", "turtledemo", "idlelib", "test", "lib2to3", "distutils"} & set(modules)


def test_every_group_is_large_enough_and_no_text_is_there_twice() -> None:
    assert min(Counter(each.group for each in FOUND).values()) >= 240 + 24 + 60
    assert len({each.text for each in FOUND}) == len(FOUND)
    assert all(len(each.text) >= SHORTEST for each in FOUND)
    assert all((Path(sysconfig.get_path("stdlib")) / each.file).is_file() for each in FOUND[::50])


@pytest.mark.slow
def test_reading_imports_no_module() -> None:
    before = set(sys.modules)
    assert find_docstrings() == FOUND
    assert set(sys.modules) == before


def test_a_text_of_two_groups_is_left_out_of_both(tmp_path: Path) -> None:
    shared = '"""A text that both of the files have."""\n'
    (tmp_path / "csv.py").write_text(shared)
    (tmp_path / "os.py").write_text(shared + '\ndef f():\n    """A text of  its own,\n    over two lines."""\n')
    assert find_docstrings(tmp_path) == [Docstring("A text of its own, over two lines.", "files", "os.py")]


@pytest.mark.parametrize("held_out_files", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_are_balanced_disjoint_and_repeatable(held_out_files: bool, seed: int) -> None:
    splits = split_docstrings(FOUND, held_out_files=held_out_files, seed=seed)
    for split, size in {"train": 240, "dev": 24, "validation": 60}.items():
        assert Counter(each.group for each in splits[split]) == dict.fromkeys(GROUPS, size)
    texts = [each.text for split in splits.values() for each in split]
    assert len(texts) == len(set(texts))
    assert splits == split_docstrings(FOUND, held_out_files=held_out_files, seed=seed)
    seen = {each.file for split in ("train", "dev") for each in splits[split]}
    assert bool({each.file for each in splits["validation"]} & seen) is not held_out_files


def test_a_group_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match=r"group 'concurrency' .* has \d+ docstrings here, 10084 are asked for"):
        split_docstrings(FOUND, train=10_000)
    one_file = [Docstring(f"{group} {number}", group, f"{group}.py") for group in GROUPS for number in range(324)]
    with pytest.raises(ValueError, match="no set of whole files with 60 docstrings that leaves 264 of its 324"):
        split_docstrings(one_file, held_out_files=True)


@pytest.mark.slow
def test_they_load_as_a_task(bert_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.tasks.load.find_docstrings", lambda: FOUND)
    data = load_docstrings(bert_tokenizer, max_length=64)
    assert data.dev is not None
    assert data.validation is not None
    assert (len(data.train), len(data.dev), len(data.validation)) == (11 * 240, 11 * 24, 11 * 60)
    assert (data.kind, data.num_labels, data.label_names) == ("classification", 11, tuple(GROUPS))
    same = load_task(DataSpec(task="docstrings", max_length=64), bert_tokenizer)
    assert same.train.to_dict() == data.train.to_dict()
    assert load_docstrings(bert_tokenizer, dev=0, max_length=64).dev is None
