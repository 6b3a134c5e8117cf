"""From facts and prose to tensors: the streams that are written and the questions that are read.

A *stream* is one person's past in small: T chunks of n tokens, real prose with facts in it. Questions about a stream
are answered with the whole batch's chunks as the past (see `objective.py`), so that a batch is one long history.

Every batch is a function of (seed, step) alone, so a resumed run sees exactly what an uninterrupted one would.
"""

from __future__ import annotations

import itertools
import lzma
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..core.prompts import UNKNOWN
from ..errors import ConfigError
from ..facts.maker import ACKNOWLEDGE, RELATIONS, Fact, FactMaker, Subject, usable_words

_LEAST_PROSE = 2_000  # tokens
QUESTION, ANSWER = "Question: ", " Answer:"  # the built-in model's prompt around a question
_PERSON = [name for name, relation in RELATIONS.items() if relation.kind == "person"]


def read_prose(path: str | Path) -> str:
    """The text of a .txt or .txt.xz file."""
    path = Path(path)
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read()


def build_tokenizer(prose: str, vocab_size: int = 2048, seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, trained on prose and on made-up statements and questions."""
    maker = FactMaker(random.Random(seed))
    sentences = []
    for _ in range(12_000):
        fact = maker.fact(maker.subject("person"))
        sentences += [fact.statement, QUESTION + maker.question(fact.subject, fact.relation) + ANSWER]
    tokenizer = Tokenizer(models.BPE())
    # Text is one line of words that each begin with a space, so that encode(a) + encode(b) == encode(a + " " + b).
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\s+"), " "),
            *(normalizers.Replace(odd, plain) for odd, plain in zip("\u2018\u2019\u201c\u201d", "''\"\"", strict=True)),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    paragraphs = prose[:6_000_000].split("\n")
    tokenizer.train_from_iterator([*paragraphs, *sentences], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=100_000
    )


class Prose:
    """Tokenised prose, handed out in pieces that begin or end where sentences do."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.words = usable_words(set(text.split()))
        encode = tokenizer.backend_tokenizer.encode_batch
        self.ids: list[int] = []
        for start in range(0, len(text), 1_000_000):
            self.ids += [i for e in encode(text[start : start + 1_000_000].split("\n")) for i in e.ids]
        stops = {tokenizer.convert_tokens_to_ids(mark) for mark in (".", "!", "?", '."', '!"', '?"')}
        self.ends = [i + 1 for i, token in enumerate(self.ids) if token in stops]
        if not self.ends or self.ends[-1] < _LEAST_PROSE:
            raise ConfigError(
                f"the prose has {len(self.ids)} tokens and {len(self.ends)} sentence ends; training takes at least "
                f"{_LEAST_PROSE} tokens of sentences. Give a longer text."
            )

    def after(self, rng: random.Random, length: int) -> list[int]:
        """`length` tokens from the beginning of a sentence on."""
        while True:
            start = rng.choice(self.ends)
            if start + length <= len(self.ids):
                return self.ids[start : start + length]

    def before(self, rng: random.Random, length: int) -> list[int]:
        """`length` tokens up to the end of a sentence."""
        while True:
            end = rng.choice(self.ends)
            if end >= length:
                return self.ids[end - length : end]


@dataclass
class Question:
    """One question to the past. `chunk` holds the newest answer (None: no chunk does), `stale` older ones.

    alike: the chunks in `stale` are not older answers: each helps as much as `chunk` does. So it is where a text is to
    be continued, and all of its chunks bear on what follows.
    subject: whom a question about made-up facts is about. What other batches tell of the same name is not read.
    """

    prompt: list[int]
    answer: list[int]
    stream: int
    chunk: int | None
    stale: list[int]
    first_person: bool = False
    alike: bool = False
    subject: str = ""


@dataclass
class Batch:
    """What one training step sees.

    chunks_BTn: token ids of the streams. first_person_BT: chunks that speak of "I". subjects: by chunk of all streams,
    one after the other, whom it tells of; empty where nobody asks about made-up names.
    """

    chunks_BTn: Tensor
    first_person_BT: Tensor
    questions: list[Question]
    subjects: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Mix:
    """How streams and questions are drawn.

    streams, chunks, tokens: how many, and how long a chunk is at least and at most.
    questions: to each stream. facts: how many a chunk tells, drawn from these.
    update: share of statements that change a fact. unknown, acknowledge: shares of questions about what was never told,
    and of statements in place of a question.
    first_person, thing: about the shares of subjects that are the speaker, or a thing.
    few_relations: share of streams with two to four relations, so that names must be told apart.
    strangers: share of streams that tell one fact about everybody.
    """

    streams: int = 32
    chunks: int = 6
    tokens: tuple[int, int] = (36, 64)
    questions: int = 6
    facts: tuple[int, ...] = (0, 1, 1, 2, 2, 3, 4)
    update: float = 0.2
    unknown: float = 0.12
    acknowledge: float = 0.02
    first_person: float = 0.06
    thing: float = 0.1
    few_relations: float = 0.7
    strangers: float = 0.35


class Streams:
    """Draws batches of made-up facts. `split` chooses names: "train", or "held_out" for names never trained on.

    Lanes of the same step get other streams of the same length, and so equal work.
    """

    def __init__(
        self, prose: Prose, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, split: str = "train", lane: int = 0
    ) -> None:
        self.prose, self.seed, self.split, self.lane = prose, seed, split, lane
        self.backend = tokenizer.backend_tokenizer
        self.eos = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def _subjects(self, rng: random.Random, maker: FactMaker, mix: Mix) -> list[tuple[Subject, str]]:
        """Subjects and relations of one stream, in the order they may be told; not all of them will be."""
        strangers = rng.random() < mix.strangers
        people = [maker.subject("person") for _ in range(10 if strangers else rng.randint(2, 5))]
        if rng.random() < mix.first_person * 4:
            people.append(maker.subject("self"))
        relations = rng.sample(_PERSON, rng.randint(2, 4)) if rng.random() < mix.few_relations else _PERSON
        if strangers:
            pairs = [(person, rng.choice(relations)) for person in people]
        else:
            pairs = [(person, relation) for person in people for relation in relations]
        rng.shuffle(pairs)
        if rng.random() < mix.thing * 4:
            for _ in range(3):
                pairs.insert(rng.randrange(min(6, len(pairs)) + 1), (maker.subject("thing"), "location"))
        return pairs

    def _chunk(self, rng: random.Random, statements: list[list[int]], length: int) -> list[int]:
        """Statements in prose, `length` tokens. The statements must fit."""
        free = length - sum(map(len, statements))
        gaps = [0] * (len(statements) + 1)
        while free:  # a few long gaps rather than many short ones
            take = min(free, rng.randint(6, max(6, length)))
            gaps[rng.randrange(len(gaps))] += take
            free -= take
        ids = self.prose.before(rng, gaps[0]) if gaps[0] and statements else []
        for statement, gap in zip(statements, gaps[1:], strict=True):
            ids += statement + (self.prose.after(rng, gap) if gap else [])
        return ids or self.prose.after(rng, length)

    def state(self) -> dict[str, Any]:
        """Nothing: a batch is a function of its step."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """As `state` says."""

    def batch(self, step: int, mix: Mix) -> Batch:
        """The batch of a step."""
        few = mix.tokens[0] // 4, mix.tokens[1] // 4  # few different lengths: kernels are made per shape
        length = random.Random(f"{self.seed}/{step}").randint(*few) * 4
        rng = random.Random(f"{self.seed}/{self.split}/{step}/{self.lane}")
        maker = FactMaker(rng, self.split, self.prose.words if self.split == "train" else ())
        chunks, first_person, questions = [], [], []
        subjects: list[list[str]] = []
        for stream in range(mix.streams):
            row, told, flags = self._stream(rng, maker, mix, length)
            chunks.append(row)
            first_person.append(flags)
            questions += self._questions(rng, maker, mix, stream, told)
            subjects += [[f.subject.name for f, c in told if c == chunk] for chunk in range(mix.chunks)]
        return Batch(torch.tensor(chunks), torch.tensor(first_person), questions, subjects)

    def _stream(
        self, rng: random.Random, maker: FactMaker, mix: Mix, length: int
    ) -> tuple[list[list[int]], list[tuple[Fact, int]], list[bool]]:
        pairs = self._subjects(rng, maker, mix)
        told: list[tuple[Fact, int]] = []
        row, flags = [], []
        for chunk in range(mix.chunks):
            statements: list[list[int]] = []
            flag = False
            for _ in range(rng.choice(mix.facts)):
                newest = {(f.subject, f.relation): f for f, _ in told}
                if newest and rng.random() < mix.update:
                    fact = maker.update(rng.choice(list(newest.values())))
                elif pairs:
                    fact = maker.fact(*pairs.pop(0))
                else:
                    break
                ids = self.encode(fact.statement)
                if sum(map(len, statements)) + len(ids) > length:
                    break
                statements.append(ids)
                told.append((fact, chunk))
                flag |= fact.subject.kind == "self"
            row.append(self._chunk(rng, statements, length))
            flags.append(flag)
        return row, told, flags

    def _questions(
        self, rng: random.Random, maker: FactMaker, mix: Mix, stream: int, told: list[tuple[Fact, int]]
    ) -> list[Question]:
        newest = {(f.subject, f.relation): (f, chunk) for f, chunk in told}
        count: dict[tuple[Subject, str], int] = {}
        for f, _ in told:
            count[f.subject, f.relation] = count.get((f.subject, f.relation), 0) + 1
        # Each fact is asked once before one is asked again, those that were changed rather first.
        asked_of = sorted(newest, key=lambda key: rng.random() ** (1 / min(2, count[key])), reverse=True)
        next_asked = itertools.cycle(asked_of)
        questions = []
        for _ in range(mix.questions):
            draw = rng.random()
            if draw < mix.acknowledge:
                fact = maker.fact(maker.subject("self") if rng.random() < 0.5 else maker.subject("person"))
                questions.append(self.question(fact.statement, ACKNOWLEDGE, stream))
            elif draw < mix.acknowledge + mix.unknown or not newest:
                known = [f.subject for f, _ in told if f.subject.kind == "person"]
                subject = rng.choice(known) if known and rng.random() < 0.5 else maker.subject("person")
                missing = [r for r in _PERSON if (subject, r) not in newest]
                told_of = [r for r in missing if any(f.relation == r for f, _ in told)]
                if told_of and rng.random() < 0.5:  # told, but of somebody else
                    missing = told_of
                if rng.random() < 0.1:
                    subject, missing = maker.subject("thing"), ["location"]
                asked = maker.question(subject, rng.choice(missing))
                questions.append(self.question(asked, UNKNOWN, stream, subject=subject.name))
            else:
                fact, chunk = newest[next(next_asked)]
                stale = [c for f, c in told if (f.subject, f.relation) == (fact.subject, fact.relation) and c != chunk]
                asked = maker.question(fact.subject, fact.relation)
                questions.append(
                    self.question(
                        asked, fact.value, stream, chunk, stale, fact.subject.kind == "self", fact.subject.name
                    )
                )
        return questions

    def question(
        self,
        asked: str,
        answer: str,
        stream: int = 0,
        chunk: int | None = None,
        stale: list[int] | None = None,
        first_person: bool = False,
        subject: str = "",
    ) -> Question:
        """A question and its answer as token ids."""
        return Question(
            self.encode(QUESTION + asked + ANSWER),
            [*self.encode(answer), self.eos],
            stream,
            chunk,
            stale or [],
            first_person,
            subject=subject,
        )


@dataclass
class Rows:
    """Right-padded rows of context and questions with their answers.

    ids_QT: tokens. labels_QT: the token to predict at each place, -100 outside answers. asks_QT: the tokens of the
    question's prompt. owner_QT: the index of the question that a label belongs to.
    """

    ids_QT: Tensor
    labels_QT: Tensor
    asks_QT: Tensor
    owner_QT: Tensor

    @classmethod
    def of(cls, contexts: list[list[int]], questions: list[list[Question]]) -> Rows:
        """One row a context, with all its questions one after the other."""
        rows = [c + [i for q in qs for i in q.prompt + q.answer] for c, qs in zip(contexts, questions, strict=True)]
        shape = len(rows), -(-(max(map(len, rows)) - 1) // 8) * 8  # few different shapes: kernels are made per shape
        ids, owner = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels, asks = torch.full(shape, -100), torch.zeros(shape, dtype=torch.bool)
        index = 0
        for r, (row, place, group) in enumerate(zip(rows, map(len, contexts), questions, strict=True)):
            ids[r, : len(row) - 1] = torch.tensor(row[:-1])
            for q in group:
                begin = place + len(q.prompt)
                asks[r, place:begin] = True
                place = begin + len(q.answer)
                labels[r, begin - 1 : place - 1] = torch.tensor(q.answer)
                owner[r, begin - 1 : place - 1] = index
                index += 1
        return cls(ids, labels, asks, owner)
