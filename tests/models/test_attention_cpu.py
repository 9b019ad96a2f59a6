"""Attention of a processor, block by block, against its definition: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swiftlet.device.kernels import AttentionRules, reference_attention
from swiftlet.models import attention_cpu
from swiftlet.models.attention_cpu import BLOCK, Block, bias_of, blocks_of, cpu_attention

LENGTHS = [1, BLOCK - 1, BLOCK, 2 * BLOCK + 70]
ENDS = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]


def outputs(attend, dtype, groups):
    torch.manual_seed(0)
    shapes = [(2 * groups, ENDS[-1], 8), (2, ENDS[-1], 8), (2, ENDS[-1], 8)]
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    out = attend(*leaves)
    out.backward(torch.randn(out.shape).to(dtype))
    return [tensor.detach().float() for tensor in (out, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 60, BLOCK + 40, 5000])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_it_is_its_definition(dtype, close, window, softcap, groups):
    rules = AttentionRules(0.5, window, softcap)
    found = outputs(lambda *qkv: cpu_attention(*qkv, ENDS, rules), dtype, groups)
    right = outputs(
        lambda *qkv: reference_attention(*(one.float() for one in qkv), ENDS, rules).to(dtype),
        dtype,
        groups,
    )
    for one, other in zip(found, right, strict=True):
        # a window of one token leaves queries and keys no gradient but what is rounded
        assert float((one - other).norm()) < close * max(float(other.norm()), 10)


@pytest.mark.parametrize("most", [0, attention_cpu.MOST_KEPT])
@pytest.mark.parametrize("window", [None, 1, 5, 300])
def test_which_keys_a_block_sees(monkeypatch, window, most):
    monkeypatch.setattr(attention_cpu, "MOST_KEPT", most)
    blocks = [Block(3, 3, 4), Block(0, 7, 20), Block(10, 10 + BLOCK, 10 + 2 * BLOCK), Block(0, 1023, 1100)]
    for block in (*blocks, *blocks_of(5, 1500, window)):
        distance = torch.arange(block.start, block.end)[:, None] - torch.arange(block.first, block.end)
        is_seen = (distance >= 0) & (distance < (window or 10_000))
        bias = bias_of(block, window, torch.empty(0, dtype=torch.bfloat16))
        assert bias.dtype == torch.bfloat16 and torch.equal(bias == 0, is_seen)
        assert (bias[~is_seen] == float("-inf")).all()


def test_a_trace_leaves_no_bias_behind_for_a_run():
    """Fake tensors have no numbers: one that is kept would be read by whoever runs in this process later."""

    def attended():
        heads = torch.ones(2, 300, 8, dtype=torch.bfloat16)
        return cpu_attention(heads, heads, heads, [0, 40, 300], AttentionRules(0.3))

    attention_cpu._band.cache_clear()
    with FakeTensorMode():
        assert isinstance(attended(), FakeTensor)
    found = attended()
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=0.02)
    with FakeTensorMode():
        assert isinstance(attended(), FakeTensor)
