"""Searching many writes: exactly, by a coarse level, and by libraries: `python benchmarks/search.py --books FILE`.

Keys and words of real text and real questions are made by the model, for `--minutes`, and kept in the file `--keys`:
prose in which facts of everyday life are told, in windows of eight writes, whose tokens see what is before them in the
window. Only the layers up to the last that the search sees are run.

These few writes are enlarged to `--writes`. A made write is four pieces of 16 tokens of real writes in which nothing
lies that is asked. Each token's key is that of another place where the same word stands in the real text; the key of a
word that is rare there is its own, moved as far as a key of a frequent word lies from their mean. A key of a write is
then the sum of two neighbours', as in a memory. The writes that answer the questions are real, and lie among the made
ones. How well that does is told as "fidelity": the exact search among as many made writes as there are real ones.

Of each way are printed, on one core: processor seconds to build it, megabytes beside the keys, processor milliseconds a
question (the median), the share of the exact search's best 8 that it finds too, and of the right writes among these 8
the share that it loses. Every way but the exact one finds candidates, which are then scored exactly. hnswlib and
usearch take long to build, and are measured with `--small` writes, beside the others of as many. At last a memory of
`--writes` is searched again and again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence import MemoryModel
from remanence.arena.tasks import Books
from remanence.core.coarse import CANDIDATES, Level, Lists, Question, searched
from remanence.core.history import Writes
from remanence.core.memory import Write
from remanence.core.records import Block
from remanence.core.search import Search
from remanence.facts.everyday import ask, lines, tell, topics
from remanence.facts.maker import FactMaker

FAISS = 1024  # lists of faiss
BEST = 8  # writes that an answer looks at
BLOCK = 2048  # writes of a block, as of a file
PIECE = 16  # tokens of a real write that come into a made one together
FREQUENT = 5  # times that a word stands in the real text, for its keys to be taken from other places
WINDOW, BATCH = 8, 4  # writes of a window, windows that are encoded at once
FACTS = 6  # told in a window; of every other one it is asked
ASKED = 2  # questions for each of these


# Real keys and questions ----------------------------------------------------------------------------------------------


@dataclass
class Real:
    """Of real writes, a key and a word of every token [n, K, R], [n, K]; and questions, each with its right write.

    What is of a question is padded with zeros.

    planted: the writes in which something lies that is asked [n]. queries [Q, T, R], asked, weights [Q, T]: as `Search`
    makes them; lengths [Q]. right: [Q].
    """

    keys: Tensor
    words: Tensor
    planted: Tensor
    queries: Tensor
    asked: Tensor
    weights: Tensor
    lengths: Tensor
    right: Tensor


def window_of(model: MemoryModel, books: Books, maker: FactMaker, rng: random.Random) -> tuple[list[int], list, set]:
    """Tokens of a window; its questions, each with the write in it that answers it; and the writes that hold these."""
    size = model.config.chunk_tokens
    ids, asks, held, told = list[int](), list[tuple[str, int]](), set[int](), 0
    every = list(topics().values())
    while len(ids) < WINDOW * size:
        ids += model.encode(" " + books.piece(rng.randrange(100, 400)).strip())
        if rng.random() < 0.3:
            ids += model.encode(" " + rng.choice(lines("statements")))
        if told == FACTS:
            continue
        topic = rng.choice(every)
        name = rng.choice(topic.names) if topic.of_things else maker.subject("person").name
        fact = tell(topic, rng, name)
        begin, end = len(ids), len(ids) + len(model.encode(" " + fact.text[: fact.end + 1])) - 1
        ids += model.encode(" " + fact.text)
        if told % 2 == 0 and not topic.of_things and end < WINDOW * size:
            asks += [(ask(topic, rng, name), end // size) for _ in range(ASKED)]
            held |= set(range(begin // size, (len(ids) - 1) // size + 1))
        told += 1
    return ids[: WINDOW * size], asks, held


@torch.no_grad()
def encode(model: MemoryModel, books: Books, minutes: float, seed: int) -> Real:
    """Make keys of real text for so long, and the queries of its questions."""
    rng, search, config = random.Random(seed), model.retriever, model.config
    maker, first, size = FactMaker(rng, "train"), model.prompts.first_token(), config.chunk_tokens
    keys, words, planted, asked, right = [], [], list[bool](), list[Tensor](), list[int]()
    queries, weights = list[Tensor](), list[Tensor]()
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        lot = [window_of(model, books, maker, rng) for _ in range(BATCH)]
        ids = torch.tensor([[first, *tokens] for tokens, _, _ in lot])
        with model.adapter("write"):
            states = model.attachment.inputs(ids, last=config.search_layers[-1], use_cache=False)
        features = Search.features([states[layer][:, 1:] for layer in config.search_layers])
        for tokens, made, (_, asks, held) in zip(ids[:, 1:], features, lot, strict=True):
            base = len(planted)
            keys.append(search.keys(made).unflatten(0, (WINDOW, -1)).float())
            words.append(search.words(tokens).view(WINDOW, size))
            planted += [place in held for place in range(WINDOW)]
            right += [base + place for _, place in asks]
        questions = [model.encode(question) for _, asks, _ in lot for question, _ in asks]
        if not questions:
            continue
        ids_BT, asks_BT, seen = model.asked(questions)
        for row in range(len(questions)):
            own, mine = ids_BT[row, asks_BT[row]], seen[row, asks_BT[row]]
            queries.append(search.queries(mine).float())
            asked.append(search.words(own))
            weights.append(search.word_weights(own, mine))
        print(f"\r{len(planted)} writes, {len(right)} questions", end="", file=sys.stderr)
    print(file=sys.stderr)

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    return Real(
        torch.cat(keys), torch.cat(words), torch.tensor(planted), padded(queries), padded(asked), padded(weights),
        torch.tensor([len(one) for one in queries]), torch.tensor(right),
    )  # fmt: skip


def real(given: argparse.Namespace, model: MemoryModel) -> Real:
    """What was encoded before, or is now."""
    if given.keys is not None and given.keys.exists():
        return Real(**load_file(given.keys))
    made = encode(model, Books(given.books, given.seed), given.minutes, given.seed)
    if given.keys is not None:
        save_file(vars(made), given.keys)
    return made


# Many of them ---------------------------------------------------------------------------------------------------------


@dataclass
class Many:
    """Writes to search: keys [W, G, R], bfloat16, and words [W, K]. right: of each question."""

    keys: Tensor
    words: Tensor
    right: Tensor


def many(found: Real, writes: int, group: int, seed: int, *, made: bool = True) -> Many:
    """So many made writes with the real ones that answer questions among them; or if not `made`, real ones only."""
    chance = torch.Generator().manual_seed(seed)
    plain, planted = (~found.planted).nonzero()[:, 0], found.planted.nonzero()[:, 0]
    width, tokens = found.keys.shape[-1], found.words.shape[1]

    def grouped(keys_wKR: Tensor) -> Tensor:
        return keys_wKR.unflatten(1, (-1, group)).sum(2).to(torch.bfloat16)

    if not made:
        right = torch.searchsorted(planted, found.right) + len(plain)
        order = torch.cat([plain, planted])
        return Many(grouped(found.keys[order]), found.words[order], right)
    # Tokens of plain writes by their word, with the mean of each word's keys.
    keys, words = found.keys[plain].view(-1, width), found.words[plain].view(-1)
    _, word_of, counts = words.unique(return_inverse=True, return_counts=True)
    by_word, starts = word_of.argsort(stable=True), counts.cumsum(0) - counts
    means = torch.zeros(len(counts), width).index_add_(0, word_of, keys) / counts[:, None]
    often = counts[word_of] >= FREQUENT
    apart = (keys - means[word_of])[often]
    new = writes - len(planted)
    blocks, of_words = list[Tensor](), list[Tensor]()
    for begin in range(0, new, BLOCK):
        count = min(BLOCK, new - begin)
        pieces = torch.randint(len(keys) // PIECE, (count, tokens // PIECE), generator=chance)
        at = (pieces[..., None] * PIECE + torch.arange(PIECE)).flatten()
        of = word_of[at]
        other = by_word[starts[of] + (torch.rand(len(of), generator=chance) * counts[of]).long()]
        moved = keys[at] + apart[torch.randint(len(apart), (len(at),), generator=chance)]
        chosen = torch.where(often[at, None], keys[other], moved)
        blocks.append(grouped(chosen.view(count, tokens, width)))
        of_words.append(words[at].view(count, tokens))
    # Each right write takes a place of its own among them.
    places = torch.randperm(writes, generator=chance)[: len(planted)].sort().values
    rest = torch.ones(writes, dtype=torch.bool).index_fill(0, places, False)
    all_keys = torch.empty(writes, tokens // group, width, dtype=torch.bfloat16)
    all_words = torch.empty(writes, tokens, dtype=words.dtype)
    all_keys[rest], all_words[rest] = torch.cat(blocks), torch.cat(of_words)
    all_keys[places], all_words[places] = grouped(found.keys[planted]), found.words[planted]
    right = places[torch.searchsorted(planted, found.right)]
    return Many(all_keys, all_words, right)


# Ways to search -------------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """A way to find candidates. find: those of a question. build_s: processor time. mb: beside the keys."""

    name: str
    find: Callable[[Question], Tensor]
    build_s: float
    mb: float


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor time of this process that it took."""
    began = time.process_time()
    made = work()
    return made, time.process_time() - began


