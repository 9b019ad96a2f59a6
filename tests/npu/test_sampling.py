"""Tokens drawn on simulated NPUs, and rows that other workers' experts have left on the card."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def sampled(npu, logits, k, p, q=None, **more):
    whole, share = torch.tensor([k], dtype=torch.int32).npu(), torch.tensor([p]).half().npu()
    tokens, kept = npu.npu_top_k_top_p_sample(
        logits.npu(), whole, share, None if q is None else q.npu(), **more
    )
    return tokens.item(), kept.cpu()


def test_a_token_is_chosen_among_the_likely_ones(npu):
    logits = torch.tensor([[0.2, 0.5, 0.05, 0.25]]).log().half()  # by share: token 1, 3, 0, 2
    assert sampled(npu, logits, 4, 1.0)[0] == 1
    q = torch.tensor([[10.0, 1.0, 0.001, 0.0001]])  # of the kept ones, from the likeliest on
    assert sampled(npu, logits, 2, 1.0, q)[0] == 3
    assert sampled(npu, logits, 3, 1.0, q, top_k_guess=8)[0] == 0
    assert sampled(npu, logits, 3, 0.7, q)[0] == 3  # 0.5 and 0.25 have made up 0.7 (of three: 0.53 and 0.26)
    assert sampled(npu, logits, 1025, 1.0, q)[0] == 3  # no limit: q lies as the logits do
    kept = sampled(npu, logits, 2, 1.0, is_need_logits=True)[1]
    assert kept.tolist() == [[0, logits[0, 1], 0, logits[0, 3]]]


def test_exponential_numbers_of_a_rate(npu):
    x = torch.empty(20000).npu()
    generator = torch.Generator(device="npu")
    again = [npu.npu_sim_exponential_(x, 2.0, generator=generator.manual_seed(1)).cpu() for _ in range(2)]
    assert torch.equal(*again) and again[0].min() > 0
    assert again[0].mean() == pytest.approx(0.5, rel=0.05)
    assert not npu.npu_sim_exponential_(x, float("inf")).any()
    with pytest.raises(RuntimeError, match=r"expects lambd > 0.0, but found lambd=-1.0"):
        npu.npu_sim_exponential_(x, -1.0)


def test_what_other_workers_left_is_combined(npu):
    batch, k, hidden = 3, 2, 8
    rows, scales = torch.randn(2, batch, k + 1, hidden).half(), torch.rand(batch, k)
    left = rows.npu()  # the experts' workers would write it there
    context = bytearray(1024)
    struct.pack_into("<I", context, 8, batch)
    struct.pack_into("<QQI", context, 272, left.data_ptr(), rows.numel() * ctypes.sizeof(ctypes.c_uint16), 1)
    arguments = (scales.npu(), torch.tensor([4], dtype=torch.int32).npu(), hidden)
    given = torch.frombuffer(context, dtype=torch.int8).npu()
    found, layer = npu.npu_attention_worker_combine(given, *arguments, token_dtype=0)
    expected = (rows[1, :, :k].float() * scales[..., None]).sum(1) + rows[1, :, k].float()
    assert layer.item() == 5 and found.dtype == torch.float16
    assert_near(found, expected.half(), 5e-3)
    with pytest.raises(RuntimeError, match="waits for no other worker"):
        npu.npu_attention_worker_combine(given, *arguments, need_schedule=1)
