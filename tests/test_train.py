"""Training: facts, batches, the bank of writes, attention, the loop, the curriculum, a whole run."""

from __future__ import annotations

import itertools
import json
import lzma
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import close
from remanence.config import MemoryConfig
from remanence.core.cache import MemoryCache
from remanence.core.prompts import UNKNOWN
from remanence.errors import ConfigError
from remanence.facts.maker import ACKNOWLEDGE, RELATIONS, SPLITS, Fact, FactMaker, Subject
from remanence.models.pretrained import MemoryModel
from remanence.train import data as data_module
from remanence.train import loop as loop_module
from remanence.train import stages as stages_module
from remanence.train.attention import GROUPED
from remanence.train.bank import BankSlots, History
from remanence.train.data import ANSWER, QUESTION, Mix, Prose, Question, Rows, Streams, build_tokenizer, read_prose
from remanence.train.loop import Trainer
from remanence.train.objective import Objective, Place
from remanence.train.run import PROMPT, builtin_run, launch
from remanence.train.settings import Engine, Run, Stage
from remanence.train.stages import MEMORY, builtin

CONFIG = MemoryConfig(
    K=8, N=32, K0=32, chunk_tokens=16, window_tokens=256, retriever_dim=8, score_bias=0.5, key_group=4
)  # fmt: skip
MIX = Mix(streams=4, chunks=3, tokens=(40, 48), questions=3, facts=(1, 2), update=0.4, first_person=0.2)
STAGE = Stage("one", steps=3, mixes=(MIX,), warmup=2, others=(0, 9), pool=16, retrieved=2, force=0.5)


def prose_text(size: int) -> str:
    """Sentences without meaning, some of them questions, in paragraphs."""
    rng = random.Random(0)
    words = "the a river hill walked slowly towards and of old house said never again rain night so it was he she"
    text = ""
    while len(text) < size:
        sentence = " ".join(rng.choices(words.split(), k=rng.randint(4, 12))).capitalize()
        text += sentence + rng.choice([". ", ". ", "? ", "! ", ".\n"])
    return text


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A small vocabulary."""
    return build_tokenizer(prose_text(4000), vocab_size=600)


@pytest.fixture(scope="module")
def prose(tokenizer: PreTrainedTokenizerFast) -> Prose:
    """The same text as tokens."""
    return Prose(prose_text(6000), tokenizer)


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast) -> Callable[..., MemoryModel]:
    """make(seed): a tiny model."""

    def build(seed: int = 0, attention: str = GROUPED) -> MemoryModel:
        torch.manual_seed(seed)
        base = LlamaForCausalLM._from_config(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True, max_position_embeddings=512,
                pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
            ),
            attn_implementation=attention,
        )  # fmt: skip
        return MemoryModel(base, tokenizer, CONFIG, prompt=PROMPT, name="tiny")

    return build


# Facts ----------------------------------------------------------------------------------------------------------------

OPEN = ("street", "employer", "boat", "location", "pet_name", "sister", "brother")


def holds(text: str, value: str) -> bool:
    """Whether a text holds a value, as whole words."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def test_the_splits_share_no_name_no_part_of_one_and_no_open_value() -> None:
    """Thousands of each: what is held out was never trained on."""
    seen = {}
    for split in SPLITS:
        maker = FactMaker(random.Random(1), split)
        people = {maker.subject("person").name for _ in range(6000)}
        things = {maker.subject("thing").name for _ in range(3000)}
        assert len(people) == 6000
        assert len(things) == 3000  # no name twice
        values = {maker.value(relation) for relation in OPEN for _ in range(1500)}
        seen[split] = people | things | values | {part for name in people for part in name.split()}
        assert all(not name.startswith("the ") for name in people)
        assert all(name.startswith("the ") for name in things)
    assert seen["train"].isdisjoint(seen["held_out"])
    assert min(len(names) for names in seen.values()) > 10_000


def test_every_relation_is_there() -> None:
    """Those of the design; all of persons but the place of a thing."""
    wanted = (
        "colour food drink city street job employer pet pet_name sister instrument sport hobby language car boat "
        "birthday door_code extension location"
    )
    assert set(wanted.split()) <= set(RELATIONS)
    for name, relation in RELATIONS.items():
        assert relation.name == name
        assert relation.kind == ("thing" if name == "location" else "person")
        assert len(relation.statements) >= 3
        assert len(relation.questions) >= 3
        assert relation.updates


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["person", "self", "thing"])
def test_statements_tell_the_value_and_questions_do_not(split: str, kind: str) -> None:
    """Every relation, many times; an update has another value of the same relation."""
    maker = FactMaker(random.Random(2), split)
    for name, relation in RELATIONS.items():
        if (relation.kind == "thing") != (kind == "thing"):
            with pytest.raises(ValueError, match="does not apply"):
                maker.fact(maker.subject(kind), name)
            continue
        for _ in range(40):
            fact = maker.fact(maker.subject(kind), name)
            assert (fact.relation, fact.subject.kind) == (name, kind)
            for _ in range(2):
                assert holds(fact.statement, fact.value)
                assert holds(fact.statement, fact.subject.name)
                assert fact.statement[0] == fact.statement[0].upper()
                assert fact.statement.endswith(".")
                assert not re.search(r"[{}]|  ", fact.statement)
                asked = maker.question(fact.subject, name)
                assert holds(asked, fact.subject.name)
                assert not holds(asked, fact.value)
                assert asked.endswith("?")
                if relation.values:
                    assert fact.value in relation.values
                newer = maker.update(fact)
                assert (newer.subject, newer.relation) == (fact.subject, fact.relation)
                assert newer.value != fact.value
                fact = newer


def test_the_same_seed_tells_the_same_story() -> None:
    """And another seed another one."""

    def story(seed: int) -> list[Fact]:
        maker = FactMaker(random.Random(seed))
        return [maker.update(maker.fact(maker.subject("person"))) for _ in range(20)]

    assert story(3) == story(3)
    assert story(3) != story(4)


