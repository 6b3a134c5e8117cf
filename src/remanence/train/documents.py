"""From documents to batches: any Hugging Face dataset or local file becomes streams to write and text to read.

Each document is cut as in the papers' training (M+ §3.3, App. D): T chunks of n tokens that are written, then a target
that is read with loss: the text that follows, "Repeat: " and the chunks themselves, or a question about them.

Documents are streamed, so memory does not grow with the corpus. Every batch is a function of the seed, the lane (one a
process) and the number of batches drawn: after `state` and `load` a run sees exactly what an uninterrupted one would.
One of `HELD_OUT` documents, chosen by a hash of its text, is never trained on.

Legend: B streams, T chunks of a stream, n tokens of a chunk.
"""

from __future__ import annotations

import glob
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .data import Batch, Question

HELD_OUT = 64
SPLITS = ("train", "held_out", "all")
PROMPT = "Question: {question} Answer:"
REPEAT = "Repeat: "

_GIVEN = 5  # tokens of the text to repeat that are given away, as in the official code
_LEAST_LOSS = 16  # tokens with loss that a target of text has at least
_PATIENCE = 100_000  # documents in a row that do not fit, after which we say so
_WINDOW = 16  # characters kept a token wanted, when a piece is cut from a very long text before it is tokenised
_BUILDERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
_PACKED = (".gz", ".zst", ".xz", ".bz2")
_REPAIR = "Repair or remove the file; it must be what the end of its name says."
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


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


