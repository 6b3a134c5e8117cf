"""Continuous batching: answers side by side are those of each alone, whoever joins and leaves."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest
import torch

from conftest import EOS, build_decoder, build_tokenizer, random_text, small
from remanence import Answer, ConfigError, IncompatibleMemory, InputError, Memory, MemoryModel
from remanence.config import MemoryConfig
from remanence.core.batching import Batch, Event
from remanence.core.cache import SharedLayer
from remanence.core.circles import unrepeated
from remanence.core.prompts import UNKNOWN
from remanence.core.session import Session
from test_looking import told
from test_search import CHUNK, ONE, model_of

QUESTIONS = ["Who?", "What is it, then?", "And where was it that they went?", "Why on earth?", "When?", "How many?"]


@dataclass
class Heard:
    """What a batch said, by ticket."""

    texts: dict[int, str] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)

    def take(self, events: list[Event]) -> None:
        """Take down what a step brought."""
        for event in events:
            assert event.ticket not in self.answers.keys() | self.errors.keys(), "nothing comes after the end"
            self.texts[event.ticket] = self.texts.get(event.ticket, "") + event.text
            if event.answer is not None:
                self.answers[event.ticket] = event.answer
            if event.error is not None:
                self.errors[event.ticket] = event.error


def finish(batch: Batch, heard: Heard | None = None) -> Heard:
    """Step until nothing is left."""
    heard = heard or Heard()
    while len(batch):
        heard.take(batch.step())
    return heard


def by_schedule(model: MemoryModel, asked: list[tuple[Memory, str, int]], seed: int, most: int = 4) -> list[Answer]:
    """Answers to questions (memory, question, most new tokens) that join at random times, among some that give up."""
    rng, batch, heard, places = random.Random(seed), Batch(model, most=most), Heard(), dict[int, int]()
    left, given_up = list(enumerate(asked)), dict[int, int]()
    while left or len(batch):
        while left and len(batch) < most and rng.random() < 0.6:
            place, (memory, question, new) = left.pop(0)
            places[batch.add(memory, question, max_new_tokens=new)] = place
            if len(batch) < most and rng.random() < 0.3:
                memory, question, _ = rng.choice(asked)
                given_up[batch.add(memory, question, max_new_tokens=9)] = rng.randrange(3)
        count, events = len(batch), batch.step()
        assert len(events) == count
        assert len(batch) == count - sum(event.answer is not None for event in events)
        heard.take(events)
        for ticket in list(given_up):
            given_up[ticket] -= 1
            if given_up[ticket] < 0:
                batch.cancel(ticket)
                del given_up[ticket]
    assert not heard.errors
    for ticket in places:
        assert heard.texts[ticket] == heard.answers[ticket].text
    return [heard.answers[ticket] for ticket in sorted(places, key=places.__getitem__)]


def same(found: Answer, expected: Answer) -> None:
    """All of the answer, token for token; scores to rounding."""
    assert (found.ids, found.text, found.read, found.recalled) == (
        expected.ids, expected.text, expected.read, expected.recalled,
    )  # fmt: skip
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert [(s.write, s.label, s.where, s.text) for s in found.sources] == [
        (s.write, s.label, s.where, s.text) for s in expected.sources
    ]


def asked_of(model: MemoryModel, memories: list[Memory], seed: int) -> list[tuple[Memory, str, int]]:
    """Questions to memories, each with another length of answer."""
    rng = random.Random(seed)
    return [(rng.choice(memories), question, rng.randrange(1, 12)) for question in QUESTIONS * 2]


def varied(model: MemoryModel, chunks: int) -> list[Memory]:
    """Memories of several lengths; in some, tokens wait."""
    return [
        told(model, 3), told(model, 0), told(model, 0, rest=5, seed=1), told(model, chunks, rest=3, seed=2),
        told(model, 1, seed=4),
    ]  # fmt: skip


def check(model: MemoryModel, memories: list[Memory]) -> None:
    """Two schedules give what asking alone gives."""
    for seed in range(2):
        asked = asked_of(model, memories, seed)
        alone = [model.ask(memory, question, max_new_tokens=new) for memory, question, new in asked]
        for found, expected in zip(by_schedule(model, asked, seed), alone, strict=True):
            same(found, expected)
        assert len({tuple(answer.ids) for answer in alone}) > 4  # or it would prove little


@pytest.mark.parametrize("changes", [{}, {"recency": 2.0}, {"drop": "oldest", "score_bias": 0.0}], ids=str)
def test_reading_all_together(changes: dict[str, Any], make_model: Callable[..., MemoryModel]) -> None:
    """Retrieval at every layer, slots with and without a bias on attention."""
    model = make_model(small(**changes))
    check(model, varied(model, 9))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_families_and_their_attention(family: str, make_model: Callable[..., MemoryModel]) -> None:
    """Windows that slide, position ids and heads of other kinds."""
    model = make_model(small(), family)
    check(model, varied(model, 5))


def test_one_search_for_all_layers(tokenizer: Any) -> None:
    """Read together, after one search."""
    model = model_of(tokenizer)
    check(model, varied(model, 6))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_looking(family: str, tokenizer: Any) -> None:
    """One write is answered from; some memories have none."""
    model = model_of(tokenizer, family, looks=3)
    check(model, varied(model, 6))


def test_the_verdict_is_said_in_a_batch(tokenizer: Any) -> None:
    """Where looking finds nothing that answers, it says that it does not know, at each row's own step."""
    model = model_of(tokenizer, looks=3, doubt=99.0)
    memories = [told(model, 6), told(model, 2, seed=1)]
    asked = [(memories[i % 2], question, len(UNKNOWN)) for i, question in enumerate(QUESTIONS)]
    assert [answer.text for answer in by_schedule(model, asked, 0)] == [UNKNOWN] * len(QUESTIONS)


