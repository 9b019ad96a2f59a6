"""ZeRO-2 and ZeRO-3 by DeepSpeed, which is imported here, on first use, and nowhere else.

DeepSpeed averages gradients, so losses are multiplied by the number of ranks; it clips and steps, and everything that
decides whether it may do so is looked at before. Its own counting of micro-batches, scheduler and skipping of steps
stay off.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.parallel.engine import BaseEngine, Trained
from swiftlet.parallel.gradients import first_bad_over_ranks, square_over_ranks
from swiftlet.parallel.leaf_linear import apply_leaf_linear
from swiftlet.parallel.optimizer_state import Piece
from swiftlet.parallel.world import World

NO_MICRO_STEP = -1
COMPILED = "deepspeed_shm_comm"  # collectives in shared memory, compiled for minutes on first use
FORMER_NAMES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"


@dataclass
class DeepSpeedEngine(BaseEngine):
    """A model partitioned by DeepSpeed; build it with `build_deepspeed_engine`.

    Args:
        runner: DeepSpeed's engine; calling it is the forward pass.
        names: trained parameters to their names.
        finer: names of trained parameters that are saved in fp32, finer than the forward pass uses them.
    """

    runner: Any
    stage: int
    names: Mapping[nn.Parameter, str]
    finer: Collection[str]
    world: World

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer around torch's."""
        return self.runner.optimizer

    def backward(self, loss: Tensor, *, is_last: bool, divisor: int = 1) -> None:
        """Add the gradient of `loss / divisor`; both stages reduce it at once, since no rank keeps it whole."""
        self._norm = None
        self.runner.set_gradient_accumulation_boundary(is_last)
        self.runner.backward(loss * (1 / divisor) * self.world.world_size, scale_wrt_gas=False)

    def find_norm(self) -> Tensor:
        """Compute the norm of the summed gradient over all partitions."""
        return square_over_ranks((g for _, g in self._gradients()), self.world).sqrt()

    def update(self, max_grad_norm: float) -> Tensor:
        """Clip, step and clear; return the norm before clipping."""
        norm = self.grad_norm()
        self.zero.clip_grad = max_grad_norm
        self.runner.step()
        self._norm = None
        return norm

    def drop(self) -> None:
        """Clear the gradient without an update, as DeepSpeed does after an overflow."""
        self._norm = None
        if self.stage == 3:
            self.zero._overflow_clean_up(1.0)
            return
        self.zero.micro_step_id = NO_MICRO_STEP
        self.zero.zero_grad(set_to_none=True)
        self.zero._release_preflattened_grad_buffers()
        for number in self.zero.averaged_gradients:
            self.zero.averaged_gradients[number] = self.zero.all_grad_tensors[number] = None

    def bad_gradient(self) -> str | None:
        """Return the name of the first parameter whose gradient is not finite on any rank; every rank calls it."""
        return first_bad_over_ranks(self._gradients(), self.names.values(), self.world)

    def model_tensors(self, *, is_trained: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor) of the model or of its trained part, gathered one at a time."""
        import deepspeed

        if (
            self.stage == 3
        ):  # a pass without gradients, such as an evaluation, may have fetched ahead for one that never came
            self.zero.empty_partition_cache()
        held = {piece.name: piece for piece in self.pieces}
        model = self.runner.module.get_submodule("model")
        for name, tensor in model.state_dict(keep_vars=True).items():
            if is_trained and not tensor.requires_grad:
                continue
            if name in self.finer:
                yield name, held[name].whole(held[name].held.detach())
            elif hasattr(tensor, "ds_id"):
                with deepspeed.zero.GatheredParameters([tensor]):
                    whole = tensor.detach().clone()
                yield name, whole
            else:
                yield name, tensor.detach()

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's parts of the gradient with the names of their parameters."""
        zero = self.zero
        if self.stage == 3 and zero.offload_optimizer:
            for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
                yield self.names[group[0]], flat.grad
            return
        groups = zero.fp16_groups if self.stage == 3 else zero.params_in_partition
        for number, group in enumerate(groups):
            found = zero.averaged_gradients.get(number)
            if found is None:
                found = getattr(zero, "all_grad_tensors", {}).get(number)
            parts = [part for part in found or () if not getattr(part, "_zero_padding", False)]
            for parameter, part in zip(group, parts, strict=False):
                yield self.names[parameter], part


