"""The record of a search beside the adapter: its history as JSON lines, and what is on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from rankwise.distributed import rank
from rankwise.files import write_json_atomic, write_text_atomic
from rankwise.method.folders import ALLOCATION, DIGESTS, digests
from rankwise.method.structure import check_unvouched
from rankwise.notebook import html_table
from rankwise.paths.path_set import PathSet, path_set
from rankwise.rules.records import HISTORY_FILE, Record, edits, from_lines, to_lines
from rankwise.search.card import CARD, write_card
from rankwise.search.listener import warn_if_idle


class History(list[Record]):
    """The records of an adapter, oldest first; as a table one row per record and path."""

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per record and path, for ``pandas.DataFrame(history.rows())``."""
        return [{"record": number, **row} for number, record in enumerate(self) for row in record.rows()]

    def to_pandas(self) -> Any:
        """Return ``rows()`` as a ``pandas.DataFrame``."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        """Show one line per record in a notebook."""
        names = ("step", "how", "paths on", "parameters on", "seconds")
        lines = [
            (record.step, record.how, len(record.chosen), record.counts.get("enabled", ""), f"{record.seconds:.2f}")
            for record in self
        ]
        return html_table(names, lines)


def history(model: nn.Module, adapter: str | None = None) -> History:
    """Return one record per search or scheduled edit of a model's adapter, oldest first.

    They are ``SearchRecord`` and ``EditRecord`` of ``rankwise.rules.records``, where each field is explained;
    ``history(model).to_pandas()`` is all of it as a table.

    Args:
        model: A model with rankwise paths.
        adapter: The adapter; the active one if left out.

    Raises:
        ValueError: The model has no rankwise paths.
    """
    return History(path_set(model, adapter).history)


def _own(model: nn.Module) -> dict[str, PathSet]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    sets: dict[str, PathSet] = base.__dict__.get("rankwise_paths", {})
    return sets


def before_saving(model: PeftModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Turn ``enabled_only`` of ``save_pretrained`` into the tensors that PEFT writes.

    A static run that has searched keeps the contributing paths only, unless told otherwise.

    Raises:
        ValueError: ``enabled_only`` was asked of a model that has no rankwise paths, or a conversion of one that has.
    """
    sets = _own(model)
    initial = kwargs.get("path_initial_model_for_weight_conversion")
    if initial is not None and sets:
        raise ValueError(
            f"path_initial_model_for_weight_conversion={initial!r} is for adapters whose start changed the base's "
            "weights, and paths never do: leave it out (rankwise.export_lora writes plain LoRA)"
        )
    asked = kwargs.pop("enabled_only", None)
    if asked and not sets:
        raise ValueError("enabled_only=True: this model has no rankwise paths, so all of its adapter is enabled")
    leave_out = {
        name: paths
        for name, paths in sets.items()
        if (asked if asked is not None else paths.config.final and bool(paths.history))
    }
    if leave_out:
        kwargs["state_dict"] = _without_idle_paths(kwargs.get("state_dict") or model.state_dict(), leave_out)
    return kwargs


def _without_idle_paths(state: dict[str, Tensor], sets: dict[str, PathSet]) -> dict[str, Tensor]:
    owners = {key: path for paths in sets.values() for key, path in paths.owners(state).items()}
    return {key: value for key, value in state.items() if key not in owners or owners[key].contributing}


def after_saving(model: PeftModel, folder: str | Path, selected: Iterable[str] | None = None) -> None:
    """Write the history and the allocation of each saved adapter beside its tensors.

    Args:
        model: The model.
        folder: Where PEFT saved it.
        selected: The adapters that it saved; all if left out.
    """
    saved = {adapter: paths for adapter, paths in _own(model).items() if selected is None or adapter in selected}
    for adapter, paths in saved.items():
        place = Path(folder) if adapter == "default" else Path(folder) / adapter
        if paths.session.listener is not None and not paths.session.listener.knows_epochs:
            warn_if_idle(paths)
        warn_if_unheard(paths)
        paths.session.folder = place
        _write_beside(paths, place)
    if _own(model) and rank() == 0 and (Path(folder) / CARD).is_file():
        write_card(Path(folder), _own(model), getattr(getattr(model, "config", None), "num_labels", None))


def after_saving_alone(model: Any, folder: str | Path) -> None:
    """Write the history and the allocation of the adapter that transformers itself has saved, without a ``PeftModel``.

    Args:
        model: A model of transformers.
        folder: Where it was saved.
    """
    sets = _own(model) if model.__dict__.get("_hf_peft_config_loaded") else {}
    for adapter in model.active_adapters() if sets else []:  # transformers saves one, and raises where there are more
        if adapter in sets:
            warn_if_unheard(sets[adapter])
            _write_beside(sets[adapter], Path(folder))


def _write_beside(paths: PathSet, place: Path) -> None:
    if rank() != 0 or not place.is_dir():
        return
    if paths.history:
        write_text_atomic(place / HISTORY_FILE, to_lines(paths.history))
    else:  # another run's, left in a folder that is used again
        (place / HISTORY_FILE).unlink(missing_ok=True)
    listed = {**_listed(paths), "parameters": paths.counts(), **_structure(paths)}
    write_json_atomic(place / ALLOCATION, {**listed, DIGESTS: digests(place)})


def warn_if_unheard(paths: PathSet) -> None:
    """Warn if an adapter was trained in evaluation mode, where neither its search nor its edits ever begin."""
    began = paths.session.listener is not None or paths.history or paths.session.detached
    asked = paths.session.unheard and paths.config.acts and paths.trains
    if asked and not began and any(bool(path.lora_B.any()) for path in paths.enabled):
        warnings.warn(
            f"adapter {paths.adapter!r} seems to have been trained in evaluation mode, in which nothing is searched or "
            "edited: call model.train() before training (freeze what is to stay as it is some other way), or "
            "rankwise.detach(model) if no search is wanted",
            stacklevel=2,
        )


def _listed(paths: PathSet) -> dict[str, Any]:
    own = paths.paths.items()
    return {
        "enabled": [name for name, path in own if path.enabled],
        "frozen": [name for name, path in own if path.contributing and not path.enabled],
        "disabled": [name for name, path in own if not path.contributing],
    }


def _structure(paths: PathSet) -> dict[str, Any]:
    """Return what each path is and what was edited; what a load goes by are the tensors, this is for people."""
    done = [{"step": record.step, **edit} for record in edits(paths.history) for edit in record.to_dict()["edits"]]
    return {
        "paths": [
            {"name": path.name, "kind": path.kind, "blocks": path.blocks, "r": path.r, "scaling": path.scaling}
            for path in paths.paths.values()
        ],
        "shared": any(path.shared for path in paths.resident),
        "edits": done,
        "step": paths.session.listener.step if paths.session.listener is not None else None,
    }


def after_loading(model: nn.Module, folder: str | Path, adapter: str, vouched: bool) -> None:
    """Take the history back, and remember where the adapter came from.

    Args:
        model: The model.
        folder: Where the adapter was loaded from.
        adapter: Its name.
        vouched: Whether digests say that it is as it was saved.

    Raises:
        ValueError: The history is damaged, or nothing vouches for weights or a structure that can hardly be meant.
    """
    paths = _own(model).get(adapter)
    if paths is None:
        return
    if not vouched:
        check_unvouched(paths)
    if not Path(folder).is_dir():
        return
    paths.session.folder = Path(folder)
    file = Path(folder) / HISTORY_FILE
    if not file.is_file():
        paths.history.clear()  # what was there is of what was loaded over
    else:
        paths.history[:] = from_lines(file.read_text(encoding="utf-8"), file)
