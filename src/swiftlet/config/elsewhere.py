"""Flags and commands that other tools, or other versions, have and this one has not: what to type in their place."""

from __future__ import annotations

from swiftlet.config.aliases import OTHER_ENGINES

QUANTISATION = """
    quantization_bit quantization_method quantization_type double_quantization load_in_4bit load_in_8bit quant_method
    quant_bits hqq_axis bnb_4bit_comp_dtype bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant
    export_quantization_bit group_size
"""
SAVES_MEMORY = "not available; --sft_type lora, or --optim adafactor, saves memory"
OTHER_ADAPTERS = "of an adapter that is not built in; use --sft_type lora"
# Each name is told as the words before it: what to type -> names that others have for it.
SAME_THING: dict[str, str] = {
    "use --dataset, a FILE, FOLDER or NAME": "dataset_name dataset_path custom_dataset_path data data_path train_data "
    "train_file",
    "use --dataset NAME:SUBSET": "dataset_config dataset_config_name",
    "use --dataset NAME:SPLIT; the train split is taken without it": "dataset_train_split",
    "use --val_dataset NAME:SPLIT": "dataset_test_split",
    "use --columns FIELD=text": "dataset_text_field",
    "use --val_dataset FILE": "validation_file eval_file eval_data",
    "use --model_id_or_path": "base_model base_model_name_or_path pretrained_model_name_or_path",
    "use --max_length": "sequence_len seq_len seq_length max_seq_len max_source_length block_size",
    "use --batch_size": "micro_batch_size train_batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu",
    "samples a step are --batch_size x --gradient_accumulation_steps x processes": "total_batch_size "
    "global_batch_size",
    "use --ckpt_dir FOLDER (swift infer), or --resume_from_checkpoint FOLDER (swift sft)": "lora_model_dir lora_path "
    "adapter_path ckpt_path checkpoint checkpoint_path checkpoint_dir",
    "use --sft_type lora; one that is trained: swift infer --ckpt_dir FOLDER": "adapter",
    "use --output_dir FOLDER": "save_dir save_path",
    "use --eval_steps N, or --evaluation_strategy epoch": "evals_per_epoch evaluation_steps",
    "use --save_steps N, or --save_strategy epoch": "saves_per_epoch",
    "use --use_flash_attn": "flash_attention use_flash_attention xformers_attention",
    "use --system": "system_prompt",
    "use --resume_from_checkpoint FOLDER": "resume_from",
    "use --freeze_parameters or --freeze_parameters_ratio": "freeze_trainable_layers num_layer_trainable",
    "the tokenizer is read from the folder of the model; leave it out": "tokenizer_name tokenizer_path config_name",
    "samples are always packed without padding (--packing true)": "sample_packing eval_packing eval_sample_packing "
    "pad_to_sequence_len packing_strategy",
    "use --deepspeed default-zero2, default-zero3 or FILE": "deepspeed_config ds_config zero_stage",
    "use --lora_target_modules NAME ...": "target_regex lora_target_regex target_parameters lora_target_linear",
    "use --lora_modules_to_save NAME ..., or --freeze_parameters NAME ... with --sft_type full": "trainable_parameters "
    "additional_trainable_parameters",
    "use --sft_type lora": "use_lora use_peft use_swift_lora",
    "use --neftune_noise_alpha": "neftune_alpha",
    "use --init_lora_weights pissa, or pissa_niter_16": "pissa_init pissa_iter",
    "use --fsdp full_shard, or full_shard_offload": "fsdp_config fsdp_num fsdp_transformer_layer_cls_to_wrap "
    "model_layer_cls_name",
    "write it into the config.json of a model's folder: --model_id_or_path FOLDER": "rope_scaling",
    "use --bad_rows error (the default), or skip": "strict",
    "use --logging_steps N": "logging_strategy",
    "use --repetition_penalty": "presence_penalty frequency_penalty",
    "use --device cpu, npu or cuda": "merge_device_map export_device use_cpu no_cuda",
    "micro-batches fit the memory by themselves; --micro_batch_tokens N bounds them": "gpu_memory_fraction "
    "packing_length",
    "the schedules of --lr_scheduler_type have no further settings; leave it out": "lr_scheduler_kwargs",
    "all rows of all datasets are taken, mixed; --dataset NAME#2000 takes a part of one": "interleave_prob "
    "interleave_probs stopping_strategy mix_strategy",
    "the tokens of a model are those of its folder; leave it out": "new_special_tokens add_tokens "
    "additional_special_tokens resize_vocab",
    "tokens are always counted, and acc is always that of the tokens; leave it out": "include_num_input_tokens_seen "
    "include_tokens_per_second acc_strategy",
    "results are always written (--result_dir FOLDER), and scored; leave it out": "save_result metric",
    "every mistake of a command line ends it; leave it out": "ignore_args_error",
    "swift infer --ckpt_dir FOLDER --load_dataset_config true answers the held-out rows": "do_predict",
    "use --dataloader_num_workers": "num_workers",
    "use --early_stopping_patience": "early_stopping_steps early_stop_interval",
    "use --deterministic true": "full_determinism",
    "set SWIFTLET_LOG_LEVEL before the command": "log_level",
    "set NPROC_PER_NODE=N before the command; swift npu shows the devices": "gpus gpu npus npu num_npus devices "
    "device_ids num_processes",
    "set NNODES, NODE_RANK and MASTER_ADDR before the command": "nnodes num_nodes num_machines node_rank "
    "machine_rank master_addr master_port",
    "the answers are trained on, and nothing else; leave it out": "train_on_inputs train_on_input train_on_prompt "
    "completion_only_loss assistant_only_loss mask_history",
    "not available: the tokens of the answers are trained on, all with the same weight": "loss_scale use_loss_scale "
    "loss_scale_config_path loss_name label_smoothing_factor",
    "the model's own chat template prints the turns (--template_type)": "use_chat_template chat_template_path "
    "template_backend agent_template tools_prompt response_prefix enable_thinking add_non_thinking_prefix eos_token "
    "special_tokens pad_token",
    "rows are always shuffled, as --seed has it; leave it out": "dataset_shuffle train_dataloader_shuffle "
    "disable_shuffling",
    "adapters are always fp32; leave it out": "lora_dtype",
    "micro-batches are always made to fit the memory; leave it out": "auto_find_batch_size",
    OTHER_ADAPTERS: "adapter_act adapter_length",
    SAVES_MEMORY: "use_galore use_badam use_apollo use_muon",
    "not available; --deepspeed default-zero3 or --fsdp full_shard spreads a model, and --gradient_checkpointing true "
    "makes room for long samples": "sequence_parallel_size context_parallel_size tensor_model_parallel_size "
    "pipeline_model_parallel_size expert_model_parallel_size deepspeed_autotp_size",
    "models of text are trained here; leave it out": "freeze_vit freeze_aligner freeze_llm vit_lr aligner_lr "
    "max_pixels norm_bbox model_kwargs",
    "supervised fine-tuning alone is built in": "rlhf_type ref_model beta loss_type num_labels problem_type task_type",
    "type the question in the chat, or give --val_dataset FILE": "query prompt message",
    f"not available; {OTHER_ENGINES}": "to_ollama ollama_output_dir to_mcore to_megatron to_hf gguf gguf_file "
    "served_model_name host port api_key max_num_seqs enforce_eager disable_custom_all_reduce lora_modules logprobs",
}
WITHOUT_NEED = """
    lora_task_type neftune_backend gradient_checkpointing_kwargs download_mode average_tokens_across_devices
    ddp_broadcast_buffers dataloader_pin_memory dataloader_drop_last remove_unused_columns dataloader_persistent_workers
    dataloader_prefetch_factor save_on_each_node group_by_length use_fast_tokenizer low_cpu_mem_usage
    check_model_is_latest check_model disable_tqdm dataset_kwargs dataset_batch_size pad_to_multiple_of padding_side
    cached_dataset val_dataset_shuffle shuffle_buffer_size buffer_size create_checkpoint_symlink use_logits_to_keep
    upcast_layernorm verbose print_param_status torch_empty_cache_steps ddp_bucket_cap_mb tf32
    half_precision_backend logging_nan_inf_filter eval_accumulation_steps lora_fan_in_fan_out metric_warmup_step
    overwrite_generation_config write_batch_size max_shard_size export_size to_peft_format
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
    **dict.fromkeys(
        ("train_dataset_sample", "dataset_sample"), "use --dataset NAME#2000; all rows are taken without it"
    ),
    "val_dataset_sample": "use --val_dataset NAME#100; all rows are taken without it",
    "dataset_dir": "use --dataset FOLDER, or FOLDER:NAME for one that its dataset_info.json names",
    "lora_r": "use --lora_rank",
    "r": "use --lora_rank",
    "gradient_clipping": "use --max_grad_norm",
    "add_version": "use --add_output_dir_suffix",
    "args_file": "put the file first: swift sft FILE.yaml",
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
    **dict.fromkeys(
        ("train_dataset_mix_ratio", "train_dataset_mix_ds"),
        "name the other dataset too, such as --dataset A B#2000",
    ),
    "max_epochs": "use --num_train_epochs",
    "default_system": "use --system",
    "infer_dtype": "use --dtype",
    "pure_bf16": "use --dtype bf16",
    "deepspeed_config_path": "use --deepspeed FILE",
    "disable_gradient_checkpointing": "use --gradient_checkpointing false",
    "only_save_model": "use --save_only_model",
    "merge_lora_and_save": "use --merge_lora true",
    **dict.fromkeys(("exist_ok", "replace_if_exists"), "use --overwrite true"),
    "result_path": "use --result_dir FOLDER",
    "max_batch_size": "use --infer_batch_tokens",
    "loraplus_lr_ratio": "use --lora_lr_ratio",
    "lorap_lr_ratio": "use --lora_lr_ratio",
    "additional_target": "use --lora_modules_to_save",
    "neat_packing": "use --packing true: packed samples never see each other",
    "local_repo_path": "use --model_id_or_path FOLDER",
    **dict.fromkeys(
        ("resume_only_model", "ignore_data_skip"),
        "a resumed run takes its optimizer and its place in the data too (--resume_from_checkpoint)",
    ),
    "num_beams": "not available: answers are sampled, or the likeliest with --do_sample false",
    "do_eval": "not needed: swift sft evaluates (--evaluation_strategy)",
    **dict.fromkeys(
        ("streaming", "streaming_val_size", "streaming_buffer_size", "to_cached_dataset"),
        "not needed: rows are tokenised once, into a file that is mapped",
    ),
    **dict.fromkeys(
        ("safe_serialization", "save_safetensors", "export_legacy_format"),
        "not needed: weights are always saved as safetensors",
    ),
    "test_convert_precision": "not needed: swift merge-lora always compares the answers of both",
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
        ("overwrite_cache", "load_from_cache_file", "load_dataset_from_cache_file", "dataset_enable_cache"),
        "not needed: changed data is tokenised anew",
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "not needed: the best checkpoint is kept and named at the end of the run",
    ),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "export_hub_model_id"),
            *("push_hub_strategy", "commit_message"),
        ),
        "nothing is uploaded here: use the hub's own client on the folder of the checkpoint",
    ),
    **dict.fromkeys(
        ("device_map", "device_map_config", "device_map_config_path", "max_memory", "device_max_memory"),
        "use --deepspeed default-zero3 or --fsdp full_shard where one device is too small",
    ),
    **dict.fromkeys(
        ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len"),
        f"not available; {OTHER_ENGINES}",
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "use_liger", "enable_liger_kernel", "use_unsloth"),
        "fused operators are on where they pass their check (--fused_operators)",
    ),
    **dict.fromkeys(QUANTISATION.split(), "quantised training and export are not available; leave it out"),
    **dict.fromkeys(WITHOUT_NEED.split(), "not needed; leave it out"),
    **{name: told for told, names in SAME_THING.items() for name in names.split()},
}
# Flags that begin so belong to what is not built in.
BEGINNINGS: dict[str, str] = {
    **dict.fromkeys(("vllm_", "sglang_", "lmdeploy_"), f"not available; {OTHER_ENGINES}"),
    **dict.fromkeys(("quant_", "bnb_"), ELSEWHERE["quant_bits"]),
    **dict.fromkeys(("galore_", "lisa_", "badam_", "apollo_"), SAVES_MEMORY),
    **dict.fromkeys(
        ("adalora_", "ia3_", "boft_", "vera_", "llamapro_", "llama_pro_", "reft_", "fourier_", "longlora_"),
        OTHER_ADAPTERS,
    ),
    **dict.fromkeys(
        ("wandb_", "swanlab_"),
        "the curves are in TensorBoard's files and in images/ of the run; leave it out",
    ),
}
# What a flag of another command is called here: the flag, one that this command has, what to type.
CALLED_HERE: tuple[tuple[str, str, str], ...] = (
    (
        "ckpt_dir",
        "resume_from_checkpoint",
        "to go on with a run: --resume_from_checkpoint FOLDER; to train anew on what it made: swift merge-lora, "
        "then --model_id_or_path FOLDER",
    ),
    ("resume_from_checkpoint", "ckpt_dir", "use --ckpt_dir FOLDER"),
    ("batch_size", "infer_batch_tokens", "use --infer_batch_tokens"),
    ("eval_batch_size", "infer_batch_tokens", "use --infer_batch_tokens"),
    ("output_dir", "result_dir", "use --result_dir FOLDER"),
    ("output_dir", "export_dir", "use --export_dir FOLDER"),
)

# What other tools call a command that is another one here, or none: command -> what to type.
SERVING = f"there is no server here; {OTHER_ENGINES}"
COMMANDS_ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("train", "finetune"), "use swift sft"),
    "chat": "use swift infer",
    "pt": 'use swift sft: rows of plain text, {"text": ...}, are learnt whole',
    "merge": "use swift merge-lora",
    "eval": "swift infer --ckpt_dir FOLDER --load_dataset_config true answers the held-out rows and scores them",
    **dict.fromkeys(
        ("rlhf", "dpo", "grpo", "kto", "sample", "rollout"),
        "supervised fine-tuning alone is built in: swift sft",
    ),
    **dict.fromkeys(("deploy", "api", "app", "app-ui", "web-ui", "webui", "webchat"), SERVING),
}
