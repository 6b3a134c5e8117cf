"""What answering several people in one batch brings: `python benchmarks/batching.py`.

Each of 1, 2, 4 and 8 people has a memory of their own with a few facts, and asks for one of them. The same questions
are answered one after the other and in one batch, in turn, several times; printed are answers a second (medians), their
ratio, and the batch's answers a second over those of one person. Then, for the largest number, what one person's answer
spends its time on: searching and reading the question until there is a first token, and the tokens after it; and what
a token costs for one and for all. Answers are compared: both ways must give the same ones.

Of a ratio only the part after the first token can grow with the number of people: reading questions keeps the
processor busy as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from speed import in_turn

from remanence import Answer, Memory, MemoryModel
from remanence.core.batching import Batch

PEOPLE = (1, 2, 4, 8)
_NAMES = ["Ada", "Bruno", "Carla", "Dmitri", "Esra", "Felix", "Greta", "Hugo"]
_TOWNS = ["Porto", "Lyon", "Graz", "Turku", "Leeds", "Bergen", "Seville", "Gdansk"]
_FILLING = [
    "The bus was late again this morning and it rained all the way to the office.",
    "For lunch there was lentil soup with bread, and a pear.",
    "In the evening I repaired the lamp in the hall and read for an hour.",
    "The neighbours have painted their fence green.",
]


def person(model: MemoryModel, number: int) -> tuple[Memory, str]:
    """A memory of some twenty facts, another for everyone, and a question about one."""
    memory = model.new_memory(seed=number)
    for day in range(20):
        text = f"{_NAMES[(number + day) % 8]} moved to {_TOWNS[(number + 3 * day) % 8]} on day {day}. "
        model.memorize(memory, text + _FILLING[(number + day) % 4])
    return memory, f"Where did {_NAMES[number % 8]} move to?"


def together(model: MemoryModel, asked: list[tuple[Memory, str]], new: int) -> list[Answer]:
    """Answers from one batch, in the order of the questions."""
    batch = Batch(model, most=len(asked))
    places = {batch.add(memory, question, max_new_tokens=new): place for place, (memory, question) in enumerate(asked)}
    answers: dict[int, Answer] = {}
    while len(batch):
        for event in batch.step():
            if event.error is not None:
                raise event.error
            if event.answer is not None:
                answers[places[event.ticket]] = event.answer
    return [answers[place] for place in range(len(asked))]


def measured(model: MemoryModel, repeats: int, new: int) -> dict[str, Any]:
    """Answers a second, and what they are made of."""
    asked = [person(model, number) for number in range(max(PEOPLE))]

    def one_by_one(count: int, new: int) -> list[Answer]:
        return [model.ask(memory, question, max_new_tokens=new) for memory, question in asked[:count]]

    same = [a.ids for a in one_by_one(len(asked), new)] == [a.ids for a in together(model, asked, new)]
    sides: dict[str, Callable[[], object]] = {}
    for count in PEOPLE:
        sides[f"alone {count}"] = partial(one_by_one, count, new)
        sides[f"batch {count}"] = partial(together, model, asked[:count], new)
    sides["first alone"] = partial(one_by_one, max(PEOPLE), 1)
    sides["first batch"] = partial(together, model, asked, 1)
    seconds = in_turn(sides, repeats)
    one = 1 / seconds["alone 1"]
    rows = {
        str(count): {
            "one after the other, answers/s": round(count / seconds[f"alone {count}"], 3),
            "in one batch, answers/s": round(count / seconds[f"batch {count}"], 3),
            "ratio": round(seconds[f"alone {count}"] / seconds[f"batch {count}"], 2),
            "over one person": round(count / seconds[f"batch {count}"] / one, 2),
        }
        for count in PEOPLE
    }
    most = max(PEOPLE)
    tokens = [len(answer.ids) for answer in one_by_one(most, new)]
    return {
        "people": rows,
        "same answers": same,
        "tokens of an answer, mean": round(statistics.mean(tokens), 2),
        "ms to the first token, alone": round(1000 * seconds["first alone"] / most, 1),
        "ms to the first token, of each in the batch": round(1000 * seconds["first batch"] / most, 1),
        "ms of the tokens behind, of each alone": round(
            1000 * (seconds[f"alone {most}"] - seconds["first alone"]) / most, 1
        ),
        "ms of the tokens behind, of each in the batch": round(
            1000 * (seconds[f"batch {most}"] - seconds["first batch"]) / most, 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--threads", type=int, help="torch threads; torch's default if not given")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measured(MemoryModel.from_pretrained(arguments.model), arguments.repeats, arguments.new)
    result = {"model": arguments.model, "threads": torch.get_num_threads()} | result
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name != "people":
            print(f"{name}: {value}")
            continue
        for count, row in value.items():
            print(f"people {count}: " + ", ".join(f"{what} {number}" for what, number in row.items()))


if __name__ == "__main__":
    main()
