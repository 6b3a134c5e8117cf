"""The controls: what any memory has to beat, and the evidence itself, which none can.

Those that search cut text into passages where our memory cuts its writes, so a passage and a write are the same amount
of text, and a passage's number is the write's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from .bm25 import BM25
from .memories import words
from .memories.base import Entry, Remembering, Shown, Turn, once
from .minilm import vectors_of
from .passages import Passages
from .protocol import Kit, Piece, Reply, TextSystem, read_state, write_state
from .tasks import Question

_FUSED = 100  # how many of each search's best are fused
_SMOOTH = 60  # the usual constant of reciprocal rank fusion
_ALIKE = 0.9  # cosine above which two sentences say the same
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class PassageSystem(TextSystem):
    """Keeps all passages, and the texts as they were told with their days.

    A passage is read with the day of the text in which it begins, where that has one: so is what the systems of the
    literature show, and without it no question about time could be answered from the middle of a session.
    """

    def reset(self) -> None:
        """Forget all passages."""
        self.passages = Passages(self.kit.model)
        self._told: list[str] = []
        self._days: list[str] = []

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Cut a text into passages."""
        self._add(text, words.day_told(label, time))

    def _add(self, text: str, day: str) -> None:
        self._told.append(text)
        self._days.append(day)
        self.passages.add(text)

    def save(self, folder: Path) -> None:
        """Write the texts; passages are cut from them anew."""
        write_state(folder, self._state())

    def _state(self, first: int = 0) -> dict[str, list[str]]:
        """The texts from a number on, and their days if any has one."""
        told, days = self._told[first:], self._days[first:]
        return {"told": told, "days": days} if any(days) else {"told": told}

    def load(self, folder: Path) -> None:
        """Cut the texts of a folder."""
        values, _ = read_state(folder)
        self.reset()
        for text, day in zip(values["told"], values.get("days") or [""] * len(values["told"]), strict=True):
            self._add(text, day)

    def piece(self, passage: int) -> Piece:
        """A passage to read."""
        day = self._days[self.passages.begins_in(passage)]
        return Piece(words.dated(self.passages.text(passage), day), passage, passage=passage)


class Nothing(TextSystem):
    """No memory: the question alone."""

    name = "none"

    def reset(self) -> None:
        """There is nothing to forget."""

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Remember nothing."""

    def context(self, question: Question) -> list[Piece]:
        """No text."""
        return []

    def save(self, folder: Path) -> None:
        """There is nothing to write."""
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, folder: Path) -> None:
        """There is nothing to read."""


class Oracle(PassageSystem):
    """The passages that hold what answers the question, whatever the budget; none where nothing answers it."""

    name = "oracle"
    sees_evidence = True

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Have the evidence read."""
        return self.read(questions, [[self.piece(p) for p in self._evidence(question)] for question in questions])

    def _evidence(self, question: Question) -> list[int]:
        return sorted({p for gold in question.gold for p in self.passages.where(gold.told, *gold.whole)})


class Newest(PassageSystem):
    """Shows the newest of what was told, in one piece. Every text that has a day is shown with it, as turns are."""

    def _add(self, text: str, day: str) -> None:
        self._told.append(text)
        self._days.append(day)
        self.passages.add(words.dated(text, day))

    def newest(self, tokens: int) -> str:
        """What fits so many tokens; the day of a text of which only the end does stands before that, too."""
        if not self._told:
            return ""
        told = self.passages.last_begins_in(tokens)
        ahead, behind = words.dated("", self._days[told]), self.passages.since(told + 1)
        if not ahead or self.passages.since(told) <= tokens:
            return self.passages.last(tokens)
        left = tokens - self.kit.tokens(ahead)
        if left > behind:
            return ahead + self.passages.last(left)
        return self.passages.last(behind or tokens)  # there is no room for a day and a part of that text


class Window(Newest):
    """Sliding window: the newest tokens that fit the budget. It remembers no more than them."""

    name = "window"

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Have the last tokens read."""
        return self._last(questions, self.kit.budget)

    def _last(self, questions: Sequence[Question], tokens: int) -> list[Reply]:
        text = self.newest(tokens)
        shown = (text,) if text else ()
        answers = self.kit.reader.read([(q.text, shown) for q in questions])
        return [Reply(answer, None, shown) for answer in answers]

    def save(self, folder: Path) -> None:
        """Write the texts that the window reaches into."""
        left, first = self.kit.budget, len(self._told)
        while first and left > 0:
            first -= 1
            left -= self.kit.tokens(words.dated(self._told[first], self._days[first]))
        write_state(folder, self._state(first))


class Replay(Window):
    """The newest that fits what the reader takes, far beyond the budget: memory as nothing but a long prompt.

    Args:
        kit, brain: as in `System`.
        tokens: the most that is replayed. The default is SmolLM2's 8,192 positions, less question and answer.
        whole: a stream that is longer cannot be asked, in place of being cut.
    """

    name = "replay"

    def __init__(self, kit: Kit, *, tokens: int = 7000, whole: bool = False, brain: str | None = None) -> None:
        self.tokens, self.whole = tokens, whole
        super().__init__(kit, brain=brain)

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Have the last tokens read."""
        if self.whole and self.passages.tokens > self.tokens:
            return [Reply(None)] * len(questions)
        return self._last(questions, min(self.tokens, self.passages.tokens))

    def save(self, folder: Path) -> None:
        """Write all texts."""
        PassageSystem.save(self, folder)


