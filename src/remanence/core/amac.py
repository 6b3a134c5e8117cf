"""`AMac`: whether a passage is worth remembering, by five factors. After A-MAC (arXiv 2603.04549), without an LLM.

A-MAC adds up five factors, each from 0 to 1, with weights, and admits what reaches a threshold (its Algorithm 1):

* utility U: will it be useful later? The paper asks a language model for a number.
* confidence C: how sure is it? The paper compares what was extracted with the conversation that it came from.
* novelty N: how much of it is not remembered yet? The paper takes 1 less the best cosine of sentence vectors.
* recency R: exp(-.01 hours) since it was told.
* type prior T: what kind of statement it is, told by words.

Differences that are meant:

* U, C and T are rules on words. A small model's opinion of what will be useful costs an answer for each passage, and
  is worth little.
* Nothing is extracted here: what is remembered is what was said. So C is not whether an extraction is true to it, but
  whether the speaker is sure.
* N is the share of the passage's words that no single remembered write has, so it needs no vectors and no model.
* The paper updates what is there when something similar comes. Here both stay, and the newer one counts when it is
  read: what is told again may have become true again.
* The kinds of the paper do not know prose. With its weights and its threshold a page of a novel is admitted. So there
  are two more kinds, "narrative" and "small talk", which are worth little.
* With the paper's weights the kind decides nearly alone: .6 of the score is T. With its threshold, .55, nothing that is
  temporary can ever be admitted, and what is about a person nearly always is (`AMac.published`). Its weights have
  proven good; our threshold was chosen anew, on sentences of the training facts and on training prose
  (docs/admission.md).

The rules know English only.
"""

from __future__ import annotations

import math
import re
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .admission import ACCEPT, DEFER, REFUSE, Candidate, Decision
from .wording import Wording, any_of, content_words

PRIORS = {
    "preference": 0.9, "identity": 0.9, "belief": 0.9, "fact": 0.7, "plan": 0.5, "unknown": 0.5, "state": 0.3,
    "temporary": 0.2,
}  # fmt: skip
"""The paper's type priors."""
OURS = PRIORS | {"narrative": 0.1, "small talk": 0.1}
"""The same with our two kinds."""
WEIGHTS = {"utility": 0.1, "confidence": 0.1, "novelty": 0.1, "recency": 0.1, "type": 0.6}
"""The paper's weights, from its grid search."""
_DECAY = 0.01  # of recency, an hour: it halves in 69 hours


_FIRST_PERSON = any_of(
    "i", "i'?m", "i'?ve", "i'?ll", "i'?d", "my", "me", "mine", "we", "our", "ours", "us", "im", "ive"
)
_NUMBER = re.compile(r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty)\b")
_NAME = re.compile(r"(?<=[\w,;:)] )(?!I\b|I'|I\u2019)[A-Z]\w+")  # a capital letter within a sentence
_DOUBT = any_of(
    "maybe", "perhaps", "possibly", "probably", "apparently", "supposedly", "allegedly", "might", "not sure",
    "no idea", "i guess", "i think", "i suppose", "rumou?rs?", "they say", "someone said", "as far as i know",
    "could be", "unsure", "don'?t know", "dunno", "who knows",
)  # fmt: skip

# Marks of told prose: speech, other people in the past tense, words of books.
_QUOTED = re.compile(r'["\u201c\u201d]')
_SAID = any_of(
    "said", "cried", "replied", "exclaimed", "answered", "whispered", "murmured", "muttered", "asked", "returned",
    "inquired",
)  # fmt: skip
_OTHERS = any_of("he", "she", "they", "him", "them", "his", "her", "their")
_PAST = any_of(
    "had", "was", "were", "would", "could", "did", "came", "went", "saw", "stood", "looked", "seemed", "thought",
    "knew", "felt", "made", "took", "gave",
)  # fmt: skip
_OF_BOOKS = re.compile(
    r"--|\u2014|;|"
    + any_of(
        "upon", "whom", "thus", "thou", "thee", "thy", "hath", "shall", "whilst", "thereof", "hither", "thither",
        "nay", "lest", "ere", "amid", "beheld", "countenance", "scarcely", "presently", "wherein", "whence", "forth",
        "nor", "yet", "indeed", "therefore", "however", "among", "great", "sir", "madam", "lord", "lady", "miss",
        "captain", "king", "soul", "heart", "heavens?", "alas", "himself", "herself", "themselves", "itself",
    ).pattern,
    re.IGNORECASE,
)  # fmt: skip

