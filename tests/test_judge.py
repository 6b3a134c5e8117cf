"""The judge: what it sees, what its word changes, and how it is taught."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from conftest import close, random_ids
from remanence import MemoryModel
from remanence.core.judge import Judge
from remanence.core.looking import _JUDGED, _NAMED, _SAID, _by_sentence, _named, candidates, look
from remanence.core.prompts import UNKNOWN
from remanence.core.spans import unfinished
from remanence.errors import ConfigError
from remanence.train import reading_run
from remanence.train.judging import Collector, judge_run, kept, launch
from remanence.train.preparing import memory_of_states
from remanence.train.run import check_parent
from test_cli import run as command
from test_looking import read_spans
from test_reading import TINY, base, few  # noqa: F401
from test_search import model_of
from test_spans import TEXTS, told_texts

LOOKING = {"looks": 3, "look_at": "sentences"}


def judged(tokenizer: Any, seed: int = 0, **changes: Any) -> MemoryModel:
    """A tiny model with a judge that has an opinion."""
    model = model_of(tokenizer, judge_layers=(1, 2), judge_hidden=8, **(LOOKING | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.judge.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def states(model: MemoryModel, memory: Any, span: Any, prompt: list[int]) -> list[Tensor]:
    """What enters every layer at the end of a prompt behind a span, and what leaves the last one."""
    with torch.no_grad(), model.reading([memory], spans=[[span]]) as cache:
        ids = torch.tensor([prompt])
        found = model.base.model(ids, past_key_values=cache, use_cache=True, output_hidden_states=True)
    return [state[:, -1] for state in found.hidden_states]


def plain_states(model: MemoryModel, ids: list[int]) -> list[Tensor]:
    """What enters every layer at the end of a text, and what leaves the last one, with the adapter for reading."""
    with torch.no_grad(), model.adapter("read"):
        found = model.base.model(torch.tensor([ids]), output_hidden_states=True)
    return [state[:, -1] for state in found.hidden_states]


def test_it_sees_the_states_in_which_the_reader_is_about_to_speak(tokenizer: Any) -> None:
    """Its odds are those of the span alone; what search says is added, and the answer goes on from there."""
    model, prompt = judged(tokenizer), random_ids(5, 1)
    memory = told_texts(model, TEXTS)
    found = model.search([memory], [prompt])[0]
    some = candidates(model, memory, found)
    some = type(some)(some.spans[:3], some.searched[:3])
    with model.attachment.hooks():
        looked, begun = look(model, memory, [], prompt, some, model.encode(UNKNOWN))
    for span, score in zip(looked.spans, looked.scores, strict=True):
        seen = states(model, memory, span, prompt)
        with torch.no_grad():
            odds = model.judge(Judge.features([seen[1], seen[2]]))
            says = float(model.base.lm_head(seen[-1])[0].softmax(-1)[model.encode(UNKNOWN)[0]])
        word = torch.log(torch.tensor((1 - says) / max(says, 1e-6))).clamp(-_SAID[1], _SAID[1])
        expected = odds + _SAID[0] * word + _JUDGED[0] * some.searched[some.spans.index(span)]
        close(torch.tensor([score]), expected, room=1e-3)
    assert begun.cache.get_seq_length() + 1 == begun.mask.shape[1]
    best = read_spans(model, [memory], [[looked.spans[0]]], prompt)[0, -1]
    with torch.no_grad(), model.attachment.hooks():
        went_on = model.base(
            torch.tensor([prompt[-1:]]), attention_mask=begun.mask, past_key_values=begun.cache, use_cache=True
        ).logits[0, -1]  # fmt: skip
    close(went_on, best, room=1e-3)


def test_its_word_decides(tokenizer: Any) -> None:
    """Whether there is an answer, and from which span; alone as together."""
    model = judged(tokenizer)
    memory = told_texts(model, TEXTS * 3)
    first = model.ask(memory, "Where do I live?", max_new_tokens=4)
    assert [a.ids for a in model.ask_batch([memory] * 2, ["Where do I live?"] * 2, max_new_tokens=4)] == [first.ids] * 2
    others = [judged(tokenizer, seed=seed) for seed in range(6)]
    assert len({other.ask(memory, "Where do I live?", max_new_tokens=4).sources[0].write for other in others}) > 1
    with torch.no_grad():
        for odds, unknown in ((-50.0, True), (50.0, False)):
            model.judge.odds.weight.zero_()
            model.judge.odds.bias.fill_(odds)
            answer = model.ask(memory, "Where do I live?", max_new_tokens=len(UNKNOWN))
            assert (answer.text == UNKNOWN) == unknown == (answer.score < 0)


def test_what_waits_is_looked_at_by_itself(tokenizer: Any) -> None:
    """As text before the question, with nothing remembered; a span is read without it."""
    model, prompt, rest = judged(tokenizer), random_ids(5, 1), random_ids(4, 2)
    memory, unknown = told_texts(model, TEXTS), model.encode(UNKNOWN)
    memory.pending = [replace(piece, time=9.0) for piece in memory.pending]  # of a text that has just begun
    some = candidates(model, memory, model.search([memory], [prompt])[0])
    some = type(some)(some.spans[:3], some.searched[:3])
    nothing = type(some)([], torch.zeros(0))
    with model.attachment.hooks():
        both, _ = look(model, memory, rest, prompt, some, unknown)
        spans, _ = look(model, memory, [], prompt, some, unknown)
        waits, begun = look(model, memory, rest, prompt, nothing, unknown)
    scores = dict(zip(both.spans, both.scores, strict=True))
    [window] = waits.spans
    assert window.first == window.end == memory.write_count * model.config.K
    expected = dict(zip([*spans.spans, window], [*spans.scores, *waits.scores], strict=True))
    assert scores.keys() == expected.keys()
    close(torch.tensor([scores[span] for span in expected]), torch.tensor(list(expected.values())), room=1e-3)
    assert both.sources(memory) and not waits.sources(memory)
    assert begun.mask.shape[1] == 1 + len(rest) + len(prompt)


def test_a_text_that_goes_on_in_the_window_is_read_from_where_its_sentence_began(tokenizer: Any) -> None:
    """What of it is remembered stands before the rest, as one text; it is a source too."""
    model, prompt = judged(tokenizer), random_ids(5, 1)
    memory = told_texts(model, (*TEXTS, "I was born in Trondheim. My blood type is O negative."))
    K, waits, unknown = model.config.K, memory.pending_ids, model.encode(UNKNOWN)
    told = "".join(write.text or "" for write in memory.writes)
    begun = unfinished(memory, model.tokenizer)
    assert begun is not None and waits and begun.end == memory.write_count * K
    text = told[begun.first : begun.end] + model.text_of(waits)
    assert text.endswith("My blood type is O negative.") and not text.startswith("My blood type is O negative.")
    some = candidates(model, memory, model.search([memory], [prompt])[0])
    with model.attachment.hooks():
        looked, _ = look(model, memory, waits, prompt, type(some)([], torch.zeros(0)), unknown)
        together, _ = look(model, memory, waits, prompt, some, unknown)
    [window] = looked.spans
    assert window.head == tuple(begun.rows) and window in together.spans
    for own, same in zip(*(states(model, memory, span, [*waits, *prompt]) for span in (window, begun)), strict=True):
        close(own, same)
    assert [source.write for source in looked.sources(memory)] == [memory.write_count - 1]
    with torch.no_grad():
        model.judge.odds.weight.zero_()
        model.judge.odds.bias.fill_(9.0)  # all are about as likely: the newest counts, which is what waits
    one = model.ask(memory, "What?", max_new_tokens=4)
    assert one.ids == model.ask_batch([memory, memory], ["What?", "Where do I live?"], max_new_tokens=4)[0].ids
    assert one.read[0] == set(begun.all_writes(K))

    text = "My blood type is O negative."
    memory = told_texts(model, (text,))
    window = unfinished(memory, model.tokenizer)
    assert window is not None and window.first == 0
    whole = plain_states(model, [model.tokenizer.bos_token_id, *model.encode(text), *prompt])
    for own, same in zip(states(model, memory, window, [*memory.pending_ids, *prompt]), whole, strict=True):
        close(own, same, room=1e-3)


def test_words_of_the_question_count_beside_it(tokenizer: Any) -> None:
    """What a span or a sentence that waits has of them, unless it is a question itself."""
    model = judged(tokenizer, looks=8)
    memory = told_texts(model, (*TEXTS, "My dog is called Rex, I think.", "My dog is called Rex, is it?", "The owl."))
    asked, unknown = model.encode("my dog is called"), model.encode(UNKNOWN)
    [found] = model.search([memory], [asked])
    some, question = candidates(model, memory, found), found.question
    assert question is not None and some.question is question
    wordless = type(some)(some.spans, some.searched)
    most, least = _NAMED
    weights = dict[int, float]()
    for word, weight in zip(question.words.tolist(), question.weights.tolist(), strict=True):
        weights[word] = weights.get(word, 0.0) + weight

    def naive(text: str) -> float:
        shares = [0.0]
        for sentence in re.findall(r"[^.!?]+[.!?]?", text):
            words = set(model.retriever.words(torch.tensor(model.encode(sentence))).tolist())
            share = sum(weight for word, weight in weights.items() if word in words) / sum(weights.values())
            shares.append(0.0 if "?" in sentence else share)
        return most * max(0.0, max(shares) - least) / (1 - least)

    ids = [token for write in memory.writes for token in model.encode(write.text or "")]
    waiting = "It rains. My dog is called Max. Is my dog called Ben?"
    with model.attachment.hooks():
        for waits in ([], model.encode(waiting)):
            with_words, _ = look(model, memory, waits, asked, some, unknown)
            without, _ = look(model, memory, waits, asked, wordless, unknown)
            plain = dict(zip(without.spans, without.scores, strict=True))
            gained = {
                span: score - plain[span] for span, score in zip(with_words.spans, with_words.scores, strict=True)
            }
            texts = {
                span: model.text_of(ids[span.first : span.end]) if span.end > span.first else "" for span in gained
            }
            expected = {span: naive(text) if text else naive("My dog is called Max.") for span, text in texts.items()}
            close(torch.tensor(list(gained.values())), torch.tensor(list(expected.values())), room=1e-3)
            assert max(expected.values()) > most / 2 and (waits or any("?" in text for text in texts.values()))
        model.judge = None
        reader, _ = look(model, memory, [], asked, some, unknown)
        alone, _ = look(model, memory, [], asked, wordless, unknown)
    assert reader.scores == alone.scores  # the reader's own word is enough


def test_all_words_must_be_in_one_sentence(tokenizer: Any) -> None:
    """With the day and the speaker before it; what two sentences have between them is nothing."""
    model = judged(tokenizer, looks=8)
    told = (
        "My dog is ill. Tom is called in.",
        "My dog is called Tom. It is ill.",
        "[1 May] Ada: My dog is called Tom.",
    )
    memory = told_texts(model, (*told, "The owl. " * 4))
    whole = "".join(write.text or "" for write in memory.writes)
    [found] = model.search([memory], [model.encode("my dog is called")])
    gains = dict[str, float]()
    for span in candidates(model, memory, found).spans:
        text = "".join(whole[row] for row in [*span.head, *range(span.first, span.end)])
        gains[text.strip()] = float(_named(model, found.question, _by_sentence(model, memory, [span])))
    assert gains[told[0]] < min(gains[told[1]], gains[told[2]])  # the tokenizer of the tests has a token a letter


def test_it_answers_from_what_waits(tokenizer: Any) -> None:
    """Where the judge likes that best; alone and beside a question that is answered from a span."""
    model = judged(tokenizer)
    with torch.no_grad():
        model.judge.odds.weight.zero_()
        model.judge.odds.bias.fill_(9.0)  # all are about as likely: the newest counts, which is what waits
    waits, told = told_texts(model, ("Tea?",)), told_texts(model, TEXTS)
    told.pending = []
    answers = model.ask_batch([waits, told], ["What?", "Where do I live?"], max_new_tokens=4)
    assert waits.pending and not waits.write_count
    assert answers[0].read[0] == set() and answers[0].sources[0].where == "window"
    assert answers[1].read[0]
    alone = [
        model.ask(memory, question, max_new_tokens=4)
        for memory, question in ((waits, "What?"), (told, "Where do I live?"))
    ]
    assert [answer.ids for answer in alone] == [answer.ids for answer in answers]


def test_it_is_saved_and_changes_no_memory(tokenizer: Any, tmp_path: Path) -> None:
    """Loaded it says the same; the fingerprint is that of the model without it."""
    model, plain = judged(tokenizer), model_of(tokenizer, **LOOKING)
    assert model.fingerprint == plain.fingerprint
    memory = told_texts(model, TEXTS)
    answer = model.ask(memory, "Where do I live?", max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.config.judge_layers == (1, 2) and again.fingerprint == model.fingerprint
    without = MemoryModel.from_pretrained(tmp_path, memory=plain.config)
    assert without.judge is None and without.fingerprint == model.fingerprint
    said = again.ask(memory, "Where do I live?", max_new_tokens=4)
    assert said.ids == answer.ids and [s.write for s in said.sources] == [s.write for s in answer.sources]
    close(torch.tensor(said.score), torch.tensor(answer.score), room=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"judge_layers": (2, 1)}, {"judge_layers": (99,)}, {"judge_layers": (1,), "looks": 0}, {"judge_hidden": 0}],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], tokenizer: Any) -> None:
    """Each is named."""
    with pytest.raises(ConfigError, match="judge_"):
        model_of(tokenizer, **(LOOKING | wrong))


SMALL = ["questions=24", "spans=3", "epochs=2", "hidden=4", "lessons.queue=3", "lessons.before=1", "lessons.asks=12"]


@pytest.fixture
def reader(base: Path, few: None, tmp_path: Path) -> str:  # noqa: F811
    """A model whose reading was trained for a step."""
    changes = [*TINY, "memory.looks=2", "memory.look_at=sentences"]
    run = reading_run.reading_run(str(base), [tmp_path / "book.txt"], steps=1, changes=changes)
    done: str = reading_run.launch(run, tmp_path / "reader", quiet=True)["model"]
    return done


def test_from_lessons_to_a_model_with_a_judge(reader: str, tmp_path: Path) -> None:
    """Stopped and cut short it reads on as if never stopped; the model has it and answers; another run is refused."""
    run = judge_run(reader, [tmp_path / "book.txt"], SMALL)
    ends = iter([False, True])
    stopped = launch(run, tmp_path / "out", quiet=True, stop=lambda: next(ends))
    assert stopped["model"] is None and 0 < stopped["questions"] < 24
    for file in sorted((tmp_path / "out").glob("examples-*"))[-1:]:
        file.write_bytes(file.read_bytes()[:-5])
    done, whole = (launch(run, tmp_path / name, quiet=True) for name in ("out", "whole"))
    assert done["questions"] >= 24 and done["figures"] == whole["figures"]
    read = kept(tmp_path / "whole", 0)
    for one, other in zip(kept(tmp_path / "out", 0), read, strict=True):
        assert torch.equal(one.states_EJD, other.states_EJD) and torch.equal(one.right_E, other.right_E)
    assert 0 < sum(int(one.right_E.sum()) for one in read) < sum(len(one.right_E) for one in read)
    model, before = MemoryModel.from_pretrained(done["model"]), MemoryModel.from_pretrained(reader)
    assert model.judge is not None and model.fingerprint == before.fingerprint
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 20)
    assert model.ask(memory, "Where is the spare key?", max_new_tokens=3).sources
    with pytest.raises(ConfigError, match="another run"):
        launch(judge_run(reader, [tmp_path / "book.txt"], [*SMALL, "seed=1"]), tmp_path / "out")


def test_a_run_may_ask_for_more(reader: str, tmp_path: Path) -> None:
    """What was read stays, also by processes that are not there any more; how a judge is fitted may change."""
    data, out = [tmp_path / "book.txt"], tmp_path / "out"
    begun = launch(judge_run(reader, data, SMALL), out, quiet=True)["questions"]
    first = sorted(out.glob("examples-0-*"))
    for path in first:
        path.rename(path.with_name(path.name.replace("examples-0-", "examples-1-")))
    again = launch(judge_run(reader, data, [*SMALL, "hidden=6"]), out, quiet=True)
    assert again["questions"] == begun and not list(out.glob("examples-0-*"))
    assert MemoryModel.from_pretrained(again["model"]).config.judge_hidden == 6
    more = launch(judge_run(reader, data, [*SMALL, f"questions={begun + 1}"]), out, quiet=True)["questions"]
    assert more == begun + sum(one.count for one in kept(out, 0)) > begun
    assert len(list(out.glob("examples-1-*"))) == len(first)


def test_a_run_outlives_the_shell_that_started_it(reader: str, tmp_path: Path) -> None:
    """As with nohup and a connection that ends; only the processes that a run starts end with it."""
    out = tmp_path / "out"
    args = ["train", "judge", "--model", reader, "--text", str(tmp_path / "book.txt"), "--out", str(out), "--json"]
    args += [part for change in [*SMALL, "questions=200"] for part in ("--set", change)]
    words, file = shlex.join([sys.executable, "-m", "remanence", *args]), out / "examples-0-0000.safetensors"
    script = f"{words} > {tmp_path}/said 2>&1 & until [ -e {file} ]; do sleep 0.02; done"
    subprocess.run(["sh", "-c", script], timeout=120, check=True)
    assert not (out / "model").exists()
    ends = time.monotonic() + 120
    while not (out / "model" / "remanence.json").exists() and time.monotonic() < ends:
        time.sleep(0.2)
    assert (out / "model" / "remanence.json").exists(), (tmp_path / "said").read_text(encoding="utf-8")


def test_a_process_of_a_run_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it knows by the number of the one that started it."""
    monkeypatch.setenv("REMANENCE_SPAWNED_BY", str(os.getppid()))
    check_parent()
    monkeypatch.setenv("REMANENCE_SPAWNED_BY", "1" if os.getppid() != 1 else "2")
    with pytest.raises(SystemExit, match="is gone"):
        check_parent()


