"""What is looked at by itself: how texts are cut into spans, which of them are chosen, and how they are read."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import BOS, close, random_ids
from remanence import MemoryModel, Only
from remanence.config import MemoryConfig
from remanence.core import spans
from remanence.core.looking import Candidates, candidates, look
from remanence.core.memory import Memory
from remanence.core.prompts import UNKNOWN
from remanence.core.spans import _LONG, Begin, Span, begins_of, pairs, scores_of, sentences, spans_of, unfinished
from remanence.core.view import over, readable
from remanence.errors import ConfigError
from test_hf import plain_logits
from test_looking import read_spans, told
from test_search import CHUNK, ONE, model_of

TEXTS = (
    "My dog is Rex. He is old!",
    "I live in Oslo now.",
    "Tea at five?\nBring milk, please.",
    "We met in May. It rained.",
)


def told_texts(model: MemoryModel, texts: tuple[str, ...] = TEXTS, **options: Any) -> Memory:
    """A memory of texts, each told at its own time."""
    memory = model.new_memory()
    for time, text in enumerate(texts):
        model.memorize(memory, text, time=float(time), **options)
    return memory


def text_of(memory: Memory, model: MemoryModel, span: Span) -> str:
    """What a span holds; the tokenizer of the tests has a token for every byte."""
    whole = "".join(write.text or "" for write in memory.writes)
    return whole[span.first : span.end]


@given(st.integers(1, 300), st.dictionaries(st.integers(0, 299), st.booleans()))
def test_every_row_is_in_a_span_that_is_short_and_of_one_text(size: int, begins: dict[int, bool]) -> None:
    """And each begins where a sentence or a text does, unless a sentence is too long."""
    first = 7
    moved = {first + row: Begin(text) for row, text in begins.items() if row < size}
    spans = spans_of(moved, first, first + size)
    covered = set(itertools.chain.from_iterable(range(span.first, span.end) for span in spans))
    assert covered == set(range(first, first + size))
    cuts = sorted(row for row, begin in moved.items() if begin.text and row > first)
    for span in spans:
        assert 0 < span.end - span.first <= _LONG
        assert not any(span.first < cut < span.end for cut in cuts)
    assert len(set(spans)) == len(spans)


def test_short_texts_are_spans_and_long_ones_are_cut_at_sentences() -> None:
    """A text of up to 40 tokens is one; in a longer one a sentence has those before it beside it, if there is room."""
    text, sentence = Begin(True), Begin(False)
    assert spans_of({0: text, 30: text, 40: sentence}, 0, 60) == [Span(0, 30), Span(30, 60)]
    assert spans_of({0: text, 15: sentence, 30: sentence, 60: sentence}, 0, 80) == [
        Span(0, 15), Span(0, 30), Span(30, 60), Span(60, 80)
    ]  # fmt: skip
    found = spans_of({0: text, 3: sentence, 40: sentence}, 0, 70)
    assert found == [Span(0, 40), Span(40, 70)]  # "Oh." stays with the next
    assert spans_of({}, 0, 100) == [Span(0, 20), Span(0, 40), Span(20, 60), Span(40, 80), Span(60, 100)]


CHAT = (
    "[7 May 2023] Ada: I went to the museum with Ben. It was raining all day long. We had tea and cake afterwards.",
    "Ben Ho: Nice one! I stayed at home and slept.\nAda: You missed it all. They had a whole whale, of glass.",
    "The museum opens at ten: come early. You cannot park, even on Sunday.",
)


def test_a_sentence_is_read_with_the_day_and_the_speaker_of_its_text(tokenizer: Any) -> None:
    """Its head: of its text or its line, and none where there is none; over the ends of writes too."""
    model = model_of(tokenizer, looks=3, look_at="sentences")
    memory = told_texts(model, CHAT)
    model.memorize(memory, ". " * CHUNK, time=9.0)  # all of them are written
    asked = model.search([memory], [model.encode("Where was it?")])[0].question
    assert asked is not None
    writes = dict.fromkeys(range(memory.write_count), 0.0)
    spans, _ = sentences(memory, writes, model.tokenizer, asked, 100)
    whole = "".join(write.text or "" for write in memory.writes)
    read = {whole[span.first : span.end].strip(): "".join(whole[row] for row in span.head).strip() for span in spans}
    assert read["It was raining all day long."] == "[7 May 2023] Ada:"
    assert read["They had a whole whale, of glass."] == "Ada:"
    assert read["You cannot park, even on Sunday."] == ""
    assert not any("[7 May" in text and head for text, head in read.items())  # it is not read twice


@given(st.text(st.sampled_from("A:. \n[]7")), st.sets(st.integers(0, 20)))
def test_heads_stand_before_what_they_are_of(text: str, texts: set[int]) -> None:
    """In the same text, whatever it is; each is a day and a speaker."""
    texts = {0, *(at for at in texts if at < len(text))}
    for at, begin in begins_of(text, texts, lambda character: character if character < len(text) else None).items():
        assert begin.text == (at in texts)
        start = max(each for each in texts if each <= at)
        assert all(start <= row for row in begin.head)
        assert begin.head == () or text[begin.head[-1]] in ":]"


def test_what_is_looked_at_is_what_was_told_together(tokenizer: Any) -> None:
    """Texts of their own are never mixed, over the ends of writes too; the best comes first."""
    model = model_of(tokenizer, looks=3, look_at="sentences")
    memory = told_texts(model)
    found = model.search([memory], [model.encode("Where do I live?")])[0]
    spans, scores = sentences(
        memory, dict.fromkeys(range(memory.write_count), 0.0), model.tokenizer, found.question, 99
    )
    written = "".join(write.text or "" for write in memory.writes)
    assert written.startswith("\n".join(TEXTS[:3])) and len(written) <= len("\n".join(TEXTS))
    last = written[len("\n".join(TEXTS[:3])) :]
    assert {text_of(memory, model, span) for span in spans} == {TEXTS[0], "\n" + TEXTS[1], "\n" + TEXTS[2], last}
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert torch.allclose(scores, scores_of(memory, spans, found.question))
    one = sentences(memory, {0: 0.0}, model.tokenizer, found.question, 99)[0]
    assert all(0 in span.writes(CHUNK) for span in one)
    some = candidates(model, memory, found)
    assert 0 < len(some.spans) <= 9 and some.searched[0] == 0


def test_a_span_is_scored_as_a_write_is(tokenizer: Any) -> None:
    """One that is a write has the write's score."""
    model = model_of(tokenizer, looks=3)
    memory = told(model, 6)
    found = model.search([memory], [random_ids(6, 3)])[0]
    spans = [Span(write * CHUNK, (write + 1) * CHUNK) for write in (4, 0, 2)]
    close(scores_of(memory, spans, found.question), found.scores[[4, 0, 2]], room=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_span_is_text_in_the_context(family: str, tokenizer: Any) -> None:
    """The verbatim law: at the beginning of a memory it is the text itself, with nothing behind it."""
    model, prompt = model_of(tokenizer, family), random_ids(5, 1)
    memory, ids = told(model, 6), random_ids(6 * CHUNK)
    end = CHUNK + CHUNK // 2
    found = read_spans(model, [memory] * 2, [[Span(0, end)], []], prompt)
    close(found[0], plain_logits(model.base, [BOS, *ids[:end], *prompt])[-len(prompt) :])
    close(found[1], plain_logits(model.base, [BOS, *prompt])[-len(prompt) :])


@pytest.mark.parametrize("settings", [{"store_dtype": "q4"}, {"store_dtype": "tokens"}, {"keep_text": False}])
def test_answers_come_from_a_span(settings: dict[str, Any], tokenizer: Any) -> None:
    """In any format, and without texts; alone as together. Each write is a source once."""
    model = model_of(tokenizer, looks=4, look_at="sentences", **settings)
    memories = [told_texts(model), told(model, 5)]
    asked = ["Where do I live?", "Who is it?"]
    together = model.ask_batch(memories, asked, max_new_tokens=4)
    for memory, question, answer in zip(memories, asked, together, strict=True):
        if settings.get("store_dtype") != "tokens":
            assert model.ask(memory, question, max_new_tokens=4).ids == answer.ids
        writes = [source.write for source in answer.sources if source.write >= 0]
        assert len(set(writes)) == len(writes) and writes and answer.read[0] <= set(range(memory.write_count))


def test_where_only_tokens_are_kept_a_question_encodes_a_write_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its sentences are read in groups, by themselves, and once more for the answer."""
    model = model_of(tokenizer, looks=2, look_at="sentences", store_dtype="tokens")
    memory, encoded, inner = told_texts(model, TEXTS * 3), list[int](), model.encode_again

    def counted(memory: Memory, writes: Tensor) -> list[Tensor]:
        encoded.extend(writes.tolist())
        return inner(memory, writes)

    monkeypatch.setattr(model, "encode_again", counted)
    answer = model.ask(memory, "Where do I live?", max_new_tokens=2)
    assert answer.sources and len(set(encoded)) == len(encoded) > 1


@pytest.mark.parametrize(("looks", "left"), [(1, 12), (2, 12), (4, 6)])
def test_of_many_spans_some_are_read_together_first(looks: int, left: int, tokenizer: Any) -> None:
    """Then those of the best two groups by themselves, each as a look at it alone finds it."""
    model, prompt = model_of(tokenizer, looks=looks, look_at="sentences"), random_ids(5, 1)
    memory, unknown = told_texts(model, TEXTS * 3), model.encode(UNKNOWN)
    found = model.search([memory], [prompt])[0]
    writes = dict.fromkeys(range(memory.write_count), 0.0)
    spans = sentences(memory, writes, model.tokenizer, found.question, 12)[0]
    assert len(spans) == 12
    with model.attachment.hooks():
        looked, begun = look(model, memory, [], prompt, Candidates(spans, torch.zeros(12)), unknown)
        alone = [look(model, memory, [], prompt, Candidates([s], torch.zeros(1)), unknown)[0].likely[0] for s in spans]
    assert len(looked.spans) == left and set(looked.spans) <= set(spans)
    close(torch.tensor(looked.likely), torch.tensor([alone[spans.index(span)] for span in looked.spans]), room=1e-4)
    groups = [{spans.index(span) for span in looked.spans if spans.index(span) % looks == i} for i in range(looks)]
    assert sorted(map(len, groups), reverse=True)[:2] == [12 // looks] * min(2, looks)
    assert looked.best is not None and begun.mask.sum() == 1 + looked.best.end - looked.best.first + len(prompt)


def test_what_may_not_be_read_is_in_no_span(tokenizer: Any) -> None:
    """Neither what a question leaves out, nor the write of another memory beside it."""
    model = model_of(tokenizer, looks=9, look_at="sentences")
    memory, shared = model.new_memory(), told_texts(model, source="handbook")
    for at in range(6):
        model.memorize(memory, bytes(random_ids(CHUNK, at)).decode(), source="a" if at % 2 else "b", time=float(at))
    both = model.over(memory, {"handbook": shared})
    for only in (Only(source="a"), Only(source="handbook")):
        [seen] = model.readable([both], only)
        found = model.search([seen], [random_ids(5, 9)])[0]
        some = candidates(model, seen, found)
        read = {write for span in some.spans for write in span.writes(CHUNK)}
        assert read and seen.may_read(torch.tensor(sorted(read))).all()
        for span in some.spans:
            assert len({seen.origin(write)[0] for write in span.writes(CHUNK)}) == 1


def test_only_a_text_that_goes_on_is_unfinished(tokenizer: Any) -> None:
    """Not one that has just begun, nor what may not be read, nor what waits in another memory."""
    model = model_of(tokenizer, looks=3, look_at="sentences")
    memory = told_texts(model, (*TEXTS, "A long text that fills no chunk. It waits."), source="ada")
    assert memory.pending and unfinished(memory, model.tokenizer) is not None
    assert unfinished(readable(memory, 99.0, Only(source="ada")), model.tokenizer) is not None
    assert unfinished(readable(memory, 99.0, Only(source="bob")), model.tokenizer) is None
    assert unfinished(model.new_memory(), model.tokenizer) is None
    both = over(memory, {"handbook": told_texts(model, ("A text that waits here. " * 4,))})
    assert {piece.origin for piece in both.pending} == {"handbook", ""}
    assert unfinished(both, model.tokenizer) is None
    memory.pending[0] = replace(memory.pending[0], source="bob")
    assert unfinished(memory, model.tokenizer) is None
    memory.pending = []
    assert unfinished(memory, model.tokenizer) is None


def test_the_text_of_a_span_has_its_words_and_no_parts_of_others(tokenizer: Any) -> None:
    """Whatever else is in the writes that it is of."""
    model = model_of(tokenizer, looks=3, look_at="sentences")
    told = "[1 May] Ada: I live in Oslo. My brother Tom has moved to Trondheim with a dog, two cats and a parrot, Rex."
    memory = told_texts(model, (told, "The owls are not what they seem. " * 3))
    whole, K = "".join(write.text or "" for write in memory.writes), model.config.K
    for span in (Span(0, K), Span(3, 20), Span(30, 50, tuple(range(12))), Span(2 * K, 3 * K)):
        own = set(re.findall(r"\w+", whole[span.first : span.end])) | set(re.findall(r"\w+", whole[: len(span.head)]))
        text = spans.text_of(memory, span)
        assert text is not None
        around = [whole[span.first - 1 : span.first].isalnum(), whole[span.end : span.end + 1].isalnum()]
        cut = {match.group() for match in re.finditer(r"^\w+|\w+$", whole[span.first : span.end]) if any(around)}
        assert own - cut <= set(re.findall(r"\w+", text)) <= set(re.findall(r"\w+", whole)) | cut
    quiet = model_of(tokenizer, looks=3, look_at="sentences", keep_text=False)
    assert spans.text_of(told_texts(quiet, (told,)), Span(0, K)) is None


def test_sentences_need_a_vector_for_every_token() -> None:
    """And change no memory."""
    MemoryConfig.verbatim(**ONE, looks=2, look_at="sentences")
    with pytest.raises(ConfigError, match="look_at"):
        MemoryConfig.verbatim(**ONE, looks=2, look_at="sentences").replace(K=CHUNK // 2)
    with pytest.raises(ConfigError, match="look_at"):
        MemoryConfig(look_at="pages")


def test_pairs_are_writes_with_the_one_before(tokenizer: Any) -> None:
    """But for the first."""
    memory = told(model_of(tokenizer), 3)
    assert pairs(memory, [2, 0]) == [Span(CHUNK, 3 * CHUNK), Span(0, CHUNK)]
    assert Span(CHUNK - 1, 2 * CHUNK).write(CHUNK) == 1 and Span(CHUNK - 2, CHUNK + 1).write(CHUNK) == 0
