"""The language-model head and the cross entropy of its labels, in chunks and in one pass.

The forward pass computes the loss, the number of correct predictions and the gradients at once, so that the backward
pass only scales them and no more than one chunk of logits exists at a time. A head that is not trained needs less on
a CPU, see frozen_head.py; on an accelerator a chunk is a small part of the memory.

Shapes: N labelled positions, H hidden size, V vocabulary, M positions of one chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swiftlet.models.arena import empty
from swiftlet.models.frozen_head import frozen_cross_entropy, product

# On a CPU so many rows that the head is multiplied at the rate of large products, and more where there are few words:
# 512 rows take 7 to 15 % less time than 256, 1024 hardly less than 512 (docs/benchmarks.md).
CHUNK_BYTES, HOST_ROWS = 16 * 2**20, 512
# So many rows that an accelerator does not read the head for longer than it multiplies.
DEVICE_CHUNK_BYTES = 384 * 2**20


class Head(NamedTuple):
    """How logits come from hidden states: `softcap * tanh(scale * module(hidden) / softcap)`.

    `softcap` None leaves out the capping. `is_gathered`: the module's weight is whole whenever the loss is computed,
    whatever hooks the module has.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    is_gathered: bool = False

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """Return the logits [M, V] of some hidden states."""
        return self.shape(self.module(hidden_MH))

    def shape(self, raw_MV: Tensor) -> Tensor:
        """Return the logits that follow from what the head's matrix product gave."""
        logits_MV = raw_MV if self.scale == 1.0 else raw_MV * self.scale
        return logits_MV if self.softcap is None else torch.tanh(logits_MV / self.softcap) * self.softcap

    def slope(self, logits_MV: Tensor) -> Tensor | None:
        """Return the derivative of the logits by what the matrix product gave; None where it is `scale` everywhere."""
        if self.softcap is None:
            return None
        return (logits_MV / self.softcap).square_().neg_().add_(1).mul_(self.scale)


def is_plain(head: Head) -> bool:
    """Return whether a head is a linear layer and nothing more."""
    module = head.module
    has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)
    return type(module) is nn.Linear and (head.is_gathered or not has_hooks)


def linear_cross_entropy(
    hidden_NH: Tensor, targets_N: Tensor, head: Head, counted_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed cross entropy (fp32, differentiable) and the number of correct predictions (int64).

    A prediction is correct where no logit is higher than the label's.

    Args:
        counted_N: 1 for positions that count and 0 for others, for a plain head alone; None for all.
    """
    module = head.module
    has_grad = torch.is_grad_enabled()  # a function is not told of it by what its inputs need
    if is_plain(head):
        weights = (p if p is None or has_grad else p.detach() for p in (module.weight, module.bias))
        return _PlainHead.apply(hidden_NH, *weights, targets_N, head, counted_N)
    assert counted_N is None
    parameters = [p for p in module.parameters() if p.requires_grad and has_grad]
    return _AnyHead.apply(hidden_NH, targets_N, head, *parameters)


def chunk_rows(num_rows: int, vocabulary: int, itemsize: int, device: str = "cpu") -> int:
    """Return the positions of a chunk: as many as fit the budget, at least 32, the chunks of about equal size."""
    budget = max(CHUNK_BYTES, HOST_ROWS * vocabulary * 4) if device == "cpu" else DEVICE_CHUNK_BYTES
    most = max(32, budget // (vocabulary * itemsize))
    num_chunks = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // num_chunks))


class _PlainHead(torch.autograd.Function):
    """A linear head, frozen or trainable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        counted_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.weight_dtype = weight_VH.dtype
        ctx.bias_dtype = None if bias_V is None else bias_V.dtype
        if hidden_NH.device.type == "cpu" and not (needs_weight or needs_bias) and counted_N is None:
            found = frozen_cross_entropy(
                hidden_NH, weight_VH, bias_V, targets_N, head, needs_grad=needs_hidden
            )
            ctx.save_for_backward(found.grad_hidden, None, None)
            ctx.mark_non_differentiable(found.num_correct)
            return found.loss, found.num_correct
        num_rows, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        rows = chunk_rows(num_rows, vocabulary, 4, hidden_NH.device.type)
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        grad_bias = (
            torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and needs_bias else None
        )
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        correct = targets_N.new_zeros(())
        raw = empty((min(rows, num_rows), vocabulary), weight_VH)
        for start in range(0, num_rows, rows):
            hidden_MH = hidden_NH[start : start + rows].to(weight_VH.dtype)
            chunk = _Chunk(raw[: hidden_MH.shape[0]], hidden_MH, targets_N[start : start + rows])
            if counted_N is not None:
                chunk.counted_M1 = counted_N[start : start + rows, None]
            loss_sum, num_correct = chunk.forward(weight_VH, bias_V, head)
            loss += loss_sum
            correct += num_correct
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = chunk.grad_hidden(weight_VH)
            if grad_weight is not None:
                chunk.add_grad_weight(grad_weight)
            if grad_bias is not None:
                chunk.add_grad_bias(grad_bias)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_loss).to(ctx.weight_dtype),
            None if grad_bias is None else (grad_bias * grad_loss).to(ctx.bias_dtype),
            None,
            None,
            None,
        )


