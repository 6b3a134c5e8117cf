"""What a layer reads for a question: in training as in use, from the same writes, but for what is said here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import small
from remanence.core.cache import MemoryCache
from remanence.core.memory import Memory, Write
from remanence.core.read import ReadSlots
from remanence.models.pretrained import MemoryModel
from remanence.train.bank import BankSlots, History

K, LAYERS, WIDTH = 4, 3, 64
QUESTIONS, STREAMS, CHUNKS = 6, 4, 4
WRITES = STREAMS * CHUNKS
Make = Callable[..., MemoryModel]
RULES: list[dict[str, Any]] = [
    {},
    {"score_bias": 2.0},
    {"score_bias": 2.0, "recency": 3.0},
    {"score_bias": 2.0, "recency": 3.0, "score_layers": "mean", "key_group": 2},
    {"score": "vector"},
    {"score": "vector", "score_bias": 4.0},
]


def ready(make_model: Make, **changes: Any) -> MemoryModel:
    """A model whose retriever tells writes apart."""
    model = make_model(small(K=K, **changes), attention="eager")
    torch.nn.init.normal_(model.start)
    torch.nn.init.normal_(model.retriever.null)
    for weight in [*model.retriever.query.parameters(), *model.retriever.key.parameters()]:
        torch.nn.init.normal_(weight, std=0.2)  # more, and sigmoids would be alike
    return model


def pasts(others: tuple[int, int]) -> tuple[list[Tensor], History]:
    """The vectors of all writes, by layer, and a past of each question among them."""
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.randn(WRITES, K, WIDTH, generator=generator) for _ in range(LAYERS)]
    streams_Q = torch.arange(QUESTIONS) % STREAMS
    none = torch.zeros(QUESTIONS, WRITES, dtype=torch.bool)
    owner_W = torch.arange(WRITES) // CHUNKS
    gold_Q = streams_Q * CHUNKS
    return vectors, History.draw(streams_Q, gold_Q, none, none, owner_W, others, generator)


def bank_of(model: MemoryModel, vectors: list[Tensor], history: History, asks_QT: Tensor, pool: int) -> BankSlots:
    """As training reads."""
    config = model.config
    return BankSlots(
        model.attachment, model.retriever, vectors, model.start, history, asks_QT,
        pool_vectors=pool, retrieved_writes=config.K0 // K, score_bias=config.score_bias, recency=config.recency,
        key_group=config.key_group, score=config.score, score_layers=config.score_layers,
        force_Q=torch.zeros(QUESTIONS, dtype=torch.bool), generator=torch.Generator().manual_seed(4),
    )  # fmt: skip


def known(history: History, question: int) -> list[int]:
    """The writes of a question's past, oldest first."""
    return history.order_QW[question][history.known_QW[question]].tolist()


def remembered(model: MemoryModel, vectors: list[Tensor], history: History) -> list[Memory]:
    """As use reads: a memory of each question's past, written one after the other."""
    memories = []
    for q in range(QUESTIONS):
        memory = model.new_memory()
        for index, write in enumerate(known(history, q)):
            vectors_LKD = torch.stack([layer[write] for layer in vectors])
            memory.add(vectors_LKD, model.retriever_keys(vectors_LKD), Write(index, "", 0.0, index * 8, 8, None))
        memories.append(memory)
    return memories


def questions() -> tuple[Tensor, Tensor]:
    """Tokens of a question each, and those that ask."""
    generator = torch.Generator().manual_seed(5)
    asks_QT = torch.zeros(QUESTIONS, 9, dtype=torch.bool)
    asks_QT[:, 2:7] = True
    return torch.randint(33, 127, (QUESTIONS, 9), generator=generator), asks_QT


@pytest.mark.parametrize("changes", RULES, ids=str)
@torch.no_grad()
def test_training_retrieves_as_use_does(changes: dict[str, Any], make_model: Make) -> None:
    """Hidden states of questions that read retrieved writes, through all layers, are those of use.

    Here the pool holds the newest write alone, so nothing that is retrieved is partly in the pool.
    """
    model = ready(make_model, N=K, K0=3 * K, **changes)
    vectors, history = pasts((2, 10))
    assert min(history.known_QW.sum(1)) > 1 + 3, "some write must stay unread"
    ids, asks_QT = questions()
    bank = bank_of(model, vectors, history, asks_QT, pool=K)
    with model.attachment.hooks():
        cache = MemoryCache(bank, LAYERS)
        trained = model.attachment.decoder(ids, past_key_values=cache, use_cache=True).last_hidden_state
    with model.reading(remembered(model, vectors, history), asks_QT) as cache:
        reader = cache.provider
        mask = torch.cat([reader.mask(), torch.ones_like(ids)], 1)
        used = model.attachment.decoder(ids, past_key_values=cache, attention_mask=mask).last_hidden_state
    assert reader.length == bank.length == 1 + 3 * K + K
    torch.testing.assert_close(trained, used, atol=2e-4, rtol=2e-4)
    # The layers find different writes, so what is compared is not one choice made thrice.
    assert len({str(layer[0][0].tolist()) for layer in reader.read}) > 1


