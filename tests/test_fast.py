"""`--fast` is quick on any base, and a run says before its first step how long it will take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build_decoder, build_tokenizer, random_text
from remanence.config import MemoryConfig
from remanence.models.pretrained import MemoryModel
from remanence.train import forecast as forecast_module
from remanence.train import run as run_module
from remanence.train.documents import DocumentMix
from remanence.train.forecast import Work, forecast
from remanence.train.loop import Trainer
from remanence.train.run import batches_of, build, stages_run
from remanence.train.settings import Run, Stage
from remanence.train.stages import STAGES, builtin

ALL = ["stage1", "stage2", "stage3"]
FEW = ["engine.precision=float32", "engine.log_every=1", "engine.eval_batches=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder of many positions (base/) and documents."""
    folder = tmp_path_factory.mktemp("home")
    build_decoder("llama", "sdpa", max_position_embeddings=32768).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    rows = [json.dumps({"text": random_text(400, seed)}) for seed in range(300)]
    (folder / "documents.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def fast(home: Path) -> Callable[..., Run]:
    """fast(*changes): a fast run on the documents."""

    def make(*changes: str, stages: list[str] = ALL) -> Run:
        data = [str(home / "documents.jsonl")]
        return stages_run(str(home / "base"), data, stages, changes=[*FEW, *changes], fast=True)

    return make


def trainer_of(run: Run, folder: Path) -> Trainer:
    """As a process of the run has it."""
    model = build(run, folder)
    batches, unknown = batches_of(run, model)
    return Trainer(model, batches, list(run.stages), folder, engine=run.engine, unknown=unknown)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What learns."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_a_fast_run_is_small_whatever_the_base_is(fast: Callable[..., Run], home: Path) -> None:
    """Of a decoder of 32,768 positions: a small memory, short documents, few writes; the rest as it would be."""
    run = fast()
    whole = stages_run(str(home / "base"), [run.data[0].path], ALL, changes=FEW)
    assert whole.memory.N == 10240
    assert (run.memory.K, run.memory.N, run.memory.chunk_tokens, run.memory.window_tokens) == (32, 128, 64, 256)
    for stage, other in zip(run.stages, whole.stages, strict=True):
        assert (stage.name, stage.steps, stage.others[1], stage.earlier) == (other.name, 3, 8, 8)
        assert len(stage.mixes) == len(other.mixes)
        for mix in stage.mixes:
            assert isinstance(mix, DocumentMix)
            assert mix.streams * mix.chunks[1] * mix.tokens[1] + mix.target <= 4 * 64 + 64
    assert run.stages[2].retrieved == run.memory.K0 // run.memory.K > 0
    assert fast("memory.K=16").memory.K == 16
    assert fast("stage2.mix.chunks=[6, 6]").stages[1].mixes[0].chunks == (6, 6)


def test_the_forecast_is_of_what_is_left(fast: Callable[..., Run], tmp_path: Path) -> None:
    """Every stage, from the step at hand on; and nothing that is learnt depends on it."""
    run = fast()
    told, silent = trainer_of(run, tmp_path / "told"), trainer_of(run, tmp_path / "silent")
    left = forecast(told)
    assert [(stage.name, steps) for stage, steps, _ in left] == [(name, 3) for name in ALL]
    assert all(seconds > 0 for _, _, seconds in left)
    for _ in range(2):
        figures = [{k: v for k, v in t.train_step().items() if k not in ("s", "tokens_per_s")} for t in (told, silent)]
        assert figures[0] == figures[1]
    for name, weight in weights(told).items():
        assert weight.equal(weights(silent)[name]), name
    told.stage_index, told.step = 1, 3
    assert [(stage.name, steps) for stage, steps, _ in forecast(told)] == [("stage3", 3)]


def test_the_forecast_reckons_with_what_a_step_computes(
    fast: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second a token forward, two more backward, three where activations are made again; of all lanes and mixes."""
    run = fast("stages.mix.chunks=[4, 4]", "stages.mix.tokens=[50, 50]", "stages.mix.target=60", stages=["stage1"])
    assert (run.stages[0].gradient, run.stages[0].revisit) == (1, 0.2)
    trainer = trainer_of(run, tmp_path)
    monkeypatch.setattr(forecast_module, "_token", lambda trainer, work, stage: 1.0)
    mix = 150 + 50 * 3 + 60 * 1.2 * 3  # three chunks without a gradient, one with; what is read, revisited ones too
    assert forecast(trainer)[0][2] == pytest.approx(mix)
    trainer.engine = replace(trainer.engine, recompute=True)
    assert forecast(trainer)[0][2] == pytest.approx(150 + 50 * 4 + 60 * 1.2 * 4)
    trainer.own = range(2)
    assert forecast(trainer)[0][2] == pytest.approx(2 * (150 + 50 * 4 + 60 * 1.2 * 4))


@pytest.mark.parametrize(
    "stage", [*builtin(), *(STAGES[name](MemoryConfig(), facts) for name in ALL for facts in (True, False))],
    ids=lambda stage: stage.name,
)  # fmt: skip
def test_a_small_batch_stands_for_a_large_one(stage: Stage) -> None:
    """About as many tokens as allowed, or all of them where they are fewer; no longer chunks, no more streams."""
    for mix in stage.mixes:
        whole = Work.of(mix)
        small = whole.within(1024)
        assert small.tokens <= 1.25 * max(1024, whole.length + small.asked)
        assert small.tokens >= min(0.3 * whole.tokens, 300)
        assert small.streams <= whole.streams and small.chunks <= whole.chunks and small.length <= whole.length
        batch = small.batch(259)
        assert batch.chunks_BTn.shape == (small.streams, small.chunks, small.length)
        assert {q.stream for q in batch.questions} == set(range(small.streams))
        assert {len(q.prompt) + len(q.answer) for q in batch.questions} == {small.asked}


def test_a_run_says_how_long_it_will_take(
    fast: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step, on stderr, unless it is to be quiet."""
    run = fast("stages.steps=1", stages=["stage1"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    steps: list[str] = []
    train_step = Trainer.train_step

    def step(self: Trainer) -> dict[str, Any]:
        steps.append(capsys.readouterr().err)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    run_module._train(run, tmp_path / "told", quiet=False)
    said = " ".join(steps[0].split())
    assert re.search(r"stage1: 1 step of about [\d.]+ s\. In all about [\d.]+ s, without measuring and saving\.", said)
    run_module._train(run, tmp_path / "quiet", quiet=True)
    assert "about" not in steps[1]
    assert MemoryModel.from_pretrained(tmp_path / "quiet" / "model").config == run.memory
