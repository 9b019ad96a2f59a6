"""Training on a simulated NPU gives the losses of the CPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.npu_sim
STEPS = 5


def tiny_model(attention: str = "eager", **changes):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 500} | changes
    config = Qwen2Config(num_attention_heads=4, num_key_value_heads=2, **sizes)
    config._attn_implementation = attention
    return Qwen2ForCausalLM(config)


def losses(model, device: str, optimizer=torch.optim.AdamW, autocast: bool = False, **options) -> list[float]:
    model = model.to(device)
    tokens = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(1)).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    update = optimizer(trained, lr=1e-2, **options)
    found = []
    for _ in range(STEPS):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        update.step()
        update.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_equal_those_of_the_cpu(attention):
    expected = losses(tiny_model(attention), "cpu")
    assert losses(tiny_model(attention), "npu") == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]


def test_lora_losses_equal_those_of_the_cpu():
    from peft import LoraConfig, get_peft_model

    def adapted():
        model = get_peft_model(
            tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        return model

    assert losses(adapted(), "npu") == pytest.approx(losses(adapted(), "cpu"), abs=1e-5)


def test_checkpointed_gradients_give_the_same_losses():
    model = tiny_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert losses(model, "npu") == pytest.approx(losses(tiny_model(), "cpu"), abs=1e-5)


def test_autocast_to_bfloat16_stays_near_that_of_the_cpu():
    expected = losses(tiny_model(), "cpu", autocast=True)
    found = losses(tiny_model(), "npu", autocast=True)
    assert found == pytest.approx(expected, abs=1e-2) and found != losses(tiny_model(), "cpu")


def test_the_fused_optimizer_of_torch_npu_follows_torchs():
    import torch_npu

    expected = losses(tiny_model(), "cpu", weight_decay=0.1)
    found = losses(tiny_model(), "npu", torch_npu.optim.NpuFusedAdamW, weight_decay=0.1)
    assert found == pytest.approx(expected, abs=1e-4)


def test_greedy_generation_equals_that_of_the_cpu():
    tokens = torch.arange(6)[None]
    expected = tiny_model().generate(tokens, max_new_tokens=6, do_sample=False)
    assert torch.equal(
        tiny_model().to("npu").generate(tokens.npu(), max_new_tokens=6, do_sample=False).cpu(), expected
    )


def test_a_convolution_trains():
    torch.manual_seed(0)
    layer, picture = torch.nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 8, 8)
    layer(picture).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    layer.npu()(picture.npu()).square().sum().backward()
    assert torch.allclose(layer.weight.grad.cpu(), expected, atol=1e-5)
