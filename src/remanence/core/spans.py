"""What is looked at by itself (`looking.py`): a write with the one before it, or a few sentences of what was written.

A write is cut where its K tokens end, and holds the end of one sentence, two others and the beginning of a fourth. A
small reader that has only the sentences that matter answers more, and tells much better whether they answer at all. So
with `look_at="sentences"` the writes that the search found are cut into spans at the ends of their sentences and texts
(`sentences`); those that fit the question best are looked at.

A sentence loses what stood once before all of its text: the day, and whose words they are. So a span has its *head*,
"[7 May 2023] Ada:", where its text or its line begins with one; it is read before the span.

A span is a row of vectors that follow each other. That asks for one vector a token (K = `chunk_tokens`), and for the
texts of the writes (`keep_text`), which tell where sentences end. A write without its text is cut every 20 tokens.

Legend:  K vectors a write   G keys a write   R key size   T tokens of the question   S spans
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .memory import Memory
from .retriever import rows_of
from .search import Question
from .writes import Part

_LONG = 40  # tokens of a span; a text that is no longer is one span
_SHORT = 6  # a sentence of fewer tokens stays with the one beside it
_ENDS = re.compile(r"[.!?…][\"')\]’”»]*(?=\s)|\n")
_DAY = re.compile(r"\s*\[[^\]\n]{1,40}\]")
_SPEAKER = re.compile(r"\s*[^\W\d_][\w.'’-]*(?: [^\W\d_][\w.'’-]*){0,2}:(?=\s)")


@dataclass(frozen=True)
class Span:
    """Vectors first .. end - 1 of every layer, by row in the long-term store, as they were written one by one.

    head: rows before them that are read with them: the day and the speaker of their text.
    """

    first: int
    end: int
    head: tuple[int, ...] = ()

    @property
    def rows(self) -> list[int]:
        """All rows, in reading order."""
        return [*self.head, *range(self.first, self.end)]

    def moved(self, by: int) -> Span:
        """The same, so many rows further on."""
        return Span(self.first + by, self.end + by, tuple(row + by for row in self.head))

    def writes(self, K: int) -> list[int]:
        """The writes that they are of, but for the head."""
        return list(range(self.first // K, (self.end - 1) // K + 1))

    def all_writes(self, K: int) -> list[int]:
        """The writes that they are of, the head's too, in order."""
        return sorted({row // K for row in self.head}.union(self.writes(K)))

    def write(self, K: int) -> int:
        """The write that most of them are of; the newer one of two."""
        return max(self.writes(K), key=lambda w: (min(self.end, (w + 1) * K) - max(self.first, w * K), w))


def rows_together(spans: Iterable[Span]) -> Tensor:
    """The rows of spans that are read together, the oldest first, int64 [rows]."""
    ordered = sorted(spans, key=lambda span: span.first)
    return torch.tensor([row for span in ordered for row in span.rows], dtype=torch.long)


@dataclass(frozen=True)
class Begin:
    """What is known of a row at which a sentence begins.

    text: whether a text does. head: rows of the day and the speaker that hold for it; its own may be among them.
    """

    text: bool
    head: tuple[int, ...] = ()


def first_beside(memory: Memory, write: int) -> int:
    """The first write that is read with a write: the one before it, or itself if there is none."""
    return write - 1 + int(memory.begins(torch.tensor([write]))[0])


def pairs(memory: Memory, writes: Iterable[int]) -> list[Span]:
    """Each write with the one before it."""
    K = memory.config.K
    return [Span(first_beside(memory, write) * K, (write + 1) * K) for write in writes]


def sentences(
    memory: Memory, writes: Mapping[int, float], tokenizer: Any, question: Question, count: int
) -> tuple[list[Span], Tensor]:
    """The spans of some writes that fit a question best, best first, at most `count`; and their scores.

    A text of up to 40 tokens is one span. Of a longer one every sentence is, with as many of the sentences before it as
    40 tokens have room for. A span is scored as a write is, by those keys and words that are of its own tokens, and the
    words of its head; and the score of its write is added, which knows what stands around it.

    Args:
        memory: read.
        writes: their scores by number; spans that begin or end in the writes beside them count too.
        tokenizer: of the model that wrote them.
        question: what is searched for.
        count: of spans.
    """
    found, wanted, K = list[Span](), set(writes), memory.config.K
    for run in _runs(memory, wanted):
        own = spans_of(_begins(memory, run, tokenizer), run[0] * K, (run[-1] + 1) * K)
        found += [span for span in own if not wanted.isdisjoint(span.writes(K))]
    if not found:
        return [], torch.zeros(0)
    around = torch.tensor([max(writes.get(write, -torch.inf) for write in span.writes(K)) for span in found])
    best = (scores_of(memory, found, question) + around).topk(min(count, len(found)))
    return [found[i] for i in best.indices.tolist()], best.values


def unfinished(memory: Memory, tokenizer: Any) -> Span | None:
    """The last span of a memory, if its text goes on in what waits in the window (`Memory.pending`).

    Args:
        memory: read.
        tokenizer: of the model that wrote it.
    """
    last = memory.write_count - 1
    if not memory.pending or last < memory.first_write or not memory.config.long_term:
        return None
    waits, [*_, told] = memory.pending[0], memory.writes[last].parts()
    goes_on = Part(waits.source, waits.time, 0, waits.tags).continues(told)
    if not goes_on or {piece.origin for piece in memory.pending} != {memory.origin(last)[0]}:
        return None
    K = memory.config.K
    near = range(max(memory.first_write, last - _LONG // K), last + 1)
    run = next((run for run in _runs(memory, set(near)) if run[-1] == last), None)
    return None if run is None else spans_of(_begins(memory, run, tokenizer), run[0] * K, (last + 1) * K)[-1]


def _runs(memory: Memory, writes: set[int]) -> list[list[int]]:
    """The writes, and those beside them that may be read, in runs that follow each other."""
    near = sorted(writes | {w - 1 for w in writes} | {w + 1 for w in writes})
    near = [w for w in near if memory.first_write <= w < memory.write_count]
    numbers = torch.tensor(near, dtype=torch.long)
    runs = list[list[int]]()
    for write, readable, begins in zip(near, memory.may_read(numbers), memory.begins(numbers), strict=True):
        if not readable:
            continue
        if runs and runs[-1][-1] == write - 1 and not begins:
            runs[-1].append(write)
        else:
            runs.append([write])
    return [run for run in runs if not writes.isdisjoint(run)]


def begins_of(text: str, texts: Collection[int], row: Callable[[int], int | None]) -> dict[int, Begin]:
    """The rows at which sentences begin, in order.

    Args:
        text: what follows each other in memory, of one text or of several.
        texts: the characters at which a text begins.
        row: of a character; None if there is none.
    """

    def rows_of_match(match: re.Match[str] | None) -> set[int]:
        characters = range(*match.span()) if match else ()
        return {at for character in characters if (at := row(character)) is not None}

    found = dict[int, Begin]()
    day, speaker, start = set[int](), set[int](), 0
    for place in sorted({*texts, *(end.end() for end in _ENDS.finditer(text))}):
        if place in texts:
            day, start = set(), place
        if place in texts or (text[place - 1] == "\n" and text[start:place].strip()):
            own_day = _DAY.match(text, place)
            day = rows_of_match(own_day) if own_day else day
            speaker = rows_of_match(_SPEAKER.match(text, own_day.end() if own_day else place))
        at = row(place)
        if at is None:
            break
        found[at] = Begin(place in texts or (at in found and found[at].text), tuple(sorted(day | speaker)))
    return found


def _begins(memory: Memory, run: Sequence[int], tokenizer: Any) -> dict[int, Begin]:
    """The rows at which sentences begin in writes that follow each other."""
    K, said, texts, found = memory.config.K, "", set[int](), dict[int, Begin]()
    ends, rows = list[int](), list[int]()
    last = None if run[0] == memory.first_write else [*memory.writes[run[0] - 1].parts()][-1]
    for write in run:
        record = memory.writes[write]
        if record.text is None or not getattr(tokenizer, "is_fast", False):
            found[write * K], last = Begin(True), None
            continue
        at = len(said)
        for part in record.parts():
            if last is None or not part.continues(last):
                texts.add(at)
            at, last = at + part.characters, part
        offsets = tokenizer(
            record.text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        # What was cut inside a word may fall into other tokens when it is read again; then it is about here.
        ratio = K / max(1, len(offsets))
        ends += [len(said) + end for _, end in offsets]
        rows += [write * K + int(token * ratio) for token in range(len(offsets))]
        said += record.text

    def row(character: int) -> int | None:
        token = bisect_right(ends, character)
        return rows[token] if token < len(rows) else None

    return found | begins_of(said, texts, row)


def spans_of(begins: Mapping[int, Begin], first: int, end: int) -> list[Span]:
    """The spans of the rows first .. end - 1.

    Args:
        begins: the rows where a sentence begins.
        first, end: rows.
    """
    starts = sorted({first, *(row for row in begins if first < row < end)})
    texts = list[list[Span]]()
    for start, stop in itertools.pairwise([*starts, end]):
        if start == first or begins[start].text:
            texts.append([])
        last = texts[-1][-1] if texts[-1] else Span(start, start)
        if texts[-1] and min(stop - start, last.end - last.first) < _SHORT and stop - last.first <= _LONG:
            texts[-1][-1] = Span(last.first, stop)
        else:
            parts = -(-(stop - start) // (_LONG // 2)) if stop - start > _LONG else 1
            cuts = [start + (stop - start) * i // parts for i in range(parts + 1)]
            texts[-1] += [Span(a, b) for a, b in itertools.pairwise(cuts)]

    def headed(begin: int, stop: int) -> Span:
        sentence = starts[bisect_right(starts, begin) - 1]
        head = begins[sentence].head if sentence in begins else ()
        return Span(begin, stop, tuple(row for row in head if row < begin))

    found = list[Span]()
    for text in texts:
        if text[-1].end - text[0].first <= _LONG:
            found.append(headed(text[0].first, text[-1].end))
            continue
        for sentence in text:
            begin = min(
                each.first for each in text if each.first <= sentence.first and sentence.end - each.first <= _LONG
            )
            found.append(headed(begin, sentence.end))
    return found


def scores_of(memory: Memory, spans: Sequence[Span], question: Question) -> Tensor:
    """How well spans of a memory fit a question, as a search scores writes, float32 [S]."""
    K = memory.config.K
    numbers = torch.unique(torch.tensor([write for span in spans for write in span.all_writes(K)]))
    keys_wGR = rows_of(memory.keys(0), numbers - memory.first_write)
    words_wK = rows_of(memory.words(), numbers - memory.first_write)
    return scores_among(numbers, keys_wGR, words_wK, spans, question)


def text_of(memory: Memory, span: Span) -> str | None:
    """The text of the writes that a span of a memory and its head are of; None if the memory keeps none.

    A word that was cut at the end of a write is left out, unless the span has all of it.
    """
    K, found = memory.config.K, list[str]()
    for _, run in itertools.groupby(enumerate(span.all_writes(K)), key=lambda pair: pair[1] - pair[0]):
        writes = [write for _, write in run]
        texts = [memory.writes[write].text for write in writes]
        if None in texts:
            return None
        text, rows = "".join(map(str, texts)), [row for row in span.rows if row // K in writes]
        text = text if min(rows) == writes[0] * K else re.sub(r"\A\S+", "", text)
        found.append(text if max(rows) == (writes[-1] + 1) * K - 1 else re.sub(r"\S+\Z", "", text))
    return " ".join(found)


def words_of(memory: Memory, span: Span) -> Tensor:
    """The words of a span of a memory, and of its head, int16 [rows]."""
    K, numbers = memory.config.K, torch.tensor(span.all_writes(memory.config.K))
    return rows_of(memory.words(), numbers - memory.first_write).flatten()[_places(torch.tensor(span.rows), numbers, K)]


def _places(rows: Tensor, numbers: Tensor, K: int) -> Tensor:
    """Where rows are among those of some writes, whose numbers are given in order."""
    return torch.searchsorted(numbers, rows // K) * K + rows % K


def scores_among(
    numbers: Tensor, keys_wGR: Tensor, words_wK: Tensor, spans: Sequence[Span], question: Question
) -> Tensor:
    """How well spans of some writes fit a question, float32 [S].

    Args:
        numbers: of the writes, in order. keys_wGR, words_wK: theirs.
        spans: of these writes alone, with their heads.
        question: what is searched for.
    """
    K, group = words_wK.shape[1], words_wK.shape[1] // keys_wGR.shape[1]
    words_X = words_wK.flatten()
    products_TX = question.queries @ keys_wGR.flatten(0, 1).float().T * question.scale
    held_TX = question.words[:, None] == words_X
    scores = torch.zeros(len(spans))
    for place, span in enumerate(spans):
        # Its rows lie together here too: the writes of a span follow each other.
        first = int(torch.searchsorted(numbers, span.first // K)) * K + span.first % K
        end = first + span.end - span.first
        best = products_TX[:, first // group : -(-end // group)].amax(1)
        held_T = held_TX[:, first:end].any(1)
        if span.head:
            held_T = held_T | held_TX[:, _places(torch.tensor(span.head), numbers, K)].any(1)
        scores[place] = best.mean() + question.weights[held_T].sum()
    return scores
