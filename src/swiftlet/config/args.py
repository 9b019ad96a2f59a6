"""Every argument of every command: name, type, default and help, and nothing else.

A value of None means "inherited": `resolve.py` fills it from other arguments. A value of AUTO is decided by the
machine when the run starts, and the decision is logged. Names and defaults are those of contract section 2 of
the reference system's command line; `aliases.py` has the other names that are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swiftlet.config.fields import arg

AUTO = "AUTO"
LARGEST_SEED = 2**63 - 1
SWITCH = (AUTO, "true", "false")
DEVICES = (AUTO, "npu", "cuda", "cpu")
DTYPES = (AUTO, "bf16", "fp16", "fp32")
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_npu_fused",
    "adamw_hf",
    "adam",
    "adafactor",
    "sgd",
    "rmsprop",
    "adagrad",
)
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
)


@dataclass(frozen=True)
class ModelArgs:
    """Model"""

    model_type: str | None = arg(None, "A model of the family table, such as qwen1half-7b-chat")
    model_id_or_path: str | None = arg(None, "A hub id or a local folder; needs no --model_type")
    model_revision: str | None = arg(
        None, "Branch, tag or commit on the hub; the hub's default when not given"
    )
    template_type: str | None = arg(None, "A named chat template; the tokenizer's own when not given")
    system: str | None = arg(None, "System prompt; the model's own when not given, '' for none", is_text=True)
    dtype: str = arg(
        AUTO, "Type of weights and activations; AUTO: bf16 where the device has it", choices=DTYPES
    )
    use_flash_attn: str = arg(
        AUTO, "Fused attention for packed samples; AUTO: where it passes its check", choices=SWITCH
    )
    fused_operators: str = arg(
        AUTO, "Fused norm, rotary and SwiGLU; AUTO: where they pass their check", choices=SWITCH
    )
    graph_capture: bool = arg(
        False, "Record training passes as graphs of the device and replay them: for small models on a GPU"
    )
    trust_remote_code: bool = arg(False, "Run Python code that comes with the model")


@dataclass(frozen=True)
class TunerArgs:
    """Tuner"""

    sft_type: str = arg(
        "lora", "What is trained: low-rank adapters, or all parameters", choices=("lora", "full")
    )
    tuner_backend: str = arg("peft", "Library of the adapters", choices=("peft",))
    lora_rank: int = arg(8, "Rank of the adapters", at_least=1)
    lora_alpha: float = arg(32.0, "Scale of the adapters: alpha / rank", above=0)
    lora_dropout_p: float = arg(0.05, "Dropout before the adapters", at_least=0, below=1)
    lora_bias_trainable: str = arg("none", "Biases to train", choices=("none", "all", "lora_only"))
    lora_target_modules: tuple[str, ...] = arg(
        ("DEFAULT",),
        "Modules with adapters: DEFAULT (q, k, v projections), ALL (linear layers but the head), EMBEDDING, or names",
        example="ALL",
    )
    lora_modules_to_save: tuple[str, ...] = arg(
        (), "Modules trained and saved whole beside the adapters: EMBEDDING, LN, lm_head, or names"
    )
    use_dora: bool = arg(False, "Weight-decomposed adapters (DoRA)")
    use_rslora: bool = arg(False, "Scale adapters by alpha / sqrt(rank) (rsLoRA)")
    lora_lr_ratio: float | None = arg(
        None, "Learning rate of B over that of A (LoRA+), such as 16", above=0, example="16"
    )
    init_lora_weights: str = arg(
        "true", "Start of the adapters: true, gaussian, pissa, pissa_niter_[n], olora, orthogonal"
    )
    freeze_parameters: tuple[str, ...] = arg((), "With full: name prefixes of parameters not to train")
    freeze_parameters_ratio: float = arg(
        0.0, "With full: share of the parameters, from the bottom, not to train", at_least=0, below=1
    )
    neftune_noise_alpha: float | None = arg(
        None, "Noise on the embeddings while training (NEFTune), such as 5", above=0, example="5"
    )


@dataclass(frozen=True)
class DataArgs:
    """Data"""

    dataset: tuple[str, ...] = arg(
        (),
        "Names, hub ids, files or folders; NAME:subset1/subset2, NAME#2000 for a random sample of 2000 rows",
    )
    val_dataset: tuple[str, ...] = arg(
        (), "Validation data in the same forms; nothing is split off when given"
    )
    dataset_test_ratio: float = arg(
        0.01,
        "Share of the rows held out for validation; swift infer asks every row of --dataset without it",
        at_least=0,
        below=1,
    )
    dataset_seed: int = arg(42, "Seed of the split and of #N samples", at_least=0, at_most=LARGEST_SEED)
    columns: dict[str, str] = arg(
        {}, "Other names of columns or roles, theirs=ours, such as question=query; repeatable, or JSON"
    )
    max_length: int = arg(
        2048, "Longest sample [tokens]; -1 for the model's own limit", minus_one="the model's own limit"
    )
    truncation_strategy: str = arg(
        "delete", "A longer sample is left out, or loses its beginning", choices=("delete", "truncation_left")
    )
    check_dataset_strategy: str = arg(
        "none", "What to do about duplicated rows", choices=("none", "discard", "error", "warning")
    )
    bad_rows: str = arg(
        "error",
        "A row that cannot be trained on stops the run, or is skipped and counted",
        choices=("error", "skip"),
    )
    max_bad_fraction: float = arg(
        0.01, "With --bad_rows skip: the largest share of skipped rows", at_least=0, at_most=1
    )
    preprocess_num_proc: int | None = arg(
        None, "Processes that tokenise; all cores when not given", at_least=1
    )
    lazy_tokenize: bool = arg(
        False, "Taken from older commands and not needed: rows are tokenised once, into a file that is mapped"
    )
    packing: bool = arg(
        True, "Pack the samples of a step without padding; the gradient is the same either way"
    )
    share_prefixes: str = arg(
        AUTO,
        "Compute once what packed samples begin with alike: system prompts, tools, questions; AUTO: unless a step "
        "waits for its launches",
        choices=SWITCH,
    )


@dataclass(frozen=True)
class TrainArgs:
    """Training"""

    batch_size: int = arg(1, "Samples a device and accumulation step", at_least=1)
    eval_batch_size: int | None = arg(
        None,
        "Taken from older commands and not needed: evaluation takes as many samples at once as training",
        at_least=1,
    )
    gradient_accumulation_steps: int | None = arg(
        None, "Batches a step; ceil(16 / batch_size / processes) when not given", at_least=1
    )
    learning_rate: float | None = arg(
        None, "Peak learning rate; 1e-4 for lora and 1e-5 for full when not given", above=0, example="1e-4"
    )
    optim: str = arg("adamw_torch", "Optimiser", choices=OPTIMIZERS)
    adam_beta1: float = arg(0.9, "Decay of the first moment", at_least=0, below=1)
    adam_beta2: float = arg(0.999, "Decay of the second moment", at_least=0, below=1)
    adam_epsilon: float = arg(1e-8, "Term added to the denominator", above=0)
    weight_decay: float = arg(0.1, "Decay of weights that are neither biases nor norms", at_least=0)
    max_grad_norm: float = arg(0.5, "Largest norm of the gradient; 0 for no clipping", at_least=0)
    lr_scheduler_type: str = arg("linear", "Shape of the learning rate after the warm-up", choices=SCHEDULES)
    warmup_ratio: float = arg(
        0.05, "Share of the steps in which the learning rate rises", at_least=0, at_most=1
    )
    warmup_steps: int | None = arg(None, "The same as a number of steps", at_least=0, example="100")
    num_train_epochs: float = arg(1.0, "Passes over the training data", above=0, at_most=1e9)
    max_steps: int = arg(
        -1,
        "Stop after this many steps, whatever the epochs; -1 for no limit",
        minus_one="no limit",
        example="1000",
    )
    seed: int = arg(
        42, "Seed of the order of samples, dropout and new weights", at_least=0, at_most=LARGEST_SEED
    )
    micro_batch_tokens: int | None = arg(
        None,
        "Most tokens in one forward pass; decided from memory when not given. Never changes the gradient",
        at_least=1,
        example="4096",
    )
    gradient_checkpointing: str = arg(
        AUTO,
        "Recompute activations; partial: the large, cheap ones; AUTO: only when memory asks for it",
        choices=(*SWITCH, "partial"),
    )
    deterministic: bool = arg(False, "Only operators that give the same bits in every run")
    early_stopping_patience: int | None = arg(
        None, "Stop after so many evaluations without a better loss", at_least=1, example="3"
    )
    predict_with_generate: bool = arg(False, "Evaluate by generating: exact match and ROUGE-L")
    dataloader_num_workers: int = arg(1, "Threads that prepare the next steps; 0 for none", at_least=0)
    spike_policy: str = arg(
        "none", "What to do about a gradient norm far above the last ones", choices=("none", "skip", "stop")
    )


@dataclass(frozen=True)
class OutputArgs:
    """Output"""

    output_dir: str = arg("output", "Folder of the runs")
    add_output_dir_suffix: bool = arg(True, "Make output_dir/model_type/v{number}-{time} below it")
    evaluation_strategy: str = arg("steps", "When to evaluate", choices=("steps", "epoch", "no"))
    eval_steps: int = arg(50, "Steps between evaluations", at_least=1)
    save_strategy: str = arg("steps", "When to save", choices=("steps", "epoch", "no"))
    save_steps: int | None = arg(
        None, "Steps between checkpoints; --eval_steps when not given", at_least=1, example="50"
    )
    save_total_limit: int = arg(
        2, "Checkpoints kept: the best and the last ones; with 1 the last alone, -1 for all", minus_one="all"
    )
    save_only_model: bool = arg(False, "Leave out what a resumed run needs")
    on_save_error: str = arg("continue", "When a checkpoint cannot be written", choices=("continue", "stop"))
    logging_steps: int = arg(5, "Steps between log lines", at_least=1)
    report_to: tuple[str, ...] = arg(
        ("tensorboard",), "Where to log besides logging.jsonl", choices=("tensorboard", "none")
    )
    resume_from_checkpoint: str | None = arg(
        None, "A checkpoint folder, or auto: the newest valid one of output_dir", example="auto"
    )
    resume_override: bool = arg(False, "Resume although data or settings differ from the checkpoint's")


@dataclass(frozen=True)
class ParallelArgs:
    """Devices"""

    device: str = arg(AUTO, "Kind of device; cpu to insist on no accelerator", choices=DEVICES)
    deepspeed: str | None = arg(
        None,
        "ZeRO by DeepSpeed: default-zero2, default-zero3, zero3-offload, or a file or text of JSON settings",
        example="default-zero2",
    )
    fsdp: str | None = arg(
        None,
        "Shard with FSDP2: full_shard, or full_shard_offload",
        choices=("full_shard", "full_shard_offload"),
    )
    ddp_backend: str = arg(
        AUTO, "Library of collectives; AUTO: the device's own", choices=(AUTO, "hccl", "nccl", "gloo")
    )
    ddp_timeout: int = arg(1800, "Longest wait in a collective [s]", above=0)
    bind_cpu: bool = arg(True, "Bind each process to the processors next to its device")
    hang_timeout: float | None = arg(
        None,
        "Longest step without a sign of life [s]; from the run's own pace when not given",
        above=0,
        example="600",
    )
    max_restarts: int = arg(0, "Restarts from the last valid checkpoint after a failed process", at_least=0)
    force: bool = arg(False, "Start although the plan says that memory is too small")


@dataclass(frozen=True)
class GenerationArgs:
    """Generation"""

    max_new_tokens: int = arg(2048, "Longest answer [tokens]", at_least=1)
    do_sample: bool = arg(True, "Sample; false takes the likeliest token")
    temperature: float = arg(0.3, "Temperature of sampling; 0 takes the likeliest token", at_least=0)
    top_k: int = arg(20, "Sample among the k likeliest tokens; 0 for all", at_least=0)
    top_p: float = arg(0.7, "Sample among the likeliest tokens of this total probability", above=0, at_most=1)
    repetition_penalty: float = arg(1.0, "Above 1: tokens already written become unlikely", above=0)
    stop_words: tuple[str, ...] = arg((), "Texts that end an answer", is_text=True)


@dataclass(frozen=True)
class AnswerArgs:
    """Inference"""

    ckpt_dir: str | None = arg(None, "A checkpoint: an adapter, a merged or a full model")
    load_dataset_config: bool = arg(
        False, "Take dataset, seed and ratio from the checkpoint: the same held-out rows"
    )
    show_dataset_sample: int = arg(10, "Rows of the dataset to answer; -1 for all", minus_one="all")
    eval_human: bool = arg(False, "Chat although a dataset is known")
    infer_backend: str = arg("pt", "Engine", choices=("pt",))
    infer_batch_tokens: int = arg(
        4096, "Most tokens in a batch: its prompts, and up to 256 of each answer", at_least=1
    )
    stream: bool = arg(True, "Print the answer while it is written")
    merge_lora: bool = arg(False, "Write the merged model beside the checkpoint first and use it")
    result_dir: str | None = arg(None, "Folder of the results; infer_result in the checkpoint when not given")


@dataclass(frozen=True)
class MergeArgs:
    """Export"""

    merge_lora: bool = arg(False, "Merge the adapter into the weights of its base model")
    merge_tolerance: float | None = arg(
        None,
        "Largest difference of log-probabilities between merged and adapter; by dtype when not given",
        above=0,
        example="0.01",
    )
    export_dir: str | None = arg(None, "Folder to write; {checkpoint}-merged when not given")
    overwrite: bool = arg(False, "Replace an earlier merged model")


@dataclass(frozen=True)
class MachineArgs:
    """Device"""

    device: str = arg(AUTO, "Kind of device; cpu to insist on no accelerator", choices=DEVICES)
    bind_cpu: bool = arg(True, "Bind each process to the processors next to its device")
    seed: int = arg(42, "Seed of sampling", at_least=0)


@dataclass(frozen=True)
class CheckpointArgs:
    """Checkpoint"""

    ckpt_dir: str | None = arg(None, "The checkpoint to export: an adapter folder")
    model_type: str | None = arg(None, "Base model; from the checkpoint when not given")
    model_id_or_path: str | None = arg(
        None, "Base model folder or hub id; from the checkpoint when not given"
    )
    model_revision: str | None = arg(
        None, "Branch, tag or commit on the hub; the hub's default when not given"
    )
    dtype: str = arg(AUTO, "Type of the merged weights; AUTO: the checkpoint's", choices=DTYPES)
    device: str = arg(AUTO, "Kind of device; cpu to insist on no accelerator", choices=DEVICES)
    trust_remote_code: bool = arg(False, "Run Python code that comes with the model")


@dataclass(frozen=True)
class SftArgs:
    """Fine-tune a model: adapters (LoRA) or all parameters, on one device or many."""

    model: ModelArgs = field(default_factory=ModelArgs)
    tuner: TunerArgs = field(default_factory=TunerArgs)
    data: DataArgs = field(default_factory=DataArgs)
    train: TrainArgs = field(default_factory=TrainArgs)
    output: OutputArgs = field(default_factory=OutputArgs)
    parallel: ParallelArgs = field(default_factory=ParallelArgs)
    generation: GenerationArgs = field(default_factory=GenerationArgs)


@dataclass(frozen=True)
class InferArgs:
    """Chat with a model or a checkpoint, or answer the rows of a dataset."""

    model: ModelArgs = field(default_factory=ModelArgs)
    answer: AnswerArgs = field(default_factory=AnswerArgs)
    data: DataArgs = field(default_factory=DataArgs)
    generation: GenerationArgs = field(default_factory=GenerationArgs)
    machine: MachineArgs = field(default_factory=MachineArgs)


@dataclass(frozen=True)
class ExportArgs:
    """Merge an adapter into its base model, with a proof that both give the same answers."""

    checkpoint: CheckpointArgs = field(default_factory=CheckpointArgs)
    merge: MergeArgs = field(default_factory=MergeArgs)
