"""Lessons written to memory by a writer that does not learn, and the bank of them that all questions read.

The writer is frozen, so what it wrote stays right while the reader learns: lessons are written once, and questions are
asked about those of the last steps together. A text is written exactly as in use (`MemoryDecoder.write`), several texts
at once.

Legend:  B texts at once   W writes in the bank   K vectors a write   L layers   X numbers of a vector   F features
         Q questions   S places that a question reads: writes, or single vectors
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Slots
from ..core.model import MemoryDecoder
from ..core.retrieval import best_allowed, bias_of_slots, superseded
from ..core.search import Search
from ..core.spans import Span, begins_of, rows_together, spans_of
from ..errors import ConfigError
from .lessons import Ask, Lesson

_NEVER = -1e4  # a logit bias that hides a slot
_WIDTH = 16  # single vectors that are read: their number is a multiple, so that there are few shapes
IN_WINDOW = -1  # the place of an answer that is in the text that still waits to be written


@dataclass(frozen=True)
class Asked:
    """A question about a stream.

    at: the chunk that holds the answer, `IN_WINDOW`, or None. older: those of older answers. token, older_tokens: the
    tokens of the stream at which these answers end.
    """

    ask: Ask
    at: int | None
    older: frozenset[int] = frozenset()
    token: int | None = None
    older_tokens: frozenset[int] = frozenset()

    @property
    def chunk(self) -> int | None:
        """The chunk that holds the answer, if one does."""
        return None if self.at == IN_WINDOW else self.at


@dataclass
class Stream:
    """A lesson as tokens: whole chunks, and what is left, which waits in the window.

    says: by key, the chunks that say it. spans: what may be looked at by itself, by token of the stream. first: the
    place of the first chunk in the bank's table.
    """

    chunks: list[list[int]]
    rest: list[int]
    asks: list[Asked] = field(default_factory=list)
    says: dict[str, set[int]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    first: int = 0

    @property
    def writes(self) -> range:
        """Its places in the bank's table."""
        return range(self.first, self.first + len(self.chunks))


