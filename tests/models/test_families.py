"""The family table, exact parameter counts, and what --model_type and --model_id_or_path stand for."""

import os
import subprocess
import sys

import pytest
import torch

from swiftlet.commands.model_source import unknown_names
from swiftlet.config.args import DataArgs, ModelArgs
from swiftlet.errors import SwiftletError, UsageError
from swiftlet.models import families
from swiftlet.models.families import FAMILIES, find_model
from swiftlet.models.families_other import other_rows
from swiftlet.models.families_qwen import qwen_rows
from swiftlet.models.geometry import BUILT, geometry_of_config, is_exact

PUBLISHED = {
    "qwen1half-0_5b": 463_987_712,
    "qwen1half-1_8b": 1_836_828_672,
    "qwen1half-4b": 3_950_369_280,
    "qwen1half-7b-chat": 7_721_324_544,
    "qwen1half-14b-chat": 14_167_290_880,
    "qwen1half-32b": 32_512_218_112,
    "qwen1half-72b": 72_287_920_128,
    "qwen1half-110b": 111_209_914_368,
    "qwen1half-moe-a2_7b-chat": 14_315_784_192,
    "codeqwen1half-7b": 7_250_284_544,
    "qwen2-0_5b-instruct": 494_032_768,
    "qwen2_5-7b-instruct": 7_615_616_512,
    "qwen2_5-3b": 3_085_938_688,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama2-7b-chat": 6_738_415_616,
    "llama3-8b-instruct": 8_030_261_248,
    "llama3_2-1b-instruct": 1_235_814_400,
    "mistral-7b-instruct": 7_241_732_096,
    "mixtral-moe-7b-instruct": 46_702_792_704,
    "gemma2-2b-instruct": 2_614_341_888,
    "gemma3-1b-instruct": 999_885_952,
    "phi3-mini-4k-instruct": 3_821_079_552,
    "phi4": 14_659_507_200,
    "glm4-9b-0414": 9_400_279_040,
    "internlm2_5-7b-chat": 7_737_708_544,
    "internlm3-8b-instruct": 8_804_241_408,
    "yi-34b": 34_388_917_248,
    "baichuan2-7b-chat": 7_505_973_248,
    "deepseek-r1-distill-qwen-1_5b": 1_777_088_000,
    "smollm2-135m-instruct": 134_515_008,
    "smollm3-3b": 3_075_098_624,
}


@pytest.mark.parametrize(("name", "number"), PUBLISHED.items())
def test_parameter_counts_are_those_published(name, number):
    assert FAMILIES[name].geometry.num_parameters == number


def test_active_parameters_of_expert_models():
    active = FAMILIES["qwen1half-moe-a2_7b"].geometry.num_active_parameters
    assert round(active / 1e9, 1) == 2.7  # the A2.7B of its name
    dense = FAMILIES["qwen1half-7b"].geometry
    assert dense.num_active_parameters == dense.num_parameters


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 120,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4},
}
LATENT = {
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
LATENT |= {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}
LATENT |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 20}
EXPERTS |= {"deepseek_v2": LATENT, "deepseek_v3": LATENT}
VARIANTS = [{}, {"head_dim": 32}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}]
HERE = sorted(
    BUILT - {"baichuan", "chatglm", "internlm2", "internlm3", "ministral", "deepseek_v2", "deepseek_v3"}
)


@pytest.mark.parametrize("kind", HERE)
def test_counts_from_a_config_equal_those_of_the_built_model(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    for variant in VARIANTS:
        config = AutoConfig.for_model(kind, **SIZES | EXPERTS.get(kind, {}) | variant)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        expected = sum(p.numel() for p in model.parameters())
        assert geometry_of_config(config.to_dict()).num_parameters == expected, variant
        assert is_exact(config.to_dict())


@pytest.mark.parametrize(
    ("kind", "more"),
    [("qwen2_moe", {"decoder_sparse_step": 2}), ("qwen3_moe", {"mlp_only_layers": [1, 2]}),
     ("deepseek_v2", {}), ("deepseek_v2", {"q_lora_rank": None}), ("deepseek_v3", {"attention_bias": True}),
     ("deepseek_v3", {"first_k_dense_replace": 2, "tie_word_embeddings": True})],
)  # fmt: skip
def test_layers_without_experts_and_narrow_queries_count_as_built(kind, more):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SIZES | EXPERTS[kind] | more)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert geometry_of_config(config.to_dict()).num_parameters == sum(p.numel() for p in model.parameters())


