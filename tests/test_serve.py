"""The server: real sockets and the real clients against the small model; whole processes among the slow tests."""

from __future__ import annotations

import gc
import http.client
import importlib
import io
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from listening import Listening, until
from remanence import MemoryModel, MemoryStore, Wanted
from remanence.core.admission import DEFER, Candidate, Decision
from remanence.core.model import Answer
from remanence.core.writes import Limits as MemoryLimits
from remanence.errors import ConfigError, InputError, MemoryBusy, UnknownMemory
from remanence.serve import engine as engine_module
from remanence.serve import talk
from remanence.serve.api import create_app
from remanence.serve.bodies import Message, conversation
from remanence.serve.engine import Asked, Engine, Full, Stopping, TimeUp
from remanence.serve.keys import FILE, Keys
from remanence.serve.limits import Limits, Rates
from remanence.serve.people import People
from remanence.serve.talk import Recalled, Turn, _shown
from test_search import model_of

FACT = "Marla Quist's favourite colour is teal."
QUESTION = "What is Marla Quist's favourite colour?"
COLOURS = ("teal", "navy", "scarlet", "olive", "lilac", "silver", "maroon", "beige")
FILLER = "The tide went out and the boats lay on the sand until the evening came. " * 6


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return MemoryModel.from_pretrained("tiny")


def _client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


class Server(Listening):
    """A server on a real port. Tests have `serve(**limits)` of conftest.py, which makes one."""

    def __init__(self, model: MemoryModel, root: Path, **limits: Any) -> None:
        self.store, self.keys = MemoryStore(root), Keys(root / FILE)
        bounds = Limits(**({"rate": 0.0} | limits))
        self.engine = Engine(model, together=bounds.together, places=bounds.places, seconds=bounds.seconds)
        self.people = People(model, self.store, most=bounds.loaded, most_bytes=bounds.loaded_bytes, patience_s=5)
        self._clients: list[Any] = []
        super().__init__(create_app(self.people, self.engine, self.keys, bounds))

    def http(self, key: str = "") -> httpx.Client:
        """A plain client."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self._closed_later(httpx.Client(base_url=self.url, headers=headers, timeout=60))

    def openai(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's client."""
        return self._closed_later(_client(self.url, key))

    def _closed_later(self, client: Any) -> Any:
        self._clients.append(client)
        return client

    def close(self) -> None:
        """End it."""
        for client in self._clients:
            client.close()
        super().close()


def say(client: openai.OpenAI, user: str, *texts: str, **options: Any) -> Any:
    """A chat completion. Texts are the conversation, the user's first, one after the other."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return client.chat.completions.create(model="any", user=user, messages=messages, **options)  # type: ignore[call-overload]


def texts_of(store: MemoryStore, name: str) -> str:
    """All that a memory on the disk was told."""
    memory = store.load(name)
    tokenizer = MemoryModel.from_pretrained("tiny").tokenizer
    return "".join(w.text or "" for w in memory.writes) + tokenizer.decode(memory.pending_ids)


# OpenAI's clients -----------------------------------------------------------------------------------------------------


def test_the_official_client_talks_and_is_remembered(serve: Callable[..., Server]) -> None:
    server = serve()
    client = server.openai()
    told = say(client, "ada", FACT)
    assert told.object == "chat.completion" and told.choices[0].finish_reason == "stop"
    assert told.remanence["remembered"] and FACT in texts_of(server.store, "ada")  # on the disk before it was answered
    before = server.store.info("ada").updated
    asked = say(client, "ada", QUESTION)
    assert asked.choices[0].message.content == "teal"
    assert asked.usage.completion_tokens > 0 and asked.usage.total_tokens > asked.usage.completion_tokens
    assert not asked.remanence["remembered"] and server.store.info("ada").updated == before
    assert asked.remanence["memory"] == "ada" and asked.remanence["sources"][0]["where"] == "window"
    server.people.write("ada", FILLER)
    assert say(client, "ada", QUESTION).remanence["sources"][0]["text"].startswith(FACT)
    assert [one.id for one in client.models.list()] == ["builtin"]
    assert client.models.retrieve("builtin").id == "builtin"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_the_official_client_streams(serve: Callable[..., Server]) -> None:
    server = serve()
    client = server.openai()
    first, *_, last = list(say(client, "ada", FACT, stream=True))
    assert first.choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason == "stop" and last.remanence["remembered"]
    assert FACT in texts_of(server.store, "ada")
    chunks = list(say(client, "ada", QUESTION, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "teal" and sum(map(bool, pieces)) > 1
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens > 1
    assert chunks[-1].remanence == chunks[-2].remanence and not chunks[-1].remanence["remembered"]
    assert len({chunk.id for chunk in chunks}) == 1
    lines = server.http().post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": QUESTION}], "user": "ada", "stream": True},
    )
    assert lines.headers["content-type"].startswith("text/event-stream")
    assert lines.text.endswith("data: [DONE]\n\n")


def test_the_newer_interface(serve: Callable[..., Server]) -> None:
    server = serve()
    client = server.openai()
    told = client.responses.create(model="any", input=FACT, user="ada", instructions="Be brief.")
    assert told.status == "completed" and FACT in texts_of(server.store, "ada")
    assert client.responses.create(model="any", input=QUESTION, user="ada").output_text == "teal"
    with client.responses.stream(model="any", input=QUESTION, user="ada") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "teal"
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    cut = client.responses.create(model="any", input=QUESTION, user="ada", max_output_tokens=1, metadata={"a": "b"})
    assert cut.metadata == {"a": "b"} and cut.output_text == "te"
    assert cut.status == cut.output[0].status == "incomplete"  # type: ignore[union-attr]
    with client.responses.stream(model="any", input=QUESTION, user="ada", max_output_tokens=1) as stream:
        [done] = [event for event in stream if event.type == "response.output_item.done"]
        assert done.item.status == "incomplete"  # type: ignore[union-attr]
    for name, value in (("conversation", "conv_1"), ("background", True), ("prompt", {"id": "p"})):
        with pytest.raises(openai.BadRequestError, match=name):
            client.responses.create(model="any", input=QUESTION, user="ada", extra_body={name: value})
    parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    assert client.responses.create(model="any", input=parts, user="ada").output_text == "teal"  # type: ignore[arg-type]


def test_langchain_talks_too(serve: Callable[..., Server]) -> None:
    langchain = pytest.importorskip("langchain_openai")
    server = serve()
    chat = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="any", max_retries=0, model_kwargs={"user": "ada"}
    )
    chat.invoke(FACT)
    assert FACT in texts_of(server.store, "ada")
    assert chat.invoke([("system", "Be brief."), ("human", QUESTION)]).content == "teal"
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == "teal"


def test_only_the_last_turn_is_new(serve: Callable[..., Server]) -> None:
    """Clients send the whole conversation every time."""
    server = serve()
    say(server.openai(), "ada", "My dog is called Rex.", "Noted.", FACT)
    assert "Rex" not in texts_of(server.store, "ada")
    say(server.openai(), "ada", "My dog is called Rex.", "Noted.", FACT, "Noted.", "I have a bike.")
    assert texts_of(server.store, "ada").count("teal") == 1


def test_what_a_conversation_is() -> None:
    def of(*messages: tuple[str, Any]) -> tuple[str, list[tuple[str, str]], str]:
        return conversation([Message(role=role, content=content) for role, content in messages])  # type: ignore[arg-type]

    assert of(("user", "a")) == ("", [], "a")
    assert of(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")) == (
        "s",
        [("a", "b")],
        "c",
    )
    assert of(("assistant", "hello"), ("user", "a"), ("user", "c")) == ("", [("a", "")], "c")
    assert of(("user", [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}])) == ("", [], "x\ny")
    assert of(("user", [{"type": "text", "text": "x"}, {"type": "text", "text": ""}])) == ("", [], "x")
    long = [("system", "s"), *[(r, f"{r}{i}") for i in range(20) for r in ("user", "assistant")], ("user", "end")]
    system, turns, said = of(*long)
    assert (system, said, turns[-1]) == ("s", "end", ("user19", "assistant19"))
    for wrong in ([("user", "a"), ("assistant", "b")], [("user", " ")], [("user", None)]):
        with pytest.raises(InputError):
            of(*wrong)


def test_what_of_a_conversation_is_shown() -> None:
    """The last turns, and in front of them what the system said, which is left out last."""
    turns = [(f"user {i}", f"assistant {i}") for i in range(20)]
    assert _shown("", turns, 10_000) == (turns[-8:], 0)
    assert _shown("Be brief.", turns, 10_000) == ([("Be brief.", "All right."), *turns[-7:]], 1)
    assert _shown("Be brief.", turns, 50) == ([("Be brief.", "All right."), turns[-1]], 1)
    assert _shown("Be brief. " * 100, turns, 50) == (turns[-2:], 0)
    assert _shown("", [], 50) == ([], 0)


def test_the_base_is_not_shown_what_a_memory_answered(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the turns that a client sends again; somebody else's same words are, and so is what nobody answered here."""
    server, given = serve(), list[dict[str, Any]]()
    add = server.engine._batch.add
    monkeypatch.setattr(server.engine._batch, "add", lambda *a, **k: (given.append(k), add(*a, **k))[1])
    client = server.openai()
    say(client, "ada", FACT)
    colour = say(client, "ada", QUESTION).choices[0].message.content
    before = [("Hi!", "Hello."), (QUESTION, colour), (QUESTION, "blue")]
    for user in ("ada", "bob"):
        say(client, user, *(text for turn in before for text in turn), QUESTION)
    assert [one["history"] for one in given[-2:]] == [[before[0], before[2]], before]


