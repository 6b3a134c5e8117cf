"""What every system of the arena is: it is told dated texts, it answers questions, it can be saved, and it costs.

All systems of a run are built from one `Kit`: the same reader, the same prompt frame (`readers.py`), the same budget of
context tokens, the same encoder, the same seed. A system that gives text to the reader is a `TextSystem` and says only
which pieces of text, best first; this one remembers the sentences that share a word with the question:

    class Words(TextSystem):
        \"\"\"Sentences that share most words with the question. Paper: none; it is an example.\"\"\"

        name = "words"

        def __init__(self, kit: Kit, *, least: int = 1, brain: str | None = None) -> None:
            self.least = least  # `words:least=2` on the command line
            super().__init__(kit, brain=brain)

        def reset(self) -> None:
            self.pieces: list[Piece] = []

        def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
            if self.brain == "reader":  # its own calls to the one reader are counted too
                [text] = self.kit.reader.complete([f"Say it in one sentence: {text}"], max_new_tokens=40)
            self.pieces += [Piece(s, len(self.pieces) + i, time) for i, s in enumerate(text.split(". "))]

        def context(self, question: Question) -> list[Piece]:
            asked = set(question.text.lower().split())
            shared = {piece: len(asked & set(piece.text.lower().split())) for piece in self.pieces}
            return sorted((p for p in shared if shared[p] >= self.least), key=lambda p: -shared[p])

        def save(self, folder: Path) -> None:
            write_state(folder, {"pieces": [dataclasses.astuple(piece) for piece in self.pieces]})

        def load(self, folder: Path) -> None:
            values, _ = read_state(folder)
            self.pieces = [Piece(*row) for row in values["pieces"]]

`SYSTEMS` of `registry.py` has a line for each: its name, and the module and class. A system of one's own needs no such
line: `--systems my_file.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StorageError
from .tasks import Question

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.pretrained import MemoryModel
    from .minilm import Encoder
    from .readers import Reader

BRAINS = ("rules", "reader")
_VALUES, _TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True)
class Piece:
    """A piece of text that the reader may get. order: pieces are shown in this order. time: of what it tells.
    passage: its number, if it is one of `Passages` (see `Reply.read`)."""

    text: str
    order: float = 0.0
    time: float = 0.0
    passage: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a system answers.

    text: the answer; None if the system cannot be asked this. read: numbers of the passages it read (`Passages`, which
    are also numbers of our writes); None for a system, or a model, that cuts text otherwise. context: the texts that
    the reader got, in their order; empty for memory inside the model. recalled: whether ours read its memory at all;
    None for others.
    """

    text: str | None
    read: list[int] | None = None
    context: tuple[str, ...] = ()
    recalled: bool | None = None


@dataclass
class Kit:
    """What every system of a run is built from.

    Args:
        model: ours. Its tokenizer counts tokens and its chunks cut passages, whoever answers.
        reader: the one reader: `read` answers questions from texts, in the one prompt frame; `complete` and
            `likelihood` are for a system's own calls. What it is asked is counted, by `reader.used`.
        budget: most tokens of text that the reader gets with a question.
        brain: who decides in systems whose paper asks a language model: "rules" or "reader" (`System.brain`).
        seed: of every random choice of a system.
        max_new_tokens: most tokens of an answer.
        make_encoder: makes the encoder of sentences.
        make_untrained: makes the bare base with a verbatim memory, for `ours-untrained`.
    """

    model: MemoryModel
    reader: Reader
    budget: int = 600
    brain: str = "rules"
    seed: int = 1
    max_new_tokens: int = 32
    make_encoder: Callable[[], Encoder] | None = None
    make_untrained: Callable[[], MemoryModel] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.brain not in BRAINS:
            raise ConfigError(f"brain is {self.brain!r}; choose one of {', '.join(BRAINS)}.")
        if self.budget < 1:
            raise ConfigError(f"budget is {self.budget}; give at least one token.")

    @cached_property
    def encoder(self) -> Encoder:
        """all-MiniLM-L6-v2: `encode(texts)` gives unit vectors, float32 [texts, 384]. It sees 256 word pieces."""
        if self.make_encoder is not None:
            return self.make_encoder()
        from .minilm import Encoder

        return Encoder.packaged()

    def forget(self) -> None:
        """Forget what reader and encoder keep of earlier work, so that its cost is counted where it arises."""
        self.reader.forget()
        if "encoder" in vars(self):
            self.encoder.forget()

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.model.encode(text))

    def fit(self, pieces: Iterable[Piece], budget: int | None = None) -> list[Piece]:
        """The best pieces that fit the budget together, in their order.

        Args:
            pieces: best first. One that does not fit is left out, and the next may fit. The first one alone is cut to
                fit, so that a system with long pieces still shows something.
            budget: tokens; the kit's if None.
        """
        left = self.budget if budget is None else budget
        chosen: list[Piece] = []
        for piece in pieces:
            if left < 2:
                break
            size = self.tokens(piece.text) + 1  # a new line is between two
            if size > left and not chosen:
                ids = self.model.encode(piece.text)[: left - 1]
                text = str(self.model.tokenizer.decode(ids)).strip()
                piece, size = Piece(text, piece.order, piece.time, piece.passage), left
            if size <= left:
                chosen.append(piece)
                left -= size
        return sorted(chosen, key=lambda piece: piece.order)


