"""Memory of one training step on one device, by component; `activations.py` says how its peak follows from sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

from swiftlet.plan.activations import peak_of_step
from swiftlet.plan.setting import FP32, Setting, num_adapter_parameters, num_trained, trains_head
from swiftlet.plan.sizes import Sizes

GIB = 2**30
ROUNDED_ELEMENTS, ROUNDED_COPIES = 2**24, 7  # train/adamw_bf16.py: a chunk, and its fp32 copies
ZERO2_BUCKET, ZERO3_LIVE = 2e8, 1e9  # elements; contract section 7
# What a processor keeps of the products of a shorter type that were compiled for their shapes, as many as
# device/settings.py says; 0.15 to 0.19 GiB in runs of models of 1 M to 60 M.
COMPILED = 0.17 * GIB
CUT = ("zero3", "zero3-offload", "fsdp2", "fsdp2-offload")  # the weights themselves
SHARDED = ("zero2", *CUT)


class Memory(NamedTuple):
    """Bytes on one device; together what the allocator must hand out at the step's peak."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    buckets: float
    gathered: float
    activations: float
    logits: float
    compiled: float

    @property
    def needed(self) -> float:
        """Return the sum, rounded once: parts that move between each other never make it smaller."""
        return math.fsum(self)


def trained_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes of all trained numbers: adapters are fp32, weights keep their type where nothing is sharded."""
    of_weights = s.itemsize if s.engine == "none" else FP32
    adapters = num_adapter_parameters(g, s)
    return FP32 * adapters + of_weights * (num_trained(g, s) - adapters)


def estimate(g: Sizes, s: Setting) -> Memory:
    """Return the memory of a step on each device, by component."""
    held = _held_trained(g, s)
    whole = s.world_size if s.engine in CUT else 1
    adapters = FP32 * num_adapter_parameters(g, s) / (1 if s.keeps_adapters_whole else whole)
    adapters += 0 if s.is_full else s.itemsize * s.extra_trained
    gradients = trained_bytes(g, s) if s.engine == "none" else FP32 * held
    optimizer = gradients * s.states
    if s.engine.startswith("zero"):
        optimizer += FP32 * held  # a copy of what it trains, even of fp32
    if _updates_on_host(s):  # where DeepSpeed gathers the gradient of its part too
        gradients = optimizer = 0.0
    activations, logits = peak_of_step(g, s)
    optimizer += max(0.0, rounding_bytes(g, s) - activations - logits)
    buckets = s.itemsize * zero_buffers(g, s)[0]
    if s.engine == "zero2":  # whose buckets live in the backward pass alone, logits in the forward pass
        logits = max(0.0, logits - buckets)
    gathered = gathered_bytes(g, s, activations + logits)
    weights = 0.0 if s.engine.endswith("offload") else _held_weights(g, s) / whole
    compiled = COMPILED if s.is_host and s.itemsize < FP32 else 0.0
    return Memory(weights, adapters, gradients, optimizer, buckets, gathered, activations, logits, compiled)


def zero_buffers(g: Sizes, s: Setting) -> tuple[float, float]:
    """Return the numbers of all buckets of gradients, and of parameters that ZeRO-3 keeps whole at most."""
    if s.own_buffers is not None and s.own_buffers[0] == s.engine:
        return s.own_buffers[1:]
    if not s.engine.startswith("zero"):
        return 0.0, 0.0
    return (2 * ZERO2_BUCKET if s.engine == "zero2" else float(g.hidden**2)), ZERO3_LIVE


def _updates_on_host(s: Setting) -> bool:
    return s.engine in ("zero3-offload", s.host_optimizer)


def _held_trained(g: Sizes, s: Setting) -> float:
    """Return of how many trained numbers a device has gradients and moments: FSDP2 shards all but the adapters."""
    whole = num_adapter_parameters(g, s) if s.keeps_adapters_whole else 0
    rest = num_trained(g, s) - whole
    if s.engine == "fsdp2-offload":
        return whole
    return whole + rest / (s.world_size if s.engine in SHARDED else 1)


def rounding_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes of the copies with which AdamW rounds weights that are bf16, when no activation is left."""
    if not (s.is_full or s.extra_trained) or s.engine != "none" or s.itemsize == FP32:
        return 0.0
    largest = s.largest_trained
    if largest is None:
        largest = max(g.vocab * g.hidden, g.hidden * g.intermediate)
    return ROUNDED_COPIES * FP32 * min(ROUNDED_ELEMENTS, largest)


def _held_weights(g: Sizes, s: Setting) -> float:
    """Return the bytes of all weights as an engine keeps them; FSDP2 keeps those that it trains in fp32."""
    finer = FP32 - s.itemsize if s.is_full and s.engine.startswith("fsdp2") else 0
    return s.itemsize * g.num_parameters + finer * num_trained(g, s)


def gathered_bytes(g: Sizes, s: Setting, rest: float) -> float:
    """Return the bytes of whole parameters, beside the shards, where a step needs most.

    ZeRO-3 keeps up to `zero_buffers` parameters, and two layers are on their way. FSDP2 holds two layers and the head
    while the step's activations and logits, the `rest`, are there. But they are not when it begins: then the head, the
    buffer that it came in and the embedding's are there. Nor when full training ends: then the head, its gradient,
    what is sent of it and the embedding are. gloo sends copies.
    """
    e = s.itemsize
    ends = g.vocab * g.hidden * (1 if g.tied else 2)
    a_layer = (g.num_parameters - ends - g.hidden) / g.layers
    if s.engine.startswith("zero3"):
        return e * (min(g.num_parameters, zero_buffers(g, s)[1]) + 2 * a_layer)
    if not s.engine.startswith("fsdp2"):
        return 0.0
    head = e * g.vocab * g.hidden
    start = (2 if g.tied else 3) * head + s.is_host * head
    end = head + 2 * FP32 * g.vocab * g.hidden + (0 if g.tied else head) + s.is_host * head
    end *= s.is_full and trains_head(s)
    return max(head + 2 * e * a_layer, start - rest, end - rest)


def host_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes that an offloading engine keeps in the memory of each machine's host, all devices together."""
    is_off = s.engine.endswith("offload")
    if not (is_off or _updates_on_host(s)):
        return 0.0
    # The gradient and the optimizer's numbers; with DeepSpeed a copy of what it trains.
    numbers = 1 + s.states + _updates_on_host(s)
    return is_off * _held_weights(g, s) + FP32 * numbers * num_trained(g, s)
