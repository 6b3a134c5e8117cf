"""`remanence eval run` and `report` by the options that this script had before the arena: for commands that were noted.

    python benchmarks/compare.py --model smollm2 --tasks persons --systems none bm25 ours oracle --reader ours --k 4

`--k` names how many passages text systems read, each number as a system of its own; without it as many as the arena's
budget takes. `--reader both` runs the grid with each reader, in a folder each. `--rescore` shows what is in --out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RANKED = ("bm25", "minilm", "fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", default=["persons"])
    parser.add_argument("--systems", nargs="+", default=["none", "bm25", "minilm", "fused", "ours", "oracle"])
    parser.add_argument("--reader", choices=("base", "ours", "both"), default="base")
    parser.add_argument("--k", type=int, nargs="+", default=[])
    parser.add_argument("--distances", type=int, nargs="+")
    for name in ("amount", "limit", "max-new-tokens", "budget", "seed", "dtype", "books", "data"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--store-dtype", help="how our long-term store is kept")
    parser.add_argument("--replay-tokens", help="the longest text that is replayed whole")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--rescore", action="store_true", help="score and show what is in --out, and run nothing")
    options = parser.parse_args()
    for reader in ("base", "ours") if options.reader == "both" else (options.reader,):
        out = str(options.out / reader)
        if not options.rescore:
            _remanence("run", *run_arguments(options), "--reader", reader, "--out", out)
        _remanence("report", "--out", out)


def run_arguments(options: argparse.Namespace) -> list[str]:
    """What `remanence eval run` is given."""
    systems: list[str] = []
    for name in options.systems:
        if name in RANKED and options.k:
            systems += [f"{name}:k={k}" for k in options.k]
        elif name == "replay" and options.replay_tokens:
            systems.append(f"replay:tokens={options.replay_tokens},whole=true")
        elif name.startswith("ours") and options.store_dtype:
            systems.append(f"{name}:store_dtype={options.store_dtype}")
        else:
            systems.append(name)
    found = ["--model", options.model, "--systems", " ".join(systems), "--tasks", " ".join(options.tasks)]
    if options.distances:
        found += ["--distances", ",".join(map(str, options.distances))]
    for name in ("amount", "limit", "max_new_tokens", "budget", "seed", "dtype", "books", "data"):
        value = getattr(options, name)
        found += [] if value is None else [f"--{name.replace('_', '-')}", value]
    return found


def _remanence(*arguments: str) -> None:
    """Run a command of the arena; its exit code is this script's, if it is not 0."""
    done = subprocess.run([sys.executable, "-m", "remanence", "eval", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
