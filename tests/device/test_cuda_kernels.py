"""The GPU's attention around torch's kernel for packed samples, which is stood in for by its documented meaning."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

pytest.importorskip("triton")

from swiftlet.commands import operators
from swiftlet.device import cuda_kernels, kernels
from swiftlet.device.kernels import AttentionRules, DeviceAttention, DeviceBoundaries, reference_attention

ENDS = [0, 1, 14, 23, 37]


def as_documented(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False
):
    """Attend as varlen_attn says it does: T, H, D; a window counts the neighbours to the left and right."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    ends = cu_seq_q.tolist()
    assert max(b - a for a, b in zip(ends, ends[1:], strict=False)) <= max_q == max_k
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    assert right == 0
    rules = AttentionRules(scale, None if left < 0 else left + 1)
    heads = (one.transpose(0, 1).float() for one in (query, key, value))
    return reference_attention(*heads, sorted(set(ends)), rules).to(query.dtype)


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    calls = []

    def counted(*inputs, **options):
        calls.append(options)
        return as_documented(*inputs, **options)

    monkeypatch.setattr(cuda_kernels, "varlen_attn", counted)
    monkeypatch.setattr(cuda_kernels, "HAS_GROUPS", True)
    # a processor pins no memory
    monkeypatch.setattr(cuda_kernels, "_on_device", lambda ends, _: torch.tensor(ends, dtype=torch.int32))
    kernels.say_plain.cache_clear()
    return calls


def heads(kv_heads=2, width=8, dtype=torch.bfloat16, value_width=None):
    torch.manual_seed(0)
    shapes = (4, width), (kv_heads, width), (kv_heads, value_width or width)
    return [torch.randn(ENDS[-1], number, size).to(dtype).transpose(0, 1) for number, size in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 5, 14, 100])
@pytest.mark.parametrize("on_device", [False, True])
def test_attention_by_the_flash_kernel_is_its_definition(kernel, kv_heads, window, on_device):
    inputs, rules = heads(kv_heads), AttentionRules(0.3, window)
    ends = ENDS
    if on_device:  # samples without a token fill the memory up
        ends = DeviceBoundaries(torch.tensor([*ENDS, 37, 37], dtype=torch.int32), 16, 37)
    found = cuda_kernels.varlen_attention(*inputs, ends, rules)
    right = reference_attention(*(one.float() for one in inputs), ENDS, rules)
    assert torch.allclose(found.float(), right, atol=2e-2)
    assert len(kernel) == 1


@pytest.mark.parametrize(
    ("inputs", "rules", "said"),
    [
        ({"dtype": torch.float32}, AttentionRules(0.3), "not float32 and 8"),
        ({"width": 264}, AttentionRules(0.3), "heads up to 256, not bfloat16 and 264"),
        ({"value_width": 4}, AttentionRules(0.3), "values are 4 wide and keys 8"),
        ({}, AttentionRules(0.3, softcap=5.0), "bounded (softcap)"),
        ({}, AttentionRules(0.3, dropout_p=0.1), "no dropout of weights"),
    ],
)
def test_a_call_that_the_flash_kernel_does_not_take_is_said_once(kernel, capfd, inputs, rules, said):
    for _ in range(2):
        found = cuda_kernels.varlen_attention(*heads(**inputs), ENDS, rules)
    assert found.shape[:2] == (37, 4) and not kernel
    log = "".join(capfd.readouterr())
    assert log.count("attention runs by torch's plain operator, sample by sample") == 1
    assert said in log


def test_an_older_torch_without_the_kernel_says_so():
    before = dict(sys.modules)
    sys.modules["torch.nn.attention.varlen"] = None
    try:
        importlib.reload(cuda_kernels)
        with pytest.raises(RuntimeError, match=r"no torch\.nn\.attention\.varlen, which came with 2\.10"):
            cuda_kernels.varlen_attention(*heads(), ENDS, AttentionRules(0.3))
        assert not cuda_kernels.HAS_GROUPS
    finally:
        sys.modules["torch.nn.attention.varlen"] = before["torch.nn.attention.varlen"]
        importlib.reload(cuda_kernels)


@pytest.mark.parametrize(
    ("dtype", "is_fit", "softcap", "is_named"),
    [
        (torch.bfloat16, True, None, True),
        (torch.float32, False, None, False),
        (torch.bfloat16, True, 5.0, False),
    ],
)
def test_an_attention_that_leaves_the_calls_of_a_model_to_the_plain_one_is_not_named(
    dtype, is_fit, softcap, is_named
):
    attention = DeviceAttention(reference_attention, lambda *_: is_fit)
    case = operators.attention_case(4, 2, 8, ENDS, AttentionRules(0.3, softcap=softcap))
    assert operators._computes(attention, [case], dtype) == is_named
    assert operators._computes(reference_attention, [case], dtype)
