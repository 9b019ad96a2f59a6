"""What the loop needs of one model on any number of devices.

The contract: after the last `backward` of a step the gradient is the *sum* over ranks of what each rank's losses
gave; `update(max_grad_norm)` clips, steps, clears and returns the norm before clipping. Every rank calls every
method at the same point. A model's forward pass belongs to the loop; an engine may have wrapped its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from swiftlet.parallel.gradients import Gradients, build_gradients, clip_factor
from swiftlet.parallel.optimizer_state import Optimizer, Piece, load_state, state_tensors, whole_piece

Groups = list[dict[str, Any]]


class Trained(NamedTuple):
    """What of a model is trained, by name: an engine that shards it puts other parameters in the place of its own.

    Args:
        groups: the trained parameters as for an optimizer, names in the place of parameters.
        adapters: names of those that are small and finer than the model they were added to.
        build_optimizer: from such groups, with the engine's parameters in them, to the optimizer.
    """

    groups: Groups
    adapters: Collection[str]
    build_optimizer: Callable[[Groups], torch.optim.Optimizer]


class Engine(Protocol):
    """Backward, reduction, clipping and update of one model on all ranks."""

    def backward(self, loss: torch.Tensor, *, is_last: bool, divisor: int = 1) -> None:
        """Add the gradient of `loss / divisor`; after the one with `is_last` the gradient is the sum over ranks.

        All losses of a step have one divisor.
        """

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of the summed gradient, a float32 scalar, the same on all ranks; no host sync."""

    def update(self, max_grad_norm: float) -> torch.Tensor:
        """Clip (0: no clipping), step, clear; return the norm before clipping."""

    def drop(self) -> None:
        """Clear the gradient without an update."""

    def bad_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite, None when all are."""

    def set_learning_rate(self, factor: float) -> float:
        """Set each group's rate to `factor` times its own peak; return the first group's rate."""

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, full tensor) of the optimizer state; every rank iterates, only rank 0's tensors count.

        Names are `{key}/{parameter name}`, so a state can be loaded by another engine on another number of ranks.
        """

    def load_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the optimizer state from `optimizer_tensors` of any engine; tensors are read as they are needed."""

    def model_tensors(self, *, is_trained: bool) -> Iterator[tuple[str, torch.Tensor]] | None:
        """Yield (name, whole tensor) of the model, gathered one at a time on every rank; None where it has them all.

        Args:
            is_trained: only parameters that are trained.
        """


@dataclass
class BaseEngine:
    """The optimizer of an engine: its learning rates, its state by parameter name; and the norm, found once a step."""

    optimizer: Optimizer
    pieces: list[Piece]
    _norm: torch.Tensor | None = field(default=None, init=False, repr=False)

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of the gradient."""
        if self._norm is None:
            self._norm = self.find_norm()
        return self._norm

    def find_norm(self) -> torch.Tensor:
        """Compute the norm of the gradient."""
        raise NotImplementedError

    def set_learning_rate(self, factor: float) -> float:
        """Set each group's rate to `factor` times its "initial_lr"; return the first group's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        return self.optimizer.param_groups[0]["lr"]

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the optimizer state in the order of the groups, what is cut gathered one tensor at a time."""
        return state_tensors(self.optimizer, self.pieces)

    def load_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the optimizer state, of which each rank keeps its part; a parameter that is not named starts afresh."""
        load_state(self.optimizer, self.pieces, tensors)


@dataclass
class SingleEngine(BaseEngine):
    """One device; build it with `build_single_engine`.

    Args:
        divides_late: the backward pass is in fp16, see `has_fp16`.
    """

    gradients: Gradients
    divides_late: bool = False

    def backward(self, loss: torch.Tensor, *, is_last: bool, divisor: int = 1) -> None:
        """Add the gradient of `loss / divisor`; a loss without a graph adds nothing."""
        self._norm = None
        if loss.requires_grad:
            (loss if self.divides_late else loss * (1 / divisor)).backward()
        if is_last:
            self.complete()
            if self.divides_late:
                self.scale(1 / divisor)

    def complete(self) -> None:
        """Do what is left once the last micro-batch of a step has run backward."""

    def find_norm(self) -> torch.Tensor:
        """Compute the norm of the gradient."""
        return self.gradients.norm()

    def scale(self, factor: float | torch.Tensor) -> None:
        """Multiply the gradient by a number."""
        self.gradients.scale(factor)

    def update(self, max_grad_norm: float) -> torch.Tensor:
        """Clip, step and clear; return the norm before clipping."""
        norm = self.grad_norm()
        if max_grad_norm > 0:
            self.scale(clip_factor(norm, max_grad_norm))
        self.step()
        self.drop()
        return norm

    def step(self) -> None:
        """Update the parameters."""
        self.optimizer.step()

    def drop(self) -> None:
        """Clear the gradient without an update."""
        self._norm = None
        self.gradients.clear()

    def bad_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite."""
        return self.gradients.first_bad()

    def model_tensors(self, *, is_trained: bool) -> Iterator[tuple[str, torch.Tensor]] | None:
        """Return None: the model itself has all its tensors."""
        return None


def has_fp16(model: nn.Module) -> bool:
    """Return whether the backward pass is in fp16, where a mean over many tokens would round gradients to 0.

    Then the gradient of the sum is taken, which is as large as that of one token, and divided in the adapters' fp32.
    Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
    """
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


def build_single_engine(model: nn.Module, optimizer: Optimizer) -> SingleEngine:
    """Return an engine for one device; every trained parameter gets its gradient buffer."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    pieces = [whole_piece(names[p], p) for group in optimizer.param_groups for p in group["params"]]
    return SingleEngine(optimizer, pieces, build_gradients(model.named_parameters()), has_fp16(model))