def test_what_memories_answered_is_known_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many turns, by person, white space around them apart; by nobody who reads it."""
    monkeypatch.setattr(talk, "_RECALLED", 2)
    recalled, turns = Recalled(), [(f"Who is {i}?", f"Ada {i}") for i in range(3)]
    for said, answer in turns:
        recalled.add("ada", said, answer)
    assert recalled.others("ada", turns) == turns[:1] and recalled.others("bob", turns) == turns
    assert recalled.others("ada", [("Who is 2? ", "Ada 2\n")]) == []
    assert b"Ada" not in b"".join(recalled._turns) and Recalled()._mark("a") != recalled._mark("a")


def test_the_system_is_heard_in_a_long_conversation(
    serve: Callable[..., Server], model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, given = serve(), list[dict[str, Any]]()
    add = server.engine._batch.add
    monkeypatch.setattr(server.engine._batch, "add", lambda *a, **k: (given.append(k), add(*a, **k))[1])
    messages = [{"role": "system", "content": "Answer in French."}]
    for number in range(9):
        messages += [{"role": "user", "content": f"Number {number}."}, {"role": "assistant", "content": "Noted."}]
    chat = {"user": "ada", "messages": [*messages, {"role": "user", "content": QUESTION}]}
    assert server.http().post("/v1/chat/completions", json=chat).status_code == 200
    assert given[0]["keep"] == 1 and given[0]["history"][0] == ("Answer in French.", "All right.")
    assert given[0]["history"][-1] == ("Number 8.", "Noted.")


def test_stops_and_most_tokens(serve: Callable[..., Server]) -> None:
    server = serve()
    client = server.openai()
    say(client, "ada", FACT)
    assert say(client, "ada", QUESTION, stop=["al"]).choices[0].message.content == "te"
    assert say(client, "ada", QUESTION, stop="teal").choices[0].message.content == ""
    assert say(client, "ada", QUESTION, stop=["x", "tealx"]).choices[0].message.content == "teal"
    short = say(client, "ada", QUESTION, max_tokens=1).choices[0]
    assert short.finish_reason == "length" and short.message.content == "te"
    assert say(client, "ada", QUESTION, max_completion_tokens=100_000).choices[0].message.content == "teal"


def test_a_stop_ends_the_answer(serve: Callable[..., Server], model: MemoryModel) -> None:
    """Nobody waits for what is not shown."""
    server = serve(seconds=5)
    slow = server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]
    for stream in (False, True):
        said = say(server.openai(), "ada", QUESTION, stop=["aaa"], stream=stream)
        chunks = [chunk.choices[0] for chunk in said] if stream else []
        text = "".join(chunk.delta.content or "" for chunk in chunks) if stream else said.choices[0].message.content
        assert text == "" and (chunks or said.choices)[-1].finish_reason == "stop"
    assert slow.steps < 30 and server.engine.answering == 0


def test_a_turn_that_is_too_long(serve: Callable[..., Server]) -> None:
    """A question is refused; a statement is remembered without an answer, as in `remanence chat`."""
    server = serve()
    with pytest.raises(openai.BadRequestError, match="window"):
        say(server.openai(), "ada", "why " * 400 + "?")
    told = say(server.openai(), "ada", FILLER * 4)
    assert told.choices[0].message.content == "" and told.remanence["remembered"]
    assert server.store.info("ada").tokens > 300


def test_what_a_policy_holds_back_is_not_acknowledged_as_remembered(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.people.writing("ada") as memory:
        memory.policy = "a-mac"
    thanks = "Thanks a lot, good night!"
    for stream in (False, True):
        said = say(server.openai(), "ada", thanks, stream=stream)
        told = (list(said)[-1] if stream else said).remanence
        assert not told["remembered"] and told["held_back"][0]["reason"] == "not worth remembering (small talk)"
    http = server.http()
    done = http.post("/v1/memories/ada/write", json={"text": thanks}).json()
    assert done["tokens"] == 0 and thanks not in json.dumps(done)
    held = server.store.load("ada").quarantine
    assert [one["number"] for one in done["held_back"]] == [held[-1].number] and held[-1].text == thanks
    assert "remanence_writes_total 0.0" in http.get("/metrics").text
    assert say(server.openai(), "ada", FACT).remanence["held_back"] == []
    assert http.post("/v1/memories/ada/write", json={"text": "I have two bikes in Rome."}).json()["held_back"] == []


def test_forgetting_is_not_done_by_talking(serve: Callable[..., Server]) -> None:
    server = serve()
    said = say(server.openai(), "ada", "Please forget my sister.")
    assert "Nothing was forgotten" in said.choices[0].message.content and not server.store.exists("ada")


# Memories -------------------------------------------------------------------------------------------------------------


def test_the_routes_of_memories(serve: Callable[..., Server]) -> None:
    server = serve()
    http = server.http()
    assert http.post("/v1/memories", json={"name": "ada"}).json()["writes"] == 0
    taken = http.post("/v1/memories", json={"name": "ada"})
    assert (
        taken.status_code == 409 and taken.headers["x-should-retry"] == "false" and "retry-after" not in taken.headers
    )
    done = http.post("/v1/memories/ada/write", json={"text": FACT + " " + FILLER, "source": "notes", "time": 5.0})
    assert done.json()["writes"] == server.store.info("ada").writes > 0
    answer = http.post("/v1/memories/ada/ask", json={"question": QUESTION}).json()
    assert answer["answer"] == "teal" and answer["sources"][0]["label"] == "notes" and 0 in answer["read"][0]
    found = http.post("/v1/memories/ada/search", json={"query": QUESTION, "k": 1}).json()["data"]
    assert FACT in found[0]["text"] and found[0]["where"] in ("short-term", "long-term")
    assert [(one["where"], one["write"], one["score"]) for one in found[1:]] == [("window", -1, 0.0)]
    told = http.get("/v1/memories/ada/history", params={"limit": 1}).json()
    assert told["total"] == done.json()["writes"] and len(told["data"]) == 1 and told["waiting"]
    newest = told["data"][0]
    assert (newest["write"], newest["age"], newest["time"]) == (told["total"] - 1, 0, 5.0)
    oldest = http.get("/v1/memories/ada/history", params={"offset": told["total"] - 1}).json()["data"][0]
    assert (oldest["write"], oldest["age"]) == (0, told["total"] - 1)
    shown = http.get("/v1/memories/ada").json()
    assert shown["pool"]["size"] <= shown["pool"]["N"] and shown["K"] == 32 and shown["name"] == "ada"

    assert http.post("/v1/memories/ada/fork", json={"name": "bob"}).json()["tokens"] == shown["tokens"]
    assert http.post("/v1/memories/ada/fork", json={"name": "bob"}).status_code == 409
    file = http.get("/v1/memories/ada/export").content
    assert http.put("/v1/memories/carl/import", content=file).json()["tokens"] == shown["tokens"]
    with (
        zipfile.ZipFile(io.BytesIO(file)) as archive,
        zipfile.ZipFile(bomb := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z,
    ):
        z.comment = archive.comment
        for part in archive.namelist():
            z.writestr(part, archive.read(part))
    for content in (file[:-50], b"nonsense", b"", bomb.getvalue()):  # nothing of ours is compressed, to be large in RAM
        refused = http.put("/v1/memories/dora/import", content=content)
        assert refused.status_code == 400 and "remanence-" not in refused.text
    assert not server.store.exists("dora")

    dry = http.post("/v1/memories/ada/forget", json={"words": "teal", "dry_run": True}).json()
    assert dry["texts"] == [FACT] and dry["written_again"] > 0
    assert "teal" in texts_of(server.store, "ada")
    gone = http.post("/v1/memories/ada/forget", json={"words": "teal"}).json()
    assert gone == {"tokens": dry["tokens"], "written_again": dry["written_again"]}
    assert "teal" not in texts_of(server.store, "ada") and "teal" in texts_of(server.store, "bob")
    assert http.get("/v1/memories/ada/history").json()["forgotten"][0]["tokens"] == gone["tokens"]
    assert http.post("/v1/memories/ada/ask", json={"question": QUESTION}).json()["answer"] != "teal"
    assert http.post("/v1/memories/carl/ask", json={"question": QUESTION}).json()["answer"] == "teal"

    assert http.delete("/v1/memories/ada").status_code == 200
    assert http.delete("/v1/memories/ada").status_code == 404 and not server.store.exists("ada")
    assert [one["name"] for one in http.get("/v1/memories").json()["data"]] == ["bob", "carl"]


def test_exports_imports_and_forks_are_bounded(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a place, RAM and a part of the disk."""
    monkeypatch.setattr("remanence.serve.api._UPLOADS", 1)
    server = serve(places=2)
    server.people.write("ada", FACT)
    client = server.http()

    def upload(name: str) -> http.client.HTTPConnection:
        """The beginning of an import, of which nothing more comes."""
        connection = http_client(server)
        connection.putrequest("PUT", f"/v1/memories/{name}/import")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        return connection

    taken = upload("ada")
    assert taken.getresponse().status == 409  # before it is read
    uploads = [taken, upload("bob")]

    def refused() -> bool:
        """Whether a second one is. It may have come before the first, which was refused then, and is begun anew."""
        if client.put("/v1/memories/carl/import", content=b"x").status_code == 429:
            return True
        if select.select([uploads[-1].sock], [], [], 0)[0]:
            uploads.append(upload("bob"))
        return False

    until(refused)
    for connection in uploads:
        connection.close()
    with ThreadPoolExecutor(2) as pool, server.people._copying:  # somebody else's
        copies = [
            pool.submit(server.http().get, "/v1/memories/ada/export"),
            pool.submit(server.http().post, "/v1/memories/ada/fork", json={"name": "dora"}),
        ]  # fmt: skip
        until(lambda: server.engine.taken == 2)
        for path in ("/v1/memories/ada/export", "/v1/memories/ada/history"):
            assert client.get(path).status_code == 429
        assert not any(copy.done() for copy in copies)
        server.people._copying.release()
        assert [copy.result().status_code for copy in copies] == [200, 200]
        server.people._copying.acquire()


