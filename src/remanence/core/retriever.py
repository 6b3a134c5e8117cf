"""The co-trained retriever of M+ (§3.2): which remembered writes matter for this question, per layer.

Legend:  B batch   T question tokens   W writes   G keys per write   R retriever width   D hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_WRITES = 256  # whose keys are scored at once: few enough to stay in the processor's cache
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
        return self.query[layer](normed_BTD.to(self.null.dtype))

    def keys(self, layer: int, normed_WKD: Tensor, group: int = 1) -> Tensor:
        """f_k: normed memory vectors of writes -> keys [W, K / group, R]; a group of neighbours shares their sum."""
        keys_WKR = self.key[layer](normed_WKD.to(self.null.dtype))
        return keys_WKR if group == 1 else keys_WKR.unflatten(1, (-1, group)).sum(2)


def block_scores(queries_TR: Tensor, keys: Sequence[Tensor], scale: float) -> Tensor:
    """Score of each write: the mean over question tokens of its best key (late interaction), float32 [W].

    Keys of any number format are made float32 a few writes at a time, in the processor's cache: many processors
    multiply bfloat16 itself at a tenth of the speed.

    Args:
        queries_TR: queries of the question's tokens.
        keys: of all writes in order, in blocks [w, G, R].
        scale: multiplies the products.
    """
    queries, parts = queries_TR.float(), list[Tensor]()
    for some_wGR in (some for keys_wGR in keys for some in keys_wGR.split(_WRITES)):
        products = queries @ some_wGR.flatten(0, 1).float().T
        parts.append(products.unflatten(1, some_wGR.shape[:2]).amax(2).mean(0))
    return torch.cat(parts) * scale


def block_scores_of(writes: Tensor, queries_TR: Tensor, keys: Sequence[Tensor], scale: float) -> Tensor:
    """`block_scores` of the writes with these numbers alone, float32 [len(writes)]."""
    return block_scores(queries_TR, [rows_of(keys, writes)], scale)


def rows_of(blocks: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows of blocks that follow each other, by number [len(rows), ...]."""
    ascending, order = rows.sort()
    ends = torch.tensor([len(block) for block in blocks]).cumsum(0)
    cuts = [0, *torch.searchsorted(ascending, ends).tolist()]
    parts, start = list[Tensor](), 0
    for block, begin, end in zip(blocks, cuts, cuts[1:], strict=False):
        if begin < end:
            parts.append(block[ascending[begin:end] - start])
        start += len(block)
    found = blocks[0].new_empty(len(rows), *blocks[0].shape[1:])
    if parts:
        found[order] = torch.cat(parts)
    return found


def vector_scores(queries_TR: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Score of each vector in the paper (M+ eq. 4): the mean over question tokens of sigmoid(q . k) [W * G]."""
    queries_RT = queries_TR.float().T
    parts = [some_wGR for keys_wGR in keys for some_wGR in keys_wGR.split(_WRITES)]
    return torch.cat([(some.float() @ queries_RT).sigmoid_().mean(2).flatten() for some in parts])


def attention_keys(keys_KHE: Tensor) -> Tensor:
    """Keys of one write for `attention_scores`: the layer's own, without positions, each of length one [K, H * E]."""
    return nn.functional.normalize(keys_KHE.float(), dim=-1).flatten(-2)


def attention_scores(
    queries_TQE: Tensor,
    keys: Sequence[Tensor],
    heads: int,
    block: bool = True,
    hide: Callable[[Tensor], Tensor] = lambda cosines: cosines,
) -> Tensor:
    """Score of each write, or vector, by the layer's own queries and keys without positions, float32 [W] or [W * G].

    Every token and head of the question spreads one vote over all writes: the softmax of the cosines with their best
    keys, in units of the spread that cosines of random vectors have. The score is the logarithm of a write's mean vote
    against an equal share, 0 for one that is named as often as any other.

    Args:
        queries_TQE: the question's queries, Q heads.
        keys: of all writes in order, made by `attention_keys`, in blocks [w, G, R].
        heads: H; each is shared by Q / H query heads.
        block: score writes by their best key; otherwise every key by itself.
        hide: makes -inf of what may not be read (`Memory.hide`); it gets no vote, and the score -inf.
    """
    size = queries_TQE.shape[-1]
    queries = nn.functional.normalize(queries_TQE.float(), dim=-1)
    queries_HXE = queries.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)
    parts = []
    for keys_wGR in keys:
        best: Tensor | None = None
        for keys_wR in keys_wGR.unbind(1) if block else [keys_wGR.flatten(0, 1)]:
            cosines_HXw = queries_HXE @ keys_wR.float().unflatten(-1, (heads, size)).permute(1, 2, 0)
            best = cosines_HXw if best is None else torch.maximum(best, cosines_HXw)
        assert best is not None
        parts.append(best)
    cosines_HXW = hide(torch.cat(parts, -1))
    read_W = cosines_HXW[0, 0] > -torch.inf
    if not read_W.any():
        return cosines_HXW[0, 0]
    votes_W = (cosines_HXW * (_SHARPNESS * size**0.5)).softmax(-1).mean((0, 1))
    return (votes_W * read_W.sum()).clamp_min(1e-12).log().masked_fill(~read_W, -torch.inf)
