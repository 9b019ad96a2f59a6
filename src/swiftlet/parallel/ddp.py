"""One replica of the model a rank; gradients are summed over ranks while the last micro-batch runs backward.

The sum is exact (no average to undo), parameters without a gradient count as zero, and the model is not wrapped.
Buckets are reduced in one fixed order on every rank, whichever is ready first.
"""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(kw_only=True)
class DDPEngine(SingleEngine):
    """Replicas whose gradients are summed; build it with `build_ddp_engine`."""

    reducer: Reducer

    def backward(self, loss: torch.Tensor, *, is_last: bool, divisor: int = 1) -> None:
        """Add the gradient of `loss / divisor`; reduce while the last one runs."""
        if is_last:
            self.reducer.arm()
        super().backward(loss, is_last=is_last, divisor=divisor)

    def complete(self) -> None:
        """Wait until all gradients are summed."""
        self.reducer.finish()


@torch.no_grad()
def share_start(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Copy rank 0's values of these parameters to all ranks."""
    if world.is_alone:
        return
    for parameter in parameters:
        dist.broadcast(parameter.data, src=0)


def build_ddp_engine(model: nn.Module, optimizer: Optimizer, world: World) -> DDPEngine:
    """Return an engine of replicas; rank 0's trained parameters are copied to all."""
    share_start((p for p in model.parameters() if p.requires_grad), world)
    own = build_single_engine(model, optimizer)
    reducer = build_reducer(own.gradients)
    return DDPEngine(optimizer, own.pieces, own.gradients, own.divides_late, reducer=reducer)


def build_reducer(gradients: Gradients) -> Reducer:
    """Return what sums these gradients over ranks, with its hooks in place."""
    reducer = Reducer(gradients.buckets)
    for number, bucket in enumerate(gradients.buckets):
        for name, parameter in zip(bucket.names, bucket.parameters, strict=True):
            parameter.register_post_accumulate_grad_hook(
                lambda _, number=number, name=name: reducer.ready(number, name)
            )
    return reducer