def test_what_another_process_saves_is_seen(serve: Callable[..., Server], model: MemoryModel) -> None:
    server = serve()
    say(server.openai(), "ada", "I have a bike.")
    with MemoryStore(server.store.root).open("ada", MemoryModel.from_pretrained("tiny")) as memory:
        MemoryModel.from_pretrained("tiny").memorize(memory, FACT)
    assert say(server.openai(), "ada", QUESTION).choices[0].message.content == "teal"
    with MemoryStore(server.store.root).open("ada"), pytest.raises(openai.ConflictError, match="open for writing"):
        say(server.openai(), "ada", "My dog is called Rex.")
    assert "Rex" not in texts_of(server.store, "ada")


def test_a_search_finds_what_waits(serve: Callable[..., Server]) -> None:
    """Whoever told something a moment ago is not to hear that there is nothing."""
    server = serve()
    server.people.write("ada", FACT, source="a letter", time=5.0)
    found = server.http().post("/v1/memories/ada/search", json={"query": QUESTION}).json()["data"]
    waits = {"write": -1, "score": 0.0, "label": "a letter", "time": 5.0, "text": FACT, "where": "window"}
    assert found == [waits]


def test_a_search_finds_nothing_that_has_expired(tokenizer: Any, tmp_path: Path) -> None:
    """With one search for all layers, too, where it is the server that ranks."""
    model = model_of(tokenizer)
    people = People(model, MemoryStore(tmp_path))
    with people.writing("ada") as memory:
        model.memorize(memory, "first " * 30, source="old", time=1.0, keep_for=5.0)
        model.memorize(memory, "second " * 30, source="new")
    assert people.search("ada", "second", 50) and "old" not in {s.label for s in people.search("ada", "first", 50)}
    with people.writing("ada") as memory:
        model.forget(memory, Wanted(source="new"))
    assert people.search("ada", "first", 50) == []


# Many people ----------------------------------------------------------------------------------------------------------


def test_many_at_once_and_no_memory_reaches_another(serve: Callable[..., Server], model: MemoryModel) -> None:
    """Everyone's colour is another; all ask at the same time, in one forward pass."""
    server = serve(together=8, loaded=3)
    most, add = 0, server.engine._batch.add

    def watched(*a: Any, **k: Any) -> int:
        nonlocal most
        ticket = add(*a, **k)
        most = max(most, len(server.engine._batch))
        return ticket

    server.engine._batch.add = watched  # type: ignore[method-assign]
    people = {f"p{i}": colour for i, colour in enumerate(COLOURS)}

    def talk(name: str) -> list[str]:
        client = server.openai()
        say(client, name, f"Marla Quist's favourite colour is {people[name]}. {FILLER}")
        return [say(client, name, QUESTION).choices[0].message.content for _ in range(3)]

    with ThreadPoolExecutor(len(people)) as pool:
        answers = dict(zip(people, pool.map(talk, people), strict=True))
    alone = {name: model.ask(server.store.load(name), QUESTION).text for name in people}
    assert answers == {name: [text] * 3 for name, text in alone.items()}
    assert sum(alone[name] == colour for name, colour in people.items()) >= 6, alone
    assert most > 2, "they were answered one by one"
    assert server.people.usage()[0] <= 3 and server.people.evicted > 0
    for name, colour in people.items():
        text = texts_of(server.store, name)
        assert [other for other in COLOURS if other in text] == [colour]


def test_several_clients_of_one_person(serve: Callable[..., Server]) -> None:
    """What all of them say is there in the end, none of it twice."""
    server = serve()
    words = [f"Number {i} is my lucky number." for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda text: say(server.openai(), "ada", text), words))
    text = texts_of(server.store, "ada")
    assert all(text.count(word) == 1 for word in words)


def test_who_goes_away_is_not_waited_for(serve: Callable[..., Server], model: MemoryModel) -> None:
    server = serve(together=1)
    say(server.openai(), "ada", FACT)
    slow = _SlowBatch(model)
    server.engine._batch = slow  # type: ignore[assignment]
    stream = say(server.openai(), "ada", QUESTION, stream=True)
    next(iter(stream))
    assert server.engine.taken == 1
    stream.close()
    until(lambda: server.engine.taken == 0 and slow.cancelled == 1)
    server.people.write("ada", "I have a bike.")  # nobody reads it any more


