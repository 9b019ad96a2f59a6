"""npu_fusion_attention in its three versions, forward and backward. Backward recomputes: nothing S x S is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.attention_maths import Setting, attention, score_count
from simnpu.fused.kernels import NotSimulated, gradients, kernel
from simnpu.fused.random import keep_bits, next_seed, unpacked

HOST_LENGTHS = ("actual_seq_qlen", "actual_seq_kvlen", "seed", "offset")


def numbers(value: Tensor | list[int] | None) -> list[int] | None:
    return None if value is None else [int(item) for item in value]


def forward(
    q: Tensor, k: Tensor, v: Tensor, setting: Setting, mask: Tensor | None, seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Runs attention; with dropout the mask is the given one, else it is drawn from the card's generator."""
    count = score_count(q, k, setting)
    if setting.keep_prob < 1 and mask is not None:
        setting.keep = unpacked(mask, count)
    elif setting.keep_prob < 1:
        seed, offset = next_seed()
        setting.keep = keep_bits(count, 1 - setting.keep_prob, seed, offset)
    out, maximum, total = attention(q, k, v, setting)
    return (
        out,
        maximum,
        total,
        torch.empty(0, dtype=q.dtype),
        seed,
        offset,
        count if setting.keep_prob < 1 else 0,
    )


