"""`remanence mcp`: the official client against real processes over standard streams, and over HTTP on a real port."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolRequestParams

from listening import Listening
from remanence import MemoryModel, MemoryStore, cli
from remanence.serve.engine import Engine
from remanence.serve.keys import FILE, Keys
from remanence.serve.limits import Limits
from remanence.serve.mcp import Tools, create_mcp_app
from remanence.serve.people import People

FACT = "Marla Quist's favourite colour is teal."
QUESTION = "What is Marla Quist's favourite colour?"
OTHER = "Odo Brandt's favourite drink is cocoa."
FILLER = "The tide went out and the boats lay on the sand until the evening came. " * 6
TOOLS = {"remember", "ask", "search", "forget", "history"}
NOT_THERE = "there is no such memory, or this key is not for it."
Talk = Callable[[Client], Awaitable[Any]]


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool returns, which is the same as structure and as text."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content  # type: ignore[union-attr]
    data: dict[str, Any] = result.structured_content
    return data


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The sentence with which a tool refuses."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error and result.structured_content is None
    (content,) = result.content
    text: str = content.text  # type: ignore[union-attr]
    assert "Traceback" not in text and "pydantic" not in text and text.endswith(".")
    return text


# Over standard streams ------------------------------------------------------------------------------------------------


def command(store: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "remanence", "mcp", "--memory", "ada", "--model", "tiny", "--store", str(store), *more,
    ]  # fmt: skip


def documented(language: str) -> list[str]:
    """The blocks of docs/mcp.md in a language."""
    page = Path(__file__).parents[1] / "docs" / "mcp.md"
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def with_process(store: Path, talk: Talk, mode: str = "auto", which: str = "mcpServers") -> str:
    """A conversation with a process that is started as the docs say; what it wrote to standard error."""
    shown = next(block[which] for block in map(json.loads, documented("json")) if which in block)["remanence"]
    assert shown["command"] == "remanence"
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "remanence", *shown["args"]],
        env=os.environ | {"REMANENCE_HOME": str(store), "REMANENCE_MODEL": "tiny"},
    )
    errors = store.with_name("errors.txt")

    async def main() -> None:
        with errors.open("w") as file:
            async with Client(stdio_client(parameters, errlog=file), mode=mode) as client:
                await talk(client)

    asyncio.run(main())
    return errors.read_text()


def test_what_one_process_remembers_the_next_one_knows(tmp_path: Path) -> None:
    store = tmp_path / "store"

    async def tell(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == TOOLS
        for tool in tools.values():
            assert tool.description and tool.output_schema and "memory" not in tool.input_schema["properties"]
            for name, schema in tool.input_schema["properties"].items():
                assert schema["description"], name
        assert tools["forget"].annotations.destructive_hint and tools["ask"].annotations.read_only_hint
        assert "begin with remember" in await refused(client, "ask", question=QUESTION)
        done = await call(client, "remember", text=FACT, source="a letter")
        assert done["memory"] == "ada" and done["tokens"] > 0
        kept = MemoryStore(store).load("ada")  # on the disk before it was acknowledged
        assert done["waiting_tokens"] == len(kept.pending_ids) > 0

    async def ask(client: Client) -> None:
        answer = await call(client, "ask", question=QUESTION)
        assert answer["answer"] == "teal" and answer["sources"][0]["where"] == "window"
        assert (await call(client, "search", query=QUESTION))["found"][0]["text"] == FACT
        await call(client, "remember", text=FILLER)
        answer = await call(client, "ask", question=QUESTION)
        source = answer["sources"][0]
        assert answer["answer"] == "teal" and answer["recalled"]
        assert source["text"].startswith(FACT) and source["label"].startswith("a letter")
        assert source["time"].startswith("20") and source["time"].endswith("Z")
        found = await call(client, "search", query=QUESTION, k=2)
        assert found["found"][0]["text"].startswith(FACT)
        assert [piece["where"] == "window" for piece in found["found"]] == [False, False, True]

    assert with_process(store, tell) == ""
    assert with_process(store, ask, "legacy", "servers") == ""  # clients of today and of tomorrow


@pytest.mark.slow
def test_the_process_says_what_is_wrong(tmp_path: Path) -> None:
    async def talk(client: Client) -> None:
        await call(client, "remember", text=FACT)
        assert await refused(client, "remember") == "text: field required."
        assert (await refused(client, "remember", text="  ")).startswith("the text is empty")
        assert (await refused(client, "search", query="teal", k=0)).startswith("k: ")
        assert (await refused(client, "ask", question=7)).startswith("question: ")
        assert (await refused(client, "ask", question=QUESTION, memory="bob")).startswith("memory: ")
        assert (await refused(client, "forget")).startswith("forget what?")
        assert "no date" in await refused(client, "forget", since="yesterday")
        assert (await call(client, "ask", question=QUESTION))["answer"] == "teal"  # and it goes on
        with pytest.raises(MCPError, match="no such tool"):
            await client.call_tool("dream", {})

    assert with_process(tmp_path / "store", talk) == ""


def messages(*calls: tuple[str, dict[str, Any]]) -> str:
    """A client's side of a conversation, line by line; the calls have the ids 1, 2, ..."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines: list[dict[str, Any]] = [
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
    ]
    for i, (name, arguments) in enumerate(calls, 1):
        lines.append({
            "jsonrpc": "2.0", "id": i, "method": "tools/call", "params": {"name": name, "arguments": arguments},
        })  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.slow
