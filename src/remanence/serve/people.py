"""Memories of many people, in RAM only while they are used. Plain Python: no HTTP, no threads of its own.

Any number of threads may call `People`. Of one memory either several are reading or one is writing; who wants to write
goes before those who want to read later. Every write is on the disk before the call returns (`MemoryStore`), so a
process that is killed at any moment loses nothing that was acknowledged.

A memory stays loaded after it was used, until others need the room: the one that was used longest ago goes first.
Before each use it is compared with the disk, so that what another process saved is seen.

All that computes goes through a `Computer`. `Alone`, the default, is a lock around the model; the server's engine is
one that answers several people together.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..config import READING
from ..errors import IncompatibleMemory, InputError, MemoryBusy, RemanenceError
from ..store import MemoryStore
from ..store.portable import unpack

if TYPE_CHECKING:
    from ..core.forgetting import Forgotten, Wanted
    from ..core.memory import Memory
    from ..core.model import Answer, MemoryDecoder
    from ..core.read import Source
    from ..core.writes import Held as HeldBack
    from ..store.rows import MemoryInfo

T = TypeVar("T")
_MOST_QUERY = 10_000  # letters; a search looks at 64 tokens
_MOST_WAITING = 16  # for one memory that somebody uses; each takes a thread and a place meanwhile


class Computer(Protocol):
    """Where the model is used."""

    def run(self, work: Callable[[], T]) -> T:
        """The result of work that uses the model; it waits for its turn."""

    def between(self) -> None:
        """Called between two steps of a long piece of work, such as two writes: others may have a turn."""

    def answer(
        self, memory: Memory, question: str, *, history: Sequence[tuple[str, str]] = (), max_new_tokens: int = 32
    ) -> Answer:
        """The answer to a question, as of `MemoryDecoder.ask`."""


class Alone:
    """A `Computer` for a program of its own: one caller at a time uses the model.

    Args:
        model: what is used.
    """

    def __init__(self, model: MemoryDecoder) -> None:
        self._model, self._turn = model, threading.RLock()

    def run(self, work: Callable[[], T]) -> T:
        """Do it, when nobody else computes."""
        with self._turn:
            return work()

    def between(self) -> None:
        """Nobody else has a turn."""

    def answer(
        self, memory: Memory, question: str, *, history: Sequence[tuple[str, str]] = (), max_new_tokens: int = 32
    ) -> Answer:
        """The model's answer."""
        with self._turn:
            return self._model.ask(memory, question, history=history, max_new_tokens=max_new_tokens)


@dataclass
class _Loaded:
    """A memory that is loaded, or about to be.

    readers, writing: who uses it. waiting: who waits to. wishes: who of them waits to write.
    """

    memory: Memory | None = None
    readers: int = 0
    writing: bool = False
    waiting: int = 0
    wishes: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def used(self) -> bool:
        """Whether somebody uses it, or waits to."""
        return bool(self.readers or self.writing or self.wishes)


class Held:
    """A memory that is being read: nobody writes to it until `release`, which any thread may call, also twice."""

    def __init__(self, memory: Memory, leave: Callable[[], None]) -> None:
        self.memory, self._leave = memory, leave
        self._lock, self._released = threading.Lock(), False

    def release(self) -> None:
        """It is no longer read."""
        with self._lock:
            first, self._released = not self._released, True
        if first:
            self._leave()

    def __enter__(self) -> Memory:
        return self.memory

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class Written:
    """What `People.write` did.

    tokens: that were taken. writes, pending_tokens: of the memory, now. held: what the memory's policy held back; it is
    in the memory's quarantine and not remembered.
    """

    tokens: int
    writes: int
    pending_tokens: int
    held: tuple[HeldBack, ...] = ()


