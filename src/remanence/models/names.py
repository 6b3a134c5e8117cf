"""How models are named: short names, and the folders of the package behind them; files, folders, hub ids."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

DEFAULT_MODEL = (
    "smollm2"  # where nobody says which; the commands, `MemoryModel.from_pretrained` and their help read this
)

_HERE = Path(__file__).parent
BUILTIN = _HERE / "builtin"  # the toy, whole: base and memory weights
_HOMES = {
    "tiny": BUILTIN,
    "builtin": BUILTIN,  # its older name
    # Memory weights for a base of that name (`bases.py`); untrained where there are none.
    "smollm2": _HERE / "smollm2",
    "qwen2.5-coder-1.5b": _HERE / "qwen2.5-coder-1.5b",
}
SETTINGS = "remanence.json"  # in the folder of a model with memory weights
CHOICES = (
    "'tiny', 'smollm2', 'qwen2.5-coder-1.5b', a folder, a .gguf file or a hub id"  # for error messages: "give ..."
)


def home(model: str | Path) -> Path:
    """Where a model's settings and memory weights are, if it has any: of a name, a folder of the package."""
    return _HOMES.get(str(model), Path(model))


def is_name(model: str | Path) -> bool:
    """Whether a model is a short name, which means itself whatever the working directory holds ("./tiny" does not)."""
    return str(model) in _HOMES


def is_here(model: str | Path) -> bool:
    """Whether a model is a short name, or a file or folder of this machine; if not, it may be a hub id."""
    return is_name(model) or Path(model).exists()


def gguf_of(model: str | Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without a config.json. None if it is none.

    Raises:
        ConfigError: there is no such file, or a folder has several.
    """
    path = Path(model)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"cannot load model {str(model)!r}: there is no such file.")
        return path
    if is_name(model) or not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{path} has several GGUF files: {names}. Give one of them.")
    return files[0] if files else None