class _Chunk:
    """The logits of one chunk and what follows from them.

    The probabilities are never divided by their sum: the sum's inverse is applied to the much smaller gradients, and
    the label's own term is a gather of one row of the weight. After `forward`, `weights_MV` holds exp(logit - max),
    times the derivative of the capping where there is one.
    """

    def __init__(self, raw_MV: Tensor, hidden_MH: Tensor, targets_M: Tensor) -> None:
        self.weights_MV = raw_MV
        self.hidden_MH = hidden_MH
        self.targets_M = targets_M
        self.counted_M1: Tensor | None = None
        self.inverse_M1 = torch.empty(0)
        self.slope_M1: Tensor | float = 1.0

    def forward(self, weight_VH: Tensor, bias_V: Tensor | None, head: Head) -> tuple[Tensor, Tensor]:
        """Return the summed loss (fp32) and the number of correct predictions."""
        logits_MV = head.shape(product(self.hidden_MH, weight_VH, bias_V, out=self.weights_MV).float())
        targets_M1 = self.targets_M[:, None]
        label_M1 = logits_MV.gather(1, targets_M1)
        top_M1 = logits_MV.amax(1, keepdim=True)
        slope_MV = head.slope(logits_MV)
        self.slope_M1 = head.scale if slope_MV is None else slope_MV.gather(1, targets_M1)
        exps_MV = logits_MV.sub_(top_M1).exp_()
        total_M1 = exps_MV.sum(1, keepdim=True)
        losses_M1, correct_M1 = total_M1.log() + top_M1 - label_M1, label_M1 >= top_M1
        self.inverse_M1 = total_M1.reciprocal()
        if slope_MV is not None:
            exps_MV.mul_(slope_MV)
        elif head.scale != 1.0:
            self.inverse_M1 = self.inverse_M1 * head.scale
        if exps_MV.data_ptr() != self.weights_MV.data_ptr():
            self.weights_MV.copy_(exps_MV)
        if self.counted_M1 is not None:
            losses_M1, correct_M1 = losses_M1 * self.counted_M1, correct_M1 & (self.counted_M1 > 0)
            self.inverse_M1, self.slope_M1 = (
                self.inverse_M1 * self.counted_M1,
                self.slope_M1 * self.counted_M1,
            )
        return losses_M1.sum(), correct_M1.sum()

    def grad_hidden(self, weight_VH: Tensor) -> Tensor:
        """Return the gradient of the hidden states [M, H] in fp32."""
        product_MH = torch.mm(self.weights_MV, weight_VH).float().mul_(self.inverse_M1)
        return product_MH.sub_(weight_VH[self.targets_M].float() * self.slope_M1)

    def add_grad_weight(self, grad_VH: Tensor) -> None:
        """Add the gradient of the head's weight [V, H]."""
        scaled_MH = (self.hidden_MH * self.inverse_M1).to(self.weights_MV.dtype)
        grad_VH.add_(torch.mm(self.weights_MV.t(), scaled_MH))
        grad_VH.index_add_(0, self.targets_M, (self.hidden_MH * self.slope_M1).float(), alpha=-1)

    def add_grad_bias(self, grad_V: Tensor) -> None:
        """Add the gradient of the head's bias [V]."""
        slope_M1 = (
            self.slope_M1
            if isinstance(self.slope_M1, Tensor)
            else torch.full_like(self.inverse_M1, self.slope_M1)
        )
        grad_V.add_(torch.mv(self.weights_MV.float().t(), self.inverse_M1.squeeze(1)))
        grad_V.index_add_(0, self.targets_M, slope_M1.squeeze(1), alpha=-1)


class _AnyHead(torch.autograd.Function):
    """A head of any modules (adapters, a trained copy), differentiated chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: Head, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad
        wanted = [p for p, is_needed in zip(parameters, needs[3:], strict=True) if is_needed]
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in wanted]
        grad_hidden = torch.empty_like(hidden_NH) if needs[0] else None
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        correct = targets_N.new_zeros(())
        rows = chunk_rows(hidden_NH.shape[0], _num_outputs(head.module), 4 * 4, hidden_NH.device.type)
        for start in range(0, hidden_NH.shape[0], rows):
            hidden_MH = hidden_NH[start : start + rows].detach().requires_grad_(needs[0])
            with torch.enable_grad() if any(needs) else torch.no_grad():
                logits_MV = head.logits(hidden_MH).float()
                loss_sum = nn.functional.cross_entropy(
                    logits_MV, targets_N[start : start + rows], reduction="sum"
                )
            loss += loss_sum.detach()
            label_M = logits_MV.detach().gather(1, targets_N[start : start + rows, None]).squeeze(1)
            correct += (label_M >= logits_MV.detach().amax(1)).sum()
            if any(needs):
                found = torch.autograd.grad(loss_sum, [*([hidden_MH] if needs[0] else []), *wanted])
                if grad_hidden is not None:
                    grad_hidden[start : start + rows] = found[0]
                for grad, part in zip(grads, found[1 if needs[0] else 0 :], strict=True):
                    grad += part
        ctx.dtypes = [p.dtype for p in wanted]
        ctx.is_wanted = needs[3:]
        ctx.save_for_backward(grad_hidden, *grads)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, *grads = ctx.saved_tensors
        scaled = iter([(grad * grad_loss).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)])
        first = None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype)
        return (first, None, None, *(next(scaled) if is_wanted else None for is_wanted in ctx.is_wanted))


def _num_outputs(module: nn.Module) -> int:
    return max((p.shape[0] for p in module.parameters() if p.ndim == 2), default=1)
