"""One product split into queries, keys and values that are turned and kept in caches, on simulated NPUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@pytest.mark.parametrize("is_functional", [False, True])
def test_queries_and_keys_are_normed_and_turned(npu, is_functional):
    rows, heads, dim, blocks, size = 6, (4, 1, 1), 32, 3, 4
    qkv, cos, sin = torch.randn(rows, 6 * dim).half(), *(torch.randn(rows, dim).half() for _ in range(2))
    gammas, scales = [torch.rand(dim).half() for _ in range(2)], [torch.rand(1, dim) + 0.5 for _ in range(2)]
    slots = torch.tensor([3, -1, 0, 9, 6, 11])
    q, k, v = qkv.float().view(rows, 6, dim).split(heads, 1)
    angles = cos.float()[:, None], sin.float()[:, None]
    q, k = (
        turned(F.rms_norm(x, (dim,), gamma.float(), 1e-6), *angles)
        for x, gamma in zip((q, k), gammas, strict=True)
    )
    expected = []
    for values, scale in ((k, scales[0]), (v, scales[1])):
        plain = torch.full((blocks * size, dim), 9, dtype=torch.int8)
        plain[slots[slots >= 0]] = (values[:, 0] / scale).round().clamp(-128, 127)[slots >= 0].to(torch.int8)
        expected.append(plain.view(blocks, 1, size, 32))
    places = [torch.full((rows, 4 * dim), 9.0).half().npu()]
    places += [torch.full((blocks, 1, size, 32), 9, dtype=torch.int8).npu() for _ in range(2)]
    inputs = [x.npu() for x in (qkv, *gammas, cos, sin, slots)]
    keys = {
        "qkv_size": [2, 3, 6, dim],
        "head_nums": heads,
        "k_scale": scales[0].npu(),
        "v_scale": scales[1].npu(),
    }
    name = "npu_qkv_rms_norm_rope_cache" + "_functional" * is_functional
    found = getattr(npu, name)(*inputs, *places, **keys, is_output_qkv=True)
    for value, wanted in zip(found[:3], (q, k, v), strict=True):
        assert_near(value.float(), wanted.flatten(1), 0.02)
    if is_functional:
        assert all(bool((place == 9).all()) for place in places)
        places = found[3:]
    assert_near(places[0].float(), q.flatten(1), 0.02)
    for place, wanted in zip(places[1:], expected, strict=True):
        assert (place.cpu().int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["contiguous", "page"])
@pytest.mark.parametrize("is_sum", [False, True])
def test_keys_and_values_are_kept_as_integers(npu, mode, is_sum):
    samples, length, dim, heads = 2, 3, 16, (2, 1, 1)
    x = torch.randint(-50, 50, (samples, length, 4 * dim), dtype=torch.int32)
    weight_scale, row_scale, bias = (
        torch.rand(4 * dim) / 50,
        torch.rand(samples * length),
        torch.randn(4 * dim),
    )
    plain = x.float() / 50
    if is_sum:
        plain = x.float() * weight_scale * row_scale.view(samples, length, 1) + bias
    cos, sin = (torch.randn(samples, length, 1, dim) for _ in range(2))
    q, k, v = plain.unflatten(-1, (4, dim)).split(heads, 2)
    q, k = turned(q, cos, sin), turned(k, cos, sin)
    scales, offsets = [torch.rand(dim) * 20 for _ in range(2)], [torch.randn(dim) for _ in range(2)]
    caches = [torch.full((samples, 5, 1, dim), 9, dtype=torch.int8) for _ in range(2)]
    indices = torch.tensor([1, 2] if mode == "contiguous" else [1, 2, 3, 7, 6, 9], dtype=torch.int32)
    expected = []
    for cache, values, scale, offset in zip(caches, (k, v), scales, offsets, strict=True):
        values, filled = (values * scale + offset).round().clamp(-128, 127).to(torch.int8), cache.clone()
        if mode == "contiguous":
            filled[0, 1:4], filled[1, 2:5] = values
        else:
            filled.view(-1, 1, dim)[indices.long()] = values.flatten(0, 1)
        expected.append(filled)
    on_card = [cache.npu() for cache in caches]
    more = {"weight_scale": weight_scale, "activation_scale": row_scale, "bias": bias} if is_sum else {}
    more = {name: value.npu() for name, value in more.items()}
    name = "npu_dequant_rope_quant_kvcache" if is_sum else "npu_rope_quant_kvcache"
    found = getattr(npu, name)(
        (x if is_sum else plain).npu(), cos.npu(), sin.npu(), *on_card, indices.npu(),
        *(scale.npu() for scale in scales), [2 * dim, dim, dim], offset_k=offsets[0].npu(),
        offset_v=offsets[1].npu(), kv_output=True, cache_mode=mode, **more,
    )  # fmt: skip
    for value, wanted in zip(found, (q, k, v, *expected), strict=True):
        assert_near(value.float(), wanted.float())
    assert torch.equal(on_card[0], found[3])
