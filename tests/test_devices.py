"""A model spread over several devices, or kept on disk, remembers and answers as it does on one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from conftest import BOS, build_decoder, random_ids, random_text, small
from remanence.config import MemoryConfig
from remanence.errors import ConfigError
from remanence.hf import Attachment
from remanence.model import MemoryModel
from remanence.store import MemoryStore
from test_hf import hooks_left, plain_logits, read_logits

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ON_DISK = {"model.layers.1": "disk", "model.layers.2": "disk"}
ALL_ON_DISK = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "disk", "lm_head": "disk"}


def device_map(changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny decoder's parts on the CPU, but for these."""
    parts = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3)), "model.norm", "model.rotary_emb", "lm_head"]
    return {part: "cpu" for part in parts if not part.startswith(tuple(changes))} | changes


@pytest.fixture
def both(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[MemoryModel, MemoryModel]]:
    """both(config, changes): the same model on one device, and spread as `changes` say."""

    def make(
        config: MemoryConfig, changes: dict[str, Any], family: str = "llama", lora: LoraConfig | None = None
    ) -> tuple[MemoryModel, MemoryModel]:
        model = MemoryModel(build_decoder(family, "sdpa"), tokenizer, config, name="tiny", lora=lora).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("base.") or "lora_B" in name:
                    parameter.normal_(std=0.3)
        folder, offload = tmp_path / "model", tmp_path / "offload"
        model.save_pretrained(folder)
        model = MemoryModel.from_pretrained(folder)
        spread = MemoryModel.from_pretrained(folder, device_map=device_map(changes), offload_folder=str(offload))
        return model, spread

    return make


def same(model: MemoryModel, spread: MemoryModel, tmp_path: Path) -> None:
    """Every law, on a model and its spread twin."""
    question, asked = random_ids(7, 1), "why is that?"
    assert spread.fingerprint == model.fingerprint
    memories = []
    for each in (model, spread):
        memory = each.new_memory(seed=3)
        each.memorize(memory, random_text(90), source="a")
        store = MemoryStore(tmp_path / f"store-{len(memories)}")
        store.save("m", memory)
        memory = store.load("m")
        each.memorize(memory, random_text(53, 2), source="b")  # goes on after a restart
        memories.append(memory)
    one, two = memories
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(two.tensors()[name], tensor, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read_logits(spread, two, question), read_logits(model, one, question), **CLOSE)
    # A memory belongs to the weights, not to where they are.
    torch.testing.assert_close(read_logits(spread, one, question), read_logits(model, one, question), **CLOSE)
    answers = [m.ask(memory, asked, max_new_tokens=6) for m, memory in ((model, one), (spread, two))]
    assert answers[0].ids == answers[1].ids and answers[0].read == answers[1].read
    assert answers[0].score == pytest.approx(answers[1].score, abs=1e-4)
    batches = []
    for each, memory in ((model, one), (spread, two)):
        short = each.new_memory()
        each.memorize(short, random_text(21, 5))
        prompts, options = [random_ids(9, 6), random_ids(4, 7)], {"max_new_tokens": 5, "do_sample": False}
        batches.append([
            each.generate([memory, short], prompts, **options)[0],
            each.generate([memory, short], prompts, num_beams=2, num_return_sequences=2, **options)[0],
        ])  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    with spread.plain() as base:
        torch.testing.assert_close(plain_logits(base, question), plain_logits(model.base, question), **CLOSE)
    assert hooks_left(spread.base) == 0


@pytest.mark.parametrize("changes", [ON_DISK, ALL_ON_DISK], ids=["some", "all"])
@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(score_bias=1.0, recency=1.0, key_group=2),
        small(retriever="attention", score="block"),
        small(score="vector", tap="input", write_context="pool", start=False),
    ],
    ids=["block", "bias", "attention", "vector"],
)
def test_layers_on_disk(config: MemoryConfig, changes: dict[str, Any], both: Any, tmp_path: Path) -> None:
    """Weights are on the meta device outside their own forward."""
    model, spread = both(config, changes)
    assert any(p.device.type == "meta" for p in spread.base.model.layers[1].parameters())
    assert spread.attachment.device == torch.device("cpu")
    same(model, spread, tmp_path)


def test_adapters_on_layers_on_disk(both: Any, tmp_path: Path) -> None:
    """Two adapters; saved again, the model is whole."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model, spread = both(small(), ON_DISK, lora=lora)
    same(model, spread, tmp_path)
    spread.save_pretrained(tmp_path / "again")
    again = MemoryModel.from_pretrained(tmp_path / "again")
    assert again.fingerprint == model.fingerprint
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
