"""Long histories cheaply: a batch of written chunks as everybody's past.

Training with hundreds of earlier chunks would mean writing hundreds of chunks a question. Instead B streams of T chunks
are written once, and each question sees a history drawn from all B*T writes: its own stream's, in their order, at
random ages, among the others'. Pool and long-term store are drawn as use would leave them: a vector of age a is still
in the pool with the chance that random dropping gives it (M+ §3.1), the retriever chooses among the rest (§3.2).

Legend:  Q questions   W writes in the bank   K vectors a write   G keys a write   P slots   R retriever width
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hf import Attachment, Slots
from ..retriever import Retriever, slot_bias, superseded

_STALE_SHARE = 0.4
_NEVER = -1e4  # a logit bias that hides a slot


@dataclass
class History:
    """The past of every question: which writes, in which order.

    order_QW: write indices, oldest first, those outside the history in front. known_QW: which places of `order_QW`
    are in the history. gold_Q: the write that holds the answer, -1 if none. stale_QW: by write, which ones hold an
    older answer to the same question. forbidden_QW: by write, which ones must not be in the history.
    """

    order_QW: Tensor
    known_QW: Tensor
    gold_Q: Tensor
    stale_QW: Tensor
    forbidden_QW: Tensor

    @classmethod
    def draw(
        cls,
        streams_Q: Tensor,
        gold_Q: Tensor,
        stale_QW: Tensor,
        forbidden_QW: Tensor,
        chunks: int,
        others: tuple[int, int],
        generator: torch.Generator,
    ) -> History:
        """Histories of own writes and between others[0] and others[1] writes of other streams, none that is forbidden.

        Own writes keep their order. In a third of the histories they are the most recent past, else anywhere.
        """
        questions, writes = stale_QW.shape
        rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        own_QW = torch.arange(writes)[None] // chunks == streams_Q[:, None]
        times_QW = rand(questions, writes)
        own_times = rand(questions, chunks).sort(1).values
        recent = rand(questions, 1) < 0.33
        own_times = torch.where(recent, 1 + own_times, own_times)
        times_QW[own_QW] = own_times.flatten()
        span = rand(questions, 1) ** 2  # more short histories than long ones
        wanted = others[0] + span * (others[1] - others[0])
        drawn = rand(questions, writes).masked_fill(own_QW, 2).argsort(1).argsort(1) < wanted.round()
        known_QW = (own_QW | drawn) & ~forbidden_QW
        order_QW = torch.where(known_QW, times_QW, times_QW - 10).argsort(1)
        return cls(order_QW, known_QW.gather(1, order_QW), gold_Q, stale_QW, forbidden_QW)


    def targets(self) -> Tensor:
        """What the retriever should find [Q, 1 + W]: nothing (the first column), or the right write.

        An older answer to the same question gets a share: it cannot be told from the right write by what it says, and
        scores that differ by chance would hide from the reader which of the two is newer.
        """
        stale_QW = self.stale_QW & ~self.forbidden_QW
        share_QW = _STALE_SHARE * stale_QW / stale_QW.sum(1, keepdim=True).clamp_min(1)
        targets = torch.cat([torch.zeros(len(share_QW), 1), share_QW], 1)
        return targets.scatter_(1, self.gold_Q[:, None] + 1, 1 - targets.sum(1, keepdim=True))


class BankSource:
    """A `Source` for a batch of questions that read a bank of writes.

    Args:
        attachment, retriever: of the model in training.
        vectors: per layer, the written vectors [W, K, D], with gradient.
        start_LD: start vectors.
        history: the past of each question.
        asks_QT: the tokens that query the retriever.
        pool_vectors: N. pool_writes: how many of the newest writes may still have vectors in the pool.
        retrieved_writes: K0 / K.
        strength, recency, key_group: `score_bias`, `recency` and `key_group` of the memory config.
        force_Q: questions whose right write gets the best score, whatever the retriever says.
        generator: for the drops.

    After a forward, `losses` holds the retriever's loss per layer, `recall` the share of answerable questions whose
    right write was retrieved or still whole in the pool.
    """

    def __init__(
        self,
        attachment: Attachment,
        retriever: Retriever,
        vectors: list[Tensor],
        start_LD: Tensor,
        history: History,
        asks_QT: Tensor,
        *,
        pool_vectors: int,
        retrieved_writes: int,
        strength: float,
        recency: float,
        key_group: int,
        force_Q: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.attachment, self.retriever, self.vectors, self.start_LD = attachment, retriever, vectors, start_LD
        self.history, self.asks_QT, self.force_Q = history, asks_QT, force_Q
        self.strength, self.recency, self.key_group, self.generator = strength, recency, key_group, generator
        self.writes, self.K = vectors[0].shape[:2]
        self.pool_vectors = min(pool_vectors, self.writes * self.K)
        self.pool_writes = min(self.writes, 20 * pool_vectors // (4 * self.K))
        self.retrieved = min(retrieved_writes, self.writes)
        self.survival = 1 - self.K / pool_vectors if pool_vectors > self.K else 0.0
        self.length = 1 + self.retrieved * self.K + self.pool_vectors
        self.positions = torch.arange(self.length)[None]
        self.rank_QW = torch.empty_like(history.order_QW).scatter_(
            1, history.order_QW, torch.arange(self.writes).expand_as(history.order_QW)
        )
        self.targets = history.targets()
        self.known_by_write_QW = torch.empty_like(history.known_QW).scatter_(1, history.order_QW, history.known_QW)
        self.losses: list[Tensor] = []
        self.recall: list[Tensor] = []

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Draw the layer's pool, retrieve, and gather keys and values."""
        vectors_WKD = self.vectors[layer]
        with torch.autocast(hidden_BTD.device.type, enabled=False):  # scores need float32
            scores_QW, null = self._scores(layer, hidden_BTD.float(), vectors_WKD.float())
        with torch.no_grad():
            rows, alive, bias = self._choose(scores_QW.detach().clone(), null.detach())
        keys, values = self.attachment.project(layer, vectors_WKD)
        heads, width = keys.shape[-2:]
        table = torch.cat([keys.flatten(2), values.flatten(2)], -1).flatten(0, 1)
        start_keys, start_values = self.attachment.project(layer, self.start_LD[layer][None])
        start = torch.cat([start_keys.flatten(1), start_values.flatten(1)], -1)
        picked = F.embedding(rows, table)
        both = torch.cat([start.expand(len(rows), 1, -1), picked], 1).unflatten(-1, (2, heads, width))
        keys_QHPE = self.attachment.rotate(both[:, :, 0].transpose(1, 2), self.positions, layer)
        bias = torch.cat([bias[:, :1], bias[:, 1:].masked_fill(~alive, _NEVER)], 1)
        return Slots(keys_QHPE, both[:, :, 1].transpose(1, 2), bias)

    def _scores(self, layer: int, hidden_BTD: Tensor, vectors_WKD: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [Q, W] of the bank's writes and the null score, and the retriever's loss.

        Unlike the paper's, the loss reaches the hidden states too, so that they learn to be found.
        """
        retriever, history = self.retriever, self.history
        queries = retriever.queries(layer, self.attachment.norm(layer, hidden_BTD))
        keys_WGR = retriever.keys(layer, self.attachment.norm(layer, vectors_WKD), self.key_group)
        asked = self.asks_QT.nonzero(as_tuple=True)
        products = queries[asked] @ keys_WGR.flatten(0, 1).T
        best = products.unflatten(1, (len(keys_WGR), -1)).amax(-1) * retriever.scale
        weight = 1 / self.asks_QT.sum(1)[asked[0]]
        scores = torch.zeros(len(queries), len(keys_WGR)).index_add(0, asked[0], best * weight[:, None])
        null = retriever.null[layer]
        logits = torch.cat([null.expand(len(scores), 1), scores.masked_fill(history.forbidden_QW, _NEVER)], 1)
        self.losses.append(F.cross_entropy(logits, self.targets))
        return scores, null

    def _choose(self, scores_QW: Tensor, null: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the bank in reading order [Q, P-1], which of them exist, and the logit bias of all slots [Q, P]."""
        history, K = self.history, self.K
        questions = len(scores_QW)
        # The pool: the vectors that outlived random dropping, oldest first.
        newest = history.order_QW[:, -self.pool_writes :]
        age = torch.arange(self.pool_writes - 1, -1, -1.0)[None, :, None]
        luck = torch.rand(questions, self.pool_writes, K, generator=self.generator).clamp_min(1e-9)
        life = luck.log() / math.log(self.survival) if self.survival > 0 else luck
        left = (life - age).masked_fill(~history.known_QW[:, -self.pool_writes :, None], -1e9)
        left = torch.where(age == 0, left + 1e6, left)  # the newest write is whole
        places = left.flatten(1).topk(self.pool_vectors, 1).indices.sort(1).values
        pool_rows = newest.gather(1, places // K) * K + places % K
        pool_alive = left.flatten(1).gather(1, places) > -1e8
        in_pool = torch.zeros(questions, self.writes * K, dtype=torch.bool).scatter_(1, pool_rows, pool_alive)
        # Retrieval among writes that have left the pool, at least in part.
        outside = ~in_pool.unflatten(1, (-1, K)).all(-1) & self.known_by_write_QW
        gold = history.gold_Q
        force = self.force_Q & (gold >= 0)
        known = scores_QW.masked_fill(~self.known_by_write_QW, -torch.inf)
        margin = 16 * torch.rand(questions, generator=self.generator)  # from hardly to fully decisive
        scores_QW[force, gold[force]] = (torch.maximum(known.amax(1), null) + margin)[force]
        found = scores_QW.masked_fill(~outside, -torch.inf).topk(self.retrieved, 1).indices
        found = found.gather(1, self.rank_QW.gather(1, found).argsort(1))
        exists = outside.gather(1, found)
        rows = (found[..., None] * K + torch.arange(K)).flatten(1)
        alive = exists.repeat_interleave(K, 1) & ~in_pool.gather(1, rows)
        rows, alive = torch.cat([rows, pool_rows], 1), torch.cat([alive, pool_alive], 1)
        slot_scores = scores_QW.gather(1, rows // K).masked_fill(~alive, -torch.inf)
        best = torch.maximum(slot_scores.amax(1, keepdim=True), null)
        bias = slot_bias(torch.cat([null.expand(questions, 1), slot_scores], 1), best, self.strength)
        if self.recency:
            writes, order = rows // K, history.order_QW
            read = torch.zeros_like(scores_QW).scatter_reduce_(1, writes, alive.float(), "amax") > 0
            old = superseded(scores_QW.gather(1, order), read.gather(1, order))
            old_QW = torch.empty_like(scores_QW).scatter_(1, order, old)
            bias[:, 1:] -= self.recency * old_QW.gather(1, writes)
        answerable = gold >= 0
        hit = ((found == gold[:, None]) & exists).any(1) | ~outside.gather(1, gold.clamp_min(0)[:, None])[:, 0]
        self.recall.append(hit[answerable].float().mean())
        return rows, alive, bias
