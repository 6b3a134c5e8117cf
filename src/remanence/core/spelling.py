"""An answer's words: those that were read, those of the question, and common ones (`MemoryConfig.answer_words`).

A small reader knows which word answers, and then spells another: "harmonica" becomes "harmoniumica", "340" becomes
"3400". What it tells from memory stands in what it has read. So a token that would begin, go on with or end any other
word is passed over for the next best one. Common words stay free: "yes", "your", "because".

This is not in the papers. Scripts that put no space between words are read letter by letter where that is how they are
written (Chinese, Japanese), and are left free otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

_TRIED = 10  # of the likeliest tokens, before those that go on as some word that was read does, or end the answer
_COMMON, _COMMON_LETTER = 0.6, 0.2  # rarity (`Search.rarity`) below which a word, and a word of one letter, is common
_LETTERS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # each a word of its own
_WORD = re.compile(rf"[{_LETTERS}]|[^\W_{_LETTERS}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case; "don't" has two."""
    return _WORD.findall(text.lower())


class Spelling(LogitsProcessor):
    """Keeps `generate` to words that were read.

    Args:
        model: has a tokenizer, and a search that knows how rare tokens are.
        read: of each prompt the text that was read for it, and the question; None lets it spell freely.
        stops: tokens that end an answer. unknown: those of "I don't know.", which may always be said.
        prompt: tokens of the padded prompts.
    """

    def __init__(
        self, model: Any, read: Sequence[str | None], stops: Collection[int], unknown: Sequence[int], prompt: int
    ) -> None:
        self.tokenizer, self.search = model.tokenizer, model.retriever
        self.stops, self.unknown, self.prompt = set(stops), list(unknown), prompt
        self._read = [None if text is None else _Known(text) for text in read]
        self._common = lru_cache(maxsize=None)(self._is_common)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Of each row the scores of the next token [B, V]."""
        scores, repeats = scores.clone(), len(scores) // len(self._read)
        for row, known in enumerate(one for one in self._read for _ in range(repeats)):
            if known is not None:
                token = self._best(input_ids[row, self.prompt :].tolist(), scores[row], known)
                kept = scores[row, token].clone()
                scores[row, scores[row] >= kept] = -torch.inf
                scores[row, token] = kept
        return scores

    def _best(self, ids: list[int], scores: Tensor, known: _Known) -> int:
        """The likeliest token that will do; the likeliest of all if none does."""
        likely: list[int] = scores.topk(min(_TRIED, len(scores))).indices.tolist()
        for token in likely:
            if self._will_do(ids, token, known):
                return token
        last = _last(self._text(ids))
        rests = [text for rest in known.rests(last) for text in ([rest] if last else [rest, " " + rest])]
        others = {token for text in (*rests, " ") for token in self._encode(text)[:1]} | self.stops
        will_do = [token for token in sorted(others) if self._will_do(ids, token, known)]
        return max(will_do, key=lambda token: float(scores[token]), default=likely[0])

    def _will_do(self, ids: list[int], token: int, known: _Known) -> bool:
        """Whether an answer may go on, or end, with a token."""
        if [*ids, token] == self.unknown[: len(ids) + 1]:
            return True
        ends = token in self.stops
        if ends and ids == self.unknown:
            return True
        text = self._text(ids if ends else [*ids, token])
        if text.endswith("\ufffd"):  # half a character
            return True
        last = "" if ends else _last(text)
        whole = words(text[: len(text) - len(last)])
        # The words before were looked at when they came, but the last of them may have ended with this token.
        return all(word in known or self._common(word) for word in whole[-2:]) and (
            not last or known.begins(last.lower()) or self._common(last.lower())
        )

    def _is_common(self, word: str) -> bool:
        """Whether a word is one token, and one of most texts."""
        most = _COMMON if len(word) > 1 else _COMMON_LETTER
        for text in (" " + word, word):
            ids = self._encode(text)
            if len(ids) == 1 and word.isalpha():
                return float(self.search.rarity[int(self.search.spelling[ids[0]])]) < most
        return False

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids


class _Known:
    """The words of a text."""

    def __init__(self, text: str) -> None:
        self._spelled = set(_WORD.findall(text))
        self._words = {word.lower() for word in self._spelled}

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def begins(self, part: str) -> bool:
        """Whether one of them begins so."""
        return any(word.startswith(part) for word in self._words)

    def rests(self, part: str) -> list[str]:
        """What those that begin so go on with."""
        begun = [word for word in sorted(self._spelled) if word.lower().startswith(part.lower())]
        return [word[len(part) :] for word in begun if len(word) > len(part)]


def _last(text: str) -> str:
    """The word with which a text ends, as it is spelled; empty if it ends otherwise."""
    found = [*_WORD.finditer(text)]
    return found[-1].group() if found and found[-1].end() == len(text) else ""
