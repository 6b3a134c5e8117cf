"""One search for all layers: which remembered writes matter for this question, told before the question is read.

The papers retrieve at every layer, with that layer's own hidden states (M+ §3.2). Here a question runs once through the
first layers without memory; a small trained net makes queries of what enters a few of them, and compares them with keys
that were made of the same layers' states when the texts were written. All layers then read the same writes. That costs
one search instead of one a layer, and what was found is known before reading begins: whether anything was found at all,
and whether the turn asks for something remembered.

A write's score has two parts: what it means and which words it has.

* Meaning, by late interaction: the mean over the question's tokens of the best match among the write's keys.
* Words: each token of the question that occurs in the write counts, by how rare it is in general and by how much it
  matters in this question. Names, numbers and codes, of which a small model's states tell little, are found by it.

Legend:  B questions   T question tokens   W writes   K vectors a write   G keys a write   F features   R key size
         V tokens of the vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .retriever import block_scores, block_scores_of, rows_of

_MEANING, _WORDS = 4.0, 3.0  # bring the two parts of a score to the size of logits
_WORD_START = -0.7  # logarithm of a word's weight before training
_NEAR = 5.5  # how far below "nothing relevant" a write is worth a look


@dataclass(frozen=True)
class Question:
    """What is compared with writes: queries [T, R], words and their weights [T], and the scale of products."""

    queries: Tensor
    words: Tensor
    weights: Tensor
    scale: float

    def scores(self, keys: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """Of every write (`block_scores`, `word_scores`) [W]."""
        return block_scores(self.queries, keys, self.scale) + word_scores(self.words, self.weights, words)

    def scores_of(self, writes: Tensor, keys: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """Of the writes with these numbers alone [len(writes)]."""
        meaning = block_scores_of(writes, self.queries, keys, self.scale)
        return meaning + word_scores(self.words, self.weights, [rows_of(words, writes)])

    def share(self, words: Tensor) -> float:
        """The share of its words, by weight, that some words [X] are among."""
        held = torch.isin(self.words, words)
        return float(self.weights[held].sum() / self.weights.sum().clamp_min(1e-6))


@dataclass(frozen=True)
class Found:
    """What a search tells of one question.

    scores: of every write, float32 [W]. null: the score of "nothing relevant". needs: how much more likely than not,
    as a logit, the question asks for something that only a memory can tell. question: what is compared, or None
    where nobody needs it again.
    """

    scores: Tensor
    null: float
    needs: float
    question: Question | None = None

    @property
    def relevant(self) -> bool:
        """Whether some write scores better than "nothing relevant"."""
        return self._above(self.null)

    @property
    def near(self) -> bool:
        """Whether some write scores so little worse than "nothing relevant" that it is worth a look."""
        return self._above(self.null - _NEAR)

    def _above(self, score: float) -> bool:
        return len(self.scores) > 0 and float(self.scores.max()) > score


class Search(nn.Module):
    """f_q and f_k of the one search, the score of "nothing relevant" and the sense for questions that need a memory.

    Args:
        width: of the hidden states, D.
        layers: whose incoming states it sees; F = layers * D.
        dim: width of queries and keys, R.
        hidden: width of the inner layers.
        vocabulary: V.
    """

    spelling: Tensor
    rarity: Tensor

    def __init__(self, width: int, layers: int, dim: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        features = layers * width
        self.query = self._perceptron(features, hidden, dim)
        self.key = self._perceptron(features, hidden, dim)
        self.key.load_state_dict(self.query.state_dict())  # equal states match from the first step
        self.head = nn.Sequential(nn.Linear(2 * features, hidden), nn.SiLU())
        self.null, self.needs = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        for part in (self.null, self.needs):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        weight = nn.Linear(32, 1)
        nn.init.zeros_(weight.weight)
        nn.init.constant_(weight.bias, _WORD_START)
        self.weigh = nn.Sequential(nn.Linear(features, 32), nn.SiLU(), weight)
        # Tokens that spell the same word alike, such as " Rex" and "rex", have the number of the first of them.
        self.register_buffer("spelling", torch.arange(vocabulary, dtype=torch.int32))
        self.register_buffer("rarity", torch.ones(vocabulary))  # 0 for a token of every text, 1 for the rarest
        self.scale = _MEANING * dim**-0.5

    @staticmethod
    def _perceptron(features: int, hidden: int, dim: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(features, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, dim, bias=False))

    @staticmethod
    def features(states: Sequence[Tensor]) -> Tensor:
        """Hidden states that enter the search layers, each [..., D] -> features [..., F] (`features_of`)."""
        return features_of(states)

    def keys(self, features_KF: Tensor, group: int = 1) -> Tensor:
        """Keys of one write [G, R]; neighbours in groups share their sum."""
        if not torch.is_autocast_enabled(features_KF.device.type):  # which does with any number format
            features_KF = features_KF.to(self.null.weight.dtype)
        made: Tensor = self.key(features_KF)
        return made if group == 1 else made.unflatten(-2, (-1, group)).sum(-2)

    def question(self, ids_T: Tensor, features_TF: Tensor) -> Question:
        """What is compared with writes, of a question's tokens."""
        words_T, weights_T = self.words(ids_T), self.word_weights(ids_T, features_TF)
        return Question(self.queries(features_TF).float().cpu(), words_T.cpu(), weights_T.cpu(), self.scale)

    def queries(self, features_TF: Tensor) -> Tensor:
        """Queries of a question's tokens [T, R]."""
        made: Tensor = self.query(features_TF.to(self.null.weight.dtype))
        return made

    def words(self, ids: Tensor) -> Tensor:
        """Token ids [...] as words to compare (`spelled`), int16 [...]."""
        return spelled(self.spelling, ids)

    def word_weights(self, ids_T: Tensor, features_TF: Tensor) -> Tensor:
        """How much each token of a question counts if a write has it, float32 [T]."""
        weights = self.weigh(features_TF.to(self.null.weight.dtype)).float()[:, 0].exp()
        return weights * self.rarity[ids_T].float() * _WORDS * len(ids_T) ** -0.5

    def verdicts(self, features_BTF: Tensor, asks_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The score of "nothing relevant" and the need of a memory [B], from the tokens of each question.

        Args:
            features_BTF: of the questions.
            asks_BT: which tokens are the question's; padding, if any, is behind them.
        """
        inner = self.head(mean_and_last(features_BTF, asks_BT).to(self.null.weight.dtype))
        return self.null(inner)[:, 0], self.needs(inner)[:, 0]


def features_of(states: Sequence[Tensor]) -> Tensor:
    """Hidden states of some layers, each [..., D], of one length and side by side [..., layers * D], float32."""
    return torch.cat([F.rms_norm(hidden.float(), hidden.shape[-1:]) for hidden in states], -1)


def spelled(spelling: Tensor, ids: Tensor) -> Tensor:
    """Token ids [...] as words to compare, int16 [...]; of a vocabulary above 65,536 some words fall together.

    Args:
        spelling: of each token, the number of the first that spells the same word [V].
        ids: of tokens.
    """
    words = spelling[ids] & 0xFFFF
    return torch.where(words < 0x8000, words, words - 0x10000).to(torch.int16)


def mean_and_last(features_BTF: Tensor, asks_BT: Tensor) -> Tensor:
    """Of each question the mean of its tokens' features, and those of its last token [B, 2 * F].

    Args:
        features_BTF: of the questions.
        asks_BT: which tokens are the question's; padding, if any, is behind them.
    """
    asks = asks_BT[..., None].to(features_BTF)
    mean = (features_BTF * asks).sum(1) / asks.sum(1)
    places = torch.arange(asks_BT.shape[1], device=asks_BT.device) * asks_BT
    last = features_BTF[torch.arange(len(features_BTF)), places.amax(1)]
    return torch.cat([mean, last], -1)


def each_once(words_T: Tensor, weights_T: Tensor) -> tuple[Tensor, Tensor]:
    """The different words of a question; and of each the weights of all its places, summed."""
    different, place_T = words_T.unique(return_inverse=True)
    return different, weights_T.new_zeros(len(different)).index_add(0, place_T, weights_T)


def word_scores(words_T: Tensor, weights_T: Tensor, words: Sequence[Tensor]) -> Tensor:
    """The words' part of a score: the weights of the question's tokens that each write has, summed, float32 [W].

    Args:
        words_T, weights_T: of the question, as `Search.words` and `Search.word_weights` tell.
        words: of the writes, in blocks [w, K].
    """
    parts = []
    for words_wK in words:
        scores = weights_T.new_zeros(len(words_wK))
        for word, weight in zip(*each_once(words_T, weights_T), strict=True):
            scores += weight * _any(words_wK == word)
        parts.append(scores)
    return torch.cat(parts)


def _any(true_wK: Tensor) -> Tensor:
    """Which rows have a true value [w]."""
    if true_wK.shape[1] % 8:
        return true_wK.any(1)
    return true_wK.view(torch.int64).sum(1) != 0  # eight bytes at a time, four times as fast
