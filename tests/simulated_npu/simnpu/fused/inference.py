"""Attention of inference: prompts, single tokens, both in one; caches may be paged. No gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from simnpu.fused.attention_maths import ALL, DEFAULT, LAYOUTS, Setting, attend, join_heads, split_heads
from simnpu.fused.kernels import NotSimulated, check, kernel, libraries


def heads_of(x: Tensor, heads: int, layout: str) -> Tensor:
    """[B, N, S, D]; a packed layout is one sample."""
    return x.transpose(0, 1)[None] if layout == "TND" else split_heads(x, heads, layout)


def paged(cache: Tensor, table: Tensor, heads: int) -> Tensor:
    """[B, N, S, D] of a cache of blocks [blocks, size, H] or [blocks, N, size, D]."""
    rows = cache[table.long().clamp_min(0)]  # [B, blocks of a sample, ...]; entries below 0 are not used
    if cache.dim() == 3:
        return rows.flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2)
    return rows.transpose(1, 2).flatten(2, 3)


def lengths_of(given: list[int] | None, samples: int, whole: int) -> list[int]:
    """A length for each sample; one counts for all."""
    found = [int(length) for length in given] if given else [whole]
    return (found * samples)[:samples] if len(found) == 1 else found[:samples]


def pieces(ends: list[int]) -> Iterator[tuple[int, int]]:
    yield from zip([0, *ends], ends, strict=False)


def mask_of(mask: Tensor | None, sample: int, queries: int, keys: int) -> Tensor | None:
    """[S, K] of one sample, from (S, K), (B, K) with one query, (1 or B, S, K) or (1 or B, 1, S, K)."""
    if mask is None:
        return None
    if mask.dim() == 2 and queries == 1 and mask.shape[0] != 1:
        mask = mask[:, None]
    while mask.dim() > 2:
        mask = mask[min(sample, mask.shape[0] - 1)]
        sample = 0
    return mask[:queries, :keys]


def infer(
    q: Tensor, k: Tensor, v: Tensor, setting: Setting, key_heads: int, q_lengths: list[int] | None,
    k_lengths: list[int] | None, table: Tensor | None, q_rope: Tensor | None, k_rope: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention in the layout that is asked for, and log(sum(exp(scores))) in [B, N, S, 1] or [T, N, 1]."""
    layout, _, out_layout = setting.layout.partition("_")
    out_layout = out_layout or layout
    if layout not in LAYOUTS or out_layout not in LAYOUTS:
        raise NotSimulated(f"the simulator has no input_layout {setting.layout!r} for inference")
    check(setting.head_num > 0, f"numHeads should be greater than 0, but got {setting.head_num}")
    key_heads = key_heads or setting.head_num
    queries = heads_of(q, setting.head_num, layout)
    keys, values = (
        paged(x, table, key_heads) if table is not None else heads_of(x, key_heads, layout) for x in (k, v)
    )
    if q_rope is not None:
        queries = torch.cat((queries, heads_of(q_rope, setting.head_num, layout)), -1)
        rope = paged(k_rope, table, key_heads) if table is not None else heads_of(k_rope, key_heads, layout)
        keys = torch.cat((keys, rope), -1)
    samples = queries.shape[0]
    if layout == "TND":
        check(bool(q_lengths and k_lengths), "TND needs the cumulative lengths of queries and keys")
        where = [(0, a, b, c, d) for (a, b), (c, d) in zip(pieces(q_lengths), pieces(k_lengths), strict=True)]
    else:
        q_found = lengths_of(q_lengths if queries.shape[2] > 1 else None, samples, queries.shape[2])
        k_found = lengths_of(k_lengths, samples, keys.shape[2])
        where = [(i, 0, q_found[i], 0, k_found[i]) for i in range(samples)]
    out = torch.zeros(*queries.shape[:3], values.shape[3], dtype=q.dtype)
    lse = torch.full((*queries.shape[:3], 1), float("inf"))
    for number, (row, a, b, c, d) in enumerate(where):
        one = (
            x[row : row + 1, :, low:high] for x, low, high in ((queries, a, b), (keys, c, d), (values, c, d))
        )
        own = replace(setting, pse=None if setting.pse is None else setting.pse[..., : b - a, : d - c])
        if own.pse is not None and own.pse.shape[0] > 1:
            own.pse = own.pse[row : row + 1]
        if setting.sparse_mode in (DEFAULT, ALL):
            own.mask = mask_of(setting.mask, number, b - a, d - c)
        found, maximum, total = attend(*one, own, number, None)
        out[row, :, a:b], lse[row, :, a:b] = found[0], (maximum + total.log())[0]
    if out_layout == "TND":
        return out[0].transpose(0, 1).contiguous(), lse[0].transpose(0, 1).contiguous()
    return join_heads(out, out_layout).contiguous(), lse


