"""One search for all layers, kept keys and values, rounded vectors: against naive references and the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Replace
from torch import Tensor

from conftest import BOS, build_decoder, build_tokenizer, close, random_ids, random_text
from remanence import MemoryModel, MemoryStore
from remanence.config import MemoryConfig
from remanence.core.memory import Memory
from remanence.core.prompts import UNKNOWN, worth_showing
from remanence.core.quantise import decode, encode, row_bytes
from remanence.core.retriever import block_scores, block_scores_of, rows_of
from remanence.core.search import Search, word_scores
from remanence.errors import ConfigError, IncompatibleMemory, InputError, MemoryCorrupt
from test_hf import plain_logits

CHUNK = 8
ONE: dict[str, Any] = {
    "chunk_tokens": CHUNK, "pool_tokens": 2 * CHUNK, "K0": 2 * CHUNK, "window_tokens": 64, "kept": "keys_values",
    "retriever": "trained", "score_layers": "one", "search_layers": (0, 1), "search_hidden": 16, "retriever_dim": 8,
    "key_group": 2,
}  # fmt: skip


def model_of(tokenizer: Any, family: str = "llama", **changes: Any) -> MemoryModel:
    """A tiny decoder with one search for all layers."""
    return MemoryModel(build_decoder(family, "sdpa"), tokenizer, MemoryConfig.verbatim(**{**ONE, **changes}))


def told(model: MemoryModel, chunks: int, seed: int = 0) -> Memory:
    """A memory of whole chunks."""
    memory = model.new_memory()
    model.memorize(memory, bytes(random_ids(chunks * CHUNK, seed)).decode())
    return memory


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "olmo2"])
def test_kept_keys_and_values_are_verbatim(family: str, tokenizer: Any) -> None:
    """While nothing was dropped: the plain model's logits with the text in its context."""
    model = model_of(tokenizer, family, pool_tokens=8 * CHUNK)
    ids, question = random_ids(6 * CHUNK), random_ids(5, 1)
    memory = model.new_memory()
    model.memorize(memory, bytes(ids).decode())
    prompt = memory.pending_ids + question
    found = model.search([memory], [question])
    with torch.no_grad(), model.reading([memory], found=found) as cache:
        logits = model.base(torch.tensor([prompt]), past_key_values=cache, use_cache=True).logits[0]
    close(logits, plain_logits(model.base, [BOS, *ids, *question])[-len(prompt) :])


def test_kept_keys_and_values_read_as_states_do(tokenizer: Any) -> None:
    """Also when writes were dropped and brought back: the same slots, made at writing instead of at reading."""
    whole, states = model_of(tokenizer), model_of(tokenizer, kept="states")
    assert whole.vector_width == 2 * whole.attachment.key_heads * whole.attachment.head_dim
    ids, question = random_ids(12 * CHUNK), random_ids(5, 1)
    logits = []
    for model in (whole, states):
        memory = model.new_memory()
        model.memorize(memory, bytes(ids).decode())
        assert memory.long_term_size == 10 * CHUNK
        found = model.search([memory], [question])
        with torch.no_grad(), model.reading([memory], found=found) as cache:
            logits.append(model.base(torch.tensor([question]), past_key_values=cache, use_cache=True).logits)
    close(*logits)


def naive_scores(model: MemoryModel, ids: list[int], question: list[int]) -> list[float]:
    """Scores of every chunk by the definition, one token after the other. The chunks see a pool of two before them."""
    search: Search = model.retriever
    memory = model.new_memory()
    states_of_chunks = []
    for i in range(0, len(ids), CHUNK):
        chunk = torch.tensor([ids[i : i + CHUNK]])
        states = model.write_pass(chunk, [p[None] for p in memory.pool_LnD])
        states_of_chunks.append([states[0][0], states[1][0]])
        model.write(memory, ids[i : i + CHUNK])
    asked = model.attachment.inputs(torch.tensor([[BOS, *question]]), last=1)
    query_features = Search.features([asked[0][0, 1:], asked[1][0, 1:]])
    queries = search.query(query_features)
    weights = search.weigh(query_features).exp()[:, 0]
    scores = []
    for n, states in enumerate(states_of_chunks):
        keys = search.key(Search.features(states))
        pairs = [keys[k] + keys[k + 1] for k in range(0, CHUNK, 2)]
        meaning = sum(max(float(q @ k) for k in pairs) for q in queries) / len(queries) * 4 / 8**0.5
        words = sum(
            float(weights[t]) * float(search.rarity[token]) * 3 / len(question) ** 0.5
            for t, token in enumerate(question)
            if int(search.spelling[token]) in search.spelling[torch.tensor(ids[n * CHUNK : (n + 1) * CHUNK])].tolist()
        )
        scores.append(meaning + words)
    return scores


