"""Training of reading: lessons, what is written and read of them, losses; and a run from files to a model."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import EOS, build_decoder, close, random_ids
from remanence import MemoryModel
from remanence.config import MemoryConfig
from remanence.core.memory import Memory, Write
from remanence.core.prompts import UNKNOWN, Prompts
from remanence.errors import ConfigError, InputError
from remanence.facts.everyday import Topic, ask, lines, messages, tell, topics
from remanence.train import reading, reading_run
from remanence.train.asking import INSTRUCTION, PROMPT, Asking, without_preamble
from remanence.train.lessons import SHARES, Ask, Lesson, Lessons, Material, Passage, read_material
from remanence.train.merged import Merged
from remanence.train.reading import ReadingTrainer, search_scores
from remanence.train.settings import Lora, ReadingRun, changed
from remanence.train.turns import Past, Turn, forbidden, target
from remanence.train.written import IN_WINDOW, Asked, Bank, LessonSlots, Picked, Stream, pick, stream_of
from test_cli import interrupt
from test_cli import run as command

CHUNK = 8
MEMORY: dict[str, Any] = {
    "chunk_tokens": CHUNK, "pool_tokens": 2 * CHUNK, "K0": 3 * CHUNK, "window_tokens": 256, "kept": "keys_values",
    "retriever": "trained", "score_layers": "one", "search_layers": (0, 1), "search_hidden": 16, "retriever_dim": 8,
    "key_group": 2, "score_bias": 0.5,
}  # fmt: skip
PROSE = "The boat was lost at sea. Nobody knew where the old captain had gone. In winter the harbour froze. " * 30
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def lora(**changes: Any) -> Any:
    """A small adapter, not zero at the start."""
    from peft import LoraConfig

    settings = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    }
    return LoraConfig(**(settings | changes))


def model_of(tokenizer: Any, family: str = "llama", *, adapter: bool = True, **changes: Any) -> MemoryModel:
    """A tiny decoder with an adapter for reading and a search whose weights are not those of the start."""
    base = build_decoder(family, "sdpa")
    torch.manual_seed(3)
    model = MemoryModel(
        base, tokenizer, MemoryConfig.verbatim(**{**MEMORY, **changes}), prompt=PROMPT,
        lora=lora() if adapter else None, adapters=("read",),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.retriever.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.retriever.rarity.uniform_()
    return model


def stream(chunks: int, seed: int = 0, **parts: Any) -> Stream:
    """A stream of tokens without meaning."""
    ids = random_ids(chunks * CHUNK + 3, seed)
    return Stream([ids[i * CHUNK : (i + 1) * CHUNK] for i in range(chunks)], ids[chunks * CHUNK :], **parts)


def bank_of(model: MemoryModel, *sizes: int) -> Bank:
    """A bank of one step."""
    bank = Bank(model, steps=2, streams=len(sizes), chunks=max(sizes))
    bank.add([stream(size, seed) for seed, size in enumerate(sizes)])
    return bank


# Facts of everyday life -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", topics().values(), ids=lambda topic: topic.name)
def test_every_wording_of_a_topic_can_be_filled(topic: Topic) -> None:
    """The value once in a statement; a name where one is told of; many ways of each; nothing else in braces."""
    own, of = (topic.said, topic.changed), (topic.told, topic.changed_of)
    for wording in sum(own + of, ()):
        assert wording.count("{v}") == 1, wording
    for wording in sum((*of, topic.asked_of), ()):
        assert "{n}" in wording, wording
    for wording in sum((*own, topic.asked), ()):
        assert "{n}" not in wording, wording
    for wording in (*topic.asked, *topic.asked_of):
        assert "{v}" not in wording, wording
    for wording in sum((*own, *of, topic.asked, topic.asked_of), ()):
        assert not set("{}") & set(wording.replace("{v}", "").replace("{n}", "")), wording
    assert len(topic.values) == len(set(topic.values)) >= 8
    assert len(topic.told) >= 5 and len(topic.asked_of) >= 4
    assert topic.of_things != bool(topic.said and topic.asked)


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(topics())), seed=st.integers(0, 10_000), change=st.booleans(), own=st.booleans())
def test_a_value_stands_where_it_is_said_to(name: str, seed: int, change: bool, own: bool) -> None:
    """In a fact that is told, new or changed, by the speaker or of somebody; and it is none of those left out."""
    topic, rng = topics()[name], random.Random(seed)
    whom = "" if own and not topic.of_things else "Marla Quist"
    fact = tell(topic, rng, whom, change=change, but=topic.values[1:])
    assert fact.value == topic.values[0]
    found = fact.text[fact.end + 1 - len(fact.value) : fact.end + 1]
    assert found == fact.value or found == fact.value[:1].upper() + fact.value[1:]
    assert whom in fact.text
    asked = ask(topic, rng, whom)
    assert whom in asked and not set("{}") & set(asked)


def test_what_people_write_is_there() -> None:
    """Enough of each kind, each line once; and no file that is not for training."""
    for kind, least in {"general": 800, "statements": 400, "personal_unknown": 400}.items():
        said = lines(kind)
        assert len(said) >= least and len(set(said)) > 0.95 * len(said)
    folder = Path(reading.__file__).parents[1] / "facts" / "everyday"
    relations = {
        "belongings",
        "body",
        "family",
        "feelings",
        "going",
        "home",
        "living",
        "money",
        "plans",
        "study",
        "tastes",
    }
    own = relations | {"things", "work", "general", "statements", "personal_unknown", "messages"}
    assert {path.stem for path in folder.iterdir()} == own
    assert len(topics()) > 500


def test_messages_hold_their_answers_and_nothing_that_is_measured_with() -> None:
    """Each once, with questions; none of what the persons of the figures say or are asked."""
    wrote = [message for own in messages().values() for message in own]
    assert len(wrote) > 4000 and len({message.text for message in wrote}) == len(wrote) and len(messages()) > 60
    for message in wrote:
        assert message.text[message.end + 1 - len(message.answer) : message.end + 1] == message.answer
        assert message.asked and message.near and not set(message.asked) & set(message.near)
    held = json.loads((Path(reading.__file__).parents[1] / "arena" / "data" / "persons.json").read_text("utf-8"))
    told = {fact[part].lower() for person in held for fact in person["facts"] for part in ("told", "asked")}
    told |= {question.lower() for person in held for question in person["never_told"]}
    for message in wrote:
        assert told.isdisjoint({text.lower() for text in (message.text, *message.asked, *message.near)}), message


def test_questions_about_messages_are_put_to_no_other_facts(tokenizer: Any) -> None:
    """Who knows what else a message tells: other lessons of facts are left out; texts stay, and are asked with all."""
    model = model_of(tokenizer)
    bank = Bank(model, steps=1, streams=4, chunks=2)
    keys = ({"m|a|x": {0}}, {"self||home/pet_name": {1}}, {"p|Towers|1": {0}}, {"m|b|y": {0}})
    bank.add([Stream([random_ids(CHUNK, seed) for seed in (i, 9 + i)], [], [], says) for i, says in enumerate(keys)])
    for stream, key, left_out in (
        (0, "m|a|x", {2, 3, 6, 7}), (1, "self||home/pet_name", {0, 1, 6, 7}), (2, "p|Towers|1", set())
    ):  # fmt: skip
        turn = replace(turn_of([1]), stream=stream, asked=Asked(Ask("?", "!", key, 3), 0))
        assert forbidden(turn, bank) == left_out


# Lessons --------------------------------------------------------------------------------------------------------------


def material() -> Material:
    """Two passages about one thing, a story of two parts, prose."""
    one = Passage("p|Towers|0", "The tower is 30 m high. " * 8, (("How high is it?", "30 m", 16),))
    two = Passage("p|Towers|1", "It was built in 1889. " * 8, (("When was it built?", "1889", 19),))
    parts = [Passage(f"s|Snow|{i}", text, ()) for i, text in enumerate(("It snowed. " * 20, "It froze. " * 20))]
    return Material([[one, two]], [parts], [PROSE])


@pytest.mark.parametrize("kind", SHARES)
def test_lessons_say_where_their_answers_are(kind: str) -> None:
    """The answer ends at the character that is told, older ones before; what was not told is asked too."""
    lessons, unknown, older = Lessons(material()), 0, 0
    for seed in range(60):
        lesson: Lesson = getattr(lessons, kind)(random.Random(seed))
        assert lesson.text
        for asked in lesson.asks:
            assert asked.question and asked.answer
            if asked.at is None:
                assert asked.answer == UNKNOWN and asked.key not in lesson.says and not asked.older
                unknown += 1
                continue
            said = lesson.text[asked.at + 1 - len(asked.answer) : asked.at + 1]
            assert said.lower() == asked.answer.lower(), (asked, said)
            if asked.kind == "passage":
                assert asked.key in lesson.says
            else:
                assert lesson.says[asked.key] == [*asked.older, asked.at]
            assert all(at < asked.at for at in asked.older)
            older += bool(asked.older)
    assert (unknown > 10) == (kind in ("everyday", "messages", "made_up"))
    assert (older > 10) == (kind in ("everyday", "made_up"))


def test_the_same_seed_draws_the_same_lesson_and_all_kinds_are_drawn() -> None:
    """Kinds without material are left out."""
    lessons = Lessons(material())
    assert lessons.draw(random.Random(4)) == lessons.draw(random.Random(4))
    for whole, kinds in ((material(), 6), (Material(prose=[PROSE]), 4)):
        names = {kind: lambda self, rng, kind=kind: kind for kind in SHARES}
        with mock.patch.multiple(Lessons, **names):
            drawn = Counter(Lessons(whole).draw(random.Random(seed)) for seed in range(300))
        assert len(drawn) == kinds
    only = Lessons(material(), dict.fromkeys(SHARES, 0.0) | {"prose": 1.0})
    assert not any(only.draw(random.Random(seed)).asks for seed in range(20))
    with pytest.raises(ConfigError, match="did you mean 'messages'"):
        run_of(shares={"mesages": 0.5}).check()
    with pytest.raises(ConfigError, match="must not be below 0"):
        run_of(shares={"prose": -1.0}).check()


def test_material_is_told_apart_by_its_fields(tmp_path: Path) -> None:
    """Passages, stories, dialogues and texts, also packed and mixed in one file."""
    passage = {
        "title": "Towers", "para": 3, "context": "It is 30 m high.",
        "qas": [
            {"question": "How high is it? ", "answers": ["30 m"], "answer_start": [6]},
            {"question": "Who?", "answers": [], "answer_start": []},
        ],
    }  # fmt: skip
    story = {
        "id": "Snow", "sections": [{"section": 1, "text": "Snow fell."}, {"section": 2, "text": "The dog Rex ran."}],
        "qas": [
            {"question": "Who ran?", "answers": ["Rex."], "sections": [2], "type": "explicit"},
            {"question": "Why?", "answers": ["Because."], "sections": [2], "type": "implicit"},
        ],
    }  # fmt: skip
    talk = {"turns": [{"speaker": "user", "text": "Hello there. " * 40}, {"speaker": "system", "text": "Hi."}]}
    mixed = tmp_path / "mixed.jsonl.gz"
    mixed.write_bytes(gzip.compress("\n".join(map(json.dumps, (passage, story, talk))).encode()))
    book = tmp_path / "book.txt.xz"
    book.write_bytes(lzma.compress(("A long book. " * 2000).encode()))
    found = read_material([mixed, book])
    assert found.passages == [[Passage("p|Towers|3", "It is 30 m high.", (("How high is it?", "30 m", 9),))]]
    assert [part.asks for part in found.stories[0]] == [(), (("Who ran?", "Rex", 10),)]
    assert found.prose[-1].startswith("User: Hello") and found.prose[-1].endswith("System: Hi.")
    assert len(found.prose) == 7 and len(set(found.prose)) == 2, "books are drawn more often"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"nothing": 1}\n', "row 1 is no passage"),
        ("a.jsonl", b'{"text": "a"}\n{"context": "b", "qas": [{}]}\n', "row 2"),
        ("a.jsonl", b"not json\n", "cannot read"),
        ("a.jsonl.gz", b"not packed", "cannot read"),
        ("a.jsonl.zst", b"not packed", "cannot read"),
        ("a.jsonl", b'{"text": "short"}\n', "no text"),
        ("a.jsonl", b"[1]\n", "row 1"),
    ],
)
def test_files_that_are_no_material_are_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    """In one line that names the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        read_material([tmp_path / name])
    assert "\n" not in str(refused.value)


