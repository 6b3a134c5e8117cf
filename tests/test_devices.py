"""A model spread over several devices, or kept on disk, remembers and answers as it does on one device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from conftest import build_decoder, close, led, random_ids, random_text, small, writes_of
from remanence.config import MemoryConfig
from remanence.core.attachment import Attachment
from remanence.core.memory import Memory
from remanence.errors import ConfigError
from remanence.models.pretrained import MemoryModel
from remanence.store import MemoryStore
from test_hf import hooks_left, plain_logits, read_logits

ON_DISK = {"model.layers.1": "disk", "model.layers.2": "disk"}
ALL_ON_DISK = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "disk", "lm_head": "disk"}


def device_map(changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny decoder's parts on the CPU, but for these."""
    parts = [f"model.{part}" for part in ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")]
    parts.append("lm_head")
    return {part: "cpu" for part in parts if not part.startswith(tuple(changes))} | changes


@pytest.fixture
def both(tmp_path: Path, tokenizer: Any) -> Callable[..., tuple[MemoryModel, MemoryModel]]:
    """both(config, changes): the same model on one device, and spread as `changes` say."""

    def make(
        config: MemoryConfig, changes: dict[str, Any], family: str = "llama", lora: LoraConfig | None = None
    ) -> tuple[MemoryModel, MemoryModel]:
        model = MemoryModel(build_decoder(family, "sdpa"), tokenizer, config, name="tiny", lora=lora).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("base.") or "lora_B" in name:
                    parameter.normal_(std=0.3)
        folder, offload = tmp_path / "model", tmp_path / "offload"
        model.save_pretrained(folder)
        model = MemoryModel.from_pretrained(folder)
        spread = MemoryModel.from_pretrained(folder, device_map=device_map(changes), offload_folder=str(offload))
        return model, spread

    return make


def remembered(model: MemoryModel, folder: Path, like: Memory | None) -> Memory:
    """A memory that was saved and goes on; its vectors equal those of another, write by write."""
    store, memory = MemoryStore(folder), model.new_memory(seed=3)

    def compared() -> AbstractContextManager[None]:
        return led(memory, writes_of(like)) if like else nullcontext()

    with compared():
        model.memorize(memory, random_text(90), source="a")
    store.save("m", memory)
    memory = store.load("m")
    with compared():
        model.memorize(memory, random_text(53, 2), source="b")  # goes on after a restart
    return memory


def same(model: MemoryModel, spread: MemoryModel, tmp_path: Path) -> None:
    """Every law, on a model and its spread twin."""
    question, asked = random_ids(7, 1), "why is that?"
    assert spread.fingerprint == model.fingerprint
    one = remembered(model, tmp_path / "one", None)
    two = remembered(spread, tmp_path / "two", one)
    for name, tensor in one.tensors().items():
        assert torch.equal(two.tensors()[name].cpu(), tensor), name  # all but what `led` compares
    close(read_logits(spread, two, question).cpu(), read_logits(model, one, question))
    # A memory belongs to the weights, not to where they are.
    close(read_logits(spread, one, question).cpu(), read_logits(model, one, question))
    answers = [m.ask(memory, asked, max_new_tokens=6) for m, memory in ((model, one), (spread, two))]
    assert answers[0].ids == answers[1].ids and answers[0].read == answers[1].read
    assert answers[0].score == pytest.approx(answers[1].score, abs=1e-4)
    batches = []
    for each, memory in ((model, one), (spread, two)):
        short = each.new_memory()
        each.memorize(short, random_text(21, 5))
        prompts, options = [random_ids(9, 6), random_ids(4, 7)], {"max_new_tokens": 5, "do_sample": False}
        batches.append([
            each.generate([memory, short], prompts, **options)[0],
            each.generate([memory, short], prompts, num_beams=2, num_return_sequences=2, **options)[0],
        ])  # fmt: skip
    assert all(torch.equal(a, b.cpu()) for a, b in zip(*batches, strict=True))
    with spread.plain() as base:
        close(plain_logits(base, question).cpu(), plain_logits(model.base, question))
    assert hooks_left(spread.base) == 0


@pytest.mark.parametrize("changes", [ON_DISK, ALL_ON_DISK], ids=["some", "all"])
@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(score_bias=1.0, recency=1.0, key_group=2),
        small(retriever="attention", score="block"),
        small(score="vector", tap="input", write_context="pool", start=False),
    ],
    ids=["block", "bias", "attention", "vector"],
)
def test_layers_on_disk(config: MemoryConfig, changes: dict[str, Any], both: Any, tmp_path: Path) -> None:
    """Weights are on the meta device outside their own forward."""
    model, spread = both(config, changes)
    assert any(p.device.type == "meta" for p in spread.base.model.layers[1].parameters())
    assert spread.attachment.device == torch.device("cpu")
    same(model, spread, tmp_path)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_adapters_on_layers_on_disk(both: Any, tmp_path: Path) -> None:
    """Two adapters; saved again, the model is whole."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model, spread = both(small(), ON_DISK, lora=lora)
    same(model, spread, tmp_path)
    spread.save_pretrained(tmp_path / "again")
    again = MemoryModel.from_pretrained(tmp_path / "again")
    assert again.fingerprint == model.fingerprint
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


# Several devices ------------------------------------------------------------------------------------------------------


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a device of the type `FAR`, which no test machine has; its values are on the CPU."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor, device: torch.device) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(cls, here.shape, here.stride(), dtype=here.dtype, device=device)
        self.here = here
        return self

    def data_ptr(self) -> int:
        """Of the values."""
        return self.here.data_ptr()

    def tolist(self) -> Any:
        """The values."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside the mode below (in a deleter, say) nothing is computed."""
        raise RuntimeError(f"{op} outside Devices()")


