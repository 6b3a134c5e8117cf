"""Looking at what was found, one by one: which of it answers the question (`MemoryConfig.looks`).

A search knows a write by a few keys, which were made before anybody asked. A reader that has it before it tells much
better whether it answers. So the best writes, or the best sentences of them (`spans.py`), are read side by side, each
alone, and compared by how likely they are to answer: by a judge (`judge.py`), or without one by how likely the reader
is not to say "I don't know." The question is then answered from the one that is most likely to answer it. Where two are
about as likely, or both are taken for answers and found about as well, the newer one is taken: what was told last
counts.

This is not in the papers. M+ reads all it retrieves together (`looks = 0`), and leaves the choice to attention, which a
small model is bad at.

Legend:  B rows   T tokens   P memory slots   C spans that are looked at   K vectors a write   D hidden size
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .cache import MemoryCache, Slots, there
from .forgetting import SENTENCE
from .memory import Memory
from .read import Reader, Source, StoredVectors, check_forced, source
from .search import Found, Question
from .spans import Span, pairs, rows_together, sentences, unfinished, words_of

# Weight of the search's score beside the odds; how far below the best one a newer one may be to be taken.
_OF_WRITES, _OF_SENTENCES, _JUDGED = (0.4, 2.0), (0.3, 0.5), (0.1, 0.5)
_SAID = 0.3, 6.0  # weight of the reader's own word beside the judge's, and its most
_ALIKE = 2.0  # how far below the best one a newer one that answers may be in the search, to be taken (with a judge)
_NAMED = 5.0, 0.85  # what all words of the question in it add to the judge's odds; from which share of them on
_TOGETHER = 3  # sentences that a first look reads together
_GROUPS = 2  # of these groups, the best whose sentences are then looked at by themselves
_SUPPRESSED = 0.2  # from this probability of "I don't know." on, a reader that is to answer is kept from saying it
_SURE = 1e-6  # the reader's probabilities are not trusted beyond


@dataclass(frozen=True)
class Candidates:
    """What is worth a look, best first.

    searched: how well the search found each, for its part of their scores [C]. question: what was searched for.
    """

    spans: list[Span]
    searched: Tensor
    question: Question | None = None


@dataclass(frozen=True)
class Looked:
    """What looking at spans gave, best first.

    spans: what was looked at; an empty one is what waits in the window, behind its head. scores: of each, at least zero
    if it is taken for one that answers: the logarithm of the odds that it answers, and a part of how well the search
    found it, less `doubt`. likely: how likely the reader is to begin with "I don't know." K: vectors a write.
    """

    spans: list[Span]
    scores: list[float]
    likely: list[float]
    K: int

    @property
    def answers(self) -> bool | None:
        """Whether the best span is taken for one that answers; None if there is none."""
        return self.scores[0] >= 0 if self.spans else None

    @property
    def best(self) -> Span | None:
        """What to answer from; None if there is nothing."""
        return self.spans[0] if self.spans else None

    def sources(self, memory: Memory) -> list[Source]:
        """The writes that were looked at as sources of an answer, each once."""
        pooled = set((memory.pool_rows_Ln // self.K).flatten().tolist())
        best = dict[int, float]()
        for span, score in zip(self.spans, self.scores, strict=True):
            if span.end > span.first:
                best.setdefault(span.write(self.K), score)
            elif span.head:
                best.setdefault(span.head[-1] // self.K, score)
        return [source(memory, write, score, memory.layers, write in pooled) for write, score in best.items()]


@dataclass(frozen=True)
class Begun:
    """A prompt that was read already, but for its last token.

    cache: with one row. mask: which slots there are, and the tokens of the prompt [1, P + T].
    """

    cache: MemoryCache
    mask: Tensor


def candidates(model: Reader, memory: Memory, found: Found, chosen: int | None = None) -> Candidates:
    """What the search takes for worth a look (`MemoryConfig.look_at`).

    Args:
        model: reads.
        memory: searched.
        found: what the search gave.
        chosen: a write; then this one alone, or nothing if it is hidden.

    Raises:
        InputError: the long-term store does not hold the chosen write.
    """
    config = model.config
    if chosen is not None:
        check_forced(memory, chosen)
    most = config.looks if config.look_at == "writes" else 2 * config.looks
    scores, places = found.scores.topk(min(most, len(found.scores)))
    writes = [memory.first_write + place for place in places[scores > -torch.inf].tolist()]
    if chosen is not None:
        writes = [chosen] if memory.may_read(torch.tensor([chosen])).all() else []
    if not (writes and config.long_term):
        return Candidates([], torch.zeros(0), found.question)
    if config.look_at == "writes" or found.question is None:
        searched = found.scores[torch.tensor(writes) - memory.first_write] - found.null
        return Candidates(pairs(memory, writes), searched, found.question)
    best = dict(zip(writes, found.scores[torch.tensor(writes) - memory.first_write].tolist(), strict=True))
    spans, searched = sentences(memory, best, model.tokenizer, found.question, _TOGETHER * config.looks)
    return Candidates(spans, searched - searched[0], found.question)


@torch.no_grad()
def look(
    model: Reader,
    memory: Memory,
    waiting: Sequence[int],
    asked: Sequence[int],
    some: Candidates,
    unknown: Sequence[int],
) -> tuple[Looked, Begun]:
    """Read a question with each of some spans, inside `attachment.hooks()` and with the adapter for reading.

    Of more spans than there are `looks`, several are read together first; then those of the best of these groups alone.
    What waits in the window is looked at too, as text before the question, and counts as newer than all of them. With
    sentences, if its text began in the memory, the last span of that is read before it.

    Args:
        model: reads.
        memory: holds the spans.
        waiting: tokens in the window; or none.
        asked: tokens of the question.
        some: spans; at least one if nothing waits.
        unknown: the tokens of "I don't know."

    Returns:
        What it gave, and the question as it was read with the best of it.
    """
    looks, count, stored = model.config.looks, len(some.spans), StoredVectors(model, memory)
    if count > looks:
        groups = [list(range(count))[i::looks] for i in range(looks)]
        odds = _Read(model, stored, asked, [[some.spans[i] for i in group] for group in groups], unknown).odds
        kept = [i for group in odds.topk(min(_GROUPS, looks)).indices.tolist() for i in groups[group]]
        some = Candidates([some.spans[i] for i in kept], some.searched[kept], some.question)
    alone = Alone(model, stored, waiting, asked, some, unknown)
    scores = [score - model.config.doubt for score in alone.scores]
    found = None if model.judge is None else [*some.searched.tolist(), *([math.inf] if waiting else [])]
    looked = ranked(scores, alone.spans, alone.likely, model.config.K, _weights(model)[1], found)
    return looked, alone.begun(alone.spans.index(looked.spans[0]))


class Alone:
    """A question read with each of some spans by itself, and with what waits.

    Args:
        model, waiting, asked, some, unknown: as for `look`; all of the spans are read.
        stored: vectors of the memory that holds them.

    Attributes:
        spans: what was read; what waits is last. scores: how likely each is to answer, as in `Looked`, but without
        `doubt` [C]. likely: how likely the reader is to begin with "I don't know." [C]. features: what the judge saw,
        [C, J * D]; None without one.
    """

    def __init__(
        self,
        model: Reader,
        stored: StoredVectors,
        waiting: Sequence[int],
        asked: Sequence[int],
        some: Candidates,
        unknown: Sequence[int],
    ) -> None:
        memory = stored.memory
        self.spans, self.scores, self._reads = list(some.spans), list[float](), list[_Read]()
        if some.spans:
            self._reads.append(_Read(model, stored, asked, [[span] for span in some.spans], unknown))
            named = _named(model, some.question, _by_sentence(model, memory, some.spans))
            self.scores += (self._reads[0].odds + _weights(model)[0] * some.searched + named).tolist()
        if waiting:
            begun = unfinished(memory, model.tokenizer) if model.config.look_at == "sentences" else None
            end = memory.write_count * model.config.K
            window = Span(end, end, () if begun is None else tuple(begun.rows))
            self._reads.append(_Read(model, stored, [*waiting, *asked], [[window]], unknown))
            self.spans.append(window)
            text = model.text_of(waiting)
            said = [_words(model, sentence.strip()) for sentence in SENTENCE.findall(text) or [text]]
            if window.head:
                said[0] = torch.cat([words_of(memory, window), said[0]])
            self.scores += (self._reads[-1].odds + _named(model, some.question, [said])).tolist()
        self.likely = [each for read in self._reads for each in read.ignorant.tolist()]
        seen = [read.features for read in self._reads if read.features is not None]
        self.features = torch.cat(seen) if seen else None

    def begun(self, place: int) -> Begun:
        """The question as it was read with one of the spans."""
        first = self._reads[0]
        return first.begun(place) if place < len(first.ignorant) else self._reads[1].begun(0)


def _weights(model: Reader) -> tuple[float, float]:
    """How much the search's score counts beside the odds, and how far below the best one a newer one may be."""
    if model.judge is not None:
        return _JUDGED
    return _OF_WRITES if model.config.look_at == "writes" else _OF_SENTENCES


