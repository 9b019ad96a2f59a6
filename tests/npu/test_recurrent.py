"""Recurrent layers under torch_npu's own names on simulated NPUs against torch's on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from nearness import assert_near
from torch import _VF
from torch.nn.utils import rnn

pytestmark = pytest.mark.npu_sim

STEPS, ROWS, WIDE, HIDDEN = 5, 3, 4, 2


def leaves(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device).detach().requires_grad_() for tensor in tensors]


def assert_same(expected: list[torch.Tensor], found: list[torch.Tensor], plain: list, cards: list) -> None:
    """Results and what flows back from them."""
    for cpu, card in zip(expected, found, strict=True):
        assert_near(card.detach(), cpu.detach())
    for outputs in (expected, found):
        sum(out.square().sum() * (i + 1) for i, out in enumerate(outputs)).backward()
    for cpu, card in zip(plain, cards, strict=True):
        assert_near(card.grad, cpu.grad)


def test_a_cell_with_memory(npu):
    tensors = [
        torch.randn(*shape)
        for shape in (
            (ROWS, WIDE), (WIDE, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (ROWS, HIDDEN), (ROWS, HIDDEN),
            (4 * HIDDEN,), (4 * HIDDEN,),
        )
    ]  # fmt: skip
    plain, cards = leaves("cpu", *tensors), leaves("npu", *tensors)
    x, w_x, w_h, h, c, b_x, b_h = plain
    expected = _VF.lstm_cell(x, (h, c), w_x.t(), w_h.t(), b_x, b_h)
    assert_same(list(expected), list(npu.npu_lstm_cell(*cards)[1:3]), plain, cards)


def test_a_layer_with_memory(npu):
    shapes = (
        (STEPS, ROWS, WIDE),
        (WIDE + HIDDEN, 4 * HIDDEN),
        (4 * HIDDEN,),
        (1, ROWS, HIDDEN),
        (1, ROWS, HIDDEN),
    )
    tensors = [torch.randn(*shape) for shape in shapes]
    plain, cards = leaves("cpu", *tensors), leaves("npu", *tensors)
    x, weight, bias, h, c = plain
    weights = (weight[:WIDE].t(), weight[WIDE:].t(), bias, torch.zeros_like(bias))
    y, _, last = _VF.lstm(x, (h, c), weights, True, 1, 0.0, True, False, False)
    x, weight, bias, h, c = cards
    how = (True, 1, 0.0, True, False, False, False, False)
    found = npu.npu_lstm(x, weight, bias, torch.tensor(STEPS).npu(), h, c, *how)
    assert_same([y, last], [found[0], found[2][-1:]], plain, cards)
    with pytest.raises(RuntimeError, match="npu_lstm: bidirectional=True"):
        npu.npu_lstm(x, weight, bias, torch.tensor(STEPS).npu(), h, c, True, 1, 0.0, True, True, *how[5:])


def test_a_layer_of_gates(npu):
    tensors = [
        torch.randn(*shape)
        for shape in (
            (STEPS, ROWS, WIDE), (1, ROWS, HIDDEN), (WIDE, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (3 * HIDDEN,),
            (3 * HIDDEN,),
        )
    ]  # fmt: skip
    plain, cards = leaves("cpu", *tensors), leaves("npu", *tensors)
    x, h, w_x, w_h, b_x, b_h = plain
    y, last = _VF.gru(x, h, (w_x.t(), w_h.t(), b_x, b_h), True, 1, 0.0, True, False, False)
    found = npu.npu_gru(*cards, torch.tensor([STEPS]).npu(), True, 1, 0.0, True, False, False)
    assert_same([y, last], [found[0], found[1][-1:]], plain, cards)


def test_samples_of_several_lengths_are_packed(npu):
    """Lengths and the sizes of batches stay on the host, as on a card."""
    model = torch.nn.LSTM(WIDE, HIDDEN, 2, bidirectional=True)
    card = copy.deepcopy(model).npu()
    x = torch.randn(STEPS, 3, WIDE)
    plain, there = x.clone().requires_grad_(), x.npu().requires_grad_()
    outputs = []
    for layer, given in ((model, plain), (card, there)):
        packed = rnn.pack_padded_sequence(given, torch.tensor([STEPS, 2, 1]))
        assert packed.batch_sizes.device.type == "cpu"
        out, lengths = rnn.pad_packed_sequence(layer(packed)[0])
        out.square().sum().backward()
        outputs.append(out.detach())
        assert lengths.tolist() == [STEPS, 2, 1]
    assert_near(outputs[1], outputs[0])
    assert_near(there.grad, plain.grad)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_inputs_may_be_narrower_than_weights(npu, kind):
    model = getattr(torch.nn, kind)(WIDE, HIDDEN).npu()
    x, state = torch.randn(STEPS, ROWS, WIDE), torch.zeros(1, ROWS, HIDDEN)
    expected = copy.deepcopy(model).cpu()(x)[0].detach()
    given = state.half().npu()
    layer = getattr(_VF, kind.lower())
    hidden = (given, given) if kind == "LSTM" else given
    out = layer(x.half().npu(), hidden, list(model.parameters()), True, 1, 0.0, True, False, False)[0]
    assert_near(out.detach().float(), expected, 1e-2)
