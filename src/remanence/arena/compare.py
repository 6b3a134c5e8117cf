"""Runs systems over tasks, scores what they answer, and sums it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.pretrained import MemoryModel
from . import scores
from .passages import Passages
from .readers import BaseReader
from .systems import Reply, System
from .tasks import Ask, Question, Stream


@dataclass(frozen=True)
class Result:
    """One answer of one system.

    task, stream, question, kind, distance: what was asked (see `Question`). asked, answers, stale: in words.
    system, reader: who answered. prediction: the answer; None if the system cannot be asked this. read: numbers of the
    passages that were read. read_tokens: how long they are. found: share of the evidence that was read whole; None
    without evidence. recalled: whether ours read its memory. score: how right it is, by the question's measure.
    exact, f1: SQuAD's, None without a right answer. abstains: whether it says that it does not know. outdated: whether
    it says only what was right before. base: what the base says alone, where that is what is right. measure,
    category: how it is scored (`Question.score`, `Question.category`).
    """

    task: str
    stream: str
    question: str
    kind: str
    distance: int
    system: str
    reader: str
    asked: str
    answers: tuple[str, ...]
    stale: tuple[str, ...]
    prediction: str | None
    read: list[int]
    read_tokens: int
    found: float | None
    recalled: bool | None
    score: float
    exact: float | None
    f1: float | None
    abstains: bool
    outdated: bool
    base: str | None
    measure: str
    category: int


def run(
    model: MemoryModel,
    streams: Iterable[Stream],
    systems: Sequence[System],
    *,
    base: BaseReader | None = None,
    each: Callable[[list[Result]], None] | None = None,
    texts: dict[str, dict[int, str]] | None = None,
) -> list[Result]:
    """Tell all systems the same streams and ask them the same questions at the same moments.

    Args:
        model: whose chunks cut the passages.
        streams: of any tasks.
        systems: that answer.
        base: answers alone, for questions that are scored by it.
        each: called with the results of each moment at which something was asked; if it raises, the run ends.
        texts: takes the texts of all passages that were read, by stream ("task/name") and number.

    Returns:
        One result for each question and system.
    """
    results = []
    for stream in streams:
        for system in systems:
            system.reset()
        passages = Passages(model)
        for event in stream.events:
            if not isinstance(event, Ask):
                passages.add(event.text)
                for system in systems:
                    system.observe(event.text, event.label)
                continue
            made = []
            for system in systems:
                for question, reply in zip(event.questions, system.answers(event.questions), strict=True):
                    made.append(_scored(stream, system, question, reply, passages, base))
            if texts is not None:
                kept = texts.setdefault(f"{stream.task}/{stream.name}", {})
                kept.update({p: passages.text(p) for result in made for p in result.read})
            results += made
            if each is not None:
                each(made)
    return results


def _scored(
    stream: Stream, system: System, question: Question, reply: Reply, passages: Passages, base: BaseReader | None
) -> Result:
    """A reply with its scores."""
    alone = base.alone(question.text) if question.score == "same" and base is not None else None
    found = None
    if question.gold:
        read = set(reply.read)
        whole = [set(passages.where(gold.told, *gold.answer)) <= read for gold in question.gold]
        found = sum(whole) / len(whole)
    unscored = Result(
        task=stream.task, stream=stream.name, question=question.name, kind=question.kind, distance=question.distance,
        system=system.name, reader=system.reader, asked=question.text, answers=question.answers, stale=question.stale,
        prediction=reply.text, read=reply.read, read_tokens=sum(passages.size(p) for p in reply.read), found=found,
        recalled=reply.recalled, score=0.0, exact=None, f1=None, abstains=False, outdated=False, base=alone,
        measure=question.score, category=question.category,
    )  # fmt: skip
    return scored(unscored)


def scored(result: Result) -> Result:
    """A result with its scores computed from what it holds, also again, for results that were kept."""
    said = result.prediction or ""
    return dataclasses.replace(
        result,
        score=0.0 if result.prediction is None else measure(result),
        exact=scores.exact(said, result.answers) if result.answers else None,
        f1=scores.f1(said, result.answers) if result.answers else None,
        abstains=result.prediction is not None and scores.abstains(said),
        outdated=scores.contains(said, result.stale) and not scores.contains(said, result.answers),
    )


def measure(result: Result) -> float:
    """How right a result is, by the measure of its question, from 0 to 1."""
    said, answers = result.prediction or "", result.answers
    if result.measure == "abstains":
        return float(scores.abstains(said))
    if result.measure == "same":  # word for word, and without having read the memory
        return float(said == result.base and not result.recalled)
    if result.measure == "squad":
        return scores.f1(said, answers)
    if result.measure == "locomo":
        return scores.locomo(said, answers[0] if answers else "", result.category)
    return float(scores.contains(said, answers))


def summary(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Means by task, system, reader, kind and distance, in the order in which they came.

    Each row has `questions`, `impossible` (how many of them the system could not be asked), and of the others the means
    `score`, `exact`, `f1`, `abstains`, `outdated`, `found`, `read_tokens`; None where nothing has it.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((r.task, r.system, r.reader, r.kind, r.distance), []).append(r)
    table = []
    for key, group in groups.items():
        asked = [r for r in group if r.prediction is not None]
        row: dict[str, Any] = dict(zip(("task", "system", "reader", "kind", "distance"), key, strict=True))
        row |= {"questions": len(group), "impossible": len(group) - len(asked)}
        for name in ("score", "exact", "f1", "abstains", "outdated", "found", "read_tokens"):
            values = [float(value) for r in asked if (value := getattr(r, name)) is not None]
            row[name] = round(sum(values) / len(values), 4) if values else None
        table.append(row)
    return table
