"""Memory beside what people use today, on one reader: words, sentence vectors, both, the whole text, nothing.

    python benchmarks/compare.py --model runs/smol/model --tasks persons facts --books books.jsonl.zst
    python benchmarks/compare.py --model runs/smol/model --tasks squad --squad dev-v1.1.jsonl.gz --limit 50
    python benchmarks/compare.py --rescore kept.json

Every system is told the same texts and asked the same questions at the same moments (`remanence.arena`). Prints tables;
`--json FILE` keeps every answer and what was read for it. Ctrl-C prints and keeps what was done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import remanence
from remanence import MemoryConfig, MemoryModel
from remanence.arena import tasks
from remanence.arena.compare import Result, run, scored, summary
from remanence.arena.readers import READERS, BaseReader
from remanence.arena.systems import SYSTEMS, build
from remanence.arena.tasks import Stream
from remanence.errors import RemanenceError
from remanence.files import write_text

TASKS = ("persons", "facts", "squad", "nq", "locomo", "general")
DEFAULT = ("none", "bm25", "minilm", "fused", "ours", "oracle")
_SAVED_S = 60.0  # how often the results so far are kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or name for MemoryModel.from_pretrained")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["persons"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(DEFAULT))
    parser.add_argument("--reader", choices=("base", "ours", "both"), default="base", help="who reads found text")
    parser.add_argument("--k", type=int, nargs="+", help="passages that text systems read (1, 4, 5 unless given)")
    parser.add_argument("--distances", type=int, nargs="+", help="tokens between evidence and question")
    parser.add_argument("--amount", type=int, help="facts told (100), or passages told and asked for (200)")
    parser.add_argument("--limit", type=int, help="most questions of a task, drawn at random")
    parser.add_argument("--replay-tokens", type=int, default=7000, help="the longest text that is replayed whole")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--books", type=Path, help=".jsonl file of books; the package's prose if left out")
    parser.add_argument("--squad", type=Path, help="SQuAD as .jsonl, a paragraph a row")
    parser.add_argument("--nq", type=Path, help="Natural Questions as .jsonl, a question with its passage a row")
    parser.add_argument("--locomo", type=Path, help="LoCoMo as .jsonl, a conversation a row")
    parser.add_argument("--store-dtype", help="how the long-term store is kept, if not as the model has it")
    parser.add_argument("--dtype", help="number format of the weights, if not as they are saved")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every answer here")
    parser.add_argument("--rescore", type=Path, help="score the answers of such a file again, and print tables only")
    options = parser.parse_args()
    if not options.model and not options.rescore:
        parser.error("give --model, or --rescore FILE.")
    try:
        if options.rescore:
            show(summary(rescored(options.rescore)))
        else:
            compare(options)
    except RemanenceError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def compare(options: argparse.Namespace) -> None:
    """Run what the options ask for."""
    loaded: dict[str, Any] = {"dtype": options.dtype} if options.dtype else {}
    model = MemoryModel.from_pretrained(options.model, **loaded).eval()
    if options.store_dtype:
        model.config = model.config.replace(store_dtype=options.store_dtype)
        model._fingerprint = ""  # of other settings
    most = {"max_new_tokens": options.max_new_tokens}
    base = BaseReader(model, **most)
    names = ["base", "ours"] if options.reader == "both" else [options.reader]
    readers = [base if name == "base" else READERS[name](model, **most) for name in names]
    systems = build(
        options.systems, model, readers, ks=options.k or (1, 4, 5), replay_tokens=options.replay_tokens,
        untrained=lambda: untrained(model), **most,
    )  # fmt: skip
    results: list[Result] = []
    texts: dict[str, dict[int, str]] = {}
    began = saved = time.perf_counter()
    console = Console(stderr=True)

    def keep(force: bool = False) -> None:
        nonlocal saved
        if options.json and (force or time.perf_counter() - saved > _SAVED_S):
            saved = time.perf_counter()
            write_text(options.json, json.dumps(record(options, model, results, texts, saved - began)) + "\n")

    def each(made: list[Result]) -> None:
        results.extend(made)
        keep()
        console.print(f"{made[0].task}: {len(results):,} answers in {time.perf_counter() - began:.0f} s")

    try:
        for task in options.tasks:
            streams = tasks.limited(streams_of(task, options, model), options.limit, options.seed)
            run(model, streams, systems, base=base, each=each, texts=texts)
    except KeyboardInterrupt:
        console.print("stopped; this is what was done.")
    keep(force=True)
    show(summary(results))


def rescored(path: Path) -> list[Result]:
    """The results of a file that was kept, scored as now."""
    try:
        answers: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["answers"]
        for row in answers:
            row |= {name: tuple(row[name]) for name in ("answers", "stale")}
        return [scored(Result(**row)) for row in answers]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise remanence.InputError(f"{path} is not what --json wrote: {error}") from error


def untrained(model: MemoryModel) -> MemoryModel:
    """Verbatim memory on the bare base, of the same sizes."""
    c = model.config
    config = MemoryConfig.verbatim(
        chunk_tokens=c.chunk_tokens, pool_tokens=c.N // c.K * c.chunk_tokens, K0=c.K0 // c.K * c.chunk_tokens,
        window_tokens=c.window_tokens,
    )  # fmt: skip
    return MemoryModel(model.base, model.tokenizer, config, name="untrained").eval()


def streams_of(task: str, options: argparse.Namespace, model: MemoryModel) -> list[Stream]:
    """The streams of a task."""

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)

    seed: dict[str, Any] = {"seed": options.seed}
    sizes = {k: v for k, v in {"distances": options.distances, "amount": options.amount}.items() if v is not None}
    if task in ("squad", "nq", "locomo"):
        path = getattr(options, task)
        if path is None:
            raise remanence.ConfigError(f"task {task} needs its file: --{task} FILE")
        if task == "locomo":
            return tasks.locomo(path, tokens)
        return tasks.passages(task, path, tokens, options.books, **seed, **sizes)
    if task == "facts":
        return tasks.facts(tokens, options.books, **seed, **sizes)
    made: Callable[..., list[Stream]] = tasks.persons if task == "persons" else tasks.general
    return made(tokens, options.books, **seed)


def record(
    options: argparse.Namespace,
    model: MemoryModel,
    results: list[Result],
    texts: dict[str, dict[int, str]],
    seconds: float,
) -> dict[str, Any]:
    """What is kept of a run."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"}
    versions = {
        "remanence": remanence.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": sys.version.split()[0], "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    return {
        "settings": settings, "versions": versions, "memory": model.config.to_dict(), "fingerprint": model.fingerprint,
        "seconds": round(seconds, 1), "rows": summary(results), "passages": texts,
        "answers": [dataclasses.asdict(result) for result in results],
    }  # fmt: skip


def show(table: list[dict[str, Any]]) -> None:
    """Print one table a task: a row a system, a column a kind and distance."""
    for task in dict.fromkeys(row["task"] for row in table):
        own = [row for row in table if row["task"] == task]
        columns = sorted(dict.fromkeys((row["kind"], row["distance"]) for row in own))
        amounts = {(row["kind"], row["distance"]): row["questions"] for row in own}
        grid = Table(title=f"{task}, %")
        grid.add_column("system")
        grid.add_column("reader")
        for kind, distance in columns:
            behind = f"\n{distance:,} tokens" if distance else ""
            grid.add_column(f"{kind}{behind}\n({amounts[kind, distance]})", justify="right")
        grid.add_column("evidence\nread", justify="right")
        grid.add_column("tokens\nread", justify="right")
        for system, reader in dict.fromkeys((row["system"], row["reader"]) for row in own):
            mine = [row for row in own if (row["system"], row["reader"]) == (system, reader)]
            by = {(row["kind"], row["distance"]): row for row in mine}
            cells = [_cell(task, by.get(column)) for column in columns]
            grid.add_row(system, reader, *cells, _mean(mine, "found", percent=True), _mean(mine, "read_tokens"))
        Console(width=max(80, 34 + 18 * len(columns) + 20)).print(grid)


def _cell(task: str, row: dict[str, Any] | None) -> str:
    """The main score; for passages F1 and exact match. A dash: the system could not be asked."""
    if row is None or row["score"] is None:
        return "-"
    text = f"{100 * row['score']:.1f}"
    if task in ("squad", "nq"):
        text += f" F1, {100 * row['exact']:.1f} EM"
    return text + (f" (of {row['questions'] - row['impossible']})" if row["impossible"] else "")


def _mean(rows: list[dict[str, Any]], name: str, *, percent: bool = False) -> str:
    """The mean over all questions."""
    known = [(row[name], row["questions"] - row["impossible"]) for row in rows if row[name] is not None]
    if not known:
        return "-"
    mean = sum(value * n for value, n in known) / sum(n for _, n in known)
    return f"{100 * mean:.1f}" if percent else f"{mean:.0f}"


if __name__ == "__main__":
    main()
