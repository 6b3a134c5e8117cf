"""Several replicas on one store: routing, freshness, the front; with Ray, whole runs among the slow tests."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from listening import Listening, until
from remanence import MemoryModel, MemoryStore
from remanence.errors import MemoryBusy
from remanence.serve.engine import Full
from remanence.serve.keys import FILE, Key, Keys
from remanence.serve.limits import Limits
from remanence.serve.people import People
from remanence.serve.scale import Asked, Head, Relay, Replica, ReplicaLost, front, memory_of, only_reads

ROOT = Path(__file__).parents[1]
FACT = "Marla Quist's favourite colour is teal."
QUESTION = "What is Marla Quist's favourite colour?"
with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra ray)")


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return MemoryModel.from_pretrained("tiny")


# Routing --------------------------------------------------------------------------------------------------------------


def _scope(method: str, path: str, **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": named}


ADA, TEAM = Key("0" * 12, "", ("ada",), 0.0, "", ""), Key("1" * 12, "", ("team-*",), 0.0, "", "")

BROKEN = (b"", b"[]", b'{"user": 5}', b"\xff", b"[" * 99999)


@pytest.mark.parametrize(
    ("scope", "body", "key", "name"),
    [
        (_scope("GET", "/v1/memories/ada"), b"", None, "ada"),
        (_scope("POST", "/v1/memories/ada%40home/write"), b"{}", None, "ada@home"),
        (_scope("POST", "/v1/memories/ada/fork"), b'{"name": "eve"}', None, "ada"),
        (_scope("POST", "/v1/memories"), b'{"name": "ada"}', None, "ada"),
        (_scope("GET", "/v1/memories"), b"", None, None),
        (_scope("POST", "/v1/chat/completions"), b'{"user": "ada"}', None, "ada"),
        (_scope("POST", "/v1/responses"), b'{"user": "ada"}', None, "ada"),
        (_scope("POST", "/v1/chat/completions", x_remanence_memory="eve"), b'{"user": "ada"}', None, "eve"),
        (_scope("POST", "/v1/chat/completions"), b"{}", ADA, "ada"),  # a key for one memory alone
        (_scope("POST", "/v1/chat/completions"), b"{}", TEAM, None),
        (_scope("GET", "/v1/memories/ada"), b"", TEAM, None),  # where it is loaded is nothing of theirs
        (_scope("GET", "/v1/memories/team-a"), b"", TEAM, "team-a"),
        (_scope("GET", "/v1/memories/.."), b"", None, None),
        (_scope("GET", "/healthz"), b"", None, None),
        *((_scope("POST", "/v1/responses"), body, None, None) for body in BROKEN),
    ],
)  # fmt: skip
def test_whose_memory_a_request_is_for(scope: dict[str, Any], body: bytes, key: Key | None, name: str | None) -> None:
    assert memory_of(scope, body, key) == name


def test_what_may_be_sent_twice() -> None:
    assert only_reads(_scope("GET", "/v1/memories/ada/history")) and only_reads(_scope("POST", "/v1/memories/ada/ask"))
    for path in ("/v1/memories/ada/write", "/v1/memories/ada/forget", "/v1/chat/completions", "/v1/memories"):
        assert not only_reads(_scope("POST", path))
    assert not only_reads(_scope("DELETE", "/v1/memories/ada"))


# Freshness ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(model: MemoryModel, tmp_path: Path) -> tuple[People, People]:
    """What two replicas have: one store, each with its own loaded memories."""
    one, other = (People(model, MemoryStore(tmp_path, patience_s=20)) for _ in range(2))
    other.computer = one.computer  # the same model, which one at a time may use
    return one, other


def _told(people: People, name: str) -> list[str]:
    history = people.history(name, limit=1000)
    return [entry["text"] for entry in history["data"][::-1] + history["waiting"]]


def test_a_replica_reads_what_another_one_wrote(two: tuple[People, People]) -> None:
    for number in range(12):
        writer, reader = two if number % 3 else two[::-1]
        writer.write("ada", f"Parcel {number} has come.")
        assert f"Parcel {number} has come" in "".join(_told(reader, "ada"))
        assert f"Parcel {number} has come" in "".join(_told(writer, "ada"))
    two[1].delete("ada")
    two[0].write("ada", FACT)
    assert _told(two[1], "ada") == [FACT]
    assert two[1].ask("ada", QUESTION).text == "teal"


def test_what_nobody_changed_is_not_loaded_again(two: tuple[People, People], monkeypatch: pytest.MonkeyPatch) -> None:
    two[0].write("ada", FACT)
    assert _told(two[1], "ada") == [FACT]
    monkeypatch.setattr(MemoryStore, "load", lambda *_: pytest.fail("loaded again"))
    for people in two:
        assert _told(people, "ada") == [FACT]


def test_replicas_that_write_at_once_wait_for_each_other(two: tuple[People, People]) -> None:
    def write(number: int) -> None:
        two[number % 2].write("ada", f"Parcel {number} has come. ")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(24)))
    for people in two:
        told = "".join("".join(_told(people, "ada")).split())
        assert [told.count(f"Parcel{number}hascome.") for number in range(24)] == [1] * 24


def test_waiting_for_another_one_has_an_end(tmp_path: Path, model: MemoryModel) -> None:
    with MemoryStore(tmp_path).open("ada", model):
        began = time.monotonic()
        with (
            pytest.raises(MemoryBusy, match="open for writing elsewhere"),
            MemoryStore(tmp_path, patience_s=0.3).hold("ada"),
        ):
            pass
        assert 0.3 <= time.monotonic() - began < 5


def test_a_memory_is_let_go_unless_it_is_used(two: tuple[People, People]) -> None:
    people, _ = two
    people.write("ada", FACT)
    with people.hold("ada"):
        people.let_go("ada")
        assert people.usage()[0] == 1
    people.let_go("ada")
    people.let_go("nobody")
    assert people.usage() == (0, 0) and people.evicted == 1
    assert _told(people, "ada") == [FACT]


def test_a_shared_store_keeps_no_log_that_other_machines_cannot_see(two: tuple[People, People], tmp_path: Path) -> None:
    def mode() -> str:
        with sqlite3.connect(tmp_path / "catalogue.sqlite") as db:
            kept: str = db.execute("PRAGMA journal_mode").fetchone()[0]
        db.close()
        return kept

    two[0].write("ada", FACT)
    assert mode() == "wal"
    reading = sqlite3.connect(tmp_path / "catalogue.sqlite")
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM memories").fetchall()
    with pytest.raises(MemoryBusy, match="in use"):
        two[0].store.share()
    reading.close()
    two[0].store.share()
    assert mode() == "delete"
    test_a_replica_reads_what_another_one_wrote(two)
    assert mode() == "delete" and not (tmp_path / "catalogue.sqlite-wal").exists()


def test_a_log_that_goes_while_it_is_looked_at(two: tuple[People, People], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes the last connection removes it; that is no fault of the disk."""
    two[0].write("ada", FACT)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **_: path.name.endswith("-wal") or exists(path))
    assert _told(two[1], "ada") == [FACT]


