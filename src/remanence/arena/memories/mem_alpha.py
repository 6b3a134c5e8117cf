"""Mem-alpha: a core paragraph, a list of facts and a list of dated events, and a writer that chooses among them.

Paper: Wang et al., "Mem-α: Learning Memory Construction via Reinforcement Learning", arXiv 2509.25911.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn, once
from .policy import Policy

MEMORIES = ("core", "semantic", "episodic")
_SEEN = 6  # features of a decision


@dataclass
class Item(Entry):
    """A sentence of one of `MEMORIES` (`kind`). slot: what it gives a value to, or ""."""

    slot: str = ""


class MemAlpha(Remembering[Item]):
    """Core is always shown; of the other two, what shares words with the question (BM25).

    Made for: long streams of documents and chats, read once, in chunks.

    By rule a sentence in which somebody says what he or she is, likes or has goes to core, one with a date or with a
    verb of what happened to the episodic list, any other to the semantic one. Core is one paragraph of at most `core`
    tokens, rewritten as a whole with every text: the newest sentence of each slot, the most central ones if they are
    too many. In the lists a newer value of a slot replaces the older (the tools insert, update and delete).

    How far from the paper: there a 4B model learns to use the tools, by GRPO on four nodes; its choice is what the
    paper is about. Here it is a rule, or with `weights` a linear choice of the memory of each sentence that learnt by
    GRPO (`policy.py`), rewarded if the right value is shown for a question, and as in the paper for a short memory.
    With `brain="reader"` the untrained reader chooses, by likelihood. Core had 512 tokens there; a quarter of the
    budget here. What core has no room for is found in the semantic list.

    Args:
        kit, brain: as in `Remembering`.
        k: items of each list that are found.
        core: tokens of the core paragraph; a quarter of the budget if 0.
        weights: a file of `remanence eval learn --system mem-alpha`; "" for the rule.
    """

    name = "mem-alpha"
    kind_of_entry = Item
    made_for = "questions about long streams that are read once"

    def __init__(self, kit: Kit, *, k: int = 20, core: int = 0, weights: str = "", brain: str | None = None) -> None:
        self.k, self.core = k, core or kit.budget // 4
        self.policy = Policy(MEMORIES, _SEEN, weights)
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """An empty core."""
        self.more = {"core": ""}

    def take(self, turns: list[Turn]) -> None:
        """Sort the sentences of a text into the three memories."""
        changed = False
        for turn in turns:
            for sentence in words.split(turn.said):
                if not words.content(sentence) or sentence.endswith("?"):
                    continue
                text = words.named(sentence, turn.speaker)
                if turn.speaker and turn.speaker not in text:
                    text = f"{turn.speaker}: {text}"
                found = words.slot(text, turn.speaker)
                item = Item(text, [turn.number], self.memory_of(sentence), slot="|".join(found) if found else "")
                for i in self.of_slot(item.slot):
                    self.entries[i].gone = True
                    changed |= self.entries[i].kind == "core"
                self.add(item)
                changed |= item.kind == "core"
        if changed:
            self.more["core"] = self.summary([self.entries[i].text for i in self.alive("core")], self.core)

    def memory_of(self, sentence: str) -> str:
        """Which of `MEMORIES` a sentence goes to."""
        rule = "semantic"
        if words.first_person(sentence) and words.is_trait(sentence):
            rule = "core"
        elif words.is_event(sentence):
            rule = "episodic"
        if self.thinker is None:
            return self.policy.choose(_seen(sentence), rule)
        task = (
            "Which is this? core: what the speaker is or likes for good. episodic: what happened at some time. "
            "semantic: any other fact."
        )
        return self.thinker.choose(task, sentence, MEMORIES) or rule

    def find(self, question: str) -> list[Shown]:
        """Core, then the best of both lists in turn; what core has no room for counts as semantic."""
        core = self.more["core"]
        pieces = [Shown(f"About the speaker: {core}", -1.0)] if core else []
        rest = [i for i in self.alive("core") if self.entries[i].text not in core]
        lists = [
            self.by_words(question, self.k, sorted([*self.alive("semantic"), *rest])),
            self.by_words(question, self.k, self.alive("episodic")),
        ]
        for rank in range(self.k):
            pieces += [self.show(each[rank]) for each in lists if rank < len(each)]
        return once(pieces)


def _seen(sentence: str) -> list[float]:
    """What a policy sees of a sentence, `_SEEN` numbers."""
    return [
        float(words.first_person(sentence)), float(words.is_trait(sentence)), float(words.is_event(sentence)),
        float(any(sign.isdigit() for sign in sentence)), float(bool(words.names(sentence))),
        min(len(words.content(sentence)), 20) / 20,
    ]  # fmt: skip
