"""Files are there whole or not at all, and those that belong together are of one save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small
from remanence.errors import ConfigError
from remanence.files import half_saved, write_text, write_together, write_whole
from remanence.models.pretrained import SETTINGS, SHIPPED, WEIGHTS, MemoryModel, plan, saved_settings
from remanence.train import loop
from remanence.train.run import load_run, save_run
from remanence.train.settings import Run

Make = Callable[..., MemoryModel]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half(path: Path) -> None:
    """Write some of a file, and find the disk full."""
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def fails_at(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The real function; its call of that number raises, as if the process ended there."""
    calls = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_that_cannot_be_written_is_as_it_was(old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        write_text(path, old)
    before = content(tmp_path)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, half)
    assert content(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_private_file_takes_no_place_of_another(tmp_path: Path) -> None:
    """What somebody has, or has put there for all to read, under the name with .tmp."""
    mine, path = tmp_path / "notes.tmp", tmp_path / "notes"
    write_text(mine, "precious")
    mine.chmod(0o644)
    write_whole(path, lambda to: to.write_text("private"), private=True)
    assert content(tmp_path) == {"notes.tmp": b"precious", "notes": b"private"}
    assert path.stat().st_mode & 0o777 == 0o600 and mine.stat().st_mode & 0o777 == 0o644


def test_files_that_belong_together(tmp_path: Path) -> None:
    """They come in whole, with folders; stale ones go; what is written anew and the rest of the folder stay."""
    for name in ("part-1", "part-2", "notes", "last"):
        (tmp_path / name).write_text("old")

    def write(folder: Path) -> None:
        assert not any(folder.iterdir())
        (folder / "inner").mkdir()
        for name in ("part-2", "inner/x", "last"):
            (folder / name).write_text("new")

    write_together(tmp_path, write, last="last", stale=["part-?"])
    new = {"part-2": b"new", os.path.join("inner", "x"): b"new", "last": b"new", "notes": b"old"}
    assert content(tmp_path) == new
    assert {path.name for path in tmp_path.iterdir()} == {"part-2", "inner", "last", "notes"}


@pytest.mark.parametrize("broken", ["base", "weights"])
@pytest.mark.parametrize("old", [False, True])
def test_a_save_that_fails_leaves_the_old_model(
    broken: str, old: bool, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a file, before and after others were written."""
    model, folder = make_model(small()), tmp_path / "model"
    if old:
        model.save_pretrained(folder)
        (folder / "notes.md").write_text("of the user")
    before, start = content(tmp_path), model.start.detach().clone()
    torch.nn.init.normal_(model.start)
    if broken == "base":
        monkeypatch.setattr(model.base, "save_pretrained", lambda to, **_: half(to / "model.safetensors"))
    else:
        monkeypatch.setattr("remanence.models.pretrained.save_file", lambda tensors, to, **_: half(Path(to)))
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(folder)
    assert content(tmp_path) == before
    if old:
        assert MemoryModel.from_pretrained(folder).start.equal(start)
    monkeypatch.undo()
    model.save_pretrained(folder)
    assert MemoryModel.from_pretrained(folder).start.equal(model.start)


def test_a_save_that_ends_among_the_moves_is_never_a_mix(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends, the folder is the old model, or refused, or the new model; saving once more heals it."""
    model = make_model(small())
    model.save_pretrained(tmp_path / "old")
    torch.nn.init.normal_(model.start)
    refused = 0
    for number in range(1, 50):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "old", folder)
        monkeypatch.setattr("remanence.files.os.replace", fails_at(number, os.replace))
        try:
            model.save_pretrained(folder)
        except KeyboardInterrupt:
            assert half_saved(folder)
        else:
            break
        finally:
            monkeypatch.undo()
        refused += 1
        for load in (MemoryModel.from_pretrained, saved_settings, plan):
            with pytest.raises(ConfigError, match=r"files of two models.*Save the model there again"):
                load(folder)
        model.save_pretrained(folder)
        assert MemoryModel.from_pretrained(folder).start.equal(model.start)
        assert content(folder).keys() == content(tmp_path / "old").keys()
    assert refused >= 5, "config, weights, tokenizer, memory weights, settings"
    assert MemoryModel.from_pretrained(folder).start.equal(model.start)


def test_what_an_earlier_save_left_is_not_loaded(make_model: Make, tmp_path: Path) -> None:
    """Shards of a larger model and a shipped memory; a user's own files stay."""
    stale = "model-00001-of-00002.safetensors", "model.safetensors.index.json", SHIPPED
    for name in (*stale, "notes.md", "model-backup.safetensors"):
        (tmp_path / name).write_text("old")
    make_model(small()).save_pretrained(tmp_path)
    names = set(content(tmp_path))
    assert {"model.safetensors", WEIGHTS, SETTINGS, "notes.md", "model-backup.safetensors"} <= names
    assert not names & set(stale)


def test_a_run_keeps_its_settings_and_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of `config.json`, or of a tensor file: what was there is there."""
    save_run(Run(model="first"), tmp_path)
    loop._write(tmp_path / "tensors", {"a": torch.ones(2)}, {})
    before = content(tmp_path)
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: half(path))
    monkeypatch.setattr(loop, "save_file", lambda tensors, path, **_: half(path))
    with pytest.raises(OSError, match="No space"):
        save_run(Run(model="second"), tmp_path)
    with pytest.raises(OSError, match="No space"):
        loop._write(tmp_path / "tensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert load_run(tmp_path).model == "first"
