"""Looking at writes one by one: what a single write's slots are, which write is answered from, and what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import BOS, close, random_ids
from remanence import MemoryModel
from remanence.config import MemoryConfig
from remanence.core.cache import MemoryCache
from remanence.core.looking import _OF_WRITES, Looked, candidates, look, ranked
from remanence.core.memory import Memory
from remanence.core.prompts import UNKNOWN
from remanence.core.spans import Span
from remanence.core.writes import Only
from remanence.errors import ConfigError, InputError
from remanence.train.reading import ReadingTrainer
from remanence.train.written import Bank, LessonSlots, Stream, pick_spans
from test_hf import plain_logits
from test_reading import few, trainer_of  # noqa: F401
from test_search import CHUNK, model_of


def told(model: MemoryModel, chunks: int, rest: int = 0, seed: int = 0) -> Memory:
    """A memory of whole chunks, and so many tokens that wait."""
    memory = model.new_memory()
    model.memorize(memory, bytes(random_ids(chunks * CHUNK + rest, seed)).decode())
    return memory


def read(model: MemoryModel, memories: list[Memory], writes: list[int | None], prompt: list[int]) -> Tensor:
    """Logits of a prompt with each write [B, T, V]."""
    with torch.no_grad(), model.reading(memories, writes=writes) as cache:
        return logits_of(model, cache, prompt)


def read_spans(model: MemoryModel, memories: list[Memory], spans: list[list[Span]], prompt: list[int]) -> Tensor:
    """Logits of a prompt with each span [B, T, V]."""
    with torch.no_grad(), model.reading(memories, spans=spans) as cache:
        return logits_of(model, cache, prompt)


def logits_of(model: MemoryModel, cache: Any, prompt: list[int]) -> Tensor:
    """Logits of a prompt in each row of a cache."""
    mask = cache.provider.mask()
    ids = torch.tensor([prompt] * len(mask))
    mask = torch.cat([mask, torch.ones_like(ids)], 1)
    places = mask.sum(1, keepdim=True) - len(prompt) + torch.arange(len(prompt))
    return model.base(ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "olmo2"])
def test_a_write_and_the_one_before_it_are_text_in_the_context(family: str, tokenizer: Any) -> None:
    """The verbatim law: the first two writes give the plain model's logits with their text before the prompt."""
    model, prompt = model_of(tokenizer, family), random_ids(5, 1)
    memory = told(model, 6)
    ids = random_ids(6 * CHUNK)
    found = read(model, [memory] * 3, [1, 0, None], prompt)
    for row, before in enumerate((ids[: 2 * CHUNK], ids[:CHUNK], [])):
        close(found[row], plain_logits(model.base, [BOS, *before, *prompt])[-len(prompt) :])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("kept", ["keys_values", "states"])
def test_an_instruction_stands_before_what_is_read(family: str, kept: str, tokenizer: Any) -> None:
    """Without a memory: the plain model's logits. With one: it is behind the instruction, and else as it was."""
    bare, prompt = model_of(tokenizer, family, kept=kept, score_bias=0.5), random_ids(5, 1)
    model = MemoryModel(bare.base, tokenizer, bare.config, instruction="Read this:")
    before = model.prompts.preface()
    assert bytes(before) == b"Read this:\n\n" and bytes(model.prompts.question("Why?")) == b"\n\nWhy?"
    expected = plain_logits(model.base, [*before, *prompt])[-len(prompt) :]
    for logits in (read(model, [model.new_memory()], [None], prompt), read_together(model, model.new_memory(), prompt)):
        close(logits[0], expected)
    memory, young = told(model, 9), told(model, 3, seed=2)
    assert memory.model == bare.fingerprint  # what is written stays as it is
    ours, theirs = read(model, [young, memory], [None, 5], prompt), read(model, [memory], [5], prompt)
    close(ours[1], theirs[0])
    close(ours[0], expected)
    found = model.search([memory], [prompt])
    with torch.no_grad(), model.reading([memory], found=found) as own, bare.reading([memory], found=found) as other:
        for layer in range(memory.layers):
            hidden = torch.zeros(1, 1, model.attachment.width)
            with_it, without = own.provider.slots(layer, hidden), other.provider.slots(layer, hidden)
            close(with_it.values[:, :, len(before) :], without.values[:, :, 1:])
            assert with_it.values.shape[2] == without.values.shape[2] + len(before) - 1
            assert torch.equal(with_it.bias[:, len(before) :], without.bias[:, 1:])
            assert torch.equal(with_it.bias[:, : len(before)], without.bias[:, :1].expand(1, len(before)))


