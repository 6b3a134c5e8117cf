"""A model card for the hub, from what a training run wrote down."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .log import duration, is_number, read_config, read_log, stages_of

_FILE = re.compile(r"\.(?:txt|jsonl?|md|csv|parquet|xz|gz|zst)$")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHARES = {  # figures that are shares, in words
    "held_known": "questions about what was told, answered exactly",
    "held_newest": "questions about what was told twice, answered by the newer",
    "held_unknown": 'questions about what was never told, answered by "I don\'t know."',
    "held_context_known": "the same with the text in the window: told",
    "held_context_newest": "the same with the text in the window: told twice",
    "held_context_unknown": "the same with the text in the window: never told",
    "held_recall": "right write retrieved, by layer",
}
_LOSSES = {
    "held_loss": "loss",
    "held_answer": "loss of the answers (nats a token)",
    "held_context_answer": "loss of the answers with the text in the window (nats a token)",
    "held_lm": "loss of the text (nats a token)",
    "held_retriever": "loss of the retriever",
    "held_from_base": "how far the reader is from its base on text (nats a token)",
}


def card(
    run: str | Path,
    base_name: str,
    figures: Mapping[str, str | float] | None = None,
    *,
    license: str | None = None,
    picture: str | None = None,
) -> str:
    """A model card for the hub, from what the run's own files say; what they do not say is left out.

    Args:
        run: the folder of a training run.
        base_name: hub id of the model that the run began from, or what to call it.
        figures: further figures, measured elsewhere, and what they are; a table of their own.
        license: the hub's short name for it; what `config.json` says ("license") if None.
        picture: name of the curves' picture in the model's repository.

    Raises:
        InputError: a run without configuration or log.
    """
    from huggingface_hub import ModelCardData

    config, log = read_config(run), read_log(run)
    base = _public(base_name)
    data = config.get("data") or []
    sources = [_source(entry) for entry in (data if isinstance(data, list) else [data])]
    front = ModelCardData(
        library_name="remanence",
        base_model=base if _is_hub_id(base) else None,
        tags=["remanence", "long-term-memory"],
        license=license or config.get("license"),
        datasets=sorted({name for name in sources if _is_hub_id(name)}) or None,
        pipeline_tag="text-generation",
    )
    parts = [
        f"---\n{front.to_yaml()}\n---\n",
        f"# {base.split('/')[-1]} with a long-term memory\n",
        f"`{base}` with a long-term memory inside, as in MemoryLLM and M+, trained with Remanence. It remembers texts "
        "beyond its window, as vectors of its layers.\n",
        _table(_facts(Path(run), config, base, sources)),
        "## Training\n",
        _stage_table(config, log),
    ]
    if picture:
        parts.append(f"![Curves of the training run]({picture})\n")
    parts += ["## Figures\n", _held_out(log)]
    if figures:
        parts += ["Measured otherwise:\n", _table(figures)]
    parts += [_USE, _LIMITS]
    return "\n".join(parts)


_USE = """## How to use it

```python
from remanence import MemoryModel

model = MemoryModel.from_pretrained("FOLDER-OR-HUB-ID")
memory = model.new_memory()
model.memorize(memory, "The spare key is under the blue pot.")
print(model.ask(memory, "Where is the spare key?").text)
```

```bash
remanence chat --model FOLDER-OR-HUB-ID
```
"""

_LIMITS = """## What it was not tested for

