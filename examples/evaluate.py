"""Questions in batches, answers into a file: `python examples/evaluate.py questions.jsonl --tell report.txt`.

Every line of the questions is {"question": ..., "answer": ...}. Each answer is written as a line of JSON with what it
was read from, so that the run can be looked at afterwards; at the end stands how many held the right answer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TextIO

from remanence import MemoryModel


def evaluate(
    model: MemoryModel, texts: list[tuple[str, str]], asked: list[dict[str, str]], size: int, out: TextIO
) -> int:
    """Tell all texts, ask all questions; how many answers held the right one.

    Args:
        model: answers.
        texts: label and text of each.
        asked: with "question" and "answer".
        size: questions that are answered in one forward pass.
        out: takes a line of JSON for each.
    """
    memory, right = model.new_memory(), 0
    for label, text in texts:
        model.memorize(memory, text, source=label)
    for first in range(0, len(asked), size):
        lot = asked[first : first + size]
        answers = model.ask_batch([memory] * len(lot), [one["question"] for one in lot], max_new_tokens=24)
        for one, answer in zip(lot, answers, strict=True):
            holds = plain(one["answer"]) in plain(answer.text)
            right += holds
            source = answer.sources[0].text if answer.sources else None
            line = {**one, "said": answer.text, "right": holds, "score": round(answer.score, 3), "source": source}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return right


def plain(text: str) -> str:
    """Words in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--tell", type=Path, nargs="+", required=True, help="text files that are remembered first")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=8, help="questions in one forward pass")
    parser.add_argument("--out", type=Path, help="the answers; standard output if not given")
    given = parser.parse_args()
    asked = [json.loads(line) for line in given.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [(path.name, path.read_text(encoding="utf-8")) for path in given.tell]
    model = MemoryModel.from_pretrained(given.model)
    if given.out:
        with given.out.open("w", encoding="utf-8") as out:
            right = evaluate(model, texts, asked, given.batch, out)
    else:
        right = evaluate(model, texts, asked, given.batch, sys.stdout)
    print(f"{right} of {len(asked)} answers hold the right one", file=sys.stderr)


if __name__ == "__main__":
    main()
