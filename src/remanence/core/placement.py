"""Where the parts of a model are: on one device, or spread over several, or kept on disk by accelerate.

accelerate's hooks bring every module's inputs and weights to the module's device as late as inside its forward, after
our pre-hook has run. So we ask them where a layer computes (`device_of`) and make its slots, bias and mask there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _placements(module: nn.Module) -> list[Any]:
    """The hooks by which accelerate brings a module's inputs and weights to their device; none in an ordinary model."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def device_of(module: nn.Module) -> torch.device | None:
    """Where accelerate lets a module compute; None if it leaves that to where the weights are."""
    devices = (getattr(hook, "execution_device", None) for hook in _placements(module))
    device = next((device for device in devices if device is not None), None)
    return None if device is None else torch.device(device)


def offloaded(model: nn.Module, name: str) -> Mapping[str, Tensor] | None:
    """Where accelerate keeps the values of a named parameter of the meta device, by its name in its own module."""
    hooks = _placements(model.get_submodule(name.rpartition(".")[0]))
    return next((hook.weights_map for hook in hooks if getattr(hook, "weights_map", None) is not None), None)


def stored(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A named parameter or buffer of a model with its values, read from host memory or disk if it is offloaded."""
    if tensor.device.type != "meta":
        return tensor
    weights = offloaded(model, name)
    return tensor if weights is None else weights[name.rpartition(".")[2]]
