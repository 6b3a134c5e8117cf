"""One thread owns the model. It answers several people in one forward pass, and writes between two tokens of theirs.

What waits is bounded: who comes when all places are taken is refused with `Full` and a time to come again. What takes
too long ends with `TimeUp`. An answer that nobody waits for is cancelled.
"""

from __future__ import annotations

import ctypes
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import RemanenceError

if TYPE_CHECKING:
    from ..core.memory import Memory
    from ..core.model import Answer, MemoryDecoder

_GIVES_BACK_S = 30  # seconds of work after which free memory is handed back to the system

log = logging.getLogger("remanence.serve")
T = TypeVar("T")
Sink = Callable[["str | Answer | BaseException"], None]  # takes the pieces of an answer, then the whole or an error


class Full(RemanenceError):
    """Every place is taken. retry_s: after how many seconds it may be worth a new try."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_s} s.")
        self.retry_s = retry_s


class TimeUp(RemanenceError):
    """It took longer than the server allows."""


class Stopping(RemanenceError):
    """The server is about to end and takes nothing new."""


class Event(Protocol):
    """What a step brought for one question: see `core.batching.Event`."""

    @property
    def ticket(self) -> int:
        """Which question."""

    @property
    def text(self) -> str:
        """The new piece."""

    @property
    def answer(self) -> Answer | None:
        """The whole, once it is done."""

    @property
    def error(self) -> RemanenceError | None:
        """Why there is no answer."""


class Batch(Protocol):
    """What answers together: see `core.batching.Batch`."""

    def add(
        self,
        memory: Memory,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
    ) -> int:
        """Take a question; its ticket."""

    def step(self) -> Sequence[Event]:
        """One token for everyone."""

    def finish(self, ticket: int) -> None:
        """What came of this is enough."""

    def cancel(self, ticket: int) -> None:
        """Nobody waits for this any more."""

    def __len__(self) -> int: ...


@dataclass(eq=False)
class Asked:
    """A question on its way. until: the end of its time, `time.monotonic`. ticket: while it is being answered."""

    memory: Memory
    question: str
    history: Sequence[tuple[str, str]]
    keep: int
    max_new_tokens: int
    put: Sink
    until: float
    ticket: int | None = None
    cancelled: bool = False
    kept: bool = False


@dataclass(eq=False)
class _Job:
    """Work for the model's thread. until: the end of its time, `time.monotonic`."""

    work: Callable[[], Any]
    future: Future[Any]
    until: float


