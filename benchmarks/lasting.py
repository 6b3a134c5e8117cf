"""What a large memory costs to open, to ask and to save: `python benchmarks/lasting.py --sizes 10k 100k 1M`.

A memory of each size is filled with random vectors, keys and words, which cost what real ones do. Then, in a process
of its own for every size, it is opened, asked once (what it reads is read for the first time and checked), asked again,
and saved after one more chunk. Printed are seconds, resident memory beyond the model's, bytes on the disk a token, and
the bytes written for that save over the bytes that the chunk leaves in store and pool. With `--forget` single writes
are forgotten then, and it is said how long that took, with the save, and how many tokens were written again for it.

The first time the files come from the disk or from the system's cache, whichever has them; `--cold` asks the system to
drop them first (needs root).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from remanence import Memory, MemoryModel, MemoryStore, Wanted
from remanence.core.memory import Write

UNITS = {"k": 1_000, "M": 1_000_000}
LOT = 1024  # writes that are filled in before a save
WORDS = ["river", "house", "told", "night", "under", "letter", "never", "green", "walked", "winter", "about", "table"]
QUESTION = "What is the name of my sister's dog?"


def count_of(text: str) -> int:
    """A number such as 10k or 1M."""
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def random_write(memory: Memory, chance: random.Random, generator: torch.Generator) -> None:
    """One write of random vectors, keys, words and text."""
    config = memory.config
    shape = memory.layers, config.K, memory.width
    if config.store_dtype == "tokens":  # which keeps no vectors
        vectors = torch.zeros(1).expand(shape)
    else:
        vectors = torch.randn(shape, generator=generator)
    keys = torch.randn(memory.key_layers, config.keys_per_write, config.retriever_dim, generator=generator)
    of_tokens = {
        name: torch.randint(30_000, (config.K,), generator=generator).to(records.dtype)
        for name, records in memory.records.items()
        if name in ("words", "ids")
    }
    text = " ".join(chance.choices(WORDS, k=config.chunk_tokens * 3 // 4))
    write = Write(
        memory.write_count, f"book {memory.write_count // 500}", 0.0, memory.tokens, config.chunk_tokens, text
    )
    memory.add(vectors, keys, write, of_tokens)


def fill(root: Path, model: MemoryModel, tokens: int, changes: dict[str, Any]) -> None:
    """Save a memory "large" of so many tokens."""
    store, memory = MemoryStore(root), empty(model, changes)
    chance, generator = random.Random(0), torch.Generator().manual_seed(0)
    while memory.tokens < tokens:
        for _ in range(min(LOT, -(-(tokens - memory.tokens) // memory.config.chunk_tokens))):
            random_write(memory, chance, generator)
        store.save("large", memory)


def empty(model: MemoryModel, changes: dict[str, Any]) -> Memory:
    """An empty memory, maybe with another number format of the store."""
    if changes:
        model.config = model.config.replace(**changes)
    return model.new_memory()


def resident() -> dict[str, int]:
    """Bytes of this process in RAM: its own, and pages of files."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        for key, name in (("RssAnon", "own"), ("RssFile", "files")):
            if line.startswith(key):
                found[name] = int(line.split()[1]) * 1024
    return found


def written() -> int:
    """Bytes that this process has handed to the system to write."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def measure(root: Path, name: str, changes: dict[str, Any], forget: list[int]) -> dict[str, Any]:
    """Open, ask, ask again, save after one more chunk, and forget single writes."""
    model = MemoryModel.from_pretrained(name)
    model.config = model.config.replace(**changes)
    own = empty(model, {})
    random_write(own, random.Random(1), torch.Generator().manual_seed(1))
    model.ask(own, QUESTION, max_new_tokens=8)  # what the first answer of a process costs whatever is remembered
    store, before = MemoryStore(root), resident()
    marks = [time.perf_counter()]
    memory = store.load("large")
    marks.append(time.perf_counter())
    opened = resident()
    for _ in range(3):
        model.ask(memory, QUESTION, max_new_tokens=8)
        marks.append(time.perf_counter())
    asked = resident()
    random_write(memory, random.Random(2), torch.Generator().manual_seed(2))
    pool = memory.layers * memory.config.K * memory.width * memory.pool_LnD.element_size()
    bytes_before, begun = written(), time.perf_counter()
    store.save("large", memory)
    saved, bytes_after = time.perf_counter() - begun, written()
    info = store.info("large")
    forgotten: dict[str, Any] = {}
    for behind in forget:
        begun, memory = time.perf_counter(), store.load("large")
        done = model.forget(memory, Wanted(writes=[memory.write_count - 1 - behind // memory.config.chunk_tokens]))
        store.save("large", memory)
        forgotten[f"forget_{behind}_s"] = round(time.perf_counter() - begun, 2)
        forgotten[f"forget_{behind}_again"] = done.again
    return {
        "tokens": memory.tokens,
        "writes": memory.write_count,
        "open_s": round(marks[1] - marks[0], 4),
        "first_answer_s": round(marks[2] - marks[1], 3),
        "next_answer_s": round(marks[4] - marks[3], 3),
        "save_s": round(saved, 4),
        "resident_own_mb": round((asked["own"] - before["own"]) / 1e6, 1),
        "resident_files_mb": round((asked["files"] - before["files"]) / 1e6, 1),
        "opened_own_mb": round((opened["own"] - before["own"]) / 1e6, 1),
        "bytes_a_token": round(info.bytes_on_disk / memory.tokens, 1),
        "written_bytes": bytes_after - bytes_before,
        "chunk_bytes": memory.bytes_per_write + pool,
        "written_over_chunk": round((bytes_after - bytes_before) / (memory.bytes_per_write + pool), 3),
        **forgotten,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sizes", nargs="+", default=["10k", "100k", "1M"], help="tokens, such as 10k or 1M")
    parser.add_argument("--store-dtype", help="another number format of the store")
    parser.add_argument("--folder", type=Path, help="keep the stores there, and use those that are there")
    parser.add_argument("--cold", action="store_true", help="drop the system's cache of files before each size")
    parser.add_argument(
        "--forget", nargs="+", type=int, default=[], help="then forget a write that lies so many tokens back, and save"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    changes = {"store_dtype": given.store_dtype} if given.store_dtype else {}
    if given.measure:
        print(json.dumps(measure(given.measure, given.model, changes, given.forget)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in given.sizes:
            root = (given.folder or Path(temporary)) / f"{given.model}-{given.store_dtype or 'own'}-{size}"
            if not root.exists():
                print(f"filling {size} tokens ...", file=sys.stderr)
                fill(root, MemoryModel.from_pretrained(given.model), count_of(size), changes)
            if given.cold:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            command = [sys.executable, __file__, "--model", given.model, "--measure", str(root)]
            command += ["--store-dtype", given.store_dtype] if given.store_dtype else []
            command += ["--forget", *map(str, given.forget)] if given.forget else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout))
            if not given.json:
                print(f"{given.model}, {given.store_dtype or 'as it is'}, {size}")
                for key, value in rows[-1].items():
                    print(f"  {key:20}{value:>14,}")
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
