"""Other names that people type: of flags, of values, and of flags that other tools have and this one does not."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "model": "model_id_or_path",
    "model_name_or_path": "model_id_or_path",
    "model_dir": "model_id_or_path",
    "tuner_type": "sft_type",
    "train_type": "sft_type",
    "finetuning_type": "sft_type",
    "adapters": "ckpt_dir",
    "adapter_name_or_path": "ckpt_dir",
    "load_data_args": "load_dataset_config",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "torch_dtype": "dtype",
    "split_dataset_ratio": "dataset_test_ratio",
    "val_size": "dataset_test_ratio",
    "target_modules": "lora_target_modules",
    "lora_target": "lora_target_modules",
    "lora_dropout": "lora_dropout_p",
    "modules_to_save": "lora_modules_to_save",
    "dataset_num_proc": "preprocess_num_proc",
    "preprocessing_num_workers": "preprocess_num_proc",
    "cutoff_len": "max_length",
    "attn_impl": "use_flash_attn",
    "attn_implementation": "use_flash_attn",
    "eval_strategy": "evaluation_strategy",
    "template": "template_type",
    "lr": "learning_rate",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "revision": "model_revision",
    "optimizer": "optim",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
}

# flag -> {what people type: the canonical value}
VALUE_ALIASES: dict[str, dict[str, str]] = {
    "dtype": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "auto": "AUTO"},
    "deepspeed": {"zero2": "default-zero2", "zero3": "default-zero3"},
    "infer_backend": {"transformers": "pt"},
    "use_flash_attn": {
        "flash_attn": "true",
        "flash_attention_2": "true",
        "flash_attn_2": "true",
        "sdpa": "false",
        "eager": "false",
        "auto": "AUTO",
    },
    "fsdp": {"fsdp2": "full_shard", "true": "full_shard"},
    "lora_target_modules": {"all": "ALL", "all-linear": "ALL", "all_linear": "ALL", "default": "DEFAULT"},
    "gradient_checkpointing": {"auto": "AUTO", "True": "true", "False": "false"},
    "device": {"auto": "AUTO"},
    "truncation_strategy": {"left": "truncation_left"},
}

# Values that other tools have and this one does not: flag -> {value: what to type}.
QUANTISED = "quantised states are not built in; use --optim adafactor to save memory"
VALUES_ELSEWHERE: dict[str, dict[str, str]] = {
    "optim": {
        **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_bnb_8bit"), QUANTISED),
        "adamw_apex_fused": "torch has the same kernels: use --optim adamw_torch_fused",
    },
}

# A switch of three states also takes every spelling of yes and no.
YES = frozenset({"true", "1", "yes", "on"})
NO = frozenset({"false", "0", "no", "off"})

# What other tools or other versions call something that is different here: flag -> what to type.
ELSEWHERE: dict[str, str] = {
    "bf16": "use --dtype bf16",
    "fp16": "use --dtype fp16",
    "stage": "not needed: the command is the stage (swift sft)",
    "do_train": "not needed: swift sft trains",
    "overwrite_output_dir": "not needed: each run has a folder of its own (--add_output_dir_suffix)",
    "custom_train_dataset_path": "use --dataset FILE",
    "custom_val_dataset_path": "use --val_dataset FILE",
    "train_dataset_sample": "use --dataset NAME#2000",
    "val_dataset_sample": "use --val_dataset NAME#100",
    "dataset_dir": "use --dataset FOLDER",
    "quantization_bit": "quantised training is not available; train without it",
    "load_in_4bit": "quantised training is not available; train without it",
    "use_lora": "use --sft_type lora",
    "lora_r": "use --lora_rank",
    "r": "use --lora_rank",
    "hub_token": "set MODELSCOPE_API_TOKEN or HF_TOKEN in the environment",
    "use_hf": "set USE_HF=1 before the command",
    "nproc_per_node": "set NPROC_PER_NODE=N before the command",
    "num_gpus": "set NPROC_PER_NODE=N before the command",
    "local_rank": "not needed: set NPROC_PER_NODE=N before the command",
    "padding_free": "samples are always packed without padding (--packing true)",
    "use_liger_kernel": "fused operators are on where they pass their check (--fused_operators)",
    "ddp_find_unused_parameters": "not needed: only trained parameters take part",
    "test_oom_error": "not needed: the longest batch runs first",
    "evaluate_strategy": "use --evaluation_strategy",
    "eval_dataset": "use --val_dataset",
    "plot_loss": "not needed: images/ is always written",
    "max_seq_length": "use --max_length",
    "model_max_length": "use --max_length",
}


def canonical(name: str) -> str:
    """Return the canonical name of a flag, dashes read as underscores."""
    name = name.replace("-", "_")
    return ALIASES.get(name, name)
