"""The operators written in Triton, in its interpreter on the CPU (the same source that a GPU compiles)."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():

    def test_in_the_interpreter():
        """Triton reads its switch when it is imported: a process of its own."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
        done = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert "passed" in done.stdout

else:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    from swiftlet.device import kernels, triton_kernels
    from swiftlet.device.cuda_kernels import KERNEL_ERRORS
    from swiftlet.device.kernels import Rows
    from swiftlet.device.trust import (
        dropout_case,
        rotary_case,
        swiglu_case,
        try_dropout,
        try_kernel,
    )
    from swiftlet.models.decoder import MLP, RMSNorm
    from swiftlet.models.fused import apply_fused
    from swiftlet.models.lora_linear import Adapter, Layer, Parts, lora_linear
    from swiftlet.models.recompute import Recompute
    from swiftlet.models.row_keys import RowKeys

    DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    DTYPES = [torch.float32, torch.bfloat16] if torch.cuda.is_available() else [torch.float32]

    # The interpreter takes some 10 ms for each block of a grid, which is a token or a row: few of them, wide ones.
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "case",
        [
            swiglu_case(40),
            rotary_case(3, 8, tokens=33),
            rotary_case(20, 80, tokens=33),
            dropout_case(600, tokens=10),
        ],
    )
    def test_the_trust_gate_lets_them_pass(case, dtype):
        verdict = try_kernel(getattr(triton_kernels, case.operator), case, dtype, DEVICE)
        assert verdict.is_good, str(verdict)

    def test_rotation_of_heads_that_lie_side_by_side():
        torch.manual_seed(0)
        x = torch.randn(2, 5, 3, 8, device=DEVICE).transpose(1, 2).requires_grad_()
        angle = torch.randn(2, 5, 8, device=DEVICE)
        found = triton_kernels.rotary(x, angle.cos(), angle.sin())
        right = kernels.rotary(x, angle.cos(), angle.sin())
        assert torch.allclose(found, right, atol=1e-5) and found.transpose(1, 2).is_contiguous()
        direction = torch.randn_like(right)
        one, other = (torch.autograd.grad(out, x, direction, retain_graph=True)[0] for out in (found, right))
        assert torch.allclose(one, other, atol=1e-5)

    @pytest.mark.parametrize("count", [1, 511, 2048, 5000])
    def test_dropout_of_any_length_drops_its_share(count):
        x = torch.arange(1, count + 1, device=DEVICE, dtype=torch.float32)
        kept = triton_kernels.dropout(x, 0.3, 2**61 + 5, out=torch.empty_like(x))
        assert torch.equal(kept[kept != 0], x[kept != 0])
        if count > 1000:
            assert try_dropout(triton_kernels.dropout, x.view(8, -1), 0.3).is_good
            assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.04)

    @pytest.mark.parametrize("width", [1, 5, 512, 2100])
    def test_a_row_has_its_mask_whatever_stands_around_it(width):
        keys = torch.tensor([5, -(2**62), 5, 2**63 - 1], device=DEVICE)
        x = torch.ones(4, width, device=DEVICE)
        kept = triton_kernels.dropout.by_rows(x, 0.3, Rows(keys, 3), out=torch.empty_like(x))
        assert set(kept.unique().tolist()) <= {0.0, 1.0} and torch.equal(kept[0], kept[2])
        alone = triton_kernels.dropout.by_rows(x[1:2].clone(), 0.3, Rows(keys[1:2], 3))
        assert torch.equal(alone, kept[1:2])
        added = triton_kernels.dropout.by_rows(x, 0.3, Rows(keys, 3), out=torch.ones_like(x), is_added=True)
        assert torch.equal(added, 1 + kept)
        if width > 500:
            other = triton_kernels.dropout.by_rows(x, 0.3, Rows(keys, 4), out=torch.empty_like(x))
            masks = [kept[0], kept[1], kept[3], other[0]]
            shared = [float((one == two).float().mean()) for one in masks for two in masks if one is not two]
            assert all(abs(share - (0.7**2 + 0.3**2)) < 0.12 for share in shared)
            assert float(kept.mean()) == pytest.approx(0.7, abs=0.05)

    def test_a_step_has_one_gradient_however_its_samples_go_together():
        torch.manual_seed(1)
        a, b = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((4, 32), (16, 4)))
        weight, table = torch.randn(16, 32, device=DEVICE), torch.randn(50, 32, device=DEVICE)
        keys = RowKeys(of_device=True)
        parts = Parts(dropout=triton_kernels.dropout, keys=keys)
        samples = [torch.randint(50, (length,), device=DEVICE) for length in (7, 1, 5)]

        def gradient(groups):
            for group in groups:
                ids = torch.cat(group)
                positions = torch.cat([torch.arange(len(one), device=DEVICE) for one in group])
                keys.begin(ids, positions, 11, None, torch.arange(1, device=DEVICE))
                out = lora_linear(table[ids], Layer(weight, None, Adapter(a, b, 0.5, 0.25), 2), parts=parts)
                out.square().sum().backward()
            found = torch.cat([a.grad.flatten(), b.grad.flatten()])
            a.grad = b.grad = None
            return found

        together, apart = gradient([samples]), gradient([[one] for one in reversed(samples)])
        assert torch.allclose(together, apart, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("is_gated", [False, True])
    def test_a_lora_layer_made_of_them(is_gated):
        """Its gradients are those of the mask that the same seed draws."""
        torch.manual_seed(1)
        x, up = (torch.randn(6, 32, device=DEVICE, requires_grad=True) for _ in range(2))
        weight = torch.randn(16, 32, device=DEVICE)
        a, b = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((4, 32), (16, 4)))
        swiglu = triton_kernels.swiglu
        parts = Parts(swiglu.forward, swiglu.backward, triton_kernels.dropout)
        torch.manual_seed(7)
        found = lora_linear(
            x, Layer(weight, None, Adapter(a, b, 0.5, 0.25)), up=up if is_gated else None, parts=parts
        )
        torch.manual_seed(7)
        seed = int(torch.randint(2**62, ()))
        read = torch.nn.functional.silu(x) * up if is_gated else x
        mask = triton_kernels.dropout(torch.ones_like(read), 0.25, seed, out=torch.empty_like(read))
        right = read @ weight.t() + 0.5 / 0.75 * (read * mask) @ a.t() @ b.t()
        leaves = [x, a, b, *([up] if is_gated else [])]
        assert torch.allclose(found, right, atol=1e-3)
        direction = torch.randn_like(right)
        pairs = (torch.autograd.grad(out, leaves, direction, retain_graph=True) for out in (found, right))
        for one, other in zip(*pairs, strict=True):
            assert torch.allclose(one, other, atol=1e-3)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_gated_mlp_made_of_them_recomputes_the_same_bits(dtype):
        torch.manual_seed(1)
        sizes = SimpleNamespace(hidden_size=32, intermediate_size=80, mlp_bias=False)
        model, again = torch.nn.Sequential(RMSNorm(32, 1e-6), MLP(sizes)), Recompute()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.to(DEVICE, dtype)
        apply_fused(model, {**kernels.PLAIN, "swiglu": triton_kernels.swiglu}, again)
        assert (again.num_norms, again.num_ups) == (1, 1)
        x, found = torch.randn(1, 9, 32, device=DEVICE, dtype=dtype, requires_grad=True), []
        for again.is_on in (False, True):
            with again:
                out = model(x)
            found.append(torch.autograd.grad(out.square().sum(), [x, *model.parameters()]))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

    def test_errors_of_triton_are_errors_of_an_operator():
        assert issubclass(CompilationError, KERNEL_ERRORS) and issubclass(OutOfResources, KERNEL_ERRORS)
