"""Memory on a model without memory weights: sized for its positions, found by the layers' own queries and keys."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from typer.testing import CliRunner

from conftest import BOS, build_decoder, close, random_ids, random_text, small
from remanence import MemoryModel, MemoryStore
from remanence.cli import app
from remanence.config import MemoryConfig
from remanence.core.attachment import Attachment
from remanence.core.retriever import attention_keys, attention_scores
from remanence.errors import ConfigError
from remanence.models.pretrained import plan
from test_families import FAMILIES
from test_hf import plain_logits, read_logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A decoder without memory weights, of 256 positions."""
    path = tmp_path_factory.mktemp("plain")
    build_decoder("llama", "sdpa", max_position_embeddings=256).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("positions", [64, 100, 256, 512, 1000, 2048, 131072])
def test_everything_fits_the_positions_of_the_model(positions: int) -> None:
    """Start, retrieved vectors, pool and window of a read; start, pool and chunk of a write."""
    config = MemoryConfig.for_positions(positions)
    assert config.slots + config.window_tokens <= positions
    assert 1 + config.N + config.chunk_tokens <= positions
    assert config.slots + config.window_tokens > 0.8 * min(positions, 4096)
    assert config.N % config.K == config.K0 % config.K == 0


def test_too_few_positions_are_refused() -> None:
    """With what it takes."""
    with pytest.raises(ConfigError, match="32 positions has no room for a memory; it takes 64"):
        MemoryConfig.for_positions(32)


def test_a_plain_decoder_remembers_at_once(folder: Path) -> None:
    """Loaded without settings; nothing dropped: the plain model's logits with the text in its context."""
    model, ids, question = MemoryModel.from_pretrained(folder), random_ids(75), random_ids(6, 1)
    assert model.config == MemoryConfig.for_positions(256, retriever_dim=32)
    assert model.retriever is None
    memory = model.new_memory()
    model.memorize(memory, bytes(ids).decode())
    assert memory.long_term_size == 0
    prompt = memory.pending_ids + question
    close(read_logits(model, memory, prompt), plain_logits(model.base, [BOS, *ids, *question])[-len(prompt) :])


def test_text_far_beyond_the_context_stays_inside_the_positions(folder: Path, tmp_path: Path) -> None:
    """Eight times the context: no position is ever asked for that the model was not trained on; and it is saved."""
    model = MemoryModel.from_pretrained(folder)
    highest = 0

    def watch(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal highest
        highest = max(highest, int((args[1] if len(args) > 1 else kwargs["position_ids"]).max()))

    handle = model.attachment.rotary.register_forward_pre_hook(watch, with_kwargs=True)
    store = MemoryStore(tmp_path)
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(1500))
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(548, 1))
        answer = model.ask(memory, "why?", max_new_tokens=30)
    handle.remove()
    assert memory.long_term_size > 1500
    assert 200 < highest < 256
    whole = model.new_memory()
    model.memorize(whole, random_text(1500))
    model.memorize(whole, random_text(548, 1))
    again = model.ask(whole, "why?", max_new_tokens=30)
    assert (again.ids, again.read) == (answer.ids, answer.read)


