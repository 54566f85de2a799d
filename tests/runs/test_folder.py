from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.recipe import Recipe, parse_recipe


def recipe(**changes: int) -> Recipe:
    method = {"name": "lora", "r": 4, "lora_alpha": 8}
    return parse_recipe({"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": method, **changes})


@pytest.mark.parametrize("part", ["config.yaml", "metrics.json", "search_history.jsonl", "evaluation.json"])
def test_any_part_of_a_run_stops_a_new_one(tmp_path: Path, part: str) -> None:
    (tmp_path / part).write_text("x")
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="already holds a run: say --resume to continue it, --overwrite"):
        folder.check(recipe(), resume=False, overwrite=False)
    folder.check(recipe(), resume=False, overwrite=True)


def test_other_files_neither_stop_a_run_nor_go(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    folder = RunFolder(tmp_path)
    folder.start(recipe())
    folder.settle()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "notes.txt"]
    assert folder.recipe() == recipe()


def test_a_start_that_is_withdrawn_or_killed_brings_the_earlier_run_back(tmp_path: Path) -> None:
    def content() -> dict[str, str]:
        return {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}

    folder = RunFolder(tmp_path)
    folder.start(recipe())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("old")
    (tmp_path / "metrics.json").write_text("{}")
    folder.settle()
    before = content()
    folder.start(recipe(seed=1))
    (tmp_path / "tensorboard").mkdir()
    folder.withdraw()
    assert content() == before
    folder.start(recipe(seed=1))  # killed after this
    RunFolder(tmp_path).start(recipe(seed=2))
    folder.withdraw()
    assert content() == before
    (tmp_path / ".replaced").mkdir()  # killed while it was moving the earlier run
    (tmp_path / "config.yaml").rename(tmp_path / ".replaced" / "config.yaml")
    RunFolder(tmp_path).start(recipe(seed=2))
    folder.withdraw()
    assert content() == before


def test_resume_needs_a_run_with_the_same_recipe(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no run: config\.yaml is missing"):
        folder.check(recipe(), resume=True, overwrite=False)
    folder.start(recipe())
    folder.check(recipe(), resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"another recipe.*: seed \(there 0, now 3\)"):
        folder.check(recipe(seed=3), resume=True, overwrite=False)
    with pytest.raises(ValueError, match="say one of them"):
        folder.check(recipe(), resume=True, overwrite=True)


def test_a_run_of_version_0_1_goes_on_with_the_search_it_began(tmp_path: Path) -> None:
    written = {"model": {"name": "m"}, "data": {"task": "mrpc"}, "method": {"name": "heterolora", "budget": 0.5}}
    folder = RunFolder(tmp_path)
    folder.config.write_text(yaml.safe_dump(written))
    assert folder.recipe().method.options == {"budget": 0.5, "mode": "dynamic"}
    folder.check(folder.recipe(), resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"method\.mode \(there 'dynamic', now 'static'\)"):
        folder.check(parse_recipe(written), resume=True, overwrite=False)
    folder.start(parse_recipe(written))
    assert folder.recipe().method.options == {"budget": 0.5, "mode": "static", "granularity": "rank"}


def test_figures_of_an_unfinished_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        folder.figures()
    folder.start(recipe())
    with pytest.raises(ValueError, match="is not finished: continue it"):
        folder.figures()
