"""Attention of a processor, block by block, against its definition: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from swiftlet.device.kernels import AttentionRules, reference_attention
from swiftlet.models import attention_cpu
from swiftlet.models.attention_cpu import BLOCK, Block, bias_of, blocks_of, cpu_attention
from swiftlet.models.rounding import MULTIPLE

LENGTHS = [1, BLOCK - 1, BLOCK, 2 * BLOCK + 70]
ENDS = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]


def outputs(attend, dtype, groups):
    torch.manual_seed(0)
    shapes = [(2 * groups, ENDS[-1], 8), (2, ENDS[-1], 8), (2, ENDS[-1], 8)]
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    out = attend(*leaves)
    out.backward(torch.randn(out.shape).to(dtype))
    return [tensor.detach().float() for tensor in (out, *(leaf.grad for leaf in leaves))]


def test_short_samples_of_a_small_model_are_multiplied_in_fp32():
    """A softmax of bf16 would be off by more than what rounding the result is."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 50, 8).to(torch.bfloat16)
    with Products() as products:
        found = cpu_attention(q, k, v, [0, 20, 50], AttentionRules(0.5))
    assert not products.shapes and found.dtype == torch.bfloat16
    right = reference_attention(q.float(), k.float(), v.float(), [0, 20, 50], AttentionRules(0.5))
    torch.testing.assert_close(found.float(), right, rtol=4e-3, atol=1e-3)


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


class Products(TorchDispatchMode):
    """Notes the shapes of products."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket.__name__ in ("bmm", "baddbmm"):
            self.shapes.add(tuple(tuple(one.shape) for one in args[-2:]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("groups", [1, 3])
def test_samples_of_any_length_ask_for_few_products_in_bf16(monkeypatch, groups):
    """Each shape is compiled at its first use, and what is compiled is kept."""
    monkeypatch.setattr(attention_cpu, "SMALL", 0)

    def shapes_of(lengths, dtype):
        ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        leaves = [torch.randn(n, ends[-1], 8, dtype=dtype, requires_grad=True) for n in (2 * groups, 2, 2)]
        with Products() as products:
            cpu_attention(*leaves, ends, AttentionRules(0.5)).float().sum().backward()
        return products.shapes

    few = shapes_of([MULTIPLE, 2 * MULTIPLE, BLOCK + MULTIPLE], torch.bfloat16)
    assert (
        few and shapes_of([7, MULTIPLE - 1, MULTIPLE + 1, 2 * MULTIPLE, BLOCK + 3, 20], torch.bfloat16) == few
    )
    window = AttentionRules(0.5, window=300)  # fp32 has blocks here too
    exact = torch.randn(2, 301, 8)
    with Products() as products:
        cpu_attention(exact, exact, exact, [0, 301], window)
    assert {left[1] for left, _ in products.shapes} == {BLOCK, 301 - BLOCK}


@pytest.mark.parametrize("small", [0, attention_cpu.SMALL])
def test_a_sample_that_is_not_finite_does_not_touch_the_ones_beside_it(monkeypatch, small):
    monkeypatch.setattr(attention_cpu, "SMALL", small)
    torch.manual_seed(0)
    leaves = [torch.randn(2, 90, 8, dtype=torch.bfloat16) for _ in range(3)]
    for leaf in leaves:
        leaf[:, 40:] = torch.nan
        leaf.requires_grad_()
    out = cpu_attention(*leaves, [0, 40, 90], AttentionRules(0.5))
    out.backward(torch.ones_like(out))
    for found in (out.transpose(0, 1), *(leaf.grad for leaf in leaves)):
        assert found[:, :40].isfinite().all() and found[:, 40:].isnan().all()