def test_making_a_store_takes_no_lock_from_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To close a file lets go of all of a process's locks on it; two processes wrote at once when both made a store."""
    store, file = MemoryStore(tmp_path), tmp_path / "catalogue.sqlite"
    store.share()
    writing = sqlite3.connect(file, isolation_level=None)
    writing.execute("BEGIN IMMEDIATE")
    exists, seen = Path.exists, list[Path]()

    def late(path: Path, **options: Any) -> bool:
        seen.append(path)
        return exists(path) if seen.count(file) != 1 or path != file else False  # it was made in this moment

    monkeypatch.setattr(Path, "exists", late)
    with store._catalogue.connect(create=True):
        pass
    code = f"import sqlite3; sqlite3.connect({str(file)!r}, timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    writing.close()
    assert "database is locked" in other.stderr


# The front ------------------------------------------------------------------------------------------------------------


class Served(Listening):
    """An application of `front` on a real port, and a client of it."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, lifespan="off")
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def close(self) -> None:
        """End it."""
        self.http.close()
        super().close()


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """listen(relay, **limits): a front, which ends with the test."""
    made: list[Served] = []

    def start(relay: Relay, **limits: Any) -> Served:
        made.append(Served(front(relay, Keys(tmp_path / FILE), Limits(**({"rate": 0.0} | limits)))))
        return made[-1]

    yield start
    for each in made:
        each.close()


class Scripted:
    """Stands for the replicas: each request gets the next of some outcomes, pieces or an error in their place."""

    def __init__(self, *outcomes: list[Any]) -> None:
        self.outcomes, self.asked, self.closed = list(outcomes), list[tuple[Asked, str | None]](), threading.Event()

    async def __call__(self, asked: Asked, memory: str | None, /) -> AsyncIterator[Head | bytes]:
        self.asked.append((asked, memory))
        try:
            for item in self.outcomes.pop(0):
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    await asyncio.sleep(60)
                yield item
        finally:
            self.closed.set()


def _head(body: bytes = b"{}", *, more: bool = False, kind: str = "application/json", status: int = 200) -> Head:
    return Head(status, [(b"content-type", kind.encode())], "/v1/memories/{name}/x", body, more)


LOST = ReplicaLost("gone")


def test_what_only_reads_is_tried_again(listen: Callable[..., Served]) -> None:
    relay = Scripted([LOST], [LOST], [_head(b'{"total": 1}')], [LOST], [LOST], [LOST])
    one = listen(relay)
    assert one.http.get("/v1/memories/ada/history").json() == {"total": 1}
    assert [memory for _, memory in relay.asked] == ["ada"] * 3
    given_up = one.http.post("/v1/memories/ada/ask", json={"question": "Who?"})
    assert given_up.status_code == 503 and given_up.json()["error"]["code"] == "replica_lost"
    assert given_up.headers["retry-after"] == "1" and not relay.outcomes


def test_what_writes_is_not_sent_twice(listen: Callable[..., Served]) -> None:
    relay = Scripted([LOST], [_head()])
    refused = listen(relay).http.post("/v1/memories/ada/write", json={"text": FACT})
    assert refused.status_code == 503 and "saved or not" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    assert len(relay.asked) == 1 and json.loads(relay.asked[0][0].body) == {"text": FACT}


def test_an_answer_that_is_cut_is_not_taken_for_whole(listen: Callable[..., Served]) -> None:
    stream = _head(b"data: 1\n\n", more=True, kind="text/event-stream; charset=utf-8")
    one = listen(Scripted([stream, b"data: 2\n\n", LOST], [_head(b"[1", more=True), LOST]))
    events = one.http.post("/v1/chat/completions", json={"user": "ada"}).text.split("\n\n")
    assert events[:2] == ["data: 1", "data: 2"] and "replica_lost" in events[2] and "[DONE]" not in events
    with pytest.raises(httpx.RemoteProtocolError):
        one.http.get("/v1/memories/ada/export")


def test_who_leaves_is_not_answered_further(listen: Callable[..., Served]) -> None:
    relay = Scripted([_head(b"data: 1\n\n", more=True, kind="text/event-stream"), None])
    with listen(relay).http.stream("POST", "/v1/chat/completions", json={"user": "ada"}) as response:
        pieces = response.iter_bytes()  # kept: httpx leaves when its generator is dropped
        next(pieces)
        assert not relay.closed.is_set()
    assert relay.closed.wait(10)


def test_the_front_refuses_before_it_asks(listen: Callable[..., Served], tmp_path: Path) -> None:
    relay = Scripted([Full(3)], [_head(status=404)])
    one = listen(relay, body_bytes=100, seconds=5)
    busy = one.http.get("/v1/memories/ada")
    assert busy.status_code == 429 and busy.headers["retry-after"] == "3"
    assert one.http.post("/v1/memories/ada/write", content=iter([b"x" * 200])).status_code == 413
    key = Keys(tmp_path / FILE).add(["ada"], "")
    assert one.http.get("/v1/memories/ada").status_code == 401
    assert one.http.get("/v1/memories/eve", headers={"Authorization": f"Bearer {key}"}).status_code == 404
    assert [memory for _, memory in relay.asked] == ["ada", None]
    # A request is counted when it has ended, which is after its answer came.
    line = 'remanence_requests_total{route="/v1/memories/{name}/x",status="404"} 1.0'
    until(lambda: line in one.http.get("/metrics").text)
    counted = one.http.get("/metrics").text
    assert 'remanence_refused_total{why="key"} 1.0' in counted and "ada" not in counted


def test_a_replica_that_says_nothing_is_given_up(
    listen: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remanence.serve.scale._MORE_S", 0.0)
    one = listen(Scripted([None], []), seconds=0.3)
    assert one.http.get("/healthz").status_code == 503
    assert one.http.post("/v1/memories/ada/write", json={}).status_code == 503


# A replica ------------------------------------------------------------------------------------------------------------


def test_openais_client_through_front_and_replica(
    listen: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica("tiny", str(tmp_path), str(tmp_path / FILE), Limits(loaded=0))
    seats: list[str] = []

    async def seat(name: str) -> None:
        seats.append(name)

    monkeypatch.setattr(replica, "_seat", seat)
    one = listen(replica.relay)
    client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0)
    said: Any = [{"role": "user", "content": FACT}]
    assert client.chat.completions.create(model="any", user="ada", messages=said).remanence["remembered"]  # type: ignore[attr-defined]
    asked: Any = [{"role": "user", "content": QUESTION}]
    stream = client.chat.completions.create(model="any", user="ada", messages=asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "teal"
    client.close()
    assert one.http.get("/v1/memories/eve").status_code == 404
    exported = one.http.get("/v1/memories/ada/export")
    taken = one.http.put("/v1/memories/bob/import", content=exported.content)
    assert taken.status_code == 200 and one.http.get("/v1/memories/bob/history").json()["waiting"][0]["text"] == FACT
    assert seats == ["ada", "ada", "ada", "bob", "bob"]  # not one that is not there
    replica.__del__()


def test_a_replica_sends_no_more_than_is_fetched() -> None:
    """A memory that is exported is large; and whoever fetches no more of it holds nothing up."""
    replica, sent = Replica.__new__(Replica), list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(200):
            await send({"type": "http.response.body", "body": b"piece", "more_body": number < 199})
            sent.append(number)

    async def none(memory: str) -> None:
        return None

    replica._app, replica._seat, replica._running = app, none, set()  # type: ignore[assignment]
    asked = Asked(_scope("GET", "/v1/memories/ada/export"), b"")

    async def main() -> None:
        pieces = replica.relay(asked, "ada")
        await anext(pieces)
        await asyncio.sleep(0.05)
        assert len(sent) < 20
        assert len([piece async for piece in pieces]) == 199 and len(sent) == 200
        left = replica.relay(asked, "ada")
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(asyncio.gather(*replica._running), 5)

    asyncio.run(main())


# Processes ------------------------------------------------------------------------------------------------------------


def _benchmark(out: Path, *options: str) -> dict[str, Any]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "benchmarks/scale.py", "--short", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert out.exists(), done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _is_safe(result: dict[str, Any]) -> None:
    assert result["kills"] == 1 and result["acknowledged"] > 40 and result["readings"] > 40, result
    assert not any(result[what] for what in ("lost", "stale", "damaged", "twice")), result
    assert result["longest_gap_s"] < 20, result


@pytest.mark.slow
def test_two_servers_on_one_store(tmp_path: Path) -> None:
    """One is killed in the middle: nothing acknowledged is lost, nothing stale is read, the other one goes on."""
    _is_safe(_benchmark(tmp_path / "figures.json", "--plain"))


@pytest.mark.slow
@with_ray
def test_a_replica_is_killed(tmp_path: Path) -> None:
    """The same with Ray: nobody is told that a server is gone, but who was about to write."""
    result = _benchmark(tmp_path / "figures.json")
    _is_safe(result)
    assert set(result["undone"]) <= {"503"} and not result["errors"], result


def _descendants(parent: int) -> set[int]:
    children: dict[int, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), set()).add(
                    int(entry.name)
                )
            except OSError:
                continue
    found, look = set[int](), [parent]
    while look:
        below = children.get(look.pop(), set())
        found |= below
        look += below
    return found


@pytest.mark.slow
@with_ray
def test_the_command_serves_replicas_and_leaves_nothing_running(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "REMANENCE_HOME": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "remanence",
        "serve",
        "--model",
        "tiny",
        "--ray",
        "--replica-cpus",
        "0.5",
        "--port",
        "0",
    ]
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        line = running.stderr.readline()
        assert "2 replicas on this machine" in line, line
        url = line.split(" is served at ")[1].split()[0]
        assert httpx.post(f"{url}/v1/memories/ada/write", json={"text": FACT}, timeout=60).status_code == 200
        answer = httpx.post(f"{url}/v1/memories/ada/ask", json={"question": QUESTION}, timeout=60).json()
        assert answer["answer"] == "teal"
        started = _descendants(running.pid)
        assert len(started) > 3
        running.send_signal(signal.SIGTERM)
        out, error = running.communicate(timeout=60)
        assert running.returncode == 0 and "all that was acknowledged is saved" in error and not out
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()
    until = time.monotonic() + 20
    while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def test_options_that_need_ray(tmp_path: Path) -> None:
    def refused(*options: str, code: str = "") -> str:
        command = [sys.executable, "-c", f"{code}\nfrom remanence.cli import main; main()", "serve", "--model", "tiny"]
        env = os.environ | {"REMANENCE_HOME": str(tmp_path)}
        done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and not done.stdout
        return done.stderr

    assert "--ray-address is for --ray" in refused("--ray-address", "auto")
    hidden = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'ray' else f(n, *a)"
    assert "pip install 'remanence[ray]'" in refused("--ray", code=hidden)
