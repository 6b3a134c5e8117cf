"""Documents: sources, sizes, targets, questions, lanes, epochs, resume, held-out documents, bad input."""

from __future__ import annotations

import builtins
import gzip
import json
import lzma
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

datasets = pytest.importorskip("datasets")

from remanence.errors import ConfigError  # noqa: E402
from remanence.train import corpus as corpus_module  # noqa: E402
from remanence.train import documents as module  # noqa: E402
from remanence.train.corpus import HELD_OUT, RECIPES, Data, expand, is_held_out  # noqa: E402
from remanence.train.data import Batch, Rows  # noqa: E402
from remanence.train.documents import DocumentMix, Documents  # noqa: E402

EOS = 258  # of the byte tokenizer: a token is a byte
MIX = DocumentMix(streams=2, chunks=(1, 3), tokens=(16, 40), target=40, prompt=(4, 8))
ONE = DocumentMix(chunks=(1, 1), tokens=(20, 20), target=40, prompt=(4, 4), repeat=0.0)  # takes 40 tokens

Texts = Callable[..., list[str]]


def texts(count: int, length: int = 300, seed: int = 0) -> list[str]:
    """Documents that training sees, each beginning with its number."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        words = "".join(rng.choices("abcdefghij  ", k=length))
        text = f"<{len(found)}>{words}"[:length]
        if not is_held_out(text):
            found.append(text)
    return found


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """One object a line; packed if the name says so."""
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Thirty documents of 300 tokens."""
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text, "id": i} for i, text in enumerate(texts(30))])


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal, to the token."""
    return torch.equal(a.chunks_BTn, b.chunks_BTn) and a.questions == b.questions


def decoded(ids: Any) -> str:
    """The text of byte tokens."""
    return bytes(i for i in torch.as_tensor(ids).flatten().tolist() if i < 256).decode()


def order(documents: Documents, count: int) -> list[str]:
    """The next documents of the first source."""
    return [documents.corpora[0].take().text for _ in range(count)]


# Sources -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.txt", "a.txt.xz", "folder", "*"])
def test_reads_local_files(name: str, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": text} for text in texts(3)]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(rows))
    elif name == "a.parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif ".txt" in name:
        raw = rows[0]["text"].encode()
        path.write_bytes(lzma.compress(raw) if name.endswith(".xz") else raw)
    elif name in ("folder", "*"):
        path = tmp_path / "folder"
        (path / "inner").mkdir(parents=True)
        (path / "README.md").write_text("not a document")
        for i, row in enumerate(rows):
            (path / ("inner" if name == "folder" else "") / f"{i}.txt").write_text(row["text"])
        path = path / "*.txt" if name == "*" else path
    else:
        write_jsonl(path, rows)
    documents = Documents([Data(path=str(path), shuffle=0)], tokenizer)
    found = order(documents, 1 if ".txt" in name else 3)
    assert found == [row["text"] for row in rows][: len(found)]
    assert documents.batch(0, ONE).chunks_BTn.shape == (1, 1, 20)


def test_recipes_are_the_papers() -> None:
    bands = [(d.least_tokens, d.most_tokens) for d in RECIPES["slimpajama-long"]]
    assert bands == [(4096, 8192), (8192, 16384), (16384, 32768), (32768, 65536), (None, None)]
    assert {d.weight for d in RECIPES["slimpajama-long"]} == {1.0}
    shares = [d.weight for d in expand(Data(path="slimpajama-long", weight=2.0))]
    assert shares == pytest.approx([0.4] * 5)
    assert expand(Data(path="x.jsonl")) == (Data(path="x.jsonl"),)
    with pytest.raises(ConfigError, match="recipe"):
        expand(Data(path="fineweb-edu", text="content"))


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(path: str, name: str | None, **options: Any) -> Any:
        asked.append((path, name, options))
        return datasets.Dataset.from_list([{"text": t} for t in texts(4)]).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    documents = Documents([Data(path="fineweb-edu")], tokenizer)
    assert documents.batch(0, ONE).chunks_BTn.shape == (1, 1, 20)
    options = {"split": "train", "revision": None, "streaming": True}
    assert asked == [("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10", options)]


# Sizes and targets ---------------------------------------------------------------------------------------------------


def test_batches_have_one_shape_and_one_question_a_stream(corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus)], tokenizer)
    shapes = set()
    for step in range(30):
        batch = documents.batch(step, MIX)
        streams, chunks, length = batch.chunks_BTn.shape
        shapes.add((chunks, length))
        assert streams == 2 and 1 <= chunks <= 3 and 16 <= length <= 40
        assert batch.first_person_BT.shape == (2, chunks) and not batch.first_person_BT.any()
        assert [q.stream for q in batch.questions] == [0, 1]
        for q in batch.questions:
            assert q.prompt and q.answer and len(q.prompt) + len(q.answer) <= 40
            assert q.chunk is not None and q.chunk < chunks and not set(q.stale) & {q.chunk}
        Rows.of([[]] * 2, [[q] for q in batch.questions])  # what the loop makes of them
    assert len(shapes) > 15


def test_text_goes_on_where_the_chunks_end(corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus, shuffle=0)], tokenizer)
    mix = DocumentMix(chunks=(3, 3), tokens=(20, 20), target=50, prompt=(4, 8), repeat=0.0)
    places = set()
    for step, text in enumerate(texts(30)):
        batch = documents.batch(step, mix)
        question = batch.questions[0]
        piece = decoded(batch.chunks_BTn) + decoded(question.prompt) + decoded(question.answer)
        assert len(piece) == 3 * 20 + 50 and piece in text
        places.add(text.index(piece))
        assert 4 <= len(question.prompt) <= 8
        assert (question.chunk, question.stale) == (2, [0, 1])
    assert len(places) > 20, "long documents begin anywhere"


def test_repeat(corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus)], tokenizer)
    mix = DocumentMix(chunks=(3, 3), tokens=(20, 20), target=50, prompt=(4, 8), repeat=1.0)
    batch = documents.batch(0, mix)
    question = batch.questions[0]
    written = decoded(batch.chunks_BTn)
    assert decoded(question.prompt) == "Repeat: " + written[:5], "five tokens are given away"
    assert decoded(question.answer) == written[5 : 50 - len("Repeat: ")]
    assert (question.chunk, question.stale) == (2, [0, 1])  # 42 tokens reach into the third chunk
    short = documents.batch(1, DocumentMix(chunks=(3, 3), tokens=(20, 20), target=20, prompt=(4, 8), repeat=1.0))
    assert (short.questions[0].chunk, short.questions[0].stale) == (0, [])


def test_bands_of_length(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": text} for size in (60, 99, 100, 150, 199, 200, 400) for text in texts(2, size)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    documents = Documents([Data(path=path, least_tokens=100, most_tokens=200, shuffle=0)], tokenizer)
    read = []
    documents.encode = lambda text: read.append(len(text)) or Documents.encode(documents, text)  # type: ignore
    kept = [len(documents._text(documents.corpora[0], random.Random(0), 10, 20, "")[0]) for _ in range(12)]
    assert sorted(kept) == [100] * 4 + [150] * 4 + [199] * 4
    # No more chunks than the band's shortest document has.
    wide = DocumentMix(chunks=(1, 50), tokens=(20, 20), target=40, prompt=(4, 4))
    assert max(documents.batch(i, wide).chunks_BTn.shape[1] for i in range(30)) == 4
    with pytest.raises(ConfigError, match="below 200"):
        documents.batch(0, DocumentMix(chunks=(20, 20), tokens=(20, 20)))


def test_a_very_long_text_is_not_tokenised_whole(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text := texts(1, 200_000)[0])
    documents = Documents([Data(path=str(path))], tokenizer)
    sizes: list[int] = []
    encode = documents.encode
    documents.encode = lambda text: sizes.append(len(text)) or encode(text)  # type: ignore
    batches = [documents.batch(i, ONE) for i in range(10)]
    assert max(sizes) < 2000
    places = [text.index(decoded(b.chunks_BTn)) for b in batches]
    assert max(places) - min(places) > 50_000, "from the whole book"


def test_a_whole_epoch_without_a_long_document_is_an_error(corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus)], tokenizer)
    documents.batch(0, MIX)
    with pytest.raises(ConfigError, match=r"none of \d+ documents .*the longest has 300"):
        documents.batch(1, DocumentMix(chunks=(10, 10), tokens=(40, 40)))
    with pytest.raises(ConfigError, match=r"the longest has 300"):  # too short by a few tokens, so tokenised
        documents.batch(1, DocumentMix(chunks=(10, 10), tokens=(30, 30), target=40, prompt=(4, 4)))


def test_a_source_too_large_to_be_read_whole_is_given_up(
    corpus: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 12)
    with pytest.raises(ConfigError, match="none of 12 documents"):
        Documents([Data(path=corpus)], tokenizer).batch(0, DocumentMix(chunks=(10, 10), tokens=(40, 40)))


# Questions -----------------------------------------------------------------------------------------------------------


FILL = "x" * 30


def question_row(i: int) -> dict[str, Any]:
    """A passage whose answer stands in one place."""
    return {"context": f"{FILL} Nr{i} lives in Town{i}, {FILL}", "question": f"Where is Nr{i}?", "answer": f"town{i}"}


def shaped(row: dict[str, Any], shape: str) -> dict[str, Any]:
    """The same as somebody else writes it."""
    pair = {"question": row["question"], "answer": row["answer"]}
    if shape == "flat":
        return row
    if shape == "squad":  # as on the hub
        answers = {"text": [row["answer"], "no"], "answer_start": [1, 2]}
        return {"context": row["context"], "question": row["question"], "answers": answers}
    items = {
        "list": [pair],
        "answers": [{"question": row["question"], "answers": [row["answer"], "nowhere"]}],
        "columns": {"question": [row["question"]], "answer": [row["answer"]]},
    }[shape]
    return {"context": row["context"], "question": items}


@pytest.mark.parametrize("shape", ["flat", "squad", "list", "answers", "columns"])
def test_questions_and_their_gold_chunk(shape: str, tmp_path: Path, tokenizer: Any) -> None:
    rows = [row for row in map(question_row, range(40)) if not is_held_out(row["context"])]
    path = write_jsonl(tmp_path / "a.jsonl", [shaped(row, shape) for row in rows])
    documents = Documents([Data(path=path, text="context", questions="question")], tokenizer)
    mix = DocumentMix(streams=4, chunks=(3, 3), tokens=(40, 60), target=40, prompt=(4, 8), repeat=0.0, questions=1.0)
    sure = 0
    for step in range(10):
        batch = documents.batch(step, mix)
        for row, q in zip(batch.chunks_BTn, batch.questions, strict=True):
            asked, answer = decoded(q.prompt), decoded(q.answer)
            number = asked.removeprefix("Question: Where is Nr").removesuffix("? Answer:")
            assert answer == f" town{number}" and q.answer[-1] == EOS
            assert f"Town{number}," in decoded(row), "the answer was written"
            holders = [c for c, chunk in enumerate(row) if f"Town{number}," in decoded(chunk)]
            if holders:
                assert ([q.chunk], q.stale) == (holders, [])
                sure += 1
            else:
                assert q.stale == [q.chunk - 1], "an answer across the end of a chunk: all the passage's chunks"
    assert sure > 20


def test_an_answer_in_other_words_takes_the_whole_document(tmp_path: Path, tokenizer: Any) -> None:
    row = question_row(1) | {"answer": "in a place"}
    path = write_jsonl(tmp_path / "a.jsonl", [row, row | {"context": "y" * 500, "answer": "something"}] * 4)
    data = Data(path=path, text="context", questions="question", shuffle=0)
    documents = Documents([data], tokenizer, split="all")
    mix = DocumentMix(chunks=(3, 3), tokens=(40, 40), target=40, prompt=(4, 8), repeat=0.0, questions=1.0)
    asked = 0
    for step in range(8):
        batch = documents.batch(step, mix)
        q = batch.questions[0]
        if decoded(q.prompt).startswith("Question"):
            asked += 1
            assert row["context"] in decoded(batch.chunks_BTn) and decoded(q.answer) == " in a place"
    assert asked


def test_questions_are_a_share_of_the_targets(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [question_row(i) for i in range(40)])
    mix = DocumentMix(streams=50, tokens=(40, 40), target=40, prompt=(4, 8), repeat=0.2, questions=0.5)
    documents = Documents([Data(path=path, text="context", questions="question")], tokenizer)
    kinds = [decoded(q.prompt)[:7] for i in range(4) for q in documents.batch(i, mix).questions]
    assert 25 <= kinds.count("Repeat:") <= 55
    assert 55 <= kinds.count("Questio") <= 105
    none = Documents([Data(path=path, text="context")], tokenizer)  # its field of questions is not named
    assert not any(decoded(q.prompt).startswith("Questio") for q in none.batch(0, mix).questions)


def test_questions_without_answer_are_left_out() -> None:
    good = {"question": "q", "answers": ["a", "b"]}
    odd = [{"question": "q"}, {"question": "q", "answer": ""}, good | {"is_impossible": True}, {"answer": "a"}, "?"]
    assert corpus_module._asked({"qas": [*odd, good]}, "qas") == [("q", "a")]
    assert corpus_module._asked({"qas": None}, "qas") == []
    with pytest.raises(ConfigError, match="holds int"):
        corpus_module._asked({"qas": 3}, "qas")


def test_the_prompt_around_a_question(corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus)], tokenizer, prompt="<bos>U: {question}\nA:\n")
    question = documents.question(" Who? ", "Ann")
    assert question.prompt == [257, *b"U: Who?\nA:\n"]  # control tokens are the prompt's to use
    assert question.answer == [*b"Ann", EOS], "no space after a line's end"
    assert documents.encode("<bos>") == [*b"<bos>"], "a document cannot spell them"


# Determinism, lanes, epochs, resume ----------------------------------------------------------------------------------


def test_batches_are_a_function_of_the_seed(corpus: str, tokenizer: Any) -> None:
    def draw(seed: int) -> list[Batch]:
        documents = Documents([Data(path=corpus)], tokenizer, seed=seed)
        return [documents.batch(step, MIX) for step in range(5)]

    assert all(map(same, draw(1), draw(1)))
    assert not any(map(same, draw(1), draw(2)))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_are_disjoint_and_cover_everything(files: int, lanes: int, tmp_path: Path, tokenizer: Any) -> None:
    everything = texts(30)
    for i in range(files):
        write_jsonl(tmp_path / f"{i}.jsonl", [{"text": t} for t in everything[i::files]])
    shapes, found = [], []
    for lane in range(lanes):
        documents = Documents([Data(path=str(tmp_path))], tokenizer, lane=lane, lanes=lanes)
        shapes.append([documents.batch(step, ONE).chunks_BTn.shape for step in range(3)])
        fresh = Documents([Data(path=str(tmp_path))], tokenizer, lane=lane, lanes=lanes)
        found += order(fresh, 30 // lanes)
        assert fresh.corpora[0].epoch == 0
    assert sorted(found) == sorted(everything)
    assert all(shape == shapes[0] for shape in shapes), "equal work"


@pytest.mark.parametrize("shuffle", [0, 7, 64])
def test_a_source_begins_again_in_another_order(shuffle: int, corpus: str, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus, shuffle=shuffle)], tokenizer)
    first, second, third = (order(documents, 30) for _ in range(3))
    assert documents.corpora[0].epoch == 2
    assert sorted(first) == sorted(second) == sorted(third) == sorted(texts(30))
    if shuffle:
        assert first != texts(30) and first != second != third
    else:
        assert first == second == third == texts(30)


_reference: dict[str, Any] = {}


@pytest.fixture(scope="module")
def make_mixed(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[], Documents]:
    """Three weighted sources, of which the small ones begin again every few batches."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "many").mkdir()
    for i in range(4):
        write_jsonl(folder / "many" / f"{i}.jsonl", [{"text": t} for t in texts(9, 250, seed=i)])
    one = write_jsonl(folder / "one.jsonl.gz", [{"text": t} for t in texts(11)])
    asked = write_jsonl(folder / "asked.jsonl", [question_row(i) for i in range(13)])

    def make() -> Documents:
        sources = [
            Data(path=str(folder / "many"), shuffle=5, weight=2.0, least_tokens=200),
            Data(path=one, shuffle=0),
            Data(path=asked, text="context", questions="question", weight=1.5),
        ]
        return Documents(sources, tokenizer, seed=3, lane=1, lanes=2)

    documents = make()
    _reference["batches"] = [documents.batch(step, MIX) for step in range(60)]
    assert all(source.epoch >= 2 for source in documents.corpora)
    return make


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 50), second=st.integers(0, 6))
def test_resume_is_exact_wherever_it_was_interrupted(
    first: int, second: int, make_mixed: Callable[[], Documents]
) -> None:
    """Interrupted twice, the second time soon after."""
    documents, expected = make_mixed(), _reference["batches"]
    done = 0
    for count in (first, second, 4):
        for _ in range(count):
            assert same(documents.batch(done, MIX), expected[done])
            done += 1
        state = json.loads(json.dumps(documents.state()))
        assert len(json.dumps(state)) < 3000
        documents = make_mixed()
        documents.load(state)
        assert documents.state() == state


