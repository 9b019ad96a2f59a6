"""Attention in plain maths: layouts, masks and one softmax(q k) v.

Shapes: B batch, N heads of the query, M heads of key and value (N is a multiple), S queries, K keys, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check

LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
NO_BOUND = 2147483647
COMPRESSED_MASK = (2048, 2048)
# values of sparse_mode
DEFAULT, ALL, LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL, BAND, PREFIX, COMPRESSED_PREFIX = range(7)
ADD_THEN_SCALE, SCALE_THEN_ADD = 1, 0  # values of pse_type


@dataclass
class Setting:
    """What an attention call says beside its tensors; the names are those of npu_fusion_attention."""

    head_num: int
    layout: str
    mask: Tensor | None = None
    scale: float = 1.0
    keep_prob: float = 1.0
    pre: int = NO_BOUND
    next: int = NO_BOUND
    sparse_mode: int = DEFAULT
    prefix: list[int] | None = None
    q_ends: list[int] | None = None
    k_ends: list[int] | None = None
    pse: Tensor | None = None
    pse_type: int = ADD_THEN_SCALE
    sink: Tensor | None = None
    keep: Tensor | None = None  # dropout: one flat boolean for every score

    def validate(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Refuses what the operator documentation rules out."""
        name = "npu_fusion_attention"
        check(
            self.layout in LAYOUTS, f"{name}: input_layout {self.layout!r} is not one of {', '.join(LAYOUTS)}"
        )
        check(
            q.dtype == k.dtype == v.dtype and q.dtype in FLOATS,
            f"{name}: query, key and value must share a float type",
        )
        check(0 < self.keep_prob <= 1, f"{name}: keep_prob {self.keep_prob} must be in (0, 1]")
        check(
            self.pse_type in (ADD_THEN_SCALE, SCALE_THEN_ADD),
            f"{name}: the simulator has no pse_type {self.pse_type}",
        )
        if self.sparse_mode not in range(COMPRESSED_PREFIX + 1):
            raise NotSimulated(f"{name}: the simulator has no sparse_mode {self.sparse_mode}")
        if self.mask is not None:
            check(
                self.mask.dtype in (torch.bool, torch.uint8),
                f"{name}: atten_mask must be bool or uint8, got {self.mask.dtype}",
            )
        if self.sparse_mode in (LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL, BAND):
            shape = None if self.mask is None else tuple(self.mask.shape)
            check(
                shape == COMPRESSED_MASK,
                f"{name}: sparse_mode {self.sparse_mode} wants an atten_mask of 2048x2048, got {shape}",
            )
        if self.layout == "TND":
            check(
                bool(self.q_ends and self.k_ends), f"{name}: TND needs actual_seq_qlen and actual_seq_kvlen"
            )
            check(
                self.q_ends[-1] <= q.shape[0] and self.k_ends[-1] <= k.shape[0],
                f"{name}: cumulative lengths exceed T",
            )
            check(
                len(self.q_ends) == len(self.k_ends),
                f"{name}: actual_seq_qlen and actual_seq_kvlen differ in length",
            )


def split_heads(x: Tensor, heads: int, layout: str) -> Tensor:
    """[B, N, S, D] from any padded layout."""
    if layout == "BSH":
        return x.unflatten(2, (heads, -1)).transpose(1, 2)
    if layout == "SBH":
        return x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
    return x.transpose(1, 2) if layout == "BSND" else x


def join_heads(x: Tensor, layout: str) -> Tensor:
    """The layout from [B, N, S, D]."""
    if layout == "BSH":
        return x.transpose(1, 2).flatten(2)
    if layout == "SBH":
        return x.permute(2, 0, 1, 3).flatten(2)
    return x.transpose(1, 2) if layout == "BSND" else x


def unseen(setting: Setting, queries: int, keys: int, sample: int) -> Tensor | None:
    """[..., S, K], True where a query must not see a key, or None."""
    if setting.mask is None and setting.sparse_mode in (DEFAULT, ALL):
        return None
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    shift = keys - queries  # the last query sees the last key
    if setting.sparse_mode == LEFT_UP_CAUSAL:
        return j > i
    if setting.sparse_mode == RIGHT_DOWN_CAUSAL:
        return j > i + shift
    if setting.sparse_mode == BAND:
        return (j > i + shift + setting.next) | (j < i + shift - setting.pre)
    if setting.sparse_mode in (PREFIX, COMPRESSED_PREFIX):
        return (j > i + shift) & (j >= setting.prefix[sample])
    mask = setting.mask.bool()
    if setting.layout == "TND" and mask.shape[-2:] != (queries, keys):
        mask = mask[..., :queries, :keys]
    if setting.sparse_mode == ALL:
        return mask
    return mask | (j > i + setting.next) | (j < i - setting.pre)