FAR = "lazy"  # of the types that are none of ours the one whose tensors can be indexed


class Literals(TorchFunctionMode):
    """`torch.tensor` makes its result without asking a `TorchDispatchMode`; here it is made on the CPU and copied."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is not torch.tensor or kwargs.get("device") is None:
            return function(*args, **kwargs)
        return torch.tensor(*args, **kwargs | {"device": None}).to(kwargs["device"])


class Devices(TorchDispatchMode):
    """Lets CPU tensors pass for tensors of other devices, and refuses to compute across devices, as CUDA does.

    As there, one number on the CPU may meet any tensor, and only copies go from device to device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, and say that the result is where the arguments are."""
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        of_number = torch.device("cpu")
        devices = {t.device for t in tensors if t.dim() or t.device != of_number} or {t.device for t in tensors}
        device = kwargs.get("device")
        copy = op in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if len(devices) > 1 and not copy:
            raise RuntimeError(f"{op} of tensors on {sorted(map(str, devices))}")
        if device is None:
            device = tensors[0].device if copy else next(iter(devices), of_number)
        elif device.type == FAR:
            kwargs["device"] = torch.device("cpu")
        self.used.add(str(device))
        wrapped = {id(t.here): t for t in tensors if isinstance(t, Elsewhere)}
        args, kwargs = tree_map_only(Elsewhere, lambda t: t.here, (args, kwargs))
        out = op(*args, **kwargs)
        if device.type != FAR:
            return out

        def there(tensor: torch.Tensor) -> torch.Tensor:
            return wrapped[id(tensor)] if id(tensor) in wrapped else Elsewhere(tensor, device)

        return tree_map_only(torch.Tensor, there, out)


def test_the_double_refuses_to_mix_devices() -> None:
    """So that the next test means something."""
    with Literals(), Devices(), torch.no_grad():
        here, there = torch.ones(3), torch.arange(3.0).to(f"{FAR}:1")
        assert there.device == torch.device(f"{FAR}:1")
        assert (there * 2 + torch.tensor(1.0)).cpu().tolist() == [1, 3, 5]
        there[1:] += 1
        assert there.tolist() == [0, 2, 3] and there.sum().item() == 5
        assert torch.zeros(2, device=there.device).device == there.new_zeros(2).device == there.device
        for mixed in (here, torch.ones(3, device=f"{FAR}:2")):
            with pytest.raises(RuntimeError, match="of tensors on"):
                there * mixed


@pytest.mark.parametrize(
    ("config", "first", "adapted"),
    [
        pytest.param(small(), "cpu", True, marks=pytest.mark.slow),
        pytest.param(small(score_bias=1.0, recency=1.0, key_group=2), f"{FAR}:1", False, marks=pytest.mark.slow),
        (small(retriever="attention", tap="input"), f"{FAR}:2", False),
    ],
    ids=["adapters", "bias", "attention"],
)
def test_layers_on_several_devices(
    config: MemoryConfig, first: str, adapted: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """Nothing is computed across devices, and the answers are those of one device."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if adapted else None
    model = MemoryModel(build_decoder("llama", "sdpa"), tokenizer, config, name="tiny", lora=lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("base.") or "lora_B" in name:
                parameter.normal_(std=0.3)
    base = build_decoder("llama", "sdpa")
    devices = device_map({"model.embed_tokens": first, "model.layers.1": f"{FAR}:1", "model.layers.2": f"{FAR}:2"})
    with Literals(), Devices() as used, torch.no_grad():
        dispatch_model(base, devices, main_device="cpu", skip_keys=base._skip_keys_device_placement)
        spread = MemoryModel(base, tokenizer, config, name="tiny", lora=lora).eval()
        spread.load_state_dict(model.state_dict())
        assert spread.attachment.device == torch.device(first)
        same(model, spread, tmp_path)
    assert used.used >= {"cpu", f"{FAR}:1", f"{FAR}:2"}


# Refusals and the rest ------------------------------------------------------------------------------------------------


def test_weights_that_nothing_brings_are_refused() -> None:
    """One layer on the meta device, without anything that loads it."""
    base = build_decoder("llama", "sdpa")
    base.model.layers[1].to("meta")
    with pytest.raises(ConfigError, match="weights are not loaded"):
        Attachment(base)


def test_checkpointing_leaves_the_hooks_that_place_a_layer(both: Any) -> None:
    """`recomputing` takes a layer's forward away for a while; what accelerate had put there comes back."""
    _, spread = both(small(), ON_DISK)
    layers = spread.attachment.layers
    before = [layer.forward for layer in layers]
    with spread.attachment.recomputing():
        pass
    assert [layer.forward for layer in layers] == before
    memory = spread.new_memory()
    spread.memorize(memory, random_text(20))
    assert memory.write_count
