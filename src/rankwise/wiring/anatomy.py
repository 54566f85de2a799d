"""Where things are in a model family: the one place that knows module names.

A *block* is one transformer layer, *mid* the residual stream between its attention and its feed-forward part. Block
``l`` of a model is named ``layers.l`` whatever the family calls it, so a path has the same name in every family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from rankwise.errors import check_choice, nearest

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
        query: The query projection, where LoR2C injects LoRA.
        value: The value projection. Where one projection makes queries, keys and values, both name that one.
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


def pre_norm(
    *,
    feed_forward_norm: str,
    feed_forward_last: str,
    query: str,
    value: str,
    blocks: str = "layers",
    attention: str = "self_attn",
    attention_norm: str = "input_layernorm",
    attention_last: str = "",
) -> Anatomy:
    """Describe a family whose norms lie inside the branches: ``u = h + SA(norm(h))``, ``out = u + FFN(norm(u))``.

    Args:
        feed_forward_norm: The norm that reads mid.
        feed_forward_last: Last module before the feed-forward's sum; empty for the block itself, after it.
        query: The query projection.
        value: The value projection.
        blocks: Name of the list of blocks.
        attention: The attention module.
        attention_norm: The norm that reads the block's input.
        attention_last: Last module before the attention's sum; the attention module if left out.
    """
    return Anatomy(
        blocks=blocks,
        norm="pre",
        attention=attention,
        block_input=(attention_norm, "input"),
        attention_sum=(attention_last or attention, "output"),
        mid=(feed_forward_norm, "input"),
        feed_forward_sum=(feed_forward_last, "output"),
        query=query,
        value=value,
    )


def dropping(described: Anatomy) -> Anatomy:
    """Describe a family with a dropout between each branch and its sum.

    The same dropout runs in both branches, or none is a module, so the sums themselves have to be met.
    """
    return replace(described, attention_sum=described.mid, carry=True)


BERT = post_norm(
    blocks="encoder.layer",
    attention="attention",
    attention_norm="attention.output.LayerNorm",
    feed_forward_norm="output.LayerNorm",
    query="attention.self.query",
    value="attention.self.value",
)
DISTILBERT = post_norm(
    blocks="transformer.layer",
    attention="attention",
    attention_norm="sa_layer_norm",
    feed_forward_norm="output_layer_norm",
    query="attention.q_lin",
    value="attention.v_lin",
)
QV = {"query": "self_attn.q_proj", "value": "self_attn.v_proj"}
LLAMA = pre_norm(feed_forward_norm="post_attention_layernorm", feed_forward_last="mlp", **QV)
GEMMA2 = pre_norm(  # its branches end in a norm of their own
    attention_last="post_attention_layernorm",
    feed_forward_norm="pre_feedforward_layernorm",
    feed_forward_last="post_feedforward_layernorm",
    **QV,
)
PHI3 = pre_norm(  # its branches end in a dropout of their own
    attention_last="resid_attn_dropout",
    feed_forward_norm="post_attention_layernorm",
    feed_forward_last="resid_mlp_dropout",
    query="self_attn.qkv_proj",
    value="self_attn.qkv_proj",
)
GPT2 = pre_norm(
    blocks="h",
    attention="attn",
    attention_norm="ln_1",
    feed_forward_norm="ln_2",
    feed_forward_last="mlp",
    query="attn.c_attn",
    value="attn.c_attn",
)
MODERNBERT = pre_norm(
    attention="attn",
    attention_norm="attn_norm",  # in the first block an identity, since the embeddings are normed
    feed_forward_norm="mlp_norm",
    feed_forward_last="mlp",
    query="attn.Wqkv",
    value="attn.Wqkv",
)
OPT_POST = post_norm(
    blocks="decoder.layers",
    attention="self_attn",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="final_layer_norm",
    query="self_attn.q_proj",
    value="self_attn.v_proj",
)
OPT_PRE = dropping(
    pre_norm(
        blocks="decoder.layers",
        attention_norm="self_attn_layer_norm",
        feed_forward_norm="final_layer_norm",
        feed_forward_last="",
        **QV,
    )
)
VIT = dropping(
    pre_norm(
        attention="attention",
        attention_norm="layernorm_before",
        feed_forward_norm="layernorm_after",
        feed_forward_last="",
        query="attention.q_proj",
        value="attention.v_proj",
    )
)


Describe = Callable[[Any], Anatomy]


def _whole(anatomy: Anatomy) -> Describe:
    """Describe a family, where its blocks have one mid that is read whole."""

    def describe(config: Any) -> Anatomy:
        pieces = getattr(config, "chunk_size_feed_forward", 0)
        if pieces:
            raise ValueError(
                f"chunk_size_feed_forward={pieces} feeds mid to the feed-forward piece by piece, and shortcuts need "
                "it whole: set it to 0 in the model's config, or leave shortcuts out"
            )
        if getattr(config, "add_cross_attention", False):
            raise ValueError(
                "a block with cross-attention has two mids, so shortcuts are not defined: leave shortcuts out"
            )
        return anatomy

    return describe


FAMILIES: dict[str, Anatomy | Describe] = {
    "bert": _whole(BERT),
    "roberta": _whole(BERT),
    "xlm-roberta": _whole(BERT),
    "distilbert": _whole(DISTILBERT),
    "modernbert": MODERNBERT,
    "vit": VIT,
    "gpt2": _whole(GPT2),
    "opt": lambda config: OPT_PRE if config.do_layer_norm_before else OPT_POST,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mixtral": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3_moe": LLAMA,
    "phi3": PHI3,
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
