"""An answer that goes in circles is ended, and what it only said again is left out.

A small model that takes the likeliest token at every step sometimes says one sentence for ever. Rules that forbid what
was said already (`repetition_penalty`, `no_repeat_ngram_size`) make its other answers worse: it miscounts, and invents.
So every token stays the model's own choice. The answer ends when its last tokens only repeat those before them, and the
repeated part is not shown. Whoever shows an answer while it is made holds back what may turn out to be such a part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

_ENOUGH = 32  # tokens that only repeat are a circle; but also no less than what they repeat
_ROUND = 128  # tokens of the longest circle that is seen
_BEGUN = re.compile(r"(?<=[.!?])\s+\S+\Z")  # the first word behind a sentence: " I" and "I" are different tokens


class Shown:
    """What can be handed out of an answer while it is made: pieces that stay, of whole characters.

    All pieces together are the answer's text (`said`).

    Args:
        tokenizer: of the model.

    Attributes:
        text: what was handed out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.text = ""
        self._tokenizer = tokenizer

    def piece(self, ids: list[int], done: bool) -> str:
        """What can be handed out now, and was not before.

        Args:
            ids: the tokens of the answer so far.
            done: no more will come.
        """
        text = said(self._tokenizer, ids if done else ids[: settled(ids)])
        if not done:
            text = text.rstrip("\ufffd").rstrip()  # half a character; and the end of an answer has no white space
            if getattr(self._tokenizer, "clean_up_tokenization_spaces", False):
                text = text[: max(0, text.rfind(" "))]  # the next token may join the last word to the one before
            text = _BEGUN.sub("", text)  # it may be where a circle begins
        if not text.startswith(self.text):
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece


def said(tokenizer: Any, ids: list[int]) -> str:
    """The text of an answer's tokens, without white space at its ends.

    Of one that goes in circles only the first round is there, without a word that would begin another sentence.
    """
    shown = unrepeated(ids)
    text: str = tokenizer.decode(ids[:shown], skip_special_tokens=True).strip()
    again = tokenizer.decode(ids[shown:], skip_special_tokens=True).strip()  # nothing, if that is padding
    return _BEGUN.sub("", text) if again else text


def settled(ids: Sequence[int]) -> int:
    """How many tokens at the beginning of an answer stay, whatever comes behind them.

    Args:
        ids: the tokens so far.
    """
    return len(ids) - max((length for _, length in _repeated(ids)), default=0)


def unrepeated(ids: Sequence[int]) -> int:
    """How many tokens at the beginning of an answer are shown: those before what only repeats, if it goes in circles.

    Args:
        ids: the tokens of the answer.
    """
    return len(ids) - max((length for step, length in _repeated(ids) if length >= max(step, _ENOUGH)), default=0)


def _repeated(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """For each number of tokens that one may go back: how many of the last tokens are those so far before them."""
    for step in range(1, min(_ROUND, len(ids) - 1) + 1):
        length = 0
        while length + step < len(ids) and ids[-1 - length] == ids[-1 - length - step]:
            length += 1
        yield step, length


class Circles(StoppingCriteria):
    """Lets `generate` end answers that go in circles.

    Args:
        prompt: tokens of the padded prompts.
    """

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        """Which rows go in circles [B]."""
        answers: list[list[int]] = input_ids[:, self.prompt :].tolist()
        return torch.tensor([unrepeated(ids) < len(ids) for ids in answers], device=input_ids.device)
