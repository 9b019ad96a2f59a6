"""Loading: the same weights, on any dtype, for many architectures; nothing random, nothing executed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import logits, save

from swiftlet.errors import SwiftletError
from swiftlet.models import load as load_room
from swiftlet.models.load import _open, load_model

CPU = torch.device("cpu")
KINDS = [
    "qwen2",
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "glm4",
    "qwen3",
    "gpt2",
    "qwen3_moe",
    "mixtral",
]


def load(folder, dtype=torch.float32, **settings):
    return load_model(folder, dtype=dtype, device=CPU, **settings)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_says_what_the_saved_one_said(kind, tmp_path):
    saved = save(tmp_path, kind)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(saved))
    assert not loaded.training
    assert all(p.is_contiguous() and p.data_ptr() % 64 == 0 for p in loaded.parameters())


def test_a_config_with_an_infinite_float_is_read(tmp_path):
    saved = save(tmp_path, "mamba2")
    assert "__float__" in (tmp_path / "config.json").read_text()
    assert load(tmp_path).config.time_step_limit[1] == saved.config.time_step_limit[1] == float("inf")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_in_bf16(tied, tmp_path):
    save(tmp_path, tie_word_embeddings=tied)
    loaded = load(tmp_path, torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def mapped_bytes(path):
    """Return how much of a file this process has in memory."""
    found, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            is_file = line.endswith(str(path))
        elif is_file and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")
def test_a_file_is_never_in_memory_as_a_whole_while_it_is_copied(tmp_path, monkeypatch):
    part, stretch = 2**20, 2**22
    monkeypatch.setattr(load_room, "STRETCH", stretch)
    weights = {f"layer.{n}": torch.full((part // 4,), float(n)) for n in range(32)}
    save_file(weights, tmp_path / "model.safetensors")
    most = 0
    for name, value in _open(tmp_path):
        assert torch.equal(value.clone(), weights.pop(name))
        most = max(most, mapped_bytes(tmp_path / "model.safetensors"))
    assert not weights
    assert part <= most <= 2 * stretch + part


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")
def test_the_mapping_ends_where_a_model_has_its_own_memory(tmp_path, monkeypatch):
    stretch, most, plain = 2**22, [], torch.Tensor.clone

    def clone(tensor, **options):
        copy = plain(tensor, **options)
        most.append(mapped_bytes(tmp_path / "model.safetensors"))
        return copy

    save(tmp_path, "llama", num_hidden_layers=8, intermediate_size=16384)
    monkeypatch.setattr(load_room, "STRETCH", stretch)
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    load(tmp_path)
    assert stretch <= max(most) <= (tmp_path / "model.safetensors").stat().st_size / 2
    assert mapped_bytes(tmp_path / "model.safetensors") == 0


def test_shards_are_read_through_their_index(tmp_path):
    saved = save(tmp_path / "whole")
    saved.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "cut")), logits(saved))


def test_generation_settings_come_from_the_folder(tmp_path):
    save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9], "top_k": 5}')
    settings = load(tmp_path).generation_config
    assert settings.eos_token_id == [7, 9]
    assert settings.top_k is None  # greedy generation would be warned of it


def test_generation_settings_that_answer_in_another_way_are_left_out_and_named(tmp_path, capsys):
    save(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"num_return_sequences": 1, "return_dict_in_generate": true, "stop_strings": ["\\n\\n"], '
        '"no_repeat_ngram_size": 3}'
    )
    settings = load(tmp_path).generation_config
    said = capsys.readouterr().err
    assert (
        "generation_config.json: return_dict_in_generate, stop_strings not used here; --stop_words ends"
        in said
    )
    assert settings.stop_strings is None
    assert not settings.return_dict_in_generate
    assert settings.no_repeat_ngram_size == 3


def test_flags_alone_decide_over_sampling_and_length(tmp_path):
    save(tmp_path)
    own = {"max_length": 64, "min_p": 0.9, "epsilon_cutoff": 0.5, "num_beams": 4, "length_penalty": 2.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    settings = load(tmp_path).generation_config
    assert not [name for name in own if getattr(settings, name) is not None]


def test_a_tied_config_with_two_matrices_keeps_both_and_says_so(tmp_path, capsys):
    saved = save(tmp_path, tie_word_embeddings=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    loaded = load(tmp_path)
    assert "the files hold two" in capsys.readouterr().err
    assert torch.equal(logits(loaded), logits(saved))
    assert loaded.config.tie_word_embeddings is False


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"1 missing: {NORM}"),
        (lambda t: t.update(surplus=torch.zeros(2)), "1 left over: surplus"),
        (lambda t: t.update({NORM: torch.zeros(5)}), rf"{NORM} is \(5,\), not \(32,\)"),
        (lambda t: [t.pop(name) for name in list(t)[3:]], r"missing: .*, \.\.\."),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    save(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(SwiftletError, match=message):
        load(tmp_path)


def test_a_missing_expert_is_refused(tmp_path):
    save(tmp_path, "qwen3_moe")
    change_weights(tmp_path, lambda t: t.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    with pytest.raises(SwiftletError, match="experts are missing or of other shapes"):
        load(tmp_path)


def test_an_unknown_kind_and_kinds_that_are_no_language_model(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, model_type="quantum_llm")
    with pytest.raises(SwiftletError, match="does not know the model_type 'quantum_llm'") as caught:
        load(tmp_path)
    assert "pip install -U transformers" in caught.value.hint
    edit_config(tmp_path, model_type="vit")
    with pytest.raises(SwiftletError, match="no causal language model"):
        load(tmp_path)


def test_sizes_that_make_no_sense_are_refused(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, hidden_size="many")
    with pytest.raises(SwiftletError, match="hidden_size is 'many', not a whole number"):
        load(tmp_path)


def test_quantised_models_name_the_package_that_is_missing(tmp_path):
    save(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(
        SwiftletError, match="quantised with gptq, which needs a package that is missing"
    ) as caught:
        load(tmp_path)
    assert "pip install gptqmodel" in caught.value.hint
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(SwiftletError, match="quantised with 'mxfp4'; only awq and gptq"):
        load(tmp_path)


CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import Qwen2Config, Qwen2ForCausalLM
class OwnConfig(Qwen2Config):
    model_type = "own_llm"
class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def test_code_beside_a_known_model_is_never_run(tmp_path):
    """The fields that have been used to run code: auto_map, nested trust, kernels and files from elsewhere."""
    saved = save(tmp_path)
    (tmp_path / "modeling_own.py").write_text(CODE)
    edit_config(
        tmp_path,
        auto_map=AUTO_MAP,
        trust_remote_code=True,
        nested={"trust_remote_code": True, "auto_map": AUTO_MAP},
        _attn_implementation="someone/kernels",
        _attn_implementation_internal="someone/kernels",
        attn_implementation="someone/kernels",
        transformers_weights="../elsewhere.safetensors",
        kernel_config={"RMSNorm": "someone/kernels"},
        fusion_config={"all": True},
    )
    loaded = load(tmp_path, trust_remote_code=False)
    assert torch.equal(logits(loaded), logits(saved))
    assert not (tmp_path / "ran").exists()
    assert loaded.config._attn_implementation in ("sdpa", "eager")


def test_own_code_runs_only_with_the_flag_and_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    save(folder)
    (folder / "modeling_own.py").write_text(CODE.replace("__file__", repr(str(folder / "x"))))
    edit_config(folder, model_type="own_llm", auto_map=AUTO_MAP)
    folder.chmod(0o755)
    with pytest.raises(SwiftletError, match="runs only with its own Python code") as caught:
        load(folder)
    assert "--trust_remote_code true" in caught.value.hint
    assert not (folder / "ran").exists()
    (folder / "modeling_own.py").chmod(0o666)
    with pytest.raises(SwiftletError, match="others can write to .*modeling_own.py") as caught:
        load(folder, trust_remote_code=True)
    assert "chmod go-w" in caught.value.hint
    (folder / "modeling_own.py").chmod(0o644)
    edit_config(folder, auto_map={name: f"someone/else--{where}" for name, where in AUTO_MAP.items()})
    with pytest.raises(SwiftletError, match="takes its code from another repository"):
        load(folder, trust_remote_code=True)
    assert not (folder / "ran").exists()
    edit_config(folder, auto_map=AUTO_MAP)
    assert type(load(folder, trust_remote_code=True)).__name__ == "OwnForCausalLM"
    assert (folder / "ran").exists()


def test_loading_imports_nothing_that_sees_or_hears(tmp_path):
    save(tmp_path)
    code = f"""
import sys, pathlib, torch
from swiftlet.models.load import load_model
load_model(pathlib.Path({str(tmp_path)!r}), dtype=torch.float32, device=torch.device("cpu"))
unwanted = {{"torchvision", "torchaudio", "librosa", "soundfile", "cv2", "pandas", "scipy", "sklearn"}}
unwanted |= {{"datasets", "tensorflow", "jax", "matplotlib", "peft"}}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr
