"""What a process of ours asks of the libraries below PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from remanence.environment import keep_little

NAMES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
PRODUCTS = """
import torch
weight = torch.ones(1536, 576, dtype=torch.bfloat16)
def multiply(sizes):
    for size in sizes:
        torch.nn.functional.linear(torch.ones(size, 576, dtype=torch.bfloat16), weight)
    with open("/proc/self/statm") as state:
        return int(state.read().split()[1]) * 4096 // 1_000_000
first = multiply(range(1, 20))
print(multiply(range(20, 620)) - first)
"""


def test_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "")
    monkeypatch.delenv(NAMES[1])
    keep_little()
    assert [os.environ[name] for name in NAMES] == ["7", "64"]


def test_the_command_line_asks_for_it() -> None:
    code = f"import atexit, os, remanence.cli; atexit.register(lambda: print(*(os.environ[n] for n in {NAMES!r})))"
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; remanence.cli.main()", "--version"], env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "64 64"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="tells a process's memory on Linux only")
def test_new_sizes_of_products_do_not_fill_the_memory() -> None:
    """600 of them, in bfloat16: a part of what they take where oneDNN keeps code for all."""
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    grown = []
    for asked in ("", "from remanence.environment import keep_little; keep_little()\n"):
        command = [sys.executable, "-c", asked + PRODUCTS]
        grown.append(int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout))
    if grown[0] < 30:
        pytest.skip(f"this machine's products keep little: {grown[0]} MB")
    assert grown[1] < grown[0] / 2
