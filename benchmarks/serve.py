"""The server under load: `python benchmarks/serve.py`; `--short` is for CI, with the toy and some seconds a figure.

* Answers a second and acknowledged writes a second, with 1, 8 and 64 people at once, beside the same model alone in
  this process, one question and one write after the other.
* Time to the first token, median and 95th percentile, for the same numbers of people.
* What a person's memory takes in RAM (growth of the server's resident memory by memories that are loaded) and on disk.
* Errors, and cross-reads: everyone is told a secret of their own about the same thing, and asked for it; so each
  question asks for all other people's secrets as well, and an answer that has one of these is a cross-read.
* `--soak SECONDS`: 64 people talk to the server through the official `openai` client, streamed and not, and tell it
  something every eighth turn; printed are answers, errors, cross-reads and the server's resident memory over time.
* `--fuzz N`: N requests of schemathesis and broken bodies; how many were answered with 5xx, or with a traceback.
* `--kills N`: the server is killed N times while people talk; how many acknowledged texts are not on the disk.

`--no-table` leaves out the first three. The clients run in a process of their own on the same machine and take their
share of it. The server is allowed ten minutes an answer, so that a slow machine shows as slow and not as failing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from remanence import MemoryModel, MemoryStore

QUESTION = "What is Marla Quist's door code?"
_LOOK_S = 1.0  # seconds between two looks at how much memory the server takes
FILLER = "The tide went out and the boats lay on the sand until the evening came back with the wind. "


def secret(number: int) -> str:
    """Everyone's own."""
    return f"{7919 * (number + 13) % 9000 + 1000}"


def told(number: int) -> str:
    """The first text of a person: the secret, and enough behind it to be written."""
    return f"Marla Quist's door code is {secret(number)}. {FILLER * 8}"


@contextmanager
def served(model: str, store: Path, *options: str, threads: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`remanence serve` in a process of its own, and where it is."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "remanence", "serve", "--model", model, "--store", str(store), "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--rate", "0", "--seconds", "600", *options], env=env, stderr=log, text=True
        )
        try:
            url = ""
            while not url:
                log.seek(0)
                found = log.read().partition(" is served at ")[2]
                url = found.split()[0] if found else ""
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server did not start: {log.read()}")
                time.sleep(0.05)
            yield server, url
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            log.seek(0)
            if "Traceback" in (said := log.read()):
                print(said[-4000:], file=sys.stderr)


def resident(server: subprocess.Popen[str]) -> int:
    """Bytes of RAM of a process."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def loaded(url: str) -> int:
    """Bytes of the vectors and keys of memories in the server's RAM, as it says itself."""
    for line in httpx.get(f"{url}/metrics", timeout=60).text.splitlines():
        if line.startswith("remanence_loaded_bytes "):
            return int(float(line.split()[1]))
    raise SystemExit("the server's metrics lack remanence_loaded_bytes")


# Load -----------------------------------------------------------------------------------------------------------------


class Load:
    """People who talk to a server at the same time.

    Attributes:
        answers, writes, errors, cross: counts. first: seconds to the first token of each answer.
    """

    def __init__(self, url: str, people: int) -> None:
        limits = httpx.Limits(max_connections=people)
        self.client = httpx.AsyncClient(base_url=url, timeout=900, limits=limits)
        self.people = people
        self.answers = self.writes = self.errors = self.cross = self.right = 0
        self.first: list[float] = []

    async def tell(self) -> None:
        """Everyone is told a secret."""
        bodies = [{"text": told(i), "source": "told"} for i in range(self.people)]
        calls = [self.client.post(f"/v1/memories/p{i}/write", json=body) for i, body in enumerate(bodies)]
        for response in await asyncio.gather(*calls):
            response.raise_for_status()

    async def run(self, seconds: float, turn: Any) -> float:
        """Everyone takes turns for so long; the seconds until the last one had finished."""
        began = time.perf_counter()

        async def person(number: int) -> None:
            while time.perf_counter() - began < seconds:
                try:
                    await turn(number)
                except (httpx.HTTPError, KeyError, ValueError):
                    self.errors += 1

        await asyncio.gather(*(person(i) for i in range(self.people)))
        return time.perf_counter() - began

    async def ask(self, number: int) -> None:
        """A question, streamed."""
        body = {"messages": [{"role": "user", "content": QUESTION}], "user": f"p{number}", "stream": True}
        began, text = time.perf_counter(), ""
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            last = ""
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = line.removeprefix("data: ")
                if last == "[DONE]":
                    break
                event = json.loads(last)
                piece = event["choices"][0]["delta"].get("content")
                if piece and not text:
                    self.first.append(time.perf_counter() - began)
                text += piece or ""
            if last != "[DONE]":
                raise ValueError("the stream has no end")
        self.answers += 1
        self.right += secret(number) in text
        self.cross += any(secret(other) in text for other in range(64) if other != number)

    async def write(self, number: int) -> None:
        """A short text; answered when it is on the disk."""
        response = await self.client.post(f"/v1/memories/p{number}/write", json={"text": "I went to the market today."})
        response.raise_for_status()
        self.writes += 1


