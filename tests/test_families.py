"""The laws of memory on every decoder family: a table of families, and the same tests for all of them."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, MambaConfig, MambaForCausalLM, TextStreamer
from transformers.utils import is_flash_attn_2_available

import reference
from conftest import BOS, build_decoder, close, random_ids, random_text, small
from remanence import MemoryStore
from remanence.config import MemoryConfig
from remanence.core.attachment import Attachment
from remanence.core.cache import MemoryCache
from remanence.core.memory import Memory
from remanence.errors import ConfigError
from remanence.models.pretrained import MemoryModel
from test_hf import GivenSource, hooks_left, plain_logits, read_logits

ROPE = {"rope_theta": 1e4, "rope_type": "default"}
# name -> family, attention, config. Windows are shorter than the texts of the tests.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "sdpa", {}),
    "llama-eager": ("llama", "eager", {}),
    "llama-flex": ("llama", "flex_attention", {}),
    "mistral, window": ("mistral", "sdpa", {"sliding_window": 40}),
    "qwen2, windows in some layers": (
        "qwen2", "eager", {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1}
    ),
    "qwen3": ("qwen3", "sdpa", {}),
    "gemma2, window, soft caps": (
        "gemma2", "eager", {"sliding_window": 40, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}
    ),
    "gemma3, two rotary sets": (
        "gemma3", "sdpa",
        {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "query_pre_attn_scalar": 16},
    ),
    "gpt_neox, a quarter of a head turned": (
        "gpt_neox", "sdpa", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.25}}
    ),
    "gpt_oss, sinks": (
        "gpt_oss", "eager", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 40,
                             "rope_parameters": ROPE},
    ),
    "mixtral": ("mixtral", "sdpa", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "olmo2, no input norm": ("olmo2", "sdpa", {}),
    "phi3, half of a head turned": (
        "phi3", "sdpa", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}, "sliding_window": 40}
    ),
    "qwen3_moe": ("qwen3_moe", "eager", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "smollm3, a layer without positions": ("smollm3", "sdpa", {"no_rope_layers": [1, 0, 1]}),
}  # fmt: skip
VERBATIM = MemoryConfig.verbatim(chunk_tokens=8, pool_tokens=80)
Make = Callable[[MemoryConfig], MemoryModel]


@pytest.fixture(params=FAMILIES, ids=[name.split(",")[0] for name in FAMILIES])
def make(request: pytest.FixtureRequest, make_model: Callable[..., MemoryModel]) -> Iterator[Make]:
    """make(config): a `MemoryModel` over a tiny decoder of each family."""
    family, attention, changes = FAMILIES[request.param]
    # Flex attention compiles a kernel for every shape; for a test of numbers its uncompiled form will do.
    stance = torch.compiler.set_stance("force_eager") if attention == "flex_attention" else nullcontext()
    with stance, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield lambda config: make_model(config, family, attention, **changes)


def remember(model: MemoryModel, text: str) -> Memory:
    """A new memory of a text."""
    memory = model.new_memory()
    model.memorize(memory, text)
    return memory


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_given_vectors_are_read_as_in_the_reference(make: Make, biased: bool) -> None:
    """Any vectors in front of every layer, with and without a bias on their logits, whole and token by token."""
    model = make(small())
    base, attachment, ids = model.base, model.attachment, random_ids(9)
    vectors = [torch.randn(1, 45, 64) for _ in range(3)]
    bias = [-4 * torch.rand(1, 45) for _ in range(3)] if biased else None
    with torch.no_grad():
        expected = reference.read_any(base, ids, lambda i, _: (vectors[i][0], bias[i][0] if bias else None))
        with attachment.hooks():
            cache = MemoryCache(GivenSource(attachment, vectors, bias), 3)
            whole = base(torch.tensor([ids]), past_key_values=cache).logits[0]
            cache = MemoryCache(GivenSource(attachment, vectors, bias), 3)
            steps = [base(torch.tensor([part]), past_key_values=cache).logits[0] for part in (ids[:4], *zip(ids[4:]))]
    close(whole, expected)
    close(torch.cat(steps), expected)
    assert (expected - plain_logits(base, ids)).abs().max() > 0.1  # so that the memory did change something


def test_verbatim_memory_is_the_text_itself(make: Make) -> None:
    """While everything is in the pool: logits, greedy answer, and sampled answer of the same seed; 5 tokens wait."""
    model, ids, question = make(VERBATIM), random_ids(77), random_ids(6, 1)
    memory = remember(model, bytes(ids).decode())
    prompt, whole = memory.pending_ids + question, [BOS, *ids, *question]
    assert memory.tokens == 72
    close(read_logits(model, memory, prompt), plain_logits(model.base, whole)[-len(prompt) :])
    for options in ({"do_sample": False}, {"do_sample": True, "temperature": 1.5, "top_k": 20}):
        torch.manual_seed(5)
        out, _ = model.generate([memory], [prompt], max_new_tokens=8, **options)
        torch.manual_seed(5)
        plain = model.base.generate(torch.tensor([whole]), max_new_tokens=8, **options)
        assert out[0].tolist() == plain[0, len(whole) :].tolist()


def test_plain_is_the_base_model_bit_for_bit(make: Make) -> None:
    """Before, inside and after the use of memory; and no hook is left."""
    model, ids = make(small()), random_ids(10)
    before, weights = plain_logits(model.base, ids), {k: v.clone() for k, v in model.base.state_dict().items()}
    memory = remember(model, random_text(40))
    with torch.no_grad(), model.reading([memory]) as cache:
        model.base(torch.tensor([ids[:4]]), past_key_values=cache)
        with model.plain() as base:
            assert torch.equal(plain_logits(base, ids), before)
    assert torch.equal(plain_logits(model.base, ids), before)
    assert hooks_left(model.base) == 0
    assert all(torch.equal(value, weights[key]) for key, value in model.base.state_dict().items())


class Record(LogitsProcessor):
    """Keeps the logits of every step."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As they are."""
        self.logits.append(scores.clone())
        return scores


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_a_batch_equals_single_runs(make: Make, biased: bool) -> None:
    """Memories empty, young, with a full pool and with a long-term store; prompts of different lengths."""
    model = make(small(N=32, score_bias=1.0 if biased else 0.0))
    if biased and model.base.config._attn_implementation == "flex_attention":
        pytest.skip("refused on a CPU")
    memories = [remember(model, random_text(n, n)) for n in (5, 24, 64, 120)]
    prompts = [random_ids(n, n + 2) for n in (17, 3, 30, 9)]  # no two first tokens within the rounding of each other
    together = Record()
    out, _ = model.generate(memories, prompts, max_new_tokens=4, do_sample=False, logits_processor=[together])
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = Record()
        single, _ = model.generate([memory], [prompt], max_new_tokens=4, do_sample=False, logits_processor=[alone])
        for a, b in zip(together.logits, alone.logits, strict=True):
            close(a[row], b[0])
        assert out[row].tolist() == single[0].tolist()


