"""Ours against the papers' procedure taken literally, same weights and same work: `python benchmarks/procedure.py`.

The other side is a plain transcription of what the published inference code does (its facts, not its text): at every
question the keys and values of the whole pool are computed again and the whole store is scored; at every write each
layer's pool is concatenated anew, what it drops goes to a cache that is concatenated anew, and every 60 writes that
cache is merged into the store; all logits of a written chunk are computed. Both sides start from the same memory and
must give the same logits before anything is timed. The sides are timed in turn and medians compared.

Random weights: no cost depends on their values. The default sizes are those at which the official code itself was timed
on a CPU (8 layers of width 256, K 64, N 1,280, K0 320, 18,750 vectors a layer in the store, two LoRA adapters). The
published models' pool, chunks and retrieval: `--hidden 1024 --layers 2 --K 256 --N 10240`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from remanence import Memory, MemoryConfig, MemoryModel
from remanence.core.memory import Write

MERGE_WRITES = 60


def build(arguments: argparse.Namespace) -> MemoryModel:
    """A random decoder with a memory of the papers' rules."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=arguments.hidden, num_hidden_layers=arguments.layers, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=688 * arguments.hidden // 256, max_position_embeddings=16384,
        )
    ).eval()  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), bos_token="a")
    config = MemoryConfig(
        K=arguments.K, N=arguments.N, K0=arguments.N // 4, chunk_tokens=2 * arguments.K, window_tokens=1024,
        score="vector", retriever_dim=64, split="fixed", keep_text=False,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets)
    return MemoryModel(base, tokenizer, config, lora=lora).eval()


def fill(model: MemoryModel, vectors: int) -> Memory:
    """A memory with a full pool and at least that many vectors a layer in the store, made of random vectors."""
    memory, config = model.new_memory(), model.config
    while memory.long_term_size < vectors:
        new = torch.randn(memory.layers, config.K, memory.width)
        with torch.no_grad():
            keys = model.retriever_keys(new)
        index = memory.write_count
        memory.add(new, keys, Write(index, "", 0.0, index * config.chunk_tokens, config.chunk_tokens, None))
    return memory


class Literal:
    """The procedure taken literally, over the layers of the same decoder."""

    def __init__(self, model: MemoryModel, memory: Memory) -> None:
        self.model: Any = model
        self.config = model.config
        self.layers = model.attachment.layers
        self.memory = list(memory.pool_LnD.clone())  # per layer [N, D]
        rows = memory.pool_rows_Ln
        self.ages = [memory.write_count * self.config.K - r for r in rows]
        self.store, self.keys, self.store_ages = [], [], []
        everything = torch.arange(memory.write_count * self.config.K)
        for layer in range(memory.layers):
            left = everything[~torch.isin(everything, rows[layer])]
            self.store.append(memory.long_term(layer, left).clone())
            self.keys.append(torch.cat(memory.keys(layer)).flatten(0, 1)[left].float())
            self.store_ages.append(memory.write_count * self.config.K - left)
        self._empty_cache()
        self.since_merge = 0

    def _empty_cache(self) -> None:
        self.cached = [store[:0] for store in self.store]
        self.cached_keys = [keys[:0] for keys in self.keys]
        self.cached_ages = [ages[:0] for ages in self.store_ages]

    def _layer(self, index: int, x_SD: Tensor, first: int, cache: DynamicCache | None) -> Tensor:
        """Outputs of a layer at positions `first`.., the only queries."""
        layer, attention = self.layers[index], self.layers[index].self_attn
        normed = layer.input_layernorm(x_SD)[None]
        q, k, v = (
            projection(part).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection, part in (
                (attention.q_proj, normed[:, first:]), (attention.k_proj, normed), (attention.v_proj, normed),
            )
        )  # fmt: skip
        positions = torch.arange(len(x_SD))[None]
        cos, sin = self.model.attachment.rotary(v, positions)
        _, k = apply_rotary_pos_emb(k, k, cos, sin)
        q, _ = apply_rotary_pos_emb(q, q, cos[:, first:], sin[:, first:])
        if cache is not None:
            cache.update(k, v, index)
        mask = (positions <= positions[0, first:, None])[None]
        mixed = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2).flatten(2)
        hidden = x_SD[first:] + attention.o_proj(mixed)[0]
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    @torch.no_grad()
    def write(self, ids: Tensor) -> None:
        """Write a chunk."""
        model, K = self.model, self.config.K
        with model.adapter("write"):
            hidden = model.base.model.embed_tokens(ids)
            new = []
            for index in range(len(self.layers)):
                x = torch.cat([model.start[index][None], self.memory[index][-K:], hidden])
                x = torch.cat([x[:-K], x[-K:] + model.offset])
                hidden = self._layer(index, x, len(x) - len(ids), None)
                new.append(hidden[-K:])
            model.base.lm_head(model.base.model.norm(hidden))
            for index, vectors in enumerate(new):
                size = len(self.memory[index])
                order = torch.randperm(size)
                kept, dropped = order[: size - K].sort().values, order[size - K :].sort().values
                gone = self.memory[index][dropped]
                gone_keys = model.retriever.key[index](model.attachment.norm(index, gone))
                self.memory[index] = torch.cat([self.memory[index][kept], vectors])
                ages = self.ages[index] + K
                self.ages[index] = torch.cat([ages[kept], torch.arange(K, 0, -1)])
                self.store_ages[index] = self.store_ages[index] + K
                self.cached[index] = torch.cat([self.cached[index], gone])
                self.cached_keys[index] = torch.cat([self.cached_keys[index], gone_keys])
                self.cached_ages[index] = torch.cat([self.cached_ages[index] + K, ages[dropped]])
            self.since_merge += 1
            if self.since_merge == MERGE_WRITES:
                for mine, cached in (
                    (self.store, self.cached), (self.keys, self.cached_keys), (self.store_ages, self.cached_ages),
                ):  # fmt: skip
                    mine[:] = [torch.cat(pair) for pair in zip(mine, cached, strict=True)]
                self._empty_cache()
                self.since_merge = 0

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> tuple[Tensor, DynamicCache]:
        """Logits of the prompt's last token, and the cache for further tokens."""
        model, cache = self.model, DynamicCache()
        with model.adapter("read"):
            hidden = model.base.model.embed_tokens(ids)
            for index in range(len(self.layers)):
                queries = model.retriever.query[index](model.attachment.norm(index, hidden))
                keys = torch.cat([self.keys[index], self.cached_keys[index]])
                scores = (queries @ keys.T).sigmoid().mean(0)
                best = scores.topk(self.config.K0).indices.sort().values
                ages = torch.cat([self.store_ages[index], self.cached_ages[index]])[best]
                best = best[ages.argsort(descending=True, stable=True)]
                found = torch.cat([self.store[index], self.cached[index]])[best]
                x = torch.cat([model.start[index][None], found, self.memory[index], hidden])
                hidden = self._layer(index, x, len(x) - len(ids), cache)
            return model.base.lm_head(model.base.model.norm(hidden[-1:])), cache


