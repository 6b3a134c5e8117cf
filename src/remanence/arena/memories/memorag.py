"""MemoRAG: a memory of the whole text drafts clues, and the clues, not the question alone, search the text.

Paper: Qian et al., "MemoRAG: Boosting Long Context Processing with Global Memory-Enhanced Retrieval Augmentation",
arXiv 2409.05591.
"""

from __future__ import annotations

from pathlib import Path

from ...core.memory import Memory
from ..protocol import Kit, read_state, write_state
from . import words
from .base import Entry, Remembering, Shown, Turn, best, checked

DRAFTS = ("auto", "feedback", "memory")


class MemoRAG(Remembering[Entry]):
    """Each clue and the question find chunks; what they found together is read in the order of the text.

    Made for: questions over long texts that do not say what to look for (UltraDomain).

    The paper's memory is a 7B model with a compressed cache of the whole text, trained for it. Here it is ours: with
    `draft="memory"` everything is memorized by the model of this project (M+), and its answer from memory is the
    draft; that is a fair hybrid of both. With `draft="feedback"` there is no such model: the best sentences of a
    first search are the clues (pseudo-relevance feedback). "auto" is "memory" with `brain="reader"`, "feedback" with
    rules.

    Differences that are meant: lines of fewer than four words are dropped in the code; an answer from our memory is
    often two words long and right, so it becomes a clue together with the question instead. A draft of which no word
    stands in the text is made up, and is no clue. The code's chunks have 512 tokens; here they are turns of up to 80
    words, as the budget is smaller. The generator gets no draft as a hint, as a small one would only repeat it.

    Args:
        kit, brain: as in `Remembering`.
        k: chunks that each clue finds.
        draft: "auto", "feedback" or "memory".
        clues: sentences of the first search that are clues.
    """

    name = "memorag"
    made_for = "questions over long texts that do not say what to look for"

    def __init__(self, kit: Kit, *, k: int = 3, draft: str = "auto", clues: int = 3, brain: str | None = None) -> None:
        self.k, self.clues = k, clues
        by = brain or kit.brain
        auto = "memory" if by == "reader" else "feedback"
        self.draft = auto if checked("draft", draft, DRAFTS) == "auto" else draft
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """An empty memory."""
        self.memory = self.kit.model.new_memory(empty=True) if self.draft == "memory" else None

    def take(self, turns: list[Turn]) -> None:
        """Keep every turn as a chunk, and memorize the session."""
        for turn in turns:
            self.add(Entry(turn.text, [turn.number]))
        if self.memory is not None:
            text = "\n".join(turn.text for turn in turns)
            self.kit.model.memorize(self.memory, text, source=str(turns[0].session), time=turns[0].time)

    def clues_for(self, question: str) -> list[str]:
        """What the search begins from, beside the question."""
        if self.memory is not None:
            model = self.kit.model
            if not model.fits(self.memory, question, self.kit.max_new_tokens):
                return []
            self.kit.reader.used.calls += 1  # our model's own call; a cost like any other
            draft = model.ask(self.memory, question, max_new_tokens=self.kit.max_new_tokens).text
            own = [word for word in words.content(draft) if word not in words.content(question)]
            real = [word for word in own if self.holding[word]]
            return [f"{question} {' '.join(real)}"] if real else []
        vector = self.embed(question)
        found = [i for i, _ in self.nearest(vector, self.k)]
        told = [s for i in found for s in words.split(self.entries[i].text) if len(s.split()) >= 4]
        if not told:
            return []
        cosines = (self.embeds(told) @ vector).tolist()
        return [told[i] for i, _ in best(dict(enumerate(cosines)), self.clues)]

    def find(self, question: str) -> list[Shown]:
        """What the question and its clues find; what several find, or the question finds, first."""
        if not self.entries:
            return []
        scores: dict[int, float] = {}
        for text in [question, *self.clues_for(question)]:
            near = self.nearest(self.embed(text), self.k)
            for rank, (i, cosine) in enumerate(near):
                scores[i] = scores.get(i, 0.0) + cosine / (1 + rank)
        return [self.show(i) for i, _ in best(scores, len(scores))]

    def save(self, folder: Path) -> None:
        """As in `System`; the model's memory lies beside the texts."""
        super().save(folder)
        if self.memory is not None:
            write_state(folder / "memory", self.memory.meta(), self.memory.tensors())

    def load(self, folder: Path) -> None:
        """As in `System`."""
        super().load(folder)
        if self.memory is not None:
            values, tensors = read_state(folder / "memory")
            self.memory = Memory.from_parts(tensors, values)