def test_a_memory_goes_on_after_it_was_saved(make: Make, tmp_path: Path) -> None:
    """Saved, opened again and continued, it is the memory that was never closed."""
    model = make(small())
    never_closed = remember(model, random_text(50))
    store = MemoryStore(tmp_path)
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(50))
    model.memorize(never_closed, random_text(30, 1))
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(30, 1))
    ids = random_ids(7, 2)
    assert torch.equal(
        read_logits(model, store.load("ada"), ids + memory.pending_ids),
        read_logits(model, never_closed, ids + never_closed.pending_ids),
    )


def test_answers_are_streamed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """What a streamer prints is the answer, as it would be without one."""
    model = make(small())
    memory = remember(model, random_text(50))
    silent = model.ask(memory, "why?", max_new_tokens=6)
    streamed = model.ask(memory, "why?", max_new_tokens=6, streamer=TextStreamer(model.tokenizer, skip_prompt=True))
    assert streamed.ids == silent.ids
    assert capsys.readouterr().out.strip() == model.tokenizer.decode(silent.ids).strip()


def test_a_write_gets_its_gradient_from_a_read(make: Make) -> None:
    """The loss of a later answer reaches the offset, the start vectors and the writing layer's own weights."""
    model = make(small())
    if model.base.config._attn_implementation == "flex_attention":
        pytest.skip("torch has no backward pass of flex attention on a CPU")
    vectors = model.write_pass(torch.tensor([random_ids(8)]), [torch.zeros(1, 0, 64)] * 3)
    vectors = model.write_pass(torch.tensor([random_ids(8, 1)]), vectors)
    prefix = [model._with_start(layer, v) for layer, v in enumerate(vectors)]
    ids = torch.tensor([random_ids(6, 2)])
    with model.attachment.hooks():
        cache = MemoryCache(GivenSource(model.attachment, prefix, None), 3)
        loss = model.base(ids, past_key_values=cache, labels=ids).loss
    attention = model.attachment.parts[0].attention
    weights = [p for name, p in attention.named_parameters() if name.endswith("weight") and "norm" not in name]
    grads = torch.autograd.grad(loss, [model.offset, model.start, *weights])
    assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in grads)
    assert (grads[1].abs().amax(1) > 0).all()  # the start vector of every layer


def test_beams_and_several_answers_equal_the_plain_model(make: Make) -> None:
    """Beam search over verbatim memory is beam search over the text; several sampled answers are as many rows."""
    model, ids, question = make(VERBATIM), random_ids(64), random_ids(6, 1)
    memory, whole = remember(model, bytes(ids).decode()), torch.tensor([[BOS, *ids, *question]])
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    out, _ = model.generate([memory], [question], **options)
    assert out.tolist() == model.base.generate(whole, **options)[:, whole.shape[1] :].tolist()
    greedy = model.base.generate(whole, max_new_tokens=5, do_sample=False)[0, whole.shape[1] :].tolist()
    looked_up, _ = model.generate([memory], [question], max_new_tokens=5, do_sample=False, prompt_lookup_num_tokens=3)
    assert looked_up[0].tolist() == greedy
    assert (
        model.generate([memory], [question], max_new_tokens=2, do_sample=True, num_return_sequences=3)[0].shape[0] == 3
    )