def read_together(model: MemoryModel, memory: Memory, prompt: list[int]) -> Tensor:
    """Logits of a prompt that reads the best writes and the pool [1, T, V]."""
    with torch.no_grad(), model.reading([memory], found=model.search([memory], [prompt])) as cache:
        return logits_of(model, cache, prompt)


@pytest.mark.parametrize("store_dtype", ["float32", "int4", "q4", "tokens"])
def test_rows_do_not_meet(store_dtype: str, tokenizer: Any) -> None:
    """Writes of two memories side by side, some without one before them: as each alone."""
    model, prompt = model_of(tokenizer, store_dtype=store_dtype), random_ids(5, 1)
    one, other = told(model, 9), told(model, 4, seed=3)
    memories: list[Memory] = [one, other, one, other, one]
    writes: list[int | None] = [5, 0, 0, None, 6]
    whole = read(model, memories, writes, prompt)
    for row, (memory, write) in enumerate(zip(memories, writes, strict=True)):
        if store_dtype != "tokens":  # where only tokens are kept, what is encoded again sees what is read with it
            close(whole[row], read(model, [memory], [write], prompt)[0])
    assert not torch.equal(whole[0], whole[4])


def test_looking_is_reading_each_and_asking_whether_it_answers(tokenizer: Any) -> None:
    """The odds of not saying "I don't know.", token by token, and a part of what the search says."""
    model, prompt = model_of(tokenizer, looks=4), random_ids(5, 1)
    memory, unknown = told(model, 7), model.encode(UNKNOWN)
    found = model.search([memory], [prompt])[0]
    some = candidates(model, memory, found)
    writes = [span.write(CHUNK) for span in some.spans]
    assert len(writes) == 4 and found.scores[writes].min() >= found.scores.topk(4).values.min()
    with model.attachment.hooks():
        looked, begun = look(model, memory, [], prompt, some, unknown)
    assert begun.cache.get_seq_length() + 1 == begun.mask.shape[1]
    for span, score in zip(looked.spans, looked.scores, strict=True):
        write = span.write(CHUNK)
        likely = 1.0
        for at, token in enumerate(unknown):
            logits = read(model, [memory], [write], prompt + unknown[:at])[0, -1]
            likely *= float(logits.softmax(-1)[token])
        likely = min(max(likely, 1e-6), 1 - 1e-6)
        expected = torch.log(torch.tensor((1 - likely) / likely)) + _OF_WRITES[0] * float(
            found.scores[write] - found.null
        )
        close(torch.tensor(score), expected, room=1e-3)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 99)), min_size=1, max_size=8, unique_by=lambda each: each[1]),
    st.floats(0, 3),
)
def test_the_newest_of_about_the_best_comes_first(each: list[tuple[float, int]], margin: float) -> None:
    """It answers where the best one does. All others are in order, and none is lost."""
    spans = [Span(first, first + 3) for _, first in each]
    looked = ranked([score for score, _ in each], spans, [0.5] * len(each), CHUNK, margin)
    best = max(score for score, _ in each)
    near = [first for score, first in each if score > best - margin and (score >= 0 or best < 0)]
    assert looked.answers == (best >= 0)
    assert looked.best is not None and looked.best.first == max(near, default=looked.best.first)
    assert near or looked.scores[0] == best
    assert looked.scores[1:] == sorted(looked.scores[1:], reverse=True)
    firsts = [span.first for span in looked.spans]
    assert sorted(zip(looked.scores, firsts, strict=True)) == sorted(each)
    assert Looked([], [], [], CHUNK).best is None and Looked([], [], [], CHUNK).answers is None


