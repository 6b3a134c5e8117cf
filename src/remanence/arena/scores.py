"""How right an answer is: SQuAD's exact match and F1, ROUGE-L, the letter of a choice, LoCoMo's F1, and whether it says
that it does not know."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LOCOMO_ARTICLES = re.compile(r"\b(a|an|the|and)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_QUOTES = str.maketrans("‘’“”", "''\"\"")
_WRITTEN_OUT = (
    (r"\bcan't\b|\bcannot\b", "can not"), (r"n't\b", " not"), (r"\bdont\b", "do not"), (r"'m\b", " am"),
    (r"'ve\b", " have"), (r"\b(it|that|there)'s\b", r"\1 is"),
)  # fmt: skip
# It depends on who is silent: "The text does not give it" abstains, "She does not give up" is an answer.
_SOURCE = r"""(?:text|passage|context|document|excerpt|paragraph|transcript|dialogue|conversation|story|article|summary
    |memory|information)s?(?:\s(?:provided|given|above|itself))?"""
# No object follows: "Her age was never given." abstains, "She was never given a ticket" is an answer.
_END = r"(?:\s?(?:[.,;:!?)]|$)|\s(?:here|anywhere|at\sall|yet|but|so|to\s(?:me|us))\b)"
_WHAT = r"\s(?:what|when|where|which|who|whom|whose|why|how|if|whether|anything|that)\b"
_HOW = r"(?:\w+ly\s|been\s|ever\s|just\s)*"
_ABSTAINS = re.compile(
    rf"""
    # who answers: "I don't know", "I have no record of it", "I was never told"
    \b(?:i|we)\s{_HOW}(?:do|can|could)\snot\s{_HOW}
        (?:know|recall|remember|tell\b|say\b|find|answer|determine|see\sany)
    | ^do\snot\sknow\b | ^(?:no\sidea|not\ssure)\b | \bi\sam\s(?:not\s(?:sure|certain|aware|able)|unable)
    | ^unable\sto\s(?:know|tell|say|find|answer|determine|identify|provide)\b
    | \b(?:i|we|{_SOURCE})\s{_HOW}(?:(?:do|does)\snot\s{_HOW}have|have\sno|has\sno)\s
        (?:any\s|an?\s|enough\s|access\sto\s|that\s|this\s|specific\s|personal\s|the\s|your\s)*
        (?:information|details?|record|knowledge|mention|idea|clue|way\sto\s(?:know|tell))
    | \b(?:i|we)\s(?:was|were|am|are|have|had)\s(?:not|never)\s{_HOW}(?:told|informed)\b
    | \bas\san?\s(?:\w+\s)?(?:ai|text-based|language\smodel)\b
    # who was to tell: "You never told me", "He has not told us"
    | \byou\s(?:(?:do|did|have|had)\s)?(?:not|never)\s{_HOW}
        (?:mention|specif|(?:say|said)(?:{_END}|{_WHAT})|(?:give|gave|given)\s(?:me|us)\b)
    | \b(?:not|never)\s{_HOW}(?:tell|told)\s(?:me|us)\b
    # the text: "The passage does not contain that", "It is not clear from the text"
    | \b{_SOURCE}\s(?:do|does|did)\snot\s{_HOW}
        (?:contain|include|give|indicate|cover|say|state|tell|mention|specify|provide|explain|describe|reveal|discuss
        |answer|show)
    | \b{_SOURCE}\s(?:say|mention|contain|tell)s?\snothing\b
    | \bnot\s{_HOW}(?:(?:clear|found|given|provided|told|said|known|included|discussed|described|answered|there)\s)?
        (?:in|from|by)\s(?:the|this|that|any|your)\s(?:\w+\s)?{_SOURCE}\b
    | \b(?:it|that|this)\s(?:does|did)\snot\s{_HOW}(?:say|state|tell|mention|specify|indicate)\b
    | \b(?:do|does|did)\snot\s{_HOW}(?:mention|specify)\b
    | \b(?:do|does)\snot\s{_HOW}(?:state\b|(?:say|tell)(?:{_END}|{_WHAT}))
    # what is asked for: "It was never mentioned", "Her age is not known", "Unknown"
    | \b(?:not|never)\s{_HOW}(?:mentioned|specified|stated)\b
    | \b(?:not|never)\s{_HOW}(?:given|provided|known|said|indicated|disclosed){_END}
    | \b(?:it|that|this)\s(?:is|was)\s(?:not|never)\s{_HOW}(?:known|said|told)\b
    | (?:^|\b(?:it|information)\sis\s)(?:not\s{_HOW}(?:clear|available)|unclear|unknown)(?:{_END}|{_WHAT}|\sfrom\b)
    | (?:^|\bit\sis\s)not\s{_HOW}possible\sto\s(?:determine|tell|say|know|answer|infer)\b
    | \b(?:is|are|was|were|remains?)\s{_HOW}unknown{_END}
    | \bcan\snot\sbe\s(?:determined|answered|inferred|known|identified)\b
    # nobody and nothing: "There is no mention of it", "Not enough information", "N/A"
    | \bnothing\s(?:is|was)\s(?:said|mentioned|told|known)\b | ^(?:nobody|no\sone)\sknows\b | ^n\s?/\s?a\W*$
    | (?:^|\bthere\sis\s)no\s(?:\w+\s)?(?:mention|indication|record)\b
    | \b(?:no\s(?:\w+\s)?|not\s(?:have\s)?enough\s|insufficient\s)(?:information|context)\b
    """,
    re.VERBOSE,
)


def normalised(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction has the normal form of any answer, else 0."""
    return float(normalised(prediction) in {normalised(answer) for answer in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 over the words of the prediction and of an answer, in SQuAD's normal form; 0 without answers."""
    said = normalised(prediction).split()
    return max((_overlap(said, normalised(answer).split()) for answer in answers), default=0.0)


def _overlap(said: list[str], right: list[str]) -> float:
    """F1 of two bags of words."""
    if not said or not right:
        return float(said == right)
    same = sum((Counter(said) & Counter(right)).values())
    return 2 * same / (len(said) + len(right)) if same else 0.0


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether any answer stands in the prediction as whole words, both in SQuAD's normal form."""
    said = f" {normalised(prediction)} "
    return any((right := normalised(answer)) and f" {right} " in said for answer in answers)


def abstains(prediction: str) -> bool:
    """Whether the prediction says that it does not know, in any of the usual ways; an empty one does too.

    What somebody did not do or get ("She was never given a ticket") is an answer like any other.
    """
    text = " ".join(prediction.lower().translate(_QUOTES).split())
    for short, whole in _WRITTEN_OUT:
        text = re.sub(short, whole, text)
    return not text or _ABSTAINS.search(text) is not None


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004), the best F1 of the longest common subsequence of words over all answers.

    Words are runs of letters and digits in lower case, as in Google's rouge_score without stemming, which NarrativeQA
    and FairytaleQA are reported with.
    """
    said = _words(prediction)
    best = 0.0
    for answer in answers:
        right = _words(answer)
        common = _subsequence(said, right)
        if common:
            best = max(best, 2 * common / (len(said) + len(right)))
    return best


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _subsequence(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for i, same in enumerate(other, start=1):
            row[i], before = (before + 1 if word == same else max(row[i], row[i - 1])), row[i]
    return row[-1]


_LETTER = re.compile(
    r"""
    ^\W*((?:i\s(?:think|believe|guess)\s(?:that\s)?)?(?:it(?:\sis|\swas|'s)\s)?
        (?:(?:\w+\s){0,2}(?:answer|option|choice|passage|sentence)(?:\s[^.:\n]{0,40}?\b(?:is|was))??\W*)?)
    ([a-h])(?![\w']|-\w|\s(?:and|or)\s[a-h]\b)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OF_ARTICLE = re.compile(  # what stands behind an "A" that is no letter: a word, but no verb
    r"[ ]+(?!(?:is|was|has|had|does|did|came|comes|appear\w*|seems|stands|stood|because|since|as|would)\b)\w",
    re.IGNORECASE,
)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction names the right one of several choices, by its letter or by its words, else 0.

    Args:
        prediction: as it was said. The letter it begins with counts ("B", "(B) tea", "The answer is B.", "A came
            first."); without one ("A green tea"), whether it has the right choice's words.
        answers: the right letter, then the words of the right choice.
    """
    said = prediction.strip().translate(_QUOTES)
    letter = _LETTER.match(said)
    if letter:
        may_be_article = letter[2] == "a" or (letter[2] == "A" and not letter[1])  # "The answer is A" has a letter
        if not (may_be_article and _OF_ARTICLE.match(said, letter.end())):
            return float(letter[2].upper() == answers[0].upper())
    return float(contains(prediction, answers[1:]))


# LoCoMo ---------------------------------------------------------------------------------------------------------------


@cache
def stemmer() -> Callable[[str], str]:
    """Porter's stemmer, as it was published. The official evaluation uses NLTK's, which adds a few exceptions.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        import snowballstemmer
    except ImportError as error:
        from ..errors import ConfigError

        raise ConfigError("LoCoMo's scores need the package snowballstemmer: pip install snowballstemmer") from error
    stem: Callable[[str], str] = snowballstemmer.stemmer("porter").stemWord
    return cache(stem)


def _stems(text: str) -> list[str]:
    """Words of a text in LoCoMo's normal form, stemmed."""
    plain = text.lower().translate(_PUNCTUATION)
    return [stemmer()(word) for word in _LOCOMO_ARTICLES.sub(" ", plain).split()]


def _stemmed_f1(prediction: str, answer: str) -> float:
    said, right = _stems(prediction), _stems(answer)
    return _overlap(said, right) if said and right else 0.0


def locomo(prediction: str, answer: str, category: int) -> float:
    """The score of LoCoMo's own evaluation, from 0 to 1.

    Args:
        prediction: of the system.
        answer: the right one; of no matter for category 5.
        category: 1 multi-hop: the answer's parts between commas, for each the best F1 of a part of the prediction,
            averaged. 2 temporal, 3 open domain (what stands before a semicolon counts), 4 single hop: F1 of stemmed
            words. 5 adversarial: 1 if the prediction abstains, in any of the usual ways; the official evaluation, which
            puts the question as a choice of two, looks for "no information available" and "not mentioned".
    """
    if category == 5:
        return float(abstains(prediction))
    if category == 1:
        said = [part.strip() for part in prediction.split(",")]
        parts = [max(_stemmed_f1(one, part.strip()) for one in said) for part in answer.split(",")]
        return sum(parts) / len(parts)
    if category == 3:
        answer = answer.split(";")[0].strip()
    return _stemmed_f1(prediction, answer)
