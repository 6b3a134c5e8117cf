"""Fitting small models to what a decoder has read: a judge, a logistic regression, a threshold. It takes seconds.

Two losses of a judge (`core/judge.py`) are added. One asks of each span whether it answers; one which of a question's
spans does, or none.

Legend:  E examples, each a question with one span   J layers that the judge sees   D hidden size   n examples
F features
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.judge import Judge

_HELD = 10  # every so many questions one is left for measuring
_AT_ONCE = 32  # questions of a step
_LISTWISE = 0.5  # weight of the loss that compares the spans of a question
_PARTS = 5  # of the questions, each asked of a judge that was fitted to the others
_DECAY_OF_THRESHOLD = 1e-2


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a judge is fitted.

    hidden: width of its inner layer. epochs, lr, weight_decay, dropout: of AdamW. seed: of weights and order.
    """

    hidden: int = 64
    epochs: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """What was read.

    states_EJD: bfloat16. says_E: the logarithm of the odds that the reader does not begin with "I don't know." right_E:
    whether the span answers. question_E: number of the question.
    """

    states_EJD: Tensor
    says_E: Tensor
    right_E: Tensor
    question_E: Tensor

    @property
    def count(self) -> int:
        """Of questions."""
        return int(self.question_E.max()) + 1

    @cached_property
    def rows(self) -> dict[int, Tensor]:
        """The examples of each question, by its number."""
        return {int(number): (self.question_E == number).nonzero()[:, 0] for number in self.question_E.unique()}

    @cached_property
    def features(self) -> Tensor:
        """What a judge sees, float32 [E, J * D]."""
        return Judge.features(list(self.states_EJD.unbind(1)))

    @classmethod
    def together(cls, some: Sequence[Examples]) -> Examples:
        """One after the other, with the numbers that the questions have."""
        return cls(*(torch.cat([getattr(one, field.name) for one in some]) for field in fields(cls)))

    @classmethod
    def joined(cls, some: Sequence[Examples]) -> Examples:
        """One after the other; questions are numbered on."""
        numbered, begin = list[Examples](), 0
        for one in some:
            numbered.append(replace(one, question_E=one.question_E + begin))
            begin += one.count
        return cls.together(numbered)


def layers_of(layers: int) -> tuple[int, ...]:
    """The layers whose incoming states a judge sees in a decoder of so many: three of the upper half."""
    return tuple(sorted({layers // 2, round(0.7 * layers), round(0.9 * layers)}))


def fit(examples: Examples, fitting: Fitting, learnt: Collection[int] | None = None) -> Judge:
    """A judge in float32, fitted to the questions `learnt`, by number; None is all of them."""
    torch.manual_seed(fitting.seed)
    _, layers, width = examples.states_EJD.shape
    judge = Judge(width, layers, fitting.hidden)
    features, right, rows = examples.features, examples.right_E.float(), examples.rows
    learnt = list(rows if learnt is None else learnt)
    steps = max(1, fitting.epochs * math.ceil(len(learnt) / _AT_ONCE))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=fitting.lr, weight_decay=fitting.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = random.Random(fitting.seed)
    for _ in range(fitting.epochs):
        order = rng.sample(learnt, len(learnt))
        for begin in range(0, len(order), _AT_ONCE):
            some = [rows[number] for number in order[begin : begin + _AT_ONCE]]
            at = torch.cat(some)
            odds = judge(F.dropout(features[at], fitting.dropout))
            loss = F.binary_cross_entropy_with_logits(odds, right[at])
            for own, told in zip(odds.split([len(one) for one in some]), (right[one] for one in some), strict=True):
                wanted = torch.cat([1 - told.amax()[None], told / told.sum().clamp_min(1)])
                which = F.cross_entropy(torch.cat([own.new_zeros(1), own]), wanted)
                loss = loss + _LISTWISE * which / len(some)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)


def fit_and_measure(examples: Examples, fitting: Fitting) -> tuple[Judge, dict[str, float | None]]:
    """A judge, and figures of each tenth question, which it was not fitted to.

    Returns:
        The judge; and {"questions": how many were kept apart, "auc", "auc_before": how often a span that answers is
        above one that does not, by the judge and by the reader's own word, "first": how often the best span of a
        question that was told answers it}. None where there were too few to tell.
    """
    rows, right, questions = examples.rows, examples.right_E, examples.question_E
    learnt = [number for number in rows if number % _HELD]
    judge = fit(examples, fitting, learnt)
    odds, held = judge(examples.features), questions % _HELD == 0
    answered = [own for number, own in rows.items() if not number % _HELD and right[own].any()]
    first = [bool(right[own[odds[own].argmax()]]) for own in answered]
    return judge, {
        "questions": len(rows) - len(learnt),
        "auc": _above(odds[held], right[held]),
        "auc_before": _above(examples.says_E[held], right[held]),
        "first": sum(first) / len(first) if first else None,
    }


def odds_apart(examples: Examples, fitting: Fitting) -> Tensor:
    """What judges say that were not fitted to the question, a fifth of all questions at a time [E]."""
    odds = torch.zeros(len(examples.right_E))
    for part in range(_PARTS):
        judge = fit(examples, fitting, [number for number in examples.rows if number % _PARTS != part])
        own = examples.question_E % _PARTS == part
        odds[own] = judge(examples.features[own])
    return odds


def logistic(features_nF: Tensor, right_n: Tensor, decay: float) -> tuple[Tensor, float]:
    """Weights [F] and bias of a logistic regression, each class counting half.

    Args:
        features_nF: of examples.
        right_n: which of them are to be told.
        decay: of the weights.
    """
    x, y = features_nF.double().cpu(), right_n.double().cpu()
    counts = torch.where(y > 0.5, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        odds = x @ weight[:-1] + weight[-1]
        each = F.binary_cross_entropy_with_logits(odds, y, reduction="none")
        total = (each * counts).sum() + decay * weight[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = weight.detach()
    return found[:-1].float(), float(found[-1])


def threshold(above: Sequence[float], below: Sequence[float]) -> float:
    """The score, to one place, at which either is as likely: those that should lie above it, and those below."""
    scores = torch.tensor([*above, *below])
    if not (above and below):
        return round(float(scores.min()), 1)
    weight, bias = logistic(scores[:, None], torch.arange(len(scores)) < len(above), _DECAY_OF_THRESHOLD)
    if float(weight[0]) <= 0:  # they are not told apart by it; nothing is refused then
        return round(float(scores.min()), 1)
    return round(-bias / float(weight[0]), 1)


def _above(scores: Tensor, right: Tensor) -> float | None:
    """How often one that is right scores above one that is not, the area under the curve; None if there is no pair."""
    yes, no = scores[right > 0], scores[right == 0]
    if not (len(yes) and len(no)):
        return None
    return float((yes[:, None] > no).float().mean() + (yes[:, None] == no).float().mean() / 2)
