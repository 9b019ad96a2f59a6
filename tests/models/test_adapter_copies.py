"""Adapters in the base's type, made at once: what a pass computes with them, and when there are none."""

from __future__ import annotations

import pytest
import torch
from tiny_models import start_adapters
from torch import nn
from transformers import Qwen2Config

from swiftlet.models import adapter_copies
from swiftlet.models.adapter_copies import AdapterCopies, scale_of
from swiftlet.models.decoder import Decoder, frequencies
from swiftlet.models.decoder_config import config_of
from swiftlet.models.decoder_lora import LoraFields, adapt
from swiftlet.models.lora_layers import apply_fast_lora
from swiftlet.models.lora_linear import Parts

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tuned(dtype=torch.bfloat16, dropout=0.25):
    torch.manual_seed(0)
    sizes = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config = config_of(sizes.to_dict())
    model = Decoder(config)
    model.model.register_buffer("inv_freq", frequencies(config.rope, config.head_dim), persistent=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    adapted = adapt(model.to(dtype), LoraFields(4, 8, dropout, NAMES))
    start_adapters(adapted, 0.2)
    copies = AdapterCopies()
    assert apply_fast_lora(adapted, Parts(copies=copies)) == 14
    return adapted.train(), copies


def layer_of(model, name):
    return next(module for path, module in model.named_modules() if path.endswith(name))


def matrices(layers):
    return [one.lora_A.default.weight for one in layers], [one.lora_B.default.weight for one in layers]


def gradients(model):
    ids, positions = torch.arange(9)[None] % 7, torch.arange(9)[None]
    torch.manual_seed(3)
    out = model.get_base_model().model(input_ids=ids, position_ids=positions, cu_seqlens=[0, 9])
    out.last_hidden_state.float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pass_with_copies_has_the_gradient_of_one_without(dtype):
    (with_copies, copies), (without, _) = tuned(dtype), tuned(dtype)
    copies.begin()
    found, right = gradients(with_copies), gradients(without)
    assert found.keys() == right.keys()
    for name, one in found.items():
        assert one.dtype == torch.float32 and one.is_contiguous() == right[name].is_contiguous()
        bound = 0.03 * float(right[name].abs().max())
        torch.testing.assert_close(one, right[name], rtol=0.05, atol=bound, msg=name)


@pytest.mark.parametrize("most", [3, adapter_copies.MOST_JOINED])
def test_they_are_used_and_lie_side_by_side(monkeypatch, most):
    monkeypatch.setattr(adapter_copies, "MOST_JOINED", most)
    model, copies = tuned()
    copies.begin()
    q, k, v, down = (
        layer_of(model, f"layers.1.{name}")
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    )
    scale = scale_of(q, "default")
    assert scale == 2 / 0.75
    for layers in ([q, k, v], [q], [k, v], [down]):
        all_a, all_b = matrices(layers)
        found = copies.of(all_a, all_b, [scale] * len(layers), torch.bfloat16)
        assert torch.equal(found.a_SI, torch.cat(all_a).bfloat16())
        assert torch.equal(found.scaled_a_SI, (torch.cat(all_a) * scale).bfloat16())
        for plain, scaled, b in zip(found.all_b_OR, found.all_scaled_b_OR, all_b, strict=True):
            assert torch.equal(plain, b.bfloat16()) and torch.equal(scaled, (b * scale).bfloat16())
    assert copies.of(*matrices([q, v]), [scale] * 2, torch.bfloat16) is None  # k lies between them
    asked = []
    real = AdapterCopies.of
    monkeypatch.setattr(AdapterCopies, "of", lambda *given: asked.append(real(*given)) or asked[-1])
    gradients(model)
    assert len(asked) == 2 * 5 and None not in asked


def test_there_are_none_of_what_has_changed_since_the_pass_began():
    model, copies = tuned()
    q = layer_of(model, "layers.0.self_attn.q_proj")
    scale = scale_of(q, "default")
    asked = (*matrices([q]), [scale])
    assert copies.of(*asked, torch.bfloat16) is None  # no pass began
    copies.begin()
    assert copies.of(*asked, torch.bfloat16) is not None
    assert copies.of(*asked, torch.float16) is None
    assert copies.of(*asked[:2], [scale * 2], torch.bfloat16) is None
    with torch.no_grad():
        q.lora_B.default.weight.add_(1)
    assert copies.of(*asked, torch.bfloat16) is None
    copies.begin()
    found = copies.of(*asked, torch.bfloat16)
    assert torch.equal(found.all_b_OR[0], q.lora_B.default.weight.bfloat16())
    model.eval()
    copies.begin()
    assert copies.of(*asked[:2], [2.0], torch.bfloat16) is not None  # no dropout


def as_it_is(model):
    return model


def with_one_moved(model):
    layer_of(model, "layers.0.mlp.up_proj").lora_A.default.weight.data = torch.empty(0)


def with_one_of_an_engine(model):
    class Gathered(nn.Parameter):
        pass

    matrix = layer_of(model, "layers.1.mlp.up_proj").lora_B.default
    matrix.weight = Gathered(matrix.weight.data)


@pytest.mark.parametrize(
    "dtype, change",
    [
        (torch.float32, as_it_is),
        (torch.bfloat16, with_one_moved),
        (torch.bfloat16, with_one_of_an_engine),
        (torch.bfloat16, lambda model: model.bfloat16()),
    ],
)
def test_there_are_none_where_nothing_is_gained_or_an_engine_holds_the_adapters(dtype, change):
    model, copies = tuned(dtype)
    change(model)
    copies.begin()
    q = layer_of(model, "layers.0.self_attn.q_proj")
    assert copies.of(*matrices([q]), [scale_of(q, "default")], dtype) is None


def test_a_model_without_adapters_has_none():
    copies = AdapterCopies()
    copies.begin()
    assert copies.of([torch.ones(1, 1)], [torch.ones(1, 1)], [1.0], torch.bfloat16) is None
