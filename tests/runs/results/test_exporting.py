from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel

from rankwise.runs.building.models import load_base
from rankwise.runs.folder import RunFolder
from rankwise.runs.progress import quiet
from rankwise.runs.recipes.recipe import Recipe
from rankwise.runs.results.exporting import export_run
from rankwise.runs.training.train import train

Make = Callable[..., Recipe]


def test_the_plain_adapter_gives_the_same_logits(make: Make, tmp_path: Path) -> None:
    result = train(make("heterolora"), tmp_path / "run")
    out = export_run(tmp_path / "run", tmp_path / "plain")
    kind = PeftConfig.from_pretrained(str(out)).peft_type
    assert getattr(kind, "value", kind) == "LORA"
    recipe, found = RunFolder(result.out).recipe(), result.metrics
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = []
    with quiet(), torch.no_grad():
        for adapter in (result.out / "adapter", out):
            base = load_base(recipe, task_type=found["task_type"], arguments=found["model_arguments"])
            logits.append(PeftModel.from_pretrained(base, str(adapter)).eval()(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-6, atol=1e-7)


def test_what_cannot_be_exported(make: Make, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        export_run(tmp_path, tmp_path / "plain")
    train(make("lora", training={"max_steps": 2}), tmp_path / "lora")
    with pytest.raises(ValueError, match="a plain LoRA adapter already"):
        export_run(tmp_path / "lora", tmp_path / "plain")
    train(make("heterolora", training={"max_steps": 2}), tmp_path / "run")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="holds an adapter already"):
        export_run(tmp_path / "run", tmp_path / "plain")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        export_run(tmp_path / "run", tmp_path / "other")
