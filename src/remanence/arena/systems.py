"""The systems that are compared. Each is told a stream of texts and answers questions about it.

Those that search text (words, sentence vectors, both) find passages and give them to a `Reader`; ours reads its own
memory. Passages are cut where our memory cuts its writes, so k passages and k writes are the same amount of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..models.pretrained import MemoryModel
from .bm25 import BM25
from .minilm import Encoder
from .passages import Passages
from .readers import Reader, batches, roomy
from .tasks import Question

_FUSED = 100  # how many of each search's best are fused
_SMOOTH = 60  # the usual constant of reciprocal rank fusion


@dataclass(frozen=True)
class Reply:
    """What a system answers.

    text: the answer; None if the system cannot be asked this. read: numbers of the passages it read.
    recalled: whether ours read its memory at all; None for other systems.
    """

    text: str | None
    read: list[int]
    recalled: bool | None = None


class System:
    """One way to remember.

    name: for tables, with the number of passages if it has one. reader: the name of the reader, or "".
    """

    name = ""
    reader = ""

    def reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def observe(self, text: str, label: str) -> None:
        """Take in a text."""
        raise NotImplementedError

    def answer(self, question: Question) -> Reply:
        """Answer one question; nothing is remembered of it."""
        return self.answers([question])[0]

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer several questions that are asked at the same moment."""
        raise NotImplementedError


# Ours -----------------------------------------------------------------------------------------------------------------


class Ours(System):
    """A `MemoryModel` with its memory.

    Args:
        model: writes and reads.
        name: for tables; the verbatim memory of a bare base has another one.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, model: MemoryModel, *, name: str = "ours", max_new_tokens: int = 32) -> None:
        self.model, self.name, self.max_new_tokens = model, name, max_new_tokens
        self.reset()

    def reset(self) -> None:
        """Start an empty memory."""
        self.memory = self.model.new_memory(empty=True)

    def observe(self, text: str, label: str) -> None:
        """Memorize a text."""
        self.model.memorize(self.memory, text, source=label, time=0.0)

    def answers(self, questions: Sequence[Question], force: Sequence[int | None] | None = None) -> list[Reply]:
        """Ask the memory. A question that does not fit the window has no answer.

        Args:
            questions: as in `System`.
            force: for each, a write that is read whatever its score.
        """
        replies = [Reply(None, [])] * len(questions)
        fit = [i for i, q in enumerate(questions) if self.model.fits(self.memory, q.text, self.max_new_tokens)]
        for lot in batches([self.model.config.slots + len(questions[i].text) // 3 for i in fit]):
            asked = [questions[fit[i]].text for i in lot]
            options: dict[str, Any] = {} if force is None else {"force": [force[fit[i]] for i in lot]}
            made = self.model.ask_batch(
                [self.memory] * len(asked), asked, max_new_tokens=self.max_new_tokens, **options
            )
            for i, answer in zip(lot, made, strict=True):
                writes = {s.write if s.write >= 0 else self.memory.write_count for s in answer.sources}
                replies[fit[i]] = Reply(answer.text, sorted(writes), answer.recalled)
        return replies


class Forced(System):
    """Ours, with the write that holds the answer always among those read: it tells errors of reading from errors of
    finding. It reads the memory of `Ours`, which must be told everything first.

    Args:
        ours: whose memory.
    """

    name = "ours, forced"

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.reset()

    def reset(self) -> None:
        """Forget where what was told lies."""
        self.passages = Passages(self.ours.model)

    def observe(self, text: str, label: str) -> None:
        """Note where a text lies."""
        self.passages.add(text)

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Ask the memory. A question without evidence forces nothing."""
        first, written = self.ours.memory.first_write, self.ours.memory.write_count
        force: list[int | None] = []
        for question in questions:
            held = [p for gold in question.gold for p in self.passages.where(gold.told, *gold.answer)]
            force.append(next((p for p in held if first <= p < written), None))
        with roomy(self.ours.model):
            return self.ours.answers(questions, force)


# Text in the prompt ---------------------------------------------------------------------------------------------------


