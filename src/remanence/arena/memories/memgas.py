"""MemGAS: four views of every session, a graph of what is alike, a router that trusts the surest view, PageRank.

Paper: Xu et al., "From Single to Multi-Granularity: Toward Long-Term Memory Association and Selection of
Conversational Agents", arXiv 2505.19549.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..protocol import Kit
from .base import Entry, Remembering, Shown, Turn, best, checked, once, pagerank

VIEWS = ("session", "turns", "summary", "keywords")
_FILTERED = 12  # turns that a reader filters
_NEIGHBOURS, _FROM, _SEEDS = 30, 6, 15  # the code's: nodes that are looked at; first session with links; seeds


class MemGAS(Remembering[Entry]):
    """Every session is four nodes: its text, the mean of its turns, a summary, keywords.

    Made for: questions about one of many sessions (LoCoMo, LongMemEval).

    From the sixth session on, a new node is linked to those of its 30 nearest older ones that fall into the higher
    part of a mixture of two Gaussians over the similarities. At a question each view's similarities become a softmax;
    the lower its entropy H, the more the view counts: w is 1 - H / ln n. The 15 best nodes seed a PageRank (damping
    0.1); a session's four nodes are summed; of the best three sessions what bears on the question is shown.

    Differences to the published code that are meant: it weighs by (1 - H) / sum(1 - H), by which, as soon as all H
    are above 1, the *least* certain view counts most; `weights="code"` has that. The filter by a language model is,
    by rule, the turns nearest to the question; with `brain="reader"` the reader says which turns bear on it, and
    writes the summary.

    Args:
        kit, brain: as in `Remembering`.
        k: sessions that are shown.
        temperature: of the softmax; the code has 0.1 to 0.2.
        damping: of PageRank.
        weights: "paper", or "code".
    """

    name = "memgas"
    made_for = "questions about one of many sessions"
    whole = True

    def __init__(
        self, kit: Kit, *, k: int = 3, temperature: float = 0.1, damping: float = 0.1, weights: str = "paper",
        brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.temperature, self.damping = k, temperature, damping
        self.as_coded = checked("weights", weights, ("paper", "code")) == "code"
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """No links."""
        self.more = {"edges": []}

    def take(self, turns: list[Turn]) -> None:
        """Add the four nodes of a session, and link them."""
        texts, numbers = [turn.text for turn in turns], [turn.number for turn in turns]
        whole = " ".join(texts)
        summary = self.summary(texts, 60) or whole
        if self.thinker is not None:
            line = self.thinker.line("Sum up this conversation in one sentence.", "\n".join(texts[:20]), tokens=60)
            summary = line or summary
        keywords = " ".join(self.keywords(whole, 10)) or whole
        rows = [self.kit.encoder.encode([whole])[0], self.embeds(texts).mean(0)]  # E reads 256 word pieces of the text
        rows = [row / row.norm() for row in rows] + [self.embed(summary), self.embed(keywords)]
        before = len(self.entries)
        for view, text, vector in zip(VIEWS, (whole, whole, summary, keywords), rows, strict=True):
            number = self.add(Entry(text if view in ("summary", "keywords") else "", numbers, view), vector)
            near = self.nearest(vector, _NEIGHBOURS, range(before)) if before >= 4 * (_FROM - 1) else []
            upper = higher_part([cosine for _, cosine in near])
            self.more["edges"] += [
                (i, number, cosine) for (i, cosine), linked in zip(near, upper, strict=True) if linked and cosine > 0
            ]

    def routes(self, question: str) -> tuple[dict[str, float], dict[int, float]]:
        """How much each view counts for a question (they add up to 1), and the weighted score of every node."""
        vector = self.embed(question)
        shares = {}
        for view in VIEWS:
            numbers = self.alive(view)
            cosines = self.vectors.all[torch.tensor(numbers)] @ vector
            shares[view] = dict(zip(numbers, (cosines / self.temperature).softmax(0).tolist(), strict=True))
        weights = entropy_weights([list(each.values()) for each in shares.values()], as_coded=self.as_coded)
        weight = dict(zip(VIEWS, weights, strict=True))
        return weight, {i: weight[view] * p for view in VIEWS for i, p in shares[view].items()}

    def find(self, question: str) -> list[Shown]:
        """What bears on the question in the best sessions."""
        if not self.entries:
            return []
        _, scores = self.routes(question)
        seeds = {i: score for i, score in best(scores, _SEEDS) if score > 0}
        ranks = pagerank(self.more["edges"], seeds, len(self.entries), self.damping)
        sessions = ranks.view(-1, len(VIEWS)).sum(1)
        vector = self.embed(question)
        turns = [n for i, _ in best(dict(enumerate(sessions.tolist())), self.k) for n in self.entries[4 * i].turns]
        near = self.nearest_turns(vector, turns, len(turns))
        if self.thinker is not None:
            task = f"Does this help to answer the question: {question} Answer Yes or No."
            said = self.thinker.yes_each(task, [self.turns[number].text for number in near[:_FILTERED]])
            near = [number for number, helps in zip(near, said, strict=False) if helps is not False] or near[:1]
        return once(self.show_turn(number) for number in near)


def entropy_weights(shares: Sequence[Sequence[float]], *, as_coded: bool = False) -> list[float]:
    """How much each view counts, by the entropy of its distribution over n nodes; they add up to 1.

    Args:
        shares: for each view, probabilities.
        as_coded: 1 - H in place of 1 - H / ln n.
    """
    n = len(shares[0])
    raw = []
    for each in shares:
        entropy = -sum(p * math.log(p) for p in each if p > 0)
        raw.append(1 - entropy if as_coded else 1 - entropy / math.log(n) if n > 1 else 1.0)
    total = sum(raw)
    if abs(total) < 1e-9:  # all views know equally little
        return [1 / len(shares)] * len(shares)
    return [weight / total for weight in raw]


def higher_part(values: Sequence[float], steps: int = 10) -> list[bool]:
    """Which values belong to the higher one of a mixture of two Gaussians, fitted by EM; none of fewer than two."""
    if len(values) < 2 or max(values) - min(values) < 1e-6:
        return [False] * len(values)
    x = torch.tensor(values, dtype=torch.float64)
    means = torch.stack([x.min(), x.max()])
    spread, share = x.var(correction=0).clamp_min(1e-6).repeat(2), torch.full((2,), 0.5, dtype=torch.float64)
    of = torch.zeros(len(x), 2, dtype=torch.float64)
    for _ in range(steps):
        logs = share.log() - 0.5 * spread.log() - (x[:, None] - means) ** 2 / (2 * spread)
        of = logs.softmax(1)
        size = of.sum(0).clamp_min(1e-9)
        means = (of * x[:, None]).sum(0) / size
        spread = ((of * (x[:, None] - means) ** 2).sum(0) / size).clamp_min(1e-6)
        share = size / len(x)
    higher = int(means.argmax())
    return [bool(p > 0.5) for p in of[:, higher]]
