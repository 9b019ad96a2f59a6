"""What latent attention computes before its scores, on simulated NPUs, against the steps one by one on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim
TOKENS, WIDE, HEADS, SIZE, ROPE, LOW_Q, LOW_K = 3, 16, 2, 4, 4, 8, 8
SLOTS = (5, 2, 9)


def turned(x, cos, sin):
    """Neighbours become the two halves, which are turned."""
    first, second = x[..., ::2], x[..., 1::2]
    return torch.cat((first, second), -1) * cos + torch.cat((-second, first), -1) * sin


def steps(x, down_q, up_q, up_k, down_k, gamma_q, gamma_k, sin, cos):
    """Query against the latent keys and its rotated part, the keys and theirs, and the normed latent query."""
    low = F.rms_norm(x @ down_q, (LOW_Q,), gamma_q, 1e-5)
    plain, rope = (low @ up_q).view(TOKENS, HEADS, SIZE + ROPE).split([SIZE, ROPE], -1)
    below, key_rope = (x @ down_k).split([LOW_K, ROPE], -1)
    query = torch.einsum("tnd,ndk->tnk", plain, up_k)
    keys = F.rms_norm(below, (LOW_K,), gamma_k, 1e-5)
    return query, turned(rope, cos[:, None], sin[:, None]), keys, turned(key_rope, cos, sin), low


def inputs():
    shapes = (
        (TOKENS, WIDE), (WIDE, LOW_Q), (LOW_Q, HEADS * (SIZE + ROPE)), (HEADS, SIZE, LOW_K), (WIDE, LOW_K + ROPE),
        (LOW_Q,), (LOW_K,), (TOKENS, ROPE), (TOKENS, ROPE),
    )  # fmt: skip
    return [torch.randn(*shape) for shape in shapes]


def caches(dtype=torch.float32):
    return torch.zeros(3, 4, 1, LOW_K, dtype=dtype).npu(), torch.zeros(3, 4, 1, ROPE).npu()


def rows_of(cache):
    return cache.view(12, -1)[list(SLOTS)]


def test_projections_norms_rotation_and_caches(npu):
    given, slots = inputs(), torch.tensor(SLOTS).npu()
    query, query_rope, keys, key_rope, low = steps(*given)
    cards = [x.npu() for x in given]
    kv, kr = caches()
    found = npu.npu_mla_prolog(*cards, slots, kv, kr)
    for one, expected in zip(
        (*found[:2], rows_of(kv), rows_of(kr)), (query, query_rope, keys, key_rope), strict=True
    ):
        assert_near(one, expected)
    assert found[2].data_ptr() == kv.data_ptr()
    assert kv.count_nonzero() == TOKENS * LOW_K
    assert len(npu.npu_mla_prolog_v2(*cards, slots, *caches())) == 5
    third = npu.npu_mla_prolog_v3(*cards, *caches(), cache_index=slots, query_norm_flag=True, qc_qr_scale=2.0)
    assert_near(third[0], 2 * query)
    assert_near(third[3], low)
    empty = caches()
    *_, kv_out, kr_out = npu.npu_mla_prolog_v3_functional(*cards, *empty, cache_index=slots, kc_scale=0.5)
    assert_near(rows_of(kv_out), 0.5 * keys)
    assert_near(rows_of(kr_out), key_rope)
    assert empty[0].count_nonzero() == 0


def integers_of(weight, dim):
    scale = weight.abs().amax(dim, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def test_integers_in_and_out(npu):
    """With integers of 8 bits everywhere, results are near those of the values they stand for."""
    given, slots = inputs(), torch.tensor(SLOTS).npu()
    query, query_rope, keys, key_rope, _ = steps(*given)
    names = ("dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr")
    scales = {}
    for name, number, dim in zip(names, (0, 1, 2, 4), (-1, 0, 0, 0), strict=True):
        given[number], scale = integers_of(given[number], dim)
        scales[name] = scale.npu()
    step = keys.abs().max() / 127
    scales["quant_scale_ckv"] = (1 / step).view(1, 1).npu()
    kv, kr = caches(torch.int8)
    found = npu.npu_mla_prolog_v2(*(x.npu() for x in given), slots, kv, kr, **scales)
    assert found[0].dtype == torch.int8
    assert_near(found[0].float() * found[4], query, 0.3)
    assert_near(rows_of(kv).float() * step.npu(), keys, 0.1)
    assert_near(rows_of(kr), key_rope, 0.1)
    # scores add both parts in integers: the rotated one is divided by the scales of the others
    assert_near(found[1] * found[4] * step.npu(), query_rope, 0.3)
    with pytest.raises(RuntimeError, match="npu_mla_prolog_v3: the simulator does not know"):
        npu.npu_mla_prolog_v3(
            *(x.npu() for x in given), kv, kr, cache_index=slots, weight_quant_mode=1, **scales
        )
    with pytest.raises(RuntimeError, match="cache_mode 'PA' is not one of BNSD, PA_BSND, PA_NZ"):
        npu.npu_mla_prolog(*(x.npu() for x in given), slots, kv, kr, cache_mode="PA", **scales)
