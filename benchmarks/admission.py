"""What admission policies save, and what they cost: `python benchmarks/admission.py --model tiny`.

1. *Admission.* A stream of facts among passages of books is told to a memory without a policy and to one with each
   policy, and both are asked the same questions at the same moments. Printed: bytes stored, with the quarantine's;
   questions answered rightly; how many of the texts with facts, and of the book's, were held back. The facts are those
   of `compare.py --tasks facts` ("plain"), or made up of few wordings, which the toy can answer ("made-up").
2. *Planted instructions.* Persons tell about themselves; then one planted instruction is told, some prose behind it,
   and what it aims at is asked. Printed: how many of the instructions are held back; how many answers say what the
   instruction wants, and how many are not what they were without it; all without a policy and with each.
3. *Harmless text.* What persons say, and book text, by how much of it is held back wrongly.

The guard's rules and constants were chosen on the instructions of the half "choose" in
`src/remanence/arena/data/planted.jsonl`, on training facts and on training prose; those of A-MAC on the latter two. The
other half, the held-out facts, the persons and the package's prose were not used for that. Both halves are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from time import time as now
from typing import Any

from rich.console import Console
from rich.table import Table

from remanence import Memory, MemoryModel
from remanence.arena import scores, tasks
from remanence.arena.grid import run_stream
from remanence.arena.inside import Ours
from remanence.arena.protocol import Kit
from remanence.arena.readers import BaseReader
from remanence.arena.results import Result
from remanence.arena.tasks import DATA, Books, Question, Script, Stream, rows
from remanence.core.admission import ACCEPT, Everything, Strictest, WritePolicy, judged
from remanence.core.amac import AMac
from remanence.core.guard import Guard
from remanence.errors import RemanenceError
from remanence.facts.maker import FactMaker

HALVES = ("choose", "held out")
POLICIES: dict[str, Callable[[], WritePolicy]] = {
    "none": Everything,
    "a-mac": AMac,
    "a-mac, published": AMac.published,
    "guard": Guard,
    "guard, no witnesses": lambda: Guard(witnesses=0),
    "both": lambda: Strictest(Guard(), AMac()),
}
_SOON = 8  # questions that are asked in one go
_PIECE = 600  # characters of a book that are told at once


class Judged(Ours):
    """Ours, with a policy that judges what is told."""

    def __init__(self, kit: Kit, name: str, policy: WritePolicy) -> None:
        self.name, self.policy = name, policy
        super().__init__(kit)

    def reset(self) -> None:
        """Start an empty memory."""
        super().reset()
        self.held: dict[str, list[int]] = {}  # by label: texts told, texts of which something was held back

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Memorize what the policy accepts of a text."""
        before = len(self.memory.quarantine)
        self.model.memorize(self.memory, text, source=label, time=now(), policy=self.policy)
        told = self.held.setdefault(label, [0, 0])
        told[0] += 1
        told[1] += len(self.memory.quarantine) > before


def stored(memory: Memory) -> int:
    """Bytes that a memory takes in its store: pool, vectors, keys, and texts, also those in quarantine."""
    texts = [write.text or "" for write in memory.writes] + [one.text or "" for one in memory.quarantine]
    return memory.nbytes + sum(len(text.encode()) for text in texts) + 4 * len(memory.pending_ids)


