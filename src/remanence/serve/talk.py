"""One turn of a conversation with a memory: the answer piece by piece, and then what is remembered of it.

It follows the rules of `core.session`: a turn is answered from memory, and remembered unless it ends with a question
mark. What is remembered is on the disk before the turn ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.model import Answer
from ..core.prompts import LONG, SHORT
from ..core.session import TURNS, Session
from ..errors import InputError

if TYPE_CHECKING:
    from ..core.read import Source
    from ..core.writes import Held as HeldBack
    from .engine import Asked, Engine
    from .people import Held, People, Written

T = TypeVar("T")
_RECALLED = 10_000  # turns of all people of which it is known that a memory answered them
_LETTERS_A_TOKEN = 8  # of history, about: more is not worth counting tokens of
_DONE: Future[None] = Future()
_DONE.set_result(None)
NOT_BY_TALKING = "Nothing was forgotten: that is not done by talking. Ask for it where your memories are shown."


class Recalled:
    """The turns of late that were answered from a memory, which the base is not shown (`core.session.Session`).

    A client sends all turns again each time, and does not say which these are. Nothing can be read from what is kept.
    """

    def __init__(self) -> None:
        self._key, self._turns = os.urandom(16), OrderedDict[bytes, None]()

    def add(self, name: str, said: str, answer: str) -> None:
        """A turn of somebody's was answered from the memory of that name."""
        self._turns[self._mark(name, said, answer)] = None
        if len(self._turns) > _RECALLED:
            self._turns.popitem(last=False)

    def others(self, name: str, history: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The turns of a conversation that were not."""
        return [(said, answer) for said, answer in history if self._mark(name, said, answer) not in self._turns]

    def _mark(self, *parts: str) -> bytes:
        told = json.dumps([part.strip() for part in parts]).encode()
        return hashlib.blake2b(told, digest_size=16, key=self._key).digest()


class Turn:
    """One turn.

    Args:
        people, engine: whose memory, and what answers.
        pool: threads for what waits for a memory, the disk or the model.
        name: of the memory; one that does not exist begins empty.
        history: earlier turns, oldest first.
        recalled: which of them were answered from a memory. This one is added.
        system: what the system said. It is shown like a turn before the others, and left out after them.
        said: what the user says.
        most: tokens of the answer; what suits the model, if None.
        limit: most tokens that any answer may have.
        stops: texts before which the answer ends.
        done: called when all is done, what is remembered included.

    Attributes:
        answer: the whole, after the pieces; None for a statement that is too long to be answered.
        text: what was handed out. cut: it ended because it had `most` tokens. prompt_tokens: of what was said.
        written: what was remembered, after `keep`.
    """

    def __init__(
        self,
        people: People,
        engine: Engine,
        pool: Executor,
        name: str,
        history: Sequence[tuple[str, str]],
        recalled: Recalled,
        said: str,
        *,
        system: str = "",
        most: int | None = None,
        limit: int = 512,
        stops: Sequence[str] = (),
        done: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self.people, self.engine, self.name, self.said, self.stops = people, engine, name, said, stops
        self.answer: Answer | None = None
        self.text, self.cut, self.prompt_tokens = "", False, 0
        self.written: Written | None = None
        self._done, self._pool, self._loop = done, pool, asyncio.get_running_loop()
        self._work: Future[Any] | None = None  # the last that was done in a thread
        window = people.model.config.window_tokens
        usual = LONG if people.model.config.base_answers else SHORT
        self._most = max(1, min(most or usual, limit, window // 2))
        self._recalled = recalled
        self._history, self._keep = _shown(system, recalled.others(name, history), _LETTERS_A_TOKEN * window)
        self._came: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()
        self._held: Held | None = None
        self._asked: Asked | None = None
        self._first: str | Answer | BaseException | None = None
        self._closed = False
        self._canned = NOT_BY_TALKING if Session.wants_forgetting(said) else None

    async def begin(self) -> None:
        """Wait for the first piece.

        Raises:
            InputError: a question that does not fit the window.
            RemanenceError: as of `People.hold` and `Engine.ask`.
        """
        if self._canned is not None:
            return
        await self._later(self._hold)
        first = await self._ask(self._most)
        if isinstance(first, InputError) and self._most > SHORT:
            first = await self._ask(SHORT)
        if isinstance(first, InputError) and not Session.asks(self.said):
            return  # it is only remembered
        if isinstance(first, BaseException):
            raise first
        self._first = first

    async def _later(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of work in a thread."""
        self._work = self._pool.submit(work, *args, **options)
        return await asyncio.wrap_future(self._work)

    def _hold(self) -> None:
        """In a thread, which goes on when nobody waits for it any more: then nobody else would let the memory go."""
        self._held = self.people.hold(self.name, start=True)
        if self._closed:
            self._held.release()

    async def _ask(self, most: int) -> str | Answer | BaseException:
        assert self._held is not None

        def put(item: str | Answer | BaseException) -> None:  # in the model's thread
            try:
                if not self.prompt_tokens and not isinstance(item, BaseException):
                    self.prompt_tokens = len(self.people.model.encode(self.said))
            finally:  # somebody waits for it
                with suppress(RuntimeError):  # the server is gone
                    self._loop.call_soon_threadsafe(self._came.put_nowait, item)

        self._asked = self.engine.ask(
            self._held.memory, self.said, put, history=self._history, keep=self._keep,
            kept=Session.keeps(self._held.memory, self.said), max_new_tokens=most,
        )  # fmt: skip
        self._most = most
        return await self._came.get()

    async def pieces(self) -> AsyncIterator[str]:
        """The pieces of the answer, until it is whole."""
        if self._canned is not None:
            self.text = self._canned
            yield self._canned
            return
        item, held, stopped = self._first, "", False
        reach = max(map(len, self.stops), default=1) - 1  # letters that may be the beginning of a stop
        while item is not None:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Answer):
                self.answer = item
                break
            if not stopped:
                held += item
                at = min((i for stop in self.stops if (i := held.find(stop)) >= 0), default=-1)
                stopped = at >= 0
                ready = held[:at] if stopped else held[: max(0, len(held) - reach)]
                held = held[len(ready) :]
                if stopped and self._asked is not None:  # nothing more is shown
                    self.engine.finish(self._asked)
                if ready:
                    self.text += ready
                    yield ready
            item = await self._came.get()
        if held and not stopped:
            self.text += held
            yield held
        if self.answer is not None:
            ids, ends = self.answer.ids, self.people.model.ends()
            self.cut = not stopped and len(ids) >= self._most and ids[-1] not in ends
            if self.answer.recalled:
                self._recalled.add(self.name, self.said, self.text)

    async def keep(self) -> None:
        """Remember what was said, unless it only asks. It is on the disk when this returns."""
        if self._held is not None:
            self._held.release()
        if self._canned is None and not Session.asks(self.said):
            self.written = await self._later(self.people.write, self.name, self.said, source="chat", dates=True)
            self.prompt_tokens = self.prompt_tokens or self.written.tokens  # of what is too long to be answered
        self._done(self)

    def close(self, left: Callable[[], None]) -> None:
        """Nobody waits for the rest.

        Args:
            left: called when nothing is done for this turn any more. A thread may be at work that cannot be ended.
        """
        self._closed = True
        (self._work or _DONE).add_done_callback(lambda _: left())
        try:
            if self._asked is not None:
                self.engine.cancel(self._asked)
        finally:
            if self._held is not None:
                self._held.release()
            self._asked = self._held = None  # what was asked knows this turn: else both, and the memory, stay in RAM

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer."""
        return 0 if self.answer is None else len(self.answer.ids)

    def told(self) -> dict[str, Any]:
        """What our field of a response says: what was read for the answer, and whether the turn was remembered."""
        held = () if self.written is None else self.written.held
        return {
            "memory": self.name, **recall(self.answer), "remembered": self.written is not None and not held,
            "held_back": held_back(held),
        }  # fmt: skip


def held_back(held: Sequence[HeldBack]) -> list[dict[str, Any]]:
    """What a policy held back, as JSON has it: which number in the quarantine, and why, but nothing of the text."""
    return [{"number": one.number, "verdict": one.verdict, "reason": one.reason} for one in held]


def recall(answer: Answer | None) -> dict[str, Any]:
    """What was read for an answer, as JSON has it."""
    if answer is None:
        return {"recalled": False, "score": 0.0, "sources": [], "read": []}
    return {
        "recalled": answer.recalled, "score": number(answer.score), "sources": [source(s) for s in answer.sources],
        "read": [sorted(writes) for writes in answer.read],
    }  # fmt: skip


def source(one: Source) -> dict[str, Any]:
    """A write that was read, as JSON has it."""
    return {
        "write": one.write, "score": number(one.score), "layers": one.layers, "label": one.label, "time": one.time,
        "text": one.text, "where": one.where,
    }  # fmt: skip


def number(value: float) -> float:
    """A score as JSON can say it, which knows no infinity."""
    return round(value, 4) if math.isfinite(value) else math.copysign(1e9, value)


def _shown(system: str, history: Sequence[tuple[str, str]], letters: int) -> tuple[list[tuple[str, str]], int]:
    """What the system said and the last turns, no more than are shown anyway; and how many are the system's."""
    first = [(system, "All right.")] if system and len(system) <= letters else []
    kept, letters = list[tuple[str, str]](), letters - sum(len(text) for turn in first for text in turn)
    for turn in reversed(history[len(first) - TURNS :]):
        letters -= len(turn[0]) + len(turn[1])
        if letters < 0:
            break
        kept.insert(0, turn)
    return [*first, *kept], len(first)
