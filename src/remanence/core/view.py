"""Memories as they are read for one question: several as one, or one without a part of its writes.

A *view* is read like a memory and cannot be written to. It is made for two things:

* **Layers** (`over`): shared memories lie under a private one, such as a company's handbook under each person's own.
  The writes of the lower ones come first, as if they were older; then those of the private one, and its pool.
* **What may not be read** (`readable`): writes whose time to live is over, and those that a question leaves out. They
  are hidden in one place, `View.hide`: their scores are -inf, so nothing finds them; and the pool is read without them.

A view shares all tensors with its memories. Making one costs nothing that grows with them, but for one number a write
where something is hidden, and with `only` the source and the tags of each write, which may have to be read from the
disk (a second for 20,000 writes). Searching costs what searching each of them does.

Legend:  L layers   W writes   K vectors a write   G keys a write   n vectors in the pool   R key size
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleMemory
from .memory import Memory
from .retrieval import best_rows
from .writes import Only, Write


@dataclass(frozen=True)
class Layer:
    """One memory in a view.

    name: "" for the private one. first: the first of its writes that is in the view. place: the number of that there.
    """

    name: str
    memory: Memory
    first: int
    place: int

    @property
    def end(self) -> int:
        """The number in the view behind its last write."""
        return self.place + self.memory.write_count - self.first

    @property
    def stored(self) -> int:
        """The number in the view of its first write in the long-term store."""
        return self.place + self.memory.first_write - self.first


class View(Memory):
    """Memories as one, for reading. Writes are numbered anew, from 0; `origin` tells which they are.

    Args:
        layers: names and memories, the private one last; its pool and its rules count.
        now: seconds since the epoch; what has expired then is hidden.
        only: other texts are hidden.
    """

    def __init__(
        self, layers: Sequence[tuple[str, Memory]], now: float | None = None, only: Only | None = None
    ) -> None:
        private, K = layers[-1][1], layers[-1][1].config.K
        self.config, self.layers, self.width, self.model = private.config, private.layers, private.width, private.model
        self.ledger, self.limits, self.forgotten, self.cuts = None, private.limits, [], []
        self._base, self.policy, self.quarantine = 0, private.policy, list(private.quarantine)
        self.first_write = 0
        self.parts: list[Layer] = []
        place = 0
        for name, memory in layers:
            first = memory.first_write
            if memory is private and memory.pool_size:  # the pool may hold writes that have left the long-term store
                first = min(first, int(memory.pool_rows_Ln.min()) // K)
            self.parts.append(Layer(name, memory, first, place))
            place = self.parts[-1].end
        self.writes = _Writes(self.parts)  # type: ignore[assignment]
        hidden = [_hidden(part, now, only) for part in self.parts]
        self._hidden_W: Tensor | None = None  # may not be read
        if any(each is not None and each.any() for each in hidden):
            every = [torch.zeros(part.end - part.place, dtype=torch.bool) for part in self.parts]
            self._hidden_W = torch.cat([one if own is None else own for one, own in zip(every, hidden, strict=True)])
        self._unread_W = self._hidden_W  # nor that which is in the pool only
        top = self.parts[-1]
        if top.stored > top.place:
            self._unread_W = torch.zeros(place, dtype=torch.bool) if self._hidden_W is None else self._hidden_W.clone()
            self._unread_W[top.place : top.stored] = True
        self.hides, self.now = self._hidden_W is not None, now
        self.pending = [
            replace(piece, origin=part.name) for part in self.parts for piece in part.memory.pending
            if not (now is not None and part.memory.waits_expired(piece, now))
            and (only is None or only.takes(piece.source, piece.tags))
        ]  # fmt: skip
        self.hides |= len(self.pending) < sum(len(part.memory.pending) for part in self.parts)
        self._take_pool(private)

    def _take_pool(self, private: Memory) -> None:
        """The private memory's pool, without what is hidden; every layer has as many vectors."""
        K, part = self.config.K, self.parts[-1]
        self.pool_LnD, self.pool_rows_Ln = private.pool_LnD, private.pool_rows_Ln + (part.place - part.first) * K
        self._pool_owner: Memory = private
        if self._hidden_W is None or not private.pool_size:
            return
        hidden_Ln = self._hidden_W[self.pool_rows_Ln // K]
        if hidden_Ln.any():  # a vector that one layer reads beyond the others' number is read from the long-term store
            self._pool_owner = self
            count = int((~hidden_Ln).sum(1).min())
            kept_Ln = hidden_Ln.int().argsort(stable=True, dim=1, descending=True)[:, private.pool_size - count :]
            self.pool_rows_Ln = self.pool_rows_Ln.gather(1, kept_Ln)
            at = kept_Ln.to(self.pool_LnD.device)[..., None].expand(-1, -1, self.width)
            self.pool_LnD = self.pool_LnD.gather(1, at)

    # Sizes ------------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Tokens in all of its memories, also hidden ones."""
        return sum(part.memory.tokens for part in self.parts)

    @property
    def long_term_size(self) -> int:
        """Vectors in each layer's long-term store that may be read (in the layer that has the fewest)."""
        if not self.config.long_term:
            return 0
        in_pool = torch.full((self.layers,), self.pool_size)
        if self._unread_W is not None and self.pool_size:
            in_pool = (~self._unread_W[self.pool_rows_Ln // self.config.K]).sum(1)
        return self.readable_count * self.config.K - int(in_pool.max())

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and keys of all of its memories; it has none of its own."""
        return sum(part.memory.nbytes for part in self.parts)

    @property
    def resident(self) -> int:
        """Of all of its memories."""
        return sum(part.memory.resident for part in self.parts)

    @property
    def readable_count(self) -> int:
        """As of a memory."""
        return self.write_count if self._unread_W is None else self.write_count - int(self._unread_W.sum())

    # Reading ----------------------------------------------------------------------------------------------------------

    def keys(self, layer: int) -> list[Tensor]:
        """As of a memory; zeros for writes that are in the pool only."""
        return self._blocks(lambda memory: memory.keys(layer))

    def words(self) -> list[Tensor]:
        """As of a memory."""
        return self._blocks(lambda memory: memory.words())

    def parts_stored(self) -> list[tuple[int, Memory]]:
        """As of a memory."""
        return [(part.stored, part.memory) for part in self.parts]

    def _blocks(self, of: Callable[[Memory], list[Tensor]]) -> list[Tensor]:
        """What all memories have, in blocks of consecutive writes."""
        found, top = [of(part.memory) for part in self.parts], self.parts[-1]
        lost = found[-1][0].new_zeros(top.stored - top.place, *found[-1][0].shape[1:])
        return [block for blocks in (*found[:-1], [lost], found[-1]) for block in blocks if len(block)] or [lost]

    def hide(self, scores: Tensor) -> Tensor:
        """Scores with -inf for writes that may not be read, or that have left the long-term store."""
        if self._unread_W is None:
            return scores
        return scores.masked_fill(self._unread_W.repeat_interleave(scores.shape[-1] // self.write_count), -torch.inf)

    def may_read(self, writes: Tensor) -> Tensor:
        """As of a memory."""
        return super().may_read(writes) if self._unread_W is None else ~self._unread_W[writes]

    def begins(self, writes: Tensor) -> Tensor:
        """Of some writes, which have no write before them in their own memory that may be read."""
        first = torch.tensor([part.stored for part in self.parts])
        begins = torch.isin(writes, first)
        return begins if self._unread_W is None else begins | self._unread_W[(writes - 1).clamp_min(0)]

    def ids(self, writes: Tensor) -> Tensor:
        """As of a memory."""
        found = torch.zeros(len(writes), self.config.K, dtype=torch.int32)
        for part in self.parts:
            own = (writes >= part.stored) & (writes < part.end)
            if own.any():
                found[own] = part.memory.ids(writes[own] - part.place + part.first)
        return found

    def best_rows(self, layer: int, scores: Tensor) -> Tensor:
        """As of a memory."""
        K, wanted = self.config.K, self.read_size
        if not wanted:
            return torch.zeros(0, dtype=torch.long)
        block, pool_rows_n = self.config.score == "block", self.pool_rows_Ln[layer]
        return best_rows(self.hide(scores), pool_rows_n, K, wanted, block=block)

    def long_term(self, layer: int, rows: Tensor) -> Tensor:
        """As of a memory."""
        K, found = self.config.K, list[Tensor]()
        order = torch.zeros(0, dtype=torch.long)
        for part in self.parts:
            own = ((rows >= part.place * K) & (rows < part.end * K)).nonzero()[:, 0]
            if len(own):
                found.append(part.memory.long_term(layer, rows[own] - (part.place - part.first) * K))
                order = torch.cat([order, own])
        vectors = torch.cat(found) if found else self.parts[-1].memory.long_term(layer, rows)
        return vectors if torch.equal(order, torch.arange(len(order))) else vectors[order.argsort()]

    def origin(self, write: int) -> tuple[str, int]:
        """As of a memory."""
        return _origin(self.parts, write)

    def number_of(self, write: int) -> int:
        """The number here of a write of the private memory."""
        return write - self.parts[-1].first + self.parts[-1].place

    @property
    def pool_owner(self) -> Memory:
        """The private memory, unless some of its pool is hidden."""
        return self._pool_owner

    # What a view cannot -----------------------------------------------------------------------------------------------

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a view is only read."""
        self._refuse()

    def take_pending(self, count: int) -> None:
        """Refused: a view is only read."""
        self._refuse()

    def before(self, write: int) -> Memory:
        """Refused: a view is only read."""
        self._refuse()

    def meta(self) -> dict[str, Any]:
        """Refused: a view is nothing of its own that could be saved."""
        self._refuse()

    def tensors(self) -> dict[str, Tensor]:
        """Refused: a view is nothing of its own that could be saved."""
        self._refuse()

    def header(self) -> dict[str, Any]:
        """Refused: a view is nothing of its own that could be saved."""
        self._refuse()

    def state(self) -> dict[str, Tensor]:
        """Refused: a view is nothing of its own that could be saved."""
        self._refuse()

    def must_be_writable(self) -> None:
        """Raise `ConfigError`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError("this is a view, for reading only; write to, save or forget from the private memory itself.")


class _Writes(Sequence[Write]):
    """The writes of all memories of a view, each with its number in the view."""

    def __init__(self, parts: list[Layer]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return self._parts[-1].end

    @overload
    def __getitem__(self, index: int) -> Write: ...
    @overload
    def __getitem__(self, index: slice) -> list[Write]: ...
    def __getitem__(self, index: int | slice) -> Write | list[Write]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = _part(self._parts, index)
        return replace(part.memory.writes[index - part.place + part.first], index=index)


def _part(parts: list[Layer], write: int) -> Layer:
    """The memory that a write of a view is of."""
    return parts[bisect.bisect_right([part.end for part in parts], write)]


def _origin(parts: list[Layer], write: int) -> tuple[str, int]:
    part = _part(parts, write)
    return part.name, write - part.place + part.first


def _hidden(part: Layer, now: float | None, only: Only | None) -> Tensor | None:
    """Which writes of a part of a view may not be read [its writes]; None if all may."""
    hidden = None if now is None else part.memory.expired(now)
    if hidden is not None:
        hidden = hidden[part.first :]
    if only is not None:
        others = [
            not any(only.takes(text.source, text.tags) for text in write.parts())
            for write in part.memory.writes[part.first :]
        ]
        hidden = torch.tensor(others, dtype=torch.bool) | (torch.zeros(()).bool() if hidden is None else hidden)
    return hidden


def over(private: Memory, under: Mapping[str, Memory]) -> Memory:
    """A private memory with others under it, for reading: a question finds the writes of all.

    What is read beside the writes is the private memory's: its pool, and its limits. The text that waits in any of them
    is read too. It is not one memory that was told everything in a row: the private one's vectors were made without
    having seen the others, and the pools of the others are not read (their writes are, as all are kept).

    Args:
        private: on top.
        under: by the name that answers give as `Source.memory`; the first lies at the bottom.

    Raises:
        IncompatibleMemory: another model wrote one of them.
        ConfigError: memories of published checkpoints, which have a past of their own; or without a long-term store.
    """
    if not under:
        return private
    for name, memory in under.items():
        if not name:
            raise ConfigError("a memory under another needs a name.")
        if (memory.model, memory.key_layers) != (private.model, private.key_layers):
            raise IncompatibleMemory(
                f"memory {name!r} was written by model {memory.model!r}, and the one above it by {private.model!r}; "
                f"both must be of one model. Write it again: remanence memory rebuild {name} --model M"
            )
    if any(memory.ledger is not None or not memory.config.long_term for memory in (private, *under.values())):
        raise ConfigError(
            "only memories with a long-term store can lie over each other, and none of a published checkpoint, as "
            "each of them begins with what the checkpoint came with."
        )
    flat = [layer for name, memory in under.items() for layer in _named(name, memory)]
    return View([*flat, *_named("", private)])


def _named(name: str, memory: Memory) -> list[tuple[str, Memory]]:
    """The memories of a view, or a memory, under a name."""
    if not isinstance(memory, View):
        return [(name, memory)]
    return [("/".join(filter(None, (name, part.name))), part.memory) for part in memory.parts]


def readable(memory: Memory, now: float, only: Only | None = None) -> Memory:
    """A memory without what may not be read: what has expired, and what a question leaves out.

    Args:
        memory: or a view.
        now: seconds since the epoch.
        only: what is read at all; None for everything.

    Returns:
        A view; the memory itself if nothing is hidden.

    Raises:
        ConfigError: `only` for a memory of a published checkpoint.
    """
    if memory.ledger is not None:
        if only is not None:
            raise ConfigError("a memory of a published checkpoint is read as a whole; leave the conditions out.")
        return memory
    if only is None and isinstance(memory, View) and memory.now is not None:  # is made for a question already
        return memory
    if only is None and not isinstance(memory, View) and not memory.has_expired(now):  # the common case costs nothing
        return memory
    view = View(_named("", memory), now, only)
    return view if view.hides else memory
