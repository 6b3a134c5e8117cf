"""How long a run will take, said before its first step: a step's work, and what a token of it takes on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .bank import Past
from .data import Batch, Mix, Question
from .documents import DocumentMix
from .log import duration
from .objective import Place
from .settings import Stage

if TYPE_CHECKING:
    from .loop import Trainer

_TRIAL_TOKENS = 1024  # of the forward passes that tell how long a step will take
_FACT_TOKENS = 32  # of a question about a made-up fact with its answer, about


@dataclass(frozen=True)
class Work:
    """How much text a batch is: streams, their chunks, the tokens of a chunk; questions and their tokens."""

    streams: int
    chunks: float
    length: float
    questions: float
    asked: int

    @classmethod
    def of(cls, mix: Mix | DocumentMix) -> Work:
        """What batches of a mix are on average."""
        length = sum(mix.tokens) / 2
        if isinstance(mix, Mix):
            return cls(mix.streams, mix.chunks, length, mix.streams * mix.questions, _FACT_TOKENS)
        return cls(mix.streams, sum(mix.chunks) / 2, length, mix.streams, mix.target)

    @property
    def written(self) -> float:
        """Tokens that are written."""
        return self.streams * self.chunks * self.length

    @property
    def tokens(self) -> float:
        """Tokens that are written or read."""
        return self.written + self.questions * self.asked

    def within(self, most: int) -> Work:
        """A smaller batch of the same kind, of whole streams and chunks: of about `most` tokens, if it can be."""
        share = min(1.0, most / self.tokens)
        streams = max(1, int(self.streams * share))
        chunks = max(1, int(self.chunks * min(1.0, share * self.streams / streams)))
        each = max(1, round(self.questions / self.streams))
        return Work(streams, chunks, int(self.length), streams * each, min(self.asked, max(_FACT_TOKENS, most // 4)))

    def batch(self, vocabulary: int) -> Batch:
        """Made-up tokens."""
        shape = self.streams, int(self.chunks), int(self.length)
        ids = torch.arange(math.prod(shape)).remainder(vocabulary).view(shape)
        text = ids.flatten().repeat(1 + self.asked // ids.numel())[: self.asked].tolist()
        cut = max(1, self.asked // 2)
        questions = [
            Question(text[:cut], text[cut:], i % self.streams, 0, [], alike=True) for i in range(int(self.questions))
        ]
        return Batch(ids, torch.zeros(shape[:2], dtype=torch.bool), questions)

    def passes(self, stage: Stage, recompute: bool) -> float:
        """Tokens that a step computes: forward, and with a gradient backward too, which takes twice as long."""
        backward = 3 if recompute else 2
        learnt = 1.0 if stage.gradient is None else min(1.0, stage.gradient / self.chunks)
        read = self.questions * self.asked * (1 + stage.revisit)
        return self.written * (1 + backward * learnt) + read * (1 + backward)


@torch.no_grad()
def forecast(trainer: Trainer) -> list[tuple[Stage, int, float]]:
    """The stages that are left: each with its steps that are left, and about how many seconds one takes.

    Reckoned from forward passes of a little made-up text, a kind of batch each; nothing is learnt and no data is
    drawn. All processes call this.
    """
    trainer.model.eval()
    each: dict[Work, float] = {}  # by a small batch, what a token of it takes
    left = []
    for index, stage in enumerate(trainer.stages[trainer.stage_index :]):
        steps = stage.steps - (0 if index else trainer.step)
        if not steps:
            continue
        seconds = 0.0
        for whole in map(Work.of, stage.mixes):
            small = whole.within(_TRIAL_TOKENS)
            if not each:  # what comes first also makes what later ones find made
                _token(trainer, small, stage)
            if small not in each:
                each[small] = _token(trainer, small, stage)
            seconds += whole.passes(stage, trainer.engine.recompute) * each[small]
        left.append((stage, steps, len(trainer.own) * seconds / len(stage.mixes)))
    return left


def _token(trainer: Trainer, work: Work, stage: Stage) -> float:
    """Seconds a token of a forward pass of a batch."""
    batch = work.batch(len(trainer.model.tokenizer))
    plain = replace(stage, in_context=0.0, pending=0.0, revisit=0.0)
    began = time.perf_counter()
    loss, _ = trainer.parallel.wrapped(batch, plain, Place(0), Past())
    loss.item()  # an accelerator's work is done when its result is there
    return (time.perf_counter() - began) / work.tokens


def in_words(stages: list[tuple[Stage, int, float]]) -> str:
    """What is still to be done, and about how long it takes."""
    said = [f"{s.name}: {n:,} step{'s' * (n > 1)} of about {duration(seconds)}" for s, n, seconds in stages]
    whole = sum(steps * seconds for _, steps, seconds in stages)
    return "; ".join(said) + f". In all about {duration(whole)}, without measuring and saving."
