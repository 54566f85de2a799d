"""Run PEFT's own tests with the configs of this library and compare each outcome with what is expected.

    python tools/peft_suite.py PEFT_FOLDER

PEFT_FOLDER is a checkout, or an unpacked source distribution, of PEFT at the installed version; nothing in it is
changed. Its tests run with HeteroLoRA (every path on; searching after every step) and LoR2C in the place of LoRA
(``peft_plugin.py``), on tiny random models in the place of the hub's (``peft_models.py``). A test that fails runs
again with plain LoRA: what fails there too says nothing about this library. Each outcome is compared with
``peft_expected.json``, whose rules name tests that are refused, or differ, and why; every other test has to pass.
Writes docs/peft-tests.md; exits with 1 where an outcome is not the expected one. What PEFT's tests import has to be
installed: ``pip install diffusers parameterized``.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from peft_models import fill_cache

from rankwise.files import write_text_atomic

HERE = Path(__file__).resolve().parent
FILES = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
    "test_config.py",
    "test_tuners_utils.py",
    "test_initialization.py",
)
VARIANTS = {
    "off": '`HeteroLoraConfig(mode="off")`: every path is on',
    "dynamic": "`HeteroLoraConfig(mode='dynamic', budget=1.0, search_every=1)`: a search after every step, with a budget for every "
    "path (most of PEFT's models have one)",
    "lor2c": "`Lor2cConfig()`, in the tests that PEFT runs for a list of configs",
}
VERDICTS = ("passed", "refused", "differs", "skipped", "not here", "unexpected")
Outcomes = dict[str, tuple[str, str]]  # by test: how it ended, and in which words


@dataclass(frozen=True)
class Rule:
    """What is expected of some tests.

    Args:
        tests: Glob over ``variant/file::class::test[row]``.
        says: Regular expression that the error has to match.
        outcome: ``"refused"``, or ``"differs"`` where PEFT's test expects what this library does otherwise.
        reason: Why.
    """

    tests: str
    says: str
    outcome: str
    reason: str

    def covers(self, test: str, outcome: str, words: str) -> bool:
        """Tell whether an outcome is the expected one."""
        ended = outcome == "refused" or self.outcome == "differs"
        return ended and fnmatchcase(test, self.tests) and re.search(self.says, words) is not None


@dataclass(frozen=True)
class Setup:
    """What is run.

    Args:
        checkout: PEFT's source.
        cache: The hub cache.
        folder: Where the outcomes lie; those that are there already are taken.
        files: The test files.
        every: Run every n-th test only.
    """

    checkout: Path
    cache: Path
    folder: Path
    files: Sequence[str]
    every: int


def main() -> int:
    """Run, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peft", type=Path, help="PEFT's source folder at the installed version")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "peft-tests.md")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--every", type=int, default=1, help="run every n-th test only, for a quick look")
    parser.add_argument("--outcomes", type=Path, help="keep, and take up, the outcomes in this folder")
    given = parser.parse_args()
    checkout = given.peft.resolve()
    check(checkout)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.outcomes or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        setup = Setup(checkout, Path(scratch) / "hub", folder, given.files, given.every)
        fill_cache(setup.cache)
        found = {variant: run(setup, variant) for variant in given.variants}
        rules = [Rule(**rule) for rule in json.loads((HERE / "peft_expected.json").read_text(encoding="utf-8"))]
        verdicts = judge(found, {}, rules)
        suspects = {test.partition("/")[2] for test, (verdict, _) in verdicts.items() if verdict == "unexpected"}
        control = run(setup, "lora", sorted(suspects)) if suspects else {}
    verdicts = judge(found, control, rules)
    write_text_atomic(given.out, report(verdicts, given.every))
    unexpected = [(test, words) for test, (verdict, words) in verdicts.items() if verdict == "unexpected"]
    for test, words in unexpected:
        print(f"{test}\n    {words}")
    print(f"{given.out}: {len(verdicts)} tests, {len(unexpected)} unexpected")
    return 1 if unexpected else 0


BROKEN = ("failed", "refused")


