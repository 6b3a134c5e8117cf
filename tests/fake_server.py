"""A small server with the routes that the page calls and no model: it answers with the write that shares most words.

It stands for `remanence serve` where a test has to make the server fail, or has to know every answer beforehand.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = Path(__file__).parents[1] / "src" / "remanence" / "serve" / "page"
LAYERS, K, N, CHUNK = 4, 4, 16, 8  # a write is up to eight words; the pool holds the vectors of four writes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def words_of(text: str) -> set[str]:
    """The words of a text, in small letters."""
    return set(re.findall(r"\w+", text.lower()))


class FakeMemory:
    """What was told, in chunks of eight words. A token is a word."""

    def __init__(self) -> None:
        self.created = self.updated = time.time()
        self.writes: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        self.forgotten: list[dict[str, Any]] = []

    def write(self, text: str, source: str, at: float | None = None) -> None:
        """Tell it something; full chunks become writes."""
        self.updated = at or time.time()
        words = text.split()
        while words:
            piece, words = words[:CHUNK], words[CHUNK:]
            told = {"source": source, "time": self.updated, "text": " ".join(piece)}
            if len(piece) < CHUNK:
                self.waiting.append(told)
            else:
                self.writes.append(told | {"tokens": len(piece)})

    def entry(self, name: str) -> dict[str, Any]:
        """As the list of memories has it."""
        pending = sum(len(told["text"].split()) for told in self.waiting)
        return {
            "name": name, "model": "fake-1", "created": self.created, "updated": self.updated, "bytes": 4096,
            "writes": len(self.writes), "tokens": sum(w["tokens"] for w in self.writes), "pending_tokens": pending,
        }  # fmt: skip

    def where(self, number: int) -> str:
        """In which place a write is."""
        return "short-term" if number >= len(self.writes) - N // K else "long-term"

    def history(self, offset: int, limit: int) -> dict[str, Any]:
        """What was told, newest first."""
        numbered = [
            w | {"write": i, "where": self.where(i), "age": len(self.writes) - 1 - i} for i, w in enumerate(self.writes)
        ]
        data = numbered[::-1][offset : offset + limit]
        return {"total": len(numbered), "data": data, "waiting": self.waiting, "forgotten": self.forgotten}

    def read(self, question: str) -> dict[str, Any]:
        """The answer to a question, and what was read for it."""
        asked = words_of(question)
        scored = sorted(((len(asked & words_of(w["text"])) - 1.5, i) for i, w in enumerate(self.writes)), reverse=True)
        best = scored[:3]
        sources = [
            {"write": i, "score": score, "layers": LAYERS - place, "label": self.writes[i]["source"],
             "time": self.writes[i]["time"], "text": self.writes[i]["text"], "where": self.where(i)}
            for place, (score, i) in enumerate(best)
        ]  # fmt: skip
        read = [[i for place, (_, i) in enumerate(best) if layer < LAYERS - place] for layer in range(LAYERS)]
        score = best[0][0] if best else 0.0
        answer = self.writes[best[0][1]]["text"] if best and score > 0 else "I don't know."
        return {"answer": answer, "recalled": True, "score": score, "sources": sources, "read": read}

    def forget(self, what: dict[str, Any]) -> dict[str, Any]:
        """Forget writes, a source or words; or only say what it would be."""

        def meant(told: dict[str, Any], number: int) -> bool:
            tests = {
                "writes": lambda v: number in v,
                "source": lambda v: told["source"] == v,
                "words": lambda v: v.lower() in told["text"].lower(),
                "since": lambda v: told["time"] >= v,
                "until": lambda v: told["time"] < v,
            }
            return all(test(what[name]) for name, test in tests.items() if name in what)

        gone = [w for i, w in enumerate(self.writes) if meant(w, i)] + [w for w in self.waiting if meant(w, -1)]
        first = next((i for i, w in enumerate(self.writes) if w in gone), len(self.writes))
        tokens = sum(len(w["text"].split()) for w in gone)
        again = sum(w["tokens"] for w in self.writes[first:] if w not in gone)
        done: dict[str, Any] = {"tokens": tokens, "written_again": again}
        if what.get("dry_run"):
            return done | {"texts": [w["text"] for w in gone]}
        self.writes = [w for w in self.writes if w not in gone]
        self.waiting = [w for w in self.waiting if w not in gone]
        if gone:
            self.forgotten.append({"time": time.time(), "tokens": tokens})
        return done


class FakeServer(ThreadingHTTPServer):
    """Serves the page and memories in RAM.

    key: what a request must carry, if anything. trouble: the status that the next chat gets, or "cut" to end its answer
    early. pause_s: between the pieces of an answer. asked: bodies of the chats so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.memories: dict[str, FakeMemory] = {}
        self.key = ""
        self.trouble: int | str | None = None
        self.pause_s = 0.0
        self.asked: list[dict[str, Any]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone; the rest as always."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": POLICY}
        for name, value in (sent | {n.replace("_", "-"): v for n, v in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), **headers)

    def _error(self, status: int, message: str, **headers: str) -> None:
        self._json({"error": {"message": message, "type": "error", "code": None}}, status, **headers)

    def _file(self, name: str) -> None:
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            self._error(404, "no such file")
        else:
            self._send(200, path.read_bytes(), TYPES.get(path.suffix, "application/json"))

    def do_GET(self) -> None:
        """Answer; the other methods too."""
        address = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if address.path == "/":
            return self._file("index.html")
        if address.path.startswith("/static/"):
            return self._file(address.path.removeprefix("/static/"))
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._error(401, "no key, or a wrong one")
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if parts == ["v1", "models"]:
            return self._json({"object": "list", "data": [{"id": "fake", "object": "model"}]})
        if parts == ["v1", "chat", "completions"]:
            return self._chat(json.loads(raw))
        if parts[:2] != ["v1", "memories"]:
            return self._error(404, "no such route")
        self._memories(parts[2:], parse_qs(address.query), raw)

    do_POST = do_PUT = do_DELETE = do_GET

    def _memories(self, parts: list[str], query: dict[str, list[str]], raw: bytes) -> None:
        memories = self.server.memories
        verb = parts[1] if len(parts) > 1 else ""
        if not parts:
            if self.command == "GET":
                return self._json({"data": [memory.entry(name) for name, memory in memories.items()]})
            parts = [json.loads(raw)["name"]]
            if parts[0] in memories:
                return self._error(409, f"there is a memory {parts[0]!r} already.")
            memories[parts[0]] = FakeMemory()
            return self._json(memories[parts[0]].entry(parts[0]))
        name = parts[0]
        if verb == "import":
            memories[name] = FakeMemory()
            memories[name].write(raw.decode(), "import")
            return self._json(memories[name].entry(name))
        if name not in memories:
            return self._error(404, f"there is no memory {name!r}.")
        memory = memories[name]
        body = json.loads(raw) if raw else {}
        if not verb and self.command == "DELETE":
            del memories[name]
            return self._json({})
        if not verb:
            pool = min(N, K * len(memory.writes))
            return self._json(memory.entry(name) | {
                "pool": {"size": pool, "N": N}, "store": {"size": K * len(memory.writes)}, "layers": LAYERS, "K": K,
                "K0": 12, "chunk_tokens": CHUNK, "window_tokens": 64,
            })  # fmt: skip
        if verb == "history":
            return self._json(memory.history(int(query["offset"][0]), int(query["limit"][0])))
        if verb == "write":
            memory.write(body["text"], body["source"])
            entry = memory.entry(name)
            told = len(body["text"].split())
            return self._json({"tokens": told, "writes": entry["writes"], "pending_tokens": entry["pending_tokens"]})
        if verb == "search":
            return self._json({"data": memory.read(body["query"])["sources"][: body["k"]]})
        if verb == "forget":
            return self._json(memory.forget(body))
        if verb == "fork":
            copy = memories[body["name"]] = FakeMemory()
            copy.writes = list(memory.writes)
            return self._json(copy.entry(body["name"]))
        if verb == "export":
            return self._send(200, b"the file of a memory", "application/octet-stream")
        self._error(404, "no such route")

    def _chat(self, body: dict[str, Any]) -> None:
        self.server.asked.append(body)
        trouble, self.server.trouble = self.server.trouble, None
        if trouble == 429:
            return self._error(429, "too many requests", Retry_After="7")
        if isinstance(trouble, int):
            return self._error(trouble, "the model is on fire")
        memory = self.server.memories[body["user"]]
        text = body["messages"][-1]["content"]
        done = memory.read(text)
        if text.startswith("Hello"):
            done |= {"answer": "Hello! How can I help?", "recalled": False, "sources": [], "read": [], "score": 0.0}
        done["remembered"] = not text.rstrip().endswith("?")
        if done["remembered"]:
            memory.write(text, "chat")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = re.findall(r"\S+\s*", done["answer"])
        for place, piece in enumerate(pieces):
            if trouble == "cut" and place == 2:
                return None
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            time.sleep(self.server.pause_s)
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self._event(last | {"remanence": {"memory": body["user"], **{k: v for k, v in done.items() if k != "answer"}}})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def running() -> Iterator[FakeServer]:
    """A server in a thread of its own."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
