"""Our own decoder gives what transformers and peft give, to the last bit where shapes are the same, and their files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save, start_adapters

from swiftlet.models.adapter import adapter_tensors, load_adapter, plain_fields
from swiftlet.models.causal import PackedInputs, build_causal
from swiftlet.models.decoder import Decoder
from swiftlet.models.decoder_config import config_of, decoder_config
from swiftlet.models.load import load_model, load_plain
from swiftlet.models.save import write_model
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora, is_plain

CPU = torch.device("cpu")
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"attention_bias": True}),
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-stretched": ("llama", {"rope_parameters": STRETCHED, "max_position_embeddings": 64}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
}
LENGTHS = [9, 1, 14]
TARGETS = ("ALL",)


def micro_batch(all_labelled=False):
    """Return ids, positions, boundaries and targets of three samples, the first tokens of each not trained on."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 120, (sum(LENGTHS),), generator=generator)
    ids[[2, 15]] = 0  # the padding token, whose embedding transformers does not train
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    boundaries = [0, 9, 10, 24]
    labels = ids.clone()
    for start, end in zip(boundaries, boundaries[1:], strict=False):
        labels[start : start + (1 if all_labelled else (end - start) // 2 + 1)] = -100
    return ids, positions, boundaries, labels.roll(-1)


def both(folder, dtype=torch.float32):
    theirs = load_model(folder, dtype=dtype, device=CPU)
    ours = load_plain(folder, dtype=dtype, device=CPU)
    assert isinstance(ours, Decoder) and not isinstance(theirs, Decoder)
    return theirs, ours


def run(model, *, seed=3, batch=None):
    causal = build_causal(model).train()
    torch.manual_seed(seed)
    losses = causal(*(batch or micro_batch()))
    losses.loss_sum.backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "settings"), FAMILIES.values(), ids=FAMILIES)
def test_lora_is_that_of_transformers_and_peft(tmp_path, kind, settings, dtype):
    save(tmp_path, kind, **settings)
    pair = []
    for model in both(tmp_path, dtype):
        torch.manual_seed(1)
        pair.append(apply_lora(model, LoraSettings(dropout=0.0, target_modules=TARGETS)))
    theirs, ours = (dict(model.named_parameters()) for model in pair)
    assert list(theirs) == list(ours)
    for name, parameter in theirs.items():
        assert torch.equal(parameter, ours[name]) and parameter.dtype == ours[name].dtype
        assert parameter.requires_grad == ours[name].requires_grad
        if "lora_B" in name:  # at 0 A would get no gradient
            torch.manual_seed(len(name))
            value = torch.randn_like(parameter) * 0.1
            parameter.data, ours[name].data = value, value.clone()
    (expected, their_grads), (found, our_grads) = run(pair[0]), run(pair[1])
    close = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(found.loss_sum, expected.loss_sum, rtol=close / 10)
    assert their_grads.keys() == our_grads.keys()
    for name, grad in their_grads.items():
        assert torch.allclose(our_grads[name], grad, rtol=close, atol=close * float(grad.abs().max())), name


@pytest.mark.parametrize(("kind", "settings"), FAMILIES.values(), ids=FAMILIES)
def test_full_training_is_that_of_transformers(tmp_path, kind, settings):
    save(tmp_path, kind, **settings)
    theirs, ours = both(tmp_path)
    for model in (theirs, ours):
        apply_full(model)
    (expected, their_grads), (found, our_grads) = run(theirs), run(ours)
    assert torch.allclose(found.loss_sum, expected.loss_sum, rtol=1e-6)
    assert their_grads.keys() == our_grads.keys()
    for name, grad in their_grads.items():
        assert torch.allclose(our_grads[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max())), name


def test_with_all_positions_wanted_every_bit_is_theirs(tmp_path):
    save(tmp_path, "qwen2")
    theirs, ours = both(tmp_path)
    batch = micro_batch(all_labelled=True)
    theirs, ours = (build_causal(apply_full(model) and model or model) for model in (theirs, ours))
    hidden = [model.hidden_states(PackedInputs(*batch[:3], None)) for model in (theirs, ours)]
    assert torch.equal(*hidden)


