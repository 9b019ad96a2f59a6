"""What the head and its cross entropy make, from sizes alone; see models/cross_entropy.py, models/frozen_head.py.

Shapes: T tokens of the largest micro-batch, N its labels, H hidden, V vocabulary.
"""

from __future__ import annotations

import math

from swiftlet.plan.setting import FP32, Setting, trains_head
from swiftlet.plan.sizes import Sizes

HOST_CHUNK, HOST_ROWS, HOST_WORDS, DEVICE_CHUNK, CHUNK_ROWS = 16 * 2**20, 512, 2048, 384 * 2**20, 32
ANY_HEAD = 4  # logits, their logarithms, and the gradients of both: such a head has chunks of a fourth


def head_chunk(g: Sizes, s: Setting) -> tuple[int, int]:
    """Return the most positions and words of logits that exist at once."""
    if s.is_host and not (trains_head(s) or s.has_any_head):
        return min(s.num_labels, HOST_ROWS), min(g.vocab, HOST_WORDS)
    budget = max(HOST_CHUNK, HOST_ROWS * g.vocab * FP32) if s.is_host else DEVICE_CHUNK
    most = max(CHUNK_ROWS, budget // (g.vocab * FP32 * (ANY_HEAD if s.has_any_head else 1)))
    return math.ceil(s.num_labels / max(1, math.ceil(s.num_labels / most))), g.vocab


def head_bytes(g: Sizes, s: Setting, *, keeps_states: bool) -> float:
    """Return the bytes that the head makes beside what is kept: a chunk of logits, and gradients of its weight.

    Args:
        keeps_states: the last norm keeps the hidden states anyway.
    """
    e, (rows, words) = s.itemsize, head_chunk(g, s)
    labelled = e * s.num_labels * g.hidden
    states = labelled + (0 if keeps_states else e * s.tokens * g.hidden)
    raw = e * rows * words
    capped = 2 * FP32 * rows * words * g.has_capped_logits  # the capped ones, and the cap's slope
    if s.has_any_head:
        return states + capped + _any_head(g, s)
    wide = capped + (0 if e == FP32 else FP32 * rows * words)
    forward = states + raw + max(wide, 3 * FP32 * rows * g.hidden)
    if not trains_head(s):
        return forward
    weight = g.vocab * g.hidden
    of_weight = states + raw + e * weight + e * rows * g.hidden
    backward = FP32 * weight + (e * weight if e != FP32 else 0) + labelled
    return FP32 * weight + max(forward, of_weight, backward)


def _any_head(g: Sizes, s: Setting) -> float:
    """Return the bytes of a head with adapters, or trained beside them, which autograd goes through chunk by chunk."""
    e, (rows, words), weight = s.itemsize, head_chunk(g, s), g.vocab * g.hidden
    chunk = rows * words
    loss = ANY_HEAD * FP32 * chunk
    if not trains_head(s):
        return loss
    # The gradients of two chunks are there at once, beside their sum; at the end the sum, scaled, and in its type.
    of_weight = (FP32 + e) * chunk + e * weight * min(2, math.ceil(s.num_labels / max(1, rows)))
    scaled = FP32 * weight + (e * weight if e != FP32 else 0)
    return FP32 * weight + max(loss, of_weight, scaled)
