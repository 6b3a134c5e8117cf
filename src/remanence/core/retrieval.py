"""The rule by which a layer reads: from the scores of writes to what is read, and how much of it counts.

Plain functions of tensors. Use (`read.py`, `Memory.best_rows`) and training (`train/bank.py`) both go by them, so that
a model reads as it learnt to. A new rule of reading belongs here.

They differ in one choice. Use reads K0 vectors of the long-term store: whole writes, best first, and where some vectors
of a write are still in the pool, more writes until there are K0 (`best_rows`). Training, where every question of a
batch has a past of its own, takes the K0 / K best writes that are not wholly in the pool (`best_allowed`) and reads
less by what the pool holds of them. And two settings are of use alone, as training has few writes: `null_slope`,
`candidates`.

Legend:  B questions, where there are several at once   W writes   S slots behind the start vector   K vectors a write
"""

from __future__ import annotations

import torch
from torch import Tensor

_MARGIN, _SOFTNESS = 1.0, 0.5  # a newer write supersedes from this much below an older one's score on, softly


def summed(total: Tensor | float, scores: Tensor, null: Tensor | float, among: Tensor | None = None) -> Tensor:
    """The sum over layers of scores, each less the layer's score of "nothing relevant" (`score_layers="mean"`).

    Args:
        total: of the layers before; 0 at the first.
        scores: of this layer, or of those named in `among`.
        among: places in `total` that this layer has scored; the others are left behind for good.
    """
    if among is None:
        return scores - null + total
    assert isinstance(total, Tensor)
    return torch.full_like(total, -torch.inf).index_copy_(0, among, scores - null + total[among])


def best_rows(scores: Tensor, pool_rows_n: Tensor, K: int, count: int, *, block: bool) -> Tensor:
    """In use: the best `count` vectors of one layer that are not in the pool, oldest first [count].

    Args:
        scores: one a write (`block`), or one a vector; -inf for what may not be read.
        pool_rows_n: the vectors in the pool, counted as those that have scores; older ones are negative.
        count: at most as many as there are outside the pool.
    """
    if not block:
        allowed = torch.ones(len(scores), dtype=torch.bool)
        allowed[pool_rows_n[pool_rows_n >= 0]] = False
        return scores.masked_fill(~allowed, -torch.inf).topk(count).indices.sort().values
    # Whole writes, best first, less what is still in the pool. Only writes with vectors in the pool can fall short of
    # K, so this many are enough.
    shared = len(torch.unique(pool_rows_n // K))
    writes = scores.topk(min(len(scores), -(-count // K) + shared)).indices
    writes = writes[scores[writes] > -torch.inf]
    rows = (writes[:, None] * K + torch.arange(K)).flatten()
    return rows[~torch.isin(rows, pool_rows_n)][:count].sort().values


def best_allowed(scores_BX: Tensor, allowed_BX: Tensor, times_BX: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """In training: the best `count` writes, or vectors, that may be read, oldest first; and which of them may.

    Args:
        scores_BX, allowed_BX, times_BX: of every write or vector; where fewer may be read than `count`, some of those
            returned may not.
    """
    found = scores_BX.masked_fill(~allowed_BX, -torch.inf).topk(count, 1).indices
    found = found.gather(1, times_BX.gather(1, found).argsort(1))
    return found, allowed_BX.gather(1, found)


def bias_of_slots(scores: Tensor, null: Tensor, score_bias: float) -> Tensor:
    """What is added to the attention logits of the start vector and of the slots behind it [..., 1 + S].

    Args:
        scores: of each slot's write, or vector [..., S]; -inf where there is none.
        null: the score of "nothing relevant", which is the start vector's.
    """
    whole = torch.cat([null.expand(*scores.shape[:-1], 1), scores], -1)
    if not score_bias:  # which -inf would make no number of
        return torch.zeros_like(whole)
    return slot_bias(whole, torch.maximum(scores.amax(-1, keepdim=True), null), score_bias)


def slot_bias(scores: Tensor, best: Tensor, score_bias: float) -> Tensor:
    """What is added to the attention logits of a memory slot: clamp(a * (score - best), -8, 0)."""
    return (score_bias * (scores - best)).clamp(-8.0, 0.0)


def superseded(scores_BW: Tensor, read_BW: Tensor) -> Tensor:
    """How far each write is superseded by a newer one, from 0 to 1 [B, W].

    What was told twice scores about alike, whichever is newer. So a write counts as superseded when any newer write
    that is read too has at least about its score: sigmoid((best newer score - own score + 1) / 0.5).

    Args:
        scores_BW: scores of writes in their order, oldest first.
        read_BW: which of them are read at all.
    """
    known = scores_BW.masked_fill(~read_BW, -torch.inf)
    newest = known.flip(-1).cummax(-1).values.flip(-1)
    newer = torch.cat([newest[..., 1:], torch.full_like(newest[..., :1], -torch.inf)], -1)
    return ((newer - scores_BW + _MARGIN) / _SOFTNESS).sigmoid()