def test_recomputing_layers_changes_nothing(tmp_path):
    save(tmp_path, "qwen3")
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = apply_lora(load_plain(tmp_path, dtype=torch.float32, device=CPU), LoraSettings(dropout=0.3))
        causal = build_causal(model, gradient_checkpointing=recompute).train()
        torch.manual_seed(2)
        loss = causal(*micro_batch()).loss_sum
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_micro_batch_without_labels_has_no_loss(tmp_path):
    save(tmp_path, "llama")
    model = load_plain(tmp_path, dtype=torch.float32, device=CPU)
    apply_full(model)
    ids, positions, boundaries, _ = micro_batch()
    losses, _ = run(model, batch=(ids, positions, boundaries, torch.full_like(ids, -100)))
    assert losses.loss_sum == 0 and losses.num_tokens == 0


def test_an_adapter_is_the_same_file_and_either_continues_it(tmp_path):
    base = tmp_path / "base"
    save(base, "qwen2")
    folders = []
    for number, model in enumerate(both(base)):
        torch.manual_seed(1)
        tuned = apply_lora(model, LoraSettings(target_modules=TARGETS, use_rslora=True))
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        write_model(tuned, folders[-1], source=base, is_adapter=True)
    theirs, ours = (folder / "adapter_model.safetensors" for folder in folders)
    assert theirs.read_bytes() == ours.read_bytes()
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    assert all(settings[0][name] == value for name, value in settings[1].items())
    for folder in folders:
        assert plain_fields(folder) is not None
        for model in both(base):
            again = load_adapter(model, folder, is_trainable=True)
            assert all(
                torch.equal(value, load_file(theirs)[name]) for name, value in adapter_tensors(again).items()
            )
            assert any(p.requires_grad for p in again.parameters())


def test_peft_reads_the_adapter(tmp_path):
    from peft import PeftModel

    base = tmp_path / "base"
    save(base, "llama")
    theirs, ours = both(base)
    tuned = apply_lora(ours, LoraSettings(target_modules=TARGETS))
    start_adapters(tuned)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_model(tuned, folder, source=base, is_adapter=True)
    peft = PeftModel.from_pretrained(theirs, folder).eval()
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad():
        assert torch.allclose(peft(ids).logits, tuned.get_base_model()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_whole_model_is_the_same_file(tmp_path, kind):
    base = tmp_path / "base"
    save(base, kind, tie_word_embeddings=True)
    written = []
    for number, model in enumerate(both(base)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_model(model, folder, source=base, is_adapter=False)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]


ODD = {
    "another family": {"model_type": "gemma2"},
    "another activation": {"hidden_act": "gelu"},
    "dropped attention": {"attention_dropout": 0.1},
    "quantised": {"quantization_config": {"quant_method": "gptq"}},
    "layers that differ": {"layer_types": ["full_attention", "sliding_attention"]},
    "windows": {"use_sliding_window": True},
    "another rotation": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
    "a rotation of a part": {"partial_rotary_factor": 0.5},
    "two rotations": {"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_theta": 1e4}},
    "a size that is no number": {"hidden_size": "32"},
    "heads that do not divide": {"num_attention_heads": 5},
    "its own head size": {"head_dim": 16},
    "padding that is no token": {"pad_token_id": 120},
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_what_is_not_wholly_known_is_left_to_transformers(tmp_path, change):
    save(tmp_path, "qwen2")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert config_of(raw) is not None
    assert config_of(raw | change) is None


def test_weights_that_do_not_fit_are_left_to_transformers(tmp_path):
    save(tmp_path, "qwen2")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True}))
    assert decoder_config(tmp_path) is None  # two heads, of which transformers' path says what is done


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_weights": "pissa"},
        {"bias": "all"},
        {"modules_to_save": ("lm_head",)},
        {"target_modules": ("EMBEDDING",)},
        {"target_modules": ("q_proj", "lm_head")},
    ],
)
def test_adapters_that_are_not_plain_are_left_to_peft(settings):
    assert is_plain(LoraSettings()) and not is_plain(LoraSettings(**settings))


SEEN = """
import sys
from swiftlet.cli import main
code = main(sys.argv[1:])
slow = {"transformers", "peft", "torch._dynamo", "sympy", "torch.distributed.tensor", "datasets", "pandas"}
print("IMPORTED", sorted(slow & sys.modules.keys()), "CODE", code)
"""


def test_a_plain_run_imports_neither_transformers_nor_a_compiler(tmp_path):
    from swiftlet.models import adapter

    tiny = adapter.Path(adapter.__file__).parent / "tiny_math_chat"
    command = ["sft", "--model_id_or_path", str(tiny), "--dataset", "demo-math-zh#40", "--max_steps", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--batch_size", "4"]
    done = subprocess.run(
        [sys.executable, "-c", SEEN, *command], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert "IMPORTED [] CODE" in done.stdout, done.stdout + done.stderr