def stream_of(lesson: Lesson, model: MemoryDecoder, most: int) -> Stream:
    """A lesson cut into at most so many chunks; what comes after them and could not wait in the window is left out.

    Args:
        lesson, model: what is cut, for whom.
        most: chunks.
    """
    tokenizer, size = model.tokenizer, model.config.chunk_tokens
    try:
        encoded = tokenizer(
            lesson.text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )  # fmt: skip
    except NotImplementedError as error:
        raise ConfigError("lessons need a fast tokenizer, which tells where in the text a token is.") from error
    kept = most * size + size - 1
    ids: list[int] = encoded.input_ids[:kept]
    ends = [end for _, end in encoded.offset_mapping[:kept]]
    count = min(len(ids) // size, most)

    def token(character: int) -> int | None:
        """The token that holds a character, if it is among those that will be written."""
        found = bisect_right(ends, character)
        return found if found < count * size else None

    def chunk(character: int) -> int | None:
        """The chunk that holds a character."""
        if bisect_right(ends, character) >= len(ids):
            return None
        at = token(character)
        return IN_WINDOW if at is None else at // size

    def written(characters: Sequence[int]) -> set[int]:
        return {at for c in characters if (at := chunk(c)) is not None and at != IN_WINDOW}

    asks = []
    for ask in lesson.asks:
        at = None if ask.at is None else chunk(ask.at)
        if ask.at is None or at is not None:
            asks.append(
                Asked(
                    ask, at, frozenset(written(ask.older) - {at}), None if ask.at is None else token(ask.at),
                    frozenset(found for c in ask.older if (found := token(c)) is not None),
                )
            )  # fmt: skip
    chunks = [ids[i * size : (i + 1) * size] for i in range(count)]
    texts = {0, *(at + 1 for at, sign in enumerate(lesson.text) if lesson.lines and sign == "\n")}
    spans = spans_of(begins_of(lesson.text, texts, token), 0, count * size) if count else []
    return Stream(chunks, ids[count * size :], asks, {key: written(at) for key, at in lesson.says.items()}, spans)


class Bank:
    """What was written of the lessons of the last steps.

    Args:
        model: writes; it keeps keys and values (`kept="keys_values"`) and has one search for all layers.
        steps: whose lessons are kept.
        streams, chunks: most of a step, and of a stream.

    Attributes:
        streams: those that are kept, oldest first. owner_W: of each write, its stream's place in `streams`.
        said: by key, the writes that say it.
    """

    def __init__(self, model: MemoryDecoder, *, steps: int, streams: int, chunks: int) -> None:
        self.model, self.steps, self._most = model, steps, (streams, chunks)
        self._device = model.attachment.device
        room, size = steps * streams * chunks, model.config.chunk_tokens
        layers, dtype = len(model.attachment.layers), model.base.dtype
        features = len(model.config.search_layers) * model.attachment.width
        empty = {"dtype": dtype, "device": self._device}
        self._vectors = [torch.empty(room, size, model.vector_width, **empty) for _ in range(layers)]
        self._features = torch.empty(room, size, features, **empty)
        self._words = torch.empty(room, size, dtype=torch.int16, device=self._device)
        self._kept: list[tuple[int, list[Stream]]] = []  # (number of the step, its streams)
        self.streams: list[Stream] = []
        self.owner_W = torch.zeros(0, dtype=torch.long)
        self._rows_W = torch.zeros(0, dtype=torch.long)
        self.said: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self._rows_W)

    @torch.no_grad()
    def add(self, streams: Sequence[Stream]) -> None:
        """Write the streams of a step; those of the oldest are forgotten if there are too many."""
        number = self._kept[-1][0] + 1 if self._kept else 0
        self._write(streams, [self._rows(number, i) for i in range(len(streams))])
        self._kept = [*self._kept, (number, list(streams))][-self.steps :]
        self.streams, self.said = [], {}
        rows, at = list[Tensor](), 0
        for number, step in self._kept:
            for i, stream in enumerate(step):
                stream.first = at
                at += len(stream.chunks)
                self.streams.append(stream)
                rows.append(self._rows(number, i)[: len(stream.chunks)])
                for key, chunks in stream.says.items():
                    self.said.setdefault(key, set()).update(stream.writes[chunk] for chunk in chunks)
        self._rows_W = torch.cat(rows)
        self.owner_W = torch.repeat_interleave(torch.tensor([len(stream.chunks) for stream in self.streams]))

    def _rows(self, number: int, stream: int) -> Tensor:
        """Where the chunks of a step's stream are kept; those of a step that is forgotten had the same place."""
        streams, chunks = self._most
        first = (number % self.steps * streams + stream) * chunks
        return torch.arange(first, first + chunks)

    def _write(self, streams: Sequence[Stream], rows: Sequence[Tensor]) -> None:
        """Chunk by chunk, all streams that have so many at once."""
        model, pool = self.model, self.model.config.N // self.model.config.K
        layers = range(len(self._vectors))
        for chunk in range(max(len(stream.chunks) for stream in streams)):
            some = [i for i, stream in enumerate(streams) if len(stream.chunks) > chunk]
            ids_BK = torch.tensor([streams[i].chunks[chunk] for i in some], device=self._device)
            before = [rows[i][max(0, chunk - pool) : chunk] for i in some]
            rows_BP = torch.stack(before).to(self._device)
            context = [vectors[rows_BP].flatten(1, 2) for vectors in self._vectors]
            states = model.write_pass(ids_BK, context)
            here = torch.stack([rows[i][chunk] for i in some]).to(self._device)
            with model.adapter("write"):
                for layer in layers:
                    made = model.attachment.keys_values(layer, states[layer])
                    self._vectors[layer][here] = made.to(self._vectors[layer])
            seen = [states[layer].to(self._device) for layer in model.config.search_layers]
            self._features[here] = Search.features(seen).to(self._features)
            self._words[here] = model.retriever.words(ids_BK)

    def features(self) -> Tensor:
        """What keys are made of, of every write [W, K, F]."""
        return self._features[self._rows_W.to(self._device)]

    def words(self) -> Tensor:
        """The words of every write [W, K]."""
        return self._words[self._rows_W.to(self._device)]

    def vectors(self, layer: int, writes: Tensor) -> Tensor:
        """Vectors of a layer by write [..., K, X]."""
        return self._vectors[layer][self._rows_W[writes].to(self._device)]

    def vectors_at(self, layer: int, tokens: Tensor) -> Tensor:
        """Vectors of a layer by token: write * K and its place in the write [..., 1, X]."""
        K = self.model.config.K
        rows = self._rows_W[tokens // K] * K + tokens % K
        return self._vectors[layer].flatten(0, 1)[rows.to(self._device)][..., None, :]


@dataclass(frozen=True)
class Picked:
    """What questions read: writes in reading order, those that are not there in front.

    writes_QS: places in the bank's table; with `single`, of vectors: write * K and the place in the write. there_QS:
    which of them are read. bias_QS: what is added to the attention logits of the start vector, and of the vectors of
    each write [Q, 1 + S].
    """

    writes_QS: Tensor
    there_QS: Tensor
    bias_QS: Tensor
    single: bool = False

    def of(self, rows: Sequence[int]) -> Picked:
        """Of some of the questions; of single vectors, without the columns that none of them reads."""
        some, spare = list(rows), 0
        if self.single and (there := self.there_QS[some]).shape[1]:
            spare = int((~there).sum(1).min())
            spare -= spare % _WIDTH
        bias = torch.cat([self.bias_QS[some, :1], self.bias_QS[some, 1 + spare :]], 1)
        return Picked(self.writes_QS[some, spare:], self.there_QS[some, spare:], bias, self.single)


def pick(
    scores_QW: Tensor, null_Q: Tensor, allowed_QW: Tensor, pools: Sequence[Sequence[int]], retrieved: int,
    pooled: int, *, score_bias: float, recency: float = 0.0,
) -> Picked:  # fmt: skip
    """What `ReadSlots` would read: the best writes outside the pool, oldest first, then the pool.

    Args:
        scores_QW, null_Q: of the one search.
        allowed_QW: writes that are in the memory.
        pools: of each question the writes in its pool, in order; they are in the memory, and at most `pooled`.
        retrieved: K0 / K. pooled: N / K.
        score_bias, recency: of the memory config.
    """
    questions, writes = scores_QW.shape
    retrieved = min(retrieved, writes)
    outside_QW = allowed_QW.clone()
    pool_QS = torch.zeros(questions, pooled, dtype=torch.long)
    there = torch.zeros(questions, pooled, dtype=torch.bool)
    for row, pool in enumerate(pools):
        outside_QW[row, list(pool)] = False
        pool_QS[row, pooled - len(pool) :] = torch.tensor(list(pool), dtype=torch.long)
        there[row, pooled - len(pool) :] = True
    times_QW = torch.arange(writes).expand_as(scores_QW).masked_fill(~outside_QW, -1)
    found_QS, found = best_allowed(scores_QW, outside_QW, times_QW, retrieved)
    # Where the pool is not full, what is missing of it goes in front as well.
    writes_QS, there_QS = torch.cat([found_QS, pool_QS], 1), torch.cat([found, there], 1)
    order = there_QS.int().argsort(dim=1, stable=True)
    writes_QS, there_QS = writes_QS.gather(1, order), there_QS.gather(1, order)
    scores_QS = scores_QW.gather(1, writes_QS)
    bias_QS = bias_of_slots(scores_QS.masked_fill(~there_QS, -torch.inf), null_Q[:, None], score_bias)
    if recency:
        bias_QS[:, 1:] -= recency * superseded(scores_QS, there_QS)
    return Picked(writes_QS, there_QS, bias_QS)


def pick_one(chosen: Sequence[tuple[int, ...]]) -> Picked:
    """What is read where each question looks at one write: the write before it, if there is one, and the write.

    Args:
        chosen: of each question the one or two writes, or none, in order.
    """
    writes = torch.tensor([[0] * (2 - len(some)) + list(some) for some in chosen])
    there = torch.tensor([[False] * (2 - len(some)) + [True] * len(some) for some in chosen])
    return Picked(writes, there, torch.zeros(len(chosen), 3))


def pick_spans(chosen: Sequence[Sequence[Span]]) -> Picked:
    """What is read where each question looks at spans, by token of the bank: these in order, or none."""
    tokens = [rows_together(some) for some in chosen]
    most = -(-max(map(len, tokens)) // _WIDTH) * _WIDTH
    places = torch.stack([F.pad(row, (most - len(row), 0)) for row in tokens])
    there = torch.stack([torch.arange(most) >= most - len(row) for row in tokens])
    return Picked(places, there, torch.zeros(len(tokens), 1 + most), single=True)


class LessonSlots:
    """The `SlotProvider` of questions that read a bank: per row [nothing; front; writes], as `ReadSlots` has it.

    The front is the start vector, or an instruction (`MemoryDecoder.front_rows`).

    Args:
        bank: of what was written.
        picked: what is read of it.
    """

    def __init__(self, bank: Bank, picked: Picked) -> None:
        self.bank, self.picked = bank, picked
        self.model, K = bank.model, 1 if picked.single else bank.model.config.K
        device = self.model.attachment.device
        questions, most = picked.writes_QS.shape
        fronts = self.model.front_rows()
        assert fronts is not None, "verbatim memory has one"
        self._fronts, self._size = fronts, len(fronts[0])
        self.length = self._size + most * K
        self._positions = torch.arange(self.length, device=device)[None]
        # The front is right before the first write that is read. Before it, slots are hidden.
        start_Q1 = (~picked.there_QS.to(device)).sum(1, keepdim=True) * K
        self._places = torch.arange(questions, device=device)[:, None], start_Q1 + self._positions[:, : self._size]
        bias = picked.bias_QS.to(device, self.model.base.dtype)
        first = bias[:, :1].expand(-1, self._size)
        self._bias_QP = torch.cat([first, bias[:, 1:].repeat_interleave(K, 1)], 1)
        self._bias_QP[self._places] = first
        self._bias_QP.masked_fill_(self._positions < start_Q1, _NEVER)

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Keys and values of a layer; nothing of them learns."""
        with torch.no_grad(), torch.autocast(hidden_BTD.device.type, enabled=False):
            of = self.bank.vectors_at if self.picked.single else self.bank.vectors
            vectors = of(layer, self.picked.writes_QS).flatten(1, 2)
            whole = F.pad(vectors, (0, 0, self._size, 0))
            whole[self._places] = self._fronts[layer].to(whole)
            device = hidden_BTD.device
            made = self.model.attachment.slots(layer, whole.to(device), self._positions.to(device), whole=True)
        return Slots(made.keys, made.values, self._bias_QP.to(device))
