"""Starts a training run: one or more processes that average their gradients, each on one thread.

`launch` starts them; each runs this file's `main`. One thread a process: small matrices gain little from a second.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from ..errors import ConfigError, RemanenceError
from ..model import MemoryModel
from .attention import GROUPED
from .data import ANSWER, QUESTION, Prose, build_tokenizer, read_prose
from .loop import Stage, Trainer
from .stages import builtin, new_model

PROMPT = QUESTION + "{question}" + ANSWER

# Large tensors come and go at every step; glibc would return them to the system and fault them in again.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def launch(
    out: Path,
    prose: Path,
    *,
    resume: bool = True,
    begin: str | None = None,
    processes: int = 2,
    fast: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train the built-in model in `processes` processes.

    Args:
        out: folder of the run. prose: text to train on. resume: go on from the folder's checkpoint.
        begin: "builtin" or the folder of a trained model, whose last stage is then run once more.
        fast: a few steps of every stage. quiet: no progress bar.

    Returns:
        {"model": folder that `from_pretrained` takes, "steps": optimizer steps, "last": the log's last line}.

    Raises:
        RemanenceError: a process failed; its last words are on stderr.
    """
    if (out / "checkpoint.safetensors").exists() and not resume:
        raise ConfigError(f"{out} holds a run already; go on with --resume, or give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [str(out), str(prose), *(["--fast"] if fast else []), *(["--quiet"] if quiet else [])]
    arguments += [f"--from={begin}"] if begin else []
    shared = os.environ | _MALLOC | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "remanence.train.run", *arguments]
    children = [subprocess.Popen(command, env=shared | {"RANK": str(rank)}) for rank in range(processes)]
    try:
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(0.2)
    finally:  # one that failed would keep the others waiting
        for child in children:
            if child.poll() is None:
                child.terminate()
    codes = [child.wait() for child in children]
    if any(codes):
        raise RemanenceError(f"training stopped with exit codes {codes}; start it again to go on from its checkpoint.")
    log = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = sum(s.steps for s in _stages(fast, begin))
    return {"model": str(out / "model"), "steps": steps, "last": json.loads(log[-1])}


def _stages(fast: bool, begin: str | None) -> list[Stage]:
    stages = builtin()[-1:] if begin else builtin()
    if not fast:
        return stages
    return [
        replace(
            s, steps=3, mixes=tuple(replace(m, streams=4) for m in s.mixes), others=(0, min(s.others[1], 8)),
        )
        for s in stages
    ]  # fmt: skip


def _tokenizer(folder: Path, text: str) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        build_tokenizer(text).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def main(arguments: list[str]) -> None:
    """One process of the run."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    out, prose_file = Path(arguments[0]), Path(arguments[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    rank = int(os.environ.get("RANK", "0"))
    text = read_prose(prose_file)
    begin = next((a.removeprefix("--from=") for a in arguments if a.startswith("--from=")), None)
    if begin:
        trained = MemoryModel.from_pretrained(begin)
        model = new_model(trained.tokenizer)
        model.load_state_dict(trained.state_dict())
    else:
        if rank == 0:
            _tokenizer(out / "tokenizer", text)
        if dist.is_initialized():
            dist.barrier()
        model = new_model(_tokenizer(out / "tokenizer", text))
    model.prompt = PROMPT
    model.base.set_attn_implementation(GROUPED)
    trainer = Trainer(model, Prose(text, model.tokenizer), _stages("--fast" in arguments, begin), out)
    trainer.resume()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    hidden = rank != 0 or "--quiet" in arguments
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("training", total=sum(s.steps for s in trainer.stages))

        def show(figures: dict[str, Any]) -> None:
            done = sum(s.steps for s in trainer.stages[: trainer.stage_index]) + trainer.step
            right = figures.get("known", figures.get("context_known", 0.0))
            speed = figures["tokens"] / figures["s"]
            words = f"{figures['stage']} {figures['step']}  loss {figures['loss']:.3f}  right {right:.2f}"
            words += f"  {speed:,.0f} tokens/s"
            progress.update(bar, completed=done, description=words)

        trainer.run(show=show)
    if rank == 0:
        model.base.set_attn_implementation("sdpa")
        model.eval().save_pretrained(out / "model")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
