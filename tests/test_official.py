"""The published models: recorded runs of the official code on a stock Llama, and checkpoints of its layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from conftest import ROOM, close, led
from remanence import cli
from remanence.core.attachment import Attachment, VectorSlots
from remanence.core.cache import MemoryCache
from remanence.core.ledger import Ledger
from remanence.core.memory import Memory
from remanence.errors import ConfigError
from remanence.models import checkpoint as convert
from remanence.models import published
from remanence.models.pretrained import MemoryModel
from remanence.store import MemoryStore

GOLDENS = Path(__file__).parent / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/trace.json"))
# What a case was recorded with, and its config.json does not say.
SETTINGS: dict[str, dict[str, Any]] = {
    "mplus_bf16_rope": {"rotary_dtype": "bfloat16"},
    "mplus_train_ages": {"read_order": "age"},
}
LAYERS = 3


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character, as many as the recorded models have."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(c): c - 30 for c in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder_of(case): a checkpoint of the official layout, with a tokenizer. Leave it as it is."""

    @cache
    def make(case: str) -> Path:
        folder = tmp_path_factory.mktemp("official") / case
        shutil.copytree(GOLDENS / case / "model", folder)
        build_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def load(folder_of: Callable[[str], Path]) -> Callable[..., MemoryModel]:
    """load(case, attention): the model of a recorded run, loaded once. Leave it as it is."""

    @cache
    def make(case: str, attention: str = "eager") -> MemoryModel:
        settings = SETTINGS.get(case, {})
        return MemoryModel.from_pretrained(folder_of(case), settings=settings, attn_implementation=attention)

    return make


