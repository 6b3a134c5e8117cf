"""Which tasks there are, each with the source of its protocol and metric."""

from __future__ import annotations

from . import tasks
from .tasks import Materials, Stream, Task

SQUAD = ("squad/dev-v1.1.jsonl*", "dev-v1.1.jsonl*")
NQ = ("natural_questions/nq-open-oracle.jsonl*", "nq-open-oracle.jsonl*")
LOCOMO = ("locomo/*_flat.jsonl*", "*locomo*.jsonl*")
_FAR = (8_000, 40_000, 160_000)


def _persons(materials: Materials, *, chapter: int = 10_000) -> list[Stream]:
    return tasks.persons(materials.tokens, materials.books, seed=materials.seed, chapter=chapter)


def _general(materials: Materials, *, chapter: int = 10_000) -> list[Stream]:
    return tasks.general(materials.tokens, materials.books, seed=materials.seed, chapter=chapter)


def _facts(
    materials: Materials, *, distances: tuple[int, ...] = (1_000, 8_000, 40_000), amount: int = 100
) -> list[Stream]:
    m = materials
    return tasks.facts(m.tokens, m.books, seed=m.seed, distances=distances, amount=amount)


def _squad(materials: Materials, *, distances: tuple[int, ...] = _FAR, amount: int = 200) -> list[Stream]:
    m = materials
    file = m.file(*SQUAD)
    return tasks.passages("squad", file, m.tokens, m.books, seed=m.seed, distances=distances, amount=amount)


def _nq(materials: Materials, *, distances: tuple[int, ...] = _FAR, amount: int = 200) -> list[Stream]:
    m = materials
    return tasks.passages("nq", m.file(*NQ), m.tokens, m.books, seed=m.seed, distances=distances, amount=amount)


def _locomo(materials: Materials) -> list[Stream]:
    return tasks.locomo(materials.file(*LOCOMO), materials.tokens)


_RETENTION = (
    "M+ (2502.00592, section 4.3) and MemoryLLM (2402.04624, section 4.2): a passage, then unrelated ones, then its "
    "question. There one passage a sample and answers counted by exact match; here one stream serves all questions, and "
    "SQuAD's F1 is shown beside exact match"
)
_ALL = (
    Task("persons", "three people tell of themselves, read a chapter, and ask", "of this project", _persons),
    Task(
        "facts", "made-up facts in a book, asked at every distance; the newest of two; what was never told",
        "of this project", _facts,
    ),
    Task("general", "general prompts put to a memory: nothing may change", "of this project", _general),
    Task("squad", "knowledge retention on SQuAD", _RETENTION, _squad),
    Task("nq", "knowledge retention on Natural Questions", _RETENTION, _nq),
    Task(
        "locomo", "very long conversations, all questions at the end, by category",
        "LoCoMo (2402.17753): the official F1 by category, evaluated as in task_eval/evaluation.py of its repository",
        _locomo,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}
"""Name on the command line -> task."""
