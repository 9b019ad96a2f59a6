"""The command lines of the reference page, and every name people type, parse without a mistake."""

import json
from pathlib import Path

import pytest

from swiftlet.commands.doctor import DoctorArgs
from swiftlet.config.aliases import ALIASES
from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.check import check_infer, check_sft
from swiftlet.config.elsewhere import ELSEWHERE
from swiftlet.config.fields import flags_of
from swiftlet.config.parse import parse

SFT = "--model_type qwen1half-7b-chat --dataset blossom-math-zh --num_train_epochs 5 --sft_type {} --output_dir output"
# Flags that the reference system has in these versions, beside those that are flags or aliases here.
OF_THE_REFERENCE = {
    SftArgs: """
    model_layer_cls_name additional_trainable_parameters ddp_find_unused_parameters ddp_broadcast_buffers
    ignore_data_skip use_loss_scale model_name model_author quantization_bit bnb_4bit_comp_dtype bnb_4bit_quant_type
    bnb_4bit_use_double_quant bnb_4bit_quant_storage lora_dtype adapter_act adapter_length use_galore galore_rank
    galore_target_modules galore_update_proj_gap galore_scale galore_proj_type galore_optim_per_parameter
    galore_with_embedding adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1
    adalora_beta2 adalora_orth_reg_weight ia3_target_modules ia3_feedforward_modules ia3_modules_to_save
    llamapro_num_new_blocks llamapro_num_groups neftune_backend neftune_alpha lisa_activated_layers lisa_step_interval
    dataloader_pin_memory push_to_hub hub_model_id hub_token hub_private_repo push_hub_strategy test_oom_error
    disable_tqdm ignore_args_error check_model_is_latest logging_dir acc_strategy save_on_each_node save_safetensors
    gpu_memory_fraction include_num_input_tokens_seen local_repo_path custom_register_path custom_dataset_info
    num_beams fsdp_config self_cognition_sample train_dataset_mix_ratio train_dataset_mix_ds train_dataset_sample
    val_dataset_sample safe_serialization only_save_model deepspeed_config_path model_cache_dir
    custom_train_dataset_path custom_val_dataset_path
    """,
    InferArgs: """
    load_args_from_ckpt_dir device_map_config_path save_result merge_device_map overwrite_generation_config verbose
    gpu_memory_utilization tensor_parallel_size max_model_len vllm_enable_lora vllm_max_lora_rank lora_modules
    merge_lora_and_save vllm_lora_modules quantization_bit num_beams ignore_args_error save_safetensors sft_type
    """,
    ExportArgs: """
    to_peft_format quant_bits quant_method quant_n_samples quant_seqlen quant_device_map quant_output_dir push_to_hub
    hub_model_id hub_token hub_private_repo commit_message
    """,
}
FROZEN = Path(__file__).with_name("flags.json")


@pytest.mark.parametrize("sft_type", ["lora", "full"])
@pytest.mark.parametrize("engine", ["", " --deepspeed default-zero2", " --deepspeed default-zero3"])
def test_sft_as_the_page_has_it(sft_type, engine):
    parsed = parse(SftArgs, (SFT.format(sft_type) + engine).split())
    assert check_sft(parsed) == []
    assert parsed.args.train.num_train_epochs == 5
    assert parsed.args.parallel.deepspeed == (engine.split()[-1] if engine else None)


def test_infer_as_the_page_has_it(tmp_path):
    (tmp_path / "adapter_config.json").touch()
    words = f"--ckpt_dir {tmp_path} --load_dataset_config true".split()
    assert check_infer(parse(InferArgs, words)) == []
    assert check_infer(parse(InferArgs, "--model_type qwen1half-7b-chat".split())) == []


@pytest.mark.parametrize(("typed", "name"), ALIASES.items())
def test_every_alias_is_a_flag(typed, name):
    commands = [args for args in (SftArgs, InferArgs, ExportArgs) if name in flags_of(args)]
    assert commands
    value = {"true": "true"}.get(str(flags_of(commands[0])[name].default).lower(), "1")
    parsed = parse(commands[0], [f"--{typed}", value])
    assert not [mistake for mistake in parsed.mistakes if "unknown flag" in mistake.message]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--torch_dtype bfloat16", "dtype", "bf16"),
        ("--dtype fp16", "dtype", "fp16"),
        ("--torch_dtype float32", "dtype", "fp32"),
        ("--deepspeed zero2", "deepspeed", "default-zero2"),
        ("--deepspeed zero3", "deepspeed", "default-zero3"),
        ("--target_modules all-linear", "lora_target_modules", ("ALL",)),
        ("--attn_impl sdpa", "use_flash_attn", "false"),
        ("--lora-rank 4", "lora_rank", 4),
    ],
)
def test_values_people_type(words, name, value):
    parsed = parse(SftArgs, words.split())
    assert parsed.mistakes == ()
    group = getattr(parsed.args, flags_of(SftArgs)[name].group)
    assert getattr(group, name) == value


def test_infer_backend_of_newer_versions():
    assert parse(InferArgs, "--infer_backend transformers".split()).args.answer.infer_backend == "pt"


def test_no_flag_of_ours_is_said_to_be_elsewhere():
    ours = {*flags_of(SftArgs), *flags_of(InferArgs), *flags_of(ExportArgs), *ALIASES}
    assert not ours & set(ELSEWHERE)


@pytest.mark.parametrize(
    ("command", "flag"),
    [(command, flag) for command, names in OF_THE_REFERENCE.items() for flag in names.split()],
)
def test_what_to_type_for_each_flag_of_the_reference(command, flag):
    (mistake,) = parse(command, [f"--{flag}", "1"]).mistakes
    assert mistake.message == f"there is no flag --{flag} here" and mistake.hint


def test_the_full_list_of_flags_is_frozen():
    """A flag that goes or changes its default breaks somebody's script: change flags.json on purpose."""
    commands = {"sft": SftArgs, "infer": InferArgs, "export": ExportArgs, "doctor": DoctorArgs}
    now = {
        command: {flag.name: json.loads(json.dumps(flag.default)) for flag in flags_of(args).values()}
        for command, args in commands.items()
    }
    assert now == json.loads(FROZEN.read_text())


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("sft_type", "lora"),
        ("lora_rank", 8),
        ("lora_alpha", 32),
        ("lora_dropout_p", 0.05),
        ("batch_size", 1),
        ("weight_decay", 0.1),
        ("max_grad_norm", 0.5),
        ("warmup_ratio", 0.05),
        ("max_length", 2048),
        ("dataset_test_ratio", 0.01),
        ("eval_steps", 50),
        ("logging_steps", 5),
        ("save_total_limit", 2),
        ("temperature", 0.3),
        ("top_k", 20),
        ("top_p", 0.7),
        ("max_new_tokens", 2048),
        ("seed", 42),
    ],
)
def test_defaults_of_the_reference(name, default):
    assert flags_of(SftArgs)[name].default == default