@dataclass(frozen=True, kw_only=True)
class DocumentMix:
    """How batches are drawn from documents.

    streams: documents a batch. chunks: least and most chunks a document, T. tokens: least and most length of a chunk,
    n. Both are drawn once a step and are the same for all streams and all lanes. From a source with `least_tokens`, no
    more chunks are drawn than its shortest document has.
    target: most tokens that are read after the chunks, with the prompt. prompt: least and most of its first tokens that
    are read without loss: they query the retriever.
    repeat: share of documents whose target is "Repeat: " and the chunks themselves.
    questions: where a document has questions, share of the other targets that is one of them.
    """

    streams: int = 1
    chunks: tuple[int, int] = (1, 1)
    tokens: tuple[int, int] = (16, 512)
    target: int = 512
    prompt: tuple[int, int] = (8, 64)
    repeat: float = 0.1
    questions: float = 0.5

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ConfigError(f"streams is {self.streams}; give 1 or more.")
        for name, least in (("chunks", 1), ("tokens", _GIVEN + 1), ("prompt", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name} is {(low, high)}; give the least and the most, from {least} on.")
        if self.target <= self.prompt[1]:
            raise ConfigError(f"target is {self.target}; give more than the longest prompt, {self.prompt[1]} tokens.")
        for name in ("repeat", "questions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share from 0 to 1.")


@dataclass(frozen=True)
class _Row:
    """A document as it was read: its text, and its questions with their answers."""

    text: str
    asked: list[tuple[str, str]]


@dataclass(frozen=True)
class _Part:
    """A document's place in the tokens of a stream: from `begin` to before `end`."""

    row: _Row
    begin: int
    end: int


class _Source:
    """One lane of one source: documents, one after the other, epoch after epoch.

    Documents are read in blocks of `Data.shuffle`, each handed out in an order of its own. The place is then where the
    block begins and how much of it was handed out: a few numbers, while the texts of a block may be many megabytes.
    """

    def __init__(self, data: Data, *, seed: str, lane: int, lanes: int, split: str) -> None:
        self.data, self.seed, self.lane, self.lanes, self.split = data, seed, lane, lanes, split
        self.files = _files(data)
        self.dataset = self._open()
        self.epoch = 0
        self._number, self._taken = -1, 0  # the block at hand, and how much of it was handed out
        self._block: list[_Row] = []
        self._place: dict[str, Any] | None = None  # where the block begins in the dataset; None: at its beginning
        self._after: dict[str, Any] | None = None  # where it ends
        self._rows: Iterator[dict[str, Any]] | None = None
        self._ended = False

    def take(self) -> _Row:
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

    def _next(self) -> _Row | None:
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
                return _Row(text, _asked(row, self.data.questions) if self.data.questions else [])

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


class Documents:
    """Draws batches from documents.

    Args:
        sources: where documents come from. A `Data` whose path is in `RECIPES` stands for the recipe's sources, with
            its weight shared among them.
        tokenizer: makes tokens, without special ones; answers end with its eos.
        prompt: what is read before an answer, with "{question}" in it; may hold control tokens, e.g. of a chat.
        seed: another one draws other batches.
        lane, lanes: this process and how many there are. Each document goes to one lane.
        split: "train"; "held_out" for the documents never trained on; "all" for a file that is evaluated as a whole.

    Raises:
        ConfigError: a source that cannot be opened, or settings that cannot work.
    """

    def __init__(
        self,
        sources: Sequence[Data],
        tokenizer: Any,
        *,
        prompt: str | None = None,
        seed: int = 0,
        lane: int = 0,
        lanes: int = 1,
        split: str = "train",
    ) -> None:
        if not sources:
            raise ConfigError("there is no source of documents; give one or more.")
        if not 0 <= lane < lanes:
            raise ConfigError(f"lane is {lane} of {lanes}; give one from 0 to {lanes - 1}.")
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; give one of {', '.join(map(repr, SPLITS))}.")
        self.prompt = PROMPT if prompt is None else prompt
        if "{question}" not in self.prompt:
            raise ConfigError(f"the prompt {self.prompt!r} has no {{question}} in it; say where the question goes.")
        self.tokenizer, self.seed, self.lane, self.lanes, self.split = tokenizer, seed, lane, lanes, split
        self.drawn = 0
        self.sources = [
            _Source(data, seed=f"{seed}/{split}/{i}", lane=lane, lanes=lanes, split=split)
            for i, data in enumerate(d for source in sources for d in expand(source))
        ]

    def batch(self, step: int, mix: DocumentMix) -> Batch:
        """The next batch.

        Args:
            step: with the seed, it gives the source and the sizes; processes that call with the same step have equal
                work.
            mix: how it is drawn.

        Returns:
            chunks_BTn, and one question a stream: its prompt is read without loss, its answer with loss. `chunk` is the
            one that holds a question's answer, if just one does. Otherwise it is the last chunk of the document (of
            what is to be repeated), and `stale` are the document's earlier ones.

        Raises:
            ConfigError: documents that cannot be read, or a whole epoch without one that is long enough.
        """
        shared = random.Random(f"{self.seed}/{step}")
        source = shared.choices(self.sources, [s.data.weight for s in self.sources])[0]
        length = shared.randint(*mix.tokens)
        low, high = mix.chunks
        if source.data.least_tokens is not None:
            free = source.data.least_tokens - mix.prompt[1] - _LEAST_LOSS
            high = max(low, min(high, free // length))
        chunks = shared.randint(low, high)
        rng = random.Random(f"{self.seed}/{self.split}/{self.lane}/{self.drawn}")
        rows, questions = [], []
        for stream in range(mix.streams):
            row, question = self._stream(source, rng, mix, chunks, length)
            question.stream = stream
            rows.append(row)
            questions.append(question)
        self.drawn += 1
        chunks_BTn = torch.tensor(rows).unflatten(1, (chunks, length))
        return Batch(chunks_BTn, torch.zeros(chunks_BTn.shape[:2], dtype=torch.bool), questions)

    def state(self) -> dict[str, Any]:
        """The exact place, as JSON; less than a kilobyte a source. Each lane has its own."""
        sources = [source.state() for source in self.sources]
        return {"version": 1, "drawn": self.drawn, "sources": sources} | self._identity()

    def load(self, state: dict[str, Any]) -> None:
        """Go to a place: the batches that follow are those that followed there.

        Raises:
            ConfigError: a state of other settings, or of other data.
        """
        mine = {"version": 1} | self._identity()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine or len(state.get("sources", [])) != len(self.sources):
            raise ConfigError(
                f"this place in the data is one of {theirs} with {len(state.get('sources', []))} sources, not of "
                f"{mine} with {len(self.sources)}. Use the same settings and as many processes, or begin a new run."
            )
        self.drawn = state["drawn"]
        for source, place in zip(self.sources, state["sources"], strict=True):
            source.load(place)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, which cannot spell control tokens."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "lane": self.lane, "lanes": self.lanes, "split": self.split}

    def _stream(
        self, source: _Source, rng: random.Random, mix: DocumentMix, chunks: int, length: int
    ) -> tuple[list[int], Question]:
        """The tokens of one stream's chunks, and its target."""
        written = chunks * length
        prompt = rng.randint(*mix.prompt)
        repeat, ask = rng.random() < mix.repeat, rng.random() < mix.questions
        tail = 0 if repeat else min(mix.target, prompt + _LEAST_LOSS)
        need, want = written + tail, written + (0 if repeat else mix.target)
        ids, parts = self._text(source, rng, need, want, f"{chunks} chunks of {length} tokens and a target")
        if ask and not repeat:
            asked = self._ask(rng, ids, parts, chunks, length)
            if asked is not None:
                return asked
        begin = rng.randint(0, max(0, len(ids) - want))
        ids = ids[begin : begin + want]
        if repeat:
            instruction = self.encode(REPEAT)
            sentence = (instruction + ids)[: max(mix.target, len(instruction) + _GIVEN + 1)]
            given = len(instruction) + _GIVEN
            last = (len(sentence) - len(instruction) - 1) // length
            return ids, Question(sentence[:given], sentence[given:], 0, last, list(range(last)), alike=True)
        after = ids[written:]
        part = next(p for p in parts if begin + written < p.end)
        earliest = min(max(0, part.begin - begin) // length, chunks - 1)
        stale = list(range(earliest, chunks - 1))
        return ids[:written], Question(after[:prompt], after[prompt:], 0, chunks - 1, stale, alike=True)

    def _text(
        self, source: _Source, rng: random.Random, need: int, want: int, wanted: str
    ) -> tuple[list[int], list[_Part]]:
        """Tokens of the next document that has `need` of them, or of several with questions, joined."""
        data = source.data
        least, most = data.least_tokens or 0, data.most_tokens
        if most is not None and most <= need:
            raise ConfigError(
                f"{wanted} take {need} tokens, but documents of {data.path} are below {most}. Lower the mix's `chunks` "
                "or `tokens`, or raise most_tokens."
            )
        join = data.questions is not None
        ids: list[int] = []
        parts: list[_Part] = []
        longest, longest_text, looked, first = 0, "", 0, None
        while True:
            row = source.take()
            first = source.epoch if first is None else first
            if source.epoch > first + 1 or looked >= _PATIENCE:
                longest = max(longest, len(self.encode(longest_text[: 32 * need])))
                joined = f"; joined, {len(ids)}" if join else ""
                band = f" (of {least} to {most or 'any'} tokens)" if least or most else ""
                raise ConfigError(
                    f"{data.path}: none of {looked} documents in a row{band} has the {need} tokens that {wanted} "
                    f"take; the longest has {longest}{joined}. Lower the mix's `chunks` or `tokens`, or give longer "
                    "documents."
                )
            looked += 1
            if join and any(row.text == part.row.text for part in parts):
                continue  # rows of one passage with different questions
            # A token is at least a byte, but for a few at the ends: what is too short need not be tokenised.
            if len(row.text.encode("utf-8", "replace")) + 8 < max(least, 0 if join else need):
                longest_text = max(longest_text, row.text, key=len)
                continue
            text = row.text
            if not join and not least and not most and len(text) > _WINDOW * want:
                text = _window(rng, text, _WINDOW * want)
            new = self.encode(text)
            if len(new) < need and text is not row.text:
                new = self.encode(row.text)
            if len(new) < least or (most is not None and len(new) >= most):
                continue
            longest = max(longest, len(new))
            if not join:
                if len(new) >= need:
                    return new, [_Part(row, 0, len(new))]
                continue
            if ids:
                ids += self.encode("\n\n")
            parts.append(_Part(row, len(ids), len(ids) + len(new)))
            ids += new
            if len(ids) >= need:
                return ids, parts

    def _ask(
        self, rng: random.Random, ids: list[int], parts: list[_Part], chunks: int, length: int
    ) -> tuple[list[int], Question] | None:
        """A question and a window of the text that has its answer; None if there is none."""
        written = chunks * length
        candidates = [(part, *pair) for part in parts for pair in part.row.asked]
        rng.shuffle(candidates)
        for part, question, answer in candidates:
            found = _pattern(answer).search(part.row.text.translate(_QUOTES))
            begin, end = part.begin, part.end  # an answer in other words than the text's takes all of it
            if found:
                begin = min(part.begin + len(self.encode(part.row.text[: found.start()])), part.end)
                end = min(begin + len(self.encode(found[0])) + 1, part.end)
            low, high = max(0, end - written), min(begin, len(ids) - written)
            if low > high:
                continue
            start = rng.randint(low, high)
            window = ids[start : start + written]
            own = range(max(0, part.begin - start) // length, (min(part.end - start, written) - 1) // length + 1)
            holders = [c for c in range(chunks) if self._holds(window[c * length : (c + 1) * length], answer)]
            chunk, stale = own[-1], list(own[:-1])
            if len(holders) == 1 and holders[0] in own:  # not several, nor across the end of a chunk
                chunk, stale = holders[0], []
            return window, self.question(question, answer, chunk, stale)
        return None

    def _holds(self, ids: list[int], answer: str) -> bool:
        return bool(_pattern(answer).search(self.tokenizer.decode(ids).translate(_QUOTES)))

    def question(self, asked: str, answer: str, chunk: int | None = None, stale: Sequence[int] = ()) -> Question:
        """A question and its answer as token ids, as batches have them: the prompt around it, eos at its end."""
        prompt = self.prompt.replace("{question}", asked.strip())
        before = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        between = "" if prompt[-1].isspace() else " "
        # Together, because how a word begins depends on what is before it in some tokenizers and not in others.
        whole = self.tokenizer(prompt + between + answer, add_special_tokens=False, verbose=False).input_ids
        after = whole[len(before) :] if whole[: len(before)] == before else self.encode(between + answer)
        eos = self.tokenizer.eos_token_id
        return Question(before, after + ([] if eos is None else [eos]), 0, chunk, list(stale))


def expand(data: Data) -> tuple[Data, ...]:
    """The sources that a recipe stands for, its weight shared among them; any other source is itself."""
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


def _pattern(answer: str) -> re.Pattern[str]:
    """An answer as it may stand in a text: in any case, across line ends, but not inside a longer word or number."""
    words = r"\s+".join(re.escape(word) for word in answer.translate(_QUOTES).split())
    return re.compile(rf"(?<![A-Za-z0-9]){words}(?![A-Za-z0-9])", re.IGNORECASE)


def _window(rng: random.Random, text: str, size: int) -> str:
    """A piece of a very long text, from the beginning of a word on: tokenising all of a book would be waste."""
    begin = rng.randint(0, len(text) - size)
    space = text.find(" ", begin, begin + 64)
    return text[(begin if space < 0 or not begin else space) :][:size]


def _short(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    if isinstance(error, StopIteration):  # what `datasets` raises at an empty file
        return "it is empty"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