@kernel("npu_prompt_flash_attention")
def prompt_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, atten_mask: Tensor | None, pse_shift: Tensor | None,
    actual_seq_lengths: list[int] | None, num_heads: int, scale_value: float, pre_tokens: int, next_tokens: int,
    input_layout: str, num_key_value_heads: int, actual_seq_lengths_kv: list[int] | None, sparse_mode: int,
) -> Tensor:  # fmt: skip
    setting = Setting(
        num_heads, input_layout, atten_mask, scale_value, pre=pre_tokens, next=next_tokens, sparse_mode=sparse_mode,
        pse=pse_shift, pse_type=0,
    )  # fmt: skip
    return infer(
        query, key, value, setting, num_key_value_heads, actual_seq_lengths, actual_seq_lengths_kv, None, None, None
    )[0]  # fmt: skip


@kernel("npu_incre_flash_attention")
def incre_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, atten_mask: Tensor | None, pse_shift: Tensor | None,
    actual_seq_lengths: list[int] | None, block_table: Tensor | None, num_heads: int, scale_value: float,
    input_layout: str, num_key_value_heads: int, block_size: int,
) -> Tensor:  # fmt: skip
    """One query for each sample; the lengths are those of the keys."""
    setting = Setting(num_heads, input_layout, atten_mask, scale_value, pse=pse_shift, pse_type=0)
    return infer(
        query, key, value, setting, num_key_value_heads, None, actual_seq_lengths, block_table, None, None
    )[0]  # fmt: skip


def with_lse(found: tuple[Tensor, Tensor], wanted: bool) -> tuple[Tensor, Tensor]:
    return found[0], found[1] if wanted else torch.zeros(1)


@kernel("npu_fused_infer_attention_score", "npu_fused_infer_attention_score.out")
def fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, pse_shift: Tensor | None, atten_mask: Tensor | None,
    actual_seq_lengths: list[int] | None, actual_seq_lengths_kv: list[int] | None, block_table: Tensor | None,
    query_rope: Tensor | None, key_rope: Tensor | None, num_heads: int, scale: float, pre_tokens: int,
    next_tokens: int, input_layout: str, num_key_value_heads: int, sparse_mode: int, block_size: int,
    softmax_lse_flag: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    setting = Setting(
        num_heads, input_layout, atten_mask, scale, pre=pre_tokens, next=next_tokens, sparse_mode=sparse_mode,
        pse=pse_shift, pse_type=0,
    )  # fmt: skip
    return with_lse(infer(
        query, key, value, setting, num_key_value_heads, actual_seq_lengths, actual_seq_lengths_kv, block_table,
        query_rope, key_rope,
    ), softmax_lse_flag)  # fmt: skip


