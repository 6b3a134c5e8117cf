"""BM25 over an inverted index: the usual search by words."""

from __future__ import annotations

import math
import re
from collections import Counter

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, lower-cased."""
    return _WORD.findall(text.lower())


class BM25:
    """Passages that are added one by one, and found by the words of a question.

    Args:
        k1: how soon more of the same word stops counting.
        b: how much long passages count less, from 0 to 1.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        self.lengths: list[int] = []
        self._total = 0
        self._postings: dict[str, list[tuple[int, int]]] = {}  # word -> (passage, how often it has the word)
        self._newest: Counter[str] = Counter()  # words of the passage that was added last

    def add(self, text: str) -> None:
        """Take in one more passage."""
        found = words(text)
        self._newest = Counter(found)
        for word, count in self._newest.items():
            self._postings.setdefault(word, []).append((len(self.lengths), count))
        self.lengths.append(len(found))
        self._total += len(found)

    def pop(self) -> None:
        """Forget the passage that was just added."""
        for word in self._newest:
            self._postings[word].pop()
        self._newest = Counter()
        self._total -= self.lengths.pop()

    def scores(self, question: str) -> list[float]:
        """How well every passage fits; each different word of the question counts once."""
        scores = [0.0] * len(self.lengths)
        if not self._total:
            return scores
        mean = self._total / len(self.lengths)
        for word in dict.fromkeys(words(question)):
            postings = self._postings.get(word, ())
            rarity = math.log(1 + (len(self.lengths) - len(postings) + 0.5) / (len(postings) + 0.5))
            for passage, count in postings:
                long = 1 - self.b + self.b * self.lengths[passage] / mean
                scores[passage] += rarity * count * (self.k1 + 1) / (count + self.k1 * long)
        return scores
