"""Search by hidden states that nobody trained, and making a model ready for it: `core/likeness.py`, `prepare`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig

from conftest import BOS, build_decoder, close, random_ids
from remanence import MemoryModel
from remanence.config import MemoryConfig
from remanence.core import likeness
from remanence.core.likeness import Likeness
from remanence.core.prompts import UNKNOWN
from remanence.core.search import Search
from remanence.errors import ConfigError
from remanence.facts.everyday import lines, messages
from remanence.train import preparing
from remanence.train.asking import INSTRUCTION
from remanence.train.fitting import Examples
from test_cli import run as command
from test_reading import CHATML, chatty

CHUNK = 8
STATES: dict[str, Any] = {
    "chunk_tokens": CHUNK, "pool_tokens": 2 * CHUNK, "K0": 2 * CHUNK, "window_tokens": 256, "kept": "keys_values",
    "retriever": "states", "score_layers": "one", "search_layers": (1,), "retriever_dim": 6, "looks": 2,
    "look_at": "sentences",
}  # fmt: skip


def model_of(tokenizer: Any, **changes: Any) -> MemoryModel:
    """A tiny decoder whose search has a mean, directions and rare words."""
    model = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, MemoryConfig.verbatim(**{**STATES, **changes}))
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 256, (8, 40), generator=generator)
    states = model.attachment.inputs(ids, last=1)[1]
    model.retriever.whiten(Search.features([states]).flatten(0, 1))
    with torch.no_grad():
        for part in (model.retriever.query, model.retriever.key, model.retriever.weigh):
            part.weight.add_(torch.randn(part.weight.shape, generator=generator) * 0.2)
    model.retriever.rarity.copy_(torch.rand(len(model.retriever.rarity), generator=generator))
    return model.eval()


# The search -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(features=st.integers(2, 12), seed=st.integers(0, 2**16))
def test_what_is_kept_is_as_wide_in_every_direction(features: int, seed: int) -> None:
    """Mean nothing, and as covariance the unit matrix."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(features, features, generator=generator))
    widths = 0.5 + 2 * torch.rand(features, generator=generator)
    x = torch.randn(200, features, generator=generator) * widths @ turned + 7
    search = Likeness(features, 3, 4)
    search.whiten(x)
    white = search.whitened(x)
    assert float(white.mean(0).abs().max()) < 1e-3
    close(white.T @ white / len(white), torch.eye(features), 1e-2)


def test_the_widest_directions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of states that differ in two directions much and in others little."""
    monkeypatch.setattr(likeness, "_DIRECTIONS", 2)
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 9.0, 0.2, 4.0, 0.1])
    search = Likeness(5, 2, 4)
    search.whiten(x)
    wide = search.axes.abs() * torch.tensor([9.0, 4.0])
    close(wide, torch.tensor([[0, 0], [1, 0], [0, 0], [0, 1], [0, 0]]).float(), 0.1)


def naive_scores(model: MemoryModel, ids: list[int], question: list[int]) -> list[float]:
    """Scores of every chunk by the definition, one token after the other. The chunks see a pool of two before them."""
    search: Likeness = model.retriever

    def white(state: Tensor) -> Tensor:
        return (Search.features([state]) - search.mean) @ search.axes

    def one(made: Tensor) -> Tensor:
        return made / made.norm()

    memory, chunks = model.new_memory(), []
    for i in range(0, len(ids), CHUNK):
        states = model.write_pass(torch.tensor([ids[i : i + CHUNK]]), [p[None] for p in memory.pool_LnD])
        chunks.append(states[1][0])
        model.write(memory, ids[i : i + CHUNK])
    asked = model.attachment.inputs(torch.tensor([[BOS, *question]]), last=1)[1][0, 1:]
    asked = [white(state) for state in asked]
    rare = [max(0.05, float(search.rarity[token])) for token in question]
    counts = [r * float(search.weigh(w).exp()) for r, w in zip(rare, asked, strict=True)]
    scores = []
    for n, states_KD in enumerate(chunks):
        own, keys = ids[n * CHUNK : (n + 1) * CHUNK], [one(search.key(white(state))) for state in states_KD]
        likeness = [max(float(one(search.query(w)) @ key) for key in keys) for w in asked]
        meaning = 25 * sum(c * l for c, l in zip(counts, likeness, strict=True)) / sum(counts)
        words = sum(2 * r / len(question) ** 0.5 for r, token in zip(rare, question, strict=True) if token in own)
        scores.append(meaning + words)
    return scores


@torch.no_grad()
def test_scores_are_those_of_the_definition(tokenizer: Any) -> None:
    """Cosines of queries and keys, by how much the question's tokens count; and a little for the same words."""
    model, ids, question = model_of(tokenizer), random_ids(5 * CHUNK), random_ids(7, 1)
    memory = model.new_memory()
    model.memorize(memory, bytes(ids).decode())
    [found] = model.search([memory], [question])
    expected = naive_scores(model, ids[: len(found.scores) * CHUNK], question)
    assert max(expected) - min(expected) > 0.1
    close(found.scores, torch.tensor(expected), 1e-4)
    assert not found.relevant