def test_a_memory_is_let_go_whatever_happens_to_its_answer(
    serve: Callable[..., Server], model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody could write to it before the server is started again."""
    server = serve()
    server.people.write("ada", FACT)
    server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]

    class Ends(dict[int, Asked]):
        """An answer that ends, in another thread, in the moment after it was looked for."""

        def get(self, ticket: int, default: Any = None) -> Any:
            return self.pop(ticket, default)

    def cancel(asked: Asked) -> None:
        engine_cancel(asked)
        raise RuntimeError("a fault")

    engine_cancel = server.engine.cancel
    monkeypatch.setattr(server.engine, "cancel", cancel)
    stream = say(server.openai(), "ada", QUESTION, stream=True)
    next(iter(stream))
    came = list[Any]()
    late = Asked(server.people.model.new_memory(), QUESTION, (), 0, 32, came.append, time.monotonic() + 9, ticket=7)
    answering, server.engine._answering = server.engine._answering, Ends({7: late})
    server.engine._batch.tickets.append(7)  # type: ignore[attr-defined]
    engine_cancel(late)  # was a KeyError
    server.engine._answering = answering
    stream.close()
    until(lambda: server.engine.taken == 0)
    server.people.write("ada", "I have a bike.")


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_before_the_first_piece_leaves_no_place_taken(
    serve: Callable[..., Server], model: MemoryModel, stream: bool
) -> None:
    """Also where the answer is not streamed: clients that give up and try again would fill the server."""
    server = serve(together=1, places=3)
    say(server.openai(), "ada", FACT)
    slow = server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]
    with pytest.raises(openai.APITimeoutError):
        say(server.openai(), "ada", QUESTION, timeout=0.3)  # it is being answered
    until(lambda: server.engine.taken == 0 and slow.cancelled == 1)
    first = say(server.openai(), "ada", QUESTION, stream=True)
    with pytest.raises(openai.APITimeoutError):
        say(server.openai(), "ada", QUESTION, stream=stream, timeout=0.3)  # it waits to be
    until(lambda: server.engine.taken == 1 and server.engine.waiting == 0)
    first.close()
    until(lambda: server.engine.taken == 0)
    server.people.write("ada", "I have a bike.")  # nobody reads it any more


def test_who_goes_away_while_a_memory_is_loaded_lets_it_go(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free when the thread that loads has ended."""
    server = serve(places=2)
    server.people.write("ada", FACT)
    hold, loads = server.people.hold, threading.Event()

    def slowly(name: str, **options: Any) -> Any:
        loads.wait(10)
        return hold(name, **options)

    monkeypatch.setattr(server.people, "hold", slowly)
    for stream in (False, True):
        with pytest.raises(openai.APITimeoutError):
            say(server.openai(), "ada", QUESTION, stream=stream, timeout=0.3)
    with pytest.raises(openai.RateLimitError):  # the threads that wait are bounded
        say(server.openai(), "ada", QUESTION)
    loads.set()
    until(lambda: server.engine.taken == 0)
    server.people.write("ada", "I have a bike.")


def test_who_waits_for_a_memory_holds_up_nobody_else(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask for one that is being written to, others are served."""
    monkeypatch.setattr("remanence.serve.people._MOST_WAITING", 2)
    server = serve(places=4)  # and 8 threads more
    for name in ("ada", "bob"):
        server.people.write(name, FACT)
    with ThreadPoolExecutor(20) as pool:
        with server.people.writing("ada"):
            asked = [pool.submit(server.http().get, "/v1/memories/ada/history") for _ in range(20)]
            until(lambda: server.engine.taken == 2 and sum(each.done() for each in asked) == 18)
            assert {each.result().status_code for each in asked if each.done()} <= {409, 429}
            assert server.http().get("/v1/memories/bob/history", timeout=3).status_code == 200
            assert say(server.openai(), "bob", QUESTION, timeout=3).choices[0].message.content == "teal"
            busy = server.http().post("/v1/memories/ada/write", json={"text": FACT})
            assert busy.status_code == 409 and "many wait" in _error(busy)["message"]
        assert [each.result().status_code for each in asked].count(200) == 2


class _SlowBatch:
    """Answers with a letter every 20 ms, until it is told that it is enough. It stands for a large model."""

    def __init__(self, model: MemoryModel) -> None:
        self.tickets: list[int] = []
        self.next = self.cancelled = self.steps = 0
        self.enough = set[int]()

    def __len__(self) -> int:
        return len(self.tickets)

    def add(self, *_: Any, **__: Any) -> int:
        """Take it."""
        self.next += 1
        self.tickets.append(self.next)
        return self.next

    def finish(self, ticket: int) -> None:
        """The next letter is the last."""
        self.enough.add(ticket)

    def cancel(self, ticket: int) -> None:
        """Drop it."""
        self.cancelled += 1
        self.tickets.remove(ticket)

    def step(self) -> list[Any]:
        """A letter for everyone."""
        from remanence.core.batching import Event

        time.sleep(0.02)
        self.steps += 1
        done = {ticket: Answer("a", [], 0.0, [65], []) for ticket in self.enough}
        self.tickets = [ticket for ticket in self.tickets if ticket not in done]
        self.enough.clear()
        return [Event(ticket, "a") for ticket in self.tickets] + [Event(t, "a", done[t]) for t in done]


# Refusals -------------------------------------------------------------------------------------------------------------


def _error(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which has the shape of OpenAI's."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"] and "Traceback" not in response.text
    return body["error"]


_USER = {"role": "user", "content": "Hi."}
_WRONG_CHATS: list[Any] = [
    {}, [], "text", None, {"messages": []}, {"messages": "no"}, {"messages": [_USER]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "tool", "content": "x"}], "user": "ada"},
    {"messages": [{"role": "assistant", "content": "x"}], "user": "ada"},
    {"messages": [_USER], "user": ""}, {"messages": [_USER], "user": 3}, {"messages": [_USER], "user": "no/name"},
    {"messages": [_USER], "user": "ada", "n": 2}, {"messages": [_USER], "user": "ada", "tools": [{"type": "function"}]},
    {"messages": [_USER], "user": "ada", "max_tokens": 0}, {"messages": [_USER], "user": "ada", "max_tokens": "many"},
    {"messages": [_USER], "user": "ada", "response_format": {"type": "json_object"}},
    {"messages": [_USER], "user": "ada", "response_format": 5}, {"messages": [_USER], "user": "ada", "text": [1]},
    {"messages": [_USER], "user": "ada", "stop": ["a"] * 5}, {"messages": [_USER], "user": "ada", "stop": ""},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "user": "ada"},
    {"messages": [{"role": "user", "content": {"a": 1}}], "user": "ada"},
    {"messages": [{"role": "user", "content": " \n"}], "user": "ada"},
]  # fmt: skip


def test_wrong_bodies_are_refused_as_openai_does(serve: Callable[..., Server]) -> None:
    server = serve()
    http = server.http()
    for body in _WRONG_CHATS:
        for path in ("/v1/chat/completions", "/v1/responses"):
            response = http.post(path, json=body)
            assert response.status_code in (400, 404), (body, response.text)
            _error(response)
    raw = {"content-type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"text": "\\ud800"}', b"NaN", b'{"text": NaN}', b"1" * 5000):
        for path in ("/v1/chat/completions", "/v1/memories/ada/write", "/v1/memories"):
            assert _error(http.post(path, content=content, headers=raw)), content
    http.post("/v1/memories", json={"name": "ada"})
    wrong = {
        "write": [{"text": ""}, {"text": " "}, {"text": "x", "time": -1}, {"text": "x", "time": 1e300}, {"more": 1}],
        "ask": [{"question": ""}, {"question": " "}, {"question": "x", "max_tokens": 0}, {"question": "why " * 900}],
        "search": [{"query": ""}, {"query": "x", "k": 0}, {"query": "x", "k": 10**9}],
        "forget": [{}, {"words": ""}, {"writes": []}, {"writes": [-1]}, {"since": "yesterday"}, {"dry_run": True}],
        "fork": [{}, {"name": ""}, {"name": "ada"}, {"name": "../x"}],
    }
    for verb, bodies in wrong.items():
        for body in bodies:
            response = http.post(f"/v1/memories/ada/{verb}", json=body)
            assert 400 <= response.status_code < 500, (verb, body, response.text)
            _error(response)
    for path in ("history?limit=0", "history?offset=-1", "history?offset=x", "history?limit=100000"):
        assert http.get(f"/v1/memories/ada/{path}").status_code == 400
    for method, path, status in (
        ("GET", "/nowhere", 404), ("PATCH", "/v1/models", 405), ("GET", "/v1/memories/.hidden", 404),
        ("DELETE", "/v1/memories/%00", 404), ("POST", "/v1/memories/no/ask", 400), ("GET", "/v1/memories/a%2Fb", 404),
    ):  # fmt: skip
        response = http.request(method, path)
        assert response.status_code == status, response.text
        _error(response)
    assert server.store.info("ada").tokens == server.store.info("ada").pending_tokens == 0


def test_what_is_wrong_is_said_in_plain_words(serve: Callable[..., Server]) -> None:
    """Nothing of how it is checked; and where a field may be a text or a list, what is wrong with the one it is."""
    http = serve().http()
    for path, body, param, message in (
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{}]}]},
            "messages.0.content.0.type",
            "required",
        ),
        ("chat/completions", {"messages": [_USER], "stop": ["a"] * 5}, "stop", "at most 4"),
        ("responses", {"input": [_USER, {"type": "reasoning", "id": "rs_1"}]}, "input.1.role", "required"),
        ("memories/ada/history?limit=0", None, "limit", "greater"),
    ):
        error = _error(http.post(f"/v1/{path}", json=body) if body else http.get(f"/v1/{path}"))
        assert error["param"] == param and message in error["message"], error


def test_a_name_that_cannot_be_is_told_so(serve: Callable[..., Server]) -> None:
    """Not that there is no such memory: it would be begun. That depends on the name alone, not on the key."""
    server = serve()
    chat = {"messages": [_USER]}
    for keyed in (False, True):
        http = server.http(server.keys.add(["ada"]) if keyed else "")
        for name in ("auth0|123", "ada+x@example.com", ".ada", "a" * 101):
            for path, body in (
                ("/v1/chat/completions", chat | {"user": name}), ("/v1/responses", {"input": "Hi.", "user": name}),
                ("/v1/memories", {"name": name}), (f"/v1/memories/{name}/write", {"text": FACT}),
            ):  # fmt: skip
                refused = http.post(path, json=body)
                assert refused.status_code == 400 and "a-z and A-Z" in _error(refused)["message"], (path, name)
            assert http.put(f"/v1/memories/{name}/import", content=b"").status_code == 400
            assert http.get(f"/v1/memories/{name}").status_code == 404


def test_half_a_character_is_no_text(serve: Callable[..., Server]) -> None:
    """JSON can spell a lone surrogate, which no tokenizer takes and no response can repeat."""
    server = serve(seconds=5)
    http, half = server.http(), "\\ud800"
    bodies = {
        "/v1/chat/completions": [
            '{"user": "ada", "messages": [{"role": "user", "content": "HALF?"}]}',
            '{"user": "ada", "messages": [{"role": "user", "content": [{"type": "HALF"}]}]}',
            '{"user": "ada", "messages": [{"role": "user", "content": [{"type": "text", "text": "HALF"}]}]}',
            '{"user": "ada", "stop": ["HALF"], "messages": [{"role": "user", "content": "x?"}]}',
            '{"user": "HALF", "messages": [{"role": "user", "content": "x?"}]}',
        ],
        "/v1/responses": ['{"user": "ada", "input": "HALF?"}', '{"user": "a", "input": "x?", "instructions": "HALF"}'],
        "/v1/memories": ['{"name": "HALF"}', '{"name": "ada", "HALF": 1}'],
        "/v1/memories/bob/forget": ['{"words": "HALF"}', '{"source": "HALF"}'],
        "/v1/memories/bob/write": ['{"text": "HALF"}', '{"text": "x", "source": "HALF"}'],
    }
    server.people.write("bob", FACT)
    for path, each in bodies.items():
        for body in each:
            content = body.replace("HALF", half).encode()
            response = http.post(path, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 400, (path, body, response.text)
            _error(response)
    assert not server.store.exists("ada") and server.engine.taken == 0


def test_a_megabyte_is_not_encoded_to_learn_that_it_does_not_fit(
    serve: Callable[..., Server], model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's thread does it, and everyone would wait."""
    server = serve()
    server.people.write("ada", FACT)
    letters, encode = list[int](), model.prompts.encode
    monkeypatch.setattr(model.prompts, "encode", lambda text: (letters.append(len(text)), encode(text))[1])
    long = "why is that " * 20_000
    with pytest.raises(openai.BadRequestError, match="window"):
        say(server.openai(), "ada", long + "?")
    assert server.http().post("/v1/memories/ada/ask", json={"question": long}).status_code == 400
    assert server.http().post("/v1/memories/ada/search", json={"query": long}).status_code in (200, 400)
    assert max(letters) <= 10_000


def test_bodies_are_bounded(serve: Callable[..., Server]) -> None:
    server = serve(body_bytes=2000, file_bytes=3000, body_seconds=0.3)
    http = server.http()
    assert _error(http.post("/v1/memories/ada/write", json={"text": "x" * 3000}))["code"] == "too_large"
    parts = (b"x" * 1000 for _ in range(5))  # without a length
    response = http.post("/v1/memories/ada/write", content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413 and _error(response)
    assert http.put("/v1/memories/ada/import", content=b"x" * 4000).status_code == 413
    connection = http_client(server)
    connection.putrequest("POST", "/v1/memories/ada/write")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "500")
    connection.endheaders()
    connection.send(b'{"text": ')
    assert connection.getresponse().status == 408
    connection.close()
    assert not server.store.exists("ada")


def http_client(server: Server) -> http.client.HTTPConnection:
    """A connection that sends what it is told to."""
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)


def test_rates_are_bounded(serve: Callable[..., Server]) -> None:
    server = serve(rate=12.0)  # two at once, then one every five seconds
    ada, bob = (server.http(server.keys.add([name])) for name in ("ada", "bob"))
    assert [ada.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
    refused = ada.get("/v1/models")
    assert 1 <= int(refused.headers["retry-after"]) <= 5 and _error(refused)["code"] == "rate_limit_exceeded"
    assert bob.get("/v1/models").status_code == 200  # others are not held up
    assert ada.get("/healthz").status_code == 200


def test_a_rate_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("remanence.serve.limits.time.monotonic", lambda: now)
    rates = Rates(60.0)
    assert [rates.wait("a") for _ in range(11)] == [0] * 10 + [1]
    now += 1.0
    assert (rates.wait("a"), rates.wait("a")) == (0, 1)
    now += 1000.0
    assert [rates.wait("a") for _ in range(11)] == [0] * 10 + [1]


def test_who_finds_no_place_is_told_to_come_again(serve: Callable[..., Server], model: MemoryModel) -> None:
    server = serve(places=2, together=1, seconds=30)
    server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]
    streams = [say(server.openai(), "ada", QUESTION, stream=True, timeout=60) for _ in range(1)]
    until(lambda: server.engine.taken == 1)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(server.http().post, "/v1/memories/bob/write", json={"text": FACT})
        assert waits.result().status_code == 200  # writes go on between two tokens
        server.engine.enter()
        response = server.http().post("/v1/memories/ada/search", json={"query": "x"})
        assert response.status_code == 404  # what is not there needs no place
        response = server.http().post("/v1/memories/bob/search", json={"query": "x"})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert _error(response)["code"] == "server_busy"
        with pytest.raises(openai.RateLimitError):
            say(server.openai(), "carl", FACT)
        assert server.http().get("/v1/memories").status_code == 200
        server.engine.leave()
    for stream in streams:
        stream.close()
    until(lambda: server.engine.taken == 0)


def test_a_write_waits_for_a_question_that_waits_for_the_model(
    serve: Callable[..., Server], model: MemoryModel
) -> None:
    """Which may take as long as the server allows; the write was refused after half a minute."""
    assert serve(seconds=50).people.patience_s == 50
    server = serve(together=1, seconds=20)
    server.people.write("ada", FACT)
    slow = server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]
    first = say(server.openai(), "bob", QUESTION, stream=True)
    next(iter(first))
    with ThreadPoolExecutor(2) as pool:
        asks = pool.submit(say, server.openai(), "ada", QUESTION, stop="a")
        until(lambda: server.engine.waiting == 1)
        writes = pool.submit(server.http().post, "/v1/memories/ada/write", json={"text": "I have a bike."})
        time.sleep(0.3)
        assert not writes.done()
        first.close()
        assert asks.result().choices[0].message.content == "" and writes.result().status_code == 200
    assert slow.next == 2


