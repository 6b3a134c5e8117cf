"""Answers that go in circles: what is seen as a circle, what is shown of it, and that `generate` ends there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remanence.core.circles import Circles, Shown, said, settled, unrepeated


def naive(ids: Sequence[int], enough: int) -> int:
    """The shortest beginning behind which everything repeats what stands some tokens before, for long enough."""
    shown = len(ids)
    for step in range(1, 129):
        start = len(ids)
        while start > step and ids[start - 1] == ids[start - 1 - step]:
            start -= 1
        if len(ids) - start >= max(enough, step if enough > 1 else 0):
            shown = min(shown, start)
    return shown


FEW = st.lists(st.integers(0, 3), max_size=60)


@given(FEW, st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 130))
def test_the_first_round_of_a_circle_stays(before: list[int], block: list[int], more: int) -> None:
    """Against a naive reference; and rounds of any length are found once they were said for long enough."""
    said = (block * (2 + more // len(block)))[: len(block) + more]
    ids = [*before, *said]
    assert unrepeated(ids) == naive(ids, 32) and settled(ids) == naive(ids, 1)
    if more >= max(32, len(block)):
        assert unrepeated(ids) <= len(before) + len(block)
    assert settled(ids) <= unrepeated(ids) <= len(ids)


@given(st.lists(st.integers(0, 2), max_size=90))
def test_what_was_shown_is_never_taken_back(ids: list[int]) -> None:
    """What is settled only grows, and is a beginning of what is shown at the end."""
    places = [settled(ids[:n]) for n in range(len(ids) + 1)]
    assert places == sorted(places)
    assert places[-1] <= unrepeated(ids)


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([], 0),
        ([5], 1),
        (list(range(200)), 200),
        ([7, *[1, 2, 3] * 4], 13),  # said four times, but that is short
        ([7, *[1, 2, 3] * 12], 4),
        ([7] * 33, 1),
        ([7] * 32, 32),
        (list(range(40)) * 2, 40),
        ([*range(40), *range(39)], 79),  # not yet said twice
        ([*list(range(40)) * 2, 99], 81),  # it went on
        (list(range(128)) * 2, 128),
        (list(range(129)) * 2, 258),  # too long to be seen
    ],
)
def test_what_counts_as_a_circle(ids: list[int], shown: int) -> None:
    """At least 32 tokens, and all of what is repeated, directly behind it."""
    assert unrepeated(ids) == shown


class Words:
    """A tokenizer of whole words: token 3 is " three"."""

    clean_up_tokenization_spaces = False

    def __init__(self, words: str) -> None:
        self.words = words.split("|")

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(self.words[i] for i in ids)


def test_a_word_that_would_begin_another_round_is_not_shown() -> None:
    """At a text's beginning it is another token, so the circle seems to begin behind it."""
    tokenizer = Words("I|'m| so| glad|!| I| Well")
    ids = [0, 1, 2, 3, 4, *[5, 1, 2, 3, 4] * 8]
    assert said(tokenizer, ids) == "I'm so glad!"
    shown = Shown(tokenizer)
    pieces = [shown.piece(ids[: n + 1], n + 1 == len(ids)) for n in range(len(ids))]
    assert "".join(pieces) == shown.text == "I'm so glad!" and pieces[1] == "'m"
    assert said(tokenizer, ids[:6]) == "I'm so glad! I"  # that is no circle
    padding = Words("I|'m| so| glad|!| I| Well|")
    assert said(padding, [*ids[:6], *[7] * 40]) == "I'm so glad! I"  # nor is padding behind an answer


@given(st.lists(st.integers(0, 6), max_size=70), st.lists(st.integers(0, 6), max_size=6))
def test_pieces_make_the_text(before: list[int], block: list[int]) -> None:
    """Whatever is said, and wherever it ends."""
    tokenizer, ids = Words("I|'m| so| glad|!| I|\n"), before + block * 9
    shown = Shown(tokenizer)
    for n in range(len(ids)):
        shown.piece(ids[: n + 1], n + 1 == len(ids))
    assert shown.text == said(tokenizer, ids)


def test_rows_end_one_by_one_and_the_prompt_does_not_count() -> None:
    """A prompt may repeat itself; and each row of a batch has an answer of its own."""
    prompt = [3] * 50
    rows = [prompt + [1, 2] * 20, prompt + list(range(40)), [0] * 50 + [4] * 40]
    assert Circles(50)(torch.tensor(rows), None).tolist() == [True, False, True]
    assert Circles(50)(torch.tensor([prompt]), None).tolist() == [False]