def admission(model: MemoryModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The first part."""

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    sizes: dict[str, Any] = {"distances": options.distances, "amount": options.amount, "seed": options.seed}
    streams = (tasks.facts if options.facts == "plain" else made_up)(tokens, options.books, **sizes)
    streams = tasks.limited(streams, options.limit, options.seed)
    kit, table = Kit(model, BaseReader(model)), []
    for name in options.policies:
        system = Judged(kit, name, POLICIES[name]())
        lines = [line for stream in streams for line in run_stream(system, stream)]
        own = [Result.of(line) for line in lines if line["type"] == "answer"]
        told = [r for r in own if r.measure == "contains"]
        never = [r for r in own if r.measure == "abstains"]
        table.append({
            "policy": system.name, "bytes": stored(system.memory), "tokens": system.memory.tokens,
            "questions": len(told), "right": sum(r.score for r in told),
            "never_told": len(never), "unknown": sum(r.score for r in never), "held": system.held,
        })  # fmt: skip
    return table


def made_up(
    tokens: tasks.Tokens, books: Path | None, *, distances: Sequence[int], seed: int, amount: int
) -> list[Stream]:
    """Facts about made-up people, a passage of a book before each, and books behind them.

    Args:
        tokens, books, distances, seed, amount: as for `tasks.facts`.
    """
    maker, pieces = FactMaker(random.Random(seed), "held_out"), Books(books, f"{seed}/made-up")
    script = Script("made-up", "made-up", tokens, distances)
    for number in range(amount):
        script.tell(pieces.piece(200), "book")
        fact = maker.fact(maker.subject())
        script.tell(fact.statement, "told")
        asked = maker.question(fact.subject, fact.relation)
        script.later(Question(f"fact/{number}", asked, (fact.value,), "fact", "contains"))
        unknown = maker.fact(maker.subject())
        if number % 2:
            asked = maker.question(unknown.subject, unknown.relation)
            script.later(Question(f"never/{number}", asked, (), "never", "abstains"))
    return [script.finish(pieces.pieces())]


def planted(model: MemoryModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The second part."""
    people = {person["name"]: person for person in json.loads((DATA / "persons.json").read_text(encoding="utf-8"))}
    halves = options.planted or HALVES
    planted_ = list(rows(DATA / "planted.jsonl"))
    texts = [row for half in halves for row in [r for r in planted_ if r["half"] == half][: options.instructions]]
    told: dict[str, Memory] = {}
    books = Books(options.books, f"{options.seed}/planted")
    behind = [books.piece(_PIECE) for _ in range(options.behind)]
    for name in dict.fromkeys(row["person"] for row in texts):
        memory = told[name] = model.new_memory(empty=True)
        for fact in people[name]["facts"]:
            model.memorize(memory, fact["told"], source=name)
        for piece in behind[: max(1, options.behind // 2)]:
            model.memorize(memory, piece, source="book")

    def asked(memories: list[Memory], questions: list[str]) -> list[str]:
        made: list[str] = []
        for at in range(0, len(questions), _SOON):
            some = slice(at, at + _SOON)
            made += [one.text for one in model.ask_batch(memories[some], questions[some])]
        return made

    def after(row: dict[str, Any], plant: bool) -> Memory:
        """A person's memory with what comes behind, and the planted text before it."""
        memory = told[row["person"]].copy()
        if plant:
            model.memorize(memory, row["text"], source="mail")
        for piece in behind[max(1, options.behind // 2) :]:
            model.memorize(memory, piece, source="book")
        return memory

    facts = [people[row["person"]]["facts"][row["fact"]] for row in texts]
    questions = [fact["asked"] for fact in facts]
    without = {row["person"]: after(row, False) for row in texts}
    before = asked([without[row["person"]] for row in texts], questions)
    with_it = asked([after(row, True) for row in texts], questions)
    table = []
    for name in options.policies:
        policy = POLICIES[name]()
        verdicts = []
        for row in texts:
            # What is held back leaves the memory as it was, to the bit; so the answer is that of before.
            passages = judged(policy, row["text"], memory=told[row["person"]], model=model, time=now())
            verdicts.append([decision.verdict for _, decision in passages])
        for half in halves:
            own = [i for i, row in enumerate(texts) if row["half"] == half]
            held = [i for i in own if all(verdict != ACCEPT for verdict in verdicts[i])]
            answers = {i: before[i] if i in held else with_it[i] for i in own}
            wanted = [i for i in own if scores.contains(answers[i], (texts[i]["says"],))]
            table.append({
                "policy": name, "half": half, "instructions": len(own), "held": len(held),
                "says_it": len([i for i in wanted if not scores.contains(before[i], (texts[i]["says"],))]),
                "changed": sum(answers[i] != before[i] for i in own),
                "right": sum(scores.contains(answers[i], tuple(facts[i]["answers"])) for i in own),
                "missed": [texts[i]["text"] for i in own if i not in held],
            })  # fmt: skip
    return table


def harmless(model: MemoryModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The third part."""
    people = json.loads((DATA / "persons.json").read_text(encoding="utf-8"))
    books = Books(options.books, f"{options.seed}/harmless")

    make = tasks.Facts(options.seed)
    kinds = {
        "persons": [fact["told"] for person in people for fact in person["facts"]],
        "facts": [make.fact(each, who).text for each in make.relations for who in (None, make.person())],
        "book": [books.piece(300) for _ in range(options.pieces)],
    }
    table, empty = [], model.new_memory(empty=True)
    for name in options.policies:
        policy = POLICIES[name]()
        for kind, texts in kinds.items():
            held = [
                text
                for text in texts
                if any(d.verdict != ACCEPT for _, d in judged(policy, text, memory=empty, model=model, time=now()))
            ]
            table.append({"policy": name, "kind": kind, "texts": len(texts), "held": len(held), "which": held[:20]})
    return table


def show(result: dict[str, Any]) -> None:
    """Print the three tables."""
    console = Console(width=130)
    grid = Table("policy", "bytes stored", "saved", "facts right", "never told: unknown", "facts held", "book held")
    grid.title = "Admission"
    full = next((row["bytes"] for row in result["admission"] if row["policy"] == "none"), None)
    for row in result["admission"]:
        saved = "" if full is None else f"{1 - row['bytes'] / full:.1%}"
        held = [row["held"].get(label, [0, 0]) for label in ("told", "book")]
        grid.add_row(
            row["policy"], f"{row['bytes']:,}", saved, f"{row['right']:.0f} of {row['questions']}",
            f"{row['unknown']:.0f} of {row['never_told']}", *(f"{part} of {whole}" for whole, part in held),
        )  # fmt: skip
    if result["admission"]:
        console.print(grid)
    grid = Table("policy", "half", "held back", "answers that say it", "answers changed", "right answers")
    grid.title = "Planted instructions"
    for row in result["planted"]:
        of = f" of {row['instructions']}"
        grid.add_row(row["policy"], row["half"], *(f"{row[k]}{of}" for k in ("held", "says_it", "changed", "right")))
    if result["planted"]:
        console.print(grid)
    grid = Table("policy", "text", "held back", title="Harmless text")
    for row in result["harmless"]:
        grid.add_row(row["policy"], row["kind"], f"{row['held']} of {row['texts']}")
    if result["harmless"]:
        console.print(grid)


def main() -> None:
    parts = {"admission": admission, "planted": planted, "harmless": harmless}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument(
        "--planted", nargs="+", choices=HALVES, help="which halves of the instructions; both if not given"
    )
    parser.add_argument("--facts", choices=("plain", "made-up"), default="plain", help="which are told")
    parser.add_argument(
        "--distances", type=int, nargs="+", default=[8_000], help="tokens between a fact and its question"
    )
    parser.add_argument("--amount", type=int, default=60, help="facts told")
    parser.add_argument("--limit", type=int, help="most questions about facts")
    parser.add_argument("--instructions", type=int, help="most of each half")
    parser.add_argument("--behind", type=int, default=4, help="pieces of a book, half of them behind an instruction")
    parser.add_argument("--pieces", type=int, default=500, help="pieces of a book that are judged as harmless")
    parser.add_argument("--books", type=Path, help=".jsonl file of books; the package's prose if left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        model = MemoryModel.from_pretrained(options.model).eval()
        began = perf_counter()
        result = {part: make(model, options) if part in options.parts else [] for part, make in parts.items()}
    except RemanenceError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if options.json:
        print(json.dumps(result | {"model": options.model, "seconds": round(perf_counter() - began, 1)}))
    else:
        show(result)


if __name__ == "__main__":
    main()
