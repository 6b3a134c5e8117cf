"""A word that an answer begins as it was read is ended as it was read.

A small reader knows which word answers, and loses its way while it spells: "harmonica" becomes "harmoniumica", "340"
becomes "3400". So once an answer has four letters or two figures with which a word begins that was read, a token that
makes another word of it is passed over for the next best. Which words are begun is left to the reader. One figure is
enough, 4 for 43, if nothing that was read is that number, neither in figures nor in letters.

This is not in the papers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .read import Reader

_LETTERS, _FIGURES = 4, 2  # from so many on, a word counts as begun
_IN_LETTERS = (  # a figure, and its place in a row
    ("zero", ""), ("one", "first"), ("two", "second"), ("three", "third"), ("four", "fourth"), ("five", "fifth"),
    ("six", "sixth"), ("seven", "seventh"), ("eight", "eighth"), ("nine", "ninth"),
)  # fmt: skip
_TRIED = 10  # of the likeliest tokens, before those that go on as a word that was read does, or end the answer
_WORD = re.compile(r"[^\W_]+")


class Spelling(LogitsProcessor):
    """Keeps `generate` to words as they were read.

    Args:
        model: reads.
        read: of each prompt the text that was read for it, and the question; None lets it spell freely.
        stops: tokens that end an answer.
        prompt: tokens of the padded prompts.
    """

    def __init__(self, model: Reader, read: Sequence[str | None], stops: Collection[int], prompt: int) -> None:
        self.model, self.stops, self.prompt = model, set(stops), prompt
        self._read = [None if text is None else _Known(text) for text in read]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Of each row the scores of the next token [B, V]."""
        scores, repeats = scores.clone(), len(scores) // len(self._read)
        for row, known in enumerate(one for one in self._read for _ in range(repeats)):
            if known is None:
                continue
            ids = input_ids[row, self.prompt :].tolist()
            said = self._text(ids)
            begun = _last(said)
            if known.is_beginning(begun):
                token = self._best(ids, len(said) - len(begun), begun, scores[row], known)
                kept = scores[row, token].clone()
                scores[row, scores[row] >= kept] = -torch.inf
                scores[row, token] = kept
        return scores

    def _best(self, ids: list[int], start: int, begun: str, scores: Tensor, known: _Known) -> int:
        """The likeliest token that will do; the likeliest of all if none does. start: of the word that is begun."""
        likely: list[int] = scores.topk(min(_TRIED, len(scores))).indices.tolist()
        for token in likely:
            if self._will_do([*ids, token], start, begun, known):
                return token
        others = {token for text in (*known.rests(begun), " ") for token in self.model.encode(text)[:1]} | self.stops
        will_do = [token for token in sorted(others) if self._will_do([*ids, token], start, begun, known)]
        return max(will_do, key=lambda token: float(scores[token]), default=likely[0])

    def _will_do(self, ids: list[int], start: int, begun: str, known: _Known) -> bool:
        """Whether the word that is begun is still one that was read, with the last token behind it."""
        if ids[-1] in self.stops:
            return begun in known
        text = self._text(ids)
        if text.endswith("\ufffd"):  # half a character
            return begun in known or any(not rest[0].isascii() for rest in known.rests(begun))
        word = _WORD.match(text, start)
        if word is None:
            return True
        return known.begins(word.group()) if word.end() == len(text) else word.group() in known

    def _text(self, ids: list[int]) -> str:
        text: str = self.model.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class _Known:
    """The words of a text, whatever their case."""

    def __init__(self, text: str) -> None:
        self._spelled = sorted(set(_WORD.findall(text)))
        self._words = {word.lower() for word in self._spelled}

    def __contains__(self, word: str) -> bool:
        return word.lower() in self._words

    def begins(self, part: str) -> bool:
        """Whether one of them begins so."""
        return any(word.startswith(part.lower()) for word in self._words)

    def is_beginning(self, part: str) -> bool:
        """Whether one of them begins so, and it is enough of it to tell."""
        enough = len(part) >= _LETTERS or (len(part) >= _FIGURES and part[:_FIGURES].isdigit())
        if len(part) == 1 and part.isdecimal():
            enough = self._words.isdisjoint([part, *_IN_LETTERS[int(part)]])
        return enough and self.begins(part)

    def rests(self, part: str) -> list[str]:
        """What those that begin so go on with."""
        begun = [word for word in self._spelled if word.lower().startswith(part.lower())]
        return [word[len(part) :] for word in begun if len(word) > len(part)]


def _last(text: str) -> str:
    """The word with which a text ends; empty if it ends otherwise."""
    found = [*_WORD.finditer(text)]
    return found[-1].group() if found and found[-1].end() == len(text) else ""
