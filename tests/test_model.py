"""`MemoryModel`: memorizing text, asking, batches, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
)

from conftest import BOS, build_decoder, build_tokenizer, close, led, random_ids, random_text, small, writes_of
from remanence.config import MemoryConfig
from remanence.core.memory import Memory, Pending
from remanence.errors import ConfigError, IncompatibleMemory, InputError, reason
from remanence.models.pretrained import WEIGHTS, MemoryModel, plan
from remanence.train.run import load_run

Make = Callable[..., MemoryModel]


class Record(LogitsProcessor):
    """Keeps the logits of every generated token."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep and hand on."""
        self.steps.append(scores.detach().clone())
        return scores


def same(a: Memory, b: Memory) -> bool:
    """Whether two memories hold the same, to the last bit (times of day aside)."""
    one, two, left, right = a.tensors(), b.tensors(), a.meta(), b.meta()
    for meta in (left, right):
        for record in (*meta["writes"], *meta["pending"]):
            record.pop("time")
            record.pop("pieces", None)  # with times of their own; `test_forgetting.py` has them
    return left == right and all(torch.equal(one[k], two[k]) for k in one)


def decoded(memory: Memory, written: list[int]) -> bytes:
    """All tokens of a memory as bytes: those written, then those pending."""
    return bytes(written + memory.pending_ids)