@pytest.mark.parametrize("changes", RULES, ids=str)
@torch.no_grad()
def test_where_training_and_use_differ(
    changes: dict[str, Any], make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a write that is partly in the pool, training reads the rest and no more; use fills up to K0 vectors.

    So from the same scores and pools training reads a part of what use reads, which is all of it where no retrieved
    write has vectors in the pool. What use reads besides are vectors of the next best writes, in the number that the
    pool holds of the retrieved ones. (With vector scores, each vector is chosen by itself, and there is no difference.)
    """
    config: dict[str, Any] = {"N": 3 * K, "K0": 2 * K} | changes
    model = ready(make_model, **config)
    vectors, history = pasts((4, 10))
    _, asks_QT = questions()
    bank = bank_of(model, vectors, history, asks_QT, pool=3 * K)
    drawn, chosen = [], []
    pool, choose = bank._pool, "_choose_vectors" if model.config.score == "vector" else "_choose"
    real = getattr(bank, choose)
    monkeypatch.setattr(bank, "_pool", lambda *a: drawn.append(pool(*a)) or drawn[-1])
    monkeypatch.setattr(bank, choose, lambda *a: chosen.append((a[0].clone(), real(*a))) or chosen[-1][1])
    memories = remembered(model, vectors, history)
    reader = ReadSlots(model, memories, asks_QT)
    partly = 0
    for layer in range(LAYERS):
        hidden = torch.randn(QUESTIONS, 9, WIDTH, generator=torch.Generator().manual_seed(layer))
        trained = bank.slots(layer, hidden)
        pool_rows, pool_alive, _ = drawn[-1]
        assert pool_alive.all()
        for q, memory in enumerate(memories):  # use gets the pools that training drew
            place = {write: index for index, write in enumerate(known(history, q))}
            rows = torch.tensor([place[r // K] * K + r % K for r in pool_rows[q].tolist()])
            assert rows.equal(rows.sort().values)
            memory.pool_rows_Ln[layer] = rows
            memory.pool_LnD[layer] = vectors[layer].flatten(0, 1)[pool_rows[q]]
        used = reader.slots(layer, hidden)
        scores_Q, (rows_QS, alive_QS, _) = chosen[-1]
        count = 2 * K
        for q, (rows, scores, _) in enumerate(reader.read[-1]):
            order = known(history, q)
            mine = [order[r // K] * K + r % K for r in rows.tolist()]  # as the bank counts
            assert mine[-3 * K :] == pool_rows[q].tolist()
            assert len(mine) == count + 3 * K
            per_write = K if model.config.score == "vector" else 1
            at = torch.tensor([w * per_write + i for w in order for i in range(per_write)])
            torch.testing.assert_close(scores_Q[q, at], scores, atol=1e-5, rtol=1e-5)
            of = [r for r, a in zip(rows_QS[q, :count].tolist(), alive_QS[q, :count].tolist(), strict=True) if a]
            assert of == [r for r in mine[:count] if r in set(of)], "in the same order"
            besides = [r for r in mine[:count] if r not in of]
            if model.config.score == "vector":
                assert not besides
            else:
                best = rows_QS[q, :count:K].div(K, rounding_mode="floor").tolist()  # the writes that training retrieved
                pooled = set(pool_rows[q].tolist())
                assert len(besides) == len([r for w in best for r in range(w * K, w * K + K) if r in pooled])
                partly += len(besides)
                value = {w: float(scores_Q[q, w]) for w in order}
                whole = [w for w in order if not {*range(w * K, w * K + K)} <= pooled]
                assert sorted(best, key=value.get) == sorted(whole, key=value.get)[-2:]
                assert not {r // K for r in besides} & set(best)
                assert max([value[r // K] for r in besides], default=-math.inf) <= min(value[w] for w in best)
            if trained.bias is not None and used.bias is not None and not besides:
                assert alive_QS[q].all()
                torch.testing.assert_close(trained.bias[q], used.bias[q], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(trained.keys[q], used.keys[q], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(trained.values[q], used.values[q], atol=1e-4, rtol=1e-4)
    assert model.config.score == "vector" or partly > 5