def build_deepspeed_engine(
    module: nn.Module,
    settings: dict[str, Any],
    trained: Trained,
    *,
    world: World,
    dtype: torch.dtype,
) -> DeepSpeedEngine:
    """Hand a model to DeepSpeed and return its engine. ZeRO-3 finds what `partition` has cut already.

    Args:
        module: its forward pass is the whole step's; its submodule `model` names the parameters.
        settings: see `config/deepspeed.py`.
        trained: its adapters are finer than `dtype` now and keep their values in the fp32 copies.
        dtype: type of the forward pass; DeepSpeed keeps fp32 copies of what is trained.
    """
    deepspeed = _import(world.device)
    # The norm by which it clips: not every library of collectives adds fp64 up, and a processor's fp32 is too coarse.
    deepspeed.accelerator.get_accelerator().is_fp64_supported = lambda: world.device.type == "cpu"
    model = module.get_submodule("model")
    by_name = dict(model.named_parameters())
    groups = [{**group, "params": [by_name[name] for name in group["params"]]} for group in trained.groups]
    finer = {name: p.detach().clone() for name, p in model.named_parameters() if name in trained.adapters}
    for name, parameter in model.named_parameters():
        if name in finer:
            parameter.data = parameter.data.to(dtype)
    runner, *_ = deepspeed.initialize(
        model=module, optimizer=trained.build_optimizer(groups), config=settings, dist_init_required=False
    )
    stage = settings["zero_optimization"]["stage"]
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    pieces = [
        _piece3(n, p) if stage == 3 else _piece2(n, p, runner.optimizer, dtype) for p, n in names.items()
    ]
    for piece in pieces:
        if piece.name in finer:
            piece.put(finer[piece.name], piece.held.data)
    optimizer = runner.optimizer.optimizer
    return DeepSpeedEngine(optimizer, pieces, runner, stage, names, finer.keys(), world)


def _import(device: torch.device) -> Any:
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even where no launcher has set it
    # else it takes the best that it finds on the machine
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", FORMER_NAMES, FutureWarning)  # it calls torch by them, in every step
    deepspeed.ops.__compatible_ops__[COMPILED] = False
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def _piece2(name: str, parameter: Any, zero: Any, dtype: torch.dtype) -> Piece:
    number = next(i for i, group in enumerate(zero.bit16_groups) if any(p is parameter for p in group))
    held, mapping = zero.single_partition_of_fp32_groups[number], parameter._hp_mapping
    at, start, size = 0, 0, 0
    if mapping is not None:
        at, start = mapping.hp_fragment_address.start, mapping.lp_fragment_address.start
        size = mapping.hp_fragment_address.numel
    return Piece(name, parameter.shape, held, at, start, size, is_master=dtype != torch.float32)


def _piece3(name: str, parameter: Any) -> Piece:
    zero = parameter._z3_optimizer
    number, at, padded = zero.grad_position[zero.get_param_id(parameter)]
    start = min(parameter.ds_zero_partition_rank * padded, parameter.ds_numel)
    size = min(padded, parameter.ds_numel - start)
    held = zero.fp32_partitioned_groups_flat[number]
    is_master = parameter.dtype != torch.float32
    return Piece(name, parameter.ds_shape, held, at, start, size, is_master=is_master)


def partition(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    shared: Sequence[nn.Parameter],
    sources: Mapping[str, Any],
    settings: dict[str, Any],
) -> None:
    """Cut the parameters without memory for ZeRO-3 before DeepSpeed sees them; each rank reads its own part alone.

    Args:
        blocks: modules whose parameters are gathered together, once, rather than matrix by matrix.
        shared: parameters that the forward pass uses outside their own modules, such as the head's.
        sources: where the values of the parameters are, by their names in the submodule `model`.
    """
    deepspeed = _import(next(module.parameters()).device)
    init = deepspeed.zero.Init(config_dict_or_path=settings)
    found: dict[nn.Parameter, nn.Parameter] = {}
    model = module.get_submodule("model")
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner, _, last = name.rpartition(".")
        if parameter not in found and name in sources:
            found[parameter] = _cut(init, parameter, sources[name])
        if parameter in found:
            model.get_submodule(owner)._parameters[last] = found[parameter]
    apply_leaf_linear(model, found.values())
    for block in blocks:
        deepspeed.utils.set_z3_leaf_module(block, True)
    for parameter in shared:
        deepspeed.zero.register_external_parameter(module, found.get(parameter, parameter))


@torch.no_grad()
def _cut(init: Any, parameter: nn.Parameter, source: Any) -> nn.Parameter:
    """Return a partitioned parameter; its whole memory is asked for and given back without being written to."""
    empty: Any = nn.Parameter(parameter.new_empty(parameter.shape), parameter.requires_grad)
    init._convert_to_deepspeed_param(empty)
    empty.partition()
    size = empty.ds_tensor.ds_numel
    start = min(empty.ds_zero_partition_rank * size, empty.ds_numel)
    stop = min(start + size, empty.ds_numel)
    empty.ds_tensor.zero_()
    if stop > start:
        empty.ds_tensor.narrow(0, 0, stop - start).copy_(source.elements(start, stop))
    return empty
