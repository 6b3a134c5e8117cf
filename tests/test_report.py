"""Reports of training runs: the log, curves, model cards, trackers; trained models on the hub."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from peft import LoraConfig

from conftest import build_decoder, random_ids, random_text, small
from remanence.errors import ConfigError, InputError
from remanence.models.pretrained import SETTINGS, SHIPPED, WEIGHTS, MemoryModel, plan
from remanence.train import plot as plot_module
from remanence.train import trackers
from remanence.train.card import card
from remanence.train.log import numbers, read_log
from remanence.train.plot import plot
from remanence.train.trackers import Trackers, tracker_options

CONFIG = {
    "model": "someone/small-base",
    "data": ["someone/questions", "/srv/texts/prose.txt.xz", {"path": "someone/books", "split": "train"}],
    "memory": {"K": 8, "N": 24, "K0": 16, "chunk_tokens": 12, "store_tokens": None},
    "lora": {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]},
    "stages": [{"name": "one chunk", "steps": 30}, {"name": "long term", "steps": 70}],
    "seed": 5,
    "lanes": 6,
    "precision": "bfloat16",
}


def entry(total: int, **more: Any) -> dict[str, Any]:
    """One logged step of a run of two stages of 30 and 70 steps."""
    stage, step = ("one chunk", total) if total <= 30 else ("long term", total - 30)
    figures = {
        "stage": stage, "step": step, "total": total, "loss": 9 / total, "answer": 1.5, "lm": 3.25, "retriever": 0.5,
        "recall": [0.5, 0.75], "known": 0.25, "norm": 1.0, "lr": 0.001, "tokens": total * 1000, "tokens_per_s": 500.0,
    }  # fmt: skip
    return figures | more


def write_run(folder: Path, lines: list[dict[str, Any]] | None = None, **config: Any) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if lines is None:
        lines = [entry(t) for t in range(10, 101, 10)]
        lines[4] |= {"held_loss": 7.75, "held_known": 0.125}
        lines[8] |= {"held_loss": 1.0625, "held_known": 0.8125, "held_recall": [0.875, 0.9375], "held_own": 0.375}
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return folder


# The log --------------------------------------------------------------------------------------------------------------


def test_the_later_of_two_lines_of_one_step_counts(tmp_path: Path) -> None:
    """A resumed run logs again what came after its checkpoint."""
    lines = [entry(10), entry(20), entry(30, loss=1.0), entry(20, loss=2.0), entry(30, loss=3.0), entry(40)]
    log = read_log(write_run(tmp_path, lines))
    assert [e["total"] for e in log] == [10, 20, 30, 40]
    assert [e["loss"] for e in log[1:3]] == [2.0, 3.0]


def test_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    """At the end it is left out; where the resumed run wrote behind it, the whole step after it counts."""
    run = write_run(tmp_path, [entry(10), entry(20)])
    half = json.dumps(entry(30))[:60]
    with (run / "log.jsonl").open("a") as file:
        file.write(half)
    assert [e["total"] for e in read_log(run)] == [10, 20]
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry(25)) + "\n")
    assert read_log(run)[-1] == entry(25)


def test_logs_that_cannot_be_read(tmp_path: Path) -> None:
    """No folder, no log, nothing logged, a broken line in the middle, a line without total."""
    for run in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"no log\.jsonl in"):
            read_log(run)
    with pytest.raises(InputError, match="is empty"):
        read_log(write_run(tmp_path, []))
    good = json.dumps(entry(10)) + "\n"
    for text in (good + '{"loss": 0.\n' + good, '{"loss": 1.0}\n' + good, good + "[1]\n", good + "\0\0\n" + good):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"line [12] is no logged step"):
            read_log(tmp_path)


def test_only_numbers_are_sent() -> None:
    figures = {"stage": "x", "recall": [0.5, None, 1.0], "n": 3, "held": {"a": 1, "b": [2]}, "no": math.nan, "y": True}
    assert numbers(figures) == {"recall/0": 0.5, "recall/2": 1.0, "n": 3, "held/a": 1, "held/b/0": 2}


# Curves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "begin"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_a_plot_is_a_picture(ending: str, begin: bytes, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = plot(run, tmp_path / f"curves{ending}")
    data = (tmp_path / f"curves{ending}").read_bytes()
    assert data.startswith(begin) and len(data) > 5000
    assert json.loads(json.dumps(result)) == result
    assert result["out"] == str(tmp_path / f"curves{ending}")
    told = result["runs"][0]
    assert (told["run"], told["steps"], told["stages"]) == (str(run), 100, ["one chunk", "long term"])
    assert told["last"] == numbers(entry(100))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"curves{ending}", "run"]


def test_what_a_plot_shows(tmp_path: Path) -> None:
    """Curves over the total steps, in units; uprights where stages begin; a name a run; nothing where nothing is."""
    long = [entry(t, held_known=0.5) if t % 50 == 0 else entry(t) for t in range(1, 101)]
    short = [{"total": t, "loss": math.nan if t == 2 else 1.0} for t in (1, 2, 3)]
    logs = {"long": long, "short": short}
    figure = plot_module._draw(logs)
    loss, right, recall, speed = figure.axes
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["long", "short"]
    thin, thick = [line for line in loss.lines if len(line.get_xdata()) == 100]
    assert list(thin.get_xdata()) == list(range(1, 101)) and list(thin.get_ydata()) == [9 / t for t in range(1, 101)]
    assert thick.get_ydata()[30] == 9 / 31, "means end with the stage"
    assert next(list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 2) == [50, 50]
    assert {tuple(line.get_ydata()) for line in recall.lines if len(line.get_xdata()) == 100} >= {(62.5,) * 100}
    assert [list(line.get_xdata()) for line in loss.lines].count([1, 3]) == 1  # what is no number is left out
    for axes in figure.axes:
        assert [30, 30] in [list(line.get_xdata()) for line in axes.lines]
        assert {"one chunk", "long term"} <= {text.get_text() for text in axes.texts}
        assert axes.get_ylabel()
    assert speed.get_xlabel() == "optimizer steps, all stages"
    bare = plot_module._draw({"short": short})
    assert ["not in the log" in {t.get_text() for t in axes.texts} for axes in bare.axes] == [False, True, True, True]


def test_many_runs_have_many_colours(tmp_path: Path) -> None:
    logs = {f"run {i}": [entry(t, loss=float(i)) for t in (10, 40)] for i in range(12)}
    colours = {
        tuple(line.get_color()) for line in plot_module._draw(logs).axes[0].lines if len(set(line.get_ydata())) == 1
    }
    assert len(colours) == 12


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    assert plot_module._labels(folders) == ["a/run", "b/run"]
    assert len(plot(folders, tmp_path / "two.png")["runs"]) == 2
    with pytest.raises(ConfigError, match="named twice"):
        plot([folders[0], folders[0]], tmp_path / "two.png")


def test_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is read or written, in one line."""
    run = write_run(tmp_path / "run")
    for name in ("curves.jpg", "curves", "curves.png.txt"):
        with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf"):
            plot(run, tmp_path / name)
    with pytest.raises(ConfigError, match="no folder"):
        plot(run, tmp_path / "nowhere" / "curves.png")
    with pytest.raises(ConfigError, match="no run"):
        plot([], tmp_path / "curves.png")
    with pytest.raises(InputError, match=r"no log\.jsonl"):
        plot([run, tmp_path], tmp_path / "curves.png")
    monkeypatch.setattr(plot_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'remanence\[plot\]'"):
        plot(run, tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# The card -------------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    """Base, data, sizes, stages and the last held-out figures, each as the files have it."""
    run = write_run(tmp_path / "run")
    text = card(run, CONFIG["model"], {"facts after 10,000 tokens": "91.3 %"}, picture="curves.png")
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.license) == ("remanence", "someone/small-base", None)
    assert data.datasets == ["someone/books", "someone/questions"]
    assert "license" not in text.split("---")[1]
    for said in (
        "# small-base with a long-term memory", "`prose.txt.xz`", "K = 8 ", "N = 24 ", "K0 = 16 ",
        "chunks of 12 tokens",
        "r 4; lora_alpha 9; target_modules q_proj, v_proj", "| precision | bfloat16 |", "| seed | 5 |",
        "| one chunk | 30 | 30,000 | 1 min |", "| long term | 70 | 70,000 | 2 min |", "at step 90",
        "| 81.25 % |", "| 87.5 93.75 % |", "| loss | 1.0625 |", "| `held_own` | 0.375 |",
        "| facts after 10,000 tokens | 91.3 % |", "![Curves of the training run](curves.png)",
        "MemoryModel.from_pretrained", "remanence chat --model", "not tested for",
    ):  # fmt: skip
        assert said in text, said
    for absent in ("12.5 %", "7.75", "/srv", "window of", "None", "nan", "was not finished", str(tmp_path)):
        assert absent not in text, absent


def test_a_card_invents_nothing(tmp_path: Path) -> None:
    """What is in no file has no line: no data, no LoRA, no tokens, no time, no held-out figures."""
    run = write_run(tmp_path / "run", [{"total": t, "stage": "one chunk", "step": t} for t in (10, 20)])
    (run / "config.json").write_text(json.dumps({"stages": CONFIG["stages"]}))
    text = card(run, "/srv/models/base")
    data = ModelCard(text).data
    assert data.base_model is None and data.datasets is None
    assert "| one chunk | 20 of 30 |\n" in text
    assert "not finished: 20 of 100 steps" in text
    assert "no figures on held-out data" in text
    for absent in ("LoRA", "| data", "vectors in", "tokens |", "time of", "%", "/srv", "None", "seed"):
        assert absent not in text, absent


def test_a_card_of_the_model_that_was_saved(tmp_path: Path) -> None:
    """The saved sizes count; a licence is what is said; no LoRA is said."""
    run = write_run(tmp_path / "run", license="mit", lora=None)
    (run / "model").mkdir()
    (run / "model" / SETTINGS).write_text(json.dumps({"memory": {"N": 48, "window_tokens": 99}}))
    text = card(run, "someone/small-base")
    assert ModelCard(text).data.license == "mit"
    assert ModelCard(card(run, "someone/small-base", license="apache-2.0")).data.license == "apache-2.0"
    assert "K = 8 " in text and "N = 48 " in text and "window of 99 tokens" in text and "| LoRA | none |" in text


def test_cards_need_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        card(tmp_path, "base")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            card(tmp_path, "base")


# Trackers -------------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    """Also after a kill: what was logged after the checkpoint is forgotten. Settings are sent flat."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(["tensorboard"], tmp_path, CONFIG) as trackers:
        for total in (10, 20, 30):
            trackers.log(entry(total))
    with Trackers(["tensorboard"], tmp_path, step=20) as trackers:
        trackers.log(entry(30, loss=0.125))
        trackers.log({"other": 1.0}, step=31)
    events = EventAccumulator(str(tmp_path / "trackers" / "remanence")).Reload()
    assert {"loss", "recall/0", "recall/1", "tokens_per_s", "other"} <= set(events.Tags()["scalars"])
    assert not {"stage", "recall", "total"} & set(events.Tags()["scalars"])
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(10, 0.9), (20, 0.45), (30, 0.125)]
    assert [e.value for e in events.Scalars("recall/1")] == [0.75] * 3
    settings = next(tmp_path.rglob("hparams.yml")).read_text()
    assert "memory.K: 8" in settings and "lora.r: 4" in settings


