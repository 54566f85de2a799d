"""Where things are in a model family: the one place that knows module names.

A *block* is one transformer layer, *mid* the residual stream between its attention and its feed-forward part. Block
``l`` of a model is named ``layers.l`` whatever the family calls it, so a path has the same name in every family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from rankwise.errors import check_choice, nearest
from rankwise.rules.kinds import BLOCK_KINDS

BLOCK = re.compile(r"^(?P<stack>.*?)\.?(?P<index>(?<![^.])\d+)\.(?P<inner>.+)$")


@dataclass(frozen=True)
class Place:
    """Where a module is: in block ``index`` of the stack of blocks at ``stack``, under the name ``inner`` there.

    Args:
        stack: Name of the list that holds the blocks, ``bert.encoder.layer``.
        index: Number of the block in its stack.
        inner: Name of the module inside the block, ``attention.self.query``.
    """

    stack: str
    index: int
    inner: str


def locate(module_name: str) -> Place | None:
    """Return the place of a module, or None outside the blocks: the first number in a name counts blocks."""
    match = BLOCK.match(module_name)
    return Place(match["stack"], int(match["index"]), match["inner"]) if match else None


def path_names(targets: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """Name the linear path of each targeted projection.

    Inside the blocks: ``layers.<block>.<shortest suffix that is unique in its block>``, so ``layers.3.query`` and
    ``layers.3.attention.output.dense``. Outside the blocks, and in models with several stacks of blocks (an encoder
    and a decoder): the module's full name.

    Args:
        targets: Full names of the targeted projections.
        modules: Full names of all modules of the base model.

    Returns:
        The path's name for each full module name.
    """
    places = {name: locate(name) for name in targets}
    stacks = {place.stack for place in places.values() if place is not None}
    if len(stacks) > 1:
        return {name: name for name in places}
    inner_names: dict[int, set[str]] = {}
    for place in map(locate, modules):
        if place is not None and place.stack in stacks:
            inner_names.setdefault(place.index, set()).add(place.inner)
    return {
        name: f"layers.{place.index}.{_unique_suffix(place.inner, inner_names[place.index])}" if place else name
        for name, place in places.items()
    }


def _unique_suffix(inner: str, siblings: set[str]) -> str:
    """Return the shortest suffix of ``inner`` that no other module of the block ends in and no kind is named."""
    parts = inner.split(".")
    for start in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[start:])
        if suffix not in BLOCK_KINDS and not any(
            other != inner and (other == suffix or other.endswith(f".{suffix}")) for other in siblings
        ):
            return suffix
    return inner


Point = tuple[str, str]
"""A point of a block: a module's name inside the block ("" for the block itself), and "input" or "output"."""


@dataclass(frozen=True)
class Anatomy:
    """Where the points that block paths connect are in the blocks of one family; names are relative to a block.

    A source is read at its point. What a path adds at a destination is added to the tensor that passes there: on a
    post-norm block the input of the norm that follows the sum, on a pre-norm block the output of the last module
    before the sum.

    Args:
        blocks: Name of the list of blocks, or its end: ``encoder.layer``.
        norm: ``"post"`` where the norms follow the residual sums, ``"pre"`` where they are inside the branches.
        attention: The attention module, which takes the keyword arguments of the block's call.
        block_input: Where the block's input can be read by a hook inside the block.
        attention_sum: The sum of block input and attention.
        mid: The residual stream after the attention's sum (post-norm: after its norm); the module is a norm.
        feed_forward_sum: The sum of mid and feed-forward.
        carry: Whether the block takes its residual before ``attention_sum``'s point, so that what is added there has
            to be added once more to the block's output.
        query: The query projection.
        value: The value projection.
    """

    blocks: str
    norm: str
    attention: str
    block_input: Point
    attention_sum: Point
    mid: Point
    feed_forward_sum: Point
    carry: bool = False
    query: str = ""
    value: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        check_choice("norm", self.norm, ("post", "pre"))
        for point in self.points():
            check_choice("the side of a point", point[1], ("input", "output"))

    def points(self) -> list[Point]:
        """Return all points."""
        return [self.block_input, self.attention_sum, self.mid, self.feed_forward_sum]

    def modules(self) -> list[str]:
        """Return the names of all modules it speaks of."""
        return sorted({self.attention, *(name for name, _ in self.points()), self.query, self.value} - {""})


def post_norm(
    *, blocks: str, attention: str, attention_norm: str, feed_forward_norm: str, query: str, value: str
) -> Anatomy:
    """Describe a family whose norms follow the sums: ``u = LNa(h + SA(h))``, ``out = LNf(u + FFN(u))``."""
    return Anatomy(
        blocks=blocks,
        norm="post",
        attention=attention,
        block_input=(attention, "input"),
        attention_sum=(attention_norm, "input"),
        mid=(attention_norm, "output"),
        feed_forward_sum=(feed_forward_norm, "input"),
        query=query,
        value=value,
    )


