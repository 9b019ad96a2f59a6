"""Rules between arguments: every message, and all of them at once."""

import pytest

from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.check import check_export, check_infer, check_sft
from swiftlet.config.parse import parse

BASE = "--model_type tiny-math-chat --dataset demo-math-zh"


def sft(words):
    return [str(mistake) for mistake in check_sft(parse(SftArgs, f"{BASE} {words}".split()))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sft_type full --lora_rank 4", "--lora_rank has no effect with --sft_type full"),
        ("--freeze_parameters_ratio 0.5", "--freeze_parameters_ratio has no effect with --sft_type lora"),
        (
            "--val_dataset gsm8k --dataset_test_ratio 0.1",
            "--val_dataset and --dataset_test_ratio exclude each other",
        ),
        ("--warmup_ratio 0.1 --warmup_steps 5", "--warmup_ratio and --warmup_steps exclude each other"),
        ("--deepspeed zero2 --fsdp full_shard", "--deepspeed and --fsdp exclude each other"),
        ("--evaluation_strategy no --predict_with_generate", "--predict_with_generate has no effect"),
        ("--do_sample false --temperature 0.5", "--temperature has no effect with --do_sample false"),
        ("--init_lora_weights pisa", "--init_lora_weights 'pisa' is not known"),
        ("--deepspeed zero5", "--deepspeed 'zero5' is neither a name nor a file"),
        ("--deepspeed {", "--deepspeed is not JSON"),
        ("--resume_from_checkpoint nowhere", "no such checkpoint folder: nowhere"),
        ("--model_id_or_path ./nowhere", "no such folder: ./nowhere"),
        ("--val_dataset missing.jsonl", "no such data file or folder: missing.jsonl"),
        ("--max_length 0", "--max_length must be above 0"),
        ("--report_to none tensorboard", "--report_to none excludes the others"),
    ],
)
def test_each_rule_says_what_is_wrong_and_what_to_type(words, expected):
    (message,) = sft(words)
    assert expected in message
    assert "\nhint: " in message


def test_a_good_command_line_has_no_mistakes(tmp_path):
    assert sft(f"--output_dir {tmp_path} --init_lora_weights pissa_niter_16 --deepspeed zero2") == []


def test_an_empty_command_line_names_what_is_missing():
    messages = [mistake.message for mistake in check_sft(parse(SftArgs, []))]
    assert messages == ["no model is named", "no dataset is named"]


def test_a_folder_without_config(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (message,) = sft(f"--model_id_or_path {tmp_path}")
    assert "has no config.json; it holds model.safetensors" in message


def test_an_adapter_given_as_a_model(tmp_path):
    (tmp_path / "adapter_config.json").touch()
    (message,) = sft(f"--model_id_or_path {tmp_path}")
    assert message.endswith("hint: for an adapter use swift infer --ckpt_dir")


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "taken").touch()
    (message,) = sft(f"--output_dir {tmp_path}/taken/below")
    assert f"{tmp_path}/taken is a file" in message


def test_output_dir_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (message,) = sft(f"--output_dir {tmp_path}/x")
    assert f"no permission to write in {tmp_path}" in message


def test_deepspeed_settings_in_a_file(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "good.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert "--deepspeed holds no JSON object" in sft(f"--deepspeed {tmp_path}/list.json")[0]
    assert sft(f"--deepspeed {tmp_path}/good.json") == []


def infer(words):
    return [str(mistake) for mistake in check_infer(parse(InferArgs, words.split()))]


def test_infer_needs_a_checkpoint_or_a_model(tmp_path):
    assert infer("")[0].startswith("neither a checkpoint nor a model is named")
    assert infer("--model_type tiny-math-chat") == []
    assert infer("--model_type tiny-math-chat --merge_lora")[0].startswith("--merge_lora needs a checkpoint")
    assert infer("--ckpt_dir nowhere")[0].startswith("no such checkpoint folder: nowhere")
    (tmp_path / "v0" / "checkpoint-50").mkdir(parents=True)
    assert infer(f"--ckpt_dir {tmp_path}")[0].endswith(
        "hint: give one of the checkpoints inside: checkpoint-50"
    )


def test_export_says_what_is_missing(tmp_path):
    def export(words):
        return [str(mistake) for mistake in check_export(parse(ExportArgs, words.split()))]

    assert export("--merge_lora")[0].startswith("no checkpoint is named")
    (tmp_path / "adapter_config.json").touch()
    assert export(f"--ckpt_dir {tmp_path}")[0].startswith("nothing to export")
    assert export(f"--ckpt_dir {tmp_path} --merge_lora true") == []