def test_unknown_splits_and_kinds_are_refused() -> None:
    """A typo must not train on what is held out."""
    with pytest.raises(ValueError, match="unknown split 'heldout'"):
        FactMaker(random.Random(0), "heldout")
    with pytest.raises(ValueError, match="unknown kind 'persons'"):
        FactMaker(random.Random(0)).subject("persons")


# Tokenizer and prose --------------------------------------------------------------------------------------------------


def test_the_tokenizer_adds_up(tokenizer: PreTrainedTokenizerFast) -> None:
    """Texts one after the other are tokens one after the other, also through the model's own encoding."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    maker = FactMaker(random.Random(0))
    texts = [maker.fact(maker.subject("person")).statement for _ in range(30)]
    texts += ["«Größe» 12.5 €", "it's", "(x)", "2048", "...", "'so'", "– dash", "日本 語", "don't I'll", "🙂"]
    for a in texts:
        assert tokenizer.decode(encode(a)) == " " + a
        for b in texts[::3]:
            assert encode(a) + encode(b) == encode(a + " " + b)
        assert encode("\n" + a) == encode(a)  # `memorize` tells texts apart by a line end
    assert encode("") == []


def test_the_tokenizer_normalises(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every digit is a token; curly quotes and any white space become plain ones."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    digits = {d: tokenizer.convert_tokens_to_ids(d) for d in "0123456789"}
    for number in ("0417", "99", "1234567890"):
        assert [i for i in encode(number) if i in digits.values()] == [digits[d] for d in number]
    assert all(not re.search(r"\d.*\d|\d\D|\D\d", token) for token in tokenizer.get_vocab())
    assert encode("\u2018a\u2019 \u201cb\u201d") == encode("'a' \"b\"")
    assert encode("a \t\n\u00a0 b\r\n\r\nc") == encode("a b c")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_prose_begins_or_ends_with_sentences(prose: Prose, tokenizer: PreTrainedTokenizerFast) -> None:
    """Pieces of the text, of the length asked for."""
    rng, whole = random.Random(0), tokenizer.decode(prose.ids)
    for length in (1, 7, 40):
        for _ in range(20):
            after, before = prose.after(rng, length), prose.before(rng, length)
            assert len(after) == len(before) == length
            assert tokenizer.decode(after) in whole
            assert tokenizer.decode(before)[-1] in ".!?"
            assert tokenizer.decode(after)[:2].strip() in ("", tokenizer.decode(after)[1].upper())


def test_prose_is_read_plain_or_packed(tmp_path: Path) -> None:
    """.txt and .txt.xz."""
    (tmp_path / "a.txt").write_text("Grün.\nB", encoding="utf-8")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress("Grün.\nB".encode()))
    assert read_prose(tmp_path / "a.txt") == read_prose(str(tmp_path / "a.txt.xz")) == "Grün.\nB"


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_split_and_step(prose: Prose, tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever was drawn before."""

    def batch(step: int, *before: int, **options: Any) -> tuple[list[Any], ...]:
        streams = Streams(prose, tokenizer, **options)
        for other in before:
            streams.batch(other, MIX)
        b = streams.batch(step, MIX)
        return b.chunks_BTn.tolist(), b.first_person_BT.tolist(), b.questions

    assert batch(5) == batch(5, 1, 7)
    others = [batch(5), batch(6), batch(5, seed=1), batch(5, split="held_out")]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])


class Recorder(FactMaker):
    """Keeps every fact and every question made, in order."""

    facts: list[Fact] = []  # noqa: RUF012
    asked: dict[str, tuple[Subject, str]] = {}  # noqa: RUF012

    def fact(self, subject: Subject, relation: str | None = None) -> Fact:
        """Noted."""
        self.facts.append(super().fact(subject, relation))
        return self.facts[-1]

    def update(self, fact: Fact) -> Fact:
        """Noted."""
        self.facts.append(super().update(fact))
        return self.facts[-1]

    def question(self, subject: Subject, relation: str) -> str:
        """Noted."""
        text = super().question(subject, relation)
        self.asked[text] = subject, relation
        return text


