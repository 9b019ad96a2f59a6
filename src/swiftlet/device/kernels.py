"""The operators that a device may have fused, by name, and their plain versions, which run on every device.

Names of axes: T tokens of all packed samples, Q query heads, K key and value heads, D width of a head; B, N, S batch,
heads and length of one padded tensor.

* attention(query_QTD, key_KTD, value_KTD, cu_seqlens, rules) -> out_TQD: see `AttentionRules`
* rms_norm(x, weight_D, eps) -> like x
* rotary(x_BNSD, cos_BSD, sin_BSD) -> like x: the halves of D are rotated.
* swiglu(gate, up) -> silu(gate) * up
* dropout(x, p, seed, *, out, is_added) -> out: x with the dropped elements set to zero (nothing is scaled), written
  into `out`, or into x itself, or added to what `out` holds. The seed and the shape decide which are dropped. One that
  is a `RowDropout` can also draw each row of x by a number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from swiftlet.log import info

Kernel = Callable[..., Tensor]
QUERY_BLOCK = 512  # queries of a window that are taken at once, or so many as it has keys


class AttentionRules(NamedTuple):
    """What attention computes beside its products.

    Token i of a sample sees token j of the same sample with 0 <= i - j < `window`; `softcap` bounds the scores; sinks
    are scores that take part in the softmax of each head and carry no value; `dropout_p` is of the weights.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_Q: Tensor | None = None
    dropout_p: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether scores are neither bounded nor joined by sinks, so that torch's own operator computes them."""
        return not self.softcap and self.sinks_Q is None


PackedAttention = Callable[[Tensor, Tensor, Tensor, list[int], AttentionRules], Tensor]


@dataclass(frozen=True)
class SwigluParts:
    """A SwiGLU whose forward and backward arithmetic can also be called alone, without a graph.

    `backward(grad, gate, up)` returns the gradients of gate and up, and may overwrite `grad`.
    """

    apply: Kernel
    forward: Kernel
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return self.apply(gate, up)


class Rows(NamedTuple):
    """What decides over a mask row by row: a number a row (64 bits, on the device), and that of the layer."""

    keys_T: Tensor
    layer: int


class DeviceBoundaries(list[int]):
    """Boundaries of samples that the host does not know: a recorded pass reads them from memory of the device.

    As a list they say one sample of all tokens. Args: the boundaries (32 bits); the longest sample that there may be.
    """

    def __init__(self, on_device: Tensor, longest: int, num_tokens: int) -> None:
        super().__init__([0, num_tokens])
        self.on_device = on_device
        self.longest = longest


@dataclass(frozen=True)
class DeviceAttention:
    """An attention that also takes `DeviceBoundaries`, for tensors that `is_fit` says yes to."""

    apply: PackedAttention
    is_fit: Callable[[torch.dtype, int], bool]

    def __call__(self, *inputs: Any) -> Tensor:
        """Return the attention of what `apply` takes."""
        return self.apply(*inputs)


@dataclass(frozen=True)
class RowDropout:
    """A dropout that can draw by rows: `by_rows(x_TI, p, rows, *, out, is_added)` is else as the operator itself."""

    apply: Kernel
    by_rows: Kernel

    def __call__(
        self, x: Tensor, p: float, seed: int, *, out: Tensor | None = None, is_added: bool = False
    ) -> Tensor:
        """Drop elements of x by one number for all of them."""
        return self.apply(x, p, seed, out=out, is_added=is_added)


def seen(keys: range, queries: range, window: int | None, device: torch.device) -> Tensor:
    """Return [queries, keys]: which of these keys of a sample each of these queries sees."""
    distance = torch.arange(queries.start, queries.stop, device=device)[:, None]
    distance = distance - torch.arange(keys.start, keys.stop, device=device)
    return (distance >= 0) & (distance < (window or queries.stop))


def attend_by_definition(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rules: AttentionRules
) -> Tensor:
    """Return softmax(mask(cap(scale q k)), sinks) v for [..., Q, tokens, D]; the softmax in fp32.

    `mask` says which keys a query sees, in place of the window of `rules`.
    """
    scores = query @ key.transpose(-1, -2) * rules.scale
    if rules.softcap:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if rules.sinks_Q is not None:
        sinks = rules.sinks_Q.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[-2]]
    return functional.dropout(weights, rules.dropout_p, training=rules.dropout_p > 0) @ value


def _repeated(tensor_KLD: Tensor, num_heads: int) -> Tensor:
    """Return keys or values with those of a group once for each of its query heads."""
    groups = num_heads // tensor_KLD.shape[0]
    return tensor_KLD if groups == 1 else tensor_KLD.repeat_interleave(groups, dim=0)


