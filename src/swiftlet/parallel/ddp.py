"""One replica of the model a rank; gradients are summed over ranks while the last micro-batch runs backward.

The sum is exact (no average to undo), parameters without a gradient count as zero, and the model is not wrapped.
Buckets are reduced in one fixed order on every rank, whichever is ready first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from swiftlet.parallel.engine import SingleEngine, build_single_engine
from swiftlet.parallel.gradients import Bucket, Gradients
from swiftlet.parallel.optimizer_state import Optimizer
from swiftlet.parallel.world import World


@dataclass
class Reducer:
    """Sums buckets over ranks as they become ready; build it with `build_ddp_engine`."""

    buckets: list[Bucket]
    waiting: list[set[str]] = field(default_factory=list)
    works: list[dist.Work] = field(default_factory=list)
    is_armed: bool = False

    def arm(self) -> None:
        """Let the next backward reduce; the gradients that it completes are those of the whole step."""
        self.is_armed = True
        self.waiting = [set(bucket.names) for bucket in self.buckets]
        self.works = []

    def ready(self, bucket_number: int, name: str) -> None:
        """Note that one parameter's gradient is complete; start every bucket whose turn has come."""
        if not self.is_armed:
            return
        if name not in self.waiting[bucket_number]:
            raise RuntimeError(f"the gradient of {name} changed after it was complete")
        self.waiting[bucket_number].discard(name)
        while len(self.works) < len(self.buckets) and not self.waiting[len(self.works)]:
            self._start()

    def finish(self) -> None:
        """Reduce what is left, such as parameters that this rank's samples did not use, and wait for all."""
        if not self.is_armed:
            return
        while len(self.works) < len(self.buckets):
            self._start()
        for work in self.works:
            work.wait()
        self.is_armed = False

    def _start(self) -> None:
        self.works.append(dist.all_reduce(self.buckets[len(self.works)].flat, async_op=True))


@dataclass
class DDPEngine:
    """Replicas whose gradients are summed; build it with `build_ddp_engine`."""

    inner: SingleEngine
    reducer: Reducer

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`; reduce while the last one runs."""
        if is_last:
            self.reducer.arm()
        self.inner.backward(loss, is_last=is_last)
        if is_last:
            self.reducer.finish()

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of the summed gradient."""
        return self.inner.grad_norm()

    def update(self, max_grad_norm: float) -> torch.Tensor:
        """Clip, step and clear; return the norm before clipping."""
        return self.inner.update(max_grad_norm)

    def drop(self) -> None:
        """Clear the gradient without an update."""
        self.inner.drop()

    def bad_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite."""
        return self.inner.bad_gradient()

    def set_learning_rate(self, factor: float) -> float:
        """Set each group's rate to `factor` times its peak; return the first group's rate."""
        return self.inner.set_learning_rate(factor)

    def optimizer_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the optimizer state, which every rank has whole."""
        return self.inner.optimizer_tensors()

    def load_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the optimizer state on every rank."""
        self.inner.load_optimizer(tensors)

    def model_tensors(self, *, is_trained: bool) -> None:
        """Return None: every rank's model has all its tensors."""


def build_ddp_engine(model: nn.Module, optimizer: Optimizer, world: World) -> DDPEngine:
    """Return an engine of replicas; rank 0's trained parameters are copied to all."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not world.is_alone:
                dist.broadcast(parameter.data, src=0)
    inner = build_single_engine(model, optimizer)
    return DDPEngine(inner, build_reducer(inner.gradients))


def build_reducer(gradients: Gradients) -> Reducer:
    """Return what sums these gradients over ranks, with its hooks in place."""
    reducer = Reducer(gradients.buckets)
    for number, bucket in enumerate(gradients.buckets):
        for name, parameter in zip(bucket.names, bucket.parameters, strict=True):
            parameter.register_post_accumulate_grad_hook(
                lambda _, number=number, name=name: reducer.ready(number, name)
            )
    return reducer