def backward(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor, setting: Setting, seed: int, offset: int
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, pse and sink; the last two are empty where there was none."""
    if setting.keep_prob < 1:
        setting.keep = keep_bits(score_count(q, k, setting), 1 - setting.keep_prob, seed, offset)
    extra = [x for x in (setting.pse, setting.sink) if x is not None]

    def again(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        given = list(more)
        setting.pse = given.pop(0) if setting.pse is not None else None
        setting.sink = given.pop(0) if setting.sink is not None else None
        return attention(q, k, v, setting)[0]

    has_pse, has_sink = setting.pse is not None, setting.sink is not None
    found = list(gradients(again, (q, k, v, *extra), [dy]))
    pse = found[3] if has_pse else torch.empty(0)
    return *found[:3], pse, found[-1] if has_sink else torch.empty(0)


@kernel("npu_fusion_attention")
def fusion_attention(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, scale: float, keep_prob: float, pre_tockens: int, next_tockens: int,
    prefix: list[int] | None, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None,
    sparse_mode: int, softmax_layout: str, sink: Tensor | None, dropout_mask: Tensor | None, seed: int, offset: int,
) -> tuple:  # fmt: skip
    """Schema of the wheel; `softmax_layout` orders the statistics, which are [T, N, 8] here in either order."""
    setting = Setting(
        head_num, input_layout, atten_mask, scale, keep_prob, pre_tockens, next_tockens, sparse_mode, prefix,
        actual_seq_qlen, actual_seq_kvlen, pse, sink=sink,
    )  # fmt: skip
    return forward(query, key, value, setting, dropout_mask, seed, offset)


@kernel("npu_fusion_attention_grad")
def fusion_attention_grad(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, softmax_max: Tensor | None, softmax_sum: Tensor | None, softmax_in: Tensor | None,
    attention_in: Tensor | None, scale_value: float, keep_prob: float, pre_tockens: int, next_tockens: int, seed: int,
    offset: int, numels: int, prefix: list[int] | None, actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None, sparse_mode: int, softmax_layout: str, sink: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    setting = Setting(
        head_num, input_layout, atten_mask, scale_value, keep_prob, pre_tockens, next_tockens, sparse_mode, prefix,
        actual_seq_qlen, actual_seq_kvlen, pse, sink=sink,
    )  # fmt: skip
    return backward(query, key, value, dy, setting, seed, offset)


@kernel("npu_fusion_attention_v2")
def fusion_attention_v2(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, scale: float, keep_prob: float, pre_tokens: int, next_tokens: int,
    prefix: list[int] | None, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None,
    sparse_mode: int, pse_type: int, softmax_layout: str, sink: Tensor | None, dropout_mask: Tensor | None, seed: int,
    offset: int,
) -> tuple:  # fmt: skip
    setting = Setting(
        head_num, input_layout, atten_mask, scale, keep_prob, pre_tokens, next_tokens, sparse_mode, prefix,
        actual_seq_qlen, actual_seq_kvlen, pse, pse_type, sink,
    )  # fmt: skip
    return forward(query, key, value, setting, dropout_mask, seed, offset)


@kernel("npu_fusion_attention_grad_v2")
def fusion_attention_grad_v2(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, softmax_max: Tensor | None, softmax_sum: Tensor | None, softmax_in: Tensor | None,
    attention_in: Tensor | None, scale_value: float, keep_prob: float, pre_tokens: int, next_tokens: int, seed: int,
    offset: int, numels: int, prefix: list[int] | None, actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None, sparse_mode: int, pse_type: int, softmax_layout: str, sink: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    setting = Setting(
        head_num, input_layout, atten_mask, scale_value, keep_prob, pre_tokens, next_tokens, sparse_mode, prefix,
        actual_seq_qlen, actual_seq_kvlen, pse, pse_type, sink,
    )  # fmt: skip
    dq, dk, dv, dpse, dsink = backward(query, key, value, dy, setting, seed, offset)
    return dq, dk, dv, dpse, torch.empty(0), torch.empty(0), dsink


@kernel("npu_fusion_attention_v3", "npu_fusion_attention_v3.out", host=HOST_LENGTHS)
def fusion_attention_v3(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, scale: float, keep_prob: float, pre_tockens: int, next_tockens: int,
    prefix: list[int] | None, actual_seq_qlen: Tensor | None, actual_seq_kvlen: Tensor | None, sparse_mode: int,
    softmax_layout: str, sink: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What torch_npu's scaled_dot_product_attention calls: lengths, seed and offset are tensors."""
    setting = Setting(
        head_num, input_layout, atten_mask, scale, keep_prob, pre_tockens, next_tockens, sparse_mode, prefix,
        numbers(actual_seq_qlen), numbers(actual_seq_kvlen), pse, sink=sink,
    )  # fmt: skip
    *tensors, seed, offset, _ = forward(query, key, value, setting, None, 0, 0)
    return *tensors, torch.tensor([seed]), torch.tensor([offset])


@kernel("npu_fusion_attention_grad_v3", "npu_fusion_attention_grad_v3.out", host=HOST_LENGTHS)
def fusion_attention_grad_v3(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, head_num: int, input_layout: str, pse: Tensor | None,
    atten_mask: Tensor | None, softmax_max: Tensor | None, softmax_sum: Tensor | None, softmax_in: Tensor | None,
    attention_in: Tensor | None, scale_value: float, keep_prob: float, pre_tockens: int, next_tockens: int,
    seed: Tensor | None, offset: Tensor | None, prefix: list[int] | None, actual_seq_qlen: Tensor | None,
    actual_seq_kvlen: Tensor | None, sparse_mode: int, softmax_layout: str, sink: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    setting = Setting(
        head_num, input_layout, atten_mask, scale_value, keep_prob, pre_tockens, next_tockens, sparse_mode, prefix,
        numbers(actual_seq_qlen), numbers(actual_seq_kvlen), pse, sink=sink,
    )  # fmt: skip
    drawn = [0 if value is None else int(value) for value in (seed, offset)]
    return backward(query, key, value, dy, setting, *drawn)


@kernel("npu_ring_attention_update")
def ring_attention_update(
    prev_attn_out: Tensor, prev_softmax_max: Tensor, prev_softmax_sum: Tensor, cur_attn_out: Tensor,
    cur_softmax_max: Tensor, cur_softmax_sum: Tensor, actual_seq_qlen: Tensor | None, input_layout: str,
    input_softmax_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention over two pieces of the keys, from what each gave alone; the statistics are repeated eight times."""
    if (input_layout, input_softmax_layout) not in (("SBH", ""), ("SBH", "SBH"), ("TND", "TND")):
        raise NotSimulated(
            f"the simulator has no ring attention of {input_layout!r} with {input_softmax_layout!r}"
        )
    maximum = torch.maximum(prev_softmax_max, cur_softmax_max)
    parts = [
        (total * (own - maximum).exp(), out.float())
        for own, total, out in (
            (prev_softmax_max, prev_softmax_sum, prev_attn_out), (cur_softmax_max, cur_softmax_sum, cur_attn_out)
        )
    ]  # fmt: skip
    total = parts[0][0] + parts[1][0]
    result = torch.zeros_like(parts[0][1])
    for weight, out in parts:
        share = (weight / total)[..., :1]
        if input_layout == "SBH":
            share = share.permute(2, 0, 1, 3)
            out = out.unflatten(2, (share.shape[2], -1))
        result += (out * share).view(result.shape)
    return result.to(prev_attn_out.dtype), maximum, total