@torch.no_grad()
def test_scores_are_those_of_the_definition(tokenizer: Any) -> None:
    """Meaning and words, with weights that are not those of the start; upper and lower case spell one word."""
    model = model_of(tokenizer)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.retriever.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.retriever.rarity.copy_(torch.rand(len(model.retriever.rarity), generator=generator))
    for lower in range(ord("a"), ord("z") + 1):
        model.retriever.spelling[lower] = lower - 32
    ids, question = random_ids(5 * CHUNK), random_ids(7, 1)
    memory = model.new_memory()
    model.memorize(memory, bytes(ids).decode())
    [found] = model.search([memory], [question])
    expected = naive_scores(model, ids[: len(found.scores) * CHUNK], question)
    assert max(expected) - min(expected) > 0.1
    close(found.scores, torch.tensor(expected))


def test_rounded_keys_are_scored_exactly() -> None:
    """Every write, not only the best: the products are of float32, whatever the keys are kept in."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(600, 4, 48, generator=generator).to(torch.bfloat16)
    queries = torch.randn(7, 48, generator=generator)
    expected = torch.einsum("tr,wgr->twg", queries.double(), keys.double()).amax(2).mean(0) * 0.5
    found = block_scores(queries, list(keys.split(250)), 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    some = torch.tensor([599, 3, 250, 3])
    assert torch.equal(rows_of(list(keys.split(250)), some), keys[some])
    torch.testing.assert_close(
        block_scores_of(some, queries, list(keys.split(250)), 0.5).double(), expected[some], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_a_batch_searches_as_each_alone(tokenizer: Any) -> None:
    """Questions of different lengths over different memories."""
    model = model_of(tokenizer)
    for parameter in model.retriever.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    memories = [told(model, 5), told(model, 9, 1), model.new_memory()]
    questions = [random_ids(4, 2), random_ids(11, 3), random_ids(2, 4)]
    together = model.search(memories, questions)
    for memory, question, found in zip(memories, questions, together, strict=True):
        [alone] = model.search([memory], [question])
        close(found.scores, alone.scores)
        close(torch.tensor([found.null, found.needs]), torch.tensor([alone.null, alone.needs]))
    assert not together[2].relevant


def test_a_question_without_a_token_is_refused() -> None:
    """Some tokenizers leave out letters that nobody types: what is left is as empty as nothing."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("\x14", "")
    model = model_of(tokenizer)
    memory = told(model, 2)
    assert model.encode("\x14") == [] and model.encode("a\x14") == model.encode("a")
    with pytest.raises(InputError, match="the question is empty"):
        model.ask(memory, " \x14 ", max_new_tokens=1)
    with pytest.raises(InputError, match="the question is empty"):
        model.answer_alone("\x14", max_new_tokens=1)
    with pytest.raises(InputError, match="searched for is empty"):
        model.search([memory, memory], [[1], []])


def test_words_of_a_large_vocabulary_fit_sixteen_bits() -> None:
    """Numbers beyond 65,535 wrap; none raises, and equal tokens stay equal."""
    search = Search(8, 1, 4, 8, 200_000)
    ids = torch.tensor([0, 32_767, 32_768, 65_535, 65_536, 199_999])
    words = search.words(ids)
    assert words.dtype == torch.int16
    assert len(set(words[:4].tolist())) == 4 and words[4] == words[0]
    assert word_scores(words[:2], torch.tensor([1.0, 2.0]), [words.view(3, 2)[:2], words.view(3, 2)[2:]]).tolist() == [
        3.0,
        0.0,
        1.0,
    ]