def test_own_names_of_older_configs_are_read():
    glm = {
        "model_type": "chatglm",
        "hidden_size": 4096,
        "num_layers": 40,
        "num_attention_heads": 32,
        "multi_query_group_num": 2,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": 151552,
        "kv_channels": 128,
        "add_qkv_bias": True,
        "tie_word_embeddings": False,
    }
    assert geometry_of_config(glm).num_parameters == 9_399_951_360
    seeing = {"model_type": "gemma3", "text_config": {**SIZES, "model_type": "gemma3_text"}}
    assert geometry_of_config(seeing).layers == 3
    assert not is_exact(seeing)


def test_of_a_size_that_differs_by_layer_the_largest_counts():
    kinds = {"intermediate_size": [96, 128, 128], "num_key_value_heads": [1, 2, 2], "head_dim": [16, 32, 16]}
    found = geometry_of_config(
        {"model_type": "sees", "text_config": {**SIZES, "model_type": "other", **kinds}}
    )
    assert (found.intermediate, found.kv_heads, found.head_dim) == (128, 2, 32)
    assert found.num_parameters > 0


@pytest.mark.parametrize(
    "wrong",
    [{}, {**SIZES, "hidden_size": "64"}, {**SIZES, "vocab_size": None}, {**SIZES, "head_dim": -1},
     {**SIZES, "num_key_value_heads": [2, "2"]}, {**SIZES, "intermediate_size": "96"}, {**SIZES, "head_dim": 1e999}],
)  # fmt: skip
def test_a_config_without_sizes_has_no_geometry(wrong):
    assert geometry_of_config(wrong) is None


def test_every_row_has_an_id_and_its_own_name():
    rows = [*qwen_rows(), *other_rows()]
    assert len({row.model_type for row in rows}) == len(rows)
    for family in FAMILIES.values():
        assert family.folder or family.hf_id, family.model_type
        assert family.model_type == family.model_type.lower() and "." not in family.model_type


def test_the_ids_of_the_first_family_are_those_of_the_hubs():
    chat = FAMILIES["qwen1half-7b-chat"]
    assert (chat.ms_id, chat.hf_id) == ("qwen/Qwen1.5-7B-Chat", "Qwen/Qwen1.5-7B-Chat")
    assert FAMILIES["qwen1half-0_5b-chat-int4"].ms_id == "qwen/Qwen1.5-0.5B-Chat-GPTQ-Int4"
    assert FAMILIES["qwen1half-72b-chat-int8"].quantised == "gptq"
    assert FAMILIES["qwen1half-14b-chat-awq"].hf_id == "Qwen/Qwen1.5-14B-Chat-AWQ"
    assert FAMILIES["qwen1half-moe-a2_7b-chat"].ms_id == "qwen/Qwen1.5-MoE-A2.7B-Chat"
    assert FAMILIES["codeqwen1half-7b-chat"].ms_id == "qwen/CodeQwen1.5-7B-Chat"


def test_a_name_a_folder_and_an_id_are_told_apart(tmp_path):
    named = find_model("qwen1half-7b-chat", None)
    assert (named.name, named.ms_id, named.folder) == ("qwen1half-7b-chat", "qwen/Qwen1.5-7B-Chat", None)
    assert find_model(None, "qwen1half-7b-chat") == named
    folder = tmp_path / "my-model"
    folder.mkdir()
    local = find_model(None, str(folder))
    assert (local.name, local.folder, local.family) == ("my-model", folder, None)
    assert find_model("qwen3-8b", str(folder)).name == "qwen3-8b"
    by_id = find_model(None, "Qwen/Qwen1.5-7B-Chat")
    assert by_id == named
    new = find_model(None, "someone/new-model")
    assert (new.name, new.ms_id, new.hf_id, new.family) == (
        "new-model",
        "someone/new-model",
        "someone/new-model",
        None,
    )
    assert find_model(None, "HF::someone/new-model").ms_id is None
    assert find_model(None, "MS::someone/new-model").hf_id is None
    embedded = find_model("tiny-math-chat", None)
    assert embedded.folder is not None and embedded.folder.name == "tiny_math_chat"


