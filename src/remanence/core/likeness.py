"""The one search without training: writes whose hidden states are like the question's (`retriever="states"`).

Hidden states of a middle layer say what a token means where it stands, but most of a state is the same for all tokens.
So the mean of many states is taken off, the directions in which states differ most are kept and made equally wide
(whitening), and what is left is compared by its cosine. A question's tokens count by how rare they are. Nothing is
learnt by trial: mean and directions are those of a few pages of any text, the rareness of words is counted there, and
whether a turn asks for something remembered is told by a logistic regression (`train/preparing.py`).

That states have such common directions, and compare better without them, is shown in arXiv 1702.01417.

Legend:  T question tokens   K vectors a write   G keys a write   F features   R key size   V tokens of the vocabulary
         n states
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .search import Question, mean_and_last, spelled

_MEANING, _WORDS = 4.0, 0.3  # scores as large as a trained search has them; a part of them for the words alone
_LEAST = 0.05  # weight of the most common words


class Likeness(nn.Module):
    """What `Search` is, with nothing but means, directions and counts.

    Args:
        features: F.
        dim: width of queries and keys, R.
        vocabulary: V.
    """

    mean: Tensor
    axes: Tensor
    spelling: Tensor
    rarity: Tensor

    def __init__(self, features: int, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features)[:, torch.arange(dim) % features])
        self.needs = nn.Linear(2 * dim, 1)
        nn.init.zeros_(self.needs.weight)
        nn.init.zeros_(self.needs.bias)
        self.register_buffer("spelling", torch.arange(vocabulary, dtype=torch.int32))
        self.register_buffer("rarity", torch.ones(vocabulary))  # 0 for a token of every text, 1 for the rarest
        self.scale = _MEANING

    @torch.no_grad()
    def fit(self, features_nF: Tensor) -> None:
        """Take mean and directions from the features of many tokens.

        Args:
            features_nF: of at least as many tokens as there are directions, R.
        """
        self.mean.copy_(features_nF.mean(0))
        apart = features_nF.double() - features_nF.double().mean(0)
        variances, directions = torch.linalg.eigh(apart.T @ apart / len(apart))  # in rising order
        dim = self.axes.shape[1]
        kept = directions[:, -dim:].flip(1) / variances[-dim:].flip(0).clamp_min(1e-9).sqrt()
        self.axes.zero_()
        self.axes[:, : kept.shape[1]] = kept.to(self.axes)  # a model narrower than R has no more

    def whitened(self, features: Tensor) -> Tensor:
        """Features [..., F] in the directions that are kept, each about as wide as the others [..., R]."""
        return (features.to(self.mean) - self.mean) @ self.axes

    def keys(self, features_KF: Tensor, group: int = 1) -> Tensor:
        """Keys of one write, of length one [G, R]; neighbours in groups share their mean."""
        made = F.normalize(self.whitened(features_KF), dim=-1)
        return made if group == 1 else F.normalize(made.unflatten(-2, (-1, group)).mean(-2), dim=-1)

    def question(self, ids_T: Tensor, features_TF: Tensor) -> Question:
        """What is compared with writes, of a question's tokens."""
        rare_T = self.rarity[ids_T].float().clamp_min(_LEAST)
        queries_TR = F.normalize(self.whitened(features_TF), dim=-1) * (rare_T / rare_T.mean())[:, None]
        weights_T = rare_T * _WORDS * len(ids_T) ** -0.5
        return Question(queries_TR.float().cpu(), self.words(ids_T).cpu(), weights_T.cpu(), self.scale)

    def words(self, ids: Tensor) -> Tensor:
        """Token ids [...] as words to compare (`search.spelled`), int16 [...]."""
        return spelled(self.spelling, ids)

    def verdicts(self, features_BTF: Tensor, asks_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The score of "nothing relevant" and the need of a memory [B]; as `Search.verdicts`.

        Likeness does not tell whether a write answers: the first is the best score that there can be, so that nothing
        is relevant by itself, and all of it near enough to be looked at.
        """
        needs: Tensor = self.needs(self.sight(features_BTF, asks_BT))
        return torch.full_like(needs[:, 0], _MEANING), needs[:, 0]

    def sight(self, features_BTF: Tensor, asks_BT: Tensor) -> Tensor:
        """What tells of questions whether they need a memory [B, 2 * R]."""
        return mean_and_last(self.whitened(features_BTF), asks_BT) * self.axes.shape[1] ** -0.5
