"""Training of reading: the writer stays as it is; an adapter learns to read what it wrote, and the search to find it.

A step writes some lessons (`lessons.py`) into a bank that holds those of the last steps too (`written.py`), and asks
questions about all of them. Each question

* is searched with among the writes of its own lesson and of others that are drawn for it. The search learns which of
  them holds the answer, or that none does (a contrastive loss with "nothing relevant" as one more class). Writes of
  other lessons that say the same are forbidden: they would make a right answer look wrong. Older answers to the
  question get a share of the target, as they cannot be told from the newest by what they say.
* is sometimes withheld its answer: what says it is left out of its memory. So the same questions are answered and not
  answered, and whether one was told cannot be guessed from the question.
* reads the best of them and a pool, as in use, and the adapter learns the answer. Where the search missed the right
  write, either that write is read with the others, or the answer to learn is that nothing is known: to learn an answer
  that cannot be read would be to learn to invent.

Turns that need no memory are mixed in. The search learns to tell them, and the reader is held to what the base says by
itself; so it is on plain prose with nothing in memory.

Every draw is a function of (seed, step, process), so a resumed run is the uninterrupted one.

Legend:  Q turns   T tokens   W writes in the bank   K vectors a write   F features   A tokens that ask, of all turns
"""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core.attachment import VectorSlots
from ..core.cache import MemoryCache
from ..core.model import MemoryDecoder
from ..core.prompts import UNKNOWN
from ..core.search import Question, Search, word_scores
from ..errors import ConfigError
from ..facts.everyday import lines
from ..files import write_text, write_whole
from .asking import Asking, replies
from .lessons import Lessons
from .log import logged
from .looks import spans_of_turns, writes_of_turns
from .merged import Merged
from .preparing import count_words
from .settings import ReadingRun
from .turns import Past, Turn
from .written import IN_WINDOW, Asked, Bank, LessonSlots, Picked, Stream, pick, stream_of

CHECKPOINT, REPLIES = "checkpoint.safetensors", "replies.json"
Show = Callable[[dict[str, Any]], None]

_NEVER = -1e4  # the score of what is not in the memory
_WEIGHTS = {
    "passage": 0.5,
    "message": 1.2,
    "self": 1.6,
    "other": 1.2,
    "thing": 1.1,
}  # how often a question of a kind is asked
_UNKNOWN_WEIGHT = 0.75  # and one that was never told
_GENERAL_SHARE = 0.65  # of turns without need of memory; the others tell something
_FORCE_END = 0.1
_REPLY_TOKENS = 40
_PROSE = 128, 800, 32  # tokens of prose that are read, the characters they are taken of, and the least
_PROSE_EVERY = 3  # steps
_ALL_EVERY = 3  # steps; in the others half as many writes are read, which takes less time
_MISSED_READ = 0.6  # share of the right writes the search missed that are read all the same
_SHORTEST = 500  # characters of a lesson
_TRIES = 200  # lessons that may be too short, a stream
_SAMPLE = 500  # lessons by which it is told how rare words are
_PIECE = 16  # tokens before a chunk that are told with it again
_NOTED = (
    "Noted, thanks for telling me.", "That's good to know!", "Got it.", "Thanks for sharing.",
    "Great, I will keep that in mind.", "Okay!",
)  # fmt: skip


@dataclass(frozen=True)
class Searched:
    """What `MemoryDecoder.search` finds, on the CPU.

    With their gradient: scores of all writes [Q, W], null and need [Q]. Without: what was compared, questions and the
    keys of writes [W, G, R].
    """

    scores_QW: Tensor
    null_Q: Tensor
    needs_Q: Tensor
    keys_WGR: Tensor
    questions: list[Question]


