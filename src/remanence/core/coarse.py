"""Searching a large memory in two levels: what every write is about is estimated, and the best are scored exactly.

`search.py` compares a question with every key of every write. In a memory of LEAST writes or more, a search has a
coarse level before that:

1. A write's meaning is the product of two means: of the question's queries, and of the write's keys. That is one
   product a write instead of one for every key and token. Its words count exactly, by inverted lists, which tell for
   each word the writes that have it.
2. The CANDIDATES writes with the best estimates are scored exactly; all others have the score -inf.

Words decide which write is among the best, and meaning in which order they are: among many writes, meaning alone finds
the right one neither exactly nor by estimate (docs/figures.md, "Searching many writes").

The coarse level lies in working memory alone and goes with what it was made of, so nothing that was forgotten is left
in it. It takes about as long to make as two exact searches, so the first search of a process is exact and does without.

Legend:  w W writes   K words a write   G keys a write   R key size   T question tokens   X values of a write
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .search import Question, each_once

if TYPE_CHECKING:
    from .memory import Memory

LEAST = 100_000  # writes from which on a memory has a coarse level
CANDIDATES = 2048  # writes that are scored exactly
_AGAIN = 16  # it is made again once so many-th a part of the writes in it are newer than it


def searched(memory: Memory, question: Question, also: int | None = None) -> Tensor:
    """The scores of all writes that a memory, or a view, searches; -inf for those that are none of the best [W].

    Args:
        memory: searched.
        question: searched with.
        also: the place among all of a write whose score is told whatever it is, as those of writes in the pool are.
    """
    keys, words, parts = memory.keys(0), memory.words(), memory.parts_stored()
    levels = [one.coarse.level(one) for _, one in parts]
    if not any(levels):
        return memory.hide(question.scores(keys, words))
    about = torch.full((sum(map(len, keys)),), -torch.inf)
    for (place, one), level in zip(parts, levels, strict=True):
        middle, end = place, place + one.write_count - one.first_write
        if level is not None:
            middle += level.end - one.first_write
            about[place:middle] = level.estimates(question)[one.first_write - level.first :]
        if middle < end:  # newer writes are compared exactly
            about[middle:end] = question.scores(_between(keys, middle, end), _between(words, middle, end))
    about = memory.hide(about)
    chosen = about.topk(min(CANDIDATES, len(about))).indices
    pooled = memory.pool_rows_Ln.flatten() // memory.config.K - memory.first_write
    forced = pooled.new_tensor([also] if also is not None and 0 <= also < len(about) else [])
    chosen = torch.cat([chosen[about[chosen] > -torch.inf], pooled[pooled >= 0], forced]).unique()
    found = torch.full_like(about, -torch.inf)
    found[chosen] = question.scores_of(chosen, keys, words)
    return memory.hide(found)


def _between(blocks: Sequence[Tensor], begin: int, end: int) -> list[Tensor]:
    """Rows begin .. end - 1 of blocks that follow each other."""
    found, start = list[Tensor](), 0
    for block in blocks:
        if begin < start + len(block) and start < end:
            found.append(block[max(0, begin - start) : end - start])
        start += len(block)
    return found


class Coarse:
    """The coarse level of one memory, once there is one."""

    def __init__(self) -> None:
        self.made: Level | None = None
        self._asked = False  # whether there was a search before

    def level(self, memory: Memory) -> Level | None:
        """What a search uses now; it is made or made again if that is due. None where the search is exact.

        Args:
            memory: always the same one.
        """
        first, count, level = memory.first_write, memory.write_count, self.made
        if count - first < LEAST:
            self.made = None
        elif not self._asked:  # a process that asks once gains nothing
            self._asked = True
        elif level is None or level.end <= first or (count - level.end) * _AGAIN > level.end - first:
            means = torch.cat([keys_wGR.float().mean(1) for keys_wGR in memory.keys(0)])
            self.made = Level(first, count, means, Lists(torch.cat(memory.words())))
        return self.made

    @property
    def nbytes(self) -> int:
        """Bytes that it takes of RAM."""
        return 0 if self.made is None else self.made.means_wR.nbytes + self.made.words.nbytes


@dataclass(frozen=True)
class Level:
    """Of the writes first .. end - 1, the mean of the keys of each, and which of them have a word."""

    first: int
    end: int
    means_wR: Tensor
    words: Lists

    def estimates(self, question: Question) -> Tensor:
        """What the scores of the writes are about, float32 [end - first]."""
        meaning = (self.means_wR @ question.queries.float().mean(0)) * question.scale
        for word, weight in zip(*each_once(question.words, question.weights), strict=True):
            writes = self.words.of(int(word))
            meaning.index_add_(0, writes, weight.expand(len(writes)))
        return meaning


class Lists:
    """For each value, which writes have it, in rising order.

    Args:
        values_wX: of each write, int16.
    """

    def __init__(self, values_wX: Tensor) -> None:
        values, order = (values_wX.flatten().int() & 0xFFFF).sort(stable=True)
        writes = (order // values_wX.shape[1]).int()  # there may be more values than an int counts
        new = torch.ones(len(values), dtype=torch.bool)  # not the same write again
        new[1:] = (values[1:] != values[:-1]) | (writes[1:] != writes[:-1])
        self._writes = writes[new]
        counts = values[new].bincount(minlength=0x10000)
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def of(self, value: int) -> Tensor:
        """The writes that have a value, by place, int32."""
        start, end = self._starts[value & 0xFFFF :][:2].tolist()
        return self._writes[start:end]

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._writes.nbytes + self._starts.nbytes
