"""MemOS: memory as a managed resource; cubes of text with versions, and the hot ones as activations of the model.

Papers: Li et al., "MemOS: A Memory OS for AI System", arXiv 2507.03724, and "MemOS: An Operating System for
Memory-Augmented Generation", arXiv 2505.22101.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.memory import Pending
from ...errors import ConfigError
from ..protocol import Kit, Reply
from ..readers import OurReader, ask
from ..tasks import Question
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, checked, once

TIERS = ("activation", "text")


@dataclass
class Cube(Entry):
    """A MemCube. kind: where its payload is, "text" or "activation". state: "created", "activated" (it was used),
    "archived" (a newer version is there, or its time is over). uses: by answers. used: turn number of the last use.
    slot: what it gives a value to. version: from 1. before: number of the version before, or -1. origin: its label."""

    kind: str = "text"
    state: str = "created"
    uses: int = 0
    used: int = -1
    slot: str = ""
    version: int = 1
    before: int = -1
    origin: str = ""


class MemOS(Remembering[Cube]):
    """Cubes are found by vectors; what is used often moves into the model's own memory, what is not used moves back.

    Made for: assistants that serve one user for long; questions about long conversations (LoCoMo, LongMemEval).

    A turn is a cube. One that gives a slot a new value is the next version of the cube that had it; the old one is
    archived, and can be looked up by `versions`. A cube that `promote` answers have used becomes activations: it is
    memorized by our model into a memory of its own (here: our vectors), and its text is not shown any more. After
    `idle` turns without use it is text again. Of the activation tier at most `hot` cubes are kept, those used last.
    At a question the activation tier is read as memory and the `k` nearest text cubes as text in the window, by our
    model with its adapter. Other readers cannot read our vectors: with them hot cubes stay text, and are shown first.

    Differences that are meant: the paper's third payload, weights, is left out: it would have to be trained for a
    cube. So is the window of the last 15 turns. Migration goes by use alone, as in the paper's example policy. Access
    rights play no part with one user. No language model decides about memory here, so `brain` changes nothing.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes are uses, and where cubes are.
        k: text cubes that are found.
        promote: uses that make a cube hot.
        idle: turns without use that make it text again.
        hot: cubes that can be hot at a time.
        ttl: turns after which a cube that nobody used is archived; 0 for never.
        tier: what hot cubes are, "activation" or "text"; if "", activation where our model is the reader, else text.

    Raises:
        ConfigError: tier is "activation", and the reader is another.
    """

    name = "memos"
    kind_of_entry = Cube
    made_for = "questions about long conversations with one user"

    def __init__(
        self, kit: Kit, *, k: int = 5, promote: int = 3, idle: int = 500, hot: int = 8, ttl: int = 0,
        tier: str = "", learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.promote, self.idle, self.hot, self.ttl = k, promote, idle, hot, ttl
        ours = isinstance(kit.reader, OurReader)
        self.tier = checked("tier", tier or ("activation" if ours else "text"), TIERS)
        if self.tier == "activation" and not ours:
            raise ConfigError("memos: tier=activation is read by our model alone; give --reader ours, or tier=text.")
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """Nothing is hot."""
        self._hot_cubes: list[int] = []
        self._hot_memory = self.kit.model.new_memory(empty=True)

    def take(self, turns: list[Turn]) -> None:
        """Make cubes, and see what is due."""
        for turn in turns:
            slots = [words.slot(sentence, turn.speaker) for sentence in words.split(turn.said)]
            slot = next(("|".join(found) for found in slots if found), "")
            cube = Cube(turn.text, [turn.number], slot=slot, origin=turn.label)
            for old in self.of_slot(slot)[-1:]:
                # A turn of several sentences says more than its slot, and is not archived for one of a newer one.
                if len(words.split(self.entries[old].text)) == 1:
                    cube.version, cube.before = self.entries[old].version + 1, old
                    self._archive(old)
            self.add(cube)
        now = len(self.turns)
        for i in self.alive():
            cube = self.entries[i]
            if self.ttl and cube.uses == 0 and now - cube.turns[0] > self.ttl:
                self._archive(i)
            elif cube.kind == "activation" and now - cube.used > self.idle:
                cube.kind = "text"

    def _archive(self, number: int) -> None:
        self.entries[number].gone = True
        self.entries[number].state = "archived"
        self.entries[number].kind = "text"

    def versions(self, number: int) -> list[str]:
        """The texts of a cube's versions, newest first."""
        texts = []
        while number >= 0:
            texts.append(self.entries[number].text)
            number = self.entries[number].before
        return texts

    def find(self, question: str) -> list[Shown]:
        """Hot cubes, if they are shown as text, and the nearest text cubes."""
        hot = self.alive("activation") if self.tier == "text" else []
        found = self.nearest(self.embed(question), self.k, self.alive("text"))
        return once(self.show(i) for i in [*hot, *(i for i, _ in found)])

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """As in `TextSystem`; with the activation tier in front of the text, if anything is hot."""
        hot = self.alive("activation")
        if not hot or self.tier == "text":
            return super().answers(questions)
        self._refresh(hot)
        model, memories, shown = self.kit.model, [], []
        for question in questions:
            found = self.find(question.text)
            pieces = self.kit.fit(found)
            memory = self._hot_memory.copy()
            text = "\n".join(piece.text for piece in pieces)
            if text:
                memory.pending.append(Pending("passages", 0.0, tuple(model.encode(text))))
            memories.append(memory)
            shown.append(tuple(piece.text for piece in pieces))
            numbers = [i for piece in pieces if isinstance(piece, Shown) for i in piece.entries]
            if self.learns:
                self.unsettled.append(Asked(question.text, [*hot, *numbers], ""))
        self.kit.reader.used.calls += len(questions)  # our model's own calls; a cost like any other
        texts = ask(model, memories, [question.text for question in questions], self.kit.max_new_tokens)
        for asked, text in zip(
            self.unsettled[len(self.unsettled) - len(texts) :] if self.learns else [], texts, strict=False
        ):
            asked.answer = text
        return [Reply(text, None, context) for text, context in zip(texts, shown, strict=True)]

    def _refresh(self, hot: list[int]) -> None:
        """Memorize the hot cubes, if they are others than before."""
        if hot == self._hot_cubes:
            return
        self._hot_memory = self.kit.model.new_memory(empty=True)
        for i in hot:
            piece = self.show(i)
            self.kit.model.memorize(self._hot_memory, piece.text, source=self.entries[i].origin, time=float(i))
        self._hot_cubes = hot

    def recalled(self, asked: Asked) -> None:
        """Count uses, and move what is hot. A cube was used if the answer's words stand in it."""
        for i in asked.entries:
            cube = self.entries[i]
            if cube.gone or words.cited(asked.answer, cube.text) < 0.5:
                continue
            cube.uses, cube.used, cube.state = cube.uses + 1, len(self.turns), "activated"
            if cube.uses >= self.promote:
                cube.kind = "activation"
        hot = sorted(self.alive("activation"), key=lambda i: (self.entries[i].used, i))
        for i in hot[: max(0, len(hot) - self.hot)]:
            self.entries[i].kind = "text"

    def load(self, folder: Path) -> None:
        """As in `System`; activations are made again from the hot cubes."""
        super().load(folder)
        self._hot_cubes = []
