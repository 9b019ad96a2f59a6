"""Layers under torch_npu's own names on simulated NPUs against their definitions on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_norms_of_sums_and_of_groups(npu):
    x, y, gamma = torch.randn(3, 8).half(), torch.randn(3, 8).half(), torch.randn(8).half()
    wide, same, _, total = npu.npu_add_rms_norm_cast(x.npu(), y.npu(), gamma.npu())
    assert wide.dtype == torch.float32 and same.dtype == torch.float16
    assert_near(wide, F.rms_norm((x + y).float(), (8,), gamma.float(), 1e-6).half().float())
    assert_near(total, x + y)
    image, weight, bias = torch.randn(2, 4, 3, 3), torch.randn(4), torch.randn(4)
    out, mean, _ = npu.npu_group_norm_swish(image.npu(), 2, weight.npu(), bias.npu(), swish_scale=2.0)
    normed = F.group_norm(image, 2, weight, bias)
    assert_near(out, normed * torch.sigmoid(2 * normed))
    assert_near(mean, image.view(2, 2, -1).mean(-1))


def test_gates_and_turns(npu):
    x = torch.randn(2, 3, 4, 8)
    assert_near(
        npu.npu_gelu_mul(x.npu(), approximate="tanh"), F.gelu(x[..., :4], approximate="tanh") * x[..., 4:]
    )
    angle = torch.rand(2, 1, 4, 4)
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.cat((even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()), -1)
    assert_near(npu.npu_interleave_rope(x.npu(), cos.npu(), sin.npu()), turned)


@pytest.mark.parametrize("layout", ["SBH", "TND"])
def test_attention_over_pieces_of_the_keys(npu, layout):
    q, k, v = torch.randn(4, 2, 16), torch.randn(6, 2, 16), torch.randn(6, 2, 16)
    keys = {"scale": 0.3}
    if layout == "TND":
        heads, keys = 2, keys | {"actual_seq_qlen": [4], "actual_seq_kvlen": [3], "softmax_layout": "TND"}
    else:
        heads = 4
    one, other = (
        npu.npu_fusion_attention(q.npu(), a.npu(), b.npu(), heads, layout, **keys)
        for a, b in ((k[:3], v[:3]), (k[3:], v[3:]))
    )
    more = {"input_layout": "TND", "input_softmax_layout": "TND"} if layout == "TND" else {}
    out, _, _ = npu.npu_ring_attention_update(*one[:3], *other[:3], **more)
    if layout == "TND":
        keys["actual_seq_kvlen"] = [6]
    assert_near(out, npu.npu_fusion_attention(q.npu(), k.npu(), v.npu(), heads, layout, **keys)[0].cpu())
