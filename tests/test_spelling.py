"""Words that were read are spelled as they were read, and all others are left alone."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.core.spelling import Spelling
from test_judge import judged
from test_spans import TEXTS, told_texts

READ = "I am learning harmonica. The code is C-118; I owe him 340 bucks. My flat is 12b4."


def reader(tokenizer: Any) -> Any:
    """What `Spelling` needs of a model: a token a letter."""
    return SimpleNamespace(tokenizer=tokenizer, encode=lambda text: tokenizer(text, add_special_tokens=False).input_ids)


def spelled(tokenizer: Any, wanted: str, read: str | None, steps: int = 60) -> str:
    """What a reader says that would say one thing if it could, and then end."""
    rule, end = Spelling(reader(tokenizer), [read], [tokenizer.eos_token_id], prompt=2), tokenizer.eos_token_id
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
        ("a Harmonica!", "a Harmonica!"),
        ("harm", "harmonica"),  # the end of the word is not the end of the answer
        ("340 bucks", "340 bucks"),
        ("3400 bucks", "340"),
        ("C-1189", "C-118"),
        ("12b", "12b4"),
        ("har", "har"),  # too little to tell
        ("3", "340"),  # no 3 was read
        ("7 cellos", "7 cellos"),  # nor anything that begins so
        ("dollars, twice", "dollars, twice"),
        ("I don't know.", "I don't know."),
    ],
)
def test_what_was_read_is_spelled_as_it_was(tokenizer: Any, wanted: str, said: str) -> None:
    """And what was not is left alone."""
    assert spelled(tokenizer, wanted, READ).lower() == said.lower()


@pytest.mark.parametrize("read", ["Four cats live at 43.", "Row 4, seat 43.", "The fourth of May, 43 guests."])
def test_one_figure_that_was_read_is_a_number(tokenizer: Any, read: str) -> None:
    """In figures or in letters: it is not the beginning of another."""
    assert spelled(tokenizer, "4", read) == "4"


def test_without_a_text_anything_is_spelled(tokenizer: Any) -> None:
    """As it is where nothing answers."""
    assert spelled(tokenizer, "harmoniumica", None) == "harmoniumica"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), text=st.text("ab é-. 1", min_size=1, max_size=30))
def test_no_word_is_half_one_that_was_read(tokenizer: Any, seed: int, text: str) -> None:
    """Whatever a reader would like to say: a word that begins as one that was read is one, unless it is cut off."""
    rng = random.Random(seed)
    known = [word.lower() for word in re.findall(r"[^\W_]+", text)]
    said = spelled(tokenizer, "".join(rng.choice("abé -.1") for _ in range(16)), text, steps=40)
    for word in re.findall(r"[^\W_]+", said.lower())[:-1]:
        least = next((n for n in range(1, len(word) + 1) if n >= (2 if word[:n].isdigit() else 4)), None)
        if least is not None and any(each.startswith(word[:least]) for each in known):
            assert word in known, (text, said)


def test_rows_have_rules_of_their_own(tokenizer: Any) -> None:
    """Also with several answers a prompt, of equal scores, and where a row has no text."""
    rule = Spelling(reader(tokenizer), ["abcda", None, "abcdb"], [tokenizer.eos_token_id], prompt=1)
    scores = torch.zeros(6, 300)
    a, b, x = tokenizer("abx", add_special_tokens=False).input_ids
    begun = torch.tensor([[0, *tokenizer("abcd", add_special_tokens=False).input_ids]] * 6)
    for likely in ([1.0, 2.0, 3.0], [3.0, 3.0, 3.0]):
        scores[:, [a, b, x]] = torch.tensor(likely)
        best = rule(begun, scores).argmax(-1).tolist()
        assert best == [a, a, *scores[2:4].argmax(-1).tolist(), b, b]
    assert rule(begun[:, :3], scores).equal(scores)


def test_an_answer_from_memory_is_spelled_by_the_rule(tokenizer: Any) -> None:
    """By the whole model, alone and beside others; here it would say one letter for ever."""
    model = judged(tokenizer, doubt=-99.0)
    memory = told_texts(model, (*TEXTS, "Zzzzoe likes tea, as ever and ever. " * 2))
    memory.pending = []

    def liking(ids: Any, scores: Any) -> Any:
        """A rule before ours."""
        scores = scores.clone()
        scores[:, model.encode("z")[0]] = 99.0
        return scores

    options: dict[str, Any] = {"max_new_tokens": 8, "logits_processor": [liking]}
    answers = model.ask_batch([memory, memory], ["Who likes tea?"] * 2, **options)
    alone = model.ask(memory, "Who likes tea?", **options)
    assert [answer.ids for answer in answers] == [alone.ids] * 2
    assert alone.text.lower().startswith("zzzzoe")
