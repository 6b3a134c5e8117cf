"""What each question looks at in training, where it reads few things by themselves (`MemoryConfig.looks`).

It looks at what answers it, and learns the answer; or at what the search takes for the best of what does not, and
learns that nothing is known. So the reader learns both to read, and to tell whether something answers.

Legend:  Q turns   W writes in the bank
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.search import Question
from ..core.spans import Span, scores_among
from .turns import Past, Turn
from .written import Bank, Picked, pick_one, pick_spans

_RIGHT = 0.65  # how often a write that is looked at is the right one
_BEHIND = 0.15  # and of these, how often the one behind it, which is read together with it
_OTHER_TEXT = 0.5  # how often the end of another text stands before the beginning of one
_TOGETHER = 3  # spans that a first look reads together
_FEW, _MANY = 0.25, 0.4  # how often what answers is read with others, and how often what does not is
_NOT_THE_BEST = 0.3  # how often what answers is another span than the one that the search takes for the best


def writes_of_turns(
    bank: Bank, turns: Sequence[Turn], past: Past, scores_QW: Tensor, unknown: list[int], looks: int,
    rng: random.Random,
) -> tuple[list[Turn], Picked]:  # fmt: skip
    """The turns as they are learnt from, each with the one write that it looks at.

    Args:
        bank: what was written. turns: what is asked. past: what each has in memory.
        scores_QW: of the search. unknown: "I don't know." looks: writes that are looked at in use.
        rng: all choices come from it.
    """
    learnt, chosen = list(turns), list[tuple[int, ...]]()
    for row, turn in enumerate(turns):
        own, gold = bank.streams[turn.stream].writes, int(past.gold_Q[row])
        wrong = scores_QW[row].masked_fill(~past.allowed_QW[row], -torch.inf)
        if gold >= 0 and turn.asked is not None:
            for answers in (gold, *(own[chunk] for chunk in turn.asked.older)):
                wrong[answers : answers + 2] = -torch.inf  # the write behind it is read together with it
        best = wrong.topk(min(looks, len(wrong)))
        others = best.indices[best.values > -torch.inf].tolist()
        if gold >= 0 and (not others or rng.random() < _RIGHT):
            write = gold + 1 if gold + 1 in own and rng.random() < _BEHIND else gold
        elif others and not bool(past.empty_Q[row]):
            write = rng.choice(others)
            if turn.asked is not None and not turn.seen:
                learnt[row] = replace(turn, answer=unknown, asked=None)
        else:
            chosen.append(())
            continue
        before = write - 1
        if write == bank.streams[int(bank.owner_W[write])].first:  # another text came before it
            before = rng.choice(others) if others and rng.random() < _OTHER_TEXT else -1
        elif write != gold + 1 and not past.allowed_QW[row, before]:
            before = -1
        chosen.append((write,) if before < 0 else (before, write))
    return learnt, pick_one(chosen)


def spans_of_turns(
    bank: Bank, turns: Sequence[Turn], past: Past, scores_QW: Tensor, questions: Sequence[Question],
    keys_WGR: Tensor, unknown: list[int], looks: int, rng: random.Random,
) -> tuple[list[Turn], Picked]:  # fmt: skip
    """The turns as they are learnt from, with the spans that they look at; where the answer was told, twice: with it
    and without.

    Args: as those of `writes_of_turns`; and
        questions, keys_WGR: what of the turns is compared with spans, and what of the writes.
    """
    words_WK = bank.words().cpu()
    learnt, chosen = list[Turn](), list[list[Span]]()
    for row, turn in enumerate(turns):
        if bool(past.empty_Q[row]):
            learnt.append(turn)
            chosen.append([])
            continue
        right, wrong = sorted_out(
            bank,
            keys_WGR,
            words_WK,
            turn,
            past.allowed_QW[row],
            int(past.gold_Q[row]),
            scores_QW[row],
            questions[row],
            looks,
        )
        if right:
            one = right[0] if rng.random() >= _NOT_THE_BEST else rng.choice(right)
            learnt.append(turn)
            chosen.append([one, *(_some(wrong, _TOGETHER - 1, rng) if rng.random() < _FEW else ())])
        if right and turn.seen:
            continue
        others = _some(wrong, _TOGETHER if rng.random() < _MANY else 1, rng)
        if others or not right:
            untold = turn.asked is not None and not turn.seen
            learnt.append(replace(turn, answer=unknown, asked=None) if untold else turn)
            chosen.append(others)
    return learnt, pick_spans(chosen)


def sorted_out(
    bank: Bank, keys_WGR: Tensor, words_WK: Tensor, turn: Turn, allowed_W: Tensor, gold: int, scores_W: Tensor,
    question: Question, looks: int,
) -> tuple[list[Span], list[Span]]:  # fmt: skip
    """What would be looked at, as `core.spans.sentences` finds it, best first: what answers, and what does not."""
    K = words_WK.shape[1]
    best = scores_W.masked_fill(~allowed_W, -torch.inf).topk(min(2 * looks, len(scores_W)))
    wanted = set(best.indices[best.values > -torch.inf].tolist()) | ({gold} if gold >= 0 else set())
    found = list[Span]()
    for place in sorted({int(bank.owner_W[write]) for write in wanted}):
        stream = bank.streams[place]
        for local in stream.spans:
            span = local.moved(stream.first * K)
            if not wanted.isdisjoint(span.writes(K)) and all(allowed_W[write] for write in span.all_writes(K)):
                found.append(span)
    if not found:
        return [], []
    numbers = torch.tensor(sorted({write for span in found for write in span.all_writes(K)}))
    scores = scores_among(numbers, keys_WGR[numbers], words_WK[numbers], found, question)
    around = torch.tensor([max(float(scores_W[write]) for write in span.writes(K)) for span in found])
    order = [found[i] for i in (scores + around).argsort(descending=True).tolist()]
    own, asked = bank.streams[turn.stream].first * K, turn.asked
    right = set() if gold < 0 or asked is None or asked.token is None else {own + asked.token}
    older = set() if asked is None else {own + token for token in asked.older_tokens}
    answers = [span for span in order if any(span.first <= token < span.end for token in right)]
    others = [span for span in order if (right | older).isdisjoint(span.rows)]
    return answers, others[: _TOGETHER * looks]


def _some(spans: Sequence[Span], count: int, rng: random.Random) -> list[Span]:
    """Some of the spans, mostly first ones: what a question only seems to be answered by is the first that is found."""
    left, chosen = list(spans), list[Span]()
    while left and len(chosen) < count:
        [at] = rng.choices(range(len(left)), [1 / (1 + i) ** 2 for i in range(len(left))])
        chosen.append(left.pop(at))
    return chosen
