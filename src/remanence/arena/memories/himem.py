"""HiMem: raw episodes below, distilled notes above, and notes that are corrected when they fail.

Paper: "HiMem: Hierarchical Long-Term Memory for LLM Long-Horizon Agents", arXiv 2601.06377.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F

from ..protocol import Kit
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, checked, once

_WARM = 4  # values of a running mean before it says what is unusual


@dataclass
class Layered(Entry):
    """An episode or a note. slot: what a note gives a value to, or "". episode: the number of a note's episode."""

    slot: str = ""
    episode: int = -1


class HiMem(Remembering[Layered]):
    """Turns are gathered into episodes; facts, preferences and profile become notes that point to them.

    Made for: long conversations with one user, whose facts change (LoCoMo).

    A new episode begins where the cosine of a turn and the episode's mean falls below its usual value less one
    standard deviation; with `brain="reader"` also where the reader finds the turn surprising given the one before it
    (nats a token above the mean plus two standard deviations; one call a turn). A note is a sentence with names for
    pronouns and dates for "yesterday" that tells a trait, a value of some slot, or an event; a newer value of the
    same slot replaces it.

    `mode="hybrid"` searches both layers; "best-effort" notes first, and episodes only if these are not sufficient:
    the best note's cosine is below `near`, or it shares no name with a question that has one (by the reader: it says
    no). If notes failed and episodes carried the answer, the sentence that did becomes a note: it
    replaces a note that it contradicts, joins one that it extends, or stands alone.

    Differences that are meant: the paper finds topic, surprise and notes with one large model's pass each. By rule,
    implicit preferences are lost. No published code was at hand.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes are notes.
        k: entries that are found, of both layers together.
        mode: "hybrid", or "best-effort".
        near: cosine above which a note is sufficient.
        longest_episode: turns.
    """

    name = "himem"
    kind_of_entry = Layered
    made_for = "questions about long conversations in which facts change"

    def __init__(
        self, kit: Kit, *, k: int = 10, mode: str = "hybrid", near: float = 0.5, longest_episode: int = 12,
        learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.near, self.longest_episode = k, near, longest_episode
        self.best_effort = checked("mode", mode, ("hybrid", "best-effort")) == "best-effort"
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """No episode is open, and nothing is usual yet."""
        self.more = {"open": -1, "cosine": [0, 0.0, 0.0], "surprise": [0, 0.0, 0.0]}

    def take(self, turns: list[Turn]) -> None:
        """Gather turns into episodes, and take notes."""
        vectors = self.embeds([turn.text for turn in turns])
        for turn, vector in zip(turns, vectors, strict=True):
            number = self.more["open"]
            if number < 0 or self._begins(turn, float(self.vectors[number] @ vector)):
                number = self.more["open"] = self.add(Layered("", [turn.number], "episode"), vector)
            else:
                episode = self.entries[number]
                episode.turns.append(turn.number)
                mean = self.embeds([each.text for each in self.turns_of(episode)]).mean(0)
                self.vectors[number] = F.normalize(mean, dim=0)
            for sentence in words.split(turn.said):
                if not sentence.endswith("?") and self._worth_noting(sentence):
                    self._note(self._said(sentence, turn), turn.number, number)

    def _begins(self, turn: Turn, cosine: float) -> bool:
        """Whether a turn begins a new episode."""
        episode = self.entries[self.more["open"]]
        last = self.turns[episode.turns[-1]]
        new = _unusual(self.more["cosine"], -cosine, 1.0)
        if self.thinker is not None:
            surprise = self.thinker.surprise(last.text, turn.text)
            if surprise is not None and _unusual(self.more["surprise"], surprise, 2.0):
                new = True
        return new or last.day != turn.day or len(episode.turns) >= self.longest_episode

    @staticmethod
    def _worth_noting(sentence: str) -> bool:
        return words.is_trait(sentence) or words.slot(sentence) is not None or words.is_event(sentence)

    @staticmethod
    def _said(sentence: str, turn: Turn) -> str:
        """A sentence that can stand alone."""
        day = words.day_of(turn.day, None)
        return words.resolved_dates(words.named(sentence, turn.speaker), day)

    def _note(self, text: str, turn: int, episode: int) -> None:
        """Add a note, or let it replace or join another."""
        found = words.slot(text)
        new = Layered(text, [turn], "note", slot="|".join(found) if found else "", episode=episode)
        vector = self.embed(text)
        near = self.nearest(vector, 3, self.alive("note"))
        for i, cosine in near:
            old = self.entries[i]
            if words.says_no_more(text, old.text):
                return
            contradicts = new.slot and new.slot == old.slot and cosine > 0.5
            extends = cosine > 0.85 and set(words.content(old.text)) <= set(words.content(text))
            old.gone = bool(contradicts or extends)
        self.add(new, vector)

    def _sufficient(self, question: str, near: list[tuple[int, float]]) -> bool:
        """Whether notes suffice to answer a question."""
        if not near:
            return False
        asked, text = set(words.names(question)), self.entries[near[0][0]].text
        rule = near[0][1] > self.near and (not asked or bool(asked & set(words.names(text))))
        if self.thinker is None:
            return rule
        notes = "\n".join(self.entries[i].text for i, _ in near)
        said = self.thinker.yes(f"Do these notes answer the question: {question} Answer Yes or No.", notes)
        return rule if said is None else said

    def find(self, question: str) -> list[Shown]:
        """Notes, and turns of episodes."""
        vector = self.embed(question)
        if self.best_effort:
            notes = self.nearest(vector, self.k, self.alive("note"))
            if self._sufficient(question, notes):
                return once(self.show(i) for i, _ in notes)
            near = self.nearest(vector, self.k, self.alive("episode"))
        else:
            near = self.nearest(vector, self.k)
        pieces = []
        for i, _ in near:
            if self.entries[i].kind == "note":
                pieces.append(self.show(i))
            else:
                pieces += [self.show_turn(n, i) for n in self.nearest_turns(vector, self.entries[i].turns, 3)]
        return once(pieces)

    def recalled(self, asked: Asked) -> None:
        """Take a note of what only an episode could answer."""
        episodes = [i for i in asked.entries if self.entries[i].kind == "episode"]
        if any(words.cited(asked.answer, self.entries[i].text) >= 0.5 for i in asked.entries if i not in episodes):
            return
        for i in episodes:
            for turn in self.turns_of(self.entries[i]):
                for sentence in words.split(turn.said):
                    if words.content(asked.answer) and words.cited(asked.answer, sentence) >= 0.5:
                        self._note(self._said(sentence, turn), turn.number, i)
                        return


def _unusual(seen: list[float], value: float, deviations: float) -> bool:
    """Whether a value is above the mean of those before by so many standard deviations; then counts it in.

    Args:
        seen: how many, their mean, and the sum of squares around it (Welford's); changed in place.
        value: the new one.
        deviations: how many.
    """
    count, mean, squares = seen
    unusual = count >= _WARM and value > mean + deviations * math.sqrt(squares / count)
    seen[0] = count + 1
    seen[1] = mean + (value - mean) / (count + 1)
    seen[2] = squares + (value - mean) * (value - seen[1])
    return unusual
