"""A training run from its settings: builds the model and the data, starts the processes, writes the trained model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..config import MemoryConfig
from ..core.attachment import trained_positions
from ..core.prompts import UNKNOWN
from ..environment import quieten
from ..errors import ConfigError, RemanenceError, reason
from ..files import write_text, write_together
from ..models import bases, checkpoint
from ..models.decoders import load_config
from ..models.pretrained import MemoryModel, saved_settings
from ..models.published import is_published
from .attention import GROUPED
from .card import card
from .corpus import Data, expand
from .data import ANSWER, QUESTION, Mix, Prose, Streams, build_tokenizer, read_prose
from .documents import DocumentMix, Documents
from .forecast import forecast, in_words
from .loop import MakeBatches, Trainer, new_accelerator
from .settings import Engine, Lora, Run, Stage, changed
from .stages import MEMORY, STAGES, builtin, memory_for, new_model

PROMPT = QUESTION + "{question}" + ANSWER
_REFUSAL = "refused.txt"  # where a process says why it cannot train
_PATIENCE_S = 10  # for which it waits to be ended
_SPAWNED_BY = "REMANENCE_SPAWNED_BY"  # the process that started others, for these
_FEW_POSITIONS = 512  # for which a fast run sizes the memory of a decoder
SCRATCH = "scratch"  # the model of a run that trains the built-in one from nothing

# Large tensors come and go at every step; glibc would return them to the system and fault them in again.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def builtin_run(prose: Path, *, begin: str | None = None, fast: bool = False) -> Run:
    """The run that makes the built-in model; `begin`, a trained model, runs its last stage once more."""
    return Run(
        model=begin or SCRATCH, prose=str(prose), memory=_begin(begin, prose)[0] if begin else MEMORY, lora=None,
        stages=_few(builtin()[-1:] if begin else builtin(), fast),
        engine=Engine(lanes=2, optimizer="muon"),
    )  # fmt: skip


def stages_run(
    model: str, sources: list[str], names: list[str], *, prose: Path | None = None, changes: list[str] | None = None,
    fast: bool = False,
) -> Run:  # fmt: skip
    """A run of some of the papers' stages on any decoder.

    Args:
        model: folder or hub id; a model with memory begins with its own settings, and keeps its adapters.
        sources: files, hub datasets or recipes; none trains on made-up facts in `prose`.
        names: of `STAGES`. changes: "key=value"; those of the memory come first, as stages are sized for it.
        fast: three small steps of every stage, to see that all of it works; a decoder gets a small memory.

    Raises:
        ConfigError: no such model, or a change that cannot be.
    """
    data = [data for source in sources for data in expand(Data(path=source))]
    memory, lora = _begin(model, prose, fast)
    run = Run(model=model, data=tuple(data), prose="" if prose is None else str(prose), memory=memory, lora=lora)
    changes = changes or []
    run = changed(run, [c for c in changes if c.startswith("memory.")])
    run = replace(run, stages=_few([STAGES[name](run.memory, not run.data) for name in names], fast))
    run = changed(run, [c for c in changes if not c.startswith("memory.")])
    if run.lora != lora and saved_settings(model) is not None:
        has = "adapters already" if lora else "no adapters, its whole weights are trained"
        raise ConfigError(f"--set lora: {model} has {has}; to choose them, begin with a decoder without memory.")
    return run


def _begin(model: str, prose: Path | None, fast: bool = False) -> tuple[MemoryConfig, Lora | None]:
    """The memory and the adapters that a model has; for a bare decoder, a memory that fits it and new adapters."""
    saved = saved_settings(model)
    if saved is not None:
        return begun(saved)
    if is_published(checkpoint.find(model) or {}):
        raise ConfigError(f"{model} is a published checkpoint; write it as ours first: remanence convert {model} OUT")
    positions = trained_positions(load_config(model, None))
    memory = memory_for(min(positions, _FEW_POSITIONS) if fast else positions)
    return memory.replace(recency=3.0) if prose is not None else memory, Lora()  # facts change


def begun(saved: dict[str, Any]) -> tuple[MemoryConfig, Lora | None]:
    """The memory and the adapters of a saved model's settings."""
    memory, lora = MemoryConfig.from_dict(saved["memory"]), saved.get("lora")
    if lora is None:
        return memory, None
    names = lora["target_modules"]
    targets = (names,) if isinstance(names, str) else tuple(sorted(names))
    return memory, Lora(r=lora["r"], alpha=lora["lora_alpha"], dropout=lora["lora_dropout"], targets=targets)


def _few(stages: list[Stage], fast: bool) -> tuple[Stage, ...]:
    """With `fast`, three small steps of each stage."""
    if not fast:
        return tuple(stages)
    return tuple(
        replace(
            s, steps=3, others=(0, min(s.others[1], 8)), earlier=min(s.earlier, 8), mixes=tuple(map(_small, s.mixes))
        )
        for s in stages
    )  # fmt: skip


