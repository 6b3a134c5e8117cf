"""A memory as one file that can be moved to another machine: a ZIP archive of plain parts.

    manifest.json       format, version, settings, and size and SHA-256 of the other parts
    texts.jsonl         a line for every write, every text that waits, and every text that a policy held back
    memory.safetensors  pool, long-term vectors, search keys

The archive's comment is the SHA-256 of the manifest. Nothing is compressed, as vectors hardly can be; nothing is run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..core.memory import Memory
from ..errors import ConfigError, IncompatibleMemory, InputError, MemoryCorrupt
from ..files import sync_folder, write_whole
from .segments import version

FORMAT = 1
_MANIFEST, _TEXTS, _TENSORS = "manifest.json", "texts.jsonl", "memory.safetensors"
_WORDS = "words"  # a tensor (`Memory.add`)
_MOST_MANIFEST = 16 << 20  # bytes


def pack(memory: Memory, path: Path, *, texts: bool = True) -> None:
    """Write a memory to one file, whole or not at all.

    Args:
        memory: stays as it is.
        path: must not exist.
        texts: False leaves out the texts of writes, what waits or was held back, which is text as well, and the numbers
            of the words, from which a text could be read: so no word is found any more, only what is meant.

    Raises:
        InputError: there is such a file already; or no texts of a memory that stores nothing else.
    """
    if path.exists():
        raise InputError(f"{path} exists already; choose another name.")
    if not texts and memory.config.store_dtype == "tokens":
        raise InputError("this memory stores its tokens in place of vectors (store_dtype), and so is nothing but text.")
    meta = memory.meta()
    writes, pending, quarantine = meta.pop("writes"), meta.pop("pending"), meta.pop("quarantine", [])
    if not texts:
        writes, pending, quarantine = [_bare(write) for write in writes], [], []
    lines = [json.dumps({"write": one}, ensure_ascii=False) for one in writes]
    lines += [json.dumps({"waits": one}, ensure_ascii=False) for one in pending]
    lines += [json.dumps({"held": one}, ensure_ascii=False) for one in quarantine]

    def write(to: Path) -> None:
        part = to.with_name(f"{to.name}.part")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            tensors = {key: value.detach().cpu().contiguous() for key, value in memory.tensors().items()}
            if not texts and _WORDS in tensors:
                tensors[_WORDS] = tensors[_WORDS] * 0
            save_file(tensors, part)
            body = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
            files = {_TEXTS: _digest(body)}
            with part.open("rb") as data:
                sha256 = hashlib.file_digest(data, "sha256").hexdigest()
                files[_TENSORS] = {"sha256": sha256, "bytes": data.tell()}
            manifest = json.dumps(
                {"format": FORMAT, "remanence": version(), "meta": meta, "files": files}, ensure_ascii=False
            ).encode()
            with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:
                archive.comment = hashlib.sha256(manifest).hexdigest().encode()
                archive.writestr(_MANIFEST, manifest)
                archive.writestr(_TEXTS, body)
                archive.write(part, _TENSORS)
        finally:
            part.unlink(missing_ok=True)

    write_whole(path, write, private=True)
    sync_folder(path.absolute().parent)


def _bare(write: dict[str, Any]) -> dict[str, Any]:
    """A write without its text, and of its tags only when it expires."""
    ends = [tags["until"] for tags in write.get("tags", ()) if "until" in tags]
    kept = {key: value for key, value in write.items() if key != "tags"} | {"text": None, "pieces": ()}
    return kept | ({"tags": [{"until": min(ends)}]} if ends else {})


def unpack(path: Path) -> Memory:
    """The memory in such a file, on the CPU; every part is checked before it is used.

    Raises:
        InputError: no file, or no such archive.
        MemoryCorrupt: a part is missing or was changed.
        IncompatibleMemory: a newer version of Remanence wrote it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if _MANIFEST not in entries or entries[_MANIFEST].file_size > _MOST_MANIFEST:
                raise InputError(f"{path} is no exported memory.")
            for entry in entries.values():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _changed(path, entry.filename)
            packed = archive.read(_MANIFEST)
            if hashlib.sha256(packed).hexdigest().encode() != archive.comment:
                raise _changed(path, _MANIFEST)
            manifest = json.loads(packed)
            if manifest["format"] > FORMAT:
                raise IncompatibleMemory(
                    f"{path} has format {manifest['format']}, this version reads up to {FORMAT}; upgrade remanence."
                )
            parts = {name: _checked(archive, name, manifest["files"][name], path) for name in (_TEXTS, _TENSORS)}
        # Not `splitlines`, which also splits at what JSON leaves as it is within a text, such as U+2028.
        lines = [json.loads(line) for line in parts[_TEXTS].decode("utf-8", "surrogatepass").split("\n") if line]
        meta: dict[str, Any] = manifest["meta"]
        meta["writes"] = [line["write"] for line in lines if "write" in line]
        meta["pending"] = [line["waits"] for line in lines if "waits" in line]
        meta["quarantine"] = [line["held"] for line in lines if "held" in line]
        if any(write["text"] is None for write in meta["writes"]):  # it can forget nothing
            meta["config"]["keep_text"] = False
        return Memory.from_parts(load(parts[_TENSORS]), meta)
    except FileNotFoundError as error:
        raise InputError(f"no file {str(path)!r}.") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no exported memory, or only a part of one: {error}.") from error
    except ConfigError as error:
        raise IncompatibleMemory(f"{path} has settings that this version does not take ({error}).") from error
    except (LookupError, TypeError, ValueError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # `zipfile` seeks to a place that there is not
            raise
        raise MemoryCorrupt(f"{path} cannot be read ({type(error).__name__} {error}); export it again.") from error


def _checked(archive: zipfile.ZipFile, name: str, expected: dict[str, Any], path: Path) -> bytes:
    """A part of an archive, if it is what was packed."""
    try:
        data = archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _changed(path, name) from error
    if _digest(data) != expected:
        raise _changed(path, name)
    return data


def _digest(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _changed(path: Path, part: str) -> MemoryCorrupt:
    return MemoryCorrupt(f"{path}: its part {part} is missing or was changed; export the memory again.")
