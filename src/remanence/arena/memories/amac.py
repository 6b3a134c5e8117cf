"""A-MAC: a score decides whether something is worth keeping at all; what is kept is found by vectors.

Paper: "Adaptive Memory Admission Control for LLM Agents", arXiv 2603.04549. Weights and
threshold are those of the authors' code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..protocol import Kit
from ..scores import rouge_l
from . import words
from .base import Entry, Remembering, Shown, Turn, once

WEIGHTS = {"utility": 0.1, "confidence": 0.1, "novelty": 0.1, "recency": 0.1, "type": 0.6}
"""As learned by the authors' grid search."""

_TYPES = (
    (0.2, r"\b(?:right now|at the moment|currently|just now|for now|this (?:morning|minute)|on my way)\b"),
    (0.3, r"\b(?:tired|hungry|bored|sleepy|feeling|feels|stressed|in a hurry|cold today|hot today)\b"),
    (
        0.9,
        r"\b(?:I (?:like|love|hate|prefer|enjoy|am|believe|think that)|I[’']m (?:a|an|the|from)|my name|favou?rite"
        r"|allerg\w+|\w+ (?:likes|loves|hates|prefers|believes|swears by))\b",
    ),
    (0.5, r"\b(?:plan to|planning|going to|want to|hope to|goal|will|intend)\b"),
    (0.7, r"\b(?:is|are|was|were|has|have|had|lives?|works?|called|born|got|owns?|costs?)\b|[’']s\b"),
)
"""Type priors by words, the first that fits: temporary; state; preference, identity and belief; plan; fact."""
_UNKNOWN = 0.5


@dataclass
class Admitted(Entry):
    """A sentence that was admitted, with its score."""

    score: float = 0.0


class AMAC(Remembering[Admitted]):
    """S = sum of weight times factor; a sentence with S >= theta is kept. Behind it is plain search by vectors.

    Made for: deciding which turns of a conversation are worth keeping; its figures (F1 .583) are of that decision,
    not of answers.

    Factors: utility (by rule 1 for a sentence of the first person with an entity, else .3); confidence, the best
    ROUGE-L F1 against the last five turns; novelty, 1 less the greatest cosine to what is kept; recency, exp(-0.01
    hours since it was said); the type's prior. A kept sentence with a cosine of `alike` or more is updated in place
    of adding another.

    Differences that are meant: the code has a language model say the type and the utility, and extracts candidates;
    by rule they are sentences as they were said, and words tell the type. To be seen from the weights: the type
    decides. What is temporary never passes (.12 + .40 < .55), preferences and identity nearly always do. Sentences
    are admitted as they are told, so recency is 1 then. With `brain="reader"` the reader gives utility as a number
    (one call a sentence; .5 where it says none, as in the code).

    Args:
        kit, brain: as in `Remembering`.
        k: sentences that are found.
        theta: the least score.
        alike: cosine from which a sentence updates a kept one.
    """

    name = "a-mac"
    kind_of_entry = Admitted
    made_for = "deciding which turns are worth keeping"

    def __init__(
        self, kit: Kit, *, k: int = 10, theta: float = 0.55, alike: float = 0.8, brain: str | None = None
    ) -> None:
        self.k, self.theta, self.alike = k, theta, alike
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """Nothing was admitted or refused."""
        self.more = {"admitted": 0, "refused": 0, "updated": 0}

    def take(self, turns: list[Turn]) -> None:
        """Admit or refuse every sentence."""
        for turn in turns:
            for sentence in words.split(turn.said):
                if not words.content(sentence):
                    continue
                text = f"{turn.speaker}: {sentence}" if turn.speaker else sentence
                vector = self.embed(text)
                near = self.nearest(vector, 1)
                factors = self.factors(sentence, turn, near[0][1] if near else 0.0)
                score = sum(WEIGHTS[name] * value for name, value in factors.items())
                if score < self.theta - 1e-9:
                    self.more["refused"] += 1
                elif near and near[0][1] >= self.alike:
                    self.more["updated"] += 1
                    self.entries[near[0][0]].gone = True
                    self.add(Admitted(text, [turn.number], score=score), vector)
                else:
                    self.more["admitted"] += 1
                    self.add(Admitted(text, [turn.number], score=score), vector)

    def factors(self, sentence: str, turn: Turn, cosine: float) -> dict[str, float]:
        """The five factors of a sentence, each from 0 to 1.

        Args:
            sentence: as it was said.
            turn: that it is of.
            cosine: the greatest to what is kept; 0 if nothing is.
        """
        recent = self.turns[max(0, turn.number - 4) : turn.number + 1]
        hours = max(0.0, self.turns[-1].time - turn.time) / 3600
        utility = 1.0 if words.first_person(sentence) and words.entities(sentence) else 0.3
        if self.thinker is not None:
            task = "How useful is the last sentence to know later, from 0 to 1? Answer with a number."
            said = self.thinker.number(task, "\n".join([*(t.text for t in recent), sentence]))
            utility = 0.5 if said is None else said
        return {
            "utility": utility,
            "confidence": rouge_l(sentence, [each.said for each in recent]),
            "novelty": min(1.0, max(0.0, 1 - cosine)),
            "recency": math.exp(-0.01 * hours),
            "type": type_prior(sentence),
        }

    def find(self, question: str) -> list[Shown]:
        """What is kept, nearest first."""
        return once(self.show(i) for i, _ in self.nearest(self.embed(question), self.k))


def type_prior(sentence: str) -> float:
    """How much is worth keeping what a sentence says, by its type."""
    return next((prior for prior, words_ in _TYPES if re.search(words_, sentence, re.IGNORECASE)), _UNKNOWN)
