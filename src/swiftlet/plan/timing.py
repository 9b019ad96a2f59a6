"""Time of a training step from sizes, a device's rates and the number of kernels: an estimate with a band.

A device works while the host starts its next kernels, so a micro-batch takes the longer of launching (kernels x launch
time) and working (matrix products at the device's rate, other operators at its bandwidth); a processor does one thing
after the other, reading its weights too. They are read at least once a pass, which is what short micro-batches wait
for. Sharding engines add their gathers. Counts of kernels and bytes are those of the trace (`commands/plan_trace.py`),
fitted over 14 geometries.
"""

from __future__ import annotations

from typing import NamedTuple

from swiftlet.plan.activations import widest
from swiftlet.plan.cards import Card
from swiftlet.plan.memory import rounding_bytes, trained_bytes
from swiftlet.plan.setting import FP32, FULL, NONE, PARTIAL, Setting, num_trained
from swiftlet.plan.sizes import Sizes

# Kernels a layer: forward and backward, and the forward again where it is recomputed; the rest of a micro-batch.
KERNELS_A_LAYER, KERNELS_REST = 133, 45
# Those a layer has more where equal beginnings are computed once; benchmarks/npu_operators.py, 8 and 4 layers.
KERNELS_SHARING = 34
KERNELS_AGAIN = {NONE: 0, PARTIAL: 17, FULL: 50}
# Elements that other operators than products read and write, a layer and token: of H, I and all heads' D; a label and
# entry of the vocabulary.
MOVED_H, MOVED_I, MOVED_HEADS, MOVED_LOGITS = 64, 20, 44, 6
MOVED_AGAIN, MOVED_FULL, MOVED_DROPOUT = {NONE: 1.0, PARTIAL: 1.05, FULL: 1.3}, 1.2, 1.2
ROUNDED_TRAFFIC = 110  # bytes an element moves when AdamW rounds bf16 weights, counted in train/adamw_bf16.py
SHORT_TYPE = 2.6  # bytes an element moves in a run of 2-byte weights: norms and sums are fp32
HOST_ATTENTION = (
    3.2  # how much slower than products a processor's attention is; measured: 2.9 to 3.7 from 256 tokens on
)
EFFICIENCY = 0.45  # of a peak rate that nobody measured
# Gathers a layer and pass.
PASSES_OF_GATHER = {
    "zero3": 7,
    "zero3-offload": 7,
    "fsdp2": 1,
    "fsdp2-offload": 1,
}
HOOK_MS_A_TENSOR = 0.8  # of the card's gather time: what ZeRO-2's hooks cost a trained tensor and micro-batch
BAND_MEASURED, BAND_GUESSED = 0.25, 0.5


class Load(NamedTuple):
    """One micro-batch: tokens, labelled ones, the sum of the squared lengths of its samples, and their number."""

    tokens: float
    labels: float
    squares: float
    samples: float = 1.0


class Seconds(NamedTuple):
    """Time of one micro-batch or step, by what it goes into; `total` knows what happens at the same time."""

    launch: float
    products: float
    moving: float
    total: float


def flops_of(g: Sizes, s: Setting, load: Load) -> float:
    """Return the floating-point operations of one micro-batch: 2 a weight and token and pass."""
    ends = g.vocab * g.hidden * (1 if g.tied else 2)
    passes = 2 + (s.recompute == FULL) + s.is_full * s.trained_share
    body = 2 * (g.num_active_parameters - ends) * load.tokens * passes
    body += 2 * _up_parameters(g, s) * load.tokens
    head = 2 * load.labels * g.vocab * g.hidden * (2 + s.is_full)
    return body + head + attention_flops(g, s, load)


def _up_parameters(g: Sizes, s: Setting) -> float:
    """Return the parameters of the products that partial recomputing makes once more."""
    return g.layers * g.hidden * g.up_width * (s.recompute == PARTIAL)


def attention_flops(g: Sizes, s: Setting, load: Load) -> float:
    """Return the operations of causal attention: half of 4 Q D a pair of tokens, 2.5 times that backward."""
    return 2 * g.layers * g.heads * g.dim * load.squares * (1 + 2.5 + (s.recompute == FULL))


def moved_bytes(g: Sizes, s: Setting, load: Load, *, has_dropout: bool) -> float:
    """Return the bytes that operators other than products read and write in one micro-batch."""
    width = MOVED_H * g.hidden + MOVED_HEADS * (g.heads + g.kv_heads) * g.dim
    elements = g.layers * load.tokens * (width + MOVED_I * widest(g))
    elements *= MOVED_AGAIN[s.recompute]
    elements *= MOVED_FULL if s.is_full else MOVED_DROPOUT if has_dropout else 1
    itemsize = FP32 if s.itemsize == FP32 else SHORT_TYPE
    return elements * itemsize + MOVED_LOGITS * FP32 * load.labels * g.vocab


