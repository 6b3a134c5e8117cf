"""Telling a memory what a `Reader` reads: progress, saving as it goes, and a stop that keeps what was read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..documents import Document, Piece
from ..errors import OverLimit
from .reading import Reader
from .stopping import Stop

if TYPE_CHECKING:
    from ..core.memory import Memory
    from ..models.pretrained import MemoryModel

_LETTERS_A_TOKEN = 4  # about, of prose


class _Cut(Exception):
    """A text was not memorized to its end. left: tokens that were not. total: of the text, with what waited before."""

    def __init__(self, left: int, total: int) -> None:
        super().__init__(left, total)
        self.left, self.total = left, total


@dataclass(frozen=True)
class Place:
    """Where to go on: a part of a document. left: tokens of it that are left, out of `total`; None if all are."""

    document: Document
    part: int
    left: int | None = None
    total: int = 0

    @property
    def start(self) -> str:
        """As --from takes it."""
        return f"{self.document.name}:{self.part}" if self.part > 1 else self.document.name

    @property
    def options(self) -> str:
        """What to add to a command."""
        return f"--from {shlex.quote(self.start)}" + ("" if self.left is None else f" --last {self.left}")


class Telling:
    """Tells a memory piece after piece.

    Args:
        model: writes.
        reader: whose pieces are told.
        source: the label of all pieces; each has its own if it is None.
        last: only so many tokens at the end of the first piece.
        save: makes the memory permanent; called at least so often as `every` says, in seconds.
        every: see `save`.
        metadata, keep_for: of all pieces, as for `MemoryModel.memorize`.

    Attributes:
        tokens: that the memory took. told: the same, by name of the document. cut: where a stop ended it, or the limit
            of the memory; None if none did. over: what was said of the limit, if it was that. saved: tokens, and where
            to go on, of the last save; None before the first.
    """

    def __init__(
        self, model: MemoryModel, reader: Reader, *,
        source: str | None, last: int | None, save: Callable[[Memory], object], every: float,
        metadata: Mapping[str, str] | None = None, keep_for: float | None = None,
    ) -> None:  # fmt: skip
        self.model, self.reader, self.source, self.last = model, reader, source, last
        self._metadata, self._keep_for = metadata, keep_for
        self.tokens = 0
        self.told: dict[str, int] = {}
        self.cut: Place | None = None
        self.over: OverLimit | None = None
        self.saved: tuple[int, Place] | None = None
        self._save, self._every, self._saved_at = save, every, time.monotonic()
        self._files = reader.to_read
        self._bytes = sum(file.size for file in self._files)
        self._number, self._before, self._share = 0, 0, 0.0  # file, bytes of those before it, how much of it was told

    def tell(
        self, memory: Memory, pieces: Iterable[tuple[Document, Piece]], stop: Stop, update: Callable[..., None]
    ) -> None:
        """Tell all pieces; or as many as there are before a stop, which is obeyed as soon as what is written is whole.

        Args:
            memory: takes them.
            pieces: what `reader` reads.
            stop: see above.
            update: called with (done, total), and tokens and words as keywords, after every write.

        Raises:
            Stopped: stop was asked for twice.
            OverLimit: not even the first piece fits into the memory; what fits before a later one is told.
        """
        if self.model.config.short_chunks == "complete":  # however small, each would be a write of its own
            pieces = joined(pieces, _LETTERS_A_TOKEN * self.model.config.chunk_tokens)
        stop.later = True
        for number, (document, piece) in enumerate(pieces):
            place = Place(document, piece.part)
            if number:
                if stop.asked is not None:
                    self.cut = place
                    break
                self._save_if_due(memory, self.tokens, place)
            while self._files[self._number] is not document:
                self._before += self._files[self._number].size
                self._number, self._share = self._number + 1, 0.0
            self._tell(memory, piece, place, stop, update)
            if self.cut is not None:
                break
            self._share, self.last = piece.share, None

    def _tell(self, memory: Memory, piece: Piece, place: Place, stop: Stop, update: Callable[..., None]) -> None:
        """Tell the piece that is at a place, or what a stop leaves of it."""
        document, waited, before = place.document, len(memory.pending_ids), self.tokens

        def progress(done: int, total: int) -> None:
            now = before + max(0, done - waited)
            if self.reader.one_text:
                update(done, total)
            else:
                read = self._before + document.size * (self._share + (piece.share - self._share) * done / total)
                words = f"{now:,} tokens, {self.reader.count(document)}"
                update(read, max(1, self._bytes), tokens=now, words=words)
            # Where a policy holds back a part, nothing says which tokens of the text are left; so it is told whole.
            if memory.policy or total - done < self.model.config.chunk_tokens:  # or all but done
                return
            if stop.asked is not None:
                raise _Cut(total - done, total)
            self._save_if_due(memory, now, replace(place, left=total - done))

        label = self.source if self.source is not None else piece.label
        try:
            tokens = self.model.memorize(
                memory, piece.text, source=label, progress=progress, last=self.last,
                metadata=self._metadata, keep_for=self._keep_for,
            )  # fmt: skip
        except _Cut as cut:
            self.cut = replace(place, left=cut.left, total=cut.total - waited)
            tokens = max(0, cut.total - waited - cut.left)
        except OverLimit as over:
            if not self.tokens:
                raise
            self.cut, self.over, tokens = place, over, 0
        self.tokens += tokens
        self.told[document.name] = self.told.get(document.name, 0) + tokens

    def _save_if_due(self, memory: Memory, tokens: int, place: Place) -> None:
        if time.monotonic() - self._saved_at >= self._every:
            self._save(memory)
            self._saved_at, self.saved = time.monotonic(), (tokens, place)


def joined(pieces: Iterable[tuple[Document, Piece]], letters: int) -> Iterator[tuple[Document, Piece]]:
    """The same text in pieces of so many letters at least, but for the last of a document; labels are the first ones.

    From the part that a joined piece begins with, the same pieces are joined.
    """
    held: tuple[Document, Piece] | None = None
    for document, piece in pieces:
        if held is not None and held[0] is document and len(held[1].text) < letters:
            text = f"{held[1].text.rstrip()}\n{piece.text}"
            held = document, replace(held[1], text=text, share=piece.share)
        else:
            if held is not None:
                yield held
            held = document, piece
    if held is not None:
        yield held
