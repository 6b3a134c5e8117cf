"""What each stage of training brings, on a decoder that knew nothing of memory and stays as it was.

    python benchmarks/ablation.py measure --base plain --run runs/ablation     measures, 7 to 18 minutes on two cores
    python benchmarks/ablation.py show --plot ablation.png                     table and plot from the committed figures

The base comes from `benchmarks/plain.py`, the run from

    remanence train curriculum --model plain --data facts --out runs/ablation --processes 2

Facts with held-out names are told, prose that was never trained on is read, every fact is asked at every distance
(`remanence.retention`): of the base with the last tokens in its window, of the model after each stage, and of the last
one with retrieval by the layers' own attention instead of the retriever. And what the base and the trained model make
of plain text, in perplexity.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import remanence
from remanence import Memory, MemoryModel
from remanence.arena.retention import Retention, accuracy, prose, recall

FIGURES = Path(__file__).parent / "results" / "ablation.json"
DISTANCES = [100, 250, 500, 1_000, 4_000, 16_000, 40_000, 80_000, 160_000]
TITLES = {
    "window": "window only (the base)",
    "stage1": "MemoryLLM (stage 1)",
    "stage2": "MemoryLLM-long (stage 2)",
    "mplus": "M+ (stage 3)",
    "attention": "M+, attention instead of the retriever",
    "forced": "M+, right write forced",
}


def measured(model: MemoryModel, systems: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Right answers of the systems by distance."""
    run = Retention(
        model, [d for d in DISTANCES if d <= options.tokens], facts=options.facts, newest=options.newest,
        unknown=options.unknown, systems=systems, seed=options.seed,
    )  # fmt: skip
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{model.name} {systems[0]}", total=1)
        results = run.run(lambda done, total: progress.update(bar, completed=done, total=total))
    found: dict[str, Any] = {}
    for system in systems:
        found[system] = {"fact": accuracy(results, system)}
    found[systems[0]] |= {kind: accuracy(results, systems[0], kind) for kind in ("newest", "unknown")}
    if systems[0] == "full":
        found["full"]["recall"] = {d: [round(r, 3) for r in layers] for d, layers in recall(results).items()}
    return found


@torch.no_grad()
def text_loss(
    model: MemoryModel, memory: Memory | None, text: list[int], known: int = 1, past: list[int] | None = None
) -> float:
    """Mean loss of a text's tokens from `known` on, beside a memory; None is the base in the model, after a past."""
    ids = torch.tensor([text])
    if memory is None:
        with model.plain() as base:
            logits = base(torch.cat([torch.tensor([[model.tokenizer.bos_token_id, *(past or [])]]), ids], 1)).logits
    else:
        with model.reading([memory]) as cache:
            logits = model.base(ids, past_key_values=cache).logits
    return F.cross_entropy(logits[0, known - 1 - len(text) : -1].float(), ids[0, known:]).item()


def perplexity(model: MemoryModel, memory: Memory | None, windows: int = 60, length: int = 256) -> float:
    """Of prose that was never trained on, beside a memory; None is the base in the model, without any."""
    ids = model.tokenizer(prose()[: 10 * windows * length], add_special_tokens=False).input_ids
    losses = [text_loss(model, memory, ids[i * length : (i + 1) * length]) for i in range(windows)]
    return math.exp(sum(losses) / windows)