@pytest.mark.parametrize(
    ("model_type", "given", "message", "hint"),
    [
        (None, None, "no model is given", "--model_type NAME"),
        ("qwen1half-7b-caht", None, "unknown --model_type", "did you mean qwen1half-7b-chat?"),
        (None, "./nowhere", "does not exist", "config.json"),
        (None, "/no/such/folder", "does not exist", "config.json"),
        (None, "a/b/c", "does not exist", "config.json"),
        (None, "gpt2", "does not exist", "or a hub id with its owner: OWNER/gpt2"),
        (None, "XX::a/b", "unknown hub 'XX'", "MS::owner/name"),
    ],
)
def test_what_cannot_be_found_is_said_with_a_hint(model_type, given, message, hint):
    with pytest.raises(UsageError) as caught:
        find_model(model_type, given)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        find_model(None, str(tmp_path / "model.gguf"))


def test_fetch_gives_folders_as_they_are_and_asks_the_hub_for_ids(tmp_path, monkeypatch):
    assert families.fetch(find_model(None, str(tmp_path))) == tmp_path
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("USE_HF", raising=False)
    with pytest.raises(SwiftletError, match="qwen/Qwen1.5-7B-Chat of ModelScope is not in"):
        families.fetch(find_model("qwen1half-7b-chat", None))


def test_the_table_needs_no_torch():
    code = "import swiftlet.models.families, sys; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        (
            {"model_type": "internlm2_5-7b-chat"},
            "comes with Python code of its own",
            "--trust_remote_code true",
        ),
        (
            {"model_id_or_path": "internlm/internlm2_5-7b-chat"},
            "comes with Python code",
            "--trust_remote_code",
        ),
        ({"model_type": "baichuan2-7b-chat", "trust_remote_code": True}, "published as .bin", "safetensors"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_it_is_fetched(options, said, hint):
    (mistake,) = unknown_names(ModelArgs(**options), DataArgs())
    assert said in mistake.message and hint in mistake.hint


def test_a_copy_of_such_a_model_at_hand_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    local = ModelArgs(model_type="baichuan2-7b-chat", model_id_or_path=str(tmp_path))
    asked = ModelArgs(model_type="internlm2_5-7b-chat", trust_remote_code=True)
    assert [*unknown_names(local, DataArgs()), *unknown_names(asked, DataArgs())] == []


def test_data_that_is_not_there_is_named_with_its_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows" / "en").mkdir(parents=True)
    (tmp_path / "C#1").mkdir()
    (tmp_path / "C#1" / "a.jsonl").write_text("{}")
    model = ModelArgs(model_type="tiny-math-chat")
    here = DataArgs(("./rows:en", f"{tmp_path}/rows:en#5", "./C#1/a.jsonl#5"))
    assert [*unknown_names(model, here)] == []
    os.mkfifo(tmp_path / "pipe.jsonl")
    gone = DataArgs(
        ("a.jsonl b.jsonl", "a.jsonl，b.jsonl", "./no:en#5", "pipe.jsonl#5"), ("missing.ndjson.gz#5",)
    )
    assert [str(mistake) for mistake in unknown_names(model, gone)] == [
        "no such data file or folder: a.jsonl b.jsonl\n"
        "hint: check the path given to --dataset; several are words of their own, or separated by commas",
        "no such data file or folder: a.jsonl，b.jsonl\n"
        "hint: check the path given to --dataset; several are separated by the comma of the keyboard: ,",
        "no such data file or folder: ./no\nhint: check the path given to --dataset",
        "pipe.jsonl is no file: rows are read several times, and a pipe or device has them once\n"
        "hint: write the rows to a file, and give that",
        "no such data file or folder: missing.ndjson.gz\nhint: check the path given to --val_dataset",
    ]


def test_a_file_that_is_no_data_is_named_before_a_model_is_fetched_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import torch")
    (tmp_path / "rows.jsonl").touch()
    data = DataArgs(("train.py",), ("rows.jsonl#5",))
    assert [
        mistake.message for mistake in unknown_names(ModelArgs(model_type="qwen1half-7b-chat"), data)
    ] == [
        "train.py: unknown suffix '.py'",
        "rows.jsonl: the file is empty (0 bytes)",
    ]
