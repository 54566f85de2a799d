"""Hand-written forward passes of every family, block paths included: the oracle of the hooks that add them.

Letters: ``h`` a block's input, ``SA`` attention, ``FFN`` feed-forward, ``LNa`` and ``LNf`` the norms at the two
residual sums, ``u`` ("mid") the feed-forward's input on the residual stream, ``u_prev`` that of the block before.
All in the model's dtype but for what transformers computes in float32: RMS norms, the rotary table, Gemma 2's
softmax, and the probabilities of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tests.reference_parts import (
    Paths,
    Weights,
    attention,
    composed,
    conv1d,
    experts,
    gated,
    layer_norm,
    linear,
    near,
    post_norm_block,
    pre_norm_block,
    rms_norm,
    rotate,
    visible,
)
from torch import Tensor


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
    return FORWARD.get(model.config.model_type, decoder)(model, ids, paths)


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


def gpt2(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """GPT-2: pre-LN, one projection for queries, keys and values, weights i x o."""
    config, body = model.config, model.transformer
    heads, eps, n = config.n_head, config.layer_norm_epsilon, ids.shape[1]
    size = config.n_embd // heads
    h = body.wte.weight[ids] + body.wpe.weight[torch.arange(n)]

    u: Tensor | None = None
    for index, block in enumerate(body.h):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            x = layer_norm(block.ln_1, x, eps)
            qkv = conv1d(block.attn.c_attn, x) + paths(f"layers.{index}.c_attn", x)
            q, k, v = (part.unflatten(-1, (heads, size)) for part in qkv.chunk(3, dim=-1))
            return conv1d(block.attn.c_proj, attention(q, k, v, size**-0.5, visible(n)))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            hidden = F.gelu(conv1d(block.mlp.c_fc, layer_norm(block.ln_2, x, eps)), approximate="tanh")
            return conv1d(block.mlp.c_proj, hidden)

        h, u = pre_norm_block(h, u, index, paths, SA, FFN)

    return linear(model.lm_head, layer_norm(body.ln_f, h, eps))


def distilbert(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """DistilBERT with a classifier: post-LN, every token sees every other."""
    body, heads, eps = model.distilbert, model.config.n_heads, 1e-12
    size = model.config.dim // heads
    tables = body.embeddings
    h = tables.word_embeddings.weight[ids] + tables.position_embeddings.weight[torch.arange(ids.shape[1])]
    h = layer_norm(tables.LayerNorm, h, eps)

    u: Tensor | None = None
    for index, block in enumerate(body.transformer.layer):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            own = block.attention
            q = linear(own.q_lin, x) + paths(f"layers.{index}.q_lin", x)
            v = linear(own.v_lin, x) + paths(f"layers.{index}.v_lin", x)
            q, k, v = (part.unflatten(-1, (heads, size)) for part in (q, linear(own.k_lin, x), v))
            return linear(own.out_lin, attention(q, k, v, size**-0.5, None))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            return linear(block.ffn.lin2, F.gelu(linear(block.ffn.lin1, x)))

        def LNa(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.sa_layer_norm, x, eps)

        def LNf(x: Tensor, block: Any = block) -> Tensor:
            return layer_norm(block.output_layer_norm, x, eps)

        h, u = post_norm_block(h, u, index, paths, SA, FFN, LNa, LNf)

    return linear(model.classifier, F.relu(linear(model.pre_classifier, h[:, 0])))


def modernbert(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """ModernBERT with a classifier: pre-LN but for the first attention, local and global attention, gated."""
    config, body = model.config, model.model
    eps, n = config.norm_eps, ids.shape[1]
    size = config.hidden_size // config.num_attention_heads
    h = layer_norm(body.embeddings.norm, body.embeddings.tok_embeddings.weight[ids], eps)

    u: Tensor | None = None
    for index, block in enumerate(body.layers):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            kind = config.layer_types[index]
            x = x if index == 0 else layer_norm(block.attn_norm, x, eps)
            qkv = linear(block.attn.Wqkv, x) + paths(f"layers.{index}.Wqkv", x)
            q, k, v = (part.unflatten(-1, (-1, size)) for part in qkv.chunk(3, dim=-1))
            q, k = (rotate(part, config.rope_parameters[kind]["rope_theta"], single=True) for part in (q, k))
            seen = near(n, config.local_attention // 2) if kind == "sliding_attention" else None
            return linear(block.attn.Wo, attention(q, k, v, size**-0.5, seen))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            hidden, gate = linear(block.mlp.Wi, layer_norm(block.mlp_norm, x, eps)).chunk(2, dim=-1)
            return linear(block.mlp.Wo, F.gelu(hidden) * gate)

        h, u = pre_norm_block(h, u, index, paths, SA, FFN)

    pooled = layer_norm(body.final_norm, h, eps)[:, 0]
    return linear(model.classifier, layer_norm(model.head.norm, F.gelu(linear(model.head.dense, pooled)), eps))


def vit(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """ViT with a classifier: pre-LN over the patches of an image and one token beside them."""
    config, body = model.config, model.vit
    heads, eps, patch = config.num_attention_heads, config.layer_norm_eps, config.patch_size
    size = config.hidden_size // heads
    tables = body.embeddings
    kernel = tables.patch_embeddings.projection
    patches = F.unfold(model.images(ids).to(kernel.weight.dtype), patch, stride=patch).mT  # batch x patches x (c p p)
    patches = patches @ kernel.weight.flatten(1).T + kernel.bias
    h = torch.cat((tables.cls_token.expand(len(ids), -1, -1), patches), dim=1) + tables.position_embeddings

    u: Tensor | None = None
    for index, block in enumerate(body.layers):

        def SA(x: Tensor, block: Any = block, index: int = index) -> Tensor:
            own, x = block.attention, layer_norm(block.layernorm_before, x, eps)
            q = linear(own.q_proj, x) + paths(f"layers.{index}.q_proj", x)
            v = linear(own.v_proj, x) + paths(f"layers.{index}.v_proj", x)
            q, k, v = (part.unflatten(-1, (heads, size)) for part in (q, linear(own.k_proj, x), v))
            return linear(own.o_proj, attention(q, k, v, size**-0.5, None))

        def FFN(x: Tensor, block: Any = block) -> Tensor:
            return linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, layer_norm(block.layernorm_after, x, eps))))

        h, u = pre_norm_block(h, u, index, paths, SA, FFN)

    return linear(model.classifier, layer_norm(body.layernorm, h, eps)[:, 0])


def decoder(model: Any, ids: Tensor, paths: Paths) -> Tensor:
    """LLaMA, Mistral, Qwen 2 and 3, Gemma 1; Mixtral, Qwen 2 and 3 with experts; Phi-3, whose projections are fused;
    and Gemma 2 and 3, which also norm what the branches return."""
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
            return feed_forward(config, block.mlp, norm(block.post_attention_layernorm, x), gemma=gemma)

        h, u = pre_norm_block(h, u, index, paths, SA, FFN)

    logits = linear(model.lm_head, norm(model.model.norm, h))
    softcap = config.final_logit_softcapping if sandwich else None
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def decoder_attention(
    config: Any, own: Any, index: int, x: Tensor, norm: Callable[[Any, Tensor], Tensor], paths: Paths
) -> Tensor:
    """Grouped-query attention of a normed input with rotary positions; linear paths read the normed input."""
    if config.model_type == "phi3":
        size = config.hidden_size // config.num_attention_heads
        widths = [size * count for count in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
        q, k, v = (linear(own.qkv_proj, x) + paths(f"layers.{index}.qkv_proj", x)).split(widths, dim=-1)
    else:
        size = own.q_proj.weight.shape[0] // config.num_attention_heads
        q, k = linear(own.q_proj, x) + paths(f"layers.{index}.q_proj", x), linear(own.k_proj, x)
        v = linear(own.v_proj, x) + paths(f"layers.{index}.v_proj", x)
    q, k, v = (part.unflatten(-1, (-1, size)) for part in (q, k, v))
    if config.model_type in ("qwen3", "qwen3_moe", "gemma3_text"):
        q, k = norm(own.q_norm, q), norm(own.k_norm, k)

    window, rope, scale, softcap = None, config.rope_parameters, size**-0.5, None
    if config.model_type in ("mistral", "mixtral", "phi3"):
        window = config.sliding_window
    if config.model_type in ("gemma2", "gemma3_text"):
        window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        scale = config.query_pre_attn_scalar**-0.5
    if config.model_type == "gemma2":
        softcap = config.attn_logit_softcapping
    if config.model_type == "gemma3_text":
        rope = rope[config.layer_types[index]]
    q, k = (rotate(part, rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)) for part in (q, k))
    return linear(own.o_proj, attention(q, k, v, scale, visible(x.shape[1], window), softcap))


def feed_forward(config: Any, mlp: Any, x: Tensor, *, gemma: bool) -> Tensor:
    """Return the feed-forward part of a normed mid: gated, with the two first maps apart or in one, or experts."""
    if config.model_type == "phi3":
        gate, up = linear(mlp.gate_up_proj, x).chunk(2, dim=-1)
        return linear(mlp.down_proj, F.silu(gate) * up)
    if hasattr(mlp, "experts"):
        normalised = config.model_type == "mixtral" or config.norm_topk_prob
        return experts(mlp, x, k=config.num_experts_per_tok, normalised=normalised)
    return gated(mlp, x, gemma=gemma)


FORWARD: dict[str, Callable[[Any, Tensor, Paths], Tensor]] = {
    "bert": encoder,
    "roberta": encoder,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "vit": vit,
    "opt": opt,
    "gpt2": gpt2,
}