class People:
    """The memories of many people.

    Args:
        model: writes and answers.
        store: where memories lie.
        computer: where the model is used; `Alone` if None. May be set before the first use.
        most: how many memories stay loaded while nobody uses them.
        most_bytes: how many bytes of RAM these may take (`Memory.resident`).
        patience_s: how long to wait for a memory that somebody else of this process uses.

    Raises (any method that takes a name):
        ConfigError: a name that is not allowed.
        UnknownMemory: there is no memory of that name.
        MemoryBusy: somebody else has it for long, or many others wait for it already.
        IncompatibleMemory: another model wrote it.
        MemoryCorrupt, StorageError: as of `MemoryStore`.
    """

    def __init__(
        self,
        model: MemoryDecoder,
        store: MemoryStore,
        computer: Computer | None = None,
        *,
        most: int = 256,
        most_bytes: int = 2 << 30,
        patience_s: float = 30.0,
    ) -> None:
        self.model, self.store = model, store
        self.computer: Computer = computer or Alone(model)
        self.most, self.most_bytes, self.patience_s = most, most_bytes, patience_s
        self.evicted = 0  # memories that left the RAM so that others had room
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the one used last at the end
        self._changed = threading.Condition()
        self._copying = threading.Lock()  # one memory at a time is copied, or in RAM to be exported or imported
        model.new_memory(empty=True)  # what all new ones share is computed once, before anybody else computes

    # Looking ----------------------------------------------------------------------------------------------------------

    def infos(self) -> list[MemoryInfo]:
        """All memories, by name; damaged ones say so (`MemoryInfo.damage`)."""
        return self.store.list()

    def exists(self, name: str) -> bool:
        """Whether there is a memory of that name."""
        return self.store.exists(name)

    def info(self, name: str) -> MemoryInfo:
        """One memory's entry."""
        return self.store.info(name)

    def usage(self) -> tuple[int, int]:
        """How many memories are loaded, and the bytes that they take of RAM."""
        with self._changed:
            held = [one.memory for one in self._loaded.values() if one.memory is not None]
        return len(held), sum(memory.resident for memory in held)

    # Holding ----------------------------------------------------------------------------------------------------------

    def hold(self, name: str, *, start: bool = False) -> Held:
        """A memory for reading, as it is stored now.

        Args:
            name: which.
            start: if there is none, an empty one, of which nothing is stored.
        """
        one = self._enter(name, writing=False)
        try:
            with one.loading:  # one of several readers loads it
                if one.memory is None or not self.store.is_current(name, one.memory):
                    one.memory = None
                    if start and not self.store.exists(name):
                        return Held(self.model.new_memory(), lambda: self._leave(name, one, writing=False))
                    memory = self.store.load(name)
                    self.model.check(memory)
                    memory.pool_LnD = memory.pool_LnD.to(self.model.device)
                    one.memory = memory
                return Held(one.memory, lambda: self._leave(name, one, writing=False))
        except BaseException:
            self._leave(name, one, writing=False)
            raise

    @contextmanager
    def writing(self, name: str, *, create: bool = True) -> Iterator[Memory]:
        """A memory for writing; it is on the disk when the block ends. If the block raises, nothing of it is kept.

        Args:
            name: which.
            create: start one if there is none.
        """
        one = self._enter(name, writing=True)
        try:
            known, one.memory = one.memory, None  # what is cut short may be half written, and is not used again
            with self.store.open(name, self.model, create=create, known=known) as memory:
                yield memory
            one.memory = memory
        finally:
            self._leave(name, one, writing=True)

    def _enter(self, name: str, *, writing: bool) -> _Loaded:
        """Wait until a memory may be used in this way."""
        until = clock.monotonic() + self.patience_s
        with self._changed:
            one = self._loaded.setdefault(name, _Loaded())
            one.waiting += 1
            one.wishes += writing
            try:
                while one.writing or (one.readers if writing else one.wishes):
                    left = until - clock.monotonic()
                    if one.waiting > _MOST_WAITING:  # who came last
                        raise MemoryBusy(f"memory {name!r} is in use, and many wait for it already; try again.")
                    if left <= 0:
                        raise MemoryBusy(f"memory {name!r} is in use for longer than usual; try again.")
                    self._changed.wait(left)
                    if name not in self._loaded:
                        self._loaded[name] = one  # it was unused for a moment, and let go
            finally:
                one.waiting -= 1
                one.wishes -= writing
                if writing:
                    self._changed.notify_all()  # those who read may, if we gave up
            if writing:
                one.writing = True
            else:
                one.readers += 1
            self._loaded.move_to_end(name)
            return one

    def _leave(self, name: str, one: _Loaded, *, writing: bool) -> None:
        """It is no longer used; let go what there is no room for."""
        with self._changed:
            if writing:
                one.writing = False
            else:
                one.readers -= 1
            if one.memory is None and not one.used and self._loaded.get(name) is one:
                del self._loaded[name]
            self._make_room()
            self._changed.notify_all()

    def _make_room(self) -> None:
        idle = [
            (name, one.memory) for name, one in self._loaded.items() if one.memory is not None and not one.used
        ]  # longest unused first
        count, size = len(idle), sum(memory.resident for _, memory in idle)
        for name, memory in idle:
            if count <= self.most and size <= self.most_bytes:
                break
            del self._loaded[name]
            count, size = count - 1, size - memory.resident
            self.evicted += 1

    def let_go(self, name: str) -> None:
        """Let a memory leave the RAM, unless somebody uses it."""
        with self._changed:
            one = self._loaded.get(name)
            if one is not None and not one.used:
                del self._loaded[name]
                self.evicted += one.memory is not None

    # Using ------------------------------------------------------------------------------------------------------------

    def create(self, name: str) -> MemoryInfo:
        """Start an empty memory. Raises `InputError` if there is one of that name."""
        one = self._enter(name, writing=True)
        try:
            self._save_new(name, self.model.new_memory())
        finally:
            self._leave(name, one, writing=True)
        return self.info(name)

    def _save_new(self, name: str, memory: Memory) -> None:
        with self.store.hold(name):
            self.must_be_free(name)
            self.store.save(name, memory)

    def must_be_free(self, name: str) -> None:
        """Raise `InputError` if there is a memory of that name."""
        if self.store.exists(name):
            raise Taken(f"there is a memory {name!r} already; choose another name.")

    def ask(
        self, name: str, question: str, *, history: Sequence[tuple[str, str]] = (), max_new_tokens: int = 32
    ) -> Answer:
        """Answer a question from a memory, which stays as it is.

        Raises:
            InputError: an empty question, or one that does not fit the window.
        """
        with self.hold(name) as memory:
            return self.computer.answer(memory, question, history=history, max_new_tokens=max_new_tokens)

    def write(
        self, name: str, text: str, *, source: str = "", time: float | None = None, dates: bool = False
    ) -> Written:
        """Remember a text; a memory that does not exist is started. It is on the disk when this returns.

        What the memory's policy holds back of it is on the disk, too, but not remembered (`Written.held`).

        Args:
            name: whose.
            text: any text that is not empty.
            source: a label for answers to name.
            time: seconds since the epoch; now if None.
            dates: as for `MemoryDecoder.memorize`.

        Raises:
            InputError: the text is empty.
        """
        if not text.strip():
            raise InputError("the text is empty; there is nothing to remember.")
        between = self.computer.between
        with self.writing(name) as memory:
            before = memory.newest_held()
            tokens = self.computer.run(
                lambda: self.model.memorize(
                    memory,
                    text,
                    source=source,
                    time=time,
                    dates=dates,
                    progress=lambda *_: between(),
                    between=between,
                )
            )
            held = tuple(memory.held_since(before))
        return Written(tokens, memory.write_count, len(memory.pending_ids), held)

    def search(self, name: str, query: str, k: int = 5) -> list[Source]:
        """The writes that fit a query best, best first, without an answer; behind them all that waits to be written.

        What waits is not compared (its score is 0): an answer reads all of it. With one search for all layers every
        write is compared. Otherwise the layers search for themselves, and what they would read is told.

        Args:
            name: of the memory.
            query: any text.
            k: how many writes at most.
        """
        if not query.strip():
            raise InputError("the query is empty; search for something.")
        with self.hold(name) as memory:
            return self.computer.run(lambda: self._found(memory, query, k))

    def _found(self, memory: Memory, query: str, k: int) -> list[Source]:
        from ..core.read import waiting

        [view] = self.model.readable([memory])  # without what has expired
        return self._best(memory, view, query, k) + waiting(view, self.model.tokenizer, memory.layers)

    def _best(self, memory: Memory, view: Memory, query: str, k: int) -> list[Source]:
        """The writes alone. view: the memory as it is read."""
        from ..core.read import Source

        if not memory.writes:
            return []
        if self.model.config.score_layers != "one":
            answer = self.model.ask(memory, query, max_new_tokens=1)
            return [source for source in answer.sources if source.where != "window"][:k]
        found = self.model.search([view], [self.model.encode(query.strip()[:_MOST_QUERY])])[0]
        scores = found.scores - found.null
        best = scores.topk(min(k, int(scores.isfinite().sum())))
        places = _places(memory)
        sources = []
        for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            write = memory.writes[view.origin(view.first_write + at)[1]]
            text = None if write.text is None else write.text.strip()
            where = places(write.index)
            sources.append(Source(write.index, score, memory.layers, write.label, write.time, text, where))
        return sources

    def history(self, name: str, *, offset: int = 0, limit: int = 50) -> dict[str, Any]:
        """What was told to a memory, newest first.

        Args:
            name: of the memory.
            offset: how many of the newest to leave out.
            limit: how many at most.

        Returns:
            "total", the number of writes; "data", for each of these its "write", "source", "time", "tokens", "text",
            "where" ("short-term", "long-term", or "gone") and "age", the number of writes since; "waiting", texts that
            wait to be written, each "source", "time", "text"; "forgotten", when something was forgotten, each "time"
            and "tokens".
        """
        with self.hold(name) as memory:
            places, data = _places(memory), []
            for write in memory.writes[::-1][offset : offset + limit]:
                data.append({
                    "write": write.index, "source": write.label, "time": write.time, "tokens": write.tokens,
                    "text": None if write.text is None else write.text.strip(), "where": places(write.index),
                    "age": memory.write_count - 1 - write.index,
                })  # fmt: skip
            pending = list(memory.pending)
            total, forgotten = memory.write_count, list(memory.forgotten)
        texts = list[str]()
        if pending:  # a tokenizer is not for several threads at once
            texts = self.computer.run(lambda: [self.model.text_of(piece.ids).strip() for piece in pending])
        waiting = [{"source": p.source, "time": p.time, "text": t} for p, t in zip(pending, texts, strict=True)]
        return {"total": total, "data": data, "waiting": waiting, "forgotten": forgotten}

    def forget(self, name: str, wanted: Wanted, *, dry_run: bool = False) -> Forgotten:
        """Forget a part of what was told, for good; or only say what that would be.

        Raises:
            InputError: nothing is named, or the memory keeps no texts.
            ConfigError: a memory of a published checkpoint.
        """
        wanted.check()

        def progress(done: int, total: int) -> None:
            self.computer.between()

        if dry_run:
            with self.hold(name) as memory:
                return self.computer.run(lambda: self.model.forget(memory, wanted, dry_run=True))
        with self.writing(name, create=False) as memory:
            return self.computer.run(lambda: self.model.forget(memory, wanted, progress=progress))

    def fork(self, name: str, new: str) -> MemoryInfo:
        """Copy a memory under a name that is free. Raises `InputError` if it is taken."""
        one = self._enter(new, writing=True)
        try:
            with self._copying:
                memory = self.store.load(name)
                self._save_new(new, memory)
        finally:
            self._leave(new, one, writing=True)
        return self.info(new)

    def export(self, name: str, path: Path, *, texts: bool = True) -> None:
        """Write a memory to one file, which must not exist."""
        with self._copying:
            self.store.export(name, path, texts=texts)

    def import_(self, path: Path, name: str) -> MemoryInfo:
        """Take in an exported memory under a name that is free; it is tried with a question before it is saved.

        Raises:
            InputError: the name is taken; or the file is damaged, or none that this model can use.
        """
        one = self._enter(name, writing=True)
        try:
            self.must_be_free(name)
            try:
                with self._copying:
                    memory = unpack(path)
                    self._check(memory)
                    self.computer.run(lambda: self._try(memory))
            except IncompatibleMemory as error:
                raise InputError(f"this memory cannot be used here: {error}") from error
            except (RemanenceError, LookupError, ArithmeticError, RuntimeError, ValueError, TypeError) as error:
                # A file of a stranger may be wrong in any way; its path on our disk is nobody's business.
                raise InputError("this is no exported memory, or a damaged one; export it again.") from error
            self._save_new(name, memory)
        finally:
            self._leave(name, one, writing=True)
        return self.info(name)

    def _check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote it, with these settings."""
        self.model.check(memory)
        ours, its = self.model.config.as_before(), memory.config.as_before()
        if apart := [key for key in its if key not in READING and its[key] != ours[key]]:
            raise IncompatibleMemory(f"its settings {', '.join(apart)} are not those of this model.")

    def _try(self, memory: Memory) -> None:
        """Raise something if a memory cannot be read."""
        if not all(map(math.isfinite, memory.pool_LnD.float().sum(-1).flatten().tolist())):
            raise ValueError("its vectors are no numbers")
        self.model.ask(memory, "What is known?", max_new_tokens=1)

    def delete(self, name: str) -> None:
        """Erase a memory for good."""
        one = self._enter(name, writing=True)
        try:
            one.memory = None
            self.store.delete(name)
        finally:
            self._leave(name, one, writing=True)


class Taken(InputError):
    """There is a memory of that name already."""


def _places(memory: Memory) -> Callable[[int], str]:
    """In which place a write is."""
    in_pool = set((memory.pool_rows_Ln // memory.config.K).unique().tolist())

    def place(write: int) -> str:
        if write in in_pool:
            return "short-term"
        return "long-term" if memory.config.long_term and write >= memory.first_write else "gone"

    return place


@contextmanager
def exported(people: People, name: str, *, texts: bool = True) -> Iterator[Path]:
    """A memory as a file that is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="remanence-") as folder:
        path = Path(folder) / "memory"
        people.export(name, path, texts=texts)
        yield path
