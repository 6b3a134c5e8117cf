"""DMM-Gov: a store under government: admission, probation of what is new, monitoring, rollback, and a log of it all.

Paper: "Memory in Large Language Models: Mechanisms, Evaluation and Evolution", arXiv 2509.18868, on dynamic memory
management and governance (DMM-Gov).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol import Kit
from ..scores import abstains
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, once


@dataclass
class Record(Entry):
    """A sentence. state: "live", "probation" (a newer value that is not confirmed yet), "replaced" or "rolled back".
    slot: what it gives a value to. before: number of the record it would replace, or -1. cited: by answers; missed:
    times it was read on probation and its predecessor was cited instead. speaker: who said it."""

    state: str = "live"
    slot: str = ""
    before: int = -1
    cited: int = 0
    missed: int = 0
    speaker: str = ""


class DMMGov(Remembering[Record]):
    """Records are found by vectors; a newer value is on probation beside the old one until it proves itself.

    Made for: keeping a memory fresh and auditable; it is measured by how often answers are outdated.

    How far from the paper: it describes a loop of government over training, editing and retrieval (admission
    threshold, rollout, monitoring, rollback, audit), and no algorithm; it is no competitor of retrieval systems. This
    is the loop's smallest whole form over texts, ours in every number:

    *Admission*: a sentence whose cosine to a record is above `admit` and that has no word of its own is refused.
    *Rollout*: a sentence with the slot of a live record is on probation; both are shown with their dates, the newer
    one first. It replaces the old one when an answer cites it, or it is told again, or after `trial` turns.
    *Monitoring*: citations are counted, and `freshness` and `outdated` tell the share of answers that cite a live, or
    a replaced, record. *Rollback*: if answers cited the predecessor `patience` times while it was read too, the newer
    one is rolled back; `roll_back` undoes any replacement by hand. *Audit*: `more["log"]` has every change: turn,
    what was done, to which record, and why. With `brain="reader"` the reader decides whether a new value contradicts
    the old at all.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes are citations and states.
        k: records that are found.
        admit: cosine above which a sentence without a word of its own is refused.
        trial: turns after which a probation ends well.
        patience: citations of the predecessor that end it badly.
    """

    name = "dmm-gov"
    kind_of_entry = Record
    made_for = "questions about facts that change"

    def __init__(
        self, kit: Kit, *, k: int = 10, admit: float = 0.9, trial: int = 200, patience: int = 2, learns: bool = True,
        brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.admit, self.trial, self.patience = k, admit, trial, patience
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """An empty log."""
        self.more = {"log": [], "answers": 0, "fresh": 0, "outdated": 0}

    def _log(self, action: str, number: int, why: str) -> None:
        self.more["log"].append([len(self.turns), action, number, why])

    def take(self, turns: list[Turn]) -> None:
        """Admit sentences; end the probations whose time is over."""
        for i in self.alive():
            record = self.entries[i]
            if record.state == "probation" and len(self.turns) - record.turns[0] > self.trial:
                self._confirm(i, "its trial is over")
        for turn in turns:
            for sentence in words.split(turn.said):
                if words.content(sentence):
                    self._admit(f"{turn.speaker}: {sentence}" if turn.speaker else sentence, turn)

    def _admit(self, text: str, turn: Turn) -> None:
        vector = self.embed(text)
        near = self.nearest(vector, 1)
        if near and near[0][1] > self.admit and words.says_no_more(text, self.entries[near[0][0]].text):
            self._log("refused", near[0][0], "said already")
            if self.entries[near[0][0]].state == "probation":
                self._confirm(near[0][0], "told again")
            return
        found = words.slot(text, turn.speaker)
        record = Record(text, [turn.number], slot="|".join(found) if found else "", speaker=turn.speaker)
        same = [i for i in self.of_slot(record.slot) if self.entries[i].speaker == turn.speaker]
        for i in [i for i in same if self.entries[i].state == "probation"]:
            self._confirm(i, "a still newer value came")
        live = [i for i in same if not self.entries[i].gone and self.entries[i].state == "live"]
        if live and self._contradicts(self.entries[live[-1]].text, text):
            record.state, record.before = "probation", live[-1]
        number = self.add(record, vector)
        self._log("rolled out" if record.state == "probation" else "admitted", number, record.slot)

    def _contradicts(self, old: str, new: str) -> bool:
        if self.thinker is None:
            return True
        both = self.thinker.yes("Can both sentences be true at the same time? Answer Yes or No.", f"{old}\n{new}")
        return both is not True

    def _confirm(self, number: int, why: str) -> None:
        """A record on probation replaces the one before it."""
        record = self.entries[number]
        record.state = "live"
        if record.before >= 0:
            self.entries[record.before].gone, self.entries[record.before].state = True, "replaced"
        self._log("confirmed", number, why)

    def roll_back(self, number: int, why: str = "by hand") -> None:
        """Undo a record: it is not found any more, and the one it replaced is live again."""
        record = self.entries[number]
        record.gone, record.state = True, "rolled back"
        if record.before >= 0:
            self.entries[record.before].gone, self.entries[record.before].state = False, "live"
        self._log("rolled back", number, why)

    def find(self, question: str) -> list[Shown]:
        """The nearest records; of a record and its successor on probation the newer one first."""
        near = [i for i, _ in self.nearest(self.embed(question), self.k)]
        newer = {self.entries[i].before: i for i in self.alive() if self.entries[i].state == "probation"}
        order: list[int] = []
        for i in near:
            order += [newer[i], i] if i in newer else [i]
        return once(self.show(i) for i in order)

    def recalled(self, asked: Asked) -> None:
        """Monitor what an answer cites (its words stand in the record), and decide on probations."""
        if abstains(asked.answer):
            return
        own = [word for word in words.content(asked.answer) if word not in words.content(asked.question)]
        cited = {i for i in asked.entries if own and words.share(own, self.entries[i].text) >= 0.5}
        stale = any(
            own and record.state == "replaced" and words.share(own, record.text) >= 0.5
            and set(words.content(asked.question)) & set(words.content(record.text))
            for record in self.entries
        )  # fmt: skip
        self.more["answers"] += 1
        self.more["fresh"] += bool(cited)
        self.more["outdated"] += stale and not cited
        for i in sorted(cited):
            self.entries[i].cited += 1
        for i in asked.entries:
            record = self.entries[i]
            if record.gone or record.state != "probation":
                continue
            if i in cited:
                self._confirm(i, "an answer cites it")
            elif record.before in cited:
                record.missed += 1
                if record.missed >= self.patience:
                    self.roll_back(i, "answers cite the one before")

    @property
    def freshness(self) -> float:
        """The share of answers that cite a record that is live; 0 before any answer."""
        return self.more["fresh"] / max(1, self.more["answers"])

    @property
    def outdated(self) -> float:
        """The share of answers that cite only what was replaced; 0 before any answer."""
        return self.more["outdated"] / max(1, self.more["answers"])