def test_a_lesson_is_cut_where_its_answers_are(tokenizer: Any) -> None:
    """In a chunk, in what waits, or beyond both and not asked; a byte is a token here."""
    text = "".join(chr(ord("a") + i % 26) for i in range(100))
    asks = [Ask("q", "x", str(at), at, (3, 9), "self") for at in (7, 8, 25, 34, 90)] + [Ask("q", UNKNOWN, "n", None)]
    says = {"7": [7], "34": [5, 34], "90": [90]}
    cut = stream_of(Lesson(text, asks, says), model_of(tokenizer), 4)
    assert [bytes(chunk).decode() for chunk in cut.chunks] == [text[i : i + CHUNK] for i in range(0, 32, CHUNK)]
    assert bytes(cut.rest).decode() == text[32:39]
    assert [asked.at for asked in cut.asks] == [0, 1, 3, IN_WINDOW, None]
    assert [asked.chunk for asked in cut.asks] == [0, 1, 3, None, None]
    assert [set(asked.older) for asked in cut.asks[:3]] == [{1}, {0}, {0, 1}]
    assert cut.says == {"7": {0}, "34": {0}, "90": set()}


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_bank_holds_what_memories_would(family: str, tokenizer: Any) -> None:
    """The law: the same keys and values, search keys and words as of text written chunk by chunk, lesson by lesson."""
    model = model_of(tokenizer, family)
    bank = bank_of(model, 5, 2, 7)
    keys_WGR = model.retriever.keys(bank.features(), model.config.key_group)
    for own in bank.streams:
        memory = model.new_memory()
        for chunk in own.chunks:
            model.write(memory, chunk)
        written = memory.tensors()["vectors"].unflatten(1, (-1, CHUNK))
        for layer in range(memory.layers):
            close(bank.vectors(layer, torch.tensor(own.writes)), written[layer], what=f"layer {layer}")
        close(keys_WGR[own.first : own.writes.stop].detach(), torch.cat(memory.keys(0)))
        assert torch.equal(bank.words()[own.first : own.writes.stop], torch.cat(memory.words()))
    assert bank.owner_W.tolist() == [0] * 5 + [1] * 2 + [2] * 7