def chunk_text(index: int) -> str:
    """The text number `index` of those that fill one chunk of 8 each: later ones are put after a line end."""
    return random_text(7 if index else 8, index)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The chunks that are written, in order."""
    chunks: list[list[int]] = []
    write = MemoryModel.write

    def noted(self: MemoryModel, memory: Memory, chunk: list[int], **more: Any) -> None:
        write(self, memory, chunk, **more)
        chunks.append(list(chunk))

    monkeypatch.setattr(MemoryModel, "write", noted)
    return chunks


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"score_bias": 2.0, "recency": 1.0}, {"start": False}, {"score": "vector"},
        {"score_layers": "mean", "candidates": 2, "score_bias": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_batch_equals_single_runs(attention: str, changes: dict[str, Any], make_model: Make) -> None:
    """Six prompts of different lengths with memories of every kind of fill, in one forward."""
    model = make_model(small(**changes), attention=attention)
    lengths = (0, 5, 8, 17, 24 + 3, 8 * 9 + 5)  # empty, pending only, pool only (twice), full pool, long-term
    memories = []
    for i, length in enumerate(lengths):
        memories.append(model.new_memory(seed=i))
        model.memorize(memories[-1], random_text(length, i))
    assert [m.long_term_size > 0 for m in memories] == [False] * 5 + [True]
    asked = [random_ids(3 + 2 * i, 50 + i) for i in range(6)]
    prompts = [m.pending_ids + ids for m, ids in zip(memories, asked, strict=True)]
    asks = [len(ids) for ids in asked]
    options = {"max_new_tokens": 6, "do_sample": False}
    record = Record()
    out, source = model.generate(
        memories, prompts, asks=asks, logits_processor=LogitsProcessorList([record]), **options
    )
    assert out.shape == (6, 6)
    for b in range(6):
        alone = Record()
        one, read = model.generate(
            [memories[b]], [prompts[b]], asks=[asks[b]], logits_processor=LogitsProcessorList([alone]), **options
        )
        assert one[0].tolist() == out[b].tolist()
        for together, single in zip(record.steps, alone.steps, strict=True):
            close(together[b], single[0])
        assert [(s.write, s.layers, s.where) for s in source.sources(b)] == [
            (s.write, s.layers, s.where) for s in read.sources(0)
        ]


def test_ask_batch_equals_ask(make_model: Make) -> None:
    """Text, tokens and sources."""
    model = make_model(small())
    memories = [model.new_memory() for _ in range(3)]
    for i, memory in enumerate(memories):
        model.memorize(memory, random_text(20 * i, i), source=f"s{i}")
    questions = ["why?", "where to, then?", "who"]
    for memory, question, answer in zip(memories, questions, model.ask_batch(memories, questions), strict=True):
        alone = model.ask(memory, question)
        assert (alone.text, alone.ids) == (answer.text, answer.ids)
        assert len(answer.ids) == 32
        assert alone.score == pytest.approx(answer.score, abs=1e-4)
        assert [(s.write, s.label, s.text) for s in alone.sources] == [
            (s.write, s.label, s.text) for s in answer.sources
        ]


def test_asking_changes_nothing(make_model: Make) -> None:
    """A read never writes."""
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, random_text(70))
    before = memory.copy()
    first = model.ask(memory, "why?")
    assert same(memory, before)
    assert model.ask(memory, "why?") == first


# Generation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"score_bias": 2.0}], ids=str)
def test_everything_generate_can_do(changes: dict[str, Any], make_model: Make) -> None:
    """Sampling, streaming, several answers a prompt, beams, a prompt prefilled in pieces."""
    model = make_model(small(**changes))
    memories = [model.new_memory(seed=i) for i in range(2)]
    for i, memory in enumerate(memories):
        model.memorize(memory, random_text(20 + 40 * i, i))
    prompts = [random_ids(5), random_ids(9, 1)]
    greedy, _ = model.generate(memories, prompts, max_new_tokens=6, do_sample=False)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(memories, prompts, max_new_tokens=6, do_sample=True, temperature=2.0)[0]

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))

    several, source = model.generate(
        memories, prompts, max_new_tokens=6, do_sample=True, top_k=1, num_return_sequences=3
    )
    assert torch.equal(several, greedy.repeat_interleave(3, 0))
    assert len(source.read[0]) == 2

    beams, _ = model.generate(memories, prompts, max_new_tokens=6, do_sample=False, num_beams=4)
    for b in range(2):
        alone, _ = model.generate(
            memories[b : b + 1], prompts[b : b + 1], max_new_tokens=6, do_sample=False, num_beams=4
        )
        assert alone[0].tolist() == beams[b].tolist()
    assert not torch.equal(beams, greedy)  # so that the beams did reorder rows


def test_streaming(make_model: Make) -> None:
    """The text comes in pieces; together they are the answer."""
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, random_text(40))
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
    answer = model.ask(memory, "why?", streamer=streamer)
    assert "".join(streamer).strip() == answer.text


def test_several_answers_to_one_question(make_model: Make) -> None:
    """ask(..., num_return_sequences=2) works or says that it does not."""
    # Was a bug: ask_batch takes row 2 of the output for a second memory: IndexError.
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, random_text(40))
    try:
        answers = model.ask_batch([memory], ["why?"], do_sample=True, num_return_sequences=2)
    except ConfigError:
        return
    assert len(answers) in (1, 2)
    assert all(answer.sources for answer in answers)


def test_generate_as_a_dictionary(make_model: Make) -> None:
    """return_dict_in_generate, by which generate gives logits, works or says that it does not."""
    # Was a bug: MemoryModel.generate slices the dictionary.
    model = make_model(small())
    try:
        out, _ = model.generate(
            [model.new_memory()], [random_ids(5)], max_new_tokens=3, return_dict_in_generate=True, output_logits=True
        )
    except ConfigError:
        return
    assert len(out.logits) == 3


@pytest.mark.parametrize("option", [{"prefill_chunk_size": 4}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}])
@pytest.mark.parametrize("changes", [{}, {"score_bias": 2.0}], ids=str)
def test_options_that_change_the_cache(option: dict[str, Any], changes: dict[str, Any], make_model: Make) -> None:
    """They give the same greedy answer or are refused; never another answer."""
    # Was a bug: use_cache=False silently answers otherwise; prefill_chunk_size is an IndexError in ReadSlots.slots.
    model = make_model(small(**changes))
    memory, prompt = model.new_memory(), random_ids(9)
    model.memorize(memory, random_text(80))
    expected, _ = model.generate([memory], [prompt], max_new_tokens=6, do_sample=False)
    try:
        out, _ = model.generate([memory], [prompt], max_new_tokens=6, do_sample=False, **option)
    except ConfigError:
        return
    assert torch.equal(out, expected)


def test_a_question_that_no_token_asks(make_model: Make) -> None:
    """asks=0 is refused; a mean over no tokens is not a number, and every logit after it neither."""
    # Was a bug: NaN; the answer is token 0 for ever.
    model = make_model(small(score_bias=2.0))
    memory = model.new_memory()
    model.memorize(memory, random_text(80))
    with pytest.raises((InputError, ConfigError)):
        model.generate([memory], [random_ids(5)], asks=[0], max_new_tokens=2, do_sample=False)


def test_reading_the_pool_only_or_a_forced_write(make_model: Make) -> None:
    """long_term=False reads what MemoryLLM reads; `force` retrieves a write in every layer."""
    model = make_model(small(drop="oldest"))
    memory = model.new_memory()
    model.memorize(memory, random_text(8 * 20))
    short = model.ask(memory, "why?", long_term=False)
    assert short.read == [{17, 18, 19}] * 3
    assert {s.where for s in short.sources} == {"short-term"}
    before = memory.copy()
    for write in (0, 5, 16, 18):
        answer = model.ask(memory, "why?", force=[write])
        assert all(write in layer for layer in answer.read)
    assert same(memory, before)


def test_the_pool_is_projected_once_a_write(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second question reuses the pool's keys and values; a write, or other weights, make new ones."""
    model = make_model(small(), max_position_embeddings=1000)  # a decoder of its own: its weights are changed below
    memory = model.new_memory()
    model.memorize(memory, random_text(200))
    projected: list[int] = []
    slots = model.attachment.slots

    def counted(layer: int, vectors: Tensor, *more: Any) -> Any:
        projected.append(vectors.shape[1])
        return slots(layer, vectors, *more)

    monkeypatch.setattr(model.attachment, "slots", counted)

    def ask() -> tuple[list[int], list[int]]:
        projected.clear()
        ids = model.ask(memory, "who?", max_new_tokens=3, min_new_tokens=3).ids
        return ids, sorted(set(projected))

    front, pool = 1 + model.config.K0, model.config.N
    first, shapes = ask()
    assert shapes == sorted({front, pool})
    assert ask() == (first, [front])
    for change in ("write", "weights"):
        if change == "write":
            model.memorize(memory, random_text(20, 1))
        else:
            with torch.no_grad():
                model.base.model.layers[0].self_attn.k_proj.weight.mul_(-3)
                model.base.model.layers[1].self_attn.v_proj.weight.mul_(-3)
        answer, shapes = ask()
        assert pool in shapes
        model.pools.clear()
        assert ask()[0] == answer


def test_few_pools_are_kept(make_model: Make) -> None:
    """The keys and values of many memories are not kept for ever, and go with their memory."""
    model = make_model(small())
    memories = [model.new_memory() for _ in range(24)]
    for index, memory in enumerate(memories):
        model.memorize(memory, random_text(40, index))
        model.ask(memory, "who?", max_new_tokens=1)
    assert len(model.pools) <= 17 and memories[-1] in model.pools
    del memory, memories
    assert not model.pools


@pytest.mark.parametrize("changes", [{"store_tokens": 32}, {"long_term": False, "K0": 0}], ids=str)
def test_forcing_a_write_that_is_not_in_the_store(changes: dict[str, Any], make_model: Make) -> None:
    """Refused with a typed error."""
    # Was a bug: a negative index boosts nothing or another write; without a store: max() of nothing.
    model = make_model(small(**changes))
    memory = model.new_memory()
    model.memorize(memory, random_text(8 * 20))
    with pytest.raises((InputError, ConfigError)):
        model.ask(memory, "why?", force=[0])


