"""Gradients of the lightning indexer: of the sums that it chose, and of its distance from the attention it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simnpu.fused.chosen_keys import last_seen, samples_of, with_rope
from simnpu.fused.kernels import gradients, kernel

# One sample: where its queries are, how many, how many keys, and where those are.
Sample = tuple[slice | tuple[int, slice], int, int, slice | tuple[int, slice]]
SMALLEST = 1e-8  # below it a probability has no logarithm of its own


def packed(
    query: Tensor,
    key: Tensor,
    q_ends: Tensor | Sequence[int] | None,
    k_ends: Tensor | Sequence[int] | None,
    layout: str,
) -> list[Sample]:
    """The samples of a call without pages."""
    ends = [None if x is None else torch.as_tensor(x) for x in (q_ends, k_ends)]
    return list(samples_of(query, key, *ends, None, (layout, layout)))


def sees(sample: Sample, sparse_mode: int) -> Tensor:
    """How many keys each query sees, [S, 1]."""
    _, queries, keys, _ = sample
    return torch.tensor([last_seen(sparse_mode, row, queries, keys) for row in range(queries)])[:, None]


def index_scores(query: Tensor, key: Tensor, weights: Tensor, sample: Sample) -> Tensor:
    """The weighted sums of relu(q k) over the heads, [S, keys]."""
    place, _, _, at = sample
    products = torch.einsum("qnd,kd->qnk", query[place].float(), key[at][:, 0].float())
    return (products.relu() * weights[place].float()[..., None]).sum(1)


def chosen_of(indices: Tensor, sample: Sample, sparse_mode: int) -> tuple[Tensor, Tensor]:
    """The chosen keys of each query, [S, count], and which of them are keys that it sees."""
    found = indices[sample[0]].flatten(1).long()
    return found.clamp(min=0), (found >= 0) & (found < sees(sample, sparse_mode))


@kernel("npu_lightning_indexer_grad")
def lightning_indexer_grad(
    query: Tensor, key: Tensor, dy: Tensor, sparse_indices: Tensor, weights: Tensor,
    actual_seq_lengths_query: Tensor | None, actual_seq_lengths_key: Tensor | None, layout: str | None,
    sparse_mode: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of query, key and weights; dy is that of the sums of the chosen keys."""
    samples = packed(query, key, actual_seq_lengths_query, actual_seq_lengths_key, layout)
    chosen = [chosen_of(sparse_indices, sample, sparse_mode) for sample in samples]

    def values(q: Tensor, k: Tensor, w: Tensor) -> list[Tensor]:
        return [
            index_scores(q, k, w, sample).gather(1, places) * seen
            for sample, (places, seen) in zip(samples, chosen, strict=True)
        ]

    given = [dy[sample[0]].flatten(1).float() for sample in samples]
    return gradients(values, (query, key, weights), given)


def statistic(x: Tensor, place: slice | tuple[int, slice]) -> Tensor:
    """Maximum or sum of a softmax, [M, S, N / M], of one sample: [N, S]."""
    found = x[:, place] if isinstance(place, slice) else x[place[0]][:, place[1]]
    return found.transpose(1, 2).flatten(0, 1) if found.dim() == 3 else found


def attention_over_heads(
    query: Tensor, key: Tensor, maximum: Tensor, total: Tensor, scale: float, sample: Sample
) -> Tensor:
    """Mean over the heads of the probabilities that attention gives each key, [S, keys]."""
    place, _, _, at = sample
    q, k = query[place].float(), key[at].float()
    scores = torch.einsum("qnd,knd->nqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    return ((scores - statistic(maximum, place)[..., None]).exp() / statistic(total, place)[..., None]).mean(
        0
    )


def distance(
    inputs: tuple[Tensor, Tensor, Tensor],
    samples: list[Sample],
    compared: Callable[[Sample, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Gradients of the indexer's three inputs and the Kullback-Leibler distance of its softmax, [1].

    Args:
        compared: of a sample and its scores: the attention's probabilities, the indexer's, and the gradient of scores.
    """
    loss, given = torch.zeros(1), []
    for sample in samples:
        wanted, found, gradient = compared(sample, index_scores(*inputs, sample))
        logarithms = wanted.clamp(min=SMALLEST).log() - found.clamp(min=SMALLEST).log()
        loss += (wanted * logarithms).sum()
        given.append(gradient)
    return *gradients(lambda *leaves: [index_scores(*leaves, x) for x in samples], inputs, given), loss


@kernel("npu_dense_lightning_indexer_grad_kl_loss")
def dense_grad_kl_loss(
    query: Tensor, key: Tensor, query_index: Tensor, key_index: Tensor, weights: Tensor, softmax_max: Tensor,
    softmax_sum: Tensor, softmax_max_index: Tensor, softmax_sum_index: Tensor, scale_value: float,
    query_rope: Tensor | None, key_rope: Tensor | None, actual_seq_qlen: list[int] | None,
    actual_seq_klen: list[int] | None, layout: str | None, sparse_mode: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Over all keys; both softmaxes are given by their maxima and sums."""
    q, k = with_rope(query, query_rope), with_rope(key, key_rope)

    def compared(sample: Sample, scores: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.arange(sample[2]) >= sees(sample, sparse_mode)
        wanted = attention_over_heads(q, k, softmax_max, softmax_sum, scale_value, sample)
        top, total = (statistic(x, sample[0])[0, :, None] for x in (softmax_max_index, softmax_sum_index))
        wanted, found = (x.masked_fill(hidden, 0.0) for x in (wanted, (scores - top).exp() / total))
        return wanted, found, found - wanted

    samples = packed(query, key, actual_seq_qlen, actual_seq_klen, layout)
    return distance((query_index, key_index, weights), samples, compared)


@kernel("npu_sparse_lightning_indexer_grad_kl_loss")
def sparse_grad_kl_loss(
    query: Tensor, key: Tensor, query_index: Tensor, key_index: Tensor, weights: Tensor, sparse_indices: Tensor,
    softmax_max: Tensor, softmax_sum: Tensor, scale_value: float, query_rope: Tensor | None, key_rope: Tensor | None,
    actual_seq_qlen: list[int] | None, actual_seq_klen: list[int] | None, layout: str | None, sparse_mode: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Over the chosen keys, of which the indexer's softmax is taken here."""
    q, k = with_rope(query, query_rope), with_rope(key, key_rope)

    def compared(sample: Sample, scores: Tensor) -> tuple[Tensor, ...]:
        places, seen = chosen_of(sparse_indices, sample, sparse_mode)
        wanted = attention_over_heads(q, k, softmax_max, softmax_sum, scale_value, sample)
        wanted = wanted.gather(1, places).masked_fill(~seen, 0.0)
        found = scores.gather(1, places).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        return wanted, found, torch.zeros_like(scores).scatter_add_(1, places, found - wanted)

    samples = packed(query, key, actual_seq_qlen, actual_seq_klen, layout)
    return distance((query_index, key_index, weights), samples, compared)
