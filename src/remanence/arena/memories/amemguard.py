"""A-MemGuard: what was found is compared before it is read; what disagrees with the consensus is left out, and learnt.

Paper: "A-MemGuard: A Proactive Defense Framework for LLM-Based Agent Memory", arXiv 2510.02373.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol import Kit
from ..scores import abstains, normalised
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn


@dataclass
class Guarded(Entry):
    """A turn ("turn") and its source; or a lesson ("lesson"), whose text is a question: `blocked` is the turn that must
    not be read for it."""

    source: str = ""
    blocked: int = -1


class AMemGuard(Remembering[Guarded]):
    """Search by vectors, with a guard between it and the reader.

    Made for: stores into which somebody plants false records; measured by how often they succeed, and by accuracy
    without attack.

    From each of the `k` nearest turns alone an answer is inferred: by rule, the words of its best sentence that the
    question has not, if it shares half of the question's words and a name of it; with `brain="reader"` the reader's
    own short answer (`k` calls a question). Turns whose answers agree are one group. Sources, not turns, vote, so
    that an attacker who repeats himself counts once. The group with most votes wins; of equal ones that whose sources
    were caught less often, then the oldest. The others are left out, but not what the winner's own sources say: one
    may change one's own word, not another's. What was left out is a lesson: for questions with a cosine above 0.8 it
    is blocked.

    Differences to the published code that are meant: it drops every memory without a second witness, and so every
    fact that was told once; here only what contradicts another source is dropped. Its release calls a function that
    it does not contain, and does not run. What cannot be mended: a majority of liars wins; and in a store of one
    source, whose name is the speaker's or the label's, nothing is guarded.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes are lessons.
        k: turns that are compared.
    """

    name = "a-memguard"
    kind_of_entry = Guarded
    made_for = "planted instructions and false records"

    def __init__(self, kit: Kit, *, k: int = 5, learns: bool = True, brain: str | None = None) -> None:
        self.k = k
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """Nobody was caught."""
        self.more = {"caught": {}}

    def take(self, turns: list[Turn]) -> None:
        """Keep turns, with their source: the speaker, or the label."""
        for turn in turns:
            self.add(Guarded(turn.text, [turn.number], "turn", source=turn.speaker or turn.label))

    def guarded(self, question: str) -> tuple[list[int], list[int]]:
        """The turns that may be read for a question, best first, and those that are left out."""
        vector = self.embed(question)
        lessons = [i for i, cosine in self.nearest(vector, 4, self.alive("lesson")) if cosine > 0.8]
        blocked = {self.entries[i].blocked for i in lessons}
        near = [i for i, _ in self.nearest(vector, self.k + len(blocked), self.alive("turn"))]
        found = [i for i in near if i not in blocked][: self.k]
        groups = self._groups(question, found)
        out: set[int] = set()
        if len(groups) > 1:
            winner = self._sources(min(groups, key=self._rank))
            out = {i for group in groups for i in group if not winner & self._sources(group)}
        return [i for i in found if i not in out], [i for i in near if i in out or i in blocked]

    def _sources(self, group: list[int]) -> set[str]:
        return {self.entries[i].source for i in group}

    def _rank(self, group: list[int]) -> tuple[int, int, int]:
        """The less, the more is a group to be believed: votes, how often its sources were caught, age."""
        sources = self._sources(group)
        return -len(sources), sum(self.more["caught"].get(source, 0) for source in sources), min(group)

    def _groups(self, question: str, found: list[int]) -> list[list[int]]:
        """Turns that answer the question, by what they answer. A turn that does not answer it is in none."""
        groups: list[tuple[set[str], list[int]]] = []
        for i, answer in zip(found, self._answers(question, found), strict=True):
            if not answer:
                continue
            for group, members in groups:
                if len(group & answer) / min(len(group), len(answer)) >= 0.5:
                    members.append(i)
                    group |= answer
                    break
            else:
                groups.append((set(answer), [i]))
        return [members for _, members in groups]

    def _answers(self, question: str, found: list[int]) -> list[set[str]]:
        """What each turn alone answers, in words; empty if it does not answer."""
        asked = words.content(question)
        if self.thinker is not None:
            said = self.kit.reader.read([(question, [self.entries[i].text]) for i in found])
            return [set() if abstains(s) else set(normalised(s).split()) - set(asked) for s in said]
        answers = []
        named = set(words.names(question))
        for i in found:
            best_share, own = 0.0, set[str]()
            if named and not named & set(words.names(self.entries[i].text)):
                answers.append(own)
                continue
            for sentence in words.split(self.entries[i].text):
                shared = words.share(asked, sentence)
                if shared > best_share:
                    best_share, own = shared, set(words.content(sentence)) - set(asked)
            answers.append(own if best_share >= 0.5 else set())
        return answers

    def find(self, question: str) -> list[Shown]:
        """What the guard lets through."""
        return [self.show(i) for i in self.guarded(question)[0]]

    def recalled(self, asked: Asked) -> None:
        """Learn from what was left out."""
        known = {(self.entries[i].text, self.entries[i].blocked) for i in self.alive("lesson")}
        for i in self.guarded(asked.question)[1]:
            if (asked.question, i) not in known:
                source = self.entries[i].source
                self.more["caught"][source] = self.more["caught"].get(source, 0) + 1
                self.add(Guarded(asked.question, [], "lesson", blocked=i))
