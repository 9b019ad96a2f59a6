"""Recurrent layers under torch_npu's own names; gates are in torch's order, weights are transposed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, gradients, kernel


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Returns h, c, the gates i, j, f, o and tanh(c)."""
    i, f, j, o = gates.float().chunk(4, -1)
    i, f, j, o = i.sigmoid(), f.sigmoid(), j.tanh(), o.sigmoid()
    c = f * c + i * j
    return o * c.tanh(), c, i, j, f, o, c.tanh()


@kernel("npu_lstm_cell")
def lstm_cell(
    input: Tensor, w_ih: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """Returns y, which is h, and what lstm_step does."""
    gates = input.float() @ w_ih.float() + h.float() @ w_hh.float()
    for bias in (b_ih, b_hh):
        if bias is not None:
            gates = gates + bias.float()
    h, *others = (part.to(input.dtype) for part in lstm_step(gates, c.float()))
    return h, h.clone(), *others


def upstream(given: tuple[Tensor | None, ...], shapes: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of outputs, zeros where there are none."""
    return [torch.zeros_like(out) if grad is None else grad for grad, out in zip(given, shapes, strict=True)]


@kernel("npu_lstm_cell_backward")
def lstm_cell_backward(
    grady: Tensor | None, gradh: Tensor | None, gradc: Tensor | None, input: Tensor, w_ih: Tensor, w_hh: Tensor,
    h: Tensor, c: Tensor, y_output: Tensor, h_output: Tensor, c_output: Tensor, i: Tensor, j: Tensor, f: Tensor,
    o: Tensor, tanhc: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of input, both weights, both biases, h and c. The biases, which are not given, are in the gates."""
    i, j, f, o, tanhc = (part.float() for part in (i, j, f, o, tanhc))
    y, hidden, cell = upstream((grady, gradh, gradc), (y_output, h_output, c_output))
    total = y.float() + hidden.float()
    inner = cell.float() + total * o * (1 - tanhc * tanhc)
    gates = torch.cat(
        (
            inner * j * i * (1 - i),
            inner * c.float() * f * (1 - f),
            inner * i * (1 - j * j),
            total * tanhc * o * (1 - o),
        ),
        -1,
    )
    bias = gates.sum(0)
    found = (
        gates @ w_ih.float().t(), input.float().t() @ gates, h.float().t() @ gates, bias, bias,
        gates @ w_hh.float().t(), inner * f,
    )  # fmt: skip
    return tuple(grad.to(input.dtype) for grad in found)


def need_one_layer(name: str, **setting: bool | int) -> None:
    """The device's own operators are layers of one direction."""
    for key, value in setting.items():
        if value != (key == "num_layers"):
            raise NotSimulated(f"npu::{name}: {key}={value}")


def over_time(step: Callable, x: Tensor, state: tuple[Tensor, ...]) -> list[Tensor]:
    """What the steps return, each stacked over time; the first results of a step are the state of the next."""
    rows = []
    for part in x.unbind(0):
        rows.append(step(part, *state))
        state = rows[-1][: len(state)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def lstm_layer(input: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, c: Tensor) -> list[Tensor]:
    def step(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        gates = torch.cat((x, hidden), -1) @ weight.float()
        return lstm_step(gates if bias is None else gates + bias.float(), cell)

    return over_time(step, input.float(), (h[0].float(), c[0].float()))


@kernel("npu_lstm")
def lstm(
    input: Tensor, weight: Tensor, bias: Tensor, seq_mask: Tensor, h: Tensor, c: Tensor, has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool, flag_seq: bool,
    direction: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One layer over [T, B, input]: y, h, c, i, j, f, o and tanh(c) of every step.

    `seq_mask` counts with flag_seq only; dropout is between layers, and `train` keeps what is returned anyway.
    """
    need_one_layer(
        "npu_lstm", num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, flag_seq=flag_seq,
        direction=direction,
    )  # fmt: skip
    found = lstm_layer(input, weight, bias if has_biases else None, h, c)
    y, *others = (part.to(input.dtype) for part in found)
    return y, y.clone(), *others


@kernel("npu_lstm_backward")
def lstm_backward(
    grady: Tensor | None, gradh: Tensor | None, gradc: Tensor | None, input: Tensor, weight: Tensor, bias: Tensor,
    hx: Tensor, cx: Tensor, y_output: Tensor, h_output: Tensor, c_output: Tensor, i: Tensor, j: Tensor, f: Tensor,
    o: Tensor, tanhc: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of input, weight, bias, hx and cx; the gates are computed again."""
    y, hidden, cell = upstream((grady, gradh, gradc), (y_output, h_output, c_output))

    def forward(*inputs: Tensor) -> list[Tensor]:
        x, matrix, offset, h, c = inputs
        return [part.to(input.dtype) for part in lstm_layer(x, matrix, offset, h, c)[:2]]

    return gradients(forward, (input, weight, bias, hx, cx), (y + hidden, cell))


def gru_layer(x: Tensor, hx: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> list[Tensor]:
    """h, the gates update and reset, the candidate and its hidden part, of every step."""

    def step(inputs: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        reset, update, new = (inputs @ w_x.float() + b_x.float()).chunk(3, -1)
        reset_h, update_h, hidden = (h @ w_h.float() + b_h.float()).chunk(3, -1)
        reset, update = (reset + reset_h).sigmoid(), (update + update_h).sigmoid()
        new = (new + reset * hidden).tanh()
        return new + update * (h - new), update, reset, new, hidden

    return over_time(step, x.float(), (hx[0].float(),))


@kernel("npu_gru")
def gru(
    input: Tensor, hx: Tensor, weight_input: Tensor, weight_hidden: Tensor, bias_input: Tensor, bias_hidden: Tensor,
    seq_length: Tensor, has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One layer over [T, B, input]: y, h, update, reset, candidate and its hidden part; all rows have T steps."""
    need_one_layer("npu_gru", num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first)
    biases = (bias_input, bias_hidden) if has_biases else (torch.zeros(()), torch.zeros(()))
    y, *others = (part.to(input.dtype) for part in gru_layer(input, hx, weight_input, weight_hidden, *biases))
    return y, y.clone(), *others


@kernel("npu_gru_backward")
def gru_backward(
    grady: Tensor | None, gradh: Tensor | None, input: Tensor, weight_input: Tensor, weight_hidden: Tensor,
    bias_input: Tensor, bias_hidden: Tensor, seq_length: Tensor, hx: Tensor, y_output: Tensor, h_output: Tensor,
    output_updata: Tensor, output_reset: Tensor, output_new: Tensor, hidden_new: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of both weights, input, both biases and hx; the gates are computed again."""
    y, hidden = upstream((grady, gradh), (y_output, h_output))

    def forward(*inputs: Tensor) -> list[Tensor]:
        w_x, w_h, x, b_x, b_h, h = inputs
        return [gru_layer(x, h, w_x, w_h, b_x, b_h)[0].to(input.dtype)]

    inputs = (weight_input, weight_hidden, input, bias_input, bias_hidden, hx)
    return gradients(forward, inputs, (y + hidden,))
