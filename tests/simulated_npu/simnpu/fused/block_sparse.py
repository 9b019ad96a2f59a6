"""Attention over blocks of keys: a mask says for each block of queries which blocks of keys it sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel

UNSEEN = -1e10  # a score; not infinity, so that the logarithm of a row that sees nothing is a number


def samples(x: Tensor, layout: str, lengths: list[int] | None) -> list[Tensor]:
    """[N, S, D] of each sample; `lengths` has the length of each, which TND needs."""
    check(layout in ("BNSD", "TND"), f"npu_block_sparse_attention: layout {layout!r} is not one of BNSD, TND")
    if layout == "TND":
        check(
            lengths is not None and sum(lengths) == x.shape[0],
            f"npu_block_sparse_attention: lengths {lengths} do not make up {x.shape[0]} tokens",
        )
        return [part.transpose(0, 1) for part in x.split(lengths)]
    return [row[:, :length] for row, length in zip(x, lengths or [x.shape[2]] * len(x), strict=True)]


def joined(parts: list[Tensor], layout: str, size: int) -> Tensor:
    """The opposite of `samples`; in BNSD zeros follow a sample's last token."""
    if layout == "TND":
        return torch.cat([part.transpose(0, 1) for part in parts])
    return torch.stack([F.pad(part, (0, 0, 0, size - part.shape[1])) for part in parts])


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block: list[int], layouts: tuple[str, str],
    lengths: tuple[list[int] | None, list[int] | None], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result, and the logarithm of the sum of exponentials [..., 1] in fp32; heads of keys may be shared."""
    outs, sums = [], []
    keys, values = (samples(x, layouts[1], lengths[1]) for x in (key, value))
    for q, k, v, chosen in zip(samples(query, layouts[0], lengths[0]), keys, values, mask, strict=True):
        seen = chosen.bool().repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
        seen = seen[:, : q.shape[1], : k.shape[1]]
        k, v = (x.float().repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
        scores = (q.float() @ k.transpose(1, 2) * scale).masked_fill(~seen, UNSEEN)
        outs.append((scores.softmax(-1) * seen @ v).to(query.dtype))
        sums.append(scores.logsumexp(-1, keepdim=True))
    size = query.shape[-2]
    return joined(outs, layouts[0], size), joined(sums, layouts[0], size)


@kernel("npu_block_sparse_attention")
def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, block_sparse_mask: Tensor, block_shape: list[int], q_input_layout: str,
    kv_input_layout: str, num_key_value_heads: int, scale_value: float, actual_seq_lengths: list[int] | None,
    actual_seq_lengths_kv: list[int] | None, softmax_lse_flag: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Without the flag the second result has its shape, and zeros."""
    heads = key.shape[1]
    check(heads == num_key_value_heads, f"num_key_value_heads is {num_key_value_heads}, key has {heads}")
    lengths = (actual_seq_lengths, actual_seq_lengths_kv)
    out, sums = attention(
        query, key, value, block_sparse_mask, block_shape, (q_input_layout, kv_input_layout), lengths, scale_value
    )  # fmt: skip
    return out, sums if softmax_lse_flag else torch.zeros_like(sums)


@kernel("npu_block_sparse_attention_backward")
def block_sparse_attention_backward(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, attention_out: Tensor, softmax_lse: Tensor,
    block_sparse_mask: Tensor, block_shape: list[int] | None, actual_seq_lengths: list[int] | None,
    actual_seq_lengths_kv: list[int] | None, q_input_layout: str, kv_input_layout: str, num_key_value_heads: int,
    scale_value: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    layouts, lengths = (q_input_layout, kv_input_layout), (actual_seq_lengths, actual_seq_lengths_kv)

    def again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(
            q, k, v, block_sparse_mask, block_shape or [128, 128], layouts, lengths, scale_value
        )[0]

    return gradients(again, (query, key, value), [d_out])