class TextSystem(System):
    """Text that a reader gets with the question; the systems differ in which.

    Args:
        model: whose tokenizer and chunks cut the passages.
        reader: answers.
    """

    def __init__(self, model: MemoryModel, reader: Reader) -> None:
        self.model, self._reader, self.reader = model, reader, reader.name
        self.reset()

    def reset(self) -> None:
        """Forget all passages."""
        self.passages = Passages(self.model)

    def observe(self, text: str, label: str) -> None:
        """Cut a text into passages."""
        self.passages.add(text)

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Find passages for each question and have them read, oldest first."""
        found = [sorted(each) for each in self.find(questions)]
        asked = [(q.text, [self.passages.text(p) for p in each]) for q, each in zip(questions, found, strict=True)]
        return [Reply(text, each) for text, each in zip(self._reader.read(asked), found, strict=True)]

    def find(self, questions: Sequence[Question]) -> list[list[int]]:
        """The passages that are read for each question, in any order."""
        raise NotImplementedError


class Nothing(TextSystem):
    """No memory: the question alone."""

    name = "none"

    def find(self, questions: Sequence[Question]) -> list[list[int]]:
        """No passages."""
        return [[] for _ in questions]


class Oracle(TextSystem):
    """The passages that hold what answers the question; none for a question that nothing answers."""

    name = "oracle"

    def find(self, questions: Sequence[Question]) -> list[list[int]]:
        """The passages of the evidence."""
        return [sorted({p for gold in q.gold for p in self.passages.where(gold.told, *gold.whole)}) for q in questions]


class Window(TextSystem):
    """No memory, but the last tokens that fit the model's window, beside question and answer."""

    name = "window"
    _beside = 80  # tokens of the window that are left for question and answer

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Have the last tokens read."""
        return self._last(questions, max(0, self.model.config.window_tokens - self._beside))

    def _last(self, questions: Sequence[Question], tokens: int) -> list[Reply]:
        text, passages = self.passages.last(tokens), self.passages
        read: list[int] = []
        for passage in range(len(passages) - 1, -1, -1):
            tokens -= passages.size(passage)
            if tokens < 0:  # only a part of it is read
                break
            read.insert(0, passage)
        answers = self._reader.read([(q.text, [text] if text else []) for q in questions])
        return [Reply(answer, read) for answer in answers]


class Replay(Window):
    """Everything in the prompt, while it has no more than `most` tokens."""

    name = "replay"

    def __init__(self, model: MemoryModel, reader: Reader, *, most: int = 7000) -> None:
        super().__init__(model, reader)
        self.most = most

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Have everything read, if it fits."""
        if self.passages.tokens > self.most:
            return [Reply(None, [])] * len(questions)
        return self._last(questions, self.passages.tokens)


class Ranked(TextSystem):
    """The k best passages of a search.

    Args:
        model, reader: as in `TextSystem`.
        k: how many.
    """

    kind = ""

    def __init__(self, model: MemoryModel, reader: Reader, *, k: int) -> None:
        self.k, self.name = k, f"{self.kind} k={k}"
        super().__init__(model, reader)

    def find(self, questions: Sequence[Question]) -> list[list[int]]:
        """The best by the search."""
        if not len(self.passages):
            return [[] for _ in questions]
        return [ranked[: self.k] for ranked in self.ranked([q.text for q in questions])]

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """Passages for each question, best first, at least k of them if there are so many."""
        raise NotImplementedError


class ByWords(Ranked):
    """BM25."""

    kind = "bm25"

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
    """Cosine of sentence vectors.

    Args:
        model, reader, k: as in `Ranked`.
        encoder: makes the vectors.
    """

    kind = "minilm"

    def __init__(self, model: MemoryModel, reader: Reader, *, k: int, encoder: Encoder) -> None:
        self.encoder = encoder
        super().__init__(model, reader, k=k)

    def reset(self) -> None:
        """Forget all passages."""
        super().reset()
        self._vectors: list[torch.Tensor] = []

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """All passages, best first; of equal ones the newest."""
        done = sum(map(len, self._vectors))
        if new := self.passages.texts[done:]:
            self._vectors.append(self.encoder.encode(new))
        rest = self.passages.rest
        vectors_PD = torch.cat([*self._vectors, *([self.encoder.encode([rest])] if rest else [])])
        scores_QP = self.encoder.encode(questions) @ vectors_PD.T
        orders: list[list[int]] = scores_QP.flip(1).sort(dim=1, descending=True, stable=True).indices.tolist()
        return [[len(vectors_PD) - 1 - i for i in order] for order in orders]


