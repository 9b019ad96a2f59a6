"""Sparse tensors: what torch_npu leaves to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import libraries


def coalesce(self: Tensor) -> Tensor:
    """Values of equal indices are added; indices come in order."""
    torch.ops.simnpu.count("aten::_coalesce")
    indices, values = self._indices(), self._values()
    sizes = self.shape[: self.sparse_dim()]
    place = torch.zeros(indices.shape[1], dtype=torch.int64, device=self.device)
    for row, size in zip(indices, sizes, strict=True):
        place = place * size + row
    places, group = torch.unique(place, return_inverse=True)
    summed = values.new_zeros(len(places), *values.shape[1:]).index_add_(0, group, values)
    rows = torch.stack(torch.unravel_index(places, sizes)) if sizes else indices[:, : len(places)]
    return torch.sparse_coo_tensor(rows, summed, self.shape, is_coalesced=True, check_invariants=False)


libraries["aten"].impl("_coalesce", coalesce, "SparsePrivateUse1")
