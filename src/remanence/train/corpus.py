"""Where training documents come from: local files or datasets of the Hugging Face hub, read as a stream.

The corpus is never held as a whole, however large. Each lane (one a process) has its own share of the documents, and
its place among them can be kept and gone back to. One of `HELD_OUT` documents, chosen by a hash of its text, is never
trained on.
"""

from __future__ import annotations

import glob
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError

HELD_OUT = 64

_BUILDERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
_PACKED = (".gz", ".zst", ".xz", ".bz2")
_REPAIR = "Repair or remove the file; it must be what the end of its name says."


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where documents come from.

    path: a dataset of the Hugging Face hub; or a file, folder or pattern ("books/*.jsonl.zst") of .jsonl, .json,
    .parquet or .txt files (a .txt file is one document), also packed as .gz, .zst, .xz or .bz2; or a name in `RECIPES`.
    name, split, revision: of a dataset of the hub.
    text: the field that holds the document.
    questions: the field that holds its questions: a list of {"question", "answer"}, or a single question whose answer
    is in the row's field "answer" or "answers". Answers are a string, a list of which the first counts, or SQuAD's
    {"text": [...]}; questions without answer are left out. Documents with questions may be short passages: they are
    joined until they fill the chunks.
    weight: share of the steps whose documents come from here, relative to the other sources.
    least_tokens, most_tokens: documents shorter or longer are passed over; most_tokens itself is too long.
    shuffle: how many documents are read ahead and put in random order; with it, the order of a dataset's files is drawn
    anew in each epoch. 0 keeps the order of the files.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text: str = "text"
    questions: str | None = None
    revision: str | None = None
    weight: float = 1.0
    least_tokens: int | None = None
    most_tokens: int | None = None
    shuffle: int = 64

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path is empty; give a dataset of the hub, a file, a folder, or a recipe.")
        if not self.weight > 0:
            raise ConfigError(f"{self.path}: weight is {self.weight}; give a number above 0, or leave the source out.")
        if self.shuffle < 0:
            raise ConfigError(f"{self.path}: shuffle is {self.shuffle}; give 0 (keep the order) or more documents.")
        if (self.least_tokens or 0) < 0 or (self.most_tokens or 1 << 60) <= (self.least_tokens or 0):
            raise ConfigError(
                f"{self.path}: no document has from {self.least_tokens} to below {self.most_tokens} tokens; "
                "least_tokens must be below most_tokens."
            )


_FINEWEB = Data(path="HuggingFaceFW/fineweb-edu", name="CC-MAIN-2024-10")

RECIPES: dict[str, tuple[Data, ...]] = {
    # Stage 1 of M+: one snapshot of fineweb-edu.
    "fineweb-edu": (_FINEWEB,),
    # Stage 2: four bands of length and short documents, 1:1:1:1:1. The 6B sample of SlimPajama is read; for the papers'
    # amounts, the same with path="cerebras/SlimPajama-627B". Each band reads the dataset on its own.
    "slimpajama-long": (
        *(
            Data(path="DKYoon/SlimPajama-6B", least_tokens=least * 1024, most_tokens=2 * least * 1024)
            for least in (4, 8, 16, 32)
        ),
        _FINEWEB,
    ),
}


@dataclass(frozen=True)
class Row:
    """A document as it was read: its text, and its questions with their answers."""

    text: str
    asked: list[tuple[str, str]]