def test_without_trackers_nothing_happens(tmp_path: Path) -> None:
    with Trackers([], tmp_path, CONFIG) as trackers:
        trackers.log(entry(10))
    trackers.log(entry(20))
    assert tracker_options([], tmp_path) == {}
    assert not any(tmp_path.iterdir())


def test_trackers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong name lists the right ones; a missing package says how it is installed."""
    with pytest.raises(ConfigError, match=r"no tracker 'tensorbord'; accelerate has .*tensorboard.*wandb"):
        Trackers(["tensorbord"], tmp_path)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ConfigError, match="pip install wandb"):
        tracker_options(["wandb"], tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'remanence\[train\]'"):
        tracker_options(["tensorboard"], tmp_path)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"accelerate; .*pip install 'remanence\[train\]'"):
        tracker_options(["wandb"], tmp_path)


# The hub --------------------------------------------------------------------------------------------------------------


class Hub:
    """A hub of one folder: keeps what is uploaded, hands out what is asked for as huggingface_hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []  # type: Path, list[tuple[str, dict[str, Any]]]

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        from huggingface_hub import RepoUrl

        if "/" not in repo_id:
            raise HFValidationError(f"bad name {repo_id}\nsecond line")
        self.calls.append(("create", options))
        (self.folder / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: str, delete_patterns: list[str], **options: Any) -> None:
        self.calls.append(("upload", options))
        for pattern in delete_patterns:
            for path in (self.folder / repo_id).glob(pattern):
                path.unlink()
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def download(self, repo_id: str, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        if not (self.folder / repo_id / name).exists():
            raise LocalEntryNotFoundError(f"no {name}")
        return str(self.folder / repo_id / name)

    def snapshot(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("*", {k: v for k, v in options.items() if k != "allow_patterns"}))
        local = self.folder / "snapshot"
        shutil.rmtree(local, ignore_errors=True)
        for pattern in options["allow_patterns"]:
            for path in (self.folder / repo_id).glob(pattern):
                local.mkdir(exist_ok=True)
                shutil.copy(path, local)
        return str(local)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Instead of the real one, which tests cannot reach."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("remanence.models.pretrained.create_repo", hub.create_repo)
    monkeypatch.setattr("remanence.models.pretrained.upload_folder", hub.upload_folder)
    for module in ("models.pretrained", "models.checkpoint"):
        monkeypatch.setattr(f"remanence.{module}.hf_hub_download", hub.download)
    monkeypatch.setattr("remanence.models.checkpoint.snapshot_download", hub.snapshot)
    return hub


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])], ids=["plain", "lora"])
def test_pushed_and_loaded_is_the_same_model(lora: Any, hub: Hub, tokenizer: Any) -> None:
    """From the hub id: the same fingerprint, settings, logits from memory and answers."""
    base = build_decoder("llama", "sdpa")
    model = MemoryModel(base, tokenizer, small(), name="tiny", prompt="Q{question}", lora=lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "start":
            torch.nn.init.normal_(parameter, std=0.3)
    memory = model.eval().new_memory()
    model.memorize(memory, random_text(70))
    url = model.push_to_hub("ada/tiny-mplus", private=True, token="secret", commit_message="first", card="# Tiny\n")
    assert url == "https://huggingface.co/ada/tiny-mplus"
    assert hub.calls == [
        ("create", {"private": True, "token": "secret", "exist_ok": True}),
        ("upload", {"token": "secret", "commit_message": "first"}),
    ]
    assert (hub.folder / "ada/tiny-mplus/README.md").read_text() == "# Tiny\n"
    assert b"secret" not in b"".join(p.read_bytes() for p in (hub.folder / "ada/tiny-mplus").iterdir())
    hub.calls.clear()
    again = MemoryModel.from_pretrained("ada/tiny-mplus", revision="v1", token="secret")
    assert hub.calls and all(options == {"revision": "v1", "token": "secret"} for _, options in hub.calls)
    assert again.fingerprint == model.fingerprint
    assert (again.config, again.name, again.prompt) == (model.config, "tiny", "Q{question}")
    ids = torch.tensor([random_ids(12)])
    logits = []
    for loaded in (model, again):
        with torch.no_grad(), loaded.reading([memory]) as cache:
            logits.append(loaded.base(ids, past_key_values=cache).logits)
    assert torch.equal(*logits)
    assert again.ask(memory, "why?") == model.ask(memory, "why?")


def test_a_second_push_leaves_no_old_weights(hub: Hub, make_model: Callable[..., MemoryModel]) -> None:
    """Shards and the shipped memory of an earlier upload would be loaded instead; the card and notes stay."""
    model = make_model(small())
    model.push_to_hub("ada/tiny", card="card")
    folder = hub.folder / "ada/tiny"
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", SHIPPED, "notes.txt"):
        (folder / name).write_text("old")
    model.push_to_hub("ada/tiny")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", WEIGHTS, SETTINGS, "README.md", "notes.txt"} <= names
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json", SHIPPED} & names


def test_pushes_that_are_refused(
    hub: Hub, make_model: Callable[..., MemoryModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says why and what to do; a name is refused before anything is saved."""
    model = make_model(small())
    monkeypatch.setattr(MemoryModel, "save_pretrained", None)
    with pytest.raises(ConfigError, match=r"^cannot upload to 'tiny': bad name tiny Check the name .*hf auth login$"):
        model.push_to_hub("tiny")
    monkeypatch.undo()

    def offline(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("offline mode")

    monkeypatch.setattr("remanence.models.pretrained.create_repo", offline)
    with pytest.raises(ConfigError, match="offline mode"):
        model.push_to_hub("ada/tiny")


def test_the_plan_of_a_model_on_the_hub(
    hub: Hub, make_model: Callable[..., MemoryModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own sizes, from two small files."""
    make_model(small()).push_to_hub("ada/tiny")
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained
    monkeypatch.setattr("remanence.models.decoders.AutoConfig.from_pretrained", lambda name: read(hub.folder / name))
    hub.calls.clear()
    sizes = plan("ada/tiny")
    assert sizes["trained_memory"] and sizes["memory"] == small().to_dict()
    assert hub.calls == [(SETTINGS, {})]


def test_a_decoder_on_the_hub_has_no_trained_memory(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for, and then the decoder is loaded as ever, by its hub id."""
    asked = []

    def load(name: str, **options: Any) -> None:
        asked.append((name, options))
        raise OSError("not found")

    monkeypatch.setattr("remanence.models.pretrained.AutoModelForCausalLM.from_pretrained", load)
    with pytest.raises(ConfigError, match="cannot load model 'ada/plain': not found"):
        MemoryModel.from_pretrained("ada/plain", revision="v2")
    assert asked == [("ada/plain", {"revision": "v2"})]
    assert hub.calls == [("config.json", {"revision": "v2"}), (SETTINGS, {"revision": "v2"})]