def _named(model: Reader, question: Question | None, told: Iterable[Sequence[Tensor]]) -> Tensor:
    """What it adds to a judge's odds that one sentence has all words of the question [C].

    A judge is taught by questions that avoid the words that were told, as those of real conversations often do. Where
    all of them are there, it doubts too much. Somebody's question has its words too, and answers nothing.

    Args:
        model, question: who asks what.
        told: of what is looked at the words of each sentence.
    """
    if model.judge is None or question is None:
        return torch.zeros(1)
    (most, least), mark = _NAMED, _words(model, "?")
    shares = torch.tensor(
        [max(0.0 if torch.isin(mark, own).any() else question.share(own) for own in sentences) for sentences in told]
    )
    return most * (shares - least).clamp_min(0) / (1 - least)


def _by_sentence(model: Reader, memory: Memory, spans: Iterable[Span]) -> Iterator[list[Tensor]]:
    """Of each span the words of each sentence, behind those of its head."""
    signs = torch.cat([_words(model, sign) for sign in ".!?"])
    for span in spans:
        words, head = words_of(memory, span), len(span.head)
        ends = torch.isin(words, signs).nonzero()[:, 0].tolist()
        cuts = [at + 1 for at in ends if head <= at < len(words) - 1]
        yield [torch.cat([words[:head], words[a:b]]) for a, b in itertools.pairwise([head, *cuts, len(words)])]


