"""Several replicas on one store, of which some are killed: `python benchmarks/scale.py`; `--short` is for CI.

People write texts with growing numbers. After each that is acknowledged they read their history, and every fifth time
ask a question. Half of the requests go to where Ray Serve says the memory is loaded, and half to whichever replica, so
that one replica reads what another one wrote. Meanwhile a replica is killed (SIGKILL), and again.

Printed, and written to `--out`:

* lost: texts that were acknowledged and are not in the store at the end; damaged: memories that are not whole.
* stale: readings of a history that lacked a text which was acknowledged before the reading began.
* twice: texts that are there more than once.
* undone: writes without an acknowledgement, by status; "cut" where the connection was. Their sender does not know.
* errors: readings and questions that failed, by status.
* went on: the longest time in which nothing was acknowledged.

`--plain` does the same without Ray: two `remanence serve` on one store, of which one is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from serve import served

from remanence import MemoryStore
from remanence.errors import RemanenceError
from remanence.serve.keys import FILE, Keys
from remanence.serve.limits import Limits
from remanence.serve.scale import Asked, Head, Relay, Scale, front, replicated


def text_of(number: int, person: str) -> str:
    """What a person writes."""
    return f"Parcel {number} of {person} has come. "


def squashed(text: str) -> str:
    """Without white space, which is not kept where a text is parted between two writes."""
    return "".join(text.split())


class Load:
    """People who write and read at the same time, through several addresses on one store.

    Args:
        urls: the addresses; each request takes any of them.
        people: how many.
        seed: of the choices.
    """

    def __init__(self, urls: list[str], people: int, seed: int = 0) -> None:
        self.urls, self.names, self.random = urls, [f"p{i}" for i in range(people)], random.Random(seed)
        self.acknowledged: dict[str, list[int]] = {name: [] for name in self.names}
        self.moments: list[float] = []  # of acknowledgements
        self.undone: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.stale = self.readings = self.answers = 0
        self.client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=4 * people))

    async def call(self, method: str, path: str, body: Any = None) -> tuple[str, Any]:
        """Status and answer; "cut" and None where there is none."""
        try:
            response = await self.client.request(method, self.random.choice(self.urls) + path, json=body)
        except httpx.HTTPError:
            await asyncio.sleep(0.05)
            return "cut", None
        return str(response.status_code), response.json()

    async def person(self, name: str, until: float) -> None:
        """Write and read until a moment of `time.monotonic`."""
        number = 0
        while time.monotonic() < until:
            number += 1
            status, _ = await self.call("POST", f"/v1/memories/{name}/write", {"text": text_of(number, name)})
            if status != "200":
                self.undone[status] += 1
                continue
            self.acknowledged[name].append(number)
            self.moments.append(time.monotonic())
            known = list(self.acknowledged[name])
            status, history = await self.call("GET", f"/v1/memories/{name}/history?limit=1000")
            if status == "200":
                self.readings += 1
                parts = [write["text"] for write in history["data"]][::-1] + [w["text"] for w in history["waiting"]]
                told = squashed("".join(parts))
                self.stale += any(squashed(text_of(n, name)) not in told for n in known)
            else:
                self.errors[status] += 1
            if number % 5 == 0:
                question = {"question": f"What of {name} has come?"}
                status, _ = await self.call("POST", f"/v1/memories/{name}/ask", question)
                self.answers += status == "200"
                self.errors[status] += status != "200"

    async def run(self, seconds: float) -> None:
        """Everyone, for so long."""
        until = time.monotonic() + seconds
        self.moments.append(time.monotonic())
        async with self.client:
            await asyncio.gather(*(self.person(name, until) for name in self.names))

    def result(self, store: MemoryStore, text_of_ids: Any) -> dict[str, Any]:
        """The figures, with what lies in the store now."""
        lost = twice = damaged = 0
        for name, numbers in self.acknowledged.items():
            try:
                memory, broken = store.load(name), store.verify(name)
            except RemanenceError as error:
                print(f"{name}: {error}", file=sys.stderr)
                lost, damaged = lost + len(numbers), damaged + 1
                continue
            damaged += bool(broken)
            waiting = "".join(text_of_ids(piece.ids) for piece in memory.pending)
            told = squashed("".join(write.text or "" for write in memory.writes) + waiting)
            counts = [told.count(squashed(text_of(n, name))) for n in numbers]
            lost, twice = lost + counts.count(0), twice + sum(count > 1 for count in counts)
        gaps = [after - before for before, after in zip(self.moments, self.moments[1:], strict=False)]
        return {
            "people": len(self.names),
            "acknowledged": sum(map(len, self.acknowledged.values())),
            "readings": self.readings,
            "answers": self.answers,
            "lost": lost,
            "stale": self.stale,
            "twice": twice,
            "damaged": damaged,
            "undone": dict(self.undone),
            "errors": {status: count for status, count in self.errors.items() if count},
            "longest_gap_s": round(max(gaps, default=0.0), 2),
        }


# Processes ------------------------------------------------------------------------------------------------------------


def replicas_of(parent: int) -> list[int]:
    """Process ids of the replicas that Ray started for a process, the longest running first."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat[1])
            if command.startswith(b"ray::ServeReplica") and stat[0] != "Z":
                found.append((int(stat[19]), int(entry.name)))

    def descends(pid: int) -> bool:
        while pid in parents and pid != parent:
            pid = parents[pid]
        return pid == parent

    return [pid for _, pid in sorted(found) if descends(pid)]


