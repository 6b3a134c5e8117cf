"""Tasks of published data sets, read from files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigError
from .tasks import Books, Gold, Materials, Question, Script, Stream, Tokens, rows

FAIRYTALE = ("fairytaleqa/test.jsonl*", "*fairytale*test*.jsonl*")
DREAM = ("dream/test.jsonl*", "*dream*test*.jsonl*")
NARRATIVE = ("narrativeqa_summaries/test.jsonl*", "*narrativeqa*test*.jsonl*")
LONGMEMEVAL = ("longmemeval/longmemeval_s*.json", "longmemeval_s*.json")
_LETTERS = "ABCDEFGH"
_PIECE = 800  # characters of a document that are told at once, about
_OPEN = ("natural_question", "scientific_qa", "financial_qa", "multidoc_qa", "legal_contract_qa")


def _pieces(text: str, characters: int = _PIECE) -> Iterable[str]:
    """A document in pieces of whole lines and sentences, about so long."""
    piece = ""
    for part in re.split(r"(?<=[.!?])\s+|\n+", text):
        if piece and len(piece) + len(part) > characters:
            yield piece
            piece = ""
        piece = f"{piece} {part}".strip()
    if piece:
        yield piece


def _options(question: str, choices: list[str]) -> str:
    listed = "\n".join(f"{_LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    return f"{question}\n{listed}\nAnswer with the letter."


def fairytale(
    materials: Materials, *, distances: tuple[int, ...] = (1_000, 8_000, 40_000), amount: int = 23, each: int = 8
) -> list[Stream]:
    """Stories told one after the other, section by section; each is asked for when so much lies behind it."""
    script = Script("fairytale", "fairytale", materials.tokens, distances)
    rng = random.Random(f"{materials.seed}/fairytale")
    stories = list(rows(materials.file(*FAIRYTALE)))
    rng.shuffle(stories)
    for story in stories[:amount]:
        title = str(story["id"]).replace("-", " ")
        places: dict[int, Gold] = {}
        for number, section in enumerate(story["sections"]):
            text = " ".join(section["text"].split())
            text = f"The story of {title}. {text}" if number == 0 else text
            places[section["section"]] = Gold(script.tell(text, title), (0, len(text)), (0, len(text)))
        local = [qa for qa in story["qas"] if qa["answers"] and all(s in places for s in qa["sections"])]
        for i, qa in enumerate(rng.sample(local, min(each, len(local)))):
            gold = tuple(places[s] for s in qa["sections"])
            text = f"In the story of {title}: {qa['question'].strip()}"
            script.later(Question(f"{title}/{i}", text, tuple(qa["answers"]), qa["type"], "rouge", gold=gold))
    return [script.finish(Books(materials.books, f"{materials.seed}/fairytale").pieces())]


def dream(
    materials: Materials, *, distances: tuple[int, ...] = (1_000, 8_000, 40_000), amount: int = 100
) -> list[Stream]:
    """Dialogues, one after the other; a question with three choices for each, when so much lies behind it."""
    script = Script("dream", "dream", materials.tokens, distances)
    rng = random.Random(f"{materials.seed}/dream")
    dialogues = list(rows(materials.file(*DREAM)))
    rng.shuffle(dialogues)
    for i, row in enumerate(dialogues[:amount]):
        text = "\n".join(row["dialogue"])
        gold = (Gold(script.tell(text, "dialogue"), (0, len(text)), (0, len(text))),)
        qa = rng.choice(row["qas"])
        begin = " ".join(row["dialogue"][0].split()[:12])  # many dialogues are asked the same
        asked = _options(f'In the dialogue that begins with "{begin}": {qa["question"]}', qa["choice"])
        right = (_LETTERS[qa["choice"].index(qa["answer"])], qa["answer"])
        script.later(Question(f"dream/{i}", asked, right, "three choices", "choice", gold=gold))
    return [script.finish(Books(materials.books, f"{materials.seed}/dream").pieces())]


def narrative(
    materials: Materials, *, distances: tuple[int, ...] = (1_000, 8_000, 40_000), amount: int = 40, each: int = 3
) -> list[Stream]:
    """Summaries of novels and films, one after the other; questions for each, when so much lies behind it."""
    script = Script("narrative", "narrative", materials.tokens, distances)
    rng = random.Random(f"{materials.seed}/narrative")
    summaries = list(rows(materials.file(*NARRATIVE)))
    rng.shuffle(summaries)
    for row in summaries[:amount]:
        golds = []
        for text in _pieces(" ".join(row["context"].split())):
            golds.append(Gold(script.tell(text, row["id"]), (0, len(text)), (0, len(text))))
        by_question: dict[str, list[str]] = {}
        for qa in row["qas"]:
            answers = qa["answer"] if isinstance(qa["answer"], list) else [qa["answer"]]
            by_question.setdefault(qa["question"].strip(), []).extend(map(str, answers))
        for i, question in enumerate(rng.sample(sorted(by_question), min(each, len(by_question)))):
            answers_ = tuple(dict.fromkeys(by_question[question]))
            script.later(Question(f"{row['id']}/{i}", question, answers_, "summary", "rouge", gold=tuple(golds)))
    return [script.finish(Books(materials.books, f"{materials.seed}/narrative").pieces())]


def leval(materials: Materials, *, parts: tuple[str, ...] = _OPEN, amount: int = 10) -> list[Stream]:
    """Long documents, each asked at its end: the open questions by F1, "quality" and "tpo" by the letter."""
    streams = []
    for part in parts:
        closed = part in ("quality", "tpo")
        file = materials.file(f"leval/{'closed' if closed else 'open'}_{part}.jsonl*", f"*{part}.jsonl*")
        documents = list(rows(file))
        rng = random.Random(f"{materials.seed}/leval/{part}")
        for number in sorted(rng.sample(range(len(documents)), min(amount, len(documents)))):
            row = documents[number]
            script = Script("leval", f"{part}/{number}", materials.tokens)
            for text in _pieces(row["input"]):
                script.tell(text, part)
            asked = []
            for i, (question, answer) in enumerate(zip(row["instructions"], row["outputs"], strict=True)):
                letter = re.match(r"\W*([A-D])\b\W*(.*)", answer, re.DOTALL) if closed else None
                answers = (letter[1], letter[2].strip()) if letter else (answer.strip(),)
                name = f"{part}/{number}/{i}"
                asked.append(Question(name, question.strip(), answers, part, "choice" if letter else "squad"))
            script.ask(asked)
            streams.append(script.stream)
    return streams


def longmemeval(materials: Materials, *, amount: int = 50) -> list[Stream]:
    """Chats with an assistant over months, a question each; scored by whether the answer is said, not by a judge.

    Questions about preferences are left out: their answers are instructions for the judge, which nobody says.
    """
    path = materials.file(*LONGMEMEVAL)
    try:
        samples: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON file, or it is damaged: {error}") from error
    samples = [row for row in samples if row["question_type"] != "single-session-preference"]
    chosen = random.Random(f"{materials.seed}/longmemeval").sample(range(len(samples)), min(amount, len(samples)))
    return [_chats(samples[i], materials.tokens) for i in sorted(chosen)]


def _chats(row: dict[str, Any], tokens: Tokens) -> Stream:
    """The stream of one question of LongMemEval."""
    script, golds = Script("longmemeval", row["question_id"], tokens), []
    for date, session in zip(row["haystack_dates"], row["haystack_sessions"], strict=True):
        for number, turn in enumerate(session):
            said = f"{turn['role'].capitalize()}: {' '.join(turn['content'].split())}"
            ahead = f"{date}\n" if number == 0 else ""
            told = script.tell(ahead + said, date, _seconds(date) + 60.0 * number)
            if turn.get("has_answer"):
                span = (len(ahead), len(ahead) + len(said))
                golds.append(Gold(told, span, span))
    never = row["question_id"].endswith("_abs")
    script.ask(
        [
            Question(
                row["question_id"], f"Today is {row['question_date']}. {row['question']}",
                () if never else (str(row["answer"]),), "never told" if never else row["question_type"],
                "abstains" if never else "contains", gold=() if never else tuple(golds),
            )
        ]
    )  # fmt: skip
    return script.stream


def _seconds(date: str) -> float:
    """Seconds since 1970 of "2023/05/20 (Sat) 02:21"."""
    found = re.match(r"(\d+)/(\d+)/(\d+)\D*(?:(\d+):(\d+))?", date)
    if found is None:
        return 0.0
    year, month, day, hour, minute = (int(part or 0) for part in found.groups())
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()
