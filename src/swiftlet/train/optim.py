"""Optimizers by name, and which parameters decay.

A group is a plain dict of torch ("params", "lr", "weight_decay"); its "lr" is the peak, which the schedule scales.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swiftlet.errors import UsageError, pick
from swiftlet.parallel.optimizer_state import Optimizer
from swiftlet.train.adamw import FusedAdamW, Groups, can_fuse
from swiftlet.train.adamw_bf16 import BFloat16AdamW

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
NORM_NAMES = re.compile(r"layernorm|layer_norm|rmsnorm|rms_norm|(^|[._])(ln|norm)\d*([._]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class OptimizerSettings:
    """The numbers of an optimizer; each one takes what it knows."""

    learning_rate: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


Build = Callable[[Groups, OptimizerSettings], Optimizer]


def has_bf16(groups: Groups) -> bool:
    """Return whether some weights are bf16 themselves, without a finer copy of an engine."""
    return any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])


def _adamw(groups: Groups, s: OptimizerSettings) -> torch.optim.Optimizer:
    if has_bf16(groups):
        return BFloat16AdamW(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), eps=s.epsilon)
    fused = True if can_fuse(groups) else None
    return torch.optim.AdamW(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), eps=s.epsilon, fused=fused)


def _adamw_fused(groups: Groups, s: OptimizerSettings) -> torch.optim.Optimizer:
    if not can_fuse(groups):
        kinds = sorted({p.device.type for group in groups for p in group["params"]})
        raise UsageError(f"torch has no fused AdamW for {', '.join(kinds)}", "use --optim adamw_torch")
    return _adamw(groups, s)


def _adam(groups: Groups, s: OptimizerSettings) -> torch.optim.Optimizer:
    fused = True if can_fuse(groups) else None
    return torch.optim.Adam(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), eps=s.epsilon, fused=fused)


def _light(otherwise: Build) -> Build:
    def build(groups: Groups, s: OptimizerSettings) -> Optimizer:
        if has_bf16(groups) or not can_fuse(groups):
            return otherwise(groups, s)
        return FusedAdamW(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), eps=s.epsilon)

    return build


OPTIMIZERS: dict[str, Build] = {
    "adamw_torch": _adamw,
    "adamw_hf": _adamw,
    "adamw_torch_fused": _adamw_fused,
    "adam": _adam,
    "adafactor": lambda groups, s: torch.optim.Adafactor(groups, lr=s.learning_rate),
    "sgd": lambda groups, s: torch.optim.SGD(groups, lr=s.learning_rate),
    "rmsprop": lambda groups, s: torch.optim.RMSprop(groups, lr=s.learning_rate, eps=s.epsilon),
    "adagrad": lambda groups, s: torch.optim.Adagrad(groups, lr=s.learning_rate),
}
# Like those of the same names, for parameters that a rank holds whole; they start faster.
LIGHT: dict[str, Build] = {
    "adamw_torch": _light(_adamw),
    "adamw_hf": _light(_adamw),
    "adamw_torch_fused": _light(_adamw_fused),
}
ELSEWHERE = {
    "adamw_torch_npu_fused": "it belongs to a device that this machine does not have; use --optim adamw_torch",
}


def no_decay_names(model: nn.Module) -> set[str]:
    """Return the parameters that do not decay: biases, and weights of norms by type or by name.

    Source: transformers.Trainer.get_decay_parameter_names.
    """
    names = set()
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, NORMS) or NORM_NAMES.search(type(module).__name__ + "." + module_name)
        for name, _ in module.named_parameters(prefix=module_name, recurse=False):
            if is_norm or name.endswith("bias"):
                names.add(name)
    return names


def build_groups(model: nn.Module, settings: OptimizerSettings) -> Groups:
    """Return the trained parameters as a group that decays and one that does not; an empty group is left out."""
    excluded = no_decay_names(model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name not in excluded], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if name in excluded], "weight_decay": 0.0},
    ]
    return [{**group, "lr": settings.learning_rate} for group in groups if group["params"]]


def build_optimizer(
    name: str,
    groups: Iterable[dict[str, Any]],
    settings: OptimizerSettings,
    extra: Mapping[str, Build] | None = None,
) -> Optimizer:
    """Return the optimizer of this name over ready groups.

    Args:
        extra: optimizers that win over the built-in ones, such as the device's own.

    Raises:
        UsageError: no optimizer has this name, or it cannot run here.
    """
    table = {**OPTIMIZERS, **(extra or {})}
    if name not in table and name in ELSEWHERE:
        raise UsageError(f"--optim {name} is not available", ELSEWHERE[name])
    build = pick(table, name, "--optim")
    optimizer = build(list(groups), settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
