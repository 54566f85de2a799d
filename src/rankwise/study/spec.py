"""A study's file: arms, axes, rates and seeds, checked and made into the groups of cells that are run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from rankwise.errors import check_choice
from rankwise.runs.recipes.methods import written_out
from rankwise.runs.recipes.problems import explain
from rankwise.runs.recipes.reading import Section, flat, merged, parse_yaml, with_overrides
from rankwise.runs.recipes.reading import read_yaml as read_recipe
from rankwise.runs.recipes.recipe import Recipe, Spec, parse_recipe
from rankwise.runs.recipes.shipped import find_recipe
from rankwise.study.grid import Rates
from rankwise.study.plan import Group, Seeds, Study

OWN = ("base", "rates")  # what an arm says that is no field of a recipe


class StudyFile(Spec):
    """What a study's YAML says.

    Args:
        title: The question, in a line.
        base: The recipe that every arm starts from: a file (relative to the study's), or the name of one that ships;
            ``{axis}`` stands for the value of an axis.
        set: Fields of a recipe that all cells share.
        arms: What is compared: by name, the fields in which an arm differs (``method.r: 8``, or nested). A ``method``
            with a ``name`` replaces the base's whole; ``base`` and ``rates`` may be an arm's own.
        axes: What each arm is run on: a field with a list of values (``data.task: [mrpc, rte]``), or any word with
            named sets of fields.
        rates: Learning rates to choose from, per arm and point of the axes, by the dev split's loss.
        seeds: ``choose``, with which rates are chosen, and ``report``, which the figures are from.
        baseline: The arm that the others are compared with; the first one if left out.
    """

    title: str = ""
    base: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    arms: dict[str, dict[str, Any] | None] = Field(min_length=1)
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(default_factory=dict)
    rates: Rates | None = None
    seeds: Seeds
    baseline: str | None = None

    @field_validator("arms", mode="before")
    @classmethod
    def _names_are_texts(cls, given: Any) -> Any:
        for name in given if isinstance(given, Mapping) else ():
            if not isinstance(name, str):
                raise ValueError(
                    f"{name!r} is no text, and an arm's name is one (YAML reads no, yes, on, off and numbers as "
                    "something else): quote it"
                )
        return given

    @model_validator(mode="after")
    def _names_exist(self) -> StudyFile:
        check_choice("baseline", self.baseline or next(iter(self.arms)), self.arms)
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{axis} has no values: give some, or leave it out")
        return self


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study and check the recipe of every group of cells.

    Args:
        path: The YAML file.
        overrides: ``key.inner=value`` for the recipes of all cells.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: Something in it is wrong, or a recipe that it names is not there; the message starts with the
            file's name.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no study at {file}: give the path of a YAML file")
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), "it")
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds {type(content).__name__}, not a mapping of keys to values")
        try:
            said = StudyFile.model_validate(content)
        except ValidationError as error:
            raise ValueError(explain(error, StudyFile)) from error
        groups = [
            _group(said, arm, dict(point), file.parent, overrides) for point in _points(said.axes) for arm in said.arms
        ]
        _check_tasks(groups)
        baseline = said.baseline or next(iter(said.arms))
        return Study(title=said.title or file.stem, groups=groups, seeds=said.seeds, baseline=baseline)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {explain(error, Study) if isinstance(error, ValidationError) else error}") from error


def laid_over(content: Mapping[str, Any], over: Mapping[str, Any]) -> Section:
    """Return a recipe's content with fields on top; a method with a name replaces the one below whole."""
    fields: Section = {}
    for key, value in over.items():
        for part in reversed(str(key).split(".")[1:]):
            value = {part: value}
        fields = merged(fields, {str(key).partition(".")[0]: value})
    method = fields.get("method")
    if method is not None and not isinstance(method, Mapping):
        raise ValueError(f"method={method!r}: a method is a mapping, method: {{name: lora, r: 8}}, or method.r: 8")
    whole = "name" in (method or {})
    below = {key: value for key, value in content.items() if key != "method" or not whole}
    return merged(below, fields)


def _points(axes: Mapping[str, Any]) -> list[tuple[tuple[str, tuple[str, Section]], ...]]:
    """Return every combination of the axes' values, each as pairs of an axis and its value's label and fields."""
    named = [
        [(axis, (label, fields)) for label, fields in values.items()]
        if isinstance(values, Mapping)
        else [(axis, (str(value), {axis: value})) for value in values]
        for axis, values in axes.items()
    ]
    return list(itertools.product(*named))


def _group(
    said: StudyFile, arm: str, point: Mapping[str, tuple[str, Section]], folder: Path, overrides: Sequence[str]
) -> Group:
    own = said.arms[arm] or {}
    where = ", ".join([f"arms.{arm}", *(f"{axis}={label}" for axis, (label, _) in point.items())])
    base = own.get("base", said.base)
    if base is not None:
        for axis, (label, _) in point.items():
            base = str(base).replace(f"{{{axis}}}", label)
    content: Section = {} if base is None else read_recipe(_find(base, folder, where))
    given = {key: value for key, value in own.items() if key not in OWN}
    try:
        for fields in (said.set, given, *(fields for _, fields in point.values())):
            content = laid_over(content, fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    content = with_overrides(content, overrides)
    try:
        rates = Rates.model_validate(own["rates"]) if own.get("rates") else None
    except ValidationError as error:
        raise ValueError(f"{where}: rates: {explain(error, Rates)}") from error
    rates = rates or said.rates
    if "method" in content:
        content = {**content, "method": written_out(content["method"])}
    try:
        for fields in (said.set, given, *(fields for _, fields in point.values()), with_overrides({}, overrides)):
            _check_ours(fields, rates)
        recipe = parse_recipe(content)
        _check(recipe, rates, said.seeds)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Group(arm=arm, point={axis: label for axis, (label, _) in point.items()}, content=content, rates=rates)


def _find(base: object, folder: Path, where: str) -> Path:
    if not isinstance(base, str):
        raise ValueError(f"{where}: base={base!r}: give a recipe's file, or the name of one that ships, as text")
    try:
        return folder / base if (folder / base).is_file() else find_recipe(base)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{where}: base: {error}") from error


def _check_ours(fields: Mapping[str, Any], rates: Rates | None) -> None:
    """Refuse what the study itself says of each run."""
    said = flat(fields)
    if "seed" in said:
        raise ValueError("seed is the study's to say: give seeds.report (and seeds.choose)")
    if rates is not None and "training.learning_rate" in said:
        raise ValueError("training.learning_rate is chosen from `rates`: change those, or leave `rates` out")


def _check_tasks(groups: Sequence[Group]) -> None:
    """Refuse arms of one point that do not share a task: they stand in one table."""
    first: dict[tuple[str, ...], tuple[str, Any]] = {}
    for group in groups:
        data = group.content.get("data") or {}
        task = (data.get("task"), data.get("kind"))
        arm, other = first.setdefault(tuple(group.point.values()), (group.arm, task))
        if task != other:
            raise ValueError(
                f"arms.{arm} and arms.{group.arm} have different tasks ({other[0] or 'own files'}, "
                f"{task[0] or 'own files'}) and no figure in common: make the task an axis"
            )


def _check(recipe: Recipe, rates: Rates | None, seeds: Seeds) -> None:
    data = recipe.data
    elsewhere = data.validation_file or data.validation_fraction  # what test_file holds is not reported
    if (rates is not None or recipe.select == "dev") and data.train_file and not elsewhere:
        raise ValueError(
            f"{'rates are' if rates is not None else 'the epoch is'} chosen on the dev split, and there is no other to "
            "report: give data.validation_file, or data.validation_fraction=0.1 to set that share of train apart"
        )
    if rates is None:
        return
    if not seeds.choose:
        raise ValueError("rates are chosen with seeds.choose, and there are none: give two or three, not of the report")
    if recipe.data.dev_fraction == 0:
        raise ValueError("rates are chosen on the dev split, and data.dev_fraction=0 leaves none")