@dataclass
class Trace:
    """A recorded run."""

    case: str

    def __post_init__(self) -> None:
        about = json.loads((GOLDENS / self.case / "trace.json").read_text(encoding="utf-8"))
        self.seed, self.steps, self.extras = about["seed_trace"], about["steps"], about["extras"]
        self.tensors = load_file(GOLDENS / self.case / "trace.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def ids(self, name: str) -> list[int]:
        return self[f"{name}.input_ids"][0].tolist()

    def same(self, name: str, found: Tensor) -> None:
        """Numbers of every layer or row equal as far as float32 reaches, indices exactly."""
        expected = self[name]
        if not expected.is_floating_point() or expected.dtype == torch.float64:  # ages and counts are float64 there
            assert found.tolist() == expected.tolist(), name
            return
        assert found.shape == expected.shape, name
        for part, wanted in zip(found, expected, strict=True) if found.ndim == 3 else [(found, expected)]:
            close(part, wanted, what=name)

    def equal(self, name: str, found: Tensor) -> None:
        """The same to the last bit."""
        assert torch.equal(found, self[name]), name


# Recorded runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_recorded_run(case: str, attention: str, load: Callable[..., MemoryModel]) -> None:
    """Every write and every read of a recorded run, from our machinery."""
    memory = replay(load(case, attention), Trace(case))
    assert memory.copy().tensors().keys() == memory.tensors().keys()


def replay(model: MemoryModel, trace: Trace) -> Memory:
    """Go through a recorded run, each step compared and taken from where the recorded one was.

    The vectors that a write makes are compared, and then the recorded ones are put in their place: so a step shows the
    rounding of this step alone, and not that of twelve writes in a row, which grows to a hundred times as much and is
    another on every CPU. All else (who stays, who leaves, in which order, ages, counts) is ours from start to end.
    """
    memory = model.new_memory(seed=trace.seed)
    for step in trace.steps:
        (write if step["op"] == "inject" else read)(model, memory, trace, step["name"])
    return memory


def written(model: MemoryModel, memory: Memory, trace: Trace, name: str) -> None:
    """Write, compare the new vectors and their keys, and put the recorded vectors in their place."""
    recorded = trace[f"{name}.delta_memory"]
    keys = model.retriever_keys(recorded) if model.config.long_term else None
    with led(memory, lambda _: (recorded, keys), name):
        model.write(memory, trace.ids(name))


def write(model: MemoryModel, memory: Memory, trace: Trace, name: str) -> None:
    """One write: new vectors, who left, the pool, and the books."""
    K, before = model.config.K, memory.pool_rows_Ln
    written(model, memory, trace, name)
    trace.equal(f"{name}.memory", memory.pool_LnD)
    if f"{name}.perm" in trace:
        stayed = memory.pool_rows_Ln[:, :-K]
        remaining = trace[f"{name}.remaining"].expand(LAYERS, -1)
        dropped = trace[f"{name}.dropped"].expand(LAYERS, -1)
        assert stayed.equal(before.gather(1, remaining))
        assert not (before.gather(1, dropped)[:, :, None] == stayed[:, None]).any() or "uninit" in trace.case
    books = memory.ledger
    assert (books is not None) == (f"{name}.memory_ages" in trace)
    if books is None:
        return
    aged = 0 if memory.config.read_order == "left" else books.clock
    trace.same(f"{name}.memory_ages", books.pool_stamps_Ln + aged)
    for l in range(LAYERS):
        merged, keys = len(books.rows[l]), torch.cat(memory.keys(l)).flatten(0, 1)
        rows, place = books.listed(l), books.listed(l) - memory.first_write * K
        trace.same(f"{name}.ltm_ages.{l}", books.ages(l)[:merged])
        trace.same(f"{name}.ltm_rf.{l}", books.recall[l])
        if f"{name}.ltm.{l}" in trace:  # recorded after a merge
            trace.equal(f"{name}.ltm.{l}", memory.long_term(l, rows[:merged]))
            trace.same(f"{name}.ltm_keys.{l}", keys[place[:merged]])
        if f"{name}.cached_ages" in trace:  # not recorded then
            assert books.ages(l)[merged:].tolist() == trace[f"{name}.cached_ages"][l].tolist()
            assert torch.equal(memory.long_term(l, rows[merged:]), trace[f"{name}.cached_memories"][l])
            close(keys[place[merged:]], trace[f"{name}.cached_keys"][l], what=f"{name}.cached_keys.{l}")


def read(model: MemoryModel, memory: Memory, trace: Trace, name: str) -> None:
    """One read: scores, who was chosen, in which order, logits, last hidden states, and the answer."""
    ids = trace.ids(name)
    with torch.no_grad(), model.reading([memory]) as memory_cache:
        out = model.base(torch.tensor([ids]), past_key_values=memory_cache, output_hidden_states=True)
    trace.same(f"{name}.logits", out.logits[0])
    trace.same(f"{name}.last_hidden_state", out.hidden_states[-1][0])
    books, source = memory.ledger, memory_cache.provider
    for l in range(LAYERS) if books is not None else ():
        rows, scores, _ = source.read[l][0]
        rows, listed = rows[: model.config.K0], books.listed(l)
        trace.same(f"{name}.scores.{l}", scores[listed - memory.first_write * model.config.K])
        places = (rows[:, None] == listed).nonzero()[:, 1]
        trace.same(f"{name}.final.{l}", places)
        trace.same(f"{name}.selected.{l}", places.sort().values)
        trace.same(f"{name}.selected_ages.{l}", books.ages(l)[places.sort().values])
    wanted = trace[f"{name}.generated"]
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    generated, _ = model.generate([memory], [ids], max_new_tokens=len(wanted), **options)
    assert generated[0].tolist() == wanted.tolist(), name


# Planted errors: what a recorded run must not accept ------------------------------------------------------------------


@contextmanager
def changed(tensors: list[Tensor], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Weights that are others inside."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(change(tensor))
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def weights(model: MemoryModel, part: str) -> list[Tensor]:
    """The model's weights with that part in their name."""
    found = [parameter for name, parameter in model.named_parameters() if part in name]
    assert found, part
    return found


def around(owner: Any, name: str, change: Callable[..., Any]) -> Any:
    """The method of a class, called as change(method, *arguments) inside."""
    method = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *arguments, **named: change(method, *arguments, **named))


def neighbours_swapped(take: Callable[..., Tensor], memory: Memory, layer: int, rows: Tensor) -> Tensor:
    """Two of the vectors that a layer reads in each other's place; the books are right."""
    vectors = take(memory, layer, rows).clone()
    if layer == 1 and len(rows) == memory.config.K0:
        vectors[[4, 5]] = vectors[[5, 4]]
    return vectors


def one_vector_off(write_pass: Callable[..., list[Tensor]], *arguments: Any) -> list[Tensor]:
    """One new vector of one layer longer by a thousandth."""
    kept = write_pass(*arguments)
    kept[1][:, 3] *= 1.001
    return kept


def older(write: Callable[..., None], books: Ledger, kept: Tensor, gone: Tensor, rows: Tensor) -> None:
    """One vector in the pool of one layer is older by one after every write."""
    write(books, kept, gone, rows)
    books.pool_stamps_Ln[1, 0] += 1


def scaled(model: MemoryModel, role: str, modules: str) -> Any:
    """An adapter whose strength is one thousandth too large in the modules of that name."""
    stack = ExitStack()
    for name, module in model.base.named_modules():
        if name.endswith(modules) and isinstance(module, BaseTunerLayer):
            stack.enter_context(mock.patch.dict(module.scaling, {role: 1.001 * module.scaling[role]}))
    return stack


OTHER = {"write": "read", "read": "write"}
# What is wrong -> how it is planted in a model, and where it must be seen first.
PLANTED: dict[str, tuple[Callable[[MemoryModel], Any], str]] = {
    "two long-term vectors are read in the wrong order": (
        lambda _: around(Memory, "long_term", neighbours_swapped), r"query0\.logits"),
    "the oldest long-term vectors are read last": (
        lambda _: around(Ledger, "best", lambda best, *a: best(*a).flip(0)), r"query0\.logits"),
    "a long-term vector is another": (
        lambda _: around(Ledger, "best", lambda best, *a: torch.cat([best(*a)[:1], best(*a)[:-1]])), r"query0\.logits"),
    "an age is off by one": (lambda _: around(Ledger, "write", older), r"inject0\.memory_ages"),
    "the offset is not added": (lambda m: changed([m.offset], torch.zeros_like), r"inject0\.vectors"),
    "the offset is off by a thousandth": (
        lambda m: changed([m.offset], lambda t: 1.001 * t), r"inject0\.vectors"),
    "the start vector of one layer is off by a thousandth": (  # longer it would be the same: it is normed
        lambda m: changed([m.start], lambda t: t + torch.tensor([[0], [0.001], [0]]) * t.flip(1)), "query0|inject0"),
    "memory is placed one position too far": (
        lambda _: around(Attachment, "slots", lambda slots, a, l, v, at, *b: slots(a, l, v, at + 1, *b)),
        r"query0\.logits"),
    "a chunk does not see the first of the vectors before it": (
        lambda _: around(MemoryModel, "_context", lambda context, *a: context(*a)[:, 1:]), r"inject0\.vectors"),
    "the adapters are swapped": (
        lambda _: around(MemoryModel, "adapter", lambda adapter, m, role: adapter(m, OTHER[role])), r"query0\.logits"),
    "the reading adapter is off by a thousandth": (lambda m: scaled(m, "read", ""), r"query0\.logits"),
    "the writing adapter is off by a thousandth": (lambda m: scaled(m, "write", ""), r"inject0\.vectors"),
    "the reading adapter of one matrix is off by a thousandth": (
        lambda m: scaled(m, "read", "layers.1.mlp.up_proj"), r"query0\.logits"),
    "one vector of one layer is off by a thousandth": (
        lambda _: around(MemoryModel, "write_pass", one_vector_off), r"inject0\.vectors"),
    "a retriever key is off by a thousandth": (
        lambda m: changed(weights(m, "retriever.key.1"), lambda t: 1.001 * t), r"inject1\.cached_keys\.1"),
    "a retriever query is off by a thousandth": (
        lambda m: changed(weights(m, "retriever.query.1"), lambda t: 1.001 * t), r"query0\.scores\.1"),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_seen(error: str, attention: str, load: Callable[..., MemoryModel]) -> None:
    """The bounds of `test_recorded_run` let none through. Those off by a thousandth are smaller than what a bug would
    do, and ten times as large as the smallest that is seen."""
    model = load("mplus_lora2", attention)
    plant, seen = PLANTED[error]
    with plant(model), pytest.raises(AssertionError, match=seen):
        replay(model, Trace("mplus_lora2"))


# Extras of the recorded runs ------------------------------------------------------------------------------------------


def after_all_steps(load: Callable[..., MemoryModel], case: str) -> tuple[MemoryModel, Memory, Trace]:
    """The memory at the end of a recorded run, where its extras were recorded."""
    model, trace = load(case), Trace(case)
    memory = model.new_memory(seed=trace.seed)
    for step in trace.steps:
        if step["op"] == "inject":
            written(model, memory, trace, step["name"])
    return model, memory, trace


def loss(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """Next-token loss."""
    return torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:])


def delta_of(model: MemoryModel, ids_BT: Tensor, context: list[Tensor]) -> Tensor:
    """New vectors without writing them [L, K, D]."""
    return torch.cat(model.write_pass(ids_BT, context))


def read_delta(model: MemoryModel, delta_LKD: Tensor, ids_BT: Tensor) -> Tensor:
    """Logits with nothing in front but the start vector and these vectors, read with the writer's weights [T, V]."""
    vectors = [model._with_start(l, vectors[None]) for l, vectors in enumerate(delta_LKD)]
    with model.attachment.hooks(), model.adapter("write"):
        cached = MemoryCache(VectorSlots(model.attachment, vectors), LAYERS)
        return model.base(ids_BT, past_key_values=cached).logits[0]


def logits_of(model: MemoryModel, memory: Memory, ids_BT: Tensor) -> Tensor:
    """Logits of a read [B, T, V]."""
    with torch.no_grad(), model.reading([memory] * len(ids_BT)) as memory_cache:
        return model.base(ids_BT, past_key_values=memory_cache).logits


@pytest.mark.parametrize("case", ["mplus_lora2", "mplus_short", "memoryllm_lora2"])
def test_recorded_single_calls(case: str, load: Callable[..., MemoryModel]) -> None:
    """Vectors of a chunk without a write, vectors of a second chunk that sees them, and reads of both kinds."""
    model, memory, trace = after_all_steps(load, case)
    sentence, context = trace["extra.sentence_ids"], [p[None] for p in model._context(memory)]
    with torch.no_grad():
        delta = delta_of(model, trace["extra.context_ids"], context)
        trace.same("extra.delta_memory", delta)
        logits = read_delta(model, delta, sentence)
        trace.same("extra.read_delta.logits", logits)
        assert loss(logits, sentence[0]).item() == pytest.approx(trace.extras["read_delta_loss"], abs=1e-4)
        if "extra.delta_memory2" in trace:
            trace.same("extra.delta_memory2", delta_of(model, trace["extra.context_ids2"], [d[None] for d in delta]))
    full = logits_of(model, memory, sentence)
    trace.same("extra.read_full.logits", full[0])
    assert loss(full[0], sentence[0]).item() == pytest.approx(trace.extras["read_full_loss"], abs=1e-4)
    if "extra.batch_ids" in trace:
        trace.same("extra.batch.logits", logits_of(model, memory, trace["extra.batch_ids"]))


@pytest.mark.parametrize("case", ["mplus_lora2", "mplus_short"])
def test_recorded_gradients_of_one_chunk(case: str, load: Callable[..., MemoryModel]) -> None:
    """The writer's training path: one chunk is written, the sentence reads its vectors only, the loss reaches back."""
    model, memory, trace = after_all_steps(load, case)
    with model.adapter("write"):  # peft lets only the active adapter have gradients
        weights = {name: p for name, p in model.named_parameters() if name in ("start", "offset") or ".write." in name}
        flags = {name: p.requires_grad for name, p in weights.items()}
        for parameter in weights.values():
            parameter.requires_grad_(True)
        try:
            context = [p[None] for p in model._context(memory)]
            delta = delta_of(model, trace["extra.context_ids"], context)
            found = loss(read_delta(model, delta, trace["extra.sentence_ids"]), trace["extra.sentence_ids"][0])
            gradients = torch.autograd.grad(found, list(weights.values()))
        finally:
            for name, parameter in weights.items():
                parameter.requires_grad_(flags[name])
    assert found.item() == pytest.approx(trace.extras["grad_read_delta_loss"], abs=1e-5)
    theirs = {"start": "bos_embedding", "offset": "new_memory_positional_emb"}
    assert len(gradients) == len(trace.extras["grad_names"])
    for name, gradient in zip(weights, gradients, strict=True):
        key = theirs.get(name, name.removeprefix("base.").replace(".write.", ".default."))
        expected = trace[f"extra.grad.{key}"]
        close(gradient.reshape(expected.shape), expected, 4 * ROOM, key)  # sums over a run there and back


@pytest.mark.parametrize("case", ["mplus_lora2", "mplus_short"])
def test_recorded_retriever_scores_and_loss(case: str, load: Callable[..., MemoryModel]) -> None:
    """A read of one new chunk in a pool filled up with old vectors, the retriever's scores of it, and their loss."""
    model, memory, trace = after_all_steps(load, case)
    sentence = trace["extra.sentence_ids"]
    delta_LKD = trace["extra.delta_memory"]
    kept = trace["extra.cat_max.perm"][:, : model.config.N - model.config.K].sort(1).values
    filled = memory.copy()
    old = torch.stack([pool[rows] for pool, rows in zip(memory.pool_LnD, kept, strict=True)])
    filled.pool_LnD = torch.cat([old, delta_LKD], 1)
    trace.same("extra.cat_max.logits", logits_of(model, filled, sentence)[0])
    trace.same("extra.cat_max.weights", weights_of(model, filled, sentence))

    weights, labels = weights_of(model, memory, sentence), trace["extra.retr.labels"].bool()
    trace.same("extra.retr.weights", weights)
    positive, negative = -(weights[labels] + 1e-5).log().mean(), -(1 - weights[~labels] + 1e-5).log().mean()
    assert ((positive + negative) / 2).item() == pytest.approx(trace.extras["selector_loss"], abs=1e-5)


def weights_of(model: MemoryModel, memory: Memory, ids_BT: Tensor) -> Tensor:
    """The retriever's scores of the vectors in the pool for a prompt [L, n]."""
    found: list[Tensor] = []

    class Spy(VectorSlots):
        def slots(self, layer: int, hidden_BTD: Tensor) -> Any:
            normed = model.attachment.norm(layer, hidden_BTD)
            queries, keys = model.retriever.queries(layer, normed)[0], model.retriever_keys(memory.pool_LnD)[layer]
            found.append((queries @ keys.T).sigmoid().mean(0))
            return reader.slots(layer, hidden_BTD)

    with torch.no_grad(), model.reading([memory]) as memory_cache:
        reader: Any = memory_cache.provider
        memory_cache.provider = Spy(model.attachment, [torch.zeros(1, reader.length, 64)] * LAYERS)
        model.base(ids_BT, past_key_values=memory_cache)
    return torch.stack(found)


def test_the_recorded_deviations_matter(load: Callable[..., MemoryModel]) -> None:
    """Or the cases would prove nothing: without its setting, each recorded run comes out clearly different."""
    plain, rounded = Trace("mplus_llama3rope"), Trace("mplus_bf16_rope")
    assert (plain["query1.logits"] - rounded["query1.logits"]).abs().max() > 1e-2
    still, growing = Trace("mplus_lora2"), Trace("mplus_train_ages")
    assert (still["query4.logits"] - growing["query4.logits"]).abs().max() > 1e-2


@pytest.mark.parametrize("case", ["mplus_lora2", "memoryllm_lora2", "memoryllm_uninit"])
def test_a_stored_memory_goes_on_alike(case: str, load: Callable[..., MemoryModel], tmp_path: Path) -> None:
    """Saved and loaded after every write, a memory goes through the recorded run as if it had never been closed."""
    model, trace, store = load(case), Trace(case), MemoryStore(tmp_path)
    store.save("ada", model.new_memory(seed=trace.seed))
    open_all_along = model.new_memory(seed=trace.seed)
    copied = open_all_along.copy()
    for step in trace.steps:
        with store.open("ada", model) as memory:
            if step["op"] == "inject":
                copied = copied.copy()
                for each in (memory, open_all_along, copied):
                    model.write(each, trace.ids(step["name"]))
            else:
                found, expected = (logits_of(model, m, trace[f"{step['name']}.input_ids"]) for m in (memory, copied))
                assert torch.equal(found, expected)
    final = store.load("ada")
    for other in (copied, final):
        assert other.meta() == open_all_along.meta()
        for name, tensor in open_all_along.tensors().items():
            assert torch.equal(other.tensors()[name], tensor), name


# Checkpoints of the official layout -----------------------------------------------------------------------------------


@dataclass
class Files:
    """A checkpoint whose files a test may change."""

    folder: Path

    def __post_init__(self) -> None:
        self.tensors = load_file(self.folder / "model.safetensors")
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    def save(self) -> Path:
        """Write them as one safetensors file."""
        (self.folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        save_file(self.tensors, self.folder / "model.safetensors")
        return self.folder

    def shard(self, suffix: str) -> Path:
        """Write them as three shards with an index."""
        (self.folder / "model.safetensors").unlink()
        stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
        index = {key: f"{stem}-{i % 3 + 1:05}-of-00003.{suffix}" for i, key in enumerate(sorted(self.tensors))}
        for file in set(index.values()):
            part = {key: self.tensors[key] for key in index if index[key] == file}
            save_file(part, self.folder / file) if suffix == "safetensors" else torch.save(part, self.folder / file)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (self.folder / f"{stem}.{suffix}.index.json").write_text(text, encoding="utf-8")
        return self.folder


@pytest.fixture
def files(folder_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Files]:
    """files(case): a copy of a checkpoint to change."""
    return lambda case="mplus_lora2": Files(shutil.copytree(folder_of(case), tmp_path / case))


def answers(model: MemoryModel) -> list[Tensor]:
    """What tells whether two models and their memories are the same."""
    memory = model.new_memory(seed=1)
    model.write(memory, list(range(3, 14)))
    return [logits_of(model, memory, torch.tensor([[5, 6, 7]])), memory.pool_LnD]


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded bin", "single bin"])
def test_every_layout_of_files(layout: str, files: Callable[..., Files], load: Callable[..., MemoryModel]) -> None:
    checkpoint = files()
    if layout == "single bin":
        (checkpoint.folder / "model.safetensors").unlink()
        torch.save(checkpoint.tensors, checkpoint.folder / "pytorch_model.bin")
    else:
        checkpoint.shard(layout.split()[1])
    model = MemoryModel.from_pretrained(checkpoint.folder, attn_implementation="eager")
    for found, expected in zip(answers(model), answers(load("mplus_lora2")), strict=True):
        assert torch.equal(found, expected)
    assert model.fingerprint == load("mplus_lora2").fingerprint


def test_bfloat16(files: Callable[..., Files]) -> None:
    """Values arrive as the file holds them; the rotary frequencies are rounded, as the published recipe does."""
    checkpoint = files()
    checkpoint.tensors = {k: v.bfloat16() for k, v in checkpoint.tensors.items()}
    checkpoint.config["torch_dtype"] = "bfloat16"
    folder = checkpoint.save()
    model = MemoryModel.from_pretrained(folder)
    assert (model.base.dtype, model.config.store_dtype) == (torch.bfloat16, "bfloat16")
    assert model.config.rotary_dtype == "bfloat16"
    frequencies = model.attachment.rotary.inv_freq
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, frequencies.bfloat16().float())
    memory, answer = model.new_memory(), None
    assert memory.pool_LnD.dtype == torch.bfloat16
    assert torch.equal(memory.pool_LnD, checkpoint.tensors["memory"])
    model.memorize(memory, "Hello, memory!")
    answer = model.ask(memory, "who?", max_new_tokens=2)
    assert answer.ids
    exact = MemoryModel.from_pretrained(folder, settings={"rotary_dtype": "float32"})
    assert not torch.equal(exact.attachment.rotary.inv_freq, frequencies)
    assert exact.fingerprint != model.fingerprint


def test_converted(files: Callable[..., Files], load: Callable[..., MemoryModel], tmp_path: Path) -> None:
    """A converted checkpoint is the same model with the same shipped memory."""
    folder = files().folder
    out = CliRunner().invoke(cli.app, ["convert", str(folder), str(tmp_path / "out"), "--json"])
    assert out.exit_code == 0, out.output
    result = json.loads(out.stdout)
    assert result["class"] == "MPlus" and result["shipped_memory"]
    assert len(result["left_out"]) == 2 * LAYERS and all("encoder_query_proj" in key for key in result["left_out"])
    model = MemoryModel.from_pretrained(tmp_path / "out", attn_implementation="eager")
    original = load("mplus_lora2")
    assert model.fingerprint == original.fingerprint
    assert model.prompt == "Question: {question} Answer:"
    for found, expected in zip(answers(model), answers(original), strict=True):
        assert torch.equal(found, expected)
    assert not list(tmp_path.glob("*.tmp"))
    again = CliRunner().invoke(cli.app, ["convert", str(folder), str(tmp_path / "out")])
    assert isinstance(again.exception, ConfigError) and "is there already" in str(again.exception)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_arrives(case: str, load: Callable[..., MemoryModel]) -> None:
    """Every tensor of the file is in the model or its shipped memory, under a name of ours, with equal values."""
    model, theirs = load(case), load_file(GOLDENS / case / "model" / "model.safetensors")
    weights, shipped = model.state_dict(), model.shipped
    seen = {k for k in theirs if "encoder_query_proj" in k or k == "initialized"}  # known and left out
    for key, value in theirs.items():
        layer, _, rest = key.partition(".self_attn.")
        if key in seen:
            continue
        if key in ("memory", "bos_embedding", "new_memory_positional_emb") or key.startswith("ltm"):
            found = shipped_tensor(model, shipped, key)
        elif "query_proj" in rest or "key_proj" in rest:
            kind, _, place = rest.partition("_proj.")
            found = weights[f"retriever.{kind}.{layer.rpartition('.')[2]}.{place}"]
        elif "lora_" in key:
            role = ".read." if ".decoder_adapter." in key else ".write."
            found = weights["base." + key.replace(".default.", role).replace(".decoder_adapter.", role)]
        else:
            found = weights["base." + key]
        if found is not None:
            assert torch.equal(found.reshape(value.shape), value.to(found.dtype)), key
            seen.add(key)
    assert seen == theirs.keys() - ({"memory"} if shipped is None else set())


def shipped_tensor(model: MemoryModel, shipped: Memory | None, key: str) -> Tensor | None:
    """A tensor of the file, taken from where it went."""
    own = {"bos_embedding": model.start, "new_memory_positional_emb": model.offset}
    if key in own or shipped is None:
        return own.get(key)
    if key == "memory":
        return shipped.pool_LnD
    what, _, layer = key.partition(".")
    assert shipped.ledger is not None
    l, rows = int(layer), shipped.ledger.rows[int(layer)]
    return {
        "ltm": shipped.long_term(l, rows),
        "ltm_keys": torch.cat(shipped.keys(l)).flatten(0, 1)[rows],
        "ltm_ages": shipped.ledger.ages(l),
        "ltm_recall_frequencies": shipped.ledger.recall[l],
    }[what]


def test_wrong_keys_are_named(files: Callable[..., Files]) -> None:
    """A key too few, a key too many, a renamed one, a wrong shape: all are named."""
    q = "model.layers.1.self_attn.q_proj"
    changes: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
        (lambda t: t.pop("bos_embedding"), "missing: bos_embedding"),
        (lambda t: t.pop(f"{q}.lora_B.decoder_adapter.weight"), f"missing: {q}.lora_B.decoder_adapter.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown: extra"),
        (lambda t: t.update({f"{q}.lora_A.other.weight": t.pop(f"{q}.lora_A.default.weight")}),
         f"missing: {q}.lora_A.default.weight; unknown: {q}.lora_A.other.weight"),
        (lambda t: t.update(memory=t["memory"][:, 1:].clone()),
         r"wrong shape: memory \(3, 39, 64\), expected \(3, 40, 64\)"),
        (lambda t: t.update({"ltm.2": t["ltm.2"][1:].clone()}), r"ltm.2 \(63, 64\), expected \(64, 64\)"),
    ]  # fmt: skip
    checkpoint = files()
    original = checkpoint.tensors
    for change, said in changes:
        checkpoint.tensors = dict(original)
        change(checkpoint.tensors)
        with pytest.raises(ConfigError, match=said):
            MemoryModel.from_pretrained(checkpoint.save())


