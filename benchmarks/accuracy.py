"""Accuracy against distance, with and without the long-term store: `python benchmarks/accuracy.py`.

Held-out facts are told, prose that was never trained on is read, and every fact is asked at every distance (see
`remanence.arena.retention`). Prints tables; `--out FILE` keeps every single answer as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from itertools import cycle
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import remanence
from remanence import MemoryModel, MemoryStore
from remanence.arena.retention import SYSTEMS, Retention, accuracy, gated, recall
from remanence.core.read import StoredVectors
from remanence.core.writes import Write

GATES = (-99.0, 0.0, 0.5, 1.0, 1.5, 2.0)  # least scores of answers that an application takes
SAVED = 100_000  # tokens between two saves
DISTANCES = (1_000, 4_000, 16_000, 40_000, 80_000, 160_000, 1_000_000)


class Repeated(Retention):
    """Reads so many tokens for real; then what was written of their prose is written again and again, as it is.

    So distances are reached that would take hours to read. The copies are as like each other as the prose that is read
    over and over otherwise, and every one is in the way of the search.
    """

    real = 0

    def _read(self, text: str, source: str) -> None:
        """As of `Retention`; a write of prose once more, when enough was read."""
        if source != "prose" or self._now < self.real:
            super()._read(text, source)
            return
        memory = self.memory
        if not hasattr(self, "_prose"):
            self._prose = cycle([write.index for write in memory.writes if write.label == "prose"])
        index = next(self._prose)
        copied = {name: kept.span(index, index + 1)[0] for name, kept in memory.records.items() if name != "vectors"}
        rows = torch.arange(index * memory.config.K, (index + 1) * memory.config.K)
        stored = StoredVectors(self.model, memory)  # made anew where only tokens are kept
        vectors = torch.stack([stored.at(layer, rows) for layer in range(memory.layers)])
        written = memory.writes[index]
        record = Write(memory.write_count, "prose", 0.0, memory.tokens, written.tokens, written.text)
        memory.add(vectors, copied.pop("keys"), record, copied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="the longest distance")
    parser.add_argument("--distances", type=int, nargs="+", help="tokens behind, instead of the usual ones")
    parser.add_argument("--facts", type=int, default=220)
    parser.add_argument("--newest", type=int, default=100, help="facts told twice with different values")
    parser.add_argument("--unknown", type=int, default=100, help="questions about what was never told")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every answer as JSON")
    parser.add_argument("--real", type=int, help="read so many tokens, then repeat what was written of them")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="of: " + ", ".join(SYSTEMS))
    parser.add_argument("--store-dtype", help="number format of the long-term store: float16, int8, int4 ...")
    parser.add_argument("--store", type=Path, help="save the memory in this folder on the way, so that it needs no RAM")
    arguments = parser.parse_args()

    model = MemoryModel.from_pretrained(arguments.model)
    if arguments.store_dtype:
        model.config = model.config.replace(store_dtype=arguments.store_dtype)
    usual = [d for d in DISTANCES if d < arguments.tokens] + [arguments.tokens]
    distances = sorted(arguments.distances or usual)
    counts = {"facts": arguments.facts, "newest": arguments.newest, "unknown": arguments.unknown}
    run = (Repeated if arguments.real else Retention)(
        model, distances, systems=tuple(arguments.systems), seed=arguments.seed, **counts
    )
    if isinstance(run, Repeated):
        run.real = arguments.real
    store = MemoryStore(arguments.store or ".")
    began = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("tokens", total=1)
        saved = 0.0

        def update(done: float, total: float) -> None:
            nonlocal saved
            progress.update(bar, completed=done, total=total)
            if arguments.store and done - saved >= SAVED:
                store.save("accuracy", run.memory)
                saved = done

        results = run.run(update)
    seconds = time.perf_counter() - began

    columns = {
        "full": ("full", "fact"),
        "no long-term store": ("no store", "fact"),
        "window only": ("window", "fact"),
        "right write forced": ("forced", "fact"),
        "newest of two": ("full", "newest"),
        "abstains": ("full", "unknown"),
    }
    shares = {title: accuracy(results, system, kind) for title, (system, kind) in columns.items()}
    found = recall(results)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    table = Table(title=f"Exact match ({told})")
    for title in ("tokens", *columns, "recall by layer"):
        table.add_column(title, justify="right")
    rows = []
    for distance in distances:
        row = {title: share[distance][0] / share[distance][1] for title, share in shares.items() if distance in share}
        layers = [round(r, 3) for r in found[distance]]
        rows.append({"distance": distance, **{k: round(v, 4) for k, v in row.items()}, "recall": layers})
        values = (f"{row[title]:.1%}" if title in row else "-" for title in columns)
        table.add_row(f"{distance:,}", *values, " ".join(f"{r:.2f}" for r in layers))
    Console(width=150).print(table)
    gates = [{"distance": d, "least": least, **gated(results, d, least)} for d in distances[-2:] for least in GATES]
    table = Table(title="Answers with a lower score taken for 'I don't know'")
    for title in ("tokens", "least score", "full", "newest of two", "abstains"):
        table.add_column(title, justify="right")
    for gate in gates:
        least = "any" if gate["least"] == GATES[0] else f"{gate['least']}"
        kinds = (f"{gate[kind]:.1%}" if kind in gate else "-" for kind in ("fact", "newest", "unknown"))
        table.add_row(f"{gate['distance']:,}", least, *kinds)
    Console(width=150).print(table)
    print(f"{run.memory.bytes_per_write * run.memory.write_count / run.memory.tokens:,.0f} bytes a token in the store")
    print(f"{run.memory.tokens:,} tokens read and {len(results):,} answers in {seconds:.0f} s")
    if arguments.out:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "store")}
        versions = {
            "remanence": remanence.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": sys.version.split()[0], "machine": platform.machine(), "threads": torch.get_num_threads(),
        }  # fmt: skip
        record = {
            "settings": settings, "versions": versions, "fingerprint": model.fingerprint, "rows": rows,
            "gates": gates, "seconds": round(seconds, 1), "answers": [dataclasses.asdict(r) for r in results],
        }  # fmt: skip
        arguments.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