def search_scores(model: MemoryDecoder, bank: Bank, turns: Sequence[Turn]) -> Searched:
    """Search for turns.

    Args:
        model, bank: the reader, and what is searched.
        turns: what is searched with.
    """
    search: Search = model.retriever
    ids_QT, asks_QT, features_QTF = model.asked([turn.words for turn in turns])
    keys_WGR = search.keys(bank.features(), model.config.key_group)
    asked = asks_QT.nonzero(as_tuple=True)
    queries_AR = search.queries(features_QTF[asked])
    products = queries_AR @ keys_WGR.flatten(0, 1).T
    best_AW = products.unflatten(1, keys_WGR.shape[:2]).amax(-1).float() * search.scale
    weight_A = 1 / asks_QT.sum(1)[asked[0]].float()
    meaning_QW = best_AW.new_zeros(len(turns), len(bank)).index_add(0, asked[0], best_AW * weight_A[:, None])
    words_WK, words_QW, questions = bank.words(), [], list[Question]()
    of_turns = queries_AR.detach().float().cpu().split(asks_QT.sum(1).tolist())
    with torch.autocast(ids_QT.device.type, enabled=False):  # little work, and scores are compared with each other
        null_Q, needs_Q = search.verdicts(features_QTF, asks_QT)
        for ids_T, asks_T, features_TF, queries in zip(ids_QT, asks_QT, features_QTF, of_turns, strict=True):
            weights, words = search.word_weights(ids_T[asks_T], features_TF[asks_T]), search.words(ids_T[asks_T])
            words_QW.append(word_scores(words, weights, [words_WK]))
            questions.append(Question(queries, words.cpu(), weights.detach().cpu(), search.scale))
    scores_QW = (meaning_QW + torch.stack(words_QW)).cpu()
    return Searched(scores_QW, null_Q.float().cpu(), needs_Q.float().cpu(), keys_WGR.detach().float().cpu(), questions)