def test_a_base_that_reads_by_an_instruction_gets_a_judge_too(base: Path, few: None, tmp_path: Path) -> None:  # noqa: F811
    """It sees what the base does, behind the instruction."""
    changes = [*(change for change in TINY if not change.startswith("lora")), "memory.looks=2"]
    data = [tmp_path / "book.txt"]
    run = reading_run.reading_run(str(base), data, steps=1, reads=False, changes=changes)
    searches = reading_run.launch(run, tmp_path / "search", quiet=True)["model"]
    done = launch(judge_run(searches, data, SMALL), tmp_path / "out", quiet=True)
    model = MemoryModel.from_pretrained(done["model"])
    assert model.judge is not None and model.instruction is not None and model.adapters == ()
    assert model.fingerprint == MemoryModel.from_pretrained(searches).fingerprint
    memory = model.new_memory()
    model.memorize(memory, "The spare key is under the blue pot. " * 20)
    assert model.ask(memory, "Where is the spare key?", max_new_tokens=3).sources


def test_a_prepared_model_gets_a_judge_too(base: Path, few: None, tmp_path: Path) -> None:  # noqa: F811
    """Another one; what it remembers is searched as in use, and stays. Its search is not trained."""
    data, sizes = [tmp_path / "book.txt"], {"K": 32, "chunk_tokens": 32, "N": 64, "K0": 64, "window_tokens": 512}
    ready = memory_of_states(AutoConfig.from_pretrained(base), **sizes, looks=2, doubt=3.0)
    decoder, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model = MemoryModel(decoder, tokenizer, ready, instruction="Answer from the text.")
    model.retriever.whiten(torch.randn(300, model.attachment.width))
    model.save_pretrained(tmp_path / "ready")
    done = launch(judge_run(str(tmp_path / "ready"), data, SMALL), tmp_path / "out", quiet=True)
    judged = MemoryModel.from_pretrained(done["model"])
    assert judged.judge is not None and judged.config.doubt == 3 and judged.fingerprint == model.fingerprint
    memory = judged.new_memory()
    judged.memorize(memory, "The spare key is under the blue pot. " * 20)
    assert judged.ask(memory, "Where is the spare key?", max_new_tokens=3).ids
    run = reading_run.reading_run(str(tmp_path / "ready"), data, steps=1)
    with pytest.raises(ConfigError, match="train its base instead"):
        reading_run.launch(run, tmp_path / "reading", quiet=True)