def _by_samples(
    attend: Callable[[Tensor, Tensor, Tensor, AttentionRules], Tensor],
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Tensor:
    """Return the attention [T, Q, D] of samples, each by itself."""
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    samples = zip(*(tensor.split(lengths, dim=1) for tensor in (query_QTD, key_KTD, value_KTD)), strict=True)
    outputs = []
    for query, key, value in samples:
        key, value = _repeated(key, len(query)), _repeated(value, len(query))
        outputs.append(attend(query, key, value, rules).transpose(0, 1))
    return torch.cat(outputs)


def reference_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Tensor:
    """Return attention by its definition, sample by sample."""

    def attend(query: Tensor, key: Tensor, value: Tensor, rules: AttentionRules) -> Tensor:
        tokens = range(query.shape[1])
        mask = seen(tokens, tokens, rules.window, query.device)
        return attend_by_definition(query, key, value, mask, rules)

    return _by_samples(attend, query_QTD, key_KTD, value_KTD, cu_seqlens, rules)


def plain_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Tensor:
    """Return attention by torch's own operator, sample by sample; what it does not know, by its definition.

    Queries that see a window are taken in blocks, so that there is no mask of all keys.
    """
    return _by_samples(_attend, query_QTD, key_KTD, value_KTD, cu_seqlens, rules)


def left_to_plain(query_QTD: Tensor, value_KTD: Tensor, rules: AttentionRules) -> str | None:
    """Return why no fused attention computes this call, None where one may."""
    if not rules.is_plain:
        return "scores are bounded (softcap) or joined by sinks"
    if value_KTD.shape[-1] != query_QTD.shape[-1]:
        return f"values are {value_KTD.shape[-1]} wide and keys {query_QTD.shape[-1]}"
    return None


@cache
def say_plain(reason: str) -> None:
    """Log once that calls of attention do not run fused, and why."""
    info(f"attention runs by torch's plain operator, sample by sample: {reason}")


def _attend(query: Tensor, key: Tensor, value: Tensor, rules: AttentionRules) -> Tensor:
    length = query.shape[1]
    window = min(rules.window or length, length)
    if rules.is_plain and window == length:
        return _sdpa(query, key, value, None, rules)
    attend, size = _sdpa if rules.is_plain else attend_by_definition, max(window, QUERY_BLOCK)
    parts = []
    for start in range(0, length, size):
        first, end = max(0, start - window + 1), min(start + size, length)
        mask = seen(range(first, end), range(start, end), window, query.device)
        parts.append(attend(query[:, start:end], key[:, first:end], value[:, first:end], mask, rules))
    return torch.cat(parts, dim=1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: AttentionRules) -> Tensor:
    return functional.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        dropout_p=rules.dropout_p,
        is_causal=mask is None,
        scale=rules.scale,
    )[0]


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps), the mean in fp32. Source: arXiv:1910.07467, eq. 4."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * normed.to(x.dtype)


def rotary(x_BNSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """Return x with the pairs (i, i + D/2) rotated. Source: arXiv:2104.09864, eq. 34, the pairs taken by halves."""
    first, second = x_BNSD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BNSD * cos_BSD[:, None] + turned * sin_BSD[:, None]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up. Source: arXiv:2002.05202, eq. 6."""
    return functional.silu(gate) * up


def dropout(x: Tensor, p: float, seed: int, *, out: Tensor | None = None, is_added: bool = False) -> Tensor:
    """Drop elements by the generator of the tensor's device, one random number an element."""
    generator = torch.Generator(x.device).manual_seed(seed)
    is_dropped = torch.rand(x.shape, device=x.device, generator=generator) < p
    if out is None:
        return x.masked_fill_(is_dropped, 0)
    kept = x.masked_fill(is_dropped, 0)
    return out.add_(kept) if is_added else out.copy_(kept)


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix product in a type; a GPU sums it in fp32 anyway, and then need not round it first."""
    if (
        left.device.type == "cuda"
        and left.dtype in (torch.bfloat16, torch.float16)
        and dtype == torch.float32
    ):
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right).to(dtype)


PLAIN: Mapping[str, Kernel] = {
    "attention": plain_attention,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "swiglu": swiglu,
    "dropout": dropout,
}
# By definition: what a fused operator is compared with, in fp32 on the CPU.
REFERENCE: Mapping[str, Kernel] = {**PLAIN, "attention": reference_attention}