class Fused(Ranked):
    """BM25 and sentence vectors, their orders put together by reciprocal rank fusion.

    Args:
        model, reader, k, encoder: as in `ByMeaning`.
    """

    kind = "fused"

    def __init__(self, model: MemoryModel, reader: Reader, *, k: int, encoder: Encoder) -> None:
        self._parts: list[Ranked] = [
            ByWords(model, reader, k=k),
            ByMeaning(model, reader, k=k, encoder=encoder),
        ]
        super().__init__(model, reader, k=k)

    def reset(self) -> None:
        """Forget all passages."""
        super().reset()
        for part in self._parts:
            part.reset()
            part.passages = self.passages

    def ranked(self, questions: Sequence[str]) -> list[list[int]]:
        """The fused order of the best of both."""
        orders = []
        for several in zip(*(part.ranked(questions) for part in self._parts), strict=True):
            scores: dict[int, float] = {}
            for order in several:
                for rank, passage in enumerate(order[:_FUSED], start=1):
                    scores[passage] = scores.get(passage, 0.0) + 1 / (_SMOOTH + rank)
            orders.append(sorted(scores, key=lambda i: (-scores[i], -i)))
        return orders


SYSTEMS = ("none", "window", "replay", "bm25", "minilm", "fused", "ours", "ours-forced", "ours-untrained", "oracle")


def build(
    names: Sequence[str],
    model: MemoryModel,
    readers: Sequence[Reader],
    *,
    ks: Sequence[int] = (1, 4, 5),
    replay_tokens: int = 7000,
    max_new_tokens: int = 32,
    untrained: Callable[[], MemoryModel] | None = None,
    encoder: Callable[[], Encoder] = Encoder.packaged,
) -> list[System]:
    """The systems of these names, each text system once per reader and, if it ranks, once per k.

    Args:
        names: of `SYSTEMS`.
        model: ours; its tokenizer and chunks serve all.
        readers: of texts.
        ks: numbers of passages.
        replay_tokens: most tokens of `replay`.
        max_new_tokens: most tokens of an answer of ours.
        untrained: makes the model of `ours-untrained`.
        encoder: makes the encoder of `minilm` and `fused`.
    """
    made: list[System] = []
    vectors = encoder() if {"minilm", "fused"} & set(names) else None
    for name in SYSTEMS:
        if name not in names:
            continue
        if name == "ours":
            made.append(Ours(model, max_new_tokens=max_new_tokens))
        elif name == "ours-forced":
            if not made or not isinstance(made[-1], Ours):
                raise ConfigError("ours-forced reads the memory of ours; compare ours too.")
            made.append(Forced(made[-1]))
        elif name == "ours-untrained":
            if untrained is not None:
                made.append(Ours(untrained(), name=name, max_new_tokens=max_new_tokens))
        else:
            for reader in readers:
                made += _of_text(name, model, reader, ks, replay_tokens, vectors)
    return made


def _of_text(
    name: str, model: MemoryModel, reader: Reader, ks: Sequence[int], replay_tokens: int, encoder: Encoder | None
) -> list[System]:
    """The systems of one name with one reader."""
    if name == "replay":
        return [Replay(model, reader, most=replay_tokens)]
    if name == "bm25":
        return [ByWords(model, reader, k=k) for k in ks]
    if name in ("minilm", "fused") and encoder is not None:
        kind = ByMeaning if name == "minilm" else Fused
        return [kind(model, reader, k=k, encoder=encoder) for k in ks]
    simple: dict[str, type[TextSystem]] = {"none": Nothing, "window": Window, "oracle": Oracle}
    return [simple[name](model, reader)]
