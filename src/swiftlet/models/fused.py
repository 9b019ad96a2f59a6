"""Which modules of a loaded model compute with fewer passes, and how they are changed in place.

A module is changed only where it is of a known build and the replacement gives what the module itself gives on a small
random input; everything else is left alone. Weights stay where they are, so saving and loading do not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.device.kernels import PLAIN, SwigluParts
from swiftlet.models.head import is_near, tried
from swiftlet.models.lora_layers import active_layer, project_together
from swiftlet.models.lora_linear import PLAIN_PARTS, Parts, lora_linear
from swiftlet.models.norm import keeps_output, rms_norm
from swiftlet.models.recompute import Recompute
from swiftlet.models.rotary import apply_rotary
from swiftlet.models.swiglu import swiglu as plain_swiglu

Kernels = Mapping[str, Callable[..., Any]]
TOLERANCE = 2e-2  # of the largest value; a wrong formula is off by much more, bf16 by less


def kernel(kernels: Kernels | None, name: str, ours: Any) -> Any:
    """Return the fused operator of the device where it has one of its own, else `ours`."""
    found = (kernels or PLAIN).get(name, PLAIN[name])
    return ours if found is PLAIN[name] else found


def lora_parts(kernels: Kernels | None) -> Parts:
    """Return the elementwise steps of a LoRA layer on a device that has these operators."""
    swiglu, dropout = kernel(kernels, "swiglu", None), kernel(kernels, "dropout", PLAIN["dropout"])
    if isinstance(swiglu, SwigluParts):
        return Parts(swiglu.forward, swiglu.backward, dropout)
    return Parts(dropout=dropout)


def apply_fused(
    model: nn.Module, kernels: Kernels | None = None, again: Recompute | None = None
) -> dict[str, int]:
    """Replace the forward of norms, gated MLPs and, for a rotation of the device, attentions; return how many of each.

    Args:
        kernels: the operators of the device, see device/kernels.py.
        again: where it is active, normalised values, `up` and the MLP's product are made again in the backward pass.
    """
    again = again or Recompute()
    norm, swiglu = kernel(kernels, "rms_norm", rms_norm), kernel(kernels, "swiglu", plain_swiglu)
    counts = {"rms_norm": 0, "swiglu": 0, "rotary": 0}
    rotary = kernel(kernels, "rotary", None)
    if rotary is not None:
        counts["rotary"] = apply_rotary(model, rotary)
    for module in model.modules():
        if _is_norm(module):
            name, forwards = (
                "rms_norm",
                [norm_forward(norm, again, is_shifted) for is_shifted in (False, True)],
            )
        elif _is_mlp(module):
            name, forwards = "swiglu", [mlp_forward(swiglu, again)]
        else:
            continue
        forward = next((one for one in forwards if _agrees(module, one)), None)
        if forward is not None:
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
            counts[name] += 1
            again.num_ups += name == "swiglu" and _has_known_output(module.up_proj)
    again.num_norms += counts["rms_norm"]
    return counts


def norm_forward(norm: Callable[..., Tensor], again: Recompute, is_shifted: bool) -> Callable[..., Tensor]:
    """Return the forward of an RMS norm that uses `norm`; the backward pass makes it again where it would need x.

    Args:
        is_shifted: its factor is 1 + weight, as in Gemma.
    """

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        weight_H, epsilon = 1 + self.weight.float() if is_shifted else self.weight, _epsilon(self)
        if norm is rms_norm and keeps_output(hidden_states, weight_H):
            return norm(hidden_states, weight_H, epsilon)
        return _offered(again, lambda x: norm(x, weight_H, epsilon), hidden_states)

    return forward


def _offered(again: Recompute, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return compute(*inputs), which while `again` is active is made again in the backward pass from what it keeps."""
    result = compute(*inputs)
    if not again.is_active:
        return result
    kept = [again.kept(x) for x in inputs]
    return again.offer(result, lambda: compute(*(make() for make in kept)))


def mlp_forward(swiglu: Callable[..., Tensor], again: Recompute) -> Callable[..., Tensor]:
    """Return the forward of a gated MLP; the product of gate and up is made again in the backward pass."""
    has_parts = swiglu is plain_swiglu or isinstance(swiglu, SwigluParts)

    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up = _gate_and_up(self, x, again)
        down = self.down_proj
        if not has_parts and not again.is_active:
            return down(swiglu(gate, up))
        layer = active_layer(down, gate)
        if layer is None:
            # An operator without parts may keep gate and up in a tensor of its own: plain steps keep what is offered.
            multiply = swiglu if has_parts else plain_swiglu
            return down(_offered(again, multiply, gate, up))
        return lora_linear(gate, layer, up=up, parts=getattr(down, "parts", PLAIN_PARTS))

    return forward


def _gate_and_up(mlp: Any, x: Tensor, again: Recompute) -> Sequence[Tensor]:
    """Return gate(x) and up(x), which while `again` is active is made again in the backward pass where it is known."""
    both = mlp.gate_proj, mlp.up_proj
    if not again.is_active:
        return project_together(x, both)
    if active_layer(mlp.up_proj, x) is not None:
        return project_together(x, both, again)
    if type(mlp.up_proj) is not nn.Linear:
        return [layer(x) for layer in both]
    up: nn.Linear = mlp.up_proj
    return mlp.gate_proj(x), _offered(again, lambda x: nn.functional.linear(x, up.weight, up.bias), x)


def _has_known_output(layer: Any) -> bool:
    """Return whether `_gate_and_up` can make the output of a layer again."""
    if type(layer) is nn.Linear:
        return True
    base = getattr(layer, "base_layer", None)
    return base is not None and active_layer(layer, base.weight) is not None


def _epsilon(module: Any) -> float:
    return getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))


def _is_norm(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_parameters()]
    return type(module).__name__.endswith("RMSNorm") and names == ["weight"] and _epsilon(module) > 0


def _is_mlp(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    if children != {"gate_proj", "up_proj", "down_proj", "act_fn"} or any(module.parameters(recurse=False)):
        return False
    # by its name: on random rows GELU may be nearly the same
    return type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _agrees(module: nn.Module, forward: Callable[..., Tensor]) -> bool:
    """Return whether a replacement gives what the module gives, on two random rows and without dropout.

    A module whose weights are not finite gives nothing to compare: it is left alone, and the loss will say so.
    """
    weight = next(module.parameters())
    if weight.device.type == "meta":
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, weight.shape[-1], generator=generator).to(weight.device, _base_dtype(module))
    with tried(module):
        expected, found = module(x).float(), forward(module, x).float()
    return is_near(found, expected, TOLERANCE)


def _base_dtype(module: Any) -> torch.dtype:
    gate = getattr(module, "gate_proj", module)
    return getattr(gate, "base_layer", gate).weight.dtype
