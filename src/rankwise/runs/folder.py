"""The run folder: what lies in it, when a run may start in it, where a resume continues."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.fields import fits, wrong_field
from rankwise.files import delete, read_json_object, write_text_atomic
from rankwise.rules.records import HISTORY_FILE
from rankwise.runs.recipes.methods import as_kept
from rankwise.runs.recipes.reading import flat, read_yaml
from rankwise.runs.recipes.recipe import Recipe, parse_recipe

# What a resumed run's recipe may say otherwise than the run's own.
LENGTH = ("training.epochs", "training.max_steps")
MAY_CHANGE = (*LENGTH, "training.keep_checkpoints", "training.report_to", "training.workers")
MEASURE_AGAIN = "delete it and continue with --resume, which measures again from the last checkpoint"


@dataclass
class _Figures:
    """What of ``metrics.json`` is read again."""

    model: str
    task: str
    task_type: str
    model_arguments: dict[str, Any]
    method: str
    seed: int
    headline: str
    metrics: dict[str, Any]
    parameters: dict[str, Any]
    seconds: dict[str, float]


NUMBERS = {"parameters": ("trainable", "head", "total"), "seconds": ("train", "search", "search_share")}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run under ``root``."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved recipe; its presence makes the folder a run."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The figures; their presence makes the run finished."""
        return self.root / "metrics.json"

    @property
    def adapter(self) -> Path:
        """The trained adapter, or the whole model after full fine-tuning."""
        return self.root / "adapter"

    @property
    def history(self) -> Path:
        """One search per line."""
        return self.root / HISTORY_FILE

    @property
    def spectra(self) -> Path:
        """Singular values of ``layer`` paths, one epoch per line."""
        return self.root / "spectra.jsonl"

    @property
    def gradients(self) -> Path:
        """Gradients of ``layer`` paths and LoRA beside them, one epoch per line."""
        return self.root / "gradients.jsonl"

    @property
    def evaluation(self) -> Path:
        """The figures on the tasks of lm-evaluation-harness."""
        return self.root / "evaluation.json"

    @property
    def base_evaluation(self) -> Path:
        """The same of the pretrained model, without what was trained."""
        return self.root / "evaluation-base.json"

    @property
    def checkpoints(self) -> Path:
        """The Trainer's checkpoints."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def parts(self) -> tuple[Path, ...]:
        """Everything a run writes."""
        records = (self.history, self.spectra, self.gradients)
        evaluations = (self.evaluation, self.base_evaluation)
        return (self.config, self.metrics, self.adapter, *records, *evaluations, self.checkpoints, self.tensorboard)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.metrics.is_file()

    def recipe(self) -> Recipe:
        """Return the recipe the run was started with.

        Raises:
            FileNotFoundError: There is no run here.
            ValueError: The file is damaged.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.root} holds no run: {self.config.name} is missing")
        try:
            return parse_recipe(as_kept(read_yaml(self.config)))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.config} is damaged, it is no recipe ({error}): copy it again, or write the recipe there that "
                "the run was started with"
            ) from error

    def figures(self) -> dict[str, Any]:
        """Return what ``metrics.json`` holds.

        Raises:
            FileNotFoundError: There is no run here.
            ValueError: The run is not finished, or the file is damaged.
        """
        if not self.finished:
            self.recipe()
            raise ValueError(f"{self.root} is not finished: continue it with rankwise train RECIPE --out ... --resume")
        content = read_json_object(self.metrics, MEASURE_AGAIN)
        missing = sorted(set(_Figures.__dataclass_fields__) - set(content))
        wrong = f"{missing[0]} is missing" if missing else wrong_field(_Figures, content) or _wrong_number(content)
        if wrong is not None:
            raise ValueError(f"{self.metrics} is damaged, {wrong}: {MEASURE_AGAIN}")
        return content

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse to start over what is there, or to continue what is not.

        Raises:
            FileNotFoundError: ``resume`` was said and no run is here.
            NotADirectoryError, PermissionError: The folder can't be written to.
            ValueError: A run is here and neither was said, both were said, or the recipes differ.
        """
        if resume and overwrite:
            raise ValueError("--resume continues a run and --overwrite deletes it: say one of them")
        if resume:
            self._check_same(recipe)
        elif not overwrite and any(part.exists() for part in self.parts):
            raise ValueError(
                f"{self.root} already holds a run: say --resume to continue it, --overwrite to delete it and start "
                "again, or give another --out"
            )
        self._check_writable(resume=resume)

    def _check_writable(self, *, resume: bool) -> None:
        """Refuse folders that can't be written to, now and not at the first checkpoint."""
        place = next(each for each in (self.root, *self.root.absolute().parents) if each.exists())
        words = f"the run can't be written to {self.root}: give an --out that you may write to"
        if resume:
            words = (
                f"the run in {self.root} can't go on there, nothing of it was changed: make the folder and those in it "
                "writable, or copy it to where you may write and resume it there"
            )
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, words, str(place))
        inside = [self.checkpoints, *sorted(self.checkpoints.glob("*")), self.adapter, self.tensorboard]
        for each in (place, *(folder for folder in inside if resume and folder.is_dir())):
            if not os.access(each, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, words, str(each))

    def changes(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return where a recipe differs from the run's own: by key, what is there and what is given."""
        stored, given = flat(self.recipe().to_dict()), flat(recipe.to_dict())
        keys = sorted(stored.keys() | given.keys())
        return {key: (stored.get(key), given.get(key)) for key in keys if stored.get(key) != given.get(key)}

    def _check_same(self, recipe: Recipe) -> None:
        differing = [
            f"{key} (there {there!r}, now {now!r})"
            for key, (there, now) in self.changes(recipe).items()
            if key not in MAY_CHANGE
        ]
        if differing:
            raise ValueError(
                f"{self.root} was started with another recipe, so it can't be resumed with this one: "
                f"{'; '.join(differing)}. Resume with {self.config}, or start in another folder. Only "
                f"{', '.join(MAY_CHANGE)} may change: to train longer, resume with {self.config} and "
                "--set training.epochs=N"
            )

    def start(self, recipe: Recipe) -> None:
        """Set aside what an earlier run left and write the recipe; other files in the folder stay."""
        if self._aside.is_dir():  # of a start that was killed before its first step
            self.withdraw()
        for part in self.parts:  # the recipe first: while it is missing, what is still there is the earlier run's
            if part.exists():
                self._aside.mkdir(parents=True, exist_ok=True)
                os.replace(part, self._aside / part.name)
        write_text_atomic(self.config, recipe.to_yaml())

    def go_on(self, recipe: Recipe) -> None:
        """Write a recipe that a run goes on with; a finished run is no longer, its adapter stays until it is again."""
        self.metrics.unlink(missing_ok=True)  # first: figures beside another recipe would be taken for its own
        write_text_atomic(self.config, recipe.to_yaml())

    def settle(self) -> None:
        """Delete what ``start`` set aside."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def withdraw(self) -> None:
        """Delete what the new run wrote and put back what ``start`` set aside."""
        for part in self.parts if self.config.exists() else ():
            delete(part)
        for part in list(self._aside.glob("*")):
            os.replace(part, self.root / part.name)
        self.settle()

    @property
    def _aside(self) -> Path:
        return self.root / ".replaced"


def _wrong_number(content: Mapping[str, Any]) -> str | None:
    """Return what is wrong inside the sections of ``metrics.json``, if anything."""
    for section, names in NUMBERS.items():
        for name in names:
            if not fits(content[section].get(name), float):
                return f"{section}.{name} is {content[section].get(name)!r:.60} and no number"
    found = [content["metrics"].get(which) for which in ("last", "dev_selected")]
    if not all(isinstance(each, dict) and fits(each.get("epoch"), float) for each in found):
        return "metrics.last or metrics.dev_selected is missing"
    splits = [{name: split for name, split in each.items() if isinstance(split, dict)} for each in found]
    last, selected = ({name: set(split) for name, split in each.items()} for each in splits)
    if last != selected:
        return "metrics.last and metrics.dev_selected hold different figures"
    if not all(fits(value, float) for each in splits for split in each.values() for value in split.values()):
        return "a figure in metrics is no number"
    return None
