"""Noise on the embeddings while training (NEFTune), each sample by its own length.

Source: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning": uniform noise in [-1, 1] times
alpha / sqrt(L H), with L tokens of the sample and H the size of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def add_noise(embeddings_1TH: Tensor, lengths: Sequence[int], alpha: float) -> Tensor:
    """Return embeddings with noise; `lengths` are the tokens of each sample, T in all."""
    hidden = embeddings_1TH.shape[-1]
    sizes = [alpha / math.sqrt(length * hidden) for length in lengths]
    size_T1 = torch.cat(
        [embeddings_1TH.new_full((length, 1), size) for length, size in zip(lengths, sizes, strict=True)]
    )
    return embeddings_1TH + torch.empty_like(embeddings_1TH).uniform_(-1, 1) * size_T1


def apply_neftune(embedding: nn.Module, alpha: float, lengths: Callable[[], Sequence[int]]) -> None:
    """Add noise to what `embedding` gives while it is in training mode.

    Args:
        lengths: returns the lengths of the samples of the pass that is running.
    """

    def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return add_noise(output, lengths(), alpha) if module.training else output

    embedding.register_forward_hook(hook)
