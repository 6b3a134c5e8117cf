"""What a training run is told: stages, adapters, engine; and `key=value` changes to them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ..config import MemoryConfig
from ..errors import ConfigError
from .corpus import Data
from .data import Mix
from .documents import DocumentMix
from .lessons import SHARES

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum; the next one shows only its difference (`dataclasses.replace`).

    steps: optimizer steps. lr: of Muon on the layers' matrices, or of AdamW on the adapters; the retriever learns at
    `lr_retriever`, all else (start, offset, and of a whole model embeddings and norms) at `lr_rest`.
    warmup: steps in which all of them rise. decay: the last share of the steps in which they fall linearly to zero.
    mixes: how streams and questions are drawn; each step takes one of them.
    others: least and most writes of other streams in a history.
    earlier: most writes of earlier batches that are kept for histories.
    revisit: questions about documents of earlier batches, for each of the batch's own (M+ App. D).
    gradient: the last chunks of a stream whose write keeps its gradient, within the chunk; None keeps all.
    pool: N in training. retrieved: writes read from the long-term store, K0 / K; 0 is MemoryLLM.
    in_context: share of steps that ask about text in the window, without memory. context: tokens of it, at most.
    pending: share of the other steps in which some text is still in the window.
    force: share of questions whose right write is retrieved whatever its score.
    lm_weight: of the language-modelling loss on chunks as they are written, and on text read without memory.
    keep_weight: of a loss that holds the reader to its base on plain text: KL(base || reader), the divergence of their
    predictions. It is taken on text read without memory, and on text in the window beside a memory that does not hold
    it (in steps with `pending`). Only where adapters learn: a base that learns itself is nothing to hold to.
    retriever_weight: of the retriever's loss.
    """

    name: str
    steps: int
    mixes: tuple[Mix | DocumentMix, ...] = (Mix(),)
    lr: float = 0.02
    lr_rest: float = 0.003
    lr_retriever: float = 0.01
    warmup: int = 20
    decay: float = 0.0
    others: tuple[int, int] = (0, 0)
    earlier: int = 0
    revisit: float = 0.0
    gradient: int | None = None
    pool: int = 32
    retrieved: int = 0
    in_context: float = 0.0
    context: int = 128
    pending: float = 0.0
    force: float = 0.0
    lm_weight: float = 0.15
    keep_weight: float = 0.0
    retriever_weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The two adapters, one for writing and one for reading (M+ §3.3; defaults: published code, stage 3).

    r, alpha, dropout: as peft names them. targets: modules; where a model has none of these names, all its linear ones.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How training runs, not what it learns.

    lanes: batches of a step, shared out to the processes; their gradients are averaged. None: one a process. What is
        learnt depends on the lanes and not on the processes, so a run may go on with another number of processes.
    precision: "bfloat16" runs the layers under autocast; what learns stays in float32.
    recompute: throw activations away and make them again in the backward pass (gradient checkpointing).
    parallel: "ddp" copies the model to every process, "fsdp2" shards it, "deepspeed" shards the optimizer (ZeRO).
    deepspeed: a DeepSpeed config file, for its ZeRO stage, offloading and communication; empty is ZeRO 2.
    optimizer: "muon" for a whole model's matrices (with AdamW for the rest), "adamw" for all.
    clip: most norm of each optimizer's gradients. weight_decay: of AdamW on the adapters.
    log_every, eval_every: steps. eval_batches: of each lane. save_every_s: seconds between checkpoints.
    trackers: of accelerate, such as "tensorboard", beside log.jsonl.
    """

    lanes: int | None = None
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    recompute: bool = False
    parallel: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    deepspeed: str = ""
    optimizer: Literal["muon", "adamw"] = "adamw"
    clip: float = 1.0
    weight_decay: float = 0.01
    log_every: int = 10
    eval_every: int = 100
    eval_batches: int = 2
    save_every_s: float = 120.0
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole training run.

    model: folder or hub id of the decoder, or of a model with memory to train on.
    data: where documents come from; empty trains on made-up facts told in `prose`.
    prose: a .txt or .txt.xz file. seed: of weights and data.
    """

    model: str
    data: tuple[Data, ...] = ()
    prose: str = ""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    lora: Lora | None = field(default_factory=Lora)
    stages: tuple[Stage, ...] = ()
    engine: Engine = field(default_factory=Engine)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ReadingRun:
    """A run that teaches reading to an adapter and the one search, while the writer stays as it is.

    model: folder or hub id of the decoder, or of a model whose reading was trained before.
    data: files that lessons are made of. memory, lora: of the model. Without lora the search is trained alone: there is
        no adapter then, the base reads as it is, and is told in the prompt what to do with what it finds.
    steps, hours: whichever ends first; None is no limit, but one of them must be given.

    Lessons
        shares: how often each kind is drawn (`lessons.SHARES`), where it is not as usual.
        streams: lessons of a step and process. chunks: most of a lesson. queue: steps whose lessons are in memory.
        before: steps of lessons that are written before the first one learns.
        asks: questions of a step and process.
        unknown: share of them about the person who asks, of things that no lesson tells. withheld: share of the others
            whose answer is left out of the memory they are put to. chat: share of turns that need no memory.
        waiting: share of the questions that are asked while the end of their lesson waits in the window.
        told: share of the questions whose answer is also in the conversation.
        older: what the search's target gives older answers to a question.
        force: at first, share of the questions whose right write is retrieved whatever its score; it falls over
            `force_steps` to a tenth.
        answer_tokens: most of an answer that are learnt from.

    Learning
        lr: of the adapter; lr_search: of the search. Both rise over `warmup` steps, then fall to zero at the end.
        first_layer: the lowest one whose adapter learns. From the last of `memory.search_layers` on, what the search
            sees of a question stays as it was.
        weight_decay: of the search. clip: most norm of the gradients of the adapter, and of those of the search.
        need_weight: of the loss of the sense for turns that need a memory; chat_weight, prose_weight: of the losses
            that hold such turns and plain prose to the base, KL(base || reader). The search's own has weight 1.
        lot: turns that are read at once.
        precision: "auto" is bfloat16 where the machine computes fast in it, else float32.
        merge: on a CPU, add the adapter to the weights once a step (`train/merged.py`).
        log_every: steps. save_every_s: seconds between checkpoints. seed: of weights and data.
    """

    model: str
    data: tuple[str, ...]
    memory: MemoryConfig
    lora: Lora | None = field(default_factory=lambda: Lora(r=32, alpha=32, dropout=0.0, targets=("all-linear",)))
    steps: int | None = None
    hours: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    streams: int = 3
    chunks: int = 8
    queue: int = 40
    before: int = 15
    asks: int = 48
    unknown: float = 0.0
    withheld: float = 0.15
    chat: float = 0.1
    waiting: float = 0.08
    told: float = 0.03
    older: float = 0.3
    force: float = 0.6
    force_steps: int = 75
    answer_tokens: int = 24
    lr: float = 2e-3
    lr_search: float = 1.5e-3
    first_layer: int = 0
    warmup: int = 30
    weight_decay: float = 0.01
    clip: float = 1.0
    need_weight: float = 0.3
    chat_weight: float = 0.5
    prose_weight: float = 1.0
    lot: int = 8
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    merge: bool = True
    log_every: int = 10
    save_every_s: float = 120.0
    seed: int = 0

    def check(self) -> None:
        """Raise `ConfigError` unless all of it fits together; single changes may not."""
        if self.steps is None and self.hours is None:
            raise ConfigError("say how long to train: --steps or --hours.")
        if (self.steps is not None and self.steps < 1) or (self.hours is not None and self.hours <= 0):
            raise ConfigError(f"steps = {self.steps} and hours = {self.hours} must be above 0.")
        for name in ("streams", "chunks", "queue", "asks", "answer_tokens", "lot", "force_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1.")
        for name, share in self.shares.items():
            if name not in SHARES:
                raise unknown("--set shares", name, list(SHARES))
            if share < 0:
                raise ConfigError(f"shares.{name} = {share} must not be below 0.")
        memory = self.memory
        wanted = {
            "kept": "keys_values",
            "score_layers": "one",
            "split": "fixed",
            "write_context": "pool",
            "start": True,
        }
        wrong = [name for name, value in wanted.items() if getattr(memory, name) != value]
        if wrong or memory.chunk_tokens != memory.K or not memory.long_term:
            raise ConfigError(
                f"reading is trained on verbatim memory with one search: "
                f"{', '.join(f'memory.{name}={value}' for name, value in wanted.items())}, K = chunk_tokens and a "
                "long-term store."
            )
        if memory.N % memory.K or memory.K0 % memory.K:
            raise ConfigError(f"memory.N = {memory.N} and memory.K0 = {memory.K0} must be multiples of K = {memory.K}.")


