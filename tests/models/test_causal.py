"""The padding-free loss and its gradient equal those of transformers on a padded batch with full logits."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from swiftlet.errors import UsageError
from swiftlet.models.causal import build_causal
from swiftlet.models.packing import can_pack

LENGTHS = [7, 1, 12, 5]
VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "qwen2-moe": (
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "mistral-sliding": ("Mistral", {"sliding_window": 4}),
    "gemma2": (
        "Gemma2",
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.0,
        },
    ),
    "gemma3": ("Gemma3Text", {"query_pre_attn_scalar": 8, "sliding_window": 4}),
    "phi3": ("Phi3", {}),
    "glm4": ("Glm4", {}),
    "smollm3": ("SmolLM3", {}),
    "granite": ("Granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
}
UNPACKABLE = {
    "bloom": ("Bloom", {}),
    "mamba2": ("Mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2}),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    prefix, extra = {**FAMILIES, **UNPACKABLE}[name]
    config = getattr(transformers, f"{prefix}Config")(**{**SMALL, **extra})
    causal = {"Gemma3Text": "Gemma3ForCausalLM"}.get(prefix, f"{prefix}ForCausalLM")
    return getattr(transformers, causal)(config).float()


def samples() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in LENGTHS]
    labels = [part.clone() for part in ids]
    for part in labels:
        part[torch.rand(len(part), generator=generator) < 0.4] = -100
        part[0] = -100
    return ids, labels


def pack(ids, labels):
    ends = torch.tensor([len(part) for part in ids]).cumsum(0).tolist()
    positions = torch.cat([torch.arange(len(part)) for part in ids])
    return torch.cat(ids), positions, [0, *ends], torch.cat(labels).roll(-1)  # no first token has a label


def padded_loss(model, ids, labels):
    batch = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in ids], batch_first=True)
    logits = model(input_ids=batch, attention_mask=mask, use_cache=False).logits.float()
    logits, targets = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    kept = targets != -100
    correct = (logits[kept].argmax(1) == targets[kept]).sum()
    return nn.functional.cross_entropy(logits, targets, reduction="sum"), int(correct)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_padded_gradient(reference, model, causal, rtol=1e-5):
    ids, labels = samples()
    expected, correct = padded_loss(reference, ids, labels)
    expected.backward()
    losses = causal(*pack(ids, labels))
    losses.loss_sum.backward()
    assert losses.loss_sum.dtype == torch.float32
    torch.testing.assert_close(losses.loss_sum.detach(), expected.detach(), rtol=rtol, atol=0)
    assert int(losses.num_correct) == correct
    assert int(losses.num_tokens) == sum(int((part != -100).sum()) for part in labels)
    ours, theirs = gradients(model), gradients(reference)
    assert ours.keys() == theirs.keys() and ours
    for name, grad in theirs.items():
        torch.testing.assert_close(
            ours[name], grad, rtol=rtol, atol=rtol * float(grad.abs().max()) + 1e-7, msg=name
        )


def with_lora(model, **settings):
    torch.manual_seed(2)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    )
    return get_peft_model(model, config)


@pytest.mark.parametrize("name", FAMILIES)
def test_full_training_has_the_gradient_of_the_padded_batch(name):
    reference, model = build(name), build(name)
    lines = []
    causal = build_causal(model, log=lines.append)
    assert causal.is_packed and not lines
    assert_padded_gradient(reference, model, causal)


@pytest.mark.parametrize("name", UNPACKABLE)
def test_a_model_that_cannot_pack_runs_one_pass_a_sample_and_says_so(name):
    reference, model = build(name), build(name)
    lines = []
    causal = build_causal(model, log=lines.append)
    assert not causal.is_packed
    assert lines == [
        f"{type(model).__name__} cannot tell packed samples apart: one forward pass a sample (slower)"
    ]
    assert_padded_gradient(reference, model, causal, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-bias", "qwen2-tied", "gemma2", "phi3"])
def test_lora_has_the_gradient_of_the_padded_batch(name):
    reference, model = with_lora(build(name)), with_lora(build(name))
    assert_padded_gradient(reference, model, build_causal(model))


def test_a_head_with_an_adapter_has_the_gradient_of_the_padded_batch():
    settings = {"target_modules": ["q_proj", "lm_head"]}
    reference, model = with_lora(build("llama"), **settings), with_lora(build("llama"), **settings)
    assert_padded_gradient(reference, model, build_causal(model))


def test_a_trained_copy_of_the_head_has_the_gradient_of_the_padded_batch():
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    reference, model = with_lora(build("llama"), **settings), with_lora(build("llama"), **settings)
    assert_padded_gradient(reference, model, build_causal(model))


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2"])
def test_recomputing_layers_changes_nothing(name):
    model = with_lora(build(name), lora_dropout=0.3)
    again = copy.deepcopy(model)
    plain, checkpointed = build_causal(model), build_causal(again, gradient_checkpointing=True)
    found = []
    for causal in (plain, checkpointed):
        causal.train()
        torch.manual_seed(3)
        loss = causal(*pack(*samples())).loss_sum
        loss.backward()
        found.append((loss.detach(), gradients(causal.model)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_model_that_cannot_recompute_its_layers_says_what_to_leave_out():
    model = build("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(UsageError, match="LlamaForCausalLM cannot recompute activations") as caught:
        build_causal(model, gradient_checkpointing=True)
    assert caught.value.hint == "leave out --gradient_checkpointing"


def test_logits_made_in_an_unknown_way_are_taken_from_the_model():
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3 + 1
            return output

    torch.manual_seed(0)
    model = Odd(transformers.LlamaConfig(**SMALL)).float()
    lines = []
    causal = build_causal(copy.deepcopy(model), log=lines.append)
    assert lines == ["Odd computes logits in its own way: they are not computed in chunks (more memory)"]
    assert_padded_gradient(model, causal.model, causal)


def test_a_micro_batch_without_labels_gives_zero_and_no_gradient():
    causal = build_causal(build("llama"))
    zero = torch.zeros(1, dtype=torch.long)
    losses = causal(zero, zero, [0, 1], torch.full_like(zero, -100))
    losses.loss_sum.backward()
    assert losses.loss_sum.item() == 0 and losses.num_tokens == 0
    assert all(grad.abs().max() == 0 for grad in gradients(causal.model).values())


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_the_built_model_still_generates_from_a_padded_batch(name):
    model, built = build(name).eval(), build(name).eval()
    build_causal(built)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(built.generate(ids, **settings), model.generate(ids, **settings))


def test_neftune_adds_bounded_noise_by_the_length_of_each_sample_in_training_only():
    model = build("llama")
    causal = build_causal(model, neftune_alpha=5.0)
    ids, labels = samples()
    seen = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach()[0])
    )
    causal.train(False)
    causal(*pack(ids, labels))
    causal.train()
    torch.manual_seed(0)
    causal(*pack(ids, labels))
    noise = seen[1] - seen[0]
    for part, length in zip(noise.split(LENGTHS), LENGTHS, strict=True):
        bound = 5.0 / (length * SMALL["hidden_size"]) ** 0.5
        assert 0.8 * bound < part.abs().max() <= bound * 1.0001


def test_all_known_families_can_pack():
    assert all(can_pack(build(name)) for name in FAMILIES)