def pre_norm(*, attention_last: str, feed_forward_norm: str, feed_forward_last: str) -> Anatomy:
    """Describe a LLaMA-like family: ``u = h + SA(norm(h))``, ``out = u + FFN(norm(u))``.

    Args:
        attention_last: Last module before the attention's sum.
        feed_forward_norm: The norm that reads mid.
        feed_forward_last: Last module before the feed-forward's sum.
    """
    return Anatomy(
        blocks="layers",
        norm="pre",
        attention="self_attn",
        block_input=("input_layernorm", "input"),
        attention_sum=(attention_last, "output"),
        mid=(feed_forward_norm, "input"),
        feed_forward_sum=(feed_forward_last, "output"),
        query="self_attn.q_proj",
        value="self_attn.v_proj",
    )


BERT = post_norm(
    blocks="encoder.layer",
    attention="attention",
    attention_norm="attention.output.LayerNorm",
    feed_forward_norm="output.LayerNorm",
    query="attention.self.query",
    value="attention.self.value",
)
LLAMA = pre_norm(attention_last="self_attn", feed_forward_norm="post_attention_layernorm", feed_forward_last="mlp")
GEMMA2 = pre_norm(  # its branches end in a norm of their own
    attention_last="post_attention_layernorm",
    feed_forward_norm="pre_feedforward_layernorm",
    feed_forward_last="post_feedforward_layernorm",
)
OPT_POST = post_norm(
    blocks="decoder.layers",
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="final_layer_norm",
    query="self_attn.q_proj",
    value="self_attn.v_proj",
)
OPT_PRE = Anatomy(  # a dropout lies between branch and sum, so the sums themselves have to be met
    blocks="decoder.layers",
    norm="pre",
    attention="self_attn",
    block_input=("self_attn_layer_norm", "input"),
    attention_sum=("final_layer_norm", "input"),
    mid=("final_layer_norm", "input"),
    feed_forward_sum=("", "output"),
    carry=True,
    query="self_attn.q_proj",
    value="self_attn.v_proj",
)


def _bert(config: Any) -> Anatomy:
    """Describe a BERT, where its blocks have one mid that is read whole."""
    if config.chunk_size_feed_forward:
        raise ValueError(
            f"chunk_size_feed_forward={config.chunk_size_feed_forward} feeds mid to the feed-forward piece by piece, "
            "and shortcuts need it whole: set it to 0 in the model's config, or leave shortcuts out"
        )
    if config.add_cross_attention:
        raise ValueError("a block with cross-attention has two mids, so shortcuts are not defined: leave shortcuts out")
    return BERT


Describe = Callable[[Any], Anatomy]
FAMILIES: dict[str, Anatomy | Describe] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "opt": lambda config: OPT_PRE if config.do_layer_norm_before else OPT_POST,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gemma3": replace(GEMMA2, blocks="language_model.layers"),
}


def register_anatomy(model_type: str, anatomy: Anatomy | Describe) -> None:
    """Describe a model family, so that block paths work in it.

    Args:
        model_type: The family's ``config.model_type``.
        anatomy: Its description, or a function of the model's config that returns it.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(anatomy, Anatomy) and not callable(anatomy):
        raise ValueError(
            f"anatomy={anatomy!r} must be a rankwise.Anatomy, or a function of the config that returns one"
        )
    FAMILIES[model_type] = anatomy


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the description of a model's family.

    Raises:
        ValueError: The family is unknown; says how to describe it.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise ValueError(
            f"shortcuts need to know where the points of a block are, and {type(model).__name__} has no "
            "config.model_type to look it up by: give it one and describe it with rankwise.register_anatomy, or leave "
            "shortcuts out: linear paths work in every model"
        )
    if model_type not in FAMILIES:
        needed = ", ".join(field.name for field in fields(Anatomy))
        raise ValueError(
            f"shortcuts need to know where the points of a block are, and the family {model_type!r} of "
            f"{type(model).__name__} is not described; described are {', '.join(sorted(FAMILIES))}. Describe it with "
            f"rankwise.register_anatomy({model_type!r}, rankwise.Anatomy({needed})), or leave shortcuts out: linear "
            "paths work in every model"
        )
    found = FAMILIES[model_type]
    return found if isinstance(found, Anatomy) else found(config)


def find_blocks(model: nn.Module, anatomy: Anatomy) -> dict[str, nn.Module]:
    """Return the blocks of a model by full name, in order.

    Raises:
        ValueError: There is not exactly one list of blocks of that name, or a block lacks a module.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (name == anatomy.blocks or name.endswith(f".{anatomy.blocks}"))
    ]
    if len(lists) != 1:
        found = ", ".join(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of blocks named {anatomy.blocks!r}, and shortcuts need "
            f"exactly one; its lists are {found or 'none'}"
        )
    stack, blocks = lists[0]
    for index, block in enumerate(blocks):
        names = {name.replace(".base_layer", "") for name, _ in block.named_modules()}
        for name in anatomy.modules():
            if name not in names:
                raise ValueError(
                    f"block {index} of {type(model).__name__} has no module {name!r}{nearest(name, names)}, which the "
                    "anatomy of its family names; describe it with rankwise.register_anatomy"
                )
    return {f"{stack}.{index}": block for index, block in enumerate(blocks)}


def width(block: nn.Module, anatomy: Anatomy) -> int:
    """Return the hidden size d of a block, read off the norm at mid."""
    norm: Any = block.get_submodule(anatomy.mid[0])
    shape = norm.normalized_shape if isinstance(norm, nn.LayerNorm) else norm.weight.shape
    return int(shape[-1])
