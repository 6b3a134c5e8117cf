"""The real command line, run as a user would: processes, pipes, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FACT = "Marla Quist's favourite colour is teal."


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(home: Path, *arguments: str, stdin: str | bytes = "", preexec=None) -> subprocess.CompletedProcess[str]:
    """`remanence ARGUMENTS` with a store of its own."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    env = os.environ | {"REMANENCE_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", "remanence", *arguments], input=data, env=env, capture_output=True, preexec_fn=preexec
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one clear line on stderr, nothing on stdout, no traceback."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("remanence: "), done.stderr
    for word in words:
        assert word in done.stderr


def test_told_in_one_shell_answered_in_another(home: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text(f"{FACT}\nThe spare key is under the blue pot.\n", encoding="utf-8")
    told = run(home, "memorize", str(notes), "--memory", "ada")
    assert told.returncode == 0 and told.stdout == ""
    asked = run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["answer"] == "teal"
    assert answer["sources"][0]["source"] == "notes.txt" and "teal" in answer["sources"][0]["text"]
    assert set(answer) == {"answer", "score", "sources", "memory_tokens", "seconds"}


def test_a_pipe_and_plain_output(home: Path) -> None:
    assert run(home, "memorize", "--memory", "ada", "--source", "tea time", stdin=FACT).returncode == 0
    asked = run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada", "--sources")
    assert asked.stdout == "teal\n"
    assert "tea time" in asked.stderr


def test_an_old_fact_comes_from_the_long_term_store(home: Path) -> None:
    from remanence.arena.retention import prose

    text = FACT + " " + prose()[:30_000]
    told = run(home, "memorize", "-", "--memory", "ada", "--json", stdin=text)
    result = json.loads(told.stdout)
    assert result["memory_tokens"] + result["pending_tokens"] == result["tokens"] > 8000
    asked = run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada", "--json")
    answer = json.loads(asked.stdout)
    assert answer["answer"] == "teal"
    assert answer["sources"][0]["where"] == "long-term" and FACT in answer["sources"][0]["text"]


def test_chat_remembers_between_turns_and_sessions(home: Path) -> None:
    first = run(home, "chat", "--memory", "ada", "--json", stdin=f"{FACT}\n")
    assert first.returncode == 0, first.stderr
    turns = "What is Marla Quist's favourite colour?\n/sources\n/quit\n"
    second = run(home, "chat", "--memory", "ada", "--json", stdin=turns)
    lines = [json.loads(line) for line in second.stdout.splitlines()]
    assert [line["answer"] for line in lines] == ["teal"]
    assert FACT in second.stderr


def test_list_show_path_delete(home: Path) -> None:
    for name in ("ada", "bob"):
        run(home, "memorize", "--memory", name, stdin=FACT * 10)
    listed = json.loads(run(home, "memory", "list", "--json").stdout)["memories"]
    assert [m["name"] for m in listed] == ["ada", "bob"] and listed[0]["tokens"] > 0
    assert "ada" in run(home, "memory", "list").stdout
    shown = json.loads(run(home, "memory", "show", "ada", "--json").stdout)
    assert shown["last_writes"] and FACT in shown["last_writes"][-1]["text"]
    assert "writes" in run(home, "memory", "show", "ada").stdout
    path = run(home, "memory", "path", "ada").stdout.strip()
    assert Path(path).is_dir()
    assert run(home, "memory", "path").stdout.strip() == str(home)
    refused(run(home, "memory", "delete", "ada"), "--yes")
    assert json.loads(run(home, "memory", "delete", "ada", "--yes", "--json").stdout) == {"deleted": "ada"}
    assert not Path(path).exists()
    assert [m["name"] for m in json.loads(run(home, "memory", "list", "--json").stdout)["memories"]] == ["bob"]
    refused(run(home, "ask", "Who?", "--memory", "ada"), "ada")


def test_bad_input_is_one_line_and_code_2(home: Path, tmp_path: Path) -> None:
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    binary, latin = tmp_path / "binary", tmp_path / "latin.txt"
    binary.write_bytes(b"\x7fELF\0\0")
    latin.write_bytes("caf\xe9".encode("latin-1"))
    refused(run(home, "ask", "Who?", "--memory", "adb"), "adb", "ada")
    refused(run(home, "memorize", str(tmp_path / "none.txt"), "--memory", "ada"), "none.txt")
    refused(run(home, "memorize", str(tmp_path), "--memory", "ada"), str(tmp_path))
    refused(run(home, "memorize", str(binary), "--memory", "ada"), "binary")
    refused(run(home, "memorize", str(latin), "--memory", "ada"), "UTF-8")
    refused(run(home, "memorize", "--memory", "../evil", stdin=FACT), "../evil")
    refused(run(home, "memorize", "--memory", "ada", "--model", str(tmp_path / "no-model"), stdin=FACT), "no-model")
    refused(run(home, "ask", "", "--memory", "ada"), "empty")
    refused(run(home, "ask", "why " * 400, "--memory", "ada"), "window")
    refused(run(home, "demo", "--plot", str(tmp_path / "curve.txt")), ".png")
    refused(run(home, "train", "builtin", "--prose", str(tmp_path / "none.txt")), "no prose")
    asking = "ask", "Who?", "--max-new-tokens", "none"
    for misuse in (("ask",), ("nonsense",), ("train", "everything"), ("memorize", "--nonsense"), asking):
        done = run(home, *misuse)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    asked = run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada")
    assert asked.stdout == "teal\n"  # nothing stored was lost


def test_a_memory_of_another_model_is_refused(home: Path, tmp_path: Path) -> None:
    from remanence import MemoryModel

    run(home, "memorize", "--memory", "ada", stdin=FACT)
    model = MemoryModel.from_pretrained("builtin")
    model.offset.data += 1
    model.save_pretrained(tmp_path / "other")
    asked = run(home, "ask", "Who?", "--memory", "ada", "--model", str(tmp_path / "other"))
    refused(asked, "was written by model", "builtin")


def test_a_full_disk_loses_nothing(home: Path) -> None:
    import resource

    run(home, "memorize", "--memory", "ada", stdin=FACT)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    from remanence.arena.retention import prose

    refused(run(home, "memorize", "--memory", "ada", stdin=prose()[:20_000], preexec=small_files))
    assert run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada").stdout == "teal\n"


def test_empty_and_tiny_texts(home: Path) -> None:
    for text in ("", " \n ", "Hello"):
        assert run(home, "memorize", "--memory", "ada", stdin=text).returncode == 0
    assert run(home, "ask", "What is Marla Quist's favourite colour?", "--memory", "ada").stdout == "I don't know.\n"


def test_version_and_help() -> None:
    import remanence

    done = run(Path("unused"), "--version")
    assert done.stdout == f"remanence {remanence.__version__}\n"
    commands = ["", "demo", "chat", "memorize", "ask", "train"]
    commands += [f"memory {command}" for command in ("list", "show", "delete", "path")]
    commands += [f"train {command}" for command in ("builtin", "curriculum", "stage1", "stage2", "stage3", "plot")]
    for command in commands:
        done = run(Path("unused"), *command.split(), "--help")
        assert done.returncode == 0 and "Usage" in done.stdout


def test_a_short_demo(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.png"
    done = run(home, "demo", "--tokens", "4000", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    last = result["accuracy"][-1]
    assert last["distance"] == 4000 and last["full"] >= 0.7 > 0.05 >= last["no store"] and last["window"] <= 0.05
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not home.exists()  # a demo leaves nothing behind
