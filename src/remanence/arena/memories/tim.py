"""Think-in-Memory (TiM): what is kept are thoughts, not turns; in buckets of like ones, tidied after every turn.

Paper: Liu et al., "Think-in-Memory: Recalling and Post-thinking Enable LLMs with Long-Term Memory", arXiv 2311.08719.
No code was published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn


@dataclass
class Thought(Entry):
    """One short sentence. head: whom or what it is about. bucket: where it is kept. slot: what it gives a value to."""

    head: str = ""
    bucket: int = 0
    slot: str = ""


class TiM(Remembering[Thought]):
    """Thoughts in hash buckets; a question is looked up in its own bucket and the next best ones.

    Made for: chats over many turns; what was concluded is recalled, not concluded again.

    A thought is a sentence with names for pronouns. Its bucket is argmax of [xR ; -xR] for its vector x and a fixed
    random R (the usual hash for cosines; the paper does not print its own). After each turn the buckets it touched
    are tidied: a thought with the same slot as a newer one is forgotten, one with the same head and a cosine above
    `merge` is joined with it.

    Differences that are meant: the paper looks into one bucket. With a few thousand thoughts that misses much
    (`bucket_recall` tells how much), so `probes` more are searched; 0 is the paper. The paper thinks about each
    answer too; the arena's questions are probes from outside of the conversation, so only what is told is thought
    about. Lost without a language model: conclusions over several sentences. With `brain="reader"` the reader writes
    one thought a turn and decides about contradiction and merging.

    Args:
        kit, brain: as in `Remembering`.
        k: thoughts that are found.
        buckets: how many; an even number.
        probes: buckets that are searched beside the question's own.
        merge: cosine above which thoughts of one head are joined.
    """

    name = "tim"
    kind_of_entry = Thought
    made_for = "questions about long chats"

    def __init__(
        self, kit: Kit, *, k: int = 10, buckets: int = 8, probes: int = 3, merge: float = 0.85,
        brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.buckets, self.probes, self.merge = k, buckets - buckets % 2, probes, merge
        super().__init__(kit, brain=brain)

    def take(self, turns: list[Turn]) -> None:
        """Think about every turn, and tidy the buckets that it touched."""
        last = ""
        for turn in turns:
            touched = []
            for sentence in self._thoughts(turn):
                head, last = self._head(sentence, turn, last)
                text = words.named(sentence, turn.speaker, last=last if last != turn.speaker.lower() else "")
                vector = self.embed(text)
                where = self._order(vector)[0]
                slot = words.slot(text, turn.speaker)
                thought = Thought(text, [turn.number], head=head, bucket=where, slot="|".join(slot) if slot else "")
                touched.append(self.add(thought, vector))
            for number in touched:
                self._tidy(number)

    def _thoughts(self, turn: Turn) -> list[str]:
        """What a turn makes one think."""
        plain = [s for s in words.split(turn.said) if words.content(s) and not s.endswith("?")]
        if self.thinker is None or not plain:
            return plain
        task = f"Write one short sentence that says what {turn.speaker or 'the speaker'} tells."
        line = self.thinker.line(task, turn.text, tokens=40)
        return plain if line is None else [line]

    @staticmethod
    def _head(sentence: str, turn: Turn, last: str) -> tuple[str, str]:
        """Whom or what a sentence is about, and the last one named who may be a person."""
        named = [name for name in words.entities(sentence) if not name[0].isdigit()]
        newest = next((name.title() for name in words.persons(sentence)), last)
        own = turn.speaker or "I"
        if words.first_person(sentence):
            return own.lower(), newest
        return (named[0] if named else last.lower() or own.lower()), newest

    def _tidy(self, number: int) -> None:
        """Forget and merge in the bucket of a new thought."""
        new = self.entries[number]
        if new.gone:
            return
        others = [i for i in self.alive() if i != number and self.entries[i].bucket == new.bucket]
        for i, cosine in self.nearest(self.vectors[number], len(others), others):
            old = self.entries[i]
            if cosine <= 0.5 or old.head != new.head:
                continue
            if self._contradicts(old, new):
                old.gone = True
            elif cosine > self.merge and self._merges(old, new):
                old.gone = True
                new.text = _union(old.text, new.text)
                new.turns = sorted({*old.turns, *new.turns})
                new.day = self.turns[new.turns[-1]].day
                self.vectors[number] = self.embed(new.text)
                new.bucket = self._order(self.vectors[number])[0]

    def _contradicts(self, old: Thought, new: Thought) -> bool:
        rule = bool(new.slot) and old.slot == new.slot and words.content(old.text) != words.content(new.text)
        if self.thinker is None or set(words.content(old.text)) == set(words.content(new.text)):
            return rule
        task = "Can both sentences be true at the same time? Answer Yes or No."
        both = self.thinker.yes(task, f"{old.text}\n{new.text}")
        return rule if both is None else not both and bool(new.slot) and old.slot == new.slot

    def _merges(self, old: Thought, new: Thought) -> bool:
        if self.thinker is None:
            return True
        said = self.thinker.yes("Do both sentences say the same? Answer Yes or No.", f"{old.text}\n{new.text}")
        return said is not False

    def _order(self, vector: Tensor) -> list[int]:
        """All buckets for a vector, its own first."""
        generator = torch.Generator().manual_seed(self.kit.seed)
        planes = torch.randn(len(vector), self.buckets // 2, generator=generator)
        at = vector @ planes
        scores: list[float] = torch.cat([at, -at]).tolist()
        return sorted(range(self.buckets), key=lambda i: (-scores[i], i))

    def find(self, question: str) -> list[Shown]:
        """The nearest thoughts of the buckets that are searched."""
        vector = self.embed(question)
        searched = set(self._order(vector)[: 1 + self.probes])
        among = [i for i in self.alive() if self.entries[i].bucket in searched]
        return [self.show(i) for i, _ in self.nearest(vector, self.k, among)]

    def bucket_recall(self, question: str) -> float:
        """The share of the k nearest of all thoughts that lie in the buckets that are searched; 1 if there are none."""
        vector = self.embed(question)
        searched = set(self._order(vector)[: 1 + self.probes])
        right = [i for i, _ in self.nearest(vector, self.k)]
        return sum(self.entries[i].bucket in searched for i in right) / len(right) if right else 1.0


def _union(old: str, new: str) -> str:
    """Two sentences as one; one that says nothing of its own is left out."""
    held, more = set(words.content(old)), set(words.content(new))
    if held <= more:
        return new
    return old if more < held else f"{old} {new}"
