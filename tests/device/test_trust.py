"""The gate: wrong operators are caught and replaced, right ones pass, and results are remembered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from swiftlet import log
from swiftlet.device.kernels import (
    PLAIN,
    AttentionRules,
    RowDropout,
    plain_attention,
    rms_norm,
    rotary,
    swiglu,
)
from swiftlet.device.spec import open_device
from swiftlet.device.trials import default_memory
from swiftlet.device.trust import (
    LONGEST_TRY,
    attention_case,
    dropout_case,
    largest_error,
    rms_norm_case,
    rotary_case,
    swiglu_case,
    trial_lengths,
    trusted_kernels,
    try_kernel,
    without,
)

CPU = torch.device("cpu")
LENGTHS = [0, 60, 61, 190]
ATTENTION = attention_case(4, 2, 16, LENGTHS, AttentionRules(0.25))
WINDOW = attention_case(4, 2, 16, LENGTHS, AttentionRules(0.25, window=24))
CASES = [ATTENTION, WINDOW, rms_norm_case(48, 1e-5), rotary_case(4, 16), swiglu_case(40)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_first_row(x, p, rows, **more):
    return PLAIN["dropout"](x, p, int(rows.keys_T[0]) ^ rows.layer, **more)


def by_rows(x, p, rows, *, out=None, is_added=False):
    out = x if out is None else out
    for row, key in enumerate(rows.keys_T.tolist()):
        PLAIN["dropout"](x[row], p, key ^ rows.layer, out=out[row], is_added=is_added)
    return out


def without_boundaries(q, k, v, cu_seqlens, rules):
    return plain_attention(q, k, v, [0, cu_seqlens[-1]], rules)


def without_scale(q, k, v, cu_seqlens, rules):
    return plain_attention(q, k, v, cu_seqlens, rules._replace(scale=1.0))


def without_causality(q, k, v, cu_seqlens, rules):
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[None, :, start:end] for x in (q, k, v)), scale=rules.scale, enable_gqa=True
        )[0].transpose(0, 1)
        for start, end in zip(cu_seqlens, cu_seqlens[1:], strict=False)
    ]
    return torch.cat(parts)


def without_window(q, k, v, cu_seqlens, rules):
    return plain_attention(q, k, v, cu_seqlens, rules._replace(window=None))


def one_token_too_many(q, k, v, cu_seqlens, rules):
    return plain_attention(q, k, v, cu_seqlens, rules._replace(window=rules.window + 1))


def wrong_gradient(q, k, v, cu_seqlens, rules):
    out = plain_attention(q, k, v.detach(), cu_seqlens, rules)
    return out + 0.0 * v.sum()


def gives_nan(q, k, v, cu_seqlens, rules):
    out = plain_attention(q, k, v, cu_seqlens, rules)
    return out / (out.detach().abs() > out.detach().abs().min())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_a_right_operator_passes(case, dtype):
    verdict = try_kernel(PLAIN[case.operator], case, dtype, CPU)
    assert verdict.is_good, str(verdict)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kernel, case",
    [
        (without_boundaries, ATTENTION),
        (without_scale, ATTENTION),
        (without_causality, ATTENTION),
        (without_window, WINDOW),
        (one_token_too_many, WINDOW),
        (wrong_gradient, ATTENTION),
        (gives_nan, ATTENTION),
    ],
)
def test_wrong_attention_is_caught(kernel, case, dtype):
    verdict = try_kernel(kernel, case, dtype, CPU)
    assert not verdict.is_good and not verdict.failure, str(verdict)


@pytest.mark.parametrize(
    "kernel, case",
    [
        (lambda x, weight, eps: rms_norm(x, weight, 1e-1), rms_norm_case(48, 1e-5)),
        (lambda x, weight, eps: x * weight, rms_norm_case(48, 1e-5)),
        (lambda x, cos, sin: rotary(x, cos, -sin), rotary_case(4, 16)),
        (lambda gate, up: swiglu(up, gate), swiglu_case(40)),
        (lambda x, p, seed, **more: PLAIN["dropout"](x, 2 * p, seed, **more), dropout_case(40)),
        (lambda x, p, seed, **more: PLAIN["dropout"](x, p, 0, **more), dropout_case(40)),
        (lambda x, p, seed, **more: PLAIN["dropout"](x * 2, p, seed, **more), dropout_case(40)),
        (RowDropout(PLAIN["dropout"], by_first_row), dropout_case(40)),
        (RowDropout(lambda x, p, seed, **more: PLAIN["dropout"](x, p, 0, **more), by_rows), dropout_case(40)),
    ],
)
def test_other_wrong_operators_are_caught(kernel, case):
    assert not try_kernel(kernel, case, torch.bfloat16, CPU).is_good


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError("aclnnX is not in libopapi.so\nmore"), "RuntimeError: aclnnX is not in libopapi.so"),
        (AttributeError(""), "AttributeError: no reason given"),
    ],
)
@pytest.mark.parametrize("case", [ATTENTION, dropout_case(40)], ids=lambda case: case.operator)
def test_an_operator_that_fails_is_replaced_with_its_reason(case, error, said):
    def fails(*tensors, **options):
        raise error

    verdict = try_kernel(fails, case, torch.float32, CPU)
    assert str(verdict) == said and not verdict.is_good


def test_what_a_device_names_as_an_error_of_its_operators_is_one():
    class CompilationError(Exception):
        pass

    def fails(gate, up):
        raise CompilationError("at 3:4")

    device, lines = device_with(swiglu=fails), []
    with pytest.raises(CompilationError):
        trusted_kernels(device, [swiglu_case(8)], torch.float32)
    device = replace(device, kernel_errors=(CompilationError,))
    assert trusted_kernels(device, [swiglu_case(8)], torch.float32, report=lines.append) == {"swiglu": swiglu}
    assert lines == ["the fused swiglu of Test910 is replaced by the plain one: CompilationError: at 3:4"]


def test_too_little_memory_says_nothing_about_an_operator():
    def fills(*tensors, **options):
        raise torch.OutOfMemoryError("NPU out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        try_kernel(fills, ATTENTION, torch.float32, CPU)


def test_a_dropout_by_rows_passes():
    assert try_kernel(RowDropout(PLAIN["dropout"], by_rows), dropout_case(40), torch.bfloat16, CPU).is_good


def device_with(**kernels):
    return replace(open_device("cpu", environ={}), kernels=kernels, name="Test910", version="1")


def test_the_operators_of_a_device_after_the_gate():
    lines = []
    device = device_with(attention=without_scale, swiglu=swiglu, rotary=rotary)
    chosen = trusted_kernels(device, [ATTENTION, swiglu_case(40)], torch.float32, report=lines.append)
    assert chosen == {"attention": plain_attention, "swiglu": swiglu, "rotary": rotary}
    (line,) = lines
    assert line.startswith("the fused attention of Test910 is replaced by the plain one: error ")


def test_an_operator_without_a_case_is_not_trusted():
    device = device_with(swiglu=without_scale)
    assert trusted_kernels(device, [], torch.float32) == {"swiglu": swiglu}


def test_results_are_remembered_for_the_same_versions(tmp_path):
    calls = []

    def counted(gate, up):
        calls.append(1)
        return swiglu(gate, up)

    memory = tmp_path / "cache" / "operators.json"
    device = device_with(swiglu=counted)
    for number in (1, 1):
        trusted_kernels(device, [swiglu_case(40)], torch.float32, memory=memory)
        assert len(calls) == number
    trusted_kernels(replace(device, version="2"), [swiglu_case(40)], torch.float32, memory=memory)
    trusted_kernels(device, [swiglu_case(40)], torch.bfloat16, memory=memory)
    trusted_kernels(device, [swiglu_case(41)], torch.float32, memory=memory)
    assert len(calls) == 4
    assert len(json.loads(memory.read_text())) == 4


def test_a_failure_is_tried_again(tmp_path):
    calls = []

    def fails(gate, up):
        calls.append(1)
        raise RuntimeError("not now")

    for _ in range(2):
        trusted_kernels(
            device_with(swiglu=fails), [swiglu_case(8)], torch.float32, memory=tmp_path / "m", report=print
        )
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "{"])
def test_a_damaged_memory_costs_a_trial_only(tmp_path, content):
    memory = tmp_path / "operators.json"
    memory.write_text(content)
    device = device_with(swiglu=swiglu)
    assert trusted_kernels(device, [swiglu_case(8)], torch.float32, memory=memory) == {"swiglu": swiglu}
    assert json.loads(memory.read_text())


def test_a_memory_that_cannot_be_written_is_said(tmp_path, caplog):
    (tmp_path / "file").touch()
    memory = tmp_path / "file" / "operators.json"
    log.logger().addHandler(caplog.handler)
    try:
        trusted_kernels(device_with(swiglu=swiglu), [swiglu_case(8)], torch.float32, memory=memory)
    finally:
        log.logger().removeHandler(caplog.handler)
    assert "operators.json cannot be written" in caplog.text and not memory.exists()


def test_trial_lengths_are_those_of_the_run_cut_to_what_can_be_computed():
    assert trial_lengths([0, 3, 8]) == [0, 1, 4, 9]
    long = trial_lengths([0, 100_000, 200_000, 300_000, 400_000])
    assert long == [0, 1, 1 + LONGEST_TRY, 1 + 2 * LONGEST_TRY, 1536]


def test_a_window_longer_than_the_trial_is_made_short_enough_to_matter():
    _, rules = attention_case(2, 2, 8, [0, 4096], AttentionRules(0.25, window=4096)).arguments
    assert rules.window < LONGEST_TRY // 4


def test_largest_error_is_of_one_token():
    right = torch.ones(100, 4)
    wrong = right.clone()
    wrong[7] = 0
    assert largest_error(wrong, right) == pytest.approx(1.0)
    assert largest_error(right[:5], right) == float("inf")


def test_the_user_switches_operators_off():
    kernels = {"attention": plain_attention, "rms_norm": rms_norm}
    assert set(without(kernels, attention=False, others=True)) == {"rms_norm"}
    assert set(without(kernels, attention=True, others=False)) == {"attention"}


def test_results_are_kept_where_everything_else_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path))
    assert default_memory() == tmp_path / "operators.json"
