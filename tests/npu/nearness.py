"""How results of simulated NPUs are compared with what the CPU gives."""

from __future__ import annotations

import torch


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Check that a tensor is on the NPU and near one of the CPU."""
    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)