def weight_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes of weights that the passes of one micro-batch read."""
    passes = 2 + (s.recompute == FULL) + s.is_full
    return s.itemsize * (passes * g.num_active_parameters + _up_parameters(g, s))


def added_bytes(g: Sizes, s: Setting) -> float:
    """Return the bytes that adding a new gradient of whole weights to that of the step moves: two reads, one write."""
    return 3 * s.itemsize * num_trained(g, s) if s.is_full else 0.0


def num_kernels(g: Sizes, s: Setting) -> float:
    """Return how many kernels one micro-batch launches."""
    a_layer = KERNELS_A_LAYER + KERNELS_AGAIN[s.recompute]
    return g.layers * a_layer + KERNELS_REST


def sharing_launch(g: Sizes, card: Card) -> float:
    """Return the seconds of launching what brings equal beginnings of a micro-batch together and apart again."""
    return g.layers * KERNELS_SHARING * card.launch_us * 1e-6


def matrix_rate(card: Card, rows: float) -> float:
    """Return the rate of products over `rows` tokens [operations a second]: measured, or a share of the peak."""
    if not card.matrix_gflops:
        return EFFICIENCY * card.tflops * 1e12
    points = sorted(card.matrix_gflops)
    if rows <= points[0][0]:
        return points[0][1] * 1e9
    for (low, slow), (high, fast) in zip(points, points[1:], strict=False):
        if rows <= high:
            return (slow + (fast - slow) * (rows - low) / (high - low)) * 1e9
    return points[-1][1] * 1e9


def num_passes(s: Setting, load: Load) -> float:
    """Return how often a micro-batch goes through the model: once, but where each sample needs a pass of its own."""
    return load.samples if s.is_alone else 1.0


def _products(card: Card, flops: float, rows: float, num_bytes: float) -> float:
    """Return the seconds of products that read so many bytes of weights; only a device reads while it multiplies."""
    computing, reading = flops / matrix_rate(card, rows), num_bytes / (card.bandwidth_gb_s * 1e9)
    return computing + reading if card.is_host else max(computing, reading)


def micro_batch(g: Sizes, s: Setting, card: Card, load: Load, *, has_dropout: bool) -> Seconds:
    """Return the time of forward and backward over one micro-batch, gathers and hooks among it."""
    passes = num_passes(s, load)
    launch = passes * num_kernels(g, s) * card.launch_us * 1e-6
    bandwidth = card.bandwidth_gb_s * 1e9
    flops = flops_of(g, s, load) + card.is_host * (HOST_ATTENTION - 1) * attention_flops(g, s, load)
    products = _products(card, flops, load.tokens / passes, passes * weight_bytes(g, s))
    moving = (moved_bytes(g, s, load, has_dropout=has_dropout) + added_bytes(g, s)) / bandwidth
    work = launch + products + moving if card.is_host else max(launch, products + moving)
    communication = passes * _gathers(g, s, card, 2 + (s.recompute == FULL)) + _hooks(g, s, card)
    return Seconds(launch, products, moving, work + communication)


def _gathers(g: Sizes, s: Setting, card: Card, passes: int) -> float:
    if s.engine not in PASSES_OF_GATHER or s.world_size == 1 and not s.engine.endswith("offload"):
        return 0.0
    number = PASSES_OF_GATHER[s.engine] * g.layers * passes + 4
    size = passes * s.itemsize * g.num_parameters
    moved = size * (1 - 1 / s.world_size) / (card.link_gb_s * 1e9)
    from_host = size / s.world_size / (card.host_link_gb_s * 1e9) if s.engine.endswith("offload") else 0.0
    return max(number * card.gather_ms * 1e-3, moved) + from_host


def _hooks(g: Sizes, s: Setting, card: Card) -> float:
    if s.engine != "zero2" or s.world_size == 1:
        return 0.0
    tensors = 2 * len(s.targets) * g.layers if not s.is_full else 9 * g.layers
    return tensors * HOOK_MS_A_TENSOR * card.gather_ms * 1e-3


def update(g: Sizes, s: Setting, card: Card) -> Seconds:
    """Return the time of reducing the gradient, clipping and the optimizer's step, once a step."""
    trained = num_trained(g, s)
    size = trained_bytes(g, s)
    share = s.world_size if s.engine != "none" else 1
    moving = (4 + 2 * s.states + 3) * size / share / (card.bandwidth_gb_s * 1e9)
    ranks = s.world_size
    if rounding_bytes(g, s):
        moving += ROUNDED_TRAFFIC * trained / (card.bandwidth_gb_s * 1e9)
    reduced = 2 * (ranks - 1) / ranks * size / (card.link_gb_s * 1e9) if ranks > 1 else 0.0
    launch = 60 * card.launch_us * 1e-6
    return Seconds(launch, 0.0, moving, launch + moving + reduced)


def evaluation(g: Sizes, s: Setting, card: Card, load: Load) -> float:
    """Return the seconds of a forward pass over `load`."""
    passes = num_passes(s, load)
    launch = passes * g.layers * KERNELS_AGAIN[FULL] * card.launch_us * 1e-6
    ends = g.vocab * g.hidden * (1 if g.tied else 2)
    flops = 2 * (g.num_active_parameters - ends) * load.tokens + 2 * load.labels * g.vocab * g.hidden
    reads = passes * s.itemsize * g.num_active_parameters
    products = _products(card, flops, load.tokens / passes, reads)
    work = launch + products if card.is_host else max(launch, products)
    return work + passes * _gathers(g, s, card, 1)