def by_words(among: Many) -> Way:
    """A coarse level of words alone, by inverted lists."""
    level, took = seconds(lambda: Level(0, len(among.keys), torch.zeros(len(among.keys), 1), Lists(among.words)))
    nothing = torch.zeros(1, 1)
    return Way("words alone", lambda q: best_of(level.estimates(replace(q, queries=nothing))), took, mb_of(level))


def by_means(among: Many) -> Way:
    """What a memory does (`core/coarse.py`): the mean of each write's keys, and words by inverted lists."""

    def build() -> Level:
        means = torch.cat([block.float().mean(1) for block in among.keys.split(BLOCK)])
        return Level(0, len(means), means, Lists(among.words))

    level, took = seconds(build)
    return Way("ours: means and words", lambda q: best_of(level.estimates(q)), took, mb_of(level))


def mb_of(level: Level) -> float:
    """Megabytes that it takes."""
    return (level.means_wR.nbytes + level.words.nbytes) / 1e6


def best_of(scores: Tensor) -> Tensor:
    """The writes with the best scores."""
    return scores.topk(min(CANDIDATES, len(scores))).indices


def by_library(name: str, among: Many, near: int) -> Way:
    """A library for nearest neighbours: of each token the `near` nearest keys.

    A token that has not met a write counts there as the last of these.
    """
    count, group = among.keys.shape[:2]
    (ask_near, size), took = seconds(lambda: LIBRARIES[name](among.keys.flatten(0, 1).float().numpy(), near))
    level, more = seconds(lambda: Level(0, count, torch.zeros(count, 1), Lists(among.words)))

    def find(question: Question) -> Tensor:
        values, places = map(torch.from_numpy, ask_near(question.queries.numpy()))
        found, one = torch.zeros(count), torch.empty(count)
        for own, at in zip(values, places, strict=True):
            met = at >= 0
            found += one.zero_().scatter_reduce_(0, at[met] // group, own[met] - own[met].min(), "amax")
        words = level.estimates(replace(question, queries=torch.zeros(1, 1)))
        return best_of(found * (question.scale / len(values)) + words)

    return Way(f"{name}, {near} keys a token", find, took + more, size + level.words.nbytes / 1e6)


Near = Callable[[Any], tuple[Any, Any]]  # queries [T, R] -> products and numbers of keys [T, near]


def faiss_lists(flat: Any, near: int, kind: str = "Flat") -> tuple[Near, float]:
    """Inverted lists of whole keys, or of keys rounded to a byte a number."""
    import faiss

    faiss.omp_set_num_threads(1)
    index: Any = faiss.index_factory(flat.shape[1], f"IVF{FAISS},{kind}", faiss.METRIC_INNER_PRODUCT)
    chance = np.random.default_rng(0)
    index.train(flat[chance.choice(len(flat), min(len(flat), 131_072), replace=False)])
    for begin in range(0, len(flat), 1 << 18):
        index.add(flat[begin : begin + (1 << 18)])
    index.nprobe = 8
    size = len(flat) * (flat.shape[1] * (4 if kind == "Flat" else 1) + 8)
    return lambda queries: index.search(queries, near), size / 1e6


def hnswlib_graph(flat: Any, near: int) -> tuple[Near, float]:
    """A graph of keys."""
    import hnswlib

    index = hnswlib.Index("ip", flat.shape[1])
    index.init_index(len(flat), M=16, ef_construction=100)
    index.add_items(flat, num_threads=1)
    index.set_ef(near)

    def ask_near(queries: Any) -> tuple[Any, Any]:
        places, apart = index.knn_query(queries, near, num_threads=1)
        return 1 - apart, places.astype(np.int64)

    return ask_near, index.index_file_size() / 1e6


def usearch_graph(flat: Any, near: int) -> tuple[Near, float]:
    """A graph of keys, in half precision."""
    from usearch.index import Index

    index = Index(ndim=flat.shape[1], metric="ip", dtype="f16", expansion_add=100, expansion_search=near)
    index.add(np.arange(len(flat)), flat, threads=1)

    def ask_near(queries: Any) -> tuple[Any, Any]:
        values, places = [], []
        for query in queries:
            found = index.search(query, near, threads=1)
            values.append(1 - np.resize(found.distances, near))
            places.append(np.resize(found.keys, near).astype(np.int64))
        return np.stack(values).astype(np.float32), np.stack(places)

    return ask_near, index.serialized_length / 1e6


LIBRARIES: dict[str, Callable[[Any, int], tuple[Near, float]]] = {
    "faiss IVF": faiss_lists,
    "faiss IVF of bytes": lambda flat, near: faiss_lists(flat, near, "SQ8"),
    "hnswlib": hnswlib_graph,
    "usearch": usearch_graph,
}


# Measuring ------------------------------------------------------------------------------------------------------------


class Asked:
    """Questions put to many writes, and the best of the exact search for each.

    Args:
        found: real questions.
        among: the writes.
        scale: of products.
        limit: questions at most, spread over all.
    """

    def __init__(self, found: Real, among: Many, scale: float, limit: int) -> None:
        every = torch.linspace(0, len(found.right) - 1, min(limit, len(found.right))).long()
        self.among, self.right = among, among.right[every].tolist()
        parts = [(i, int(found.lengths[i])) for i in every.tolist()]
        self.questions = [
            Question(found.queries[i, :n], found.asked[i, :n], found.weights[i, :n], scale) for i, n in parts
        ]
        self.best, times, eighth = list[list[int]](), list[float](), list[float]()
        for question in self.questions:
            scores, took = seconds(partial(self._exact, question))
            times.append(took)
            self.best.append(scores.topk(BEST).indices.tolist())
            eighth.append(float(scores.topk(BEST).values[-1]))
        known = sum(right in best for right, best in zip(self.right, self.best, strict=True))
        self.exact = {
            "way": "exact", "build_s": 0.0, "mb": 0.0, "ms": round(1000 * statistics.median(times), 1),
            "right_in_best": round(known / len(self.right), 4), "eighth_score": round(statistics.mean(eighth), 3),
        }  # fmt: skip

    def _exact(self, question: Question) -> Tensor:
        """As `MemoryModel.search` scores all writes."""
        return question.scores(self.among.keys.split(BLOCK), self.among.words.split(BLOCK))

    def by(self, way: Way) -> dict[str, Any]:
        """Figures of a way to find candidates, which are then scored exactly."""
        keys, words = self.among.keys.split(BLOCK), self.among.words.split(BLOCK)

        def work(question: Question) -> Tensor:
            candidates = way.find(question)
            return candidates[question.scores_of(candidates, keys, words).topk(BEST).indices]

        times, met, known, lost = list[float](), 0, 0, 0
        for question, right, best in zip(self.questions, self.right, self.best, strict=True):
            found, took = seconds(partial(work, question))
            times.append(took)
            met += len(set(found.tolist()) & set(best))
            known, lost = known + (right in best), lost + (right in best and right not in found.tolist())
        return {
            "way": way.name, "build_s": round(way.build_s, 1), "mb": round(way.mb, 1),
            "ms": round(1000 * statistics.median(times), 1), "best_found": round(met / (BEST * len(times)), 4),
            "right_known": known, "right_lost": lost,
        }  # fmt: skip


def in_memory(model: MemoryModel, asked: Asked) -> dict[str, Any]:
    """What searches of one memory take, in milliseconds of processor time.

    The first, which is exact; the second, which makes the coarse level; and the median of 50 later ones. Also the bytes
    that the coarse level takes.
    """
    memory, among, K = model.new_memory(), asked.among, model.config.K
    memory.writes = Writes(new=[Write(i, "", 0.0, i * K, K, "") for i in range(len(among.keys))])
    memory.records["keys"].settle(0, [Block(block[:, None]) for block in among.keys.split(BLOCK)])
    memory.records["words"].settle(0, [Block(block) for block in among.words.split(BLOCK)])
    times = [
        1000 * seconds(partial(searched, memory, question))[1]
        for question in itertools.islice(itertools.cycle(asked.questions), 52)
    ]
    return {
        "first_ms": round(times[0]), "second_ms": round(times[1]), "later_ms": round(statistics.median(times[2:]), 1),
        "mb": round(memory.coarse.nbytes / 1e6, 1),
    }  # fmt: skip


def measured(model: MemoryModel, found: Real, given: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    group, scale = model.config.key_group, model.retriever.scale
    result: dict[str, Any] = {"real_writes": len(found.words), "fidelity": {}, "ways": {}}
    for made in (False, True):
        asked = Asked(found, many(found, len(found.words), group, given.seed, made=made), scale, given.questions)
        figures = asked.exact
        row = result["fidelity"]["made" if made else "real"] = {
            name: figures[name] for name in ("right_in_best", "eighth_score")
        }
        show(row | {"way": "made" if made else "real"}, len(found.words))
    result["questions"] = len(asked.questions)
    lots = (given.small, ["hnswlib", "usearch"]), (given.writes, ["faiss IVF", "faiss IVF of bytes"])
    for writes, names in lots:
        asked = Asked(found, many(found, writes, group, given.seed), scale, given.questions)
        rows = result["ways"][str(writes)] = [asked.exact]
        show(asked.exact, writes)

        def add(way: Way, asked: Asked = asked, rows: list[dict[str, Any]] = rows) -> None:
            rows.append(asked.by(way))
            show(rows[-1], len(asked.among.keys))

        add(by_means(asked.among))
        add(by_words(asked.among))
        for name in names:
            if find_spec(name.split()[0]) is None:
                print(f"{name}: not installed", file=sys.stderr)
                continue
            for near in given.near:
                add(by_library(name, asked.among, near))
    result["in_memory"] = in_memory(model, asked)
    show(result["in_memory"] | {"way": "in a memory"}, len(asked.among.keys))
    return result


def show(row: dict[str, Any], writes: int) -> None:
    """Print a row."""
    figures = "  ".join(f"{name} {value}" for name, value in row.items() if name != "way")
    print(f"{writes:>7,} {row['way']:<32} {figures}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="of one search for all layers")
    parser.add_argument("--books", type=Path, help=".jsonl file of books; the package's prose if left out")
    parser.add_argument("--minutes", type=float, default=15.0, help="of making real keys")
    parser.add_argument("--keys", type=Path, help="a file where they are kept, and taken from if it exists")
    parser.add_argument("--writes", type=int, default=160_000)
    parser.add_argument("--small", type=int, default=10_000, help="writes for libraries that take long to build")
    parser.add_argument("--questions", type=int, default=300, help="at most")
    parser.add_argument("--near", type=int, nargs="+", default=[1000], help="keys that a library finds for a token")
    parser.add_argument("--no-words", action="store_true", help="scores without the words' part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = MemoryModel.from_pretrained(given.model)
    found = real(given, model)
    if given.no_words:
        found = replace(found, weights=torch.zeros_like(found.weights))
    result = measured(model, found, given)
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