class BaseForSome:
    """A search that leaves every question with an even number of letters to the base."""

    def __init__(self, model: MemoryModel) -> None:
        self.search = model.search

    def __call__(self, memories: list[Memory], questions: list[list[int]], *, force: Any = None) -> Any:
        found = self.search(memories, questions, force=force)
        for one, ids in zip(found, questions, strict=True):
            one.__dict__.update(needs=1.0 if len(ids) % 2 else -1.0, null=-99.0 if len(ids) % 2 else 99.0)
        return found


def test_answers_that_go_in_circles_end(tokenizer: Any) -> None:
    """As `ask` ends them; the pieces are what is shown of them, and a session gives the same."""
    for seed in range(4):
        model = circling(tokenizer, seed)
        memories = [told(model, 2), model.new_memory()]
        asked = [(memories[i % 2], question, 150) for i, question in enumerate(QUESTIONS)]
        alone = [model.ask(memory, question, max_new_tokens=new) for memory, question, new in asked]
        assert all(len(answer.ids) < 150 for answer in alone)
        for found, expected, (memory, question, _) in zip(by_schedule(model, asked, seed), alone, asked, strict=True):
            same(found, expected)
            assert found.text == expected.text
            session = Session(model, memory)
            assert "".join(session.reply(question, max_new_tokens=150)).strip() == session.answer.text == expected.text
            shown = expected.ids[: unrepeated(expected.ids)]
            assert len(shown) < len(expected.ids) and model.said(shown) == expected.text


def circling(tokenizer: Any, seed: int) -> MemoryModel:
    """A model whose next token depends on the last one only, so that it must go in circles."""
    torch.manual_seed(seed)
    model = model_of(tokenizer, window_tokens=240)
    with torch.no_grad():
        for layer in model.base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.base.lm_head.weight.normal_()
        model.base.lm_head.weight[EOS] = 0
    return model


def test_some_answers_are_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways of reading at once: with the adapter for reading, and with none."""
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }};{% endfor %}"
    config = MemoryConfig.verbatim(**{**ONE, "looks": 3, "base_answers": True})
    model = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, config, lora=lora).eval()
    monkeypatch.setattr(model, "search", BaseForSome(model))
    memories = varied(model, 6)
    asked = asked_of(model, memories, 0)
    alone = [model.ask(memory, question, max_new_tokens=new) for memory, question, new in asked]
    assert {answer.recalled for answer in alone} == {True, False}
    for found, expected in zip(by_schedule(model, asked, 0), alone, strict=True):
        same(found, expected)
    history = [("Hello, I am Ada.", "Hello Ada.")]
    batch = Batch(model)
    ticket = batch.add(memories[0], "Who am I", history=history, max_new_tokens=8)
    expected = model.ask(memories[0], "Who am I", history=history, max_new_tokens=8)
    same(finish(batch).answers[ticket], expected)
    assert not expected.recalled and expected.ids != model.ask(memories[0], "Who am I", max_new_tokens=8).ids


@pytest.mark.parametrize("looks", [0, 3])
def test_what_the_bases_generation_config_says_counts(looks: int, tokenizer: Any) -> None:
    """Several ends of text, a penalty on repeating, tokens that are suppressed."""
    model = model_of(tokenizer, looks=looks)
    memories = varied(model, 4)
    asked = [(memory, question, 20) for memory in memories for question in QUESTIONS[:2]]

    def ask_all() -> list[Answer]:
        return [model.ask(memory, question, max_new_tokens=new) for memory, question, new in asked]

    config, seen = model.base.generation_config, [ask_all()]
    config.repetition_penalty = 1.3
    seen.append(ask_all())
    config.suppress_tokens = [seen[-1][0].ids[1]]
    seen.append(ask_all())
    config.eos_token_id = [EOS, seen[-1][0].ids[5]]
    seen.append(ask_all())
    alone = seen[-1]
    assert len({tuple(each[0].ids) for each in seen}) == 4 and len(alone[0].ids) <= 6  # each setting matters
    for found, expected in zip(by_schedule(model, asked, 1), alone, strict=True):
        same(found, expected)


@pytest.mark.parametrize("changes", [{"num_beams": 2}, {"guidance_scale": 1.5}])
def test_what_a_batch_cannot_do_is_refused(changes: dict[str, Any], tokenizer: Any) -> None:
    """With the setting's name."""
    model = model_of(tokenizer)
    for name, value in changes.items():
        setattr(model.base.generation_config, name, value)
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Batch(model)


