"""How far the base is from itself under trained memory weights: `python benchmarks/unharmed.py --books FILE`.

Perplexity of plain prose, by the base and by the reader (its adapter is on) with an empty memory, and the divergence
KL(base || reader) in nats a token. Chat is measured by `benchmarks/compare.py --tasks general`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from remanence import MemoryModel
from remanence.arena.tasks import Books


@torch.no_grad()
def logits_of(model: MemoryModel, ids: list[int], reader: bool) -> Tensor:
    """What is expected after each token but the last, as log-probabilities [T - 1, V]."""
    tokens = torch.tensor([ids], device=model.device)
    if not reader:
        first = torch.tensor([[model.prompts.first_token()]], device=model.device)
        with model.plain() as base:
            out: Any = base(torch.cat([first, tokens], 1), use_cache=False)
        logits: Tensor = out.logits[0, 1:-1]
    else:
        memory = model.new_memory(empty=True)
        found = model.search([memory], [ids]) if model.config.score_layers == "one" else None
        with model.reading([memory], found=found) as cache:
            logits = model.base(tokens, past_key_values=cache, use_cache=True).logits[0, :-1]
    return logits.float().log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--books", type=Path, help=".jsonl file of books; the package's prose if left out")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=512, help="of a window")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = MemoryModel.from_pretrained(arguments.model)
    books, losses, apart = Books(arguments.books, arguments.seed), {"base": 0.0, "reader": 0.0}, 0.0
    for _ in range(arguments.windows):
        ids = model.encode(books.piece(8 * arguments.tokens))[: arguments.tokens]
        expected = torch.tensor(ids[1:], device=model.device)
        base, reader = logits_of(model, ids, False), logits_of(model, ids, True)
        for name, found in (("base", base), ("reader", reader)):
            losses[name] += F.nll_loss(found, expected).item() / arguments.windows
        apart += F.kl_div(reader, base, log_target=True, reduction="sum").item() / len(base) / arguments.windows
    result = {f"perplexity_{name}": round(math.exp(loss), 3) for name, loss in losses.items()}
    result |= {"ratio": round(math.exp(losses["reader"] - losses["base"]), 4), "divergence": round(apart, 4)}
    print(json.dumps(result) if arguments.json else "\n".join(f"{k.replace('_', ' ')}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