class Summary(TextSystem):
    """Rolling summary: half the budget at most, made anew of itself and of what was told since; that is read behind it.

    brain="rules" keeps whole sentences: those nearest to the middle of all (mean of their vectors), without near
    duplicates. brain="reader" lets the reader write it.

    Args:
        kit, brain: as in `System`.
        every: tokens that are waited for before the summary is made anew.
    """

    name = "summary"

    def __init__(self, kit: Kit, *, every: int = 600, brain: str | None = None) -> None:
        self.every = every
        super().__init__(kit, brain=brain)

    def reset(self) -> None:
        """Forget the summary."""
        self.summary: list[tuple[str, str]] = []  # sentences, or what the reader wrote; each with its day
        self.waiting: list[tuple[str, str]] = []
        self._tokens = 0

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Wait for more, or make the summary anew."""
        self._wait(text, words.day_told(label, time))
        if self._tokens >= self.every:
            self.summary = self._made() if self.brain == "rules" else self._written()
            self.waiting, self._tokens = [], 0

    def _wait(self, text: str, day: str) -> None:
        self.waiting.append((text, day))
        self._tokens += self.kit.tokens(words.dated(text, day))

    def _made(self) -> list[tuple[str, str]]:
        """The most central sentences, in the order in which they were told."""
        new = [(s.strip(), day) for text, day in self.waiting for s in _SENTENCE.split(text) if s.strip()]
        day_of: dict[str, str] = {}
        for sentence, day in self.summary + new:
            day_of.setdefault(sentence, day)
        sentences = list(day_of.items())
        vectors_SD = self.kit.encoder.encode(list(day_of))
        central = (vectors_SD @ vectors_SD.mean(0)).argsort(descending=True, stable=True).tolist()
        chosen: list[int] = []
        for i in central:
            if not chosen or float((vectors_SD[chosen] @ vectors_SD[i]).max()) < _ALIKE:
                chosen.append(i)
        return self._kept(sentences, chosen)

    def _kept(self, parts: Sequence[tuple[str, str]], best: Iterable[int]) -> list[tuple[str, str]]:
        """Of parts, the best first, what fits half the budget, so that there is room for what was told since."""
        kept = []
        for piece in self.kit.fit((Piece(words.dated(*parts[i]), i) for i in best), self.kit.budget // 2):
            day = parts[int(piece.order)][1]
            kept.append((piece.text.removeprefix(words.dated("", day)), day))
        return kept

    def _written(self) -> list[tuple[str, str]]:
        """What the reader writes, who sees the days."""
        told, sofar = ("\n".join(words.dated(*part) for part in parts) for parts in (self.waiting, self.summary))
        prompt = (
            f"Notes so far:\n{sofar or '(nothing yet)'}\n\nNew text:\n{told}\n\n"
            "Write the notes anew, short, with every name, number, date and fact of both that may be asked for later."
        )
        written = self.kit.reader.complete([prompt], max_new_tokens=self.kit.budget // 2)
        return self._kept([(text, "") for text in written], range(len(written)))

    def context(self, question: Question) -> list[Piece]:
        """The summary, and what was told since."""
        shown = [Piece(words.dated(*part), i) for i, part in enumerate(self.summary + self.waiting)]
        kept, newest = shown[: len(self.summary)], shown[len(self.summary) :]
        return kept + newest[::-1]

    def save(self, folder: Path) -> None:
        """Write the summary and what waits, and the days if any has one."""
        parts = {"summary": self.summary, "waiting": self.waiting}
        values = {name: [text for text, _ in kept] for name, kept in parts.items()}
        if any(day for kept in parts.values() for _, day in kept):
            values |= {f"{name}_days": [day for _, day in kept] for name, kept in parts.items()}
        write_state(folder, values)

    def load(self, folder: Path) -> None:
        """As in `System`."""
        values, _ = read_state(folder)
        self.reset()
        parts = {
            name: list(zip(values[name], values.get(f"{name}_days") or [""] * len(values[name]), strict=True))
            for name in ("summary", "waiting")
        }
        self.summary = parts["summary"]
        for text, day in parts["waiting"]:
            self._wait(text, day)


class Ranked(PassageSystem):
    """The best passages of a search, as many as fit the budget.

    Args:
        kit, brain: as in `System`.
        k: most passages; 0 for as many as fit.
    """

    def __init__(self, kit: Kit, *, k: int = 0, brain: str | None = None) -> None:
        self.k = k
        super().__init__(kit, brain=brain)

    def contexts(self, questions: Sequence[Question]) -> list[list[Piece]]:
        """The best by the search."""
        if not len(self.passages):
            return [[] for _ in questions]
        most = self.k or max(1, self.kit.budget // 2)
        return [[self.piece(p) for p in order[:most]] for order in self.ranked([q.text for q in questions])]

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """Passages for each question, best first."""
        raise NotImplementedError


class ByWords(Ranked):
    """BM25 (Robertson and Zaragoza 2009) over passages."""

    name = "bm25"

    def reset(self) -> None:
        """Forget all passages."""
        super().reset()
        self._index = BM25()

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """All passages, best first; of equal ones the newest."""
        index, texts = self._index, self.passages.texts
        for text in texts[len(index.lengths) :]:
            index.add(text)
        if rest := self.passages.rest:
            index.add(rest)
        orders = []
        for question in questions:
            scores = index.scores(question)
            orders.append(sorted(range(len(scores)), key=lambda i: (-scores[i], -i)))
        if rest:
            index.pop()
        return orders


class ByMeaning(Ranked):
    """Cosine of sentence vectors of passages; of one longer than the encoder sees, the mean of its pieces."""

    name = "minilm"

    def reset(self) -> None:
        """Forget all passages."""
        super().reset()
        self._vectors: list[torch.Tensor] = []

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Cut a text into passages, and encode them."""
        super().observe(text, label, time)
        if new := self.passages.texts[sum(map(len, self._vectors)) :]:
            self._vectors.append(vectors_of(self.kit.encoder, new))

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """All passages, best first; of equal ones the newest."""
        rest, encoder = self.passages.rest, self.kit.encoder
        vectors_PD = torch.cat([*self._vectors, *([vectors_of(encoder, [rest])] if rest else [])])
        scores_QP = encoder.encode(questions) @ vectors_PD.T
        orders: list[list[int]] = scores_QP.flip(1).sort(dim=1, descending=True, stable=True).indices.tolist()
        return [[len(vectors_PD) - 1 - i for i in order] for order in orders]

    def save(self, folder: Path) -> None:
        """Write texts and vectors."""
        write_state(folder, self._state(), {"vectors": torch.cat(self._vectors)} if self._vectors else None)

    def load(self, folder: Path) -> None:
        """As in `System`."""
        super().load(folder)
        _, tensors = read_state(folder)
        self._vectors = list(tensors.values())