def test_a_memory_with_words_is_saved_and_loaded(tokenizer: Any, tmp_path: Path) -> None:
    """In several segments; what is asked afterwards is found as before; and it goes on as if never closed."""
    model, store = model_of(tokenizer, store_dtype="int4"), MemoryStore(tmp_path)
    text = random_text(40 * CHUNK)
    never_closed = model.new_memory()
    for i in range(0, len(text), 10 * CHUNK):
        with store.open("ada", model) as memory:
            model.memorize(memory, text[i : i + 10 * CHUNK], time=1.0)
        model.memorize(never_closed, text[i : i + 10 * CHUNK], time=1.0)
    loaded = store.load("ada")
    question = random_ids(6, 5)
    assert torch.equal(model.search([loaded], [question])[0].scores, model.search([never_closed], [question])[0].scores)
    assert torch.equal(torch.cat(loaded.words()), torch.cat(never_closed.words()))
    assert torch.equal(loaded.tensors()["vectors"], never_closed.tensors()["vectors"])
    assert loaded.tensors()["vectors"].dtype == torch.uint8
    assert model.ask(loaded, "Where?", max_new_tokens=4) == model.ask(never_closed, "Where?", max_new_tokens=4)


def test_a_write_without_its_words_is_refused(tokenizer: Any) -> None:
    """Before anything of it is kept."""
    model = model_of(tokenizer)
    memory = told(model, 3)
    other = told(model, 4)
    vectors, keys = other.records["vectors"].span(3)[0], other.records["keys"].span(3)[0]
    with pytest.raises(IncompatibleMemory, match=r"comes with \[\] of its tokens; this memory takes \['words'\]"):
        memory.add(torch.zeros(memory.layers, CHUNK, memory.width), keys.view(1, CHUNK // 2, -1), other.writes[3])
    assert memory.write_count == 3 and vectors is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_layers": ()}, "rising numbers"),
        ({"search_layers": (1, 1)}, "rising numbers"),
        ({"drop": "random"}, "drop"),
        ({"tap": "output"}, "tap"),
        ({"score_layers": "own"}, "search_layers"),
        ({"score_layers": "own", "search_layers": (), "base_answers": True}, "base_answers"),
        ({"looks": -1}, "looks must be"),
        ({"looks": 1.5}, "looks must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=message):
        MemoryConfig.verbatim(**{**ONE, **changes})


def test_a_write_keeps_a_word_for_each_of_its_vectors(tokenizer: Any) -> None:
    """A model with other settings is refused, as its first write would fail."""
    for changes in ({"K": CHUNK // 2}, {"short_chunks": "complete"}):
        with pytest.raises(ConfigError, match="K = chunk_tokens and short_chunks"):
            model_of(tokenizer, kept="states", **changes)


def test_a_layer_that_is_not_there_is_refused(tokenizer: Any) -> None:
    """Names how many there are."""
    with pytest.raises(ConfigError, match="layers, from 0 on"):
        model_of(tokenizer, search_layers=(0, 99))


# The base alone -------------------------------------------------------------------------------------------------------


def test_the_base_answers_what_needs_no_memory(tokenizer: Any) -> None:
    """Word for word what it says without a memory; with the need, memory is read."""
    model = model_of(tokenizer, base_answers=True)
    memory = told(model, 6)
    for need, null, recalled in ((-1.0, 99.0, False), (1.0, 99.0, True), (-1.0, -99.0, True)):
        with torch.no_grad():
            model.retriever.needs.bias.fill_(need)
            model.retriever.null.bias.fill_(null)
        answer = model.ask(memory, "Why is the sky blue?", max_new_tokens=5)
        assert answer.recalled is recalled
        assert bool(answer.sources) is recalled
        if not recalled:
            ids = torch.tensor([[BOS, *b"Why is the sky blue?"]])
            out = model.base.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=256)
            assert answer.ids == out[0, ids.shape[1] :].tolist()


def test_what_the_base_is_shown_of_a_long_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of the last turns as fit, and those that are to be kept in front of them."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }};{% endfor %}"
    model = model_of(tokenizer, base_answers=True)  # a window of 64 tokens
    shown = list[str]()
    monkeypatch.setattr(model, "generate_alone", lambda prompts, **_: [shown.append(model.text_of(prompts[0])) or [65]])
    turns = [("Instructions", "Yes"), *((f"Said {i}", f"Told {i}") for i in range(9))]
    for keep in (0, 1):
        model.answer_alone("Why?", turns, keep=keep, max_new_tokens=4)
    assert shown[0].startswith("Said") and shown[0].endswith("Said 8;Told 8;Why?;")
    assert shown[1].startswith("Instructions;Yes;Said") and shown[1].endswith("Said 8;Told 8;Why?;")
    model.answer_alone("Why?", [("Instructions" * 9, "Yes"), *turns[1:]], keep=1, max_new_tokens=4)
    assert shown[2] == "Why?;"  # they alone do not fit
    model.answer_alone("Why?", [("Where do I live?", UNKNOWN), ("Said", "Told")], max_new_tokens=4)
    assert shown[3] == "Said;Told;Why?;"


RUNS = ("One two three four five six seven.", "A b c d e f g.", "It is a long way to go, my friend.")


def test_turns_that_a_base_would_repeat_are_not_shown() -> None:
    """I-don't-knows, replies that were given before or after, and circles; but all that are to be kept."""
    plain = [("a", RUNS[0]), ("b", RUNS[1]), ("c", "Rex"), ("d", "")]
    assert worth_showing(plain) == plain
    again = [("e", RUNS[0]), ("f", "rex!"), ("g", f" {UNKNOWN}\n"), ("h", "It is, it is, it is, it is, it is.")]
    assert worth_showing([*plain, *again]) == [plain[1], plain[3]]  # "a" and "c" were copied
    assert worth_showing([*plain, *again[2:]]) == plain
    assert worth_showing(again * 2, keep=4) == [*again, *again[:2]]
    late = ("i", RUNS[2] + " " + "One two three four.")  # one of eight runs of words was said: it stays
    assert worth_showing([*plain, late]) == [*plain, late]


@given(history=st.lists(st.tuples(st.text(max_size=4), st.sampled_from([*RUNS, "", "Rex", UNKNOWN]))))
def test_what_is_shown_is_shown_once_and_in_order(history: list[tuple[str, str]]) -> None:
    """And it is what would be shown of itself."""
    shown = worth_showing(history)
    assert worth_showing(shown) == shown
    rest = iter(history)
    assert all(turn in rest for turn in shown)
    replies = [reply for _, reply in history]
    assert all(replies.count(reply) == 1 and reply != UNKNOWN for _, reply in shown)


@pytest.mark.parametrize("looks", [0, 3])
def test_a_forced_write_is_read_where_the_base_would_answer(looks: int, tokenizer: Any) -> None:
    """Beside a question that the base answers by itself, in either order."""
    # Was a bug: `force` went on to Hugging Face's generate, which refused it.
    model = model_of(tokenizer, base_answers=True, looks=looks)
    memories, questions = [told(model, 6), told(model, 6, 1)], ["Why is the sky blue?", "Who?"]
    with torch.no_grad():
        model.retriever.needs.bias.fill_(-1.0)
        model.retriever.null.bias.fill_(99.0)
    for force in ([2, None], [None, 3], [2, 3]):
        answers = model.ask_batch(memories, questions, force=force, max_new_tokens=3)
        for answer, write in zip(answers, force, strict=True):
            assert answer.recalled is (write is not None)
            assert write is None or all(write in layer for layer in answer.read)


# Rounded vectors ------------------------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 200), dtype=st.sampled_from(["int8", "int4"]), seed=st.integers(0, 1000),
    size=st.floats(-4, 3.5),
)  # fmt: skip
def test_rounding_errs_by_half_a_step_at_most(width: int, dtype: str, seed: int, size: float) -> None:
    """A step is the largest number of its group over 127 or 7, and at most 2^(1/8) wider to fit a byte of scale."""
    vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * 10**size
    rows = encode(vectors, dtype)
    assert rows.dtype == torch.uint8 and rows.shape == (3, row_bytes(width, dtype))
    back = decode(rows, width, dtype)
    most = 127 if dtype == "int8" else 7
    for start in range(0, width, 64):
        group, found = vectors[:, start : start + 64], back[:, start : start + 64]
        step = group.abs().amax(1, keepdim=True).clamp_min(2**-20 * most) / most * 2 ** (1 / 8)
        assert ((group - found).abs() <= step * 0.501).all()


def test_rounding_keeps_nothing_as_nothing() -> None:
    """Zeros stay zeros; where numbers lie beside zero, as little as a byte of scale can say."""
    zeros = torch.zeros(2, 70)
    for dtype in ("int8", "int4"):
        assert torch.equal(decode(encode(zeros, dtype), 70, dtype), zeros)
    for dtype in ("q4", "q2"):
        assert decode(encode(zeros, dtype), 70, dtype).abs().max() < 1e-4


@given(
    width=st.integers(1, 200), dtype=st.sampled_from(["q4", "q2"]), seed=st.integers(0, 1000), size=st.floats(-3, 3),
)  # fmt: skip
def test_turned_rounding_is_that_of_its_definition(width: int, dtype: str, seed: int, size: float) -> None:
    """Each group of 64 turned by Sylvester's matrix, over its root mean square, to the nearest of 16 or 4 levels."""
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed)) * 10**size
    bits, step = (4, 0.3352) if dtype == "q4" else (2, 0.9957)
    rows = encode(vectors, dtype)
    assert rows.shape == (2, row_bytes(width, dtype)) == (2, -(-width * bits // 8) + -(-width // 64))
    found = decode(rows, width, dtype)
    turn = torch.tensor([[(-1.0) ** (i & j).bit_count() / 8 for j in range(64)] for i in range(64)])
    for start in range(0, width, 64):
        group, back = vectors[:, start : start + 64], found[:, start : start + 64]
        if group.shape[1] == 64:
            group, back = group @ turn, back @ turn
        scale = torch.exp2((torch.log2(group.square().mean(1, keepdim=True).sqrt().clamp_min(1e-38)) * 8).round() / 8)
        half = 2 ** (bits - 1)
        expected = ((group / scale / step).floor().clamp(-half, half - 1) + 0.5) * step * scale
        near = (expected - back).abs() <= 1e-3 * scale
        on_an_edge = (group / scale / step - (group / scale / step).round()).abs() < 1e-3
        assert (near | on_an_edge).all()


def test_what_differs_is_kept_where_most_is_alike() -> None:
    """Keys have a large part in common, and a few large numbers: four bits that leave both out err ten times less."""
    random = torch.Generator().manual_seed(5)
    differs, common = torch.randn(2, 500, 128, generator=random), torch.randn(128, generator=random) * 3
    common[7] = 40.0
    differs[..., 7] *= 6
    vectors = differs + common
    errors = {dtype: _lost(dtype, vectors, None) for dtype in ("int4", "q4")}
    errors["centred"] = _lost("q4", vectors, common)
    assert errors["centred"] < errors["int4"] / 10 and errors["centred"] < errors["q4"] < errors["int4"]
    assert _lost("q2", vectors, common) < errors["int4"]


def _lost(dtype: str, vectors: Tensor, centre: Tensor | None) -> float:
    """The share of what differs between vectors that a memory's rows lose, by its square."""
    config = MemoryConfig(K=4, N=8, K0=4, chunk_tokens=4, tap="input", store_dtype=dtype)
    memory = Memory(config, layers=len(vectors), width=128, centre=None if centre is None else centre.expand(2, -1))
    back = memory.of_rows(memory.rows_of(vectors))
    return float((back - vectors).square().sum() / (vectors - vectors.mean(1, keepdim=True)).square().sum())


def test_a_format_is_the_memorys_own(tokenizer: Any, tmp_path: Path) -> None:
    """A model goes on with what it wrote in four bits of either kind, reads both, and merges them; each is saved."""
    old, new = model_of(tokenizer, store_dtype="int4"), model_of(tokenizer, store_dtype="q4")
    assert old.fingerprint == new.fingerprint
    memory, other, store = told(old, 5), told(new, 6), MemoryStore(tmp_path)
    assert memory.centre_LD is None and other.centre_LD is not None and other.centre_LD.abs().sum() > 0
    store.save("old", memory)
    new.memorize(memory, random_text(80, 9), time=3.0)
    store.save("new", other)
    loaded = store.load("new")
    assert torch.equal(loaded.centre_LD, other.centre_LD)
    rows = torch.arange(CHUNK)
    assert torch.equal(loaded.long_term(0, rows), other.long_term(0, rows))
    for pair in ((memory, other), (other, memory), (memory, memory)):
        both = new.merge(*pair)
        assert both.config.store_dtype == pair[0].config.store_dtype
        for layer in range(both.layers):
            first = torch.cat([each.long_term(layer, rows) for each in pair])
            found = torch.stack([both.long_term(layer, w * CHUNK + rows) for w in range(both.write_count)])
            for part in first.split(CHUNK):
                apart = (found - part).square().sum((1, 2)) / part.square().sum()
                assert apart.min() < 0.05
    assert new.ask_batch([memory, other], ["What is it?"] * 2)


def test_a_memory_without_its_centre_is_damaged(tokenizer: Any) -> None:
    """It could not be read."""
    memory = told(model_of(tokenizer, store_dtype="q4"), 3)
    parts = memory.tensors()
    with pytest.raises(MemoryCorrupt, match="centre"):
        Memory.from_parts({name: part for name, part in parts.items() if name != "centre"}, memory.meta())
    with pytest.raises(MemoryCorrupt, match="centre"):
        Memory.from_parts(parts | {"centre": parts["centre"][:1]}, memory.meta())
    with pytest.raises(ConfigError, match="tap"):
        MemoryConfig(K=4, N=8, K0=4, chunk_tokens=4, tap="output", store_dtype="q2")


def _spread(model: MemoryModel, memory: Memory, question: list[int]) -> Tensor:
    with torch.no_grad(), model.reading([memory], found=model.search([memory], [question])) as cache:
        return model.base(torch.tensor([question]), past_key_values=cache, use_cache=True).logits


def test_rounded_memories_answer_nearly_alike(tokenizer: Any) -> None:
    """8 bits come closer than 4 of either kind; all are near."""
    exact, question = None, random_ids(5, 1)
    errors = []
    for dtype in ("float32", "int8", "q4", "int4"):
        model = model_of(tokenizer, store_dtype=dtype)
        logits = _spread(model, told(model, 12), question)
        exact = logits if exact is None else exact
        errors.append(float((logits - exact).abs().max() / exact.abs().max()))
    assert errors[0] == 0 < errors[1] < min(errors[2:]) and max(errors) < 0.5


def test_bytes_are_what_is_kept(tokenizer: Any) -> None:
    """Vectors and scales, keys and words."""
    model = model_of(tokenizer, store_dtype="int4", key_dtype="bfloat16")
    memory = told(model, 20)
    width, layers = model.vector_width, memory.layers
    a_token = layers * (width // 2 + -(-width // 64)) + 8 * 2 // 2 + 2
    pool = memory.pool_LnD.nbytes + memory.pool_rows_Ln.nbytes
    assert memory.nbytes == memory.write_count * CHUNK * a_token + pool


# Tokens alone ---------------------------------------------------------------------------------------------------------


def test_tokens_are_encoded_again(tokenizer: Any) -> None:
    """The first two writes exactly as they were written; a later one as if the text began one write before it."""
    model, kept = model_of(tokenizer, store_dtype="tokens"), model_of(tokenizer, store_dtype="float32")
    short, whole = told(model, 9), told(kept, 9)
    assert short.write_count == whole.write_count and short.tensors()["vectors"].shape[2] == 0
    again = model.encode_again(short, torch.tensor([0, 1, 5]))
    stored = whole.tensors()["vectors"]
    ids = short.records["ids"].span().flatten().tolist()
    late = told(kept, 0)
    kept.write(late, ids[4 * CHUNK : 5 * CHUNK])
    kept.write(late, ids[5 * CHUNK : 6 * CHUNK])
    for layer, made in enumerate(again):
        close(made[: 2 * CHUNK], stored[layer, : 2 * CHUNK])
        close(made[2 * CHUNK :], late.tensors()["vectors"][layer, CHUNK:])
        assert layer == 0 or (made[2 * CHUNK :] - stored[layer, 5 * CHUNK : 6 * CHUNK]).abs().max() > 1e-3


def test_a_memory_of_tokens_is_small_saved_and_asked(tokenizer: Any, tmp_path: Path) -> None:
    """Keys, words and ids, no vectors; the same answers after loading, also in a batch."""
    model, store = model_of(tokenizer, store_dtype="tokens", key_dtype="bfloat16"), MemoryStore(tmp_path)
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(30 * CHUNK))
        answer = model.ask(memory, "Where?", max_new_tokens=4)
    assert memory.nbytes - memory.pool_LnD.nbytes - memory.pool_rows_Ln.nbytes == memory.write_count * CHUNK * 14
    loaded, other = store.load("ada"), told(model, 7, 3)
    answers = model.ask_batch([loaded, other], ["Where?", "Who?"], max_new_tokens=4)
    assert answers[0].ids == answer.ids and answers[1].ids == model.ask(other, "Who?", max_new_tokens=4).ids