def test_the_end_of_an_answer_is_not_in_its_text(make_model: Make, make_decoder: Callable[..., Any]) -> None:
    """Generation stops at the end token; rows that end early are padded and read clean."""
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, random_text(40))
    full = model.ask(memory, "why?", max_new_tokens=8)
    end = full.ids[3]
    early = model.ask(memory, "why?", max_new_tokens=8, eos_token_id=end)
    assert early.ids == full.ids[: full.ids.index(end) + 1]


def test_two_memories_interleaved_never_mix(make_model: Make) -> None:
    """Written in turns, with questions between, each is as if it were alone."""
    model = make_model(small())
    alone, turns = [], [model.new_memory(seed=i) for i in range(2)]
    for i in range(2):
        memory = model.new_memory(seed=i)
        for piece in range(6):
            model.memorize(memory, random_text(13, 10 * i + piece), source=f"{i}.{piece}")
        alone.append(memory)
    for piece in range(6):
        for i in (0, 1):
            model.memorize(turns[i], random_text(13, 10 * i + piece), source=f"{i}.{piece}")
            model.ask_batch(turns, ["why?", "who?"], max_new_tokens=2)
    assert all(same(a, b) for a, b in zip(alone, turns, strict=True))


# Memorizing -----------------------------------------------------------------------------------------------------------


def test_empty_and_short_texts_wait(make_model: Make) -> None:
    """Nothing is written before there is a chunk."""
    model = make_model(small())
    memory = model.new_memory()
    for nothing in ("", "  \n "):
        assert model.memorize(memory, nothing) == 0
    assert memory.pending == []
    assert memory.write_count == 0
    assert model.memorize(memory, "word", source="a", time=3.0) == 4
    assert bytes(memory.pending_ids) == b"word"
    assert memory.pending[0].source == "a"
    assert memory.pending[0].time == 3.0
    assert memory.write_count == memory.tokens == 0
    assert model.memorize(memory, "ful") == 4
    assert memory.write_count == 1
    assert memory.pending == []
    assert memory.writes[0].text == "word\nful"


def test_texts_are_told_apart(make_model: Make, spy: list[list[int]]) -> None:
    """A line end before every text but the first, whether the one before waits or is written; none for nothing."""
    model = make_model(small())
    memory = model.new_memory()
    assert model.memorize(memory, " \n") == 0
    assert model.memorize(memory, " \none ") == 3  # space around a text is no part of it
    assert model.memorize(memory, "\n") == 0
    assert model.memorize(memory, "two", source="2") == 4
    assert bytes(memory.pending_ids) == b"one\ntwo"
    assert [(p.source, bytes(p.ids)) for p in memory.pending] == [("", b"one"), ("2", b"\ntwo")]
    assert model.memorize(memory, "five..8", source="3") == 8  # seven waited
    assert bytes(memory.pending_ids) == b"five..8"
    assert model.memorize(memory, "", source="4") == 0
    assert model.memorize(memory, "seven b", source="5") == 8
    assert bytes(memory.pending_ids) == b"seven b"
    model.memorize(memory, "\t", source="6")
    assert [bytes(chunk) for chunk in spy] == [b"one\ntwo\n", b"five..8\n"]
    assert [w.text for w in memory.writes] == ["one\ntwo\n", "five..8\n"]
    memory = model.new_memory()
    model.memorize(memory, "a chunk.")
    assert memory.pending == []
    assert model.memorize(memory, "more") == 5
    assert bytes(memory.pending_ids) == b"\nmore"
    again = memory.copy()
    assert model.memorize(again, "more") == 5
    assert bytes(spy[-1] + again.pending_ids) == b"\nmore\nmore"


@pytest.mark.parametrize("split", ["fixed", "sentence"])
def test_no_token_is_lost(split: str, make_model: Make, spy: list[list[int]]) -> None:
    """Written and pending tokens are all tokens, in order, after every piece."""
    model = make_model(small(split=split, chunk_tokens=10))
    memory, text = model.new_memory(), ""
    for i in range(12):
        piece = random_text(7 * i % 31, i).replace("a", ".")
        added = "\n" + piece if piece and text else piece
        text += added
        assert model.memorize(memory, piece) == len(added)
        written = [i for chunk in spy for i in chunk]
        assert decoded(memory, written) == text.encode()
        assert memory.tokens == len(written)
        assert len(memory.pending_ids) < 10
        assert [w.tokens for w in memory.writes] == [len(chunk) for chunk in spy]
        assert [w.first_token for w in memory.writes] == [sum(map(len, spy[:i])) for i in range(len(spy))]
        assert [w.text for w in memory.writes] == [bytes(chunk).decode() for chunk in spy]


def test_in_pieces_as_at_once(make_model: Make) -> None:
    """Texts one by one make the same writes as one text of them with line ends between."""
    model, text = make_model(small()), random_text(197)
    whole, pieces = model.new_memory(), model.new_memory()
    texts = [text[start : start + 29] for start in range(0, 197, 29)]
    assert model.memorize(whole, "\n".join(texts)) == 203
    assert sum(model.memorize(pieces, piece) for piece in texts) == 203
    assert whole.write_count == 25
    assert len(whole.pending_ids) == 3
    one, two = whole.tensors(), pieces.tensors()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [w.text for w in whole.writes] == [w.text for w in pieces.writes]
    assert whole.pending_ids == pieces.pending_ids


def test_progress_is_told_after_every_write(make_model: Make) -> None:
    """(tokens done, tokens in all)."""
    model, seen = make_model(small()), []
    model.memorize(model.new_memory(), random_text(27), progress=lambda *at: seen.append(at))
    assert seen == [(8, 27), (16, 27), (24, 27)]


