"""Searching a large memory by a part of it: inverted lists of its writes, by what their keys are near to and by words.

`search.py` compares a question with every key of every write, which takes as long as there are many. Here every key
belongs to the nearest of some centroids, and a list tells for each centroid which writes have a key there; another list
tells which writes have a word. A question then takes three steps, as in other searches by late interaction:

1. Each of its tokens looks into the lists of the centroids that it is nearest to.
2. A write's score is estimated: a token's best key counts as its centroid, and where a token has not met the write, as
   the best centroid that it did not look at. Words count exactly.
3. The writes with the best estimates are scored exactly; all others have the score -inf.

A memory of fewer than LEAST writes is searched exactly. The lists of a larger one are made bit by bit: each search but
the first of a process does a part of the work beside its own, and until all is done, every search is exact. They lie in
working memory alone, and go with what they were made of: nothing that was forgotten is left in them.

Legend:  w W writes   K words a write   G keys a write   R key size   T question tokens   C centroids   S sampled keys
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .retriever import block_scores, block_scores_of, rows_of
from .search import word_scores

if TYPE_CHECKING:
    from .memory import Memory

LEAST = 100_000  # writes from which on a memory is searched by lists
STEP = 16_384  # writes whose keys one search finds the centroids of
BRANCHES = 64  # C is their square: centroids are a tree of two levels, so that a key is compared with twice as many
PROBES = 16  # centroids whose lists a token looks into
CANDIDATES = 2048  # writes that are scored exactly
_AGAIN = 16  # lists are made again once so many-th a part of their writes is not in them
_SAMPLE = 2048  # writes whose keys centroids are made of
_ROUNDS = 6  # of k-means
_AT_ONCE = 65_536  # keys whose centroids are found at once


@dataclass(frozen=True)
class Question:
    """What is compared with writes: queries [T, R], words and their weights [T], and the scale of products."""

    queries: Tensor
    words: Tensor
    weights: Tensor
    scale: float

    def scores(self, keys: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """Of every write (`block_scores`, `word_scores`) [W]."""
        return block_scores(self.queries, keys, self.scale) + word_scores(self.words, self.weights, words)

    def scores_of(self, writes: Tensor, keys: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """Of the writes with these numbers alone, all exact [len(writes)]."""
        meaning = block_scores_of(writes, self.queries, keys, self.scale)
        return meaning + word_scores(self.words, self.weights, [rows_of(words, writes)])


def searched(memory: Memory, question: Question, also: int | None = None) -> Tensor:
    """The scores of all writes that a memory, or a view, searches; -inf for those that are none of the best [W].

    Args:
        memory: searched.
        question: searched with.
        also: the place among all of a write whose score is told whatever it is, as those of writes in the pool are.
    """
    keys, words, parts = memory.keys(0), memory.words(), memory.parts_stored()
    for _, one in parts:
        one.coarse.grow(one)
    if all(one.coarse.listed is None for _, one in parts):
        return memory.hide(question.scores(keys, words))
    about = torch.full((sum(map(len, keys)),), -torch.inf)
    for place, one in parts:
        listed = one.coarse.estimates(question, one.first_write)
        middle, end = place + len(listed), place + one.write_count - one.first_write
        about[place:middle] = listed
        if middle < end:
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


@dataclass(frozen=True)
class Listed:
    """Lists of the writes first .. end - 1, by what their keys are near to and by words; see `estimates`."""

    first: int
    end: int
    centroids: Tensor
    keys: Lists
    words: Lists


class Coarse:
    """The coarse level of one memory. listed: its lists, None while there are none."""

    def __init__(self) -> None:
        self.listed: Listed | None = None
        self._seen = False  # whether there was a search before
        self._centroids: Centroids | None = None
        self._first, self._codes = 0, list[Tensor]()  # the centroids of the keys of writes from there on, int16 [w, G]
        self._lock = Lock()

    def grow(self, memory: Memory) -> None:
        """Do what one search may do for the lists to hold all writes that the memory has.

        Args:
            memory: always the same one.
        """
        first, count = memory.first_write, memory.write_count
        if count - first < LEAST or not self._lock.acquire(blocking=False):
            return
        try:
            coded = self._first + sum(map(len, self._codes))
            if not self._seen:  # a process that asks once gains nothing
                self._seen = True
            elif self._centroids is None or coded < first:
                self._begin(memory)
            elif self.listed is not None and (count - self.listed.end) * _AGAIN <= self.listed.end - first:
                pass
            elif coded < count:
                new = _between(memory.keys(0), coded - first, coded - first + STEP)
                self._codes += [self._centroids.codes(keys_wGR) for keys_wGR in new]
            else:
                self._list(memory, self._centroids)
        finally:
            self._lock.release()

    def _begin(self, memory: Memory) -> None:
        """Choose centroids."""
        keys, count = memory.keys(0), memory.write_count - memory.first_write
        sample = rows_of(keys, torch.linspace(0, count - 1, min(count, _SAMPLE)).long())
        self._centroids = Centroids(sample.flatten(0, 1).float(), BRANCHES)
        self._first, self._codes, self.listed = memory.first_write, [], None

    def _list(self, memory: Memory, centroids: Centroids) -> None:
        """Put all writes into lists."""
        first = memory.first_write
        self._codes = [torch.cat(self._codes)[first - self._first :]]
        self._first = first
        keys, words = Lists(self._codes[0]), Lists(torch.cat(memory.words()))
        self.listed = Listed(first, memory.write_count, centroids.all, keys, words)

    def estimates(self, question: Question, first: int) -> Tensor:
        """What the scores of the writes first .. end - 1 of the lists are about, float32; of none if they have none.

        Args:
            question: searched with.
            first: not before the first write in the lists.
        """
        listed = self.listed
        if listed is None or listed.end <= first:
            return torch.zeros(0)
        count = listed.end - listed.first
        about = estimates(question, listed.centroids, listed.keys, listed.words, count, PROBES)
        return about[first - listed.first :]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes of RAM."""
        lists = 0 if self.listed is None else self.listed.keys.nbytes + self.listed.words.nbytes
        return lists + sum(codes.nbytes for codes in self._codes)