def measure(options: argparse.Namespace) -> None:
    """Measure everything and write the figures."""
    began = time.perf_counter()
    last = MemoryModel.from_pretrained(options.run / "model")
    base = MemoryModel.from_pretrained(options.base, memory=last.config)
    base.prompt = last.prompt
    by_attention = last.config.replace(retriever="attention", score_bias=0.0, recency=0.0)
    plans: dict[str, tuple[MemoryModel, tuple[str, ...]]] = {
        "window": (base, ("window",)),
        "stage1": (MemoryModel.from_pretrained(options.run / "model-stage1"), ("no store",)),
        "stage2": (MemoryModel.from_pretrained(options.run / "model-stage2"), ("no store",)),
        "mplus": (last, ("full", "forced")),
        "attention": (MemoryModel.from_pretrained(options.run / "model", memory=by_attention), ("full",)),
    }
    systems: dict[str, Any] = {}
    for name, (model, answer) in plans.items():
        found = measured(model, answer, options)
        systems[name] = found[answer[0]]
        if "forced" in found:
            systems["forced"] = found["forced"]
    other_text = last.new_memory()
    last.memorize(other_text, prose()[400_000:440_000])
    texts = {
        "base": perplexity(base, None),
        "trained, plain": perplexity(last, None),
        "base, empty untrained memory": perplexity(base, base.new_memory()),
        "trained, empty memory": perplexity(last, last.new_memory()),
        f"trained, {other_text.tokens:,} tokens of other prose in memory": perplexity(last, other_text),
    }
    settings = json.loads((options.run / "config.json").read_text(encoding="utf-8"))
    record = {
        "systems": systems, "perplexity": {name: round(value, 4) for name, value in texts.items()},
        "settings": {k: getattr(options, k) for k in ("facts", "newest", "unknown", "seed", "tokens")},
        "memory": settings["memory"], "lora": settings["lora"],
        "stages": [{k: s[k] for k in ("name", "steps", "lr", "others", "retrieved")} for s in settings["stages"]],
        "versions": {
            "remanence": remanence.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": sys.version.split()[0], "machine": platform.machine(),
        },
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(options)


def show(options: argparse.Namespace) -> None:
    """Table and plot of the figures."""
    record = json.loads(options.out.read_text(encoding="utf-8"))
    systems = record["systems"]
    distances = sorted(int(d) for d in systems["mplus"]["fact"])
    table = Table(title=f"Exact match, {record['settings']['facts']} held-out facts a distance")
    for name in ("", *(f"{d:,}" for d in distances), "newest of two", "abstains"):
        table.add_column(name, justify="right")
    for key, title in TITLES.items():
        if key in systems:
            longest = str(distances[-1])
            others = [systems[key].get(kind, {}).get(longest) for kind in ("newest", "unknown")]
            table.add_row(title, *(share(systems[key]["fact"][str(d)]) for d in distances), *map(share, others))
    console = Console(width=170)
    console.print(table)
    for distance, layers in systems["mplus"].get("recall", {}).items():
        if int(distance) in (distances[0], distances[-1]):
            console.print(f"retriever recall by layer at {int(distance):,} tokens: {layers}")
    texts = record["perplexity"]
    for name, value in texts.items():
        console.print(f"perplexity of prose, {name}: {value:.3f} ({value / texts['base'] - 1:+.2%})")
    if options.plot:
        _plot(systems, distances, options.plot)


def share(pair: list[int] | None) -> str:
    """Right answers and questions as a percentage."""
    return "-" if not pair else f"{pair[0] / pair[1]:.1%}"


def _plot(systems: dict[str, Any], distances: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    styles = {"forced": (0, (1, 2)), "attention": "--", "window": ":"}
    for key, title in TITLES.items():
        if key in systems:
            shares = [100 * r / n for r, n in (systems[key]["fact"][str(d)] for d in distances)]
            axes.plot(distances, shares, marker="o", linestyle=styles.get(key, "-"), label=title)
    axes.set_xscale("log")
    axes.set_xticks(distances, [f"{d // 1000}k" if d >= 1000 else str(d) for d in distances])
    axes.minorticks_off()
    axes.set(xlabel="tokens between fact and question", ylabel="facts answered exactly (%)", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def add_questions(parser: argparse.ArgumentParser, *, tokens: int, seed: int) -> None:
    """The options that `measured` takes, with defaults."""
    parser.add_argument("--tokens", type=int, default=tokens, help="the longest distance")
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--newest", type=int, default=60)
    parser.add_argument("--unknown", type=int, default=60)
    parser.add_argument("--seed", type=int, default=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "show"))
    parser.add_argument("--base", type=Path, default=Path("plain"), help="the decoder without memory")
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="folder of the training run")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the figures, JSON")
    parser.add_argument("--plot", type=Path, help="write the curves to this picture")
    add_questions(parser, tokens=160_000, seed=1)
    options = parser.parse_args()
    {"measure": measure, "show": show}[options.what](options)


if __name__ == "__main__":
    main()
