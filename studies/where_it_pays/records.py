"""One JSON per study: every run is added when it ends, and a run that is there is not run again."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Records:
    """The runs of a study in a file, each with the key that tells it from the others.

    Args:
        file: The JSON file; what it holds is kept.
        settings: What is common to all runs, written beside them.

    Raises:
        ValueError: The file was written with other settings.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.content: dict[str, Any] = {"settings": dict(settings), "runs": []}
        if file.is_file():
            self.content = json.loads(file.read_text(encoding="utf-8"))
            if self.content["settings"] != dict(settings):
                raise ValueError(
                    f"{file} holds runs with other settings ({self.content['settings']}, now {dict(settings)}): give "
                    "another --out"
                )

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The finished runs."""
        return self.content["runs"]

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the run with this key, if it has finished."""
        return next((run for run in self.runs if all(run.get(name) == value for name, value in key.items())), None)

    def add(self, run: Mapping[str, Any]) -> None:
        """Add a run, with the command it was part of, and write the file in one move."""
        self.runs.append({**run, "command": command()})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.file)


def command() -> str:
    """Return the command under way, with MODEL and DATA in the place of folders."""
    module = Path(sys.argv[0]).stem
    words = [word if not word.startswith(("/", ".", "~")) else "PATH" for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"studies.where_it_pays.{module}", *words])
