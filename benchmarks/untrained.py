"""Memory on a decoder without memory weights: `python benchmarks/untrained.py --model FOLDER --decoder plain`.

1. Perplexity. A text is read, and its start, by then some contexts back, comes again: how well does the model foresee
   it (and, for comparison, the prose that really follows), with the last tokens that its positions hold, with verbatim
   memory, with verbatim memory without its long-term store, and with full replay of the whole text, which leaves the
   positions that the model was trained on?
2. Recall. Facts are told, prose is read, questions are asked (`remanence.retention`) of a small decoder that answers
   questions about its context and was trained without memory (`benchmarks/plain.py`): with verbatim memory, with the
   right write forced, and with the last tokens in all of its positions, which is full replay as far as it fits; and how
   often the right write is among those that are read, per layer and distance.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

import remanence
from remanence import MemoryConfig, MemoryModel
from remanence.arena.retention import Retention, prose, recall
from remanence.arena.retention import accuracy as answered
from remanence.core.attachment import trained_positions
from remanence.train.run import PROMPT

SYSTEMS = ("window", "no store", "memory", "replay")


@torch.no_grad()
def perplexities(model: MemoryModel, samples: int, stretch: int, seed: int) -> dict[str, dict[str, Any]]:
    """Mean loss of passages per system: the one from the start again, and one that is new.

    Args:
        samples: texts.
        stretch: how many contexts lie between the start and its return.
    """
    config, positions = model.config, model.attachment.positions
    ids = model.tokenizer(prose()[: samples * 30 * positions], add_special_tokens=False).input_ids
    length = config.window_tokens // 2
    between = stretch * positions // config.chunk_tokens * config.chunk_tokens
    bos = [] if model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]
    losses: dict[str, dict[str, list[float]]] = {s: {"again": [], "new": []} for s in SYSTEMS}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        start = int(torch.randint(len(ids) - between - 3 * length, (), generator=generator))
        past = ids[start : start + between]
        memory = model.new_memory()
        for at in range(0, between, config.chunk_tokens):
            model.write(memory, past[at : at + config.chunk_tokens])
        passages = {"again": past[: 2 * length], "new": ids[start + between : start + between + 2 * length]}
        for kind, passage in passages.items():
            prompt = torch.tensor([passage])  # the first half is given, the second foreseen
            for system in SYSTEMS:
                if system == "window":
                    last = past[-(positions - 2 * length - len(bos)) :]
                    logits = model.base(torch.tensor([bos + last + passage]), logits_to_keep=2 * length).logits[0]
                elif system == "replay":
                    logits = model.base(torch.tensor([bos + past + passage]), logits_to_keep=2 * length).logits[0]
                else:
                    with model.reading([memory], long_term=system == "memory") as cache:
                        logits = model.base(prompt, past_key_values=cache).logits[0]
                loss = F.cross_entropy(logits[length - 1 : -1].float(), prompt[0, length:])
                losses[system][kind].append(loss.item())
    mean = {s: {k: sum(v) / len(v) for k, v in kinds.items()} for s, kinds in losses.items()}
    return {
        s: {f"perplexity {k}": round(float(torch.tensor(v).exp()), 3) for k, v in kinds.items()}
        | {"positions used": {"replay": between + 2 * length, "window": positions}.get(s, config.slots + 2 * length)}
        for s, kinds in mean.items()
    }


def small_decoder(folder: Path, retriever: str) -> MemoryModel:
    """A decoder that answers questions about text in its context, with verbatim memory attached."""
    config = MemoryConfig.for_positions(trained_positions(AutoConfig.from_pretrained(folder)), retriever=retriever)
    model = MemoryModel.from_pretrained(folder, memory=config)
    model.prompt = PROMPT
    return model


def in_context(folder: Path) -> MemoryModel:
    """The same decoder with all its positions as window: full replay, as far as it fits."""
    positions = trained_positions(AutoConfig.from_pretrained(folder))
    config = MemoryConfig(K=8, N=8, K0=8, chunk_tokens=8, window_tokens=positions - 17)
    model = MemoryModel.from_pretrained(folder, memory=config)
    model.prompt = PROMPT
    return model


def table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Rows of named figures."""
    shown = Table(title=title)
    columns = list(next(iter(rows.values())))
    for name in ("", *columns):
        shown.add_column(name, justify="right")
    for name, figures in rows.items():
        shown.add_row(str(name), *(str(figures[c]) for c in columns))
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a decoder without memory weights: a folder or hub id")
    parser.add_argument("--decoder", type=Path, required=True, help="a decoder made by benchmarks/plain.py")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--stretch", type=int, default=4, help="contexts between a passage and its return")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--distances", type=int, nargs="+", default=[100, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    began = time.perf_counter()
    model = MemoryModel.from_pretrained(arguments.model)
    config = model.config
    figures: dict[str, Any] = {
        "perplexity": perplexities(model, arguments.samples, arguments.stretch, arguments.seed),
        "plan": config.to_dict(), "positions": model.attachment.positions,
    }  # fmt: skip
    table(
        f"{model.attachment.family}, {model.attachment.positions} positions, {arguments.samples} texts of "
        f"{arguments.stretch} contexts",
        figures["perplexity"],
    )

    rows: dict[str, dict[str, Any]] = {}
    window = in_context(arguments.decoder)
    run = Retention(window, arguments.distances, facts=arguments.facts, systems=("window",), seed=arguments.seed)
    context = answered(run.run(), "window")
    for retriever, name in {"attention": "attention", "trained": "random projections"}.items():
        decoder = small_decoder(arguments.decoder, retriever)
        systems = ("full", "no store", "forced") if retriever == "attention" else ("full",)
        run = Retention(decoder, arguments.distances, facts=arguments.facts, systems=systems, seed=arguments.seed)
        results = run.run()
        config = decoder.config
        for distance, layers in recall(results).items():
            row = {"read": f"{config.K0 // config.K} of {distance // config.K}+ writes"}
            row["right write read, per layer"] = " ".join(f"{share:.2f}" for share in layers)
            for system in ("full", "no store", "forced"):
                right, asked = answered(results, system).get(distance, (0, 0))
                row[f"right, {system}"] = f"{right / asked:.2f}" if asked else "-"
            right, asked = context[distance]
            row["right, window or replay"] = f"{right / asked:.2f}"
            rows[f"{name}, {distance:,} tokens"] = row
    figures |= {"recall": rows, "facts": arguments.facts}
    table("recall by distance, small decoder", rows)
    seconds = time.perf_counter() - began
    print(f"{seconds:.0f} s", file=sys.stderr)
    if arguments.out:
        figures["run"] = {
            "remanence": remanence.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "machine": platform.machine(), "threads": torch.get_num_threads(), "seconds": round(seconds),
            "seed": arguments.seed, "samples": arguments.samples,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
