"""A bot for several people, each with a memory of their own: `python examples/bot.py`.

Type "ada: my dog is called Rex", then "bob: what is my dog called?" and "ada: what is my dog called?". What somebody
says is remembered for them alone, also when the bot is started again. An empty line ends it.

The same shape serves a chat room or a messenger: there the name is whatever says who wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from remanence import MemoryModel, MemoryStore, RemanenceError
from remanence.core.session import Session

GATE = 0.0  # answers whose best source scores below are taken for "I don't know."


class Bot:
    """Answers people, and remembers what each of them says.

    Args:
        model: one for all.
        store: has a memory for each person.
    """

    def __init__(self, model: MemoryModel, store: MemoryStore) -> None:
        self.model, self.store = model, store
        self.sessions: dict[str, Session] = {}

    def hear(self, person: str, text: str) -> Iterator[str]:
        """Answer a message piece by piece, then remember it."""
        session = self.sessions.get(person)
        known = None if session is None else session.memory
        with self.store.open(person, self.model, known=known) as memory:  # saved when the block ends
            if session is None:
                session = self.sessions[person] = Session(self.model, memory, label="said")
            session.memory = memory
            yield from session.say(text, max_new_tokens=32)

    def sources(self, person: str) -> list[str]:
        """What the last answer to a person was read from, best first."""
        answer = self.sessions[person].answer
        if answer is None or not answer.recalled or answer.score < GATE:
            return []
        return [source.text or "" for source in answer.sources[:1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--store", help="a folder for the memories; the user's data folder if not given")
    given = parser.parse_args()
    store = MemoryStore(given.store) if given.store else MemoryStore.default()
    bot = Bot(MemoryModel.from_pretrained(given.model), store)
    for line in sys.stdin:
        person, colon, text = (part.strip() for part in line.partition(":"))
        if not line.strip():
            break
        if not colon or not text:
            print("Write it as NAME: what they say")
            continue
        try:
            for piece in bot.hear(person, text):
                print(piece, end="", flush=True)
            print()
            for source in bot.sources(person):
                print(f"    from: {source}")
        except RemanenceError as error:
            print(f"    {error}")


if __name__ == "__main__":
    main()