def test_a_bank_forgets_the_oldest_step(tokenizer: Any) -> None:
    """Its writes go, those of later steps keep what they hold."""
    model = model_of(tokenizer)
    bank = Bank(model, steps=2, streams=2, chunks=4)
    steps = [[stream(3, 10 * i, says={"k": {i}}), stream(2 + i, 10 * i + 1)] for i in range(3)]
    before = []
    for step in steps[:2]:
        bank.add(step)
        before.append([bank.vectors(1, torch.tensor(own.writes)).clone() for own in step])
    assert bank.streams == [*steps[0], *steps[1]] and len(bank) == 3 + 2 + 3 + 3
    assert bank.said == {"k": {0, 6}}
    bank.add(steps[2])
    assert bank.streams == [*steps[1], *steps[2]] and len(bank) == 3 + 3 + 3 + 4
    assert bank.said == {"k": {1, 8}}
    for own, vectors in zip(steps[1], before[1], strict=True):
        assert torch.equal(bank.vectors(1, torch.tensor(own.writes)), vectors)


# Searching and reading ------------------------------------------------------------------------------------------------


def memory_of(model: MemoryModel, bank: Bank, writes: list[int]) -> Memory:
    """A memory that holds these writes of a bank."""
    memory = model.new_memory()
    keys_WGR = model.retriever.keys(bank.features(), model.config.key_group).detach()
    for place in writes:
        vectors = torch.stack([bank.vectors(layer, torch.tensor(place)) for layer in range(memory.layers)])
        record = Write(memory.write_count, "", 0.0, memory.tokens, CHUNK, None)
        memory.add(vectors, keys_WGR[place][None], record, {"words": bank.words()[place]})
    return memory


def turn_of(words: list[int], **parts: Any) -> Turn:
    """A turn about the first stream."""
    return Turn(
        **({"text": "", "words": words, "prompt": [], "answer": [], "stream": 0, "asked": None, "kind": "self"} | parts)
    )


def test_a_bank_is_searched_as_memories_are(tokenizer: Any) -> None:
    """Scores, the score of nothing and the need, of questions of several lengths."""
    model = model_of(tokenizer)
    bank = bank_of(model, 5, 4)
    turns = [turn_of(random_ids(length, length)) for length in (3, 9, 1)]
    found = search_scores(model, bank, turns)
    scores, null, needs = found.scores_QW, found.null_Q, found.needs_Q
    found = model.search([memory_of(model, bank, list(range(9)))] * 3, [turn.words for turn in turns])
    for row, expected in enumerate(found):
        close(scores[row].detach(), expected.scores)
        close(torch.stack([null[row], needs[row]]).detach(), torch.tensor([expected.null, expected.needs]))
    scores.sum().backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"retriever.key.0.weight", "retriever.query.0.weight", "retriever.weigh.0.weight"} <= learnt
    assert any("layers.0" in name and "lora_B" in name for name in learnt), "the adapter learns to be searched with"


READS = [  # writes in memory, of which the last two are in the pool
    list(range(9)),  # more than are read
    [1, 2, 4, 6, 7],  # as many as are read
    [2, 5, 8],
    [0, 7],
    [3],  # the pool is not full
    [],
]