def test_time_is_bounded(serve: Callable[..., Server], model: MemoryModel) -> None:
    server = serve(seconds=0.3)
    server.engine._batch = _SlowBatch(model)  # type: ignore[assignment]
    with pytest.raises(openai.APIError, match="longer than"):
        list(say(server.openai(), "ada", FACT, stream=True))
    assert not server.store.exists("ada")  # not answered, so not remembered
    response = server.http().post("/v1/memories/ada/write", json={"text": FILLER * 400})
    assert response.status_code == 503 and _error(response)["code"] == "timeout"
    assert not server.store.exists("ada")
    assert server.http().post("/v1/memories/ada/write", json={"text": FACT}).status_code == 200


def test_what_is_above_a_limit_is_refused_and_not_repeated(serve: Callable[..., Server]) -> None:
    """In words that tell nothing of the disk or of other memories."""
    server = serve()
    with server.people.writing("ada") as memory:
        memory.limits = MemoryLimits(tokens=20)
    http, long = server.http(), "I have a bike and a dog and a cat and a boat and a house, and that is all. "
    server.store.quotas(memories=1)
    chat = {"user": "ada", "messages": [{"role": "user", "content": long}]}
    for path, body in (
        ("/v1/memories/ada/write", {"text": long}), ("/v1/chat/completions", chat),
        ("/v1/memories", {"name": "bob"}), ("/v1/memories/bob/write", {"text": FACT}),
        ("/v1/memories/ada/fork", {"name": "bob"}), ("/v1/chat/completions", chat | {"user": "bob"}),
    ):  # fmt: skip
        refused = http.post(path, json=body)
        error = _error(refused)
        assert (refused.status_code, error["code"]) == (400, "over_limit"), path
        assert str(server.store.root) not in error["message"] and "1 memories" not in error["message"]
    streamed = http.post("/v1/chat/completions", json=chat | {"stream": True}).text
    assert "over_limit" in streamed and "[DONE]" not in streamed
    assert [info.tokens for info in server.store.list()] == [0]


