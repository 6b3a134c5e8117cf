"""Training any decoder: settings, engines that agree, checkpoints that any of them goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import close
from remanence import ConfigError, MemoryModel
from remanence.config import MemoryConfig
from remanence.core.attachment import VectorSlots
from remanence.core.cache import MemoryCache
from remanence.errors import RemanenceError
from remanence.train import run as run_module
from remanence.train.bank import Past
from remanence.train.data import Batch, Question, build_tokenizer
from remanence.train.parallel import zero_config
from remanence.train.run import build, builtin_run, launch, load_run, save_run, stages_run
from remanence.train.settings import Engine, Lora, Run, changed
from remanence.train.stages import memory_for
from test_cli import run as run_here
from test_train import prose_text, trained, training_here

FEW = "engine.precision=float32", "engine.lanes=2", "engine.log_every=1", "engine.eval_every=2", "engine.eval_batches=1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder that knows nothing of memory (base/) and prose."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = build_tokenizer(prose_text(4000), vocab_size=600)
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True, max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
        )
    )  # fmt: skip
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "prose.txt").write_text(prose_text(20_000), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(Path(run_module.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture(scope="module")
def few(home: Path) -> Callable[..., Run]:
    """few(*changes): three steps of every stage on made-up facts."""

    def make(*changes: str, stages: tuple[str, ...] = ("stage1", "stage2", "stage3")) -> Run:
        return stages_run(
            str(home / "base"), [], list(stages), prose=home / "prose.txt", changes=[*FEW, *changes], fast=True
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def whole(few: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run that others are compared with: one process with two lanes, all stages, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert trained(few(), out)["model"] == str(out / "model")
    return out


def log(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("s", "tokens_per_s")} for line in lines]


def same(one: list[dict[str, Any]], two: list[dict[str, Any]], tolerance: float) -> None:
    """Two logs with equal figures."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, abs=tolerance)), key


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_are_changed_by_their_path(few: Callable[..., Run]) -> None:
    """Stages by name or all of them, mixes, parts; TOML values; lists become tuples."""
    run = few()
    new = changed(
        run, ["stage2.steps=7", "stages.lr=1e-4", "lora.r=32", "stage1.mix.streams=2",
              "engine.trackers=['tensorboard']", "stage3.others=[3, 9]",
              "engine.lanes=none", "engine.parallel=fsdp2", "memory.recency=1.5"],
    )  # fmt: skip
    assert [s.steps for s in new.stages] == [3, 7, 3]
    assert {s.lr for s in new.stages} == {1e-4}
    assert (new.lora.r, new.lora.alpha) == (32, 32)
    assert {m.streams for m in new.stages[0].mixes} == {2}
    assert {m.streams for m in new.stages[1].mixes} == {m.streams for m in run.stages[1].mixes}
    assert (new.engine.trackers, new.engine.lanes, new.engine.parallel) == (("tensorboard",), None, "fsdp2")
    assert (new.stages[2].others, new.memory.recency) == ((3, 9), 1.5)
    assert changed(run, ["lora=none"]).lora is None
    assert changed(changed(run, ["lora=none"]), ["lora.r=4"]).lora == Lora(r=4)
    assert changed(run, []) == run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stage2.stepz=3", "did you mean 'steps'"),
        ("engin.lanes=3", "did you mean 'engine'"),
        ("stage9.steps=3", "did you mean 'stage"),
        ("lora.rank=3", "no setting 'rank'; there are: r, alpha"),
        ("memory.KK=3", "did you mean 'K"),
        ("memory.K=1000", "memory.K"),
        ("stage1.steps=many", "stage1.steps"),
        ("engine.parallel=ddp3", "engine.parallel"),
        ("seed", "key=value"),
        ("engine=3", "name one of its parts: lanes"),
        ("seed.x=3", "seed has no parts"),
    ],
)
def test_wrong_changes_say_what_is_wrong(change: str, words: str, few: Callable[..., Run]) -> None:
    """One line, with the nearest name there is."""
    with pytest.raises(ConfigError) as caught:
        changed(few(), [change])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_is_written_and_read(few: Callable[..., Run], home: Path, tmp_path: Path) -> None:
    """config.json gives the run back, facts and documents; a broken one is refused."""
    documents = stages_run(str(home / "base"), ["x.jsonl", "fineweb-edu"], ["stage1", "stage2", "stage3"])
    for run in (few(), documents, builtin_run(home / "prose.txt")):
        save_run(run, tmp_path)
        assert load_run(tmp_path) == run
        assert TypeAdapter(Run).validate_python(asdict(run)) == run
    (tmp_path / "config.json").write_text('{"model": 3', encoding="utf-8")
    with pytest.raises(ConfigError, match="no training run"):
        load_run(tmp_path)


