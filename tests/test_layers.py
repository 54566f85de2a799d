"""The house rules that a reader can check by reading: who imports whom, how long things are, what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "rankwise"

# Lowest first. A module may import its own layer and those below. "" is the public surface, rankwise/__init__.py.
LAYERS: list[set[str]] = [
    {"errors", "fields", "files", "seeds", "notebook", "distributed", "passes"},
    {"rules"},
    {"configs"},
    {"paths", "wiring"},
    {"method"},
    {"edits", "scores", "report"},
    {"search", "planning", "prefix"},
    {""},
    {"baselines", "tasks"},
    {"runs.recipes"},
    {"runs.folder", "runs.checkpoints", "runs.progress"},
    {"runs.building"},
    {"runs.training"},
    {"runs", "evaluation"},
    {"study"},
    {"cli"},
]
PURE = ("errors", "fields", "files", "seeds", "notebook", "passes", "rules")  # free of torch

# A third-party name, and the only places that may import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "torch.distributed": ("distributed",),
    "peft.*": ("method", "paths", "wiring", "baselines"),  # anything but PEFT's public names
    "matplotlib": ("report",),
    "plotly": ("report",),
    "typer": ("cli",),
    "lm_eval": ("evaluation.harness",),
    "optuna": ("study.queue",),
    "ray": ("study.on_ray",),
    "trl": ("runs.building.instruction", "tasks.chat", "tasks.packing"),
}

CLI = sorted((ROOT / "src").glob("rankwise_*.py"))
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *CLI]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def module_name(file: Path) -> str:
    """Dotted name below ``rankwise``; the package itself is the empty string, the command line beside it ``cli``."""
    if file in CLI:
        return "cli"
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file) for file in SOURCES}


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, at whatever depth, and of uses of ``torch.distributed``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the full name instead of a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield node.lineno, "torch.distributed"


def inside(name: str, prefixes: set[str] | tuple[str, ...]) -> bool:
    """Whether ``name`` is one of the dotted prefixes or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def own_module(name: str) -> str:
    """The module of ours that a dotted import name means: ``rankwise.paths.low_rank.X`` is ``paths.low_rank``."""
    below = name.split(".")[1:]
    while below and ".".join(below) not in MODULES:
        below.pop()
    return ".".join(below)


def layer(module: str) -> int:
    """Index of a module's layer; the longest name that a layer lists decides."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        for index, members in enumerate(LAYERS):
            if ".".join(parts[:end]) in members:
                return index
    raise AssertionError(f"{module} has no layer: add it to LAYERS")


def forbidden(importer: str, name: str) -> str | None:
    """Why ``importer`` may not import the dotted ``name``, or None."""
    if inside(name, ("rankwise",)):
        target = own_module(name)
        return f"{target or 'rankwise'} lies in a higher layer" if layer(target) > layer(importer) else None
    if inside(importer, PURE) and inside(name, ("torch", "transformers", "peft", "accelerate")):
        return "this module is pure"
    for rule, homes in ONLY_IN.items():
        internal = rule == "peft.*" and name.startswith("peft.") and name.count(".") > 1
        if (internal or inside(name, (rule,))) and not inside(importer, homes):
            return f"only {', '.join(homes)} may import it"
    return None


def violations(importer: str, source: str) -> list[str]:
    """Every forbidden import of a module's source, as ``line N: name (reason)``."""
    found = []
    for line, name in imported(ast.parse(source)):
        reason = forbidden(importer, name)
        if reason:
            found.append(f"line {line}: {name} ({reason})")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=module_name)
def test_a_module_imports_only_its_own_layer_and_lower_ones(file: Path) -> None:
    assert violations(module_name(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("configs.lor2c", "from rankwise.method.tuner import HeteroLoraModel"),
        ("method.tuner", "def late():\n    from rankwise.runs.training import train"),
        ("paths.gate", "from rankwise.search.allocator import Allocator"),
        ("paths", "import rankwise"),
        ("rules.budget", "import torch"),
        ("rules.edits", "from rankwise.edits import apply_"),
        ("errors", "from rankwise.configs.heterolora import HeteroLoraConfig"),
        ("search", "import torch.distributed as dist"),
        ("runs.training.train", "from torch import distributed"),
        ("runs.training.train", "import torch\ntorch.distributed.barrier()"),
        ("runs.training.train", "from peft.utils import get_peft_model_state_dict"),
        ("runs.training.train", "import peft.tuners.lora"),
        ("runs.training.train", "import matplotlib.pyplot as plt"),
        ("runs.training.train", "import typer"),
    ],
)
def test_the_rules_catch_what_they_forbid(importer: str, source: str) -> None:
    assert len(violations(importer, source)) == 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("cli", "import rankwise\nfrom rankwise.runs.training.train import train"),
        ("runs.training.train", "from peft import LoraConfig\nimport rankwise"),
        ("method.tuner", "from peft.tuners.lora import LoraModel\nfrom rankwise.rules.budget import spend"),
        ("report.heatmap", "import matplotlib.pyplot as plt"),
        ("distributed", "import torch.distributed as dist"),
    ],
)
def test_the_rules_allow_what_the_design_allows(importer: str, source: str) -> None:
    assert violations(importer, source) == []


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring aside."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    return lines - len((ast.get_docstring(node, clean=False) or "").splitlines())


@pytest.mark.parametrize("file", SOURCES + TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {node.name: length(node) for node in functions if length(node) > 60}
    assert too_long == {}, "a function has at most 60 lines"
    assert len(source.splitlines()) <= 400, "a file has at most 400 lines: split it by idea"


# "" is for what lies beside the folders of src/rankwise.
FOLDERS = {"", *(file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*/*.py"))}


def namesake(file: Path) -> Path:
    """Where the tests of a source file lie: ``src/rankwise/a/b.py`` has ``tests/a/test_b.py``."""
    return ROOT / "tests" / file.relative_to(PACKAGE).with_name(f"test_{file.name}")


def without_namesake(folder: str) -> list[str]:
    """Return the source files of a folder, and of those in it, that have no tests of their own."""
    files = (PACKAGE / folder).rglob("*.py") if folder else PACKAGE.glob("*.py")
    sources = [file for file in files if file.name != "__init__.py"]
    return sorted(str(file.relative_to(ROOT)) for file in sources if not namesake(file).is_file())


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_source_file_has_its_tests_in_the_same_place(folder: str) -> None:
    assert without_namesake(folder) == [], "a source file a/b.py has its tests in tests/a/test_b.py"


def test_the_public_surface_is_short_and_complete() -> None:
    import rankwise

    assert len(rankwise.__all__) <= 25
    assert len(set(rankwise.__all__)) == len(rankwise.__all__)
    assert [name for name in rankwise.__all__ if name not in vars(rankwise)] == []
