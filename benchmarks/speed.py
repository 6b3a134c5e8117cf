"""What memory costs, as ratios measured in one run: `python benchmarks/speed.py`.

* write throughput over a plain forward of the same chunks, at 1k and at 1M remembered tokens;
* the time to an answer, and seconds per generated token, at 1M remembered tokens over those at 10k;
* bytes per remembered token.

With --compile instead: seconds per token with parts of the decoder under torch.compile, over those without.

The two sides of a ratio are timed in turn, many times, and the medians compared. The large memories are filled with
random vectors through `Memory.add`: no cost depends on their values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from remanence import Memory, MemoryModel
from remanence.core.memory import Write

QUESTION = "What is the name of Marla Quist's boat?"
LONG = 33  # tokens of a long answer


def filled(model: MemoryModel, tokens: int) -> Memory:
    """A memory that remembers that many tokens."""
    memory, config = model.new_memory(), model.config
    each = config.chunk_tokens
    for index in range(-(-tokens // each)):
        vectors = torch.randn(memory.layers, config.K, memory.width)
        keys = torch.randn(memory.layers, config.keys_per_write, config.retriever_dim)
        memory.add(vectors, keys, Write(index, "", 0.0, index * each, each, ""))
    return memory


def in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, timed in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            began = time.perf_counter()
            work()
            if repeat:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def answering(model: MemoryModel, memory: Memory, new: int) -> Callable[[], list[int]]:
    """Answers the question with so many tokens."""
    return lambda: model.ask(memory, QUESTION, max_new_tokens=new, min_new_tokens=new).ids


def per_token(seconds: dict[str, float], side: str) -> float:
    """Seconds per generated token, from those of `in_turn` with 1 and with LONG tokens."""
    return (seconds[f"{side} {LONG}"] - seconds[f"{side} 1"]) / (LONG - 1)


def compiled(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per token without and with torch.compile, by what is compiled."""
    plain = MemoryModel.from_pretrained(arguments.model)
    memory, result = filled(plain, 10_000), dict[str, Any]()
    for part in ("mlp", "layers", "decoder"):
        model = MemoryModel.from_pretrained(arguments.model)
        layers = model.attachment.layers
        modules = {"mlp": [layer.mlp for layer in layers], "layers": layers, "decoder": [model.attachment.decoder]}
        for module in modules[part]:
            module.forward = torch.compile(module.forward, dynamic=True)
        began = time.perf_counter()
        same = answering(model, memory, LONG)() == answering(plain, memory, LONG)()
        compiling = time.perf_counter() - began
        both = {"plain": plain, "compiled": model}
        sides = {f"{name} {new}": answering(side, memory, new) for new in (1, LONG) for name, side in both.items()}
        seconds = in_turn(sides, arguments.repeats)
        ms = {name: 1000 * per_token(seconds, name) for name in both}
        result[part] = {f"{k}_token_ms": round(v, 3) for k, v in ms.items()} | {
            "compiled_over_plain": round(ms["compiled"] / ms["plain"], 2), "seconds_to_compile": round(compiling, 1),
            "same_answer": same,
        }  # fmt: skip
    return result


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name.replace('_', ' ')}: " + ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in value.items()))
        else:
            print(f"{name.replace('_', ' ')}: {value:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--large", type=int, default=1_000_000, help="remembered tokens of the large memory")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, help="torch threads; torch's default if not given")
    parser.add_argument("--compile", action="store_true", help="torch.compile of decoding, and nothing else")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.compile:
        show(compiled(arguments), arguments.json)
        return
    model = MemoryModel.from_pretrained(arguments.model)
    config = model.config
    large, small, fresh = filled(model, arguments.large), filled(model, 10_000), filled(model, 1_000)

    count = 40
    chunks = torch.randint(300, len(model.tokenizer), (count, config.chunk_tokens))

    def plain(run: Callable[..., object]) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                for chunk in chunks:
                    run(chunk[None])

        return work

    def write(memory: Memory) -> Callable[[], None]:
        def work() -> None:
            for chunk in chunks.tolist():
                model.write(memory, chunk)

        return work

    seconds = in_turn(
        {
            "plain forward": plain(model.base),
            "plain forward without logits": plain(model.attachment.decoder),
            "write at 1k": write(fresh),
            "write at large": write(large),
        },
        arguments.repeats,
    )
    tokens = count * config.chunk_tokens
    rates = {name: tokens / value for name, value in seconds.items()}

    asked = in_turn(
        {
            f"{name} {new}": answering(model, memory, new)
            for new in (5, 1, LONG)
            for name, memory in (("10k", small), ("large", large))
        },
        arguments.repeats,
    )
    token = {name: per_token(asked, name) for name in ("10k", "large")}
    result = {
        "threads": torch.get_num_threads(),
        "remembered_tokens": large.tokens,
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "write_over_plain_forward": {
            "at 1k": round(rates["write at 1k"] / rates["plain forward"], 3),
            "at large": round(rates["write at large"] / rates["plain forward"], 3),
            "at 1k, without logits": round(rates["write at 1k"] / rates["plain forward without logits"], 3),
            "at large, without logits": round(rates["write at large"] / rates["plain forward without logits"], 3),
        },
        "answer_of_5_tokens_ms": {k: round(1000 * asked[f"{k} 5"], 2) for k in ("10k", "large")},
        "answer_large_over_10k": round(asked["large 5"] / asked["10k 5"], 3),
        "first_token_ms": {k: round(1000 * asked[f"{k} 1"], 2) for k in ("10k", "large")},
        "first_token_large_over_10k": round(asked["large 1"] / asked["10k 1"], 3),
        "token_ms": {k: round(1000 * v, 3) for k, v in token.items()},
        "token_large_over_10k": round(token["large"] / token["10k"], 3),
        "bytes_per_token": round(large.nbytes / large.tokens, 1),
    }
    show(result, arguments.json)


if __name__ == "__main__":
    main()
