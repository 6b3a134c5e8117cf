"""Memory inside the model: ours, and what it is made of or stands beside. No text is given to a reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from ..core.dates import resolved
from ..core.memory import Memory
from ..errors import ConfigError
from ..models.pretrained import MemoryModel
from .memories import words
from .passages import Passages
from .protocol import Kit, Reply, System, read_state, write_state
from .readers import batches, roomy
from .tasks import Question


class Ours(System):
    """A `MemoryModel` with its memory, as it is trained.

    A text that has a day is told with it, as systems that show text show it. A model that writes short text at once
    (the published ones do) is told it when no more fits a chunk, or when it is asked: a turn of a conversation would
    otherwise take as much memory as a page.

    Args:
        kit, brain: as in `System`.
        model: another model than the kit's; a folder, a name or a hub id, for `MemoryModel.from_pretrained`.
        store_dtype: number format of the long-term store, if not as the model has it.
    """

    name = "ours"
    inside = True
    options: dict[str, Any] = {}  # for `ask_batch`  # noqa: RUF012

    def __init__(self, kit: Kit, *, model: str = "", store_dtype: str = "", brain: str | None = None) -> None:
        self.model = MemoryModel.from_pretrained(model).eval() if model else self._model(kit)
        self.config = self.model.config
        if store_dtype:
            self.config = self.config.replace(store_dtype=store_dtype)
        mine, theirs = self.config, kit.model.config
        self._at_once = mine.short_chunks == "complete"
        same = self.model.tokenizer is kit.model.tokenizer and not self._at_once
        self._writes_are_passages = same and (mine.chunk_tokens, mine.split) == (theirs.chunk_tokens, theirs.split)
        super().__init__(kit, brain=brain)

    def _model(self, kit: Kit) -> MemoryModel:
        return kit.model

    @contextmanager
    def own(self) -> Iterator[MemoryModel]:
        """In the block the model has the settings of this system; other systems share it."""
        before = self.model.config
        if before == self.config:
            yield self.model
            return
        try:
            self.model.config, self.model._fingerprint = self.config, ""  # the fingerprint is of the settings too
            yield self.model
        finally:
            self.model.config, self.model._fingerprint = before, ""

    def reset(self) -> None:
        """Start an empty memory."""
        with self.own() as model:
            self.memory = model.new_memory(empty=True)
        self._waiting: list[str] = []
        self._dated = False

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Memorize a text; if it has a day, that is before it, and dates are before words such as "yesterday"."""
        day = words.day_told(label, time)
        said, put_in = resolved(text, date.fromisoformat(day)) if day else (text, [])
        told = words.dated(said, day)
        ahead = (0, len(told) - len(said))
        self._take(told, [ahead, *((place, len(more)) for place, more in put_in)], label, time)

    def _take(self, text: str, put_in: list[tuple[int, int]], label: str, time: float) -> None:
        """Memorize a text; what was put in are so many characters at places of the text as it was."""
        self._dated |= any(more for _, more in put_in)
        if not self._at_once:
            with self.own() as model:
                model.memorize(self.memory, text, source=label, time=time)
            return
        if len(self.model.encode("\n".join([*self._waiting, text]))) > self.config.chunk_tokens:
            self._write()
        self._waiting.append(text)
        self._last = (label, time)

    def _write(self) -> None:
        """Memorize what waits for a chunk to fill."""
        if self._waiting:
            (label, time), text = self._last, "\n".join(self._waiting)
            self._waiting = []
            with self.own() as model:
                model.memorize(self.memory, text, source=label, time=time)

    def answers(self, questions: Sequence[Question], force: Sequence[int | None] | None = None) -> list[Reply]:
        """Ask the memory. A question that does not fit the window has no answer.

        Args:
            questions: as in `System`.
            force: for each, a write that is read whatever its score.
        """
        self._write()
        replies, most = [Reply(None, recalled=False)] * len(questions), self.kit.max_new_tokens
        with self.own() as model:
            fit = [i for i, q in enumerate(questions) if model.fits(self.memory, q.text, most)]
            for lot in batches([model.config.slots + len(questions[i].text) // 3 for i in fit]):
                asked = [questions[fit[i]].text for i in lot]
                options = dict(self.options)
                if force is not None:
                    options["force"] = [force[fit[i]] for i in lot]
                made = model.ask_batch([self.memory] * len(asked), asked, max_new_tokens=most, **options)
                for i, answer in zip(lot, made, strict=True):
                    writes = {s.write if s.write >= 0 else self.memory.write_count for s in answer.sources}
                    read = sorted(writes) if self._writes_are_passages and not self._dated else None
                    replies[fit[i]] = Reply(answer.text, read, (), answer.recalled)
        return replies

    def save(self, folder: Path) -> None:
        """Write the memory."""
        self._write()
        write_state(folder, {"memory": self.memory.meta(), "dated": self._dated}, self.memory.tensors())

    def load(self, folder: Path) -> None:
        """As in `System`."""
        values, tensors = read_state(folder)
        self.memory, self._waiting = Memory.from_parts(tensors, values["memory"]), []
        self._dated = values["dated"]


class Forced(Ours):
    """Ours, with the write that holds the answer always among those read: it tells errors of reading from errors of
    finding. One write can be forced; a question whose answer stands in several, or in one that is gone, is not asked.
    """

    name = "ours-forced"
    sees_evidence = True

    def reset(self) -> None:
        """Forget everything, and where what was told lies.

        Raises:
            ConfigError: the model cuts its writes otherwise than passages are cut.
        """
        if not self._writes_are_passages:
            raise ConfigError("ours-forced needs to know which write holds an answer; this model writes otherwise.")
        super().reset()
        self._told: list[str] = []
        self._put_in: list[list[tuple[int, int]]] = []  # of each: where, and how many characters
        self.passages = Passages(self.model)

    def _take(self, text: str, put_in: list[tuple[int, int]], label: str, time: float) -> None:
        """Memorize a text, and note where it lies."""
        super()._take(text, put_in, label, time)
        self._note(text, put_in)

    def _note(self, told: str, put_in: list[tuple[int, int]]) -> None:
        self._told.append(told)
        self._put_in.append(put_in)
        self.passages.add(told)

    def _where(self, told: int, start: int, end: int) -> list[int]:
        """The writes that hold characters of a text, as `Passages.where`."""
        put_in = self._put_in[told]
        before = [sum(more for place, more in put_in if place <= at) for at in (start, end - 1)]
        return self.passages.where(told, start + before[0], end + before[1])

    def answers(self, questions: Sequence[Question], force: Sequence[int | None] | None = None) -> list[Reply]:
        """Ask the memory. A question without evidence, or with evidence that waits in the window, forces nothing."""
        first, written = self.memory.first_write, self.memory.write_count
        held = [{p for gold in q.gold for p in self._where(gold.told, *gold.answer)} for q in questions]
        asked = [i for i, writes in enumerate(held) if len(writes) < 2 and all(write >= first for write in writes)]
        force = [next((write for write in held[i] if write < written), None) for i in asked]
        replies = [Reply(None, recalled=False)] * len(questions)
        with self.own() as model, roomy(model):
            self.config, before = model.config, self.config
            try:
                for i, reply in zip(asked, super().answers([questions[i] for i in asked], force), strict=True):
                    replies[i] = reply
            finally:
                self.config = before
        return replies

    def save(self, folder: Path) -> None:
        """Write the memory; the texts beside it are no part of what it stores."""
        super().save(folder / "memory")
        write_state(folder / "told", {"told": self._told, "put_in": self._put_in})

    def load(self, folder: Path) -> None:
        """As in `System`."""
        self.reset()
        values, _ = read_state(folder / "told")
        for told, put_in in zip(values["told"], values["put_in"], strict=True):
            self._note(told, put_in)
        super().load(folder / "memory")


class Untrained(Ours):
    """The bare base with a verbatim memory of the same sizes: what the mechanism does before any training."""

    name = "ours-untrained"

    def _model(self, kit: Kit) -> MemoryModel:
        return kit.make_untrained() if kit.make_untrained is not None else untrained(kit.model)


class Compressed(Ours):
    """Ours with a long-term store in four bits a number, a scale for every 64."""

    name = "ours-compressed"

    def __init__(self, kit: Kit, *, model: str = "", store_dtype: str = "int4", brain: str | None = None) -> None:
        super().__init__(kit, model=model, store_dtype=store_dtype, brain=brain)


class NoStore(Ours):
    """Ours read without its long-term store: the short-term pool alone, as MemoryLLM (2402.04624) has."""

    name = "ours-pool"
    options = {"long_term": False}  # noqa: RUF012


class MemoryLLM(Ours):
    """MemoryLLM as published (2402.04624): its checkpoint of 8B."""

    name = "memoryllm"

    def __init__(
        self, kit: Kit, *, model: str = "YuWangX/memoryllm-8b-chat", store_dtype: str = "", brain: str | None = None
    ) -> None:
        super().__init__(kit, model=model, store_dtype=store_dtype, brain=brain)


class MPlus(Ours):
    """M+ as published (2502.00592): its checkpoint of 8B."""

    name = "mplus"

    def __init__(
        self, kit: Kit, *, model: str = "YuWangX/mplus-8b", store_dtype: str = "", brain: str | None = None
    ) -> None:
        super().__init__(kit, model=model, store_dtype=store_dtype, brain=brain)


def untrained(model: MemoryModel) -> MemoryModel:
    """Verbatim memory on the bare base of a model, of the same sizes."""
    from ..config import MemoryConfig

    c = model.config
    config = MemoryConfig.verbatim(
        chunk_tokens=c.chunk_tokens, pool_tokens=c.N // c.K * c.chunk_tokens, K0=c.K0 // c.K * c.chunk_tokens,
        window_tokens=c.window_tokens,
    )  # fmt: skip
    return MemoryModel(model.base, model.tokenizer, config, name="untrained").eval()