async def killed(parent: int, replicas: int, moments: list[float]) -> int:
    """Kill the longest running replica at some moments, once there are enough; how many were killed."""
    count, began = 0, time.monotonic()
    for moment in moments:
        await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
        alive = replicas_of(parent)
        if len(alive) == replicas:
            os.kill(alive[0], signal.SIGKILL)
            count += 1
    return count


def anywhere(relay: Relay) -> Relay:
    """The same replicas, taken as they come."""

    def any_of_them(asked: Asked, memory: str | None) -> AsyncIterator[Head | bytes]:
        return relay(asked, None)

    return any_of_them


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application on a port of its own, in a thread; its address."""
    heard = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([heard],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{heard.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def on_ray(name: str, root: Path, people: int, seconds: float, replicas: int, kills: int) -> tuple[Load, int]:
    """The load on replicas of Ray Serve; also how many were killed."""
    keys, limits = Keys(root / FILE), Limits(rate=0)
    cpus = min(1.0, (os.cpu_count() or 1) / replicas)
    with replicated(name, root, keys.path, limits, Scale(replicas, cpus)) as relay, ExitStack() as stack:
        relays = (relay, anywhere(relay))
        load = Load([stack.enter_context(listening(front(one, keys, limits))) for one in relays], people)

        async def both() -> int:
            moments = [seconds * (i + 1) / (kills + 1) for i in range(kills)]
            _, count = await asyncio.gather(load.run(seconds), killed(os.getpid(), replicas, moments))
            return count

        return load, asyncio.run(both())


def plain(name: str, root: Path, people: int, seconds: float) -> tuple[Load, int]:
    """The load on two servers, of which one is killed in the middle."""
    with served(name, root, threads=1) as (first, one), served(name, root, threads=1) as (_, other):
        load = Load([one, other], people)

        async def both() -> None:
            running = asyncio.create_task(load.run(seconds))
            await asyncio.sleep(seconds / 2)
            first.kill()
            await running

        asyncio.run(both())
    return load, 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="tiny", help="tiny or smollm2")
    parser.add_argument("--people", type=int, default=None, help="at once; 16, with --short 4")
    parser.add_argument("--seconds", type=float, default=None, help="of load; 60, with --short 12")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--kills", type=int, default=None, help="4, with --short 1")
    parser.add_argument("--plain", action="store_true", help="two servers without Ray, of which one is killed")
    parser.add_argument("--short", action="store_true", help="for CI")
    parser.add_argument("--out", type=Path, help="a .json file for the figures")
    args = parser.parse_args()
    people = args.people or (4 if args.short else 16)
    seconds = args.seconds or (12.0 if args.short else 60.0)
    kills = (1 if args.short else 4) if args.kills is None else args.kills

    from remanence import MemoryModel

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.plain:
            load, done = plain(args.model, root, people, seconds)
        else:
            load, done = on_ray(args.model, root, people, seconds, args.replicas, kills)
        result = load.result(MemoryStore(root), MemoryModel.from_pretrained(args.model).text_of)
    result |= {"model": args.model, "seconds": seconds, "kills": done}
    for key, value in result.items():
        print(f"{key:<15} {value}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(result[what] for what in ("lost", "stale", "damaged")))


if __name__ == "__main__":
    main()
