"""Dropout masks as bits, drawn from a seed and an offset, so that backward can draw them again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simnpu import graphs
from simnpu.fused.kernels import kernel, libraries


def keep_bits(count: int, drop: float, seed: int, offset: int) -> Tensor:
    """`count` booleans, True where an element is kept; the same for the same seed and offset."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + offset) % 2**63)
    return torch.rand(count, generator=generator) >= drop


def packed(bits: Tensor) -> Tensor:
    """Eight bits a byte, the lowest first; the length is a multiple of 128 bits, as on the device."""
    padded = torch.zeros((bits.numel() + 127) // 128 * 128, dtype=torch.uint8)
    padded[: bits.numel()] = bits.flatten()
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpacked(mask: Tensor, count: int) -> Tensor:
    """The booleans of a packed mask."""
    return ((mask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].bool()


def next_seed(step: int = 10) -> tuple[int, int]:
    """Seed and offset of the current card's generator, which moves on."""
    device = torch.device("npu", torch.npu.current_device())
    return graphs.draw(device, (step + 3) // 4 * 4)


@kernel("_npu_dropout_gen_mask.Tensor")
def dropout_gen_mask(input: Tensor, size: list[int], p: float, seed: int, offset: int) -> Tensor:
    return packed(keep_bits(math.prod(size), p, seed, offset))


def dropout_mask(
    size: list[int],
    p: float,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    """The mask of a tensor that is not there yet; bits have no type."""
    torch.ops.simnpu.count("npu::npu_dropout_gen_mask")
    bits = packed(keep_bits(math.prod(size), p, *next_seed()))
    mask = torch.empty(bits.shape, dtype=bits.dtype, device=device or "npu")
    torch.ops.simnpu.cpu_alias(mask).copy_(bits)
    return mask


# No argument is a tensor: torch_npu calls its own kernel before any device is looked at.
libraries["npu"].impl("npu_dropout_gen_mask", dropout_mask, "BackendSelect")


@kernel("_npu_dropout")
def dropout(input: Tensor, p: float) -> tuple[Tensor, Tensor]:
    bits = keep_bits(input.numel(), p, *next_seed())
    kept = input * bits.view(input.shape) / (1 - p) if p < 1 else torch.zeros_like(input)
    return kept, packed(bits)


@kernel("npu_dropout_backward")
def dropout_backward(grad_output: Tensor, mask: Tensor, p: float) -> Tensor:
    bits = unpacked(mask, grad_output.numel()).view(grad_output.shape)
    return grad_output * bits / (1 - p) if p < 1 else torch.zeros_like(grad_output)


@kernel("npu_dropout_do_mask")
def dropout_do_mask(input: Tensor, mask: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return dropout_backward(input, mask, p), mask


# The same with a byte for each element.
@kernel("_dropout_with_byte_mask")
def dropout_with_byte_mask(input: Tensor, p: float) -> tuple[Tensor, Tensor]:
    mask = keep_bits(input.numel(), p, *next_seed()).to(torch.uint8)
    return dropout_with_byte_mask_backward(input, mask, p), mask


@kernel("_dropout_with_byte_mask_backward")
def dropout_with_byte_mask_backward(grad_output: Tensor, mask: Tensor, p: float) -> Tensor:
    return grad_output * mask.view(grad_output.shape) / (1 - p) if p < 1 else torch.zeros_like(grad_output)
