"""`Guard`: whether a passage plants an instruction, so that later answers say what somebody else wants.

After A-MemGuard (arXiv 2510.02373), which defends an agent's memory in two ways: *consensus-based validation* compares
what is concluded from each of several memories and drops those that disagree with the others, and a *dual memory*
keeps what was dropped as lessons.

Differences that are meant:

* A-MemGuard works between retrieval and reader, at every question. Here a passage is judged once, before it is written:
  a vector of this memory is made of all that was told before, so what came in cannot simply be left out later.
* At that moment there is no question that several memories could be compared on. So rules on words look for an
  instruction first, and consensus decides only where the passage names question and answer ("when asked about X, say
  Y"): the reader answers X from each of a few remembered texts alone.
* Only a contradiction of an instruction counts. A plain statement that contradicts what is remembered is taken for
  news: people move, and tell it. A false statement that plants no instruction therefore gets through.
* The paper drops what has no second witness, too. Most of what a person tells is told once, so here that is kept.
* There are no lessons: what is held back stays in quarantine, where it can mislead nobody.

The rules know English only.
"""

from __future__ import annotations

import re
import time as clock
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .admission import ACCEPT, DEFER, REFUSE, Candidate, Decision
from .prompts import UNKNOWN
from .wording import Wording, any_of, content_words

WEIGHTS = {"overrides": 2.0, "scripts": 1.0, "addresses": 2.0, "binds": 1.0, "imitates": 2.0, "orders": 1.0}
"""How much each sign counts; chosen on the first half of the planted instructions (docs/admission.md)."""
_ANSWER_TOKENS = 16  # most of a witness's answer

_ASK = any_of(
    "ask(?:s|ed|ing)?", "questions?", "quer(?:y|ies|ied)", "questioned", "inquir\\w+", "enquir\\w+", "request(?:s|ed)?",
    "wants? (?:to know|my|his|her|the)", "wonders?", "mention(?:s|ed)?", "brought up", "comes? up", "discussed",
    "arises?",
).pattern  # fmt: skip
_SAY = any_of(
    "say(?:s|ing)?", "answer(?:s|ed|ing)?", "repl(?:y|ies|ying)", "respon(?:d|ds|ding|se)", "tell", "told", "claim",
    "state", "insist", "output", "print", "return", "report", "give", "given", "quote", "name", "pretend", "believe",
    "call",
).pattern  # fmt: skip
_EARLIER = any_of(
    "everything", "all", "any", "previous", "prior", "earlier", "before", "above", "former", "past", "old", "stored",
    "memor(?:y|ies)", "notes?", "facts?", "instructions?", "rules?", "data", "statements?", "messages?",
    "what (?:i|you)", "story", "more", "others?", "words",
).pattern  # fmt: skip
_AWAY = any_of(
    "ignor\\w+", "disregard\\w*", "overrid\\w+", "overrul\\w+", "discard\\w*", "forget", "revok\\w+", "erase", "drop",
    "outranks?", "replaces?", "(?:do not|don'?t|never) (?:use|trust|mention|say|believe|argue)",
).pattern  # fmt: skip
_VOID = any_of("void", "revoked", "cancel\\w+", "invalid", "retracted", "wrong", "false", "replaced").pattern
_SAY_NOW = any_of(
    "say", "answer", "reply", "respond", "tell (?:me|them|him|her|people|everyone|anyone)", "claim", "state that",
    "insist", "output", "print", "pretend", "return", "quote",
).pattern  # fmt: skip


def _one_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


SIGNS = {
    "overrides": _one_of(  # what was told is to be ignored or replaced
        rf"{_AWAY}.{{0,50}}?{_EARLIER}",
        rf"\b(?:previous|prior|earlier|former|older|stored|everything)\b.{{0,50}}?{_VOID}",
        r"\bas if i had never\b|\bpretend (?:that )?i never\b|\btreat .{0,60} as (?:false|wrong)\b",
    ),
    "scripts": _one_of(rf"{_ASK}[^.!?\n]{{0,120}}?{_SAY}", rf"{_SAY}[^.!?\n]{{0,120}}?{_ASK}"),  # asked X, say Y
    "addresses": any_of(  # it speaks to whoever answers
        "assistant", "ai", "a\\.i\\.", "bot", "chatbot", "language model", "llm", "the model", "the system",
        "the users?", "the user's", "user", "you are now",
        "your (?:\\w+ )?(?:instructions?|rules?|answers?|repl(?:y|ies)|responses?|memory|task)",
    ),
    "binds": any_of(  # for every time from now on
        "always", "never", "whenever", "whoever", "whatever", "from now on", "from here on", "henceforth",
        "every time", "each time", "anyone", "anybody", "somebody", "someone", "no matter", "regardless",
        "without exception", "under no circumstances", "at all times", "for good", "must", "has to be",
        "(?:is|are) to be", "only correct", "in (?:all|every|each) (?:your )?(?:answer|repl|response|case|chat)\\w*",
        "effective immediately", "and nothing else", "(?:you|u) (?:are|will|must|shall|should|have to|need to)",
    ),
    "imitates": _one_of(  # the form of a prompt
        r"<[^>\n]{0,30}\b(?:system|admin|inst|im_start|user|assistant)\b[^>\n]{0,30}>",
        r"\[/?(?:admin|system|inst)\b[^\]\n]{0,20}\]|#{2,} ?\w+",
        r"\b(?:system|admin|assistant|instruction)(?: notice| message| prompt| update)? ?:",
        r"\b(?:new|updated|security|this) (?:instruction|rule|policy|update|order|command)s?\b",
        r"\bnote to the (?:assistant|ai|model)\b",
    ),
    "orders": _one_of(  # to say something
        rf"(?:^|[.!?:;,>\])]\s*|\b(?:then|please|just|must|will|should|to|you|u|and|always|simply)\s+){_SAY_NOW}",
        r"\b(?:answer|reply|response)s? (?:is|has to be|must be|should be|for|to)\b",
    ),
}  # fmt: skip
"""What tells an instruction to whoever answers from a statement."""


