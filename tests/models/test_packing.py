"""Which models compute several samples in one pass: those that give each sample what it gets alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import make, save
from torch import nn

from swiftlet.models.causal import build_causal
from swiftlet.models.load import load_model
from swiftlet.models.packing import can_pack, let_pack
from swiftlet.models.rope import follows_length

LENGTHS = [5, 20, 12]  # two are longer than ORIGINAL
ORIGINAL = 8
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": ORIGINAL,
        **FACTORS,
    },
}
DYNAMIC = {
    "max_position_embeddings": ORIGINAL,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
FOLLOWING = {"longrope": ("phi3", LONGROPE), "dynamic": ("llama", DYNAMIC)}


def samples():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 120, (length,), generator=generator) for length in LENGTHS]


def loss_and_gradient(causal, ids):
    causal.model.zero_grad()
    targets = [torch.cat([part[1:], torch.tensor([-100])]) for part in ids]
    positions = [torch.arange(len(part)) for part in ids]
    ends = torch.tensor([len(part) for part in ids]).cumsum(0).tolist()
    loss = causal(torch.cat(ids), torch.cat(positions), [0, *ends], torch.cat(targets)).loss_sum
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in causal.model.parameters() if p.grad is not None]


def assert_independent(causal):
    """Samples give in one micro-batch what they give in one each, after whatever sample came before."""
    loss, gradient = loss_and_gradient(causal, samples())
    apart = [loss_and_gradient(causal, [part]) for part in samples()]
    assert loss == pytest.approx(sum(one for one, _ in apart), rel=1e-5)
    for whole, *parts in zip(gradient, *(grads for _, grads in apart), strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_rotation_that_follows_the_length_sees_one_sample_at_a_time(kind, tmp_path):
    family, settings = FOLLOWING[kind]
    save(tmp_path, family, **settings)
    model = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu")).requires_grad_(True)
    assert follows_length(model)
    causal = build_causal(model)
    assert not causal.is_packed
    assert_independent(causal)


def test_a_dynamic_rotation_forgets_the_longer_sample_before(tmp_path):
    save(tmp_path, "llama", **DYNAMIC)
    causal = build_causal(load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu")))
    losses = [loss_and_gradient(causal, [samples()[at]])[0] for at in (0, 2, 1, 2, 0)]
    assert (losses[0], losses[1]) == (losses[4], losses[3])


def test_one_type_of_layer_that_follows_the_length_is_enough():
    full = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    both = {"full_attention": full, "sliding_attention": sliding}
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    assert not can_pack(make("gemma3_text", rope_parameters=both, **layers))
    both["full_attention"] = sliding
    assert can_pack(make("gemma3_text", rope_parameters=both, **layers))


@pytest.mark.parametrize("kind", ["nemotron", "doge"])
def test_attention_that_is_not_told_of_the_samples_is_found_out(kind):
    model, lines = make(kind, max_position_embeddings=64), []
    assert can_pack(model)
    before, was_training = model.config._attn_implementation, model.train().training
    causal = build_causal(model, log=lines.append)
    assert not causal.is_packed and model.training == was_training
    assert model.config._attn_implementation == before
    assert len(lines) == 1 and "cannot tell packed samples apart: one forward pass a sample" in lines[0]
    causal.eval()
    assert_independent(causal)


def test_a_layer_that_mixes_neighbouring_tokens_is_found_out():
    class Mixing(nn.Module):
        def forward(self, x):
            return x + x.roll(1, dims=1)

    model = make("llama")
    assert let_pack(model)
    model.model.layers[0].mlp = Mixing()
    assert not let_pack(model)


def test_weights_without_values_are_taken_at_their_word():
    with torch.device("meta"):
        config = transformers.NemotronConfig(num_hidden_layers=1, num_key_value_heads=8)
        model = transformers.NemotronForCausalLM(config)
    assert let_pack(model)


@pytest.mark.parametrize("kind", ["cohere", "llama", "gpt2", "olmo"])
def test_matrices_that_are_one_number_as_before_sharding_do_not_hide_what_a_model_can(kind):
    model = make(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.constant_(parameter, 0.02)
    assert let_pack(model)


PHIMOE = {"max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("window", "is_packed"), [(8, False), (64, True), (None, True)])
def test_a_window_that_only_the_models_mask_has_is_kept(window, is_packed):
    model = make("phimoe", **PHIMOE | {"sliding_window": window}).requires_grad_(True)
    causal = build_causal(model)
    assert causal.is_packed is is_packed
    (ids,) = (part for part in samples() if len(part) == 20)
    expected = torch.nn.functional.cross_entropy(
        model(ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="sum"
    )
    assert loss_and_gradient(causal, [ids])[0] == pytest.approx(float(expected.detach()), rel=1e-5)
