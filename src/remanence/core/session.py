"""A conversation with one memory: what is asked is answered, what is said is remembered. Knows no disk, no terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from threading import Event, Thread
from typing import Any

from transformers import TextIteratorStreamer

from .memory import Memory
from .model import Answer, MemoryDecoder

_TURNS = 8  # of the session that the base is shown at most: more would make it wait


class Session:
    """Turns of a conversation.

    A turn is first answered, from memory and from the text that waits in the window, and then remembered unless it
    ends with a question mark; so a turn never reads itself. Only the user's words are remembered, not the model's.
    `say` does both; whoever saves in between, or locks, calls `reply` and `keep`. The turns of this session are also
    what the base sees when it answers by itself (`MemoryConfig.base_answers`), so that a conversation goes on.

    Args:
        model: answers and writes.
        memory: of the person who talks. May be set anew between turns.
        label: the source of what is remembered.
        under: shared memories that are read, too (`MemoryDecoder.over`).
    """

    def __init__(
        self, model: MemoryDecoder, memory: Memory, *, label: str = "chat", under: Mapping[str, Memory] | None = None
    ) -> None:
        self.model, self.memory, self.label, self.under = model, memory, label, dict(under or {})
        self._read()  # refuses what does not go together
        self.answer: Answer | None = None
        self.turns: list[tuple[str, str]] = []  # of this session: what was said, what was answered

    @staticmethod
    def asks(text: str) -> bool:
        """Whether a turn only asks, and is not remembered."""
        return text.rstrip().endswith("?")

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
            if self.answer is not None:
                self.turns.append((text, self.answer.text))

    def _read(self) -> Memory:
        """The memory as it is read now."""
        return self.model.over(self.memory, self.under)

    def keep(self, text: str) -> None:
        """Remember a turn."""
        self.model.memorize(self.memory, text, source=self.label)

    def _answer(self, text: str, max_new_tokens: int, options: dict[str, Any]) -> Iterator[str]:
        streamer = _Pieces(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self.answer = self.model.ask(
                    self._read(),
                    text,
                    history=self.turns[-_TURNS:],
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
    """Pieces of an answer, until they are `unwanted`."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.unwanted = Event()

    def put(self, value: Any) -> None:
        """Called by `generate` for every token."""
        if self.unwanted.is_set():
            raise _Unwanted
        super().put(value)
