"""What all tests share: tiny random decoders, a byte tokenizer, fixed seeds, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from remanence.config import MemoryConfig
from remanence.core.memory import Memory, Write
from remanence.models.pretrained import MemoryModel

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; commands leave it ignored then
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("REMANENCE_TEST_THREADS", "1")))

PAD, BOS, EOS = 256, 257, 258
# How far two float32 computations of one step may be apart, in units of the largest number: 340 roundings. Over all
# tests, and the instruction sets, orders of summation and threads that a CPU can be told to use, 73 were seen.
ROOM = 2e-5
_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
}
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")  # what the explicit reference knows
SLOW_TIMEOUT_S = 900  # theirs instead of the one in pyproject.toml: machines may be busy


# Servers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """serve(**options): a `Server` of the test's module on an empty store, with its `model`; it ends with the test."""
    servers = []

    def start(**options: Any) -> Any:
        servers.append(request.module.Server(request.getfixturevalue("model"), tmp_path / "store", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# Which tests run, and in how many processes ---------------------------------------------------------------------------


def _named(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether the command line names this very test or its class, as in `pytest tests/test_x.py::test_y`."""
    for argument in config.args:
        file, _, name = argument.partition("::")
        if name and (config.invocation_params.dir / file).resolve() == item.path:
            own = item.nodeid.partition("::")[2]
            if own == name or own.startswith((f"{name}[", f"{name}::")):
                return True
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless -m says which tests to run, or the command line names them."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    for item in slow:
        item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    out = set() if config.option.markexpr else {item for item in slow if not _named(item, config)}
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that some tests are left out, as processes that share the work do not report it."""
    return None if config.option.markexpr else "slow tests: left out unless named; pytest -m slow runs them"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes share the tests: none for a few tests, for one core, or where somebody wants to look on.

    Each process imports torch and transformers, which takes longer than the tests of most files. `pytest -n 2` is
    obeyed.
    """
    option = config.option
    folders = all(Path(argument).is_dir() for argument in config.args)
    if not folders or option.keyword or config.getoption("lf", False) or option.usepdb or option.capture == "no":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if cores > 1 else 0


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands under test use the toy, whatever their default is."""
    monkeypatch.setenv("REMANENCE_MODEL", "tiny")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)


_room_used: list[float] = []  # by `close`, in the test that runs


def close(found: Tensor, expected: Tensor, room: float = ROOM, what: str = "") -> None:
    """Numbers equal to `room` times the largest of the expected ones.

    CPUs add up in different orders and so round differently. How far that puts a result off goes with the largest
    numbers that were added, not with what is left of them: one bound for the whole tensor, in proportion to its
    largest number.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    if not expected.numel():
        return
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    off, allowed = float((found - expected).abs().max()), room * float(expected.abs().max())
    assert off <= allowed, f"{what}: {off:.2g} apart, where {allowed:.2g} are allowed ({room:.2g} of the largest)"
    if off:
        _room_used.append(off / allowed)


def writes_of(memory: Memory) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What a memory that lost nothing got with each write: vectors [L, K, D] and keys [L, G, R], for `led`."""
    K, G, parts = memory.config.K, memory.config.keys_per_write, memory.tensors()
    return lambda w: (parts["vectors"][:, w * K : (w + 1) * K], parts["keys"][:, w * G : (w + 1) * G])


@contextmanager
def led(memory: Memory, right: Callable[[int], tuple[Tensor, Tensor | None]], what: str = "") -> Iterator[None]:
    """What is written into a memory is compared with what is right, which is then put in its place.

    So every write starts from the right state and shows the rounding of one write. That of a dozen writes in a row,
    each reading those before, is up to a hundred times as large, and another on every CPU.

    Args:
        memory: to write into.
        right: of the number of a write, its vectors [L, K, D] and keys [L, G, R] or None.
    """

    def add(
        made_LKD: Tensor, made_LGR: Tensor | None, write: Write, of_tokens: dict[str, Tensor] | None = None
    ) -> None:
        right_LKD, right_LGR = right(write.index)
        for l, wanted in enumerate(right_LKD):
            close(made_LKD[l], wanted, what=f"{what}.vectors.{l}")
            if right_LGR is not None and made_LGR is not None:
                close(made_LGR[l], right_LGR[l], what=f"{what}.keys.{l}")
        Memory.add(memory, right_LKD, right_LGR, write, of_tokens)

    with mock.patch.object(memory, "add", add):
        yield


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest) -> Iterator[None]:
    """How much of their room the comparisons of a test took goes into its report."""
    _room_used.clear()
    yield
    if _room_used:
        request.node.user_properties.append(("room used", max(_room_used)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """With REMANENCE_TEST_ROOM=1: the tests whose numbers came closest to their bounds."""
    if not os.environ.get("REMANENCE_TEST_ROOM"):
        return
    used = {r.nodeid: dict(r.user_properties) for rs in terminalreporter.stats.values() for r in rs if _is_report(r)}
    ranked = sorted(((p["room used"], name) for name, p in used.items() if "room used" in p), reverse=True)
    terminalreporter.section("room used: difference / allowed difference")
    for share, name in ranked[:20]:
        terminalreporter.write_line(f"{share:8.3f}  {name}")


def _is_report(entry: Any) -> bool:
    return getattr(entry, "when", "") == "teardown"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails; the machine itself (servers under test) is allowed."""

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, address: Any) -> Any:
            local = self.family not in (socket.AF_INET, socket.AF_INET6)  # e.g. a Unix socket
            if not local and address[0] not in ("127.0.0.1", "::1", "localhost"):
                raise AssertionError(f"a test tried to connect to {address!r}")
            return connect(self, address)

        return call

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


def build_decoder(family: str, attention: str, **changes: Any) -> PreTrainedModel:
    """A random decoder of 3 layers, with grouped-query attention, whose logits differ clearly from each other."""
    config_class, model_class = (getattr(transformers, name) for name in _CLASSES[family])
    sizes: dict[str, Any] = {
        "vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "initializer_range": 0.2,
        "bos_token_id": BOS, "eos_token_id": None, "pad_token_id": PAD, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if family == "gpt_neox":  # no grouped heads
            del sizes["num_key_value_heads"], sizes["head_dim"]
        model = model_class._from_config(config_class(**(sizes | changes)), attn_implementation=attention)
        with torch.no_grad():  # norms and biases start as ones and zeros, which would hide that they are left out
            for name, parameter in model.named_parameters():
                if "norm" in name or "sinks" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                elif name.endswith(".bias"):
                    parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, its id the byte's value; then pad, bos and eos."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    character = {byte: chr(byte) for byte in printable}  # GPT-2's characters for bytes
    others = (byte for byte in range(256) if byte not in character)
    character |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({character[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    assert (fast.pad_token_id, fast.bos_token_id, fast.eos_token_id) == (PAD, BOS, EOS)
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., PreTrainedModel]:
    """make_decoder(family, attention, **config): a tiny decoder, built once. Leave its weights as they are."""
    built: dict[str, PreTrainedModel] = {}

    def make(family: str = "llama", attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
        key = repr((family, attention, sorted(changes.items())))
        if key not in built:
            built[key] = build_decoder(family, attention, **changes)
        return built[key]

    return make


@pytest.fixture
def make_model(make_decoder: Callable[..., PreTrainedModel], tokenizer: Any) -> Callable[..., MemoryModel]:
    """make_model(config, family, attention): a `MemoryModel` over a tiny decoder, with an offset that is not zero."""

    def make(
        config: MemoryConfig,
        family: str = "llama",
        attention: str = "sdpa",
        *,
        prompt: str | None = None,
        **changes: Any,
    ) -> MemoryModel:
        base = make_decoder(family, attention, **changes)
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = MemoryModel(base, tokenizer, config, prompt=prompt, name="tiny").eval()
            if model.offset is not None:
                torch.nn.init.normal_(model.offset, std=0.3)
        return model

    return make


@pytest.fixture(params=[(f, a) for f in LLAMA_LIKE for a in ("eager", "sdpa")], ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every family like Llama with every attention."""
    return request.param


def small(**changes: Any) -> MemoryConfig:
    """A small config for the tiny decoders."""
    values: dict[str, Any] = {
        "K": 4,
        "N": 12,
        "K0": 6,
        "chunk_tokens": 8,
        "window_tokens": 64,
        "retriever_dim": 8,
        "split": "fixed",
    }
    return MemoryConfig(**(values | changes))


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Byte tokens without meaning."""
    return torch.randint(33, 127, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_text(count: int, seed: int = 0) -> str:
    """The same as text."""
    return bytes(random_ids(count, seed)).decode()


class NewestPress:
    """A press as kvpress has them, that keeps the newest keys and values; `seen` of every layer what it was given."""

    seen: list[tuple[float, int, int]] = []  # noqa: RUF012

    def __init__(self, compression_ratio: float) -> None:
        self.ratio = compression_ratio

    def compress(self, module: Any, states: Any, keys: Any, values: Any, _: Any, options: Any) -> tuple[Any, Any]:
        assert module.rotary_emb is not None and len(options["position_embeddings"]) == 2
        assert states.shape[1] == keys.shape[2]
        self.seen.append((self.ratio, module.layer_idx, keys.shape[2]))
        kept = max(1, int(keys.shape[2] * (1 - self.ratio)))
        return keys[:, :, -kept:], values[:, :, -kept:]