@pytest.mark.parametrize("recency", [0.0, 2.0])
@pytest.mark.parametrize(("family", "instruction"), [("llama", None), ("llama", "Read this."), ("gemma3", None)])
def test_training_reads_as_use_does(family: str, instruction: str | None, recency: float, tokenizer: Any) -> None:
    """The law: a bank's slots give the logits that `ReadSlots` gives for the same writes, all questions at once."""
    model = model_of(tokenizer, family, recency=recency)
    if instruction is not None:
        model = MemoryModel(model.base, tokenizer, model.config, instruction=instruction)
    bank = bank_of(model, 5, 4)
    turns = [turn_of(random_ids(6, seed)) for seed in range(len(READS))]
    with torch.no_grad():
        found = search_scores(model, bank, turns)
    scores_QW, null_Q = found.scores_QW, found.null_Q
    allowed = torch.zeros(len(READS), len(bank), dtype=torch.bool)
    for row, writes in enumerate(READS):
        allowed[row, writes] = True
    pools = [writes[-2:] for writes in READS]
    picked = pick(scores_QW, null_Q, allowed, pools, 3, 2, score_bias=model.config.score_bias, recency=recency)
    prompts = torch.tensor([random_ids(5, 50 + seed) for seed in range(len(READS))])
    logits = read(model, LessonSlots(bank, picked), prompts)
    for row, writes in enumerate(READS):
        memory = memory_of(model, bank, writes)
        found = model.search([memory], [turns[row].words])
        with torch.no_grad(), model.reading([memory], found=found) as cache:
            used = model.base(prompts[row : row + 1], past_key_values=cache, use_cache=True)
        close(logits[row], used.logits[0], what=f"{writes}")


@torch.no_grad()
def read(model: MemoryModel, slots: Any, prompts: Tensor) -> Tensor:
    """Logits of prompts behind slots."""
    from remanence.core.cache import MemoryCache

    with model.adapter("read"), model.attachment.hooks():
        cache = MemoryCache(slots, len(model.attachment.layers))
        return model.base(prompts, past_key_values=cache, use_cache=True).logits


def test_picked_is_what_is_best_and_the_pool() -> None:
    """Oldest first, then the pool in its order; what is missing in front; nothing that is not in the memory."""
    scores = torch.tensor([[5.0, 1.0, 4.0, 9.0, 3.0, 8.0], [5.0, 1.0, 4.0, 9.0, 3.0, 8.0]])
    allowed = torch.tensor([[True, True, True, False, True, True], [False, True, False, False, True, False]])
    picked = pick(scores, torch.zeros(2), allowed, [[4, 5], [4]], 2, 2, score_bias=1.0)
    assert picked.writes_QS[0].tolist() == [0, 2, 4, 5] and picked.there_QS[0].all()
    assert picked.writes_QS[1, -2:].tolist() == [1, 4] and picked.there_QS[1].tolist() == [False, False, True, True]
    assert picked.bias_QS[0].tolist() == [-8.0, -3.0, -4.0, -5.0, 0.0]
    assert picked.bias_QS[1, [0, 3, 4]].tolist() == [-3.0, -2.0, 0.0]
    some = picked.of([1])
    assert isinstance(some, Picked) and torch.equal(some.bias_QS[0], picked.bias_QS[1])


# What is right --------------------------------------------------------------------------------------------------------


def crowd(tokenizer: Any) -> Bank:
    """Three lessons: the first two say "k", the first twice."""
    own = stream(4, 0, says={"k": {0, 2}})
    other = stream(3, 1, says={"k": {1}, "m": {0}})
    bank = Bank(model_of(tokenizer), steps=2, streams=3, chunks=4)
    bank.add([own, other, stream(2, 2, says={"m": {1}})])
    return bank


def question(key: str, at: int | None, *older: int, stream: int = 0) -> Turn:
    """About a key of `crowd`."""
    asked = Asked(Ask("q", "a" if at is not None else UNKNOWN, key, at, kind="self"), at, frozenset(older))
    return turn_of([1], stream=stream, asked=asked)


def test_writes_that_say_the_same_elsewhere_are_forbidden(tokenizer: Any) -> None:
    """Those of other lessons; where nothing may be told, all of them; where nothing is asked, none."""
    bank = crowd(tokenizer)
    assert forbidden(question("k", 2, 0), bank) == {5}
    assert forbidden(question("k", IN_WINDOW, 0), bank) == {5}
    assert forbidden(question("m", None), bank) == {4, 8}
    assert forbidden(question("m", 0, stream=1), bank) == {8}
    assert forbidden(question("x", 1), bank) == set()
    assert forbidden(turn_of([1]), bank) == set()


def test_the_target_is_the_newest_answer_and_a_share_of_the_older(tokenizer: Any) -> None:
    """Or nothing; or it is left open, where the answer is in the window."""
    bank = crowd(tokenizer)
    assert target(question("k", 2), bank, 0.3) == {2: 1.0}
    assert target(question("k", 2, 0), bank, 0.3) == {0: 0.3, 2: 0.7}
    assert target(question("m", 0, 1, 2, stream=1), bank, 0.3) == {4: 0.7, 5: 0.15, 6: 0.15}
    assert target(question("m", None), bank, 0.3) == {-1: 1.0}
    assert target(turn_of([1]), bank, 0.3) == {-1: 1.0}
    assert target(question("k", IN_WINDOW, 0), bank, 0.3) == {}


def test_a_withheld_answer_is_nowhere(tokenizer: Any) -> None:
    """Nor beside the chunk it ends in, and the search is to find nothing."""
    bank = crowd(tokenizer)
    withheld = replace(question("k", 2, 0), withheld=True)
    assert not withheld.told
    assert forbidden(withheld, bank) == {0, 1, 2, 3, 5}
    assert target(withheld, bank, 0.3) == {-1: 1.0}
    generator = torch.Generator().manual_seed(0)
    past = Past.draw([withheld] * 20, bank, random.Random(0), generator, pooled=2, older=0.3)
    assert not past.allowed_QW[:, [0, 1, 2, 3, 5]].any() and (past.gold_Q == -1).all() and past.counted_Q.all()