def estimates(question: Question, centroids_CR: Tensor, keys: Lists, words: Lists, count: int, probes: int) -> Tensor:
    """What the scores of writes are about, float32 [count].

    Args:
        question: searched with.
        centroids_CR: what keys belong to.
        keys: which writes have a key of each centroid.
        words: which writes have each word.
        count: writes that there are.
        probes: centroids that each token looks at.
    """
    near_TC = question.queries.float() @ centroids_CR.T
    best = near_TC.topk(min(probes + 1, near_TC.shape[1]), 1)
    floors_T = best.values[:, -1]
    found, one = torch.zeros(count), torch.empty(count)
    for values, places, floor in zip(best.values[:, :-1], best.indices[:, :-1], floors_T, strict=True):
        writes, at = keys.of(places)
        found += one.zero_().scatter_reduce_(0, writes.long(), (values - floor)[at], "amax")
    found = (found + floors_T.sum()) * (question.scale / len(near_TC))
    different, place_T = question.words.unique(return_inverse=True)
    weights = question.weights.new_zeros(len(different)).index_add(0, place_T, question.weights)
    writes, at = words.of(different.long() & 0xFFFF)
    return found.index_add_(0, writes, weights[at])


class Centroids:
    """Points that keys are near to, in a tree of two levels.

    Args:
        sample_SR: keys that they are made of, by k-means.
        branches: of each level.
    """

    def __init__(self, sample_SR: Tensor, branches: int) -> None:
        self.branches = branches
        self._top = _k_means(sample_SR, branches)
        near = _nearest(sample_SR, self._top)
        cells = [sample_SR[near == branch] for branch in range(branches)]
        self._leaves = torch.stack([_k_means(cell if len(cell) else sample_SR, branches) for cell in cells])

    @property
    def all(self) -> Tensor:
        """Every centroid [C, R]."""
        return self._leaves.flatten(0, 1)

    def codes(self, keys_wGR: Tensor) -> Tensor:
        """The number of the centroid that each key belongs to, int16 [w, G]."""
        flat = keys_wGR.flatten(0, 1)
        found = torch.empty(len(flat), dtype=torch.int16)
        for some_SR, into in zip(flat.split(_AT_ONCE), found.split(_AT_ONCE), strict=True):
            keys = some_SR.float()
            branches, order = _nearest(keys, self._top).sort()
            parts = keys[order].split(branches.bincount(minlength=self.branches).tolist())
            leaves = [_nearest(part, leaves) for part, leaves in zip(parts, self._leaves, strict=True)]
            into[order] = (branches * self.branches + torch.cat(leaves)).to(torch.int16)
        return found.view(keys_wGR.shape[:2])


class Lists:
    """For each of some values, which writes have it, in rising order.

    Args:
        values_wX: of each write, int16; a negative one stands for itself and 65,536.
    """

    def __init__(self, values_wX: Tensor) -> None:
        values, order = (values_wX.flatten().int() & 0xFFFF).sort(stable=True)
        writes = order.int() // values_wX.shape[1]
        new = torch.ones(len(values), dtype=torch.bool)  # not the same write again
        new[1:] = (values[1:] != values[:-1]) | (writes[1:] != writes[:-1])
        self._writes = writes[new]
        counts = values[new].bincount(minlength=0x10000)
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    @classmethod
    def none(cls) -> Lists:
        """Of no writes."""
        return cls(torch.zeros(0, 1, dtype=torch.int16))

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The writes that have each of these values, one list behind the other; and for each the place of its value."""
        starts, ends = self._starts[values], self._starts[values + 1]
        lists = [self._writes[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return torch.cat([self._writes[:0], *lists]), torch.arange(len(values)).repeat_interleave(ends - starts)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self._writes.nbytes + self._starts.nbytes


def _k_means(sample_SR: Tensor, count: int) -> Tensor:
    """Centroids of a sample [count, R]."""
    centroids = sample_SR[torch.linspace(0, len(sample_SR) - 1, count).long()].float()
    for _ in range(_ROUNDS):
        near = _nearest(sample_SR, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, near, sample_SR.float())
        counts = near.bincount(minlength=count)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids


def _nearest(keys_nR: Tensor, centroids_CR: Tensor) -> Tensor:
    """Which centroid is the nearest to each key [n]."""
    lengths = centroids_CR.square().sum(1) / 2
    return torch.addmm(-lengths, keys_nR.float(), centroids_CR.T).argmax(1)