def test_nobodys_memory_reaches_anothers_answer(tokenizer: Any) -> None:
    """The scores of a row, not only the likeliest token, stay what they are whoever is beside it."""
    model = model_of(tokenizer, looks=3)
    mine = told(model, 3, rest=2)
    seen = []
    for other in (told(model, 7, seed=5), told(model, 1, seed=6), told(model, 7, seed=7)):
        batch = Batch(model)
        ticket = batch.add(mine, "Who is it?", max_new_tokens=8)
        batch.add(other, "And what did they say, all of them?", max_new_tokens=8)
        scores = []
        while len(batch):
            row = batch._rows.get(ticket)
            batch.step()
            if row is not None and row.cache is not None:
                layer: Any = row.cache.layers[-1]
                scores.append(layer.keys[row.at, :, -1].clone())  # what the last layer made of the newest token
        seen.append(torch.stack(scores))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[0], seen[2], rtol=1e-4, atol=1e-4)


def test_no_memory_is_held_when_all_is_answered(tokenizer: Any) -> None:
    """Nor the keys and values of who was answered last."""
    for looks in (0, 3):
        model = model_of(tokenizer, looks=looks)
        batch, memory = Batch(model), told(model, 6)
        batch.add(memory, "Who?", max_new_tokens=3)
        finish(batch)
        gone = weakref.ref(memory)
        del memory
        gc.collect()
        assert gone() is None


def test_memories_are_read_and_not_changed(make_model: Callable[..., MemoryModel]) -> None:
    """What is written after the first step does not reach an answer that is being given."""
    model = make_model(small())
    memory = told(model, 6)
    before, expected = memory.tensors(), model.ask(memory, "Who?", max_new_tokens=6)
    batch = Batch(model)
    ticket = batch.add(memory, "Who?", max_new_tokens=6)
    heard = Heard()
    heard.take(batch.step())
    for name, values in memory.tensors().items():
        assert torch.equal(values, before[name])
    model.memorize(memory, random_text(3 * CHUNK, 9))
    same(finish(batch, heard).answers[ticket], expected)


def test_the_number_of_rows(make_model: Callable[..., MemoryModel]) -> None:
    """At most so many; what is refused takes no place; who leaves makes one."""
    model = make_model(small())
    memory = told(model, 3)
    batch = Batch(model, most=2)
    assert len(batch) == 0 and batch.step() == []
    first = batch.add(memory, "Who?", max_new_tokens=1)
    with pytest.raises(InputError, match="empty"):
        batch.add(memory, "  ")
    with pytest.raises(InputError, match="window"):
        batch.add(memory, "Why? " * 50)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        batch.add(memory, "Why?", max_new_tokens=64)
    with pytest.raises(IncompatibleMemory):
        batch.add(make_model(small(K=2)).new_memory(), "Why?")
    assert len(batch) == 1
    second = batch.add(memory, "Why?", max_new_tokens=3)
    with pytest.raises(ConfigError, match="2 questions"):
        batch.add(memory, "When?")
    assert [(event.ticket, event.answer is not None) for event in batch.step()] == [(first, True), (second, False)]
    third = batch.add(memory, "When?", max_new_tokens=3)
    assert len({first, second, third}) == 3 and len(batch) == 2
    with pytest.raises(ConfigError, match="at least 1"):
        Batch(model, most=0)


