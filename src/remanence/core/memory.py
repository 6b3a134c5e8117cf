"""One user's memory: the short-term pool θ and the long-term store Θ of every layer. Plain tensor code.

The algorithm (MemoryLLM §3, M+ §3):

1. A write brings K new vectors to every layer; they join the end of the layer's short-term pool.
2. A pool that would exceed N first lets the excess go: random vectors, drawn for each layer on its own; the others keep
   their order, so a pool is always in the order of writing.
3. What a pool lets go is not lost: it moves to the layer's long-term store (in MemoryLLM, `long_term=False`, it is).
4. For a question, the K0 long-term vectors with the best scores are read, oldest first, before the whole pool.

Vectors are numbered: the k-th vector of write w is *row* w * K + k in every layer. A row is its vector's provenance and
age, and its place in the long-term store. The store's copy is made when a vector is written and counts from the moment
the pool lets the vector go; so the store only ever grows at its end, write by write, in memory and on disk.

Legend:  L layers   W writes   K vectors a write   G keys a write   n vectors in the pool   R key size
         D numbers of a vector: the hidden size, or with `kept="keys_values"` those of all its keys and values
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import MemoryConfig
from ..errors import IncompatibleMemory, MemoryCorrupt
from .coarse import Coarse
from .history import Writes
from .ledger import Ledger
from .quantise import centred, decode, encode, quantised, row_bytes
from .records import Block, Records
from .retrieval import best_rows
from .writes import Held, Limits, Pending, Tags, Write

__all__ = ["Memory", "Pending", "Write"]  # what is known of a write belongs to a memory, and lies in `writes.py`

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TRIM_WRITES = 256  # expired writes are cut off the store this many at a time


def _of_tokens(config: MemoryConfig) -> dict[str, torch.dtype]:
    """What a memory keeps of the written tokens themselves, by name."""
    words = {"words": torch.int16} if config.score_layers == "one" and config.long_term else {}
    return words | ({"ids": torch.int32} if config.store_dtype == "tokens" else {})


class Memory:
    """One user's memory. Handed to a `MemoryModel`; knows tensors, no model and no disk.

    Args:
        config: sizes and rules.
        layers: decoder layers, L.
        width: numbers of a vector, D.
        model: fingerprint of the model that writes it; another model refuses it.
        seed: of the random drops, which are the memory's own, so that a saved memory goes on as if never closed.
        dtype: of the short-term pool. The long-term store has `config.store_dtype`.
        device: of the short-term pool. The long-term store is in host memory.
        centre: what the vectors of a layer have in common [L, D], for formats that round what differs (`quantise.py`);
            nothing if None.
    """

    def __init__(
        self,
        config: MemoryConfig,
        *,
        layers: int,
        width: int,
        model: str = "",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        centre: Tensor | None = None,
    ) -> None:
        self.config, self.layers, self.width, self.model = config, layers, width, model
        self.pool_LnD = torch.zeros(layers, 0, width, dtype=dtype, device=device)
        self.pool_rows_Ln = torch.zeros(layers, 0, dtype=torch.long)
        self.centre_LD: Tensor | None = None
        if centred(config.store_dtype):
            self.centre_LD = torch.zeros(layers, width) if centre is None else centre
        self.writes = Writes()
        self.pending: list[Pending] = []
        self.first_write = 0  # older writes have left the long-term store
        self._base = 0  # the write at the head of the arrays
        self.records = self.new_records()
        self._generator = torch.Generator().manual_seed(seed)
        self.forgotten: list[dict[str, float]] = []  # that something was forgotten, "time" and "tokens"; not what
        self.policy = ""  # the name of the policy that judges what is told from now on; see `core/admission.py`
        self.quarantine: list[Held] = []  # what it held back
        self.last_held = 0  # the highest number that a text of it has had; none is used again
        self.cuts: list[int] = []  # since it was made: from these writes on, others took the place of those before
        self.ledger = Ledger(config, layers) if config.keeps_ledger else None
        self.limits = Limits()
        self.has_ends = False  # whether a text of any write may expire by itself
        self._ends_W2 = torch.zeros(0, 2, dtype=torch.float64)  # see `expired`
        self.coarse = Coarse()  # never saved, and new for a memory whose past is another

    def new_records(self) -> dict[str, Records]:
        """What is kept of every write from `base` on, by name, with nothing in it.

        "vectors" [L, K, D], or X bytes each; "keys" [L or 1, G, R]; where they are kept, "words" and "ids" [K] (see
        `add`).
        """
        config = self.config
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "vectors": ((self.layers, config.K, self._row_width), self._row_dtype),
            "keys": ((self.key_layers, config.keys_per_write, config.retriever_dim), _DTYPES[config.key_dtype]),
            **{name: ((config.K,), dtype) for name, dtype in _of_tokens(config).items()},
        }
        return {name: Records(shape, dtype) for name, (shape, dtype) in shapes.items()}

    @property
    def base(self) -> int:
        """The first write of which anything is kept in `records`."""
        return self._base

    @property
    def key_layers(self) -> int:
        """Layers that have retriever keys; 1 if one search serves all."""
        return 1 if self.config.score_layers == "one" else self.layers

    @property
    def _row_dtype(self) -> torch.dtype:
        """Of the long-term store; rounded vectors are bytes."""
        return torch.uint8 if quantised(self.config.store_dtype) else _DTYPES.get(self.config.store_dtype, torch.uint8)

    @property
    def _row_width(self) -> int:
        """Numbers, or bytes, of a vector in the long-term store."""
        if self.config.store_dtype == "tokens":
            return 0
        return row_bytes(self.width, self.config.store_dtype) if quantised(self.config.store_dtype) else self.width

    # Sizes ------------------------------------------------------------------------------------------------------------

    @property
    def write_count(self) -> int:
        """Writes so far, W."""
        return len(self.writes)

    @property
    def tokens(self) -> int:
        """Tokens in memory, without those pending."""
        return self.writes[-1].first_token + self.writes[-1].tokens if self.writes else 0

    @property
    def pending_ids(self) -> list[int]:
        """The tokens that wait for a write, in order."""
        return [i for piece in self.pending for i in piece.ids]

    @property
    def pool_size(self) -> int:
        """Vectors in each layer's short-term pool, at most N."""
        return self.pool_LnD.shape[1]

    @property
    def long_term_size(self) -> int:
        """Vectors in each layer's long-term store (in the layer that holds the fewest)."""
        if not self.config.long_term:
            return 0
        if self.ledger is not None:
            return self.ledger.size
        kept = (self.write_count - self.first_write) * self.config.K
        in_pool = (self.pool_rows_Ln >= self.first_write * self.config.K).sum(1).max()  # they differ after an expiry
        return kept - int(in_pool)

    @property
    def read_size(self) -> int:
        """Long-term vectors that each layer reads for a question, at most K0."""
        return min(self.config.K0, self.long_term_size) if self.ledger is None else self.ledger.read_size

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and keys, pool and store."""
        kept = self.write_count - self.first_write if self.config.long_term else 0
        return kept * self.bytes_per_write + self.pool_LnD.nbytes + self.pool_rows_Ln.nbytes

    @property
    def resident(self) -> int:
        """Bytes that it takes of RAM when it is asked: the pool, what questions are compared with, and unsaved vectors.

        Of vectors that are saved only those are loaded that are read, a few at a time.
        """
        kept = {name: records.nbytes * records.size for name, records in self.records.items() if name != "vectors"}
        vectors = self.records["vectors"]
        return self.pool_LnD.nbytes + sum(kept.values()) + vectors.nbytes * vectors.in_ram + self.coarse.nbytes

    @property
    def bytes_per_write(self) -> int:
        """Bytes that a write leaves in the long-term store: vectors, keys, and what is kept of its tokens."""
        return sum(kept.nbytes for kept in self.records.values())

    # Writing ----------------------------------------------------------------------------------------------------------

    def add(
        self, vectors_LKD: Tensor, keys_LGR: Tensor | None, write: Write, of_tokens: dict[str, Tensor] | None = None
    ) -> None:
        """Take in one write: grow the pool, let the excess go to the long-term store.

        Args:
            vectors_LKD: the K new vectors of every layer.
            keys_LGR: their retriever keys, or None for a memory without a long-term store.
            write: its record; `write.index` must be `write_count`.
            of_tokens: what is kept of the written tokens themselves, each [K]: with `score_layers="one"` the "words"
                that the search compares, int16; with `store_dtype="tokens"` their "ids", int32.
        """
        K, N = self.config.K, self.config.N
        if write.index != self.write_count or vectors_LKD.shape != (self.layers, K, self.width):
            raise IncompatibleMemory(
                f"write {write.index} with vectors {tuple(vectors_LKD.shape)} does not continue this memory: expected "
                f"write {self.write_count} with {(self.layers, K, self.width)}."
            )
        shape = (self.key_layers, self.config.keys_per_write, self.config.retriever_dim)
        if self.config.long_term and (keys_LGR is None or keys_LGR.shape != shape):
            given = None if keys_LGR is None else tuple(keys_LGR.shape)
            raise IncompatibleMemory(f"write {write.index} comes with keys {given}; this memory takes {shape}.")
        of_tokens = of_tokens or {}
        if of_tokens.keys() != (kept := self.records.keys() - {"vectors", "keys"}):
            raise IncompatibleMemory(
                f"write {write.index} comes with {sorted(of_tokens)} of its tokens; this memory takes {sorted(kept)}."
            )
        rows = torch.arange(write.index * K, (write.index + 1) * K).expand(self.layers, -1)
        excess = self.pool_size + K - N
        if keys_LGR is not None and self.config.long_term:
            self._append(vectors_LKD, keys_LGR, of_tokens)
        if self.config.first_write == "tile" and not self.pool_size:
            vectors_LKD, rows = vectors_LKD.repeat(1, N // K, 1), rows.repeat(1, N // K)
        self._drop(max(0, excess))
        self.pool_LnD = torch.cat([self.pool_LnD, vectors_LKD.to(self.pool_LnD)], 1)
        self.pool_rows_Ln = torch.cat([self.pool_rows_Ln, rows], 1)
        self.writes.append(write)
        self.has_ends |= any(tags.until is not None for tags in write.tags)
        self._expire()

    # Forgetting -------------------------------------------------------------------------------------------------------

    def before(self, write: int) -> Memory:
        """The memory as it was before a write. It shares the store with this one, and either may go on.

        The pool comes from the store, and is drawn anew if it drops vectors at random. With `store_dtype="tokens"` its
        vectors are zeros; those of writes that have left the store are missing.
        """
        K, kept = self.config.K, max(0, write - self._base)
        earlier = Memory(self.config, layers=self.layers, width=self.width, model=self.model, centre=self.centre_LD)
        earlier._generator.set_state(self._generator.get_state())
        earlier.writes, earlier.forgotten = self.writes.until(write), list(self.forgotten)
        earlier.policy, earlier.quarantine, earlier.last_held = self.policy, list(self.quarantine), self.last_held
        earlier.limits, earlier.has_ends = self.limits, self.has_ends
        earlier._base, earlier.first_write = min(self._base, write), min(self.first_write, write)
        if self.config.long_term:
            earlier.records = {name: records.until(kept) for name, records in self.records.items()}
        earlier.pool_LnD = self.pool_LnD[:, :0]
        if kept and self.config.long_term:
            rows = earlier.pool_rows_Ln = earlier._drawn_pool(
                max(earlier._base, write - 20 * self.config.N // K), write
            )
            if self.config.store_dtype == "tokens":
                pool = self.pool_LnD.new_zeros(*rows.shape, self.width)
            else:
                pool = torch.stack([earlier.long_term(layer, rows[layer]) for layer in range(self.layers)])
            earlier.pool_LnD = pool.to(self.pool_LnD)
        return earlier

    def _drawn_pool(self, first: int, end: int) -> Tensor:
        """Rows of a pool after the writes first .. end - 1, as `add` would have left them [L, n]."""
        K, N = self.config.K, self.config.N
        rows_Ln = torch.zeros(self.layers, 0, dtype=torch.long)
        for write in range(first, end):
            new = torch.arange(write * K, (write + 1) * K).expand(self.layers, -1)
            if self.config.first_write == "tile" and not rows_Ln.shape[1]:
                new = new.repeat(1, N // K)
            excess = rows_Ln.shape[1] + new.shape[1] - N
            if excess > 0:
                rows_Ln = rows_Ln.gather(1, self._kept(rows_Ln.shape[1], excess)[0])
            rows_Ln = torch.cat([rows_Ln, new], 1)
        return rows_Ln

    def become(self, other: Memory, since: int) -> None:
        """Be another memory, which has the same writes before `since`."""
        cuts = [*self.cuts, since]
        self.__dict__.update(other.__dict__)
        self.cuts = cuts

    def note_forgotten(self, time: float, tokens: int) -> None:
        """Put down that something was forgotten."""
        self.forgotten.append({"time": time, "tokens": tokens})

    # Quarantine -------------------------------------------------------------------------------------------------------

    def hold(
        self, verdict: str, reason: str, source: str, time: float, held: float, text: str, tags: Tags | None = None
    ) -> None:
        """Put a text beside the memory. What is there already, from the same source, gives way to it.

        Args:
            verdict, reason, source, time, held, text, tags: see `Held`.
        """
        kept = text if self.config.keep_text else None
        number = self.last_held = self.newest_held() + 1
        others = [one for one in self.quarantine if kept is None or (one.source, one.text) != (source, kept)]
        self.quarantine = [*others, Held(number, verdict, reason, source, time, held, kept, (tags or Tags()).plain())]

    def release(self, numbers: Collection[int]) -> None:
        """Take texts out of the quarantine, by number. The next save erases them from the disk."""
        self.last_held = self.newest_held()
        self.quarantine = [one for one in self.quarantine if one.number not in numbers]
        self.cuts.append(self.write_count)  # no write was replaced, but text is to be erased

    def newest_held(self) -> int:
        """The highest number that a text of the quarantine has had, also in a memory that older versions saved."""
        return max([self.last_held, *(one.number for one in self.quarantine)])

    def held_since(self, number: int) -> list[Held]:
        """What was held back after `newest_held` gave this number, and still is."""
        return [one for one in self.quarantine if one.number > number]

    # Writing, inside --------------------------------------------------------------------------------------------------

    def take_pending(self, count: int) -> None:
        """Remove the first `count` tokens of what waits, which were written."""
        while count and self.pending:
            piece = self.pending.pop(0)
            if len(piece.ids) > count:
                self.pending.insert(0, replace(piece, ids=piece.ids[count:]))
            count -= min(count, len(piece.ids))

    def _drop(self, excess: int) -> None:
        """Let `excess` vectors of every layer's pool go."""
        if not excess and self.ledger is None:
            return
        layers, size = self.pool_rows_Ln.shape
        kept, gone = self._kept(size, excess)
        if self.ledger is not None:
            self.ledger.write(kept, gone, self.pool_rows_Ln.gather(1, gone))
        flat = (torch.arange(layers)[:, None] * size + kept).flatten()
        pool = self.pool_LnD.flatten(0, 1).index_select(0, flat.to(self.pool_LnD.device))
        self.pool_LnD = pool.unflatten(0, (layers, -1))
        self.pool_rows_Ln = self.pool_rows_Ln.gather(1, kept)

    def _kept(self, size: int, excess: int) -> tuple[Tensor, Tensor]:
        """Which places of a pool of so many vectors stay, and which go, in every layer, in order."""
        if self.config.drop == "oldest" or not excess:
            order = torch.arange(size).roll(-excess).expand(self.layers, -1)
        else:
            order = self._shuffled(1 if self.config.drop_shared else self.layers, size).expand(self.layers, -1)
        return order[:, : size - excess].sort(1).values, order[:, size - excess :].sort(1).values

    def _shuffled(self, layers: int, size: int) -> Tensor:
        """Random orders of a pool's places [layers, size], layer 0 drawn first, as the published code draws them."""
        return torch.stack([torch.randperm(size, generator=self._generator) for _ in range(layers)])

    def _append(self, vectors_LKD: Tensor, keys_LGR: Tensor, of_tokens: dict[str, Tensor]) -> None:
        """Put a write at the end of the store."""
        if self.config.store_dtype == "tokens":
            vectors_LKD = vectors_LKD[:, :, :0]
        for name, record in {"vectors": self.rows_of(vectors_LKD), "keys": keys_LGR, **of_tokens}.items():
            self.records[name].append(record)

    def _expire(self) -> None:
        """Let the oldest writes leave the long-term store once it holds more than `store_tokens`, or the limit."""
        caps = [self.config.store_tokens, self.limits.tokens if self.limits.when_full == "oldest" else None]
        cap = min((cap for cap in caps if cap is not None), default=None)
        if self.config.merge_every is not None and self.ledger is not None:
            self.first_write = min(int(self.pool_rows_Ln.min()), self.ledger.first_row) // self.config.K
        elif cap is None:
            return
        else:
            while self.first_write < self.write_count and self.tokens - self.writes[self.first_write].first_token > cap:
                self.first_write += 1
        spare = self.first_write - self._base
        if self.config.long_term and spare >= _TRIM_WRITES:
            for records in self.records.values():
                records.cut(spare)
            self._base = self.first_write

    # Reading ----------------------------------------------------------------------------------------------------------

    def keys(self, layer: int) -> list[Tensor]:
        """Retriever keys of the writes `first_write` .. W-1, in blocks of consecutive writes, each [w, G, R]."""
        layer = 0 if self.config.score_layers == "one" else layer
        return [block[:, layer] for block in self.records["keys"].blocks(self.first_write - self._base)]

    def words(self) -> list[Tensor]:
        """The "words" (see `add`) of the tokens of the writes `first_write` .. W-1, in the same blocks, each [w, K]."""
        return self.records["words"].blocks(self.first_write - self._base)

    def parts_stored(self) -> list[tuple[int, Memory]]:
        """The memories that it is of, each with the place among `keys` of the first write in its long-term store."""
        return [(0, self)]

    def ids(self, writes: Tensor) -> Tensor:
        """The tokens of writes [len(writes), K]; only with `store_dtype="tokens"`."""
        return self.records["ids"].take(writes - self._base)

    def best_rows(self, layer: int, scores: Tensor) -> Tensor:
        """Rows of the K0 long-term vectors of a layer with the best scores, oldest first [min(K0, long-term size)].

        Args:
            layer: index.
            scores: one a write from `first_write` on (block scores), or one a vector (vector scores).
        """
        K = self.config.K
        if self.ledger is not None:
            return self.ledger.best(layer, scores, self.first_write * K)
        wanted = self.read_size
        if wanted == 0:
            return torch.zeros(0, dtype=torch.long)
        first = self.first_write * K
        pool_rows_n = self.pool_rows_Ln[layer] - first
        return best_rows(scores, pool_rows_n, K, wanted, block=self.config.score == "block") + first

    def long_term(self, layer: int, rows: Tensor) -> Tensor:
        """Vectors of the store by row [len(rows), D]."""
        found = self.records["vectors"].vectors(layer, rows - self._base * self.config.K)
        return self.of_rows(found, layer)

    def rows_of(self, vectors_LKD: Tensor) -> Tensor:
        """Vectors of all layers as the store has them [L, K, X]."""
        dtype = self.config.store_dtype
        if self.centre_LD is not None:
            vectors_LKD = vectors_LKD.float() - self.centre_LD[:, None].to(vectors_LKD.device)
        return encode(vectors_LKD, dtype) if quantised(dtype) else vectors_LKD

    def of_rows(self, rows: Tensor, layer: int | None = None) -> Tensor:
        """The inverse of `rows_of`, but for rounding; of all layers [L, K, X], or of one [..., X]."""
        dtype = self.config.store_dtype
        vectors = decode(rows, self.width, dtype) if quantised(dtype) else rows
        if self.centre_LD is None:
            return vectors
        return vectors + (self.centre_LD[:, None] if layer is None else self.centre_LD[layer])

    @property
    def readable_count(self) -> int:
        """Writes that are searched, W - first_write."""
        return self.write_count - self.first_write

    def hide(self, scores: Tensor) -> Tensor:
        """Scores [..., one or several a write] as they count: -inf for writes that may not be read (`view.py`)."""
        return scores

    def may_read(self, writes: Tensor) -> Tensor:
        """Which of some writes of the long-term store are not hidden [len(writes)]."""
        return torch.ones_like(writes, dtype=torch.bool)

    def begins(self, writes: Tensor) -> Tensor:
        """Of some writes, which have no write before them that may be read [len(writes)]."""
        return writes == self.first_write

    def origin(self, write: int) -> tuple[str, int]:
        """The name of the memory that a write is of, or "" for this one; and its number there."""
        return "", write

    @property
    def pool_owner(self) -> Memory:
        """The memory whose pool this one reads."""
        return self

    def must_be_writable(self) -> None:
        """Raise `ConfigError` if this is a view (`view.py`), which is only read."""

    # Time to live -----------------------------------------------------------------------------------------------------

    def expired(self, now: float) -> Tensor | None:
        """Which writes hold a text whose time is over [W]; None if no text of any write has an end.

        Args:
            now: seconds since the epoch.
        """
        known, keep_for = len(self._ends_W2), self.limits.keep_for
        if not self.has_ends and keep_for is None:  # nobody looks at every write for nothing
            return None
        if known > self.write_count:
            known = 0
        if known < self.write_count:  # the earliest end and the earliest time of each write's texts
            new = [
                (min(part.tags.expires(part.time, None) for part in parts), min(part.time for part in parts))
                for parts in (list(write.parts()) for write in self.writes[known:])
            ]
            self._ends_W2 = torch.cat([self._ends_W2[:known], torch.tensor(new, dtype=torch.float64)])
        if not self.write_count:
            return None
        ends_W, times_W = self._ends_W2.unbind(1)
        if keep_for is not None:
            ends_W = torch.minimum(ends_W, times_W + keep_for)
        return None if math.isinf(float(ends_W.min())) else ends_W <= now

    def has_expired(self, now: float) -> bool:
        """Whether the time of a text that is written or waits is over."""
        waits = any(self.waits_expired(piece, now) for piece in self.pending)
        return waits or ((expired := self.expired(now)) is not None and bool(expired.any()))

    def waits_expired(self, piece: Pending, now: float) -> bool:
        """Whether the time of a text that waits is over."""
        return piece.tags.expires(piece.time, self.limits.keep_for) <= now

    def held_expired(self, one: Held, now: float) -> bool:
        """Whether the time of a text in the quarantine is over."""
        return Tags.from_plain(one.tags).expires(one.time, self.limits.keep_for) <= now

    # As a whole -------------------------------------------------------------------------------------------------------

    def copy(self) -> Memory:
        """An independent copy; both go on alike from here."""
        return Memory.from_parts({k: v.clone() for k, v in self.tensors().items()}, self.meta())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make it whole, with `meta`.

        What `state` gives; and of all that the store holds "vectors" [L, writes * K, D], "keys" [L, writes * G, R] and,
        where they are kept, "words" and "ids" [1, writes * K, 1].
        """
        kept = {name: records.span() for name, records in self.records.items()}
        return {
            **self.state(),
            "vectors": kept.pop("vectors").transpose(0, 1).flatten(1, 2),
            "keys": kept.pop("keys").transpose(0, 1).flatten(1, 2),
            **{name: kept_WK.reshape(1, -1, 1) for name, kept_WK in kept.items()},
        }

    def state(self) -> dict[str, Tensor]:
        """The tensors that change with every write: the pool, where it comes from, the random drops, the ledger."""
        return {
            "pool": self.pool_LnD,
            "pool_rows": self.pool_rows_Ln,
            "generator": self._generator.get_state(),
            **({} if self.centre_LD is None else {"centre": self.centre_LD}),
            **(self.ledger.tensors() if self.ledger is not None else {}),
        }

    def header(self) -> dict[str, Any]:
        """The plain values that make it whole, but for writes and what waits; JSON-ready."""
        return {
            "config": self.config.to_dict(),
            "layers": self.layers,
            "width": self.width,
            "model": self.model,
            "first_write": self.first_write,
            "base": self._base,
            **({"limits": limits} if (limits := self.limits.plain()) else {}),
            **({"ends": True} if self.has_ends else {}),
            **({"forgotten": self.forgotten} if self.forgotten else {}),
            **({"policy": self.policy} if self.policy else {}),
            **({"quarantine": [dataclasses.asdict(one) for one in self.quarantine]} if self.quarantine else {}),
            **({"last_held": self.last_held} if self.last_held else {}),
            **({"ledger": self.ledger.meta()} if self.ledger is not None else {}),
        }

    def meta(self) -> dict[str, Any]:
        """All plain values that make it whole, with `tensors`; JSON-ready."""
        return {
            **self.header(),
            "writes": [write.plain() for write in self.writes],
            "pending": [piece.plain() for piece in self.pending],
        }

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Memory:
        """The inverse of `tensors` and `meta`. Raises `MemoryCorrupt` if they do not fit together."""
        memory = cls.from_state(tensors, meta)
        memory.writes = Writes(new=[Write.of(write) for write in meta["writes"]])
        layers = {"vectors": memory.layers, "keys": memory.key_layers}
        for name, records in memory.records.items():
            if name not in tensors:
                raise MemoryCorrupt(f"the memory lacks its tensor {name}; restore it from a copy.")
            per_write, width = records.shape[-2:] if name in layers else (records.shape[0], 1)
            expected = layers.get(name, 1), memory.records_count * per_write, width
            if tuple(tensors[name].shape) != expected:
                raise MemoryCorrupt(f"memory tensor {name!r} is {tuple(tensors[name].shape)}, expected {expected}.")
            whole = tensors[name].unflatten(1, (memory.records_count, per_write)).transpose(0, 1)
            records.settle(0, [Block(whole.reshape(memory.records_count, *records.shape).contiguous())])
        return memory

    @property
    def records_count(self) -> int:
        """How many writes `records` must have."""
        return self.write_count - self._base if self.config.long_term else 0

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Memory:
        """A memory of what `state` and `header` gave and of what waits; its writes and records are still to come.

        Raises:
            MemoryCorrupt: they do not fit together.
        """
        config = MemoryConfig.from_dict(meta["config"])
        needed = {"pool", "pool_rows", "generator"} | ({"centre"} if centred(config.store_dtype) else set())
        if missing := needed - tensors.keys():
            raise MemoryCorrupt(f"the memory lacks its tensors {', '.join(sorted(missing))}; restore it from a copy.")
        memory = cls(
            config, layers=meta["layers"], width=meta["width"], model=meta["model"], centre=tensors.get("centre")
        )
        memory.pending = [Pending.of(piece) for piece in meta["pending"]]
        memory.limits, memory.has_ends = Limits(**meta.get("limits", {})), meta.get("ends", False)
        memory.first_write, memory._base = meta["first_write"], meta["base"]
        memory.forgotten = [dict(one) for one in meta.get("forgotten", ())]
        memory.policy = meta.get("policy", "")
        memory.quarantine = [Held(**one) for one in meta.get("quarantine", ())]
        memory.last_held = meta.get("last_held", 0)
        pool = tensors["pool"].shape[1]
        expected: dict[str, tuple[int, ...]] = {
            "pool": (memory.layers, pool, memory.width), "pool_rows": (memory.layers, pool)
        }  # fmt: skip
        if memory.centre_LD is not None:
            expected["centre"] = memory.layers, memory.width
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != shape:
                raise MemoryCorrupt(f"memory tensor {name!r} is {tuple(tensors[name].shape)}, expected {shape}.")
        memory.pool_LnD, memory.pool_rows_Ln = tensors["pool"], tensors["pool_rows"]
        memory._generator.set_state(tensors["generator"])
        if memory.ledger is not None:
            memory.ledger = Ledger.from_parts(config, memory.pool_rows_Ln, tensors, meta)
        return memory
