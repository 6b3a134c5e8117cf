"""The co-trained retriever of M+ (§3.2): which remembered writes matter for this question, per layer.

Legend:  B batch   T question tokens   W writes   G keys per write   R retriever width   D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHORTLIST = 128  # writes that are scored again in float32
_GROUPS = 8  # keys of each write that `vector_scores` takes at once: few enough to stay in the processor's cache
_SHARPNESS = 5.0  # of the softmax over writes in `attention_scores`; 3 to 8 were about as good


class Retriever(nn.Module):
    """f_q and f_k of every layer, and the score of "nothing relevant here".

    f_q and f_k are two-layer perceptrons without bias on the layer's normed hidden states (M+ §3.2, code "query_proj",
    "key_proj"). f_k starts as a copy of f_q, so that equal states match from the first step.

    Args:
        layers: decoder layers, L.
        hidden_size: width of the hidden states, D.
        dim: width of queries and keys, R.
        depth: 1 makes them single linear layers.
    """

    def __init__(self, layers: int, hidden_size: int, dim: int, depth: int = 2) -> None:
        super().__init__()

        def perceptron() -> nn.Module:
            if depth == 1:
                return nn.Linear(hidden_size, dim, bias=False)
            return nn.Sequential(
                nn.Linear(hidden_size, 2 * dim, bias=False), nn.SiLU(), nn.Linear(2 * dim, dim, bias=False)
            )

        self.query = nn.ModuleList(perceptron() for _ in range(layers))
        self.key = nn.ModuleList(perceptron() for _ in range(layers))
        self.key.load_state_dict(self.query.state_dict())
        self.null = nn.Parameter(torch.zeros(layers))
        self.scale = dim**-0.5

    def queries(self, layer: int, normed_BTD: Tensor) -> Tensor:
        """f_q: normed hidden states of the question -> queries [B, T, R]."""
        return self.query[layer](normed_BTD)

    def keys(self, layer: int, normed_WKD: Tensor, group: int = 1) -> Tensor:
        """f_k: normed memory vectors of writes -> keys [W, K / group, R]; a group of neighbours shares their sum."""
        keys_WKR = self.key[layer](normed_WKD)
        return keys_WKR if group == 1 else keys_WKR.unflatten(1, (-1, group)).sum(2)


def block_scores(queries_TR: Tensor, keys_GWR: Tensor, scale: float, exact: Tensor | None = None) -> Tensor:
    """Score of each write: the mean over question tokens of its best key (late interaction), float32 [W].

    With keys in bfloat16 all writes are first scored in bfloat16, which is fast; the best of them and those named in
    `exact` are then scored again in float32. Only these scores are exact; the others are right to about 1 %.

    Args:
        queries_TR: queries of the question's tokens.
        keys_GWR: keys of all writes in order, the g-th key of every write together.
        scale: multiplies the products.
        exact: writes whose score must be exact.
    """
    coarse_RT = queries_TR.to(keys_GWR.dtype).T.contiguous()
    best_WT = keys_GWR[0] @ coarse_RT  # this way round it reads the keys faster
    for keys_WR in keys_GWR[1:]:
        torch.maximum(best_WT, keys_WR @ coarse_RT, out=best_WT)
    scores = best_WT.float().mean(1) * scale
    if keys_GWR.dtype != torch.float32:
        short = scores.topk(min(_SHORTLIST, len(scores))).indices
        short = short if exact is None else torch.cat([short, exact])
        scores[short] = block_scores_of(short, queries_TR, keys_GWR, scale)
    return scores


def block_scores_of(writes: Tensor, queries_TR: Tensor, keys_GWR: Tensor, scale: float) -> Tensor:
    """`block_scores` of the writes with these numbers alone, all exact, float32 [len(writes)]."""
    keys_GSR = torch.stack([keys_WR.index_select(0, writes) for keys_WR in keys_GWR])  # faster than all at once
    products_GTS = queries_TR.float() @ keys_GSR.float().transpose(1, 2)
    return products_GTS.amax(0).mean(0) * scale


def vector_scores(queries_TR: Tensor, keys_GWR: Tensor) -> Tensor:
    """Score of each vector in the paper (M+ eq. 4): the mean over question tokens of sigmoid(q . k) [W * G]."""
    queries_RT = queries_TR.float().T
    scores = [(keys.float() @ queries_RT).sigmoid_().mean(2) for keys in keys_GWR.split(_GROUPS)]
    return torch.cat(scores).T.flatten()


def attention_keys(keys_KHE: Tensor) -> Tensor:
    """Keys of one write for `attention_scores`: the layer's own, without positions, each of length one [K, H * E]."""
    return nn.functional.normalize(keys_KHE.float(), dim=-1).flatten(-2)


def attention_scores(queries_TQE: Tensor, keys_GWR: Tensor, heads: int, block: bool = True) -> Tensor:
    """Score of each write, or vector, by the layer's own queries and keys without positions, float32 [W] or [W * G].

    Every token and head of the question spreads one vote over all writes: the softmax of the cosines with their best
    keys, in units of the spread that cosines of random vectors have. The score is the logarithm of a write's mean vote
    against an equal share, 0 for one that is named as often as any other.

    Args:
        queries_TQE: the question's queries, Q heads.
        keys_GWR: of all writes in order, made by `attention_keys`.
        heads: H; each is shared by Q / H query heads.
        block: score writes by their best key; otherwise every key by itself.
    """
    size = queries_TQE.shape[-1]
    if not block:
        keys_GWR = keys_GWR.transpose(0, 1).flatten(0, 1)[None]
    queries = nn.functional.normalize(queries_TQE.float(), dim=-1)
    queries_HXE = queries.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)
    best: Tensor | None = None
    for keys_WR in keys_GWR:
        cosines_HXW = queries_HXE @ keys_WR.float().unflatten(-1, (heads, size)).permute(1, 2, 0)
        best = cosines_HXW if best is None else torch.maximum(best, cosines_HXW)
    assert best is not None
    votes = (best * (_SHARPNESS * size**0.5)).softmax(-1).mean((0, 1))
    return (votes * len(votes)).clamp_min(1e-12).log()
