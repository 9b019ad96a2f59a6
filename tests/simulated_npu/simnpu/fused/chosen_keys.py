"""Attention over single keys that were chosen: the lightning indexer, which chooses, and attention over its choice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check, gradients, kernel
from simnpu.fused.native_sparse import positions, rows_of_pages, softmaxed

ALL, CAUSAL = 0, 3  # values of sparse_mode; with the latter the last query sees the last key


def samples_of(
    query: Tensor, key: Tensor, q_lengths: Tensor | None, k_lengths: Tensor | None, table: Tensor | None,
    layouts: tuple[str, str],
) -> Iterator[tuple[slice | tuple[int, slice], int, int, Tensor | tuple[int, slice]]]:  # fmt: skip
    """Of each sample: where its queries are, how many, how many keys, and where those are."""
    for layout, known in zip(layouts, (("BSND", "TND"), ("BSND", "TND", "PA_BSND")), strict=True):
        check(layout in known, f"layout {layout!r} is not one of {', '.join(known)}")
    q_given, k_given = ([] if x is None else x.tolist() for x in (q_lengths, k_lengths))
    count = len(q_given) if layouts[0] == "TND" else query.shape[0]
    q_start = k_start = 0
    for sample in range(count):
        if layouts[0] == "TND":
            queries, q_place = q_given[sample] - q_start, slice(q_start, q_given[sample])
            q_start = q_given[sample]
        else:
            queries = q_given[sample] if q_given else query.shape[1]
            q_place = (sample, slice(0, queries))
        if layouts[1] == "TND":
            keys, k_place = k_given[sample] - k_start, slice(k_start, k_given[sample])
            k_start = k_given[sample]
        elif layouts[1] == "BSND":
            keys = k_given[sample] if k_given else key.shape[1]
            k_place = (sample, slice(0, keys))
        else:
            keys, k_place = k_given[sample], table[sample]
        yield q_place, queries, keys, k_place


def keys_at(key: Tensor, place: Tensor | tuple[int, slice], length: int) -> Tensor:
    """[S, M, D] of one sample."""
    if isinstance(place, Tensor):
        return rows_of_pages(key, place, length, key.shape[2])
    return key[place]


def last_seen(sparse_mode: int, query: int, queries: int, keys: int) -> int:
    """How many keys a query sees."""
    if sparse_mode not in (ALL, CAUSAL):
        raise NotSimulated(f"the simulator has no sparse_mode {sparse_mode} for chosen keys")
    return keys if sparse_mode == ALL else max(keys - queries + query + 1, 0)


@kernel("npu_lightning_indexer")
def lightning_indexer(
    query: Tensor, key: Tensor, weights: Tensor, actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_key: Tensor | None, block_table: Tensor | None, layout_query: str, layout_key: str,
    sparse_count: int, sparse_mode: int, return_value: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The keys of the largest weighted sums of relu(q k), by falling sum, -1 where there are fewer; and the sums."""
    heads = key.shape[2] if layout_key != "TND" else key.shape[1]
    check(heads == 1, f"npu_lightning_indexer: key has {heads} heads, it must have 1")
    shape = (*query.shape[:-2], 1, sparse_count)
    best, values = torch.full(shape, -1, dtype=torch.int32), torch.full(shape, -torch.inf)
    lengths = (actual_seq_lengths_query, actual_seq_lengths_key, block_table)
    for place, queries, keys, at in samples_of(query, key, *lengths, (layout_query, layout_key)):
        k = keys_at(key, at, keys)[:, 0].float()
        scores = (query[place].float() @ k.t()).relu() * weights[place].float().reshape(queries, -1, 1)
        for number, row in enumerate(scores.sum(1)):
            row = row[: last_seen(sparse_mode, number, queries, keys)]
            found = row.sort(descending=True, stable=True)
            count = min(sparse_count, len(row))
            best[place][number, 0, :count] = found.indices[:count].int()
            values[place][number, 0, :count] = found.values[:count]
    return best, values.to(query.dtype) if return_value else torch.empty(0, dtype=query.dtype)