def test_what_is_read_is_what_would_be_looked_at(reader: str, tmp_path: Path) -> None:
    """At most so many spans a question, of which at most two answer, and two texts that wait, of which one may."""
    (tmp_path / "out").mkdir()
    collector = Collector(judge_run(reader, [tmp_path / "book.txt"], SMALL), tmp_path / "out")
    examples = collector.step()
    for number in examples.question_E.unique():
        own = examples.question_E == number
        assert 0 < int(own.sum()) <= 3 + 2 and int(examples.right_E[own].sum()) <= 2 + 1
    assert examples.states_EJD.shape[1:] == (len(collector.layers), collector.model.attachment.width)
    assert torch.isfinite(examples.says_E).all()


@pytest.mark.slow
def test_the_command(reader: str, tmp_path: Path) -> None:
    """It teaches with several processes and says how well; misuse is one line with exit code 2."""
    usual = ["train", "judge", "--model", reader, "--text", str(tmp_path / "book.txt"), "--out", str(tmp_path / "out")]
    changes = [part for change in SMALL for part in ("--set", change)]
    done = command("unused", *usual, *changes, "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["questions"] >= 24 and MemoryModel.from_pretrained(result["model"]).judge is not None
    assert "with its judge" in command("unused", *usual, *changes).stderr
    for wrong in ([*usual, "--set", "questions=0"], [*usual, "--set", "lessons.memory.look_at=writes"], usual[:4]):
        refused = command("unused", *wrong)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr


def test_what_waits_has_a_say_before_the_base_answers_alone(tokenizer: Any) -> None:
    """Where it has most of the turn's words, though nothing was remembered yet."""
    model = judged(tokenizer, base_answers=True)
    with torch.no_grad():
        model.judge.odds.weight.zero_()
        model.judge.odds.bias.fill_(50.0)
        model.retriever.null.bias.fill_(99.0)
        model.retriever.needs.weight.zero_()
        model.retriever.needs.bias.fill_(-9.0)
    memory = model.new_memory()
    model.memorize(memory, "abc de")  # of one-letter words, as this tokenizer has them
    assert memory.pending and not memory.writes
    assert model.ask(memory, "abcde", max_new_tokens=3).recalled
    assert not model.ask(memory, "zyxwvu", max_new_tokens=3).recalled
    assert not model.ask(model.new_memory(), "abcde", max_new_tokens=3).recalled


def test_it_has_a_say_before_the_base_answers_alone(tokenizer: Any) -> None:
    """Where something nearly relevant was found; what it does not take for an answer is left to the base."""
    model = judged(tokenizer, base_answers=True)
    memory = told_texts(model, TEXTS)
    with torch.no_grad():
        model.judge.odds.weight.zero_()
        for layer in (model.retriever.null, model.retriever.needs):
            layer.weight.zero_()
        model.retriever.needs.bias.fill_(-9.0)
        best = float(model.search([memory], [model.encode("Where do I live?")])[0].scores.max())
        for below, odds, recalled in ((-1.0, 50.0, True), (2.0, 50.0, True), (2.0, -50.0, False), (9.0, 50.0, False)):
            model.retriever.null.bias.fill_(best + below)
            model.judge.odds.bias.fill_(odds)
            answers = model.ask_batch([memory] * 2, ["Where do I live?", "Where do I live?"], max_new_tokens=3)
            alone = model.answer_alone("Where do I live?", max_new_tokens=3)
            assert [answer.recalled for answer in answers] == [recalled] * 2
            assert (answers[0].text == alone.text and not answers[0].sources) or recalled
            assert model.ask(memory, "Where do I live?", max_new_tokens=3).ids == answers[0].ids
