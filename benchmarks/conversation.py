"""What a conversation does to the base's answers to general questions: `python benchmarks/conversation.py`.

Three conversations are held with `Session`, in which facts are told and asked for. After each turn from the third on,
two general questions are asked beside the conversation. All of it is done twice in one run: once the base is shown all
of the last turns, once those that `Session` and `worth_showing` leave. Each question is also asked without any
conversation. Counted are the answers that have a word of the right one, and those that begin as an earlier reply did.
Last, how many of the questions get "I don't know." of the base behind three turns that got it of a memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table

from remanence import MemoryModel
from remanence.core import model as module
from remanence.core.prompts import LONG, UNKNOWN
from remanence.core.session import TURNS, Session

_GENERAL = [
    ("What's the capital of Portugal?", "lisbon"), ("How many legs does a spider have?", "8 eight"),
    ("Who wrote Hamlet?", "shakespeare bard"), ("What is the boiling point of water?", "100 212"),
    ("Who painted the Mona Lisa?", "leonardo vinci"), ("What is the currency of Japan?", "yen"),
    ("What is the capital of Peru?", "lima"), ("Where is the Eiffel Tower?", "paris"),
    ("What is the tallest mountain on Earth?", "everest"), ("Who invented the telephone?", "bell"),
    ("Which language do people in Brazil speak?", "portuguese"), ("Which gas do plants take in?", "dioxide co2"),
]  # fmt: skip
_TALKS = [
    [  # the one in which the fault was seen
        "My car is parked on level 3 of the Rialto garage.", "Actually I moved the car, it's on level 5 now.",
        "What level is my car on?", "Groceries: oat milk, leeks, 2 lemons, rye bread", "What was on my grocery list?",
        "my sister's email is lena.hofer@posteo.at btw", "What is my sister's email?", "I'm allergic to penicillin.",
        "What am I allergic to?", "Tell me a joke.", "thanks!", "Bob says he'll be here at 6pm", "Who is Bob?",
        "Remember that the wifi password is hunter2-Kestrel.",
    ],
    [
        "Hi! I'm Marisol, I moved to Ghent last autumn to work at the botanical garden.", "Where do I work?",
        "My knee surgery is scheduled for the 9th of January.", "When is my operation?", "What is my husband's name?",
        "The landlord wants the rent before the 5th of each month, it's 870 euros.", "How high is my rent?",
        "I keep my passport in the biscuit tin above the fridge.", "Where is my passport?",
    ],
    [
        "hey, how are you?", "I run a small bakery in Leith with my brother Angus.", "What's my brother's name?",
        "The oven engineer is coming on Thursday at 7 in the morning.", "When does the oven engineer come?",
        "Who is my landlord?", "I broke my left wrist skiing in Glencoe.", "Where did I break my wrist?",
        "I think I'll call the cat Crumpet.",
    ],
]  # fmt: skip
_NEVER_TOLD = ["What is my husband's name?", "Where do I work?", "Who operates on my knee?"]
_BEGIN = 20  # letters by which an answer is said to begin as another


class Whole(Session):
    """A session whose base is shown all of the last turns."""

    @property
    def history(self) -> list[tuple[str, str]]:
        """The last turns, whoever answered them."""
        return [(turn.said, turn.answer.text) for turn in self.turns if turn.answer is not None][-TURNS:]


@contextmanager
def shown(everything: bool) -> Iterator[type[Session]]:
    """Sessions whose base is shown all of the last turns, or those that are worth it."""
    before = module.worth_showing
    if everything:
        module.worth_showing = lambda history, keep=0: list(history)
    try:
        yield Whole if everything else Session
    finally:
        module.worth_showing = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer to a general question")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = MemoryModel.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    right, echoes, unknown, asked = Counter[str](), Counter[str](), Counter[str](), 0

    def ask(name: str, question: str, words: str, history: list[tuple[str, str]], replies: list[str]) -> None:
        answer = model.answer_alone(question, history, max_new_tokens=arguments.tokens).text.strip().lower()
        right[name] += any(word in answer for word in words.split())
        echoes[name] += any(answer.startswith(reply[:_BEGIN]) for reply in replies if reply)

    for everything, name in ((True, "all of the last turns"), (False, "what is worth showing")):
        with shown(everything) as kind:
            before = [(question, UNKNOWN) for question in _NEVER_TOLD]
            for question, _ in _GENERAL:
                unknown[name] += UNKNOWN in model.answer_alone(question, before, max_new_tokens=8).text
            for talk in _TALKS:
                session, general = kind(model, model.new_memory()), itertools.cycle(_GENERAL)
                for number, line in enumerate(talk):
                    for _ in session.say(line, max_new_tokens=LONG):
                        pass
                    replies = [turn.answer.text.strip().lower() for turn in session.turns if turn.answer is not None]
                    for question, words in itertools.islice(general, 2 if number > 1 else 0):
                        ask(name, question, words, session.history, replies)
                        if everything:
                            asked += 1
                            ask("no conversation", question, words, [], [])
    result = {
        name: {"right": right[name], "as an earlier reply": echoes[name], UNKNOWN: unknown.get(name)} for name in right
    }
    if arguments.json:
        print(json.dumps({"asked": asked} | result))
        return
    table = Table(title=f"{asked} general questions behind 3 to 14 turns")
    for column in ("shown", "right", "begin as an earlier reply", f"{UNKNOWN} (of {len(_GENERAL)})"):
        table.add_column(column)
    for name in right:
        table.add_row(name, str(right[name]), str(echoes[name]), str(unknown.get(name, "-")))
    Console().print(table)


if __name__ == "__main__":
    main()
