"""The papers' three stages (M+ §3.3) as functions: for any decoder, and in small for the built-in model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ..config import MemoryConfig
from ..models.pretrained import MemoryModel
from .data import Mix
from .documents import DocumentMix
from .settings import Stage

MEMORY = MemoryConfig(
    K=32, N=128, K0=128, chunk_tokens=64, window_tokens=256, score="block", score_layers="mean", candidates=256,
    retriever_dim=64, key_group=4, score_bias=2.0, recency=3.0, null_slope=0.025,
    store_dtype="float16", key_dtype="bfloat16",
)  # fmt: skip


def small_decoder(tokenizer: PreTrainedTokenizerBase, positions: int) -> LlamaForCausalLM:
    """A decoder of 3.4 million weights, untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, intermediate_size=640, tie_word_embeddings=True, max_position_embeddings=positions,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerBase) -> MemoryModel:
    """The built-in model before training."""
    return MemoryModel(small_decoder(tokenizer, 1024), tokenizer, MEMORY)


def builtin() -> list[Stage]:
    """The curriculum of the built-in model; the steps are those of two processes, each with its own batches."""
    context = Stage(
        name="context", steps=400, in_context=1.0,
        mixes=(Mix(streams=32, chunks=2, tokens=(44, 64), questions=6, facts=(2, 2, 3)),),
    )  # fmt: skip
    short = Mix(streams=48, chunks=1, tokens=(32, 64), questions=2, facts=(1, 2, 3), update=0.1)
    one_chunk = replace(context, name="one chunk", steps=500, in_context=0.12, mixes=(short,))
    long = Mix(streams=20, chunks=4, tokens=(36, 64), questions=4, facts=(0, 1, 1, 2, 2, 3, 4), update=0.25)
    many_chunks = replace(
        one_chunk, name="many chunks", steps=600, in_context=0.06, pending=0.12, force=0.6,
        others=(0, 76), pool=128, retrieved=4, mixes=(long,),
    )  # fmt: skip
    more = replace(short, streams=64, unknown=0.2), replace(long, questions=6, unknown=0.2)
    mixed = replace(many_chunks, name="mixed", steps=200, lr=0.015, force=0.3, mixes=more)
    long_term = replace(mixed, name="long term", steps=5500, decay=0.7, force=0.15)
    crowd = more[0], replace(more[1], streams=32)  # more writes to tell the right one from
    crowded = replace(
        long_term, name="crowded", steps=2500, lr=0.01, lr_rest=0.002, lr_retriever=0.005, decay=1.0, mixes=crowd,
        others=(0, 124),
    )  # fmt: skip
    return [context, one_chunk, many_chunks, mixed, long_term, crowded]


# Any decoder ----------------------------------------------------------------------------------------------------------

FACTS = Mix(streams=32, chunks=1, tokens=(44, 64), questions=3, facts=(1, 2, 3), update=0.1)


def memory_for(positions: int) -> MemoryConfig:
    """Sizes for a decoder trained on that many positions: those of M+ (App. C) where they fit, else smaller ones."""
    rules: dict[str, Any] = {"score": "block", "score_bias": 2.0, "key_group": 4}
    if positions >= 16384:
        return MemoryConfig(K=256, N=10240, K0=2560, chunk_tokens=512, window_tokens=2048, retriever_dim=256, **rules)
    slots = positions // 2 - 1
    K = 2 ** int(math.log2(max(8, slots / 7)))
    return MemoryConfig(
        K=K, N=4 * K, K0=(slots // K - 4) * K, chunk_tokens=2 * K, window_tokens=positions // 2, retriever_dim=64,
        **rules,
    )  # fmt: skip


def one_document(memory: MemoryConfig) -> DocumentMix:
    """One chunk of a document and the text after it; 16 tokens or more, as published, if so few can be written."""
    least = min(16, memory.K) if memory.short_chunks == "complete" else memory.K
    return DocumentMix(
        chunks=(1, 1), tokens=(least, memory.chunk_tokens), target=memory.window_tokens,
        prompt=(min(8, memory.window_tokens // 8), min(64, memory.window_tokens // 4)),
    )  # fmt: skip


def stage1(memory: MemoryConfig, facts: bool = False) -> Stage:
    """MemoryLLM: one chunk is written with the gradient kept, then several; the text goes on (M+ §3.3, App. D)."""
    if facts:
        many = replace(FACTS, streams=12, chunks=4, facts=(0, 1, 2, 3), update=0.2)
        return Stage(
            name="stage1", steps=300, mixes=(FACTS, FACTS, many), lr=0.001, lr_rest=0.001, lr_retriever=0.003,
            pool=memory.N, others=(0, memory.N // memory.K // 2), in_context=0.12, context=memory.window_tokens // 2,
            pending=0.3, lm_weight=0.0, keep_weight=2.0,
        )  # fmt: skip
    one = one_document(memory)
    many_chunks = replace(one, chunks=(2, 4 * memory.N // memory.K))
    return Stage(
        name="stage1", steps=10_000, mixes=(one, many_chunks, many_chunks), lr=2e-4, lr_rest=2e-4, lr_retriever=1e-4,
        warmup=200, pool=memory.N, others=(0, 4 * memory.N // memory.K), earlier=4 * memory.N // memory.K, revisit=0.2,
        gradient=1, in_context=0.1, context=memory.window_tokens, lm_weight=0.0, retriever_weight=1.0,
    )  # fmt: skip


def stage2(memory: MemoryConfig, facts: bool = False) -> Stage:
    """MemoryLLM-long: documents of many chunks, so that the newest are told from the oldest (M+ §3.3)."""
    first = stage1(memory, facts)
    if facts:
        long = replace(FACTS, streams=16, chunks=4, questions=5, facts=(0, 1, 1, 2, 2, 3), update=0.25, unknown=0.15)
        return replace(first, name="stage2", steps=250, mixes=(long,), others=(0, 8))
    tokens = memory.chunk_tokens * 3 // 4, memory.chunk_tokens
    long_documents = replace(one_document(memory), chunks=(8, 16 * memory.N // memory.K), tokens=tokens)
    return replace(first, name="stage2", steps=5_000, mixes=(*first.mixes[:1], long_documents), in_context=0.05)


def stage3(memory: MemoryConfig, facts: bool = False) -> Stage:
    """M+: what random dropping takes goes to the long-term store, and the retriever brings it back (M+ §3.2)."""
    second = stage2(memory, facts)
    if facts:
        return replace(
            second, name="stage3", steps=800, retrieved=memory.K0 // memory.K, others=(0, 120), force=0.3, decay=0.8,
        )  # fmt: skip
    return replace(
        second, name="stage3", retrieved=memory.K0 // memory.K, others=(0, 20 * memory.N // memory.K),
        earlier=20 * memory.N // memory.K, revisit=0.5, force=0.15, decay=0.5,
    )  # fmt: skip


STAGES = {"stage1": stage1, "stage2": stage2, "stage3": stage3}
