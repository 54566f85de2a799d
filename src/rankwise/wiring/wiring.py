"""Block paths in a model: where their modules hang and which hooks feed them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.configs.path import PathConfig
from rankwise.errors import nearest
from rankwise.wiring.anatomy import Anatomy, anatomy_of, find_blocks, width
from rankwise.wiring.block_hooks import BlockTaps, Crossing, first_tensor, output_tensor, with_output_tensor
from rankwise.wiring.block_host import BlockHost
from rankwise.wiring.checkpointing import refuse_again

LAYERS = "layer_paths"


class Sources(threading.local):
    """What spans under way read, by (block of the host, adapter), for the thread that asks; copied empty."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, str], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Sources:
        """Leave activations behind."""
        copied = memo[id(self)] = Sources()
        return copied

    def __reduce__(self) -> Any:
        """Leave activations behind."""
        return Sources, ()


class LayerTaps:
    """The hooks that feed ``layer`` paths: from the input of a span's first block to the output of its last.

    They sit on the blocks themselves, outside of what gradient checkpointing runs twice, and their modules on the
    model, because a span belongs to no single block.

    Args:
        index: Number of the block that these hooks are on.
        hosts: The ``layer`` paths of all blocks, by block.
        sources: What spans under way read, shared by all blocks.
    """

    def __init__(self, index: int, hosts: dict[int, BlockHost], sources: Sources) -> None:
        self.index = index
        self.hosts = hosts
        self.sources = sources

    def attach(self, block: nn.Module) -> list[RemovableHandle]:
        """Register the hooks."""
        return [
            block.register_forward_hook(self._leave, prepend=True),
            block.register_forward_pre_hook(self._enter, with_kwargs=True),
        ]

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for key, host in self.hosts.items():
            for adapter in host.live():
                path = host.gate(adapter).path
                first, last = path.blocks
                if not first <= self.index <= last or not host.needs_source([adapter]):
                    continue
                if first < last:
                    refuse_again(self.index, path.name)
                if first == self.index:
                    self.sources.held[key, adapter] = first_tensor(args, kwargs)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        before = result = output_tensor(output)
        for key, host in self.hosts.items():
            for adapter in host.live():
                if host.gate(adapter).path.blocks[1] == self.index:
                    source = self.sources.held.pop((key, adapter), None)
                    if source is not None or not host.needs_source([adapter]):  # the span's first block was dropped
                        result = host(source, result, [adapter])
        return None if result is before else with_output_tensor(output, result)


def _settle(hooks: dict[int, Any]) -> None:
    """Let the order of hooks be that of the dictionary itself, by which torch.compile counts them (seen in 2.11).

    ``prepend`` moves a hook in an ``OrderedDict``'s own order alone.
    """
    ordered = list(hooks.items())
    hooks.clear()
    hooks.update(ordered)


