"""A conversation with one memory: what is asked is answered, what is said is remembered. Knows no disk, no terminal."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import Any

from transformers import TextIteratorStreamer

from .circles import Shown
from .forgetting import Wanted
from .memory import Memory
from .model import Answer, MemoryDecoder

TURNS = 8  # of the session that the base is shown at most: more would make it wait
_FORGET = re.compile(
    r"(?:please,? |can you |could you |would you |i want you to )*"
    r"(?:/?(?:forget|unlearn)(?![\w-])|(?:delete|erase|remove) (?:what|everything|all|that|it)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Turn:
    """One turn: what was said, and the answer with its sources, None if there was none. kept: the time under which it
    was remembered, None if it was not."""

    said: str
    answer: Answer | None
    kept: float | None = None


class Session:
    """Turns of a conversation.

    A turn is first answered, from memory and from the text that waits in the window, and then remembered unless it
    ends with a question mark; so a turn never reads itself. Only the user's words are remembered, not the model's; and
    before words such as "yesterday" the date that they mean (`dates.py`).
    What is remembered waits in the window word for word, and slides out of it into the memory as more is said.
    `say` does both; whoever saves in between, or locks, calls `reply` and `keep`. The turns of this session that the
    base answered by itself are also what it sees when it does so again (`MemoryConfig.base_answers`), so that a
    conversation goes on. It does not see what was answered from memory: a small model would go on saying that. Several
    sessions may share a memory.

    Args:
        model: answers and writes.
        memory: of the person who talks. May be set anew between turns.
        label: the source of what is remembered.
        under: shared memories that are read, too (`MemoryDecoder.over`).

    Attributes:
        turns: of this session, oldest first. answer: the last one.
    """

    def __init__(
        self, model: MemoryDecoder, memory: Memory, *, label: str = "chat", under: Mapping[str, Memory] | None = None
    ) -> None:
        self.model, self.memory, self.label, self.under = model, memory, label, dict(under or {})
        self._read()  # refuses what does not go together
        self.answer: Answer | None = None
        self.turns: list[Turn] = []

    @staticmethod
    def asks(text: str) -> bool:
        """Whether a turn only asks, and is not remembered."""
        return text.rstrip().endswith("?")

    @classmethod
    def keeps(cls, memory: Memory, text: str) -> bool:
        """Whether a turn is sure to be remembered: it does not only ask, and no policy may hold it back."""
        return not cls.asks(text) and not memory.policy

    @staticmethod
    def wants_forgetting(text: str) -> bool:
        """Whether a turn asks to forget something. A small model would not understand reliably what is meant."""
        return _FORGET.match(text.lstrip()) is not None

    @property
    def history(self) -> list[tuple[str, str]]:
        """The last turns as `MemoryDecoder.ask` takes them."""
        answered = ((turn.said, turn.answer) for turn in self.turns)
        said = [(said, answer.text) for said, answer in answered if answer is not None and not answer.recalled]
        return said[-TURNS:]

    def say(self, text: str, *, max_new_tokens: int = 32, **options: Any) -> Iterator[str]:
        """Answer a turn piece by piece, then remember it. After the last piece `answer` holds the whole.

        Args:
            text: what the user says.
            max_new_tokens, options: as in `MemoryDecoder.ask`.
        """
        yield from self.reply(text, max_new_tokens=max_new_tokens, **options)
        if not self.asks(text):
            self.keep(text)

    def reply(self, text: str, *, max_new_tokens: int = 32, **options: Any) -> Generator[str, None, None]:
        """Answer a turn piece by piece; the memory stays as it is. Whoever closes the iterator ends the answer.

        A statement that does not fit the window has no answer; `answer` is then None.

        Args:
            text, max_new_tokens, options: as in `say`.

        Raises:
            InputError: a question that does not fit the window.
        """
        self.answer = None
        if self.asks(text) or self.model.fits(self._read(), text, max_new_tokens):
            yield from self._answer(text, max_new_tokens, options)
        self.turns.append(Turn(text, self.answer))

    def _read(self) -> Memory:
        """The memory as it is read now."""
        return self.model.over(self.memory, self.under)

    def keep(self, text: str) -> None:
        """Remember a turn; the one that was answered last, or another."""
        answered = bool(self.turns) and self.turns[-1].said == text and self.turns[-1].kept is None
        last = self.turns.pop() if answered else Turn(text, None)
        now = time.time()
        if kept := [turn.kept for turn in self.turns if turn.kept is not None]:
            now = max(now, math.nextafter(kept[-1], math.inf))  # it is by their times that turns are undone
        self.turns.append(last)  # also if it cannot be written
        self.model.memorize(self.memory, text, source=self.label, time=now, dates=True)
        self.turns[-1] = replace(last, kept=now)

    def undo(self) -> Turn | None:
        """Take the last turn back: as if it had not been said, in this session and in the memory.

        What others told the memory since is written again (`MemoryDecoder.forget`).

        Returns:
            The turn, or None if there is none.

        Raises:
            InputError, ConfigError: the memory cannot forget a part. Nothing is changed.
        """
        if not self.turns:
            return None
        turn = self.turns[-1]
        if turn.kept is not None:
            until = math.nextafter(turn.kept, math.inf)
            self.model.forget(self.memory, Wanted(source=self.label, since=turn.kept, until=until))
        self.turns.pop()
        self.answer = self.turns[-1].answer if self.turns else None
        return turn

    def _answer(self, text: str, max_new_tokens: int, options: dict[str, Any]) -> Iterator[str]:
        streamer = _Pieces(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self.answer = self.model.ask(
                    self._read(),
                    text,
                    history=self.history,
                    kept=self.keeps(self.memory, text),
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    **options,
                )
            except BaseException as error:  # raised again in the thread that reads
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:  # a thread inside torch when the process ends would abort it
            streamer.unwanted.set()
            thread.join()
        if failure:
            raise failure[0]


class _Unwanted(Exception):
    """Nobody waits for the rest of an answer."""


class _Pieces(TextIteratorStreamer):
    """Pieces of an answer, until they are `unwanted`. What may go in circles is held back (`circles.py`)."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.unwanted = Event()
        self._ids, self._shown = list[int](), Shown(tokenizer)

    def put(self, value: Any) -> None:
        """Called by `generate` for every token."""
        if self.unwanted.is_set():
            raise _Unwanted
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self._ids += value.flatten().tolist()
        self.on_finalized_text(self._shown.piece(self._ids, False))

    def end(self) -> None:
        """Called by `generate` behind the last token."""
        self.on_finalized_text(self._shown.piece(self._ids, True), stream_end=True)