@pytest.mark.parametrize("positions", [128, 256, 512, 2048, 8192, 131072])
def test_memory_fits_the_positions(positions: int) -> None:
    """Window and slots within what the model was trained for; the papers' sizes where they fit."""
    memory = memory_for(positions)
    assert memory.slots + memory.window_tokens <= positions
    assert memory.K0 >= memory.K
    assert memory.N >= memory.K
    if positions >= 16384:
        assert (memory.K, memory.N, memory.K0, memory.chunk_tokens) == (256, 10240, 2560, 512)


def test_each_stage_is_the_one_before_and_more(home: Path) -> None:
    """MemoryLLM, longer pasts, then the long-term store; facts and documents."""
    for sources in ([], ["x.jsonl"]):
        run = stages_run(str(home / "base"), sources, ["stage1", "stage2", "stage3"], prose=home / "prose.txt")
        one, two, three = run.stages
        assert one.retrieved == two.retrieved == 0
        assert three.retrieved == run.memory.K0 // run.memory.K > 0
        assert one.others[1] <= two.others[1] <= three.others[1]
        assert {s.pool for s in run.stages} == {run.memory.N}
        longest = [max(m.chunks if isinstance(m.chunks, int) else m.chunks[1] for m in s.mixes) for s in run.stages]
        assert longest == sorted(longest)


# The past -------------------------------------------------------------------------------------------------------------


def test_the_past_keeps_whole_documents() -> None:
    """Newest last; at most so many writes; questions of what is kept only; given back as it was."""
    past, most = Past(), 7
    for step in range(6):
        streams, chunks = 2, 1 + step % 3
        questions = [Question([step], [1], s, chunks - 1, []) for s in range(streams)]
        names = [[f"{step}/{w}"] for w in range(streams * chunks)]
        first = torch.rand(streams, chunks) < 0.5
        batch = Batch(torch.zeros(streams, chunks, 4, dtype=torch.long), first, questions, names)
        vectors = [torch.full((streams * chunks, 2, 3), 10.0 * step + layer, requires_grad=True) for layer in range(2)]
        past.add(vectors, batch, most)
        assert len(past) <= most
        assert not past.vectors_LWKD.requires_grad
        assert past.vectors_LWKD.shape == (2, len(past), 2, 3)
        assert past.owner_W.tolist() == sorted(past.owner_W.tolist())
        assert set(past.asked) == set(past.owner_W.tolist())
        again = Past.of(*json.loads(json.dumps(past.state()[1])) and (past.state()[0], past.state()[1]))
        assert (again.asked, again.subjects) == (past.asked, past.subjects)
        assert len(past.subjects) == len(past)
        assert past.subjects[-1] == names[-1]
        assert torch.equal(again.vectors_LWKD, past.vectors_LWKD)
    assert past.documents == 12
    assert past.owner_W[-1] == 11
    nine = torch.zeros(1, 9, dtype=torch.bool)
    long = Batch(torch.zeros(1, 9, 4, dtype=torch.long), nine, [Question([0], [1], 0, 8, [])], [["x"]] * 9)
    past.add([torch.zeros(9, 2, 3)] * 2, long, most)  # longer than the past may be: nothing is left
    assert (len(past), past.subjects, past.asked, past.documents) == (0, [], {}, 13)