def _words(model: Reader, text: str) -> Tensor:
    """The words of a text, int16 [T]."""
    words: Tensor = model.retriever.words(torch.tensor(model.encode(text), dtype=torch.long))
    return words.cpu()


class _Read:
    """A prompt that was read once for each of some groups of spans.

    odds: the logarithm of the odds that the reader does not say "I don't know."; with a judge, of those that a group
    answers, and a part of the reader's [C]. ignorant: how likely the reader is to say it [C]; with a judge, to begin
    with it. features: what the judge saw [C, J * D]; None without one.
    """

    def __init__(
        self,
        model: Reader,
        stored: StoredVectors,
        prompt: Sequence[int],
        groups: Sequence[Sequence[Span]],
        unknown: Sequence[int],
    ) -> None:
        judge = model.judge
        slots, device = SpanSlots(model, [stored.memory] * len(groups), groups, stored), model.attachment.device
        behind = [] if judge is not None else unknown[:-1]
        ids_BT = torch.tensor([[*prompt, *behind]] * len(groups), device=device)
        self._mask = torch.cat([slots.mask(), torch.ones_like(ids_BT)], 1)
        places = self._mask.sum(1, keepdim=True) - ids_BT.shape[1] + torch.arange(ids_BT.shape[1], device=device)
        self._cache = MemoryCache(slots, len(model.attachment.layers))
        read = model.attachment.decoder(
            ids_BT, attention_mask=self._mask, position_ids=places, past_key_values=self._cache, use_cache=True,
            output_hidden_states=judge is not None,
        )  # fmt: skip
        logits = model.attachment.logits(read.last_hidden_state[:, len(prompt) - 1 :]).float().log_softmax(-1).cpu()
        told = torch.tensor(unknown[: logits.shape[1]])[None, :, None].expand(len(groups), -1, 1)
        self.ignorant = logits.gather(-1, told)[..., 0].sum(1).exp()
        self.odds, self.features = speaks(self.ignorant), None
        if judge is not None:
            states = [read.hidden_states[layer][:, -1].to(device) for layer in model.config.judge_layers]
            weight, most = _SAID
            self.features = judge.features(states)
            self.odds = judge(self.features).cpu() + weight * self.odds.clamp(-most, most)
        self._behind, self._columns = len(behind) + 1, slots.length + len(prompt)

    def begun(self, row: int) -> Begun:
        """The prompt as it was read with one of the groups; the others are gone."""
        self._cache.batch_select_indices(torch.tensor([row], device=self._mask.device))
        self._cache.crop(-self._behind)  # back to before the last token of the prompt
        return Begun(self._cache, self._mask[row : row + 1, : self._columns])


def speaks(ignorant: Tensor) -> Tensor:
    """The logarithm of the odds that a reader does not say "I don't know.", which it says with these probabilities."""
    return -torch.logit(ignorant, _SURE)