def test_a_model_that_is_trained_on_learns_other_lessons(
    trainer_of: Callable[..., ReadingTrainer], tmp_path: Path
) -> None:
    """Those of a new model follow from the seed; those of a trained one also from what it has learnt."""
    first, second = (trainer_of(tmp_path / name) for name in "ab")
    assert first.streams(3)[0].chunks == second.streams(3)[0].chunks

    def trained_on(by: float) -> ReadingTrainer:
        model = trainer_of(tmp_path / "c").model
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += by
        return ReadingTrainer(model, first.lessons, first.settings, tmp_path / "d", fresh=False)

    drawn = [trained_on(by).streams(3)[0].chunks for by in (0.1, 0.1, 0.2)]
    assert drawn[0] == drawn[1] != drawn[2] and first.streams(3)[0].chunks not in drawn


def test_what_the_search_missed_is_read_or_unknown(
    trainer_of: Callable[..., ReadingTrainer], tokenizer: Any, tmp_path: Path
) -> None:
    """It gets just the score to be read, or the answer is that nothing is known; what was found or seen stays."""
    trainer, bank = trainer_of(tmp_path), crowd(tokenizer)
    turn = replace(question("k", 2), answer=[7])
    turns = [turn] * 60 + [replace(turn, seen=True)] * 60
    allowed = torch.ones(len(turns), len(bank), dtype=torch.bool)
    none = torch.zeros(len(turns), dtype=torch.bool)
    past = Past(allowed, [[8]] * len(turns), none, torch.zeros(len(turns), 1 + len(bank)), ~none,
                torch.full((len(turns),), 2))  # fmt: skip
    row = torch.tensor([0.0, 1.0, -5.0, 3.0, 2.0, 1.5, 0.5, 0.2, 9.0])
    generator = torch.Generator().manual_seed(0)
    scores = row.repeat(len(turns), 1)
    learnt = trainer._with_missed(turns, past, scores, 2, generator)
    read = scores[:, 2] > 2.0
    assert 20 < int(read[:60].sum()) < 50 and (scores[:, 2] < 3.0).all()
    unknown = trainer.asking.answer(UNKNOWN)
    for place, (before, after) in enumerate(zip(turns, learnt, strict=True)):
        if read[place] or before.seen:
            assert after is before
        else:
            assert after.answer == unknown and after.asked is None and not after.told
    found = row.repeat(len(turns), 1)
    found[:, 2] = 2.5
    assert trainer._with_missed(turns, past, found, 2, generator) == turns and (found[:, 2] == 2.5).all()


def test_a_past_has_what_it_may_have(tokenizer: Any) -> None:
    """The own lesson and the pool, others by chance, nothing forbidden; targets are shares of one."""
    bank, rng = crowd(tokenizer), random.Random(0)
    generator = torch.Generator().manual_seed(0)
    turns = [question("k", 2, 0), question("m", None), question("k", IN_WINDOW, 0), turn_of([1], kind="chat")] * 40
    past = Past.draw(turns, bank, rng, generator, pooled=2, older=0.3)
    for row, turn in enumerate(turns):
        banned = forbidden(turn, bank)
        allowed = set(past.allowed_QW[row].nonzero().flatten().tolist())
        assert not banned & allowed
        assert set(bank.streams[turn.stream].writes) - banned <= allowed
        assert set(past.pools[row]) <= allowed and len(past.pools[row]) <= 2
        assert past.pools[row] == sorted(past.pools[row])
    told = torch.arange(len(turns)) % 4
    assert (past.gold_Q[told == 0] == 2).all() and (past.gold_Q[told != 0] == -1).all()
    assert torch.equal(past.counted_Q, told != 2)
    assert torch.allclose(past.targets_QX.sum(1), (told != 2).float())
    sizes = past.allowed_QW[told == 3].sum(1)
    assert sizes.min() < sizes.max() == len(bank)
    assert not past.empty_Q[told != 3].any() and past.empty_Q[told == 3].any()


# Asking ---------------------------------------------------------------------------------------------------------------


def chatty(tokenizer: Any, template: str) -> Any:
    """The byte tokenizer with a chat template."""
    talks = copy.deepcopy(tokenizer)
    talks.chat_template = template
    return talks


def test_a_preamble_is_left_out_of_a_template(tokenizer: Any) -> None:
    """A system message that the template makes up; without one, or if it cannot be told, the template stays."""
    talks = chatty(tokenizer, CHATML)
    bare = without_preamble(talks)
    turns = [{"role": "user", "content": "Hi {'\n"}, {"role": "assistant", "content": "Yes."}] * 2
    whole, without = (
        talks.apply_chat_template(turns[:3], chat_template=t, tokenize=False, add_generation_prompt=True)
        for t in (None, bare)
    )
    assert whole == "<|im_start|>system\nYou are helpful.<|im_end|>\n" + without
    assert without_preamble(chatty(tokenizer, bare)) is None
    odd = "{{ messages | length }}" + CHATML
    assert without_preamble(chatty(tokenizer, odd)) is None
    assert without_preamble(tokenizer) is None


def test_an_instruction_is_the_systems_turn_or_begins_the_users(tokenizer: Any) -> None:
    """What is read stands behind it and before the question, as text does that is pasted into a prompt."""
    takes = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}<assistant>"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + takes
    ignores = takes.replace("messages %}", "messages if m['role'] == 'user' %}")
    for template, before in (
        (takes, "<system>Read.</system><user>"), (refuses, "<user>Read.\n\n"), (ignores, "<user>Read.\n\n"),
    ):  # fmt: skip
        prompts = Prompts(chatty(tokenizer, template), None, None, True, "Read.")
        assert bytes(prompts.preface()).decode() == before
        assert bytes(prompts.question(" Why? ")).decode() == "\n\nWhy?</user><assistant>"
    plain = Prompts(tokenizer, "Question: {question}\nAnswer:", None, True, "Read.")
    assert bytes(plain.preface()) == b"Read.\n\n"
    assert bytes(plain.question("Why?")) == b"\n\nQuestion: Why?\nAnswer:"