# Keys -----------------------------------------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path / FILE)
    assert not keys.needed and keys.check("anything") is None
    ada, team = keys.add(["ada"], "phone"), keys.add(["team-*", "x*y*z"])
    assert keys.needed and keys.check(ada).only == "ada" and keys.check(team).only is None  # type: ignore[union-attr]
    text = (tmp_path / FILE).read_text()
    assert ada not in text and ada.split("-", 2)[2] not in text
    assert (tmp_path / FILE).stat().st_mode & 0o77 == 0
    assert len({json.loads(line)["salt"] for line in text.splitlines()}) == 2
    others = Keys(tmp_path / FILE)
    assert others.check(ada).id == ada.split("-")[1]  # type: ignore[union-attr]
    for wrong in ("", ada[:-1], ada + "x", ada[:16] + team[16:], "rem-000000000000-" + ada[17:], "é" * 50, "\ud800"):
        assert others.check(wrong) is None
    pattern = keys.check(team)
    assert pattern is not None
    names = ("team-", "team-a", "xyz", "xayyz", "team", "ateam-a", "xy", "xz", "TEAM-a")
    assert [name for name in names if pattern.may(name)] == ["team-", "team-a", "xyz", "xayyz"]
    keys.remove(ada.split("-")[1])
    assert others.check(ada) is None and keys.check(ada) is None
    keys.remove(team.split("-")[1])
    assert keys.needed, "without its last key a server would be open to all"
    with pytest.raises(InputError, match="no key"):
        keys.remove("nothing")
    for wrong_names in ([], ["a/b"], [".x"], [""]):
        with pytest.raises(ConfigError):
            keys.add(wrong_names)
    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(InputError, match="damaged"):
        Keys(tmp_path / FILE).all()


def test_a_key_opens_its_memories_alone(serve: Callable[..., Server]) -> None:
    server = serve()
    for name in ("ada", "team-1", "bob"):
        server.people.write(name, FACT + " " + FILLER)
    ada, team = server.keys.add(["ada"]), server.keys.add(["team-*"])
    assert server.http().get("/v1/memories").status_code == 401
    assert _error(server.http("rem-x").get("/v1/models"))["code"] == "invalid_api_key"
    assert server.http().get("/healthz").status_code == 200
    assert [m["name"] for m in server.http(ada).get("/v1/memories").json()["data"]] == ["ada"]
    assert [m["name"] for m in server.http(team).get("/v1/memories").json()["data"]] == ["team-1"]
    client = server.openai(ada)
    body: Any = {"model": "any", "messages": [{"role": "user", "content": QUESTION}]}
    assert client.chat.completions.create(**body).choices[0].message.content == "teal"  # a key for one names it
    with pytest.raises(openai.BadRequestError, match="whose"):
        server.openai(team).chat.completions.create(**body)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**body, extra_headers={"X-Remanence-Memory": "bob"})
    answer = client.chat.completions.create(**body, user="bob", extra_headers={"X-Remanence-Memory": "ada"})
    assert answer.remanence["memory"] == "ada"  # type: ignore[attr-defined]
    server.keys.remove(ada.split("-")[1])
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_wrong_keys_hold_nobody_up(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a scrypt. Whoever sends many is told to wait; keys that were right before are not behind them."""
    server = serve(rate=12.0)  # two at once, then one every five seconds
    right = server.keys.add(["*"])
    own, stranger = server.http(right), server.http("rem-000000000000-" + "x" * 43)
    assert own.get("/v1/models").status_code == 200
    checks, check = 0, server.keys.check

    def counted(given: str) -> Any:
        nonlocal checks
        checks += 1
        return check(given)

    monkeypatch.setattr(server.keys, "check", counted)
    responses = [stranger.get("/v1/models") for _ in range(30)]
    statuses = [response.status_code for response in responses]
    assert statuses[0] == 401 and set(statuses) == {401, 429} and checks == statuses.count(401) < 15
    refused = responses[statuses.index(429)]
    assert 1 <= int(refused.headers["retry-after"]) <= 5 and _error(refused)["code"] == "rate_limit_exceeded"
    assert own.get("/v1/models").status_code == 200


def test_keys_that_cannot_be_read_let_nobody_in(serve: Callable[..., Server]) -> None:
    server = serve()
    key = server.keys.add(["*"])
    server.keys.path.write_text("{}\n")
    response = server.http(key).get("/v1/models")
    assert response.status_code == 500 and "keys.jsonl" not in response.text and _error(response)


def test_processes_that_change_the_keys_at_once(tmp_path: Path) -> None:
    """None is lost, and none that was taken back returns."""
    gone = Keys(tmp_path / FILE).add(["gone"]).split("-")[1]
    with ThreadPoolExecutor(8) as pool:  # each with its own `Keys`, as processes have
        made = [pool.submit(Keys(tmp_path / FILE).add, [f"p{i}"]) for i in range(24)]
        removed = pool.submit(Keys(tmp_path / FILE).remove, gone)
        ids = {each.result().split("-")[1] for each in made}
        removed.result()
    assert {key.id for key in Keys(tmp_path / FILE).all()} == ids


def test_a_server_within_another_asks_for_keys(model: MemoryModel, tmp_path: Path) -> None:
    store, keys = MemoryStore(tmp_path), Keys(tmp_path / FILE)
    engine = Engine(model)
    app = Starlette(routes=[Mount("/memories", create_app(People(model, store), engine, keys))])
    keys.add(["ada"])
    listening = Listening(app, lifespan="off")
    try:
        assert httpx.get(f"{listening.url}/memories/v1/memories").status_code == 401
        assert httpx.get(f"{listening.url}/memories/healthz").status_code == 200
    finally:
        listening.close()
        engine.close()


def test_a_page_of_the_web_reaches_no_server_without_keys(model: MemoryModel, tmp_path: Path) -> None:
    """It can give its own name the address of this machine, and its visitor's browser then takes both for one."""
    keys, engine = Keys(tmp_path / FILE), Engine(model)
    listening = Listening(create_app(People(model, MemoryStore(tmp_path)), engine, keys, local=True))
    try:
        with httpx.Client(base_url=listening.url) as web:

            def status(host: str) -> int:
                return web.get("/v1/memories", headers={"Host": host}).status_code

            for host in ("localhost", f"127.0.0.1:{listening.port}", "[::1]:8000", "LOCALHOST:1"):
                assert status(host) == 200, host
            for host in ("evil.example", "localhost.evil.example:80", "10.0.0.1", "localhost@evil.example", ""):
                assert status(host) == 421, host
            assert _error(web.get("/healthz", headers={"Host": "evil.example"}))["code"] == "wrong_host"

            def planted(**headers: str) -> int:
                request = web.build_request("POST", "/v1/memories/ada/write", content=b'{"text": "planted"}')
                request.headers.update(headers)
                return web.send(request).status_code

            assert planted() == 400  # a body that does not say that it is JSON, as a page may send unasked
            own = {"Content-Type": "application/json"}
            for origin in ("http://evil.example", "http://localhost.evil.example", "null", "http://[", "file://"):
                assert planted(Origin=origin) == planted(**own, Origin=origin) == 403, origin
            assert not MemoryStore(tmp_path).exists("ada")
            for origin in ("http://localhost:3000", f"http://127.0.0.1:{listening.port}", "http://[::1]:8000"):
                assert planted(**own, Origin=origin) == 200, origin
            keys.add(["ada"])  # now whoever comes needs one, under any name
            assert status("proxy.example") == 401
    finally:
        listening.close()


def test_nobody_learns_of_another_memory(serve: Callable[..., Server]) -> None:
    """Not yours, and not there: the same words, in about the same time."""
    server = serve()
    server.people.write("bob", FACT + " " + FILLER)
    server.people.write("own", FACT)
    http = server.http(server.keys.add(["own", "ghost"]))
    file = b"no file"
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None), ("DELETE", "", None), ("POST", "/ask", {"question": "x?"}),
        ("POST", "/search", {"query": "x"}), ("GET", "/history", None), ("POST", "/forget", {"words": "x"}),
        ("POST", "/fork", {"name": "own"}), ("GET", "/export", None),
    ]  # fmt: skip

    def answer(method: str, name: str, path: str, body: Any) -> tuple[int, str]:
        response = http.request(method, f"/v1/memories/{name}{path}", json=body)
        return response.status_code, response.text

    for method, path, body in calls:  # bob's is there and not ours; nobody's is neither; ghost's would be ours
        seen = {answer(method, name, path, body) for name in ("bob", "nobody", "ghost")}
        assert len(seen) == 1 and seen.pop()[0] == 404, (method, path)
    for method, path, body in (("POST", "/write", {"text": "x"}), ("PUT", "/import", None)):
        assert len({answer(method, name, path, body) for name in ("bob", "nobody")}) == 1
    chat = {"messages": [{"role": "user", "content": "x?"}]}
    seen = set()
    for name in ("bob", "nobody"):
        responses = [
            http.post("/v1/chat/completions", json=chat | {"user": name}),
            http.post("/v1/memories", json={"name": name}), http.post("/v1/memories/own/fork", json={"name": name}),
        ]  # fmt: skip
        seen |= {(response.status_code, response.text) for response in responses}
    assert len(seen) == 1 and seen.pop()[0] == 404
    assert "teal" in texts_of(server.store, "bob") and file

    times: dict[str, list[float]] = {"bob": [], "nobody": [], "ghost": []}
    for _ in range(25):
        for name, spent in times.items():
            began = time.perf_counter()
            http.get(f"/v1/memories/{name}")
            spent.append(time.perf_counter() - began)
    usual = [statistics.median(spent) for spent in times.values()]
    assert max(usual) < 1.5 * min(usual) + 0.001, usual


