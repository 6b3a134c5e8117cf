"""MemoryBank: a log of what was said, summaries of days, a portrait of the user, and Ebbinghaus' forgetting.

Paper: Zhong et al., "MemoryBank: Enhancing Large Language Models with Long-Term Memory", arXiv 2305.10250.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import date

from ..protocol import Kit
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, checked, once

FORGETTING = ("off", "rank", "sample")


@dataclass
class Logged(Entry):
    """A pair of turns ("piece") or the summary of a day ("summary"). strength: S of the forgetting curve; last: the
    day of its last recall, and on: that on which it was told, in the system's count of days."""

    strength: float = 1.0
    last: int = 0
    on: int = 0


class MemoryBank(Remembering[Logged]):
    """Pairs of turns and summaries of days are found by vectors; portrait and summary of everything are always shown.

    Made for: chats with one user over many days, with questions about what was said days ago.

    Retention is R = exp(-t / (curve * S)): t days since the last recall, S begins at 1 and grows by 1 with each
    recall, which also sets t to 0. Differences to the published code that are meant: it computes exp(-t
    * S / 5), by which what is recalled often fades faster; here S slows fading down, as the paper says. Summaries of
    days are exempt from forgetting, as in the code, which has forgetting off by default, and so has this.

    Without a language model a summary is the sentences nearest to the day's mean vector, and the portrait the most
    central sentences in which somebody says what he or she is, likes or has. What is lost: abstraction, and the
    paper's notes on mood. With `brain="reader"` the reader writes the day's summary and the portrait (two calls a
    day).

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes is the strength of what it recalled.
        k: pieces and summaries that are found.
        forget: "off"; "rank" multiplies scores by R and deletes nothing; "sample" keeps every piece with probability
            R each day, for good, seeded.
        curve: days after which an unrecalled piece is kept with probability 1/e; 1 is the paper's, 5 was meant by the
            code.
        day_turns: turns that make a day where the texts have no dates.
        glue: characters up to which a found piece is shown with its neighbours of the day, as in the code.
        tokens: of a summary, and of the portrait.
    """

    name = "memorybank"
    kind_of_entry = Logged
    made_for = "questions about chats over many days"
    whole = True

    def __init__(
        self, kit: Kit, *, k: int = 6, forget: str = "off", curve: float = 5.0, day_turns: int = 50, glue: int = 200,
        tokens: int = 40, learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.forget, self.curve = k, checked("forget", forget, FORGETTING), curve
        self.day_turns, self.glue, self.tokens = day_turns, glue, tokens
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """No day yet, nothing known of the user."""
        self.more = {"day": None, "begins": None, "portrait": "", "summary": "", "traits": []}

    def take(self, turns: list[Turn]) -> None:
        """Log pairs of turns; a new day first closes the one before."""
        at = 0
        while at < len(turns):
            today = self.day(turns[at])
            if self.more["day"] is not None and today > self.more["day"]:
                self._end_day()
                self.more["day"] = today
                self._forget()
            self.more["day"] = today if self.more["day"] is None else max(today, self.more["day"])
            pair = turns[at : at + 2] if turns[at].speaker else turns[at : at + 1]
            if len(pair) == 2 and (self.day(pair[1]) != today or pair[0].speaker == pair[1].speaker):
                pair = pair[:1]
            text = " ".join(turn.text for turn in pair)
            self.add(Logged(text, [t.number for t in pair], "piece", last=self.more["day"], on=today))
            self.more["traits"] += [
                words.named(sentence, turn.speaker)
                for turn in pair
                for sentence in words.split(turn.said)
                if words.is_trait(sentence)
            ]
            at += len(pair)

    def day(self, turn: Turn) -> int:
        """The number of a turn's day, from the first on; what has no date counts by turns until a date is told."""
        if not turn.day:
            return turn.number // self.day_turns if self.more["begins"] is None else self.more["day"]
        told = date.fromisoformat(turn.day).toordinal()
        if self.more["begins"] is None:
            self.more["begins"] = told - (self.more["day"] or 0)
        return int(told - self.more["begins"])

    def retention(self, number: int) -> float:
        """R of an entry today, from 0 to 1; 1 for summaries."""
        entry = self.entries[number]
        if entry.kind == "summary":
            return 1.0
        return math.exp(-max(0, self.more["day"] - entry.last) / (self.curve * entry.strength))

    def _forget(self) -> None:
        """Drop pieces by chance, as a new day begins."""
        if self.forget != "sample":
            return
        for number in self.alive("piece"):
            rng = random.Random(f"{self.kit.seed}/{number}/{self.more['day']}")
            self.entries[number].gone = rng.random() >= self.retention(number)

    def _end_day(self) -> None:
        """Sum up the day that is over, and all days, and renew the portrait."""
        day = self.more["day"]
        closed = [i for i in self.alive("piece") if self.entries[i].on == day]
        if not closed:
            return
        texts = [self.entries[number].text for number in closed]
        summary = self._told("Sum up in one sentence what happened and what was said.", texts)
        turns = [number for i in closed for number in self.entries[i].turns]
        if summary:
            self.add(Logged(summary, turns, "summary", last=day, on=day))
        days = [self.entries[i].text for i in self.alive("summary")]
        self.more["summary"] = self.summary(days, self.tokens)
        self.more["portrait"] = self._told("Describe the person in one sentence.", self.more["traits"])

    def _told(self, task: str, texts: list[str]) -> str:
        """Texts summed up by the reader, or by their most central sentences."""
        rules = self.summary(texts, self.tokens)
        if self.thinker is None or not rules:
            return rules
        line = self.thinker.line(task, self.summary(texts, 8 * self.tokens), tokens=self.tokens)
        return rules if line is None else self.shortened(line, self.tokens)

    def find(self, question: str) -> list[Shown]:
        """Portrait and summary, then what is nearest to the question."""
        vector = self.embed(question)
        if self.forget == "rank":
            scores = {i: s * self.retention(i) for i, s in self.nearest(vector, len(self.entries))}
            found = sorted(scores, key=lambda i: (-scores[i], -i))[: self.k]
        else:
            found = [i for i, _ in self.nearest(vector, self.k)]
        always = [("About the speaker: ", self.more["portrait"]), ("So far: ", self.more["summary"])]
        pieces = [Shown(head + text, order - 2.0) for order, (head, text) in enumerate(always) if text]
        return pieces + once(self._glued(number) for number in found)

    def _glued(self, number: int) -> Shown:
        """A piece with its neighbours of the same day, while they have few characters together."""
        entry, text, shown = self.entries[number], self.entries[number].text, [number]
        for step in (-1, 1):
            at = number + step
            while entry.kind == "piece" and 0 <= at < len(self.entries):
                other = self.entries[at]
                if other.gone or other.kind != "piece" or other.day != entry.day:
                    break
                if len(text) + 1 + len(other.text) > self.glue:
                    break
                text = f"{other.text} {text}" if step < 0 else f"{text} {other.text}"
                shown.append(at)
                at += step
        piece = self.show(min(shown), text)
        return Shown(piece.text, piece.order, piece.time, entries=(number,))

    def recalled(self, asked: Asked) -> None:
        """Strengthen what was recalled, as of the day of the newest turn."""
        today = self.day(self.turns[-1])
        for number in asked.entries:
            entry = self.entries[number]
            entry.strength += 1
            entry.last = max(entry.last, today)