class System:
    """One way to remember.

    A subclass sets `name`, says in its docstring which paper and section it follows and which differences to the
    published code are meant, and takes the kit and its own options by keyword, with defaults.

    name: for tables and the command line. sees_evidence: whether it is shown what the task knows of a question (right
    answers, where they stand); others get the words alone. inside: whether memory is inside the model, so that no text
    is given to a reader.

    Args:
        kit: what it is built from.
        brain: who decides, if not as the kit says.
    """

    name = ""
    sees_evidence = False
    inside = False

    def __init__(self, kit: Kit, *, brain: str | None = None) -> None:
        if brain not in (None, *BRAINS):
            raise ConfigError(f"brain is {brain!r}; choose one of {', '.join(BRAINS)}.")
        self.kit, self.brain = kit, brain or kit.brain
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Take in a text.

        Args:
            text: what is told: a turn, a passage, a page.
            label: where it is from; for people.
            time: seconds on the task's own clock, never that of the machine; since 1970 where the texts are dated.
        """
        raise NotImplementedError

    def answer(self, question: Question) -> Reply:
        """Answer one question; nothing is remembered of it."""
        return self.answers([question])[0]

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer several questions that are asked at the same moment, each as if it were asked alone."""
        raise NotImplementedError

    def feedback(self, question: Question, reply: Reply, right: float) -> None:
        """How right a reply was, from 0 to 1; only told on tasks that have feedback (`again`), of questions without a
        distance. Does nothing by default."""

    @contextmanager
    def untaught(self) -> Iterator[None]:
        """In the block answers change nothing that is remembered: questions at a distance are asked in it, as they come
        again at a longer one. Only systems that learn from answers override it."""
        yield

    def save(self, folder: Path) -> None:
        """Write all that is remembered to a folder, which is made; how large it is is what the system stores."""
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        """Be as after `save`, in place of what is remembered now."""
        raise NotImplementedError


class TextSystem(System):
    """Gives text to the reader; says which in `context`."""

    def context(self, question: Question) -> list[Piece]:
        """Pieces for a question, best first; as many of them as fit the budget are read, in their order."""
        raise NotImplementedError

    def contexts(self, questions: Sequence[Question]) -> list[list[Piece]]:
        """The same for several questions; systems that can do it faster in one go override it."""
        return [self.context(question) for question in questions]

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Choose pieces for each question and have them read."""
        return self.read(questions, [self.kit.fit(pieces) for pieces in self.contexts(questions)])

    def read(self, questions: Sequence[Question], chosen: Sequence[Sequence[Piece]]) -> list[Reply]:
        """Have pieces read that were chosen already, as they are."""
        texts = [tuple(piece.text for piece in pieces) for pieces in chosen]
        answers = self.kit.reader.read([(q.text, shown) for q, shown in zip(questions, texts, strict=True)])
        replies = []
        for answer, shown, pieces in zip(answers, texts, chosen, strict=True):
            passages = [piece.passage for piece in pieces]
            numbers = [p for p in passages if p is not None]
            replies.append(Reply(answer, sorted(numbers) if len(numbers) == len(passages) else None, shown))
        return replies


def write_state(folder: Path, values: Any, tensors: dict[str, Tensor] | None = None) -> None:
    """Write what a system remembers: plain values as JSON, and tensors.

    Args:
        folder: made if there is none.
        values: of JSON; dictionaries have texts as keys.
        tensors: by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _VALUES).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    if tensors:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)


def read_state(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """What `write_state` wrote: values, and tensors.

    Raises:
        StorageError: the folder holds no such state.
    """
    try:
        values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder} holds no state of a system: {error}") from error
    if not (folder / _TENSORS).exists():
        return values, {}
    from safetensors.torch import load_file

    return values, load_file(folder / _TENSORS)