def test_questions_and_answers_are_those_of_use(tokenizer: Any) -> None:
    """With a chat template and without one."""
    model = model_of(tokenizer)
    asking = Asking(model)
    assert not asking.chat and asking.end == [EOS]
    assert bytes(asking.prompt("Why?")) == b"Question: Why?\nAnswer:"
    assert asking.answer("So.") == [*b" So.", EOS]
    model.prompt, model.tokenizer = None, chatty(tokenizer, CHATML.replace("<|im_end|>", "<eos>"))
    model.prompts.tokenizer = model.tokenizer
    asking = Asking(model)
    assert asking.chat and asking.end == [EOS]
    assert asking.prompt("Why?") == model.prompts.question("Why?")
    assert asking.answer("So.") == [*b"So.", EOS]
    history = bytes(token for token in asking.prompt("Why?", [("Rex is my dog.", "Noted.")]) if token < 256).decode()
    assert history.index("Rex is my dog.") < history.index("Noted.") < history.index("Why?")
    model.base.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        Asking(model)


# Merged adapters ------------------------------------------------------------------------------------------------------


def test_merged_adapters_are_pefts_own(tokenizer: Any) -> None:
    """The same outputs and gradients, with the adapter and without it, and after it has changed."""
    model = model_of(tokenizer, "qwen2")  # with biases
    ids = torch.tensor([random_ids(7)])

    def found() -> tuple[Tensor, list[Tensor]]:
        with model.adapter("read"):
            logits = model.base(ids).logits
        model.zero_grad()
        (logits * torch.arange(logits.numel()).view_as(logits).remainder(7)).sum().backward()
        return logits.detach(), [
            p.grad.clone() for n, p in model.named_parameters() if "lora_" in n and p.grad is not None
        ]

    assert Merged.fits(model.base, "read")
    with torch.no_grad():
        plain = model.base(ids).logits
    merged = None
    for _ in range(2):
        logits, grads = found()
        merged = Merged(model.base, "read") if merged is None else merged
        merged.refresh()
        logits_merged, grads_merged = found()
        close(logits_merged, logits)
        assert grads and [grad.shape for grad in grads] == [grad.shape for grad in grads_merged]
        close(*(torch.cat([grad.flatten() for grad in some]) for some in (grads_merged, grads)), 1e-4)
        with torch.no_grad():
            assert torch.equal(model.base(ids).logits, plain)
            with model.adapter("read"):
                close(model.base(ids).logits, logits)
        merged.remove()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.1)
        merged = None
    dropping = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, model.config, lora=lora(lora_dropout=0.1))
    assert not Merged.fits(dropping.base, "read")


# A run ----------------------------------------------------------------------------------------------------------------

SIZES = {"streams": 3, "chunks": 12, "queue": 3, "before": 1, "asks": 12, "precision": "float32", "log_every": 2}


