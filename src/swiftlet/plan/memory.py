"""Memory of one training step on one device, by component, from sizes alone: no weights, no device, no torch.

The terms are those of the step in `train` over `models`: packed samples, chunked cross entropy, gated MLPs that keep
their inputs alone, norms that keep their input or (frozen, in fp32 on a processor) their output, flat gradients. The
trace (`commands/plan_trace.py`) runs that very step on fake tensors and must agree. Per layer and token the backward
pass needs: what both norms keep (2 H), the normalised inputs (H each where an adapter or a trained weight reads one that
its norm does not keep), rotated q and k, v, the attention's output where its kernel keeps it, gate and up (2 I), and,
where they are trained, the inputs of o, gate/up and down.

Shapes: T tokens of the largest micro-batch, N its labels, H hidden, I intermediate, V vocabulary, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from swiftlet.plan.sizes import Sizes

GIB, FP32 = 2**30, 4
HOST_CHUNK, HOST_ROWS, HOST_WORDS, DEVICE_CHUNK, CHUNK_ROWS = 16 * 2**20, 512, 2048, 384 * 2**20, 32
ROUNDED_ELEMENTS, ROUNDED_COPIES = 2**24, 7  # train/adamw_bf16.py: a chunk, and its fp32 copies
ZERO2_BUCKET, ZERO3_LIVE = 2e8, 1e9  # elements; contract section 7
CUT = ("zero3", "zero3-offload", "fsdp2", "fsdp2-offload")  # the weights themselves
SHARDED = ("zero2", *CUT)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP, ENDS = ("gate_proj", "up_proj", "down_proj"), ("embed_tokens", "lm_head")
# --gradient_checkpointing: made again is nothing, normalised values with up and the MLP's product, or each whole layer.
LEVELS = NONE, PARTIAL, FULL = ("false", "partial", "true")


@dataclass(frozen=True)
class Setting:
    """What of a run shapes its memory.

    Args:
        itemsize: bytes of a weight or an activation.
        targets: matrices with adapters, of `ATTENTION`, `MLP` and `ENDS`; not looked at with `is_full`.
        trained_share: share of the parameters that a full run trains.
        extra_trained: parameters trained whole beside the adapters, such as the embedding.
        states: numbers that the optimizer keeps a parameter.
        engine: none, zero2, zero3, zero3-offload, fsdp2 or fsdp2-offload; with none each rank has a replica.
        keeps_attention: the attention's kernel keeps its output for the backward pass.
        recompute: of LEVELS.
        labels: labelled tokens among `tokens`; all where None.
        is_host: the device is the processor, where a chunk of logits is smaller.
        trains_norms: the weights of norms are among what is trained.
    """

    itemsize: int
    tokens: int
    is_full: bool = False
    rank: int = 8
    targets: frozenset[str] = frozenset(ATTENTION[:3])
    trained_share: float = 1.0
    extra_trained: int = 0
    has_dora: bool = False
    recompute: str = NONE
    states: int = 2
    engine: str = "none"
    world_size: int = 1
    keeps_attention: bool = True
    labels: int | None = None
    is_host: bool = False
    trains_norms: bool = False

    @property
    def keeps_normed(self) -> bool:
        """Return whether norms keep their output, see models/norm.py; ZeRO-3 trains with the model's own."""
        is_frozen = not self.is_full and not self.trains_norms
        return is_frozen and self.is_host and self.itemsize == FP32 and not self.engine.startswith("zero3")

    @property
    def num_labels(self) -> int:
        """Return the labelled tokens."""
        return self.tokens if self.labels is None else self.labels


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

    @property
    def needed(self) -> float:
        """Return the sum, rounded once: parts that move between each other never make it smaller."""
        return math.fsum(self)


