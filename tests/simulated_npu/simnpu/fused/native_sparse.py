"""Native sparse attention: over windows of the keys, over the blocks that weigh most there, and one query over pages.

Shapes: T tokens of all samples (packed by cumulative lengths), N heads, M heads of key and value, D a head's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.inference import pieces
from simnpu.fused.kernels import NotSimulated, check, gradients, kernel


def windows(ends: list[int] | None, whole: int, size: int, stride: int) -> list[int]:
    """Where windows that lie within one sample begin."""
    found = []
    for start, end in pieces(list(ends or [whole])):
        found += range(start, end - size + 1, stride)
    return found


@kernel("npu_nsa_compress")
def nsa_compress(
    input: Tensor, weight: Tensor, compress_block_size: int, compress_stride: int, actual_seq_len: list[int] | None
) -> Tensor:  # fmt: skip
    """Weighted sums over windows of tokens [T, N, D]; the weight is [window, N]."""
    starts = windows(actual_seq_len, input.shape[0], compress_block_size, compress_stride)
    if not starts:
        return input.new_zeros(0, *input.shape[1:])
    index = torch.tensor(starts)[:, None] + torch.arange(compress_block_size)
    return (input.float()[index] * weight.float()[..., None]).sum(1).to(input.dtype)


@kernel("npu_nsa_compress_grad")
def nsa_compress_grad(
    grad: Tensor, input: Tensor, weight: Tensor, compress_block_size: int, compress_stride: int,
    actual_seq_len: list[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    def forward(tokens: Tensor, factors: Tensor) -> Tensor:
        return nsa_compress(tokens, factors, compress_block_size, compress_stride, actual_seq_len)

    return gradients(forward, (input, weight), (grad,))


def rows_of_pages(cache: Tensor, table: Tensor, length: int, heads: int) -> Tensor:
    """The first rows [length, heads, D] of a sample in a cache of blocks [blocks, size, ...]."""
    size = cache.shape[1]
    used = table[: (length + size - 1) // size].long()
    return cache[used].flatten(0, 1)[:length].reshape(length, heads, -1)


@kernel("npu_nsa_compress_infer.cache")
def nsa_compress_infer(
    input: Tensor, weight: Tensor, slot_mapping: Tensor, compress_block_size: int, compress_stride: int,
    page_block_size: int, block_table: Tensor | None, actual_seq_len: list[int] | None, cache: Tensor,
) -> Tensor:  # fmt: skip
    """Writes into the cache the last window of each sample whose last token just filled one."""
    for sample, length in enumerate(actual_seq_len or []):
        if length < compress_block_size or (length - compress_block_size) % compress_stride:
            continue
        rows = rows_of_pages(input, block_table[sample], length, input.shape[-2])[-compress_block_size:]
        cache[int(slot_mapping[sample])] = (rows.float() * weight.float()[..., None]).sum(0).to(cache.dtype)
    return cache


def softmaxed(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, maximum and sum along the last dim, which is kept."""
    maximum = scores.amax(-1, keepdim=True)
    parts = (scores - maximum).exp()
    total = parts.sum(-1, keepdim=True)
    return parts / total, maximum, total


def importance(weights: Tensor, blocks: int, ratio: int, width: int) -> Tensor:
    """What blocks of the keys weigh [..., blocks], from weights of windows of them [..., windows].

    A block holds `ratio` strides and a window `width`; each pair that meets counts once.
    """
    found = weights.new_zeros(*weights.shape[:-1], blocks)
    for block in range(blocks):
        for first in range(ratio):
            for second in range(width):
                window = ratio * (block + 1) - first - second
                if 0 <= window < weights.shape[-1]:
                    found[..., block] += weights[..., window]
    return found


def eight(values: list[Tensor]) -> Tensor:
    """Statistics [T, N, 8] of samples [N, S, 1], as the device repeats them."""
    return torch.cat([value.transpose(0, 1) for value in values]).expand(-1, -1, 8).contiguous()


