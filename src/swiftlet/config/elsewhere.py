"""Flags and commands that other tools, or other versions, have and this one has not: what to type in their place."""

from __future__ import annotations

from swiftlet.config.aliases import OTHER_ENGINES

QUANTISATION = """
    quantization_bit quantization_method quantization_type double_quantization load_in_4bit load_in_8bit quant_method
    quant_bits hqq_axis bnb_4bit_comp_dtype bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant
    export_quantization_bit
"""
WITHOUT_NEED = """
    ddp_broadcast_buffers dataloader_pin_memory dataloader_drop_last remove_unused_columns dataloader_persistent_workers
    dataloader_prefetch_factor save_on_each_node group_by_length use_fast_tokenizer low_cpu_mem_usage
    check_model_is_latest check_model disable_tqdm
"""
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
    "dataset_dir": "use --dataset FOLDER, or FOLDER:NAME for one that its dataset_info.json names",
    "use_lora": "use --sft_type lora",
    "lora_r": "use --lora_rank",
    "r": "use --lora_rank",
    "gradient_clipping": "use --max_grad_norm",
    "add_version": "use --add_output_dir_suffix",
    "args_file": "put the file first: swift sft FILE.yaml",
    "use_peft": "use --sft_type lora",
    "loss_scale": "not available: the tokens of the answers are trained on, all with the same weight",
    "use_hf": "set USE_HF=1 before the command",
    "nproc_per_node": "set NPROC_PER_NODE=N before the command",
    "num_gpus": "set NPROC_PER_NODE=N before the command",
    "local_rank": "not needed: set NPROC_PER_NODE=N before the command",
    "padding_free": "samples are always packed without padding (--packing true)",
    "ddp_find_unused_parameters": "not needed: only trained parameters take part",
    "test_oom_error": "not needed: the longest batch runs first",
    "evaluate_strategy": "use --evaluation_strategy",
    "eval_dataset": "use --val_dataset",
    "plot_loss": "not needed: images/ is always written",
    "max_seq_length": "use --max_length",
    "model_max_length": "use --max_length",
    "max_samples": "use --dataset NAME#1000 for a random sample of 1000 rows",
    "train_dataset_mix_ratio": "name the other dataset too, such as --dataset A B#2000",
    "max_epochs": "use --num_train_epochs",
    "default_system": "use --system",
    "infer_dtype": "use --dtype",
    "pure_bf16": "use --dtype bf16",
    "deepspeed_config_path": "use --deepspeed FILE",
    "disable_gradient_checkpointing": "use --gradient_checkpointing false",
    "only_save_model": "use --save_only_model",
    "merge_lora_and_save": "use --merge_lora true",
    "exist_ok": "use --overwrite true",
    "result_path": "use --result_dir FOLDER",
    "max_batch_size": "use --infer_batch_tokens",
    "loraplus_lr_ratio": "use --lora_lr_ratio",
    "lorap_lr_ratio": "use --lora_lr_ratio",
    "pissa_init": "use --init_lora_weights pissa",
    "additional_target": "use --lora_modules_to_save",
    "neat_packing": "use --packing true: packed samples never see each other",
    "local_repo_path": "use --model_id_or_path FOLDER",
    "resume_only_model": "a resumed run takes its optimizer and its place in the data too (--resume_from_checkpoint)",
    "num_beams": "not available: answers are sampled, or the likeliest with --do_sample false",
    "do_eval": "not needed: swift sft evaluates (--evaluation_strategy)",
    "streaming": "not needed: rows are tokenised once, into a file that is mapped",
    "safe_serialization": "not needed: weights are always saved as safetensors",
    "save_safetensors": "not needed: weights are always saved as safetensors",
    "compute_accuracy": "not needed: acc is always logged",
    "logging_dir": "not needed: TensorBoard's files are in runs/, in the folder of the run",
    "run_name": "not needed: the folder of the run is its name (--output_dir)",
    "logging_first_step": "not needed: the first step is always logged",
    **dict.fromkeys(
        ("use_self_cognition", "self_cognition_sample", "model_name", "model_author"),
        "use --dataset self-cognition:NAME/MAKER",
    ),
    **dict.fromkeys(
        ("custom_dataset_info", "custom_register_path"), "use --dataset FILE, and --columns for other names"
    ),
    **dict.fromkeys(("model_cache_dir", "cache_dir"), "set MODELSCOPE_CACHE or HF_HOME before the command"),
    **dict.fromkeys(
        ("hub_token", "hf_hub_token", "ms_hub_token"),
        "set MODELSCOPE_API_TOKEN or HF_TOKEN in the environment",
    ),
    **dict.fromkeys(
        ("load_args", "load_args_from_ckpt_dir"), "not needed: --ckpt_dir reads the run's sft_args.json"
    ),
    **dict.fromkeys(
        ("overwrite_cache", "load_from_cache_file"), "not needed: changed data is tokenised anew"
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "not needed: the best checkpoint is kept and named at the end of the run",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "export_hub_model_id"),
        "nothing is uploaded here: use the hub's own client on the folder of the checkpoint",
    ),
    **dict.fromkeys(
        ("device_map", "device_map_config", "max_memory", "device_max_memory"),
        "use --deepspeed default-zero3 or --fsdp full_shard where one device is too small",
    ),
    **dict.fromkeys(
        ("sequence_parallel_size", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len"),
        f"not available; {OTHER_ENGINES}",
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "enable_liger_kernel", "use_unsloth"),
        "fused operators are on where they pass their check (--fused_operators)",
    ),
    **dict.fromkeys(QUANTISATION.split(), "quantised training and export are not available; leave it out"),
    **dict.fromkeys(WITHOUT_NEED.split(), "not needed; leave it out"),
}

# What other tools call a command that is another one here, or none: command -> what to type.
SERVING = f"there is no server here; {OTHER_ENGINES}"
COMMANDS_ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("train", "finetune"), "use swift sft"),
    "chat": "use swift infer",
    "merge": "use swift merge-lora",
    "eval": "swift infer --ckpt_dir FOLDER --load_dataset_config true answers the held-out rows and scores them",
    **dict.fromkeys(
        ("pt", "rlhf", "dpo", "grpo", "kto", "sample", "rollout"),
        "supervised fine-tuning alone is built in: swift sft",
    ),
    **dict.fromkeys(("deploy", "api", "app", "app-ui", "web-ui", "webui", "webchat"), SERVING),
}
