"""What each of our changes to the papers' training brings: stage 3 without one of them at a time.

    python benchmarks/improvements.py measure --start runs/ablation/model-stage2     47 minutes on two cores
    python benchmarks/improvements.py show                                           table from the committed figures

Every run begins with the same model, that of stage 2 in `benchmarks/ablation.py`, has the same number of steps, and
differs in the settings that its row names. All but one have writes of earlier batches in their pasts, as stage 3 had
until this table showed that they do harm. What is trained and measured already is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ablation import add_questions, measured, perplexity, share
from plain import PROSE
from rich.console import Console
from rich.table import Table

from remanence import MemoryModel
from remanence.train.run import launch, stages_run

FIGURES = Path(__file__).parent / "results" / "improvements.json"
WITHOUT = {
    "nothing left out": [],
    "score of whole writes (papers: of vectors)": [
        "memory.key_group=1", "memory.recency=0.0", "memory.score_bias=0.0", "memory.score=vector",
        "stage3.retriever_weight=1.0",
    ],
    "bias of slots by score": ["memory.score_bias=0.0"],
    "rule for newer answers": ["memory.recency=0.0"],
    "right write forced for some questions": ["stage3.force=0.0"],
    "writes of earlier batches": ["stage3.earlier=0"],
    "questions about text in the window": ["stage3.in_context=0.0", "stage3.pending=0.0"],
    "reader held to its base on text": ["stage3.keep_weight=0.0"],
}  # fmt: skip


def measure(options: argparse.Namespace) -> None:
    """Train and measure every row that has no figures yet."""
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    settings = {k: getattr(options, k) for k in ("steps", "tokens", "facts", "newest", "unknown", "seed")}
    if record and record["settings"] != settings:
        raise SystemExit(f"{options.out} has figures of other settings; give another --out.")
    rows: dict[str, Any] = record.get("rows", {})
    base = record.get("base") or round(perplexity(MemoryModel.from_pretrained(options.start), None), 3)  # frozen in all
    for number, (name, changes) in enumerate(WITHOUT.items()):
        if name in rows:
            continue
        began = time.perf_counter()
        changes = [f"stage3.steps={options.steps}", "stage3.earlier=64", *changes]
        run = stages_run(str(options.start), [], ["stage3"], prose=PROSE, changes=changes)
        trained = launch(run, options.runs / str(number), processes=2)
        model = MemoryModel.from_pretrained(trained["model"])
        found = measured(model, ("full", "forced"), options)
        rows[name] = {
            "changes": changes, **found["full"], "forced": found["forced"]["fact"],
            "perplexity": round(perplexity(model, model.new_memory()), 3),
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        record = {"settings": settings, "base": base, "rows": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(options)


def show(options: argparse.Namespace) -> None:
    """Table of the figures."""
    record = json.loads(options.out.read_text(encoding="utf-8"))
    settings, rows = record["settings"], record["rows"]
    distances = next(iter(rows.values()))["fact"]
    last = max(distances, key=int)
    table = Table(title=f"{settings['steps']} steps of stage 3, {settings['facts']} held-out facts a distance")
    ends = list(dict.fromkeys(d for d in ("100", "1000", last) if d in distances))
    for name in ("left out", *(f"{int(d):,} tokens" for d in ends), "right write forced", "newest of two", "abstains",
                 "right write read, mean of layers", "perplexity, empty memory"):  # fmt: skip
        table.add_column(name, justify="right")
    for name, row in rows.items():
        shares = [row["fact"][d] for d in ends] + [row["forced"][last], row["newest"][last], row["unknown"][last]]
        recall = row["recall"][last]
        table.add_row(
            name, *map(share, shares), f"{sum(recall) / len(recall):.2f}",
            f"{row['perplexity']:.1f} ({row['perplexity'] / record['base'] - 1:+.1%})",
        )  # fmt: skip
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("--start", type=Path, default=Path("runs/ablation/model-stage2"), help="the model of stage 2")
    parser.add_argument("--runs", type=Path, default=Path("runs/improvements"), help="folder of the training runs")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the figures, JSON")
    parser.add_argument("--steps", type=int, default=120)
    add_questions(parser, tokens=16_000, seed=5)  # not the seed that ablation.py measures with
    options = parser.parse_args()
    {"measure": measure, "show": show}[options.what](options)


if __name__ == "__main__":
    main()
