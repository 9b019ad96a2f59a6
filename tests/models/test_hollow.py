"""A model without memory has the names, types, buffers and weights of one that is loaded whole."""

import pytest
import torch

from swiftlet.models import tuner
from swiftlet.models.causal import build_causal
from swiftlet.models.hollow import hollow_copies, is_hollow, open_weights
from swiftlet.models.load import load_model

CPU = torch.device("cpu")
SHARED = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "Qwen2": {},
    "Mixtral": {"num_local_experts": 4},
    "Gemma2": {"head_dim": 8},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
}


@pytest.fixture(scope="module", params=[(name, tied) for name in FAMILIES for tied in (False, True)], ids=str)
def folder(request, tmp_path_factory):
    import transformers

    name, is_tied = request.param
    config = getattr(transformers, f"{name}Config")(
        **SHARED,
        **FAMILIES[name],
        tie_word_embeddings=is_tied,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(name)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hollow_model_is_like_the_real_one(folder, dtype):
    real = load_model(folder, dtype=dtype, device=CPU)
    hollow = load_model(folder, dtype=dtype, device=CPU, hollow=True)
    for name, buffer in real.named_buffers():
        assert torch.equal(buffer, hollow.get_buffer(name)), name
    weights, parameters = open_weights(hollow, folder), dict(hollow.named_parameters())
    assert parameters.keys() == dict(real.named_parameters()).keys()
    for name, tensor in real.named_parameters():
        mine = parameters[name]
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape)
        assert is_hollow(mine) == (tensor.dim() > 1) == (name in weights)
        if is_hollow(mine):
            assert mine.untyped_storage().nbytes() == mine.element_size()
            first, last = tensor.numel() // 3, tensor.numel() - 5
            assert torch.equal(weights[name].elements(first, last).to(dtype), tensor.flatten()[first:last])
        else:
            assert torch.equal(mine, tensor)


@pytest.mark.parametrize("saved", ["lm_head", "EMBEDDING"])
def test_adapters_start_as_on_the_real_model(folder, saved):
    found = []
    for is_hollow_model in (False, True):
        model = load_model(folder, dtype=torch.float32, device=CPU, hollow=is_hollow_model)
        torch.manual_seed(1)
        found.append(tuner.apply_lora(model, tuner.LoraSettings(modules_to_save=(saved,))))
    real, hollow = found
    hollow_copies(hollow)
    weights = open_weights(hollow, folder)
    for name, parameter in hollow.named_parameters():
        if is_hollow(parameter):
            whole = weights[name].elements(0, parameter.numel())
            assert torch.equal(whole, real.get_parameter(name).flatten()), name
        else:
            assert torch.equal(parameter, real.get_parameter(name)), name
            assert "lora_" in name or parameter.dim() == 1


def test_what_a_model_can_is_found_without_its_weights(folder):
    model = load_model(folder, dtype=torch.float32, device=CPU, hollow=True)
    before = model.config._experts_implementation
    causal = build_causal(model)
    assert causal.is_packed and causal.head is not None
    assert model.config._experts_implementation == before


def test_a_weight_is_read_by_the_rows_it_lies_in():
    from swiftlet.models.hollow import Weight

    rows = torch.arange(12.0).view(4, 3)
    read = []

    def part(start, stop):
        read.append((start, stop))
        return rows[start:stop]

    assert Weight(rows.shape, part).elements(4, 8).tolist() == [4.0, 5.0, 6.0, 7.0]
    assert read == [(1, 3)]
