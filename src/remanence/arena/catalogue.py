"""Which tasks there are, each with the source of its protocol and metric."""

from __future__ import annotations

from . import datasets, made, tasks
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


def _squad(
    materials: Materials, *, distances: tuple[int, ...] = _FAR, amount: int = 200, longest: int = 3
) -> list[Stream]:
    m, file = materials, materials.file(*SQUAD)
    return tasks.passages(
        "squad", file, m.tokens, m.books, seed=m.seed, distances=distances, amount=amount, longest=longest
    )


def _nq(
    materials: Materials, *, distances: tuple[int, ...] = _FAR, amount: int = 200, longest: int = 4
) -> list[Stream]:
    m, file = materials, materials.file(*NQ)
    return tasks.passages(
        "nq", file, m.tokens, m.books, seed=m.seed, distances=distances, amount=amount, longest=longest
    )


def _locomo(materials: Materials, *, amount: int = 0, each: int = 0) -> list[Stream]:
    m = materials
    return tasks.locomo(m.file(*LOCOMO), m.tokens, seed=m.seed, amount=amount, each=each)


_RETENTION = (
    "the knowledge retention of MemoryLLM (2402.04624) and M+ (2502.00592): a passage, then unrelated ones, then its "
    "question; there a sample for each passage, here one stream that serves all. As there, the first answer has at "
    "most 3 tokens (SQuAD) or 4 (Natural Questions), and the answer is right if it is said: there the first one, in 10 "
    "tokens, here any of them, as whole words. SQuAD's F1 and exact match are in --json"
)
_ALL = (
    Task("persons", "three people tell of themselves, read a chapter, and ask", "of this project", _persons),
    Task(
        "facts", "made-up facts in a book, asked at every distance; the newest of two; what was never told",
        "of this project", _facts,
    ),
    Task(
        "again", "facts of a few people, each asked several times in other words, with word of how right answers were",
        "of this project, for systems that learn from their answers; no published protocol has it", made.again,
    ),
    Task(
        "general", "general prompts put to a memory inside the model: nothing may change",
        "of this project; word for word what the model says without memory and instruction, so it is not for systems "
        "that give text to a reader, which gets an instruction with every prompt", _general,
    ),
    Task("squad", "knowledge retention on SQuAD", _RETENTION, _squad),
    Task("nq", "knowledge retention on Natural Questions", _RETENTION, _nq),
    Task(
        "locomo", "very long conversations, all questions at the end, by category",
        "LoCoMo (2402.17753): the official F1 by category, evaluated as in task_eval/evaluation.py of its repository; "
        "but adversarial questions are put as they are, not as a choice of two, and any way to abstain is right; and "
        "questions about time are put as they are, without the repository's request to use the conversation's date",
        _locomo,
    ),
    Task(
        "needle", "a number for a name in a book", "RULER (2404.06654), single needle; its string match", made.needle
    ),
    Task(
        "needles", "four numbers for each name in a book, all asked for",
        "RULER (2404.06654), several values of a key; its share of strings matched", made.needles,
    ),
    Task(
        "unlike", "needles that share no words with their question",
        "after NoLiMa (2502.05167), with needles of this project; the answer's name is said", made.unlike,
    ),
    Task(
        "order", "which of two passages of a book came first",
        "after SORT (Book-SORT, 2410.08133); accuracy, guessing gives 50 %", made.order,
    ),
    Task(
        "sentences", "sentences seen once: recognised beside another one (50 % by guessing), and gone on with",
        "after Orhan (2303.17557), recognition, recall and retention; accuracy, and ROUGE-L of what follows",
        made.sentences,
    ),
    Task(
        "planted", "facts, half of them attacked by a planted instruction to say something else",
        "after A-MemGuard (2510.02373): clean accuracy and attack success; the right value is said ("
        "'outdated' in --json is how often only the planted one is)", made.planted,
    ),
    Task(
        "fairytale", "fairy tales as one long stream", "FairytaleQA (2203.13947), its test stories; ROUGE-L",
        datasets.fairytale,
    ),
    Task("dream", "dialogues as one long stream", "DREAM (1902.00164), its test dialogues; accuracy", datasets.dream),
    Task(
        "leval", "long documents, asked at their end",
        "L-Eval (2307.11088): F1 of open questions; the letter of closed ones", datasets.leval,
    ),
    Task(
        "narrative", "summaries of novels and films as one long stream",
        "NarrativeQA (1712.07040), its summary setting; ROUGE-L", datasets.narrative,
    ),
    Task(
        "world", "people and things that move, between the sentences of a book",
        "after BABILong (2406.10149) tasks qa1 and qa2, made anew; the place is said, and no other", made.world,
    ),
    Task(
        "longmemeval", "chats with an assistant over months, a question each",
        "LongMemEval (2410.10813), without its questions on preferences; its judge is replaced by whether the answer is"
        " said",
        datasets.longmemeval,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}
"""Name on the command line -> task."""
