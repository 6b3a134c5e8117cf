"""What memory costs on a real model beside what people use today, in one run: `python benchmarks/cost.py`.

* The time to the first token with so much remembered: ours; text retrieval (words and sentence vectors, fused) that
  puts as many passages into the base's prompt as ours reads; the past replayed, as much of it as fits 8k tokens.
* Writing over a plain forward of the same tokens through the base.
* Bytes a remembered token, in each format of the store, and what a memory takes of RAM.

The sides of a ratio are timed in turn, several times, and the medians compared.
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from speed import in_turn

from remanence import Memory, MemoryModel
from remanence.arena.protocol import Kit
from remanence.arena.readers import BaseReader
from remanence.arena.retention import prose
from remanence.arena.systems import Fused
from remanence.arena.tasks import Books, Question

QUESTION = "What is the name of my sister's dog?"
FORMATS = ("int4", "int8", "bfloat16", "tokens")
PIECE = 512  # tokens of a plain forward


class OneToken(BaseReader):
    """The base, which reads passages and says one token; nothing is remembered."""

    def __init__(self, model: MemoryModel) -> None:
        super().__init__(model, max_new_tokens=1)

    def first(self, passages: list[str]) -> None:
        """Read and say."""
        self._generated([self._prompt(QUESTION, passages)])


def remembered(model: MemoryModel, books: Path | None, tokens: int, system: Fused) -> Memory:
    """A memory of that many tokens of books, and the same told to a text system."""
    memory = model.new_memory()
    for text, label in Books(books, 1).pieces():
        model.memorize(memory, text, source=label, time=0.0)
        system.observe(text, label)
        if memory.tokens >= tokens:
            return memory
    return memory


def first_token(model: MemoryModel, memory: Memory, system: Fused, repeats: int, replayed: int) -> dict[str, Any]:
    """Seconds to the first token, each side over ours."""
    reader, passages = OneToken(model), system.passages
    asked = [Question("cost", QUESTION, (), "cost", "contains")]
    whole = passages.last(replayed)

    def by_text() -> None:
        [found] = system.contexts(asked)
        reader.first([piece.text for piece in sorted(found, key=lambda piece: piece.order)])

    seconds = in_turn(
        {
            "ours": lambda: model.ask(memory, QUESTION, max_new_tokens=1),
            f"text retrieval, {system.k} passages": by_text,
            f"replay of {replayed:,} tokens": lambda: reader.first([whole]),
        },
        repeats,
    )
    return {
        name: {"seconds": round(value, 3), "over_ours": round(value / seconds["ours"], 1)}
        for name, value in seconds.items()
    }


def writing(model: MemoryModel, tokens: int, repeats: int) -> dict[str, float]:
    """Tokens a second written, and through a plain forward of the base in pieces."""
    words = cycle(prose().split())
    text = " ".join(next(words) for _ in range(tokens))
    ids = model.encode(text)[: tokens // PIECE * PIECE]
    text = model.tokenizer.decode(ids)
    pieces = torch.tensor(ids, device=model.device).split(PIECE)

    @torch.no_grad()
    def forward() -> None:
        with model.plain():
            for piece in pieces:
                model.attachment.decoder(piece[None], use_cache=False)

    memory = model.new_memory()
    model.memorize(memory, text, time=0.0)
    before = memory.copy()
    seconds = in_turn({"write": lambda: model.memorize(before.copy(), text, time=0.0), "forward": forward}, repeats)
    return {
        "written_per_s": round(len(ids) / seconds["write"]),
        "forward_per_s": round(len(ids) / seconds["forward"]),
        "ratio": round(seconds["forward"] / seconds["write"], 2),
    }


def bytes_per_token(model: MemoryModel) -> dict[str, int]:
    """By format of the store."""
    config, found = model.config, dict[str, int]()
    for name in FORMATS:
        memory = Memory(
            config.replace(store_dtype=name), layers=len(model.attachment.layers), width=model.vector_width,
            model="", dtype=model.base.dtype,
        )  # fmt: skip
        found[name] = round(memory.bytes_per_write / config.chunk_tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--books", type=Path, help=".jsonl file of books; the package's prose if left out")
    parser.add_argument("--tokens", type=int, default=160_000, help="remembered")
    parser.add_argument("--written", type=int, default=4096, help="tokens that are timed as they are written")
    parser.add_argument("--replayed", type=int, default=7900, help="tokens that are replayed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = MemoryModel.from_pretrained(arguments.model)
    config = model.config
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(), "weights": str(model.base.dtype).removeprefix("torch."),
        "writing": writing(model, arguments.written, arguments.repeats),
    }  # fmt: skip
    k = config.looks or (config.K0 + config.N) // config.chunk_tokens
    system = Fused(Kit(model, OneToken(model)), k=k)
    memory = remembered(model, arguments.books, arguments.tokens, system)
    model.ask(memory, QUESTION, max_new_tokens=1)
    result |= {
        "remembered": memory.tokens,
        "first_token": first_token(model, memory, system, arguments.repeats, arguments.replayed),
        "bytes_per_token": bytes_per_token(model), "ram_mb": round(memory.nbytes / 1e6),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        shown = value if isinstance(value, dict) else {"": value}
        for part, figure in shown.items():
            print(f"{name.replace('_', ' ')} {part}".strip() + f": {figure}")


if __name__ == "__main__":
    main()
