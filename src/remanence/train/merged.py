"""Adapters added to the weights of their layers for a step of training: less work a token on a CPU.

A LoRA layer computes W x and B A x one after the other, and its backward pass as well. With W + B A made once a step,
forward and backward take as long as those of the layer alone, and the gradients of A and B are two small products more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Merged(torch.autograd.Function):
    """x (W + s B A)^T + b, where A and B learn and W does not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        x = x.to(whole.dtype)
        ctx.save_for_backward(x, whole, a, b)
        ctx.scale = scale
        return F.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, a, b = ctx.saved_tensors
        grad = grads[0].to(whole.dtype)
        flat_x, flat = x.flatten(0, -2), grad.flatten(0, -2)
        down, up = a.to(whole.dtype), b.to(whole.dtype)
        grad_a = (flat @ up).T @ flat_x * ctx.scale
        grad_b = flat.T @ (flat_x @ down.T) * ctx.scale
        grad_x = grad @ whole if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None


class Merged:
    """One adapter of a base, added to the weights of its layers.

    Args:
        base: with adapters by peft, without dropout. Only forwards with this adapter, or with none, are computed; the
            other one must not be active.
        role: name of the adapter.
    """

    def __init__(self, base: nn.Module, role: str) -> None:
        from peft.tuners.lora import Linear

        self.role = role
        self.layers: list[Any] = [m for m in base.modules() if isinstance(m, Linear) and role in m.lora_A]
        self.whole: dict[Any, Tensor] = {}
        for layer in self.layers:
            layer.forward = self._forward(layer)
        self.refresh()

    @staticmethod
    def fits(base: nn.Module, role: str) -> bool:
        """Whether all layers with this adapter are plain LoRA on plain linear layers, without dropout."""
        from peft.tuners.lora import Linear
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers: list[Any] = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
        return all(
            isinstance(m, Linear)
            and type(m.get_base_layer()) is nn.Linear
            and list(m.lora_A) == [role]
            and isinstance(m.lora_dropout[role], nn.Identity)
            and not m.lora_variant
            and m.lora_A[role].bias is None
            and m.lora_B[role].bias is None
            for m in layers
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Add the adapter as it is now; after every change of it."""
        for layer in self.layers:
            weight, a, b = layer.get_base_layer().weight, layer.lora_A[self.role].weight, layer.lora_B[self.role].weight
            parts = b.to(weight.dtype), a.to(weight.dtype)
            self.whole[layer] = torch.addmm(weight, *parts, alpha=layer.scaling[self.role])

    def remove(self) -> None:
        """Let the layers work as peft has them."""
        for layer in self.layers:
            del layer.forward
        self.whole = {}

    def _forward(self, layer: Any) -> Any:
        inner = layer.get_base_layer()

        def forward(x: Tensor) -> Tensor:
            if layer._disable_adapters:
                return F.linear(x, inner.weight, inner.bias)
            whole = self.whole[layer]
            if not torch.is_grad_enabled():
                return F.linear(x.to(whole.dtype), whole, inner.bias)
            a, b = layer.lora_A[self.role].weight, layer.lora_B[self.role].weight
            out: Tensor = _Merged.apply(x, whole, inner.bias, a, b, layer.scaling[self.role])
            return out

        return forward
