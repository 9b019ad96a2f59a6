"""The check of a gradient's norm for silent errors of a card (NPU_ASD_ENABLE)."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import kernel

SOUND, WARNING, FAULT = 0, 1, 2
ZEROES_AND_RAISES = 2  # of npu_asd_detect


@kernel("_npu_silent_check_v2")
def silent_check(
    val: Tensor, input_grad: Tensor, sfda: Tensor, step: Tensor, c_min_steps: int, c_thresh_l1: float,
    c_coeff_l1: float, c_thresh_l2: float, c_coeff_l2: float, npu_asd_detect: int,
) -> Tensor:  # fmt: skip
    """Against a limit, and after the first steps the jump from the last value against the range seen.

    `sfda` has the last value, the lowest and the highest.
    """
    value, seen = val.float().reshape(()), int(step) > 0
    before, lowest, highest = sfda.clone()
    jump = (value - before).abs() if int(step) >= c_min_steps else torch.tensor(0.0)

    def beyond(limit: float, coefficient: float) -> bool:
        return bool(value > limit) or bool(jump > coefficient * (highest - lowest))

    result = WARNING if beyond(c_thresh_l2, c_coeff_l2) else SOUND
    if not bool(value.isfinite()) or beyond(c_thresh_l1, c_coeff_l1):
        result = FAULT
    if result == FAULT and npu_asd_detect == ZEROES_AND_RAISES:
        input_grad.zero_()
    else:
        low = torch.minimum(lowest, value) if seen else value
        sfda.copy_(torch.stack([value, low, torch.maximum(highest, value) if seen else value]))
        step.add_(1)
    return torch.full_like(step, result, dtype=torch.int32)