class Wiring:
    """The block paths of one model, for all adapters.

    Args:
        model: The base model.

    Raises:
        ValueError: The family is unknown, or its blocks are not what block paths need.
    """

    def __init__(self, model: nn.Module) -> None:
        self.anatomy: Anatomy = anatomy_of(model)
        self.blocks = find_blocks(model, self.anatomy)
        self.width = _one_width(self.blocks, self.anatomy)
        self.taps: list[BlockTaps] = []
        self.layer_hosts: dict[int, BlockHost] = {}
        self.sources = Sources()
        self.crossing = Crossing()
        self.handles: list[RemovableHandle] = []

    def names(self, config: PathConfig) -> dict[str, tuple[str, int, str]]:
        """Return kind, block and full module name of every block path that a config asks for, by the path's name."""
        wanted = config.layers_to_transform
        chosen = [wanted] if isinstance(wanted, int) else wanted
        beyond = [block for block in chosen or () if not 0 <= block < len(self.blocks)]
        if beyond:
            raise ValueError(
                f"layers_to_transform={wanted!r} names block {beyond[0]}, and this model has blocks 0 to "
                f"{len(self.blocks) - 1}"
            )
        blocks = [block for block in range(len(self.blocks)) if chosen is None or block in chosen]
        full = list(self.blocks)
        ranks = config.block_paths().ranks
        every = {
            f"layers.{block}.{kind}": (
                kind,
                block,
                f"{LAYERS}.{block}" if kind == "layer" else f"{full[block]}.path_{kind}",
            )
            for block in blocks
            for kind in config.block_paths().kinds
            if kind != "cut" or block > 0
        }
        for name in ranks or ():
            if name not in every:
                raise ValueError(
                    f"shortcut_ranks names {name!r}, which this model has no block path for{nearest(name, every)}; "
                    "names are those of rankwise.named_paths"
                )
        return every if ranks is None else {name: every[name] for name in every if name in ranks}

    def check(self, config: PathConfig) -> None:
        """Refuse what this model can't have.

        Raises:
            ValueError: Says which kind and why.
        """
        kinds, norm = config.block_paths().kinds, config.block_paths().norm
        if self.anatomy.norm == "pre" and norm == "reapply":
            raise ValueError(
                "shortcut_norm='reapply' runs a block's norm on the residual stream a second time; this model's norms "
                "lie inside the branches, where that would destroy the stream: use shortcut_norm='inside'"
            )
        if self.anatomy.norm == "pre" and "in" in kinds and "layer" in kinds:
            raise ValueError(
                "shortcuts names 'in' and 'layer', which are the same path in a model whose norms lie inside the "
                "branches: name one of them"
            )
        if "cut" in kinds and len(self.blocks) == 1:
            raise ValueError("shortcuts names 'cut', which comes from the block before, and this model has one block")
        if "cut" in kinds:
            _check_keywords(self.blocks)
        if not self.names(config):
            raise ValueError(
                f"shortcuts={list(kinds)!r} with layers_to_transform={config.layers_to_transform!r} leaves no path in "
                f"a model of {len(self.blocks)} blocks"
            )

    def connect(self, model: nn.Module) -> None:
        """Register the hooks, once."""
        if self.handles:
            return
        self.taps = [
            BlockTaps(index, block, self.anatomy, self.crossing) for index, block in enumerate(self.blocks.values())
        ]
        for before, after in zip(self.taps, self.taps[1:], strict=False):
            before.after = after
        for taps, block in zip(self.taps, self.blocks.values(), strict=True):
            self.handles += LayerTaps(taps.index, self.layer_hosts, self.sources).attach(block)
            self.handles += taps.attach()  # its hook on the block's output comes before the one above
            _settle(block._forward_hooks)
        self.handles.append(model.register_forward_hook(self._forget, always_call=True))

    def _forget(self, model: nn.Module, args: Any, output: Any) -> None:
        """Hold no activation after a forward pass, whatever became of it."""
        self.sources.held.clear()
        self.crossing.put(-1, None)
        for taps in self.taps:
            taps.flow.forget()

    def host(self, model: nn.Module, kind: str, block: int) -> BlockHost:
        """Return the module of a block's paths of a kind, made at the first call."""
        hosts = self.taps[block].hosts
        if kind not in hosts:
            hosts[kind] = host = BlockHost(self.width, partial(self.like, block))
            host.train(self.taps[block].block.training)
            if kind == "layer":
                self.layer_hosts[block] = host
                if LAYERS not in model._modules:
                    model.add_module(LAYERS, nn.ModuleDict())
                model.get_submodule(LAYERS).add_module(str(block), host)
            else:
                self.taps[block].block.add_module(f"path_{kind}", host)
        return hosts[kind]

    def like(self, block: int) -> Tensor:
        """Return a weight of the base whose device and precision a path in the block takes."""
        weights = self.taps[block].block.named_parameters()
        return next(weight for name, weight in weights if weight.is_floating_point() and ".lora_" not in name)

    def __getstate__(self) -> dict[str, Any]:
        """Leave activations behind when copied."""
        return {name: value for name, value in self.__dict__.items() if name != "crossing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let all blocks share what goes from one to the next again."""
        self.__dict__.update(state)
        self.crossing = Crossing()
        for taps in self.taps:
            taps.crossing = self.crossing

    @contextmanager
    def removed(self, model: nn.Module) -> Iterator[None]:
        """Take the modules off the model, and the hooks too where nothing goes wrong inside; else put them back."""
        places = [(taps.block, f"path_{kind}") for taps in self.taps for kind in taps.hosts if kind != "layer"]
        places += [(model, LAYERS)] if self.layer_hosts else []
        modules = [(parent, name, parent._modules.pop(name)) for parent, name in places]
        try:
            yield
        except BaseException:
            for parent, name, module in modules:
                parent.add_module(name, module)
            raise
        for handle in self.handles:
            handle.remove()


def _one_width(blocks: dict[str, nn.Module], anatomy: Anatomy) -> int:
    widths = {name: width(block, anatomy) for name, block in blocks.items()}
    if len(set(widths.values())) != 1:
        first, other = next(iter(widths)), next(n for n in widths if widths[n] != next(iter(widths.values())))
        raise ValueError(
            f"shortcuts need one hidden size in all blocks, but {first} has {widths[first]} and {other} has "
            f"{widths[other]}: leave shortcuts out"
        )
    return next(iter(widths.values()))


def _check_keywords(blocks: Mapping[str, nn.Module]) -> None:
    """Refuse ``cut`` paths where a block can't hand the mid of the block before on to its attention."""
    for name, block in blocks.items():
        taken = inspect.signature(block.forward).parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken):
            raise ValueError(
                f"shortcuts names 'cut', whose source reaches a block as a keyword argument, and {name!r} "
                f"({type(block).__name__}) takes none but its own: give its forward **kwargs and pass them on to its "
                "attention, or leave 'cut' out"
            )