def projections(g: Sizes) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of each projection of a layer that can have an adapter."""
    query, key = g.heads * g.dim, g.kv_heads * g.dim
    width = g.shared_intermediate if g.experts else g.intermediate
    found = {
        "q_proj": (g.hidden, query),
        "k_proj": (g.hidden, key),
        "v_proj": (g.hidden, key),
        "o_proj": (query, g.hidden),
    }
    if width:
        found |= {
            "gate_proj": (g.hidden, width),
            "up_proj": (g.hidden, width),
            "down_proj": (width, g.hidden),
        }
    return found


def num_adapter_parameters(g: Sizes, s: Setting) -> int:
    """Return the parameters that LoRA adds: rank (inputs + outputs) a matrix, and the outputs again for DoRA."""
    if s.is_full:
        return 0
    sizes = [size for name, size in projections(g).items() if name in s.targets] * g.layers
    sizes += [(g.hidden, g.vocab)] * len(s.targets & set(ENDS))
    return sum(s.rank * (inputs + outputs) + s.has_dora * outputs for inputs, outputs in sizes)


def num_trained(g: Sizes, s: Setting) -> int:
    """Return how many numbers the optimizer trains."""
    if s.is_full:
        return round(g.num_parameters * s.trained_share)
    return num_adapter_parameters(g, s) + s.extra_trained


def saved_per_layer(g: Sizes, s: Setting) -> float:
    """Return the bytes that one layer keeps for its backward pass, among them its input or what is made of it."""
    e, tokens = s.itemsize, s.tokens
    query, key = g.heads * g.dim, g.kv_heads * g.dim
    reads_input = s.is_full or _reads_normed(s, ATTENTION[:3])
    width = 2 * g.hidden + (g.hidden if reads_input else 0) + query + 2 * key
    width += query if s.keeps_attention or s.is_full or "o_proj" in s.targets else 0
    width += query + key if g.qk_norm else 0
    width += (g.norms - 2) * g.hidden
    vectors = FP32 * (g.norms + (g.heads if s.keeps_attention else 0) + (g.heads + g.kv_heads) * g.qk_norm)
    ranks = 0 if s.is_full else s.rank * len(s.targets & projections(g).keys())
    return tokens * (e * (width + ranks) + vectors) + _saved_mlp(g, s) + _cast_adapters(g, s)


def spared_per_layer(g: Sizes, s: Setting) -> float:
    """Return the bytes of these that partial recomputing does not keep."""
    kinds = [frozenset(names) & projections(g).keys() for names in (ATTENTION[:3], MLP[:2])]
    inputs = sum(s.is_full or _reads_normed(s, names) for names in kinds)
    return s.itemsize * s.tokens * (g.hidden * inputs + g.up_width * (1 + s.is_full))


def _reads_normed(s: Setting, names: Iterable[str]) -> bool:
    """Return whether adapters of these matrices keep a normalised input that its norm does not keep anyway."""
    return not s.keeps_normed and bool(s.targets & set(names))


def _cast_adapters(g: Sizes, s: Setting) -> float:
    """Return the bytes of adapters in the type of the base, kept for the backward pass where it is not fp32."""
    if s.is_full or s.itemsize == FP32:
        return 0
    return s.itemsize * num_adapter_parameters(g, s) / g.layers


def _saved_mlp(g: Sizes, s: Setting) -> float:
    e, tokens = s.itemsize, s.tokens
    reads_input = s.is_full or _reads_normed(s, MLP[:2])
    if not g.experts:
        width = 2 * g.intermediate + (g.hidden if reads_input else 0)
        return tokens * e * (width + (g.intermediate if s.is_full else 0))
    # Each token passes `active_experts` experts of transformers' own build: gate, up, silu(gate) and the output, which
    # is scaled by the router's weight; trained experts also keep their input and the product of gate and up.
    rows = tokens * g.active_experts
    width = 3 * g.expert_intermediate + g.hidden + (g.hidden + g.expert_intermediate if s.is_full else 0)
    shared = 2 * g.shared_intermediate + g.hidden if g.shared_intermediate else 0
    shared += g.hidden * (2 if s.is_full else bool(reads_input and g.shared_intermediate))
    return rows * e * width + tokens * (e * shared + FP32 * 2 * g.experts)


def widest(g: Sizes) -> int:
    """Return the intermediate width that a token has at once."""
    return g.active_experts * g.expert_intermediate + g.shared_intermediate if g.experts else g.intermediate


def head_chunk(g: Sizes, s: Setting) -> tuple[int, int]:
    """Return the most positions and words of logits that exist at once, see models/cross_entropy.py, frozen_head.py."""
    if s.is_host and not trains_head(s):
        return min(s.num_labels, HOST_ROWS), min(g.vocab, HOST_WORDS)
    budget = max(HOST_CHUNK, HOST_ROWS * g.vocab * FP32) if s.is_host else DEVICE_CHUNK
    return min(s.num_labels, max(CHUNK_ROWS, budget // (g.vocab * FP32))), g.vocab


def trains_head(s: Setting) -> bool:
    """Return whether the head gets a gradient."""
    return s.is_full and s.trained_share > 0


def peak_of_step(g: Sizes, s: Setting) -> tuple[float, float]:
    """Return (activations, logits): the step's peak above what is resident, and how far the head raises it.

    The peak lies where the head makes its logits, where the last layer's MLP goes backward (all layers are still
    kept), or, with a trained tied head, where its two gradients meet at the end.
    """
    e, tokens, labels = s.itemsize, s.tokens, s.num_labels
    layer = saved_per_layer(g, s)
    stream = e * tokens * g.hidden
    spared = spared_per_layer(g, s) if s.recompute == PARTIAL else 0.0
    kept = g.layers * (stream if s.recompute == FULL else layer - spared)
    kept += 2 * e * tokens * g.dim + e * labels * g.hidden  # cos and sin; the gradient of the hidden states
    # Layer 0 keeps nothing of its input, unless that is trained or recomputed from; the last norm keeps its own.
    if s.keeps_normed:
        reads_input = bool(s.targets & set(ATTENTION[:3]))
    else:
        reads_input = s.is_full or (s.recompute == PARTIAL and _reads_normed(s, ATTENTION[:3]))
    kept += stream + FP32 * tokens if reads_input or s.recompute == FULL else 0
    inside = kept - e * labels * g.hidden - stream - FP32 * tokens + _mlp_backward(g, s)
    inside += layer - (0 if s.keeps_normed else stream) if s.recompute == FULL else 0
    if trains_head(s) and g.tied:
        head_weight = e * g.vocab * g.hidden
        inside = max(inside + head_weight, 3 * head_weight)
    return inside, max(0.0, kept + _head(g, s) - inside)


def _head(g: Sizes, s: Setting) -> float:
    """Return the bytes that the head makes beside what is kept: a chunk of logits, and gradients of its weight."""
    e, (rows, words), weight = s.itemsize, head_chunk(g, s), g.vocab * g.hidden
    both = e * s.tokens * g.hidden + e * s.num_labels * g.hidden  # all hidden states, and the labelled ones
    raw, wide = e * rows * words, 0 if e == FP32 else FP32 * rows * words
    both -= e * s.tokens * g.hidden if s.keeps_normed else 0  # the last norm keeps them
    forward = both + raw + max(wide, 3 * FP32 * rows * g.hidden)
    if not trains_head(s):
        return forward
    of_weight = both + raw + e * weight + e * rows * g.hidden
    backward = FP32 * weight + (e * weight if e != FP32 else 0) + e * s.num_labels * g.hidden
    return FP32 * weight + max(forward, of_weight, backward)


def _mlp_backward(g: Sizes, s: Setting) -> float:
    """Return the bytes that the backward pass of a gated MLP makes beside what is kept."""
    e, wide = s.itemsize, s.itemsize * s.tokens * widest(g)
    stream = e * s.tokens * g.hidden
    again = e * s.tokens * g.up_width * (s.recompute == PARTIAL)
    if s.recompute == PARTIAL and (s.is_full or _reads_normed(s, MLP[:2])):
        stream += stream  # the normalised input
    if s.is_full:  # the product is freed once the gradient of down's weight is made
        return stream + 2 * again + max(2 * wide, wide + e * g.hidden * g.intermediate)
    if "down_proj" not in s.targets:  # gradients of the product, of gate and of up
        return stream + again + 3 * wide
    # Adapters of down write gate's gradient over the product's; the places that dropout zeroes take half as much.
    return stream + again + (2.5 if s.is_host and not g.experts else 4) * wide


def trained_itemsize(s: Setting) -> int:
    """Return the bytes of a trained number: of the weights' type where a full run is not sharded, else of fp32."""
    return s.itemsize if s.is_full and s.engine == "none" else FP32


