"""A conversation with one memory: what is asked is answered, what is said is remembered. Knows no disk, no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from transformers import TextIteratorStreamer

from .memory import Memory
from .model import Answer, MemoryDecoder


class Session:
    """Turns of a conversation.

    A turn is first answered, from memory and from the text that waits in the window, and then remembered unless it
    ends with a question mark; so a turn never reads itself. Only the user's words are remembered, not the model's.

    Args:
        model: answers and writes.
        memory: of the person who talks.
        label: the source of what is remembered.
    """

    def __init__(self, model: MemoryDecoder, memory: Memory, *, label: str = "chat") -> None:
        self.model, self.memory, self.label = model, memory, label
        self.answer: Answer | None = None

    def say(self, text: str, *, max_new_tokens: int = 32, **options: Any) -> Iterator[str]:
        """Answer a turn piece by piece, then remember it. After the last piece `answer` holds the whole.

        A text that does not fit the window is remembered without an answer; `answer` is then None.

        Args:
            text: what the user says.
            max_new_tokens, options: as in `MemoryDecoder.ask`.
        """
        self.answer = None
        if self.model.fits(self.memory, text, max_new_tokens):
            yield from self._answer(text, max_new_tokens, options)
        if not text.rstrip().endswith("?"):
            self.model.memorize(self.memory, text, source=self.label)

    def _answer(self, text: str, max_new_tokens: int, options: dict[str, Any]) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self.answer = self.model.ask(
                    self.memory, text, max_new_tokens=max_new_tokens, streamer=streamer, **options
                )
            except BaseException as error:  # raised again in the thread that reads
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from (piece for piece in streamer if piece)
        thread.join()
        if failure:
            raise failure[0]