def ranked(
    scores: Sequence[float], spans: Sequence[Span], likely: Sequence[float], K: int, margin: float,
    found: Sequence[float] | None = None,
) -> Looked:  # fmt: skip
    """Spans by their scores, but first the newest of those that are less than `margin` below the best.

    Where the best one is taken for one that answers, so must be the newer one.

    Args:
        scores, spans, likely, K: as in `Looked`, in any order.
        margin: of scores.
        found: how well the search found each. Then a newer one may be further below the best, if it is taken for one
            that answers and was found about as well: the same was told again, and is another now.
    """
    order = sorted(range(len(spans)), key=lambda i: (scores[i], spans[i].first), reverse=True)
    best = order[0]
    near = [
        i for i in order if i == best or (scores[i] > scores[best] - margin and (scores[i] >= 0 or scores[best] < 0))
    ]
    if found is not None:
        near += [i for i in order if scores[i] >= 0 and found[i] > found[best] - _ALIKE]
    newest = max(near, key=lambda i: spans[i].first)
    order = [newest, *(i for i in order if i != newest)]
    return Looked([spans[i] for i in order], [scores[i] for i in order], [likely[i] for i in order], K)


class Verdict(LogitsProcessor):
    """Lets `generate` answer as looking has decided.

    Where nothing answers, it says "I don't know." and no more. Where something does, it does not begin to say so.

    Args:
        looked: of each prompt. unknown: the tokens of "I don't know." stops: those that end an answer. prompt: tokens
            of the padded prompts.
    """

    def __init__(self, looked: Sequence[Looked], unknown: Sequence[int], stops: Sequence[int], prompt: int) -> None:
        self.looked, self.unknown, self.stops, self.prompt = looked, unknown, list(stops), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Of each row the scores of the next token [B, V]."""
        step, repeats = input_ids.shape[1] - self.prompt, len(scores) // len(self.looked)
        scores = scores.clone()
        for row, looked in enumerate(one for one in self.looked for _ in range(repeats)):
            if looked.answers is False:
                wanted = self.unknown[step : step + 1] or self.stops
                kept = scores[row, wanted].clone()
                scores[row] = -torch.inf
                scores[row, wanted] = kept.clamp_min(-1e4)
            elif looked.answers and not step and looked.likely[0] > _SUPPRESSED:
                scores[row, self.unknown[0]] = -torch.inf
        return scores


class SpanSlots:
    """The `SlotProvider` of a few spans: per row [start; the spans, oldest first], without any bias.

    Rows with less are padded in front; positions count from 0 at each row's first slot.

    Args:
        model: reads.
        memories: one per row.
        spans: what each row reads, all in the long-term store; or nothing.
        stored: vectors of one of the memories that were read before, so that they need not be encoded again.
    """

    def __init__(
        self,
        model: Reader,
        memories: Sequence[Memory],
        spans: Sequence[Sequence[Span]],
        stored: StoredVectors | None = None,
    ) -> None:
        self.model = model
        self._front_rows = model.front_rows()
        self._spans = [rows_together(group) for group in spans]  # by row: rows of its memory
        self._places: dict[Memory, list[int]] = {}
        for row, memory in enumerate(memories):
            self._places.setdefault(memory, []).append(row)
        start = 0 if self._front_rows is None else len(self._front_rows[0])
        own = torch.tensor([start + len(span) for span in self._spans])
        self.length = max(1, int(own.max()))
        device = model.attachment.device
        self._padding = (self.length - own).to(device)
        self._positions = (torch.arange(self.length, device=device)[None] - self._padding[:, None]).clamp_min(0)
        rows_B1 = torch.arange(len(own), device=device)[:, None]
        self._fronts_at = rows_B1, self._padding[:, None] + torch.arange(start, device=device)
        self._stored = {memory: StoredVectors(model, memory) for memory in self._places}
        if stored is not None:
            self._stored[stored.memory] = stored

    def mask(self) -> Tensor:
        """Which slots exist [B, P]."""
        return there(self.length, self._padding)

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
        if self._front_rows is not None:
            rows_B1, places_BP = (each.to(front.device) for each in self._fronts_at)
            front[rows_B1, places_BP] = self._front_rows[layer].to(front)
        made = self.model.attachment.slots(layer, front, self._positions.to(front.device), self.model.whole)
        if repeats == 1:
            return made
        return Slots(made.keys.repeat_interleave(repeats, 0), made.values.repeat_interleave(repeats, 0))
