"""Whole layers of a network as one operator: feed-forward, multi-head attention, attention of BERT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.activations import fast_gelu
from simnpu.fused.kernels import NotSimulated, check, gradients, kernel
from simnpu.fused.quantisation import integers, plain_weight, quantised_product
from simnpu.fused.random import keep_bits, next_seed, packed, unpacked

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "fastgelu": fast_gelu, "silu": F.silu}


def of_expert(values: Tensor | None, expert: int | None) -> Tensor | None:
    return values if values is None or expert is None else values[expert]


def quantised_ffn(
    x: Tensor, weights: tuple[Tensor, Tensor], biases: tuple[Tensor | None, Tensor | None], activate: object,
    scale: Tensor, offset: Tensor | None, scales: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """Integers in, and between the products; float16 out of each product, as on the device."""
    hidden = activate(quantised_product(x, weights[0], scales[0].flatten(), None, biases[0]).half())
    hidden = hidden.float() * scale.float()
    hidden = integers(hidden if offset is None else hidden + offset.float(), 1)
    return quantised_product(hidden, weights[1], scales[1].flatten(), None, biases[1])


def plain_ffn(
    x: Tensor, weights: tuple[Tensor, Tensor], biases: tuple[Tensor | None, Tensor | None], activate: object
) -> Tensor:
    """Sums in float32, rounded to x's type after each product and after the activation."""
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        product = x.float() @ weight.float()
        found = (product if bias is None else product + bias.float()).to(x.dtype)
        x = activate(found) if number == 0 else found
    return x