def test_what_was_told_again_counts_in_place_of_what_was_told_before() -> None:
    """If both are taken for answers and the search finds both about as well."""
    spans, likely = [Span(0, 3), Span(5, 8), Span(9, 12)], [0.1, 0.2, 0.3]

    def order(scores: list[float], found: list[float]) -> list[int]:
        return [span.first for span in ranked(scores, spans, likely, CHUNK, 0.5, found).spans]

    assert order([4.0, 0.1, -0.1], [9.0, 7.5, 9.0]) == [5, 0, 9]
    assert order([4.0, 0.1, -0.1], [9.0, 6.5, 9.0]) == [0, 5, 9]  # about something else
    assert order([4.0, 0.1, 0.0], [9.0, 7.5, float("inf")]) == [9, 0, 5]  # the last one waits in the window
    assert order([-1.0, -2.0, -3.0], [9.0, 9.0, 9.0]) == [0, 5, 9]  # nothing answers
    assert order([-1.0, -1.4, -3.0], [9.0, 0.0, 9.0]) == [5, 0, 9]  # about as likely
    assert order([0.3, -0.1, -3.0], [9.0, 9.0, 9.0]) == [0, 5, 9]  # only the older one answers
    looked = ranked([4.0, 0.1, -0.1], spans, likely, CHUNK, 0.5, [9.0, 7.5, 9.0])
    assert looked.scores == [0.1, 4.0, -0.1] and looked.likely == [0.2, 0.1, 0.3] and looked.answers


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_come_from_one_write(family: str, tokenizer: Any) -> None:
    """One or several at once, with beams, a forced write, what waits, and an empty memory."""
    model = model_of(tokenizer, family, looks=3)
    memories = [told(model, 6), told(model, 3, rest=4, seed=1), model.new_memory(), told(model, 0, rest=5, seed=2)]
    asked = ["What is it?", "And who, and where?", "Why?", "When was that?"]
    alone = [model.ask(m, q, max_new_tokens=4) for m, q in zip(memories, asked, strict=True)]
    together = model.ask_batch(memories, asked, max_new_tokens=4)
    assert [a.ids for a in alone] == [a.ids for a in together]
    for answer, memory in zip(together, memories, strict=True):
        looked = [source.write for source in answer.sources if source.write >= 0]
        assert len(looked) == min(3, memory.write_count) == len(set(looked))
        assert all(0 <= write < memory.write_count for write in looked)
        assert ("window" in [source.where for source in answer.sources]) == bool(memory.pending)
        expected = {looked[0], max(0, looked[0] - 1)} if looked else set()
        assert answer.read == [expected] * memory.layers or (memory.pending and answer.read == [set()] * memory.layers)
    assert together[0].sources[0].where in ("long-term", "short-term") and together[0].sources[0].text
    [forced] = model.ask_batch(memories[:1], asked[:1], force=[2], max_new_tokens=4)
    assert [source.write for source in forced.sources] == [2]
    with pytest.raises(InputError, match="cannot force write 6"):
        model.ask_batch(memories[:1], asked[:1], force=[6])
    assert len(model.ask(memories[0], asked[0], max_new_tokens=4, num_beams=3).ids) <= 4


def test_what_looking_decides_is_said(tokenizer: Any) -> None:
    """In doubt "I don't know."; else anything but that. With several answers a prompt, too."""
    for doubt, unknown in ((99.0, True), (-99.0, False)):
        model = model_of(tokenizer, looks=3, doubt=doubt)
        memory = told(model, 6)
        for options in ({}, {"num_beams": 2}, {"do_sample": True}):
            answer = model.ask(memory, "What is it?", max_new_tokens=len(UNKNOWN), **options)
            assert (answer.text == UNKNOWN) == unknown == (answer.score < 0)
        assert [a.text.startswith(UNKNOWN) for a in model.ask_batch([memory] * 2, ["Why?", "Who is it?"])] == [
            unknown
        ] * 2


