"""The built-in model and its curriculum: the papers' three stages in small (M+ §3.3), and how far each one goes."""

from __future__ import annotations

from dataclasses import replace

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ..config import MemoryConfig
from ..model import MemoryModel
from .data import Mix
from .loop import Stage

MEMORY = MemoryConfig(
    K=32, N=128, K0=128, chunk_tokens=64, window_tokens=256, score="block", retriever_dim=64, key_group=4,
    score_bias=2.0, recency=3.0, store_dtype="float16", key_dtype="bfloat16",
)  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerBase) -> MemoryModel:
    """The built-in model before training."""
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, intermediate_size=640, tie_word_embeddings=True, max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    return MemoryModel(base, tokenizer, MEMORY)


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
    long_term = replace(mixed, name="long term", steps=4200, decay=1.0, force=0.15)
    return [context, one_chunk, many_chunks, mixed, long_term]
