"""Reading a memory: for every layer and prompt, the slots [start; retrieved, oldest first; pool] (M+ §3.2).

Legend:  B prompts   T tokens   F slots before the pools   P memory slots   H key/value heads   E head size
         K vectors a write   D hidden size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import MemoryConfig
from ..errors import InputError
from .attachment import Attachment
from .cache import Slots, there
from .memory import Memory
from .retrieval import bias_of_slots, summed, superseded
from .retriever import attention_scores, block_scores, block_scores_of, vector_scores
from .search import Found

_FORCED = 3.0  # by how much a forced write has the best score
_POOLS = 16  # memories whose pools are kept as keys and values between questions


@dataclass(frozen=True)
class Source:
    """A past write that an answer read.

    write: its number. score: mean of (its score - the score of "nothing relevant") over the layers that read it, or
    over all layers if they share their scores (`score_layers`).
    layers: how many layers read it. label, time, text: as they were given to `memorize`. where: "long-term",
    "short-term" or "window" (text that is not written yet; its write is -1 and its score 0). memory: where several
    memories are read (`MemoryModel.over`) the name of the one that it is of, in which it has this number; "" for the
    private one. metadata: as it was given to `memorize`.
    """

    write: int
    score: float
    layers: int
    label: str
    time: float
    text: str | None
    where: str
    memory: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """What reading needs of a `MemoryModel`.

    judge: tells whether what was looked at answers, or None. whole: whether vectors are keys and values. pools: by
    memory and layer, keys and values of its pool, kept between questions.
    """

    base: Any
    tokenizer: Any
    config: MemoryConfig
    attachment: Attachment
    retriever: Any
    judge: Any
    whole: bool
    pools: Any

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text."""
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of remembered tokens."""
        ...

    def front_rows(self) -> list[Tensor] | None:
        """What every layer reads before its memory, as vectors of a memory are [P, D], or None."""
        ...

    def encode_again(self, memory: Memory, writes: Tensor) -> list[Tensor]:
        """The vectors of writes of which only the tokens are kept, a layer each [writes * K, D]."""
        ...

    def unread(self, vectors: int) -> bool:
        """Whether a read of a pool of so many vectors has no slots at all, not even the start vector."""
        ...


class StoredVectors:
    """The long-term vectors of a memory. Where it keeps only tokens, a write is encoded again once, for all layers.

    Args:
        model: encodes.
        memory: keeps vectors, or tokens.
    """

    def __init__(self, model: Reader, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self._writes = torch.zeros(0, dtype=torch.long)  # that were encoded again
        self._again: list[Tensor] = []  # of these writes, a layer each

    def at(self, layer: int, rows: Tensor) -> Tensor:
        """Vectors of a layer by row [len(rows), D]."""
        if self.model.config.store_dtype != "tokens":
            return self.memory.long_term(layer, rows)
        K = self.model.config.K
        writes = rows // K
        missing = torch.unique(writes[~torch.isin(writes, self._writes)])
        if len(missing) or not self._again:
            made = self.model.encode_again(self.memory, missing)
            known = self._again or [vectors[:0] for vectors in made]
            self._again = [torch.cat(parts) for parts in zip(known, made, strict=True)]
            self._writes = torch.cat([self._writes, missing])
        sorted_writes, order = self._writes.sort()
        places = order[torch.searchsorted(sorted_writes, writes)]
        vectors = self._again[layer]
        return vectors[(places * K + rows % K).to(vectors.device)]


class ReadSlots:
    """The `SlotProvider` of a read (M+ §3.2): per row and layer [start; retrieved, oldest first; pool].

    Rows with less memory are padded in front. Positions count from 0 at each row's first slot, so that the newest
    vector is always next to the prompt.
    """

    def __init__(
        self,
        model: Reader,
        memories: Sequence[Memory],
        asks_BT: Tensor | None = None,
        long_term: bool = True,
        force: Sequence[int | None] | None = None,
        found: Sequence[Found] | None = None,
    ) -> None:
        self.found = found
        self._front_rows = model.front_rows()
        self.model, self.memories, self.asks_BT = model, memories, asks_BT
        self._force = force or [None] * len(memories)
        for memory, write in zip(memories, self._force, strict=True):
            if write is not None:
                check_forced(memory, write)
        config = model.config
        for memory in list(model.pools)[: max(0, len(model.pools) - _POOLS)]:
            model.pools.pop(memory, None)
        self._long = [m.read_size if long_term else 0 for m in memories]
        fronts = 0 if self._front_rows is None else len(self._front_rows[0])
        self._starts = [0 if model.unread(m.pool_size) else fronts for m in memories]
        self._before = [start + long for start, long in zip(self._starts, self._long, strict=True)]
        own = [before + m.pool_size for before, m in zip(self._before, memories, strict=True)]
        self.length = max(own)
        device = model.attachment.device
        self._padding = torch.tensor([self.length - n for n in own], device=device)
        self._sums: list[Tensor] = [torch.zeros(())] * len(memories)  # by row: scores, summed over the layers so far
        self._candidates: list[Tensor | None] = [None] * len(memories)  # by row: writes that are scored; None: all
        # By row, what was ranked last. One search and pools that are alike in all layers make one ranking of all.
        self._ranked: dict[int, tuple[Tensor, Tensor, float, Tensor | None]] = {}
        self._ranks_once = found is not None and config.drop == "oldest"
        self._stored = [StoredVectors(model, memory) for memory in memories]
        self.read: list[list[tuple[Tensor, Tensor, float]]] = []  # layer, row: rows read, scores of writes, null

    def mask(self) -> Tensor:
        """Which slots exist [B, P]."""
        return there(self.length, self._padding)

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Retrieve with the hidden states that enter the layer, and make its slots."""
        model, config = self.model, self.model.config
        repeats = len(hidden_BTD) // len(self.memories)  # several answers a prompt: each row is there that many times
        hidden_BTD = hidden_BTD[::repeats]
        asks_BT = self.asks_BT if self.asks_BT is not None else hidden_BTD.new_ones(hidden_BTD.shape[:2]).bool()
        asks_BT = asks_BT.to(hidden_BTD.device)
        biased = config.score_bias or config.recency
        bias = hidden_BTD.new_zeros(len(self.memories), self.length) if biased else None
        # Before the pools come the start vector and what was retrieved: all rows in one go, each at the right end.
        width = max(self._before)
        front = hidden_BTD.new_zeros(len(self.memories), width, self.memories[0].width)
        positions = torch.zeros(len(self.memories), width, dtype=torch.long, device=front.device)
        entries = []
        for b, memory in enumerate(self.memories):
            if b not in self._ranked or not self._ranks_once:
                self._ranked[b] = self._rank(layer, b, hidden_BTD[b, asks_BT[b]])
            rows, scores, null, own_bias = self._ranked[b]
            start, own = self._starts[b], self._before[b]
            positions[b, width - own :] = torch.arange(own, device=front.device)
            if self._front_rows is not None and start:
                front[b, width - own : width - own + start] = self._front_rows[layer].to(front)
            if len(rows):
                front[b, width - len(rows) :] = self._stored[b].at(layer, rows).to(front)
            if bias is not None and own_bias is not None:
                own_bias = torch.cat([own_bias[:1].repeat(start), own_bias[1:]])
                bias[b, int(self._padding[b]) :] = own_bias.to(bias)
            entries.append((torch.cat([rows, memory.pool_rows_Ln[layer]]), scores, null))
        self.read.append(entries)
        fronts = model.attachment.slots(layer, front, positions, model.whole)
        pools = [self._pool(layer, *each, front) for each in zip(self.memories, self._before, strict=True)]
        keys = self._joined(fronts.keys, [pool.keys for pool in pools])
        values = self._joined(fronts.values, [pool.values for pool in pools])
        if repeats > 1:
            keys, values = (t.repeat_interleave(repeats, 0) for t in (keys, values))
            bias = None if bias is None else bias.repeat_interleave(repeats, 0)
        return Slots(keys, values, bias)

    def _rank(self, layer: int, row: int, hidden_TD: Tensor) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """Long-term rows that a layer reads, scores of writes, null, and the bias of [nothing; the rows; the pool]."""
        memory, config = self.memories[row], self.model.config
        scores, null = self._scores(layer, row, hidden_TD)
        if (forced := self._force[row]) is not None:
            per_write = len(scores) // (memory.write_count - memory.first_write)
            at = (forced - memory.first_write) * per_write
            scores[at : at + per_write] = max(float(scores.max()), null) + _FORCED
        rows = memory.best_rows(layer, scores) if self._long[row] else torch.zeros(0, dtype=torch.long)
        read = torch.cat([rows, memory.pool_rows_Ln[layer]])
        if not (config.score_bias or config.recency) or not len(read):
            return rows, scores, null, None
        bias = bias_of_slots(self._of_rows(memory, scores, read), torch.tensor(null), config.score_bias)
        if config.recency and len(scores):
            writes, of_row = torch.unique(read // config.K, return_inverse=True)
            of_write = self._of_rows(memory, scores, writes * config.K)
            bias[1:] -= config.recency * superseded(of_write, torch.ones_like(of_write).bool())[of_row]
        return rows, scores, null, bias

    def _pool(self, layer: int, memory: Memory, first: int, like: Tensor) -> Slots:
        """Slots of a memory's pool at positions from `first` on [1, H, n, E], computed as a tensor of the layer's is.

        Kept for the next question: a pool changes by writes only, which make a new tensor of it.
        """
        model, pool_LnD, device = self.model, memory.pool_LnD, like.device
        # Of tensors made in `torch.inference_mode` nobody counts the changes; such weights count as changed.
        weights = [
            (p.data_ptr(), object() if p.is_inference() else p._version)
            for p in model.attachment.layers[layer].parameters()
        ]
        changes = 0 if pool_LnD.is_inference() else pool_LnD._version
        state = first, device, like.dtype, changes, weights
        kept = model.pools.setdefault(memory.pool_owner, {})
        if layer in kept and not torch.is_grad_enabled():
            of_pool, of_state, slots = kept[layer]
            if of_pool is pool_LnD and of_state == state:
                return slots
        positions = torch.arange(first, first + memory.pool_size, device=device)[None]
        slots = model.attachment.slots(layer, pool_LnD[layer][None].to(like), positions, model.whole)
        if not torch.is_grad_enabled():
            kept[layer] = pool_LnD, state, slots
        return slots

    def _joined(self, fronts_BHFE: Tensor, pools: list[Tensor]) -> Tensor:
        """Keys or values of all rows [B, H, P, E]: padding, front, pool."""
        if len(pools) == 1:
            return torch.cat([fronts_BHFE, *pools], 2)
        heads, size = fronts_BHFE.shape[1], fronts_BHFE.shape[3]
        out = fronts_BHFE.new_zeros(len(pools), heads, self.length, size)
        for row, front, pool, own in zip(out, fronts_BHFE, pools, self._before, strict=True):
            behind = self.length - pool.shape[2]
            row[:, behind:] = pool[0]
            row[:, behind - own : behind] = front[:, front.shape[1] - own :]
        return out

    def _scores(self, layer: int, row: int, hidden_TD: Tensor) -> tuple[Tensor, float]:
        """What a layer retrieves and weighs a memory's writes (or vectors) by, on the CPU and in float32, and null."""
        among = self._candidates[row]
        if self.found is not None:
            return self.found[row].scores.clone(), self.found[row].null
        scores, null = self._own_scores(layer, row, hidden_TD, among)
        if not self.model.config.averages_layers:
            return scores, null
        # Layers err on different writes: what those before found helps the next.
        total, most = self._sums[row], self.model.config.candidates
        total = summed(total, scores, null, among)
        if among is None and most is not None and most < len(total):
            self._candidates[row] = self._best_and_pooled(self.memories[row], total, most)
        self._sums[row] = total
        return total / (layer + 1), 0.0

    def _best_and_pooled(self, memory: Memory, scores: Tensor, most: int) -> Tensor:
        """Writes with vectors in the pool of any layer, and the best of the others, by their place in `scores`."""
        pooled = torch.unique(memory.pool_rows_Ln // memory.config.K) - memory.first_write
        pooled = pooled[pooled >= 0]
        others = scores.index_fill(0, pooled, -torch.inf)
        return torch.cat([pooled, others.topk(min(most, len(scores) - len(pooled))).indices])

    def _own_scores(self, layer: int, row: int, hidden_TD: Tensor, among: Tensor | None) -> tuple[Tensor, float]:
        """A layer's own scores of all writes or of those named, and its score of "nothing relevant"."""
        model, config, memory = self.model, self.model.config, self.memories[row]
        if not config.long_term or memory.write_count == memory.first_write:
            return torch.zeros(0), 0.0
        if config.retriever == "attention":
            queries = model.attachment.queries(layer, hidden_TD).cpu()
            block, heads = config.score == "block", model.attachment.key_heads
            return attention_scores(queries, memory.keys(layer), heads, block, memory.hide), 0.0
        normed = model.attachment.norm(layer, hidden_TD).float()
        queries = model.retriever.queries(layer, normed).cpu()
        if config.score == "vector":
            return memory.hide(vector_scores(queries, memory.keys(layer))), 0.0
        keys, scale = memory.keys(layer), model.retriever.scale
        if among is not None:  # what is hidden has been left behind by the first layer
            scores = block_scores_of(among, queries, keys, scale)
        else:
            scores = memory.hide(block_scores(queries, keys, scale))
        null = model.retriever.null[layer].item()
        return scores, null + config.null_slope * math.log(max(1, memory.readable_count))

    def _of_rows(self, memory: Memory, scores: Tensor, rows: Tensor) -> Tensor:
        """The scores of given rows; a write without one, such as one that has left the store, counts as the worst."""
        if not len(scores):
            return torch.zeros(len(rows))
        per_write = len(scores) // (memory.write_count - memory.first_write)
        at = rows // (memory.config.K // per_write) - memory.first_write * per_write
        found = scores[at.clamp_min(0)].masked_fill(at < 0, -torch.inf)
        if found.isinf().any():  # in the pool and no more in the store, or not scored
            known = scores[~scores.isinf()]
            found = found.masked_fill(found.isinf(), float(known.min()) if len(known) else 0.0)
        return found

    def writes_read(self, row: int) -> list[set[int]]:
        """Per layer, the writes that have a vector among the slots of a row."""
        return [set((layer[row][0] // self.model.config.K).tolist()) for layer in self.read]

    def sources(self, row: int) -> list[Source]:
        """What was read for a row of the batch, best first; then what was in the window."""
        memory, K = self.memories[row], self.model.config.K
        scores_of: dict[int, list[float]] = {}
        for layer in self.read:
            rows, scores, null = layer[row]
            if self.model.config.averages_layers:
                scores = self.read[-1][row][1]  # the mean of all layers'
            writes = torch.unique(rows // K)
            for write, score in zip(writes.tolist(), self._of_rows(memory, scores, writes * K).tolist(), strict=True):
                scores_of.setdefault(write, []).append(score - null)
        pooled = set((memory.pool_rows_Ln // K).flatten().tolist())
        sources = []
        for index, scores_L in scores_of.items():
            sources.append(source(memory, index, sum(scores_L) / len(scores_L), len(scores_L), index in pooled))
        sources.sort(key=lambda s: -s.score)
        return sources + waiting(memory, self.model.tokenizer, len(self.read))


def check_forced(memory: Memory, write: int) -> None:
    """Raise `InputError` if the long-term store does not hold a write that is to be read whatever its score."""
    if not (memory.config.long_term and memory.first_write <= write < memory.write_count):
        raise InputError(f"cannot force write {write}: the long-term store does not hold it.")


def source(memory: Memory, index: int, score: float, layers: int, pooled: bool) -> Source:
    """A write that so many layers read, as a source. pooled: whether the short-term pool has vectors of it."""
    write = memory.writes[index]
    text, where = None if write.text is None else write.text.strip(), "short-term" if pooled else "long-term"
    name, number = memory.origin(index)
    return Source(number, score, layers, write.label, write.time, text, where, name, write.metadata)


def waiting(memory: Memory, tokenizer: Any, layers: int) -> list[Source]:
    """What waits in the window, as sources that so many layers read."""
    return [
        Source(
            -1, 0.0, layers, piece.source, piece.time, tokenizer.decode(list(piece.ids)).strip(), "window",
            piece.origin, dict(piece.tags.metadata),
        )
        for piece in memory.pending
    ]  # fmt: skip