_SMALL_TALK = re.compile(
    r"\W*(?:"
    + any_of(
        "hi", "hello", "hey", "good (?:morning|evening|night|day)", "thanks?", "thank you", "cheers", "ok(?:ay)?",
        "sure", "yes", "yeah", "no", "nope", "lol", "haha+", "great", "nice", "cool", "wow", "bye", "goodbye",
        "see you", "never mind", "please", "very much", "so much", "a lot", "again", "there", "then", "that'?s", "it",
        "all", "right", "good", "fine", "how are you", "what'?s up", "you too", "sorry", "oh", "well", "and", "to you",
        "for (?:that|now|the help)", "i see", "got it", "perfect", "awesome", "sounds good", "no problem", "of course",
        "alright", "hmm+", "ah",
    ).pattern
    + r"\W*)+",
    re.IGNORECASE,
)  # fmt: skip
_KINDS = {  # by statement; tried in this order
    "preference": any_of(
        "likes?", "liked", "loves?", "loved", "prefer\\w*", "favou?rite", "hates?", "hated", "can'?t (?:stand|bear)",
        "cannot (?:stand|bear|abide)", "enjoys?", "fan of", "dislikes?", "allergic", "never eats?", "fav",
    ),
    "identity": any_of(
        "my name", "i am an?", "i'?m an?", "born", "i live", "we live", "lives? in", "works? (?:as|for|at)",
        "years old", "is called", "are called", "named", "married",
        "my (?:wife|husband|son|daughter|mother|father|mum|mom|dad|sister|brother|boss|partner|cat|dog)",
    ),
    "belief": any_of("i believe", "i'?m convinced", "in my opinion", "i trust", "my faith", "i vote", "i support"),
    "plan": any_of(
        "going to", "plans? to", "planning", "will", "i'?ll", "tomorrow", "next (?:week|month|year)", "appointment",
        "booked", "intends?", "wants? to", "hopes? to", "saving up", "deadline",
    ),
}  # fmt: skip
_STATE = any_of(
    "i feel", "feeling", "i'?m (?:so )?(?:tired|hungry|bored|cold|hot|busy|sad|happy|fine|sick|exhausted|late)",
    "it'?s (?:raining|snowing|cold|hot|windy)", "the weather",
)  # fmt: skip
_TEMPORARY = any_of("right now", "just now", "at the moment", "for now", "currently", "this minute", "today", "tonight")


def utility(text: str) -> float:
    """U: .3, and .35 for each of the first person, a name and a number that stands in the text; 1 at most."""
    found = sum(bool(each.search(text)) for each in (_FIRST_PERSON, _NAME, _NUMBER))
    return min(1.0, 0.3 + 0.35 * found)


def confidence(text: str) -> float:
    """C: 1; .5 if the speaker doubts; .3 if the text only asks."""
    if text.rstrip().endswith("?") and not re.search(r"[.!]\s", text):
        return 0.3
    return 0.5 if _DOUBT.search(text) else 1.0


def recency(time: float, now: float) -> float:
    """R: exp(-.01 hours) between two times in seconds; 1 for what is not past yet."""
    return math.exp(-_DECAY * max(0.0, now - time) / 3600)


def prose_marks(text: str) -> int:
    """How many of six marks of told prose a text has."""
    of_books = len(_OF_BOOKS.findall(text))
    return sum([
        bool(_QUOTED.search(text)), bool(_SAID.search(text)), len(_OTHERS.findall(text)) >= 2,
        len(_PAST.findall(text)) >= 2, of_books >= 1, of_books >= 2,
    ])  # fmt: skip


def kind(text: str, marks: int | None = None) -> str:
    """What kind of statement a text is: a key of `OURS`.

    Args:
        text: a passage.
        marks: how many marks of prose make it "narrative"; None to know only the kinds of the paper.
    """
    if marks is not None and prose_marks(text) >= marks:
        return "narrative"
    if marks is not None and _SMALL_TALK.fullmatch(text.strip()):
        return "small talk"
    for name, pattern in _KINDS.items():
        if pattern.search(text):
            return name
    tells = bool(_NAME.search(text) or _NUMBER.search(text))
    if _STATE.search(text) and not tells:
        return "state"
    if _TEMPORARY.search(text) and not tells:
        return "temporary"
    return "fact" if tells or _FIRST_PERSON.search(text) else "unknown"


@dataclass(frozen=True)
class AMac:
    """Admits a passage if the weighted sum of its five factors reaches a threshold; see the top of this file.

    weights: of the factors, by name. threshold: what is admitted. margin: what misses the threshold by no more is
    deferred, anything below is refused. priors: of the kinds. marks: see `kind`. now: the time, seconds since the
    epoch.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    threshold: float = 0.47
    margin: float = 0.1
    priors: Mapping[str, float] = field(default_factory=lambda: OURS)
    marks: int | None = 3
    now: Callable[[], float] = clock.time
    _wording: Wording = field(default_factory=Wording, repr=False, compare=False)

    @classmethod
    def published(cls) -> AMac:
        """With the threshold and the kinds of the paper's code; everything else as here."""
        return cls(threshold=0.55, priors=PRIORS, marks=None)

    def factors(self, candidate: Candidate) -> dict[str, float]:
        """The five factors of a passage."""
        text = candidate.text.strip()
        return {
            "utility": utility(text),
            "confidence": confidence(text),
            "novelty": self.novelty(candidate),
            "recency": recency(candidate.time, self.now()),
            "type": self.priors[kind(text, self.marks)],
        }

    def novelty(self, candidate: Candidate) -> float:
        """N: the share of the words of a passage that no write has, nor what waits, nor what was told just before.

        1 if all of its words are new; 0 if one of these has them all, or it has no words that say anything.
        """
        words = content_words(candidate.text)
        if not words:
            return 0.0
        memory = candidate.memory
        best = next((shared for _, shared in self._wording.sharing(memory, words)), 0)
        waiting = [candidate.model.text_of(piece.ids) for piece in memory.pending]
        best = max([best, *(len(words & content_words(text)) for text in [*waiting, *candidate.before])])
        return 1 - best / len(words)

    def judge(self, candidate: Candidate) -> Decision:
        """Accept what reaches the threshold."""
        factors = self.factors(candidate)
        score = sum(self.weights[name] * value for name, value in factors.items())
        factors["score"] = score
        if score >= self.threshold:
            return Decision(ACCEPT, "", factors)
        what = kind(candidate.text.strip(), self.marks)
        verdict = DEFER if score >= self.threshold - self.margin else REFUSE
        return Decision(verdict, f"not worth remembering ({what})", factors)
