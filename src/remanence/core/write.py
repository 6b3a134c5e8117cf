"""Writing several chunks in one forward, with the outcome of writing them one after the other.

A chunk sees, in every layer, the start vector and the pool: what the N / K chunks before it left there. Where a vector
is what enters a layer, or the layer's keys and values of it, those of all chunks are at hand when the layer begins. So
chunks need not wait for each other: each is a row of a batch, and looks back at the rows before it. The decoder then
works on many tokens at a time, and a write costs about what a plain forward costs.

Legend:  C chunks   K tokens and vectors of a chunk   N vectors of a pool   X numbers of a vector   D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import MemoryConfig
from .attachment import Attachment
from .cache import Slots


def at_once(config: MemoryConfig) -> bool:
    """Whether chunks of such a memory can be written in one forward once its pool is full."""
    return (
        config.tap == "input"
        and config.write_context == "pool"
        and config.drop == "oldest"
        and config.split == "fixed"
        and config.start
        and not config.offset
        and config.first_write == "append"
        and config.chunk_tokens == config.K
        and config.N % config.K == 0
    )


class PrecedingSlots:
    """The `SlotProvider` of consecutive chunks: per row [start vector; the N vectors before the chunk].

    Args:
        attachment: makes slots of vectors.
        starts: the start vector of every layer, as vectors of the memory are, each [X].
        pool_LNX: the pool before the first chunk; it is full.
        whole: vectors are keys and values (`Attachment.slots`).
    """

    def __init__(self, attachment: Attachment, starts: list[Tensor], pool_LNX: Tensor, whole: bool) -> None:
        self.attachment, self.starts, self.pool_LNX, self.whole = attachment, starts, pool_LNX, whole
        self.length = 1 + pool_LNX.shape[1]
        self._positions = torch.arange(self.length, device=pool_LNX.device)[None]

    def slots(self, layer: int, hidden_CKD: Tensor) -> Slots:
        """What each chunk sees in a layer, of the chunks before it and of the pool."""
        own = self.attachment.keys_values(layer, hidden_CKD) if self.whole else hidden_CKD
        pool = self.pool_LNX[layer].to(own)
        chunks, K = own.shape[:2]
        passed = torch.cat([pool, own.flatten(0, 1)])[: len(pool) + (chunks - 1) * K]
        before = passed.unfold(0, len(pool), K).transpose(1, 2)
        vectors = torch.cat([self.starts[layer].to(own).expand(chunks, 1, -1), before], 1)
        return self.attachment.slots(layer, vectors, self._positions.to(own.device), self.whole)
