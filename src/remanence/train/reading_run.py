"""A run that trains reading, from its settings: builds the model and the lessons, trains, writes the trained model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor

from ..core.likeness import Likeness
from ..core.search import Search
from ..environment import quieten
from ..errors import ConfigError, reason
from ..files import write_text
from ..models import bases
from ..models.decoders import computes_bfloat16, load_config
from ..models.pretrained import MemoryModel, saved_settings
from .asking import PROMPT, without_preamble
from .attention import READING
from .card import card
from .lessons import Lessons, read_material
from .preparing import instructed, memory_for
from .reading import ReadingTrainer, learning, steps_done
from .run import begun, check_parent, lora_for, spawn, work
from .settings import ReadingRun, changed

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)  # of processes that wait for what the first one does alone
_STEPS = 3000  # of a run of which nobody said how long it should take


def reading_run(
    model: str,
    data: Sequence[str | Path],
    *,
    steps: int | None = None,
    hours: float | None = None,
    reads: bool = True,
    changes: Sequence[str] = (),
) -> ReadingRun:
    """The run that trains the reading of any decoder, or goes on with that of a model whose reading was trained.

    Args:
        model: folder or hub id.
        data: files of lessons and texts.
        steps, hours: how long.
        reads: whether an adapter learns to read, of a decoder without memory weights. Without, the search is trained
            alone, and its memory looks at sentences.
        changes: "key=value".

    Raises:
        ConfigError: no such model, or a change that cannot be.
    """
    files = tuple(str(Path(file).resolve()) for file in data)
    if steps is None and hours is None:
        steps = _STEPS
    saved = saved_settings(model)
    if saved is not None:
        memory, lora = begun(saved)
        if memory.score_layers != "one" or (lora is None) != (saved.get("instruction") is not None):
            raise ConfigError(f"{model} has a memory of another kind; begin with a decoder without memory weights.")
        if lora is not None and not reads:
            raise ConfigError(f"{model} was taught to read; its search is trained on together with that.")
        wanted = changed(
            ReadingRun(model=model, data=files, memory=memory, lora=lora, steps=steps, hours=hours), changes
        )
        if wanted.lora != lora:
            has = "no adapter" if lora is None else "its adapter already"
            raise ConfigError(f"--set lora: {model} has {has}; begin with a decoder without memory.")
    else:
        memory = memory_for(load_config(model, None))
        run = ReadingRun(model=model, data=files, memory=memory, steps=steps, hours=hours)
        if not reads:  # last, as it asks for K = chunk_tokens; and nothing learns to bear with rounding to four bits
            run, changes = replace(run, lora=None), ["memory.store_dtype=int8", *changes]
            if not any(change.startswith("memory.look_at") for change in changes):
                changes += ["memory.look_at=sentences"]
        wanted = changed(run, changes)
        if not reads and wanted.lora is not None:
            raise ConfigError("--set lora: a search that is trained alone has no adapter; leave --search-only out.")
    wanted.check()
    return wanted


def load_run(out: Path) -> ReadingRun:
    """Read `config.json`.

    Raises:
        ConfigError: there is none, or it is of another kind of run.
    """
    return saved_run(out, ReadingRun, "trains reading")


def saved_run(out: Path, kind: type[T], does: str) -> T:
    """The settings of a run of some kind, from its folder's `config.json`; does: what such a run does, for the error.

    Raises:
        ConfigError: there is none, or it is of another kind of run.
    """
    try:
        return TypeAdapter(kind).validate_json((out / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out} holds no run that {does}: {reason(error)}") from error


def build(run: ReadingRun, dtype: torch.dtype | None = None, *, learns: bool = False) -> tuple[MemoryModel, bool]:
    """The model before training, and whether its search is untrained.

    Args:
        run: its settings.
        dtype: of the base; None is that in which it is stored.
        learns: only what the run trains needs to be there: the layers that a search sees, if it is trained alone.

    Raises:
        ConfigError: no such model, or one that memory cannot be attached to.
    """
    torch.manual_seed(run.seed)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = MemoryModel.from_pretrained(run.model, memory=run.memory, **options)
    if saved_settings(run.model) is not None:
        if not isinstance(model.retriever, Search | Likeness) or (run.lora is None) == ("read" in model.adapters):
            raise ConfigError(f"{run.model} has no search, or no adapter; begin with a decoder without memory weights.")
        return _cut(model, run) if learns and run.lora is None else model, False
    if run.lora is None:
        built = instructed(model, run.memory)
        return _cut(built, run) if learns else built, True
    chat = bool(model.tokenizer.chat_template)
    # A base that does not converse has no answers of its own to what needs no memory.
    memory = run.memory if chat else replace(run.memory, base_answers=False)
    built = MemoryModel(
        model.base, model.tokenizer, memory, prompt=None if chat else PROMPT, name=model.name,
        template=without_preamble(model.tokenizer), lora=lora_for(model.base, run.lora), adapters=("read",),
    )  # fmt: skip
    built.base_name = model.base_name
    return built.eval(), True


def _cut(model: MemoryModel, run: ReadingRun) -> MemoryModel:
    """The same without the layers that its search does not see."""
    decoder = model.attachment.decoder
    decoder.layers = decoder.layers[: run.memory.search_layers[-1] + 1]
    cut = MemoryModel(
        model.base, model.tokenizer, model.config.replace(judge_layers=()), prompt=model.prompt, name=model.name,
        template=model.template, instruction=model.instruction,
        telling=model.prompts.telling,
    )  # fmt: skip
    cut.retriever.load_state_dict(model.retriever.state_dict())
    return cut.eval()


def number_format(precision: str, device: torch.device) -> torch.dtype:
    """The number format of a run's base: bfloat16, if it is asked for or the machine computes fast in it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = computes_bfloat16()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def launch(
    run: ReadingRun,
    out: Path,
    *,
    processes: int = 1,
    quiet: bool = False,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train, or go on from the folder's checkpoint.

    Under `torchrun` this process is one of several already, and `processes` says nothing.

    Args:
        run: its settings.
        out: folder of the run.
        processes: on this machine; each draws lessons and questions of its own.
        quiet: no progress bar.
        stop: with one process, whether to end after the step at hand, with a checkpoint.

    Returns:
        {"model": folder that `from_pretrained` takes, or None if the run was ended before, "steps": optimizer steps,
        "last": the log's last line, or None}.

    Raises:
        ConfigError: the folder holds another run; or settings that do not fit.
        InputError: files that cannot be read.
        RemanenceError: a process failed; its last words are on stderr.
    """
    if run.memory.retriever == "states":
        raise ConfigError(f"{run.model} finds by its hidden states, where nothing is trained; train its base instead.")
    if (out / "config.json").exists():
        if load_run(out) != run:
            raise ConfigError(f"{out} holds another run (see its config.json); give another --out.")
    elif os.environ.get("RANK", "0") == "0":
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.json", json.dumps(asdict(run), indent=2) + "\n")
    done = True
    if "RANK" in os.environ or processes == 1:
        done = _train(run, out, quiet, stop)
    else:
        spawn("remanence.train.reading_run", out, processes, quiet)
    log = out / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    last = json.loads(lines[-1]) if lines else None
    return {"model": str(out / "model") if done else None, "steps": steps_done(out), "last": last}


def _train(run: ReadingRun, out: Path, quiet: bool, stop: Callable[[], bool] | None = None) -> bool:
    """One process of the run; whether it came to the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    quieten()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
        device = torch.accelerator.current_accelerator(check_available=True) or device
    elif world > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    lessons = Lessons(read_material(run.data), run.shares)
    model, fresh = build(run, number_format(run.precision, device), learns=True)
    if device.type != "cpu":
        model.to(device)
    elif _plain_attention(model):
        model.base.set_attn_implementation(READING)
    if world > 1:
        dist.init_process_group("gloo" if device.type == "cpu" else None, timeout=_PATIENCE)
    try:
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), disable=quiet or rank > 0) as progress:
            bar = progress.add_task("what the base says by itself", total=1.0)

            def waiting(done: int, total: int) -> None:
                progress.update(bar, completed=done / total)

            trainer = ReadingTrainer(
                model, lessons, run, out, fresh=fresh, rank=rank, world=world, waiting=waiting
            )  # fmt: skip
            trainer.resume()
            progress.reset(bar, description="writing the first lessons", completed=0, total=None)
            trainer.fill()
            progress.reset(bar, description="training", total=1.0)
            progress.update(bar, completed=trainer.progress)

            def show(figures: dict[str, Any]) -> None:
                progress.update(bar, completed=trainer.progress, description=_words(figures))
                check_parent()

            done = trainer.run(show=show, stop=stop)
        if done and rank == 0:
            write_model(run, out, trainer.trained())
        if world > 1:
            dist.barrier()
    finally:
        if world > 1:
            dist.destroy_process_group()
    return done