def test_behind_the_verdict_nothing_is_said(tokenizer: Any) -> None:
    """However many tokens there is room for."""
    model = model_of(tokenizer, looks=3, doubt=99.0)
    memory = told(model, 6)
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        assert model.ask(memory, "What is it?", max_new_tokens=len(UNKNOWN) + 9, **options).text == UNKNOWN


def test_without_the_long_term_store_the_pool_is_read(tokenizer: Any) -> None:
    """As MemoryLLM reads it: nothing is looked at, and the base does not answer by itself."""
    for changes in ({"looks": 3}, {"looks": 3, "base_answers": True}, {}):
        model = model_of(tokenizer, **changes)
        memory = told(model, 9)
        pool = set((memory.pool_rows_Ln[0] // CHUNK).tolist())
        assert pool and len(pool) < 9
        answers = model.ask_batch([memory] * 2, ["What is it?", "Who?"], long_term=False, max_new_tokens=4)
        assert [answer.read for answer in answers] == [[pool] * memory.layers] * 2
        assert model.ask(memory, "Who?", long_term=False, max_new_tokens=4).ids == answers[1].ids
        assert {source.where for answer in answers for source in answer.sources} == {"short-term"}


def test_a_forced_write_that_is_hidden_is_not_read(tokenizer: Any) -> None:
    """Neither what `only` leaves out, nor what has expired."""
    model = model_of(tokenizer, looks=3)
    memory = model.new_memory()
    for label in ("a", "b", "a"):
        model.memorize(memory, bytes(random_ids(2 * CHUNK)).decode(), source=label)
    seen = model.ask(memory, "What is it?", only=Only(source="b"), force=[2], max_new_tokens=4)
    assert [source.label for source in seen.sources] == ["b"]
    hidden = model.ask(memory, "What is it?", only=Only(source="b"), force=[1], max_new_tokens=4)
    assert hidden.sources == []
    model.memorize(memory, bytes(random_ids(2 * CHUNK, 4)).decode(), source="gone", keep_for=1e-6)
    assert model.ask(memory, "What is it?", force=[memory.write_count - 1], max_new_tokens=4).sources == []


def test_beams_that_the_base_asks_for(tokenizer: Any) -> None:
    """In its generation config, and no questions at all."""
    model = model_of(tokenizer, looks=3)
    memory = told(model, 6)
    expected = model.ask(memory, "What is it?", max_new_tokens=4, num_beams=2)
    model.base.generation_config.num_beams = 2
    assert model.ask(memory, "What is it?", max_new_tokens=4).ids == expected.ids
    assert model.ask_batch([], []) == []


def test_it_needs_one_search(tokenizer: Any) -> None:
    """And a long-term store with a start vector."""
    with pytest.raises(ConfigError, match="looks"):
        MemoryConfig(looks=4)
    plain, looking = model_of(tokenizer), model_of(tokenizer, looks=4)
    assert plain.fingerprint == looking.fingerprint  # the memories are the same


def test_what_is_learnt_is_read_or_unknown(
    trainer_of: Callable[..., ReadingTrainer],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question whose answer is learnt reads the write that has it; one that does not learns that nothing is known."""
    trainer = trainer_of(tmp_path, asks=40)
    trainer.model.config = trainer.model.config.replace(looks=3)
    unknown, seen, checked = trainer.asking.answer(UNKNOWN), {True: 0, False: 0}, trainer._looked_at

    def check(turns: Any, past: Any, searched: Any, rng: Any) -> Any:
        learnt, picked = checked(turns, past, searched, rng)
        for row, (turn, now) in enumerate(zip(turns, learnt, strict=True)):
            read = set(picked.writes_QS[row][picked.there_QS[row]].tolist())
            gold = int(past.gold_Q[row])
            assert len(read) <= 2 and all(past.allowed_QW[row, write] or write in (gold, gold + 1) for write in read)
            if turn.kind == "chat" or turn.seen:
                assert now == turn
            elif now.answer != unknown:
                assert gold in read and now == turn
                seen[True] += 1
            elif turn.asked is not None:
                assert gold not in read
                seen[False] += 1
        assert not picked.bias_QS.any()
        return learnt, picked

    monkeypatch.setattr(trainer, "_looked_at", check)
    figures = [trainer.train_step() for _ in range(3)]
    assert all(0 < one["loss"] < 20 for one in figures) and min(seen.values()) > 5


def test_what_is_learnt_of_spans_is_read_or_unknown(
    trainer_of: Callable[..., ReadingTrainer],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question is learnt with a span in which its answer ends; and without, then nothing is known."""
    trainer = trainer_of(tmp_path, asks=40)
    trainer.model.config = trainer.model.config.replace(looks=3, look_at="sentences")
    unknown, seen, checked = trainer.asking.answer(UNKNOWN), {True: 0, False: 0}, trainer._looked_at

    def check(turns: Any, past: Any, searched: Any, rng: Any) -> Any:
        learnt, picked = checked(turns, past, searched, rng)
        bank, K, at = trainer.bank, trainer.model.config.K, 0
        for row, turn in enumerate(turns):
            said = turn.asked is not None and past.gold_Q[row] >= 0
            token = bank.streams[turn.stream].first * K + turn.asked.token if said else None
            older = {bank.streams[turn.stream].first * K + old for old in turn.asked.older_tokens} if said else set()
            for _ in range(2):
                if at == len(learnt) or learnt[at].prompt is not turn.prompt:
                    break
                rows = picked.writes_QS[at][picked.there_QS[at]].tolist()
                assert all(past.allowed_QW[row, one // K] for one in rows)
                if turn.kind == "chat" or turn.seen:
                    assert learnt[at] == turn
                elif learnt[at].answer != unknown:
                    assert token in rows and learnt[at] == turn
                    seen[True] += 1
                elif said:
                    assert token not in rows and older.isdisjoint(rows) and learnt[at].asked is None
                    seen[False] += 1
                at += 1
        assert at == len(learnt) and picked.single and not picked.bias_QS.any()
        return learnt, picked

    monkeypatch.setattr(trainer, "_looked_at", check)
    figures = [trainer.train_step() for _ in range(3)]
    assert all(0 < one["loss"] < 20 for one in figures) and min(seen.values()) > 5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_training_reads_spans_as_use_does(family: str, tokenizer: Any) -> None:
    """The law: a bank's slots give the logits that `SpanSlots` gives for the same spans, all questions at once."""
    model, K = model_of(tokenizer, family, looks=2), CHUNK
    text = bytes(random_ids(5 * K, 3)).decode()
    memory = model.new_memory()
    model.memorize(memory, text)
    bank = Bank(model, steps=1, streams=1, chunks=5)
    ids = model.encode(text)
    bank.add([Stream([ids[i * K : (i + 1) * K] for i in range(5)], [])])
    spans = [[Span(3, 7)], [Span(K - 1, K + 2), Span(3 * K, 3 * K + 5)], []]
    prompts = [random_ids(5, 50 + row) for row in range(3)]
    picked = pick_spans(spans).of([2, 0, 1])
    with torch.no_grad(), model.attachment.hooks(), model.adapter("read"):
        cache = MemoryCache(LessonSlots(bank, picked), len(model.attachment.layers))
        ids_BT = torch.tensor([prompts[row] for row in (2, 0, 1)])
        logits = model.base(ids_BT, past_key_values=cache, use_cache=True).logits
    for place, row in enumerate((2, 0, 1)):
        close(logits[place], read_spans(model, [memory], [spans[row]], prompts[row])[0])
