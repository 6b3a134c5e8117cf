"""Teaching a judge (`core/judge.py`) which of the things that were looked at answer a question.

Nothing else changes, so everything is read once: lessons are written and asked as in training of reading, what would be
looked at in use is read, each by itself, and the states in which the reader is about to answer are kept in files
("examples-0-0001.safetensors"). On them the judge is then fitted, in a minute. An interrupted run goes on from these,
and so does one that asks for more questions or fits otherwise.

What waits in the window is looked at too, in use: so parts of lessons are also read as text before the question.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.cache import MemoryCache
from ..core.likeness import Likeness
from ..core.looking import speaks
from ..core.model import MemoryDecoder
from ..core.prompts import UNKNOWN
from ..core.search import Question
from ..core.spans import Span
from ..environment import quieten
from ..errors import ConfigError
from ..files import write_text, write_whole
from .fitting import Examples, Fitting, fit_and_measure, layers_of
from .lessons import Lessons, read_material
from .looks import sorted_out
from .reading import ReadingTrainer
from .reading_run import build, number_format, reading_run, saved_run
from .run import check_parent, spawn, work
from .settings import ReadingRun, changed
from .turns import Past, Turn
from .written import Bank, LessonSlots, pick_spans

_LESSONS = (
    "shares={everyday = 0.14, messages = 0.58, made_up = 0.0, passages = 0.2, story = 0.03, prose = 0.05}",
    "streams=1", "queue=40", "before=12", "chat=0", "waiting=0", "told=0", "withheld=0.25", "lr_search=0.0",
)  # fmt: skip
_SECOND = 0.3  # how often two spans that answer are read
_WAITING = 0.5  # how often text before the question, as it waits in the window, is looked at too
_TRIES = 8  # places for it
_FREE = {"questions", *(field.name for field in fields(Fitting))} - {"seed"}  # what was read does not depend on these


@dataclass(frozen=True, kw_only=True)
class JudgeRun(Fitting):
    """A run that teaches a judge; and how it is fitted.

    lessons: what is asked about what; see `ReadingRun`.
    questions: that are read. spans: that each is read with.
    layers: whose incoming states the judge sees; empty are three of the upper half.
    """

    lessons: ReadingRun
    questions: int = 4000
    spans: int = 6
    layers: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise `ConfigError` unless all of it fits together."""
        for name in ("questions", "spans", "hidden", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1.")
        memory = self.lessons.memory
        if not memory.looks or memory.look_at != "sentences":
            raise ConfigError(
                "a judge is for a model that looks at sentences; use --set lessons.memory.look_at=sentences."
            )


def judge_run(model: str, data: Sequence[str | Path], changes: Sequence[str] = ()) -> JudgeRun:
    """The run that teaches a judge to a model whose reading was trained.

    Args:
        model: its folder or hub id, or a name such as smollm2.
        data: files of lessons and texts.
        changes: "key=value"; of the lessons, "lessons.key=value".

    Raises:
        ConfigError: no such model, or a change that cannot be.
    """
    run = changed(JudgeRun(lessons=reading_run(model, data, steps=1, changes=_LESSONS)), changes)
    run.check()
    return run


class Collector:
    """Reads questions with what would be looked at, and keeps the states.

    Args:
        run: its settings.
        folder: for the files; it goes on behind those that are there.
        rank: which of the processes that read it is.
        step: how many files there are.
    """

    def __init__(self, run: JudgeRun, folder: Path, rank: int = 0, step: int = 0) -> None:
        self.run, self.folder, self.rank = run, folder, rank
        self.model, _ = build(run.lessons, number_format(run.lessons.precision, torch.device("cpu")))
        self.layers = run.layers or layers_of(len(self.model.attachment.layers))
        lessons = Lessons(read_material(run.lessons.data), run.lessons.shares)
        self.trainer = ReadingTrainer(self.model, lessons, run.lessons, folder, fresh=False, rank=rank)
        self.trainer.step = step
        self.model.requires_grad_(False)
        self._unknown = self.trainer.asking.answer(UNKNOWN)[0]

    @torch.no_grad()
    def step(self) -> Examples:
        """Write a lesson, ask about it and those before it, and read."""
        trainer, step = self.trainer, self.trainer.step
        if not len(trainer.bank):
            trainer.fill()
        rng = random.Random(f"{self.run.seed}.judge.{step}.{self.rank}")
        generator = torch.Generator().manual_seed((self.run.seed << 32) + (step << 8) + self.rank)
        trainer.bank.add(trainer.streams(step))
        turns = [turn for turn in trainer.draw(rng) if turn.kind != "chat" and not turn.seen]
        past = Past.draw(turns, trainer.bank, rng, generator, pooled=1, older=self.run.lessons.older)
        numbered = list[list[Examples]]()
        with self.model.adapter("read"):
            words, (keys, scores, questions) = trainer.bank.words().cpu(), searched(self.model, trainer.bank, turns)
            for row, turn in enumerate(turns):
                right, wrong = sorted_out(
                    trainer.bank, keys, words, turn, past.allowed_QW[row], int(past.gold_Q[row]), scores[row],
                    questions[row], self.model.config.looks,
                )  # fmt: skip
                if turn.told and not right:
                    continue
                right = right[: 1 + int(rng.random() < _SECOND)]
                most = self.run.spans - len(right)
                others = wrong[: most - 1] + rng.sample(wrong[most - 1 :], min(1, len(wrong[most - 1 :])))
                number = len(numbered)
                some = [self._read(turn.prompt, [*right, *others], len(right), number)] if right or others else []
                if rng.random() < _WAITING:
                    for text, answers in self._texts(turn, right[:1], rng):
                        some.append(self._read(text + turn.prompt, [None], int(answers), number))
                numbered += [some] if some else []
        read = [one for some in numbered for one in some]
        if not read:
            raise ConfigError("the lessons ask nothing that was written to memory; give --lessons with questions.")
        trainer.step = step + 1
        examples = Examples.together(read)
        parts = {
            "states": examples.states_EJD, "says": examples.says_E, "right": examples.right_E,
            "question": examples.question_E,
        }  # fmt: skip
        write_whole(_path(self.folder, self.rank, step), lambda path: save_file(parts, path))
        return examples

    def _texts(self, turn: Turn, right: Sequence[Span], rng: random.Random) -> Iterator[tuple[list[int], bool]]:
        """Parts of the turn's lesson as they may wait in the window, and whether they answer: one that does, if any."""
        stream, size = self.trainer.bank.streams[turn.stream], self.model.config.chunk_tokens
        ids, first = [token for chunk in stream.chunks for token in chunk], stream.first * size
        for span in right:
            if span.end - span.first >= size:
                continue
            length = rng.randint(span.end - span.first, size - 1)
            begin = rng.randint(max(0, span.end - first - length), span.first - first)
            yield ids[begin : begin + length], True
        asked, banned = turn.asked, set[int]()
        if asked is not None and asked.token is not None:
            banned = {asked.token, *asked.older_tokens}
        for _ in range(_TRIES):
            length = rng.randint(4, size - 1)
            begin = rng.randrange(max(1, len(ids) - length))
            if banned.isdisjoint(range(begin, begin + length + size)):  # what answers may go on behind it
                yield ids[begin : begin + length], False
                return

    def _read(self, prompt: list[int], spans: Sequence[Span | None], right: int, number: int) -> Examples:
        """The states behind a prompt, with each span or nothing; the first ones answer it."""
        attachment = self.model.attachment
        with attachment.hooks():
            slots = LessonSlots(self.trainer.bank, pick_spans([[] if span is None else [span] for span in spans]))
            cache = MemoryCache(slots, len(attachment.layers))
            tokens = torch.tensor([prompt] * len(spans), device=attachment.device)
            read = attachment.decoder(tokens, past_key_values=cache, use_cache=True, output_hidden_states=True)
        logits = attachment.logits(read.last_hidden_state[:, -1]).float().log_softmax(-1)
        states = torch.stack([read.hidden_states[layer][:, -1].cpu() for layer in self.layers], 1)
        return Examples(
            states.to(torch.bfloat16),
            speaks(logits[:, self._unknown].exp()).cpu(),
            torch.arange(len(spans)) < right,
            torch.full((len(spans),), number),
        )


def kept(folder: Path, rank: int) -> list[Examples]:
    """What one process has read; of a file that was cut short, and of those behind it, nothing."""
    read = list[Examples]()
    while (path := _path(folder, rank, len(read))).exists():
        try:
            parts = load_file(path)
            read.append(Examples(parts["states"], parts["says"], parts["right"], parts["question"]))
        except (SafetensorError, KeyError, OSError):
            break
    return read


def _ranks(folder: Path) -> list[int]:
    """The processes of which something was kept."""
    return sorted({int(path.name.split("-")[1]) for path in folder.glob("examples-*.safetensors")})


def _path(folder: Path, rank: int, step: int) -> Path:
    return folder / f"examples-{rank}-{step:04}.safetensors"


def searched(model: MemoryDecoder, bank: Bank, turns: Sequence[Turn]) -> tuple[Tensor, Tensor, list[Question]]:
    """What any search finds for turns: keys of writes [W, G, R], scores of all of them [Q, W], and what is compared."""
    keys_WGR = model.retriever.keys(bank.features(), model.config.key_group).float().cpu()
    words_WK, (ids_QT, asks_QT, features_QTF) = bank.words().cpu(), model.asked([turn.words for turn in turns])
    asked = zip(ids_QT, asks_QT, features_QTF, strict=True)
    questions = [model.retriever.question(ids_T[asks_T], features_TF[asks_T]) for ids_T, asks_T, features_TF in asked]
    return keys_WGR, torch.stack([question.scores([keys_WGR], [words_WK]) for question in questions]), questions


def launch(
    run: JudgeRun, out: Path, *, processes: int = 1, quiet: bool = False, stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Teach a judge, or go on with what the folder has.

    Args:
        run: its settings. Of a run that was begun, the number of questions and how a judge is fitted may change.
        out: folder of the run.
        processes: that read, each lessons of its own.
        quiet: no progress bar.
        stop: with one process, whether to end after what is being read.

    Returns:
        {"model": folder that `from_pretrained` takes, or None if the run was ended before, "questions": that were read,
        "figures": as of `fit_and_measure`, or None}.

    Raises:
        ConfigError: the folder holds another run; or settings that do not fit.
        InputError: files that cannot be read.
        RemanenceError: a process failed; its last words are on stderr.
    """
    path = out / "config.json"
    if path.exists() and replace(load_run(out), **{name: getattr(run, name) for name in _FREE}) != run:
        raise ConfigError(f"{out} holds another run (see its config.json); give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(run), indent=2) + "\n")
    done = True
    if processes > 1:
        spawn("remanence.train.judging", out, processes, quiet)
    else:
        done = _collect(run, out, 0, 1, quiet, stop)
    read = [one for rank in _ranks(out) for one in kept(out, rank)]
    questions = sum(one.count for one in read)
    if not done:
        return {"model": None, "questions": questions, "figures": None}
    judge, figures = fit_and_measure(Examples.joined(read), run)
    write_text(out / "figures.json", json.dumps({"read": questions} | figures, indent=2) + "\n")
    model, _ = build(run.lessons)  # the base as it is stored, whatever it was read in
    layers = run.layers or layers_of(len(model.attachment.layers))
    model.config = model.config.replace(judge_layers=layers, judge_hidden=run.hidden)
    model.judge = judge.to(model.base.dtype)
    if not isinstance(model.retriever, Likeness):  # that stays in float32
        for parameter in model.retriever.parameters():
            parameter.data = parameter.data.to(model.base.dtype)  # in which it was saved
    model.save_pretrained(out / "model", base=model.base_name is None)
    return {"model": str(out / "model"), "questions": questions, "figures": figures}


def load_run(out: Path) -> JudgeRun:
    """Read `config.json`.

    Raises:
        ConfigError: there is none, or it is of another kind of run.
    """
    return saved_run(out, JudgeRun, "teaches a judge")


def _collect(
    run: JudgeRun, out: Path, rank: int, processes: int, quiet: bool, stop: Callable[[], bool] | None = None
) -> bool:
    """Read the share of one process; whether all of it was read."""
    from rich.console import Console
    from rich.progress import Progress

    quieten()
    others = (rank for rank in _ranks(out) if rank >= processes)  # of a run that had more processes
    missing = run.questions - sum(one.count for rank in others for one in kept(out, rank))
    wanted = -(-missing // processes)
    read = kept(out, rank)
    done = sum(one.count for one in read)
    if done >= wanted:
        return True
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    collector = Collector(run, out, rank, len(read))
    with Progress(console=Console(stderr=True), disable=quiet or rank > 0) as progress:
        bar = progress.add_task("reading questions", total=wanted)
        while done < wanted:
            progress.update(bar, completed=done)
            if stop is not None and stop():
                return False
            check_parent()
            done += collector.step().count
        progress.update(bar, completed=wanted)
    return True


def main(arguments: list[str]) -> None:
    """One process of the run, as `spawn` starts it."""
    out, rank, world = Path(arguments[0]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    work(out, lambda: _collect(load_run(out), out, rank, world, "--quiet" in arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
