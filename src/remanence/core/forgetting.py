"""Forgetting a part of what was told: it is taken out, and everything that was told after it is written again.

A remembered vector is made of its own text and of what the memory held when it was written. So it is not enough to
remove the vectors of what is to be forgotten: those that came later have seen it. They are let go too, and made anew
from the texts that stay. What came before has never seen it and is kept.

Afterwards the memory is what it would be if that text had never been told, but for two things. The pool at the place of
the cut is taken from the long-term store, in the store's number format. And where a pool drops vectors at random, they
are drawn anew. Neither knows anything of what was forgotten.
"""

from __future__ import annotations

import math
import re
import time as clock
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import ConfigError, InputError
from .memory import Memory
from .writes import Held, Limits, Only, Pending, Tags, Write

_ABBREVIATIONS = ("Dr", "Mr", "Mrs", "Ms", "Prof", "e.g", "i.e", "vs", "cf")  # behind which a sentence goes on
_ABBREVIATED = "|".join(rf"(?<=\b{re.escape(word)})" for word in _ABBREVIATIONS)
_ENDS, _QUOTES = r"[.!?…]", r"[\"'”’)\]]*+"
# No alternative is tried twice, so that the time is linear in the text, whatever somebody sends.
SENTENCE = re.compile(
    rf"[^\n](?:[^\n.!?…]|{_ENDS}++(?!{_QUOTES}\s)|(?:{_ABBREVIATED}){_ENDS})*+"
    rf"(?:{_ENDS}++{_QUOTES}(?=\s)|(?=\n)|\Z)\s*|\n\s*"
)


