"""Answers in words that were read: which words may be spelled, and that others are not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.config import MemoryConfig
from remanence.core.spelling import Spelling, words
from remanence.errors import ConfigError
from test_judge import judged
from test_spans import TEXTS, told_texts

READ = "I am learning harmonica. The code is C-118; I owe him 340 bucks."


def reader(tokenizer: Any, common: str = "") -> Any:
    """What `Spelling` needs of a model: a token a letter, some of which are words of every text."""
    rarity = torch.ones(300)
    rarity[tokenizer(common, add_special_tokens=False).input_ids] = 0.0
    return SimpleNamespace(tokenizer=tokenizer, retriever=SimpleNamespace(rarity=rarity, spelling=torch.arange(300)))


def spelled(tokenizer: Any, wanted: str, read: str | None, common: str = "", steps: int = 60) -> str:
    """What a reader says that would say one thing if it could, and then end."""
    unknown, end = tokenizer("I don't know.", add_special_tokens=False).input_ids, tokenizer.eos_token_id
    rule = Spelling(reader(tokenizer, common), [read], [end], unknown, prompt=2)
    ids, generator = [7, 7], torch.Generator().manual_seed(0)
    for _ in range(steps):
        said = tokenizer.decode(ids[2:])
        scores = torch.rand(1, 300, generator=generator)
        scores[0, 128:] -= 9.0  # no halves of characters
        scores[0, end] = 2.0  # rather than anything by chance
        if wanted.startswith(said) and said != wanted:
            scores[0, tokenizer(wanted[len(said)], add_special_tokens=False).input_ids] = 3.0
        token = int(rule(torch.tensor([ids]), scores).argmax())
        if token == end:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[2:]))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("harmonica", "harmonica"),
        ("harmoniumica", "harmonica"),  # begun as it was read, so it is ended so
        ("Harmonica!", "Harmonica!"),
        ("harm", "harmonica"),  # the end of the word is not the end of the answer
        ("340 bucks", "340 bucks"),
        ("3400 bucks", "340"),
        ("C-118", "C-118"),
        ("I don't know.", "I don't know."),
    ],
)
def test_what_was_read_is_spelled_as_it_was(tokenizer: Any, wanted: str, said: str) -> None:
    """And what was not is passed over; nothing else is changed."""
    assert spelled(tokenizer, wanted, READ).lower() == said.lower()


def test_without_a_text_anything_is_spelled(tokenizer: Any) -> None:
    """And with common words: here letters, as the tokenizer of the tests has no longer tokens."""
    assert spelled(tokenizer, "harmoniumica", None) == "harmoniumica"
    assert spelled(tokenizer, "x learning", READ, common="x") == "x learning"
    assert spelled(tokenizer, "x learning", READ) != "x learning"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), text=st.text("ab é-,. 1", min_size=1, max_size=20))
def test_no_word_is_said_that_was_not_read(tokenizer: Any, seed: int, text: str) -> None:
    """Whatever a reader would like to say: all words are known, but one that the last step cut off."""
    rng = random.Random(seed)
    wanted = "".join(rng.choice("abé -.1") for _ in range(12))
    said = spelled(tokenizer, wanted, text, steps=40)
    known = set(words(text))
    if known:
        assert set(words(said)[:-1]) <= known
        assert all(any(word.startswith(last) for word in known) for last in words(said)[-1:])


def test_rows_have_rules_of_their_own(tokenizer: Any) -> None:
    """Also with several answers a prompt, and where a row has no text."""
    rule = Spelling(reader(tokenizer), ["abc", None, "bcd"], [tokenizer.eos_token_id], [], prompt=1)
    scores = torch.zeros(6, 300)
    letters = tokenizer("abx", add_special_tokens=False).input_ids
    scores[:, letters] = torch.tensor([1.0, 2.0, 3.0])
    best = rule(torch.zeros(6, 1, dtype=torch.long), scores).argmax(-1).tolist()
    a, b, x = letters
    assert best == [a, a, x, x, b, b]
    scores[:, letters] = 1.0  # of equal ones too
    assert rule(torch.zeros(6, 1, dtype=torch.long), scores).argmax(-1).tolist()[4:] == [b, b]


def test_letters_of_scripts_without_spaces_are_words() -> None:
    """And others are cut where letters and figures end."""
    assert words("Don't, C-118: 東京です, Straße") == ["don", "t", "c", "118", "東", "京", "で", "す", "straße"]


def test_an_answer_from_memory_has_words_that_were_read(tokenizer: Any) -> None:
    """By the whole model, which is random and would say anything; alone and beside others."""
    free, bound = judged(tokenizer, doubt=-99.0), judged(tokenizer, doubt=-99.0, answer_words="read")
    with torch.no_grad():
        for model in (free, bound):  # a token of the tests is a byte: letters only
            model.base.lm_head.weight[[i for i in range(259) if not chr(i).isascii() or not chr(i).isalpha()]] = 0.0
    memory, asked = told_texts(free, TEXTS), ["What is Rex?", "Where do I live?"]
    memory.pending = []
    assert free.fingerprint == bound.fingerprint
    whole = words(" ".join((*TEXTS, *asked, "I don't know.")))
    answers = bound.ask_batch([memory, memory], asked, max_new_tokens=12)
    for answer, question in zip(answers, asked, strict=True):
        assert answer.score > 0 and answer.ids == bound.ask(memory, question, max_new_tokens=12).ids
        *said, last = words(answer.text) or [""]
        assert set(said) <= set(whole) and any(word.startswith(last) for word in whole)
    assert answers[0].text != free.ask(memory, asked[0], max_new_tokens=12).text


def test_settings_that_cannot_be() -> None:
    """One of two."""
    with pytest.raises(ConfigError, match="answer_words is 'some'"):
        MemoryConfig(answer_words="some")
