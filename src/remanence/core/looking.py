"""Looking at writes one by one: which of those that the search takes for the best answers the question (`looks`).

A search knows a write by a few keys, which were made before anybody asked. A reader that has the write before it tells
much better whether it answers. So the best writes are read side by side, each alone, and compared by how likely the
reader is not to say "I don't know."; the question is then answered from the one that is most likely to answer it. Where
two writes are about as likely, the newer one is taken: what was told last counts.

This is not in the papers. M+ reads all it retrieves together (`looks = 0`), and leaves the choice to attention, which a
small model is bad at.

Legend:  B rows   T tokens   P memory slots   C writes that are looked at   K vectors a write   D hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .cache import MemoryCache, Slots
from .memory import Memory
from .read import Reader, Source, StoredVectors, source
from .search import Found

_WEIGHT = 0.4  # of the search's score beside the reader's odds
_MARGIN = 2.0  # a newer write is taken from this much below the best one on
_SUPPRESSED = 0.2  # from this probability of "I don't know." on, a reader that is to answer is kept from saying it
_SURE = 1e-6  # the reader's probabilities are not trusted beyond


@dataclass(frozen=True)
class Looked:
    """What looking at writes gave, best first.

    writes: their numbers. scores: of each, above zero if it is taken for one that answers: the logarithm of the odds
    that the reader does not say "I don't know.", and a part of how much better than "nothing relevant" the search found
    it, less `doubt`. likely: how likely the reader is to say "I don't know." to each.
    """

    writes: list[int]
    scores: list[float]
    likely: list[float]

    @property
    def answers(self) -> bool | None:
        """Whether the best write is taken for one that answers; None if there is none."""
        return self.scores[0] >= 0 if self.writes else None

    @property
    def best(self) -> int | None:
        """The write to answer from; None if there is none."""
        return self.writes[0] if self.writes else None

    def sources(self, memory: Memory) -> list[Source]:
        """The writes as sources of an answer."""
        pooled = set((memory.pool_rows_Ln // memory.config.K).flatten().tolist())
        return [
            source(memory, index, score, memory.layers, index in pooled)
            for index, score in zip(self.writes, self.scores, strict=True)
        ]


@dataclass(frozen=True)
class Begun:
    """A prompt that was read already, but for its last token.

    cache: with one row. mask: which slots there are, and the tokens of the prompt [1, P + T].
    """

    cache: MemoryCache
    mask: Tensor


def candidates(memory: Memory, found: Found, count: int) -> list[int]:
    """The writes that the search takes for the best, by number."""
    scores, places = found.scores.topk(min(count, len(found.scores)))
    return [memory.first_write + place for place in places[scores > -torch.inf].tolist()]


def first_beside(memory: Memory, write: int) -> int:
    """The first write that is read with a write: the one before it, or itself if there is none."""
    return write - 1 + int(memory.begins(torch.tensor([write]))[0])


@torch.no_grad()
def look(
    model: Reader, memory: Memory, prompt: Sequence[int], writes: Sequence[int], found: Found, unknown: Sequence[int]
) -> tuple[Looked, Begun]:
    """Read a prompt with each of some writes, inside `attachment.hooks()` and with the adapter for reading.

    Args:
        model: reads.
        memory: holds the writes.
        prompt: tokens.
        writes: their numbers; at least one.
        found: what the search says of them.
        unknown: the tokens of "I don't know."

    Returns:
        What it gave, and the prompt as it was read with the best of the writes.
    """
    slots = WriteSlots(model, [memory] * len(writes), writes)
    device = model.attachment.device
    ids_BT = torch.tensor([[*prompt, *unknown[:-1]]] * len(writes), device=device)
    mask = torch.cat([slots.mask(), torch.ones_like(ids_BT)], 1)
    places = mask.sum(1, keepdim=True) - ids_BT.shape[1] + torch.arange(ids_BT.shape[1], device=device)
    cache = MemoryCache(slots, len(model.attachment.layers))
    hidden = model.attachment.decoder(
        ids_BT, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, len(prompt) - 1 :]
    logits = model.attachment.logits(hidden).float().log_softmax(-1).cpu()
    told = torch.tensor(unknown)[None, :, None].expand(len(writes), -1, 1)
    ignorant = logits.gather(-1, told)[..., 0].sum(1).exp().clamp(_SURE, 1 - _SURE)
    searched = found.scores[torch.tensor(writes) - memory.first_write] - found.null
    scores = torch.log((1 - ignorant) / ignorant) + _WEIGHT * searched
    looked = ranked((scores - model.config.doubt).tolist(), writes, ignorant.tolist())
    row = list(writes).index(looked.writes[0])
    cache.batch_select_indices(torch.tensor([row], device=device))
    cache.crop(-len(unknown))  # back to before the last token of the prompt
    return looked, Begun(cache, mask[row : row + 1, : slots.length + len(prompt)])


def ranked(scores: Sequence[float], writes: Sequence[int], likely: Sequence[float]) -> Looked:
    """Writes by their scores, but first the newest of those that are about as good as the best."""
    order = sorted(zip(scores, writes, likely, strict=True), reverse=True)
    newest = max((each for each in order if each[0] > order[0][0] - _MARGIN), key=lambda each: each[1])
    order = [newest, *(each for each in order if each != newest)]
    return Looked([write for _, write, _ in order], [score for score, _, _ in order], [each for _, _, each in order])


class Verdict(LogitsProcessor):
    """Lets `generate` answer as looking has decided.

    Where nothing answers, it says "I don't know." Where something does, it does not begin to say so.

    Args:
        looked: of each prompt. unknown: the tokens of "I don't know." prompt: tokens of the padded prompts.
    """

    def __init__(self, looked: Sequence[Looked], unknown: Sequence[int], prompt: int) -> None:
        self.looked, self.unknown, self.prompt = looked, unknown, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Of each row the scores of the next token [B, V]."""
        step, repeats = input_ids.shape[1] - self.prompt, len(scores) // len(self.looked)
        scores = scores.clone()
        for row, looked in enumerate(one for one in self.looked for _ in range(repeats)):
            if looked.answers is False and step < len(self.unknown):
                kept = scores[row, self.unknown[step]].clone()
                scores[row] = -torch.inf
                scores[row, self.unknown[step]] = kept.clamp_min(-1e4)
            elif looked.answers and not step and looked.likely[0] > _SUPPRESSED:
                scores[row, self.unknown[0]] = -torch.inf
        return scores


