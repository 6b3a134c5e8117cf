"""What the memory of a document's past does for the text that follows: perplexity, each window scored in every way.

    python benchmarks/documents.py --model runs/documents/model --data books.jsonl

Of every document the tokens up to a distance are written, then the next window is read: by the model beside that
memory, beside an empty one, beside the memory of another document, and by its base with the window alone and with as
much of the past in context as its positions take. The first quarter of a window is context and is not scored.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

from ablation import text_loss
from datasets import load_dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table

from remanence import Memory, MemoryModel

SYSTEMS = {
    "own": "its own past",
    "empty": "empty memory",
    "other": "another document's past",
    "window": "base, window only",
    "context": "base, past in context",
}


def losses(
    model: MemoryModel, memory: Memory, other: Memory | None, past: list[int], window: list[int]
) -> dict[str, float]:
    """Loss of a window by system."""
    known = len(window) // 4
    read = {"own": memory, "empty": model.new_memory()} | ({} if other is None else {"other": other})
    found = {name: text_loss(model, each, window, known) for name, each in read.items()}
    room = model.attachment.positions - 1 - len(window)
    found["window"] = text_loss(model, None, window, known)
    found["context"] = text_loss(model, None, window, known, past[-room:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="jsonl with a field 'text', not trained on")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--distances", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of the past")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = MemoryModel.from_pretrained(options.model)
    size = model.config.chunk_tokens
    distances = sorted(d // size * size for d in options.distances)
    rows: dict[int, list[dict[str, float]]] = {d: [] for d in distances}
    before: dict[int, Memory] = {}
    data = load_dataset("json", data_files=str(options.data), split="train", streaming=True).take(options.documents)
    for row in track(data, "documents", options.documents, console=Console(stderr=True)):
        # Past the title and the contents; a token is four characters at most times.
        text = row["text"][2000 : 2000 + 8 * (distances[-1] + options.window)]
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        memory, written = model.new_memory(), 0
        for distance in distances:
            if len(ids) < distance + options.window:
                break
            for first in range(written, distance, size):
                model.write(memory, ids[first : first + size])
            written = distance
            window = ids[distance : distance + options.window]
            found = losses(model, memory, before.get(distance), ids[:distance], window)
            if "other" in found:
                rows[distance].append(found)
            before[distance] = memory.copy()
    if not any(rows.values()):
        sys.exit("no document is long enough; give others, or smaller --distances.")
    result = []
    for distance, each in rows.items():
        if len(each) > 1:
            line: dict[str, float] = {"distance": distance, "documents": len(each)}
            line |= {name: round(math.exp(statistics.mean(r[name] for r in each)), 2) for name in SYSTEMS}
            gain = [r["empty"] - r["own"] for r in each]
            line |= {"gain": round(statistics.mean(gain), 4)}
            line |= {"gain_error": round(statistics.stdev(gain) / len(gain) ** 0.5, 4)}
            result.append(line)
    if options.json:
        print(json.dumps(result))
        return
    table = Table(title="Perplexity of the next window")
    for title in ("past", "documents", *SYSTEMS.values(), "loss saved by its own past"):
        table.add_column(title, justify="right")
    for line in result:
        saved = f"{line['gain']:.4f} ± {line['gain_error']:.4f}"
        table.add_row(*(f"{line[k]:,}" for k in ("distance", "documents", *SYSTEMS)), saved)
    Console().print(table)


if __name__ == "__main__":
    main()