def _small(mix: Mix | DocumentMix) -> Mix | DocumentMix:
    """Few streams; of documents few and short chunks, and little to read after them."""
    if isinstance(mix, Mix):
        return replace(mix, streams=min(4, mix.streams))
    (least, most), prompt = mix.tokens, min(16, mix.prompt[1])
    return replace(
        mix, streams=min(4, mix.streams), chunks=(min(2, mix.chunks[0]), min(4, mix.chunks[1])),
        tokens=(least, min(most, max(least, 64))), target=min(mix.target, prompt + 48),
        prompt=(min(mix.prompt[0], prompt), prompt),
    )  # fmt: skip


def save_run(run: Run, out: Path) -> None:
    """Write `config.json`; the processes of the run read it."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", json.dumps(asdict(run), indent=2) + "\n")


def load_run(out: Path) -> Run:
    """Read `config.json`.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    try:
        return TypeAdapter(Run).validate_json((out / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out} holds no training run: {reason(error)}") from error


def build(run: Run, out: Path) -> MemoryModel:
    """The model before training.

    Raises:
        ConfigError: no such model, or one that memory cannot be attached to.
    """
    torch.manual_seed(run.seed)
    if run.model == SCRATCH:
        model = new_model(PreTrainedTokenizerFast.from_pretrained(out / "tokenizer"))
        model.prompt = PROMPT
        return model
    if saved_settings(run.model) is not None:
        model = MemoryModel.from_pretrained(run.model, memory=run.memory)
        for parameter in model.parameters():
            parameter.requires_grad_(model.lora is None)
        for name, parameter in model.named_parameters():
            if not name.startswith("base.") or "lora_" in name:
                parameter.requires_grad_(True)
        return model
    bare = MemoryModel.from_pretrained(run.model, memory=run.memory)
    if run.lora is None:
        return bare
    lora = lora_for(bare.base, run.lora)
    prompt = bare.prompt if run.data else PROMPT
    model = MemoryModel(bare.base, bare.tokenizer, run.memory, prompt=prompt, name=bare.name, lora=lora)
    model.base_name = bare.base_name
    return model


def lora_for(base: Any, lora: Lora) -> LoraConfig:
    """peft's settings of adapters for a base."""
    names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    targets = [t for t in lora.targets if t in names] or "all-linear"
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )


def batches_of(run: Run, model: MemoryModel) -> tuple[MakeBatches, list[int] | None]:
    """What makes the sources of lanes, and the answer to what was never told, where the data asks such."""
    if run.data:
        return lambda lane, lanes, split: Documents(
            run.data, model.tokenizer, prompt=model.prompt, seed=run.seed, lane=lane, lanes=lanes, split=split
        ), None
    prose = Prose(read_prose(run.prose), model.tokenizer)
    unknown = Streams(prose, model.tokenizer)
    return lambda lane, lanes, split: Streams(prose, model.tokenizer, seed=run.seed, split=split, lane=lane), [
        *unknown.encode(UNKNOWN), unknown.eos,
    ]  # fmt: skip


def launch(run: Run, out: Path, *, resume: bool = True, processes: int = 2, quiet: bool = False) -> dict[str, Any]:
    """Train in `processes` processes of this machine, which share its cores where there is no accelerator.

    Under `torchrun` or `accelerate launch` this process is one of theirs already, and `processes` says nothing.

    Returns:
        {"model": folder that `from_pretrained` takes, "steps": optimizer steps, "last": the log's last line}.

    Raises:
        ConfigError: a run is there already and `resume` is off, or it is another one; or its settings do not fit.
        RemanenceError: a process failed; its last words are on stderr.
    """
    if (out / "config.json").exists():
        if not resume:
            raise ConfigError(f"{out} holds a run already; go on with --resume, or give another --out.")
        before = load_run(out)
        if replace(before, engine=run.engine) != run:
            raise ConfigError(f"{out} holds another run (see its config.json); give another --out.")
    if "RANK" in os.environ or (processes == 1 and torch.accelerator.is_available()):
        _train(run, out, quiet)
    else:
        _prepare(run, out)
        spawn("remanence.train.run", out, processes, quiet)
    log = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {"model": str(out / "model"), "steps": sum(s.steps for s in run.stages), "last": json.loads(log[-1])}