# The parts ------------------------------------------------------------------------------------------------------------


def test_memories_leave_the_ram_and_come_back(model: MemoryModel, tmp_path: Path) -> None:
    people = People(model, MemoryStore(tmp_path), most=2)
    for name in ("a", "b", "c"):
        people.write(name, f"{FACT} {FILLER}")
    assert people.usage()[0] == 2 and people.evicted == 1
    assert people.ask("a", QUESTION).text == "teal"
    with people.hold("a") as first, people.hold("b"), people.hold("c"):
        assert people.usage()[0] == 3  # what is used stays
        with people.hold("a") as second:
            assert first is second
    assert people.usage()[0] == 2
    people.most_bytes = 1
    with people.hold("a"):
        pass
    assert people.usage() == (0, 0)
    with pytest.raises(UnknownMemory):
        people.ask("nobody", "x?")
    assert "nobody" not in people._loaded


def test_one_writes_or_several_read(model: MemoryModel, tmp_path: Path) -> None:
    people = People(model, MemoryStore(tmp_path), patience_s=0.2)
    people.write("a", FACT)
    with people.hold("a"), people.hold("a"):
        with pytest.raises(MemoryBusy):
            people.write("a", "I have a bike.")
        with people.hold("a"):  # whoever gave up holds nobody up
            pass
    with people.writing("a"), pytest.raises(MemoryBusy):
        people.hold("a")
    held = people.hold("a")
    threading.Timer(0.05, held.release).start()
    people.write("a", "I have a bike.")
    held.release()  # once more
    assert "bike" in texts_of(people.store, "a")


