"""The run folder: what lies in it, when a run may start in it, where a resume continues."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.files import write_text_atomic
from rankwise.rules.records import HISTORY_FILE
from rankwise.runs.recipes.reading import flat, read_yaml
from rankwise.runs.recipes.recipe import Recipe, parse_recipe

CLOCK_FILE = "rankwise_run.json"  # written last into a checkpoint


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
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.root} holds no run: {self.config.name} is missing")
        return parse_recipe(read_yaml(self.config))

    def figures(self) -> dict[str, Any]:
        """Return what ``metrics.json`` holds.

        Raises:
            FileNotFoundError: There is no run here.
            ValueError: The run is not finished.
        """
        if not self.finished:
            self.recipe()
            raise ValueError(f"{self.root} is not finished: continue it with rankwise train RECIPE --out ... --resume")
        content: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
        return content

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, if there is one."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if (p / CLOCK_FILE).is_file()]
        return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse to start over what is there, or to continue what is not.

        Raises:
            FileNotFoundError: ``resume`` was said and no run is here.
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

    def _check_same(self, recipe: Recipe) -> None:
        stored, given = flat(self.recipe().to_dict()), flat(recipe.to_dict())
        differing = [
            f"{key} (there {stored.get(key)!r}, now {given.get(key)!r})"
            for key in sorted(stored.keys() | given.keys())
            if stored.get(key) != given.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.root} was started with another recipe, so it can't be resumed with this one: "
                f"{'; '.join(differing)}. Resume with {self.config}, or start in another folder"
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

    def settle(self) -> None:
        """Delete what ``start`` set aside."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def withdraw(self) -> None:
        """Delete what the new run wrote and put back what ``start`` set aside."""
        for part in self.parts if self.config.exists() else ():
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
        for part in list(self._aside.glob("*")):
            os.replace(part, self.root / part.name)
        self.settle()

    @property
    def _aside(self) -> Path:
        return self.root / ".replaced"