async def measured(url: str, server: subprocess.Popen[str], people: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    load = Load(url, people)
    async with load.client:
        await load.tell()
        await load.run(min(2.0, seconds / 4), load.ask)  # everything is loaded and warm
        load.first.clear()
        load.answers = load.right = 0
        before = resident(server)
        asked = await load.run(seconds, load.ask)
        wrote = await load.run(seconds, load.write)
        first = sorted(load.first)
        return {
            "people": people,
            "answers_s": load.answers / asked,
            "writes_s": load.writes / wrote,
            "first_p50_s": statistics.median(first),
            "first_p95_s": first[min(len(first) - 1, int(len(first) * 0.95))],
            "right": load.right,
            "answers": load.answers,
            "errors": load.errors,
            "cross_reads": load.cross,
            "growth_mb": (resident(server) - before) / 1e6,
        }


async def soaked(url: str, server: subprocess.Popen[str], people: int, seconds: float) -> dict[str, Any]:
    """Everyone talks through the official client for so long; what the server's memory does meanwhile.

    Returns:
        "turns", "right", "told", "errors", "cross_reads": counts; "faults": the first errors in words; "samples": at
        ten moments seconds, resident bytes (the median since the moment before, and the least, as what answers need
        comes and goes) and bytes of loaded memories; "growth_mb", "least_growth_mb" and "loaded_growth_mb": of these,
        from the second moment, when all memories are loaded, to the end.
    """
    from openai import AsyncOpenAI, OpenAIError

    count = {"turns": 0, "right": 0, "told": 0, "errors": 0, "cross_reads": 0}
    faults, samples = list[str](), list[dict[str, float]]()
    load = Load(url, people)
    async with load.client:
        await load.tell()
    began = time.perf_counter()

    async def person(number: int, client: AsyncOpenAI) -> None:
        turn = number  # so that not everyone tells at the same time
        while time.perf_counter() - began < seconds:
            turn += 1
            told_ = turn % 8 == 0
            said = f"Parcel {number}x{turn} came today." if told_ else QUESTION
            try:
                text = await answered(client, number, said, stream=turn % 2 == 1)
            except (OpenAIError, ValueError) as error:
                count["errors"] += 1
                faults.append(f"{type(error).__name__}: {error}"[:300])
                continue
            count["told" if told_ else "turns"] += 1
            count["right"] += not told_ and secret(number) in text
            count["cross_reads"] += any(secret(other) in text for other in range(people) if other != number)

    async def look() -> None:
        for at in range(1, 11):
            seen, until = [resident(server)], began + at * seconds / 10
            while (left := until - time.perf_counter()) > 0:
                await asyncio.sleep(min(left, _LOOK_S))
                seen.append(resident(server))
            samples.append({
                "seconds": time.perf_counter() - began, "resident": statistics.median(seen), "least": min(seen),
                "loaded": await asyncio.to_thread(loaded, url), **count,
            })  # fmt: skip

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900) as client:
        await asyncio.gather(look(), *(person(i, client) for i in range(people)))
    first, last = samples[1], samples[-1]
    return count | {
        "people": people,
        "faults": faults[:20],
        "samples": samples,
        "growth_mb": (last["resident"] - first["resident"]) / 1e6,
        "least_growth_mb": (last["least"] - first["least"]) / 1e6,
        "loaded_growth_mb": (last["loaded"] - first["loaded"]) / 1e6,
    }


