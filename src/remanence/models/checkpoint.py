"""Reading the published checkpoints: their files, checked against the table in `published.py`, and their memory.

`MemoryModel.from_pretrained` loads what this finds. Nothing is left out in silence: a key too many, a key too few or a
shape that does not fit is a `ConfigError` that names the keys.

Legend:  L layers   N vectors in the pool   S rows of the shipped store   K vectors a write   D hidden size   R key size
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import safe_open
from torch import Tensor

from ..config import MemoryConfig
from ..core.memory import Memory
from ..errors import ConfigError, reason
from .hub import download_options
from .names import home, is_here
from .published import Layout, is_published

_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
_SHOWN = 12  # keys that an error names
CHECKPOINT = "checkpoint"  # the source of the shipped memory's writes


def find(model: str | Path, **hub: Any) -> dict[str, Any] | None:
    """The values of `config.json` of a folder or hub id, or None where there is none that can be read.

    `hub` here and below: options of a download (revision, token, cache_dir, local_files_only).
    """
    try:
        here = home(model) / "config.json" if is_here(model) else None
        path = here or Path(hf_hub_download(str(model), "config.json", **hub))
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the caller's own attempt gives the better error
        return None
    return values if isinstance(values, dict) else None


def layout(model: str | Path, **hub: Any) -> Layout:
    """The checked settings of a published checkpoint, a folder or a hub id. Only `config.json` is read.

    Raises:
        ConfigError: no such checkpoint, or settings that cannot be.
    """
    values = find(model, **download_options(model, **hub))
    if values is None or not is_published(values):
        found = "no readable config.json" if values is None else f"a {values.get('architectures')} model"
        raise ConfigError(
            f"{str(model)!r} has {found}; give a published MemoryLLM or MPlus checkpoint, a folder or a hub id."
        )
    return Layout(values, Path(model).name)


def fetch(model: str | Path, **hub: Any) -> Path:
    """The folder with a model's files, downloaded from the hub unless it is one. Raises `ConfigError`."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_FILES), **hub))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot download {str(model)!r}: {reason(error)} Give a folder, or try again online."
        ) from error


class Weights:
    """The tensors of a checkpoint's weight files, read when they are asked for: sharded or single, safetensors or .bin.

    Args:
        folder: with model.safetensors or pytorch_model.bin, or their shards and index. Safetensors win.

    Raises:
        ConfigError: files that are missing, damaged, or contradict their index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        names, index = self._names()
        for name in names:
            for key, shape in self._open(name):
                if key in self._file_of:
                    both = f"{self._file_of[key]} and {name}"
                    raise ConfigError(f"{folder}: {key} is in {both}; fetch the files again.")
                self._file_of[key], self.shapes[key] = name, shape
        if index is not None and (wrong := sorted(k for k, v in index.items() if self._file_of.get(k) != v)):
            raise ConfigError(
                f"{folder}: the index names keys that its files do not hold: {_some(wrong)}. Fetch the files again."
            )

    def _names(self) -> tuple[list[str], dict[str, str] | None]:
        """Names of the weight files, and the index if there is one: key -> file."""
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.folder / f"{name}.index.json").is_file():
                try:
                    text = (self.folder / f"{name}.index.json").read_text(encoding="utf-8")
                    index = dict(json.loads(text)["weight_map"])
                except (ValueError, LookupError, TypeError) as error:
                    raise ConfigError(f"{self.folder}/{name}.index.json is no index ({error!r}).") from error
                return sorted(set(index.values())), index
            if (self.folder / name).is_file():
                return [name], None
        raise ConfigError(f"{self.folder} has no weights; expected model.safetensors, pytorch_model.bin or an index.")

    def _open(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        """Open a file: keys and shapes."""
        path = self.folder / name
        try:
            if name.endswith(".safetensors"):
                file = self._files[name] = safe_open(path, framework="pt")
                return [(key, tuple(file.get_slice(key).get_shape())) for key in file.keys()]  # noqa: SIM118
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # tensors only, no code
            self._files[name] = tensors
            return [(key, tuple(tensor.shape)) for key, tensor in tensors.items()]
        except Exception as error:  # whatever a reader makes of bytes that are not what it expects
            raise ConfigError(f"cannot read {path}: {reason(error)} Fetch the file again.") from error

    def get(self, key: str) -> Tensor:
        """A tensor by its key."""
        file = self._files[self._file_of[key]]
        return file[key] if isinstance(file, dict) else file.get_tensor(key)


def _some(keys: list[str]) -> str:
    """Keys for an error message."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


