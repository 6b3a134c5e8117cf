"""One answer of one system, how right it is, and means over many."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import scores
from .passages import Passages
from .protocol import Reply
from .tasks import Question

_AROUND = 6  # words on each side of a part of a text
_MEANS = ("score", "exact", "f1", "abstains", "outdated", "found", "read_tokens", "context_tokens")


@dataclass(frozen=True)
class Result:
    """One answer of one system.

    task, stream, question, kind, distance: what was asked (see `Question`). asked, answers, stale: in words.
    system, reader: who answered; "" for the reader of memory inside the model. prediction: the answer; None if the
    system cannot be asked this. read: numbers of the passages that were read; None where text is cut otherwise.
    read_tokens: how long what was read is. context_tokens: how much of it stood in the prompt as text. context: that
    text. found: share of the evidence that was read whole; None without evidence. recalled: whether ours read its
    memory. score: how right it is, by the question's measure. exact, f1: SQuAD's, None without a right answer.
    abstains: whether it says that it does not know. outdated: whether it says only what was right before. base: what
    the reader says alone, where that is what is right. measure, category: how it is scored (`Question.score`,
    `Question.category`).
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
    read: tuple[int, ...] | None
    read_tokens: int
    context_tokens: int
    context: tuple[str, ...]
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

    @classmethod
    def of(cls, row: dict[str, Any]) -> Result:
        """From a line of a cell's file, scored as now. Raises `TypeError` or `KeyError` for what is none."""
        row = {name: row[name] for name in cls.__dataclass_fields__}
        row |= {name: tuple(row[name]) for name in ("answers", "stale", "context")}
        row["read"] = None if row["read"] is None else tuple(row["read"])
        return scored(cls(**row))


def result(
    task: str, stream: str, system: str, reader: str, question: Question, reply: Reply, told: Passages, base: str | None
) -> Result:
    """A reply with its scores.

    Args:
        task, stream, system, reader: names.
        question: with what the task knows of it.
        reply: of the system.
        told: everything that was told, in passages.
        base: what the reader says alone, for a question that is scored by it.
    """
    context = sum(len(told.ids(text)) for text in reply.context)
    unscored = Result(
        task=task, stream=stream, question=question.name, kind=question.kind, distance=question.distance,
        system=system, reader=reader, asked=question.text, answers=question.answers, stale=question.stale,
        prediction=reply.text, read=None if reply.read is None else tuple(reply.read),
        read_tokens=context if reply.read is None else sum(told.size(p) for p in reply.read),
        context_tokens=context, context=reply.context, found=_found(question, reply, told), recalled=reply.recalled,
        score=0.0, exact=None, f1=None, abstains=False, outdated=False, base=base, measure=question.score,
        category=question.category,
    )  # fmt: skip
    return scored(unscored)


def _found(question: Question, reply: Reply, told: Passages) -> float | None:
    """The share of the evidence that was read: by passages where there are any, else by its words in the context.

    The latter finds nothing of what a system has put into other words, so for such it is the least that was read.
    """
    if not question.gold or (reply.read is None and reply.recalled is not None):  # of other writes nothing is known
        return None
    if reply.read is not None:
        read = set(reply.read)
        whole = [set(told.where(gold.told, *gold.answer)) <= read for gold in question.gold]
    else:
        shown = scores.normalised(" ".join(reply.context)).split()
        whole = [_stands(told.told(gold.told, 0, None), gold.answer, shown) for gold in question.gold]
    return sum(whole) / len(whole)


def _stands(text: str, span: tuple[int, int], shown: list[str]) -> bool:
    """Whether a part of a text stands in words that were shown (normalised), among half of the words around it: a value
    alone, "red", may stand anywhere."""
    before, part, after = (
        scores.normalised(t).split() for t in (text[: span[0]], text[slice(*span)], text[span[1] :])
    )  # fmt: skip
    around = set(before[-_AROUND:] + after[:_AROUND])
    for at in range(len(shown) - len(part) + 1):
        if shown[at : at + len(part)] == part:
            near = {*shown[max(0, at - 2 * _AROUND) : at], *shown[at + len(part) : at + len(part) + 2 * _AROUND]}
            if 2 * len(around & near) >= len(around):
                return True
    return False


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
    if result.measure == "rouge":
        return scores.rouge_l(said, answers)
    if result.measure == "choice":
        return scores.choice(said, answers)
    if result.measure == "only":  # a list of all places is no answer
        return float(scores.contains(said, answers) and not scores.contains(said, result.stale))
    if result.measure == "share":  # of several answers, how many are said
        return sum(scores.contains(said, [answer]) for answer in answers) / len(answers)
    if result.measure == "locomo":
        return scores.locomo(said, answers[0] if answers else "", result.category)
    return float(scores.contains(said, answers))


def on_shuffled_answers(results: Sequence[Result], seed: int = 1) -> float | None:
    """The mean score when every answer is given to another question of its kind and distance: what the metric gives to
    answers of the right sort that answer nothing. None without answers."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for r in results:
        if r.prediction is not None and r.measure != "same":
            groups.setdefault((r.kind, r.distance), []).append(r)
    rng, given = random.Random(f"{seed}/shuffled"), []
    for group in groups.values():
        if len(group) < 2:  # nobody to swap with
            continue
        order = list(range(len(group)))
        rng.shuffle(order)
        to = dict(zip(order, order[1:] + order[:1], strict=True))  # in a ring: nobody keeps its own
        given += [scored(dataclasses.replace(r, prediction=group[to[i]].prediction)) for i, r in enumerate(group)]
    return sum(r.score for r in given) / len(given) if given else None


def summary(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Means by task, system, reader, kind and distance, in the order in which they came.

    Each row has `questions`, `impossible` (how many of them the system could not be asked), and of the others the means
    `score`, `exact`, `f1`, `abstains`, `outdated`, `found`, `read_tokens`, `context_tokens`; None where nothing has it.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        groups.setdefault((r.task, r.system, r.reader, r.kind, r.distance), []).append(r)
    table = []
    for key, group in groups.items():
        asked = [r for r in group if r.prediction is not None]
        row: dict[str, Any] = dict(zip(("task", "system", "reader", "kind", "distance"), key, strict=True))
        row |= {"questions": len(group), "impossible": len(group) - len(asked)}
        for name in _MEANS:
            values = [float(value) for r in asked if (value := getattr(r, name)) is not None]
            row[name] = round(sum(values) / len(values), 4) if values else None
        table.append(row)
    return table