async def answered(client: Any, number: int, said: str, *, stream: bool) -> str:
    """What a person's memory answers, by the official client."""
    turn: dict[str, Any] = {"model": "", "user": f"p{number}", "messages": [{"role": "user", "content": said}]}
    if not stream:
        return (await client.chat.completions.create(**turn)).choices[0].message.content or ""
    text, reason = "", None
    async for chunk in await client.chat.completions.create(**turn, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    if reason is None:
        raise ValueError("the stream has no end")
    return text


def alone(name: str, seconds: float, threads: int, folder: Path) -> dict[str, float]:
    """The same model in this process, for one person, without a server."""
    import torch

    torch.set_num_threads(threads)
    model, store = MemoryModel.from_pretrained(name), MemoryStore(folder)
    with store.open("p0", model) as memory:
        model.memorize(memory, told(0))
    memory = store.load("p0")
    model.ask(memory, QUESTION)
    most = 192 if model.config.base_answers else 32  # as the server has it
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        model.ask(memory, QUESTION, max_new_tokens=most)
        count += 1
    answers = count / (time.perf_counter() - began)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        with store.open("p0", model, known=memory) as memory:
            model.memorize(memory, "I went to the market today.")
        count += 1
    return {"answers_s": answers, "writes_s": count / (time.perf_counter() - began)}


def of_a_person(url: str, server: subprocess.Popen[str], people: int) -> dict[str, float]:
    """What a memory takes: RAM of the server, and disk."""
    with httpx.Client(base_url=url, timeout=300) as client:

        def tell(first: int, last: int) -> None:
            for i in range(first, last):
                client.post(f"/v1/memories/size{i}/write", json={"text": told(i)}).raise_for_status()

        tell(0, 4)  # what is the same for all is there
        before = resident(server)
        tell(4, 4 + people)
        grown = resident(server) - before
        entry = client.get("/v1/memories/size4").json()
    return {
        "tokens": entry["tokens"] + entry["pending_tokens"],
        "ram_bytes": grown / people,
        "disk_bytes": entry["bytes"],
    }


# Nonsense and kills ---------------------------------------------------------------------------------------------------


def fuzz(url: str, requests: int, seed: int = 0) -> dict[str, Any]:
    """So many requests or more: schemathesis over the server's schema, right and wrong ones, and broken bodies.

    Args:
        url: of the server.
        requests: how many at least; a third of them are broken bodies of our own.
        seed: of our own.

    Returns:
        "requests", "from_schema", how many of them, "statuses", a count for each, and "server_errors", what was asked
        where the answer was 5xx, other than for want of time, or had a traceback.
    """
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations: list[Any] = [each.ok() for each in schema.get_all_operations()]  # type: ignore[union-attr]
    statuses: dict[int, int] = {}
    wrong: list[str] = []

    def note(status: int, text: str, what: str) -> None:
        statuses[status] = statuses.get(status, 0) + 1
        if (status >= 500 and '"timeout"' not in text) or "Traceback" in text:
            wrong.append(f"{status}: {what}"[:500])

    each = -(-requests * 2 // (3 * 2 * len(operations)))
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=each, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )  # fmt: skip
            @given(case=strategy)
            def call(case: Any) -> None:
                try:
                    response = case.call(timeout=60)
                except (OSError, ValueError, schemathesis.errors.SchemathesisError):  # it cannot even be sent
                    return
                note(
                    response.status_code,
                    response.content.decode("utf-8", "replace"),
                    f"{case.method} {case.path} {case.body!r}",
                )

            with suppress(schemathesis.errors.SchemathesisError, Unsatisfiable):  # nothing of it can be wrong
                call()
    from_schema = sum(statuses.values())
    random_ = random.Random(seed)
    bodies = [
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi?"}], "user": "f", "stop": "x"}),
        ("POST", "/v1/responses", {"input": "Hi?", "user": "f", "stream": True, "instructions": "Be brief."}),
        ("POST", "/v1/memories", {"name": "f"}),
        ("POST", "/v1/memories/f/write", {"text": "My dog is called Rex.", "source": "x", "time": 5}),
        ("POST", "/v1/memories/f/ask", {"question": "Who?", "max_tokens": 3}),
        ("POST", "/v1/memories/f/search", {"query": "Who?", "k": 3}),
        ("POST", "/v1/memories/f/forget", {"words": "Rex", "dry_run": True, "since": 3}),
        ("POST", "/v1/memories/f/fork", {"name": "g"}),
        ("PUT", "/v1/memories/h/import", {"PK\u0003\u0004": 1}),
    ]
    with httpx.Client(base_url=url, timeout=60) as client:
        client.post("/v1/memories/f/write", json={"text": "My dog is called Rex."})
        while sum(statuses.values()) < requests:
            method, path, body = random_.choice(bodies)
            content = broken(json.dumps(body), random_)
            kind = random_.choice(["application/json"] * 4 + ["text/plain", ""])
            response = client.request(method, path, content=content, headers={"content-type": kind} if kind else {})
            note(response.status_code, response.text, f"{method} {path} {content!r}")
    return {
        "requests": sum(statuses.values()),
        "from_schema": from_schema,
        "statuses": statuses,
        "server_errors": wrong,
    }


def broken(text: str, random_: random.Random) -> bytes:
    """A text with some of its parts exchanged, lost, doubled, or no text at all."""
    odd = [
        "null",
        "-1",
        "1e400",
        "NaN",
        '"\\ud800"',
        '"\\u0000"',
        "[[]]",
        "{}",
        '""',
        "true",
        "9" * 400,
        '"' + "a" * 5000 + '"',
    ]
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(len(text) + 1)
        kind = random_.randrange(5)
        if kind == 0:
            text = text[:at] + text[at + random_.randint(1, 5) :]
        elif kind == 1:
            text = text[:at] + random_.choice(odd) + text[at:]
        elif kind == 2 and ":" in text:
            values = text.split(":")
            values[random_.randrange(1, len(values))] = random_.choice(odd) + random_.choice([",", "}", ', "x"'])
            text = ":".join(values)
        elif kind == 3:
            text = text[:at] + chr(random_.choice([0, 9, 127, 0x202E, 0xFFFF, 0x1F600])) + text[at:]
        else:
            text = text * 2
    data = text.encode("utf-8", "replace")
    return data[: random_.randrange(len(data) + 1)] if random_.random() < 0.2 else data


async def talked(url: str, life: int, people: int, kept: list[tuple[str, str]]) -> None:
    """People say things until the server is gone; what was acknowledged is noted."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def person(number: int) -> None:
            with suppress(httpx.HTTPError):
                for i in range(10**6):
                    text = f"Parcel {life}x{number}x{i} has come."
                    body = {"messages": [{"role": "user", "content": text}], "user": f"p{number}"}
                    (await client.post("/v1/chat/completions", json=body)).raise_for_status()
                    kept.append((f"p{number}", text))

        await asyncio.gather(*(person(i) for i in range(people)))


def kills(name: str, lives: int, threads: int, people: int = 8) -> dict[str, int]:
    """The server is killed under load so often; what was acknowledged and is not there, or is damaged."""
    kept: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for life in range(lives):
            with served(name, Path(folder), threads=threads) as (server, url):

                async def until_killed(life: int = life, url: str = url, server: Any = server) -> None:
                    enough, until = len(kept) + random.Random(life).randint(5, 40), time.monotonic() + 60
                    talking = asyncio.create_task(talked(url, life, people, kept))
                    while len(kept) < enough and time.monotonic() < until:
                        await asyncio.sleep(0.01)
                    server.kill()
                    await talking

                asyncio.run(until_killed())
        store, model = MemoryStore(folder), MemoryModel.from_pretrained(name)
        texts = {}
        for info in store.list():
            memory = store.load(info.name)
            waiting = "".join(model.text_of(piece.ids) for piece in memory.pending)
            texts[info.name] = "".join(write.text or "" for write in memory.writes) + waiting
        lost = sum(" ".join(text.split()) not in " ".join(texts[person].split()) for person, text in kept)
        damaged = sum(bool(store.verify(info.name)) for info in store.list())
    return {"kills": lives, "acknowledged": len(kept), "lost": lost, "damaged": damaged}


# The table ------------------------------------------------------------------------------------------------------------


@contextmanager
def served_anew(name: str, threads: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with an empty store."""
    with tempfile.TemporaryDirectory() as folder, served(name, Path(folder), threads=threads) as server_and_url:
        yield server_and_url


def table(result: dict[str, Any], name: str, seconds: float, threads: int, numbers: list[int], sizes: int) -> None:
    """Measure and print the first figures, and put them into the result."""
    with tempfile.TemporaryDirectory() as folder:
        one = result["alone"] = alone(name, seconds, threads, Path(folder))
    print(f"{seconds:g} s a figure")
    heads = ("answers/s", "x alone", "writes/s", "first p50", "p95", "errors", "cross", "right")
    print(" " * 14 + "".join(f"{head:>11}" for head in heads))
    print(f"{'model alone':<14}{one['answers_s']:>11.2f}{1:>11.2f}{one['writes_s']:>11.1f}", flush=True)
    result["rows"] = []
    with served_anew(name, threads) as (server, url):
        for people in numbers:
            row = asyncio.run(measured(url, server, people, seconds))
            result["rows"].append(row)
            shown = (
                f"{row['answers_s']:.2f}", f"{row['answers_s'] / one['answers_s']:.2f}", f"{row['writes_s']:.1f}",
                f"{row['first_p50_s']:.3f} s", f"{row['first_p95_s']:.3f} s", row["errors"], row["cross_reads"],
                f"{row['right']}/{row['answers']}",
            )  # fmt: skip
            print(f"{people:>3} at once   " + "".join(f"{value:>11}" for value in shown), flush=True)
        size = result["person"] = of_a_person(url, server, sizes)
    ram, disk = size["ram_bytes"] / 1e6, size["disk_bytes"] / 1e6
    print(f"a memory of {size['tokens']} tokens takes {ram:.2f} MB of RAM while loaded, and {disk:.2f} MB of disk.")


def show_soak(done: dict[str, Any]) -> None:
    """Print what a soak gave."""
    head = f"{'seconds':>9}{'resident':>13}{'at least':>13}{'of it memories':>16}"
    print(f"{head}{'answers':>9}{'told':>7}{'errors':>8}{'cross':>7}")
    for row in done["samples"]:
        sizes = [f"{row[name] / 1e6:.1f} MB" for name in ("resident", "least", "loaded")]
        print(
            f"{row['seconds']:>9.0f}{sizes[0]:>13}{sizes[1]:>13}{sizes[2]:>16}{row['turns']:>9}"
            f"{row['told']:>7}{row['errors']:>8}{row['cross_reads']:>7}"
        )
    print(
        f"{done['people']} people: {done['turns']:,} answers, {done['right']:,} right, {done['told']:,} told, "
        f"{done['errors']} errors, {done['cross_reads']} cross-reads; resident memory grew by {done['growth_mb']:.1f} "
        f"MB, its least by {done['least_growth_mb']:.1f} MB, loaded memories by {done['loaded_growth_mb']:.1f} MB.",
        flush=True,
    )
    for fault in done["faults"]:
        print(f"  {fault}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=None, help="tiny or smollm2; smollm2 by default, with --short tiny")
    parser.add_argument("--people", type=int, nargs="+", help="at once; 1 8 64 by default, with --short 1 8")
    parser.add_argument("--seconds", type=float, default=None, help="of each figure; 60 by default, with --short 2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the model")
    parser.add_argument("--soak", type=float, default=None, help="64 people for so many seconds; with --short 8 for 3")
    parser.add_argument("--no-table", action="store_true", help="only --soak, --fuzz and --kills")
    parser.add_argument("--fuzz", type=int, default=None, help="so many requests of nonsense; with --short 300")
    parser.add_argument("--kills", type=int, default=None, help="kill the server so often; with --short once")
    parser.add_argument("--short", action="store_true", help="for CI: the toy, some seconds")
    parser.add_argument("--out", type=Path, help="a .json file for the figures")
    args = parser.parse_args()
    name = args.model or ("tiny" if args.short else "smollm2")
    seconds = args.seconds or (2.0 if args.short else 60.0)
    args.people = args.people or ([1, 8] if args.short else [1, 8, 64])
    result: dict[str, Any] = {"model": name, "seconds": seconds, "threads": args.threads}

    print(f"{name}, {args.threads} threads")
    if not args.no_table:
        table(result, name, seconds, args.threads, args.people, 12 if args.short else 128)
    soak = 3.0 if args.soak is None and args.short else args.soak or 0.0
    if soak:
        with served_anew(name, args.threads) as (server, url):
            done = result["soak"] = asyncio.run(soaked(url, server, 8 if args.short else 64, soak))
        show_soak(done)
    requests = 300 if args.fuzz is None and args.short else args.fuzz or 0
    if requests:
        with served_anew(name, args.threads) as (_, url):
            done = result["fuzz"] = fuzz(url, requests)
        print(f"{done['requests']:,} requests of nonsense: {len(done['server_errors'])} server errors.", flush=True)
    lives = 1 if args.kills is None and args.short else args.kills or 0
    if lives:
        done = result["kills"] = kills(name, lives, args.threads)
        print(f"{lives} kills: {done['lost']} of {done['acknowledged']:,} acknowledged texts lost.")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    bad = [row["errors"] + row["cross_reads"] for row in result.get("rows", [])]
    bad += [result.get("soak", {}).get(what, 0) for what in ("errors", "cross_reads")]
    bad += [len(result.get("fuzz", {}).get("server_errors", []))]
    bad += [result.get("kills", {}).get(what, 0) for what in ("lost", "damaged")]
    sys.exit(1 if any(bad) else 0)


if __name__ == "__main__":
    main()