def test_keys_of_neighbours_are_their_mean() -> None:
    """Of length one, like those of single tokens."""
    search = Likeness(4, 4, 3).requires_grad_(False)
    keys, pairs = search.keys(torch.randn(6, 4)), search.keys(torch.randn(6, 4), 2)
    assert pairs.shape == (3, 4)
    close(keys.norm(dim=-1), torch.ones(6))
    close(pairs.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    ("needs", "doubt", "recalled", "unknown"),
    [(-9.0, -50.0, True, False), (-9.0, 50.0, False, False), (9.0, 50.0, True, True), (9.0, -50.0, True, False)],
)
def test_looking_decides_and_the_base_answers_the_rest(
    needs: float, doubt: float, recalled: bool, unknown: bool, tokenizer: Any
) -> None:
    """Where nothing answers: "I don't know." to what needs a memory, and to the rest the base's own answer."""
    model = model_of(tokenizer, base_answers=True, doubt=doubt)
    with torch.no_grad():
        model.retriever.needs.bias.fill_(needs)
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 4)
    answer = model.ask(memory, "Where is the key?", max_new_tokens=13)
    assert answer.recalled is recalled and (answer.text == UNKNOWN) is unknown
    if not recalled:
        ids = torch.tensor([[BOS, *b"Where is the key?"]])
        out = model.base.generate(ids, max_new_tokens=13, do_sample=False, pad_token_id=256)
        assert answer.ids == out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("changes", [{"looks": 0, "look_at": "writes"}, {"look_at": "writes"}, {"score_layers": "own"}])
def test_what_it_needs(changes: dict[str, Any]) -> None:
    """Somebody must look at what is found."""
    with pytest.raises(ConfigError, match=r"needs score_layers = .one., looks|does not go with"):
        MemoryConfig.verbatim(**{**STATES, **changes})


# From a decoder to a folder -------------------------------------------------------------------------------------------


@pytest.fixture
def base(tokenizer: Any, tmp_path: Path) -> Path:
    """A tiny decoder that converses, in a folder."""
    build_decoder("llama", "sdpa", max_position_embeddings=1024).save_pretrained(tmp_path / "base")
    chatty(tokenizer, CHATML.replace("<|im_end|>", "<eos>")).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts, as a tiny model on two cores takes."""
    sizes = {
        "_STATES": 20, "_PAIRS": 30, "_STEPS": 5, "_BATCH": 10, "_ASKED": 12, "_NEAR": 6, "_UNKNOWN": 10,
        "_GENERAL": 18, "_SAID": 10, "_WRITERS": 1, "_EACH": 4, "_BEHIND": 1,
    }  # fmt: skip
    for name, size in sizes.items():
        monkeypatch.setattr(preparing, name, size)
    some = dict(list(messages().items())[:2])
    monkeypatch.setattr(preparing, "messages", lambda: some)


def test_a_decoder_is_made_ready_in_one_command(base: Path, few: None, tmp_path: Path) -> None:
    """Loaded and asked like any other; the same again is the same; its card says what came of it."""
    out = tmp_path / "ready"
    done = command("unused", "prepare", str(base), str(out), "--set", "looks=3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["asked"] == 8 and 0 <= told["answered"] <= 1 and told["settings"]["doubt"] == told["doubt"]
    assert told["found"] == 1  # four messages, all of them among what is read
    model = MemoryModel.from_pretrained(out)
    assert isinstance(model.retriever, Likeness) and model.instruction == INSTRUCTION and model.config.looks == 3
    assert model.config.search_layers == (2 * len(model.attachment.layers) // 5,) and model.base_name == str(base)
    assert model.judge is not None and model.judge.odds.weight.detach().any()
    assert float(model.retriever.rarity.std()) > 0 and model.retriever.needs.weight.detach().any()
    assert not (out / "model.safetensors").exists()
    assert str(told["doubt"]) in (out / "README.md").read_text(encoding="utf-8")
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 30)
    assert model.ask(memory, "Where is the spare key?", max_new_tokens=3).ids
    again = preparing.prepare(str(base), settings={"looks": 3})
    assert again.model.fingerprint == model.fingerprint and again.doubt == told["doubt"]
    other = preparing.prepare(str(base), settings={"looks": 3, "doubt": 1.5}, seed=1)
    assert other.doubt == 1.5 and other.model.fingerprint != model.fingerprint


def test_it_needs_no_package_of_training() -> None:
    """Users who do not train have none of these."""
    extras = "pydantic", "datasets", "tensorboard"
    code = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import remanence.train.preparing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_fitting_makes_a_question_more_like_its_answer(base: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of messages that it was fitted to, more are found first than before, also by a decoder of chance weights."""
    monkeypatch.setattr(preparing, "_STEPS", 60)
    model = MemoryModel.from_pretrained(base, memory=preparing.memory_of_states(AutoConfig.from_pretrained(base)))
    wrote = [one for some in preparing.messages().values() for one in some][:30]
    preparing._fit_states(model, wrote, lambda share: None)

    @torch.no_grad()
    def first() -> int:
        search, right = model.retriever, 0
        keys = [search.keys(model.asked([model.encode(one.text)])[2][0]) for one in wrote]
        for place, one in enumerate(wrote):
            ids_BT, asks_BT, features_BTF = model.asked([model.encode(one.asked[0])])
            asks = asks_BT[0]
            queries = search.question(ids_BT[0, asks], features_BTF[0, asks]).queries
            right += max(range(30), key=lambda n: float((queries @ keys[n].T).amax(1).mean())) == place
        return right

    before = first()
    preparing._fit_likeness(model, wrote, 0, lambda what, share: None)
    assert first() > before