@kernel("npu_nsa_compress_attention")
def nsa_compress_attention(
    query: Tensor, key: Tensor, value: Tensor, scale_value: float, head_num: int, compress_block_size: int,
    compress_stride: int, select_block_size: int, select_block_count: int, topk_mask: Tensor | None,
    atten_mask: Tensor | None, actual_seq_qlen: list[int] | None, actual_cmp_seq_kvlen: list[int] | None,
    actual_sel_seq_kvlen: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention over windows of the keys, and the blocks that weigh most [T, M, count]; statistics [T, N, 8].

    A block of `topk_mask` is chosen before all others.
    """
    heads, key_heads = query.shape[1], key.shape[1]
    check(heads == head_num, f"npu_nsa_compress_attention: head_num {head_num} is not that of query, {heads}")
    ratio, width = select_block_size // compress_stride, compress_block_size // compress_stride
    found: list[tuple[Tensor, ...]] = []
    ends = zip(
        pieces(actual_seq_qlen), pieces(actual_cmp_seq_kvlen), pieces(actual_sel_seq_kvlen), strict=True
    )
    for (a, b), (c, d), (e, f) in ends:
        q = query[a:b].float().transpose(0, 1)
        k, v = (x[c:d].float().transpose(0, 1).repeat_interleave(heads // key_heads, 0) for x in (key, value))
        scores = q @ k.transpose(1, 2) * scale_value
        if atten_mask is not None:
            scores = scores - 40000.0 * atten_mask[: b - a, : d - c].bool()
        weights, maximum, total = softmaxed(scores)
        weighed = importance(weights, f - e, ratio, width).unflatten(0, (key_heads, -1)).sum(1)
        if topk_mask is not None:
            weighed = weighed.masked_fill(topk_mask[: b - a, : f - e].bool(), torch.inf)
        best = weighed.sort(dim=-1, descending=True, stable=True).indices[..., :select_block_count]
        found.append(((weights @ v).transpose(0, 1), best.transpose(0, 1).int(), maximum, total))
    out, best, maximum, total = zip(*found, strict=True)
    return torch.cat(out).to(query.dtype), torch.cat(best), eight(list(maximum)), eight(list(total))


@kernel("npu_nsa_compress_attention_infer")
def nsa_compress_attention_infer(
    query: Tensor, key: Tensor, value: Tensor, scale_value: float, head_num: int, key_value_head_num: int,
    select_block_size: int, select_block_count: int, page_block_size: int, compress_block_size: int,
    compress_stride: int, layout: str, block_table: Tensor | None, actual_seq_qlen: list[int] | None,
    actual_cmp_seq_kvlen: list[int] | None, actual_sel_seq_kvlen: list[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same for one query [N, D] of each sample over pages; the first block and the last two are always chosen."""
    if layout != "TND":
        raise NotSimulated(f"npu_nsa_compress_attention_infer: the simulator has no layout {layout!r}")
    ratio, width = select_block_size // compress_stride, compress_block_size // compress_stride
    out, chosen = [], []
    for sample, length in enumerate(actual_cmp_seq_kvlen or []):
        group = head_num // key_value_head_num
        k, v = (
            rows_of_pages(x, block_table[sample], length, key_value_head_num)
            .float()
            .repeat_interleave(group, 1)
            for x in (key, value)
        )
        weights = softmaxed(torch.einsum("nd,snd->ns", query[sample].float(), k) * scale_value)[0]
        out.append(torch.einsum("ns,snd->nd", weights, v))
        blocks = -(-((length - 1) * compress_stride + compress_block_size) // select_block_size)
        weighed = importance(weights, blocks, ratio, width).unflatten(0, (key_value_head_num, group)).sum(1)
        weighed[:, [0, blocks - 2, blocks - 1]] = torch.inf
        chosen.append(
            weighed.sort(dim=-1, descending=True, stable=True).indices[:, :select_block_count].int()
        )
    return torch.stack(out).to(query.dtype), torch.stack(chosen)


def positions(blocks: Tensor, size: int, length: int) -> Tensor:
    """Keys of chosen blocks in their order; entries below zero are none."""
    places = blocks[blocks >= 0].long()[:, None] * size + torch.arange(size)
    return places[places < length]


def selected(
    query: Tensor, key: Tensor, value: Tensor, topk_indices: Tensor, scale: float, size: int,
    q_ends: list[int] | None, k_ends: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention [T, N, D] of each query over its blocks, and both statistics [T, N, 1]."""
    heads = query.shape[1] // key.shape[1]
    q_ends, k_ends = q_ends or [query.shape[0]], k_ends or [key.shape[0]]
    found: list[tuple[Tensor, ...]] = []
    for (a, b), (c, d) in zip(pieces(q_ends), pieces(k_ends), strict=True):
        for token in range(a, b):
            parts = []
            for head in range(key.shape[1]):
                places = c + positions(topk_indices[token, head], size, d - c)
                q = query[token, head * heads : (head + 1) * heads].float()
                weights, *statistics = softmaxed(q @ key[places, head].float().t() * scale)
                parts.append((weights @ value[places, head].float(), *statistics))
            found.append(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    out, maximum, total = (torch.stack(part) for part in zip(*found, strict=True))
    return out.to(query.dtype), maximum, total


@kernel("npu_nsa_select_attention")
def nsa_select_attention(
    query: Tensor, key: Tensor, value: Tensor, topk_indices: Tensor, scale_value: float, head_num: int,
    select_block_size: int, select_block_count: int, actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    how = (topk_indices, scale_value, select_block_size, actual_seq_qlen, actual_seq_kvlen)
    out, maximum, total = selected(query, key, value, *how)
    return out, *(x.expand(-1, -1, 8).contiguous() for x in (maximum, total))


@kernel("npu_nsa_select_attention_grad")
def nsa_select_attention_grad(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, attention_out: Tensor, softmax_max: Tensor,
    softmax_sum: Tensor, topk_indices: Tensor, scale_value: float, head_num: int, select_block_size: int,
    select_block_count: int, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    how = (topk_indices, scale_value, select_block_size, actual_seq_qlen, actual_seq_kvlen)
    return gradients(lambda q, k, v: selected(q, k, v, *how)[0], (query, key, value), (grad,))


@kernel("npu_nsa_select_attention_infer")
def nsa_select_attention_infer(
    query: Tensor, key: Tensor, value: Tensor, topk_indices: Tensor, scale_value: float, head_num: int,
    key_value_head_num: int, select_block_size: int, select_block_count: int, page_block_size: int, layout: str,
    block_table: Tensor | None, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None,
) -> Tensor:  # fmt: skip
    """One query of each sample, in the layout that is asked for, over blocks of keys in pages."""
    check(layout in ("BSH", "BSND", "TND"), f"npu_nsa_select_attention_infer: layout {layout!r} is not known")
    rows = query.reshape(query.shape[0], head_num, -1)
    found = []
    for sample, length in enumerate(actual_seq_kvlen or []):
        k, v = (rows_of_pages(x, block_table[sample], length, key_value_head_num) for x in (key, value))
        chosen = topk_indices.view(query.shape[0], key_value_head_num, -1)[sample : sample + 1]
        found.append(
            selected(rows[sample : sample + 1], k, v, chosen, scale_value, select_block_size, None, None)[0]
        )
    out = torch.cat(found)
    shapes = {"BSH": (len(out), 1, -1), "BSND": (len(out), 1, head_num, out.shape[-1]), "TND": out.shape}
    return out.reshape(shapes[layout])
