"""From documents to batches: what a `Corpus` reads becomes streams to write and text to read.

Each document is cut as in the papers' training (M+ §3.3, App. D): T chunks of n tokens that are written, then a target
that is read with loss: the text that follows, "Repeat: " and the chunks themselves, or a question about them.

Every batch is a function of the seed, the lane (one a process) and the number of batches drawn: after `state` and
`load` a run sees exactly what an uninterrupted one would.

Legend: B streams, T chunks of a stream, n tokens of a chunk.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from .corpus import Corpus, Data, Row, expand
from .data import Batch, Question

SPLITS = ("train", "held_out", "all")
PROMPT = "Question: {question} Answer:"
REPEAT = "Repeat: "

_GIVEN = 5  # tokens of the text to repeat that are given away, as in the official code
_LEAST_LOSS = 16  # tokens with loss that a target of text has at least
_PATIENCE = 100_000  # documents in a row that do not fit, after which we say so
_WINDOW = 16  # characters kept a token wanted, when a piece is cut from a very long text before it is tokenised
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


@dataclass(frozen=True, kw_only=True)
class DocumentMix:
    """How batches are drawn from documents.

    streams: documents a batch. chunks: least and most chunks a document, T. tokens: least and most length of a chunk,
    n. Both are drawn once a step and are the same for all streams and all lanes. From a source with `least_tokens`, no
    more chunks are drawn than its shortest document has.
    target: most tokens that are read after the chunks, with the prompt. prompt: least and most of its first tokens that
    are read without loss: they query the retriever.
    repeat: share of documents whose target is "Repeat: " and the chunks themselves.
    questions: where a document has questions, share of the other targets that is one of them.
    """

    streams: int = 1
    chunks: tuple[int, int] = (1, 1)
    tokens: tuple[int, int] = (16, 512)
    target: int = 512
    prompt: tuple[int, int] = (8, 64)
    repeat: float = 0.1
    questions: float = 0.5

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ConfigError(f"streams is {self.streams}; give 1 or more.")
        for name, least in (("chunks", 1), ("tokens", _GIVEN + 1), ("prompt", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name} is {(low, high)}; give the least and the most, from {least} on.")
        if self.target <= self.prompt[1]:
            raise ConfigError(f"target is {self.target}; give more than the longest prompt, {self.prompt[1]} tokens.")
        for name in ("repeat", "questions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share from 0 to 1.")


@dataclass(frozen=True)
class _Part:
    """A document's place in the tokens of a stream: from `begin` to before `end`."""

    row: Row
    begin: int
    end: int


