"""The demo: what `remanence demo` runs, prints and draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models.pretrained import MemoryModel
from .retention import Result, Retention, accuracy

_DISTANCES = (1_000, 4_000, 16_000, 40_000, 80_000)
_SYSTEMS = {"full": "with long-term memory (M+)", "no store": "without it (MemoryLLM)", "window": "sliding window only"}


def run(
    model: MemoryModel,
    tokens: int,
    *,
    seed: int = 7,
    facts: int = 40,
    progress: Callable[[int, int], None] | None = None,
    show: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Tell `facts` facts, read prose, ask at growing distances up to `tokens`. Returns a JSON-ready result."""
    began = time.perf_counter()
    distances = [d for d in _DISTANCES if d < tokens] + [tokens]
    retention = Retention(model, distances, facts=facts, systems=tuple(_SYSTEMS), seed=seed)
    results = retention.run(progress)
    if show is not None:
        _examples(results, tokens, show)
    rows = []
    for distance in distances:
        row: dict[str, Any] = {"distance": distance}
        for system in _SYSTEMS:
            right, asked = accuracy(results, system)[distance]
            row[system] = round(right / asked, 4)
            row["questions"] = asked
        rows.append(row)
    return {
        "model": model.name,
        "memory_tokens": retention.memory.tokens,
        "memory_bytes": retention.memory.nbytes,
        "seconds": round(time.perf_counter() - began, 1),
        "accuracy": rows,
        "answers": [
            {"question": r.question, "expected": r.expected, "answer": r.answer, "right": r.right}
            for r in results
            if r.system == "full" and r.distance == tokens
        ],
    }


def _examples(results: list[Result], tokens: int, show: Callable[[str], None]) -> None:
    show(f"\nTold once, asked after {tokens:,} tokens of prose:")
    seen: set[str] = set()
    for r in results:
        if r.system == "full" and r.distance == tokens and r.relation not in seen and len(seen) < 8:
            seen.add(r.relation)
            told = "" if r.right else f" (told: {r.expected})"
            show(f"  {'✓' if r.right else '✗'} {r.question} — {r.answer}{told}")


def table(result: dict[str, Any]) -> None:
    """Print the accuracies to stdout."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=f"Facts answered exactly ({result['accuracy'][0]['questions']} told, one model, same questions)")
    grid.add_column("tokens since told", justify="right")
    for title in _SYSTEMS.values():
        grid.add_column(title, justify="right")
    for row in result["accuracy"]:
        grid.add_row(f"{row['distance']:,}", *(f"{row[system]:.0%}" for system in _SYSTEMS))
    console = Console()
    console.print(grid)
    console.print(
        f"{result['memory_tokens']:,} tokens read, {result['memory_bytes'] / 1e6:.0f} MB of memory, "
        f"{result['seconds']:.0f} s."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the curve as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    distances = [row["distance"] for row in result["accuracy"]]
    for (system, title), style in zip(_SYSTEMS.items(), ("o-", "s--", "^:"), strict=True):
        axes.plot(distances, [100 * row[system] for row in result["accuracy"]], style, label=title)
    axes.set(
        xscale="log",
        ylim=(-3, 103),
        xlabel="tokens between fact and question",
        ylabel="facts answered exactly (%)",
        title="What the model still knows",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
