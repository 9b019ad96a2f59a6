"""AdamW by torch's fused operator, for one device and for replicas.

The arithmetic, the groups and the state are those of `torch.optim.AdamW(fused=True)`; but making one of torch's
optimizers imports its compiler, which takes longer than torch itself and 150 MB. Engines that shard want torch's.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

Groups = list[dict[str, Any]]


def can_fuse(groups: Groups) -> bool:
    """Return whether torch has fused kernels for all these parameters."""
    devices = _get_fused_kernels_supported_devices()
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in devices and p.is_floating_point() for p in parameters)


class FusedAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) over groups as torch takes them.

    Args:
        groups: "params", and "lr" and "weight_decay" where they differ from the arguments.
    """

    def __init__(
        self, groups: Groups, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 1e-2
    ) -> None:
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True}
        self.param_groups: Groups = [own | group for group in groups]
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(parameter) for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
