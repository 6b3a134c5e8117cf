"""LoRA adapters on one base, one for writing and one for reading (M+ §3.3), or one of them, by way of peft."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from .placement import device_of

ROLES = ("write", "read")


class Adapters:
    """The adapters of a base, and which of them is active.

    Args:
        base: takes the adapters into its linear layers.
        settings: a peft `LoraConfig`, the same for both.
        roles: which of "write" and "read" there are; for the other one the base works as it is.
    """

    def __init__(self, base: PreTrainedModel, settings: Any, roles: tuple[str, ...] = ROLES) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer  # seconds to import; a model without adapters needs none

        if not roles or set(roles) - set(ROLES):
            raise ConfigError(f"adapters {list(roles)} are not known; give some of {', '.join(ROLES)}.")
        self.settings, self.roles = settings, roles
        with warnings.catch_warnings():  # two adapters are meant
            warnings.simplefilter("ignore", UserWarning)
            for role in roles:
                base.add_adapter(copy.deepcopy(settings), role)
        self._layers: list[Any] = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
        self._role: str | None = None
        self._place()
        for name, parameter in base.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
        self._activate(None)

    @contextmanager
    def active(self, role: str | None) -> Iterator[None]:
        """The adapter for "write" or "read", or none, is active in the block; what was before is afterwards."""
        before, role = self._role, role if role in self.roles else None
        try:
            if role != before:
                self._activate(role)
            yield
        finally:
            if self._role != before:
                self._activate(before)

    def _activate(self, role: str | None) -> None:
        """peft's own way to switch also says which adapter may learn; here both do, in one step of training."""
        for layer in self._layers:
            layer._disable_adapters = role is None
            if role is not None:
                layer._active_adapter = [role]
        self._role = role

    def _place(self) -> None:
        """Adapters where their layers compute: peft puts them where the weights rest, and those may be offloaded."""
        for layer in self._layers:
            device = device_of(layer.get_base_layer())
            parts: list[nn.Module] = [getattr(layer, name) for name in layer.adapter_layer_names]
            if device is not None and any(p.device.type == "meta" for part in parts for p in part.parameters()):
                for part in parts:
                    part.to_empty(device=device)
                for role in self.roles:  # they lost their values
                    layer.reset_lora_parameters(role, self.settings.init_lora_weights)
            elif device is not None:
                for part in parts:
                    part.to(device)