def estimate(g: Sizes, s: Setting) -> Memory:
    """Return the memory of a step on each device, by component."""
    trained = num_trained(g, s)
    share = s.world_size if s.engine in SHARDED else 1
    whole = s.world_size if s.engine in CUT else 1
    adapters = FP32 * num_adapter_parameters(g, s) / whole
    adapters += 0 if s.is_full else s.itemsize * s.extra_trained
    gradients = 0.0 if s.engine == "fsdp2-offload" else trained_itemsize(s) * trained / share
    optimizer = gradients * s.states
    if s.engine.startswith("zero"):
        optimizer += FP32 * trained / share  # a copy of what it trains, even of fp32
    if s.engine == "zero3-offload":
        optimizer = 0.0
    activations, logits = peak_of_step(g, s)
    optimizer += max(0.0, rounding_bytes(g, s) - activations - logits)
    buckets = 2 * ZERO2_BUCKET * s.itemsize if s.engine == "zero2" else 0.0
    logits = max(0.0, logits - buckets)  # buckets live in the backward pass alone, logits in the forward pass
    gathered = gathered_bytes(g, s, activations + logits)
    weights = 0.0 if s.engine.endswith("offload") else _held_weights(g, s) / whole
    return Memory(weights, adapters, gradients, optimizer, buckets, gathered, activations, logits)


