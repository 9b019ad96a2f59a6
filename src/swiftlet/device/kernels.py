"""The operators that a device may have fused, by name, and their plain versions, which run on every device.

Names of axes: T tokens of all packed samples, Q query heads, K key and value heads, D width of a head; B, N, S batch,
heads and length of one padded tensor.

* attention(query_QTD, key_KTD, value_KTD, cu_seqlens, *, scale, window, softcap, sinks_Q, dropout_p) -> out_TQD:
  token i of a sample sees token j of the same sample with 0 <= i - j < window; softcap bounds the scores; sinks are
  scores that take part in the softmax and carry no value.
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
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Kernel = Callable[..., Tensor]


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

    apply: Kernel
    is_fit: Callable[[torch.dtype, int], bool]

    def __call__(self, *inputs: Any, **rules: Any) -> Tensor:
        """Return the attention of what `apply` takes."""
        return self.apply(*inputs, **rules)


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


def seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return which of `length` keys each query sees: a square of True and False."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < (window or length))


def reference_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Return attention by its definition, sample by sample: softmax(mask(cap(scale q k))) v."""
    group = query_QTD.shape[0] // key_KTD.shape[0]
    parts = []
    for start, end in pairwise(cu_seqlens):
        query, key, value = (x[:, start:end] for x in (query_QTD, key_KTD, value_KTD))
        scores = (query @ key.repeat_interleave(group, dim=0).transpose(1, 2)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen(end - start, window, query.device), float("-inf"))
        if sinks_Q is not None:
            sinks = sinks_Q.to(scores.dtype)[:, None, None].expand(-1, end - start, 1)
            scores = torch.cat([scores, sinks], dim=2)
        weights = torch.softmax(scores.float(), dim=-1).to(value.dtype)[..., : end - start]
        weights = functional.dropout(weights, dropout_p, training=dropout_p > 0)
        parts.append((weights @ value.repeat_interleave(group, dim=0)).transpose(0, 1))
    return torch.cat(parts)


def plain_attention(
    query_QTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    cu_seqlens: Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Return attention by torch's own operator, one call a sample; what it does not know, by its definition."""
    if softcap or sinks_Q is not None:
        more: dict[str, Any] = {"softcap": softcap, "sinks_Q": sinks_Q, "dropout_p": dropout_p}
        return reference_attention(
            query_QTD, key_KTD, value_KTD, cu_seqlens, scale=scale, window=window, **more
        )
    is_grouped = query_QTD.shape[0] != key_KTD.shape[0]
    parts = []
    for start, end in pairwise(cu_seqlens):
        query, key, value = (x[None, :, start:end] for x in (query_QTD, key_KTD, value_KTD))
        is_cut = window is not None and window < end - start
        mask = seen(end - start, window, query.device) if is_cut else None
        out = functional.scaled_dot_product_attention(
            query, key, value, mask, dropout_p, is_causal=mask is None, scale=scale, enable_gqa=is_grouped
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


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
