"""A study whose runs take a second: a tiny random model and made-up rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.runs.dryrun import stand_in
from rankwise.runs.recipes.reading import merged
from rankwise.runs.recipes.recipe import parse_recipe

LORA = {"name": "lora", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
Write = Callable[..., Path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A recipe on stand-ins for RoBERTa and MRPC."""
    content = {"model": {"name": "FacebookAI/roberta-base"}, "data": {"task": "mrpc"}, "method": LORA}
    small = stand_in(parse_recipe(content), tmp_path / "room").to_dict()
    shape = {"max_steps": 4, "evaluate": "never", "report_to": [], "learning_rate": 1e-2}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(merged(small, {"training": shape, "select": "last"})))
    return path


@pytest.fixture
def write(base: Path) -> Write:
    """Writes a study of two arms, changed as asked: ``write(axes={...})``."""

    def study(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "base": base.name,
            "arms": {"four": {}, "two": {"method.r": 2}},
            "rates": {"from": 1e-2, "to": 4e-2, "factor": 2},
            "seeds": {"choose": [0, 1], "report": [10, 11]},
        }
        path = base.with_name("study.yaml")
        path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return path

    return study