def test_a_state_is_taken_only_where_it_fits(corpus: str, tmp_path: Path, tokenizer: Any) -> None:
    documents = Documents([Data(path=corpus)], tokenizer)
    documents.batch(0, ONE)
    state = documents.state()
    with pytest.raises(ConfigError, match="same settings"):
        Documents([Data(path=corpus)], tokenizer, seed=1).load(state)
    with pytest.raises(ConfigError, match="as many processes"):
        Documents([Data(path=corpus)], tokenizer, lanes=2).load(state)
    with pytest.raises(ConfigError, match="2"):
        Documents([Data(path=corpus)] * 2, tokenizer).load(state)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": t} for t in texts(30, seed=9)])
    with pytest.raises(ConfigError, match="other documents"):
        Documents([Data(path=other)], tokenizer).load(state)


# Held-out documents --------------------------------------------------------------------------------------------------


def test_held_out_documents_are_never_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    rng = random.Random(0)
    everything = ["".join(rng.choices("abcdefg ", k=80)) for _ in range(2000)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in everything])
    kept = [t for t in everything if is_held_out(t)]
    assert 10 < len(kept) < 70, f"about one of {HELD_OUT}"
    data = Data(path=path)
    assert sorted(order(Documents([data], tokenizer, split="held_out"), len(kept))) == sorted(kept)
    trained = order(Documents([data], tokenizer), 2000 - len(kept))
    assert sorted(trained + kept) == sorted(everything)
    assert sorted(order(Documents([data], tokenizer, split="all"), 2000)) == sorted(everything)


