"""Whether what was forgotten is gone: `python benchmarks/forgetting.py`.

Facts are told among prose, and one memory is told the prose alone. Then the facts are forgotten, in one go, and asked
for. Printed are: how many facts the memory answered before; in how many answers the value still stands afterwards; how
many answers are those of the memory that was never told, to the letter; whether all tensors of both are equal; whether
values stand in any file of the store; and what forgetting cost.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from itertools import cycle
from pathlib import Path

import torch

from remanence import Memory, MemoryModel, MemoryStore, Wanted
from remanence.arena.retention import prose
from remanence.facts.everyday import ask, tell, topics

NAMES = (
    "Orsolya",
    "Tamsin",
    "Bertram",
    "Ignatius",
    "Philippa",
    "Leopold",
    "Cressida",
    "Matthias",
    "Rosalind",
    "Ambrose",
)


def answers(model: MemoryModel, memory: Memory, questions: list[str], at_once: int = 10) -> list[str]:
    """What a memory answers."""
    made = []
    for begin in range(0, len(questions), at_once):
        some = questions[begin : begin + at_once]
        made += [answer.text for answer in model.ask_batch([memory] * len(some), some, max_new_tokens=20)]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--amount", type=int, default=200, help="facts")
    parser.add_argument("--words", type=int, default=60, help="words of prose behind each fact")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model, rng, words = MemoryModel.from_pretrained(arguments.model), random.Random(1), cycle(prose().split())
    of_persons = [topic for topic in topics().values() if not topic.of_things]
    facts = []
    for topic in rng.sample(of_persons, arguments.amount):
        name = rng.choice(NAMES)
        facts.append((tell(topic, rng, name), ask(topic, rng, name)))
    told, never = model.new_memory(), model.new_memory()
    for fact, _ in facts:
        piece = " ".join(next(words) for _ in range(arguments.words))
        model.memorize(told, fact.text, source="fact", time=1.0)
        for memory in (told, never):
            model.memorize(memory, piece, source="book", time=1.0)
    questions = [question for _, question in facts]
    before = answers(model, told, questions)
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore(folder)
        store.save("told", told)
        began = time.perf_counter()
        done = model.forget(told, Wanted(source="fact"))
        seconds = time.perf_counter() - began
        store.save("told", told)
        data = b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())
        on_disk = sum(fact.text.encode() in data for fact, _ in facts)
    after, control = answers(model, told, questions), answers(model, never, questions)

    def holding(made: list[str]) -> int:
        return sum(fact.value.lower() in text.lower() for (fact, _), text in zip(facts, made, strict=True))

    own, others = told.tensors(), never.tensors()
    alike = own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    same = sum(found == expected for found, expected in zip(after, control, strict=True))
    result = {
        "facts": len(facts), "answered_before": holding(before), "answered_after": holding(after),
        "answered_by_never_told": holding(control), "answers_of_never_told": same, "tensors_equal": alike,
        "on_disk_after": on_disk, "tokens_written_again": done.again, "seconds": round(seconds, 1),
    }  # fmt: skip
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
