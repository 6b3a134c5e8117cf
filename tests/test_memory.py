"""`Memory` and `MemoryConfig`: the bookkeeping of pool and store, without any model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from remanence.config import MemoryConfig
from remanence.core.memory import Memory, Pending, Write
from remanence.core.records import Block, Records
from remanence.errors import ConfigError, IncompatibleMemory, MemoryCorrupt, RemanenceError

LIGHT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
FALSE_ALARM = 1e-10  # of each statistical test


def small(**changes: Any) -> MemoryConfig:
    """A small config for direct use."""
    values: dict[str, Any] = {"K": 4, "N": 16, "K0": 8, "chunk_tokens": 8, "window_tokens": 32, "retriever_dim": 3}
    return MemoryConfig(**(values | changes))


@st.composite
def cases(draw: Callable[..., Any]) -> tuple[MemoryConfig, int, int, int]:
    """A config with layers, width and a number of writes."""
    K = draw(st.integers(1, 6))
    config = small(
        K=K,
        N=draw(st.integers(K, 5 * K)),
        K0=draw(st.integers(1, 4 * K)),
        drop=draw(st.sampled_from(["random", "oldest"])),
        key_group=draw(st.sampled_from([g for g in range(1, K + 1) if K % g == 0])),
    )
    return config, draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 14))


class History:
    """A memory and everything that was ever written to it."""

    def __init__(self, config: MemoryConfig, layers: int = 2, width: int = 5, seed: int = 0, **more: Any) -> None:
        self.memory = Memory(config, layers=layers, width=width, model="m", seed=seed, **more)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.vectors: list[Tensor] = []  # one [L, K, D] a write
        self.keys: list[Tensor] = []  # one [L, G, R] a write

    def write(self, count: int = 1, tokens: int | None = None, memory: Memory | None = None) -> Memory:
        """`count` random writes, to `memory` instead if it is given."""
        memory = memory or self.memory
        config = memory.config
        for _ in range(count):
            vectors = torch.randn(memory.layers, config.K, memory.width, generator=self.generator)
            keys = torch.randn(memory.layers, config.keys_per_write, config.retriever_dim, generator=self.generator)
            index = memory.write_count
            record = Write(index, f"s{index}", 100.0 + index, memory.tokens, tokens or config.chunk_tokens, f"t{index}")
            memory.add(vectors, keys if config.long_term else None, record)
            self.vectors.append(vectors)
            self.keys.append(keys)
        return memory

    def row(self, layer: int, row: int) -> Tensor:
        """The vector that was written as `row`."""
        K = self.memory.config.K
        return self.vectors[row // K][layer, row % K]


def same(a: Memory, b: Memory) -> bool:
    """Whether two memories are alike to the last bit."""
    one, two = a.tensors(), b.tensors()
    return a.meta() == b.meta() and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Pool and store -------------------------------------------------------------------------------------------------------


@LIGHT
@given(cases())
def test_pool_laws_hold_after_every_write(case: tuple[MemoryConfig, int, int, int]) -> None:
    """Size min(N, W K); ascending rows; the newest write whole; survivors keep their order; vectors are their rows'."""
    config, layers, width, writes = case
    history = History(config, layers, width)
    memory, K, before = history.memory, config.K, torch.zeros(layers, 0, dtype=torch.long)
    assert memory.pool_size == memory.tokens == memory.write_count == memory.long_term_size == 0
    for w in range(1, writes + 1):
        history.write()
        rows = memory.pool_rows_Ln
        assert memory.pool_size == min(config.N, w * K) == memory.pool_LnD.shape[1] == rows.shape[1]
        assert (rows.diff(dim=1) > 0).all()
        assert torch.equal(rows[:, -K:], torch.arange((w - 1) * K, w * K).expand(layers, -1))
        for layer in range(layers):
            assert set(rows[layer, :-K].tolist()) <= set(before[layer].tolist())
            for place, row in enumerate(rows[layer].tolist()):
                assert torch.equal(memory.pool_LnD[layer, place], history.row(layer, row))
        if config.drop == "oldest":
            assert torch.equal(rows, torch.arange(max(0, w * K - config.N), w * K).expand(layers, -1))
        before = rows
    assert memory.tokens == writes * config.chunk_tokens
    assert memory.write_count == writes