class Checkpoint:
    """A published checkpoint, whose files fit its settings.

    Args:
        model: a folder or a hub id.
        hub: options of the download.

    Raises:
        ConfigError: it cannot be had, or keys or shapes differ from what its settings say.
    """

    def __init__(self, model: str | Path, **hub: Any) -> None:
        self.layout = layout(model, **hub)
        self.name = self.layout.name
        self.folder = fetch(model, **hub)
        self.weights = Weights(self.folder)
        self.keys = self.layout.keys()
        self._check()
        self.initialized = "initialized" not in self.weights.shapes or bool(self._initialized())

    def _check(self) -> None:
        shapes = self.weights.shapes
        missing = sorted(k for k, key in self.keys.items() if k not in shapes and not key.optional)
        unknown = sorted(shapes.keys() - self.keys.keys())
        wrong = [f"{k} {shapes[k]}, expected {key.shape}" for k, key in self.keys.items()
                 if k in shapes and shapes[k] != key.shape]  # fmt: skip
        found = [("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong)]
        if missing or unknown or wrong:
            said = "; ".join(f"{what}: {_some(keys)}" for what, keys in found if keys)
            raise ConfigError(f"the weights of {self.name} do not fit its config.json: {said}.")

    def _initialized(self) -> int:
        value = int(self.weights.get("initialized"))
        if value not in (0, 1):
            raise ConfigError(f"{self.name}: initialized is {value}, expected 0 or 1.")
        return value

    @property
    def left_out(self) -> list[str]:
        """Keys that are known and not used."""
        return [k for k, key in self.keys.items() if key.part == "unused" and k in self.weights.shapes]

    def base(self) -> dict[str, Tensor]:
        """The weights of the stock Llama, by its own keys."""
        held = ((k, key) for k, key in self.keys.items() if key.part == "base" and k in self.weights.shapes)
        return {key.names[0]: self.weights.get(k) for k, key in held}

    def own(self) -> dict[str, Tensor]:
        """The weights of `MemoryModel` beside its base, by its keys."""
        own = {name: self.weights.get(k) for k, key in self.keys.items() if key.part == "own" for name in key.names}
        reshaped = {"offset": (-1,), "start": (self.layout.layers, -1)}  # ours have no axis of length 1
        return {name: tensor.reshape(reshaped.get(name, tensor.shape)) for name, tensor in own.items()}

    def pool(self) -> Tensor:
        """The shipped short-term pool [L, N, D]; empty if the checkpoint says that it holds nothing."""
        pool = self.weights.get("memory")
        return pool if self.initialized else pool[:, :0]

    def memory(self, config: MemoryConfig, pool_LND: Tensor, keys_LNR: Tensor, model: str) -> Memory:
        """The shipped memory: the store's rows, then the pool's, as writes from the source "checkpoint".

        Args:
            config: settings of the model.
            pool_LND: `pool()`, in the model's number format and on its device.
            keys_LNR: retriever keys of its vectors.
            model: fingerprint of the model.

        Raises:
            ConfigError: settings under which the store's rows cannot be told from what fills them up to whole writes.
        """
        K, S = config.K, self.layout.shipped_rows if config.long_term else 0
        layers, N, width = pool_LND.shape
        first = -(-S // K) * K  # row of the pool's first vector; rows in between are void
        if first != S and not config.keeps_ledger:
            raise ConfigError(
                f"the shipped store has {S} rows, no multiple of K = {K}; keep small_store='repeat' to load it."
            )
        tensors = Memory(config, layers=layers, width=width).tensors()
        tensors |= {
            "pool": pool_LND, "pool_rows": torch.arange(first, first + N).expand(layers, -1).contiguous(),
        }  # fmt: skip
        if config.long_term:
            vectors = tensors["vectors"].new_zeros(layers, first + N, width)
            keys = tensors["keys"].new_zeros(layers, first + N, config.retriever_dim)
            vectors[:, first:], keys[:, first:] = pool_LND, keys_LNR
            for l in range(layers):
                vectors[l, :S], keys[l, :S] = self.weights.get(f"ltm.{l}"), self.weights.get(f"ltm_keys.{l}")
            tensors |= {"vectors": vectors, "keys": keys}
        count = (first + N) // K
        write = {"source": CHECKPOINT, "time": 0.0, "first_token": 0, "tokens": 0, "text": None}
        meta = {
            "config": config.to_dict(), "layers": layers, "width": width, "model": model, "first_write": 0, "base": 0,
            "writes": [{"index": i, **write} for i in range(count)], "pending": [],
            "ledger": {"clock": 0, "writes_waiting": 0},
        }  # fmt: skip
        if config.keeps_ledger:
            tensors |= {
                "ledger_pool_stamps": torch.zeros(layers, N, dtype=torch.long),  # ages are not in the files
                "ledger_sizes": torch.full((layers,), S),
                "ledger_rows": torch.arange(S).repeat(layers),
                "ledger_stamps": self._store_column("ltm_ages").round().long(),
                "ledger_recall": self._store_column("ltm_recall_frequencies"),
                "ledger_waiting_rows": torch.zeros(layers, 0, dtype=torch.long),
                "ledger_waiting_stamps": torch.zeros(layers, 0, dtype=torch.long),
            }
        return Memory.from_parts(tensors, meta)

    def _store_column(self, name: str) -> Tensor:
        """One number for each row of the shipped store, layer after layer [L * S]."""
        return torch.cat([self.weights.get(f"{name}.{l}").float() for l in range(self.layout.layers)])