def over_chosen(
    q: Tensor, k: Tensor, v: Tensor, sparse_indices: Tensor, scale: float, size: int, sparse_mode: int,
    samples: list[tuple],
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:  # fmt: skip
    """Attention of each query over its blocks, in the layout of q, and maximum and sum of each [M, N / M, 1]."""
    out, statistics = torch.zeros(*q.shape[:-1], v.shape[-1]), []
    for place, queries, keys, at in samples:
        own_k, own_v = (keys_at(x, at, keys).float() for x in (k, v))
        rows = []
        for number in range(queries):
            seen, parts = last_seen(sparse_mode, number, queries, keys), []
            for head, mine in enumerate(q[place][number].float().chunk(own_k.shape[1])):
                places = positions(sparse_indices[place][number, head], size, seen)
                if not len(places):
                    empty = torch.zeros(len(mine), 1)
                    parts.append((torch.zeros(len(mine), v.shape[-1]), empty, empty))
                    continue
                weights, maximum, total = softmaxed(mine @ own_k[places, head].t() * scale)
                parts.append((weights @ own_v[places, head], maximum, total))
            rows.append(torch.cat([part[0] for part in parts]))
            statistics.append(tuple(torch.stack([part[i] for part in parts]) for i in (1, 2)))
        if rows:
            whole = torch.zeros_like(out)
            whole[place] = torch.stack(rows)
            out = out + whole
    return out, statistics


def with_rope(x: Tensor, rope: Tensor | None) -> Tensor:
    return x if rope is None else torch.cat((x, rope), -1)


@kernel("npu_sparse_flash_attention")
def sparse_flash_attention(
    query: Tensor, key: Tensor, value: Tensor | None, sparse_indices: Tensor, scale_value: float,
    block_table: Tensor | None, actual_seq_lengths_query: Tensor | None, actual_seq_lengths_kv: Tensor | None,
    query_rope: Tensor | None, key_rope: Tensor | None, sparse_block_size: int, layout_query: str, layout_kv: str,
    sparse_mode: int, attention_mode: int, return_softmax_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention over chosen blocks of keys; maximum and sum [M, T, N / M], where they are wanted, of packed queries."""
    check(
        attention_mode in (0, 2),
        f"npu_sparse_flash_attention: attention_mode {attention_mode} must be 0 or 2",
    )
    lengths = (actual_seq_lengths_query, actual_seq_lengths_kv, block_table)
    samples = list(samples_of(query, key, *lengths, (layout_query, layout_kv)))
    q, k = with_rope(query, query_rope), with_rope(key, key_rope)
    v = key if value is None else value
    out, statistics = over_chosen(
        q, k, v, sparse_indices, scale_value, sparse_block_size, sparse_mode, samples
    )
    maximum, total = torch.empty(0), torch.empty(0)
    if return_softmax_lse:
        maximum, total = (
            torch.stack(part).squeeze(-1).transpose(0, 1) for part in zip(*statistics, strict=True)
        )
        if layout_query == "BSND":
            maximum, total = (x.unflatten(1, query.shape[:2]).transpose(0, 1) for x in (maximum, total))
    return out.to(query.dtype), maximum.contiguous(), total.contiguous()


@kernel("npu_sparse_flash_attention_grad")
def sparse_flash_attention_grad(
    query: Tensor, key: Tensor, value: Tensor | None, sparse_indices: Tensor, d_out: Tensor, out: Tensor,
    softmax_max: Tensor, softmax_sum: Tensor, scale_value: float, sparse_block_size: int, query_rope: Tensor | None,
    key_rope: Tensor | None, actual_seq_qlen: Tensor | None, actual_seq_kvlen: Tensor | None, layout: str | None,
    sparse_mode: int | None, attention_mode: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of query, key, value and both rotary parts; without a value, the key's is that of both its uses."""
    layouts = (layout or "BSND",) * 2
    samples = list(samples_of(query, key, actual_seq_qlen, actual_seq_kvlen, None, layouts))
    inputs = [x for x in (query, key, value, query_rope, key_rope) if x is not None]

    def forward(q: Tensor, k: Tensor, *more: Tensor) -> Tensor:
        left = list(more)
        v = k if value is None else left.pop(0)
        q, k = (x if not left else torch.cat((x, left.pop(0)), -1) for x in (q, k))
        how = (sparse_indices, scale_value, sparse_block_size, CAUSAL if sparse_mode is None else sparse_mode)
        return over_chosen(q, k, v, *how, samples)[0].to(query.dtype)

    found = list(gradients(forward, inputs, (d_out,)))
    return tuple(
        torch.empty(0) if x is None else found.pop(0) for x in (query, key, value, query_rope, key_rope)
    )


@kernel("npu_dense_lightning_indexer_softmax_lse")
def dense_lightning_indexer_softmax_lse(
    query_index: Tensor, key_index: Tensor, weights: Tensor, actual_seq_qlen: list[int] | None,
    actual_seq_klen: list[int] | None, layout: str | None, sparse_mode: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The largest of each query's scores and the sum of their exponentials: [B, 1, S], of packed samples [1, T]."""
    q_ends, k_ends = (None if x is None else torch.tensor(x) for x in (actual_seq_qlen, actual_seq_klen))
    found = []
    for q_place, queries, keys, k_place in samples_of(
        query_index, key_index, q_ends, k_ends, None, (layout, layout)
    ):
        products = torch.einsum("qnd,kd->qnk", query_index[q_place].float(), key_index[k_place][:, 0].float())
        scores = (products.relu() * weights[q_place].float()[..., None]).sum(1)
        seen = torch.tensor([last_seen(sparse_mode, row, queries, keys) for row in range(queries)])
        scores = scores.masked_fill(torch.arange(keys) >= seen[:, None], -torch.inf)
        top = scores.amax(-1)
        found.append((top, (scores - top[:, None]).exp().sum(-1)))
    tops, sums = zip(*found, strict=True)
    if layout == "TND":
        return torch.cat(tops)[None], torch.cat(sums)[None]
    return torch.stack(tops)[:, None], torch.stack(sums)[:, None]
