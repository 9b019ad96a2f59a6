"""LoRA's linear layer: the derivative of what it computes, exact dropout, and nothing kept beyond what is needed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from swiftlet.models import dropout as masks_of
from swiftlet.models.dropout import Dropout, dropped_by_rows, dropped_positions
from swiftlet.models.lora_layers import apply_fast_lora, lora_layers, project_together
from swiftlet.models.lora_linear import Adapter, Layer, _sum_of_products, lora_linear, lora_linears
from swiftlet.models.row_keys import RowKeys, keys_of, layer_keys

T, I, O, R = 5, 6, 4, 2  # noqa: E741


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("is_gated", [False, True])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(p, is_gated):
    x, up, weight, bias, a, b = draw((T, I), (T, I), (O, I), (O,), (R, I), (O, R))

    def layer(x, up, weight, bias, a, b):
        torch.manual_seed(1)  # the same elements are dropped each time
        return lora_linear(x, Layer(weight, bias, Adapter(a, b, 0.7, p)), up=up if is_gated else None)

    assert torch.autograd.gradcheck(layer, (x, up, weight, bias, a, b))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_layers_over_one_input_have_the_derivatives_of_what_they_compute(p):
    """One of them without a bias, one of another rank, one whose weights are frozen."""
    x, *rest = draw((T, I), (O, I), (O,), (R, I), (O, R), (3, I), (1, I), (3, 1), (2, I), (R, I), (2, R))
    frozen = rest.pop(7).detach()

    def layers(x, weight, bias, a, b, weight2, a2, b2, a3, b3):
        torch.manual_seed(1)
        adapters = Adapter(a, b, 0.7, p), Adapter(a2, b2, 1.5, p), Adapter(a3, b3, 2.0, p)
        weights = (weight, bias), (weight2, None), (frozen, None)
        return lora_linears(
            x, [Layer(*pair, adapter) for pair, adapter in zip(weights, adapters, strict=True)]
        )

    assert torch.autograd.gradcheck(layers, (x, *rest))


def test_layers_over_one_input_drop_the_same_elements_of_it():
    x, weight, a, b, weight2, b2 = draw((200, I), (O, I), (R, I), (O, R), (3, I), (3, R))
    one, other = (
        Layer(weight, None, Adapter(a, b, 0.7, 0.25)),
        Layer(weight2, None, Adapter(a, b2, 2.0, 0.25)),
    )
    torch.manual_seed(1)
    found = lora_linears(x, [one, other])
    for result, layer in zip(found, (one, other), strict=True):
        torch.manual_seed(1)
        torch.testing.assert_close(result, lora_linear(x, layer))


class Three(nn.Module):
    """Layers that read one input; the names of those with an adapter are given."""

    def __init__(self, names):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(I, size) for size in (O, 3, 2))
        self.config = LoraConfig(
            r=R, lora_alpha=4, lora_dropout=0.3, target_modules=names, init_lora_weights=False
        )

    def forward(self, x):
        return torch.cat(project_together(x, (self.q, self.k, self.v)), dim=-1)


@pytest.mark.parametrize("names", [["q", "k", "v"], ["q", "v"], ["k"]])
@pytest.mark.parametrize("is_training", [False, True])
def test_whichever_layers_have_an_adapter_each_gives_what_it_gives_alone(names, is_training):
    torch.manual_seed(0)
    three = Three(names)
    model = get_peft_model(three, three.config).train(is_training)
    apply_fast_lora(model)
    (x,) = draw((T, I), dtype=torch.float32)
    torch.manual_seed(1)
    together = model(x)
    expected = []
    for layer in (three.q, three.k, three.v):
        torch.manual_seed(1)  # the one mask of all
        expected.append(layer(x))
    torch.testing.assert_close(together, torch.cat(expected, dim=-1))
    with model.disable_adapter():
        bases = [getattr(layer, "base_layer", layer)(x) for layer in (three.q, three.k, three.v)]
        torch.testing.assert_close(model(x), torch.cat(bases, dim=-1))


def test_layers_whose_dropout_differs_are_computed_alone():
    torch.manual_seed(0)
    three = Three(["q", "k", "v"])
    model = get_peft_model(three, three.config)
    apply_fast_lora(model)
    three.k.lora_dropout["default"].p = 0.6
    (x,) = draw((T, I), dtype=torch.float32)
    torch.manual_seed(1)
    together = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(
        together, torch.cat([layer(x) for layer in (three.q, three.k, three.v)], dim=-1)
    )


def test_dropout_zeroes_the_same_elements_forward_and_backward_and_scales_the_rest():
    x, weight, a, b = draw((200, I), (O, I), (R, I), (O, R))
    torch.manual_seed(1)
    found = lora_linear(x, Layer(weight, None, Adapter(a, b, 0.7, 0.25)))
    torch.manual_seed(1)
    dropped = Dropout(0.25, int(torch.randint(2**62, ()))).zeroed(x) / 0.75
    expected = x @ weight.t() + 0.7 * dropped @ a.t() @ b.t()
    torch.testing.assert_close(found, expected)
    assert 0.2 < float((dropped == 0).double().mean()) < 0.3


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.95])
def test_each_element_is_dropped_on_its_own_with_the_same_probability(p):
    size, rounds = 1000, 400
    masks = torch.zeros(rounds, size)
    for seed in range(rounds):
        positions = dropped_positions(size, p, seed)
        assert positions.unique().numel() == positions.numel()
        masks[seed, positions] = 1
    spread = (p * (1 - p)) ** 0.5
    assert abs(float(masks.mean()) - p) < 5 * spread / (rounds * size) ** 0.5
    for column in (0, 1, size - 1):
        assert abs(float(masks[:, column].mean()) - p) < 5 * spread / rounds**0.5
    pairs = ((masks[:, 1:] - p) * (masks[:, :-1] - p)).mean() / spread**2
    assert abs(float(pairs)) < 5 / (rounds * (size - 1)) ** 0.5


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.95])
def test_by_rows_too_each_element_is_dropped_on_its_own_with_the_same_probability(p):
    rows, width, rounds = 200, 50, 40
    keys = RowKeys()
    masks = torch.zeros(rounds, rows, width)
    for seed in range(rounds):
        keys.begin(torch.arange(rows), torch.arange(rows), seed, None, torch.arange(3))
        drawn = dropped_by_rows(layer_keys(keys.of(rows, layer=5)), width, p)
        assert torch.equal(drawn.unique(), drawn.sort().values)
        masks[seed].view(-1)[drawn] = 1
    spread = (p * (1 - p)) ** 0.5
    assert abs(float(masks.mean()) - p) < 5 * spread / masks.numel() ** 0.5
    for column in (0, 1, width - 1):
        assert abs(float(masks[..., column].mean()) - p) < 5 * spread / (rounds * rows) ** 0.5
    centred = (masks - p) / spread
    neighbours = (
        centred[..., 1:] * centred[..., :-1],
        centred[:, 1:] * centred[:, :-1],
        centred[1:] * centred[:-1],
    )
    for products in neighbours:  # of a column, a row and a step
        assert abs(float(products.mean())) < 5 / products.numel() ** 0.5


def test_a_row_has_the_mask_of_what_stands_before_it_in_its_sample_of_the_step_and_of_the_layer():
    ids, positions = torch.tensor([7, 8, 9, 7, 8, 5, 8]), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    keys = keys_of(ids, positions, seed=1)
    assert (keys[:2] == keys[3:5]).all() and len(set(keys.tolist())) == 5
    alone = keys_of(ids[3:6], positions[3:6], seed=1)
    assert (alone == keys[3:6]).all()
    assert not set(keys_of(ids, positions, seed=2).tolist()) & set(keys.tolist())
    known = RowKeys()
    known.begin(ids, positions, 1, first_U=torch.tensor([0, 1, 2, 5, 6]), positions_N=torch.tensor([2, 4]))
    one, other = (layer_keys(known.of(5, layer)) for layer in (0, 1))
    assert not set(one.tolist()) & set(other.tolist())
    assert (layer_keys(known.of(2, layer=0)) == one[[2, 4]]).all()
    assert known.of(3, layer=0) is None


def test_a_mask_of_one_element_is_drawn_too():
    share = sum(len(dropped_positions(1, 0.3, seed)) for seed in range(2000)) / 2000
    assert abs(share - 0.3) < 0.05


@pytest.mark.parametrize("most", [0, masks_of.MOST_KEPT])
def test_a_mask_that_is_kept_is_the_one_that_would_be_drawn_again(monkeypatch, most):
    monkeypatch.setattr(masks_of, "MOST_KEPT", most)
    x = torch.ones(40, 50)
    mask = Dropout(0.3, 7)
    expected = mask.zeroed(x)
    short = mask.short_list()
    assert (short is None) == (most == 0)
    again = Dropout(0.3, 7, short=short)
    monkeypatch.setattr(masks_of, "dropped_positions", dropped_positions if short is None else None)
    assert torch.equal(again.zeroed(x), expected)


def tuned(dtype, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(I, O)).to(dtype)
    config = LoraConfig(r=R, lora_alpha=4, target_modules=["0"], init_lora_weights=False, **settings)
    return get_peft_model(model, config)


def test_fp32_adapters_over_a_bf16_base_get_fp32_gradients_as_with_autocast():
    fast, slow = tuned(torch.bfloat16), tuned(torch.bfloat16)
    for model in (fast, slow):
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
    assert apply_fast_lora(fast) == 1
    (x,) = draw((T, I), dtype=torch.bfloat16)
    fast(x).float().square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        slow(x).float().square().sum().backward()
    pairs = zip(fast.named_parameters(), slow.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        if ours.requires_grad:
            assert ours.grad.dtype == torch.float32
            bound = 0.02 * float(theirs.grad.abs().max())
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.02, atol=bound, msg=name)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_of_another_kind_keep_the_forward_of_peft(settings):
    model = tuned(torch.float32, **settings)
    assert apply_fast_lora(model) == 0 and lora_layers(model) == 1


def test_an_adapter_that_is_switched_off_adds_nothing():
    model = tuned(torch.float32)
    apply_fast_lora(model)
    (x,) = draw((T, I), dtype=torch.float32)
    base = model.base_model.model[0].base_layer
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base(x))
    assert not torch.allclose(model(x), base(x))


def test_nothing_of_the_size_of_the_input_is_kept_but_the_input_itself():
    x, up, weight, a, b = draw((64, 32), (64, 32), (16, 32), (2, 32), (16, 2), dtype=torch.float32)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lora_linear(x, Layer(weight.detach(), None, Adapter(a, b, 1.0, 0.1)), up=up)
    given = {t.untyped_storage().data_ptr() for t in (x, up, weight, a, b)}
    assert sum(size for pointer, size in kept.items() if pointer not in given) == 2 * 64


def test_what_is_added_to_the_output_in_place_costs_no_copy_in_the_backward_pass():
    x = torch.randn(1, 5, 8, requires_grad=True)
    adapter = Adapter(torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True), 1.0, 0.1)
    y = lora_linear(x, Layer(torch.randn(6, 8), torch.randn(6), adapter))
    assert y.shape == (1, 5, 6)
    assert type(y.add_(1).grad_fn).__name__ == "AddBackward0"  # CopySlices for a view


@pytest.mark.parametrize("num_inputs", [512, 520, 4096])
def test_sums_of_products_in_parts_are_those_of_one_product(num_inputs):
    thin, x = torch.randn(50, 8).double(), torch.randn(50, num_inputs).double()
    torch.testing.assert_close(_sum_of_products(thin, x, x.dtype), thin.t() @ x)