def test_a_write_that_fails_leaves_nothing(model: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = People(model, MemoryStore(tmp_path))
    people.write("a", FACT)

    def cut(done: int, total: int) -> None:
        raise TimeUp("late")

    monkeypatch.setattr(people.computer, "between", lambda: cut(0, 0))
    with pytest.raises(TimeUp):
        people.write("a", FILLER)
    with people.hold("a") as memory:
        assert not memory.writes and memory.pending
    assert people.store.info("a").writes == 0


def test_nothing_of_a_turn_stays_in_ram(serve: Callable[..., Server]) -> None:
    """Not even until Python looks for cycles: a turn has a memory, which is large and may have been deleted since."""
    server = serve()
    client = server.openai()
    gc.collect()
    gc.disable()
    try:
        say(client, "ada", FACT)
        say(client, "ada", QUESTION)
        assert "".join(part.choices[0].delta.content or "" for part in say(client, "ada", QUESTION, stream=True))
        with pytest.raises(openai.BadRequestError):
            say(client, "ada", "why " * 5000 + "?")
        kinds = Turn, Asked
        until(lambda: not [kept for kept in gc.get_objects() if type(kept) in kinds])
    finally:
        gc.enable()


def test_free_memory_is_handed_back_now_and_then(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model's thread, after work that comes when it is due; and not before."""
    threads = list[threading.Thread]()
    monkeypatch.setattr(engine_module, "_give_back", lambda: threads.append(threading.current_thread()))
    engine = Engine(model)
    try:
        assert engine.run(lambda: 7) == 7 and not threads
        monkeypatch.setattr(engine_module, "_GIVES_BACK_S", -1.0)
        engine.run(lambda: 7)
        until(lambda: threads == [engine._thread])
    finally:
        engine.close()
    monkeypatch.undo()
    engine_module._give_back()  # wherever this runs


def test_the_engine_answers_and_works_side_by_side(model: MemoryModel, tmp_path: Path) -> None:
    engine = Engine(model, together=2, places=2, seconds=20)
    people = People(model, MemoryStore(tmp_path), engine)
    try:
        people.write("a", f"{FACT} {FILLER}")
        alone = People(model, people.store)
        assert people.ask("a", QUESTION) == alone.ask("a", QUESTION)  # the same answer, sources and all
        with pytest.raises(InputError, match="empty"):
            people.ask("a", " ")
        with pytest.raises(ZeroDivisionError):
            engine.run(lambda: 1 / 0)
        with engine.place(), engine.place(), pytest.raises(Full) as full:
            engine.enter()
        assert full.value.retry_s >= 1
        broken = engine._batch

        def fail() -> list[Any]:
            raise RuntimeError("a fault")

        broken.step = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="a fault"):
            people.ask("a", QUESTION)
        assert people.ask("a", QUESTION).text == "teal"  # the next one is served
        with people.hold("a") as memory:  # whose ticket may be that of one that failed
            came: list[Any] = []
            late = Asked(
                memory, QUESTION, (), 0, 32, came.append, time.monotonic() + 20, ticket=engine._batch.add(memory, "x")
            )
            engine._batch.cancel(late.ticket or 0)
            engine._answering[late.ticket or 0] = other = Asked(
                memory, QUESTION, (), 0, 32, came.append, late.until, late.ticket
            )
            engine.cancel(late)
            assert engine._answering.pop(late.ticket or 0) is other

            def no(item: Any) -> None:
                raise ValueError("nobody is there")

            engine.ask(memory, QUESTION, no)
            assert engine.answer(memory, QUESTION).text == "teal"  # the thread goes on
        people.write("a", FILLER * 20)  # in whose pauses others would be answered
    finally:
        engine.close()
    with pytest.raises(Stopping):
        engine.enter()


def test_what_waits_has_its_time_too(model: MemoryModel) -> None:
    """A piece of work, and a question that finds no room in the batch."""
    slow = _SlowBatch(model)
    engine = Engine(model, together=1, seconds=0.4, batch=lambda: slow)  # type: ignore[arg-type, return-value]
    memory, came, done = model.new_memory(), list[Any](), list[Any]()
    try:
        engine.ask(memory, QUESTION, came.append)
        until(lambda: bool(came))
        engine._answering[1].until += 60  # a large model may be in the middle of a step
        late = list[Any]()
        engine.ask(memory, QUESTION, late.append)
        until(lambda: bool(late), 3)
        assert isinstance(late[0], TimeUp)
        given_up = engine.ask(memory, QUESTION, late.append)
        engine.cancel(given_up)
        assert engine.waiting == 0
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(engine.run, lambda: time.sleep(0.8))
            until(lambda: engine.waiting == 0)
            second = pool.submit(engine.run, lambda: done.append(1))
            assert first.result() is None
            with pytest.raises(TimeUp):
                second.result()
        assert not done
    finally:
        for asked in list(engine._answering.values()):
            engine.cancel(asked)
        engine.close()


def test_a_long_write_lets_others_be_answered(model: MemoryModel, tmp_path: Path) -> None:
    engine = Engine(model)
    people = People(model, MemoryStore(tmp_path), engine)
    try:
        people.write("a", FACT)
        began = threading.Event()
        ends: dict[str, float] = {}

        def long() -> None:
            between = engine.between
            people.computer.between = lambda: (began.set(), between())[1]  # type: ignore[method-assign]
            people.write("b", FILLER * 60)
            ends["b"] = time.monotonic()

        thread = threading.Thread(target=long)
        thread.start()
        began.wait(10)
        people.write("c", FACT)
        assert people.ask("a", QUESTION).text == "teal"
        ends["a"] = time.monotonic()
        thread.join()
        assert ends["a"] < ends["b"]
    finally:
        engine.close()


def test_a_policy_lets_others_be_answered_and_has_its_time(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def judge(self, candidate: Candidate) -> Decision:
            time.sleep(0.05)
            return Decision(DEFER, "slow")

    server = serve(seconds=1)
    server.people.write("ada", FACT)
    monkeypatch.setattr("remanence.core.write.named", lambda name: Slow())
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        body = {"text": "This is a passage of its own.\n\n" * 100}
        writes = pool.submit(server.http().post, "/v1/memories/bob/write", json=body)
        until(lambda: bool(server.engine._ends))
        assert server.people.ask("ada", QUESTION).text == "teal" and not writes.done()
        assert writes.result().status_code == 503 and time.monotonic() - began < 4
    assert not server.store.exists("bob")


def test_counts_for_prometheus_name_nobody(serve: Callable[..., Server]) -> None:
    server = serve()
    say(server.openai(), "ada-lovelace", FACT)
    list(say(server.openai(), "ada-lovelace", QUESTION, stream=True))
    server.http().get("/v1/memories/ada-lovelace/nothing")
    text = server.http().get("/metrics").text
    assert "ada" not in text
    for line in (
        "remanence_answers_total 2.0", "remanence_writes_total 1.0", "remanence_in_progress 0.0",
        "remanence_first_token_seconds_count 2.0", "remanence_loaded_memories 1.0",
        'remanence_requests_total{route="/v1/chat/completions",status="200"} 2.0',
    ):  # fmt: skip
        assert line in text.splitlines(), line


def test_the_schema_and_the_health(serve: Callable[..., Server]) -> None:
    server = serve()
    schema = server.http().get("/openapi.json").json()
    paths = {"/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/memories", "/healthz", "/metrics"}
    verbs = ("write", "ask", "search", "history", "forget", "fork", "export", "import")
    assert paths | {f"/v1/memories/{{name}}/{verb}" for verb in verbs} <= set(schema["paths"])
    assert server.http().get("/healthz").json()["status"] == "ok"
    for path in ("/", "/healthz", "/metrics"):  # as load balancers ask
        got, asked = server.http().get(path), server.http().head(path)
        assert asked.status_code == got.status_code and not asked.content
    page = server.http().get("/")
    assert page.status_code == 404 or "default-src 'none'" in page.headers["content-security-policy"]


# Processes ------------------------------------------------------------------------------------------------------------


@contextmanager
def process(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`remanence serve` in a process of its own, and where it is."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "REMANENCE_HOME": str(root)}
    command = [sys.executable, "-m", "remanence", "serve", "--model", "tiny", "--port", "0", "--rate", "0", *options]
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        line = running.stderr.readline()
        assert " is served at " in line, line
        yield running, line.split(" is served at ")[1].split()[0]
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


@pytest.mark.slow
def test_a_server_that_is_ended_finishes_what_runs(tmp_path: Path) -> None:
    with process(tmp_path) as (running, url):
        stream = iter(say(_client(url), "ada", f"{FACT} {FILLER}", stream=True))
        next(stream)
        running.send_signal(signal.SIGTERM)
        assert list(stream)[-1].remanence["remembered"]
        assert running.stderr is not None
        assert running.wait(30) == 0
        assert "all that was acknowledged is saved" in running.stderr.read()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
    assert FACT in texts_of(MemoryStore(tmp_path), "ada")


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing_acknowledged(tmp_path: Path) -> None:
    kept: list[tuple[str, str]] = []
    for turn in range(3):
        with process(tmp_path) as (running, url):
            ends = threading.Event()

            def talk(name: str, turn: int = turn, url: str = url, ends: threading.Event = ends) -> None:
                number = 0
                while not ends.is_set():
                    text = f"Number {turn}{number}0 belongs to {name}."
                    try:
                        say(_client(url), name, text)
                    except openai.APIError:
                        return
                    kept.append((name, text))
                    number += 1

            threads = [threading.Thread(target=talk, args=(f"p{i}",)) for i in range(4)]
            for thread in threads:
                thread.start()
            seen = len(kept)
            until(lambda seen=seen: len(kept) > seen + 20, 60)  # type: ignore[misc]
            running.send_signal(signal.SIGKILL)
            ends.set()
            for thread in threads:
                thread.join()
    store = MemoryStore(tmp_path)
    told = {name: texts_of(store, name) for name in {name for name, _ in kept}}
    assert len(kept) > 60 and all(text in told[name] for name, text in kept)
    for name, text in told.items():
        assert text.count("belongs to") == text.count(f"belongs to {name}")
    assert all(not store.verify(name) for name in told)


@pytest.mark.slow
def test_nonsense_makes_no_server_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """schemathesis over the OpenAPI schema, in short; `benchmarks/serve.py --fuzz 10000` in full."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    fuzz = importlib.import_module("serve").fuzz
    with process(tmp_path) as (_, url):
        done = fuzz(url, 600)
        assert done["requests"] >= 600 and done["from_schema"] > 200 and not done["server_errors"], done
        assert httpx.get(f"{url}/healthz").status_code == 200


# The command ----------------------------------------------------------------------------------------------------------


def _command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"REMANENCE_HOME": str(root)}
    command = [sys.executable, "-m", "remanence", "serve", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    made = _command(tmp_path, "keys", "add", "ada", "ada-*", "--label", "phone", "--json")
    key = json.loads(made.stdout)
    assert Keys(tmp_path / FILE).check(key["key"]).label == "phone"  # type: ignore[union-attr]
    listed = _command(tmp_path, "keys", "list")
    assert listed.stdout.startswith(key["id"]) and "ada, ada-*" in listed.stdout and key["key"] not in listed.stdout
    assert _command(tmp_path, "keys", "remove", key["id"]).returncode == 0
    assert Keys(tmp_path / FILE).check(key["key"]) is None


def test_other_machines_are_not_served_without_keys(tmp_path: Path) -> None:
    refused = _command(tmp_path, "--host", "0.0.0.0", "--model", "tiny")
    assert refused.returncode == 2 and "keys add" in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = _command(tmp_path, "--port", port, "--model", "tiny")
    assert refused.returncode == 2 and "cannot listen" in refused.stderr and len(refused.stderr.splitlines()) == 1