def check(checkout: Path) -> None:
    """Refuse another version of PEFT, and a machine without what its tests import.

    Raises:
        SystemExit: Says what to change.
    """
    source = checkout / "src" / "peft" / "__init__.py"
    if not source.is_file():
        raise SystemExit(f"{checkout} has no src/peft/__init__.py: give the folder of PEFT's source")
    lines = ast.parse(source.read_text(encoding="utf-8")).body
    values = [
        line.value for line in lines if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__version__"
    ]
    there, here = ast.literal_eval(values[0]), version("peft")
    if there != here:
        raise SystemExit(f"{checkout} is PEFT {there}, and {here} is installed: give the source of {here}")
    missing = [name for name in ("diffusers", "parameterized") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"PEFT's tests import {', '.join(missing)}: pip install {' '.join(missing)}")


def run(setup: Setup, variant: str, only: Sequence[str] = ()) -> Outcomes:
    """Run PEFT's tests with a variant, or with ``"lora"``; all of them, or only some."""
    outcomes = setup.folder / f"{variant}.jsonl"
    if not outcomes.exists():
        files = [f"tests/{name}" for name in setup.files]
        options = ["-p", "peft_plugin", "-p", "no:cacheprovider", "-q", "--tb=no", "-W", "ignore"]
        options += ["--import-mode=importlib", "-o", "consider_namespace_packages=true", "-o", "addopts="]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_CACHE": str(setup.cache),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(setup.checkout), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RANKWISE_VARIANT": variant,
            "RANKWISE_OUTCOMES": str(outcomes),
            "RANKWISE_EVERY": str(1 if only else setup.every),
            "RANKWISE_ONLY": json.dumps(only),
        }
        command = [sys.executable, "-m", "pytest", *files, *options]
        subprocess.run(command, cwd=setup.checkout, env={**os.environ, **environment}, check=False)
        if not outcomes.exists():
            raise SystemExit(f"pytest did not get through with {variant!r}: see above")
    lines = map(json.loads, outcomes.read_text(encoding="utf-8").splitlines())
    return {test: (outcome, words) for test, outcome, words in lines}


def judge(found: Mapping[str, Outcomes], control: Outcomes, rules: Sequence[Rule]) -> dict[str, tuple[str, str]]:
    """Return the verdict on each test, ``variant/file::class::test[row]``, and its reason."""
    verdicts: dict[str, tuple[str, str]] = {}
    for variant, outcomes in found.items():
        for test, (outcome, words) in outcomes.items():
            key = f"{variant}/{test}"
            rule = next((rule for rule in rules if rule.covers(key, outcome, words)), None)
            if outcome not in BROKEN:
                verdicts[key] = (outcome, "")
            elif rule is not None:
                verdicts[key] = (rule.outcome, rule.reason)
            else:
                fails_anyway = control.get(test, ("", ""))[0] == "failed"
                verdicts[key] = ("not here", "") if fails_anyway else ("unexpected", words)
    return verdicts


def report(verdicts: Mapping[str, tuple[str, str]], every: int = 1) -> str:
    """Return the page: a table of counts for each variant, and the reasons."""
    share = "The tests" if every == 1 else f"Every {every}th of the tests"
    lines = [
        "# PEFT's own tests",
        "",
        f"{share} of PEFT {version('peft')} with the configs of this library in the place of `LoraConfig`, on tiny "
        "random models of the hub models' families. Written by `python tools/peft_suite.py PEFT_FOLDER`.",
        "",
        "*Refused*: rankwise raises a `ValueError` that says what to do instead. *Differs*: the test expects what is "
        "done otherwise here, on purpose. *Not here*: the test fails with plain LoRA too where this was run (no "
        "network, random models). The reasons are below.",
    ]
    for variant, words in VARIANTS.items():
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for test, (verdict, _) in verdicts.items():
            if test.startswith(f"{variant}/"):
                counts[test.partition("/")[2].partition("::")[0]][verdict] += 1
        if counts:
            lines += ["", f"## {words}", "", f"| file | tests | {' | '.join(VERDICTS)} |", "|---|" + "---|" * 7]
            lines += [_row(name, count) for name, count in counts.items()]
            lines.append(_row("all", sum(counts.values(), Counter())))
    reasons = Counter((verdict, reason) for verdict, reason in verdicts.values() if reason and verdict != "unexpected")
    lines += ["", "## Reasons", "", "| outcome | tests | why |", "|---|---|---|"]
    lines += [f"| {verdict} | {count} | {reason} |" for (verdict, reason), count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def _row(name: str, counts: Counter[str]) -> str:
    return f"| {name} | {counts.total()} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |"


if __name__ == "__main__":
    sys.exit(main())