def test_questions_are_answered_by_the_newest_chunk_that_says_so(
    prose: Prose, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the chunks say, read off them again: newest value, its chunk, older chunks; unknown means nowhere said."""
    monkeypatch.setattr(data_module, "FactMaker", Recorder)
    streams = Streams(prose, tokenizer)
    mix = replace(MIX, chunks=5, tokens=(40, 60), questions=6, unknown=0.2, acknowledge=0.05)
    counts = {"known": 0, "newest": 0, "unknown": 0, "acknowledge": 0, "self": 0}
    for step in range(12):
        monkeypatch.setattr(Recorder, "facts", [])
        monkeypatch.setattr(Recorder, "asked", {})
        batch = streams.batch(step, mix)
        size = batch.chunks_BTn.shape
        assert size[:2] == (mix.streams, mix.chunks)
        assert 40 <= size[2] <= 60
        assert len(batch.questions) == mix.streams * mix.questions
        texts = [[tokenizer.decode(chunk) for chunk in stream] for stream in batch.chunks_BTn]
        for q in batch.questions:
            asked = tokenizer.decode(q.prompt).removeprefix(" " + QUESTION).removesuffix(ANSWER)
            answer = tokenizer.decode(q.answer[:-1]).removeprefix(" ")
            assert q.answer[-1] == tokenizer.eos_token_id
            if answer == ACKNOWLEDGE:
                assert (q.chunk, q.stale) == (None, [])
                counts["acknowledge"] += 1
                continue
            subject, relation = Recorder.asked[asked]
            told = []
            for fact in Recorder.facts:
                if (fact.subject, fact.relation) == (subject, relation):
                    # "Quist's boat is ..." is also the end of "Marla Quist's boat is ...", which is another's
                    longer = [f.statement for f in Recorder.facts if f.statement.endswith(" " + fact.statement)]
                    for c, text in enumerate(texts[q.stream]):
                        for statement in longer:
                            text = text.replace(statement, "")
                        told += [(c, text.rindex(fact.statement), fact)] if " " + fact.statement in text else []
            told = [(fact, c) for c, _, fact in sorted(set(told), key=lambda each: each[:2])]
            assert q.first_person == (subject.kind == "self" and q.chunk is not None)
            if q.chunk is None:
                assert answer == UNKNOWN
                assert told == []
                assert q.stale == []
                if subject.kind == "person":
                    everything = [text for stream in texts for text in stream]
                    said = [f for f in Recorder.facts if (f.subject, f.relation) == (subject, relation)]
                    assert not any(f.statement in text for f in said for text in everything)
                counts["unknown"] += 1
                continue
            assert told[-1] == (told[-1][0], q.chunk)
            assert answer == told[-1][0].value
            assert holds(texts[q.stream][q.chunk], answer)
            assert sorted(q.stale) == sorted(c for _, c in told if c != q.chunk)
            counts["newest" if q.stale else "known"] += 1
            if subject.kind == "self":
                assert batch.first_person_BT[q.stream, q.chunk]
                counts["self"] += 1
    assert min(counts.values()) >= 3, counts


def test_rows_ask_and_label_exactly(tokenizer: PreTrainedTokenizerFast, prose: Prose) -> None:
    """What is to be predicted are the answers, and what asks are the prompts; contexts neither."""
    streams, rng = Streams(prose, tokenizer), random.Random(0)
    grouped: list[list[Question]] = [
        [streams.question("Why?", "Because.")],
        [streams.question("Who?", "She."), streams.question("Where is it?", "There, 12."), streams.question("A?", "B")],
        [streams.question("When, then?", "Now")],
    ]
    contexts = [prose.after(rng, 9), [], prose.after(rng, 30)]
    rows = Rows.of(contexts, grouped)
    whole = [c + [i for q in qs for i in q.prompt + q.answer] for c, qs in zip(contexts, grouped, strict=True)]
    index = 0
    for r, (row, group) in enumerate(zip(whole, grouped, strict=True)):
        width = len(row) - 1
        assert rows.ids_QT[r, :width].tolist() == row[:-1]
        assert (rows.ids_QT[r, width:] == 0).all()
        assert rows.ids_QT[r, rows.asks_QT[r]].tolist() == [i for q in group for i in q.prompt]
        labelled = rows.labels_QT[r] >= 0
        assert (rows.labels_QT[r, ~labelled] == -100).all()
        assert rows.labels_QT[r, labelled].tolist() == [i for q in group for i in q.answer]
        assert rows.labels_QT[r, :width][labelled[:width]].tolist() == torch.tensor(row[1:])[labelled[:width]].tolist()
        assert not labelled[width:].any()
        for q in group:
            mine = labelled & (rows.owner_QT[r] == index)
            assert rows.labels_QT[r, mine].tolist() == q.answer
            index += 1
    assert rows.ids_QT.shape[1] % 8 == 0


def test_the_model_asks_and_encodes_as_it_was_trained(
    make: Callable[..., MemoryModel], prose: Prose, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The prompt's tokens in use are those in training."""
    model, streams = make(), Streams(prose, tokenizer)
    for asked in ("What is Marla Quist's car?", "Where do I live?"):
        assert model.prompts.question(asked) == streams.question(asked, "x").prompt
        assert model.encode(asked) == streams.encode(asked)


# The bank -------------------------------------------------------------------------------------------------------------


def draw(
    questions: int, streams: int, chunks: int, others: tuple[int, int], seed: int = 0, stale: float = 0.0
) -> tuple[History, Tensor, Tensor]:
    """Histories, the streams of the questions, and what is forbidden."""
    generator = torch.Generator().manual_seed(seed)
    writes = streams * chunks
    streams_Q = torch.randint(streams, (questions,), generator=generator)
    own = torch.arange(writes)[None] // chunks == streams_Q[:, None]
    gold_Q = streams_Q * chunks + torch.randint(chunks, (questions,), generator=generator)
    gold_Q[::5] = -1
    stale_QW = own & (torch.rand(questions, writes, generator=generator) < stale)
    forbidden_QW = ~own & (torch.rand(questions, writes, generator=generator) < 0.1)
    for table in (stale_QW, forbidden_QW):
        table[gold_Q >= 0, gold_Q[gold_Q >= 0]] = False
    history = History.draw(streams_Q, gold_Q, stale_QW, forbidden_QW, torch.arange(writes) // chunks, others, generator)
    return history, streams_Q, forbidden_QW


@pytest.mark.parametrize("others", [(0, 0), (0, 8), (3, 10), (36, 36)])
def test_a_history_keeps_own_writes_in_order(others: tuple[int, int]) -> None:
    """All of them, oldest first; nothing forbidden, nothing twice; others between them."""
    chunks, recent = 4, 0
    history, streams_Q, _ = draw(300, 10, chunks, others)
    _, _, forbidden = draw(300, 10, chunks, others)
    counts = []
    for q in range(300):
        assert sorted(history.order_QW[q].tolist()) == list(range(40))
        known = history.order_QW[q][history.known_QW[q]].tolist()
        assert history.known_QW[q].tolist() == [False] * (40 - len(known)) + [True] * len(known)
        own = [w for w in known if w // chunks == streams_Q[q]]
        assert own == list(range(int(streams_Q[q]) * chunks, int(streams_Q[q]) * chunks + chunks))
        assert not forbidden[q, known].any()
        counts.append(len(known) - chunks + int(forbidden[q].sum()))
        recent += known[-chunks:] == own
    mean = sum(counts) / 300  # with forbidden ones, which were up to 4 more
    assert others[0] <= mean <= others[1] + 4
    if others == (0, 0):
        assert recent == 300
    else:
        assert 0.2 < recent / 300 < 0.75  # a third, and short histories by chance


def test_the_number_of_others_is_within_its_range() -> None:
    """Without anything forbidden."""
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(400, 40, dtype=torch.bool)
    zeros, owner = torch.zeros(400, dtype=torch.long), torch.arange(40) // 4
    history = History.draw(zeros, zeros, none, none, owner, (5, 9), generator)
    counts = history.known_QW.sum(1) - 4
    assert counts.min() >= 5
    assert counts.max() <= 9


def bank(
    model: MemoryModel, history: History, *, pool: int = 32, retrieved: int = 2, seed: int = 0, **changes: Any
) -> tuple[BankSlots, Tensor]:
    """A bank of random vectors, and hidden states that ask it."""
    generator = torch.Generator().manual_seed(seed)
    questions, writes = history.order_QW.shape
    hidden = torch.randn(questions, 6, 32, generator=generator)
    asks = torch.rand(questions, 6, generator=generator) < 0.5
    asks[:, 1] = True
    options: dict[str, Any] = {
        "pool_vectors": pool, "retrieved_writes": retrieved, "score_bias": 3.0, "recency": 0.0, "key_group": 4,
        "force_Q": torch.zeros(questions, dtype=torch.bool), "generator": generator,
    }  # fmt: skip
    vectors = [torch.randn(writes, 8, 32, generator=generator) for _ in range(2)]
    with torch.no_grad():
        model.retriever.null.copy_(torch.tensor([0.3, -0.2]))
    source = BankSlots(
        model.attachment, model.retriever, vectors, model.start, history, asks, **(options | changes)
    )  # fmt: skip
    return source, hidden


@torch.no_grad()
def test_what_a_bank_reads(make: Callable[..., MemoryModel]) -> None:
    """Shapes; the newest write whole in the pool; all in order of time; nothing twice; retrieved are the best."""
    model = make()
    history, _, _ = draw(60, 10, 4, (0, 36))
    source, hidden = bank(model, history)
    slots = source.slots(0, hidden)
    assert source.length == 1 + 2 * 8 + 32
    assert slots.keys.shape == slots.values.shape == (60, 2, source.length, 8)
    assert slots.bias.shape == (60, source.length)
    scores, null = source._scores(0, hidden, source.vectors[0])
    rows, alive, bias = source._choose(scores.clone(), null)
    assert rows.shape == alive.shape == (60, source.length - 1)
    retrieved_any = 0
    for q in range(60):
        order = history.order_QW[q].tolist()
        known = {w for w, k in zip(order, history.known_QW[q].tolist(), strict=True) if k}
        time = {w: t for t, w in enumerate(order)}
        pool = [r for r, a in zip(rows[q, 16:].tolist(), alive[q, 16:].tolist(), strict=True) if a]
        got = [r for r, a in zip(rows[q, :16].tolist(), alive[q, :16].tolist(), strict=True) if a]
        assert len(set(pool + got)) == len(pool + got)
        assert {r // 8 for r in pool + got} <= known
        assert len(pool) == min(32, 8 * len(known))
        assert set(range(order[-1] * 8, order[-1] * 8 + 8)) <= set(pool)
        for part in (pool, got):
            stamps = [(time[r // 8], r % 8) for r in part]
            assert stamps == sorted(stamps)
        outside = [w for w in known if not set(range(w * 8, w * 8 + 8)) <= set(pool)]
        best = sorted(outside, key=lambda w: -scores[q, w])[:2]
        assert set(got) == {r for w in best for r in range(w * 8, w * 8 + 8)} - set(pool)
        retrieved_any += bool(got)
        # the bias
        values = [float(scores[q, r // 8]) for r, a in zip(rows[q].tolist(), alive[q].tolist(), strict=True) if a]
        top = max([*values, float(null)])
        expected = [float(null), *values]
        given = [float(bias[q, 0]), *bias[q, 1:][alive[q]].tolist()]
        assert given == pytest.approx([min(0.0, max(-8.0, 3.0 * (s - top))) for s in expected], abs=1e-5)
    assert retrieved_any > 20
    dead = ~alive
    assert dead.any()
    source, hidden = bank(model, history)
    slots = source.slots(0, hidden)  # the same draws again
    rows, alive = source_rows(source, slots, model)
    assert (slots.bias[:, 1:][~alive] <= -1e3).all()
    assert (slots.bias[:, 1:][alive] >= -8).all()
    assert (slots.bias[:, 0] <= 0).all()


def source_rows(source: BankSlots, slots: Any, model: MemoryModel) -> tuple[Tensor, Tensor]:
    """Which rows of the bank the slots hold, by their values, and which of them exist."""
    _, values = model.attachment.project(0, source.vectors[0])
    table = values.flatten(2).flatten(0, 1)
    held = slots.values.transpose(1, 2).flatten(2)[:, 1:]
    rows = torch.cdist(held, table[None].expand(len(held), -1, -1)).argmin(2)
    close(table[rows], held)
    return rows, slots.bias[:, 1:] > -1e3


@torch.no_grad()
def test_slots_hold_keys_of_their_vectors_at_their_positions(make: Callable[..., MemoryModel]) -> None:
    """The start vector, then the rows, as the attachment makes slots of vectors."""
    model = make()
    torch.nn.init.normal_(model.start)
    history, _, _ = draw(8, 10, 4, (0, 36))
    source, hidden = bank(model, history)
    slots = source.slots(0, hidden)
    rows, _ = source_rows(source, slots, model)
    vectors = torch.cat([model.start[0].expand(8, 1, -1), source.vectors[0].flatten(0, 1)[rows]], 1)
    expected = model.attachment.slots(0, vectors, torch.arange(source.length)[None].expand(8, -1), None)
    close(slots.keys, expected.keys)
    close(slots.values, expected.values)


@torch.no_grad()
def test_a_vector_survives_as_random_dropping_lets_it(make: Callable[..., MemoryModel]) -> None:
    """Of age a with (1 - K/N)^a.

    400 questions of 8 vectors an age: independent, the frequency's deviation is at most 0.5 / sqrt(3200) = 0.009. The
    pool always holds N vectors, which moves the mean by less than 0.02 and lowers the deviation. The bound of 0.06 is
    then more than four deviations away: for 12 ages the chance of a false alarm is below 12 * 6e-5 < 1e-3, and the
    seed is fixed.
    """
    history, _, _ = draw(400, 40, 1, (39, 39))
    history = replace(history, known_QW=torch.ones_like(history.known_QW))
    source, _ = bank(make(), history)
    rows, alive, _ = source._choose(torch.randn(400, 40), torch.zeros(()))
    assert alive[:, 16:].all()
    held = torch.zeros(400, 40)
    held.scatter_add_(1, rows[:, 16:] // 8, torch.ones(400, 32))
    share = (held.gather(1, history.order_QW) / 8).mean(0).flip(0)  # by age
    for age in range(12):
        assert share[age].item() == pytest.approx((1 - 8 / 32) ** age, abs=0.06), age
    assert share[0] == 1
    assert share.sum().item() == pytest.approx(32 / 8)


@torch.no_grad()
def test_forced_writes_are_read(make: Callable[..., MemoryModel]) -> None:
    """Whatever the retriever says, every vector of the right write is among the slots; and `recall` counts it."""
    history, _, _ = draw(80, 10, 4, (36, 36))
    model = make()
    for forced in (True, False):
        source, hidden = bank(model, history, retrieved=1, force_Q=torch.full((80,), forced))
        source.slots(0, hidden)
        scores, null = source._scores(0, hidden, source.vectors[0])
        rows, alive, bias = source._choose(scores.clone(), null)
        read = []
        for q in range(80):
            gold = int(history.gold_Q[q])
            if gold >= 0:
                mine = set(rows[q][alive[q]].tolist())
                read.append(set(range(gold * 8, gold * 8 + 8)) <= mine)
                if forced:
                    assert (bias[q, 1:][alive[q] & (rows[q] // 8 == gold)] == 0).all()  # it has the best score
        assert all(read) == forced
        assert source.recall[-1].item() == pytest.approx(sum(read) / len(read))


@torch.no_grad()
def test_the_published_retriever_scores_vectors(make: Callable[..., MemoryModel]) -> None:
    """Each vector by the mean of sigmoids; the best are read in order of time; loss as published; no bias."""
    model = make()
    history, _, _ = draw(60, 10, 4, (0, 36))
    force = torch.arange(60) % 3 == 0
    source, hidden = bank(model, history, score="vector", key_group=1, score_bias=0.0, force_Q=force)
    slots = source.slots(0, hidden)
    assert slots.keys.shape == (60, 2, source.length, 8)
    scores, null = source._scores(0, hidden, source.vectors[0])
    assert null == 0
    keys = model.retriever.keys(0, model.attachment.norm(0, source.vectors[0])).flatten(0, 1)
    queries = model.retriever.queries(0, model.attachment.norm(0, hidden))
    found = refused = positives = negatives = 0.0
    for q in range(60):
        expected = (queries[q][source.asks_QT[q]] @ keys.T).sigmoid().mean(0)
        close(scores[q], expected)
        known = source.known_by_write_QW[q].repeat_interleave(8)
        right = torch.zeros(320, dtype=torch.bool)
        if history.gold_Q[q] >= 0:
            right[8 * int(history.gold_Q[q]) : 8 * int(history.gold_Q[q]) + 8] = True
        found -= (expected[right] + 1e-5).log().sum().item()
        refused -= (1 - expected[known & ~right] + 1e-5).log().sum().item()
        positives, negatives = positives + int(right.sum()), negatives + int((known & ~right).sum())
    assert source.losses[-1].item() == pytest.approx((found / positives + refused / negatives) / 2, rel=1e-4)
    rows, alive, bias = source._choose_vectors(scores, null)
    assert not bias.any()
    for q in range(60):
        time = {w: t for t, w in enumerate(history.order_QW[q].tolist())}
        read = [r for r, a in zip(rows[q].tolist(), alive[q].tolist(), strict=True) if a]
        got, pool = read[: int(alive[q, :16].sum())], read[int(alive[q, :16].sum()) :]
        assert len(set(read)) == len(read)
        assert [(time[r // 8], r) for r in got] == sorted((time[r // 8], r) for r in got)
        left = [r for w in history.order_QW[q][history.known_QW[q]].tolist() for r in range(8 * w, 8 * w + 8)]
        left = [r for r in left if r not in pool]
        gold = int(history.gold_Q[q])
        best = sorted(left, key=lambda r: -(scores[q, r].item() + (force[q].item() and r // 8 == gold)))[: len(got)]
        assert set(best) == set(got)
        assert len(got) == min(16, len(left))


def test_the_retrievers_loss_is_a_cross_entropy(make: Callable[..., MemoryModel]) -> None:
    """Over null and every write that is not forbidden, older answers with a share; it reaches the hidden states."""
    model = make()
    history, _, _ = draw(20, 5, 4, (0, 16), stale=0.3)
    assert history.forbidden_QW.any() and history.stale_QW.any()
    source, hidden = bank(model, history)
    hidden.requires_grad_()
    for vectors in source.vectors:
        vectors.requires_grad_()
    for layer in range(2):
        source.slots(layer, hidden)
        normed = model.attachment.norm(layer, source.vectors[layer])
        keys = model.retriever.key[layer](normed).unflatten(1, (2, 4)).sum(2)
        losses = []
        for q in range(20):
            queries = model.retriever.query[layer](model.attachment.norm(layer, hidden[q, source.asks_QT[q]]))
            logits, older, right = [model.retriever.null[layer]], [], 0
            for w in range(len(keys)):
                if history.forbidden_QW[q, w]:
                    continue
                if w == history.gold_Q[q]:
                    right = len(logits)
                if history.stale_QW[q, w]:
                    older.append(len(logits))
                logits.append((queries @ keys[w].T).max(1).values.mean() * 8**-0.5)
            surprise = -torch.stack(logits).log_softmax(0)
            if older:
                losses.append(0.6 * surprise[right] + 0.4 * surprise[older].mean())
            else:
                losses.append(surprise[right])
        close(source.losses[layer], torch.stack(losses).mean())
    source.losses[0].backward()
    assert hidden.grad.abs().sum() > 0
    assert source.vectors[0].grad.abs().sum() > 0


@pytest.mark.parametrize("changes", [{}, {"recency": 3.0}, {"recency": 3.0, "score_layers": "mean"}], ids=str)
@torch.no_grad()
def test_training_writes_and_reads_as_use_does(
    changes: dict[str, Any], make: Callable[..., MemoryModel], prose: Prose
) -> None:
    """The same vectors from the same chunks, and the same hidden states of a question that reads them."""
    model = make().eval()
    model.config = config = model.config.replace(**changes)
    torch.nn.init.normal_(model.offset, std=0.3)
    torch.nn.init.normal_(model.start)
    torch.nn.init.normal_(model.retriever.null)
    chunks = torch.randint(3, 600, (2, 4, 16))  # two pasts of four chunks: a full pool
    with model.attachment.hooks():
        vectors, _ = Objective(model).write(chunks, STAGE)
    memories = [model.new_memory() for _ in range(2)]
    for memory, stream in zip(memories, chunks.tolist(), strict=True):
        for chunk in stream:
            model.write(memory, chunk)
    for layer in range(2):
        expected = torch.cat([m.pool_LnD[layer] for m in memories])
        close(vectors[layer].flatten(0, 1), expected)
    none = torch.zeros(2, 8, dtype=torch.bool)
    owner = torch.arange(8) // 4
    history = History.draw(torch.arange(2), torch.tensor([-1, 4]), none, none, owner, (0, 0), torch.Generator())
    ids, asks = torch.randint(3, 600, (2, 10)), torch.zeros(2, 10, dtype=torch.bool)
    asks[:, 2:7] = True
    source = BankSlots(
        model.attachment, model.retriever, vectors, model.start, history, asks, pool_vectors=32, retrieved_writes=0,
        score_bias=0.5, recency=config.recency, key_group=4, score_layers=config.score_layers,
        force_Q=none[:, 0], generator=torch.Generator(),
    )  # fmt: skip
    with model.attachment.hooks():
        cache = MemoryCache(source, 2)
        trained = model.attachment.decoder(ids, past_key_values=cache, use_cache=True).last_hidden_state
    with model.reading(memories, asks) as cache:
        mask = torch.cat([cache.provider.mask(), torch.ones(2, 10, dtype=torch.long)], 1)
        used = model.attachment.decoder(
            ids, past_key_values=cache, attention_mask=mask, use_cache=True
        ).last_hidden_state
    close(trained, used)


# Attention ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_grouped_attention_is_attention(make: Callable[..., MemoryModel]) -> None:
    """As the library's eager one, with and without padding."""
    model = make().base.eval()
    ids = torch.randint(3, 600, (3, 21))
    padded = torch.ones(3, 21, dtype=torch.long)
    padded[1, :5] = padded[2, :13] = 0
    for mask in (None, padded):
        seen = {}
        for name in ("eager", GROUPED):
            model.set_attn_implementation(name)
            assert model.config._attn_implementation == name
            seen[name] = model(ids, attention_mask=mask).logits
        where = padded.bool() if mask is not None else torch.ones_like(padded).bool()
        close(seen[GROUPED][where], seen["eager"][where])
        assert seen[GROUPED].dtype == torch.float32


# The loop -------------------------------------------------------------------------------------------------------------


def trainer_of(model: MemoryModel, prose: Prose, stages: list[Stage], folder: Path, **engine: Any) -> Trainer:
    """A trainer on made-up facts, as the built-in model's."""
    settings = Engine(**{"optimizer": "muon", "eval_batches": 1, "save_every_s": 1e9, "log_every": 2} | engine)
    unknown = [*Streams(prose, model.tokenizer).encode(UNKNOWN), model.tokenizer.eos_token_id]
    return Trainer(
        model, lambda lane, lanes, split: Streams(prose, model.tokenizer, split=split, lane=lane), stages, folder,
        engine=settings, unknown=unknown,
    )  # fmt: skip


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training changes."""
    return trainer.model.state_dict() | {k: v.clone() for k, v in trainer.parallel.tensors().items()}


def test_a_step_reaches_everything_and_learns(
    make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter gets a gradient and moves; on one batch again and again the loss falls."""
    model = make()
    stage = replace(STAGE, steps=100, warmup=0, force=1.0, pool=8, lr=0.02, lr_rest=0.01)
    trainer = trainer_of(model, prose, [stage], tmp_path)
    batch = trainer.data[0].batch(0, MIX)
    loss, figures = trainer.objective(batch, stage, Place(0))
    assert {"answer", "lm", "retriever", "recall"} <= set(figures)
    loss.backward()
    named = dict(model.named_parameters())
    assert {"offset", "start", "retriever.null", "base.model.embed_tokens.weight"} <= set(named)
    without = [name for name, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    for optimizer in trainer.parallel.optimizers.values():
        optimizer.zero_grad()
    before = state(trainer)
    before = {k: v.clone() for k, v in before.items()}
    monkeypatch.setattr(trainer.data[0], "batch", lambda *_, **__: batch)
    losses = [trainer.train_step()["loss"] for _ in range(15)]
    assert trainer.step == 15
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]
    assert [k for k, v in before.items() if torch.equal(v, state(trainer)[k])] == []
    learnt = [id(p) for o in trainer.parallel.optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(learnt) == sorted(id(p) for p in model.parameters())  # each in one optimizer


@pytest.mark.parametrize(
    "changes",
    [{"in_context": 1.0}, {"pending": 1.0}, {"pending": 1.0, "lm_weight": 0.0}, {"retrieved": 0}],
    ids=str,
)
def test_kinds_of_steps(
    changes: dict[str, Any], make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path
) -> None:
    """Without memory, with text in the window, without a long-term store: all have a loss and gradients."""
    trainer = trainer_of(make(), prose, [replace(STAGE, **changes)], tmp_path)
    for _ in range(2):
        figures = trainer.train_step()
        assert figures["loss"] == figures["loss"]
        assert figures["norm"] > 0
        assert ("context_answer" in figures) == ("in_context" in changes)
    held = trainer.evaluate()
    assert held
    assert all(key.startswith("held_") for key in held)


@pytest.mark.parametrize("kind", ["in_context", "pending"])
def test_a_reader_is_held_to_its_base(
    kind: str, make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL(base || reader), token by token, of text that is not in memory; nothing for a base that learns too."""
    bare = make()
    stage = replace(STAGE, lm_weight=0.0, **{kind: 1.0})
    whole = trainer_of(bare, prose, [stage], tmp_path, precision="float32")
    batch = whole.data[0].batch(0, MIX)
    without, held = (whole.objective(batch, replace(stage, keep_weight=w), Place(0))[0].item() for w in (0.0, 2.0))
    assert held == without

    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = MemoryModel(bare.base, bare.tokenizer, CONFIG, prompt=PROMPT, name="tiny", lora=lora)
    objective = trainer_of(model, prose, [stage], tmp_path, precision="float32", optimizer="adamw").objective
    if kind == "in_context":  # as the start vectors stand for the first token, a new reader without memory is its base
        assert objective(batch, replace(stage, keep_weight=2.0), Place(0))[1]["from_base"] == pytest.approx(0, abs=1e-5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    seen: dict[str, Tensor] = {}
    read = objective._read

    def spy(source: Any, ids_QT: Tensor) -> Tensor:
        seen["ids"], seen["hidden"] = ids_QT, read(source, ids_QT)
        return seen["hidden"]

    monkeypatch.setattr(objective, "_read", spy)
    without, held = (objective(batch, replace(stage, keep_weight=w), Place(0))[0].item() for w in (0.0, 2.0))
    chunks = batch.chunks_BTn.flatten(0, 1).tolist()
    reader = model.attachment.logits(seen["hidden"]).log_softmax(-1)
    apart = []
    for row, ids in enumerate(seen["ids"].tolist()):
        if ids[: len(chunks[0])] not in chunks or (kind == "in_context" and row % 4):
            continue
        length = len(chunks[0])
        while kind == "in_context" and ids[length : length + len(chunks[0])] in chunks:
            length += len(chunks[0])
        with model.plain() as base:
            logits = base(torch.tensor([[model.tokenizer.bos_token_id, *ids[:length]]])).logits[0, 1:]
        for p, q in zip(logits.softmax(-1), reader[row, :length], strict=True):
            apart.append((p * (p.log() - q)).sum().item())
    assert apart
    assert held - without == pytest.approx(2 * sum(apart) / len(apart), rel=1e-3)
    assert held - without > 0.01


class Interrupted(Exception):
    """What stops a run in a test."""


def test_an_interrupted_run_is_the_uninterrupted_one(
    make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path
) -> None:
    """Bit for bit, stopped within a stage and right after a change of stages; the second one keeps a past."""
    other = replace(MIX, chunks=2, streams=5)
    second = replace(STAGE, name="two", steps=4, pending=0.5, mixes=(MIX, other), decay=1.0)
    stages = [replace(STAGE, in_context=0.5), replace(second, earlier=8, others=(4, 9))]
    whole = trainer_of(make(), prose, stages, tmp_path / "whole")
    assert not whole.resume()
    seen: list[tuple[str, int, float]] = []
    whole.run(show=lambda f: seen.append((f["stage"], f["step"], f["loss"])))
    assert [s[:2] for s in seen] == [("one", i) for i in (1, 2, 3)] + [("two", i) for i in (1, 2, 3, 4)]

    folder, again = tmp_path / "parts", []
    stops = [("one", 2, True), ("two", 1, False), ("two", 3, True), (None, 0, False)]
    for run, (stage, step, saves) in enumerate(stops):
        trainer = trainer_of(make(run), prose, stages, folder)  # other weights than the checkpoint's, after the first
        assert trainer.resume() == (run > 0)

        def show(figures: dict[str, Any], trainer: Trainer = trainer, stop: Any = (stage, step, saves)) -> None:
            if (figures["stage"], figures["step"]) == stop[:2]:
                if not stop[2]:
                    raise Interrupted  # what this step did is lost
                again.append((figures["stage"], figures["step"], figures["loss"]))
                trainer.save()
                raise Interrupted
            again.append((figures["stage"], figures["step"], figures["loss"]))

        if stage is None:
            trainer.run(show=show)
        else:
            with pytest.raises(Interrupted):
                trainer.run(show=show)
    assert again == seen
    one, two = state(whole), state(trainer)
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [("one", 2), ("one", 3), ("two", 2), ("two", 4)]

    finished = trainer_of(make(9), prose, stages, folder)
    assert finished.resume()
    finished.run(show=lambda _: pytest.fail("a finished run went on"))
    assert all(torch.equal(one[k], v) for k, v in state(finished).items())


def test_a_crash_while_saving_leaves_the_old_checkpoint(
    make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a checkpoint is never taken for one."""
    trainer = trainer_of(make(), prose, [STAGE], tmp_path)
    trainer.train_step()
    trainer.save()
    saved = {k: v.clone() for k, v in state(trainer).items()}

    def crash(tensors: dict[str, Tensor], path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        raise OSError("disk full")

    trainer.train_step()
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "save_file", crash)
        with pytest.raises(OSError, match="disk full"):
            trainer.save()
    again = trainer_of(make(1), prose, [STAGE], tmp_path)
    assert again.resume()
    assert (again.stage_index, again.step) == (0, 1)
    assert all(torch.equal(saved[k], v) for k, v in state(again).items())
    trainer.save()
    assert again.resume()
    assert again.step == 2
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00-0000002"]


def test_a_checkpoint_of_another_model_is_refused(
    make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path
) -> None:
    """Weights that nobody wants are an error, not silence; so are lacking ones, and other lanes."""
    trainer = trainer_of(make(), prose, [STAGE], tmp_path)
    trainer.save()
    path = next((tmp_path / "checkpoints").iterdir()) / "trained.safetensors"
    weights, place = load_file(path), {"place": '{"stage": 0, "step": 0, "tokens": 0, "lanes": 1}'}
    save_file(weights | {"weights.more": torch.zeros(1)}, path, metadata=place)
    with pytest.raises(ConfigError, match="does not fit"):
        trainer.resume()
    for lacking in ("weights.start", "weights.retriever.null", "weights.base.model.norm.weight"):
        kept = {k: v for k, v in weights.items() if k != lacking}
        assert len(kept) == len(weights) - 1
        save_file(kept, path, metadata=place)
        with pytest.raises(ConfigError, match="does not fit"):
            trainer.resume()
    save_file(weights, path, metadata={"place": '{"stage": 0, "step": 0, "tokens": 0, "lanes": 3}'})
    with pytest.raises(ConfigError, match="3 lanes"):
        trainer.resume()


def test_the_learning_rate_rises_stays_and_falls(
    make: Callable[..., MemoryModel], prose: Prose, tmp_path: Path
) -> None:
    """Linearly in `warmup` steps; in the last `decay` of the steps linearly to zero."""
    stage = replace(STAGE, steps=20, warmup=4, decay=0.5)
    trainer = trainer_of(make(), prose, [stage], tmp_path)

    def rates() -> list[float]:
        found = []
        for trainer.step in range(21):
            found.append(trainer.rate())
        return found

    expected = [0.25, 0.5, 0.75, *[1.0] * 8, *[i / 10 for i in range(9, -1, -1)]]
    assert rates() == pytest.approx(expected)
    trainer.stages = [replace(stage, decay=0.0, warmup=0)]
    assert rates() == [1.0] * 21
    trainer.stages, trainer.step = [replace(stage, lr=0.5, lr_rest=0.25, lr_retriever=0.125)], 1
    trainer.train_step()
    rates = {kind: optimizer.param_groups[0]["lr"] for kind, optimizer in trainer.parallel.optimizers.items()}
    assert rates == {"lr": 0.25, "lr_rest": 0.125, "lr_retriever": 0.0625}


# The curriculum and a run ---------------------------------------------------------------------------------------------


def test_the_curriculum_goes_step_by_step() -> None:
    """Stages by name; each changes how text and memory are mixed, and nothing about how the loss is made."""
    stages = builtin()
    assert [s.name for s in stages] == ["context", "one chunk", "many chunks", "mixed", "long term", "crowded"]
    may_change = {
        "name", "steps", "mixes", "lr", "decay", "others", "earlier", "pool", "retrieved", "in_context", "pending",
        "force", "lr_rest", "lr_retriever",
    }  # fmt: skip
    for one, two in itertools.pairwise(stages):
        changed = {f.name for f in fields(Stage) if getattr(one, f.name) != getattr(two, f.name)}
        assert changed <= may_change
        assert one.retrieved <= two.retrieved
        assert one.pool <= two.pool
        assert one.force >= two.force or one.retrieved == 0
    assert stages[0].in_context == 1.0  # no memory at first
    assert (stages[-1].pool, stages[-1].retrieved * MEMORY.K) == (MEMORY.N, MEMORY.K0)  # as in use, at last
    assert stages[-1].decay > 0
    for stage in stages:
        assert stage.steps > stage.warmup
        assert stage.pool % MEMORY.K == 0
        assert stage.retrieved * MEMORY.K <= MEMORY.K0
        for mix in stage.mixes:
            assert MEMORY.K <= mix.tokens[0] // 4 * 4 <= mix.tokens[1] <= MEMORY.chunk_tokens


@contextmanager
def training_here() -> Iterator[None]:
    """`launch` trains in this process, as it does under torchrun, instead of starting others: no imports again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setattr(torch, "set_num_threads", lambda _: None)  # tests share the cores otherwise
        yield


def trained(run: Run, out: Path, **options: Any) -> dict[str, Any]:
    """`launch` in this process."""
    with training_here():
        return launch(run, out, quiet=True, **options)


def _from_prose_to_a_model(run: Run, out: Path, start: Callable[..., dict[str, Any]]) -> MemoryModel:
    """A few steps of every stage make a folder that loads and answers; started again, it is finished."""
    prose_file = Path(run.prose)
    with pytest.raises(OSError, match="prose"):
        start(run, out)  # there is no such file
    prose_file.write_text(prose_text(20_000), encoding="utf-8")
    result = start(run, out)
    assert result["model"] == str(out / "model")
    assert result["steps"] == sum(stage.steps for stage in run.stages)
    assert (result["last"]["stage"], result["last"]["step"]) == (run.stages[-1].name, run.stages[-1].steps)
    model = MemoryModel.from_pretrained(result["model"])
    assert model.config == MEMORY
    memory = model.new_memory()
    model.memorize(memory, "Marla Quist lives in Oslo. " * 30)
    assert memory.write_count > 1
    assert model.ask(memory, "Where does Marla Quist live?", max_new_tokens=4).ids
    log = (out / "log.jsonl").read_text()
    again = start(run, out)
    assert again == result
    assert (out / "log.jsonl").read_text() == log
    assert MemoryModel.from_pretrained(result["model"]).fingerprint == model.fingerprint
    with pytest.raises(ConfigError, match="--resume"):
        start(run, out, resume=False)
    return model


@pytest.mark.slow
def test_a_run_from_prose_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model's run, all stages, with its optimizer and its precision, on a tiny decoder."""

    def tiny_decoder(tokenizer: PreTrainedTokenizerFast, positions: int) -> LlamaForCausalLM:
        config = small_decoder(tokenizer, positions).config
        config.update({"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4})
        config.update({"num_key_value_heads": 2, "head_dim": 8})
        return LlamaForCausalLM(config)

    small_decoder = stages_module.small_decoder
    monkeypatch.setattr(stages_module, "small_decoder", tiny_decoder)
    run = builtin_run(tmp_path / "prose.txt", fast=True)
    assert (run.engine.optimizer, run.engine.precision) == ("muon", "bfloat16")
    assert [(stage.name, stage.steps) for stage in run.stages] == [(stage.name, 3) for stage in builtin()]
    model = _from_prose_to_a_model(run, tmp_path / "run", trained)
    assert model.base.config.hidden_size == 32


@pytest.mark.slow
def test_the_built_in_model_is_trained_from_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its real size and in a process of its own: a step of the first stage and one of the last.

    With AdamW and float32: for Muon's bfloat16, CPUs without instructions for it need half a minute a step. The test
    before has both, and all stages.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(loop_module.__file__).parents[2]))
    run = builtin_run(tmp_path / "prose.txt", fast=True)
    engine = replace(run.engine, optimizer="adamw", precision="float32", eval_batches=1)
    run = replace(run, engine=engine, stages=tuple(replace(run.stages[i], steps=1) for i in (0, -1)))

    def start(run: Run, out: Path, **options: Any) -> dict[str, Any]:
        return launch(run, out, processes=1, quiet=True, **options)

    model = _from_prose_to_a_model(run, tmp_path / "run", start)
    assert (model.base.config.hidden_size, model.base.config.num_hidden_layers) == (256, 4)
