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
    "flash_attn": "use_flash_attn",
    "data_seed": "dataset_seed",
    "init_weights": "init_lora_weights",
    "lora_bias": "lora_bias_trainable",
}

# flag -> {what people type: the canonical value}
VALUE_ALIASES: dict[str, dict[str, str]] = {
    "dtype": {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "auto": "AUTO"},
    "deepspeed": {"zero2": "default-zero2", "zero3": "default-zero3"},
    "infer_backend": {"transformers": "pt"},
    "use_flash_attn": {
        "flash_attn": "true",
        "fa2": "true",
        "disabled": "false",
        "flash_attention_2": "true",
        "flash_attn_2": "true",
        "sdpa": "false",
        "eager": "false",
        "auto": "AUTO",
    },
    "fsdp": {"fsdp2": "full_shard", "true": "full_shard"},
    "lora_target_modules": {
        "all": "ALL",
        "all-linear": "ALL",
        "all_linear": "ALL",
        "default": "DEFAULT",
        "AUTO": "DEFAULT",
    },
    "gradient_checkpointing": {"auto": "AUTO", "True": "true", "False": "false"},
    "device": {"auto": "AUTO"},
    "truncation_strategy": {"left": "truncation_left", "ignore": "delete"},
    "resume_from_checkpoint": {"true": "auto", "True": "auto"},
}

# Values that other tools have and this one does not: flag -> {value: what to type}.
OTHER_ENGINES = "other engines load what swift merge-lora writes"
QUANTISED = "quantised states are not built in; use --optim adafactor to save memory"
VALUES_ELSEWHERE: dict[str, dict[str, str]] = {
    "optim": {
        **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_bnb_8bit"), QUANTISED),
        "adamw": "type --optim adamw_torch",
        "adamw_apex_fused": "torch has the same kernels: use --optim adamw_torch_fused",
    },
    "truncation_strategy": dict.fromkeys(
        ("right", "truncation_right", "split"),
        "type --truncation_strategy delete, or truncation_left to lose the beginning; nothing is cut at the end",
    ),
    "device": {"gpu": "type --device cuda"},
    "infer_backend": dict.fromkeys(
        ("vllm", "lmdeploy", "sglang"), f"type --infer_backend pt; {OTHER_ENGINES}"
    ),
    "sft_type": {
        **dict.fromkeys(
            ("longlora", "adalora", "ia3", "vera", "boft", "llamapro", "qlora", "adapter"),
            "type --sft_type lora",
        ),
        "freeze": "type --sft_type full --freeze_parameters_ratio 0.9",
    },
}

# Values by which other tools say that nothing is chosen.
OFF = frozenset({"false", "False"})
NOT_CHOSEN: dict[str, frozenset[str]] = {
    "template_type": frozenset({"AUTO", "auto"}),
    **dict.fromkeys(("resume_from_checkpoint", "deepspeed", "fsdp"), OFF),
}

# A switch of three states also takes every spelling of yes and no.
YES = frozenset({"true", "1", "yes", "on"})
NO = frozenset({"false", "0", "no", "off"})


def canonical(name: str) -> str:
    """Return the canonical name of a flag, dashes read as underscores."""
    name = name.replace("-", "_")
    return ALIASES.get(name, name)