@dataclass(frozen=True)
class Wanted:
    """What is to be forgotten: what meets all conditions that are given.

    writes: numbers of writes. source: the label. since, until: seconds since the epoch, from and before.
    containing: sentences in which these words stand, whatever their case and the white space between them.
    metadata: these keys have these values. expired: what has expired at this moment, in seconds since the epoch.
    """

    writes: Collection[int] | None = None
    source: str | None = None
    since: float | None = None
    until: float | None = None
    containing: str | None = None
    metadata: Mapping[str, str] | None = None
    expired: float | None = None

    def check(self) -> None:
        """Raise `InputError` if nothing is given, or no words."""
        if not self.metadata and all(
            value is None for value in (self.writes, self.source, self.since, self.until, self.containing, self.expired)
        ):
            raise InputError("forget what? Name writes, a source, metadata, a time, or words.")
        if self.containing is not None and not self.containing.strip():
            raise InputError("the words to be forgotten are empty.")


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did, or would do.

    texts: what is gone, in the order of telling. tokens: how many that were, about. first_write: from this write on all
    were made anew. again: tokens that were written again.
    """

    texts: list[str]
    tokens: int
    first_write: int
    again: int


@dataclass(frozen=True)
class _Told:
    """One piece of what was told. write: its number, or -1 if it waits."""

    write: int
    text: str
    source: str
    time: float
    tags: Tags

    @property
    def kind(self) -> tuple[str, float, Tags]:
        """What neighbours must share to be one text."""
        return self.source, self.time, self.tags


class Rewriter(Protocol):
    """What forgetting needs of a `MemoryModel`."""

    shipped: Memory | None

    def check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote the memory."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text."""

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of remembered tokens."""

    def before(self, memory: Memory, write: int) -> Memory:
        """The memory as it was before a write."""

    def take(
        self,
        memory: Memory,
        ids: list[int],
        source: str,
        time: float,
        progress: Callable[[int, int], None] | None,
        tags: Tags,
    ) -> None:
        """Write tokens to a memory."""


def forget(
    model: Rewriter,
    memory: Memory,
    wanted: Wanted,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Forgotten:
    """Take a part of what was told out of a memory; see `MemoryDecoder.forget`."""
    wanted.check()
    model.check(memory)
    if memory.ledger is not None or model.shipped is not None:
        raise ConfigError(
            "a memory of a published checkpoint cannot forget a part, as it begins with what the checkpoint came with. "
            "Delete it, and tell again what is to stay."
        )
    if any(write.text is None for write in memory.writes):
        raise InputError(
            "this memory keeps no texts (keep_text), so what came after a forgotten part cannot be written again. "
            "Delete it, and tell again what is to stay."
        )
    pieces = [piece for write in memory.writes for piece in _pieces(write)]
    pieces += [_Told(-1, model.text_of(p.ids), p.source, p.time, p.tags) for p in memory.pending]
    whole = _by_text(pieces)
    told = [piece for text in whole for piece in text]
    gone = _gone(whole, wanted, memory.limits.keep_for)
    held = _held(memory, wanted)
    beside = [one.text or "" for one in held]
    touched = {piece.write for piece, spans in zip(told, gone, strict=True) if spans}
    if not touched:
        lost = sum(len(model.encode(text)) for text in beside)
        if held and not dry_run:
            memory.release({one.number for one in held})
            memory.note_forgotten(clock.time(), lost)
        return Forgotten([text.strip() for text in beside], lost, memory.write_count, 0)
    first = min((write for write in touched if write >= 0), default=memory.write_count)
    if not memory.config.long_term:  # the pool of that moment is not kept
        first = 0
    texts = [*_texts(told, gone), *(text.strip() for text in beside)]
    lost = sum(len(model.encode(text)) for text in texts)
    apart = memory.config.short_chunks != "complete"  # whether texts are told apart, by the line end before each
    after = [place for place, piece in enumerate(told) if not 0 <= piece.write < first]
    stays = list(_stays(model, [told[at] for at in after], [gone[at] for at in after], begins=apart and first == 0))
    again = sum(len(piece.ids) for piece in stays)
    if not dry_run:
        earlier = model.before(memory, first)
        earlier.has_ends = any(piece.tags.until is not None for piece in told if 0 <= piece.write < first)
        _write(model, earlier, stays, progress)
        earlier.release({one.number for one in held})
        earlier.note_forgotten(clock.time(), lost)
        memory.become(earlier, first)
    return Forgotten(texts, lost, first, again)


def retell(
    model: Any,
    writes: Sequence[dict[str, Any]],
    pending: Sequence[dict[str, Any]],
    wrote: str,
    *,
    lost: Collection[int] = (),
    limits: Limits = Limits(),  # noqa: B008
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Memory, bool]:
    """A new memory of the texts of an old one, which another model may have written.

    Args:
        model: a `MemoryModel`, which writes.
        writes, pending: as in `Memory.meta`.
        wrote: the fingerprint of the old one's model. What waits is kept as tokens, which a model of the same name can
            read.
        lost: numbers of writes that are missing. What was on both sides of one does not become one text.
        limits: of the new memory; what they let leave the long-term store leaves it again.
        progress: called with (tokens done, tokens in all) after every write.

    Returns:
        The memory; and whether all that waited is in it.

    Raises:
        InputError: the memory keeps no texts.
    """
    if any(write["text"] is None for write in writes):
        raise InputError("this memory keeps no texts (keep_text), so they cannot be written again.")
    told = list[_Told]()
    for write in writes:
        told += _behind(write["index"], lost, list(_pieces(Write.of(write))))
    readable = not pending or wrote.rpartition("-")[0] == model.fingerprint.rpartition("-")[0]
    waits = [Pending.of(piece) for piece in pending if readable]
    waiting = [_Told(-1, model.text_of(p.ids), p.source, p.time, p.tags) for p in waits]
    told += _behind(len(writes) + len(lost), lost, waiting)
    told = [piece for text in _by_text(told) for piece in text]
    memory: Memory = model.new_memory()
    memory.limits = limits
    stays = list(_stays(model, told, [[] for _ in told], begins=0 in lost))
    _write(model, memory, stays, progress)
    return memory, readable


def _behind(write: int, lost: Collection[int], pieces: list[_Told]) -> list[_Told]:
    """The pieces of a write, with a line end in front if the write before it is lost."""
    if write - 1 in lost and pieces and not pieces[0].text.startswith("\n"):
        pieces[0] = replace(pieces[0], text=f"\n{pieces[0].text}")
    return pieces


def retell_both(
    model: Any, memories: Sequence[Memory], *, progress: Callable[[int, int], None] | None = None
) -> Memory:
    """A new memory of the texts of several, in the order of time; texts of one time stay in the order of the memories.

    Args:
        model: a `MemoryModel`, which writes.
        memories: that keep their texts; other models may have written them.
        progress: as in `retell`.

    Raises:
        InputError: a memory keeps no texts, or text waits in it whose tokens this model cannot read.
    """
    told: list[_Told] = []
    for memory in memories:
        if any(write.text is None for write in memory.writes):
            raise InputError("a memory keeps no texts (keep_text), so they cannot be written again.")
        if memory.pending and memory.model.rpartition("-")[0] != model.fingerprint.rpartition("-")[0]:
            raise InputError(f"what waits in a memory are tokens that only {memory.model!r} can read; use that model.")
        own = [piece for write in memory.writes for piece in _pieces(write)]
        own += [_Told(-1, model.text_of(p.ids), p.source, p.time, p.tags) for p in memory.pending]
        keep_for = memory.limits.keep_for
        for piece in own:
            until = piece.tags.expires(piece.time, keep_for)
            told.append(piece if until == math.inf else replace(piece, tags=replace(piece.tags, until=until)))
    told.sort(key=lambda piece: piece.time)
    new: Memory = model.new_memory()
    apart: list[Pending] = []
    for part in _stays(model, told, [[] for _ in told]):
        text = model.text_of(part.ids).strip()
        ids = tuple(model.encode(f"\n{text}" if apart else text))  # texts are told apart
        if ids:
            apart.append(replace(part, ids=ids))
    _write(model, new, apart, progress)
    new.forgotten = sorted((one for memory in memories for one in memory.forgotten), key=lambda one: one["time"])
    return new


def _write(
    model: Rewriter, memory: Memory, pieces: Sequence[Pending], progress: Callable[[int, int], None] | None
) -> None:
    """Write pieces one after the other; progress is that of all of them."""
    done, total = 0, sum(len(piece.ids) for piece in pieces)
    for piece in pieces:
        begun = done

        def further(at: int, _: int, begun: int = begun) -> None:
            if progress is not None:
                progress(min(total, begun + at), total)

        model.take(memory, list(piece.ids), piece.source, piece.time, further, piece.tags)
        done += len(piece.ids)


def _pieces(write: Write) -> Iterator[_Told]:
    """The texts that a write is of."""
    text, at = write.text or "", 0
    for part in write.parts():
        yield _Told(write.index, text[at : at + part.characters], part.source, part.time, part.tags)
        at += part.characters


def _by_text(pieces: Sequence[_Told]) -> list[list[_Told]]:
    """The pieces of each text, in the order in which the texts begin.

    In a merged memory a text may go on behind writes of the other memory. So what begins with no line end goes on with
    the last text of its kind that the end of a write has cut; or, told in a later call (`last`), with the text right
    before it, if that has the same label.
    """
    texts, cut = list[list[_Told]](), dict[tuple[str, float, Tags], list[list[_Told]]]()
    text: list[_Told] = []
    for at, piece in enumerate(pieces):
        waits, begins = cut.setdefault(piece.kind, []), piece.text.startswith("\n")
        if waits and not begins:
            text = waits.pop()
        elif begins or not text or text[-1].source != piece.source:
            text = []
            texts.append(text)
        text.append(piece)
        if at + 1 == len(pieces) or pieces[at + 1].write != piece.write:
            waits.append(text)
    return texts


def _gone(texts: Sequence[Sequence[_Told]], wanted: Wanted, keep_for: float | None) -> list[list[tuple[int, int]]]:
    """Of every piece of the texts the characters that are to be forgotten. keep_for: of the memory (`Limits`)."""
    only, told = Only(wanted.source, wanted.metadata or {}), [piece for text in texts for piece in text]
    matches: list[list[tuple[int, int]]]
    if wanted.containing is None:
        matches = [[(0, len(piece.text))] if piece.text else [] for piece in told]
    else:
        pattern = _pattern(wanted.containing)
        matches = [spans for text in texts for spans in _sentences(text, pattern)]
    return [
        spans
        if (wanted.writes is None or piece.write in wanted.writes)
        and only.takes(piece.source, piece.tags)
        and (wanted.since is None or piece.time >= wanted.since)
        and (wanted.until is None or piece.time < wanted.until)
        and (wanted.expired is None or piece.tags.expires(piece.time, keep_for) <= wanted.expired)
        else []
        for piece, spans in zip(told, matches, strict=True)
    ]


def _held(memory: Memory, wanted: Wanted) -> list[Held]:
    """What of the quarantine is to be forgotten: whole texts, in which the words stand anywhere."""
    if wanted.writes is not None:
        return []
    only = Only(wanted.source, wanted.metadata or {})
    pattern = None if wanted.containing is None else _pattern(wanted.containing)
    tagged = [(one, Tags.from_plain(one.tags)) for one in memory.quarantine]
    return [
        one
        for one, tags in tagged
        if only.takes(one.source, tags)
        and (wanted.since is None or one.time >= wanted.since)
        and (wanted.until is None or one.time < wanted.until)
        and (wanted.expired is None or memory.held_expired(one, wanted.expired))
        and (pattern is None or pattern.search(one.text or ""))
    ]


def _pattern(words: str) -> re.Pattern[str]:
    """Finds words in a row, whatever their case and the white space between them."""
    return re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, words.split())) + r"(?!\w)", re.IGNORECASE)


def _sentences(text: Sequence[_Told], pattern: re.Pattern[str]) -> list[list[tuple[int, int]]]:
    """Of every piece of a text the characters of the sentences in which words stand.

    No white space is left at its end that stood before such a sentence; nor a text that is only white space.
    """
    whole = "".join(piece.text for piece in text)
    found = [m.span() for m in SENTENCE.finditer(whole) if pattern.search(m[0])]
    left = whole
    for begin, end in reversed(found):
        if end >= len(left):
            left = left[:begin].rstrip()
    if left and whole[-1:].isspace():  # of a text that ended with it
        left = whole
    found = [span for span in found if span[0] < len(left)]
    if len(left) < len(whole):
        found.append((len(left), len(whole)))
    spans, at = list[list[tuple[int, int]]](), 0
    for piece in text:
        end = at + len(piece.text)
        spans.append([(max(a, at) - at, min(b, end) - at) for a, b in found if a < end and b > at])
        at = end
    return spans


def _texts(told: Sequence[_Told], gone: Sequence[Sequence[tuple[int, int]]]) -> Iterator[str]:
    """What is forgotten, for people: what hangs together in one piece."""
    held, open_end = "", False
    for piece, spans in zip(told, gone, strict=True):
        for begin, end in spans:
            if held and (begin or not open_end or piece.text.startswith("\n")):
                yield held.strip()
                held = ""
            held += piece.text[begin:end]
            open_end = end == len(piece.text)
        open_end = open_end and bool(spans)
    if held.strip():
        yield held.strip()


def _stays(
    model: Rewriter, told: Sequence[_Told], gone: Sequence[Sequence[tuple[int, int]]], *, begins: bool = False
) -> Iterator[Pending]:
    """What is to be written again, as tokens; neighbours of one kind in one piece.

    begins: a memory begins with it, so that no line end stands before its first text.
    """
    held: list[_Told] = []

    def joined() -> Pending:
        # A letter of several bytes that two writes share is not whole in the text of either.
        text = "".join(piece.text for piece in held).replace("\N{REPLACEMENT CHARACTER}", "")
        return Pending(held[0].source, held[0].time, tuple(model.encode(text)), held[0].tags)

    for piece, spans in zip(told, gone, strict=True):
        kept, at = "", 0
        for begin, end in spans:
            kept, at = kept + piece.text[at:begin], end
        kept += piece.text[at:]
        if begins:
            kept = kept.removeprefix("\n")
            begins = not kept
        if not kept:
            continue
        if held and held[0].kind != piece.kind:
            yield joined()
            held = []
        held.append(replace(piece, text=kept))
    if held:
        yield joined()