def _plain_attention(model: MemoryModel) -> bool:
    """Whether a base's attention is a softmax and nothing else, as `READING` computes it."""
    capped = getattr(model.attachment.config, "attn_logit_softcapping", None)
    return capped is None and not any(name.endswith("sinks") for name, _ in model.base.named_parameters())


def _words(figures: dict[str, Any]) -> str:
    words = f"step {figures['step']}  loss {figures['loss']:.3f}"
    words += f"  right {figures['known']:.2f}" if "known" in figures else ""
    words += f"  recall {figures['recall'][0]:.2f}" if "recall" in figures else ""
    return words + f"  {figures['tokens_per_s']:,.0f} tokens/s"


def write_model(run: ReadingRun, out: Path, trained: dict[str, Tensor]) -> None:
    """Write the trained model to the folder `model`, with its card; a base that has a name is left out.

    It is built anew, as the base that was trained on may be rounded. What was trained is rounded to the base's own
    number format, in which it will compute.
    """
    model, _ = build(run)
    learned = learning(model)  # in float32
    result = model.load_state_dict(trained, strict=False)
    if result.unexpected_keys:
        raise ConfigError(f"trained weights do not fit the model: {', '.join(result.unexpected_keys[:5])}.")
    for parameter in learned.values():
        parameter.data = parameter.data.to(model.base.dtype)
    known = bases.NAMED.get(run.model)
    model.save_pretrained(out / "model", base=model.base_name is None)
    write_text(out / "model" / "README.md", card(out, run.model if known is None else known.hub))


def main(arguments: list[str]) -> None:
    """One process of the run, as `spawn` starts it."""
    out = Path(arguments[0])
    work(out, lambda: _train(load_run(out), out, "--quiet" in arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