@kernel("npu_fused_infer_attention_score_v2", "npu_fused_infer_attention_score_v2.out")
def fused_infer_attention_score_v2(
    query: Tensor, key: Tensor, value: Tensor, query_rope: Tensor | None, key_rope: Tensor | None,
    pse_shift: Tensor | None, atten_mask: Tensor | None, actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None, block_table: Tensor | None, learnable_sink: Tensor | None,
    num_query_heads: int, num_key_value_heads: int, softmax_scale: float, pre_tokens: int, next_tokens: int,
    input_layout: str, sparse_mode: int, block_size: int, return_softmax_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    setting = Setting(
        num_query_heads, input_layout, atten_mask, softmax_scale, pre=pre_tokens, next=next_tokens,
        sparse_mode=sparse_mode, pse=pse_shift, pse_type=0, sink=learnable_sink,
    )  # fmt: skip
    return with_lse(infer(
        query, key, value, setting, num_key_value_heads, actual_seq_qlen, actual_seq_kvlen, block_table, query_rope,
        key_rope,
    ), return_softmax_lse)  # fmt: skip


def places(queries: Tensor, width: int, num_statistics: int, layout: str) -> tuple[Tensor, Tensor]:
    """Of a result as wide as this and of the statistics of each row, for queries [B, N, S, D]."""
    out, statistics = (
        queries.new_empty(*queries.shape[:3], width),
        torch.empty(*queries.shape[:3], num_statistics),
    )
    if layout == "TND":
        return out[0].transpose(0, 1).contiguous(), statistics[0].transpose(0, 1).contiguous()
    return join_heads(out, layout).contiguous(), statistics


# Captured graphs ask for the results' place before they run the variants with `out`.
@kernel("_npu_fused_infer_attention_score_infer_output")
def infer_output(
    query: Tensor, value: Tensor, input_layout: str, block_table: Tensor | None, num_heads: int,
    num_key_value_heads: int, softmax_lse_flag: bool, query_rope: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    layout, _, out_layout = input_layout.partition("_")
    queries = heads_of(query, num_heads, layout)
    packed_heads = layout in ("BSH", "SBH") or (block_table is not None and value.dim() == 3)
    width = value.shape[-1] // (num_key_value_heads or num_heads) if packed_heads else value.shape[-1]
    return with_lse(places(queries, width, 1, out_layout or layout), softmax_lse_flag)


@kernel("_npu_fused_infer_attention_score_v2_infer_output")
def infer_output_v2(
    query: Tensor, value: Tensor, input_layout: str, block_table: Tensor | None, num_query_heads: int,
    num_key_value_heads: int, return_softmax_lse: bool, query_rope: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return infer_output(
        query, value, input_layout, block_table, num_query_heads, num_key_value_heads, return_softmax_lse, query_rope
    )  # fmt: skip


@kernel("_npu_fusion_attention_v3_infer_output")
def infer_output_of_training(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the result and of both statistics, which are repeated eight times."""
    queries = heads_of(query, head_num, input_layout)
    packed = input_layout in ("BSH", "SBH")
    width = value.shape[-1] * queries.shape[-1] // key.shape[-1] if packed else value.shape[-1]
    out, statistic = places(queries, width, 8, input_layout)
    return out, statistic, statistic.clone()


@kernel("_npu_fusion_attention_grad_v3_infer_output")
def infer_output_of_gradients(
    query: Tensor, key: Tensor, value: Tensor, pse: Tensor | None, sink: Tensor | None
) -> tuple[Tensor, ...]:
    """Places of the gradients, empty for what was not given."""
    return tuple(
        torch.empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype)
        for x in (query, key, value, pse, sink)
    )


def workspace(query: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Kernels here take their own memory of the host."""
    return torch.empty(1, dtype=torch.uint8, device=query.device)


for version in (
    "fused_infer_attention_score",
    "fused_infer_attention_score_v2",
    "fusion_attention_v3",
    "fusion_attention_grad_v3",
):
    libraries["npu"].impl(f"_npu_{version}_get_max_workspace", workspace, "PrivateUse1")


@kernel("npu_attention_update")
def attention_update(
    lse: list[Tensor], local_out: list[Tensor], update_type: int
) -> tuple[Tensor, Tensor | None]:
    """One result [N, H] of several over parts of the keys, each with its log of sums [N]; type 1 returns theirs too."""
    sums, parts = torch.stack(list(lse)).float(), torch.stack([part.float() for part in local_out])
    out = (sums.softmax(0)[..., None] * parts).sum(0)
    return out.to(local_out[0].dtype), sums.logsumexp(0) if update_type == 1 else None