def _prepare(run: Run, out: Path) -> None:
    """What all processes of a run read."""
    save_run(run, out)
    if run.model == SCRATCH and not (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = build_tokenizer(read_prose(run.prose))
        write_together(out / "tokenizer", tokenizer.save_pretrained, last="tokenizer.json")


def spawn(module: str, out: Path, processes: int, quiet: bool) -> None:
    """Train in several processes of this machine, each `python -m MODULE OUT`.

    Raises:
        ConfigError: what one of them refused.
        RemanenceError: a process failed; its last words are on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | _MALLOC | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes),
        "TOKENIZERS_PARALLELISM": "false", "LOCAL_WORLD_SIZE": str(processes),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns that nothing was unused
        _SPAWNED_BY: str(os.getpid()),
    }  # fmt: skip
    if not torch.accelerator.is_available():
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
        # Threads that wait for each other awake take the cores from the one they wait for where others work too: a step
        # of a model of 135M weights took 20 times as long on two busy cores.
        shared.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = [sys.executable, "-m", module, str(out), *(["--quiet"] if quiet else [])]
    refusal = out / _REFUSAL
    refusal.unlink(missing_ok=True)
    children = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    try:
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            if refusal.exists():
                break
            time.sleep(0.2)
    finally:  # one that failed would keep the others waiting
        for child in children:
            if child.poll() is None:
                child.terminate()
    codes = [child.wait() for child in children]
    if refusal.exists():
        reason = refusal.read_text(encoding="utf-8")
        refusal.unlink()
        raise ConfigError(reason)
    if any(codes):
        raise RemanenceError(f"training stopped with exit codes {codes}; start it again to go on from its checkpoint.")


def check_parent() -> None:
    """End a process that `spawn` started once the one that did so is gone; any other outlives its shell."""
    parent = os.environ.get(_SPAWNED_BY)
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit("the process that started this one is gone")


def _train(run: Run, out: Path, quiet: bool) -> None:
    """One process of the run."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    quieten()
    world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.accelerator.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    accelerator = new_accelerator(run.engine, out)
    if accelerator.is_main_process:
        _prepare(run, out)
    accelerator.wait_for_everyone()
    model = build(run, out)
    if accelerator.device.type == "cpu":
        model.base.set_attn_implementation(GROUPED)
    else:
        model.to(accelerator.device)
    batches, unknown = batches_of(run, model)
    trainer = Trainer(
        model, batches, list(run.stages), out, engine=run.engine, unknown=unknown, accelerator=accelerator
    )  # fmt: skip
    trainer.resume()
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    hidden = not accelerator.is_main_process or quiet
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        if not quiet:
            left = forecast(trainer)  # in all processes, which may share one model
            if accelerator.is_main_process:
                progress.console.print(in_words(left))
        bar = progress.add_task("training", total=sum(s.steps for s in run.stages), completed=trainer.total)

        def show(figures: dict[str, Any]) -> None:
            progress.update(bar, completed=figures["total"], description=_words(figures))
            check_parent()

        trainer.run(
            show=show,
            stage_done=lambda stage, trained: write_model(run, out, trained, stage.name),
        )


def _words(figures: dict[str, Any]) -> str:
    words = f"{figures['stage']} {figures['step']}  loss {figures['loss']:.3f}"
    right = figures.get("known", figures.get("context_known"))
    words += "" if right is None else f"  right {right:.2f}"
    recall = figures.get("recall")
    words += f"  recall {sum(recall) / len(recall):.2f}" if recall else ""
    return words + f"  {figures['tokens_per_s']:,.0f} tokens/s"


def write_model(run: Run, out: Path, trained: dict[str, Tensor], stage: str) -> None:
    """Write the model as it is after a stage to `model-STAGE`, and after the last stage to `model`.

    It is built anew and gets the trained weights, so it does not matter how they were sharded.
    """
    model = build(run, out)
    result = model.load_state_dict(trained, strict=False)
    if result.unexpected_keys:
        raise ConfigError(f"trained weights do not fit the model: {', '.join(result.unexpected_keys[:5])}.")
    model.base.config._attn_implementation = "sdpa"
    last = stage == run.stages[-1].name
    folder = out / ("model" if last else f"model-{stage.replace(' ', '-')}")
    model.eval().save_pretrained(folder)
    if last:
        known = bases.NAMED.get(run.model)
        base = "none: trained from scratch" if run.model == SCRATCH else known.hub if known else run.model
        write_text(folder / "README.md", card(out, base))


def work(out: Path, train: Callable[[], object]) -> None:
    """Train as one of the processes that `spawn` started; what it refuses is left for that one to say."""
    try:
        train()
    except KeyboardInterrupt:  # the process that started this one says so
        sys.exit(130)
    except ConfigError as error:
        own = out / f"{_REFUSAL}-{os.environ['RANK']}"
        own.write_text(str(error), encoding="utf-8")
        own.replace(out / _REFUSAL)
        time.sleep(_PATIENCE_S)  # the others, which may see no fault, are ended quietly before they miss this one
        sys.exit(2)


def main(arguments: list[str]) -> None:
    """One process of the run, as `spawn` starts it."""
    out = Path(arguments[0])
    work(out, lambda: _train(load_run(out), out, "--quiet" in arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
