"""HEMA: a running summary that is always shown, and every turn word for word in a store that is pruned slowly.

Paper: "HEMA: A Hippocampus-Inspired Extended Memory Architecture for Long-Context AI Conversations", arXiv 2504.16754.
No code was published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocol import Kit
from .base import Asked, Entry, Remembering, Shown, Turn, checked


@dataclass
class Chunk(Entry):
    """A turn. recalled: the turn number at which it was last read by an answer, -1 if never."""

    recalled: int = -1


class HEMA(Remembering[Chunk]):
    """A summary of at most 60 tokens is renewed with every turn; turns are found by vectors; the oldest unused ones
    fade.

    Made for: dialogues of hundreds of turns.

    Every `every` turns the summaries of such stretches are themselves summed up, and the `share` of chunks with the
    lowest weight w = exp(-gamma * age) + beta * (1 if it was recalled within the last 100 turns) is deleted.

    Differences that are meant: the printed formula adds the bonus to chunks that were *not* recalled, while the text
    calls it a bonus for recent recall; the text is followed, and `bonus="printed"` has the formula. The paper's
    summariser (Distil-PEGASUS) is, by rule, the sentences of the old summary and the new turn that are nearest to
    their mean; rare facts fall out of it, and the chunks must carry them. With `brain="reader"` the reader writes it
    (one call a turn).

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes is when a chunk was last recalled.
        k: chunks that are found.
        tokens: of the summary.
        every: turns between two prunings.
        share: of the chunks that each pruning deletes, rounded down.
        gamma: by how much weight falls with each turn.
        beta: the bonus of a chunk that was recalled.
        bonus: "recalled", or "printed".
    """

    name = "hema"
    kind_of_entry = Chunk
    made_for = "questions about dialogues of hundreds of turns"

    def __init__(
        self, kit: Kit, *, k: int = 5, tokens: int = 60, every: int = 100, share: float = 0.005, gamma: float = 0.002,
        beta: float = 0.5, bonus: str = "recalled", learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.tokens, self.every, self.share = k, tokens, every, share
        self.gamma, self.beta, self.printed = gamma, beta, checked("bonus", bonus, ("recalled", "printed")) == "printed"
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """An empty summary, and no stretches."""
        self.more = {"summary": "", "stretches": []}

    def take(self, turns: list[Turn]) -> None:
        """Sum up, append, and prune now and then."""
        for turn in turns:
            self.add(Chunk(turn.text, [turn.number]))
            self.more["summary"] = self._renewed([self.more["summary"], turn.text])
            if (turn.number + 1) % self.every == 0:
                self.more["stretches"].append(self.more["summary"])
                self.more["summary"] = self._renewed(self.more["stretches"])
                self._prune()

    def _renewed(self, texts: list[str]) -> str:
        """Texts summed up."""
        rules = self.summary(texts, self.tokens)
        if self.thinker is None:
            return rules
        told = "\n".join(filter(None, texts[-8:]))
        line = self.thinker.line("Sum up in one sentence what is known so far.", told, tokens=self.tokens)
        return rules if line is None else self.shortened(line, self.tokens)

    def weight(self, number: int) -> float:
        """What decides which chunks fade."""
        now, entry = len(self.turns), self.entries[number]
        recent = entry.recalled >= 0 and now - entry.recalled <= 100
        return math.exp(-self.gamma * (now - entry.turns[0])) + self.beta * (recent != self.printed)

    def _prune(self) -> None:
        """Delete the chunks of lowest weight."""
        numbers = self.alive()
        for number in sorted(numbers, key=lambda i: (self.weight(i), i))[: int(len(numbers) * self.share)]:
            self.entries[number].gone = True

    def find(self, question: str) -> list[Shown]:
        """The summary, the last two turns, and the nearest chunks; the farthest are cut first."""
        shown = [Shown("So far: " + self.more["summary"], -1.0)] if self.more["summary"] else []
        last = self.alive()[-2:]
        near = [i for i, _ in self.nearest(self.embed(question), self.k) if i not in last]
        return shown + [self.show(i) for i in reversed(last)] + [self.show(i) for i in near]

    def recalled(self, asked: Asked) -> None:
        """Note what was read."""
        for number in asked.entries:
            self.entries[number].recalled = len(self.turns)
