"""What the backward pass makes again changes no bit of a gradient, and is not held in between."""

from __future__ import annotations

import copy

import pytest
import torch
from test_causal import LENGTHS, SMALL, build, gradients, pack, samples, with_lora
from tiny_models import save
from torch import nn

from swiftlet.device.kernels import PLAIN
from swiftlet.errors import UsageError
from swiftlet.models.causal import apply_partial_checkpointing, build_causal
from swiftlet.models.load import load_plain
from swiftlet.models.recompute import Recompute
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora
from swiftlet.plan.live import LiveBytes

TOKENS, HIDDEN, INNER = sum(LENGTHS), SMALL["hidden_size"], SMALL["intermediate_size"]


def tuned(name, is_full, dtype):
    model = build(name) if is_full else with_lora(build(name), lora_dropout=0.3)
    model = model.to(dtype)
    for parameter in model.parameters():
        if not is_full and parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def step(model, *, is_partial, kernels=None):
    """Return loss and gradients of a step, and the bytes that are alive between its forward and backward pass."""
    causal = build_causal(model, kernels=kernels)
    if is_partial:
        apply_partial_checkpointing(causal)
    causal.train()
    torch.manual_seed(3)
    live = LiveBytes(causal.parameters())
    with live:
        loss = causal(*pack(*samples())).loss_sum
        held = live.live
        loss.backward()
    return loss.detach(), gradients(causal.model), held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("is_full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["llama-bias", "qwen2-tied", "qwen3", "qwen2-moe", "gemma2", "phi3"])
def test_no_bit_of_a_gradient_changes_and_less_is_held(name, is_full, dtype):
    model = tuned(name, is_full, dtype)
    loss, grads, held = step(copy.deepcopy(model), is_partial=False)
    again_loss, again_grads, again_held = step(model, is_partial=True)
    torch.testing.assert_close((again_loss, again_grads), (loss, grads), rtol=0, atol=0)
    has_up, keeps_normed = name not in ("gemma2", "phi3"), not is_full and dtype == torch.float32
    assert again_held < held or (again_held == held and keeps_normed and not has_up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("is_full", [False, True], ids=["lora", "full"])
def test_the_decoder_of_our_own_does_so_too(tmp_path, is_full, dtype):
    save(tmp_path, "qwen3")
    found = []
    for is_partial in (False, True):
        torch.manual_seed(1)
        model = load_plain(tmp_path, dtype=dtype, device=torch.device("cpu"))
        if is_full:
            apply_full(model)
        else:
            model = apply_lora(model, LoraSettings(dropout=0.3, target_modules=("ALL",)))
        found.append(step(model, is_partial=is_partial))
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=0, atol=0)
    assert found[1][2] < found[0][2]


# A frozen norm in fp32 keeps its output alone, recomputing or not: nothing more is spared there.
@pytest.mark.parametrize(("is_full", "spared"), [(False, INNER), (True, 2 * INNER + 2 * HIDDEN)])
def test_up_the_product_and_normalised_values_are_not_held(is_full, spared):
    model = tuned("llama", is_full, torch.float32)
    held = step(copy.deepcopy(model), is_partial=False)[2]
    layers = SMALL["num_hidden_layers"]
    assert held - step(model, is_partial=True)[2] == 4 * TOKENS * layers * spared


def test_an_operator_that_keeps_its_inputs_in_a_tensor_of_its_own_is_left_out():
    def joined(gate, up):
        first, second = torch.cat((gate, up), dim=-1).chunk(2, dim=-1)
        return nn.functional.silu(first) * second

    model, kernels = tuned("llama", False, torch.float32), {**PLAIN, "swiglu": joined}
    plain = step(copy.deepcopy(model), is_partial=True)
    found = step(model, is_partial=True, kernels=kernels)
    torch.testing.assert_close(found[:2], plain[:2])
    assert found[2] == plain[2]


def test_a_model_without_known_parts_says_what_to_use():
    causal = build_causal(build("gpt-neox"))
    with pytest.raises(UsageError, match="partial knows no part of GPTNeoXForCausalLM") as caught:
        apply_partial_checkpointing(causal)
    assert caught.value.hint == "use --gradient_checkpointing true, and no --fused_operators false"


def test_layers_whose_up_is_kept_are_counted():
    lines = []
    apply_partial_checkpointing(build_causal(build("phi3")), lines.append)
    assert lines == [
        "gradient_checkpointing partial: 0 of 2 layers of Phi3ForCausalLM have a gated MLP of a known build; the "
        "others spare only normalised values"
    ]
    apply_partial_checkpointing(build_causal(build("llama")), lines.append)
    assert len(lines) == 1


def test_nothing_is_offered_where_no_gradient_is_asked_for():
    causal = build_causal(build("llama"))
    apply_partial_checkpointing(causal)
    with torch.no_grad():
        expected = causal(*pack(*samples())).loss_sum
    torch.testing.assert_close(causal(*pack(*samples())).loss_sum.detach(), expected, rtol=0, atol=0)


def test_a_tensor_is_made_once_for_all_who_saved_it_and_freed_with_them():
    again, made = Recompute(), []
    again.is_on = True
    weight = torch.ones(3, requires_grad=True)

    def make():
        made.append(torch.full((3,), 2.0))
        return made[-1]

    with again:
        x = again.offer(torch.full((3,), 2.0), make)
        y = (weight * x).sum() + (weight.exp() * x.view(3)).sum()
        part = (weight[:2] * x[:2]).sum()  # a part of it is kept as it is
    del x
    y.backward()
    assert len(made) == 1
    part.backward()
    assert len(made) == 1
    torch.testing.assert_close(weight.grad, torch.tensor([4.0, 4.0, 2.0]) + 2 * weight.detach().exp())
