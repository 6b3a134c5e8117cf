"""How a model is spread over the processes of a run: a copy in each (DDP), sharded (FSDP2), or DeepSpeed's ZeRO.

The kinds learn alike, and give weights and optimizer states whole and by name, so that each goes on from the others'
checkpoints. A parameter's states are named as torch names them ("exp_avg.base.model...").
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import ConfigError
from ..models.pretrained import MemoryModel
from .objective import Objective
from .settings import Engine

Named = dict[str, Tensor]
_MOMENTS = "exp_avg", "exp_avg_sq"  # AdamW's states beside the count of steps


class Copied:
    """A copy of the model in every process, their gradients averaged (DDP); or the one process there is.

    Attributes:
        wrapped: the objective as it is called.
        groups: what learns, by the setting of its learning rate: {"lr": {name: parameter}, ...}. named: all of it.
        optimizers: by the same settings.
    """

    def __init__(self, objective: Objective, engine: Engine, accelerator: Accelerator) -> None:
        self.objective, self.engine, self.accelerator = objective, engine, accelerator
        self._spread()
        self.groups = _groups(objective.model)
        self.named = {key: p for group in self.groups.values() for key, p in group.items()}
        self.optimizers = self._optimizers()
        self.wrapped: Any = self._wrap()

    def _spread(self) -> None:
        """What is done to the model before anything holds its parameters."""

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {kind: self._optimizer(kind, list(group.values())) for kind, group in self.groups.items()}

    def _optimizer(self, kind: str, parameters: list[Any]) -> torch.optim.Optimizer:
        if kind == "lr" and self.engine.optimizer == "muon":
            return torch.optim.Muon(parameters, weight_decay=0.0, momentum=0.95)
        return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=self._decay(kind))

    def _decay(self, kind: str) -> float:
        return self.engine.weight_decay if kind == "lr" else 0.0

    def _wrap(self) -> Any:
        return self.accelerator.prepare_model(self.objective)

    def lane(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one lane; gradients are exchanged with a step's last lane only."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a lane's share of the loss."""
        self.accelerator.backward(loss)

    def update(self, rates: dict[str, float]) -> float:
        """Clip, step and clear every optimizer, each by itself: the retriever's gradients are many times the others'.

        Args:
            rates: learning rates by setting.

        Returns:
            The norm of all gradients before they were clipped.
        """
        norms = []
        for kind, optimizer in self.optimizers.items():
            parameters = [p for g in optimizer.param_groups for p in g["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.engine.clip)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            for group in optimizer.param_groups:
                group["lr"] = rates[kind]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack(norms).norm().item()

    def weights(self) -> Named:
        """What is trained, by name, whole and on the CPU; all processes call this."""
        return {key: _whole(parameter) for key, parameter in self.named.items()}

    def tensors(self) -> Named:
        """Weights and optimizer states by "KIND.NAME", whole and on the CPU; all processes call this."""
        return {f"weights.{key}": weight for key, weight in self.weights().items()} | self._states()

    def _states(self) -> Named:
        return {
            f"{kind}.{key}": _whole(torch.as_tensor(value))
            for name, optimizer in self.optimizers.items()
            for key, parameter in self.groups[name].items()
            for kind, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: Named) -> None:
        """Take what `tensors` gave, of any kind of engine and any number of processes.

        Raises:
            ConfigError: weights of another model.
        """
        states: dict[str, Named] = {key: {} for key in self.named}
        for name, tensor in tensors.items():
            kind, _, key = name.partition(".")
            states.setdefault(key, {})[kind] = tensor
        weights = {key: state.pop("weights") for key, state in states.items() if "weights" in state}
        known = self.named
        wrong = sorted(known.keys() ^ weights.keys()) or [k for k, p in known.items() if p.shape != weights[k].shape]
        if wrong:
            raise ConfigError(f"it does not fit this model: {', '.join(wrong[:5])}.")
        with torch.no_grad():
            for key, parameter in known.items():
                parameter.copy_(_like(weights[key], parameter))
        self._load_states(states)

    def _load_states(self, states: dict[str, Named]) -> None:
        for name, optimizer in self.optimizers.items():
            for key, parameter in self.groups[name].items():
                if states[key]:
                    optimizer.state[parameter] = {k: _like(v, parameter) for k, v in states[key].items()}


class Sharded(Copied):
    """FSDP2: every layer a unit, all else one; each process holds a share of every weight and state."""

    def _spread(self) -> None:
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        for layer in self.objective.model.attachment.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.objective, mesh=mesh)

    def _wrap(self) -> Any:
        return self.objective

    def _optimizer(self, kind: str, parameters: list[Any]) -> torch.optim.Optimizer:
        _no_muon(self.engine)
        return super()._optimizer(kind, parameters)

    def lane(self, last: bool) -> AbstractContextManager[Any]:
        """As in `Copied`."""
        assert isinstance(self.objective, FSDPModule)
        self.objective.set_requires_gradient_sync(last)
        return nullcontext()


class Zero(Copied):
    """DeepSpeed's ZeRO stage 1 or 2: each process holds a share of the optimizer states, and of gradients in stage 2.

    One optimizer with a group a learning rate; DeepSpeed clips all of them together.
    """

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        _no_muon(self.engine)
        groups = [
            {"params": list(group.values()), "weight_decay": self._decay(kind)} for kind, group in self.groups.items()
        ]
        return {"all": torch.optim.AdamW(groups, betas=(0.9, 0.95))}

    def _wrap(self) -> Any:
        try:
            import deepspeed
        except ImportError as error:
            raise ConfigError("engine.parallel=deepspeed needs: pip install 'remanence[deepspeed]'") from error
        self._utils: Any = deepspeed.utils
        engine, *_ = deepspeed.initialize(
            model=self.objective, optimizer=self.optimizers["all"], config=zero_config(self.engine)
        )  # fmt: skip
        return engine

    def lane(self, last: bool) -> AbstractContextManager[Any]:
        """As in `Copied`."""
        self.wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """As in `Copied`."""
        self.wrapped.backward(loss, scale_wrt_gas=False)

    def update(self, rates: dict[str, float]) -> float:
        """As in `Copied`."""
        for kind, group in zip(self.groups, self.wrapped.optimizer.param_groups, strict=True):
            group["lr"] = rates[kind]
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm())

    def _states(self) -> Named:
        flat: Any = list(self.wrapped.optimizer.optimizer.state.values())
        if not flat:
            return {}
        self._link()
        found: Named = {}
        for key, parameter in self.named.items():
            found[f"step.{key}"] = torch.as_tensor(flat[0]["step"]).cpu().clone()
            for kind in _MOMENTS:
                found[f"{kind}.{key}"] = _whole(self._utils.safe_get_full_optimizer_state(parameter, kind))
        return found

    def _load_states(self, states: dict[str, Named]) -> None:
        zero = self.wrapped.optimizer
        steps = [state["step"] for state in states.values() if state]
        if steps:  # states are made with the first step, which these had
            for group in zero.optimizer.param_groups:
                for flat in group["params"]:
                    empty = {kind: torch.zeros_like(flat) for kind in _MOMENTS}
                    zero.optimizer.state[flat] = {"step": max(steps).clone(), **empty}
            self._link()
        for key, parameter in self.named.items():
            self._utils.safe_set_full_fp32_param(parameter, parameter.data.float())
            for kind in _MOMENTS if states[key] else ():
                self._utils.safe_set_full_optimizer_state(parameter, states[key][kind].to(parameter.device), kind)

    def _link(self) -> None:
        """Let DeepSpeed find each parameter's states; by itself (0.19) it does so for the first group only."""
        zero = self.wrapped.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


