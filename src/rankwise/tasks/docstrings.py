"""English text that every Python carries: the standard library's docstrings, labelled by the part they are from.

The modules are parsed (``ast``), never imported. Groups are wide enough that CPython 3.10 to 3.14 fill them all, and
hold no module that some systems leave out (tkinter, turtle, idlelib, test, ensurepip).
"""

from __future__ import annotations

import ast
import random
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The groups name modules and packages; one that a Python does not have (yet, or any more) is passed over.
GROUPS: dict[str, tuple[str, ...]] = {
    "concurrency": (
        *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "selectors", "signal", "subprocess"),
        *("threading", "_threading_local"),
    ),
    "data formats": (
        *("configparser", "csv", "dbm", "html", "json", "_markupbase", "pickle", "pickletools", "plistlib"),
        *("shelve", "tomllib", "xml", "xmlrpc", "copyreg"),
    ),
    "files": (
        *("bz2", "filecmp", "fileinput", "fnmatch", "genericpath", "glob", "gzip", "lzma", "ntpath", "os"),
        *("pathlib", "posixpath", "shutil", "stat", "tarfile", "tempfile", "zipfile"),
    ),
    "imports": (
        *("compileall", "importlib", "modulefinder", "pkgutil", "py_compile", "runpy", "site", "sysconfig"),
        *("venv", "zipapp", "zipimport"),
    ),
    "introspection": (
        *(
            "abc",
            "ast",
            "contextlib",
            "dataclasses",
            "dis",
            "enum",
            "functools",
            "inspect",
            "pyclbr",
            "pydoc",
        ),
        *("symtable", "tokenize", "types", "typing"),
    ),
    "logging and options": (
        *("argparse", "cmd", "code", "getopt", "gettext", "logging", "optparse", "platform", "traceback"),
        "warnings",
    ),
    "mail": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "network": ("ftplib", "http", "ipaddress", "socket", "socketserver", "ssl", "urllib", "wsgiref"),
    "numbers": (
        *(
            "bisect",
            "colorsys",
            "decimal",
            "_pydecimal",
            "fractions",
            "heapq",
            "numbers",
            "_pylong",
            "random",
        ),
        "statistics",
    ),
    "testing": (
        *(
            "bdb",
            "cProfile",
            "doctest",
            "pdb",
            "profile",
            "pstats",
            "timeit",
            "trace",
            "tracemalloc",
            "unittest",
        ),
    ),
    "text": (
        *("base64", "codecs", "difflib", "encodings", "locale", "pprint", "_pyio", "quopri", "re", "reprlib"),
        *("shlex", "string", "stringprep", "textwrap"),
    ),
}
SHORTEST = 30  # characters; below, a docstring names no topic


class Docstring(NamedTuple):
    """A docstring, white space collapsed, with the group and the file (relative to the library) it comes from."""

    text: str
    group: str
    file: str


def find_docstrings(root: str | Path | None = None) -> list[Docstring]:
    """Return the docstrings of all groups, each text once, in the order of groups and files.

    A text that two groups share is left out of both; within a group its first place counts.

    Args:
        root: The folder of the library; by default the running Python's.
    """
    library = Path(root or sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    shared: set[str] = set()
    for group, modules in GROUPS.items():
        for file in _source_files(library, modules):
            for text in _docstrings_of(file):
                first = found.setdefault(text, Docstring(text, group, file.relative_to(library).as_posix()))
                if first.group != group:
                    shared.add(text)
    return [docstring for text, docstring in found.items() if text not in shared]


def split_docstrings(
    docstrings: list[Docstring],
    *,
    train: int = 240,
    dev: int = 24,
    test: int = 60,
    held_out_files: bool = False,
    seed: int = 0,
) -> dict[str, list[Docstring]]:
    """Draw disjoint ``train``, ``dev`` and ``validation`` splits, every group equally often in each.

    Args:
        docstrings: What ``find_docstrings`` returns.
        train: Docstrings per group to train on.
        dev: Docstrings per group to choose the epoch by; they come from the same files as ``train``.
        test: Docstrings per group to report on.
        held_out_files: Report on files of which nothing is trained on (harder: each file has its own words).
        seed: Of the draw; for one Python version the same seed gives the same splits.

    Raises:
        ValueError: A group is too small for the numbers asked for.
    """
    splits: dict[str, list[Docstring]] = {"train": [], "dev": [], "validation": []}
    for group in GROUPS:
        pool = [docstring for docstring in docstrings if docstring.group == group]
        if len(pool) < train + dev + test:
            raise ValueError(
                f"group {group!r} of the standard library has {len(pool)} docstrings here, {train + dev + test} are "
                f"asked for ({train} train, {dev} dev, {test} test): ask for fewer per group, or use a Python whose "
                "library has its .py files"
            )
        draw = random.Random(f"{seed} {group}")
        held_out = _hold_out_files(pool, test, keep=train + dev, draw=draw) if held_out_files else pool
        reported = draw.sample(held_out, test)
        away = set(held_out) if held_out_files else set(reported)
        rest = draw.sample([docstring for docstring in pool if docstring not in away], train + dev)
        splits["validation"] += reported
        splits["train"] += rest[:train]
        splits["dev"] += rest[train:]
    return splits


def _hold_out_files(pool: list[Docstring], wanted: int, *, keep: int, draw: random.Random) -> list[Docstring]:
    """Take whole files, in random order, until ``wanted`` docstrings are out; ``keep`` stay in any case.

    An order can fail where another doesn't (one file may hold half of a group), so several are tried.
    """
    by_file: dict[str, list[Docstring]] = {}
    for docstring in pool:
        by_file.setdefault(docstring.file, []).append(docstring)
    for _ in range(100):
        out: list[Docstring] = []
        for file in draw.sample(sorted(by_file), len(by_file)):
            if len(out) < wanted and len(pool) - len(out) - len(by_file[file]) >= keep:
                out += by_file[file]
        if len(out) >= wanted:
            return out
    raise ValueError(
        f"group {pool[0].group!r} has no set of whole files with {wanted} docstrings that leaves {keep} of its "
        f"{len(pool)} to train on: ask for fewer per group, or set held_out_files=False"
    )


def _source_files(library: Path, modules: tuple[str, ...]) -> Iterator[Path]:
    for module in modules:
        if (library / f"{module}.py").is_file():
            yield library / f"{module}.py"
        for file in sorted((library / module).rglob("*.py")):
            if not {"test", "tests"} & set(file.relative_to(library).parts):
                yield file


def _docstrings_of(file: Path) -> Iterator[str]:
    with tokenize.open(file) as source:
        tree = ast.parse(source.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) >= SHORTEST:
                yield text
