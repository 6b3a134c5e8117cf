"""Two memories as one: the writes of both, in the order of time.

Nothing is written again: every write keeps its vectors, which saw what its own memory held at that time. What is
guaranteed: the writes of each memory keep their order, and where both were told in the order of time, so is the whole;
writes that had left the long-term store come first. Every write keeps its text, label, time, metadata and end; only
what a memory begins with gets a line end in front, as texts are told apart by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleMemory
from .history import Writes
from .memory import Memory
from .records import Block
from .writes import Tags, Write


def merged(one: Memory, other: Memory, line: tuple[int, ...] = ()) -> Memory:
    """A new memory of two, which stay as they are. It has no limits; what would expire still does.

    Its pool is the newest N vectors, as the long-term store has them (zeros with `store_dtype="tokens"`). What waited
    in either waits.

    Args:
        one, other: the two.
        line: the tokens of a line end, where it tells texts apart; put between what waits in the one and the other.

    Raises:
        IncompatibleMemory: different models wrote them.
        ConfigError: memories without a long-term store, or of a published checkpoint.
    """
    if (one.model, one.key_layers) != (other.model, other.key_layers):
        raise IncompatibleMemory(
            f"one memory was written by model {one.model!r}, the other by {other.model!r}; only their texts can be "
            "merged: remanence memory merge --rewrite"
        )
    if any(memory.ledger is not None or not memory.config.long_term for memory in (one, other)):
        raise ConfigError(
            "only memories with a long-term store can be merged, and none of a published checkpoint; write their texts "
            "into a new memory: remanence memory merge --rewrite"
        )
    pair = one, other
    config = one.config.replace(keep_text=one.config.keep_text and other.config.keep_text)
    gone = _in_order([memory.writes[: memory.first_write] for memory in pair])
    kept = _in_order([memory.writes[memory.first_write :] for memory in pair])
    new = Memory(
        config, layers=one.layers, width=one.width, model=one.model, dtype=one.pool_LnD.dtype, centre=one.centre_LD
    )
    new._generator.set_state(one._generator.get_state())
    new.first_write = new._base = len(gone)
    writes, tokens = list[Write](), 0
    for which, write in [*gone, *kept]:
        tags = tuple(_ends(part.tags, part.time, pair[which].limits.keep_for) for part in write.parts())
        tags = tags if any(each != Tags() for each in tags) else ()
        if line and writes and not write.index:  # what a memory begins with is told apart by no line end
            write = _below(write)
        writes.append(replace(write, index=len(writes), first_token=tokens, tags=tags))
        tokens += write.tokens
        new.has_ends |= any(each.until is not None for each in tags)
    new.writes = Writes(new=writes)
    stored = [memory.write_count - memory.first_write for memory in pair]
    order = torch.tensor(
        [write.index - pair[which].first_write + which * stored[0] for which, write in kept], dtype=torch.long
    )
    for name, records in new.records.items():
        both = torch.cat([_as_in(new, m, name) for m in pair])
        records.settle(0, [Block(both[order].contiguous())])
    first, end = max(len(gone) * config.K, len(writes) * config.K - config.N), len(writes) * config.K
    new.pool_rows_Ln = torch.arange(first, max(first, end)).expand(new.layers, -1).clone()
    if config.store_dtype == "tokens":
        pool = torch.zeros(*new.pool_rows_Ln.shape, new.width)
    else:
        pool = torch.stack([new.long_term(layer, rows) for layer, rows in enumerate(new.pool_rows_Ln)])
    new.pool_LnD = pool.to(one.pool_LnD)
    new.forgotten = sorted(one.forgotten + other.forgotten, key=lambda each: each["time"])
    for memory in sorted(pair, key=lambda memory: memory.pending[0].time if memory.pending else 0.0):
        waits = [replace(p, tags=_ends(p.tags, p.time, memory.limits.keep_for)) for p in memory.pending]
        if new.pending and waits and waits[0].ids[: len(line)] != line:
            new.pending.append(replace(new.pending[-1], ids=line))
        new.pending += waits
    return new


def _as_in(new: Memory, memory: Memory, name: str) -> Tensor:
    """What a memory keeps of its writes, as another memory of the same model keeps it."""
    kept = memory.records[name].span(memory.first_write - memory.base)
    alike = memory.config.store_dtype == new.config.store_dtype and (
        memory.centre_LD is None or new.centre_LD is None or torch.equal(memory.centre_LD, new.centre_LD)
    )
    if name != "vectors" or alike:
        return kept
    made = [new.rows_of(memory.of_rows(rows)) for rows in kept]
    return torch.stack(made) if made else new.records[name].span()


def _below(write: Write) -> Write:
    """A write whose text begins with a line end."""
    if write.text is None or write.text.startswith("\n"):
        return write
    pieces = tuple((source, time, letters + (not at)) for at, (source, time, letters) in enumerate(write.pieces))
    return replace(write, text=f"\n{write.text}", pieces=pieces)


def _in_order(both: Sequence[Sequence[Write]]) -> list[tuple[int, Write]]:
    """The writes of two lists by time, each list in its own order; and of which list each is."""
    merged, at = list[tuple[int, Write]](), [0, 0]
    while any(place < len(writes) for place, writes in zip(at, both, strict=True)):
        left = [which for which in (0, 1) if at[which] < len(both[which])]
        which = min(left, key=lambda which: (both[which][at[which]].time, which))
        merged.append((which, both[which][at[which]]))
        at[which] += 1
    return merged


def _ends(tags: Tags, time: float, keep_for: float | None) -> Tags:
    """Tags that hold by themselves what the limit of a memory says."""
    return tags if keep_for is None else replace(tags, until=tags.expires(time, keep_for))
