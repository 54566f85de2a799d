"""The runs below a folder, and what each has to say at a glance, finished or not."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.files import read_json_object
from rankwise.method.folders import ALLOCATION
from rankwise.runs.checkpoints import MANIFEST, STATE, checkpoints, step_of
from rankwise.runs.folder import RunFolder
from rankwise.runs.recipes.reading import read_yaml
from rankwise.runs.training.metrics import dev_by_epoch

FINISHED, UNFINISHED, FAILED, DAMAGED = "finished", "unfinished", "failed", "damaged"
UNREADABLE = (FAILED, DAMAGED)  # states without figures
ERROR = "error.txt"  # what a study leaves in the folder of a run that failed
PLAN, DEPTH = "study.json", 3  # a study's own file, and how far below it a run is at most
CHOSEN = ("last", "dev_selected")
REMEDY = "delete it, or copy it again"

Splits = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run in one line.

    Args:
        name: Its folder, relative to the one that was asked about.
        folder: Its folder.
        state: ``finished``, ``unfinished``, ``failed`` (a study's run that ended in an error) or ``damaged``.
        note: How far it came, or what is wrong.
        method: The method's name.
        model: The base model.
        task: The task, or the training file.
        seed: Its seed.
        budget: What the method's config calls budget, where it has one.
        learning_rate: The rate.
        parameters: Adapter parameters that train (at the end).
        head: Parameters of the head.
        headline: The metric that picks the checkpoint.
        step: The last step that is known.
        steps: The steps it was to make, where that is known.
        seconds: Seconds of training.
        search_share: The share of them that went into searches and edits.
        figures: Metrics by checkpoint (``last``, ``dev_selected``) and split.
    """

    name: str
    folder: Path
    state: str
    note: str = ""
    method: str = ""
    model: str = ""
    task: str = ""
    seed: int | None = None
    budget: float | int | None = None
    learning_rate: float | None = None
    parameters: int | None = None
    head: int | None = None
    headline: str | None = None
    step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    search_share: float | None = None
    figures: dict[str, Splits] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {**vars(self), "folder": str(self.folder)}


def find_runs(place: str | Path) -> list[RunFolder]:
    """Return the runs in a folder and below it, by name; what lies inside a run is part of it.

    A folder is a run if its ``config.yaml`` is a recipe, that is, has a model and a method; or if a study left the
    error of a run there.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    root = Path(place)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give a run folder, or a folder with runs in it")
    found = []
    for folder, inside, _ in os.walk(root):
        run = RunFolder(Path(folder))
        if _is_run(run):
            found.append(run)
            inside.clear()
        else:
            inside[:] = sorted(name for name in inside if not name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"{root} holds no run and no folder in it does: a run has a config.yaml, which rankwise train writes"
        )
    return found


def _is_run(run: RunFolder) -> bool:
    if not run.config.is_file():
        return (run.root / ERROR).is_file() and _in_study(run.root)
    try:
        content = read_yaml(run.config)
    except (ValueError, OSError):  # its base may be gone
        return True  # a damaged one is told of, not passed over
    return "model" in content and "method" in content


def _in_study(folder: Path) -> bool:
    return any((parent / PLAN).is_file() for parent in list(folder.absolute().parents)[:DEPTH])


def only_figures(place: str | Path) -> bool:
    """Return whether a folder is a study's of which the runs' figures are kept and no run."""
    root = Path(place)
    return (root / PLAN).is_file() and next(root.rglob("config.yaml"), None) is None


def name_of(run: RunFolder, root: Path) -> str:
    """Return a run's folder relative to the one that was asked about, or its own name."""
    try:
        relative = run.root.resolve().relative_to(root.resolve())
    except ValueError:
        return run.root.name
    return relative.as_posix() if relative.parts else run.root.resolve().name


def summarise(run: RunFolder, root: Path) -> Summary:
    """Return what a run has to say; what is wrong with a damaged one stands in its note."""
    name = name_of(run, root)
    if not run.finished and (run.root / ERROR).is_file():
        said = (run.root / ERROR).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Summary(name=name, folder=run.root, state=FAILED, note=said[-1] if said else "no error was kept")
    try:
        told = _recipe(run)
        told |= _finished(run) if run.finished else _unfinished(run)
    except (ValueError, OSError) as error:
        return Summary(name=name, folder=run.root, state=DAMAGED, note=str(error))
    except (KeyError, TypeError, AttributeError) as error:  # no run of ours looks like that
        return Summary(name=name, folder=run.root, state=DAMAGED, note=f"no file of a run looks like that ({error!r})")
    return Summary(name=name, folder=run.root, **told)


def _recipe(run: RunFolder) -> dict[str, Any]:
    content = read_yaml(run.config)
    method, data, training = content["method"], content.get("data") or {}, content.get("training") or {}
    steps = training.get("max_steps", -1)
    return {
        "method": method["name"],
        "model": content["model"]["name"],
        "task": data.get("task") or Path(str(data.get("train_file") or data.get("dataset") or "")).name,
        "seed": content.get("seed", 0),
        "budget": method.get("budget"),
        "learning_rate": training.get("learning_rate"),
        "steps": steps if steps > 0 else None,
    }


def _finished(run: RunFolder) -> dict[str, Any]:
    content = run.figures()
    last = content["metrics"]["last"]
    figures = {
        which: {split: values for split, values in content["metrics"][which].items() if isinstance(values, dict)}
        for which in CHOSEN
    }
    return {
        "state": FINISHED,
        "task": content["task"],
        "parameters": content["parameters"]["trainable"],
        "head": content["parameters"]["head"],
        "headline": content["headline"],
        "step": last.get("step"),
        "steps": last.get("step"),
        "seconds": content["seconds"]["train"],
        "search_share": content["seconds"]["search_share"],
        "figures": figures,
    }


def _unfinished(run: RunFolder) -> dict[str, Any]:
    newest = newest_checkpoint(run)
    if newest is None:
        return {"state": UNFINISHED, "note": "no checkpoint yet"}
    state = read_json_object(newest / STATE, REMEDY)
    steps = state.get("max_steps") or None
    known: dict[str, Any] = {"state": UNFINISHED, "step": step_of(newest), "steps": steps}
    known["note"] = f"at step {step_of(newest)}" + (f" of {steps}" if steps else "")
    measured = dev_by_epoch(state["log_history"])
    if measured:
        dev = {name: value for name, value in measured[-1].items() if name not in ("epoch", "step")}
        known["figures"] = {"last": {"dev": dev}}
    if (newest / MANIFEST).is_file():
        known["seconds"] = float(read_json_object(newest / MANIFEST, REMEDY)["seconds"])
    if (newest / ALLOCATION).is_file():
        known["parameters"] = read_json_object(newest / ALLOCATION, REMEDY)["parameters"]["enabled"]
    return known


def newest_checkpoint(run: RunFolder) -> Path | None:
    """Return the newest checkpoint that has Trainer's state, if there is one."""
    found = [each for each in checkpoints(run.checkpoints) if (each / STATE).is_file()]
    return found[-1] if found else None
