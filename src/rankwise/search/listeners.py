"""Which listener an adapter gets: the one table from a config's class to what acts between optimizer steps."""

from __future__ import annotations

from torch import nn

from rankwise.configs.heterolora import HeteroLoraConfig
from rankwise.configs.lor2c import Lor2cConfig
from rankwise.configs.path import PathConfig
from rankwise.paths.path_set import PathSet
from rankwise.search.allocator import Allocator
from rankwise.search.editor import Editor
from rankwise.search.listener import Listener, Training

LISTENERS: dict[type[PathConfig], type[Listener]] = {HeteroLoraConfig: Allocator, Lor2cConfig: Editor}


def make_listener(model: nn.Module, paths: PathSet, training: Training | None = None) -> Listener:
    """Make what a path set needs: a search, scheduled edits, or just something that keeps idle paths still.

    Args:
        model: The model.
        paths: One adapter's paths.
        training: What the training loop knows; None where nothing but its optimizer steps can be seen.
    """
    acting = next(made for cls, made in LISTENERS.items() if isinstance(paths.config, cls))
    made = (acting if paths.config.acts else Listener).of(model, paths.adapter, training or Training())
    made.listen()
    return made
