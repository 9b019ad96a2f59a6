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
