"""Caches of keys and values on simulated NPUs: what is written into slots, and what is read back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim
SIZE, BLOCKS = 4, 3


def to_nz(cache: torch.Tensor, width: int = 16) -> torch.Tensor:
    """[blocks, N * D / C, size, C] of a plain cache [blocks, size, N, D]."""
    return cache.flatten(2).unflatten(2, (-1, width)).transpose(1, 2).contiguous()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Neighbours of the last axis turned by their angles, and brought to the two halves."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat((even, odd), -1) * cos + torch.cat((-odd, even), -1) * sin


@pytest.mark.parametrize("mode", ["Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"])
@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_cache_is_filled_with_what_is_normed_and_rotated(npu, mode, is_quantised):
    samples, length, wide, narrow = 2, 3, 64, 32
    kv, gamma = torch.randn(samples, 1, length, wide + narrow).half(), torch.rand(wide).half()
    cos, sin = (torch.randn(samples, 1, length, narrow).half() for _ in range(2))
    normed = F.rms_norm(kv[..., :wide].float(), (wide,), eps=1e-5) * gamma.float()
    rotated = turned(kv[..., wide:].float(), cos.float(), sin.float())
    slots = torch.tensor([4, 5, 6, -1, 9, 10]) if "BLK" not in mode else torch.tensor([4, 8])
    places = torch.tensor([4, 5, 6, 8, 9, 10]) if "BLK" in mode else slots
    scales = (
        {"k_rope_scale": torch.tensor([20.0]), "c_kv_scale": torch.tensor([10.0])} if is_quantised else {}
    )
    caches, expected = [], []
    for values, scale in ((rotated, 20), (normed, 10)):
        kind = torch.int8 if is_quantised else torch.float16
        values = (values * scale).round().clamp(-128, 127).to(kind) if is_quantised else values.to(kind)
        if mode == "Norm":
            slots = torch.tensor([[0, 2, 4], [1, 2, 3]])
            cache = torch.full((samples, 1, 5, values.shape[-1]), 9, dtype=kind)
            filled = cache.clone()
            for sample in range(samples):
                filled[sample, 0, slots[sample]] = values[sample, 0]
        else:
            cache = torch.full((BLOCKS, SIZE, 1, values.shape[-1]), 9, dtype=kind)
            filled = cache.clone()
            rows, kept = values.flatten(0, 2), places >= 0
            filled.view(BLOCKS * SIZE, -1)[places[kept]] = rows[kept]
            if "NZ" in mode:
                filled = to_nz(filled, 32 if is_quantised else 16).view(filled.shape)
        caches.append(cache.npu())
        expected.append(filled)
    inputs = [x.npu() for x in (kv, gamma, cos, sin, slots)]
    keys = {"cache_mode": mode, **{name: scale.npu() for name, scale in scales.items()}}
    copies = [cache.clone() for cache in caches]
    found = npu.npu_kv_rmsnorm_rope_cache(*inputs, *caches, is_output_kv=True, **keys)
    for cache, filled in zip(found[:2], expected, strict=True):
        assert_near(cache.float(), filled.float(), 1.01 if is_quantised else 1e-2)
    assert torch.equal(found[0], caches[0])  # in place
    assert_near(found[2].float(), rotated, 1e-2)
    assert_near(found[3].float(), normed, 1e-2)
    *values, first, second = npu.npu_kv_rmsnorm_rope_cache_v2_functional(
        *inputs, *copies, is_output_kv=True, **keys
    )
    assert (
        torch.equal(first, caches[0]) and torch.equal(second, caches[1]) and not torch.equal(first, copies[0])
    )
    values = npu.npu_kv_rmsnorm_rope_cache_v2(*inputs, *copies, is_output_kv=True, **keys)
    assert torch.equal(values[0], found[2]) and torch.equal(copies[0], caches[0])


def test_an_unknown_mode_of_a_cache_is_refused(npu):
    x = torch.ones(1, 1, 1, 4).npu()
    cache = torch.ones(1, 1, 1, 2).npu()
    with pytest.raises(RuntimeError, match="cache_mode 'PA_X' is not one of Norm, PA, "):
        index = torch.zeros(1, dtype=torch.long).npu()
        gamma = torch.ones(2).npu()
        npu.npu_kv_rmsnorm_rope_cache(
            x, gamma, x[..., :2], x[..., :2], index, cache, cache.clone(), cache_mode="PA_X"
        )
    with pytest.raises(RuntimeError, match="cache_mode 'PA' is not one of Norm, PA_NZ"):
        npu.npu_scatter_pa_kv_cache(x[0], x[0], cache, cache, index, cache_mode="PA")


@pytest.mark.parametrize("mode", ["Norm", "PA_NZ"])
def test_rows_go_to_their_slots_and_come_back(npu, mode):
    heads, width = 2, 16
    keys, values = torch.randn(5, heads, width).half(), torch.randn(5, heads, 2 * width).half()
    slots = torch.tensor([8, 9, -1, 0, 1], dtype=torch.int32)
    caches, expected = [], []
    for rows in (keys, values):
        cache = torch.zeros(BLOCKS, SIZE, heads, rows.shape[-1]).half()
        kept = slots >= 0
        filled = cache.clone()
        filled.view(-1, *rows.shape[1:])[slots[kept].long()] = rows[kept]
        caches.append((to_nz(cache) if mode == "PA_NZ" else cache).npu())
        expected.append(to_nz(filled) if mode == "PA_NZ" else filled)
    copies = npu.npu_scatter_pa_kv_cache_functional(
        keys.npu(), values.npu(), *caches, slots.npu(), cache_mode=mode
    )
    assert not caches[0].any()
    npu.npu_scatter_pa_kv_cache(keys.npu(), values.npu(), *caches, slots.npu(), cache_mode=mode)
    for cache, copy, filled in zip(caches, copies, expected, strict=True):
        assert_near(cache, filled, 0)
        assert_near(copy, filled, 0)

    table = torch.tensor([[2, 1], [1, 0]], dtype=torch.int32).npu()
    found = [torch.ones(5, *rows.shape[1:]).half().npu() for rows in (keys, values)]
    lengths = torch.tensor([0, 2, 5]).npu()
    offset = torch.tensor([0, 4]).npu()
    npu.npu_gather_pa_kv_cache(*caches, table, lengths, *found, seq_offset=offset, is_seq_lens_cumsum=True)
    again = npu.npu_gather_pa_kv_cache_functional(*caches, table, lengths.diff(), *found, seq_offset=offset)
    for out, copy, rows in zip(found, again, (keys, values), strict=True):
        expected_rows = torch.cat((rows[:2], rows[3:], torch.zeros_like(rows[:1])))
        assert_near(out, expected_rows, 0)
        assert_near(copy, expected_rows, 0)


def test_updates_go_into_a_list_of_tensors(npu):
    tensors = [torch.zeros(2, 4, 3).npu() for _ in range(3)]
    updates, places = torch.randn(3, 2, 1, 3), torch.tensor([1, 2, 3], dtype=torch.int32).npu()
    mask = torch.tensor([1, 0, 1], dtype=torch.uint8).npu()
    changed = npu.npu_scatter_list(tensors, places, updates.npu(), mask, "update", -2)
    assert not tensors[0].any()
    npu.npu_scatter_list_(tensors, places, updates.npu(), mask)
    for number, (copy, tensor) in enumerate(zip(changed, tensors, strict=True)):
        expected = torch.zeros(2, 4, 3)
        if number != 1:
            expected[:, number + 1] = updates[number, :, 0]
        assert_near(copy, expected, 0)
        assert_near(tensor, expected, 0)


def test_updates_are_quantised_before_they_are_scattered(npu):
    data, updates = torch.zeros(1, 3, 32, dtype=torch.int8), torch.rand(1, 1, 32).bfloat16() + 1
    scales = torch.rand(1, 1, 32).bfloat16() + 0.1
    place = torch.tensor([2], dtype=torch.int32).npu()
    found = npu.npu_quant_scatter(data.npu(), place, updates.npu(), scales.npu())
    expected = data.clone()
    expected[:, 2] = (updates.float() / scales.float()).round()[:, 0].to(torch.int8)
    assert_near(found, expected, 0)
    kept = data.npu()
    npu.npu_quant_scatter_(kept, place, updates.npu(), scales.npu())
    assert_near(kept, expected, 0)