KINDS: dict[str, type[Copied]] = {"ddp": Copied, "fsdp2": Sharded, "deepspeed": Zero}


def zero_config(engine: Engine) -> dict[str, Any]:
    """DeepSpeed's settings: those of the file `engine.deepspeed`, and what follows from ours.

    Raises:
        ConfigError: a file that cannot be read, or a stage that is not 1 or 2.
    """
    given: dict[str, Any] = {}
    if engine.deepspeed:
        try:
            given = json.loads(Path(engine.deepspeed).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"engine.deepspeed={engine.deepspeed}: {error}; give a DeepSpeed config.json.") from error
    zero = {"stage": 2} | given.get("zero_optimization", {})
    if zero["stage"] not in (1, 2):
        raise ConfigError(f"ZeRO stage {zero['stage']} is not supported; take 1 or 2, or engine.parallel=fsdp2.")
    # Batches, rates and number formats are the loop's affair.
    ours = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": engine.clip,
        "zero_allow_untested_optimizer": True, "zero_optimization": zero,
    }  # fmt: skip
    own = {*ours, "optimizer", "scheduler", "fp16", "bf16"} - {"zero_optimization"}
    if taken := sorted(given.keys() & own):
        raise ConfigError(f"{engine.deepspeed} sets {', '.join(taken)}; the run's own settings say that, leave it out.")
    return {"steps_per_print": 10**9} | given | ours


def _no_muon(engine: Engine) -> None:
    if engine.optimizer == "muon":
        raise ConfigError("engine.optimizer=muon needs whole matrices; use engine.parallel=ddp, or adamw.")


def _groups(model: MemoryModel) -> dict[str, dict[str, Any]]:
    """What learns, by the setting of its learning rate: layers' matrices or adapters, retriever, the rest."""
    inside = {id(p) for layer in model.attachment.layers for p in layer.parameters() if p.ndim == 2}
    groups: dict[str, dict[str, Any]] = {"lr": {}, "lr_rest": {}, "lr_retriever": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "lr" if id(parameter) in inside else "lr_retriever" if "retriever." in name else "lr_rest"
            groups[kind][name] = parameter
    return {kind: group for kind, group in groups.items() if group}


def _whole(value: Tensor) -> Tensor:
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.detach().cpu().contiguous()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as the parameter is: on its device, sharded if it is. A count of steps stays as it is."""
    if value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)
