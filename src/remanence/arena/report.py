"""What the cells of a grid say: means with intervals, tests between systems, costs, checks; as Markdown tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .checks import ENDING
from .grid import CONDITIONS, cell_files, read_cell
from .results import Result

_DRAWS = 2000  # of each bootstrap
_LEVEL = 0.95


@dataclass
class CellResults:
    """One cell's file: what it ran with (its first line), its answers, what it cost, and its checks if it has any."""

    about: dict[str, Any]
    results: list[Result]
    costs: list[dict[str, Any]]
    checks: dict[str, Any] | None

    @property
    def task(self) -> str:
        """The task, as it was given."""
        return str(self.about["task"])

    @property
    def title(self) -> str:
        """The system's name in tables."""
        return str(self.about["title"])

    @property
    def system(self) -> str:
        """The system, without its condition."""
        return str(self.about["system"])

    @property
    def condition(self) -> str:
        """What was told in place of the stream."""
        return str(self.about["condition"])

    @cached_property
    def asked(self) -> list[Result]:
        """The answers to questions that could be asked."""
        return [r for r in self.results if r.prediction is not None]

    @cached_property
    def cost(self) -> dict[str, float]:
        """What it took: `observe_s` for 1,000 tokens told, `observe_calls` for the same, `answer_s`, `answer_calls`,
        `context_tokens` a question, `bytes` a token told, `peak_ram`, `peak_gpu`."""
        streams = [line for line in self.costs if line["type"] == "stream"]
        moments = [line for line in self.costs if line["type"] == "moment"]
        tokens = sum(line["tokens"] for line in streams) or 1
        questions = sum(line["questions"] for line in moments) or 1
        return {
            "observe_s": 1000 * sum(line["observe_s"] for line in streams) / tokens,
            "observe_calls": 1000 * sum(line["observe_calls"] for line in streams) / tokens,
            "answer_s": sum(line["seconds"] for line in moments) / questions,
            "answer_calls": sum(line["calls"] for line in moments) / questions,
            "context_tokens": sum(line["context_tokens"] for line in moments) / questions,
            "bytes": sum(line["bytes"] for line in streams) / tokens,
            "peak_ram": max((line["peak_ram"] for line in streams), default=0),
            "peak_gpu": max((line["peak_gpu"] for line in streams), default=0),
        }

    def latency(self) -> dict[int, float]:
        """Seconds a question, by distance."""
        spent: dict[int, list[float]] = {}
        for line in self.costs:
            if line["type"] == "moment":
                total = spent.setdefault(line["distance"], [0.0, 0.0])
                total[0] += line["seconds"]
                total[1] += line["questions"]
        return {distance: seconds / n for distance, (seconds, n) in sorted(spent.items()) if n}


def load(folder: Path) -> list[CellResults]:
    """All finished cells of a folder.

    Raises:
        InputError: there are none, or a file is damaged.
    """
    cells = []
    for path in cell_files(folder):
        about, results, costs = read_cell(path)
        beside = path.with_suffix(f"{ENDING}.json")
        checks = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        cells.append(CellResults(about, results, costs, checks))
    return sorted(cells, key=lambda c: (c.task, _order(c)))


def _order(cell: CellResults) -> tuple[int, str]:
    """Controls first, then memory inside the model, then what else there is."""
    from .registry import SYSTEMS

    names = list(SYSTEMS)
    name = cell.system.partition(":")[0]
    return (names.index(name) if name in names else len(names), cell.title)


# Statistics -----------------------------------------------------------------------------------------------------------


def unit(r: Result) -> tuple[str, str]:
    """What is drawn when answers are drawn: a question, at all its distances, for these depend on each other."""
    return r.stream, r.question.rpartition("@")[0] or r.question


