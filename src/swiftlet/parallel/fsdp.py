"""Fully sharded: each rank keeps a slice of every matrix, gathered layer by layer while it is used (FSDP2).

Adapters are small: they stay whole on every rank and are reduced as replicas are. Gradients of sharded parameters are
summed, not averaged, and reduced after each micro-batch: without that every rank would hold them whole until the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from swiftlet.parallel.ddp import DDPEngine, build_reducer, share_start
from swiftlet.parallel.engine import Trained
from swiftlet.parallel.gradients import build_gradients, first_bad_over_ranks, square_over_ranks
from swiftlet.parallel.optimizer_state import Piece, whole_piece
from swiftlet.parallel.world import World


class Source(Protocol):
    """Where the values of a parameter are; `elements` gives a range of it, flattened."""

    def elements(self, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop)."""


class Shard(NamedTuple):
    """A parameter that is sharded, and this rank's rows of it, which share its memory."""

    name: str
    parameter: Any
    held: nn.Parameter


@dataclass(kw_only=True)
class FSDPEngine(DDPEngine):
    """Sharded parameters beside the adapters, whose `gradients` are those of replicas; see `build_fsdp_engine`."""

    module: nn.Module
    shards: list[Shard]
    world: World
    dtype: torch.dtype

    def find_norm(self) -> Tensor:
        """Compute the norm of the summed gradient over all shards and replicas."""
        square = square_over_ranks((g for _, g in self._gradients()), self.world)
        if self.gradients.buckets:
            square = square + self.gradients.norm().square().to(square)
        return square.sqrt()

    def scale(self, factor: float | Tensor) -> None:
        """Multiply the gradient by a number."""
        for _, gradient in self._gradients():
            gradient.mul_(factor.to(gradient) if isinstance(factor, Tensor) else factor)
        super().scale(factor)

    def step(self) -> None:
        """Update the parameters, of which this rank steps its rows."""
        for shard in self.shards:
            gradient = shard.parameter.grad
            shard.held.grad = None if gradient is None else gradient.to_local()
        super().step()

    def drop(self) -> None:
        """Clear the gradient without an update."""
        super().drop()
        for shard in self.shards:
            shard.parameter.grad = shard.held.grad = None

    def bad_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite on any rank; every rank calls it."""
        names = [shard.name for shard in self.shards]
        return first_bad_over_ranks(self._gradients(), names, self.world) or super().bad_gradient()

    def model_tensors(self, *, is_trained: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor) of the model or of its trained part, in the type of the forward pass."""
        self.module.reshard()  # type: ignore[operator]
        for name, tensor in _inner(self.module).state_dict(keep_vars=True).items():
            if is_trained and not tensor.requires_grad:
                continue
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            is_finer = hasattr(tensor, "full_tensor") and tensor.requires_grad
            yield name, whole.detach().to(self.dtype) if is_finer else whole.detach()

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's rows of the gradient with the names of their parameters."""
        for shard in self.shards:
            if shard.parameter.grad is not None:
                yield shard.name, shard.parameter.grad.to_local()


def _inner(module: nn.Module) -> nn.Module:
    return module.get_submodule("model")


def _rows(parameter: Any) -> nn.Parameter:
    return nn.Parameter(parameter.to_local(), parameter.requires_grad)


def build_fsdp_engine(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    sources: Mapping[str, Source],
    trained: Trained,
    *,
    world: World,
    dtype: torch.dtype,
    is_offloaded: bool = False,
) -> FSDPEngine:
    """Shard a model in place and return its engine; each rank reads its own slices alone.

    Args:
        module: its forward pass is the whole step's; its submodule `model` names the parameters.
        blocks: modules that are gathered one at a time; the rest is gathered for the whole pass.
        sources: where the values of parameters without memory are, by name.
        trained: its adapters stay whole on every rank.
        dtype: type of the forward pass; sharded parameters that are trained are kept in fp32.
        is_offloaded: keep shards, gradients and optimizer state in the host's memory.
    """
    by_name, replicas = dict(_inner(module).named_parameters()), trained.adapters
    kept = {by_name[name] for name in replicas}
    _shard(module, blocks, kept, world, dtype, is_offloaded)
    shards = [
        Shard(name, p, _rows(p)) for name, p in _inner(module).named_parameters() if name not in replicas
    ]
    pieces = {}
    for shard in shards:
        pieces[shard.name] = piece = _piece(shard, world, dtype)
        if piece.size and shard.name in sources:
            values = sources[shard.name].elements(piece.start, piece.start + piece.size)
            shard.held.data.view(-1).copy_(values)
    pieces |= {name: whole_piece(name, by_name[name]) for name in replicas}
    share_start((by_name[name] for name in replicas), world)
    groups = [
        {**group, "params": [pieces[name].held for name in group["params"]]} for group in trained.groups
    ]
    gradients = build_gradients((name, p) for name, p in by_name.items() if p in kept)
    return FSDPEngine(
        trained.build_optimizer(groups),
        [pieces[name] for group in trained.groups for name in group["params"]],
        gradients,
        divides_late=dtype == torch.float16,  # see `has_fp16`; sharded gradients are fp32 too
        reducer=build_reducer(gradients),
        module=module,
        shards=[shard for shard in shards if shard.parameter.requires_grad],
        world=world,
        dtype=dtype,
    )


def _shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    kept: set[nn.Parameter],
    world: World,
    dtype: torch.dtype,
    is_offloaded: bool,
) -> None:
    mesh = init_device_mesh(world.device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy(pin_memory=world.device.type != "cpu") if is_offloaded else OffloadPolicy()
    for part in (*blocks, module):
        _take_memory(part, kept)
        sharded: Any = fully_shard(
            part, mesh=mesh, mp_policy=policy, offload_policy=offload, ignored_params=kept
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_reduce_scatter_unused_params(True)
    _leave_on_host(module)


class _OnHost:
    """A tensor that looks like none."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _leave_on_host(module: nn.Module) -> None:
    """Let arguments of the host stay there: sharding sends each tensor to the device, where targets are waited for."""

    def hide(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            _OnHost(one) if isinstance(one, Tensor) and one.device.type == "cpu" else one for one in inputs
        )

    def show(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.tensor if isinstance(one, _OnHost) else one for one in inputs)

    module.register_forward_pre_hook(hide, prepend=True)
    module.register_forward_pre_hook(show)


def _take_memory(part: nn.Module, kept: set[nn.Parameter]) -> None:
    """Give hollow parameters memory that nothing is written to: sharding keeps this rank's rows and frees the rest."""
    found: dict[nn.Parameter, nn.Parameter] = {}
    for owner in part.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is None or parameter in kept or hasattr(parameter, "to_local"):
                continue
            if parameter not in found:
                kind = torch.float32 if parameter.requires_grad else parameter.dtype
                is_hollow = not parameter.is_contiguous()
                value = (
                    parameter.new_empty(parameter.shape, dtype=kind) if is_hollow else parameter.data.to(kind)
                )
                found[parameter] = nn.Parameter(value, parameter.requires_grad)
            owner._parameters[name] = found[parameter]


def _piece(shard: Shard, world: World, dtype: torch.dtype) -> Piece:
    shape = shard.parameter.shape
    rows = -(-shape[0] // world.world_size)
    start = min(world.rank * rows, shape[0]) * shape[1:].numel()
    is_master = shard.parameter.requires_grad and dtype != shard.held.dtype
    return Piece(shard.name, shape, shard.held, 0, start, shard.held.numel(), is_master=is_master)
