"""Words instead of vectors: which remembered writes share the words of a text, and patterns of words for policies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from weakref import WeakKeyDictionary

from .memory import Memory

_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")
_COMMON = frozenset(
    _WORD.findall(
        "a about after again all also am an and any are as at be because been before being but by can could did do "
        "does doing down each few for from further get got had has have having he her here hers him his how i if in "
        "into is it its just like me more most much my no nor not now of off on once only or other our out over own s "
        "same she should so some such t than that the their them then there these they this those through to too under "
        "until up us very was we were what when where which while who whom why will with would you your"
    )
)


def any_of(*alternatives: str) -> re.Pattern[str]:
    """Finds any of these patterns, as whole words, in any case."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say something, in small letters."""
    found = (word.lower().replace("\u2019", "'").removesuffix("'s") for word in _WORD.findall(text))
    return frozenset(word for word in found if word not in _COMMON)


class Wording:
    """Which words stand in which write, for any number of memories. A memory's new writes are added when it is asked.

    Writes without a text (`keep_text`) have no words.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Memory, _Index] = WeakKeyDictionary()

    def sharing(self, memory: Memory, words: Collection[str]) -> list[tuple[int, int]]:
        """The writes that share some of the words, and how many: (write, words), most words first, then the newest."""
        index = self._known.get(memory)
        if index is None or index.cuts != len(memory.cuts) or index.writes > memory.write_count:
            index = self._known[memory] = _Index(len(memory.cuts))
        index.add(memory)
        found = Counter(write for word in set(words) for write in index.places.get(word, ()))
        return sorted(found.items(), key=lambda each: (-each[1], -each[0]))


class _Index:
    """The words of one memory. cuts: how many the memory had (`Memory.cuts`). writes: how many are in it."""

    def __init__(self, cuts: int) -> None:
        self.cuts, self.writes = cuts, 0
        self.places: dict[str, list[int]] = {}  # by word, the writes that have it

    def add(self, memory: Memory) -> None:
        """Take in what was written since."""
        for write in memory.writes[self.writes :]:
            for word in content_words(write.text or ""):
                self.places.setdefault(word, []).append(write.index)
        self.writes = memory.write_count
