"""The cross entropy of a head that is not trained, over blocks of words: no more than one block of logits exists.

The highest logit so far, the sum of exp(logit - highest) and its product with the head's weight are scaled down
whenever a block has a higher one, so each logit is made once, and loss and gradient are there after the last block.
Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax, algorithm 3; with the product, Dao et
al. 2022, FlashAttention, section 3.1.

Shapes: N labelled positions, H hidden size, V vocabulary, M positions of one chunk, W words of one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from swiftlet.models.arena import empty

if TYPE_CHECKING:
    from swiftlet.models.cross_entropy import Head

# Blocks of 4 MiB: up to 1 024 rows and 16 384 words take the same time within 4 % (docs/benchmarks.md).
ROWS, WORDS = 512, 2048


class Found(NamedTuple):
    """The summed loss (fp32), the number of correct predictions, and the gradient [N, H] where it is asked for."""

    loss: Tensor
    num_correct: Tensor
    grad_hidden: Tensor | None


def product(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *, out: Tensor) -> Tensor:
    """Return hidden W^T + b, written into `out` [M, V]."""
    if bias_V is None:
        return torch.mm(hidden_MH, weight_VH.t(), out=out)
    return torch.addmm(bias_V, hidden_MH, weight_VH.t(), out=out)


class _Running:
    """What is known of the positions of a chunk after some blocks of words; all in fp32."""

    def __init__(self, hidden_MH: Tensor, targets_M: Tensor, head: Head, *, needs_grad: bool) -> None:
        self.hidden_MH = hidden_MH
        self.targets_M1 = targets_M[:, None]
        self.head = head
        zeros_M1 = hidden_MH.new_zeros((len(targets_M), 1), dtype=torch.float32)
        self.top_M1, self.total_M1, self.label_M1 = zeros_M1 - torch.inf, zeros_M1, zeros_M1
        self.slope_M1 = zeros_M1 + head.scale
        self.product_MH = torch.zeros_like(hidden_MH, dtype=torch.float32) if needs_grad else None

    def add(self, raw_MW: Tensor, start: int, weight_WH: Tensor, bias_W: Tensor | None) -> None:
        """Add the words from `start` on; what is in `raw_MW` is lost."""
        logits_MW = self.head.shape(product(self.hidden_MH, weight_WH, bias_W, out=raw_MW).float())
        places_M1 = self.targets_M1 - start
        is_here_M1 = (places_M1 >= 0) & (places_M1 < len(weight_WH))
        places_M1 = places_M1.clamp_(0, len(weight_WH) - 1)
        self.label_M1 = torch.where(is_here_M1, logits_MW.gather(1, places_M1), self.label_M1)
        top_M1 = torch.maximum(self.top_M1, logits_MW.amax(1, keepdim=True))
        shrink_M1, self.top_M1 = (self.top_M1 - top_M1).exp_(), top_M1
        slope_MW = self.head.slope(logits_MW)
        if slope_MW is not None:
            self.slope_M1 = torch.where(is_here_M1, slope_MW.gather(1, places_M1), self.slope_M1)
        exps_MW = logits_MW.sub_(top_M1).exp_()
        self.total_M1 = self.total_M1 * shrink_M1 + exps_MW.sum(1, keepdim=True)
        if self.product_MH is None:
            return
        if slope_MW is not None:
            exps_MW.mul_(slope_MW)
        self.product_MH.mul_(shrink_M1)
        if exps_MW.dtype == weight_WH.dtype:
            self.product_MH.addmm_(exps_MW, weight_WH)
        else:
            self.product_MH.add_(torch.mm(raw_MW.copy_(exps_MW), weight_WH))

    def found(self, weight_VH: Tensor) -> Found:
        """Return the outcome once all words were added."""
        loss = (self.total_M1.log() + self.top_M1 - self.label_M1).sum()
        num_correct = (self.label_M1 >= self.top_M1).sum()
        if self.product_MH is None:
            return Found(loss, num_correct, None)
        inverse_M1 = (self.head.scale if self.head.softcap is None else 1.0) / self.total_M1
        of_labels_MH = weight_VH[self.targets_M1.squeeze(1)] * self.slope_M1
        return Found(loss, num_correct, self.product_MH.mul_(inverse_M1).sub_(of_labels_MH))


def frozen_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    head: Head,
    *,
    needs_grad: bool,
) -> Found:
    """Return the loss of all positions, the gradient in the type of the hidden states."""
    num_rows, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
    grad_NH = torch.empty_like(hidden_NH) if needs_grad else None
    loss, correct = hidden_NH.new_zeros((), dtype=torch.float32), targets_N.new_zeros(())
    raw = empty((min(num_rows, ROWS) * min(vocabulary, WORDS),), weight_VH)
    for start in range(0, num_rows, ROWS):
        hidden_MH = hidden_NH[start : start + ROWS].to(weight_VH.dtype)
        running = _Running(hidden_MH, targets_N[start : start + ROWS], head, needs_grad=needs_grad)
        for word in range(0, vocabulary, WORDS):
            weight_WH = weight_VH[word : word + WORDS]
            raw_MW = raw[: len(hidden_MH) * len(weight_WH)].view(len(hidden_MH), -1)
            running.add(raw_MW, word, weight_WH, None if bias_V is None else bias_V[word : word + WORDS])
        found = running.found(weight_VH)
        loss += found.loss
        correct += found.num_correct
        if grad_NH is not None and found.grad_hidden is not None:
            grad_NH[start : start + ROWS] = found.grad_hidden
    return Found(loss, correct, grad_NH)