class Corpus:
    """One lane's documents of one place they come from, one after the other, epoch after epoch.

    Documents are read in blocks of `Data.shuffle`, each handed out in an order of its own. The place is then where the
    block begins and how much of it was handed out: a few numbers, while the texts of a block may be many megabytes.
    """

    def __init__(self, data: Data, *, seed: str, lane: int, lanes: int, split: str) -> None:
        self.data, self.seed, self.lane, self.lanes, self.split = data, seed, lane, lanes, split
        self.files = _files(data)
        self.dataset = self._open()
        self.epoch = 0
        self._number, self._taken = -1, 0  # the block at hand, and how much of it was handed out
        self._block: list[Row] = []
        self._place: dict[str, Any] | None = None  # where the block begins in the dataset; None: at its beginning
        self._after: dict[str, Any] | None = None  # where it ends
        self._rows: Iterator[dict[str, Any]] | None = None
        self._ended = False

    def take(self) -> Row:
        """The next document."""
        while self._taken == len(self._block):
            self._fill()
        self._taken += 1
        return self._block[self._taken - 1]

    def state(self) -> dict[str, Any]:
        """The place, as JSON."""
        return {
            "epoch": self.epoch,
            "block": self._number,
            "place": self._place,
            "taken": self._taken,
            "texts": self._digest(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        self.epoch, self._number, self._after = state["epoch"], max(-1, state["block"] - 1), state["place"]
        self._block, self._rows, self._ended, self._place, self._taken = [], None, False, None, 0
        if state["block"] >= 0:
            self._fill()
            self._taken = state["taken"]
        if self._digest() != state["texts"]:
            raise ConfigError(
                f"{self.data.path} holds other documents than when the run was interrupted (or `shuffle`, `text` or "
                "`split` changed). Give the same data, or begin a new run."
            )

    def _digest(self) -> str:
        """Tells whether a block is the same."""
        digest = hashlib.blake2b(digest_size=8)
        for row in self._block:
            digest.update(row.text.encode("utf-8", "replace") + b"\0")
        return digest.hexdigest()

    def _fill(self) -> None:
        """Read the next block; it may be empty. A block does not reach into the next epoch."""
        if self._ended:
            self.epoch, self._number, self._after, self._rows, self._ended = self.epoch + 1, -1, None, None, False
        if self._rows is None:
            self._rows = self._iterate(self._after)
        self._number, self._place, self._block, self._taken = self._number + 1, self._after, [], 0
        while len(self._block) < max(1, self.data.shuffle) and not self._ended:
            row = self._next()
            if row is None:
                self._ended = True
            elif self.split == "all" or (self.split == "held_out") == is_held_out(row.text):
                self._block.append(row)
        self._after = self.dataset.state_dict()
        if not self._block and self._number == 0:
            lane = f" for process {self.lane + 1} of {self.lanes}" if self.lanes > 1 else ""
            wanted = {"train": "document to train on", "held_out": "held-out document", "all": "document"}[self.split]
            hint = f"; one of {HELD_OUT} documents is held out" if self.split == "held_out" else ""
            raise ConfigError(f"{self.data.path} has no {wanted}{lane}{hint}. Give more documents.")
        if self.data.shuffle:
            random.Random(f"{self.seed}/{self.lane}/{self.epoch}/{self._number}").shuffle(self._block)

    def _next(self) -> Row | None:
        """The next row that holds text; None at the end."""
        assert self._rows is not None
        while True:
            try:
                row = next(self._rows, None)
            except Exception as error:  # whatever the reader of some format raises
                advice = "Check the network, and start again." if self.files is None else _REPAIR
                raise ConfigError(
                    f"{self.data.path} cannot be read{self._bad_line()}: {_short(error)}. {advice}"
                ) from error
            if row is None:
                return None
            for field in filter(None, (self.data.text, self.data.questions)):
                if field not in row:
                    raise ConfigError(
                        f"{self.data.path} has no field {field!r}; its fields are {', '.join(map(repr, row))}. "
                        f"Name the field of the {'document in `text`' if field == self.data.text else 'questions'}."
                    )
            text = row[self.data.text]
            if text is not None and not isinstance(text, str):
                raise ConfigError(
                    f"{self.data.path}: the field {self.data.text!r} holds {type(text).__name__}, not text. "
                    f"Its fields are {', '.join(map(repr, row))}."
                )
            if text:
                return Row(text, _asked(row, self.data.questions) if self.data.questions else [])

    def _bad_line(self) -> str:
        """Where the first unreadable line is; readers of blocks do not say."""
        for file in self.files or []:
            if file.suffix == ".jsonl":
                with file.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        try:
                            if line.strip():
                                json.loads(line)
                        except ValueError:
                            return f" ({file.name}, line {number})"
        return ""

    def _iterate(self, place: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if self.data.shuffle:  # `datasets` draws an order of the files from any epoch but 0
            key = random.Random(self.seed).randrange(1000)
            self.dataset.set_epoch(1 + key * 1_000_000 + self.epoch)
        self.dataset.load_state_dict(place or {})
        return iter(self.dataset)

    def _open(self) -> Any:
        """The stream of rows of this lane."""
        try:
            import datasets
            from datasets.distributed import split_dataset_by_node
        except ImportError as error:
            raise ConfigError("reading documents takes more packages: pip install 'remanence[train]'") from error
        data = self.data
        try:
            if self.files is None:
                dataset = datasets.load_dataset(
                    data.path, data.name, split=data.split, revision=data.revision, streaming=True
                )
            else:
                builder = _kind(self.files[0])
                options = {"sample_by": "document"} if builder == "text" else {}
                names = [str(file.resolve()) for file in self.files]
                dataset = datasets.load_dataset(builder, data_files=names, split="train", streaming=True, **options)
        except Exception as error:  # the hub's, the network's, a reader's
            if self.files is not None:
                raise ConfigError(
                    f"{data.path} cannot be opened{self._bad_line()}: {_short(error)}. {_REPAIR}"
                ) from error
            raise ConfigError(
                f"{data.path} cannot be opened from the Hugging Face hub, and there is no such file or folder: "
                f"{_short(error)}. Check the name, its configuration (name={data.name!r}), its split ({data.split!r}) "
                "and the network, or give a local file."
            ) from error
        return split_dataset_by_node(dataset, self.lane, self.lanes)


def expand(data: Data) -> tuple[Data, ...]:
    """What a recipe stands for, its weight shared among the parts; anything else is itself."""
    recipe = RECIPES.get(data.path)
    if recipe is None:
        return (data,)
    set_too = [f.name for f in fields(Data) if f.name not in ("path", "weight") and getattr(data, f.name) != f.default]
    if set_too:
        raise ConfigError(f"{data.path} is a recipe: of its settings only weight can be given, not {set_too[0]}.")
    total = sum(d.weight for d in recipe)
    return tuple(replace(d, weight=data.weight * d.weight / total) for d in recipe)


def is_held_out(text: str) -> bool:
    """Whether a document is one of those that training never sees. It depends on the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def _kind(file: Path) -> str | None:
    """The reader for a file, by the end of its name."""
    suffixes = [s for s in file.suffixes if s not in _PACKED] if file.suffix in _PACKED else file.suffixes
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def _files(data: Data) -> list[Path] | None:
    """The local files of a source; None if it is a dataset of the hub."""
    path = Path(data.path).expanduser()
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and _kind(f))
    elif path.exists():
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(str(path), recursive=True)))
        hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.path) and not data.path.startswith(".")
        if not files and hub and _kind(path) is None:
            return None
    ends = ", ".join(_BUILDERS)
    kinds = {_kind(file) for file in files}
    if not files:
        raise ConfigError(f"{data.path}: there is no such file. Give one, or a folder or pattern, of {ends} files.")
    if None in kinds:
        odd = next(file for file in files if _kind(file) is None)
        raise ConfigError(f"{odd}: documents are read from {ends} files, also packed as {', '.join(_PACKED)}.")
    if len(kinds) > 1:
        raise ConfigError(f"{data.path} has files of different kinds; choose one by a pattern, e.g. '*.jsonl'.")
    if data.name or data.revision or data.split != "train":
        raise ConfigError(f"{data.path} is local: name, revision and split are of datasets of the hub. Leave them out.")
    return files


def _asked(row: dict[str, Any], field: str) -> list[tuple[str, str]]:
    """The questions of a row that have an answer."""
    value = row[field]
    if isinstance(value, str):
        items = [row | {"question": value}]
    elif isinstance(value, dict):  # columns, as `datasets` may give a list of objects
        items = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    elif value is None or isinstance(value, list):
        items = [item for item in value or [] if isinstance(item, dict)]
    else:
        raise ConfigError(f"the field {field!r} holds {type(value).__name__}; it must hold questions.")
    pairs = []
    for item in items:
        answer = item.get("answer") or item.get("answers")
        if isinstance(answer, dict):
            answer = answer.get("text")
        if isinstance(answer, list):
            answer = answer[0] if answer else None
        if isinstance(answer, dict):
            answer = answer.get("text")
        asked = item.get("question")
        if isinstance(asked, str) and isinstance(answer, str) and answer.strip() and not item.get("is_impossible"):
            pairs.append((asked, answer.strip()))
    return pairs


def _short(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    if isinstance(error, StopIteration):  # what `datasets` raises at an empty file
        return "it is empty"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