@LIGHT
@given(cases())
def test_nothing_is_lost(case: tuple[MemoryConfig, int, int, int]) -> None:
    """Pool and long-term rows are disjoint, together all rows, and every row gives back its very vector and key."""
    config, layers, width, writes = case
    config = config.replace(K0=max(1, writes * config.K))  # so that all long-term vectors are read
    history = History(config, layers, width)
    memory = history.write(writes)
    for layer in range(layers):
        pool = set(memory.pool_rows_Ln[layer].tolist())
        rows = memory.best_rows(layer, torch.randn(writes))
        stored = set(rows.tolist())
        assert not pool & stored
        assert pool | stored == set(range(writes * config.K))
        assert len(rows) == memory.long_term_size == writes * config.K - memory.pool_size
        for row, vector in zip(rows.tolist(), memory.long_term(layer, rows), strict=True):
            assert torch.equal(vector, history.row(layer, row))
        expected = [keys[layer] for keys in history.keys]
        stacked = torch.stack(expected, 1) if expected else torch.zeros(config.keys_per_write, 0, 3)
        assert torch.equal(torch.cat(memory.keys(layer)).transpose(0, 1), stacked)


def test_the_record_of_a_write_is_found_by_row() -> None:
    """Provenance: row // K is the write; its record says source, time, tokens and text."""
    history = History(small())
    memory = history.write(9, tokens=7)
    for row in memory.pool_rows_Ln.flatten().tolist():
        write = memory.writes[row // 4]
        assert (write.index, write.source, write.text) == (row // 4, f"s{row // 4}", f"t{row // 4}")
        assert (write.first_token, write.tokens) == (7 * write.index, 7)
    assert memory.tokens == 63


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_narrow_store_rounds_once_and_leaves_the_pool_alone(name: str) -> None:
    """Half-precision stores hold the rounded vectors; the pool keeps float32."""
    history = History(small(store_dtype=name, drop="oldest"))
    memory = history.write(6)
    rows = memory.best_rows(0, torch.randn(6))
    expected = torch.stack([history.row(0, row) for row in rows.tolist()]).to(getattr(torch, name))
    assert torch.equal(memory.long_term(0, rows), expected)
    assert torch.equal(memory.pool_LnD[0, -1], history.row(0, 23))


def test_pool_in_the_models_dtype() -> None:
    """A bfloat16 model has a bfloat16 pool, with a float32 store."""
    history = History(small(), dtype=torch.bfloat16)
    memory = history.write(6)
    assert memory.pool_LnD.dtype == torch.bfloat16
    assert memory.long_term(0, torch.tensor([0])).dtype == torch.float32


def test_nbytes_counts_pool_and_store() -> None:
    """float32 vectors and keys of 6 writes, and the pool with its rows."""
    memory = History(small(), layers=2, width=5).write(6)
    assert memory.nbytes == 6 * 2 * (4 * 5 * 4 + 4 * 3 * 4) + 2 * 16 * (5 * 4 + 8)
    assert History(small(long_term=False)).write(6).nbytes == 2 * 16 * (5 * 4 + 8)


# Random drop ----------------------------------------------------------------------------------------------------------


def test_each_layer_drops_its_own() -> None:
    """64 layers would draw the same 4 of 16 by chance with probability (1/1820)^63."""
    rows = History(small(), layers=64, width=1).write(5).pool_rows_Ln
    assert len({tuple(layer) for layer in rows.tolist()}) > 32


def test_drop_frequency() -> None:
    """Every place of a full pool is dropped with probability K/N, in each of 20,000 layers on its own.

    Hoeffding: a correct drop fails at one of the 16 places with probability < 2 * 16 * exp(-2 * layers * t^2).
    """
    layers, N, K = 20_000, 16, 4
    memory = History(small(), layers=layers, width=1).write(5)
    survived = torch.zeros(N)
    for place in range(N):
        survived[place] = (memory.pool_rows_Ln == place).any(1).float().mean()
    t = math.sqrt(math.log(2 * N / FALSE_ALARM) / (2 * layers))
    assert t < 0.03
    assert (survived - (1 - K / N)).abs().max() < t


def test_survival_decays_as_in_the_paper() -> None:
    """After m further writes a vector of a full pool is left with probability (1 - K/N)^m, whatever its age.

    Hoeffding over layers for one place of the first write; 8 checks.
    """
    layers, N, K = 20_000, 16, 4
    history = History(small(), layers=layers, width=1)
    memory = history.write(4)
    t = math.sqrt(math.log(2 * 8 / FALSE_ALARM) / (2 * layers))
    for m in range(1, 9):
        history.write()
        left = (memory.pool_rows_Ln == 2).any(1).float().mean()
        assert abs(float(left) - (1 - K / N) ** m) < t


def test_seed_decides_the_drops() -> None:
    """The same seed drops the same rows, another seed others."""
    first, second, other = (History(small(), layers=8, seed=seed).write(9).pool_rows_Ln for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_drops_leave_the_global_generator_alone() -> None:
    """The user's own random numbers are not moved on by a write."""
    state = torch.get_rng_state()
    history = History(small())
    history.write(9)
    assert torch.equal(torch.get_rng_state(), state)


# Retrieval ------------------------------------------------------------------------------------------------------------


@LIGHT
@given(cases(), st.sampled_from(["block", "vector"]), st.sampled_from([None, 3]), st.integers(0, 99))
def test_best_rows_equal_a_naive_search(
    case: tuple[MemoryConfig, int, int, int], score: str, cap: int | None, seed: int
) -> None:
    """Best scores first, vectors still in the pool left out, a partly dropped write read in part, oldest first."""
    config, layers, width, writes = case
    config = config.replace(
        score=score,
        key_group=config.key_group if score == "block" else 1,
        store_tokens=cap and cap * config.chunk_tokens,
    )
    memory = History(config, layers, width, seed).write(writes)
    first, K = memory.first_write, config.K
    assert first == (max(0, writes - cap) if cap else 0)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(layers):
        count = (writes - first) * (1 if score == "block" else K)
        scores = torch.randperm(max(count, 1), generator=generator)[:count].float()  # no ties
        rows = memory.best_rows(layer, scores)
        expected = reference.best_rows(
            scores.tolist(), first=first, writes=writes, count=K, in_pool=set(memory.pool_rows_Ln[layer].tolist()),
            wanted=min(config.K0, memory.long_term_size), block=score == "block",
        )  # fmt: skip
        assert rows.tolist() == expected


def test_a_write_partly_in_the_pool_is_read_in_part() -> None:
    """By hand: K 4, N 6, oldest first: the pool holds the last 2 rows of write 1 and write 2."""
    memory = History(small(N=6, K0=3, drop="oldest")).write(3)
    assert memory.pool_rows_Ln[0].tolist() == [6, 7, 8, 9, 10, 11]
    assert memory.best_rows(0, torch.tensor([0.0, 1.0, 9.0])).tolist() == [0, 4, 5]
    assert memory.best_rows(0, torch.tensor([1.0, 0.0, 9.0])).tolist() == [0, 1, 2]


def test_a_store_with_less_than_is_wanted() -> None:
    """All that is there is read, once."""
    memory = History(small(K0=100, drop="oldest")).write(5)
    assert memory.best_rows(0, torch.randn(5)).tolist() == [0, 1, 2, 3]
    assert History(small()).write(4).best_rows(0, torch.randn(4)).tolist() == []


# Expiry ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["random", "oldest"])
def test_the_store_forgets_the_oldest_writes(drop: str) -> None:
    """Never more than `store_tokens` in the store, over many trims, and what is left is still right."""
    cap = 40 * 8 + 3
    history = History(small(store_tokens=cap, K0=10_000, drop=drop), layers=2, width=2)
    memory = history.memory
    for w in range(1, 700):
        history.write()
        assert memory.first_write == max(0, w - 40)
        assert (memory.write_count - memory.first_write) * 8 <= cap
        if w % 97 and w not in (295, 296, 297, 553):  # the trims happen around here
            continue
        sizes = []
        for layer in range(2):
            pool = set(memory.pool_rows_Ln[layer].tolist())
            alive = [row for row in range(memory.first_write * 4, w * 4) if row not in pool]
            sizes.append(len(alive))
            rows = memory.best_rows(layer, torch.randn(memory.write_count - memory.first_write))
            assert set(rows.tolist()) <= set(alive)
            assert len(rows) == memory.long_term_size
            assert torch.equal(
                memory.long_term(layer, rows), torch.stack([history.row(layer, r) for r in rows.tolist()])
            )
            kept = torch.stack([k[layer] for k in history.keys[memory.first_write :]], 1)
            assert torch.equal(torch.cat(memory.keys(layer)).transpose(0, 1), kept)
        assert memory.long_term_size == min(sizes)
        assert same(memory.copy(), memory)
    assert memory.tensors()["vectors"].shape[1] < (40 + 256 + 1) * 4
    assert memory.write_count == 699
    assert memory.tokens == 699 * 8


def test_writes_of_different_lengths_expire_by_tokens() -> None:
    """By hand: 8 + 5 + 8 + 6 tokens under a cap of 20."""
    history = History(small(store_tokens=20))
    firsts = []
    for tokens in (8, 5, 8, 6):
        history.write(tokens=tokens)
        firsts.append(history.memory.first_write)
    assert firsts == [0, 0, 1, 1]
    assert history.write(tokens=8).first_write == 3


@pytest.mark.parametrize("loaded", [0, 5, 64])
def test_vectors_are_found_in_whatever_block_they_are(loaded: int) -> None:
    """300 writes, several blocks, any order of rows; also after a memory of some size was loaded, and after expiry."""
    history = History(small(), layers=2, width=2)
    if loaded:
        history.memory = history.write(loaded).copy()
    memory = history.write(300 - loaded)
    records = memory.records["vectors"]
    assert len(records.blocks()) >= 3
    rows = torch.randint(300 * 4, (500,), generator=history.generator)
    for layer in range(2):
        expected = torch.stack([history.row(layer, row) for row in rows.tolist()])
        assert torch.equal(memory.long_term(layer, rows), expected)
    whole = records.span()
    for write in (0, 1, 63, 64, 65, 128, 299, 300):
        assert torch.equal(records.span(write), whole[write:]) and torch.equal(records.span(0, write), whole[:write])
    some = rows[:100] // 4
    for cut in (0, 3, 64, 70, 100):
        looked: list[int] = []

        def check(places: Any, looked: list[int] = looked) -> None:
            looked.extend(range(40) if places is None else places)

        again = Records(whole.shape[1:], whole.dtype, [Block(whole[:40], check), Block(whole[40:65])])
        for write in range(65, 300):
            again.append(whole[write])
        first = again.until(50)
        again.cut(cut)
        assert again.size == 300 - cut and not looked
        assert torch.equal(again.take(some[some >= cut] - cut), whole[some[some >= cut]])
        assert set(looked) == {place for place in some.tolist() if cut <= place < 40}
        assert torch.equal(
            again.vectors(1, rows[rows >= cut * 4] - cut * 4), memory.long_term(1, rows[rows >= cut * 4])
        )
        assert torch.equal(again.span(), whole[cut:])
        first.append(whole[0])
        assert torch.equal(first.span(), torch.cat([whole[:50], whole[:1]])) and torch.equal(again.span(), whole[cut:])


# MemoryLLM ------------------------------------------------------------------------------------------------------------


def test_memoryllm_has_no_long_term_store() -> None:
    """long_term=False: a full pool, nothing behind it, no keys needed."""
    history = History(small(long_term=False, K0=0))
    memory = history.write(9)
    assert memory.pool_size == 16
    assert memory.long_term_size == 0
    assert memory.best_rows(0, torch.zeros(0)).tolist() == []
    assert memory.tensors()["vectors"].shape[1] == memory.tensors()["keys"].shape[1] == 0
    assert torch.cat(memory.keys(0)).shape[::2] == (0, 3)
    copy = memory.copy()
    generator = history.generator.get_state()
    history.write(3)
    history.generator.set_state(generator)
    history.write(3, memory=copy)
    assert same(copy, memory)


# As a whole -----------------------------------------------------------------------------------------------------------


@LIGHT
@given(cases(), st.integers(0, 5), st.sampled_from([None, 3]), st.booleans())
def test_saved_and_loaded_goes_on_as_if_never_closed(
    case: tuple[MemoryConfig, int, int, int], more: int, cap: int | None, long_term: bool
) -> None:
    """tensors + meta (through JSON) -> from_parts, then the same writes: equal to the last bit, drops included."""
    config, layers, width, writes = case
    config = config.replace(store_tokens=cap and cap * 8, long_term=long_term)
    history = History(config, layers, width, seed=5)
    memory = history.write(writes)
    memory.pending = [Pending("later", 7.5, (3, 1, 2))]
    parts = {name: tensor.clone() for name, tensor in memory.tensors().items()}
    again = Memory.from_parts(parts, json.loads(json.dumps(memory.meta())))
    assert same(again, memory)
    assert again.pending == memory.pending
    assert again.writes == memory.writes
    state = history.generator.get_state()
    history.write(more)
    history.generator.set_state(state)
    history.write(more, memory=again)
    assert same(again, memory)


def test_a_copy_is_independent() -> None:
    """What happens to a copy does not reach the original, and the other way round."""
    history = History(small())
    memory = history.write(3)
    memory.pending = [Pending("a", 1.0, (1, 2))]
    kept = memory.copy()
    before = {name: tensor.clone() for name, tensor in memory.tensors().items()}, memory.meta()
    copy = memory.copy()
    history.write(30, memory=copy)
    copy.pending.clear()
    copy.pool_LnD.zero_()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in memory.tensors().items())
    assert memory.meta() == before[1]
    assert same(memory, kept)
    history.write(2)
    assert copy.write_count == 33
    assert kept.write_count == 3


@pytest.mark.parametrize("name", ["pool", "pool_rows", "vectors", "keys"])
def test_parts_that_do_not_fit_are_corrupt(name: str) -> None:
    """A tensor cut short is noticed."""
    memory = History(small()).write(6)
    parts = dict(memory.tensors())
    parts[name] = parts[name][:, :-1] if name != "pool" else parts[name][:, :, :-1]
    with pytest.raises(MemoryCorrupt, match="expected"):
        Memory.from_parts(parts, memory.meta())


@pytest.mark.parametrize("name", ["pool", "pool_rows", "vectors", "keys", "generator"])
def test_a_missing_part_is_corrupt(name: str) -> None:
    """So is a tensor that is not there."""
    # Was a bug: KeyError.
    memory = History(small()).write(6)
    parts = {key: value for key, value in memory.tensors().items() if key != name}
    with pytest.raises(MemoryCorrupt):
        Memory.from_parts(parts, memory.meta())


def test_vectors_of_another_shape_are_refused_and_change_nothing() -> None:
    """A write with the wrong sizes or the wrong number."""
    history = History(small())
    memory = history.write(6)
    before = memory.copy()
    keys = torch.zeros(2, 4, 3)
    for vectors, index in [
        (torch.zeros(2, 3, 5), 6),
        (torch.zeros(1, 4, 5), 6),
        (torch.zeros(2, 4, 6), 6),
        (torch.zeros(2, 4, 5), 7),
        (torch.zeros(2, 4, 5), 5),
    ]:
        with pytest.raises(IncompatibleMemory, match="expected"):
            memory.add(vectors, keys, Write(index, "", 0.0, memory.tokens, 8, None))
        assert same(memory, before)


@pytest.mark.parametrize("keys", [(2, 1, 3), (2, 3, 3), (2, 4, 2), (1, 4, 3), None], ids=str)
def test_keys_of_another_shape_are_refused(keys: tuple[int, ...] | None) -> None:
    """Also those that would broadcast, and none at all, which could never be found again."""
    # Was a bug: Memory.add looks at the vectors only.
    memory = History(small()).write(1)
    with pytest.raises(RemanenceError):
        memory.add(torch.zeros(2, 4, 5), None if keys is None else torch.zeros(keys), Write(1, "", 0.0, 8, 8, None))


# Config ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"K": 5, "N": 4}, "N at least K"),
        ({"K": 9}, "chunk_tokens at least K"),
        ({"K": 0}, "K must be a positive"),
        ({"N": -1}, "N must be a positive"),
        ({"chunk_tokens": 2.5}, "chunk_tokens must be a positive"),
        ({"window_tokens": "32"}, "window_tokens must be"),
        ({"retriever_dim": None}, "retriever_dim must be"),
        ({"K0": -1}, "K0"),
        ({"K0": 0}, "K0"),
        ({"tap": "middle"}, "output, input"),
        ({"write_context": "all"}, "last, pool"),
        ({"drop": "newest"}, "random, oldest"),
        ({"split": "word"}, "sentence, fixed"),
        ({"score": "bm25"}, "block, vector"),
        ({"store_dtype": "int3"}, "float32, float16, bfloat16"),
        ({"key_group": 3}, "key_group"),
        ({"key_group": 2, "score": "vector"}, "key_group"),
        ({"recency": 1.0, "score": "vector"}, "recency"),
        ({"candidates": 2}, "needs score_layers = 'mean'"),
        ({"candidates": 2, "score_layers": "mean", "retriever": "attention"}, "a trained retriever"),
        ({"candidates": 1, "score_layers": "mean"}, "at least K0 / K = 2"),
        ({"candidates": 2.5, "score_layers": "mean"}, "a whole number"),
        ({"window_tokens": 8}, "window_tokens = 8 must exceed"),
        ({"store_tokens": 7}, "less than one chunk"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(changes: dict[str, Any], says: str) -> None:
    """Each says what was found and what is expected."""
    with pytest.raises(ConfigError, match=says):
        small(**changes)


@pytest.mark.parametrize("changes", [{"K0": 1.5}, {"K0": "8"}, {"store_tokens": 64.5}, {"store_tokens": "64"}], ids=str)
def test_numbers_that_are_not_whole(changes: dict[str, Any]) -> None:
    """K0 and store_tokens are checked like the other sizes, here and not at the first use."""
    # Was a bug: TypeError, or accepted.
    with pytest.raises(ConfigError):
        small(**changes)


def test_an_unknown_setting_names_the_nearest() -> None:
    """Typing errors are helped along."""
    with pytest.raises(ConfigError, match="did you mean 'chunk_tokens'"):
        MemoryConfig.from_dict({"chunk_token": 8})
    with pytest.raises(ConfigError, match=r"unknown memory setting 'xyzzy'\."):
        MemoryConfig.from_dict({"xyzzy": 8})
    with pytest.raises(ConfigError, match="did you mean 'write_context'"):
        MemoryConfig().replace(writecontext="pool")


@pytest.mark.parametrize("config", [MemoryConfig(), MemoryConfig.verbatim(), small(store_tokens=64, long_term=False)])
def test_a_config_survives_json(config: MemoryConfig) -> None:
    """to_dict -> JSON -> from_dict is the same config; replace checks again."""
    assert MemoryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.replace(K0=7).K0 == 7
    with pytest.raises(ConfigError):
        config.replace(K=config.N + 1)


def test_verbatim_keeps_every_token() -> None:
    """The verbatim end of the scale, and changes to it."""
    config = MemoryConfig.verbatim(chunk_tokens=16, pool_tokens=96, K0=5)
    assert (config.K, config.chunk_tokens, config.N, config.K0) == (16, 16, 96, 5)
    assert (config.tap, config.write_context, config.drop, config.offset) == ("input", "pool", "oldest", False)
    assert small(K=4, key_group=2).keys_per_write == 2