def changed(settings: T, changes: Iterable[str]) -> T:
    """Settings with `key=value` changes, in their order.

    Keys are paths ("engine.lanes=4", "stage2.steps=100", "memory.K=256", "stage1.mix.chunks=[1, 4]"). A stage is named
    by its name; "stages" means all of them, as "mix" means all mixes of a stage. Values are TOML, bare words are text.

    Raises:
        ConfigError: no such key, with the nearest one there is; or a value of another type.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write it as key=value.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = None if text in ("none", "None", "null") else text
        settings = _with(settings, key.strip().split("."), value, key.strip())
    return settings


def _with(settings: Any, path: list[str], value: Any, key: str) -> Any:
    """`settings` with the value at `path`."""
    name, rest = path[0], path[1:]
    if isinstance(settings, MemoryConfig) and not rest and name in settings.to_dict():
        try:
            return settings.replace(**{name: value})
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"--set {key}: {error}") from error
    names = [f.name for f in fields(settings)]
    stages = getattr(settings, "stages", ())
    if name == "stages" and rest:
        return replace(settings, stages=tuple(_with(stage, rest, value, key) for stage in stages))
    if rest and name in [stage.name for stage in stages]:
        return replace(
            settings, stages=tuple(_with(s, rest, value, key) if s.name == name else s for s in stages)
        )  # fmt: skip
    if name == "mix" and rest and isinstance(settings, Stage):
        return replace(settings, mixes=tuple(_with(mix, rest, value, key) for mix in settings.mixes))
    if name == "data" and rest and isinstance(settings, Run):
        return replace(settings, data=tuple(_with(data, rest, value, key) for data in settings.data))
    if name not in names:
        also = [s.name for s in stages] + (["mix"] if isinstance(settings, Stage) else [])
        raise unknown(f"--set {key}", name, names + also)
    if rest:
        inner = getattr(settings, name)
        if name == "lora" and inner is None:
            inner = Lora()
        if not is_dataclass(inner):
            raise ConfigError(f"--set {key}: {name} has no parts; write {key[: -1 - len('.'.join(rest))]}=VALUE.")
        return replace(settings, **{name: _with(inner, rest, value, key)})
    if is_dataclass(getattr(settings, name)) and value is not None:
        parts = ", ".join(f.name for f in fields(getattr(settings, name)))
        raise ConfigError(f"--set {key}: name one of its parts: {parts}.")
    kind = get_type_hints(type(settings))[name]
    try:
        return replace(settings, **{name: TypeAdapter(kind).validate_python(value)})
    except ValidationError as error:
        raise ConfigError(f"--set {key}: {error.errors()[0]['msg']}, not {value!r}.") from error


def unknown(where: str, name: str, known: list[str]) -> ConfigError:
    """The error for a name that is none of those known, with the nearest."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}."
    return ConfigError(f"{where}: no setting {name!r}; {hint}")
