"""What answering several people in one batch brings: `python benchmarks/batching.py`.

Each of 1, 2, 4 and 8 people has a memory of their own with a few facts, and asks for one of them. The same questions
are answered one after the other and in one batch, in turn, several times; printed are answers a second (medians), their
ratio, and the batch's answers a second over those of one person. Then, for the largest number, what one person's answer
spends its time on: searching and reading the question until there is a first token, and the tokens after it; and what
a token costs for one and for all. Answers are compared: both ways must give the same ones.

Last comes what an answer is made of, one person alone and the largest number in a batch: milliseconds of each part, its
share, and what goes through the model in it: passes an answer (one for all counts its part for each), and tokens an
answer, counted where they enter the layers. A pass that ends before the last layer counts as the share of the layers
that it ran through. Of the ratio only generating can grow with the number of people, as it is bound by reading the
weights: reading questions keeps the processor busy as it is. So the most that any number of people can reach is the
whole of one person's time over its time for reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from speed import in_turn

from remanence import Answer, Memory, MemoryModel
from remanence.core import batching
from remanence.core import model as core_model
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


class Profile:
    """Where the time of answers goes, and what goes through the model: by part, while `watching` is entered.

    Attributes:
        seconds, passes, tokens: by part. A part within another is not counted in that one.
    """

    PARTS = ("search", "look at writes", "read the question", "generate", "rest")

    def __init__(self, model: MemoryModel) -> None:
        self.model = model
        self.seconds, self.passes, self.tokens = (dict.fromkeys(self.PARTS, 0.0) for _ in range(3))
        self._part, self._since = "rest", 0.0

    def _enter(self, part: str) -> str:
        """Another part begins; the one before."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            before = self._enter(part)
            try:
                return work(*args, **options)
            finally:
                self._enter(before)

        return timed

    def _count(self, _: Any, args: tuple[Any, ...], options: dict[str, Any], *, share: float) -> None:
        rows, tokens = (args[0] if args else options["hidden_states"]).shape[:2]
        self.passes[self._part] += share
        self.tokens[self._part] += share * rows * tokens

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What answers in this block is counted."""
        layers = self.model.attachment.layers
        count = partial(self._count, share=1 / len(layers))
        row, group = batching._Row, batching._Group
        with ExitStack() as stack:
            for owner, name, part in (
                (self.model, "search", "search"),
                (core_model, "look", "look at writes"),
                (row, "begin", "read the question"),
                (group, "go_on", "generate"),
            ):
                stack.enter_context(patch.object(owner, name, self._timed(part, getattr(owner, name))))
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(count, with_kwargs=True).remove)
            self._part, self._since = "rest", time.perf_counter()
            yield
            self._enter("rest")

    def table(self, answers: int) -> dict[str, dict[str, float]]:
        """Each part, an answer."""
        whole = sum(self.seconds.values())
        return {
            part: {
                "ms": round(1000 * self.seconds[part] / answers, 1),
                "share": round(self.seconds[part] / whole, 3),
                "passes": round(self.passes[part] / answers, 2),
                "tokens": round(self.tokens[part] / answers, 1),
            }
            for part in self.PARTS
        }


def profiled(model: MemoryModel, asked: list[tuple[Memory, str]], repeats: int, new: int) -> dict[str, Any]:
    """What an answer is made of, alone and in one batch; and the most that a batch can bring."""
    alone, batch = Profile(model), Profile(model)
    for _ in range(repeats):  # in turn, so that both meet the same machine
        with alone.watching():
            for one in asked:
                together(model, [one], new)
        with batch.watching():
            together(model, asked, new)
    spent, generating = sum(alone.seconds.values()), alone.seconds["generate"]
    return {
        "one person": alone.table(repeats * len(asked)),
        "in one batch": batch.table(repeats * len(asked)),
        "most over one person, if generating were free": round(spent / (spent - generating), 2),
    }


def measured(model: MemoryModel, asked: list[tuple[Memory, str]], repeats: int, new: int) -> dict[str, Any]:
    """Answers a second, and their time to the first token and after it."""

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
    parser.add_argument("--only-profile", action="store_true", help="only what an answer is made of")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = MemoryModel.from_pretrained(arguments.model)
    asked = [person(model, number) for number in range(max(PEOPLE))]
    result: dict[str, Any] = {"model": arguments.model, "threads": torch.get_num_threads()}
    if arguments.only_profile:
        together(model, asked[:1], arguments.new)  # to be warm
    else:
        result |= measured(model, asked, arguments.repeats, arguments.new)
    result["profile"] = profiled(model, asked, arguments.repeats, arguments.new)
    if arguments.json:
        print(json.dumps(result))
        return
    profile = result.pop("profile")
    for name, value in result.items():
        if name != "people":
            print(f"{name}: {value}")
            continue
        for count, row in value.items():
            print(f"people {count}: " + ", ".join(f"{what} {number}" for what, number in row.items()))
    for name, value in profile.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
            continue
        print(f"an answer, {name}:")
        print(f"  {'':<20}{'ms':>9}{'share':>9}{'passes':>9}{'tokens':>9}")
        for part, row in value.items():
            print(f"  {part:<20}{row['ms']:>9.1f}{row['share']:>9.1%}{row['passes']:>9.2f}{row['tokens']:>9.1f}")


if __name__ == "__main__":
    main()