@torch.no_grad()
def prefill(model: MemoryModel, memory: Memory, ids: Tensor) -> tuple[Tensor, Cache]:
    """Our side of `Literal.prefill`."""
    with model.reading([memory]) as cache:
        return model.base(ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0], cache


@torch.no_grad()
def decode(model: MemoryModel, cache: Cache, count: int) -> None:
    """Feed `count` more tokens, one by one."""
    with model.attachment.hooks(), model.adapter("read"):
        for token in range(count):
            model.base(torch.tensor([[token]]), past_key_values=cache, use_cache=True)


def each_of(write: Callable[[Any], object], chunks: Any) -> None:
    """Write one chunk after the other."""
    for chunk in chunks:
        write(chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--K", type=int, default=64, help="vectors a write; a chunk has twice as many tokens")
    parser.add_argument("--N", type=int, default=1280, help="vectors in the pool; a quarter as many are retrieved")
    parser.add_argument("--store", type=int, default=18_750, help="vectors a layer in the long-term store")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, help="torch threads; torch's default if not given")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = build(arguments)
    memory = fill(model, arguments.store)
    literal = Literal(model, memory)
    question = torch.randint(2048, (64,))
    difference = (prefill(model, memory, question)[0] - literal.prefill(question)[0]).abs().max().item()
    if difference > 1e-3:
        raise SystemExit(f"the two sides differ by {difference:.2e}; the timings would compare different work.")

    seconds: dict[str, dict[str, list[float]]] = {}

    def timed(what: str, side: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        out = work()
        seconds.setdefault(what, {}).setdefault(side, []).append(time.perf_counter() - began)
        return out

    tokens = 16
    for _ in range(arguments.repeats):
        chunks = torch.randint(2048, (MERGE_WRITES, 2 * arguments.K))
        # A cycle of writes on each side, each as many writes as lie between two merges.
        timed("write", "literal", partial(each_of, literal.write, chunks))
        timed("write", "ours", partial(each_of, partial(model.write, memory), chunks.tolist()))
        for what in ("first answer", "second answer"):
            theirs = timed(what, "literal", lambda: literal.prefill(question))
            ours = timed(what, "ours", lambda: prefill(model, memory, question))
            for side, (_, cache) in (("literal", theirs), ("ours", ours)):
                timed("token", side, partial(decode, model, cache, tokens))
    each = {"write": MERGE_WRITES, "token": tokens}
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(), "largest_logit_difference": difference,
        "store_vectors_a_layer": memory.long_term_size,
    }  # fmt: skip
    for what, sides in seconds.items():
        ms = {side: 1000 * statistics.median(values) / each.get(what, 1) for side, values in sides.items()}
        result[what] = {f"{side}_ms": round(value, 3) for side, value in ms.items()}
        result[what]["literal_over_ours"] = round(ms["literal"] / ms["ours"], 2)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        words = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' ')}: {words}")


if __name__ == "__main__":
    main()