# Recomputation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["output", "input"])
def test_recomputed_layers_have_the_same_gradients(home: Path, tap: str) -> None:
    """Gradient checkpointing with memory in the cache: written vectors, read vectors, adapters; and it saves memory."""
    found = {}
    for recompute in (False, True):
        run = Run(model=str(home / "base"), memory=MemoryConfig(
            K=8, N=16, K0=8, chunk_tokens=16, window_tokens=32, tap=tap), lora=Lora(dropout=0.0))  # fmt: skip
        model = run_module.build(run, home)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(model.offset, generator=torch.Generator().manual_seed(2))
        ids = torch.randint(3, 600, (2, 16), generator=torch.Generator().manual_seed(0))
        saved: list[int] = []

        def note(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        def wrap(role: str, model: Any = model, recompute: bool = recompute) -> Any:
            stack = ExitStack()
            stack.enter_context(model.adapter(role))
            if recompute:
                stack.enter_context(model.attachment.recomputing(lambda: model.adapter(role)))
            return stack

        with model.attachment.hooks(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            with wrap("write"):
                cache = model.write_cache([torch.zeros(2, 0, 32)] * 2)
                model.attachment.decoder(ids, past_key_values=cache, use_cache=True)
            with wrap("read"):
                read = MemoryCache(VectorSlots(model.attachment, cache.kept), 2)
                hidden = model.attachment.decoder(ids, past_key_values=read, use_cache=True).last_hidden_state
            loss = model.attachment.logits(hidden).float().logsumexp(-1).mean()
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[recompute] = loss.detach(), gradients, sum(saved)
    assert torch.equal(found[False][0], found[True][0])
    assert found[False][1].keys() == found[True][1].keys()
    assert any(".write." in name for name in found[True][1])
    for name, gradient in found[False][1].items():
        close(found[True][1][name], gradient)
    assert found[True][2] < 0.6 * found[False][2]


# Engines --------------------------------------------------------------------------------------------------------------


def test_three_stages_leave_the_base_as_it_was(few: Callable[..., Run], whole: Path) -> None:
    """All steps are logged, with held-out figures and how far the reader is from its base; what comes of it answers."""
    lines = log(whole)
    assert [line["total"] for line in lines] == list(range(1, 10))
    assert any("held_loss" in line for line in lines)
    assert sum("from_base" in line for line in lines) > 1  # both adapters and the base's own passes
    _is_a_model_on(few().model, whole / "model")


def _is_a_model_on(base_folder: str, folder: Path) -> None:
    """It remembers and answers, and without memory it is its base, bit for bit."""
    model = MemoryModel.from_pretrained(folder)
    base = LlamaForCausalLM.from_pretrained(base_folder)
    ids = torch.randint(3, 600, (1, 20))
    with model.plain() as plain:
        assert torch.equal(plain(ids).logits, base(ids).logits)
    memory = model.new_memory()
    model.memorize(memory, "The key is under the blue pot. " * 20)
    assert model.ask(memory, "Where is the key?", max_new_tokens=3).ids


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_engines_agree(parallel: str, few: Callable[..., Run], whole: Path, tmp_path: Path) -> None:
    """Two processes with one lane each have the losses of one process with two lanes."""
    launch(few(f"engine.parallel={parallel}"), tmp_path, processes=2, quiet=True)
    same(log(tmp_path), log(whole), 2e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_engine(few: Callable[..., Run], whole: Path, tmp_path: Path) -> None:
    """Killed again and again, and going on each time with another engine, it has the losses and the weights of the
    run that was never interrupted."""
    result = _killed_and_resumed(few, tmp_path, [([], 2), (["engine.parallel=fsdp2"], 2), ([], 1)])
    assert result["model"] == str(tmp_path / "model")
    same(log(tmp_path), log(whole), 2e-4)
    one, two = (load_file(folder / "model" / "memory.safetensors") for folder in (whole, tmp_path))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-4, rtol=1e-3)
    _is_a_model_on(few().model, tmp_path / "model")


def _killed_and_resumed(few: Callable[..., Run], out: Path, engines: list[tuple[list[str], int]]) -> dict[str, Any]:
    """A run whose processes are killed after its 3rd and 6th step; it goes on with the next (changes, processes)."""
    for stop, (changes, processes) in zip((3, 6), engines[:-1], strict=True):
        with _Killed(out / "log.jsonl", stop) as killed:
            with pytest.raises(RemanenceError, match=f"exit codes .*{-signal.SIGKILL}"):
                launch(few("engine.save_every_s=0", *changes), out, processes=processes, quiet=True)
            assert len(killed.processes) == processes
        assert stop <= len((out / "log.jsonl").read_bytes().splitlines()) < 9
    changes, processes = engines[-1]
    return launch(few("engine.save_every_s=0", *changes), out, processes=processes, quiet=True)


class _Killed:
    """Kills the processes that are started meanwhile, as soon as a log has so many lines."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path, self.lines, self.over = path, lines, threading.Event()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.patch, self.thread = pytest.MonkeyPatch(), threading.Thread(target=self._watch)

    def __enter__(self) -> _Killed:
        start, processes = subprocess.Popen, self.processes

        def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            processes.append(start(*arguments, **options))
            return processes[-1]

        self.patch.setattr(subprocess, "Popen", noted)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.patch.undo()

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            if self.path.exists() and len(self.path.read_bytes().splitlines()) >= self.lines:
                for process in self.processes:
                    process.kill()
                return


@pytest.mark.slow
def test_deepspeed_agrees_with_the_others(few: Callable[..., Run], tmp_path: Path) -> None:
    """ZeRO 1 and 2 have the losses of one process; killed, they go on from each other's checkpoints."""
    pytest.importorskip("deepspeed", reason="needs: pip install 'remanence[deepspeed]'")
    # DeepSpeed clips all gradients together, and what a sub-task leaves out has a gradient of zero, not none.
    far = "engine.clip=1e9", "stages.in_context=0"
    zero1 = tmp_path / "zero1.json"
    zero1.write_text('{"zero_optimization": {"stage": 1}}')
    trained(few(*far), tmp_path / "one")
    expected = log(tmp_path / "one")
    for name, changes in {"zero1": [f"engine.deepspeed={zero1}"], "zero2": []}.items():
        launch(few(*far, "engine.parallel=deepspeed", *changes), tmp_path / name, processes=2, quiet=True)
        same(log(tmp_path / name), expected, 2e-4)
    launch(few(*far, "engine.parallel=deepspeed"), tmp_path / "both", processes=1, quiet=True)  # both lanes in one
    same(log(tmp_path / "both"), expected, 2e-4)
    zero = [*far, "engine.parallel=deepspeed"], 2
    _killed_and_resumed(few, tmp_path / "killed", [zero, ([*far], 2), zero])
    same(log(tmp_path / "killed"), expected, 2e-4)


@pytest.mark.slow
def test_a_process_refuses_in_one_line(
    few: Callable[..., Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What only the processes can see, such as a library that is not there or cannot do it, or data for one only."""
    with pytest.raises(ConfigError, match=r"optimizer=muon needs whole matrices; use engine.parallel=ddp"):
        launch(few("engine.parallel=fsdp2", "engine.optimizer=muon"), tmp_path / "run", processes=2, quiet=True)
    one = tmp_path / "one.txt"
    one.write_text("A single document, which goes to one of the two processes. " * 400)
    lonely = stages_run(few().model, [str(one)], ["stage1"], fast=True)
    with pytest.raises(ConfigError, match=r"one\.txt has no document to train on for process \d of 2"):
        launch(lonely, tmp_path / "lonely", processes=2, quiet=True)
    assert "Traceback" not in capfd.readouterr().err
    assert not list(tmp_path.rglob("refused.txt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3 is not supported; take 1 or 2"),
        ('{"gradient_clipping": 1, "bf16": {"enabled": true}}', "sets bf16, gradient_clipping;"),
        ("{", "give a DeepSpeed config.json"),
    ],
)
def test_a_wrong_deepspeed_config_is_refused(text: str, words: str, tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "zero.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        zero_config(Engine(parallel="deepspeed", deepspeed=str(tmp_path / "zero.json")))
    given = '{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "wall_clock_breakdown": true}'
    (tmp_path / "zero.json").write_text(given)
    config = zero_config(Engine(deepspeed=str(tmp_path / "zero.json"), clip=2.0))
    assert config["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert config["wall_clock_breakdown"] and config["gradient_clipping"] == 2.0


@pytest.mark.slow
def test_other_settings_of_the_engine_train_too(few: Callable[..., Run], tmp_path: Path) -> None:
    """bfloat16, recomputed layers; recomputing changes nothing."""
    runs = {"plain": few("lora.dropout=0", stages=("stage3",)),
            "recompute": few("lora.dropout=0", "engine.recompute=true", stages=("stage3",))}  # fmt: skip
    for name, run in runs.items():
        trained(run, tmp_path / name)
    same(log(tmp_path / "plain"), log(tmp_path / "recompute"), 2e-4)
    half = few("engine.precision=bfloat16", "engine.trackers=['tensorboard']", stages=("stage1",))
    half = replace(half, model=str(tmp_path / "half-base"))
    base = LlamaForCausalLM.from_pretrained(few().model).to(torch.bfloat16)
    base.save_pretrained(half.model)
    AutoTokenizer.from_pretrained(few().model).save_pretrained(half.model)
    published = few("memory.key_group=1", "memory.score_bias=0", "memory.recency=0", "memory.score=vector")
    for name, run in {"half": half, "published": published}.items():
        result = trained(run, tmp_path / name)
        assert all(0 < line["loss"] < 20 for line in log(tmp_path / name))
        model = MemoryModel.from_pretrained(result["model"])
        memory = model.new_memory()
        model.memorize(memory, "The key is under the blue pot. " * 20)
        assert model.ask(memory, "Where is the key?", max_new_tokens=3).ids
    assert list((tmp_path / "half").rglob("events.out.tfevents*"))
    assert model.config.score == "vector"
    assert next(MemoryModel.from_pretrained(tmp_path / "half" / "model").base.parameters()).dtype == torch.bfloat16


def test_a_folder_of_another_run_is_left_alone(few: Callable[..., Run], tmp_path: Path) -> None:
    """Other settings than the folder's are refused, those of the engine are not; so is a second start if unwanted."""
    run = few()
    save_run(run, tmp_path)
    with pytest.raises(ConfigError, match="holds another run"):
        launch(replace(run, seed=1), tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        launch(run, tmp_path, resume=False)
    with pytest.raises(ConfigError, match="processes"):
        run_module.Trainer(
            run_module.build(run, tmp_path), lambda *_: iter(()), list(run.stages), tmp_path,  # type: ignore[arg-type,return-value]
            engine=replace(run.engine, lanes=3), accelerator=_Two(),
        )  # fmt: skip


class _Two:
    """An accelerator of two processes."""

    process_index, num_processes = 0, 2


@pytest.fixture(autouse=True)
def _logs() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


# The command line -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`remanence ARGUMENTS` in this process, which also trains in it."""
    with training_here():
        return run_here("unused", *arguments)


WORDS = "the boat was lost at sea and nobody knew where the old captain had gone that winter"


@pytest.fixture
def on_documents(home: Path, tmp_path: Path) -> tuple[list[str], list[str], list[str]]:
    """Arguments for a few steps on a jsonl file: what every run takes, sizes of a new memory, small mixes."""
    documents = tmp_path / "documents.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        for i in range(300):
            text = " ".join(f"{word} {i}" if j % 7 == 0 else word for j, word in enumerate(WORDS.split() * (4 + i % 5)))
            file.write(json.dumps({"text": text}) + "\n")
    common = ["--data", str(documents), "--fast", "--json", "--set", "engine.log_every=1"]
    sizes = [item for k in ("K=8", "N=16", "K0=16", "chunk_tokens=16") for item in ("--set", f"memory.{k}")]
    mixes = "chunks=[1, 3]", "tokens=[8, 16]", "target=40", "prompt=[4, 12]"
    return common, sizes, [item for mix in mixes for item in ("--set", f"stages.mix.{mix}")]


def _is_a_run_on_documents(done: subprocess.CompletedProcess[str], out: Path, documents: str) -> dict[str, Any]:
    """All stages trained, each made a model, and the last one remembers; what the command said."""
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == result["last"]["total"] == 9
    lines = log(out)
    assert [line["stage"] for line in lines] == ["stage1"] * 3 + ["stage2"] * 3 + ["stage3"] * 3
    assert all(0 < line["loss"] < 20 for line in lines)
    assert any("recall" in line for line in lines)
    config = json.loads((out / "config.json").read_text())
    assert (config["memory"]["K"], config["data"][0]["path"]) == (8, documents)
    for name in ("model-stage1", "model-stage2", "model"):
        model = MemoryModel.from_pretrained(out / name)
        assert model.lora is not None
    memory = model.new_memory()
    model.memorize(memory, WORDS * 5)
    assert memory.write_count > 0
    assert model.ask(memory, "Who was lost?", max_new_tokens=3).ids
    assert "stage3" in (out / "model" / "README.md").read_text()
    return result


def test_from_documents_to_a_model_that_remembers(home: Path, on_documents: Any, tmp_path: Path) -> None:
    """All stages on a jsonl file, with the writes of earlier batches; then on from what came of it; curves; a card."""
    common, sizes, mixes = on_documents
    out = tmp_path / "run"
    begun = command("train", "curriculum", "--model", str(home / "base"), "--out", str(out), *common, *sizes, *mixes)
    result = _is_a_run_on_documents(begun, out, common[1])
    on = command("train", "stage3", "--model", result["model"], "--out", str(tmp_path / "on"), *common, *mixes)
    assert on.returncode == 0, on.stderr
    assert json.loads((tmp_path / "on" / "config.json").read_text())["memory"]["K"] == 8  # the model's own
    picture = tmp_path / "curves.png"
    drawn = command("train", "plot", str(out), str(tmp_path / "on"), "--out", str(picture), "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_the_real_command_trains(home: Path, on_documents: Any, tmp_path: Path) -> None:
    """As the test before, in processes of its own: nothing but the result is on stdout, whatever they say."""
    common, sizes, mixes = on_documents
    out = tmp_path / "run"
    arguments = "train", "curriculum", "--model", str(home / "base"), "--out", str(out), *common, *sizes, *mixes
    done = subprocess.run(
        [sys.executable, "-m", "remanence", *arguments], capture_output=True, text=True, timeout=800, check=False
    )
    _is_a_run_on_documents(done, out, common[1])


def test_a_model_with_memory_is_trained_on(few: Callable[..., Run], home: Path, tmp_path: Path) -> None:
    """It begins with its own settings; those of its memory can be changed, its adapters cannot."""
    first = few("lora.r=4", "memory.recency=1.5", stages=("stage1",))
    folder = str(tmp_path / "model")
    build(first, tmp_path).save_pretrained(folder)

    def on(*changes: str) -> Run:
        return stages_run(folder, [], ["stage2"], prose=home / "prose.txt", changes=list(changes), fast=True)

    assert (on().memory, on().lora) == (first.memory, replace(first.lora, targets=on().lora.targets))
    assert set(on().lora.targets) == set(first.lora.targets)
    assert build(on("memory.recency=0.5"), tmp_path).config == first.memory.replace(recency=0.5)
    assert builtin_run(home / "prose.txt", begin=folder).memory == first.memory
    for change in ("lora.r=8", "lora=none"):
        with pytest.raises(ConfigError, match="adapters already"):
            on(change)


def test_misuse_of_train_is_one_line(home: Path, tmp_path: Path) -> None:
    """Exit code 2, and what to do; nothing is written."""
    base = str(home / "base")
    for arguments, words in {
        ("stage1", "--model", base): "--data",
        ("stage1", "--model", base, "--data", "facts", "--prose", str(home / "none.txt")): "no prose",
        ("stage1", "--model", str(home / "none"), "--data", "facts", "--prose", str(home / "prose.txt")): "cannot load",
        ("curriculum", "--model", base, "--data", "x.txt", "--set", "stage4.steps=3", "--show"): "did you mean",
        ("plot", str(tmp_path)): "log",
    }.items():
        done = command("train", *arguments, "--out", str(tmp_path / "run.png"))
        assert done.returncode == 2, (arguments, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run.png").exists()
    shown = command("train", "curriculum", "--model", base, "--data", "x.txt", "--set", "stage2.steps=5", "--show")
    assert [s["steps"] for s in json.loads(shown.stdout)["stages"]][1] == 5
