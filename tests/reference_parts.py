"""What the hand-written forward passes are made of: paths, the two kinds of block, and layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[Tensor, Tensor, float]  # A (r x i), B (o x r), s
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Paths:
    """The paths of a model.

    Args:
        on: The weights of each path that contributes, by name.
        built: Names of all paths the model has; a second norm runs for these, whether they contribute or not.
        norm: ``shortcut_norm``.
    """

    on: Mapping[str, Weights]
    built: Collection[str]
    norm: str
    sources: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, block: int, h: Tensor) -> None:
        """Remember the input of the spans that start at a block."""
        self.sources.update({name: h for name in self.on if name.startswith(f"layers.{block}-")})

    def leave(self, block: int) -> Tensor | float:
        """Return what the spans that end at a block add."""
        return sum(self(name, h) for name, h in self.sources.items() if name.endswith(f"-{block}.layer"))

    def __call__(self, name: str, x: Tensor | None) -> Tensor | float:
        """Return ``s B A x``, or 0 for a path that is off and for the first block's ``cut``, which has no source."""
        if x is None or name not in self.on:
            return 0.0
        a, b, s = self.on[name]
        return s * (x @ a.T @ b.T)


# The two kinds of block.


def post_norm_block(
    h: Tensor, u_prev: Tensor | None, block: int, paths: Paths, SA: Map, FFN: Map, LNa: Map, LNf: Map
) -> tuple[Tensor, Tensor]:
    """Return a post-LN block's output and its mid."""
    paths.enter(block, h)
    res1, res2, cut, into, layer = (f"layers.{block}.{kind}" for kind in ("res1", "res2", "cut", "in", "layer"))
    if paths.norm == "inside":
        u = LNa(h + SA(h) + paths(res1, h) + paths(cut, u_prev))
        out = LNf(u + FFN(u) + paths(res2, u) + paths(into, h))
    else:
        u = LNa(h + SA(h) + paths(res1, h))
        if cut in paths.built:
            u = LNa(u + paths(cut, u_prev))
        out = LNf(u + FFN(u) + paths(res2, u))
        if into in paths.built:
            out = LNf(out + paths(into, h))
    return out + paths(layer, h) + paths.leave(block), u


def pre_norm_block(
    h: Tensor, u_prev: Tensor | None, block: int, paths: Paths, SA: Map, FFN: Map
) -> tuple[Tensor, Tensor]:
    """Return a pre-LN block's output and its mid; the norms are part of ``SA`` and ``FFN``."""
    paths.enter(block, h)
    res1, res2, cut, into, layer = (f"layers.{block}.{kind}" for kind in ("res1", "res2", "cut", "in", "layer"))
    u = h + SA(h) + paths(res1, h) + paths(cut, u_prev)
    out = u + FFN(u) + paths(res2, u) + paths(into, h) + paths(layer, h)
    return out + paths.leave(block), u


# What the blocks are made of.


def linear(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def conv1d(module: Any, x: Tensor) -> Tensor:
    """Return what transformers' Conv1D does: its weight is i x o."""
    return x @ module.weight + module.bias


def layer_norm(module: Any, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * module.weight
    return normed if module.bias is None else normed + module.bias


def rms_norm(module: Any, x: Tensor, eps: float, *, gemma: bool) -> Tensor:
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    if gemma:  # scales around 1, still in float32
        return (x32 * (1.0 + module.weight.float())).to(x.dtype)
    return module.weight * x32.to(x.dtype)


def visible(n: int, window: int | None = None) -> Tensor:
    """Return which keys (columns) each query (row) of a causal model sees: itself and what came before."""
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    return (distance >= 0) & (distance < (window or n))


def near(n: int, window: int) -> Tensor:
    """Return which keys (columns) each query (row) sees on both sides: up to ``window`` tokens away."""
    return (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs() <= window


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None, softcap: float | None = None
) -> Tensor:
    """Return the heads' outputs side by side, batch x n x (heads * head size).

    Args:
        q: Queries, batch x n x heads x head size.
        k: Keys, batch x n x key-value heads x head size; each serves a group of neighbouring heads.
        v: Values, as ``k``.
        scale: Factor of the scores.
        seen: Which keys each query sees, n x n; all where None.
        softcap: Bound of the scores; with it transformers takes the softmax in float32.
    """
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    probabilities = torch.softmax(scores, -1, dtype=None if softcap is None else torch.float32).to(q.dtype)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, v).flatten(2)


def rotate(x: Tensor, base: float, part: float = 1.0, *, single: bool = False) -> Tensor:
    """Turn each pair (j, j + half) of a head, batch x n x heads x head size, by its position's angle.

    Args:
        x: Queries or keys.
        base: The longest wavelength, in tokens over 2 pi.
        part: The share of a head's entries, the first ones, that turn.
        single: Whether transformers rounds ``x`` to float32 here, once for each of the two products.
    """
    size = int(x.shape[-1] * part)
    x, fixed = x[..., :size], x[..., size:]
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None, None] * frequencies.repeat(2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    along, across = (x.float(), x.float()) if single else (x, x)
    first, second = across.chunk(2, dim=-1)
    return torch.cat(((along * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype), fixed), dim=-1)


def composed(outer: Map, inner: Map) -> Map:
    return lambda x: outer(inner(x))


def gated(mlp: Any, x: Tensor, *, gemma: bool) -> Tensor:
    gate = linear(mlp.gate_proj, x)
    gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
    return linear(mlp.down_proj, gate * linear(mlp.up_proj, x))


def experts(mlp: Any, x: Tensor, *, k: int, normalised: bool) -> Tensor:
    """Return the sum of each token's ``k`` likeliest experts, by their probabilities, which are float32.

    Every expert sees every token here; one that was not chosen has weight 0.

    Args:
        mlp: The router, the experts' weights and, in Qwen 2, an expert that always runs.
        x: The normed mid (.., d).
        k: How many experts a token has.
        normalised: Whether the weights of a token's experts sum to 1.
    """
    likely = torch.softmax(F.linear(x, mlp.gate.weight).float(), dim=-1)
    top, chosen = likely.topk(k, dim=-1)
    if normalised:
        top = top / top.sum(-1, keepdim=True)
    weights = torch.zeros_like(likely).scatter(-1, chosen, top).to(x.dtype)
    gates, ups = torch.einsum("eid,...d->...ei", mlp.experts.gate_up_proj, x).chunk(2, dim=-1)
    result = torch.einsum("edi,...ei,...e->...d", mlp.experts.down_proj, F.silu(gates) * ups, weights)
    if hasattr(mlp, "shared_expert"):
        result = result + torch.sigmoid(linear(mlp.shared_expert_gate, x)) * gated(mlp.shared_expert, x, gemma=False)
    return result