def attend(
    q: Tensor, k: Tensor, v: Tensor, setting: Setting, sample: int, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, N, S, D], k and v [B, M, K, D] -> attention, maximum and sum of the softmax, the last two [B, N, S, 1]."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q.float() @ k.float().transpose(-1, -2)
    if setting.pse is not None and setting.pse_type == ADD_THEN_SCALE:
        scores = (scores + setting.pse.float()) * setting.scale
    else:
        scores = scores * setting.scale
        if setting.pse is not None:
            scores = scores + setting.pse.float()
    hidden = unseen(setting, q.shape[2], k.shape[2], sample)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    maximum = scores.amax(-1, keepdim=True)
    if setting.sink is not None:
        maximum = torch.maximum(maximum, setting.sink.float()[None, :, None, None])
    weights = (scores - maximum).exp()
    if hidden is not None:
        weights = weights.masked_fill(hidden, 0)  # a row that sees nothing gives zeros
    total = weights.sum(-1, keepdim=True)
    if setting.sink is not None:
        total = total + (setting.sink.float()[None, :, None, None] - maximum).exp()
    weights = weights / total.clamp_min(torch.finfo(torch.float32).tiny)
    if keep is not None:
        weights = weights * keep.view(weights.shape) / setting.keep_prob
    return (weights @ v.float()).to(q.dtype), maximum.detach(), total.detach()


def samples(setting: Setting) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of every packed sample among the queries and among the keys."""
    q_start = k_start = 0
    for q_end, k_end in zip(setting.q_ends, setting.k_ends, strict=True):
        yield q_start, q_end, k_start, k_end
        q_start, k_start = q_end, k_end


def score_count(q: Tensor, k: Tensor, setting: Setting) -> int:
    """How many scores there are: one dropout decision each."""
    if setting.layout == "TND":
        return setting.head_num * sum((b - a) * (d - c) for a, b, c, d in samples(setting))
    heads = split_heads(q, setting.head_num, setting.layout)
    keys = {"BSH": k.shape[1], "SBH": k.shape[0], "BSND": k.shape[1], "BNSD": k.shape[2]}[setting.layout]
    return heads.shape[0] * heads.shape[1] * heads.shape[2] * keys


def packed_attention(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """TND: q [T, N, D]; every sample by itself."""
    parts, used = [], 0
    for number, (a, b, c, d) in enumerate(samples(setting)):
        keep = None
        if setting.keep is not None:
            count = q.shape[1] * (b - a) * (d - c)
            keep, used = setting.keep[used : used + count], used + count
        one = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
        parts.append([x[0].transpose(0, 1) for x in attend(*one, setting, number, keep)])
    out, maximum, total = (torch.cat(column) for column in zip(*parts, strict=True))
    rest = q.shape[0] - out.shape[0]  # rows behind the last sample are padding
    if rest:
        out, maximum, total = (torch.cat((x, x.new_zeros(rest, *x.shape[1:]))) for x in (out, maximum, total))
    return out, maximum, total


def attention(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in the layout of q; maximum and sum of the softmax, eight copies in the last dim as on the device."""
    setting.validate(q, k, v)
    if setting.layout == "TND":
        out, maximum, total = packed_attention(q, k, v, setting)
    else:
        size = q.shape[-1] // setting.head_num if setting.layout in ("BSH", "SBH") else q.shape[-1]
        queries = split_heads(q, setting.head_num, setting.layout)
        check(queries.shape[1] == setting.head_num, "npu_fusion_attention: head_num does not match query")
        keys, values = (split_heads(x, x.shape[-1] // size, setting.layout) for x in (k, v))
        out, maximum, total = attend(queries, keys, values, setting, 0, setting.keep)
        out = join_heads(out, setting.layout)
    return out.contiguous(), maximum.expand(*maximum.shape[:-1], 8), total.expand(*total.shape[:-1], 8)