class Fused(ByMeaning):
    """BM25 and sentence vectors, their orders put together by reciprocal rank fusion (Cormack et al. 2009)."""

    name = "fused"

    def reset(self) -> None:
        """Forget all passages."""
        super().reset()
        self._words = ByWords(self.kit, k=self.k)
        self._words.passages = self.passages

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """The fused order of the best of both."""
        orders = []
        for several in zip(self._words.ranked(questions), super().ranked(questions), strict=True):
            scores: dict[int, float] = {}
            for order in several:
                for rank, passage in enumerate(order[:_FUSED], start=1):
                    scores[passage] = scores.get(passage, 0.0) + 1 / (_SMOOTH + rank)
            orders.append(sorted(scores, key=lambda i: (-scores[i], -i)))
        return orders


class Turns(Remembering[Entry]):
    """Cosine of sentence vectors of turns, the nearest that fit the budget: the plainest rival of all memory systems.

    A turn is what a speaker says in one go, or up to 80 words of another text, as for the systems of the literature.

    Args:
        kit, brain: as in `System`.
        k: most turns; 0 for as many as fit.
    """

    name = "turns"
    made_for = "nothing; it is a control"

    def __init__(self, kit: Kit, *, k: int = 0, brain: str | None = None) -> None:
        self.k = k
        super().__init__(kit, brain=brain)

    def take(self, turns: list[Turn]) -> None:
        """Keep every turn."""
        for turn in turns:
            self.add(Entry(turn.text, [turn.number]))

    def find(self, question: str) -> list[Shown]:
        """The nearest turns."""
        most = self.k or max(1, self.kit.budget // 2)
        return once(self.show(i) for i, _ in self.nearest(self.embed(question), most))