def test_it_tells_what_needs_a_memory(base: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of chance weights tells the turns it was fitted to better than chance does."""
    monkeypatch.setattr(preparing, "_UNKNOWN", 100)
    monkeypatch.setattr(preparing, "_GENERAL", 100)
    ready = preparing.prepare(str(base))
    assert ready.needs > 0.6
    found = ready.model.search([ready.model.new_memory()] * 2, [list(b"Where did I put my keys?"), list(b"hey")])
    assert all(len(one.scores) == 0 and not one.relevant for one in found)


@torch.no_grad()
def test_what_is_taken_for_an_answer_holds_it(tokenizer: Any) -> None:
    """All its words, however it begins, as the search spells them."""
    model = model_of(tokenizer)
    words = model.retriever.words(torch.tensor(list(b"My dog is called Rex.")))
    assert preparing._holds(model, "Rex", words) and preparing._holds(model, "dog", words)
    assert not preparing._holds(model, "Zoe", words)


def test_doubt_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six questions: four of them told, of which one is not found, and another does not come first."""
    scores = [[5.0, 1.0], [6.0, 0.0], [4.0, 5.0], [-3.0, -4.0], [-5.0, -4.0], [-6.0, -2.0]]
    right = [[1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [0, 0]]
    told = [True, True, True, True, False, False]
    number = torch.arange(6).repeat_interleave(2)
    seen = Examples(torch.zeros(12, 1, 4).bfloat16(), torch.zeros(12), torch.tensor(right).bool().flatten(), number)
    asked = preparing._Asked(seen, torch.tensor(scores).flatten(), told)
    monkeypatch.setattr(preparing, "odds_apart", lambda examples, fitting: torch.zeros(len(examples.right_E)))
    doubt, found, answered, refused = preparing._doubt(asked, None)
    assert -2 < doubt < 5 and (found, answered, refused) == (0.75, 0.5, 1.0)
    assert preparing._doubt(asked, 5.9) == (5.9, 0.75, 0.25, 1.0)
    assert preparing._doubt(asked, -5.0)[3] == 0.0


def test_chat_says_how_a_model_is_made_ready(base: Path, tmp_path: Path) -> None:
    """Of a chat model without memory weights; a prepared one needs no such line."""
    said = command(str(tmp_path / "store"), "chat", "--memory", "ada", "--model", str(base), stdin="/quit\n")
    assert said.returncode == 0 and f"remanence prepare {base} OUT" in said.stderr


def test_misuse_is_one_line(base: Path, few: None, tmp_path: Path) -> None:
    """A folder that is there, a model that has weights already, settings that it does not take."""
    there = command("unused", "prepare", str(base), str(base))
    assert there.returncode == 2 and "is there already" in there.stderr
    ready = command("unused", "prepare", "smollm2", str(tmp_path / "x"))
    assert ready.returncode == 2 and "has memory weights already" in ready.stderr
    other = command("unused", "prepare", str(base), str(tmp_path / "x"), "--set", "retriever=trained")
    assert other.returncode == 2 and "retriever is not for you to choose" in other.stderr
    small = command("unused", "prepare", str(base), str(tmp_path / "x"), "--set", "window_tokens=65")
    assert small.returncode == 2 and "65 tokens has no room for a question" in small.stderr
    assert not (tmp_path / "x").exists() and lines("general")
