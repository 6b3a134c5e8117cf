"""One training loop for all stages and engines: draw a batch a lane, learn, log, save; killed, it goes on.

A *lane* is one of the batches of a step, with its own place in the data and its own past. Lanes are shared out to the
processes, so what is learnt depends on how many lanes there are, and not on how many processes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ConfigError
from ..files import sync_folder, write_text, write_whole
from ..models.pretrained import MemoryModel
from .bank import Past
from .data import Batch
from .log import logged
from .objective import Objective, Place
from .parallel import KINDS
from .settings import Engine, Stage
from .trackers import Trackers, tracker_options

Show = Callable[[dict[str, Any]], None]
StageDone = Callable[[Stage, dict[str, Tensor]], None]
_STEPS_A_STAGE = 1_000_000


class Batches(Protocol):
    """Where a lane's batches come from."""

    def batch(self, step: int, mix: Any) -> Batch:
        """The batch of a step; called once a step, in order."""

    def state(self) -> dict[str, Any]:
        """The place in the data as JSON, so that `load` goes on exactly from there."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a place."""


MakeBatches = Callable[[int, int, str], Batches]  # of (lane, lanes, "train" or "held_out")


class Trainer:
    """Trains a model through stages.

    Every batch and every draw is a function of (stage, step, lane), so a resumed run is the uninterrupted one.

    Args:
        model: trained in place: what of it requires a gradient.
        batches: makes the source of a lane's batches.
        stages: the curriculum, in order.
        folder: for checkpoints and `log.jsonl`.
        engine: how it runs.
        unknown: tokens of the answer to what was never told, if the data has such questions.

    Raises:
        ConfigError: settings that do not fit together.
    """

    def __init__(
        self,
        model: MemoryModel,
        batches: MakeBatches,
        stages: list[Stage],
        folder: Path,
        *,
        engine: Engine | None = None,
        unknown: list[int] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.model, self.stages, self.folder, self.engine = model, stages, folder, engine or Engine()
        self.accelerator = accelerator or new_accelerator(self.engine, folder)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.lanes = self.engine.lanes or self.world
        if self.lanes % self.world:
            raise ConfigError(
                f"{self.lanes} lanes cannot be shared out evenly to {self.world} processes; change engine.lanes."
            )
        self.own = range(self.rank, self.lanes, self.world)
        self.batches, self.data = batches, {lane: batches(lane, self.lanes, "train") for lane in self.own}
        self.past = {lane: Past() for lane in self.own}
        _same_dtype(model)
        self.objective = Objective(
            model, precision=self.engine.precision, recompute=self.engine.recompute, unknown=unknown
        )  # fmt: skip
        self.parallel = KINDS[self.engine.parallel](self.objective, self.engine, self.accelerator)
        self.trackers = Trackers((), folder)
        self._evaluated: tuple[Stage | None, dict[int, list[Batch]]] = None, {}
        self.stage_index = self.step = self.tokens = 0

    @property
    def stage(self) -> Stage:
        """The stage at hand."""
        return self.stages[self.stage_index]

    @property
    def total(self) -> int:
        """Steps done, over all stages."""
        return sum(s.steps for s in self.stages[: self.stage_index]) + self.step

    def rate(self) -> float:
        """The learning rate's factor at this step."""
        stage = self.stage
        warm = min(1.0, (self.step + 1) / stage.warmup) if stage.warmup else 1.0
        left = (stage.steps - self.step) / max(1, stage.steps * stage.decay) if stage.decay else 1.0
        return warm * min(1.0, left)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; the figures are means over all lanes of all processes."""
        began = time.perf_counter()
        stage, place = self.stage, self.stage_index * _STEPS_A_STAGE + self.step
        mix = stage.mixes[self.step % len(stage.mixes)]
        self.model.train()
        found = []
        for lane in self.own:
            batch = self.data[lane].batch(place, mix)
            torch.manual_seed(place * 64 + lane)  # of dropout
            last = lane == self.own[-1]
            with self.parallel.lane(last):
                loss, figures = self.parallel.wrapped(batch, stage, Place(place, lane), self.past[lane])
                self.parallel.backward(loss / len(self.own))
            found.append(figures | {"loss": loss.item(), "tokens": batch.chunks_BTn.numel()})
        factor = self.rate()
        norm = self.parallel.update({kind: getattr(stage, kind) * factor for kind in self.parallel.groups})
        self.step += 1
        figures = self._mean(found)
        tokens = figures["tokens"]
        self.tokens += tokens
        seconds = time.perf_counter() - began
        return figures | {
            "stage": stage.name, "step": self.step, "total": self.total, "norm": norm, "lr": stage.lr * factor,
            "tokens": self.tokens, "tokens_per_s": tokens / seconds, "s": seconds,
        }  # fmt: skip

    def _mean(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures of all lanes: means, but the sum of tokens."""
        if self.world > 1:
            found = gather_object(found)
        values: dict[str, list[Any]] = {}
        for figures in found:
            for key, value in figures.items():
                values.setdefault(key, []).append(value)
        mean: dict[str, Any] = {}
        for key, some in values.items():
            if isinstance(some[0], list):
                mean[key] = [sum(layer) / len(some) for layer in zip(*some, strict=True)]
            else:
                mean[key] = sum(some) if key == "tokens" else sum(some) / len(some)
        return mean

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Figures on what is never trained on, with the last mix of the stage; the same batches every time."""
        self.model.eval()
        stage, found = self.stage, []
        for lane, batches in self._held_out().items():
            past = Past()
            for i, batch in enumerate(batches):
                loss, figures = self.parallel.wrapped(batch, stage, Place(i, lane), past)
                found.append(figures | {"loss": loss.item()})
        return {f"held_{k}": v for k, v in self._mean(found).items()}

    def _held_out(self) -> dict[int, list[Batch]]:
        """By lane, the stage's batches to evaluate on; drawn once, as looking for held-out documents reads many."""
        drawn_for, batches = self._evaluated
        if drawn_for != self.stage:
            batches = {}
            for lane in self.own:
                source = self.batches(lane, self.lanes, "held_out")
                batches[lane] = [source.batch(i, self.stage.mixes[-1]) for i in range(self.engine.eval_batches)]
            self._evaluated = self.stage, batches
        return batches

    def run(self, *, show: Show | None = None, stage_done: StageDone | None = None) -> None:
        """Train to the end of the last stage.

        Args:
            show: is called with each step's figures.
            stage_done: is called in the first process with each stage that ends and what was trained.
        """
        engine = self.engine
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cut_log()
        self.trackers = Trackers(engine.trackers, self.folder, accelerator=self.accelerator, step=self.total)
        saved = time.monotonic()
        while self.stage_index < len(self.stages):
            while self.step < self.stage.steps:
                figures = self.train_step()
                end = self.step == self.stage.steps
                if show is not None:
                    show(figures)
                if self.step % engine.eval_every == 0 or end:
                    figures |= self.evaluate()
                if self.step % engine.log_every == 0 or end or "held_loss" in figures:
                    self._log(figures)
                if self._all(time.monotonic() - saved > engine.save_every_s):
                    self.save()
                    saved = time.monotonic()
            trained = self.parallel.weights()
            if stage_done is not None and self.rank == 0:
                stage_done(self.stage, trained)
            self.stage_index, self.step = self.stage_index + 1, 0
            self.save()
        self.accelerator.end_training()

    def _all(self, flag: bool) -> bool:
        """The first process's flag, in every process."""
        if self.world == 1:
            return flag
        return bool(gather_object([flag])[0])

    def _log(self, figures: dict[str, Any]) -> None:
        """A line of log.jsonl, and the trackers."""
        if self.rank:
            return
        line = {k: _short(v) for k, v in figures.items()}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self.trackers.log(line)

    def _cut_log(self) -> None:
        """Lines of steps that were lost with the process that made them are made again."""
        path = self.folder / "log.jsonl"
        if self.rank or not path.exists():
            return
        entries = map(logged, path.read_text(encoding="utf-8").splitlines())  # None: half a line
        kept = [entry for entry in entries if entry is not None and entry["total"] <= self.total]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint: what is trained, optimizer states, each lane's place and past. Atomic; no pickle.

        A checkpoint is a folder that gets its name when it is whole; the one before goes then. All processes call this.
        """
        name = f"step-{self.stage_index:02d}-{self.step:07d}"
        new = self.folder / "checkpoints" / f"new-{name}"
        if self.rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        for lane in self.own:
            tensors, meta = self.past[lane].state()
            text = json.dumps({"past": meta, "data": self.data[lane].state()})
            _write(new / f"lane-{lane}.safetensors", tensors, {"state": text})
        tensors = self.parallel.tensors()
        if self.rank == 0:
            place = {"stage": self.stage_index, "step": self.step, "tokens": self.tokens, "lanes": self.lanes}
            _write(new / "trained.safetensors", tensors, {"place": json.dumps(place)})
        self.accelerator.wait_for_everyone()
        if self.rank == 0:
            whole = self.folder / "checkpoints" / name
            shutil.rmtree(whole, ignore_errors=True)
            new.rename(whole)
            sync_folder(whole.parent)
            for other in (self.folder / "checkpoints").iterdir():
                if other != whole:
                    shutil.rmtree(other, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Load the folder's checkpoint, of any number of processes; False if there is none.

        Raises:
            ConfigError: a checkpoint of another model, or of other lanes.
        """
        folders = sorted((self.folder / "checkpoints").glob("step-*"))
        if not folders:
            return False
        whole = folders[-1]
        with safe_open(whole / "trained.safetensors", "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            place = json.loads(file.metadata()["place"])
        if place["lanes"] != self.lanes:
            raise ConfigError(
                f"{self.folder} was trained with {place['lanes']} lanes, not {self.lanes}; set engine.lanes to that."
            )
        try:
            self.parallel.load(tensors)
        except ConfigError as error:
            raise ConfigError(f"{whole}: {error}") from error
        for lane in self.own:
            with safe_open(whole / f"lane-{lane}.safetensors", "pt") as file:
                state = json.loads(file.metadata()["state"])
                own = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            self.past[lane] = Past.of(own, state["past"])
            self.data[lane].load(state["data"])
        self.stage_index, self.step, self.tokens = place["stage"], place["step"], place["tokens"]
        return True


def new_accelerator(engine: Engine, folder: Path) -> Accelerator:
    """The engine's accelerator. Half precision is the objective's own affair: only the layers run in it."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a sub-task may leave one adapter out
    return Accelerator(
        **tracker_options(engine.trackers, folder), cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[unused], step_scheduler_with_optimizer=False,
    )  # fmt: skip


def _same_dtype(model: MemoryModel) -> None:
    """What learns is float32, whatever the base is."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    whole = {k: v.contiguous() for k, v in tensors.items()}
    write_whole(path, lambda temporary: save_file(whole, temporary, metadata=metadata))
