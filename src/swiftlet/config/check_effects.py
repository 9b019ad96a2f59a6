"""Flags that would have no effect, each a mistake: a table of flags and of what takes their effect away.

A switch that is off, a value of None or 0 and a default that is typed out ask for nothing, so they are not useless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple

from swiftlet.config.args import DataArgs
from swiftlet.config.fields import to_flat
from swiftlet.errors import UsageError


class Useless(NamedTuple):
    """Flags without effect where `holds` is true of the arguments; `why` and `hint` say so."""

    flags: str
    holds: Callable[[Any], bool]
    why: str
    hint: str


def _has_no_validation(args: Any) -> bool:
    return args.data.dataset_test_ratio == 0 and not args.data.val_dataset


def _eval_steps_are_save_steps(args: Any) -> bool:
    return args.output.save_strategy == "steps" and args.output.save_steps is None


def _is_chat(args: Any) -> bool:
    return not (args.data.dataset or args.data.val_dataset or args.answer.load_dataset_config)


LORA = (
    "lora_rank lora_alpha lora_dropout_p lora_bias_trainable lora_target_modules lora_modules_to_save lora_lr_ratio "
    "use_dora use_rslora init_lora_weights"
)
EVALUATION = "predict_with_generate early_stopping_patience eval_batch_size"
OF_ROWS = " ".join(
    field.name for field in fields(DataArgs) if field.name not in ("dataset", "val_dataset", "columns")
)
# What infer takes, as it shares groups of flags with sft, and has no use for: its help leaves them out.
FOR_TRAINING = (
    "lazy_tokenize packing share_prefixes max_length truncation_strategy preprocess_num_proc fused_operators "
    "graph_capture"
)
SAMPLING = Useless(
    "temperature top_k top_p",
    lambda args: not args.generation.do_sample,
    "with --do_sample false",
    "remove it, or type --do_sample true",
)
SFT: tuple[Useless, ...] = (
    Useless(
        LORA,
        lambda args: args.tuner.sft_type == "full",
        "with --sft_type full",
        "remove it, or type --sft_type lora",
    ),
    Useless(
        "freeze_parameters freeze_parameters_ratio",
        lambda args: args.tuner.sft_type == "lora",
        "with --sft_type lora",
        "remove it, or type --sft_type full",
    ),
    Useless(
        EVALUATION,
        lambda args: args.output.evaluation_strategy == "no",
        "with --evaluation_strategy no",
        "remove one of them",
    ),
    Useless(
        EVALUATION,
        _has_no_validation,
        "without validation rows: --dataset_test_ratio is 0",
        "remove it, or add --val_dataset FILE",
    ),
    Useless(
        "adam_beta1 adam_beta2",
        lambda args: not args.train.optim.startswith("adam"),
        "with --optim sgd, adafactor, rmsprop or adagrad",
        "remove it, or type --optim adamw_torch",
    ),
    Useless(
        "adam_epsilon",
        lambda args: args.train.optim in ("sgd", "adafactor", "adagrad"),
        "with --optim sgd, adafactor or adagrad",
        "remove it, or type --optim adamw_torch",
    ),
    Useless(
        "warmup_ratio warmup_steps",
        lambda args: args.train.lr_scheduler_type == "constant",
        "with --lr_scheduler_type constant",
        "remove it, or type --lr_scheduler_type constant_with_warmup",
    ),
    Useless(
        "eval_steps",
        lambda args: args.output.evaluation_strategy != "steps" and not _eval_steps_are_save_steps(args),
        "without --evaluation_strategy steps",
        "remove it, or type --evaluation_strategy steps",
    ),
    Useless(
        "eval_steps",
        lambda args: _has_no_validation(args) and not _eval_steps_are_save_steps(args),
        "without validation rows: --dataset_test_ratio is 0",
        "remove it, or add --val_dataset FILE",
    ),
    Useless(
        "save_steps save_total_limit save_only_model on_save_error",
        lambda args: args.output.save_strategy == "no",
        "with --save_strategy no",
        "remove it, or type --save_strategy steps",
    ),
    Useless(
        "save_steps",
        lambda args: args.output.save_strategy == "epoch",
        "with --save_strategy epoch",
        "remove it, or type --save_strategy steps",
    ),
    Useless(
        "max_bad_fraction",
        lambda args: args.data.bad_rows != "skip",
        "without --bad_rows skip",
        "remove it, or add --bad_rows skip",
    ),
    Useless(
        "resume_override",
        lambda args: args.output.resume_from_checkpoint is None,
        "without --resume_from_checkpoint",
        "remove it, or add --resume_from_checkpoint auto",
    ),
    Useless(
        "share_prefixes",
        lambda args: not args.data.packing,
        "with --packing false",
        "remove it, or type --packing true",
    ),
    Useless(
        "share_prefixes",
        lambda args: args.tuner.neftune_noise_alpha is not None,
        "with --neftune_noise_alpha, whose noise differs by sample",
        "remove one of them",
    ),
    Useless(
        "stop_words",
        lambda args: not args.train.predict_with_generate,
        "without --predict_with_generate",
        "remove it: the other settings of generation go into the checkpoint's generation_config.json",
    ),
    SAMPLING,
)
INFER: tuple[Useless, ...] = (
    Useless(
        f"{OF_ROWS} show_dataset_sample infer_batch_tokens result_dir",
        _is_chat,
        "in a chat, and no dataset is named",
        "remove it, or add --dataset NAME_OR_FILE, or --load_dataset_config true beside --ckpt_dir",
    ),
    Useless(
        FOR_TRAINING,
        lambda args: True,
        "here: it is for training",
        "remove it; --infer_batch_tokens says how much is answered at once",
    ),
    Useless(
        "max_bad_fraction",
        lambda args: args.data.bad_rows != "skip" and not args.answer.load_dataset_config,
        "without --bad_rows skip",
        "remove it, or add --bad_rows skip",
    ),
    Useless(
        "dataset",
        lambda args: bool(args.data.val_dataset),
        "beside --val_dataset, whose rows are answered",
        "remove one of them",
    ),
    SAMPLING,
)


def _is_off(value: Any) -> bool:
    return not value or value == "false"


def without_effect(rows: Iterable[Useless], args: Any, given: frozenset[str]) -> Iterator[UsageError]:
    """Yield a mistake a row of the table whose flags were given in vain; no flag is named twice."""
    values = to_flat(args)
    defaults = to_flat(type(args)())
    asked = [
        name
        for name, value in values.items()
        if name in given and not _is_off(value) and value != defaults[name]
    ]
    for row in rows:
        found = [name for name in asked if name in row.flags.split() and row.holds(args)]
        if found:
            asked = [name for name in asked if name not in found]
            names = ", ".join(f"--{name}" for name in found)
            yield UsageError(f"{names} {'have' if len(found) > 1 else 'has'} no effect {row.why}", row.hint)
