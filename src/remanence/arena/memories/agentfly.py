"""AgentFly (Memento): a bank of solved and failed cases; what helped with a like question helps again.

Paper: Zhou et al., "Memento: Fine-tuning LLM Agents without Fine-tuning LLMs" (first named AgentFly), arXiv 2508.16153.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..protocol import Kit, Reply
from ..scores import abstains
from ..tasks import Question
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, best, checked, once


@dataclass
class Case(Entry):
    """A turn ("turn"), or a question that was answered ("case"): its reward from 0 to 1, and the turns that bore the
    answer (numbers of entries)."""

    reward: float = 0.0
    evidence: list[int] = field(default_factory=list)


class AgentFly(Remembering[Case]):
    """Turns are found by vectors; those that bore the answer of a like question gain, those of a failed one lose.

    Made for: an agent's streams of tasks that come again in other words. It is useless where every question comes
    once.

    A case is a question, the turns that bore its answer, and a reward, kept when the question is over, failures too.
    The arena may say how right an answer was (`feedback`); else the reward is 1 if what was shown supports the
    answer. At a question the `cases` nearest ones are read: a turn's score gains (or, for a case with a reward below
    a half, loses) `bonus` times how much the case counts.

    `q="cosine"` is the paper's non-parametric reading: a case counts by its cosine. `q="learned"` is the parametric
    one: a logistic regression says how likely a case helps a question, from |a - b| and a*b of both vectors; it is
    fitted anew after every `batch` cases, in a fraction of a second. The paper's head has a hidden layer on an
    encoder of its own.

    Differences that are meant: in the paper cases are shown to a planner as examples, good and bad; a small reader
    copies their answers, so they steer what is found. The language model decides nothing about memory, so `brain`
    changes nothing.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes is the bank.
        k: turns that are found.
        cases: that are read; 4 is best by the authors' own account.
        bonus: how much a case counts beside a cosine.
        q: "cosine", or "learned".
        batch: cases between two fits.
    """

    name = "agentfly"
    kind_of_entry = Case
    made_for = "streams of tasks that come again in other words"

    def __init__(
        self, kit: Kit, *, k: int = 10, cases: int = 4, bonus: float = 0.3, q: str = "cosine", batch: int = 32,
        learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.cases, self.bonus, self.batch = k, cases, bonus, batch
        self.learned = checked("q", q, ("cosine", "learned")) == "learned"
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """No feedback, and no pairs of cases and questions to learn from."""
        self.more = {"rewards": {}, "pairs": [], "fits": 0}

    def take(self, turns: list[Turn]) -> None:
        """Keep turns as they are."""
        for turn in turns:
            self.add(Case(turn.text, [turn.number], "turn"))

    def read_cases(self, vector: Tensor) -> list[tuple[int, float]]:
        """The cases for a question's vector, and how much each counts, from 0 to 1."""
        numbers = self.alive("case")
        if not numbers:
            return []
        head = self.tensors.get("head")
        if not self.learned or head is None:
            return [(i, max(0.0, cosine)) for i, cosine in self.nearest(vector, self.cases, numbers)]
        features = _features(self.vectors.all[torch.tensor(numbers)], vector)
        helps = (features @ head[:-1] + head[-1]).sigmoid().tolist()
        return best(dict(zip(numbers, helps, strict=True)), self.cases)

    def find(self, question: str) -> list[Shown]:
        """Turns by cosine and by what cases say of them."""
        vector = self.embed(question)
        turns = self.alive("turn")
        scores = dict(self.nearest(vector, len(turns), turns))
        for case, counts in self.read_cases(vector):
            entry = self.entries[case]
            for i in entry.evidence:
                if i in scores:
                    scores[i] += self.bonus * counts * (1 if entry.reward >= 0.5 else -1)
        return once(self.show(i) for i, _ in best(scores, self.k))

    def feedback(self, question: Question, reply: Reply, right: float) -> None:
        """Take the reward of a question that is over."""
        if self.learns:
            self.more["rewards"][question.text] = right

    def recalled(self, asked: Asked) -> None:
        """Keep a case; note which of those that were read helped."""
        bore = [i for i in asked.entries if words.cited(asked.answer, self.entries[i].text) >= 0.5]
        reward = self.more["rewards"].pop(asked.question, None)
        if reward is None:
            reward = float(bool(bore) and not abstains(asked.answer))
        vector = self.embed(asked.question)
        for case, _ in self.read_cases(vector):
            helped = reward >= 0.5 and bool(set(self.entries[case].evidence) & set(bore))
            self.more["pairs"].append([case, len(self.entries), int(helped)])
        evidence = bore or (asked.entries[:1] if reward >= 0.5 else [])
        self.add(Case(asked.question, [], "case", reward=float(reward), evidence=evidence), vector)
        if self.learned and len(self.alive("case")) % self.batch == 0:
            self._fit()

    def _fit(self) -> None:
        """Logistic regression on the pairs so far, if some helped and some did not; a little weight decay."""
        pairs = self.more["pairs"]
        labels = torch.tensor([float(label) for _, _, label in pairs])
        if not 0 < float(labels.sum()) < len(labels):
            return
        rows = self.vectors.all
        features = torch.stack([_features(rows[a][None], rows[b])[0] for a, b, _ in pairs])
        head = torch.zeros(features.shape[1] + 1, requires_grad=True)
        optimiser = torch.optim.LBFGS([head], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            said = features @ head[:-1] + head[-1]
            value = torch.nn.functional.binary_cross_entropy_with_logits(said, labels) + 1e-2 * head[:-1].square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        self.tensors["head"] = head.detach()
        self.more["fits"] += 1


def _features(rows: Tensor, vector: Tensor) -> Tensor:
    """What says how two questions are alike [rows, 2 * width]."""
    return torch.cat([(rows - vector).abs(), rows * vector], dim=1)