def test_bfloat16_scores_are_float32(make: Make) -> None:
    """In bfloat16 the verbatim law holds as far as its numbers reach, and retrieval is scored in float32."""
    model, ids, question = make(VERBATIM), random_ids(72), random_ids(6, 1)
    base = copy.deepcopy(model.base).to(torch.bfloat16)
    model = MemoryModel(base, model.tokenizer, VERBATIM.replace(N=48), name="half").eval()
    memory = remember(model, bytes(ids[:48]).decode())
    logits = read_logits(model, memory, question).float()
    expected = plain_logits(base, [BOS, *ids[:48], *question])[-6:].float()
    assert (logits - expected).abs().mean() < 0.05 * expected.abs().mean()
    model.memorize(memory, bytes(ids[48:]).decode())
    with torch.no_grad(), model.reading([memory]) as cache:
        model.base(torch.tensor([question]), past_key_values=cache)
    assert all(layer[0][1].dtype == torch.float32 for layer in cache.provider.read)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++")
def test_flex_attention_compiled(
    make_model: Callable[..., MemoryModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled kernel reads a memory as sdpa does."""
    # One that was compiled before, with other instructions than those the CPU is now told to use, reads nonsense.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, other = (make_model(small(), attention=attention) for attention in ("flex_attention", "sdpa"))
    memory = remember(model, random_text(100))
    assert memory.long_term_size
    close(read_logits(model, memory, random_ids(9)), read_logits(other, memory, random_ids(9)))


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="flash attention runs on accelerators"
)
def test_flash_attention_where_it_is(tokenizer: Any) -> None:
    """In bfloat16 it reads a memory as sdpa does, as far as its numbers reach."""
    logits = []
    for attention in ("flash_attention_2", "sdpa"):
        base = build_decoder("llama", attention).to("cuda", torch.bfloat16)
        model = MemoryModel(base, tokenizer, small(), name="tiny").eval()
        with torch.no_grad(), model.reading([remember(model, random_text(100))]) as cache:
            ids = torch.tensor([random_ids(9)], device="cuda")
            logits.append(model.base(ids, past_key_values=cache).logits.float())
    assert (logits[0] - logits[1]).abs().mean() < 0.05 * logits[1].abs().mean()


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_second_model_is_refused(make_model: Callable[..., MemoryModel]) -> None:
    """An assistant would be handed our mask, and no memory."""
    model = make_model(small())
    for option in ({"assistant_model": model.base}, {"cache_implementation": "static"}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            model.generate([model.new_memory()], [[1, 2]], max_new_tokens=2, **option)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_a_bias_that_attention_cannot_take_is_refused(attention: str, make_model: Callable[..., MemoryModel]) -> None:
    """Flash would take the additive mask for one of padding; torch's flex kernel for CPUs would end the process."""
    model = make_model(small(score_bias=1.0))
    memory, before = model.new_memory(), model.base.config
    model.base.config = copy.deepcopy(before)
    model.base.config._attn_implementation_internal = attention
    try:
        with pytest.raises(ConfigError, match=f"'{attention}' takes no bias on memory slots"):
            model.generate([memory], [[1, 2]], max_new_tokens=2)
    finally:
        model.base.config = before


def test_a_running_state_is_refused() -> None:
    """Mamba has no keys and values."""
    base = MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=259, state_size=4))
    with pytest.raises(ConfigError, match=r"cannot attach a memory to a 'mamba' model: .*no rotary positions"):
        Attachment(base)


def test_a_model_without_weights_is_refused() -> None:
    """On the meta device."""
    base = build_decoder("llama", "sdpa")
    with torch.device("meta"), pytest.raises(ConfigError, match="weights are not loaded"):
        Attachment(type(base)(base.config))


def test_an_unknown_way_to_make_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out by comparing with the model's own cache, not by a name."""
    base = build_decoder("llama", "sdpa")
    attention = base.model.layers[1].self_attn
    project = attention.v_proj.forward
    calls: list[int] = []

    def moody(hidden: Tensor) -> Tensor:  # stands for anything that depends on more than the vector
        calls.append(1)
        return project(hidden) * len(calls)

    monkeypatch.setattr(attention.v_proj, "forward", moody)
    with pytest.raises(ConfigError, match="'llama' model: its layer 1 makes keys and values in a way"):
        Attachment(base)
    assert hooks_left(base) == 0


def test_positions_must_not_reach_a_change_of_rotary_scaling(make_model: Callable[..., MemoryModel]) -> None:
    """LongRoPE turns keys otherwise once a text is long; memory and prompt must stay below that."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 128, "sliding_window": None}
    model, ids = make_model(small(), "phi3", **changes), random_ids(9)
    close(read_logits(model, model.new_memory(), ids), plain_logits(model.base, [BOS, *ids])[1:])
    with pytest.raises(ConfigError, match="more than the 128 positions"):
        make_model(small(N=60), "phi3", **changes)