def test_an_answer_of_which_enough_came(make_model: Callable[..., MemoryModel]) -> None:
    """It ends with its next token, with its sources; the others go on."""
    model = make_model(small())
    memory = told(model, 3)
    whole = model.ask(memory, "Why?", max_new_tokens=8)
    batch, heard = Batch(model), Heard()
    stays, ends = (batch.add(memory, "Why?", max_new_tokens=8) for _ in range(2))
    for _ in range(3):
        heard.take(batch.step())
    batch.finish(ends)
    heard.take(batch.step())
    assert heard.answers.keys() == {ends} and len(batch) == 1
    finish(batch, heard)
    batch.finish(ends)  # it is gone
    same(heard.answers[stays], whole)
    assert heard.answers[ends].ids == whole.ids[:4] and heard.answers[ends].sources == whole.sources
    assert heard.texts[ends] == heard.answers[ends].text


def test_cancelling(make_model: Callable[..., MemoryModel]) -> None:
    """Before the first step, in the middle, twice, and when it is done already; the others go on."""
    model = make_model(small())
    memory = told(model, 3)
    expected = model.ask(memory, "Why?", max_new_tokens=8)
    batch, heard = Batch(model), Heard()
    stays, waits, midway = (batch.add(memory, q, max_new_tokens=8) for q in ("Why?", "Who?", "Where was it?"))
    batch.cancel(waits)
    assert len(batch) == 2
    for _ in range(3):
        heard.take(batch.step())
    batch.cancel(midway)
    batch.cancel(midway)
    assert len(batch) == 1
    finish(batch, heard)
    batch.cancel(stays)
    assert heard.answers.keys() == {stays} and waits not in heard.texts
    same(heard.answers[stays], expected)


def test_an_error_of_one_is_not_the_others(make_model: Callable[..., MemoryModel]) -> None:
    """A memory that cannot be read ends its own answer, with the reason."""
    model = make_model(small())
    good, bad = told(model, 3), told(model, 3)
    batch = Batch(model)
    failing, fine = batch.add(bad, "Who?", max_new_tokens=4), batch.add(good, "Why?", max_new_tokens=4)
    bad.model = "another"
    heard = finish(batch)
    assert heard.errors.keys() == {failing} and isinstance(heard.errors[failing], IncompatibleMemory)
    same(heard.answers[fine], model.ask(good, "Why?", max_new_tokens=4))


def test_questions_come_from_other_threads(make_model: Callable[..., MemoryModel]) -> None:
    """Added and cancelled while steps are taken: every answer is the right one."""
    model = make_model(small())
    memory = told(model, 3)
    expected = {question: model.ask(memory, question, max_new_tokens=6) for question in QUESTIONS}
    batch, heard, tickets = Batch(model, most=64), Heard(), dict[int, str]()

    def person(question: str) -> None:
        for _ in range(3):
            tickets[batch.add(memory, question, max_new_tokens=6)] = question
            batch.cancel(batch.add(memory, question))

    threads = [Thread(target=person, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(batch):
        heard.take(batch.step())
    assert len(tickets) == 3 * len(QUESTIONS)
    for ticket, question in tickets.items():
        same(heard.answers[ticket], expected[question])


def test_pieces_are_whole_characters(make_model: Callable[..., MemoryModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tokenizer of bytes: a character comes when its last byte does, and no byte is said twice."""
    model = make_model(small())
    memory = told(model, 2)
    text = "é€ \U0001f600 ok"
    wanted = iter([*text.encode(), 0xE2])  # and at the end, half a character
    rules = "remanence.core.batching._Row.choose"

    def choose(row: Any) -> bool:
        row.scores = None
        row.ids = torch.cat([row.ids, torch.tensor([[next(wanted)]])], 1)
        row.new.append(int(row.ids[0, -1]))
        return len(row.new) == len(text.encode()) + 1

    monkeypatch.setattr(rules, choose)
    batch, pieces, answer = Batch(model), [], None
    batch.add(memory, "Who?")
    while len(batch):
        [event] = batch.step()
        pieces.append(event.text)
        answer = event.answer
    assert pieces == ["", "é", "", "", "€", "", "", "", "", " \U0001f600", "", " o", "k", "\ufffd"]
    assert answer is not None and "".join(pieces) == answer.text == text + "\ufffd"


def test_room_is_made_by_blocks() -> None:
    """What a shared layer holds is what was put in, and its tensors are copied once in many tokens."""
    keys, values = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    layer, homes = SharedLayer(keys, values, None), set()
    for _ in range(70):
        new = torch.randn(2, 1, 1, 4)
        found_keys, found_values = layer.update(new, -new)
        keys, values = torch.cat([keys, new], 2), torch.cat([values, -new], 2)
        assert torch.equal(found_keys, keys) and torch.equal(found_values, values)
        homes.add(found_keys.data_ptr())
    assert layer.get_seq_length() == 73 and len(homes) == 3