class WriteSlots:
    """The `SlotProvider` of single writes: per row [start; the write before; the write], without any bias.

    Rows with less are padded in front; positions count from 0 at each row's first slot.

    Args:
        model: reads.
        memories: one per row.
        writes: the write that each row reads, or None for none. It is in the long-term store.
    """

    def __init__(self, model: Reader, memories: Sequence[Memory], writes: Sequence[int | None]) -> None:
        self.model, K = model, model.config.K
        self._start_rows = model.start_rows()
        self._spans: list[Tensor] = []  # by row: rows of its memory
        for memory, write in zip(memories, writes, strict=True):
            first = 0 if write is None else first_beside(memory, write)
            self._spans.append(torch.arange(first * K, 0 if write is None else (write + 1) * K))
        self._places: dict[Memory, list[int]] = {}
        for row, memory in enumerate(memories):
            self._places.setdefault(memory, []).append(row)
        start = int(self._start_rows is not None)
        own = torch.tensor([start + len(span) for span in self._spans])
        self.length = max(1, int(own.max()))
        device = model.attachment.device
        self._padding = (self.length - own).to(device)
        self._positions = (torch.arange(self.length, device=device)[None] - self._padding[:, None]).clamp_min(0)
        self._stored = {memory: StoredVectors(model, memory) for memory in self._places}

    def mask(self) -> Tensor:
        """Which slots exist [B, P]."""
        return (torch.arange(self.length, device=self._padding.device)[None] >= self._padding[:, None]).long()

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """The layer's slots of all rows."""
        repeats = len(hidden_BTD) // len(self._spans)  # several answers a prompt: each row is there that many times
        width = next(iter(self._places)).width
        front = hidden_BTD.new_zeros(len(self._spans), self.length, width)
        for memory, places in self._places.items():
            wanted = torch.cat([self._spans[place] for place in places])
            rows, at = torch.unique(wanted, return_inverse=True)
            vectors = self._stored[memory].at(layer, rows).to(front)
            done = 0
            for place in places:
                count = len(self._spans[place])
                if count:
                    front[place, self.length - count :] = vectors[at[done : done + count].to(vectors.device)]
                done += count
        if self._start_rows is not None:
            rows_B = torch.arange(len(front), device=front.device)
            front[rows_B, self._padding.to(front.device)] = self._start_rows[layer].to(front)
        made = self.model.attachment.slots(layer, front, self._positions.to(front.device), self.model.whole)
        if repeats == 1:
            return made
        return Slots(made.keys.repeat_interleave(repeats, 0), made.values.repeat_interleave(repeats, 0))
