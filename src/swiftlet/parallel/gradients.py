"""The gradients of all trained parameters as a few flat tensors, of which each `.grad` is a view.

One tensor instead of hundreds: clearing, the norm, clipping and reduction are a few kernels however many
parameters there are. Buckets hold parameters of one dtype and device, in the order in which backward reaches them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from swiftlet.parallel.world import World

BUCKET_BYTES = 64 * 2**20
ROW = 1024


def clip_factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return min(1, max_norm / (norm + 1e-6)). Source: torch.nn.utils.clip_grad_norm_."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


@dataclass(frozen=True)
class Bucket:
    """Some parameters and their gradients: `flat` is one tensor, `views` are its parts in the parameters' shapes."""

    names: list[str]
    parameters: list[nn.Parameter]
    views: list[torch.Tensor]
    flat: torch.Tensor


@dataclass(frozen=True)
class Gradients:
    """All buckets of a model."""

    buckets: list[Bucket]

    def clear(self) -> None:
        """Set every gradient to zero, in place."""
        for bucket in self.buckets:
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def norm(self) -> torch.Tensor:
        """Return the 2-norm over all gradients as a float32 scalar on their device, without a host sync."""
        norms = [norm_of(bucket.flat) for bucket in self.buckets]
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))

    def scale(self, factor: float | torch.Tensor) -> None:
        """Multiply all gradients by one number."""
        for bucket in self.buckets:
            bucket.flat.mul_(factor.to(bucket.flat) if isinstance(factor, torch.Tensor) else factor)

    def first_bad(self) -> str | None:
        """Return the name of the first parameter, in model order, whose gradient is not finite."""
        bad = [
            name
            for bucket in self.buckets
            if not bool(torch.isfinite(bucket.flat).all())
            for name, view in zip(bucket.names, bucket.views, strict=True)
            if not bool(torch.isfinite(view).all())
        ]
        return bad[-1] if bad else None


def norm_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the 2-norm of a tensor as a float32 scalar on its device, without a host sync.

    On a processor row by row: torch adds the squares of a whole tensor one to the other there, which is 6e-4 off for
    16 M.
    """
    flat = tensor.reshape(-1)
    if flat.device.type != "cpu" or len(flat) < ROW:
        return torch.linalg.vector_norm(flat, dtype=torch.float32)
    in_rows = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:in_rows].view(-1, ROW), dim=1, dtype=torch.float32)
    rest = torch.linalg.vector_norm(flat[in_rows:], dtype=torch.float32)
    return torch.linalg.vector_norm(torch.cat((rows, rest.view(1))))


def build_gradients(
    named_parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int = BUCKET_BYTES
) -> Gradients:
    """Give every trained parameter a zero gradient that is a view of a bucket."""
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    groups: dict[tuple[torch.dtype, torch.device], list[list[tuple[str, nn.Parameter]]]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for name, parameter in reversed(trained):
        kind = (parameter.dtype, parameter.device)
        size = parameter.numel() * parameter.element_size()
        if kind not in groups or sizes[kind] + size > bucket_bytes:
            groups.setdefault(kind, []).append([])
            sizes[kind] = 0
        groups[kind][-1].append((name, parameter))
        sizes[kind] += size
    gradients = Gradients([_bucket(members) for parts in groups.values() for members in parts])
    gradients.clear()
    return gradients


def _bucket(members: list[tuple[str, nn.Parameter]]) -> Bucket:
    names, parameters = [name for name, _ in members], [parameter for _, parameter in members]
    first = parameters[0]
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    parts = flat.split([p.numel() for p in parameters])
    return Bucket(
        names, parameters, [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)], flat
    )


def square_over_ranks(parts: Iterable[torch.Tensor], world: World) -> torch.Tensor:
    """Return the squared 2-norm of a gradient of which each rank has some parts, a float32 scalar; no host sync."""
    norms = [norm_of(part) for part in parts]
    square = torch.stack(norms).square().sum() if norms else torch.zeros((), device=world.device)
    return world.sum(square.to(world.device))


def first_bad_over_ranks(
    parts: Iterable[tuple[str, torch.Tensor]], names: Iterable[str], world: World
) -> str | None:
    """Return the first of these names of which any rank has a part that is not finite; every rank calls it."""
    bad = [name for name, part in parts if not bool(torch.isfinite(part).all())]
    found = {name for all_bad in world.gather(bad[:1]) for name in all_bad}
    return next((name for name in names if name in found), None)
