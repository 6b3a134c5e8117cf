"""One training loop for all stages: draw a batch, write the streams, ask, learn; with checkpoints and resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ConfigError
from ..hf import MemoryCache, VectorSource
from ..model import MemoryModel
from .bank import BankSource, History
from .data import Batch, Mix, Prose, Rows, Streams
from .facts import UNKNOWN

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum; the next one shows only its difference (`dataclasses.replace`).

    steps: optimizer steps. lr: of Muon on the layers' matrices; the rest learns with AdamW, the retriever at
    `lr_retriever`, embeddings, norms, start and offset at `lr_rest`.
    decay: the last share of the steps in which all of them fall linearly to zero.
    mixes: how streams and questions are drawn; each step takes one of them.
    others: least and most writes of other streams in a history.
    pool: N in training. retrieved: writes read from the long-term store, K0 / K; 0 is MemoryLLM.
    in_context: share of steps that ask about text in the window, without memory.
    pending: share of the other steps in which some text is still in the window.
    force: share of questions whose right write is retrieved whatever its score.
    """

    name: str
    steps: int
    mixes: tuple[Mix, ...] = (Mix(),)
    lr: float = 0.02
    lr_rest: float = 0.003
    lr_retriever: float = 0.01
    warmup: int = 20
    decay: float = 0.0
    others: tuple[int, int] = (0, 0)
    pool: int = 32
    retrieved: int = 0
    in_context: float = 0.0
    pending: float = 0.0
    force: float = 0.0
    lm_weight: float = 0.15
    retriever_weight: float = 0.5


def write_streams(model: MemoryModel, chunks_BTn: Tensor, lm_share: float) -> tuple[list[Tensor], Tensor]:
    """Write T chunks a stream, the gradient kept within each chunk.

    Returns:
        per layer the vectors [B * T, K, D], and the language-modelling loss of a share of the chunks.
    """
    decoder, width = model.attachment.decoder, model.base.config.hidden_size
    streams, chunks, _ = chunks_BTn.shape
    nothing = torch.zeros(streams, 0, width)
    written: list[list[Tensor]] = []
    losses = []
    for t in range(chunks):
        seen = [v.detach() for v in written[-1]] if t else [nothing] * len(model.attachment.layers)
        cache = model.write_cache(seen)
        ids = chunks_BTn[:, t]
        hidden = decoder(ids, past_key_values=cache, use_cache=True).last_hidden_state
        written.append(cache.kept)
        some = max(1, round(streams * lm_share))
        logits = model.base.lm_head(hidden[:some, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1).float(), ids[:some, 1:].flatten()))
    vectors = [torch.stack(layer, 1).flatten(0, 1) for layer in zip(*written, strict=True)]
    return vectors, torch.stack(losses).mean()