def test_no_held_out_document(corpus: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no held-out document; one of 64"):
        Documents([Data(path=corpus)], tokenizer, split="held_out").batch(0, ONE)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": ""}, "empty"),
        ({"weight": 0.0}, "above 0"),
        ({"shuffle": -1}, "shuffle"),
        ({"least_tokens": 9, "most_tokens": 9}, "below most_tokens"),
    ],
)
def test_bad_data(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Data(**(asdict(Data(path="x")) | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"streams": 0}, "streams"),
        ({"chunks": (0, 1)}, "chunks"),
        ({"tokens": (40, 20)}, "tokens"),
        ({"prompt": (0, 4)}, "prompt"),
        ({"target": 64}, "longest prompt"),
        ({"repeat": 1.5}, "share"),
    ],
)
def test_bad_mix(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DocumentMix(**change)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"lane": 2, "lanes": 2}, "lane"), ({"split": "test"}, "held_out"), ({"prompt": "Q:"}, "question")],
)
def test_bad_options(options: dict[str, Any], words: str, corpus: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=words):
        Documents([Data(path=corpus)], tokenizer, **options)
    with pytest.raises(ConfigError, match="no source"):
        Documents([], tokenizer)


def test_bad_files(tmp_path: Path, corpus: str, tokenizer: Any) -> None:
    def reading(path: str | Path, **options: Any) -> Callable[[], Any]:
        return lambda: Documents([Data(path=str(path), **options)], tokenizer).batch(0, ONE)

    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n\n{"text": oops}\n')
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not packed at all")
    (tmp_path / "bad.parquet").write_bytes(b"not a table")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("# Notes")
    (tmp_path / "nothing").mkdir()
    write_jsonl(tmp_path / "number.jsonl", [{"text": 3}])
    cases = [
        (reading(tmp_path / "no.jsonl"), "no such file"),
        (reading(tmp_path / "no*.jsonl"), "no such file"),
        (reading(tmp_path / "nothing"), "no such file"),
        (reading("./no/folder/here"), "no such file"),
        (reading("mine.jsonl"), "no such file"),
        (reading(tmp_path / "notes.md"), r"\.jsonl, \.json, \.txt, \.parquet"),
        (reading(tmp_path), "different kinds"),
        (reading(corpus, text="content"), r"no field 'content'; its fields are 'text', 'id'"),
        (reading(corpus, questions="qas"), r"no field 'qas'"),
        (reading(tmp_path / "number.jsonl"), "holds int, not text"),
        (reading(tmp_path / "bad.jsonl"), r"bad.jsonl, line 3"),
        (reading(tmp_path / "bad.jsonl.gz"), "cannot be"),
        (reading(tmp_path / "bad.parquet"), "cannot be"),
        (reading(tmp_path / "empty.jsonl"), "it is empty"),
        (reading(corpus, name="en"), "local"),
    ]
    for call, words in cases:
        with pytest.raises(ConfigError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'some/thing' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ConfigError, match=r"some/thing cannot be opened from the Hugging Face hub.*network"):
        Documents([Data(path="some/thing")], tokenizer)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, corpus: str, tokenizer: Any) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'remanence\[train\]'"):
        Documents([Data(path=corpus)], tokenizer)
