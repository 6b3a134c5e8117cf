"""Tell facts, read prose, ask: how long a memory keeps what it was told. For the demo and the benchmark.

Facts about people and things with held-out names are told one by one with prose between them, then more prose streams
in; all the while each fact is asked as soon as so many tokens lie between it and the question. Every system answers the
same question at the same moment with the same weights:

* full: short-term pool and long-term store (M+);
* no store: the same memory, read without the long-term store (MemoryLLM);
* window: no memory, the last tokens that fit the model's window as text;
* forced: as full, with the right write always retrieved, which tells reading from retrieving errors.
"""

from __future__ import annotations

import lzma
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..core.memory import Pending
from ..core.prompts import UNKNOWN
from ..facts.maker import Fact, FactMaker
from ..models.pretrained import BUILTIN, MemoryModel

SYSTEMS = ("full", "no store", "window", "forced")
_STEP = 512  # most tokens between two looks at the clock; a quarter of the shortest distance, if that is less
_BATCH = 25  # questions answered in one go


def prose() -> str:
    """The public-domain prose in the package; none of it was trained on."""
    with lzma.open(BUILTIN / "prose.txt.xz", "rt", encoding="utf-8") as file:
        return file.read()


@dataclass
class Told:
    """A fact of the run. at, end: tokens remembered before it, and with it. expected: the right answer. kind: "fact",
    "newest" (told again later with another value) or "unknown" (never told). due: distances at which it is still to be
    asked, from its end."""

    fact: Fact
    at: int
    end: int
    expected: str
    kind: str
    due: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One answer: which system said what, and whether it is exactly right. score: that of the best source. retrieved:
    per layer, if it read the write that holds the fact; None where that has no meaning."""

    system: str
    kind: str
    distance: int
    relation: str
    question: str
    expected: str
    answer: str
    right: bool
    score: float
    retrieved: list[bool] | None


class Retention:
    """One run.

    Args:
        model: reads and writes.
        distances: tokens between fact and question.
        facts, newest, unknown: how many facts are told once, told twice with different values, and never told.
        systems: which of `SYSTEMS` answer. newest and unknown are asked of the first only.
        between: about how many characters of prose lie between two facts.
        seed: of names, values, wordings and places in the prose.
    """

    def __init__(
        self,
        model: MemoryModel,
        distances: list[int],
        *,
        facts: int = 200,
        newest: int = 0,
        unknown: int = 0,
        systems: tuple[str, ...] = SYSTEMS,
        between: int = 150,
        seed: int = 1,
    ) -> None:
        self.model, self.distances, self.systems, self.between = model, sorted(distances), systems, between
        self.rng = random.Random(seed)
        self.maker = FactMaker(self.rng, "held_out")
        self.asker = FactMaker(random.Random(f"{seed}/questions"), "held_out")  # what is told depends on no question
        self.counts = {"fact": facts, "newest": newest, "unknown": unknown}
        self.memory = model.new_memory(seed=seed)
        self.results: list[Result] = []
        self.told: list[Told] = []
        self._step = min(_STEP, max(32, self.distances[0] // 4))
        self._looked = 0
        self._text = self._sentences()
        self._recent: list[int] = []

    def _sentences(self) -> Iterator[str]:
        """Prose in pieces of one or a few sentences, over and over."""
        text = prose()
        start = 0
        while True:
            end = text.find(". ", start + self.between) + 1 or len(text)
            piece = text[start:end].strip()
            start = end if end < len(text) else 0
            if piece:
                yield piece

    def _read(self, text: str, source: str) -> None:
        """Memorize, and keep the last tokens for the window."""
        ids = self.model.tokenizer(text, add_special_tokens=False).input_ids
        self._recent = (self._recent + ids)[-self.model.config.window_tokens :]
        self.model.memorize(self.memory, text, source=source, time=0.0)

    @property
    def _now(self) -> int:
        return self.memory.tokens + len(self.memory.pending_ids)

    def _subject(self) -> Any:
        return self.maker.subject("thing" if self.rng.random() < 0.1 else "person")

    def _tell(self) -> None:
        """Tell all facts, in random order, and ask those whose time has come."""
        told = self.told
        plan = ["fact"] * self.counts["fact"] + ["newest"] * self.counts["newest"]
        plan += ["unknown"] * self.counts["unknown"]
        self.rng.shuffle(plan)
        again: list[Fact] = []
        for kind in plan:
            fact = self.maker.fact(self._subject())
            if kind == "unknown":  # half about people never heard of, half another relation of someone known
                known = [t.fact for t in told if t.fact.subject.kind == "person" and t.kind == "fact"]
                if known and self.rng.random() < 0.5:
                    other = self.rng.choice(known)
                    while fact.relation == other.relation or fact.subject != other.subject:
                        fact = self.maker.fact(other.subject)
                told.append(Told(fact, self._now, self._now, UNKNOWN, kind, list(self.distances)))
            else:
                at, end = self._say(fact)
                if kind == "newest":
                    again.append(fact)
                else:
                    told.append(Told(fact, at, end, fact.value, kind, list(self.distances)))
            self._ask_due()
        for fact in again:
            update = self.maker.update(fact)
            told.append(Told(update, *self._say(update), update.value, "newest", list(self.distances)))
            self._ask_due()

    def _say(self, fact: Fact) -> tuple[int, int]:
        """Tell a fact, and some prose behind it; the tokens before the fact, and with it."""
        at = self._now
        self._read(fact.statement, "told")
        end = self._now
        self._read(next(self._text), "prose")
        return at, end

    def run(self, progress: Callable[[int, int], None] | None = None) -> list[Result]:
        """Tell, read and ask until the longest distance. `progress` is called with (tokens so far, tokens in all)."""
        self._tell()
        total = max(t.end for t in self.told) + self.distances[-1]
        while any(t.due for t in self.told):
            self._ask_due()
            until = self._now + self._step
            while self._now < until:
                self._read(next(self._text), "prose")
            if progress is not None:
                progress(min(self._now, total), total)
        return self.results

    def _ask_due(self) -> None:
        """Ask what is due, if the last look at the clock is some tokens ago."""
        if self._now - self._looked < self._step:
            return
        self._looked = self._now
        for distance in self.distances:
            ready = [t for t in self.told if distance in t.due and self._now - t.end >= distance]
            for start in range(0, len(ready), _BATCH):
                self._ask(ready[start : start + _BATCH], distance)

    def _ask(self, batch: list[Told], distance: int) -> None:
        questions = [self.asker.question(t.fact.subject, t.fact.relation) for t in batch]
        writes = [self._write_of(t) for t in batch]
        for system in self.systems:
            chosen = [i for i, t in enumerate(batch) if system == self.systems[0] or t.kind == "fact"]
            if not chosen:
                continue
            asked = [questions[i] for i in chosen]
            memories = [self.memory] * len(asked)
            options: dict[str, Any] = {}
            if system == "no store":
                options["long_term"] = False
            elif system == "forced":
                options["force"] = [writes[i] for i in chosen]
            elif system == "window":
                memories = [self._window() for _ in asked]
            answers = self.model.ask_batch(memories, asked, max_new_tokens=24, **options)
            for i, question, answer in zip(chosen, asked, answers, strict=True):
                t = batch[i]
                found = None
                if system == "full" and t.kind != "unknown":
                    found = [writes[i] in layer for layer in answer.read]
                self.results.append(
                    Result(
                        system, t.kind, distance, t.fact.relation, question, t.expected, answer.text,
                        answer.text == t.expected, round(answer.score, 3), found,
                    )
                )  # fmt: skip
        for told in batch:
            told.due.remove(distance)

    def _write_of(self, told: Told) -> int:
        """The write that holds the beginning of a statement."""
        writes = self.memory.writes
        low, high = 0, len(writes) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if writes[middle].first_token <= told.at else (low, middle - 1)
        return low

    def _window(self) -> Any:
        """No memory, but the last tokens as text."""
        empty = self.model.new_memory()
        empty.pending.append(Pending("window", 0.0, tuple(self._recent[-(self.model.config.window_tokens - 80) :])))
        return empty


def accuracy(results: list[Result], system: str, kind: str = "fact") -> dict[int, tuple[int, int]]:
    """Right answers and questions by distance."""
    table: dict[int, tuple[int, int]] = {}
    for r in results:
        if r.system == system and r.kind == kind:
            right, asked = table.get(r.distance, (0, 0))
            table[r.distance] = (right + r.right, asked + 1)
    return table


def gated(results: list[Result], distance: int, least: float) -> dict[str, float]:
    """By kind, the share of right answers of system "full" to an application that takes every answer whose score is
    below `least` for "I don't know"."""
    shares: dict[str, list[bool]] = {}
    for r in results:
        if r.system == "full" and r.distance == distance:
            low = r.score < least
            shares.setdefault(r.kind, []).append(r.right or low if r.kind == "unknown" else r.right and not low)
    return {kind: sum(right) / len(right) for kind, right in shares.items()}


def recall(results: list[Result]) -> dict[int, list[float]]:
    """Share of facts whose write was read, per distance and layer (system "full")."""
    table: dict[int, list[list[bool]]] = {}
    for r in results:
        if r.retrieved is not None and r.kind == "fact":
            table.setdefault(r.distance, []).append(r.retrieved)
    return {d: [sum(layer) / len(rows) for layer in zip(*rows, strict=True)] for d, rows in table.items()}
