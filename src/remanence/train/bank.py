"""Long histories cheaply: a batch of written chunks as everybody's past.

Training with hundreds of earlier chunks would mean writing hundreds of chunks a question. Instead B streams of T chunks
are written once, and each question sees a history drawn from all B*T writes: its own stream's, in their order, at
random ages, among the others'. Pool and long-term store are drawn as use would leave them: a vector of age a is still
in the pool with the chance that random dropping gives it (M+ §3.1), the retriever chooses among the rest (§3.2).

Legend:  Q questions   W writes in the bank   K vectors a write   G keys a write   P slots   R retriever width
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.attachment import Attachment
from ..core.cache import Slots
from ..core.retrieval import best_allowed, bias_of_slots, summed, superseded
from ..core.retriever import Retriever
from .data import Batch, Question

STALE_SHARE = 0.4
_NEVER = -1e4  # a logit bias that hides a slot


@dataclass
class History:
    """The past of every question: which writes, in which order.

    order_QW: write indices, oldest first, those outside the history in front. known_QW: which places of `order_QW`
    are in the history. gold_Q: the write that holds the answer, -1 if none. stale_QW: by write, which ones hold an
    older answer to the same question. forbidden_QW: by write, which ones must not be in the history. share_Q: what the
    retriever's target gives the older answers.
    """

    order_QW: Tensor
    known_QW: Tensor
    gold_Q: Tensor
    stale_QW: Tensor
    forbidden_QW: Tensor
    share_Q: Tensor

    @classmethod
    def draw(
        cls,
        streams_Q: Tensor,
        gold_Q: Tensor,
        stale_QW: Tensor,
        forbidden_QW: Tensor,
        owner_W: Tensor,
        others: tuple[int, int],
        generator: torch.Generator,
        share_Q: Tensor | None = None,
    ) -> History:
        """Histories of own writes and between others[0] and others[1] writes of other streams, none that is forbidden.

        Own writes, those whose `owner_W` is the question's stream, keep their order. In a third of the histories they
        are the most recent past, else anywhere.
        """
        questions, writes = stale_QW.shape
        rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        own_QW = owner_W[None] == streams_Q[:, None]
        times_QW = rand(questions, writes)
        sorted_QW = times_QW.masked_fill(~own_QW, torch.inf).sort(1).values
        own_times = sorted_QW.gather(1, (own_QW.cumsum(1) - 1).clamp_min(0))
        recent = rand(questions, 1) < 0.33
        times_QW = torch.where(own_QW, own_times + recent, times_QW)
        span = rand(questions, 1) ** 2  # more short histories than long ones
        wanted = others[0] + span * (others[1] - others[0])
        drawn = rand(questions, writes).masked_fill(own_QW, 2).argsort(1).argsort(1) < wanted.round()
        known_QW = (own_QW | drawn) & ~forbidden_QW
        order_QW = torch.where(known_QW, times_QW, times_QW - 10).argsort(1)
        if share_Q is None:
            share_Q = torch.full((questions,), STALE_SHARE)
        return cls(order_QW, known_QW.gather(1, order_QW), gold_Q, stale_QW, forbidden_QW, share_Q)

    def targets(self) -> Tensor:
        """What the retriever should find [Q, 1 + W]: nothing (the first column), or the right write.

        An older answer to the same question gets a share: it cannot be told from the right write by what it says, and
        scores that differ by chance would hide from the reader which of the two is newer.
        """
        stale_QW = self.stale_QW & ~self.forbidden_QW
        share_QW = self.share_Q[:, None] * stale_QW / stale_QW.sum(1, keepdim=True).clamp_min(1)
        targets = torch.cat([share_QW.new_zeros(len(share_QW), 1), share_QW], 1)
        return targets.scatter_(1, self.gold_Q[:, None] + 1, 1 - targets.sum(1, keepdim=True))

    def to(self, device: torch.device) -> History:
        """The same on a device; histories are drawn on the CPU, alike everywhere."""
        return History(*(value.to(device) for value in vars(self).values()))


@dataclass
class Past:
    """Writes of earlier batches, without gradient, off the accelerator: the past of batches that have little.

    One per lane. vectors_LWKD: in their order; None before the first. owner_W: the number of the document that each is
    of. first_person_W: as in `Batch`. subjects: the same, for made-up facts. asked: by document, a question about
    it, for coming back to it (M+ App. D).
    """

    vectors_LWKD: Tensor | None = None
    owner_W: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    first_person_W: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    subjects: list[list[str]] = field(default_factory=list)
    asked: dict[int, Question] = field(default_factory=dict)
    documents: int = 0

    def __len__(self) -> int:
        return len(self.owner_W)

    def add(self, vectors: list[Tensor], batch: Batch, most: int) -> None:
        """Add a batch's writes; beyond `most` of them the oldest documents go."""
        streams, chunks, _ = batch.chunks_BTn.shape
        new = torch.stack([v.detach().cpu() for v in vectors])
        owner = torch.arange(streams).repeat_interleave(chunks) + self.documents
        for question in batch.questions:
            if question.chunk is not None:
                self.asked[question.stream + self.documents] = question
        self.documents += streams
        self.vectors_LWKD = new if self.vectors_LWKD is None else torch.cat([self.vectors_LWKD, new], 1)
        self.owner_W = torch.cat([self.owner_W, owner])
        self.first_person_W = torch.cat([self.first_person_W, batch.first_person_BT.flatten()])
        self.subjects += batch.subjects or [[] for _ in range(streams * chunks)]
        if len(self) > most:
            kept = self.owner_W[len(self) - most - 1] + 1  # documents stay whole
            where = self.owner_W >= kept
            self.vectors_LWKD = self.vectors_LWKD[:, where]
            self.owner_W, self.first_person_W = self.owner_W[where], self.first_person_W[where]
            self.subjects = [names for names, stays in zip(self.subjects, where.tolist(), strict=True) if stays]
            self.asked = {document: q for document, q in self.asked.items() if document >= kept}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON of it."""
        tensors = {} if self.vectors_LWKD is None else {"vectors": self.vectors_LWKD}
        tensors |= {"owner": self.owner_W, "first_person": self.first_person_W}
        asked = {str(document): vars(q) for document, q in self.asked.items()}
        return tensors, {"asked": asked, "subjects": self.subjects, "documents": self.documents}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Past:
        """From what `state` gave."""
        asked = {int(document): Question(**q) for document, q in meta["asked"].items()}
        own = tensors.get("vectors"), tensors["owner"], tensors["first_person"]
        return cls(*own, meta["subjects"], asked, meta["documents"])


class BankSlots:
    """The `SlotProvider` of a batch of questions that read a bank of writes.

    Args:
        attachment, retriever: of the model in training.
        vectors: per layer, the written vectors [W, K, D], with gradient.
        past: writes of earlier batches, which come after those of the batch in every table of writes; no gradient.
        start_LD: start vectors.
        history: the past of each question.
        asks_QT: the tokens that query the retriever.
        pool_vectors: N. pool_writes: how many of the newest writes may still have vectors in the pool.
        retrieved_writes: K0 / K.
        score_bias, recency, key_group, score, score_layers: of the memory config.
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
        score_bias: float,
        recency: float,
        key_group: int,
        force_Q: Tensor,
        generator: torch.Generator,
        past: Past | None = None,
        score: str = "block",
        score_layers: str = "own",
    ) -> None:
        self.score, self.score_layers = score, score_layers
        self.attachment, self.retriever, self.vectors, self.start_LD = attachment, retriever, vectors, start_LD
        device = vectors[0].device
        history = history.to(device)
        self.history, self.asks_QT, self.force_Q = history, asks_QT.to(device), force_Q.to(device)
        self.score_bias, self.recency, self.key_group, self.generator = score_bias, recency, key_group, generator
        self.past_LWKD = None if past is None else past.vectors_LWKD
        self.K = vectors[0].shape[1]
        self.writes = len(vectors[0]) + (0 if self.past_LWKD is None else self.past_LWKD.shape[1])
        self.pool_vectors = min(pool_vectors, self.writes * self.K)
        self.pool_writes = min(self.writes, 20 * pool_vectors // (4 * self.K))
        self.retrieved = min(retrieved_writes, self.writes)
        self.survival = 1 - self.K / pool_vectors if pool_vectors > self.K else 0.0
        self.length = 1 + self.retrieved * self.K + self.pool_vectors
        self.positions = torch.arange(self.length, device=device)[None]
        self.rank_QW = torch.empty_like(history.order_QW).scatter_(
            1, history.order_QW, torch.arange(self.writes, device=device).expand_as(history.order_QW)
        )
        self.targets = history.targets()
        self.known_by_write_QW = torch.empty_like(history.known_QW).scatter_(1, history.order_QW, history.known_QW)
        self.losses: list[Tensor] = []
        self.recall: list[Tensor] = []
        self._sum: Tensor | float = 0.0  # of the scores of the layers so far

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Draw the layer's pool, retrieve, and gather keys and values."""
        vectors_WKD = self.vectors[layer]
        past_WKD = None if self.past_LWKD is None else self.past_LWKD[layer].to(vectors_WKD)
        with torch.autocast(hidden_BTD.device.type, enabled=False):  # scores need float32
            scores_QW, null = self._scores(layer, hidden_BTD.float(), vectors_WKD.float(), past_WKD)
        with torch.no_grad():
            if self.score_layers == "mean":  # each layer's loss is of its own scores
                self._sum = summed(self._sum, scores_QW, null)
                scores_QW, null = self._sum / (layer + 1), torch.zeros_like(null)
            if self.score == "vector":
                rows, alive, bias = self._choose_vectors(scores_QW.detach(), null.detach())
            else:
                rows, alive, bias = self._choose(scores_QW.detach().clone(), null.detach())
        if past_WKD is not None:
            vectors_WKD = torch.cat([vectors_WKD, past_WKD])
        start_keys, start_values = self.attachment.project(layer, self.start_LD[layer][None])
        heads, width = start_keys.shape[-2:]
        start = torch.cat([start_keys.flatten(1), start_values.flatten(1)], -1)
        if rows.numel() < self.writes * self.K:  # few questions: project what they read
            keys, values = self.attachment.project(layer, F.embedding(rows, vectors_WKD.flatten(0, 1)))
            picked = torch.cat([keys.flatten(2), values.flatten(2)], -1)
        else:
            keys, values = self.attachment.project(layer, vectors_WKD)
            picked = F.embedding(rows, torch.cat([keys.flatten(2), values.flatten(2)], -1).flatten(0, 1))
        both = torch.cat([start.expand(len(rows), 1, -1), picked], 1).unflatten(-1, (2, heads, width))
        keys_QHPE = self.attachment.rotate(both[:, :, 0].transpose(1, 2), self.positions, layer)
        bias = torch.cat([bias[:, :1], bias[:, 1:].masked_fill(~alive, _NEVER)], 1)
        return Slots(keys_QHPE, both[:, :, 1].transpose(1, 2), bias)

    def _scores(
        self, layer: int, hidden_BTD: Tensor, vectors_WKD: Tensor, past_WKD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores [Q, W] of the bank's writes, or [Q, W * K] of its vectors, and the null score; the retriever's loss.

        Unlike the paper's, the loss of blocks reaches the hidden states too, so that they learn to be found. The keys
        of the past are made a second time in the backward pass: their activations would be most of a step's memory.
        """
        retriever, history = self.retriever, self.history
        if self.score == "vector":
            hidden_BTD, vectors_WKD = hidden_BTD.detach(), vectors_WKD.detach()
        queries = retriever.queries(layer, self.attachment.norm(layer, hidden_BTD))
        keys_WGR = self._keys(layer, vectors_WKD)
        if past_WKD is not None:
            # f_k must learn from them too: pushed up by the right writes and down by few others, all keys would grow.
            past = checkpoint(self._keys, layer, past_WKD, use_reentrant=False)
            keys_WGR = torch.cat([keys_WGR, past])
        asked = self.asks_QT.nonzero(as_tuple=True)
        products = queries[asked] @ keys_WGR.flatten(0, 1).T
        weight = 1 / self.asks_QT.sum(1)[asked[0]]
        if self.score == "vector":
            mean = products.new_zeros(len(queries), products.shape[1])
            mean = mean.index_add(0, asked[0], products.sigmoid() * weight[:, None])
            self.losses.append(self._published_loss(mean))
            return mean, torch.zeros_like(retriever.null[layer])  # the paper knows no "nothing relevant"
        best = products.unflatten(1, (len(keys_WGR), -1)).amax(-1) * retriever.scale
        scores = best.new_zeros(len(queries), len(keys_WGR)).index_add(0, asked[0], best * weight[:, None])
        null = retriever.null[layer]
        logits = torch.cat([null.expand(len(scores), 1), scores.masked_fill(history.forbidden_QW, _NEVER)], 1)
        self.losses.append(F.cross_entropy(logits, self.targets))
        return scores, null

    def _keys(self, layer: int, vectors_WKD: Tensor) -> Tensor:
        """Retriever keys [W, G, R] of writes."""
        return self.retriever.keys(layer, self.attachment.norm(layer, vectors_WKD.float()), self.key_group)

    def _published_loss(self, p_QV: Tensor) -> Tensor:
        """-log p of the right vectors and -log(1 - p) of all others in the history, half and half (M+ eq. 5)."""
        positive = (self.targets[:, 1:] > 0).repeat_interleave(self.K, 1)
        negative = self.known_by_write_QW.repeat_interleave(self.K, 1) & ~positive
        found = -(p_QV[positive] + 1e-5).log().sum() / positive.sum().clamp_min(1)
        refused = -(1 - p_QV[negative] + 1e-5).log().sum() / negative.sum().clamp_min(1)
        return (found + refused) / 2

    def _pool(self, questions: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors that outlived random dropping, oldest first: rows of the bank [Q, N], which of them exist; and
        of all rows [Q, W * K], whether they are among them."""
        history, K = self.history, self.K
        newest = history.order_QW[:, -self.pool_writes :]
        age = torch.arange(self.pool_writes - 1, -1, -1.0, device=device)[None, :, None]
        luck = torch.rand(questions, self.pool_writes, K, generator=self.generator).clamp_min(1e-9).to(device)
        life = luck.log() / math.log(self.survival) if self.survival > 0 else luck
        left = (life - age).masked_fill(~history.known_QW[:, -self.pool_writes :, None], -1e9)
        left = torch.where(age == 0, left + 1e6, left)  # the newest write is whole
        places = left.flatten(1).topk(self.pool_vectors, 1).indices.sort(1).values
        pool_rows = newest.gather(1, places // K) * K + places % K
        pool_alive = left.flatten(1).gather(1, places) > -1e8
        in_pool = torch.zeros(questions, self.writes * K, dtype=torch.bool, device=device)
        in_pool.scatter_(1, pool_rows, pool_alive)
        return pool_rows, pool_alive, in_pool

    def _choose_vectors(self, scores_QV: Tensor, null: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_choose`, each vector by its own score (M+ §3.2)."""
        history, K = self.history, self.K
        questions, device = len(scores_QV), scores_QV.device
        pool_rows, pool_alive, in_pool = self._pool(questions, device)
        outside = ~in_pool & self.known_by_write_QW.repeat_interleave(K, 1)
        own = history.gold_Q[:, None] == torch.arange(self.writes * K, device=device)[None] // K
        scores_QV = torch.where(own & self.force_Q[:, None], scores_QV + 1, scores_QV)
        times_QV = (self.rank_QW[..., None] * K + torch.arange(K, device=device)).flatten(1)
        found, exists = best_allowed(scores_QV, outside, times_QV, self.retrieved * K)
        read = in_pool.scatter(1, found, exists | in_pool.gather(1, found))
        self.recall.append(read[own].float().mean() if own.any() else torch.ones((), device=device))
        rows, alive = torch.cat([found, pool_rows], 1), torch.cat([exists, pool_alive], 1)
        slot_scores = scores_QV.gather(1, rows).masked_fill(~alive, -torch.inf)
        return rows, alive, bias_of_slots(slot_scores, null, self.score_bias)

    def _choose(self, scores_QW: Tensor, null: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the bank in reading order [Q, P-1], which of them exist, and the logit bias of all slots [Q, P]."""
        history, K = self.history, self.K
        questions, device = len(scores_QW), scores_QW.device
        pool_rows, pool_alive, in_pool = self._pool(questions, device)
        # Retrieval among writes that have left the pool, at least in part.
        outside = ~in_pool.unflatten(1, (-1, K)).all(-1) & self.known_by_write_QW
        gold = history.gold_Q
        force = self.force_Q & (gold >= 0)
        known = scores_QW.masked_fill(~self.known_by_write_QW, -torch.inf)
        # From hardly to fully decisive.
        margin = 16 * torch.rand(questions, generator=self.generator).to(device)
        scores_QW[force, gold[force]] = (torch.maximum(known.amax(1), null) + margin)[force]
        found, exists = best_allowed(scores_QW, outside, self.rank_QW, self.retrieved)
        rows = (found[..., None] * K + torch.arange(K, device=device)).flatten(1)
        alive = exists.repeat_interleave(K, 1) & ~in_pool.gather(1, rows)
        rows, alive = torch.cat([rows, pool_rows], 1), torch.cat([alive, pool_alive], 1)
        slot_scores = scores_QW.gather(1, rows // K).masked_fill(~alive, -torch.inf)
        bias = bias_of_slots(slot_scores, null, self.score_bias)
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