class Engine:
    """Owns a model. Is a `people.Computer`.

    Args:
        model: answers and writes; nobody else may use it.
        together: how many are answered in one forward pass.
        places: how many requests may be in progress, those that wait included.
        seconds: how long an answer, or a piece of other work, may take, waiting included.
        batch: makes what answers together; `core.batching.Batch` if None.
    """

    def __init__(
        self,
        model: MemoryDecoder,
        *,
        together: int = 8,
        places: int = 128,
        seconds: float = 120.0,
        batch: Callable[[], Batch] | None = None,
    ) -> None:
        from ..core.batching import Batch as Batched

        self.model, self.together, self.places, self.seconds = model, together, places, seconds
        self._new_batch: Callable[[], Batch] = batch or (lambda: Batched(model, most=together))
        self._batch = self._new_batch()
        self._asks: deque[Asked] = deque()
        self._jobs: deque[_Job] = deque()
        self._answering: dict[int, Asked] = {}
        self._ends: list[float] = []  # when the time of the work that is being done is up, the innermost last
        self._taken, self._usual = 0, 1.0  # places; seconds that a request usually takes
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # For those who wait -----------------------------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """Requests in progress."""
        return self._taken

    @property
    def answering(self) -> int:
        """Questions that are being answered now."""
        return len(self._answering)

    @property
    def waiting(self) -> int:
        """Questions and pieces of work that wait for the model."""
        return len(self._asks) + len(self._jobs)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request, from its beginning to its end.

        Raises:
            Full: all are taken.
            Stopping: the server is about to end.
        """
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Take a place; `leave` is to follow. Raises as `place`."""
        with self._changed:
            if self._closing:
                raise Stopping("the server is about to end; try again later.")
            if self._taken >= self.places:
                raise Full(max(1, min(60, math.ceil(self._usual * self.places / self.together))))
            self._taken += 1

    def leave(self) -> None:
        """Give a place back."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def ask(
        self,
        memory: Memory,
        question: str,
        put: Sink,
        *,
        history: Sequence[tuple[str, str]] = (),
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
    ) -> Asked:
        """Have a question answered piece by piece. The memory must not be written to until it is done or cancelled.

        Args:
            memory, question, history, keep, kept, max_new_tokens: as in `MemoryDecoder.ask`.
            put: called in the model's thread, so it must return at once: with each piece, and in the end with the
                `Answer` or with an exception, after which nothing more comes.
        """
        asked = Asked(memory, question, history, keep, max_new_tokens, put, time.monotonic() + self.seconds, kept=kept)
        with self._changed:
            if self._closing and not self._taken:
                raise Stopping("the server is about to end; try again later.")
            self._asks.append(asked)
            self._changed.notify_all()
        return asked

    def finish(self, asked: Asked) -> None:
        """What came of this answer is enough: the `Answer` comes with its next token."""
        with self._changed:
            if asked.ticket is not None and self._answering.get(asked.ticket) is asked:
                self._batch.finish(asked.ticket)

    def cancel(self, asked: Asked) -> None:
        """Nobody waits for this answer any more."""
        asked.cancelled = True
        with self._changed:
            with suppress(ValueError):  # it waits no more
                self._asks.remove(asked)
            if asked.ticket is not None and self._answering.get(asked.ticket) is asked:  # tickets of a new batch are
                self._answering.pop(asked.ticket, None)  # those of an old one again; it may have ended this moment
                self._batch.cancel(asked.ticket)
            self._changed.notify_all()

    def answer(
        self, memory: Memory, question: str, *, history: Sequence[tuple[str, str]] = (), max_new_tokens: int = 32
    ) -> Answer:
        """The answer to a question; the calling thread waits for it."""
        came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ask(memory, question, came.put, history=history, max_new_tokens=max_new_tokens)
        while isinstance(item := came.get(), str):
            pass
        if isinstance(item, BaseException):
            raise item
        answer: Answer = item
        return answer

    def run(self, work: Callable[[], T]) -> T:
        """The result of work that uses the model; the calling thread waits for it.

        Raises:
            TimeUp: it was not begun in time, or was ended by `between`.
            Stopping: the server is about to end.
        """
        if threading.current_thread() is self._thread:
            return work()
        job = _Job(work, Future(), time.monotonic() + self.seconds)
        with self._changed:
            if self._closing and not self._taken:
                raise Stopping("the server is about to end; try again later.")
            self._jobs.append(job)
            self._changed.notify_all()
        result: T = job.future.result()
        return result

    def between(self) -> None:
        """Others have a turn: a token for everyone who is being answered, and one other piece of work."""
        if threading.current_thread() is not self._thread or not self._ends:
            return
        if time.monotonic() > self._ends[-1]:
            raise TimeUp(f"this took longer than the {self.seconds:g} s that the server allows; nothing was changed.")
        if len(self._ends) == 1:  # what is done in between is not interrupted by more of its kind
            self._do_one()
        self._step()

    def close(self, patience_s: float = 30.0) -> None:
        """Take nothing new, finish what there is, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(patience_s)

    # The model's thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        gave_back = time.monotonic()
        while True:
            with self._changed:
                while not (self._jobs or self._asks or self._answering):
                    if self._closing and not self._taken:
                        return
                    self._changed.wait()
            self._do_one()
            self._step()
            if time.monotonic() > gave_back + _GIVES_BACK_S:
                _give_back()
                gave_back = time.monotonic()

    def _do_one(self) -> None:
        """One piece of work, if one waits."""
        try:
            job = self._jobs.popleft()
        except IndexError:
            return
        self._ends.append(job.until)
        try:
            if time.monotonic() > job.until:
                raise TimeUp(f"the server had no time for this within {self.seconds:g} s; nothing was changed.")
            result = job.work()
        except BaseException as error:  # raised again in the thread that waits
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            self._ends.pop()

    def _step(self) -> None:
        """Those who are next join; one token for everyone."""
        now = time.monotonic()
        for asked in list(self._answering.values()):
            if now > asked.until:
                self.cancel(asked)
                _tell(asked, TimeUp(f"the answer took longer than the {self.seconds:g} s that the server allows."))
        while (newcomer := self._next(now)) is not None:
            self._join(newcomer, now)
        if not self._answering:
            return
        try:
            events = self._batch.step()
        except Exception as error:  # a fault of ours: nobody waits for ever
            with self._changed:
                failed, self._batch = list(self._answering.values()), self._new_batch()
                self._answering.clear()
            for asked in failed:
                _tell(asked, error)
            return
        for event in events:
            self._deliver(event)

    def _next(self, now: float) -> Asked | None:
        """The question that is next to join, if there is room for it; or one whose time is up."""
        with self._changed:
            if self._asks and (len(self._answering) < self.together or now > self._asks[0].until):
                return self._asks.popleft()
        return None

    def _join(self, asked: Asked, now: float) -> None:
        if now > asked.until:
            _tell(asked, TimeUp(f"the server had no time for this within {self.seconds:g} s."))
            return
        try:
            ticket = self._batch.add(
                asked.memory,
                asked.question,
                history=asked.history,
                keep=asked.keep,
                kept=asked.kept,
                max_new_tokens=asked.max_new_tokens,
            )
        except Exception as error:  # of this question alone
            _tell(asked, error)
            return
        with self._changed:  # so that who cancels it finds its ticket, or we that it was cancelled
            if asked.cancelled:
                self._batch.cancel(ticket)
            else:
                asked.ticket, self._answering[ticket] = ticket, asked

    def _deliver(self, event: Event) -> None:
        asked = self._answering.get(event.ticket)
        if asked is None:
            return
        if event.text:
            _tell(asked, event.text)
        end = event.answer or event.error
        if end is not None:
            self._answering.pop(event.ticket, None)
            spent = self.seconds - (asked.until - time.monotonic())
            self._usual += 0.1 * (spent - self._usual)
            _tell(asked, end)


def _give_back() -> None:
    """Hand memory that is free in this process back to the system.

    Tensors of many sizes come and go here, and leave gaps that the C library keeps: over hours a server would grow.
    Without glibc nothing is done.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _tell(asked: Asked, item: str | Answer | BaseException) -> None:
    """Hand something to who waits. What goes wrong with them must not end the model's thread."""
    try:
        asked.put(item)
    except Exception as error:
        log.error("a part of an answer could not be handed over", exc_info=error)
