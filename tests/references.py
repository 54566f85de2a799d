"""Hand-written forward passes of every family, block paths included: the oracle of the hooks that add them.

Letters: ``h`` a block's input, ``SA`` attention, ``FFN`` feed-forward, ``LNa`` and ``LNf`` the norms at the two
residual sums, ``u`` ("mid") the feed-forward's input on the residual stream, ``u_prev`` that of the block before.
All in the model's dtype but for what transformers computes in float32: RMS norms, the rotary table, and Gemma 2's
softmax.
"""

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


def reference(
    model: Any, ids: Tensor, on: Mapping[str, Weights], *, built: Collection[str] = (), norm: str = "inside"
) -> Tensor:
    """Return the logits of a bare model with paths.

    Args:
        model: The base model, whose weights and config are read and whose forward pass is not used.
        ids: Token ids, batch x n.
        on: The weights of each path that contributes, by name, linear ones included.
        built: Names of all paths the model has.
        norm: ``shortcut_norm``.
    """
    paths = Paths(on, built, norm)
    if model.config.model_type in ("bert", "roberta"):
        return encoder(model, ids, paths)
    if model.config.model_type == "opt":
        return opt(model, ids, paths)
    return decoder(model, ids, paths)


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


def layer_norm(module: Any, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * module.weight + module.bias


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


def rotate(x: Tensor, base: float) -> Tensor:
    """Turn each pair (j, j + half) of a head, batch x n x heads x head size, by its position's angle."""
    size = x.shape[-1]
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# The families.


def encoder(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """BERT and RoBERTa with a classifier: post-LN, every token sees every other."""
    config, roberta = model.config, model.config.model_type == "roberta"
    body = model.roberta if roberta else model.bert
    eps, heads = config.layer_norm_eps, config.num_attention_heads
    size = config.hidden_size // heads
    first = config.pad_token_id + 1 if roberta else 0

    tables = body.embeddings
    positions = torch.arange(first, first + ids.shape[1])
    h = tables.word_embeddings.weight[ids] + tables.token_type_embeddings.weight[0]
    h = layer_norm(tables.LayerNorm, h + tables.position_embeddings.weight[positions], eps)

    u: Tensor | None = None
    for index, block in enumerate(body.encoder.layer):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            own = block.attention.self
            q = linear(own.query, x) + paths(f"layers.{index}.query", x)
            v = linear(own.value, x) + paths(f"layers.{index}.value", x)
            q, k, v = (part.unflatten(-1, (heads, size)) for part in (q, linear(own.key, x), v))
            return linear(block.attention.output.dense, attention(q, k, v, size**-0.5, None))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            return linear(block.output.dense, F.gelu(linear(block.intermediate.dense, x)))

        def LNa(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.attention.output.LayerNorm, x, eps)

        def LNf(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.output.LayerNorm, x, eps)

        h, u = post_norm_block(h, u, index, paths, SA, FFN, LNa, LNf)

    if roberta:
        return linear(model.classifier.out_proj, linear(model.classifier.dense, h[:, 0]).tanh())
    return linear(model.classifier, linear(body.pooler.dense, h[:, 0]).tanh())


def opt(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """OPT, its norms after the sums (350M) or before the branches (all others)."""
    body, heads, eps = model.model.decoder, model.config.num_attention_heads, 1e-5
    size, n = model.config.hidden_size // heads, ids.shape[1]

    h = body.embed_tokens.weight[ids]
    if body.project_in is not None:
        h = linear(body.project_in, h)
    h = h + body.embed_positions.weight[torch.arange(2, 2 + n)]

    u: Tensor | None = None
    for index, block in enumerate(body.layers):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            own = block.self_attn
            q = linear(own.q_proj, x) + paths(f"layers.{index}.q_proj", x)
            v = linear(own.v_proj, x) + paths(f"layers.{index}.v_proj", x)
            q, k, v = (part.unflatten(-1, (heads, size)) for part in (q, linear(own.k_proj, x), v))
            return linear(own.out_proj, attention(q, k, v, size**-0.5, visible(n)))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            return linear(block.fc2, F.relu(linear(block.fc1, x)))

        def LNa(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.self_attn_layer_norm, x, eps)

        def LNf(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.final_layer_norm, x, eps)

        if model.config.do_layer_norm_before:
            h, u = pre_norm_block(h, u, index, paths, composed(SA, LNa), composed(FFN, LNf))
        else:
            h, u = post_norm_block(h, u, index, paths, SA, FFN, LNa, LNf)

    if model.config.do_layer_norm_before:
        h = layer_norm(body.final_layer_norm, h, eps)
    if body.project_out is not None:
        h = linear(body.project_out, h)
    return linear(model.lm_head, h)


def composed(outer: Map, inner: Map) -> Map:
    return lambda x: outer(inner(x))


def decoder(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """LLaMA, Mistral, Qwen 2 and 3, Gemma 1; and Gemma 2 and 3, which also norm what the branches return."""
    config = model.config
    gemma = config.model_type.startswith("gemma")
    sandwich = config.model_type in ("gemma2", "gemma3_text")

    def norm(module: Any, x: Tensor) -> Tensor:
        return rms_norm(module, x, config.rms_norm_eps, gemma=gemma)

    h = model.model.embed_tokens.weight[ids]
    if gemma:
        h = h * config.hidden_size**0.5

    u: Tensor | None = None
    for index, block in enumerate(model.model.layers):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            y = decoder_attention(config, block.self_attn, index, norm(block.input_layernorm, x), norm, paths)
            return norm(block.post_attention_layernorm, y) if sandwich else y

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            if sandwich:
                y = gated(block.mlp, norm(block.pre_feedforward_layernorm, x), gemma=gemma)
                return norm(block.post_feedforward_layernorm, y)
            return gated(block.mlp, norm(block.post_attention_layernorm, x), gemma=gemma)

        h, u = pre_norm_block(h, u, index, paths, SA, FFN)

    logits = linear(model.lm_head, norm(model.model.norm, h))
    softcap = config.final_logit_softcapping if sandwich else None
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def decoder_attention(
    config: Any, own: Any, index: int, x: Tensor, norm: Callable[[Any, Tensor], Tensor], paths: Paths
) -> Tensor:
    """Grouped-query attention of a normed input with rotary positions; linear paths read the normed input."""
    q = linear(own.q_proj, x) + paths(f"layers.{index}.q_proj", x)
    v = linear(own.v_proj, x) + paths(f"layers.{index}.v_proj", x)
    size = own.q_proj.weight.shape[0] // config.num_attention_heads
    q, k, v = (part.unflatten(-1, (-1, size)) for part in (q, linear(own.k_proj, x), v))
    if config.model_type in ("qwen3", "gemma3_text"):
        q, k = norm(own.q_norm, q), norm(own.k_norm, k)

    window, rope, scale, softcap = None, config.rope_parameters, size**-0.5, None
    if config.model_type == "mistral":
        window = config.sliding_window
    if config.model_type in ("gemma2", "gemma3_text"):
        window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        scale = config.query_pre_attn_scalar**-0.5
    if config.model_type == "gemma2":
        softcap = config.attn_logit_softcapping
    if config.model_type == "gemma3_text":
        rope = rope[config.layer_types[index]]
    q, k = rotate(q, rope["rope_theta"]), rotate(k, rope["rope_theta"])
    return linear(own.o_proj, attention(q, k, v, scale, visible(x.shape[1], window), softcap))


def gated(mlp: Any, x: Tensor, *, gemma: bool) -> Tensor:
    gate = linear(mlp.gate_proj, x)
    gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
    return linear(mlp.down_proj, gate * linear(mlp.up_proj, x))