@kernel("npu_ffn")
def ffn(
    x: Tensor, weight1: Tensor, weight2: Tensor, activation: str, expert_tokens: list[int] | None,
    expert_tokens_index: list[int] | None, bias1: Tensor | None, bias2: Tensor | None, scale: Tensor | None,
    offset: Tensor | None, deq_scale1: Tensor | None, deq_scale2: Tensor | None, antiquant_scale1: Tensor | None,
    antiquant_scale2: Tensor | None, antiquant_offset1: Tensor | None, antiquant_offset2: Tensor | None,
    output_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """activation(x W1 + b1) W2 + b2; experts take so many rows each, or rows up to their index."""
    if activation not in ACTIVATIONS:
        raise NotSimulated(f"npu_ffn: the simulator has no activation {activation!r}")
    check(
        not (expert_tokens and expert_tokens_index),
        "expert_tokens and expert_tokens_index exclude each other",
    )
    lengths = expert_tokens
    if expert_tokens_index:
        lengths = [b - a for a, b in zip([0, *expert_tokens_index], expert_tokens_index, strict=False)]
    if antiquant_scale1 is not None:
        weight1 = plain_weight(weight1, antiquant_scale1, antiquant_offset1, 0)
        weight2 = plain_weight(weight2, antiquant_scale2, antiquant_offset2, 0)
    rows = x.flatten(0, -2)
    parts = rows.split(lengths) if lengths else [rows]
    found = []
    for number, part in enumerate(parts):
        expert = number if lengths else None
        weights = of_expert(weight1, expert), of_expert(weight2, expert)
        biases = of_expert(bias1, expert), of_expert(bias2, expert)
        if scale is None:
            found.append(plain_ffn(part, weights, biases, ACTIVATIONS[activation]))
            continue
        found.append(quantised_ffn(
            part, weights, biases, ACTIVATIONS[activation], of_expert(scale, expert), of_expert(offset, expert),
            (of_expert(deq_scale1, expert), of_expert(deq_scale2, expert)),
        ).to(output_dtype or torch.float16))  # fmt: skip
    return torch.cat(found).view(*x.shape[:-1], -1)


def heads_of(x: Tensor, weight: Tensor, bias: Tensor | None, length: int, heads: int) -> Tensor:
    """[B, N, S, D] of a projection of rows."""
    return F.linear(x, weight, bias).view(-1, length, heads, weight.shape[0] // heads).transpose(1, 2)


def multi_head(
    query: Tensor, key: Tensor, value: Tensor, weights: list[Tensor], biases: list[Tensor | None], mask: Tensor | None,
    bits: Tensor | None, heads: int, lengths: tuple[int, int], drop: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The result, the three projections as heads, weights before and after dropout, and the context."""
    source, target = lengths
    q = heads_of(query, weights[0], biases[0], target, heads)
    q = q * q.shape[-1] ** -0.5
    k = heads_of(key, weights[1], biases[1], source, heads)
    v = heads_of(value, weights[2], biases[2], source, heads)
    scores = q @ k.transpose(-1, -2)
    attention = (scores if mask is None else scores + mask).float().softmax(-1)
    kept = attention.to(query.dtype)
    if bits is not None:
        kept = kept * bits.view(kept.shape) / (1 - drop)
    context = (kept @ v).transpose(1, 2).flatten(0, 1).flatten(1)
    return F.linear(context, weights[3], biases[3]), q, k, v, attention, kept, context


@kernel("npu_multi_head_attention")
def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor,
    attn_mask: Tensor, out_proj_weight: Tensor, query_bias: Tensor | None, key_bias: Tensor | None,
    value_bias: Tensor | None, out_proj_bias: Tensor | None, dropout_mask: Tensor | None, attn_head_num: int,
    attn_dim_per_head: int, src_len: int, tgt_len: int, dropout_prob: float, softmax_use_float: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The mask is added to the scores; a dropout mask is packed bits, and drawn where none is given."""
    bits, count = None, query.shape[0] * attn_head_num * src_len
    if dropout_prob > 0:
        given = dropout_mask is not None
        bits = unpacked(dropout_mask, count) if given else keep_bits(count, dropout_prob, *next_seed())
    weights = [query_weight, key_weight, value_weight, out_proj_weight]
    biases = [query_bias, key_bias, value_bias, out_proj_bias]
    out, *rest = multi_head(
        query, key, value, weights, biases, attn_mask, bits, attn_head_num, (src_len, tgt_len), dropout_prob
    )
    mask = packed(torch.ones(count, dtype=torch.bool) if bits is None else bits)
    return out, mask, *(x.contiguous() for x in rest)


def linear_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the input, the weight and the bias of a linear layer, from rows."""
    return grad @ weight, grad.t() @ x, grad.sum(0)


@kernel("npu_multi_head_attention_backward")
def multi_head_attention_backward(
    query: Tensor, key: Tensor, value: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor,
    out_proj_weight: Tensor, query_bias: Tensor | None, key_bias: Tensor | None, value_bias: Tensor | None,
    out_proj_bias: Tensor | None, query_res: Tensor, key_res: Tensor, value_res: Tensor, attn_scores: Tensor,
    attn_res: Tensor, context: Tensor, y_grad: Tensor, dropout_mask: Tensor, attn_head_num: int,
    attn_dim_per_head: int, src_len: int, tgt_len: int, dropout_prob: float, softmax_use_float: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the four weights, of query, key and value, then of the four biases, from what forward kept."""
    q, k, v, attention, kept = (x.float() for x in (query_res, key_res, value_res, attn_scores, attn_res))
    on_context, *of_output = linear_gradients(y_grad.float(), context.float(), out_proj_weight.float())
    upstream = on_context.view(-1, tgt_len, attn_head_num, v.shape[-1]).transpose(1, 2)
    inner = upstream @ v.transpose(-1, -2)
    if dropout_prob > 0:
        inner = inner * unpacked(dropout_mask, attention.numel()).view(inner.shape) / (1 - dropout_prob)
    scores = attention * (inner - (inner * attention).sum(-1, keepdim=True))
    heads = scores @ k * k.shape[-1] ** -0.5, scores.transpose(-1, -2) @ q, kept.transpose(-1, -2) @ upstream
    inputs = (query, query_weight), (key, key_weight), (value, value_weight)
    found = [
        linear_gradients(head.transpose(1, 2).flatten(0, 1).flatten(1), x.float(), weight.float())
        for head, (x, weight) in zip(heads, inputs, strict=True)
    ]
    by_kind = list(zip(*found, strict=True))
    whole = (*by_kind[1], of_output[0], *by_kind[0], *by_kind[2], of_output[1])
    return tuple(grad.to(query.dtype) for grad in whole)


def bert_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k + mask) of [B, N, S, D], and v."""
    return ((q @ k.transpose(-1, -2)).float() * scale + mask.float()).softmax(-1).to(q.dtype), v


@kernel("npu_fused_attention_score_fwd")
def fused_attention_score_fwd(
    query_layer: Tensor,
    key_layer: Tensor,
    value_layer: Tensor,
    attention_mask: Tensor,
    scale: float,
    keep_prob: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The context as rows [B * S, N * D], the weights before dropout, and a byte for each: 1 where it is kept."""
    weights, v = bert_attention(query_layer, key_layer, value_layer, attention_mask, scale)
    bits = torch.ones(weights.numel(), dtype=torch.bool)
    if keep_prob < 1:
        bits = keep_bits(weights.numel(), 1 - keep_prob, *next_seed())
    kept = weights * bits.view(weights.shape) / keep_prob
    context = (kept @ v).transpose(1, 2).flatten(0, 1).flatten(1)
    return context.to(v.dtype), weights, bits.to(torch.uint8)


@kernel("npu_fused_attention_score_grad", "npu_fused_attention_score_backward")
def fused_attention_score_grad(
    grad_output: Tensor, softmax_output: Tensor, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor,
    mask: Tensor, scale: float, keep_prob: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value, from the weights and the bytes that forward returned."""
    weights = softmax_output.float()
    bits = mask.view(weights.shape) / keep_prob
    samples, heads, length, size = query_layer.shape
    upstream = grad_output.view(samples, length, heads, size).transpose(1, 2).float()
    grad_value = (weights * bits).transpose(-1, -2) @ upstream
    inner = (upstream @ value_layer.float().transpose(-1, -2)) * bits
    scores = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
    found = scores @ key_layer.float(), scores.transpose(-1, -2) @ query_layer.float(), grad_value
    return tuple(grad.to(query_layer.dtype) for grad in found)


@kernel("npu_fused_attention_layernorm_qkv_fwd")
def fused_attention_layernorm_qkv_fwd(
    x: Tensor, kernel_query: Tensor, kernel_key: Tensor, kernel_value: Tensor, gamma: Tensor, beta: Tensor,
    bias_query: Tensor | None, bias_key: Tensor | None, bias_value: Tensor | None, seq_len: int, num_heads: int,
    eps: float,
) -> list[Tensor]:  # fmt: skip
    """Norm of rows, its three projections as heads, and mean and variance of each row."""
    variance, mean = torch.var_mean(x.float(), -1, correction=0)
    norm = F.layer_norm(x.float(), gamma.shape, gamma.float(), beta.float(), eps).to(x.dtype)
    kernels = ((kernel_query, bias_query), (kernel_key, bias_key), (kernel_value, bias_value))
    heads = [heads_of(norm, weight.t(), bias, seq_len, num_heads).contiguous() for weight, bias in kernels]
    return [norm, *heads, mean.to(x.dtype), variance.to(x.dtype)]


@kernel("npu_fused_attention_qkv_grad")
def fused_attention_qkv_grad(
    grad_output_query: Tensor, grad_output_key: Tensor, grad_output_value: Tensor, query_kernel: Tensor,
    key_kernel: Tensor, value_kernel: Tensor, hidden_states: Tensor, grad_output_ln: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the rows, to which that of the norm is added, of the three matrices and of the three biases."""
    upstream = (grad_output_query, grad_output_key, grad_output_value)
    rows = [grad.transpose(1, 2).flatten(0, 1).flatten(1).float() for grad in upstream]
    matrices = (query_kernel, key_kernel, value_kernel)
    hidden = sum((row @ w.float().t() for row, w in zip(rows, matrices, strict=True)), grad_output_ln.float())
    weights = [hidden_states.float().t() @ row for row in rows]
    return [part.to(hidden_states.dtype) for part in (hidden, *weights, *(row.sum(0) for row in rows))]


@kernel("npu_layernorm_grad")
def layernorm_grad(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; the statistics of the rows are taken again."""

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(x, normalized_shape, gamma, beta)

    ones = torch.ones(normalized_shape)
    given = (ones if weight is None else weight, torch.zeros_like(ones) if bias is None else bias)
    found = gradients(forward, tuple(x.float() for x in (input, *given)), (grad_out.float(),))
    return tuple(grad.to(input.dtype) for grad in found)
