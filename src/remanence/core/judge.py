"""Whether what was read answers the question, told by the states in which the reader is about to speak.

A reader that looks at things one by one (`looking.py`) can be asked by how likely it is to say "I don't know."; but
that shows only a part of what a small model knows there. A judge sees the states that enter a few of its layers at the
last token of the prompt. It was taught which of the things that were looked at hold the answer (`train/judging.py`).
That language models know whether they know, and that a small head can learn to tell, is shown in arXiv 2207.05221.

Legend:  C things that were looked at   J layers that the judge sees   D hidden size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .search import features_of


class Judge(nn.Module):
    """Tells from hidden states how likely it is that an answer was read.

    Args:
        width: of the states, D.
        layers: how many it sees, J.
        hidden: width of its inner layer.
    """

    def __init__(self, width: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.odds = nn.Linear(layers * width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.odds.weight)
        nn.init.zeros_(self.odds.bias)

    @staticmethod
    def features(states: Sequence[Tensor]) -> Tensor:
        """States of some layers, each [C, D] -> features [C, J * D] (`search.features_of`)."""
        return features_of(states)

    def forward(self, features: Tensor) -> Tensor:
        """The logarithm of the odds that the answer was read [C, J * D] -> float32 [C]."""
        inner = F.silu(self.inner(features.to(self.inner.weight.dtype)))
        odds: Tensor = self.odds(inner)[..., 0].float()
        return odds