def interval(results: Sequence[Result], seed: int = 1) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean score, by percentiles; questions are drawn with all their distances."""
    groups: dict[tuple[str, str], list[float]] = {}
    for r in results:
        groups.setdefault(unit(r), []).append(r.score)
    sums = np.array([sum(g) for g in groups.values()])
    sizes = np.array([len(g) for g in groups.values()])
    drawn = np.random.default_rng(seed).integers(0, len(sums), (_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Test:
    """One system against another on the questions that both were asked. difference: of the means, first less second.
    p: two-sided. how: "McNemar" (exact, where scores are 0 or 1 and no question comes twice) or "bootstrap" (paired).
    """

    difference: float
    p: float
    how: str
    questions: int


def paired(one: Sequence[Result], other: Sequence[Result], seed: int = 1) -> Test | None:
    """Test whether two systems differ on the same questions; None if they share none."""
    theirs = {(r.stream, r.question, r.asked): r.score for r in other}  # names of other data may be the same
    pairs = [(r, theirs[asked]) for r in one if (asked := (r.stream, r.question, r.asked)) in theirs]
    if not pairs:
        return None
    units = [unit(r) for r, _ in pairs]
    difference = sum(r.score - score for r, score in pairs) / len(pairs)
    if len(set(units)) == len(units) and all(x in (0.0, 1.0) for r, score in pairs for x in (r.score, score)):
        better = sum(r.score > score for r, score in pairs)
        worse = sum(r.score < score for r, score in pairs)
        return Test(difference, mcnemar(better, worse), "McNemar", len(pairs))
    groups: dict[tuple[str, str], list[float]] = {}
    for key, (r, score) in zip(units, pairs, strict=True):
        groups.setdefault(key, []).append(r.score - score)
    sums, sizes = np.array([sum(g) for g in groups.values()]), np.array([len(g) for g in groups.values()])
    drawn = np.random.default_rng(seed).integers(0, len(sums), (_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    # How often the drawn difference lies as far from the measured one as that from none; +1: never quite impossible.
    p = (1 + int((np.abs(means - difference) >= abs(difference) - 1e-12).sum())) / (1 + _DRAWS)
    return Test(difference, min(1.0, p), "bootstrap", len(pairs))


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p of McNemar's test: of as uneven a split of the questions on which two systems differ."""
    n, k = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def holm(ps: Sequence[float]) -> list[float]:
    """Ps of several tests, made larger so that all hold together (Holm 1979)."""
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = most
    return adjusted


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table. head: of the columns. rows: cells as text, the system's name first. note: a line below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown, without its title."""
        lines = ["| " + " | ".join(self.head) + " |", "|:--" + "|--:" * (len(self.head) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "") + "\n"


def of_task(cells: Sequence[CellResults], task: str) -> list[CellResults]:
    """The cells of a task. Raises `InputError` if there are none."""
    own = [cell for cell in cells if cell.task == task]
    if not own:
        raise InputError(
            f"there are no cells of task {task}; of {', '.join(dict.fromkeys(c.task for c in cells))} are."
        )
    return own


def _normal(cells: Sequence[CellResults]) -> list[CellResults]:
    return [cell for cell in cells if cell.condition == "normal"]


def columns(cells: Sequence[CellResults]) -> list[tuple[str, int]]:
    """Kinds and distances of a task's questions."""
    return sorted({(r.kind, r.distance) for cell in cells for r in cell.results})


def score_table(cells: Sequence[CellResults], of: str = "") -> Table:
    """A row a system: the mean score in percent over all, with its interval, and by kind and distance.

    Args:
        cells: of a task.
        of: only questions of this kind count, or of those that begin with it and a comma; then by distance alone.

    Raises:
        InputError: no question is of that kind.
    """
    own = [replace(cell, results=[r for r in cell.results if _is_of(r.kind, of)]) for cell in _normal(cells)]
    if of and not any(cell.results for cell in own):
        kinds = dict.fromkeys(r.kind for cell in _normal(cells) for r in cell.results)
        raise InputError(f"no question is of the kind {of!r}; of {', '.join(kinds)} are.")
    shown = sorted({("" if of else kind, distance) for kind, distance in columns(own)})
    shown = shown if len(shown) > 1 else []
    head = ["system", "all", *(_column(*column) for column in shown), "evidence read"]
    rows = []
    for cell in own:
        by: dict[tuple[str, int], list[Result]] = {}
        for r in cell.asked:
            by.setdefault(("" if of else r.kind, r.distance), []).append(r)
        row = [cell.title, _with_interval(cell.asked), *(_percent([r.score for r in by.get(c, [])]) for c in shown)]
        row.append(_percent([r.found for r in cell.asked if r.found is not None]))
        rows.append(row)
    asked = len(own[0].results) if own else 0
    note = f"Percent, {asked:,} answers a system; 95 % bootstrap intervals over questions."
    for cell in own:
        if missing := len(cell.results) - len(cell.asked):
            note += (
                f" {cell.title} could not be asked {missing:,} of {len(cell.results):,}, and is scored on the others."
            )
    return Table("Score", head, rows, note)


def _is_of(kind: str, wanted: str) -> bool:
    return not wanted or kind == wanted or kind.startswith(f"{wanted},")


def _column(kind: str, distance: int) -> str:
    return ", ".join(filter(None, (kind, f"{distance:,} tokens" if distance else "")))


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def _with_interval(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    low, high = interval(results)
    return f"{_percent([r.score for r in results])} ({100 * low:.1f}-{100 * high:.1f})"


def cost_table(cells: Sequence[CellResults]) -> Table:
    """A row a system: what observing and answering cost, and what is stored."""
    head = [
        "system", "score", "observe, s a 1,000 tokens", "reader calls a 1,000 tokens", "answer, s", "reader calls",
        "context tokens", "bytes a token", "peak RAM, MB",
    ]  # fmt: skip
    rows = []
    for cell in _normal(cells):
        c = cell.cost
        rows.append(
            [
                cell.title, _percent([r.score for r in cell.asked]), f"{c['observe_s']:.3f}",
                f"{c['observe_calls']:.2f}", f"{c['answer_s']:.3f}", f"{c['answer_calls']:.2f}",
                f"{c['context_tokens']:.0f}", f"{c['bytes']:,.1f}", f"{c['peak_ram'] / 1e6:,.0f}",
            ]
        )  # fmt: skip
    made = {json.dumps(cell.about["hardware"], sort_keys=True): cell.about["hardware"] for cell in cells}
    where = "; ".join(_machine(about) for about in made.values())
    return Table("Cost", head, rows, f"On {where}. Peak RAM is of the whole process, model and all.")


def _machine(about: dict[str, Any]) -> str:
    gpu = f", {about['gpu']}" if about.get("gpu") else ""
    return f"{about.get('processor') or about['machine']}, {about['cores']} cores, {about['threads']} threads{gpu}"


def test_table(cells: Sequence[CellResults], against: str) -> Table:
    """A row a system: how much better than another one it is, and whether that could be chance.

    Raises:
        InputError: no such system among the cells.
    """
    own = _normal(cells)
    base = next((cell for cell in own if cell.title == against), None)
    if base is None:
        raise InputError(f"no cell is of {against}; compare with one of {', '.join(c.title for c in own)}.")
    tests = [(cell.title, paired(cell.asked, base.asked)) for cell in own if cell is not base]
    known = [(title, test) for title, test in tests if test is not None]
    corrected = holm([test.p for _, test in known])
    rows = [
        [title, f"{100 * test.difference:+.1f}", _p(test.p), _p(p), test.how, f"{test.questions:,}"]
        for (title, test), p in zip(known, corrected, strict=True)
    ]
    head = ["system", f"points more than {against}", "p", "p, all rows together", "test", "answers"]
    return Table(f"Against {against}", head, rows, "Paired on the same questions; the second p is Holm's.")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def check_table(cells: Sequence[CellResults]) -> Table | None:
    """A row a system: its score as it is, and where it ought to be low; and whether it is repeatable. None if nothing
    was checked."""
    own = _normal(cells)
    others = {(c.system, c.condition): c for c in cells if c.condition != "normal"}
    rows = []
    for cell in own:
        if cell.checks is None and not any((cell.system, c) in others for c in CONDITIONS[1:]):
            continue
        row = [cell.title, _percent([r.score for r in cell.asked])]
        for condition in CONDITIONS[1:]:
            other = others.get((cell.system, condition))
            row.append(_percent([r.score for r in other.asked]) if other else "-")
        found = cell.checks or {}
        shuffled = found.get("shuffled_answers")
        row.append("-" if shuffled is None else f"{100 * shuffled:.1f}")
        row += [{True: "yes", False: "NO", None: "-"}[found.get(key)] for key in ("repeats", "separate", "kept")]
        rows.append(row)
    if not rows:
        return None
    head = [
        "system", "score", "nothing told", "words shuffled", "somebody else's", "answers shuffled",
        "same seed, same answers", "nothing leaks between samples", "same after save and load",
    ]  # fmt: skip
    note = "A score that does not fall where it ought to is no memory's: the reader knows it, guesses it, or abstains."
    return Table("Checks", head, rows, note)


TABLES: dict[str, Callable[..., Table | None]] = {
    "score": score_table, "cost": cost_table, "tests": test_table, "checks": check_table,
}  # fmt: skip


def tables(cells: Sequence[CellResults], against: str = "none") -> list[Table]:
    """All tables of a task's cells."""
    made: list[Table | None] = [score_table(cells)]
    if any(cell.title == against for cell in _normal(cells)):
        made.append(test_table(cells, against))
    made += [cost_table(cells), check_table(cells)]
    return [table for table in made if table is not None]


def markdown(cells: Sequence[CellResults], against: str = "none") -> str:
    """All tables of all tasks."""
    parts = []
    for task in dict.fromkeys(cell.task for cell in cells):
        parts.append(f"## {task}\n")
        for table in tables(of_task(cells, task), against):
            parts.append(f"### {table.title}\n\n{table.markdown()}")
    return "\n".join(parts)


# Tables in documents --------------------------------------------------------------------------------------------------

_BLOCK = re.compile(
    r"^```.*?^```|"  # code is left as it is
    r"(<!-- arena: (?P<folder>\S+) (?P<task>\S+) (?P<table>\w+)(?P<options>(?: \w+=\S+)*) -->\n)(?P<body>.*?)"
    r"(<!-- /arena -->)",
    re.DOTALL | re.MULTILINE,
)


_OPTIONS = {"tests": {"against": "none"}, "score": {"of": ""}}  # of a table in a document, and what they are usually


def with_tables(text: str, root: Path) -> str:
    """A document with its tables made anew from results.

    They stand between `<!-- arena: FOLDER TASK TABLE -->` and `<!-- /arena -->`; TABLE is one of `TABLES`. Behind it
    may stand `only=SYSTEM;SYSTEM;...`, for these rows alone and in this order; `against=SYSTEM` for "tests"; and
    `of=KIND` for the "score" of one kind of questions.

    Args:
        text: of the document.
        root: what folders are relative to.

    Raises:
        InputError: no such results, table or option.
    """

    def made(found: re.Match[str]) -> str:
        kind = found["table"]
        if kind is None:
            return found[0]
        if kind not in TABLES:
            raise InputError(f"there is no table {kind!r}; choose one of {', '.join(TABLES)}.")
        options = dict(option.split("=", 1) for option in found["options"].split())
        cells = of_task(load(root / found["folder"]), found["task"])
        if only := options.pop("only", ""):
            cells = _these(cells, only.split(";"))
        own = [options.pop(name, usual) for name, usual in _OPTIONS.get(kind, {}).items()]
        if options:
            raise InputError(f"a table {kind!r} has no option {', '.join(options)}.")
        table = TABLES[kind](cells, *own)
        if table is None:
            raise InputError(f"{found['folder']} has no {kind} of {found['task']}.")
        return f"{found[1]}\n{table.markdown()}\n<!-- /arena -->"

    return _BLOCK.sub(made, text)


def _these(cells: Sequence[CellResults], titles: Sequence[str]) -> list[CellResults]:
    """The cells of some systems, in this order. Raises `InputError` for one that there is not."""
    if missing := set(titles) - {cell.title for cell in cells}:
        raise InputError(f"no cell is of {', '.join(sorted(missing))}.")
    return [cell for title in titles for cell in cells if cell.title == title]
