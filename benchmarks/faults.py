"""Processes that are killed at random moments, and files with a flipped bit: `python benchmarks/faults.py`.

A process writes to a memory, forgets parts of it, and copies it to a fork, and says after each step that it is done.
It is killed (SIGKILL) at a random moment. What a new process then finds must be what the last acknowledged step left,
or what the next one would have left; anything else is counted as wrong. The next process goes on from there.

Then single bits of the store's files are flipped, one at a time. A reader must get what was written, or an error that
names the damage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from remanence import IncompatibleMemory, Memory, MemoryConfig, MemoryCorrupt, MemoryStore
from remanence.core.memory import Pending, Write

CONFIG = MemoryConfig(
    K=4, N=16, K0=8, chunk_tokens=8, window_tokens=32, retriever_dim=3, tap="input", drop="oldest", store_tokens=None
)


def add(memory: Memory, label: str) -> None:
    """A write that is the same wherever it is made."""
    at = memory.write_count
    generator = torch.Generator().manual_seed(at * 1000 + len(label))
    vectors = torch.randn(memory.layers, 4, memory.width, generator=generator)
    keys = torch.randn(memory.layers, 4, 3, generator=generator)
    memory.add(vectors, keys, Write(at, label, float(at), memory.tokens, 8, f"{label} wrote {at}"))


def step(memory: Memory, number: int) -> None:
    """The step of that number, the same wherever it is made: a few writes, or a part is forgotten."""
    chance = random.Random(number)
    if number % 5 == 4 and memory.write_count > 6:
        cut = chance.randrange(max(0, memory.write_count - 30), memory.write_count)
        earlier, rest = memory.before(cut), memory.write_count - cut - 1
        for _ in range(max(1, rest)):
            add(earlier, f"again {number}")
        earlier.note_forgotten(float(number), 8)
        memory.become(earlier, cut)
    else:
        for _ in range(chance.randrange(1, 4)):
            add(memory, f"step {number}")
    memory.pending = [Pending("waits", float(number), (number, 7))]


def state(memory: Memory) -> str:
    """A digest of all of a memory."""
    digest = hashlib.sha256(json.dumps(memory.meta(), sort_keys=True).encode())
    for tensor in memory.tensors().values():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def work(root: Path, number: int, said: int) -> None:
    """Go on from a step until somebody ends it; every step that is on the disk is said."""
    store = MemoryStore(root)
    with store.open("ada", Fake()) as memory:
        while True:
            step(memory, number)
            store.save("ada", memory)
            os.write(said, f"{number} {state(memory)}\n".encode())
            if number % 7 == 0 and not store.exists(f"fork-{number}"):
                store.fork("ada", f"fork-{number}")
                store.delete(f"fork-{number}")
            number += 1


class Fake:
    """What a store asks of a model."""

    device = "cpu"

    def new_memory(self) -> Memory:
        """An empty memory."""
        return Memory(CONFIG, layers=2, width=6, model="m", seed=1)

    def check(self, memory: Memory) -> None:
        """Any will do."""


def kill(root: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Kill so many processes; what came of it."""
    found = {"kills": 0, "acknowledged steps": 0, "as acknowledged": 0, "one step further": 0, "wrong": 0}
    number, acknowledged = 1, None
    while found["kills"] < kills:
        told, said = os.pipe()
        child = os.fork()
        if not child:
            os.close(told)
            try:
                work(root, number, said)
            finally:
                os._exit(1)
        os.close(said)
        lines = os.read(told, 1 << 16)  # one step at least is acknowledged
        if not lines:
            raise SystemExit("the process that writes has ended by itself")
        time.sleep(chance.random() ** 2 * 0.08)
        os.kill(child, signal.SIGKILL)
        while piece := os.read(told, 1 << 16):
            lines += piece
        os.waitpid(child, 0)
        os.close(told)
        whole = [line.split() for line in lines.decode().splitlines(keepends=True) if line.endswith("\n")]
        before, number, last = number, int(whole[-1][0]), whole[-1][1]
        memory = MemoryStore(root).load("ada")
        found["kills"] += 1
        found["acknowledged steps"] += len(whole)
        next_one = acknowledged.copy() if acknowledged is not None else Fake().new_memory()
        for done in range(before, number + 1):
            step(next_one, done)
        acknowledged = next_one.copy()
        step(next_one, number + 1)
        now = state(memory)
        if now == last == state(acknowledged):
            found["as acknowledged"] += 1
        elif now == state(next_one):
            found["one step further"] += 1
            acknowledged, number = next_one, number + 1
        else:
            found["wrong"] += 1
            acknowledged = memory.copy()
        number += 1
        if found["kills"] % 50 == 0:
            found["wrong"] += bool(MemoryStore(root).verify("ada"))
    return found


def flip(root: Path, flips: int, chance: random.Random) -> dict[str, int]:
    """Flip so many bits, one after the other; what came of it."""
    store = MemoryStore(root)
    expected = {info.name: state(store.load(info.name)) for info in store.list()}
    files = [
        path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock" and path.stat().st_size
    ]
    found = {"flips": 0, "as written": 0, "named": 0, "wrong": 0}
    for _ in range(flips):
        path = chance.choice(files)
        with path.open("r+b") as file:
            at = chance.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
        try:
            again = MemoryStore(root)
            infos = again.list()
            read = {info.name: state(again.load(info.name)) for info in infos if not info.damage}
            damaged = any(info.damage for info in infos)
            kind = "named" if damaged else "as written" if read == expected else "wrong"
            if any(expected.get(name) != value for name, value in read.items()):
                kind = "wrong"
        except (MemoryCorrupt, IncompatibleMemory):
            kind = "named"
        found["flips"] += 1
        found[kind] += 1
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found: dict[str, Any] = kill(root, given.kills, chance)
        found |= {
            f"{key} (flips)" if key in ("wrong",) else key: n for key, n in flip(root, given.flips, chance).items()
        }
    if given.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:24}{value:>8,}")
    raise SystemExit(bool(found["wrong"] or found["wrong (flips)"]))


if __name__ == "__main__":
    main()
