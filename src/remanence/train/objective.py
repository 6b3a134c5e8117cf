"""The loss of one batch: write its streams, ask about them with everybody's writes as the past, compare the answers.

Legend:  B streams   T chunks   n tokens of a chunk   Q questions   W writes   K vectors a write   D hidden size
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.attachment import VectorSlots
from ..core.cache import MemoryCache, SlotProvider
from ..errors import ConfigError
from ..models.pretrained import MemoryModel
from .bank import STALE_SHARE, BankSlots, History, Past
from .data import Batch, Question, Rows
from .settings import Stage


@dataclass(frozen=True)
class Place:
    """Where training is: every draw is a function of it. `step` counts over all stages."""

    step: int
    lane: int = 0

    def generator(self) -> torch.Generator:
        """For what each lane draws."""
        return torch.Generator().manual_seed(self.step * 64 + self.lane)

    def shared(self) -> torch.Generator:
        """For what all lanes draw alike, the sub-task, so that they use the same weights."""
        return torch.Generator().manual_seed(self.step)


class Objective(nn.Module):
    """A model with the loss it is trained on; engines wrap this module.

    Args:
        model: in training.
        precision: "bfloat16" runs the layers under autocast.
        recompute: gradient checkpointing of the layers.
        unknown: tokens of the answer to what was never told; None where questions are never of that kind.
    """

    def __init__(
        self, model: MemoryModel, *, precision: str = "bfloat16", recompute: bool = False,
        unknown: list[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if model.start is None or model.retriever is None:
            raise ConfigError("training needs memory.start and a retriever of its own (memory.retriever).")
        self.model, self.precision, self.recompute, self.unknown = model, precision, recompute, unknown

    def forward(
        self, batch: Batch, stage: Stage, place: Place, past: Past | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss and its figures.

        Args:
            batch: of one lane.
            stage, place: what is drawn, and how.
            past: the lane's writes of earlier batches; this batch's are added.
        """
        device = self.model.base.device
        draws = torch.rand(2, generator=place.shared()).tolist()
        in_context, pending = draws[0] < stage.in_context, draws[1] < stage.pending
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with self.model.attachment.hooks(), autocast:
            if in_context:
                return self._in_context(batch, stage)
            return self._in_memory(batch, stage, place, past, pending)

    def _in_memory(
        self, batch: Batch, stage: Stage, place: Place, past: Past | None, pending: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        model, generator = self.model, place.generator()
        config = model.config
        assert model.start is not None
        vectors, lm = self.write(batch.chunks_BTn, stage)
        streams, chunks, _ = batch.chunks_BTn.shape
        old = past if past is not None and stage.earlier and len(past) else None
        owner_W = torch.arange(streams).repeat_interleave(chunks)
        first_person_W = batch.first_person_BT.flatten()
        if old is not None:
            owner_W = torch.cat([owner_W, streams + old.owner_W])
            first_person_W = torch.cat([first_person_W, old.first_person_W])
        questions = batch.questions + ([] if old is None else _revisited(old, streams, batch, stage, generator))
        streams_Q = torch.tensor([q.stream for q in questions])
        begin_Q = (owner_W[None] == streams_Q[:, None]).int().argmax(1)
        gold_Q = torch.tensor([-1 if q.chunk is None else q.chunk for q in questions])
        gold_Q = torch.where(gold_Q < 0, gold_Q, gold_Q + begin_Q)
        stale_QW = torch.zeros(len(questions), len(owner_W), dtype=torch.bool)
        for i, q in enumerate(questions):
            stale_QW[i, [int(begin_Q[i]) + c for c in q.stale]] = True
        first_Q = torch.tensor([q.first_person for q in questions])
        forbidden_QW = first_Q[:, None] & first_person_W[None] & (owner_W[None] != streams_Q[:, None])
        if old is not None:
            for i, q in enumerate(batch.questions):  # of such a name another batch tells something else
                if q.subject:
                    namesakes = [q.subject in told for told in old.subjects]
                    forbidden_QW[i, streams * chunks :] |= torch.tensor(namesakes)
        contexts: list[list[int]] = [[] for _ in questions]
        apart = torch.zeros(0, dtype=torch.long)  # questions with a chunk in the window that is not in their memory
        if pending:
            texts, moved = _pending(batch, gold_Q[: len(batch.questions)], generator)
            contexts[: len(texts)] = texts
            apart = moved.nonzero().flatten()
            forbidden_QW[apart, gold_Q[apart]] = True
            gold_Q[apart] = -1
        share_Q = torch.tensor([len(q.stale) / (len(q.stale) + 1) if q.alike else STALE_SHARE for q in questions])
        rows = Rows.of(contexts, [[q] for q in questions])
        history = History.draw(
            streams_Q, gold_Q, stale_QW, forbidden_QW, owner_W, stage.others, generator, share_Q
        )  # fmt: skip
        bank = BankSlots(
            model.attachment, model.retriever, vectors, model.start, history, rows.asks_QT,
            pool_vectors=stage.pool, retrieved_writes=stage.retrieved, score_bias=config.score_bias,
            recency=config.recency, key_group=config.key_group,
            force_Q=torch.rand(len(questions), generator=generator) < stage.force, generator=generator, past=old,
            score=config.score, score_layers=config.score_layers,
        )  # fmt: skip
        hidden = self._read(bank, rows.ids_QT)
        answer, right = self._answers(hidden, rows, len(questions))
        retriever = torch.stack(bank.losses).mean()
        length = batch.chunks_BTn.shape[-1]
        kept, from_base = self._kept(stage, hidden[apart.to(hidden.device), :length], rows.ids_QT[apart, :length])
        loss = answer + stage.lm_weight * lm + stage.retriever_weight * retriever + kept
        if past is not None and stage.earlier:
            past.add(vectors, batch, stage.earlier)
        return loss, _figures(questions, right) | from_base | {
            "answer": answer.item(), "lm": lm.item(), "retriever": retriever.item(),
            "recall": [round(r.item(), 3) for r in bank.recall],
        }  # fmt: skip

    def _pass(self, role: str) -> AbstractContextManager[Any]:
        """One pass through the layers with the adapter for "write" or "read"."""
        stack = ExitStack()
        stack.enter_context(self.model.adapter(role))
        if self.recompute:
            stack.enter_context(self.model.attachment.recomputing(lambda: self.model.adapter(role)))
        return stack

    def _read(self, provider: SlotProvider, ids_QT: Tensor) -> Tensor:
        """The last hidden states [Q, T, D] of tokens that read memory slots."""
        attachment = self.model.attachment
        with self._pass("read"):
            cache = MemoryCache(provider, len(attachment.layers))
            ids = ids_QT.to(self.model.base.device)
            hidden: Tensor = attachment.decoder(ids, past_key_values=cache, use_cache=True).last_hidden_state
        return hidden

    def write(self, chunks_BTn: Tensor, stage: Stage) -> tuple[list[Tensor], Tensor]:
        """Write T chunks a stream, the gradient kept within each of the last `stage.gradient` chunks.

        Returns:
            per layer the vectors [B * T, K, D], and the language-modelling loss of a share of the chunks.
        """
        model = self.model
        decoder, device = model.attachment.decoder, model.base.device
        streams, chunks, _ = chunks_BTn.shape
        width = model.attachment.width
        context = [torch.zeros(streams, 0, width, device=device)] * len(model.attachment.layers)
        written: list[list[Tensor]] = []
        losses = [torch.zeros((), device=device)]
        learnt = max(1, round(streams * 0.25))
        for t in range(chunks):
            learns = torch.is_grad_enabled() and (stage.gradient is None or t >= chunks - stage.gradient)
            with torch.set_grad_enabled(learns), self._pass("write"):
                cache = model.write_cache(context)
                ids = chunks_BTn[:, t].to(device)
                hidden = decoder(ids, past_key_values=cache, use_cache=True).last_hidden_state
                written.append(cache.kept)
                if stage.lm_weight:
                    losses.append(self._text(hidden[:learnt], ids[:learnt]))
            context = [v.detach() for v in written[-1]]
        vectors = [torch.stack(layer, 1).flatten(0, 1) for layer in zip(*written, strict=True)]
        return vectors, torch.stack(losses).sum() / max(1, len(losses) - 1)

    def _answers(self, hidden: Tensor, rows: Rows, questions: int) -> tuple[Tensor, Tensor]:
        """Mean loss of the answers' tokens, and which questions got every token right."""
        device = hidden.device
        wanted = (rows.labels_QT >= 0).to(device)
        logits = self.model.attachment.logits(hidden[wanted]).float()
        labels = rows.labels_QT.to(device)[wanted]
        owner = rows.owner_QT.to(device)[wanted]
        wrong = torch.zeros(questions, device=device).index_add(0, owner, (logits.argmax(-1) != labels).float())
        return F.cross_entropy(logits, labels), wrong == 0

    def _text(self, hidden_RTD: Tensor, ids_RT: Tensor) -> Tensor:
        """Mean language-modelling loss of rows of text."""
        logits = self.model.attachment.logits(hidden_RTD[:, :-1].flatten(0, 1))
        return F.cross_entropy(logits.float(), ids_RT[:, 1:].flatten().to(logits.device))

    def _kept(self, stage: Stage, hidden_RTD: Tensor, ids_RT: Tensor) -> tuple[Tensor | float, dict[str, float]]:
        """How far the reader's next tokens in rows of text are from its base's: KL(base || reader), mean of tokens.

        Returns: it as a part of the loss, and as a figure; nothing where no weight or no adapter asks for it.
        """
        attachment, first = self.model.attachment, self.model.tokenizer.bos_token_id
        if not stage.keep_weight or self.model.lora is None or not len(ids_RT):
            return 0.0, {}
        ids = ids_RT.to(self.model.base.device)
        begin = ids[:, :0] if first is None else torch.full_like(ids[:, :1], first)  # a reader has its start vectors
        with torch.no_grad(), self.model.plain():
            states = attachment.decoder(torch.cat([begin, ids], 1), use_cache=False).last_hidden_state
            base = attachment.logits(states[:, begin.shape[1] :]).float().log_softmax(-1)
        reader = attachment.logits(hidden_RTD).float().log_softmax(-1)
        away = F.kl_div(reader, base, reduction="none", log_target=True).sum(-1).mean()
        return stage.keep_weight * away, {"from_base": away.item()}

    def _in_context(self, batch: Batch, stage: Stage) -> tuple[Tensor, dict[str, Any]]:
        """Questions about the last chunks of their own stream, which are in the window as text; no memory."""
        model = self.model
        assert model.start is not None
        streams, chunks, length = batch.chunks_BTn.shape
        shown = min(chunks, max(1, stage.context // length))
        questions = batch.questions
        if self.unknown is not None:
            questions = [
                replace(q, chunk=None, answer=self.unknown)
                if q.chunk is not None and not q.alike and q.chunk < chunks - shown
                else q
                for q in questions
            ]
        grouped = [[q for q in questions if q.stream == stream] for stream in range(streams)]
        rows = Rows.of(batch.chunks_BTn[:, -shown:].flatten(1).tolist(), grouped)
        start = VectorSlots(model.attachment, [s.expand(streams, 1, -1) for s in model.start])
        hidden = self._read(start, rows.ids_QT)
        answer, right = self._answers(hidden, rows, len(questions))
        text, ids = hidden[::4, : shown * length], rows.ids_QT[::4, : shown * length]
        lm = self._text(text, ids) if stage.lm_weight else torch.zeros(())
        kept, from_base = self._kept(stage, text, ids)
        loss = answer + stage.lm_weight * lm + kept
        figures = {f"context_{k}": v for k, v in _figures([q for g in grouped for q in g], right).items()}
        return loss, figures | from_base | {"context_answer": answer.item(), "lm": lm.item()}


def _revisited(past: Past, streams: int, batch: Batch, stage: Stage, generator: torch.Generator) -> list[Question]:
    """Questions about documents of earlier batches; their stream comes after the batch's own."""
    documents = sorted(past.asked)
    wanted = stage.revisit * len(batch.questions)
    count = int(wanted) + int(torch.rand((), generator=generator) < wanted % 1)
    picks = torch.randperm(len(documents), generator=generator)[:count].tolist()
    return [replace(past.asked[documents[i]], stream=streams + documents[i]) for i in picks]


def _pending(batch: Batch, gold_Q: Tensor, generator: torch.Generator) -> tuple[list[list[int]], Tensor]:
    """Text still in the window. For a third of the answerable questions it is the chunk with the answer, which then
    is not in memory; for the others the end of some chunk that has nothing to do with them.

    Returns: the texts, and the questions [Q] whose answer is in the window.
    """
    chunks_WD = batch.chunks_BTn.flatten(0, 1)
    moved = (gold_Q >= 0) & (torch.rand(len(gold_Q), generator=generator) < 0.33)
    moved &= torch.tensor([not q.stale for q in batch.questions])
    plain = (~batch.first_person_BT.flatten()).nonzero().flatten()
    plain = plain if len(plain) else torch.zeros(1, dtype=torch.long)
    picks = plain[torch.randint(len(plain), (len(gold_Q),), generator=generator)]
    sizes = torch.randint(1, chunks_WD.shape[1], (len(gold_Q),), generator=generator)
    own = torch.tensor([q.stream for q in batch.questions]) == picks // batch.chunks_BTn.shape[1]
    sizes[own] = 0
    sizes[moved] = chunks_WD.shape[1]
    picks[moved] = gold_Q[moved]
    texts = [row[len(row) - size :] for row, size in zip(chunks_WD[picks].tolist(), sizes.tolist(), strict=True)]
    return texts, moved


def _figures(questions: list[Question], right: Tensor) -> dict[str, float]:
    """Share of right answers by kind of question; text that goes on is none."""
    kinds: dict[str, list[float]] = {}
    for q, r in zip(questions, right.tolist(), strict=True):
        if not q.alike:
            kind = "unknown" if q.chunk is None else "newest" if q.stale else "known"
            kinds.setdefault(kind, []).append(float(r))
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}