class Documents:
    """Draws batches from documents.

    Args:
        data: where documents come from. A `Data` whose path is in `RECIPES` stands for the recipe's parts, with its
            weight shared among them.
        tokenizer: makes tokens, without special ones; answers end with its eos.
        prompt: what is read before an answer, with "{question}" in it; may hold control tokens, e.g. of a chat.
        seed: another one draws other batches.
        lane, lanes: this process and how many there are. Each document goes to one lane.
        split: "train"; "held_out" for the documents never trained on; "all" for a file that is evaluated as a whole.

    Raises:
        ConfigError: a source that cannot be opened, or settings that cannot work.
    """

    def __init__(
        self,
        data: Sequence[Data],
        tokenizer: Any,
        *,
        prompt: str | None = None,
        seed: int = 0,
        lane: int = 0,
        lanes: int = 1,
        split: str = "train",
    ) -> None:
        if not data:
            raise ConfigError("there is no source of documents; give one or more.")
        if not 0 <= lane < lanes:
            raise ConfigError(f"lane is {lane} of {lanes}; give one from 0 to {lanes - 1}.")
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; give one of {', '.join(map(repr, SPLITS))}.")
        self.prompt = PROMPT if prompt is None else prompt
        if "{question}" not in self.prompt:
            raise ConfigError(f"the prompt {self.prompt!r} has no {{question}} in it; say where the question goes.")
        self.tokenizer, self.seed, self.lane, self.lanes, self.split = tokenizer, seed, lane, lanes, split
        self.drawn = 0
        self.corpora = [
            Corpus(part, seed=f"{seed}/{split}/{i}", lane=lane, lanes=lanes, split=split)
            for i, part in enumerate(part for given in data for part in expand(given))
        ]

    def batch(self, step: int, mix: DocumentMix) -> Batch:
        """The next batch.

        Args:
            step: with the seed, it gives the source and the sizes; processes that call with the same step have equal
                work.
            mix: how it is drawn.

        Returns:
            chunks_BTn, and one question a stream: its prompt is read without loss, its answer with loss. `chunk` is the
            one that holds a question's answer, if just one does. Otherwise it is the last chunk of the document (of
            what is to be repeated), and `stale` are the document's earlier ones.

        Raises:
            ConfigError: documents that cannot be read, or a whole epoch without one that is long enough.
        """
        shared = random.Random(f"{self.seed}/{step}")
        corpus = shared.choices(self.corpora, [c.data.weight for c in self.corpora])[0]
        length = shared.randint(*mix.tokens)
        low, high = mix.chunks
        if corpus.data.least_tokens is not None:
            free = corpus.data.least_tokens - mix.prompt[1] - _LEAST_LOSS
            high = max(low, min(high, free // length))
        chunks = shared.randint(low, high)
        rng = random.Random(f"{self.seed}/{self.split}/{self.lane}/{self.drawn}")
        rows, questions = [], []
        for stream in range(mix.streams):
            row, question = self._stream(corpus, rng, mix, chunks, length)
            question.stream = stream
            rows.append(row)
            questions.append(question)
        self.drawn += 1
        chunks_BTn = torch.tensor(rows).unflatten(1, (chunks, length))
        return Batch(chunks_BTn, torch.zeros(chunks_BTn.shape[:2], dtype=torch.bool), questions)

    def state(self) -> dict[str, Any]:
        """The exact place, as JSON; less than a kilobyte a source. Each lane has its own."""
        places = [corpus.state() for corpus in self.corpora]
        return {"version": 1, "drawn": self.drawn, "sources": places} | self._identity()

    def load(self, state: dict[str, Any]) -> None:
        """Go to a place: the batches that follow are those that followed there.

        Raises:
            ConfigError: a state of other settings, or of other data.
        """
        mine = {"version": 1} | self._identity()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine or len(state.get("sources", [])) != len(self.corpora):
            raise ConfigError(
                f"this place in the data is one of {theirs} with {len(state.get('sources', []))} sources, not of "
                f"{mine} with {len(self.corpora)}. Use the same settings and as many processes, or begin a new run."
            )
        self.drawn = state["drawn"]
        for corpus, place in zip(self.corpora, state["sources"], strict=True):
            corpus.load(place)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, which cannot spell control tokens."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "lane": self.lane, "lanes": self.lanes, "split": self.split}

    def _stream(
        self, corpus: Corpus, rng: random.Random, mix: DocumentMix, chunks: int, length: int
    ) -> tuple[list[int], Question]:
        """The tokens of one stream's chunks, and its target."""
        written = chunks * length
        prompt = rng.randint(*mix.prompt)
        repeat, ask = rng.random() < mix.repeat, rng.random() < mix.questions
        tail = 0 if repeat else min(mix.target, prompt + _LEAST_LOSS)
        need, want = written + tail, written + (0 if repeat else mix.target)
        ids, parts = self._text(corpus, rng, need, want, f"{chunks} chunks of {length} tokens and a target")
        if ask and not repeat:
            asked = self._ask(rng, ids, parts, chunks, length)
            if asked is not None:
                return asked
        begin = rng.randint(0, max(0, len(ids) - want))
        ids = ids[begin : begin + want]
        if repeat:
            instruction = self.encode(REPEAT)
            sentence = (instruction + ids)[: max(mix.target, len(instruction) + _GIVEN + 1)]
            given = len(instruction) + _GIVEN
            last = (len(sentence) - len(instruction) - 1) // length
            return ids, Question(sentence[:given], sentence[given:], 0, last, list(range(last)), alike=True)
        after = ids[written:]
        part = next(p for p in parts if begin + written < p.end)
        earliest = min(max(0, part.begin - begin) // length, chunks - 1)
        stale = list(range(earliest, chunks - 1))
        return ids[:written], Question(after[:prompt], after[prompt:], 0, chunks - 1, stale, alike=True)

    def _text(
        self, corpus: Corpus, rng: random.Random, need: int, want: int, wanted: str
    ) -> tuple[list[int], list[_Part]]:
        """Tokens of the next document that has `need` of them, or of several with questions, joined."""
        data = corpus.data
        least, most = data.least_tokens or 0, data.most_tokens
        if most is not None and most <= need:
            raise ConfigError(
                f"{wanted} take {need} tokens, but documents of {data.path} are below {most}. Lower the mix's `chunks` "
                "or `tokens`, or raise most_tokens."
            )
        join = data.questions is not None
        ids: list[int] = []
        parts: list[_Part] = []
        longest, longest_text, looked, first = 0, "", 0, None
        while True:
            row = corpus.take()
            first = corpus.epoch if first is None else first
            if corpus.epoch > first + 1 or looked >= _PATIENCE:
                longest = max(longest, len(self.encode(longest_text[: 32 * need])))
                joined = f"; joined, {len(ids)}" if join else ""
                band = f" (of {least} to {most or 'any'} tokens)" if least or most else ""
                raise ConfigError(
                    f"{data.path}: none of {looked} documents in a row{band} has the {need} tokens that {wanted} "
                    f"take; the longest has {longest}{joined}. Lower the mix's `chunks` or `tokens`, or give longer "
                    "documents."
                )
            looked += 1
            if join and any(row.text == part.row.text for part in parts):
                continue  # rows of one passage with different questions
            # A token is at least a byte, but for a few at the ends: what is too short need not be tokenised.
            if len(row.text.encode("utf-8", "replace")) + 8 < max(least, 0 if join else need):
                longest_text = max(longest_text, row.text, key=len)
                continue
            text = row.text
            if not join and not least and not most and len(text) > _WINDOW * want:
                text = _window(rng, text, _WINDOW * want)
            new = self.encode(text)
            if len(new) < need and text is not row.text:
                new = self.encode(row.text)
            if len(new) < least or (most is not None and len(new) >= most):
                continue
            longest = max(longest, len(new))
            if not join:
                if len(new) >= need:
                    return new, [_Part(row, 0, len(new))]
                continue
            if ids:
                ids += self.encode("\n\n")
            parts.append(_Part(row, len(ids), len(ids) + len(new)))
            ids += new
            if len(ids) >= need:
                return ids, parts

    def _ask(
        self, rng: random.Random, ids: list[int], parts: list[_Part], chunks: int, length: int
    ) -> tuple[list[int], Question] | None:
        """A question and a window of the text that has its answer; None if there is none."""
        written = chunks * length
        candidates = [(part, *pair) for part in parts for pair in part.row.asked]
        rng.shuffle(candidates)
        for part, question, answer in candidates:
            found = _pattern(answer).search(part.row.text.translate(_QUOTES))
            begin, end = part.begin, part.end  # an answer in other words than the text's takes all of it
            if found:
                begin = min(part.begin + len(self.encode(part.row.text[: found.start()])), part.end)
                end = min(begin + len(self.encode(found[0])) + 1, part.end)
            low, high = max(0, end - written), min(begin, len(ids) - written)
            if low > high:
                continue
            start = rng.randint(low, high)
            window = ids[start : start + written]
            own = range(max(0, part.begin - start) // length, (min(part.end - start, written) - 1) // length + 1)
            holders = [c for c in range(chunks) if self._holds(window[c * length : (c + 1) * length], answer)]
            chunk, stale = own[-1], list(own[:-1])
            if len(holders) == 1 and holders[0] in own:  # not several, nor across the end of a chunk
                chunk, stale = holders[0], []
            return window, self.question(question, answer, chunk, stale)
        return None

    def _holds(self, ids: list[int], answer: str) -> bool:
        return bool(_pattern(answer).search(self.tokenizer.decode(ids).translate(_QUOTES)))

    def question(self, asked: str, answer: str, chunk: int | None = None, stale: Sequence[int] = ()) -> Question:
        """A question and its answer as token ids, as batches have them: the prompt around it, eos at its end."""
        prompt = self.prompt.replace("{question}", asked.strip())
        before = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        between = "" if prompt[-1].isspace() else " "
        # Together, because how a word begins depends on what is before it in some tokenizers and not in others.
        whole = self.tokenizer(prompt + between + answer, add_special_tokens=False, verbose=False).input_ids
        after = whole[len(before) :] if whole[: len(before)] == before else self.encode(between + answer)
        eos = self.tokenizer.eos_token_id
        return Question(before, after + ([] if eos is None else [eos]), 0, chunk, list(stale))


def _pattern(answer: str) -> re.Pattern[str]:
    """An answer as it may stand in a text: in any case, across line ends, but not inside a longer word or number."""
    words = r"\s+".join(re.escape(word) for word in answer.translate(_QUOTES).split())
    return re.compile(rf"(?<![A-Za-z0-9]){words}(?![A-Za-z0-9])", re.IGNORECASE)


def _window(rng: random.Random, text: str, size: int) -> str:
    """A piece of a very long text, from the beginning of a word on: tokenising all of a book would be waste."""
    begin = rng.randint(0, len(text) - size)
    space = text.find(" ", begin, begin + 64)
    return text[(begin if space < 0 or not begin else space) :][:size]