Whatever has no figure on this page. In particular: questions, texts and languages other than those of the data above;
how much of its other abilities the base model kept; histories longer than those of training; whether its answers are
safe, fair or true. It can answer wrongly with what it was told, and invent what it was not.
"""


def _facts(run: Path, config: dict[str, Any], base: str, sources: list[str]) -> dict[str, str]:
    """What was trained on what, one row a fact."""
    memory = config.get("memory") or {}
    saved = run / "model" / "remanence.json"  # what the model has counts, whatever was asked for
    if saved.is_file():
        memory = memory | json.loads(saved.read_text(encoding="utf-8")).get("memory", {})
    sizes = {
        "K": "K = {} vectors a write", "N": "N = {} vectors in the pool", "K0": "K0 = {} vectors retrieved",
        "chunk_tokens": "chunks of {} tokens", "window_tokens": "window of {} tokens", "retriever": "{} retriever",
    }  # fmt: skip
    rows = {
        "base": f"`{base}`",
        "data": ", ".join(f"`{name}`" for name in sources),
        "memory, a layer": "; ".join(w.format(memory[k]) for k, w in sizes.items() if memory.get(k) is not None),
    }
    if "lora" in config:
        lora = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in (config["lora"] or {}).items()}
        rows["LoRA"] = "; ".join(f"{k} {v}" for k, v in lora.items() if v is not None) or "none"
    for name in ("precision", "lanes", "seed"):
        if config.get(name) is not None:
            rows[name] = str(config[name])
    return {name: value for name, value in rows.items() if value}


def _stage_table(config: dict[str, Any], log: list[dict[str, Any]]) -> str:
    """Per stage: steps taken, tokens seen, time. The time is that of the steps, from tokens and tokens per second."""
    planned = {str(s.get("name")): s.get("steps") for s in config.get("stages") or [] if isinstance(s, dict)}
    rows: list[list[str]] = []
    begun = stages_of(log)
    ends = [begin for _, begin in begun[1:]] + [log[-1]["total"]]
    tokens = 0  # seen before the step at hand
    for (name, begin), end in zip(begun, ends, strict=True):
        steps, before, seconds = f"{end - begin:,}", tokens, 0.0
        if is_number(planned.get(name)) and end - begin < planned[name]:
            steps += f" of {planned[name]:,}"
        for entry in log:
            if begin < entry["total"] <= end and is_number(entry.get("tokens")):
                speed = entry.get("tokens_per_s")
                seconds += (entry["tokens"] - tokens) / speed if is_number(speed) and speed else math.nan
                tokens = entry["tokens"]
        time = duration(seconds) if tokens > before and math.isfinite(seconds) else ""
        rows.append([name, steps, f"{tokens - before:,}" if tokens > before else "", time])
    header = ["stage", "steps", "tokens", "time of the steps, about"]
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    total = sum(s.get("steps") or 0 for s in config.get("stages") or [] if isinstance(s, dict))
    end = f"\nThe run was not finished: {log[-1]['total']:,} of {total:,} steps.\n" if log[-1]["total"] < total else ""
    return _grid([header[i] for i in shown], [[row[i] for i in shown] for row in rows]) + end


def _held_out(log: list[dict[str, Any]]) -> str:
    """The last figures on what was never trained on."""
    found = [e for e in log if any(name.startswith("held_") for name in e)]
    if not found:
        return "The log has no figures on held-out data.\n"
    last = found[-1]
    rows: dict[str, str | float] = {}
    for name in [*_SHARES, *_LOSSES, *sorted(last)]:
        value = last.get(name)
        said = [v for v in (value if isinstance(value, list) else [value]) if v is not None and is_number(v)]
        if said and name.startswith("held_"):
            if name in _SHARES:
                rows[_SHARES[name]] = " ".join(f"{100 * v:.4g}" for v in said) + " %"
            else:
                rows[_LOSSES.get(name, f"`{name}`")] = " ".join(f"{v:g}" for v in said)
    return f"On held-out data, at step {last['total']:,}, by the training loop:\n\n" + _table(rows)


def _source(entry: Any) -> str:
    """What a source of data is called: a hub id, or the name of a file without the folders of the machine."""
    if isinstance(entry, Mapping):
        entry = next((entry[k] for k in ("dataset", "path", "file", "name", "source", "kind") if entry.get(k)), "")
    return _public(str(entry))


def _public(name: str) -> str:
    """A name as it may be shown: hub ids whole, of paths the last part."""
    return name if _is_hub_id(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def _is_hub_id(name: str) -> bool:
    """Whether a name is "owner/name" and no file or folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not _FILE.search(name) and not Path(name).exists()


def _table(rows: Mapping[str, Any]) -> str:
    return _grid(["", ""], [[name, f"{value}"] for name, value in rows.items()])


def _grid(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