def test_what_came_before_the_end_of_the_input_is_done_and_answered(tmp_path: Path) -> None:
    """And nothing but the protocol is on standard output."""
    said = messages(("remember", {"text": FACT + FILLER})) + "no JSON\n"
    done = subprocess.run(command(tmp_path / "store"), input=said, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    answers = {line["id"]: line for line in map(json.loads, done.stdout.splitlines()) if "id" in line}
    assert answers[1]["result"]["structuredContent"]["writes"] > 0
    assert FACT in "".join(write.text or "" for write in MemoryStore(tmp_path / "store").load("ada").writes)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_runs_is_saved_and_answered(tmp_path: Path, number: int) -> None:
    with subprocess.Popen(
        command(tmp_path / "store"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(messages(("remember", {"text": FACT}), ("remember", {"text": FILLER * 20})))
        process.stdin.flush()
        answers = {}
        while 1 not in answers:  # the second is on its way; standard input stays open
            line = json.loads(process.stdout.readline())
            answers[line["id"]] = line
        process.send_signal(number)
        for text in process.stdout:
            line = json.loads(text)
            answers[line["id"]] = line
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == "remanence: stopped.\n"
    assert not answers[2]["result"]["isError"]
    memory = MemoryStore(tmp_path / "store").load("ada")  # the two calls run at once, and either may be written last
    assert memory.write_count == max(answers[call]["result"]["structuredContent"]["writes"] for call in (1, 2))


@pytest.mark.slow
def test_a_client_that_is_gone_ends_it_in_silence(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path / "store"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write(messages(("remember", {"text": FACT})))
        process.stdin.flush()  # and stays open
        assert process.wait(60) == 0 and process.stderr.read() == ""


def test_nothing_else_gets_onto_the_protocols_stream() -> None:
    code = (
        "import os, sys; from remanence.cli.mcp import _protocol\n"
        "with _protocol() as (from_, to):\n"
        "    print('a print'); os.system('echo a program'); assert sys.stdin.read() == ''\n"
        "    os.write(to, os.read(from_, 100))\n"
        "print(' and after')"
    )
    done = subprocess.run([sys.executable, "-c", code], input="protocol", capture_output=True, text=True, timeout=60)
    assert done.stdout == "protocol and after\n"
    assert sorted(done.stderr.splitlines()) == ["a print", "a program"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--http", "8000"), "no HOST:PORT"),
        (("--http", "127.0.0.1:70000"), "no HOST:PORT"),
        (("--http", "0.0.0.0:0"), "other machines"),
        (("--anyone",), "for --http"),
        (("--memory", "../ada"), "name"),
        (("--memory", "", "--http", "127.0.0.1:0"), "name"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", command(tmp_path, *arguments)[2:])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert message in said.err and said.err.count("\n") == 1


# Over HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return MemoryModel.from_pretrained("tiny")


class Server(Listening):
    """The tools over HTTP on a real port. Tests have `serve(**options)` of conftest.py, which makes one."""

    def __init__(self, model: MemoryModel, root: Path, only: str | None = None, **limits: Any) -> None:
        self.store, self.keys = MemoryStore(root), Keys(root / FILE)
        self.people, bounds = People(model, self.store), Limits(**({"rate": 0.0} | limits))
        self.engine = Engine(model, places=bounds.places)
        app = create_mcp_app(self.people, self.engine, self.keys, bounds, only=only)
        super().__init__(app)
        self.url += "/mcp"

    def talk(self, talk: Talk, key: str = "", mode: str = "auto") -> None:
        """A conversation of the official client."""

        async def main() -> None:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as http,
                Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
            ):
                await talk(client)

        asyncio.run(main())

    def post(self, body: Any = None, key: str = "", **headers: str) -> httpx.Response:
        """A plain request."""
        own = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        own |= {"Authorization": f"Bearer {key}"} if key else {}
        listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        content = body if isinstance(body, bytes) else json.dumps(body or listed).encode()
        return httpx.post(self.url, content=content, headers=own | headers, timeout=60)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_official_client_over_http(serve: Callable[..., Server], mode: str) -> None:
    server = serve()

    async def talk(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == TOOLS
        assert all("memory" in tool.input_schema["properties"] for tool in tools)
        assert "whose memory" in await refused(client, "remember", text=FACT)
        assert await refused(client, "ask", question=QUESTION, memory="ada") == NOT_THERE
        assert await refused(client, "ask", question=QUESTION, memory="../ada") == NOT_THERE
        assert "a-z and A-Z" in await refused(client, "remember", text=FACT, memory="../ada")
        await call(client, "remember", memory="ada", text=FACT)
        await call(client, "remember", memory="bob", text=OTHER)
        assert (await call(client, "ask", memory="ada", question=QUESTION))["answer"] == "teal"
        assert (await call(client, "history", memory="bob"))["waiting"][0]["text"] == OTHER

    server.talk(talk, mode=mode)
    assert {info.name for info in server.store.list()} == {"ada", "bob"}


def test_what_a_policy_holds_back_is_said(serve: Callable[..., Server]) -> None:
    server = serve(only="ada")
    with server.people.writing("ada") as memory:
        memory.policy = "a-mac"

    async def talk(client: Client) -> None:
        done = await call(client, "remember", text="Thanks a lot, good night!")
        assert done["tokens"] == 0 and done["held_back"][0]["reason"].startswith("not worth remembering")
        assert (await call(client, "remember", text=FACT))["held_back"] == []

    server.talk(talk)


def test_forgetting_shows_first_what_would_go(serve: Callable[..., Server]) -> None:
    server = serve(only="ada")

    def texts() -> str:
        return json.dumps(server.people.history("ada"))

    async def talk(client: Client) -> None:
        await call(client, "remember", text=FACT + " " + OTHER, source="a letter")
        await call(client, "remember", text=FILLER)
        seen = await call(client, "forget", words="favourite colour")
        assert not seen["forgotten"] and [text.strip() for text in seen["texts"]] == [FACT] and seen["tokens"] > 0
        assert FACT in texts()
        assert "nothing was forgotten" in await refused(client, "forget", words="favourite colour", confirm="yes")
        assert "nothing was forgotten" in await refused(client, "forget", words="cocoa", confirm=seen["confirm"])
        await call(client, "remember", text="Her favourite colour was once red.")
        late = await refused(client, "forget", words="favourite colour", confirm=seen["confirm"])
        assert "nothing was forgotten" in late and FACT in texts()  # what it showed is not all that would go now
        seen = await call(client, "forget", words="favourite colour")
        assert len(seen["texts"]) == 2
        done = await call(client, "forget", words="favourite colour", confirm=seen["confirm"])
        assert done["forgotten"] and done["tokens"] == seen["tokens"] and done["texts"] == []
        assert "colour" not in texts() and "cocoa" in texts()
        again = await call(client, "forget", words="favourite colour")
        assert not again["texts"] and again["confirm"] is None and "Nothing" in again["message"]
        assert (await call(client, "forget", writes="[0]"))["texts"]  # a list as the JSON of one
        assert (await call(client, "forget", source="a letter", until="2020-01-01"))["texts"] == []
        assert (await call(client, "forget", source="a letter", since="2020-01-01"))["texts"]
        history = await call(client, "history", limit=1)
        assert len(history["writes"]) == 1 < history["total"] and history["forgotten"][0]["time"].endswith("Z")
        assert (await call(client, "history", offset=history["total"]))["writes"] == []

    server.talk(talk)
    assert "colour" not in "".join(write.text or "" for write in server.store.load("ada").writes)


def test_a_key_is_for_its_own_memories(serve: Callable[..., Server]) -> None:
    server = serve()
    server.people.write("bob", OTHER)
    ada, team = server.keys.add(["ada"]), server.keys.add(["team-*"])
    for key in ("", "rem-wrong", ada[:-1] + ("A" if ada[-1] != "A" else "B")):
        answer = server.post(key=key)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises((Exception, ExceptionGroup)):
            server.talk(lambda client: client.list_tools(), key)

    async def talk(client: Client) -> None:
        await call(client, "remember", text=FACT)  # the key is for one alone
        assert (await call(client, "ask", question=QUESTION))["memory"] == "ada"
        for tool, given in (
            ("remember", {"text": FACT}), ("ask", {"question": QUESTION}), ("search", {"query": "drink"}),
            ("forget", {"words": "cocoa"}), ("forget", {"words": "cocoa", "confirm": "0"}), ("history", {}),
        ):  # fmt: skip
            for name in ("bob", "nobody"):
                assert await refused(client, tool, memory=name, **given) == NOT_THERE

    async def team_talk(client: Client) -> None:
        assert "whose memory" in await refused(client, "history")
        await call(client, "remember", text=FACT, memory="team-1")
        assert await refused(client, "history", memory="ada") == NOT_THERE

    server.talk(talk, ada)
    server.talk(team_talk, team)
    assert {info.name for info in server.store.list()} == {"ada", "bob", "team-1"}
    server.keys.remove(ada.split("-")[1])
    assert server.post(key=ada).status_code == 401


def test_a_server_for_one_memory_tells_a_stranger_nothing(serve: Callable[..., Server]) -> None:
    server = serve(only="ada")
    key = server.keys.add(["bob"])

    async def talk(client: Client) -> None:
        assert await refused(client, "ask", question=QUESTION) == NOT_THERE

    server.talk(talk, key)
    server.people.write("ada", FACT)
    server.talk(talk, key)


def test_limits(serve: Callable[..., Server]) -> None:
    assert serve(seconds=50.0).people.patience_s == 50.0
    server = serve(rate=12.0, body_bytes=2000)
    assert server.post(b"x" * 3000).status_code == 413  # is counted too
    parts = httpx.post(server.url, content=iter([b"x" * 1500] * 2), headers={"Content-Type": "application/json"})
    assert parts.status_code == 413 and "larger" in parts.json()["error"]["message"]  # without a length
    slow = server.post()
    assert slow.status_code == 429 and int(slow.headers["Retry-After"]) > 0

    busy = serve(places=1)

    async def talk(client: Client) -> None:
        with busy.engine.place():
            assert "busy" in await refused(client, "remember", memory="ada", text=FACT)
        await call(client, "remember", memory="ada", text=FACT)

    busy.talk(talk)


def test_a_call_that_is_given_up_keeps_its_place_while_it_is_at_work(model: MemoryModel, tmp_path: Path) -> None:
    people, taken = People(model, MemoryStore(tmp_path)), list[int]()
    people.write("ada", FACT)

    @contextmanager
    def place() -> Iterator[None]:
        taken.append(1)
        yield
        taken.pop()

    tools = Tools(people, only="ada", place=place)
    call = CallToolRequestParams(name="history", arguments={})

    async def main() -> None:
        with people.writing("ada"):
            asked = asyncio.create_task(tools._call(SimpleNamespace(request=None), call))
            while not (taken and people._loaded["ada"].waiting):  # it has a thread, which waits for the memory
                await asyncio.sleep(0.01)
            asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled() and taken

    asyncio.run(main())
    tools.close()
    assert not taken


def test_what_is_no_call(serve: Callable[..., Server]) -> None:
    server = serve()
    assert server.post(b"no JSON").status_code == 400
    assert server.post(Origin="http://evil.example").status_code == 403  # a page of the web
    assert server.post(Host="evil.example").status_code == 421
    no_stream = httpx.get(server.url)  # none stays open
    assert no_stream.status_code == 405 and no_stream.json()["error"]["message"]
    assert httpx.get(server.url + "/other").status_code == 404


def test_the_command_serves_http_until_it_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = command(tmp_path / "store", "--http", "127.0.0.1:0")
    at = started.index("--memory")
    with listening([*started[:at], *started[at + 2 :]]) as (process, url):  # calls name the memory
        (code,) = documented("python")
        assert "http://127.0.0.1:8001/mcp" in code
        exec(code.replace("http://127.0.0.1:8001/mcp", url), {})
        assert "The spare key is under the blue pot." in capsys.readouterr().out
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 and "is saved" in process.stderr.read()
    assert MemoryStore(tmp_path / "store").info("ada").pending_tokens > 0


@contextmanager
def listening(started: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves HTTP, and where."""
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr and process.stdout
            line = process.stderr.readline()
            url = next(word for word in line.split() if word.startswith("http")).rstrip(",")
            yield process, url
            assert process.stdout.read() == ""
        finally:
            process.kill()