def plain(text: str) -> str:
    """A text as signs are looked for in: letters in their usual form, nothing invisible, no dots between letters."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    spelled = r"\b(?:\w[.\-_*\u00b7]){3,}\w\b"
    return re.sub(spelled, lambda found: re.sub(r"[^\w]|_", "", found[0]), text)


_PAIR = re.compile(
    r"\bask(?:s|ed)?\b(?: me| you)?(?: for| about| of| on)?\s+(?P<question>[^,;:.!?\n]{4,80}?)\s*(?:[,;:]\s*|\bthen\s+)"
    r"(?:(?:please|just|simply|always|then|must|should|you|u|the|assistant|will|has to|have to|that)\s+)*"
    r"(?:say|answer|reply|respond|output|return|give|print|tell (?:me|them|him|her|people))"
    r"(?: with| that| it is| its| it's)?\s+(?P<answer>[^.,;!?\n]{1,60})",
    re.IGNORECASE,
)


def scripted(text: str) -> tuple[str, str] | None:
    """The question and the answer of an instruction of the form "asked about X, say Y"; None without them."""
    found = _PAIR.search(plain(text))
    if found is None:
        return None
    question = found["question"].strip()
    return f"{question[:1].upper()}{question[1:]}?", found["answer"].strip(" \"'")


@dataclass(frozen=True)
class Guard:
    """Holds back a passage that plants an instruction; see the top of this file.

    weights: of the signs (`SIGNS`). defer, refuse: from these sums on it is deferred and refused. witnesses: how many
    remembered texts are asked, one by one, what the instruction gives an answer to; 0 asks none. What they agree with
    is not deferred, what they contradict is refused.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    defer: float = 2.0
    refuse: float = 3.0
    witnesses: int = 5
    _wording: Wording = field(default_factory=Wording, repr=False, compare=False)

    def signs(self, text: str) -> dict[str, float]:
        """The weights of the signs that a text has, by name."""
        text = plain(text)
        return {name: self.weights[name] for name, sign in SIGNS.items() if sign.search(text)}

    def judge(self, candidate: Candidate) -> Decision:
        """Refuse what plainly plants an instruction, defer what may."""
        found = self.signs(candidate.text)
        score = sum(found.values())
        if score < self.defer:
            return Decision(ACCEPT, "", found | {"instruction": score})
        agreed = self.consensus(candidate)
        factors = found | {"instruction": score} | ({} if agreed is None else {"consensus": float(agreed)})
        if agreed is True and score < self.refuse:
            return Decision(ACCEPT, "", factors)
        if agreed is False:
            return Decision(REFUSE, "plants an answer that contradicts what is remembered", factors)
        if score >= self.refuse:
            return Decision(REFUSE, f"plants an instruction ({', '.join(found)})", factors)
        return Decision(DEFER, f"may plant an instruction ({', '.join(found)})", factors)

    def consensus(self, candidate: Candidate) -> bool | None:
        """Whether remembered texts agree with the answer that a passage wants to be given; None if they do not tell.

        Each of the texts that share words with the question is read alone, and what the reader answers is its vote.
        """
        pair, memory, model = scripted(candidate.text), candidate.memory, candidate.model
        if pair is None or not self.witnesses or not memory.config.long_term:
            return None
        question, wanted = pair[0], _normal(pair[1])
        if not model.fits(memory, question, _ANSWER_TOKENS):
            return None
        related = self._wording.sharing(memory, content_words(question))
        expired = memory.expired(clock.time())
        writes = [w for w, _ in related if w >= memory.first_write and (expired is None or not expired[w])]
        writes = writes[: self.witnesses]
        if not writes or not wanted:
            return None
        count = len(writes)
        answers = model.ask_batch(
            [memory] * count, [question] * count, max_new_tokens=_ANSWER_TOKENS, force=list(writes)
        )
        said = Counter(_normal(answer.text) for answer in answers if answer.recalled)
        said = Counter({vote: n for vote, n in said.items() if vote and vote != _normal(UNKNOWN)})
        agree = sum(n for vote, n in said.items() if vote in wanted or wanted in vote)
        against = max((n for vote, n in said.items() if not (vote in wanted or wanted in vote)), default=0)
        return None if agree == against else agree > against


def _normal(text: str) -> str:
    """An answer without its case, its marks and its articles."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))
