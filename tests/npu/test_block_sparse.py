"""Attention over blocks of keys on simulated NPUs, against attention with the whole mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim

BLOCK = [8, 16]


def whole(q, k, v, blocks):
    """Attention [N, S, D] of one sample; heads of keys are shared."""
    mask = blocks.bool().repeat_interleave(BLOCK[0], 1).repeat_interleave(BLOCK[1], 2)
    mask = mask[:, : q.shape[1], : k.shape[1]]
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask[None])[0], mask


def test_packed_samples_see_the_blocks_of_their_mask(npu):
    q_lengths, k_lengths = [20, 9], [33, 16]
    q, k, v = (
        torch.randn(sum(n), heads, 16) for n, heads in ((q_lengths, 4), (k_lengths, 2), (k_lengths, 2))
    )
    blocks = torch.zeros(2, 4, 3, 3, dtype=torch.int8)
    blocks[..., 0] = blocks[:, :2, :2, 1] = blocks[0, 1, :, 2] = 1
    inputs = [x.npu().requires_grad_() for x in (q, k, v)]
    found, sums = npu.npu_block_sparse_attention(
        *inputs, blocks.npu(), BLOCK, num_key_value_heads=2, scale_value=0.25, actual_seq_lengths=q_lengths,
        actual_seq_lengths_kv=k_lengths, softmax_lse_flag=1,
    )  # fmt: skip
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    parts = zip(
        plain[0].split(q_lengths), plain[1].split(k_lengths), plain[2].split(k_lengths), blocks, strict=True
    )
    expected = torch.cat(
        [
            whole(*(x.transpose(0, 1) for x in tensors), chosen)[0].transpose(0, 1)
            for *tensors, chosen in parts
        ]
    )
    assert_near(found, expected)
    scores = q[:20, 0] @ k[:33, 0].t() / 4  # head 0 of the first sample
    assert sums.shape == (29, 4, 1)
    assert_near(sums[16:20, 0, 0], scores[16:, :16].logsumexp(-1))
    gradient = torch.randn_like(expected)
    found.backward(gradient.npu())
    expected.backward(gradient)
    for ours, theirs in zip(inputs, plain, strict=True):
        assert_near(ours.grad, theirs.grad)


def test_samples_of_one_length_and_rows_that_see_nothing(npu):
    q, k, v = (torch.randn(2, 2, 24, 16).half() for _ in range(3))
    blocks = torch.ones(2, 2, 3, 2, dtype=torch.int8)
    blocks[1, 1, 2] = 0
    found, sums = npu.npu_block_sparse_attention(
        q.npu(), k.npu(), v.npu(), blocks.npu(), BLOCK, q_input_layout="BNSD", kv_input_layout="BNSD",
        num_key_value_heads=2, scale_value=0.25,
    )  # fmt: skip
    assert (found.dtype, sums.dtype, sums.shape) == (torch.float16, torch.float32, (2, 2, 24, 1))
    assert not sums.any()
    assert_near(found[0], whole(q[0].float(), k[0].float(), v[0].float(), blocks[0])[0].half(), 5e-3)
    assert not found[1, 1, 16:].any() and found[1, 0, 16:].any()


def test_lengths_and_heads_that_do_not_fit_are_refused(npu):
    x, blocks = torch.randn(6, 2, 16).npu(), torch.ones(1, 2, 1, 1, dtype=torch.int8).npu()
    with pytest.raises(RuntimeError, match="do not make up 6 tokens"):
        npu.npu_block_sparse_attention(x, x, x, blocks, BLOCK, num_key_value_heads=2, actual_seq_lengths=[5])
    with pytest.raises(RuntimeError, match="num_key_value_heads is 4, key has 2"):
        npu.npu_block_sparse_attention(x, x, x, blocks, BLOCK, num_key_value_heads=4)
