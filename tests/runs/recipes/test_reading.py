from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.runs.recipes.reading import flat, merged, parse_yaml, read_yaml, with_overrides


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E3", 2000.0), ("-1.5e-2", -0.015), ("1.e+2", 100.0), ("3", 3), ("e4", "e4")]
)
def test_scientific_numbers_are_numbers(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}", "here")["x"]
    assert found == value
    assert type(found) is type(value)


def test_broken_yaml_names_its_origin() -> None:
    with pytest.raises(ValueError, match=r"here is not valid YAML: .*line 1"):
        parse_yaml("a: [1", "here")


def test_python_objects_are_not_read() -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.getcwd []", "here")


def test_a_base_lies_underneath(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text("a: {x: 1, y: 2}\nlist: [1, 2]\n")
    (tmp_path / "middle.yaml").write_text("base: root.yaml\na: {y: 3}\n")
    (tmp_path / "deep" / "leaf.yaml").write_text("base: ../middle.yaml\na: {z: 4}\nlist: [5]\n")
    assert read_yaml(tmp_path / "deep" / "leaf.yaml") == {"a": {"x": 1, "y": 3, "z": 4}, "list": [5]}


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match=r"is its own base: a\.yaml -> b\.yaml -> a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        read_yaml(tmp_path / "nope.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds list, not a mapping"):
        read_yaml(tmp_path / "list.yaml")


def test_overrides_are_read_as_yaml_and_leave_the_original_alone() -> None:
    given = {"a": {"x": 1}}
    found = with_overrides(given, ["a.y=1e-3", "a.list=[p, q]", "b.c.d=true", "a.x="])
    assert found == {"a": {"x": None, "y": 1e-3, "list": ["p", "q"]}, "b": {"c": {"d": True}}}
    assert given == {"a": {"x": 1}}


@pytest.mark.parametrize(
    ("override", "words"),
    [("a.x", "must look like key=value"), ("=3", "must look like key=value"), ("a.x.z=3", "a.x is 1, not a section")],
)
def test_overrides_that_lead_nowhere_are_refused(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_overrides({"a": {"x": 1}}, [override])


def test_merging_and_flattening() -> None:
    assert merged({"a": {"b": 1}, "c": 2}, {"a": 3}) == {"a": 3, "c": 2}
    assert flat({"a": {"b": 1, "e": {}}, "c": [2]}) == {"a.b": 1, "a.e": {}, "c": [2]}