def run_of(**changes: Any) -> ReadingRun:
    """A tiny run."""
    memory = MemoryConfig.verbatim(**{**MEMORY, "chunk_tokens": 32, "pool_tokens": 64, "K0": 64, "window_tokens": 512})
    values: dict[str, Any] = {
        "model": "tiny", "data": (), "memory": memory, "steps": 8, "lr": 0.03, "warmup": 2, **SIZES,
        "lora": Lora(r=4, alpha=8, dropout=0.0, targets=("all-linear",)),
    }  # fmt: skip
    return ReadingRun(**(values | changes))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts for the base to answer, and few lessons to count words in."""
    monkeypatch.setattr(reading, "lines", lambda kind: lines(kind)[:3])
    monkeypatch.setattr(reading, "_SAMPLE", 10)
    monkeypatch.setattr(reading, "_REPLY_TOKENS", 4)


@pytest.fixture
def trainer_of(tokenizer: Any, few: None) -> Callable[..., ReadingTrainer]:
    """trainer_of(folder, chat, **settings): a trainer of a new tiny model."""

    def make(
        folder: Path, chat: bool = True, dtype: torch.dtype = torch.float32, family: str = "llama", **changes: Any
    ) -> ReadingTrainer:
        run = run_of(**changes)
        talks = chatty(tokenizer, CHATML.replace("<|im_end|>", "<eos>")) if chat else tokenizer
        torch.manual_seed(run.seed)
        model = MemoryModel(
            build_decoder(family, "sdpa").to(dtype), talks, run.memory, prompt=None if chat else PROMPT,
            lora=lora(init_lora_weights=True), adapters=("read",),
        ).eval()  # fmt: skip
        return ReadingTrainer(model, Lessons(material()), run, folder)

    return make


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in ("s", "tokens_per_s", "elapsed_s")} for row in rows]


def test_a_run_learns_and_goes_on_as_if_never_stopped(
    trainer_of: Callable[..., ReadingTrainer], tmp_path: Path
) -> None:
    """The loss falls; stopped and resumed it is the same run; nothing but reading has changed."""
    whole = trainer_of(tmp_path / "whole")
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    assert whole.run()
    after = whole.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.startswith("retriever.") or ".read." in name for name in changed)
    learnt = {"retriever.key.0.weight", "retriever.needs.weight", "retriever.null.weight", "retriever.rarity"}
    assert learnt <= changed
    figures = log(tmp_path / "whole")
    assert figures[-1]["loss"] < 0.85 * figures[0]["loss"]
    assert figures[-1]["total"] == 8 and figures[-1]["stage"] == "reading"
    assert {"retriever", "need", "from_base", "prose_from_base", "recall", "norm", "lr"} <= set().union(*figures)

    stopped = trainer_of(tmp_path / "parts")
    assert not stopped.run(stop=lambda: stopped.step == 5)
    with (tmp_path / "parts" / "log.jsonl").open("a") as lines_of_lost_steps:
        lines_of_lost_steps.write('{"total": 7, "loss": 1}\n{"tot')
    resumed = trainer_of(tmp_path / "parts")
    assert resumed.resume() and resumed.step == 5
    assert resumed.run()
    for name, value in whole.trained().items():
        assert torch.equal(value, resumed.trained()[name]), name
    assert [row["total"] for row in log(tmp_path / "parts")] == [2, 4, 6, 8]
    assert log(tmp_path / "parts")[-1]["loss"] == figures[-1]["loss"]

    other = trainer_of(tmp_path / "parts", memory=run_of().memory.replace(search_hidden=8))
    with pytest.raises(ConfigError, match="does not fit this model"):
        other.resume()


def test_the_search_stays_as_it_is_where_only_upper_layers_learn(
    trainer_of: Callable[..., ReadingTrainer], tmp_path: Path
) -> None:
    """What it sees of a question too; the adapters of the upper layers learn to read."""
    last = run_of().memory.search_layers[-1]
    trainer = trainer_of(tmp_path, steps=2, warmup=0, lr_search=0.0, first_layer=last, chat=0.0)
    model, ids = trainer.model, [list(range(4, 12))]
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # B is zero at first, and A then learns nothing
            if "lora_B" in name and ".read." in name:
                parameter.normal_(0, 0.02)
    assert trainer.merged is not None
    trainer.merged.refresh()
    before, seen = {name: value.clone() for name, value in model.state_dict().items()}, model.asked(ids)[2].clone()
    assert last and trainer.run()
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    changed -= {"retriever.rarity", "retriever.spelling"}  # counted once, not learnt
    upper = {f"layers.{layer}." for layer in range(last, len(model.attachment.layers))}
    assert changed and all("lora_" in name and any(part in name for part in upper) for name in changed)
    assert torch.equal(model.asked(ids)[2], seen)


def test_a_base_without_a_template_learns_too(trainer_of: Callable[..., ReadingTrainer], tmp_path: Path) -> None:
    """It answers nothing by itself, and is asked with a prompt; the search still learns what needs no memory."""
    trainer = trainer_of(tmp_path, chat=False, steps=2)
    assert trainer.replies == {} and not (tmp_path / reading.REPLIES).exists()
    figures = trainer.train_step()
    assert figures["from_base"] == 0 and figures["answer"] > 0 and figures["need_right"] <= 1
    turns = trainer.draw(random.Random(1))
    told = [turn for turn in turns if turn.kind != "chat"]
    assert len(told) < len(turns) == 12 and all(turn.answer[-1] == EOS for turn in told)
    assert all(bytes(turn.prompt).decode().endswith(f"Question: {turn.text}\nAnswer:") for turn in told)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_trains_about_as_float32_does(
    family: str, merge: bool, trainer_of: Callable[..., ReadingTrainer], tmp_path: Path
) -> None:
    """With adapters merged and as peft has them; what learns is float32."""
    exact = trainer_of(tmp_path / "exact", family=family, steps=4)
    rounded = trainer_of(tmp_path / "rounded", family=family, dtype=torch.bfloat16, steps=4, merge=merge)
    assert (rounded.merged is not None) == merge and exact.merged is not None
    assert all(parameter.dtype == torch.float32 for parameter in rounded.named.values())
    first, other = exact.train_step(), rounded.train_step()
    for name in ("answer", "retriever", "need", "prose_from_base"):
        assert other[name] == pytest.approx(first[name], rel=0.1, abs=0.02), name
    assert other["norm"] == pytest.approx(first["norm"], rel=0.2)
    assert rounded.train_step()["loss"] > 0


def test_rates_rise_and_fall_to_zero(trainer_of: Callable[..., ReadingTrainer], tmp_path: Path) -> None:
    """By steps, or by time, whichever is further."""
    trainer = trainer_of(tmp_path, steps=100, hours=1.0, warmup=10, chat=False)
    factors = []
    for step, hours in ((0, 0.0), (9, 0.0), (50, 0.0), (50, 0.75), (100, 0.0), (10, 1.5)):
        trainer.step, trainer.elapsed = step, 3600 * hours
        factors.append(round(trainer._factor, 6))
    assert factors == [0.1, 0.91, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": None}, "--steps or --hours"),
        ({"steps": 0}, "above 0"),
        ({"asks": 0}, "asks"),
        ({"memory": MemoryConfig()}, "memory.kept=keys_values"),
        ({"memory": run_of().memory.replace(K0=40)}, "multiples of K"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=words):
        run_of(**changes).check()


def test_settings_are_changed_by_their_path() -> None:
    """Also several that fit only together."""
    run = changed(run_of(), ["memory.K=16", "memory.chunk_tokens=16", "asks=5", "lora.r=2", "hours=1.5"])
    run.check()
    assert (run.memory.K, run.asks, run.lora.r, run.hours) == (16, 5, 2, 1.5)
    with pytest.raises(ConfigError, match="did you mean 'streams'"):
        changed(run, ["stream=3"])


@pytest.mark.parametrize(("positions", "layers"), [(8192, 30), (2048, 4), (256, 2), (64, 1)])
def test_memory_fits_a_decoder(positions: int, layers: int) -> None:
    """As deep and long as it is; the sizes of the shipped model where it is large."""
    config = build_decoder("llama", "sdpa").config.__class__(
        max_position_embeddings=positions, num_hidden_layers=layers
    )
    memory = reading_run.memory_for(config)
    run_of(memory=memory).check()
    assert memory.slots + memory.window_tokens <= positions and memory.search_layers[-1] < layers
    if positions == 8192:
        assert (memory.K, memory.N, memory.K0, memory.window_tokens) == (64, 128, 256, 1024)
        assert memory.search_layers == (0, 6, 12) and memory.key_group == 2 and memory.base_answers


@pytest.fixture
def base(tokenizer: Any, tmp_path: Path) -> Path:
    """A tiny decoder that converses, in a folder, and a book beside it."""
    build_decoder("llama", "sdpa").save_pretrained(tmp_path / "base")
    chatty(tokenizer, CHATML.replace("<|im_end|>", "<eos>")).save_pretrained(tmp_path / "base")
    (tmp_path / "book.txt").write_text(PROSE * 10, encoding="utf-8")
    return tmp_path / "base"


TINY = [
    f"{name}={value}" for name, value in
    {**SIZES, "memory.K": 32, "memory.chunk_tokens": 32, "memory.N": 64, "memory.K0": 64, "lora.r": 4}.items()
]  # fmt: skip


def test_from_files_to_a_model_that_remembers(base: Path, few: None, tmp_path: Path) -> None:
    """The trained model is loaded and asked; the same command again does nothing; another one is refused."""
    out = tmp_path / "out"
    run = reading_run.reading_run(str(base), [tmp_path / "book.txt"], steps=2, changes=TINY)
    assert run.lora.targets == ("all-linear",)
    ends = iter([True])
    assert reading_run.launch(run, out, quiet=True, stop=lambda: next(ends))["model"] is None
    done = reading_run.launch(run, out, quiet=True)
    assert done["steps"] == 2 and done["last"]["total"] == 2
    model = MemoryModel.from_pretrained(done["model"])
    assert model.adapters == ("read",) and model.config.base_answers
    assert model.template is not None and "helpful" not in model.template
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 20)
    assert model.ask(memory, "Where is the spare key?", max_new_tokens=3).text is not None
    question = bytes(token for token in model.prompts.question("Where?") if token < 256)
    assert b"helpful" not in question and b"Where?" in question
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert "reading" in card and "book.txt" in card and str(tmp_path) not in card
    weights = (out / "model" / "memory.safetensors").stat().st_mtime_ns
    assert reading_run.launch(run, out, quiet=True)["steps"] == 2
    assert (out / "model" / "memory.safetensors").stat().st_mtime_ns >= weights
    with pytest.raises(ConfigError, match="another run"):
        reading_run.launch(reading_run.reading_run(str(base), [], steps=3, changes=TINY), out)
    again = reading_run.reading_run(done["model"], [tmp_path / "book.txt"], steps=1, changes=TINY[:6])
    assert again.memory == model.config and again.lora.r == 4
    assert reading_run.launch(again, tmp_path / "again", quiet=True)["steps"] == 1


def test_the_search_can_be_trained_alone(base: Path, few: None, tmp_path: Path) -> None:
    """On the layers that it sees; the base reads by an instruction, and there is no adapter."""
    data, out = [tmp_path / "book.txt"], tmp_path / "out"
    changes = [change for change in TINY if not change.startswith("lora")] + ["memory.search_layers=[0, 1]"]
    run = reading_run.reading_run(str(base), data, steps=2, reads=False, changes=changes)
    assert (run.memory.look_at, run.memory.store_dtype) == ("sentences", "int8")
    cut, _ = reading_run.build(run, learns=True)
    whole, fresh = reading_run.build(run)
    assert len(cut.attachment.layers) == 2 < len(whole.attachment.layers) and fresh
    question = [list(b"Where is the key?")]
    close(cut.asked(question)[2], whole.asked(question)[2])
    done = reading_run.launch(run, out, quiet=True)
    assert done["last"]["total"] == 2 and done["last"]["loss"] == done["last"]["retriever"]
    assert not (out / "replies.json").exists()
    assert "| LoRA | none |" in (out / "model" / "README.md").read_text(encoding="utf-8")
    model = MemoryModel.from_pretrained(done["model"])
    assert model.adapters == () and model.lora is None and model.instruction == INSTRUCTION
    assert len(model.attachment.layers) == len(whole.attachment.layers)
    changed = [n for n, p in model.state_dict().items() if not torch.equal(p, whole.state_dict()[n])]
    assert changed and all(name.startswith("retriever.") for name in changed)
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 20)
    assert model.ask(memory, "Where is the spare key?", max_new_tokens=3).text is not None
    again = reading_run.reading_run(done["model"], data, steps=1, changes=changes[:6])
    assert again.lora is None and again.memory == model.config
    cut, fresh = reading_run.build(again, learns=True)
    assert not fresh and len(cut.attachment.layers) == 2
    close(cut.asked(question)[2], whole.asked(question)[2])
    assert torch.equal(cut.retriever.key[0].weight, model.retriever.key[0].weight)
    assert reading_run.launch(again, tmp_path / "again", quiet=True)["steps"] == 1
    shown = command(
        "unused", "train", "reading", "--model", str(base), "--text", str(data[0]), "--search-only", "--show"
    )
    assert json.loads(shown.stdout)["lora"] is None, shown.stderr
    with pytest.raises(ConfigError, match="leave --search-only out"):
        reading_run.reading_run(str(base), data, steps=1, reads=False, changes=["lora.r=4"])
    with pytest.raises(ConfigError, match="has no adapter"):
        reading_run.reading_run(done["model"], data, steps=1, changes=["lora.r=4"])


def test_the_command_trains_stops_and_goes_on(
    base: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends it after the step at hand; the same command goes on; misuse is one line with exit code 2."""
    book, changes = str(tmp_path / "book.txt"), [part for change in TINY for part in ("--set", change)]
    usual = ["train", "reading", "--model", str(base), "--text", book, "--out", str(tmp_path / "out"), "--steps", "2"]
    step = ReadingTrainer.train_step

    def interrupted(self: ReadingTrainer) -> dict[str, Any]:
        interrupt()
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(ReadingTrainer, "train_step", interrupted)
        stopped = command("unused", *usual, *changes)
    assert stopped.returncode == 130 and "stopped after step 1" in stopped.stderr, stopped.stderr
    done = command("unused", *usual, *changes, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    shown = command("unused", *usual, "--lessons", "x.jsonl", "--set", "asks=5", "--show")
    assert json.loads(shown.stdout)["asks"] == 5 and len(json.loads(shown.stdout)["data"]) == 2
    for arguments, words in {
        ("--model", str(base)): "--text",
        ("--model", str(base), "--text", "none.txt"): "no file",
        ("--model", str(tmp_path / "none"), "--text", book): "cannot load",
        ("--model", str(base), "--text", book, "--set", "ask=3"): "did you mean",
        ("--model", str(base), "--text", book, "--steps", "0"): "above 0",
        ("--model", "builtin", "--text", book): "another kind",
    }.items():
        refused = command("unused", "train", "reading", *arguments, "--out", str(tmp_path / "other"))
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


@pytest.mark.slow
def test_two_processes_share_the_work(base: Path, tmp_path: Path) -> None:
    """Each with lessons of its own; their gradients are averaged, so that they stay alike."""
    run = reading_run.reading_run(str(base), [tmp_path / "book.txt"], steps=2, changes=TINY)
    done = reading_run.launch(run, tmp_path / "out", processes=2, quiet=True)
    assert done["steps"] == 2 and MemoryModel.from_pretrained(done["model"]).adapters == ("read",)
