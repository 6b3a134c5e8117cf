"""The one search, fitted in minutes instead of trained for hours (`retriever="states"`).

Hidden states of a middle layer say what a token means where it stands, but most of a state is the same for all tokens.
So the mean of many states is taken off, and the directions in which they differ most are kept and made equally wide
(whitening). Of what is left, two matrices make queries and keys, which are compared by their cosine: those of a
question and of the text that answers it shall be more alike than others. A question's tokens count by how rare they
are, and by what a third linear map says of them. `train/preparing.py` fits all of this to messages of the package.

That states have such common directions, and compare better without them, is shown in arXiv 1702.01417.

Legend:  T question tokens   K vectors a write   G keys a write   F features   D directions kept   R key size
         V tokens of the vocabulary   n states
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .search import Question, mean_and_last, spelled

_DIRECTIONS = 128
_MEANING, _WORDS = 25.0, 2.0  # scores as large as a trained search has them; a part of them for the words alone
_LEAST = 0.05  # weight of the most common words


class Likeness(nn.Module):
    """What `Search` is, with linear maps alone.

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
        kept = min(_DIRECTIONS, features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features)[:, :kept].contiguous())
        self.query, self.key = nn.Linear(kept, dim, bias=False), nn.Linear(kept, dim, bias=False)
        self.weigh, self.needs = nn.Linear(kept, 1), nn.Linear(2 * kept, 1)
        nn.init.orthogonal_(self.query.weight)
        self.key.load_state_dict(self.query.state_dict())  # equal states match from the first step
        for part in (self.weigh, self.needs):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        self.register_buffer("spelling", torch.arange(vocabulary, dtype=torch.int32))
        self.register_buffer("rarity", torch.ones(vocabulary))  # 0 for a token of every text, 1 for the rarest
        self.scale = _MEANING

    @torch.no_grad()
    def whiten(self, features_nF: Tensor) -> None:
        """Take mean and directions from the features of many tokens.

        Args:
            features_nF: of more tokens than there are directions, D.
        """
        self.mean.copy_(features_nF.mean(0))
        apart = features_nF.cpu().double() - features_nF.cpu().double().mean(
            0
        )  # some accelerators have no such numbers
        variances, directions = torch.linalg.eigh(apart.T @ apart / len(apart))  # in rising order
        kept = self.axes.shape[1]
        widths = variances[-kept:].flip(0).clamp_min(1e-9).sqrt()
        self.axes.copy_((directions[:, -kept:].flip(1) / widths).to(self.axes))

    def whitened(self, features: Tensor) -> Tensor:
        """Features [..., F] in the directions that are kept, each about as wide as the others [..., D]."""
        return (features.to(self.mean) - self.mean) @ self.axes

    def keys(self, features_KF: Tensor, group: int = 1) -> Tensor:
        """Keys of one write, of length one [G, R]; neighbours in groups share their mean."""
        made = self.keys_of(self.whitened(features_KF))
        return made if group == 1 else F.normalize(made.unflatten(-2, (-1, group)).mean(-2), dim=-1)

    def keys_of(self, white: Tensor) -> Tensor:
        """Keys of whitened features [..., D], of length one [..., R]."""
        return F.normalize(self.key(white), dim=-1)

    def queries_of(self, white_TD: Tensor, rarity_T: Tensor) -> Tensor:
        """Queries of a question's whitened features, as long as their tokens count: one in the mean [T, R]."""
        counts_T = rarity_T.float().clamp_min(_LEAST) * self.weigh(white_TD)[:, 0].exp()
        made: Tensor = F.normalize(self.query(white_TD), dim=-1) * (counts_T / counts_T.mean())[:, None]
        return made

    def question(self, ids_T: Tensor, features_TF: Tensor) -> Question:
        """What is compared with writes, of a question's tokens."""
        rarity_T = self.rarity[ids_T]
        queries_TR = self.queries_of(self.whitened(features_TF), rarity_T)
        weights_T = rarity_T.float().clamp_min(_LEAST) * _WORDS * len(ids_T) ** -0.5
        return Question(queries_TR.float().cpu(), self.words(ids_T).cpu(), weights_T.cpu(), self.scale)

    def words(self, ids: Tensor) -> Tensor:
        """Token ids [...] as words to compare (`search.spelled`), int16 [...]."""
        return spelled(self.spelling, ids)

    def verdicts(self, features_BTF: Tensor, asks_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The score of "nothing relevant" and the need of a memory [B]; as `Search.verdicts`.

        Likeness does not tell whether a write answers, so nothing is relevant by itself: looking tells.
        """
        needs: Tensor = self.needs(self.sight(features_BTF, asks_BT))
        return torch.full_like(needs[:, 0], _MEANING + _WORDS * asks_BT.shape[1]), needs[:, 0]

    def sight(self, features_BTF: Tensor, asks_BT: Tensor) -> Tensor:
        """What tells of questions whether they need a memory [B, 2 * D]."""
        return mean_and_last(self.whitened(features_BTF), asks_BT) * self.axes.shape[1] ** -0.5
