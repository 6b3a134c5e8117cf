"""The co-trained retriever of M+ (§3.2): which remembered writes matter for this question, per layer.

Legend:  B batch   T question tokens   W writes   G keys per write   R retriever width   D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Retriever(nn.Module):
    """f_q and f_k of every layer, and the score of "nothing relevant here".

    f_q and f_k are two-layer perceptrons without bias on the layer's normed hidden states (M+ §3.2, code "query_proj",
    "key_proj"). f_k starts as a copy of f_q, so that equal states match from the first step.

    Args:
        layers: decoder layers, L.
        hidden_size: width of the hidden states, D.
        dim: width of queries and keys, R.
    """

    def __init__(self, layers: int, hidden_size: int, dim: int) -> None:
        super().__init__()

        def perceptron() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(hidden_size, 2 * dim, bias=False), nn.SiLU(), nn.Linear(2 * dim, dim, bias=False)
            )

        self.query = nn.ModuleList(perceptron() for _ in range(layers))
        self.key = nn.ModuleList(perceptron() for _ in range(layers))
        self.key.load_state_dict(self.query.state_dict())
        self.null = nn.Parameter(torch.zeros(layers))
        self.scale = dim**-0.5

    def queries(self, layer: int, normed_BTD: Tensor) -> Tensor:
        """f_q: normed hidden states of the question -> queries [B, T, R]."""
        return self.query[layer](normed_BTD)

    def keys(self, layer: int, normed_WKD: Tensor, group: int = 1) -> Tensor:
        """f_k: normed memory vectors of writes -> keys [W, K / group, R]; a group of neighbours shares their sum."""
        keys_WKR = self.key[layer](normed_WKD)
        return keys_WKR if group == 1 else keys_WKR.unflatten(1, (-1, group)).sum(2)


def block_scores(queries_TR: Tensor, keys_XR: Tensor, keys_per_write: int, scale: float) -> Tensor:
    """Score of each write: the mean over question tokens of its best key (late interaction) [W].

    Args:
        queries_TR: queries of the question's tokens.
        keys_XR: keys of all writes in order, X = W * keys_per_write.
        keys_per_write: G.
        scale: multiplies the products.
    """
    products_TX = torch.matmul(queries_TR, keys_XR.T)
    return products_TX.unflatten(-1, (-1, keys_per_write)).amax(-1).mean(-2) * scale


def vector_scores(queries_TR: Tensor, keys_XR: Tensor) -> Tensor:
    """Score of each vector in the paper (M+ eq. 4): the mean over question tokens of sigmoid(q . k) [X]."""
    return torch.matmul(queries_TR, keys_XR.T).sigmoid().mean(-2)


def slot_bias(scores: Tensor, best: Tensor, strength: float) -> Tensor:
    """What is added to the attention logits of a memory slot: clamp(a * (score - best), -8, 0)."""
    return (strength * (scores - best)).clamp(-8.0, 0.0)
