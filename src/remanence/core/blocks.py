"""Where the long-term store's vectors lie: blocks that never move, so that growing copies nothing."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


class Blocks:
    """Vectors of all layers by row, in blocks [L, rows, D] that never move: growing copies nothing.

    Args:
        vectors_LXD: what is there from the start, the first block.
    """

    def __init__(self, vectors_LXD: Tensor) -> None:
        self._blocks = [vectors_LXD]  # every block but the last is full
        self.size = vectors_LXD.shape[1]

    @property
    def _starts(self) -> list[int]:
        """The first row of every block."""
        return list(accumulate((block.shape[1] for block in self._blocks[:-1]), initial=0))

    def grow(self, rows: int) -> None:
        """Make room for so many rows more; there must be none left."""
        layers, _, width = self._blocks[-1].shape
        self._blocks.append(self._blocks[-1].new_empty(layers, rows, width))

    def append(self, vectors_LKD: Tensor) -> None:
        """Put K rows at the end, where there must be room."""
        count, at = vectors_LKD.shape[1], self.size - self._starts[-1]
        self._blocks[-1][:, at : at + count] = vectors_LKD
        self.size += count

    def take(self, layer: int, rows: Tensor) -> Tensor:
        """Vectors of a layer by row [len(rows), D]."""
        (ascending, order), starts = rows.sort(), self._starts
        ends = [*torch.searchsorted(ascending, torch.tensor(starts[1:], dtype=torch.long)).tolist(), len(rows)]
        parts, at = [], 0
        for block, start, end in zip(self._blocks, starts, ends, strict=True):
            if end > at:
                parts.append(block[layer].index_select(0, ascending[at:end] - start))
            at = end
        found = torch.cat(parts) if parts else self._blocks[0][layer, :0]
        return found if torch.equal(ascending, rows) else found[order.argsort()]

    def since(self, row: int) -> Tensor:
        """All vectors from a row on [L, rows, D]."""
        parts = [
            block[:, max(0, row - start) : self.size - start]
            for start, block in zip(self._starts, self._blocks, strict=True)
        ]
        parts = [part for part in parts if part.shape[1]] or parts[:1]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def until(self, rows: int) -> Blocks:
        """The first rows as blocks of their own. They share the memory of these, and each may grow by itself."""
        ends = [min(block.shape[1], rows - start) for start, block in zip(self._starts, self._blocks, strict=True)]
        parts = [block[:, :end] for end, block in zip(ends, self._blocks, strict=True) if end > 0]
        shared = Blocks(self._blocks[0][:, :0])
        shared._blocks, shared.size = parts or shared._blocks, rows
        return shared

    def cut(self, rows: int) -> None:
        """Let the first rows go; the memory that they took is free once their whole block has gone."""
        self.size -= rows
        while len(self._blocks) > 1 and self._blocks[0].shape[1] <= rows:
            rows -= self._blocks.pop(0).shape[1]
        self._blocks[0] = self._blocks[0][:, rows:]