def rounding_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes of the copies with which AdamW rounds weights that are bf16, when no activation is left."""
    if not s.is_full or s.engine != "none" or s.itemsize == FP32:
        return 0.0
    largest = max(g.vocab * g.hidden, g.hidden * g.intermediate)
    return ROUNDED_COPIES * FP32 * min(ROUNDED_ELEMENTS, largest)


def _held_weights(g: Sizes, s: Setting) -> float:
    """Return the bytes of all weights as an engine keeps them; FSDP2 keeps those that it trains in fp32."""
    finer = FP32 - s.itemsize if s.is_full and s.engine.startswith("fsdp2") else 0
    return s.itemsize * g.num_parameters + finer * num_trained(g, s)


def gathered_bytes(g: Sizes, s: Setting, rest: float) -> float:
    """Return the bytes of whole parameters, beside the shards, where a step needs most.

    ZeRO-3 keeps up to `ZERO3_LIVE` parameters, and two layers are on their way. FSDP2 holds two layers and the head
    while the step's activations and logits, the `rest`, are there. But they are not when it begins: then the head, the
    buffer that it came in and the embedding's are there. Nor when full training ends: then the head, its gradient,
    what is sent of it and the embedding are. gloo sends copies.
    """
    e = s.itemsize
    ends = g.vocab * g.hidden * (1 if g.tied else 2)
    a_layer = (g.num_parameters - ends - g.hidden) / g.layers
    if s.engine.startswith("zero3"):
        return e * (min(g.num_parameters, ZERO3_LIVE) + 2 * a_layer)
    if not s.engine.startswith("fsdp2"):
        return 0.0
    head = e * g.vocab * g.hidden
    start = (2 if g.tied else 3) * head + s.is_host * head
    end = (head + 2 * FP32 * g.vocab * g.hidden + (0 if g.tied else head) + s.is_host * head) * trains_head(s)
    return max(head + 2 * e * a_layer, start - rest, end - rest)


def host_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes that an offloading engine keeps in the memory of each machine's host, all devices together."""
    if not s.engine.endswith("offload"):
        return 0.0
    # With ZeRO-3 a copy of what it trains, with FSDP2 its gradient, and the optimizer's numbers.
    return _held_weights(g, s) + FP32 * (1 + s.states) * num_trained(g, s)
