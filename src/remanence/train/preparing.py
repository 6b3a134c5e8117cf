"""Making a chat model ready for a memory in minutes, without data of its user's: what `remanence prepare` does.

A chat model reads well as it is, if it is told in its prompt to answer from what it reads. What it lacks is finding.
Its own hidden states find, once they are made comparable (`core/likeness.py`). For this are fitted, to texts in the
package:

1. how rare words are, and mean and directions of the model's hidden states, to messages;
2. matrices for queries and keys, by which questions are more like the message that answers them than like others;
3. a logistic regression that tells what asks for something remembered from what does not;
4. a judge (`core/judge.py`), which tells from the states of the model whether what it reads answers a question;
5. `doubt`, how sure that must be: what tells questions that a message answers best from questions that it only seems
   to answer.

Nothing of the model changes. Training finds better (`reading.py`, `judging.py`), and takes an hour or more.

Legend:  E examples, each a question with one span   J layers that the judge sees   D hidden size   B questions
K tokens of a message   R width of a key
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import MemoryConfig
from ..core.attachment import trained_positions
from ..core.likeness import Likeness
from ..core.looking import Alone, Candidates, candidates, speaks
from ..core.model import MemoryDecoder
from ..core.prompts import UNKNOWN
from ..core.read import StoredVectors
from ..core.spans import words_of
from ..errors import ConfigError
from ..facts.everyday import Message, lines, messages
from ..files import write_text
from ..models.decoders import cpu_dtype, load_config
from ..models.pretrained import MemoryModel, saved_settings
from .asking import INSTRUCTION, PROMPT
from .fitting import Examples, Fitting, fit, layers_of, logistic, odds_apart, threshold

_CHUNK, _WINDOW, _LEAST_POSITIONS = 64, 1024, 64
_LOOKS = 8  # what is read one by one
_KEY = 64  # width of queries and keys
_AT_ONCE = 32  # texts that go through the model together
_STATES = 400  # messages whose states tell mean and directions
_PAIRS, _STEPS, _BATCH, _LR, _HEAT = 1500, 400, 96, 2e-3, 10.0  # of fitting: messages; at the start, cosines count so
_ASKED, _NEAR, _UNKNOWN, _GENERAL, _SAID = 300, 150, 250, 450, 250  # turns that need a memory; and that need none
_WRITERS, _EACH, _BEHIND = 8, 12, 4  # writers, messages of each that are asked about, statements told after them
_DECAY = 1e-3  # of the weights of a logistic regression
_FITTING = Fitting(epochs=40, dropout=0.5)


@dataclass(frozen=True)
class Prepared:
    """What came of it.

    model: ready. doubt: as it was chosen. found: of the questions that the judge was fitted to, the share whose message
    is among what is looked at, of those that a message answers. answered: the share of these for which it is taken for
    the answer; refused: the share of those that no message answers for which nothing is; each by a judge that was
    fitted to others. needs: the share of turns whose need of a memory is told rightly. asked: how many questions. The
    search was fitted to these messages too, so none of it is a held-out figure.
    """

    model: MemoryModel
    doubt: float
    found: float
    answered: float
    refused: float
    needs: float
    asked: int


def memory_for(config: Any) -> MemoryConfig:
    """Verbatim memory with one search for a decoder of this config: smaller where it has few positions or layers.

    Raises:
        ConfigError: it has too few positions.
    """
    config = config.get_text_config()
    positions, layers = trained_positions(config), config.num_hidden_layers
    if positions < _LEAST_POSITIONS:
        raise ConfigError(
            f"a model trained on {positions} positions has no room for a memory; it takes {_LEAST_POSITIONS}."
        )
    chunk = min(_CHUNK, positions // 16)
    return MemoryConfig.verbatim(
        chunk_tokens=chunk, pool_tokens=2 * chunk, K0=4 * chunk, window_tokens=min(_WINDOW, positions - 6 * chunk - 1),
        kept="keys_values", retriever="trained", score_layers="one",
        search_layers=tuple(sorted({0, layers // 5, 2 * layers // 5})), search_hidden=256, retriever_dim=48,
        key_group=2 - chunk % 2, score_bias=0.5, key_dtype="bfloat16", store_dtype="q4", base_answers=True,
        looks=_LOOKS,
    )  # fmt: skip


def memory_of_states(config: Any, **changes: Any) -> MemoryConfig:
    """Verbatim memory that is searched by hidden states, for a decoder of this config.

    Args:
        config: of the decoder.
        changes: settings that shall be otherwise.

    Raises:
        ConfigError: it has too few positions; or settings that do not fit.
    """
    own = config.get_text_config()
    settings = {
        "retriever": "states", "search_layers": (2 * own.num_hidden_layers // 5,), "key_group": 1,
        "retriever_dim": _KEY, "look_at": "sentences", "store_dtype": "int8",
        "judge_layers": layers_of(own.num_hidden_layers), "judge_hidden": _FITTING.hidden,
    }  # fmt: skip
    return memory_for(config).replace(**(settings | changes))


def instructed(plain: MemoryModel, memory: MemoryConfig) -> MemoryModel:
    """The same decoder with other memory settings, told in its prompt to answer from what it reads of its memory.

    Args:
        plain: a decoder without memory weights.
        memory: sizes and rules; one that does not converse has no answers of its own to what needs no memory.
    """
    chat = bool(plain.tokenizer.chat_template)
    made = MemoryModel(
        plain.base, plain.tokenizer, memory.replace(base_answers=memory.base_answers and chat),
        prompt=None if chat else PROMPT, name=plain.name, instruction=INSTRUCTION,
    )  # fmt: skip
    made.base_name = plain.base_name
    return made.eval()


def prepare(
    model: str,
    *,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    show: Callable[[str, float], None] | None = None,
) -> Prepared:
    """Make a decoder without memory weights ready.

    Args:
        model: folder, .gguf file or hub id.
        settings: of its memory (`MemoryConfig`), where they shall be otherwise.
        seed: of the choice of texts.
        show: called with what is done, and which share of it.

    Raises:
        ConfigError: no such model; one that has memory weights already; settings that do not fit; or no room for a
            question.
    """
    if saved_settings(model) is not None:
        raise ConfigError(f"{model} has memory weights already; it can be used as it is.")
    config = load_config(model, None)
    memory = memory_of_states(config, **(settings or {}))
    for name in ("retriever", "judge_layers", "judge_hidden"):
        if name in (settings or {}):
            raise ConfigError(f"{name} is not for you to choose here; leave it out.")
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator(check_available=True) or device
    plain = MemoryModel.from_pretrained(model, memory=memory)
    if device.type == "cpu":  # as it will be loaded without its base
        plain.base.to(cpu_dtype(plain.base.dtype))
    ready = instructed(plain, memory).to(device)
    rng = random.Random(f"{seed}.prepare")
    wrote = [one for _, some in sorted(messages().items()) for one in some]
    count_words(ready, (one.text for one in wrote))
    tell = show or (lambda what, share: None)
    _fit_states(ready, rng.sample(wrote, _STATES), lambda share: tell("its hidden states", share))
    _fit_likeness(ready, rng.sample(wrote, _PAIRS), seed, tell)
    needs = _fit_needs(ready, wrote, rng, lambda share: tell("what needs a memory", share))
    ready._fingerprint = ""  # which is of the weights, too
    asked = _ask(ready, rng, lambda share: tell("questions and what is found for them", share))
    given = ready.config.doubt if "doubt" in (settings or {}) else None
    doubt, found, answered, refused = _doubt(asked, given)
    judge = fit(asked.examples, _FITTING)
    ready.judge = judge.to(ready.attachment.device, ready.base.dtype)
    ready.config = ready.config.replace(doubt=doubt)
    return Prepared(ready, doubt, found, answered, refused, needs, len(asked.told))


def save(prepared: Prepared, out: Path) -> None:
    """Write the model to a folder, with a card; its base is left out where it has a name to be loaded by.

    Args:
        prepared: what came of `prepare`.
        out: made if there is none.
    """
    model = prepared.model
    model.save_pretrained(out, base=model.base_name is None)
    write_text(out / "README.md", _card(prepared))


@torch.no_grad()
def count_words(model: MemoryDecoder, texts: Iterable[str]) -> None:
    """Tell the search which tokens spell one word, and how rare each is among chunks of texts.

    Tokens spell one word if they are the same in lower case without spaces around. A word's rarity is that of BM25.

    Args:
        model: with one search.
        texts: as many as are drawn of lessons, or all there are.
    """
    search, tokenizer, chunks = model.retriever, model.tokenizer, 0
    vocabulary, first = len(search.spelling), dict[str, int]()
    words = tokenizer.batch_decode([[i] for i in range(vocabulary)])
    spelling = torch.tensor([first.setdefault(word.strip().lower() or word, i) for i, word in enumerate(words)])
    having = torch.zeros(vocabulary)
    for text in texts:
        ids = spelling[torch.tensor(model.encode(text), dtype=torch.long)]
        for chunk in ids.split(model.config.chunk_tokens):
            having[chunk.unique()] += 1
            chunks += 1
    rarity = torch.log(1 + (chunks - having + 0.5) / (having + 0.5))
    search.spelling.copy_(spelling)
    search.rarity.copy_((rarity / rarity.max())[spelling])


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(1, len(right))


@torch.no_grad()
def _features(
    model: MemoryModel, texts: Sequence[str], show: Callable[[float], None]
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """What `MemoryModel.asked` tells of texts, some at a time; and before it, which they are."""
    ids = [model.encode(text) for text in texts]
    order = sorted((place for place, each in enumerate(ids) if each), key=lambda place: len(ids[place]))
    for begin in range(0, len(order), _AT_ONCE):
        some = order[begin : begin + _AT_ONCE]
        yield some, *model.asked([ids[place] for place in some])
        show((begin + len(some)) / len(order))


def _fit_states(model: MemoryModel, wrote: Sequence[Message], show: Callable[[float], None]) -> None:
    """Mean and directions of hidden states."""
    texts = [one.text for one in wrote]
    model.retriever.whiten(torch.cat([features[asks] for _, _, asks, features in _features(model, texts, show)]))


def _fit_likeness(model: MemoryModel, wrote: Sequence[Message], seed: int, tell: Callable[[str, float], None]) -> None:
    """Queries of questions more like keys of the message that answers than like those of others in a batch."""
    search: Likeness = model.retriever
    texts = [*(one.text for one in wrote), *(asked for one in wrote for asked in one.asked)]
    white, rarity = list[Tensor]([torch.zeros(0)] * len(texts)), list[Tensor]([torch.zeros(0)] * len(texts))
    seen = _features(model, texts, lambda share: tell("questions and what answers them", share))
    for places, ids, asks, features in seen:
        for row, place in enumerate(places):
            there = asks[row]
            white[place], rarity[place] = search.whitened(features[row, there]), search.rarity[ids[row, there]]
    first, questions = len(wrote), list[list[int]]()
    for one in wrote:
        questions.append(list(range(first, first + len(one.asked))))
        first += len(one.asked)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"{seed}.pairs")
    heat = torch.nn.Parameter(torch.tensor(_HEAT, device=search.mean.device))
    own = [*search.query.parameters(), *search.key.parameters(), *search.weigh.parameters()]
    groups: list[dict[str, Any]] = [{"params": own}, {"params": [heat], "lr": 50 * _LR}]
    optimizer = torch.optim.AdamW(groups, lr=_LR, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for step in range(_STEPS):
        some = torch.randperm(len(wrote), generator=generator)[:_BATCH].tolist()
        keys_BKR = search.keys_of(pad_sequence([white[place] for place in some], batch_first=True))
        lengths = torch.tensor([len(white[place]) for place in some], device=keys_BKR.device)
        there_BK = torch.arange(keys_BKR.shape[1], device=keys_BKR.device) < lengths[:, None]
        asked = [rng.choice(questions[place]) for place in some]
        queries = [search.queries_of(white[place], rarity[place]) for place in asked]
        products = torch.einsum("tr,bkr->tbk", torch.cat(queries), keys_BKR).masked_fill(~there_BK, -torch.inf)
        scores = [each.mean(0) for each in products.amax(-1).split([len(each) for each in queries])]
        loss = F.cross_entropy(heat * torch.stack(scores), torch.arange(len(some), device=heat.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        tell("fitting its search", (step + 1) / _STEPS)


def _fit_needs(
    model: MemoryModel, wrote: Sequence[Message], rng: random.Random, show: Callable[[float], None]
) -> float:
    """The sense for turns that need a memory; and the share of them that it tells rightly."""
    some = rng.sample(wrote, _ASKED + _NEAR)
    need = [rng.choice(one.asked) for one in some[:_ASKED]] + [rng.choice(one.near) for one in some[_ASKED:]]
    need += rng.sample(lines("personal_unknown"), _UNKNOWN)
    none = rng.sample(lines("general"), _GENERAL) + rng.sample(lines("statements"), _SAID)
    seen, places = list[Tensor](), list[int]()
    for some_places, _, asks, features in _features(model, need + none, show):
        seen.append(model.retriever.sight(features, asks).cpu())
        places += some_places
    sights, right = torch.cat(seen), torch.tensor(places) < len(need)
    weight, bias = logistic(sights, right, _DECAY)
    with torch.no_grad():
        model.retriever.needs.weight.copy_(weight[None])
        model.retriever.needs.bias.fill_(bias)
    return float(((sights @ weight + bias > 0) == right).float().mean())


@dataclass(frozen=True)
class _Asked:
    """Questions that were read with what is found for them.

    examples: what a judge sees of it. scores_E: how likely each is to answer, without a judge's word. told: of each
    question, by its number in the examples, whether a message answers it.
    """

    examples: Examples
    scores_E: Tensor
    told: list[bool]


@torch.no_grad()
def _ask(model: MemoryModel, rng: random.Random, show: Callable[[float], None]) -> _Asked:
    """Ask what messages answer, and what they only seem to answer; read the best of what is found, one by one."""
    read, scores, told = list[Examples](), list[float](), list[bool]()
    writers = [writer for writer, wrote in sorted(messages().items()) if len(wrote) >= _EACH]
    done, unknown, layers, looks = 0, model.encode(UNKNOWN), len(model.config.judge_layers), model.config.looks
    for writer in rng.sample(writers, min(_WRITERS, len(writers))):
        memory, wrote = model.new_memory(), rng.sample(messages()[writer], _EACH)
        for one in wrote:
            model.memorize(memory, one.text)
        for line in rng.sample(lines("statements"), _BEHIND):
            model.memorize(memory, line)
        for one, answers in product(wrote, (True, False)):
            done += 1
            question = (one.asked if answers else one.near)[0]
            if not model.fits(memory, question, 1):  # a window of few tokens
                continue
            prompt, asks = model.whole_prompt(memory, question, 1)
            waiting = prompt[:-asks]
            found = candidates(model, memory, model.search([memory], [model.encode(question)])[0])
            holds = [answers and _holds(model, one.answer, words_of(memory, span)) for span in found.spans]
            best = list(range(min(looks, len(holds))))
            if any(holds) and not any(holds[:looks]):  # what answers is read, if it is found at all
                best[-1] = holds.index(True)
            some = Candidates([found.spans[place] for place in best], found.searched[best], found.question)
            if not (some.spans or waiting):
                continue
            with model.attachment.hooks(), model.adapter("read"):
                alone = Alone(model, StoredVectors(model, memory), waiting, prompt[-asks:], some, unknown)
            assert alone.features is not None
            right = [holds[place] for place in best]
            if waiting:
                right.append(answers and one.answer in model.text_of(waiting))
            states_EJD = alone.features.unflatten(1, (layers, -1)).to("cpu", torch.bfloat16)
            says_E, right_E = speaks(torch.tensor(alone.likely)), torch.tensor(right)
            read.append(Examples(states_EJD, says_E, right_E, torch.zeros(len(right), dtype=torch.long)))
            scores += alone.scores
            told.append(answers)
            show(done / (2 * _EACH * _WRITERS))
    if not read:
        raise ConfigError(f"a window of {model.config.window_tokens} tokens has no room for a question.")
    return _Asked(Examples.joined(read), torch.tensor(scores), told)


def _holds(model: MemoryModel, answer: str, words: Tensor) -> bool:
    """Whether all words of an answer are among others."""
    spelt = (model.retriever.words(torch.tensor(model.encode(text))).cpu() for text in (answer, f" {answer}"))
    return any(bool(torch.isin(own, words).all()) for own in spelt)


def _doubt(asked: _Asked, doubt: float | None) -> tuple[float, float, float, float]:
    """How sure it must be, if that is not given; and which shares are found, answered, and refused, as in `Prepared`.

    Each question is judged by a judge that was fitted to others.
    """
    scores_E, best, found, first = asked.scores_E + odds_apart(asked.examples, _FITTING), list[float](), [], []
    for rows in asked.examples.rows.values():
        right = asked.examples.right_E[rows]
        best.append(float(scores_E[rows].max()))
        found.append(bool(right.any()))
        first.append(bool(right[scores_E[rows].argmax()]))
    if doubt is None:
        above = [score for score, there in zip(best, found, strict=True) if there]
        doubt = threshold(above, [score for score, there in zip(best, found, strict=True) if not there])
    told = [place for place, answers in enumerate(asked.told) if answers]
    refused = [best[place] < doubt for place, answers in enumerate(asked.told) if not answers]
    answered = [first[place] and best[place] >= doubt for place in told]
    return doubt, _share([found[place] for place in told]), _share(answered), _share(refused)


def _card(prepared: Prepared) -> str:
    """The model card."""
    model, config = prepared.model, prepared.model.config
    base = model.base_name or "in this folder"
    return f"""# A memory for {model.name}

Base: {base}, as it is. What it remembers is found by its own hidden states (layer {config.search_layers[0]}), in a way
that was fitted to {_PAIRS} messages of Remanence's package, and read one sentence at a time. Made by `remanence
prepare`.

A judge that was fitted to {prepared.asked} questions tells whether what is read answers; above a doubt of
{prepared.doubt} it is taken for the answer. Of those of the questions that a message answers, it was among what is read
for {prepared.found:.0%}, and taken for the answer for {prepared.answered:.0%}; of those that only seem to be answered
{prepared.refused:.0%} got "I don't know." (by judges that were fitted to the other questions). The search was fitted to
these messages, so these are not held-out figures.

Load it with `MemoryModel.from_pretrained(FOLDER)` or `remanence chat --model FOLDER`. A search and a judge that are
trained find and doubt better: `remanence train reading --search-only`, `remanence train judge`.
"""