class Trainer:
    """Trains a model through stages.

    Every batch and every draw is a function of (stage, step, rank), so a resumed run is the uninterrupted one. Under
    `torchrun` each process draws its own batches and gradients are averaged.

    Args:
        model: trained in place.
        prose: the distracting text.
        stages: the curriculum, in order.
        folder: for checkpoints and `log.jsonl`.
    """

    def __init__(self, model: MemoryModel, prose: Prose, stages: list[Stage], folder: Path) -> None:
        self.model, self.stages, self.folder = model, stages, folder
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.streams = Streams(prose, model.tokenizer)
        self.held_out = Streams(prose, model.tokenizer, split="held_out")
        matrices = [p for p in model.base.model.layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        retriever = list(model.retriever.parameters())
        chosen |= {id(p) for p in retriever}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.optimizers = [
            torch.optim.Muon(matrices, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0),
            torch.optim.AdamW(retriever, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.stage_index = self.step = 0

    @property
    def stage(self) -> Stage:
        """The stage at hand."""
        return self.stages[self.stage_index]

    def loss(self, batch: Batch, generator: torch.Generator, shared: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch and its figures.

        Args:
            batch: of this process.
            generator: for what each process draws.
            shared: for what all processes draw alike, the sub-task, so that they have equal work.
        """
        model, stage = self.model, self.stage
        assert model.start is not None
        layers = len(model.attachment.layers)
        draws = torch.rand(2, generator=shared).tolist()
        in_context, pending = draws[0] < stage.in_context, draws[1] < stage.pending
        questions = batch.questions
        with model.attachment.hooks(), torch.autocast("cpu", torch.bfloat16):
            if in_context:
                return self._in_context(batch)
            vectors, lm = write_streams(model, batch.chunks_BTn, 0.25)
            chunks = batch.chunks_BTn.shape[1]
            writes = len(vectors[0])
            gold_Q = torch.tensor([-1 if q.chunk is None else q.stream * chunks + q.chunk for q in questions])
            stale = torch.zeros(len(questions), writes, dtype=torch.bool)
            for i, q in enumerate(questions):
                stale[i, [q.stream * chunks + c for c in q.stale]] = True
            first_Q = torch.tensor([q.first_person for q in questions])
            streams_Q = torch.tensor([q.stream for q in questions])
            own = torch.arange(writes)[None] // chunks == streams_Q[:, None]
            forbidden = first_Q[:, None] & batch.first_person_BT.flatten()[None] & ~own
            contexts: list[list[int]] = [[] for _ in questions]
            if pending:
                contexts, moved = self._pending(batch, gold_Q, generator)
                forbidden[moved, gold_Q[moved]] = True
                gold_Q[moved] = -1
            rows = Rows.of(contexts, [[q] for q in questions])
            history = History.draw(streams_Q, gold_Q, stale, forbidden, chunks, stage.others, generator)
            source = BankSource(
                model.attachment, model.retriever, vectors, model.start, history, rows.asks_QT,
                pool_vectors=stage.pool, retrieved_writes=stage.retrieved, strength=model.config.score_bias,
                recency=model.config.recency, key_group=model.config.key_group,
                force_Q=torch.rand(len(questions), generator=generator) < stage.force,
                generator=generator,
            )  # fmt: skip
            cache = MemoryCache(source, layers)
            hidden = model.attachment.decoder(rows.ids_QT, past_key_values=cache, use_cache=True).last_hidden_state
        answer, right = self._answers(hidden, rows, len(questions))
        retriever = torch.stack(source.losses).mean()
        loss = answer + stage.lm_weight * lm + stage.retriever_weight * retriever
        figures = self._figures(questions, right) | {
            "answer": answer.item(), "lm": lm.item(), "retriever": retriever.item(),
            "recall": [round(r.item(), 3) for r in source.recall],
        }  # fmt: skip
        return loss, figures

    def _answers(self, hidden: Tensor, rows: Rows, questions: int) -> tuple[Tensor, Tensor]:
        """Mean loss of the answers' tokens, and which questions got every token right."""
        wanted = rows.labels_QT >= 0
        logits = self.model.base.lm_head(hidden[wanted]).float()
        labels = rows.labels_QT[wanted]
        wrong = torch.zeros(questions).index_add(0, rows.owner_QT[wanted], (logits.argmax(-1) != labels).float())
        return F.cross_entropy(logits, labels), wrong == 0

    @staticmethod
    def _figures(questions: list[Any], right: Tensor) -> dict[str, float]:
        """Share of right answers by kind of question."""
        kinds: dict[str, list[float]] = {}
        for q, r in zip(questions, right.tolist(), strict=True):
            kind = "unknown" if q.chunk is None else "newest" if q.stale else "known"
            kinds.setdefault(kind, []).append(float(r))
        return {kind: sum(values) / len(values) for kind, values in kinds.items()}

    def _pending(self, batch: Batch, gold_Q: Tensor, generator: torch.Generator) -> tuple[list[list[int]], Tensor]:
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

    def _in_context(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions about the last chunks of their own stream, which are in the window as text; no memory."""
        model = self.model
        assert model.start is not None
        streams, chunks, length = batch.chunks_BTn.shape
        shown = min(chunks, max(1, 128 // length))
        questions = [
            replace(q, chunk=None, answer=self._unknown) if q.chunk is not None and q.chunk < chunks - shown else q
            for q in batch.questions
        ]
        grouped = [[q for q in questions if q.stream == stream] for stream in range(streams)]
        rows = Rows.of(batch.chunks_BTn[:, -shown:].flatten(1).tolist(), grouped)
        source = VectorSource(model.attachment, [s.expand(streams, 1, -1) for s in model.start])
        cache = MemoryCache(source, len(model.attachment.layers))
        hidden = model.attachment.decoder(rows.ids_QT, past_key_values=cache, use_cache=True).last_hidden_state
        answer, right = self._answers(hidden, rows, len(questions))
        text = shown * length
        logits = model.base.lm_head(hidden[::4, : text - 1])
        lm = F.cross_entropy(logits.flatten(0, 1).float(), rows.ids_QT[::4, 1:text].flatten())
        figures = {f"context_{k}": v for k, v in self._figures([q for g in grouped for q in g], right).items()}
        return answer + self.stage.lm_weight * lm, figures | {"context_answer": answer.item(), "lm": lm.item()}

    @property
    def _unknown(self) -> list[int]:
        return [*self.streams.encode(UNKNOWN), self.streams.eos]

    def rate(self) -> float:
        """The learning rate's factor at this step."""
        stage = self.stage
        warm = min(1.0, (self.step + 1) / stage.warmup) if stage.warmup else 1.0
        left = (stage.steps - self.step) / max(1, stage.steps * stage.decay) if stage.decay else 1.0
        return warm * min(1.0, left)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step."""
        began = time.perf_counter()
        place = self.stage_index * 1_000_000 + self.step
        batch = self.streams.batch(place, self.stage.mixes[self.step % len(self.stage.mixes)], rank=self.rank)
        drawn = time.perf_counter()
        loss, figures = self.loss(batch, *self._generators(place))
        loss.backward()
        if self.world > 1:
            self._average_gradients()
        norm = torch.stack([self._clip(optimizer) for optimizer in self.optimizers]).norm()
        factor = self.rate()
        rates = self.stage.lr, self.stage.lr_rest, self.stage.lr_retriever
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        now = time.perf_counter()
        return figures | {
            "stage": self.stage.name, "step": self.step, "loss": loss.item(), "norm": norm.item(),
            "data_s": drawn - began, "s": now - began, "tokens": batch.chunks_BTn.numel() * self.world,
        }  # fmt: skip

    def _generators(self, place: int) -> tuple[torch.Generator, torch.Generator]:
        """The process's own generator for a step, and the one that is alike in all."""
        return torch.Generator().manual_seed(place * 64 + self.rank), torch.Generator().manual_seed(place)

    @staticmethod
    def _clip(optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip each optimizer's gradients on their own: the retriever's are many times the others'."""
        return torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)

    def _average_gradients(self) -> None:
        parameters = list(self.model.parameters())
        flat = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
        )
        dist.all_reduce(flat)
        for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p) / self.world

    def evaluate(self, batches: int = 2) -> dict[str, Any]:
        """Figures on names never trained on."""
        total: dict[str, list[Any]] = {}
        for i in range(batches):
            with torch.no_grad():
                batch = self.held_out.batch(i, self.stage.mixes[-1], rank=self.rank)
                _, figures = self.loss(batch, *self._generators(i))
            for key, value in figures.items():
                total.setdefault(key, []).append(value)
        return {f"held_{k}": sum(v) / len(v) for k, v in total.items() if not isinstance(v[0], list)}

    def run(
        self, *, log_every: int = 10, eval_every: int = 100, save_every_s: float = 120, show: Show | None = None
    ) -> None:
        """Train to the end of the last stage. `show` is called with each step's figures."""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = time.perf_counter()
        while self.stage_index < len(self.stages):
            while self.step < self.stage.steps:
                figures = self.train_step()
                if show is not None:
                    show(figures)
                if self.step % eval_every == 0:
                    figures |= self.evaluate()
                if self.rank == 0 and (self.step % log_every == 0 or self.step == self.stage.steps):
                    with (self.folder / "log.jsonl").open("a") as log:
                        log.write(json.dumps({k: _short(v) for k, v in figures.items()}) + "\n")
                if time.perf_counter() - saved > save_every_s:
                    self.save()
                    saved = time.perf_counter()
            self.stage_index, self.step = self.stage_index + 1, 0
            self.save()

    def save(self) -> None:
        """Write a checkpoint: weights, optimizer states, the place in the curriculum. Atomic; no pickle."""
        if self.rank:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k != "base.lm_head.weight"}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        place = {"stage": str(self.stage_index), "step": str(self.step)}
        _replace(self.folder / "checkpoint.safetensors", tensors, place)

    def resume(self) -> bool:
        """Load the folder's checkpoint; False if there is none."""
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            place = file.metadata()
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        missing = self.model.load_state_dict(weights, strict=False)
        if missing.unexpected_keys or set(missing.missing_keys) - {"base.lm_head.weight"}:
            raise ConfigError(f"{path} does not fit this model: {missing}.")
        for i, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, j, name = key.split(".", 3)
                    whole["state"].setdefault(int(j), {})[name] = value
            optimizer.load_state_dict(whole)
        self.stage_index, self.step = int(place["stage"]), int(place["step"])
        return True


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _replace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file in one step: the old one stays until the new one is whole."""
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
