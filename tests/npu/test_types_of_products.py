"""What the units of a card that multiply refuse, which the CPU would do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.npu_sim
PRODUCTS = {
    "matmul": lambda x: x @ x,
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "linear": lambda x: torch.nn.functional.linear(x, x, x[0]),
    "conv1d": lambda x: torch.nn.functional.conv1d(x[None], x[..., None]),
}


REFUSED = [
    (name, *kind) for kind in ((torch.float64, "DT_DOUBLE"), (torch.int64, "DT_INT64")) for name in PRODUCTS
]


@pytest.mark.parametrize(("name", "dtype", "words"), [*REFUSED, ("matmul", torch.complex64, "DT_COMPLEX64")])
def test_types_that_no_cube_multiplies_are_refused(npu, name, dtype, words):
    x = torch.ones(4, 4, dtype=dtype).npu()
    supported = r"\[DT_FLOAT,DT_FLOAT16,DT_BFLOAT16,\]"
    with pytest.raises(RuntimeError, match=f"(?s)161002.*EZ1001.*{words}, should be in .* {supported}"):
        PRODUCTS[name](x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_types_that_a_cube_multiplies_are_multiplied(npu, name, dtype):
    x = torch.eye(4, dtype=dtype)
    assert torch.equal(PRODUCTS[name](x.npu()).cpu(), PRODUCTS[name](x))


def test_a_910a_multiplies_no_bfloat16():
    code = "import torch; x = torch.ones(2, 2, device='npu', dtype=torch.bfloat16); x @ x"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NPUSIM_SOC": "Ascend910A"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "not implemented for DT_BFLOAT16, should be in dtype support list [DT_FLOAT,DT_FLOAT16,]"
        in done.stderr
    )
