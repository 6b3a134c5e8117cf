"""Texts as the tokens that a model is shown: what is told, questions to a memory, and turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError

UNKNOWN = "I don't know."  # what a reader says that finds nothing
SHORT, LONG = 32, 192  # most tokens of an answer, if nothing is said: from memory; of a base that talks


class Prompts:
    """Makes token ids of texts.

    Args:
        tokenizer: of the model.
        prompt: the text around a question to a memory; `{question}` is replaced. None uses the chat template, if any.
        template: the chat template in which questions are put to a memory, if it is not the tokenizer's own.
        started: a start vector stands for the token that begins a text, so prompts leave it out.
    """

    def __init__(self, tokenizer: Any, prompt: str | None, template: str | None, started: bool) -> None:
        self.tokenizer, self.prompt, self.template, self.started = tokenizer, prompt, template, started

    def first_token(self) -> int:
        """The token that begins a text."""
        first = self.tokenizer.bos_token_id
        return int(first if first is not None else self.tokenizer.eos_token_id or 0)

    def padding(self) -> int:
        """The token in front of shorter prompts; masked, so any will do."""
        padding = self.tokenizer.pad_token_id
        return 0 if padding is None else int(padding)

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text, which cannot spell control tokens."""
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids  # fmt: skip
        return ids

    def question(self, question: str) -> list[int]:
        """A question to a memory.

        Raises:
            InputError: it is empty.
        """
        self._check(question)
        if self.prompt is None and self.tokenizer.chat_template:
            ids = self.turns([], question, self.template)
            first = self.tokenizer.bos_token_id
            # A token that begins every turn, and not the text alone, stays.
            return ids[1:] if self.started and ids[:1] == [first] and first not in ids[1:] else ids
        return self.encode((self.prompt or "{question}").replace("{question}", question.strip()))

    def alone(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """A question as the base takes it without a memory, behind earlier turns.

        Raises:
            InputError: it is empty.
        """
        self._check(question)
        if self.tokenizer.chat_template:
            return self.turns(history, question, None)
        first = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        return first + self.encode(question.strip())

    def turns(self, history: Sequence[tuple[str, str]], question: str, template: str | None) -> list[int]:
        """Turns of a conversation in a chat template; what people wrote cannot spell its control tokens."""
        said = [text.strip() for turn in history for text in turn] + [question.strip()]
        roles = ("user", "assistant")
        marks = [f"\x02{i}\x03" for i in range(len(said))]
        turns = [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)]
        rendered: str = self.tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = []
        for mark, text in zip(marks, said, strict=True):
            before, _, rendered = rendered.partition(mark)
            ids += self.tokenizer(before, add_special_tokens=False).input_ids + self.encode(text)
        ids += self.tokenizer(rendered, add_special_tokens=False).input_ids
        return ids

    def _check(self, question: str) -> None:
        """Raise `InputError` for a question without a token: white space, or letters that the tokenizer leaves out."""
        if not self.encode(question.strip()):
            raise InputError("the question is empty; ask something.")