def test_sentences_are_kept_whole(make_model: Make, spy: list[list[int]]) -> None:
    """A chunk ends after the last sentence end that leaves K..c tokens; without one after c tokens."""
    model = make_model(small(split="sentence", chunk_tokens=16, window_tokens=64))
    model.memorize(model.new_memory(), "One is. Two is. Three is so long that it is cut! x? y. 'Yes.' Hm. abcdefghijkl")
    assert [bytes(chunk).decode() for chunk in spy] == [
        "One is. Two is.",
        " Three is so lon",
        "g that it is cut",
        "! x? y. 'Yes.",
        "' Hm.",
    ]
    assert all(4 <= len(chunk) <= 16 for chunk in spy)


def test_a_sentence_end_that_leaves_too_few_tokens_is_passed_over(make_model: Make, spy: list[list[int]]) -> None:
    """K tokens make K vectors."""
    model = make_model(small(split="sentence", chunk_tokens=8))
    model.memorize(model.new_memory(), "ab.defghij.l")
    assert [bytes(chunk) for chunk in spy] == [b"ab.defgh"]
    spy.clear()
    model.memorize(model.new_memory(), "abc.efghij.l")
    assert next(bytes(chunk) for chunk in spy) == b"abc."


def test_a_line_end_is_a_sentence_end(make_model: Make, spy: list[list[int]]) -> None:
    """Also for byte-level vocabularies, where the line feed is spelled with another character."""
    # Was a bug: _cut looks at the spelling of tokens, not at what they decode to.
    model = make_model(small(split="sentence", chunk_tokens=16))
    model.memorize(model.new_memory(), "- milk\n- bread\n- butter and eggs")
    assert bytes(spy[0]) == b"- milk\n- bread\n"


# Sources --------------------------------------------------------------------------------------------------------------


def test_sources_name_what_was_read(make_model: Make) -> None:
    """Every write read, with its label, time, text and place; what waits in the window last."""
    model = make_model(small(drop="oldest", K0=8))
    memory = model.new_memory()
    texts = [chunk_text(i) for i in range(6)]
    for i, text in enumerate(texts):
        model.memorize(memory, text, source=f"s{i}", time=100.0 + i)
    model.memorize(memory, "tail", source="t", time=200.0)
    sources = model.ask(memory, "why?").sources
    assert sources[-1].where == "window"
    assert (sources[-1].write, sources[-1].text) == (-1, "tail")
    assert (sources[-1].label, sources[-1].time) == ("t", 200.0)
    read = sources[:-1]
    assert [s.score for s in read] == sorted((s.score for s in read), reverse=True)
    assert {s.write for s in read if s.where == "short-term"} == {3, 4, 5}
    assert {s.write for s in read if s.where == "long-term"} <= {0, 1, 2}
    assert sum(s.layers for s in read if s.where == "long-term") == 3 * 2  # K0 is two writes
    assert all(s.layers == 3 for s in read if s.where == "short-term")
    for s in read:
        assert (s.label, s.time, s.text) == (f"s{s.write}", 100.0 + s.write, texts[s.write])


def test_layers_that_share_their_scores_name_the_same_sources(make_model: Make) -> None:
    """Where every layer reads everything and no bias weighs it, a source's score is the mean over all layers anyway."""
    sources = {}
    for layers in ("own", "mean"):
        model = make_model(small(K0=40, score_layers=layers))
        torch.nn.init.normal_(model.retriever.null, generator=torch.Generator().manual_seed(1))
        memory = model.new_memory(seed=1)
        model.memorize(memory, random_text(8 * 9))
        sources[layers] = model.ask(memory, "why?", max_new_tokens=1).sources
    for own, mean in zip(sources["own"], sources["mean"], strict=True):
        assert (own.write, own.layers, own.where) == (mean.write, mean.layers, mean.where)
        assert mean.score == pytest.approx(own.score, abs=1e-4)


def test_the_right_write_has_the_best_score(make_model: Make) -> None:
    """Keys equal to the question's queries are found: the retriever is asked with its own states."""
    model = make_model(small(K0=4, drop="oldest"))
    memory = model.new_memory()
    model.memorize(memory, random_text(8 * 30))
    model.ask(memory, "why?")
    seen: list[Tensor] = []
    queries = model.retriever.queries
    model.retriever.queries = lambda layer, normed: seen.append(q := queries(layer, normed)) or q  # type: ignore[method-assign]
    model.ask(memory, "where?", max_new_tokens=1)
    for layer in range(3):  # write 7 gets keys along the mean query of the layer
        memory.records["keys"].blocks()[0][7, layer] = 100 * seen[layer].mean(0)
    answer = model.ask(memory, "where?", max_new_tokens=1)
    assert (answer.sources[0].write, answer.sources[0].layers, answer.sources[0].where) == (7, 3, "long-term")
    assert answer.score == answer.sources[0].score > 0


def test_a_write_is_labelled_by_its_own_text(make_model: Make) -> None:
    """Text that waited before another one keeps its label to itself: later chunks carry their own."""
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, "aaaaa", source="a", time=1.0)
    assert model.memorize(memory, "b" * 21, source="b", time=2.0) == 22
    assert [(w.source, w.time) for w in memory.writes] == [("a", 1.0), ("b", 2.0), ("b", 2.0)]
    assert [w.text for w in memory.writes] == ["aaaaa\nbb", "bbbbbbbb", "bbbbbbbb"]
    assert [(p.source, p.ids) for p in memory.pending] == [("b", (98, 98, 98))]


def test_without_texts(make_model: Make) -> None:
    """keep_text=False keeps none."""
    model = make_model(small(keep_text=False))
    memory = model.new_memory()
    model.memorize(memory, random_text(40))
    assert all(w.text is None for w in memory.writes)
    assert all(s.text is None for s in model.ask(memory, "why?").sources)


