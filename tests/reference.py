"""Reading and writing memory the slow way: concatenate, attend with an explicit softmax, no cache, no hooks.

Written from the papers (REFERENCE sections 5 to 7), without `remanence.core`. Works on the layers of any Llama-like
decoder of transformers, and only uses their linear maps, norms and MLPs.

Legend:  P prefix (start and memory vectors)   T tokens   S = P + T   D hidden size   H heads   E head size
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel


def rotate(x_HSE: Tensor, theta: float) -> Tensor:
    """Rotary positions 0..S-1: the pair (i, i + E/2) turns by position * theta^(-2i/E)."""
    _, length, size = x_HSE.shape
    out = torch.empty_like(x_HSE)
    half = size // 2
    positions = torch.arange(length, dtype=torch.float32)
    for i in range(half):
        angle = positions * theta ** (-2 * i / size)
        a, b = x_HSE[..., i], x_HSE[..., i + half]
        out[..., i] = a * angle.cos() - b * angle.sin()
        out[..., i + half] = b * angle.cos() + a * angle.sin()
    return out


def run_layer(model: PreTrainedModel, layer: int, x_SD: Tensor, first: int, bias_S: Tensor | None = None) -> Tensor:
    """Outputs of a layer at positions `first`.., which alone are queries [S - first, D].

    Args:
        x_SD: everything the layer sees, oldest first.
        bias_S: added to the attention logits of each key.
    """
    module, config = model.model.layers[layer], model.config
    attention, theta = module.self_attn, config.rope_parameters["rope_theta"]
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    normed = module.input_layernorm(x_SD)
    q = attention.q_proj(normed).view(-1, heads, size)
    k = attention.k_proj(normed).view(-1, kv_heads, size)
    v = attention.v_proj(normed).view(-1, kv_heads, size)
    if config.model_type == "qwen3":
        q, k = attention.q_norm(q), attention.k_norm(k)
    q = rotate(q.transpose(0, 1), theta)[:, first:]
    k, v = rotate(k.transpose(0, 1), theta), v.transpose(0, 1)
    mixed = []
    for head in range(heads):
        group = head // (heads // kv_heads)
        logits = q[head] @ k[group].T / math.sqrt(size)
        if bias_S is not None:
            logits = logits + bias_S
        future = torch.arange(len(x_SD))[None] > torch.arange(first, len(x_SD))[:, None]
        logits = logits.masked_fill(future, -math.inf)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        mixed.append(weights / weights.sum(-1, keepdim=True) @ v[group])
    hidden = x_SD[first:] + attention.o_proj(torch.cat(mixed, -1))
    return hidden + module.mlp(module.post_attention_layernorm(hidden))


def run_any_layer(model: PreTrainedModel, layer: int, x_SD: Tensor, first: int, bias_S: Tensor | None = None) -> Tensor:
    """The same for any family: the untouched layer runs over everything, without a cache, and the prefix is cut off.

    Only the mask is made here: causal, the layer's window counted from position to position, and the bias.
    """
    decoder = model.get_decoder()
    module, config = decoder.layers[layer], decoder.config
    positions = torch.arange(len(x_SD))
    kind = config.layer_types[layer] if getattr(config, "layer_types", None) else "full_attention"
    window = getattr(config, "sliding_window", None)
    if not hasattr(config, "layer_types") and window:  # one window for all layers
        kind = "sliding_attention"
    age = positions[:, None] - positions[None]
    hidden = (age < 0) | ((age >= window) if kind == "sliding_attention" else False)
    mask = torch.zeros(age.shape) if bias_S is None else bias_S.expand(age.shape)
    mask = mask.masked_fill(hidden, torch.finfo(x_SD.dtype).min)[None, None]
    two_sets = config.model_type.startswith("gemma3")
    rotary = decoder.rotary_emb(x_SD[None], positions[None], *([kind] if two_sets else []))
    out = module(x_SD[None], attention_mask=mask, position_embeddings=rotary, position_ids=positions[None])
    return (out if isinstance(out, Tensor) else out[0])[0, first:]


def read_any(
    model: PreTrainedModel, ids: list[int], memory: Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
) -> Tensor:
    """`read` for any family: the model's own forward, with every layer replaced by `run_any_layer`."""
    decoder = model.get_decoder()
    count = len(decoder.layers)
    hooks, done = [], [False] * count

    def hook_of(layer: int) -> Callable[..., Tensor | None]:
        def hook(_module: object, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if done[layer]:  # our own call of the layer
                return None
            done[layer] = True
            hidden = (args[0] if args else kwargs["hidden_states"])[0]
            vectors, bias = memory(layer, hidden)
            if bias is not None:
                bias = torch.cat([bias, torch.zeros(len(hidden))])
            return run_any_layer(model, layer, torch.cat([vectors, hidden]), len(vectors), bias)[None]

        return hook

    for layer in range(count):
        hooks.append(decoder.layers[layer].register_forward_hook(hook_of(layer), with_kwargs=True))
    try:
        return model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def read(
    model: PreTrainedModel, ids: list[int], memory: Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
) -> Tensor:
    """Logits of a prompt [T, vocabulary].

    Args:
        memory: (layer, hidden states that enter it) -> the vectors in front, start included [P, D], and the bias [P].
    """
    hidden = model.model.embed_tokens(torch.tensor(ids))
    for layer in range(len(model.model.layers)):
        vectors, bias = memory(layer, hidden)
        if bias is not None:
            bias = torch.cat([bias, torch.zeros(len(hidden))])
        hidden = run_layer(model, layer, torch.cat([vectors, hidden]), len(vectors), bias)
    return model.lm_head(model.model.norm(hidden))


def write(
    model: PreTrainedModel, ids: list[int], prefix: list[Tensor], offset_D: Tensor | None, count: int, tap: str
) -> Tensor:
    """The K new vectors of every layer [L, K, D], for a chunk of at least K tokens.

    Args:
        prefix: per layer, what the chunk sees, start included [P, D].
        count: K.
    """
    hidden = model.model.embed_tokens(torch.tensor(ids))
    new = []
    for layer in range(len(model.model.layers)):
        x = torch.cat([prefix[layer], hidden])
        if tap == "input":
            new.append(x[-count:])
        if offset_D is not None:
            x = torch.cat([x[:-count], x[-count:] + offset_D])
        hidden = run_layer(model, layer, x, len(prefix[layer]))
        if tap == "output":
            new.append(hidden[-count:])
    return torch.stack(new)


def block_scores(queries: Tensor, keys: list[Tensor], scale: float) -> list[float]:
    """Late interaction, one write after the other: mean over question tokens of the best key's product."""
    scores = []
    for keys_of_write in keys:
        best = [max(float(q @ k) for k in keys_of_write) for q in queries]
        scores.append(scale * sum(best) / len(best))
    return scores


def vector_scores(queries: Tensor, keys: list[Tensor]) -> list[float]:
    """M+ eq. 4: mean over question tokens of sigmoid(q . k), one score a vector."""
    return [
        sum(1 / (1 + math.exp(-float(q @ k))) for q in queries) / len(queries)
        for keys_of_write in keys
        for k in keys_of_write
    ]


def best_rows(
    scores: list[float], *, first: int, writes: int, count: int, in_pool: set[int], wanted: int, block: bool
) -> list[int]:
    """The long-term rows to read, oldest first: best score first, less those still in the pool.

    Args:
        scores: of the writes `first`.. (block) or of their vectors.
        count: K.
        wanted: how many to read.
    """
    rows = range(first * count, writes * count)
    key = (lambda row: scores[row // count - first]) if block else (lambda row: scores[row - first * count])
    ranked = sorted((row for row in rows if row not in in_pool), key=lambda row: (-key(row), row))
    return sorted(ranked[:wanted])