def test_adapters_that_do_not_arrive_are_noticed(files: Callable[..., Files], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a peft that wraps fewer layers, or names its tensors otherwise."""
    real = LoraConfig.__init__

    def fewer(self: LoraConfig, *args: Any, **values: Any) -> None:
        real(self, *args, **values | {"target_modules": ["q_proj"]})

    monkeypatch.setattr("peft.LoraConfig.__init__", fewer)
    with pytest.raises(ConfigError, match=r"no counterpart: .*k_proj\.lora_A\.read"):
        MemoryModel.from_pretrained(files().folder)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("architectures", ["LlamaForCausalLM"], "architectures"),
        ("model_type", "mistral", "model_type"),
        ("num_tokens", 0, "num_tokens is 0"),
        ("num_blocks", "seven", "num_blocks is 'seven'"),
        ("num_ltm_blocks", 7, "num_blocks, which includes them"),
        ("num_memory_tokens", 57, "num_memory_tokens is 57"),
        ("update_ltm_mode", "lazy", "update_ltm_mode is 'lazy'"),
        ("add_selector", False, "add_selector"),
        ("selector_layers", [1], "selector_layers"),
        ("lora_config", None, "add_decoder_lora is true"),
        ("lora_config", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True}, "use_rslora"),
        ("lora_config", {"r": 4, "lora_alpha": 8, "target_modules": ["qkv"]}, "target_modules is"),
        ("torch_dtype", "int8", "torch_dtype is 'int8'"),
        ("rope_scaling", {"type": "odd"}, "rope_scaling"),
        ("decay_frequency", -1, "decay_frequency"),
    ],
)
def test_settings_that_cannot_be(name: str, value: Any, said: str, files: Callable[..., Files]) -> None:
    checkpoint = files()
    checkpoint.config[name] = value
    with pytest.raises(ConfigError, match=said):
        MemoryModel.from_pretrained(checkpoint.save())


def test_damaged_files_are_refused(files: Callable[..., Files]) -> None:
    folder = files().shard("safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ConfigError, match="ghost"):
        MemoryModel.from_pretrained(folder)
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ConfigError, match=r"cannot read .*model-00002"):
        MemoryModel.from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(ConfigError, match="no weights"):
        MemoryModel.from_pretrained(folder)
    with (folder / "pytorch_model.bin").open("wb") as file:
        torch.save({"memory": Path("/etc")}, file)  # an object, not a tensor: must not be loaded
    with pytest.raises(ConfigError, match=r"cannot read .*pytorch_model\.bin"):
        MemoryModel.from_pretrained(folder)


def test_hub_id(files: Callable[..., Files], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is fetched with huggingface_hub, the settings first."""
    folder, asked = files().folder, []

    def one(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(folder / name)

    def all_files(repository: str, **options: Any) -> str:
        asked.append((repository, "*"))
        return str(folder)

    monkeypatch.setattr("remanence.models.checkpoint.hf_hub_download", one)
    monkeypatch.setattr("remanence.models.checkpoint.snapshot_download", all_files)
    model = MemoryModel.from_pretrained("YuWangX/mplus-8b")
    assert model.name == "mplus-8b" and model.shipped is not None
    assert ("YuWangX/mplus-8b", "*") in asked
    assert {name for _, name in asked} == {"config.json", "*"}


# Using one ------------------------------------------------------------------------------------------------------------


def test_a_new_memory_is_the_shipped_one(load: Callable[..., MemoryModel]) -> None:
    """Every memory begins as a copy of what the checkpoint comes with; the copies are independent."""
    model = load("mplus_lora2")
    first, second, untouched = (model.new_memory(seed=i) for i in (1, 2, 1))
    assert first.pool_size == model.config.N and first.long_term_size == 64
    assert first.tokens == 0 and {w.source for w in first.writes} == {"checkpoint"}
    model.write(first, list(range(3, 14)))
    assert first.tokens == 11 and first.writes[-1].first_token == 0
    assert torch.equal(second.pool_LnD, untouched.pool_LnD) and second.write_count == untouched.write_count
    assert torch.equal(model.new_memory().pool_LnD, second.pool_LnD)
    assert model.new_memory(empty=True).pool_size == 0
    assert not any(tensor.requires_grad for tensor in first.tensors().values())
    assert {s.label for s in model.ask(first, "who?", max_new_tokens=1).sources} >= {"", "checkpoint"}


def test_a_grown_memory_of_a_published_model(load: Callable[..., MemoryModel]) -> None:
    """From empty, too, the books hold exactly what left the pool, and an empty store is no slot."""
    model = load("mplus_lora2")
    memory = model.new_memory(empty=True, seed=3)
    for i in range(12):
        with model.reading([memory]) as memory_cache:
            assert memory_cache.provider.length == 1 + memory.pool_size + memory.read_size
        model.write(memory, [3 + i] * 9)
        books = memory.ledger
        assert books is not None
        for l in range(LAYERS):
            everything = sorted([*books.listed(l).tolist(), *memory.pool_rows_Ln[l].tolist()])
            assert everything == list(range(memory.write_count * model.config.K))[-len(everything) :]
    assert memory.read_size == model.config.K0


def test_a_small_store_is_repeated_or_not(load: Callable[..., MemoryModel]) -> None:
    """Fewer merged vectors than K0: the published code reads the last K0 of them repeated; ours reads each once."""
    memory = load("mplus_lora2").new_memory()
    books = memory.ledger
    assert books is not None
    books.rows = [rows[:5] for rows in books.rows]
    books.stamps = [torch.tensor([9, 9, 4, 2, 7])] * LAYERS
    scores = torch.rand(memory.write_count * memory.config.K)
    assert books.read_size == 16
    repeated = [4, *[0, 1, 2, 3, 4] * 3]
    ages = [9, 9, 4, 2, 7]
    order = sorted(range(16), key=lambda i: (ages[repeated[i]], i), reverse=True)
    assert books.best(0, scores, 0).tolist() == [repeated[i] for i in order]
    books.config = books.config.replace(small_store="once")
    assert books.best(0, scores, 0).tolist() == [1, 0, 4, 2, 3]


def test_text_is_written_at_once(load: Callable[..., MemoryModel]) -> None:
    """As the published code does: raw text, nothing waits, a rest shorter than K is completed from the pool."""
    model = load("mplus_lora2")
    memory, expected = model.new_memory(), model.new_memory()
    text = "a" * 512 + "bcd"
    assert model.memorize(memory, text) == 515
    assert memory.tokens == 515 and not memory.pending
    ids = model.encode(text)
    model.write(expected, ids[:512])
    model.write(expected, ids[512:])
    assert torch.equal(memory.pool_LnD, expected.pool_LnD)
    with pytest.raises(ConfigError, match="cannot be written"):
        model.write(model.new_memory(empty=True), [5, 6])  # nothing to complete it from


def test_chat_prompt(files: Callable[..., Files]) -> None:
    """A chat checkpoint is asked with its template, without the token that the start vector stands for."""
    checkpoint = files("memoryllm_lora2")
    path = checkpoint.folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["chat_template"] = "<s>{% for m in messages %}U{{ m['content'] }}{% endfor %}A"
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    model = MemoryModel.from_pretrained(checkpoint.folder)
    assert model.prompt is None
    plain = model.encode("UhelloA")
    assert model.prompts.question("hello") == plain
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == model.base.generation_config.pad_token_id
    assert model.new_memory().tokens == 0 and model.encode("x</s>")[-1] != model.tokenizer.eos_token_id


def test_settings_may_be_changed(files: Callable[..., Files], load: Callable[..., MemoryModel]) -> None:
    """Our order and no expiry, on published weights."""
    folder = files().folder
    changes = {"read_order": "written", "merge_every": None}
    model = MemoryModel.from_pretrained(folder, settings=changes)
    memory = model.new_memory()
    for i in range(70):
        model.write(memory, [3 + i] * 8)
    assert memory.long_term_size == 64 + 70 * 8 and memory.first_write == 0
    with torch.no_grad(), model.reading([memory]) as memory_cache:
        model.base(torch.tensor([[5, 6, 7]]), past_key_values=memory_cache)
    for layer in memory_cache.provider.read:
        rows = layer[0][0][: model.config.K0]
        assert rows.tolist() == sorted(rows.tolist())
    with pytest.raises(ConfigError, match="unknown memory setting"):
        MemoryModel.from_pretrained(folder, settings={"order": "left"})
    with pytest.raises(ConfigError, match="settings="):
        MemoryModel.from_pretrained(folder, memory=model.config)
    with pytest.raises(ConfigError, match="settings= are for published"):
        MemoryModel.from_pretrained("builtin", settings=changes)


# Plans ----------------------------------------------------------------------------------------------------------------

MPLUS_8B: dict[str, Any] = {
    "architectures": ["MPlus"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_tokens": 256, "num_blocks": 50, "add_bos_embedding": True,
    "drop_memory_per_layer": True, "add_decoder_lora": True, "num_ltm_blocks": 10, "update_ltm_mode": "immediate",
    "update_ltm_frequency": 60, "initial_rf_when_moving_stm_to_ltm": 10, "decay_frequency": 1,
    "ltm_initial_size": 5120, "add_selector": True, "selector_hidden_dim": 256, "num_selector_layers": 2,
    "add_encoder_retriever": True,
    "lora_config": {"inference_mode": False, "r": 16, "lora_alpha": 32, "lora_dropout": 0.1,
                    "target_modules": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
}  # fmt: skip


def test_plan_of_an_8b_model(tmp_path: Path) -> None:
    """From config.json alone; the parts are what arithmetic says, and the sums are of the parts."""
    folder = tmp_path / "mplus-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MPLUS_8B | {"novelty": 1}), encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["convert", str(folder), "--plan", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["K"], found["N"], found["K0"], found["store_rows"]) == (256, 10240, 2560, 153_600)
    assert found["total"]["weights"] == 2 * 8_030_261_248  # parameters of Llama-3.1-8B
    assert found["total"]["pool"] == 2 * 32 * 10240 * 4096
    assert found["total"]["kv_cache"] == 32 * (1 + 12800 + 2048) * 2 * 8 * 128 * 2
    assert found["total"]["adapters"] == 2 * 2 * 32 * 16 * (2 * (4096 + 1024) + 2 * 4096 + 3 * (4096 + 14336))
    assert found["held_rows"] >= found["store_rows"] + found["N"]
    for part, total in found["total"].items():
        assert total == sum(layer[part] for layer in found["layers"]) + found["outside"][part]
    assert found["gpu"] + found["host"] == sum(found["total"].values())
    assert found["ignored_settings"] == ["novelty"]
    table = CliRunner().invoke(cli.app, ["convert", str(folder), "--plan"]).stdout
    assert "layer 31" in table and "novelty" in table


def test_plan_is_what_a_model_takes(load: Callable[..., MemoryModel], folder_of: Callable[[str], Path]) -> None:
    for case in ("mplus_lora2", "mplus_nolora_nobos_hd24", "memoryllm_lora2"):
        found, model = published.plan(convert.layout(folder_of(case)))["total"], load(case)
        sizes = {k: v.nbytes for k, v in model.state_dict().items() if k != "retriever.null"}
        base = sum(v for k, v in sizes.items() if k.startswith("base.") and "lora_" not in k)
        assert found["weights"] == base
        assert found["adapters"] == sum(v for k, v in sizes.items() if "lora_" in k)
        assert found["pool"] == model.new_memory().pool_LnD.nbytes
        if model.config.long_term:
            assert found["retriever"] == sum(sizes.values()) - base - found["adapters"]


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["nowhere", "--plan"], ["builtin", "out"], ["{folder}"], ["{folder}", "o", "--set", "x"]]
)
def test_misuse_of_convert(arguments: list[str], folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    known = {"{folder}": str(folder_of("mplus_lora2")), "out": str(tmp_path / "out")}
    done = CliRunner().invoke(cli.app, ["convert", *(known.get(a, a) for a in arguments)])
    assert isinstance(done.exception, ConfigError)