class ReadingTrainer:
    """Trains the reading adapter and the search of a model in place.

    Args:
        model: with an adapter for reading and one search for all layers; what else it has stays as it is.
        lessons: what is written and asked.
        run: settings.
        folder: for the checkpoint, `log.jsonl` and what the base says by itself.
        fresh: the search does not know yet how rare words are.
        rank, world: this process among those of the run, which `torch.distributed` connects.
        waiting: is called with (prompts done, in all) while the base answers by itself.
    """

    def __init__(
        self,
        model: MemoryDecoder,
        lessons: Lessons,
        run: ReadingRun,
        folder: Path,
        *,
        fresh: bool = True,
        rank: int = 0,
        world: int = 1,
        waiting: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.lessons, self.settings, self.folder = model, lessons, run, folder
        self.rank, self.world, self._fresh = rank, world, fresh
        # A model that is trained on must not be taught the lessons again that it has learnt already.
        self._seed = run.seed if fresh else run.seed + digest(model)
        self.asking = Asking(model)
        self.device = model.attachment.device
        self._half = model.base.dtype == torch.bfloat16
        self.named = learning(model, run.first_layer)
        adapter = [p for name, p in self.named.items() if "lora_" in name]
        search = [p for name, p in self.named.items() if "lora_" not in name]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": adapter, "most": run.lr, "weight_decay": 0.0},
                {"params": search, "most": run.lr_search, "weight_decay": run.weight_decay},
            ],
            betas=(0.9, 0.98),
        )
        merges = run.merge and run.lora is not None and self.device.type == "cpu" and Merged.fits(model.base, "read")
        self.merged = Merged(model.base, "read") if merges else None
        self.bank = Bank(model, steps=run.queue, streams=run.streams, chunks=run.chunks)
        self.step = self.tokens = 0
        self.elapsed = 0.0
        self._filled = False
        self.replies = self._replies(waiting)

    # What is asked ----------------------------------------------------------------------------------------------------

    def _replies(self, waiting: Callable[[int, int], None] | None) -> dict[str, list[int]]:
        """What the base says by itself to what needs no memory; made once a run, by the first process."""
        if not (self.asking.chat and self.settings.chat and self.settings.lora is not None):
            return {}
        path, prompts = self.folder / REPLIES, (*lines("general"), *lines("statements"))
        if self.rank == 0 and not path.exists():
            made = replies(self.model, prompts, _REPLY_TOKENS, waiting)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(made))
        if self.world > 1:
            dist.barrier()
        found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def streams(self, step: int) -> list[Stream]:
        """The lessons of a step."""
        rng, streams = random.Random(f"{self._seed}.lessons.{step}.{self.rank}"), list[Stream]()
        for _ in range(_TRIES * self.settings.streams):
            lesson = self.lessons.draw(rng)
            if len(lesson.text) > _SHORTEST:
                stream = stream_of(lesson, self.model, self.settings.chunks)
                if stream.chunks:
                    streams.append(stream)
            if len(streams) == self.settings.streams:
                return streams
        raise ConfigError(
            f"of {_TRIES * self.settings.streams} lessons hardly any fills a chunk of {self.model.config.K} tokens; "
            "give longer texts."
        )

    def draw(self, rng: random.Random) -> list[Turn]:
        """The turns of a step, about what is in the bank."""
        run, streams = self.settings, self.bank.streams
        unknown, chat = int(run.asks * run.unknown), int(run.asks * run.chat)
        asks = [(i, asked) for i, stream in enumerate(streams) for asked in stream.asks]
        weights = [_WEIGHTS[asked.ask.kind] * (1 if asked.ask.at is not None else _UNKNOWN_WEIGHT) for _, asked in asks]
        turns = []
        for i, asked in rng.choices(asks, weights, k=run.asks - unknown - chat) if asks else ():
            question, stream = asked.ask.question, streams[i]
            prompt, seen = self.asking.prompt(question), asked.at == IN_WINDOW
            if asked.at == IN_WINDOW or rng.random() < run.waiting:
                prompt = stream.rest + prompt
            elif asked.chunk is not None and self.asking.chat and rng.random() < run.told:
                before = stream.chunks[asked.chunk - 1][-_PIECE:] if asked.chunk else []
                said = self.model.tokenizer.decode(before + stream.chunks[asked.chunk])
                prompt, seen = self.asking.prompt(question, [(said, rng.choice(_NOTED))]), True
            withheld = asked.chunk is not None and not seen and rng.random() < run.withheld
            answer = self.asking.answer(UNKNOWN if withheld else asked.ask.answer)
            turn = self._turn(question, prompt, answer, i, asked, asked.ask.kind, seen)
            turns.append(replace(turn, withheld=withheld))
        for _ in range(unknown):
            question = rng.choice(lines("personal_unknown"))
            answer = self.asking.answer(UNKNOWN)
            i = rng.randrange(len(streams))
            turns.append(self._turn(question, self.asking.prompt(question), answer, i, None, "self"))
        for _ in range(chat):
            text = rng.choice(lines("general" if rng.random() < _GENERAL_SHARE else "statements"))
            answer = self.replies.get(text, [])  # a model that does not converse has none, and only searches
            i = rng.randrange(len(streams))
            turns.append(self._turn(text, self.asking.prompt(text), answer, i, None, "chat"))
        return turns

    def _turn(
        self, text: str, prompt: list[int], answer: list[int], stream: int, asked: Asked | None, kind: str,
        seen: bool = False,
    ) -> Turn:  # fmt: skip
        return Turn(text, self.model.encode(text.strip()), prompt, answer, stream, asked, kind, seen)

    # A step -----------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Bring the bank to where it is before this step; what it needs it draws and writes again."""
        if self._fresh:
            rng = random.Random(f"{self.settings.seed}.words")
            count_words(self.model, (self.lessons.draw(rng).text for _ in range(_SAMPLE)))
            self._fresh = False
        if self.merged is not None:
            self.merged.refresh()
        for step in range(max(-self.settings.before, self.step - self.settings.queue + 1), self.step):
            self.bank.add(self.streams(step))
        self._filled = True

    @property
    def progress(self) -> float:
        """How much of the run is done, by steps or by time."""
        run = self.settings
        by_steps = 0.0 if run.steps is None else self.step / run.steps
        return max(by_steps, 0.0 if run.hours is None else self.elapsed / (3600 * run.hours))

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """The adapter reads, in the number format of the run."""
        with self.model.adapter("read"), torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            yield

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; its figures."""
        if not self._filled:
            self.fill()
        began, run, step = time.perf_counter(), self.settings, self.step
        rng = random.Random(f"{self._seed}.asks.{step}.{self.rank}")
        generator = torch.Generator().manual_seed((self._seed << 32) + step * self.world + self.rank)
        streams = self.streams(step)
        self.bank.add(streams)
        turns = self.draw(rng)
        config = self.model.config
        pooled = config.N // config.K
        past = Past.draw(turns, self.bank, rng, generator, pooled=pooled, older=run.older)
        searched, figures = self._search(turns, past)
        if run.lora is not None:
            if config.looks:
                turns, picked = self._looked_at(turns, past, searched, rng)
            else:
                turns, picked = self._together(turns, past, searched, generator)
            figures |= self._read(turns, picked)
            if step % _PROSE_EVERY == 0 and run.prose_weight:
                figures |= self._prose(rng)
        else:
            figures["loss"] = figures["retriever"]
        figures |= self._update()
        written = sum(len(stream.chunks) for stream in streams) * config.K
        tokens = (written + sum(len(turn.prompt) + len(turn.answer) for turn in turns)) * self.world
        self.step, self.tokens = step + 1, self.tokens + tokens
        seconds = time.perf_counter() - began
        self.elapsed += self._mean(seconds)
        return figures | {
            "stage": "reading", "step": self.step, "total": self.step, "writes": len(self.bank),
            "tokens": self.tokens, "tokens_per_s": tokens / seconds, "s": seconds,
        }  # fmt: skip

    def _looked_at(
        self, turns: Sequence[Turn], past: Past, searched: Searched, rng: random.Random
    ) -> tuple[list[Turn], Picked]:
        """The turns as they are learnt from where few things are looked at by themselves (`looked.py`), and at what."""
        unknown, looks = self.asking.answer(UNKNOWN), self.model.config.looks
        if self.model.config.look_at == "sentences":
            return spans_of_turns(
                self.bank, turns, past, searched.scores_QW, searched.questions, searched.keys_WGR, unknown, looks, rng
            )  # fmt: skip
        return writes_of_turns(self.bank, turns, past, searched.scores_QW, unknown, looks, rng)

    def _together(
        self, turns: list[Turn], past: Past, searched: Searched, generator: torch.Generator
    ) -> tuple[list[Turn], Picked]:
        """The turns as they are learnt from where the best writes are read together, and what is read."""
        run, step, config = self.settings, self.step, self.model.config
        scores_QW, null_Q = searched.scores_QW, searched.null_Q
        pooled = config.N // config.K
        force = max(_FORCE_END, run.force - (run.force - _FORCE_END) * step / run.force_steps)
        forced = (torch.rand(len(turns), generator=generator) < force) & (past.gold_Q >= 0)
        best_Q = torch.maximum(scores_QW.masked_fill(~past.allowed_QW, -torch.inf).amax(1), null_Q)
        scores_QW[forced, past.gold_Q[forced]] = best_Q[forced] + 1
        retrieved = config.K0 // config.K
        if step % _ALL_EVERY:
            retrieved = -(-retrieved // 2)
        turns = self._with_missed(turns, past, scores_QW, retrieved, generator)
        picked = pick(
            scores_QW, null_Q, past.allowed_QW & ~past.empty_Q[:, None],
            [[] if empty else pool for pool, empty in zip(past.pools, past.empty_Q.tolist(), strict=True)],
            retrieved, pooled, score_bias=config.score_bias, recency=config.recency,
        )  # fmt: skip
        return turns, picked

    def _with_missed(
        self, turns: Sequence[Turn], past: Past, scores_QW: Tensor, retrieved: int, generator: torch.Generator
    ) -> list[Turn]:
        """The turns as they are learnt from where the search missed the right write, and no pool has it either.

        The write gets just the score to be read, in place; or the answer becomes that nothing is known.
        """
        unknown = self.asking.answer(UNKNOWN)
        open_QW = scores_QW.masked_fill(~past.allowed_QW, -torch.inf)
        for row, pool in enumerate(past.pools):
            open_QW[row, pool] = -torch.inf
        last_Q = open_QW.topk(min(retrieved, open_QW.shape[1]), 1).values[:, -1]
        read_Q = torch.rand(len(turns), generator=generator) < _MISSED_READ
        learnt = list(turns)
        for row, gold in enumerate(past.gold_Q.tolist()):
            if gold < 0 or gold in past.pools[row] or scores_QW[row, gold] >= last_Q[row]:
                continue
            if read_Q[row]:
                scores_QW[row, gold] = last_Q[row] + 1e-3
            elif not turns[row].seen:
                learnt[row] = replace(turns[row], answer=unknown, asked=None)
        return learnt

    def _search(self, turns: list[Turn], past: Past) -> tuple[Searched, dict[str, Any]]:
        """Search for all turns and learn from it; what was found, without gradient, and figures."""
        learns = self.settings.lr_search > 0
        with self._learning(), torch.set_grad_enabled(learns):
            searched = search_scores(self.model, self.bank, turns)
        scores_QW, null_Q, needs_Q = searched.scores_QW, searched.null_Q, searched.needs_Q
        logits = torch.cat([null_Q[:, None], scores_QW.masked_fill(~past.allowed_QW, _NEVER)], 1)
        losses = -(past.targets_QX * logits.log_softmax(1)).sum(1)
        loss = losses[past.counted_Q].mean() if past.counted_Q.any() else losses.sum() * 0
        # A passage's question may be one of general knowledge too: it is an example of neither.
        use = torch.tensor([turn.kind != "passage" for turn in turns])
        wanted = torch.tensor([float(turn.kind != "chat") for turn in turns])
        need = needs_Q.sum() * 0
        if use.any():
            need = F.binary_cross_entropy_with_logits(needs_Q[use], wanted[use])
        if learns:
            (loss + self.settings.need_weight * need).backward()
        figures: dict[str, Any] = {"retriever": loss.item(), "need": need.item()}
        with torch.no_grad():
            if use.any():
                figures["need_right"] = ((needs_Q > 0) == (wanted > 0))[use].float().mean().item()
            rows = past.gold_Q >= 0
            if rows.any():
                gold = logits.gather(1, 1 + past.gold_Q[:, None].clamp_min(0))
                better = (logits[:, 1:] > gold).sum(1)
                config = self.model.config
                figures["recall"] = [(better[rows] < config.K0 // config.K).float().mean().item()]
                figures["first"] = (better[rows] == 0).float().mean().item()
                figures["missed"] = (logits.argmax(1) == 0)[rows].float().mean().item()
            nothing = past.targets_QX[:, 0] == 1
            if nothing.any():
                figures["nothing_right"] = (logits.argmax(1) == 0)[nothing].float().mean().item()
        return replace(searched, scores_QW=scores_QW.detach(), null_Q=null_Q.detach()), figures

    def _lots(self, turns: list[Turn]) -> list[list[int]]:
        """Turns that are read at once: `lot` of them, of about the same length."""
        lengths = [len(turn.prompt) + len(turn.answer[: self.settings.answer_tokens]) for turn in turns]
        order = sorted((row for row in range(len(turns)) if turns[row].answer), key=lengths.__getitem__)
        return [order[i : i + self.settings.lot] for i in range(0, len(order), self.settings.lot)]

    def _read(self, turns: list[Turn], picked: Picked) -> dict[str, Any]:
        """Read and answer, and learn from it; figures."""
        run, most = self.settings, self.settings.answer_tokens
        answers = max(1, sum(len(turn.answer[:most]) for turn in turns if turn.kind != "chat"))
        said = max(1, sum(len(turn.answer[:most]) for turn in turns if turn.kind == "chat"))
        wrong: dict[int, bool] = {}
        total = {"answer": 0.0, "from_base": 0.0}
        for rows in self._lots(turns):
            some = [turns[row] for row in rows]
            chosen = [one.prompt + one.answer[:most] for one in some]
            spare = run.lot - len(rows)  # the last lot is filled up, so that all have one shape
            with self._learning(), self.model.attachment.hooks():
                cache = MemoryCache(
                    LessonSlots(self.bank, picked.of(rows + rows[-1:] * spare)), len(self.model.attachment.layers)
                )
                hidden = self._hidden(chosen + chosen[-1:] * spare, past_key_values=cache, use_cache=True)
                asked, told, turn_of = self._places(some, chat=False)
                loss = hidden.new_zeros((), dtype=torch.float32)
                if turn_of:
                    logits = self._logits(hidden[asked])
                    losses = F.cross_entropy(logits, told, reduction="none")
                    # Half of it counts every token alike, half every answer.
                    sizes = torch.tensor([len(some[b].answer[:most]) for b in turn_of], device=self.device)
                    loss = loss + (losses * 0.5 * (1 / answers + 1 / (sizes * len(turns)))).sum()
                    total["answer"] += losses.sum().item() / answers
                    for b, right in zip(turn_of, (logits.argmax(-1) == told).tolist(), strict=True):
                        wrong[rows[b]] = wrong.get(rows[b], False) or not right
                asked, _, turn_of = self._places(some, chat=True)
                if turn_of:
                    logits = self._logits(hidden[asked]).log_softmax(-1)
            if turn_of:
                apart = _divergence(logits, self._by_itself(some)).sum() / said
                loss = loss + run.chat_weight * apart
                total["from_base"] += apart.item()
            loss.backward()
        figures: dict[str, Any] = total | {"loss": total["answer"]}
        kinds: dict[str, list[bool]] = {}
        for row, missed in wrong.items():
            kind = turns[row].kind if turns[row].told else "unknown"
            kinds.setdefault(kind, []).append(not missed)
            if turns[row].told:
                kinds.setdefault("told", []).append(not missed)
        right = {kind: sum(rights) / len(rights) for kind, rights in kinds.items()}
        if "told" in right:
            figures["known"] = right.pop("told")
        if "unknown" in right:
            figures["unknown"] = right.pop("unknown")
        return figures | {f"known_{kind}": share for kind, share in sorted(right.items())}

    def _hidden(self, rows: Sequence[list[int]], **options: Any) -> Tensor:
        """The decoder's last hidden states of token rows, padded behind [B, T, D].

        There are few widths, since a CPU's library makes a kernel for every new shape of a product, which takes longer
        than the product.
        """
        pad = self.model.tokenizer.pad_token_id or 0
        longest = max(map(len, rows))
        step = 4 if longest <= 48 else 8 if longest <= 64 else 32
        width = -(-longest // step) * step
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        hidden: Tensor = self.model.attachment.decoder(ids, **options).last_hidden_state
        return hidden

    def _logits(self, hidden_AD: Tensor) -> Tensor:
        """Logits of hidden states, float32 [A, V]; their number is rounded up for the same reason."""
        padded = F.pad(hidden_AD, (0, 0, 0, -len(hidden_AD) % 16))
        logits: Tensor = self.model.attachment.logits(padded)[: len(hidden_AD)].float()
        return logits

    def _places(self, turns: Sequence[Turn], *, chat: bool) -> tuple[tuple[Tensor, Tensor], Tensor, list[int]]:
        """Where the answers of turns are foretold (row, token), their tokens, and of each its row."""
        rows, tokens, answers = list[int](), list[int](), list[int]()
        for row, turn in enumerate(turns):
            if (turn.kind == "chat") == chat:
                answer = turn.answer[: self.settings.answer_tokens]
                rows += [row] * len(answer)
                tokens += range(len(turn.prompt) - 1, len(turn.prompt) - 1 + len(answer))
                answers += answer
        at = torch.tensor(rows, device=self.device), torch.tensor(tokens, device=self.device)
        return at, torch.tensor(answers, device=self.device), rows

    @torch.no_grad()
    def _by_itself(self, turns: Sequence[Turn]) -> Tensor:
        """What the base expects where it answers the turns that need no memory, as log-probabilities."""
        alone = [turn for turn in turns if turn.kind == "chat"]
        asked = [self.model.prompts.alone([], turn.text) for turn in alone]
        most = self.settings.answer_tokens
        with self.model.plain():
            whole = [prompt + turn.answer[:most] for prompt, turn in zip(asked, alone, strict=True)]
            hidden = self._hidden(whole + whole[-1:] * (-len(whole) % 4), use_cache=False)
            parts = [
                hidden[row, len(prompt) - 1 : len(prompt) - 1 + len(turn.answer[:most])]
                for row, (prompt, turn) in enumerate(zip(asked, alone, strict=True))
            ]
            return self._logits(torch.cat(parts)).log_softmax(-1)

    def _prose(self, rng: random.Random) -> dict[str, Any]:
        """Hold the reader to its base on prose, with nothing in memory; figures."""
        tokens, characters, least = _PROSE
        text = rng.choice(self.lessons.material.prose)
        begin = rng.randrange(max(1, len(text) - characters))
        ids = self.model.encode(text[begin : begin + characters])[:tokens]
        starts = self.model.start_rows()
        if len(ids) < least or starts is None:
            return {}
        with torch.no_grad(), self.model.plain():
            plain = self._hidden([[self.model.prompts.first_token(), *ids]], use_cache=False)[0, 1 : 1 + len(ids)]
            expected = self.model.attachment.logits(plain).float().log_softmax(-1)
        with self._learning(), self.model.attachment.hooks():
            nothing = VectorSlots(self.model.attachment, [start[None, None] for start in starts], whole=True)
            cache = MemoryCache(nothing, len(starts))
            hidden = self._hidden([ids], past_key_values=cache, use_cache=True)[0, : len(ids)]
            logits = self.model.attachment.logits(hidden).float().log_softmax(-1)
        apart = _divergence(logits, expected).mean()
        (self.settings.prose_weight * apart).backward()
        return {"prose_from_base": apart.item()}

    def _mean(self, value: float) -> float:
        """The mean over the processes."""
        if self.world == 1:
            return value
        every = torch.tensor([value], device=self.device)
        dist.all_reduce(every)
        return every.item() / self.world

    @property
    def _factor(self) -> float:
        """The learning rates' factor."""
        warm = min(1.0, (self.step + 1) / self.settings.warmup) if self.settings.warmup else 1.0
        return warm * max(0.0, 1 - self.progress)

    def _update(self) -> dict[str, Any]:
        """Average the gradients over the processes, clip them, and learn."""
        parameters = list(self.named.values())
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is None:  # a process may have had no use for it
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
            dist.all_reduce(flat)
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = (part / self.world).view_as(parameter)
        factor, norms = self._factor, []
        for group in self.optimizer.param_groups:  # each by itself: the search's gradients are the larger ones
            norms.append(torch.nn.utils.clip_grad_norm_(group["params"], self.settings.clip).item())
            group["lr"] = group["most"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.merged is not None:
            self.merged.refresh()
        return {"norm": norms[0], "norm_search": norms[1], "lr": self.settings.lr * factor}

    # A run ------------------------------------------------------------------------------------------------------------

    def run(self, *, show: Show | None = None, stop: Callable[[], bool] | None = None) -> bool:
        """Train to the end.

        Args:
            show: is called with each step's figures.
            stop: whether to end after this step, with a checkpoint.

        Returns:
            Whether it came to the end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cut_log()
        saved, window = time.monotonic(), list[dict[str, Any]]()
        while self.progress < 1:
            figures = self.train_step()
            window.append(figures)
            if show is not None:
                show(figures)
            end = self.progress >= 1
            if self.step % self.settings.log_every == 0 or end:
                self._log(window)
                window = []
            stopped = stop is not None and stop()
            if end or stopped or time.monotonic() - saved > self.settings.save_every_s:
                self.save()
                saved = time.monotonic()
            if stopped and not end:
                return False
        return True

    def _log(self, window: list[dict[str, Any]]) -> None:
        """A line of log.jsonl: the last step, and the means of the steps since the line before."""
        if self.rank:
            return
        line = dict(window[-1])
        for key in {key for figures in window for key in figures} - {
            "stage",
            "step",
            "total",
            "tokens",
            "lr",
            "writes",
        }:
            values = [figures[key] for figures in window if key in figures]
            if isinstance(values[0], list):
                line[key] = [round(sum(value[0] for value in values) / len(values), 4)]
            else:
                line[key] = round(sum(values) / len(values), 4)
        line["elapsed_s"] = round(self.elapsed, 1)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _cut_log(self) -> None:
        """Lines of steps that were lost with the process that made them are made again."""
        path = self.folder / "log.jsonl"
        if self.rank or not path.exists():
            return
        entries = map(logged, path.read_text(encoding="utf-8").splitlines())
        kept = [entry for entry in entries if entry is not None and entry["total"] <= self.step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def trained(self) -> dict[str, Tensor]:
        """What was trained, by name, and what the search knows of words; on the CPU."""
        words = {f"retriever.{name}": value for name, value in self.model.retriever.named_buffers()}
        return {name: value.detach().cpu().contiguous() for name, value in (self.named | words).items()}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; only the first process does."""
        if self.rank:
            return
        tensors = {f"weights.{name}": value for name, value in self.trained().items()}
        for name, parameter in self.named.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = value.detach().cpu().contiguous()
        place = {"step": self.step, "tokens": self.tokens, "elapsed": self.elapsed}
        write_whole(
            self.folder / CHECKPOINT, lambda path: save_file(tensors, path, metadata={"place": json.dumps(place)})
        )

    def resume(self) -> bool:
        """Load the folder's checkpoint; False if there is none.

        Raises:
            ConfigError: a checkpoint of another model.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            place = json.loads(file.metadata()["place"])
        known = self.trained()
        given = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        wrong = sorted(known.keys() ^ given.keys()) or [n for n, t in known.items() if t.shape != given[n].shape]
        if wrong:
            raise ConfigError(f"{path} does not fit this model: {', '.join(wrong[:5])}; give another --out.")
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(given[name])
                states = {kind: tensors.get(f"{kind}.{name}") for kind in ("step", "exp_avg", "exp_avg_sq")}
                if states["step"] is not None:
                    self.optimizer.state[parameter] = {
                        kind: value if kind == "step" else value.to(parameter.device)
                        for kind, value in states.items()
                        if value is not None
                    }
            for name, value in self.model.retriever.named_buffers():
                value.copy_(given[f"retriever.{name}"])
        self._fresh, self._filled = False, False
        self.step, self.tokens, self.elapsed = place["step"], place["tokens"], place["elapsed"]
        return True


def learning(model: MemoryDecoder, first_layer: int = 0) -> dict[str, torch.nn.Parameter]:
    """What of a model learns, by name: the search and the adapter for reading, in float32. All else is frozen.

    Args:
        model: with both.
        first_layer: below it the adapter does not learn.
    """
    model.requires_grad_(False)
    below = {id(parameter) for layer in model.attachment.layers[:first_layer] for parameter in layer.parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        reads = "lora_" in name and ".read." in name and id(parameter) not in below
        if name.startswith("retriever.") or reads:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            found[name] = parameter
    return found


def digest(model: MemoryDecoder) -> int:
    """A number that tells one trained adapter from another."""
    found = 0
    for name, parameter in learning(model).items():
        if "lora_B" in name:
            found = zlib.crc32(parameter.detach().cpu().numpy().tobytes(), found)
    return found & 0x7FFFFFFF  # a seed has 63 bits, with the step's


def steps_done(folder: Path) -> int:
    """Steps of the checkpoint in a folder; 0 if there is none."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["place"])["step"])


def _divergence(found: Tensor, expected: Tensor) -> Tensor:
    """KL(expected || found) of log-probabilities, by place."""
    return F.kl_div(found, expected, log_target=True, reduction="none").sum(-1)
