"""What a memory keeps of every write, such as its vectors or its keys: records of one size, in blocks that never move.

Growing copies nothing, and a block may lie in a file (`store/segments.py`): then only what is read is loaded.

Legend:  w writes of a block   L layers   K vectors a write   D numbers of a vector
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST, _LATER = 64, 1024  # writes that the first and every later block in working memory has room for

Check = Callable[[Sequence[int] | None], None]


@dataclass(frozen=True)
class Block:
    """Records of consecutive writes.

    records: [w, ...], contiguous. check: called with the places of records that are about to be read, None for all; it
    raises if they are not what was written.
    """

    records: Tensor
    check: Check | None = None

    def __len__(self) -> int:
        return len(self.records)

    def part(self, begin: int, end: int) -> Block:
        """The records at begin .. end - 1, which share the memory of these."""
        if (begin, end) == (0, len(self)):
            return self
        inner = self.check

        def check(places: Sequence[int] | None) -> None:
            if inner is not None:
                inner(range(begin, end) if places is None else [begin + place for place in places])

        return Block(self.records[begin:end], None if inner is None else check)

    def read(self, places: Sequence[int] | None = None) -> Tensor:
        """The records, once those at these places have been checked."""
        if self.check is not None:
            self.check(places)
        return self.records


class Records:
    """Records of consecutive writes, by place from 0 on.

    Args:
        shape: of one record.
        dtype: of its numbers.
        blocks: what is there from the start.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, blocks: Sequence[Block] = ()) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._full = list(blocks)
        self._last, self._used = self._empty(0), 0  # a block in working memory, and how many records it has

    def _empty(self, count: int) -> Tensor:
        with torch.inference_mode(False):  # what is made in it could not be filled outside of it
            return torch.empty(count, *self.shape, dtype=self.dtype)

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(map(len, self._full)) + self._used

    @property
    def in_ram(self) -> int:
        """How many lie in working memory, not in a file."""
        return sum(len(block) for block in self._full if block.check is None) + self._used

    @property
    def nbytes(self) -> int:
        """Bytes of one record."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def append(self, record: Tensor) -> None:
        """Put one record at the end."""
        if self._used == len(self._last):
            if self._used:
                self._full.append(Block(self._last))
            self._last, self._used = self._empty(min(max(_FIRST, self.size), _LATER)), 0
        self._last[self._used] = record
        self._used += 1

    def blocks(self, first: int = 0, last: int | None = None) -> list[Tensor]:
        """The records first .. last - 1, of all if None, a tensor [w, ...] for every block; one at least."""
        return [part.read() for _, part in self._parts(first, last)] or [self._empty(0)]

    def span(self, first: int = 0, last: int | None = None) -> Tensor:
        """The records first .. last - 1, of all if None, in one piece [last - first, ...]."""
        blocks = self.blocks(first, last)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def take(self, places: Tensor) -> Tensor:
        """Records by place [len(places), ...]."""
        return self._gathered(places, 1, lambda records, at: records.index_select(0, at))

    def vectors(self, layer: int, rows: Tensor) -> Tensor:
        """Of records [L, K, D], the vectors of a layer by row: row p * K + k is vector k of place p [len(rows), D]."""
        layers, K, width = self.shape

        def of(records: Tensor, at: Tensor) -> Tensor:
            flat = records.reshape(len(records) * layers * K, width)
            return flat.index_select(0, (at // K * layers + layer) * K + at % K)

        return self._gathered(rows, K, of)

    def _gathered(self, wanted: Tensor, per_record: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `of` takes of each block, in the order that is wanted; of a record there are so many."""
        (ascending, order), parts = wanted.sort(), self._parts(0)
        starts = torch.tensor([start * per_record for start, _ in parts[1:]], dtype=torch.long)
        found, at = list[Tensor](), 0
        ends = [*torch.searchsorted(ascending, starts).tolist(), len(wanted)]
        for (start, block), end in zip(parts, ends, strict=False):
            if end > at:
                local = ascending[at:end] - start * per_record
                places = None if block.check is None else torch.unique_consecutive(local // per_record).tolist()
                found.append(of(block.read(places), local))
            at = end
        if not found:
            return of(self._empty(0), ascending)
        whole = torch.cat(found)
        return whole if torch.equal(ascending, wanted) else whole[order.argsort()]

    def until(self, count: int) -> Records:
        """The first records, sharing the memory of these; either may go on by itself."""
        return Records(self.shape, self.dtype, [part for _, part in self._parts(0, count)])

    def cut(self, count: int) -> None:
        """Let the first records go; the memory that they took is free once their whole block has gone."""
        full = self.size - self._used
        self._full = [part for _, part in self._parts(min(count, full), full)]
        gone = max(0, count - full)
        self._last, self._used = self._last[gone:], self._used - gone

    def settle(self, first: int, blocks: Sequence[Block]) -> None:
        """Let blocks that hold the same take the place of all records from a place on."""
        self._full = [part for _, part in self._parts(0, first)] + list(blocks)
        self._last, self._used = self._empty(0), 0

    def _parts(self, first: int, last: int | None = None) -> list[tuple[int, Block]]:
        """The blocks of the records first .. last - 1, each with its first place."""
        last, parts, start = self.size if last is None else last, list[tuple[int, Block]](), 0
        for block in [*self._full, Block(self._last[: self._used])]:
            begin, end = max(0, first - start), min(len(block), last - start)
            if begin < end:
                parts.append((start + begin, block.part(begin, end)))
            start += len(block)
        return parts
