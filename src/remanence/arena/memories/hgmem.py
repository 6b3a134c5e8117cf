"""HGMem: while one question is answered, a working memory of sets of entities grows, and says what is still missing.

Paper: "HGMem: Improving Multi-step RAG with Hypergraph-based Memory for Long-Context Complex Relational Modeling",
arXiv 2512.23959.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn, once


@dataclass
class Chunk(Entry):
    """A chunk of text. entities: those of its sentences."""

    entities: list[str] = field(default_factory=list)


@dataclass
class Point:
    """A hyperedge of the working memory: entities, what is said of them together, where it comes from (chunk
    numbers)."""

    entities: set[str]
    said: str
    chunks: list[int]


class HGMem(Remembering[Chunk]):
    """A reading strategy, no store of its own: chunks are searched in up to `rounds` rounds, each for what is not
    covered.

    Made for: questions over long texts that need several hops (NarrativeQA, Prelude).

    Chunks have about 150 words with an overlap of a third at most, and the entities of their sentences. The first
    round finds chunks by vectors and by the question's entities. Sentences of found chunks that bear on the question
    become points; two points with two entities in common are merged, their text cut to `tokens`. What the question
    names and no point covers is the concern of the next round: it searches among chunks within two steps of the
    points' entities (local), and among all others (global). It ends when all is covered, or nothing new came. The
    working memory is cleared after the answer, as in the code. Points are shown first, then their chunks' own text.

    Differences that are meant: extraction, planning and sub-questions are a language model's in the paper, with three
    rounds after the first; by rule a concern is the words that are not covered, and real planning is lost. With
    `brain="reader"` the reader decides whether the points suffice, and words the next sub-question. Useless on
    questions of one hop, which the paper says too.

    Args:
        kit, brain: as in `Remembering`.
        k: chunks a round.
        rounds: at most.
        tokens: of a point that others were merged into.
    """

    name = "hgmem"
    kind_of_entry = Chunk
    longest = 50
    made_for = "questions over long texts that need several steps"
    whole = True

    def __init__(self, kit: Kit, *, k: int = 5, rounds: int = 3, tokens: int = 60, brain: str | None = None) -> None:
        self.k, self.rounds, self.tokens = k, rounds, tokens
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """No entity is known."""
        self.more = {"holding": {}}

    def take(self, turns: list[Turn]) -> None:
        """Cut into chunks of three turns that overlap by one, and note their entities."""
        for at in range(0, max(1, len(turns) - 1), 2):
            part = turns[at : at + 3]
            text = " ".join(turn.text for turn in part)
            named = list(dict.fromkeys(name for turn in part for name in words.names(turn.text)))
            number = self.add(Chunk(text, [turn.number for turn in part], entities=named))
            for name in named:
                self.more["holding"].setdefault(name, []).append(number)

    def find(self, question: str) -> list[Shown]:
        """Points and chunks of the last round."""
        points = self.worked_out(question)
        pieces, chunks = [], []
        for point in points:
            first = self.entries[point.chunks[0]]
            turn = next((t for t in self.turns_of(first) if point.said[:40] in t.text), self.turns[first.turns[0]])
            piece = self.show(point.chunks[0], point.said)
            pieces.append(Shown(piece.text, turn.number + 0.1, piece.time, entries=tuple(point.chunks)))
            chunks += point.chunks
        chunks = list(dict.fromkeys(chunks))
        near = [i for i, _ in self.nearest(self.embed(question), self.k)]
        turns = {n: i for i in [*near, *chunks] for n in self.entries[i].turns}
        order = self.nearest_turns(self.embed(question), list(turns), 2 * self.k)
        shown = [self.show_turn(n, turns[n]) for n in order]
        return once([*pieces, *shown])

    def worked_out(self, question: str) -> list[Point]:
        """The working memory for a question, the points that cover most of it first."""
        asked = list(dict.fromkeys([*words.names(question), *words.content(question)]))
        points: list[Point] = []
        seen: set[int] = set()
        search, concern = question, asked
        for round_ in range(self.rounds):
            found = self._search(search, concern, points, seen)
            if not found:
                break
            seen |= set(found)
            before = len(points)
            for number in found:
                self._put(points, number, asked, question)
            if round_:
                points = self._merged(points)
            elif len(points) == before:
                break
            concern = self._missing(asked, points)
            if not concern or self._enough(question, points):
                break
            bridge = [name for point in points for name in sorted(point.entities)]
            search = self._next(question, points) or " ".join([*concern, *dict.fromkeys(bridge)][:16])
        return sorted(points, key=lambda p: (-words.share(asked, p.said), p.chunks[0]))[: 2 * self.k]

    def _search(self, search: str, concern: list[str], points: list[Point], seen: set[int]) -> list[int]:
        """New chunks: near the points' entities (local) and anywhere (global), by vector; and by the concern's
        names."""
        vector = self.embed(search)
        holding: dict[str, list[int]] = self.more["holding"]
        named = [i for name in concern for i in holding.get(name, [])[-self.k :]]
        local: list[int] = []
        if points:
            one = {i for point in points for name in point.entities for i in holding.get(name, [])}
            two = {i for j in one for name in self.entries[j].entities for i in holding.get(name, [])}
            local = [i for i, _ in self.nearest(vector, self.k, sorted((one | two) - seen))]
        wide = [i for i, _ in self.nearest(vector, self.k + len(seen)) if i not in seen][: self.k]
        return list(dict.fromkeys([*(i for i in named if i not in seen), *local, *wide]))[: 3 * self.k]

    def _put(self, points: list[Point], number: int, asked: list[str], question: str) -> None:
        """Make points of a chunk's sentences that bear on the question, or on what the points name already."""
        vector = self.embed(question)
        known = {name for point in points for name in point.entities}
        entry = self.entries[number]
        told = [s for turn in self.turns_of(entry) for s in words.split(turn.text) if words.content(s)]
        near = (self.embeds(told) @ vector).tolist() if told else []
        for sentence, cosine in zip(told, near, strict=True):
            named = set(words.names(sentence))
            bears = cosine > 0.4 or words.share(asked, sentence) >= 0.33 or (named & known and len(named) > 1)
            if bears and all(sentence not in point.said for point in points):
                points.append(Point(named, sentence, [number]))

    def _merged(self, points: list[Point]) -> list[Point]:
        """Points of which no two share two entities."""
        merged: list[Point] = []
        for point in points:
            with_ = next((p for p in merged if len(p.entities & point.entities) >= 2), None)
            if with_ is None:
                merged.append(point)
                continue
            with_.entities |= point.entities
            with_.said = self.shortened(f"{with_.said} {point.said}", self.tokens)
            with_.chunks = list(dict.fromkeys([*with_.chunks, *point.chunks]))
        return merged

    @staticmethod
    def _missing(asked: list[str], points: list[Point]) -> list[str]:
        """What the question names and no point says."""
        held = {word for point in points for word in words.content(point.said)} | {
            name for point in points for name in point.entities
        }
        return [word for word in asked if word not in held]

    def _enough(self, question: str, points: list[Point]) -> bool:
        if self.thinker is None:
            return False
        notes = "\n".join(point.said for point in points[: self.k])
        return self.thinker.yes(f"Do these notes answer the question: {question} Answer Yes or No.", notes) is True

    def _next(self, question: str, points: list[Point]) -> str | None:
        """The sub-question of the next round, if a reader words it."""
        if self.thinker is None:
            return None
        notes = "\n".join(point.said for point in points[: self.k])
        return self.thinker.line(f"What must still be asked to answer this: {question}", notes, tokens=32)