def test_an_empty_memory_has_no_sources(make_model: Make) -> None:
    """And a score of nothing."""
    model = make_model(small())
    answer = model.ask(model.new_memory(), "why?")
    assert answer.sources == []
    assert answer.score == 0.0
    assert len(answer.ids) == 32


def test_expired_writes_are_no_sources_from_the_store(make_model: Make) -> None:
    """store_tokens: reading goes on after the oldest writes left, also with some of their vectors in the pool."""
    for changes in ({}, {"score_bias": 1.0}, {"score": "vector"}, {"score": "vector", "score_bias": 1.0}):
        model = make_model(small(store_tokens=16, **changes))
        memory = model.new_memory()
        for i in range(20):
            model.memorize(memory, chunk_text(i))
            assert memory.write_count == i + 1
            sources = model.ask(memory, "why?", max_new_tokens=1).sources
            assert all(s.write >= memory.first_write for s in sources if s.where == "long-term")
            assert {s.write for s in sources} >= set((memory.pool_rows_Ln // 4).flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("changes", [{}, {"score": "vector"}, {"retriever_depth": 1}], ids=str)
def test_a_model_in_half_precision(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    """All of it, the retriever too. Was a bug: that one was given float32 whatever its weights are."""
    model = MemoryModel(build_decoder("llama", "sdpa"), build_tokenizer(), small(**changes)).eval().to(dtype)
    memory = model.new_memory()
    model.memorize(memory, random_text(80))
    assert model.ask(memory, "why?", max_new_tokens=2).sources
    assert memory.pool_LnD.dtype == dtype


def test_a_write_that_left_the_store_counts_as_the_worst(make_model: Make) -> None:
    """Its vectors are still in the pool. Was a bug: it had the score of the oldest write that is in the store."""
    for changes in ({}, {"score": "vector"}, {"score_layers": "mean"}):
        model = make_model(small(store_tokens=16, drop="oldest", **changes))
        for seed in range(6):
            memory = model.new_memory()
            model.memorize(memory, random_text(80, seed))
            found = {s.write: s.score for s in model.ask(memory, "why?", max_new_tokens=1).sources if s.write >= 0}
            gone = found.pop(memory.first_write - 1)
            assert len(found) == 2 and gone <= min(found.values())


def test_written_and_asked_in_inference_mode(make_model: Make) -> None:
    """As outside of it, in any order. Was a bug: a memory that was written in it could not be asked, nor written on."""
    model = make_model(small())
    answers = []
    for inside in ((), (0,), (1,), (0, 1, 2, 3), (0, 2)):
        memory = model.new_memory()
        for step in range(4):
            with torch.inference_mode(step in inside):
                if step % 2:
                    answer = model.ask(memory, "why?", max_new_tokens=4).ids
                else:
                    model.memorize(memory, random_text(80, step))
        answers.append(answer)
    assert answers == answers[:1] * 5


def test_a_model_made_in_inference_mode(make_model: Make) -> None:
    """It answers, and other weights are seen."""
    with torch.inference_mode():
        base = build_decoder("llama", "sdpa")
    model = MemoryModel(base, build_tokenizer(), small()).eval()
    memory = model.new_memory()
    model.memorize(memory, random_text(80))
    model.ask(memory, "why?", max_new_tokens=4)
    with torch.inference_mode():
        base.model.layers[0].self_attn.k_proj.weight.mul_(-3)
    answer = model.ask(memory, "why?", max_new_tokens=4).ids
    model.pools.clear()
    assert model.ask(memory, "why?", max_new_tokens=4).ids == answer


# Refusals and errors --------------------------------------------------------------------------------------------------


def test_questions_that_cannot_be_asked(make_model: Make) -> None:
    """Empty, too long, too long together with what waits."""
    model = make_model(small())
    memory = model.new_memory()
    for question in ("", " \n"):
        with pytest.raises(InputError, match="empty"):
            model.ask(memory, question)
    assert len(model.ask(memory, "x" * 32).ids) == 32
    with pytest.raises(InputError, match="window of 64"):
        model.ask(memory, "x" * 33)
    model.memorize(memory, "seven b")
    with pytest.raises(InputError, match="window of 64"):
        model.ask(memory, "x" * 32)
    with pytest.raises(InputError, match="empty"):
        model.generate([memory], [[]])
    with pytest.raises(ConfigError, match="one memory per prompt"):
        model.generate([memory], [[1], [2]])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        model.ask_batch([memory], ["a", "b"])


def test_the_prompt_surrounds_the_question(make_model: Make) -> None:
    """`{question}` is replaced, once, even if the question holds braces."""
    model = make_model(small(), prompt="Q: {question} A:")
    assert bytes(model.prompts.question(" why {question}? ")) == b"Q: why {question}? A:"


def test_a_chat_template_is_used_without_its_bos(make_decoder: Callable[..., Any]) -> None:
    """Models with a chat template are asked with it; the start vector stands for BOS, without it BOS stays."""
    # Was a bug, with start=False: _prompt strips BOS although nothing stands for it.
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "<bos>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}answer: {% endif %}"
    )
    model = MemoryModel(make_decoder(), tokenizer, small(), name="chat")
    assert bytes(model.prompts.question("why?")) == b"user: why?\nanswer: "
    model = MemoryModel(make_decoder(), tokenizer, small(start=False), name="chat")
    assert model.prompts.question("why?")[0] == BOS


def test_a_chat_template_that_takes_no_instruction(make_model: Make) -> None:
    """Neither from the system nor from the user: it says what to do. Was a bug: an UnboundLocalError."""
    base, tokenizer = make_model(small()).base, build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not so') }}"
    with pytest.raises(ConfigError, match=r"\(not so\); give the model a `prompt`"):
        MemoryModel(base, tokenizer, small(), instruction="Read.")
    assert MemoryModel(base, tokenizer, small(), instruction="Read.", prompt="{question}").instruction == "Read."


def test_text_cannot_spell_control_tokens(make_model: Make) -> None:
    """What users say is text: `<eos>` in it is five letters, in memories and in questions."""
    # Was a bug: tokenizing without split_special_tokens.
    model = make_model(small())
    memory = model.new_memory()
    assert model.memorize(memory, "a<eos>b") == 7
    assert bytes(memory.pending_ids) == b"a<eos>b"
    assert bytes(model.prompts.question("<bos>?")) == b"<bos>?"


def test_settings_of_reading_keep_the_memories(make_model: Make) -> None:
    """Who weighs scores otherwise reads the same memory, and by the new rule."""
    model = make_model(small(K0=4))
    memory = model.new_memory()
    model.memorize(memory, random_text(8 * 12))
    ids, logits = torch.tensor([random_ids(6)]), []
    for changes in ({}, {"score_bias": 2.0}, {"recency": 2.0}, {"score_layers": "mean", "score_bias": 2.0}):
        other = make_model(small(K0=4, **changes))
        assert other.fingerprint == model.fingerprint
        with torch.no_grad(), other.reading([memory]) as cache:
            logits.append(other.base(ids, past_key_values=cache).logits)
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(logits) for b in logits[:i])


def test_the_memory_of_another_model_is_refused(make_model: Make) -> None:
    """Other weights, other settings, other name: nothing is written, nothing read."""
    model, other, third = make_model(small()), make_model(small(K0=7)), make_model(small())
    third.offset.data += 1.0
    assert len({model.fingerprint, other.fingerprint, third.fingerprint}) == 3
    assert model.fingerprint == make_model(small()).fingerprint
    memory = other.new_memory()
    for use in (
        lambda: model.memorize(memory, random_text(20)),
        lambda: model.ask(memory, "why?"),
        lambda: model.generate([memory], [[1]]),
        lambda: model.ask_batch([model.new_memory(), memory], ["why?", "who?"]),
    ):
        with pytest.raises(IncompatibleMemory, match="written by model"):
            use()
    assert memory.write_count == 0
    assert memory.pending == []


def test_an_error_in_the_middle_loses_and_doubles_nothing(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays, the rest leaves no trace; `last` goes on from there."""
    model, text = make_model(small()), random_text(45)
    expected = model.new_memory()
    model.memorize(expected, text, source="s", time=1.0)
    memory, write, calls, seen = model.new_memory(), MemoryModel.write, [], []

    def failing(self: MemoryModel, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return write(self, *args, **options)

    monkeypatch.setattr(MemoryModel, "write", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.memorize(memory, text, source="s", time=1.0, progress=lambda *at: seen.append(at))
    assert memory.write_count == 3
    assert memory.pending == []
    done, total = seen[-1]
    assert model.memorize(memory, text, source="s", time=1.0, last=total - done) == 45 - 24
    assert same(memory, expected)


def test_an_error_in_progress_is_after_the_write(make_model: Make) -> None:
    """A progress callback that raises (Ctrl-C) leaves the write done and nothing of what follows."""
    model, text = make_model(small()), random_text(45)
    memory = model.new_memory()

    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.memorize(memory, text, progress=stop)
    assert memory.tokens == 16
    assert memory.pending == []


def test_during_progress_nothing_is_in_memory_twice(make_model: Make) -> None:
    """Whoever saves the memory from the progress callback saves each token once, written or waiting."""
    # Was a bug: memorize takes the written tokens from `pending` only at its end.
    model, text, seen = make_model(small()), random_text(45), []
    memory = model.new_memory()
    model.memorize(memory, "first", source="a")
    model.memorize(memory, text, progress=lambda *at: seen.append((at, memory.tokens + len(memory.pending_ids))))
    assert seen == [((done, 51), done) for done in (8, 16, 24, 32, 40, 48)]


def memorize_as_before(model: MemoryModel, memory: Memory, text: str, source: str, time: float) -> None:
    """`memorize` as it was when all of a text waited at once: the whole text is put in, then written from the front."""
    at_once = model.config.short_chunks == "complete"
    if not at_once and (text := text.strip()) and (memory.writes or memory.pending):
        text = "\n" + text
    if ids := model.encode(text):
        memory.pending.append(Pending(source, time, tuple(ids)))
    while memory.pending and (
        len(waiting := memory.pending_ids) >= model.config.chunk_tokens
        or (at_once and model._writable(memory, len(waiting)))
    ):
        chunk = waiting[: model.config.chunk_tokens]
        chunk = chunk[: model._cut(chunk)]
        model.write(memory, chunk, source=memory.pending[0].source, time=memory.pending[0].time)
        memory.take_pending(len(chunk))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ab.\n ", max_size=60), min_size=1, max_size=4),
    split=st.sampled_from(["fixed", "sentence"]),
    complete=st.booleans(),
    stops=st.lists(st.integers(0, 12), max_size=4),
)
def test_a_text_comes_in_chunk_by_chunk(
    make_model: Make, texts: list[str], split: str, complete: bool, stops: list[int]
) -> None:
    """The same writes, labels, order and waiting text as when all of it waited; stopped anywhere and gone on with too;
    and what waits fits a chunk after every write."""
    model = make_model(small(split=split, chunk_tokens=12, short_chunks="complete" if complete else "wait"))
    expected, at_once, stopped = model.new_memory(), model.new_memory(), model.new_memory()
    stops = list(stops)

    for i, text in enumerate(texts):
        memorize_as_before(model, expected, text, f"s{i}", float(i))

        def checked(done: int, total: int) -> None:
            assert len(at_once.pending_ids) < 12
            assert at_once.tokens + len(at_once.pending_ids) <= sum(len(t) + 1 for t in texts)

        model.memorize(at_once, text, source=f"s{i}", time=float(i), progress=checked)
        left: int | None = None
        while True:
            allowed = stops.pop() if stops else 1000
            at = [0, 0, 0]

            def stop(done: int, total: int, at: list[int] = at, allowed: int = allowed) -> None:
                at[:] = done, total, at[2] + 1
                if at[2] > allowed:
                    raise KeyboardInterrupt

            try:
                model.memorize(stopped, text, source=f"s{i}", time=float(i), progress=stop, last=left)
            except KeyboardInterrupt:
                assert len(stopped.pending_ids) < 12
                left = at[1] - at[0]
            else:
                break
    assert same(at_once, expected)
    assert same(stopped, expected)


def test_a_write_is_checked(make_model: Make) -> None:
    """Too few or too many tokens, another model's memory: refused before anything changes."""
    # Was a bug: write takes any length above K; beyond store_tokens it leaves the memory broken with an IndexError.
    model = make_model(small(store_tokens=16))
    memory = model.new_memory()
    for count in (0, 3, 9, 40):
        before = memory.copy()
        with pytest.raises((ConfigError, InputError)):
            model.write(memory, random_ids(count))
        assert same(memory, before)
    with pytest.raises(IncompatibleMemory):
        model.write(make_model(small()).new_memory(), random_ids(8))
    model.write(memory, random_ids(5))
    assert memory.tokens == 5


# Files ----------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same_model(make_model: Make, tmp_path: Path) -> None:
    """Same fingerprint, same answers, from the same memory."""
    model = make_model(small(), prompt="Q: {question} A:")
    memory = model.new_memory()
    model.memorize(memory, random_text(70))
    torch.nn.init.normal_(model.start)
    torch.nn.init.normal_(model.retriever.null)
    model._fingerprint = ""
    memory.model = model.fingerprint
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.fingerprint == model.fingerprint
    assert again.config == model.config
    assert (again.prompt, again.name, again.training) == (model.prompt, "tiny", False)
    assert again.ask(memory, "why?") == model.ask(memory, "why?")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_a_weights_file_that_lacks_weights_is_an_error(make_model: Make, tmp_path: Path) -> None:
    """A trained memory model must not come up with a random retriever."""
    # Was a bug: from_pretrained loads with strict=False and looks at nothing that is missing.
    from safetensors.torch import load_file, save_file

    make_model(small()).save_pretrained(tmp_path)
    kept = {k: v for k, v in load_file(tmp_path / WEIGHTS).items() if not k.startswith("retriever")}
    save_file(kept, tmp_path / WEIGHTS)
    with pytest.raises(ConfigError):
        MemoryModel.from_pretrained(tmp_path)


def test_any_decoder_gets_verbatim_memory(make_decoder: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    """A folder without memory weights: verbatim memory, or the sizes one asks for; same fingerprint every time."""
    make_decoder("qwen3").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = MemoryModel.from_pretrained(tmp_path)
    assert model.config == MemoryConfig.for_positions(1024, retriever_dim=32)  # two heads of 16
    assert model.base.config.model_type == "qwen3"
    memory = model.new_memory()
    assert model.memorize(memory, random_text(150)) == 150
    assert memory.tokens == 128
    assert len(model.ask(memory, "why?").ids) == 32
    assert MemoryModel.from_pretrained(tmp_path, memory=small()).config == small()


def test_an_untrained_model_opens_its_memory_again(
    make_decoder: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Loaded again tomorrow, the same decoder with the same settings reads what it wrote today."""
    # Was a bug: the untrained retriever is random, so the fingerprint is another one in every process.
    make_decoder().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    today = MemoryModel.from_pretrained(tmp_path)
    torch.manual_seed(2)
    tomorrow = MemoryModel.from_pretrained(tmp_path)
    tomorrow.check(today.new_memory())


def test_models_that_cannot_be_loaded(tmp_path: Path, make_model: Make) -> None:
    """A folder that is not there or empty; a newer format; settings that were cut off or have lost a part."""
    for model in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="cannot load model"):
            MemoryModel.from_pretrained(model)
    make_model(small()).save_pretrained(tmp_path)
    settings = tmp_path / "remanence.json"
    text = settings.read_text()
    for wrong, words in {
        text.replace('"format": 1', '"format": 99'): "format 99",
        text[: len(text) // 2]: "remanence.json cannot be read",
        "[]": "remanence.json cannot be read",
        "{}": "remanence.json cannot be read",
        '{"format": 1, "name": "x"}': "remanence.json has no memory, prompt",
    }.items():
        settings.write_text(wrong)
        for load in (MemoryModel.from_pretrained, plan):
            with pytest.raises(ConfigError, match=words):
                load(tmp_path)


def test_an_error_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its kind is named, and of a long one the first line. Was a bug: an IndexError hid what had happened."""
    for error, said in ((OSError(), "OSError"), (OSError("\n"), "OSError"), (ValueError(" no\nweights"), "no")):
        assert reason(error) == said
        for part in (AutoModelForCausalLM, AutoTokenizer, AutoConfig):
            with monkeypatch.context() as patch:
                patch.setattr(part, "from_pretrained", Mock(side_effect=error))
                with pytest.raises(ConfigError, match=f"cannot load model .*: {said} "):
                    MemoryModel.from_pretrained("smollm2" if part is AutoConfig else "tiny")
    run = tmp_path / "config.json"
    run.write_bytes(b"")
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=ValueError()))
    with pytest.raises(ConfigError, match="holds no training run: ValueError"):
        load_run(tmp_path)


def test_tied_embeddings_and_half_precision(tokenizer: Any, tmp_path: Path) -> None:
    """The usual small models: tied, bfloat16. Saved, loaded, asked; the pool has the model's dtype."""
    # Was a bug: the float32 offset makes float32 of the hidden states.
    build_decoder("llama", "sdpa", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = MemoryModel(base, tokenizer, small(score_bias=1.0, store_dtype="bfloat16"), name="half").eval()
    memory = model.new_memory()
    model.memorize(memory, random_text(70))
    assert memory.pool_LnD.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.base.dtype == torch.bfloat16
    assert again.fingerprint == model.fingerprint
    assert again.ask(memory, "why?").ids == model.ask(memory, "why?").ids


# Settings and cost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"K": 8},
        {"K": 8, "tap": "input", "write_context": "pool", "drop": "oldest", "offset": False},
        {"K": 1, "N": 1, "K0": 1},
        {"N": 4},
        {"start": False, "offset": False},
        {"long_term": False, "K0": 0},
        {"key_group": 4},
        {"score": "vector", "score_bias": 1.0},
        {"score_bias": 3.0, "null_slope": 0.5, "start": False},
        {"score_bias": 1.0, "recency": 3.0},
        {"store_dtype": "float16"},
        {"store_tokens": 24},
        {"tap": "input", "write_context": "pool", "N": 11},
        {"chunk_tokens": 17, "split": "sentence"},
    ],
    ids=str,
)
def test_settings_that_work(changes: dict[str, Any], make_model: Make) -> None:
    """Write, read, save, go on: no setting breaks the round."""
    model = make_model(small(**changes))
    memory = model.new_memory()
    model.ask(memory, "why?", max_new_tokens=2)
    for i in range(9):
        assert model.memorize(memory, random_text(13, i).replace("a", ".")) == 13 + (i > 0)
        answer = model.ask(memory, "why?", max_new_tokens=2)
        assert len(answer.ids) == 2
        assert answer.score == answer.score
    assert memory.tokens + len(memory.pending_ids) == 9 * 13 + 8
    again = memory.copy()
    model.memorize(memory, random_text(40, 99))
    model.memorize(again, random_text(40, 99))
    assert same(memory, again)


@pytest.mark.parametrize("context", ["last", "pool"])
def test_writing_costs_the_same_at_any_age(context: str, make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward of the decoder per chunk, over the chunk's tokens, with as many slots in front, from 3 writes on."""
    model = make_model(small(write_context=context))
    memory, seen = model.new_memory(), []

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        ids = args[0] if args else options["input_ids"]
        seen.append((ids.shape[1], options["past_key_values"].get_seq_length()))

    handle = model.attachment.decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for i in range(60):
            model.memorize(memory, chunk_text(i))
    finally:
        handle.remove()
    assert memory.write_count == len(seen) == 60
    assert seen[0] == (8, 1)
    assert set(seen[3:]) == {(8, 1 + (4 if context == "last" else 12))}


def test_answering_costs_the_same_at_any_age(make_model: Make) -> None:
    """The prompt's slots are 1 + K0 + N once the store holds K0, and every new token is one token."""
    model = make_model(small())
    memory, seen = model.new_memory(), []

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        ids = args[0] if args else options["input_ids"]
        seen.append((ids.shape[1], options["past_key_values"].get_seq_length()))

    for i in range(40):
        model.memorize(memory, chunk_text(i))
        if i < 5:
            continue
        handle = model.attachment.decoder.register_forward_pre_hook(count, with_kwargs=True)
        model.ask(memory, "why?", max_new_tokens=3)
        handle.remove()
        assert seen == [(4, 19), (1, 23), (1, 24)]
        seen.clear()


def test_training_mode_and_gradients_stay_as_they_were(make_model: Make) -> None:
    """Asking and memorizing leave no graph behind and change no flag."""
    model = make_model(small())
    memory = model.new_memory()
    model.memorize(memory, random_text(70))
    model.ask(memory, "why?")
    assert not memory.pool_LnD.requires_grad
    assert memory.tensors()["vectors"].grad_fn is None
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


# Adapters -------------------------------------------------------------------------------------------------------------


def test_two_adapters_one_writes_one_reads(tokenizer: Any, tmp_path: Path) -> None:
    """Each acts in its own pass only, the base is plain outside and inside, and both survive a save."""
    base = build_decoder("llama", "sdpa")
    ids = torch.tensor([random_ids(20)])
    with torch.no_grad():
        before = base(ids).logits
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
    model = MemoryModel(base, tokenizer, small(), lora=settings).eval()
    text = random_text(50)

    def vectors() -> Tensor:
        memory = model.new_memory()
        model.memorize(memory, text)
        return memory.tensors()["vectors"]

    def read(memory: Memory) -> Tensor:
        with torch.no_grad(), model.reading([memory]) as cache:
            return base(ids, past_key_values=cache).logits

    plain, memory = vectors(), model.new_memory()
    model.memorize(memory, text)
    answered = read(memory)
    parameters = dict(model.named_parameters())
    for role in ("write", "read"):
        for name, parameter in parameters.items():
            if f"lora_B.{role}" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        model._fingerprint = memory.model  # the weights changed under the memory's feet, on purpose
        assert not torch.equal(vectors(), plain)
        assert torch.equal(read(memory), answered) == (role == "write")
    with torch.no_grad():
        assert torch.equal(base(ids).logits, before)
        with model.reading([memory]), model.plain() as untouched:
            assert torch.equal(untouched(ids).logits, before)
        assert torch.equal(base(ids).logits, before)
    model._fingerprint = ""
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.fingerprint == model.fingerprint
    one, two = model.new_memory(), again.new_memory()
    model.memorize(one, text)
    with led(two, writes_of(one)):
        again.memorize(two, text)
    assert two.write_count == one.write_count > 0
    assert model.ask(one, "why?", max_new_tokens=6).ids == again.ask(two, "why?", max_new_tokens=6).ids
