"""Self-Controlled Memory (SCM): a stream of turns, and a controller that decides which are shown, and in which form.

Paper: Wang et al., "Enhancing Large Language Model with Self-Controlled Memory Framework", arXiv 2304.13343. Its
numbers are those of the code's dialogue script.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn
from .words import dated


@dataclass
class Kept(Entry):
    """A turn. summary: of a long one; of a short one the text itself."""

    summary: str = ""


class SCM(Remembering[Kept]):
    """The last turn is always shown; older ones are found by vectors and, if they are too long together, thinned out.

    Made for: long chats, books and meetings, told in long turns.

    A turn is a speaker's turn, or a told text of up to 300 words. If what was found exceeds the budget, then for each
    turn but the best: can the question be answered from it? If not, it is dropped; if from its summary too, that is
    shown. If it is still too long, the weakest are shown as summaries, one by one.

    Differences to the published code that are meant: its budget of 2,500 tokens, and 500 for the last turn, are the
    arena's budget, and a fifth of it. A turn answers a question, by rule, if it shares an entity with it, or half of
    its content words, or its cosine is above `near`. The gate "is memory needed at all?" is only in the code's class,
    not in its script, so it is off unless `gate` is set. With `brain="reader"` the reader answers these (two to four
    calls a turn that is in doubt) and writes the summaries. Lost without: judging paraphrases.

    Args:
        kit, brain: as in `Remembering`.
        k: older turns that are found; 3 in the code's function, 6 in its script.
        long: tokens above which a turn is summed up.
        near: cosine above which a turn answers a question.
        gate: whether to ask first if memory is needed.
    """

    name = "scm"
    kind_of_entry = Kept
    longest = 300
    made_for = "questions about long chats, books and meetings"

    def __init__(
        self, kit: Kit, *, k: int = 6, long: int = 300, near: float = 0.5, gate: bool = False, brain: str | None = None
    ) -> None:
        self.k, self.long, self.near, self.gate = k, long, near, gate
        super().__init__(kit, brain=brain)

    def take(self, turns: list[Turn]) -> None:
        """Append turns to the stream."""
        for turn in turns:
            short = turn.text
            if self.kit.tokens(turn.text) > self.long:
                short = self.summary([turn.said], self.long // 4)
                if self.thinker is not None:
                    line = self.thinker.line("Sum up this text in one sentence.", turn.text, tokens=self.long // 4)
                    short = line or short
            self.add(Kept(turn.text, [turn.number], summary=short))

    def find(self, question: str) -> list[Shown]:
        """The last turn, then what the controller chose, best first."""
        numbers = self.alive()
        if not numbers:
            return []
        last = numbers.pop()
        size = self.kit.tokens(self.entries[last].text)
        flash = self.entries[last].text if size < self.kit.budget / 5 else self.entries[last].summary
        if self.kit.tokens(flash) >= self.kit.budget / 5:
            flash = self.shortened(flash, self.kit.budget // 5)
        shown = [self.show(last, flash)]
        vector = self.embed(question)
        found = self.nearest(vector, self.k, numbers)
        if self.gate and not self._needed(question, found):
            return shown
        raw = dict.fromkeys((i for i, _ in found), True)
        if self._tokens(raw) > self._room(flash):
            for i, cosine in found[1:]:
                entry = self.entries[i]
                if not self._answers(question, entry.text, cosine):
                    del raw[i]
                elif entry.summary != entry.text and self._answers(question, entry.summary, 0.0):
                    raw[i] = False
        for i, _ in reversed(found):
            if self._tokens(raw) <= self._room(flash):
                break
            if i in raw:
                raw[i] = False
        return shown + [self.show(i, None if raw[i] else self.entries[i].summary) for i, _ in found if i in raw]

    def _room(self, flash: str) -> int:
        return self.kit.budget - self.kit.tokens(flash) - 1

    def _tokens(self, raw: dict[int, bool]) -> int:
        """Of turns, raw or as summaries, as they are shown."""
        entries = [(self.entries[i], whole) for i, whole in raw.items()]
        return sum(1 + self.kit.tokens(dated(e.text if whole else e.summary, e.day)) for e, whole in entries)

    def _answers(self, question: str, text: str, cosine: float) -> bool:
        """Whether a question can be answered from a text."""
        shared = set(words.entities(question)) & set(words.entities(text))
        rule = cosine > self.near or bool(shared) or words.share(words.content(question), text) >= 0.5
        if self.thinker is None:
            return rule
        said = self.thinker.yes(f"Does the text answer this question: {question} Answer Yes or No.", text)
        return rule if said is None else said

    def _needed(self, question: str, found: list[tuple[int, float]]) -> bool:
        """Whether memory is needed for a question."""
        rule = any(self._answers_by_rule(question, i, cosine) for i, cosine in found)
        if self.thinker is None:
            return rule
        said = self.thinker.yes("Does one have to know the earlier conversation to answer? Answer Yes or No.", question)
        return rule if said is None else said

    def _answers_by_rule(self, question: str, number: int, cosine: float) -> bool:
        text = self.entries[number].text
        return cosine > self.near or bool(set(words.entities(question)) & set(words.entities(text)))