def test_scores_are_votes_of_tokens_and_heads() -> None:
    """Against the definition, written out; blocks and single vectors."""
    queries, keys = torch.randn(5, 4, 8), torch.randn(7, 3, 2, 8)  # T Q E; W K H E
    stored = torch.stack([attention_keys(k) for k in keys])  # W K R
    for block in (True, False):
        votes = torch.zeros(7 if block else 21)
        for t in range(5):
            for q in range(4):
                cosines = torch.cosine_similarity(queries[t, q], keys[:, :, q // 2], dim=-1)
                cosines = cosines.amax(1) if block else cosines.flatten()
                votes += (5 * math.sqrt(8) * cosines).softmax(0) / 20
        expected = (votes * len(votes)).log()
        close(attention_scores(queries, [stored[:4], stored[4:]], 2, block), expected)


def test_a_write_that_holds_the_question_is_found(folder: Path) -> None:
    """With queries that are made as keys are, the same tokens find themselves in the first layer."""
    model = MemoryModel.from_pretrained(folder, memory=MemoryConfig.verbatim(chunk_tokens=8, pool_tokens=8, K0=8))
    attention = model.base.model.layers[0].self_attn
    with torch.no_grad():
        keys = attention.k_proj.weight.unflatten(0, (2, 16))
        attention.q_proj.weight.copy_(keys.repeat_interleave(2, 0).flatten(0, 1))
    memory, ids = model.new_memory(), random_ids(400)
    model.memorize(memory, bytes(ids).decode())
    found = 0
    for write in range(0, 40, 4):
        with torch.no_grad(), model.reading([memory]) as cache:
            model.base(torch.tensor([ids[8 * write : 8 * write + 8]]), past_key_values=cache)
        found += write in cache.provider.writes_read(0)[0]
    assert found == 10  # 1 of 49 by chance


@pytest.mark.parametrize("name", FAMILIES, ids=[name.split(",")[0] for name in FAMILIES])
def test_queries_are_the_layers_own(name: str) -> None:
    """Of every family: what the attention function is handed, before rotation (at position 0 there is none)."""
    family, _, changes = FAMILIES[name]
    base, seen = build_decoder(family, "eager", **changes), []

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
        seen.append(query[0, :, 0])
        shape = query.shape
        return value.repeat_interleave(shape[1] // value.shape[1], 1).transpose(1, 2).contiguous(), None

    AttentionInterface.register("test_record", record)
    AttentionMaskInterface.register("test_record", sdpa_mask)
    attachment = Attachment(base)
    base.set_attn_implementation("test_record")
    inputs: list[Tensor] = []
    for layer in attachment.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kw: inputs.append(args[0] if args else kw["hidden_states"]), with_kwargs=True
        )
    with torch.no_grad():
        base(torch.tensor([[7]]))
        for index, (hidden, query) in enumerate(zip(inputs, seen, strict=True)):
            made = attachment.queries(index, hidden)[0, 0]
            scale = float((query / made).median())  # some families scale their queries here
            close(made * scale, query)


def test_a_trained_model_can_leave_its_retriever_aside(make_model: Callable[..., MemoryModel], tmp_path: Path) -> None:
    """The paper's M+-Attn: the same weights, found by attention."""
    trained = make_model(small())
    trained.save_pretrained(tmp_path)
    model = MemoryModel.from_pretrained(tmp_path, memory=trained.config.replace(retriever="attention"))
    assert model.retriever is None
    assert torch.equal(model.offset, trained.offset)
    memory = model.new_memory()
    model.memorize(memory, random_text(60))
    assert model.ask(memory, "why?", max_new_tokens=2).sources


def test_the_plan_is_what_a_model_gets(folder: Path) -> None:
    """`--plan` prints it without loading weights; as a table and as JSON."""
    model = MemoryModel.from_pretrained(folder)
    expected = plan(folder)
    assert expected["memory"] | {"retriever_dim": 32} == model.config.to_dict()
    assert expected["longest"] <= expected["positions"] == 256
    memory = model.new_memory()
    model.memorize(memory, random_text(160))
    a_token = (memory.nbytes - memory.pool_LnD.nbytes - memory.pool_rows_Ln.nbytes) / memory.tokens
    assert a_token == expected["bytes_per_token"]
    printed = CliRunner().invoke(app, ["chat", "--model", str(folder), "--plan", "--json"])
    assert json.loads(printed.stdout) == expected
    table = CliRunner().invoke(app, ["memorize", "--model", str(folder), "--plan"])
    assert "256 positions" in table.stdout
    assert table.exit_code == 0
    for arguments in (["ask", "why?"], ["ask"]):  # neither a question nor a memory is needed
        printed = CliRunner().invoke(app, [*arguments, "--model", str(folder), "--memory", "none", "--plan", "--json"])
        assert json.loads(printed.stdout) == expected
    assert plan("builtin")["trained_memory"]
