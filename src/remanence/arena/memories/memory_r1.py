"""Memory-R1: a flat list of facts, a manager that adds, updates, deletes or does nothing, and an answerer that
distils.

Paper: Yan et al., "Memory-R1: Enhancing Large Language Model Agents to Manage and Utilize Memories via Reinforcement
Learning", arXiv 2508.19828. No code was published when this was written.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn, best, once
from .policy import Policy

OPERATIONS = ("ADD", "UPDATE", "DELETE", "NOOP")
_SEEN = 9  # features of a decision


@dataclass
class Fact(Entry):
    """A sentence ("fact"), or one that ended another ("ended"). slot: what it gives a value to. history: what it said
    before. speaker: who said it."""

    slot: str = ""
    history: list[str] = field(default_factory=list)
    speaker: str = ""


class MemoryR1(Remembering[Fact]):
    """Every told fact meets the nearest old one, and the manager picks one of four operations.

    Made for: conversations over many sessions in which facts change (LoCoMo).

    By rule, with the nearest fact's cosine c: c above 0.8 and nothing that is new, neither a word nor a denial, is
    NOOP; a sentence that says that something is over ("no longer") and fits the old one is DELETE, and stays itself, as
    the question may be about it; the same slot with another value is UPDATE, and the old text becomes history; all else
    is ADD. At a question `candidates` facts are found, of each of two speakers half; those that share an entity with it
    come first, and `k` are read (memory distillation).

    How far from the paper: there two language models of 7 to 14 billion weights are trained by reinforcement learning
    (PPO or GRPO, reward: the final answer is exact) on four to eight H100. That cannot be done here; this is its
    store, its operations and its distillation with a manager by rule, or with `brain="reader"` by the untrained
    reader (a choice by likelihood a fact that resembles an old one, and a decision on each of the `k` best). With
    `weights` the manager is a linear one that learnt by GRPO from what it sees of both facts (`policy.py`); its reward
    is that the right value is shown for a question, and no older one.

    Args:
        kit, brain: as in `Remembering`.
        k: facts that are read.
        candidates: facts that are found before distillation.
        alike: cosine above which an old fact is looked at for an operation.
        weights: a file of `remanence eval learn --system memory-r1`; "" for the rule.
    """

    name = "memory-r1"
    kind_of_entry = Fact
    made_for = "questions about conversations in which facts change"

    def __init__(
        self, kit: Kit, *, k: int = 8, candidates: int = 60, alike: float = 0.5, weights: str = "",
        brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.candidates, self.alike = k, candidates, alike
        self.policy = Policy(OPERATIONS, _SEEN, weights)
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """No operation was done yet."""
        self.more = {"operations": dict.fromkeys(OPERATIONS, 0)}

    def take(self, turns: list[Turn]) -> None:
        """Manage every fact of every turn."""
        told = [(turn, self._facts(turn)) for turn in turns]
        self.embeds([text for _, facts in told for text in facts])  # in one go
        for turn, facts in told:
            for text in facts:
                self._manage(text, turn)

    @staticmethod
    def _facts(turn: Turn) -> list[str]:
        """The sentences of a turn that tell something, with the speaker's name."""
        told = [s for s in words.split(turn.said) if words.content(s) and not s.endswith("?")]
        named = [words.named(sentence, turn.speaker) for sentence in told]
        return [f"{turn.speaker}: {t}" if turn.speaker and turn.speaker not in t else t for t in named]

    def _manage(self, text: str, turn: Turn) -> None:
        vector = self.embed(text)
        near = self.nearest(vector, 1)
        found = words.slot(text, turn.speaker)
        new = Fact(text, [turn.number], "fact", slot="|".join(found) if found else "", speaker=turn.speaker)
        if new.slot:  # what has the same slot matters more than what is nearest
            near = self.nearest(vector, 1, self.of_slot(new.slot)) or near
        operation = self.operation(new, *near[0]) if near else "ADD"
        self.more["operations"][operation] += 1
        if operation == "NOOP":
            return
        if operation in ("UPDATE", "DELETE"):
            old = self.entries[near[0][0]]
            old.gone = True
            new.history = [*old.history, old.text]
            new.kind = "ended" if operation == "DELETE" else "fact"
        self.add(new, vector)

    def operation(self, new: Fact, number: int, cosine: float) -> str:
        """Which of `OPERATIONS` a new fact is, beside an old one."""
        old = self.entries[number]
        same_slot = bool(new.slot) and new.slot == old.slot
        rule = "ADD"
        if words.says_no_more(new.text, old.text) and cosine > 0.8:
            rule = "NOOP"
        elif words.ends(new.text) and (same_slot or (cosine > self.alike and _about_the_same(old.text, new.text))):
            rule = "DELETE"
        elif same_slot and old.speaker == new.speaker:
            rule = "UPDATE"
        if self.thinker is None:
            return self.policy.choose(_seen(new, old, cosine, same_slot), rule)
        if cosine <= self.alike:
            return rule
        task = (
            "Compare the old and the new sentence. ADD if the new one says something else, UPDATE if it has a newer "
            "value for the same thing, DELETE if it says that the old one is over, NOOP if it says nothing new."
        )
        said = self.thinker.choose(task, f"Old: {old.text}\nNew: {new.text}", OPERATIONS)
        if said in ("UPDATE", "DELETE") and not (same_slot or _about_the_same(old.text, new.text)):
            return rule  # it would destroy what has nothing to do with it
        return said or rule

    def find(self, question: str) -> list[Shown]:
        """What distillation leaves."""
        vector = self.embed(question)
        by: dict[str, list[int]] = {}
        for i in self.alive():
            by.setdefault(self.entries[i].speaker, []).append(i)
        half = self.candidates // 2 if len(by) == 2 else self.candidates
        scores = dict(pair for each in by.values() for pair in self.nearest(vector, half, each))
        asked = set(words.names(question)) - {speaker.lower() for speaker in by}
        shared = {i for i in scores if asked & set(words.names(self.entries[i].text))}
        order = [i for i, _ in best({i: s + (i in shared) for i, s in scores.items()}, self.k)]
        if self.thinker is not None:
            task = f"Does this help to answer the question: {question} Answer Yes or No."
            said = self.thinker.yes_each(task, [self.entries[i].text for i in order])
            order = [i for i, helps in zip(order, said, strict=True) if helps is not False] or order
        return once(self.show(i) for i in order)


def _seen(new: Fact, old: Fact, cosine: float, same_slot: bool) -> list[float]:
    """What a policy sees of two facts, `_SEEN` numbers."""
    one, two = set(words.content(new.text)), set(words.content(old.text))
    shared, names = one & two, set(words.names(new.text)) & set(words.names(old.text))
    return [
        cosine, float(cosine > 0.8), float(same_slot), float(new.speaker == old.speaker),
        len(shared) / max(1, len(one)), len(shared) / max(1, len(two)), float(bool(names)),
        float(words.ends(new.text)), float(words.negates(new.text) != words.negates(old.text)),
    ]  # fmt: skip


def _about_the_same(old: str, new: str) -> bool:
    """Whether two sentences share a name and half of the words of the shorter one, or more than half without names."""
    one, two = set(words.content(old)), set(words.content(new))
    shared = len(one & two) / max(1, min(len(one), len(two)))
    return shared >= (0.5 if set(words.names(old)) & set(words.names(new)) else 0.6)
