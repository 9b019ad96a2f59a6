"""Rules between arguments: every message, and all of them at once."""

import os

import pytest

from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.check import check_export, check_infer, check_sft
from swiftlet.config.help import command_help
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
        ("--sft_type full --freeze_parameters 0.5", "--freeze_parameters takes names, found 0.5"),
        (
            "--lora_target_modules ALL EMBEDDING --lora_modules_to_save EMBEDDING lm_head",
            "EMBEDDING cannot have an adapter (--lora_target_modules) and be trained whole (--lora_modules_to_save)",
        ),
        ("--evaluation_strategy no --predict_with_generate", "--predict_with_generate has no effect"),
        ("--do_sample false --temperature 0.5", "--temperature has no effect with --do_sample false"),
        ("--init_lora_weights pisa", "--init_lora_weights 'pisa' is not known"),
        ("--init_lora_weights false", "--init_lora_weights 'false' is not known"),
        ("--init_lora_weights PiSSA --use_dora", "--use_dora does not go with --init_lora_weights PiSSA"),
        ("--init_lora_weights orthogonal --lora_rank 3", "orthogonal needs an even rank, found 3"),
        ("--optim sgd --adam_beta1 0.8", "--adam_beta1 has no effect with --optim sgd,"),
        ("--optim rmsprop --adam_beta2 0.8", "--adam_beta2 has no effect with --optim sgd,"),
        ("--optim adagrad --adam_epsilon 1", "--adam_epsilon has no effect with --optim sgd,"),
        (
            "--lr_scheduler_type constant --warmup_steps 5",
            "--warmup_steps has no effect with --lr_scheduler_type constant",
        ),
        (
            '--deepspeed {"zero_optimization":{"stage":1}}',
            "zero_optimization.stage is 1 in the settings of --deepspeed",
        ),
        ('--deepspeed {"optimizer":{}}', "the settings of --deepspeed have a section 'optimizer'"),
        (
            '--batch_size 2 --deepspeed {"train_micro_batch_size_per_gpu":4}',
            "train_micro_batch_size_per_gpu is 4 in the settings of --deepspeed, 2 by --batch_size",
        ),
        (
            '--dtype bf16 --deepspeed {"zero_optimization":{"stage":2},"bf16":{"enabled":false}}',
            "bf16.enabled is False in the settings of --deepspeed, the run is in bf16",
        ),
        ("--deepspeed zero5", "--deepspeed 'zero5' is neither a name nor a file"),
        ("--deepspeed {", "--deepspeed is not JSON"),
        ("--resume_from_checkpoint nowhere", "no such checkpoint folder: nowhere"),
        ("--model_id_or_path ./nowhere", "no such folder: ./nowhere"),
        ("--max_length 0", "--max_length must be above 0"),
        ("--max_steps 0", "--max_steps must be above 0, or -1 for no limit, found 0"),
        ("--save_total_limit 0", "--save_total_limit must be above 0, or -1 for all, found 0"),
        ("--save_strategy no --save_steps 5", "--save_steps has no effect with --save_strategy no"),
        (
            "--save_strategy no --save_total_limit 1 --save_only_model",
            "--save_total_limit, --save_only_model have no effect with --save_strategy no",
        ),
        ("--save_strategy epoch --save_steps 5", "--save_steps has no effect with --save_strategy epoch"),
        (
            "--evaluation_strategy epoch --save_strategy epoch --eval_steps 5",
            "--eval_steps has no effect without --evaluation_strategy steps",
        ),
        (
            "--dataset_test_ratio 0 --eval_steps 5 --save_steps 5",
            "--eval_steps has no effect without validation rows: --dataset_test_ratio is 0",
        ),
        (
            "--dataset_test_ratio 0 --early_stopping_patience 2 --predict_with_generate",
            "--early_stopping_patience, --predict_with_generate have no effect without validation rows",
        ),
        ("--stop_words Q:", "--stop_words has no effect without --predict_with_generate"),
        ("--max_bad_fraction 0.1", "--max_bad_fraction has no effect without --bad_rows skip"),
        ("--resume_override", "--resume_override has no effect without --resume_from_checkpoint"),
        ("--packing false --share_prefixes", "--share_prefixes has no effect with --packing false"),
        (
            "--neftune_noise_alpha 5 --share_prefixes",
            "--share_prefixes has no effect with --neftune_noise_alpha",
        ),
        (
            "--max_restarts 2 --save_only_model",
            "--max_restarts goes on from a checkpoint, and --save_only_model",
        ),
        ("--report_to none tensorboard", "--report_to none excludes the others"),
        (
            "--graph_capture --deepspeed default-zero2 --share_prefixes true",
            "--graph_capture does not go with --deepspeed, --share_prefixes true: it records passes of adapters",
        ),
    ],
)
def test_each_rule_says_what_is_wrong_and_what_to_type(words, expected):
    (message,) = sft(words)
    assert expected in message
    assert "\nhint: " in message


@pytest.mark.parametrize(
    "words",
    [
        "--save_strategy no",
        "--temperature 0.9 --max_new_tokens 5",  # they go into generation_config.json
        "--val_dataset gsm8k --dataset_test_ratio 0",
        "--warmup_ratio 0 --warmup_steps 5",
        "--deepspeed none --fsdp full_shard",
        "--evaluation_strategy no --eval_steps 5",  # the steps between checkpoints
        "--evaluation_strategy epoch --eval_steps 5",
        "--dataset_test_ratio 0 --eval_steps 5",
        "--evaluation_strategy no --predict_with_generate false",
        "--sft_type full --use_dora false",
        "--packing false --share_prefixes false",
        "--bad_rows skip --max_bad_fraction 0.1",
        "--resume_from_checkpoint auto --resume_override",
        "--init_lora_weights PISSA",
        "--init_lora_weights pissa_niter_4",
        "--optim rmsprop --adam_epsilon 1e-6",
        "--optim sgd --adam_beta1 0.9 --adam_beta2 0.999 --adam_epsilon 1e-8",  # defaults, typed out
        "--lr_scheduler_type constant --warmup_ratio 0.05",
        "--lr_scheduler_type constant --warmup_ratio 0",
        "--lr_scheduler_type constant_with_warmup --warmup_steps 5",
        "--sft_type full --lora_rank 8 --lora_target_modules DEFAULT --init_lora_weights true",
        '--deepspeed {"gradient_accumulation_steps":4,"zero_optimization":{"stage":2},"bf16":{"enabled":true}}',
        "--max_steps -1 --save_total_limit -1 --max_length -1",
    ],
)
def test_a_flag_with_an_effect_is_accepted(words):
    assert sft(words) == []


def test_a_good_command_line_has_no_mistakes(tmp_path):
    assert sft(f"--output_dir {tmp_path} --init_lora_weights pissa_niter_16 --deepspeed zero2") == []


def test_all_pairs_that_exclude_each_other_are_told():
    words = "--val_dataset demo-math-zh --dataset_test_ratio 0.2 --deepspeed zero2 --fsdp full_shard"
    told = " ".join(sft(words))
    assert (
        "--val_dataset and --dataset_test_ratio exclude" in told and "--deepspeed and --fsdp exclude" in told
    )


def test_an_empty_command_line_names_what_is_missing():
    messages = [mistake.message for mistake in check_sft(parse(SftArgs, []))]
    assert messages == ["no model is named", "no dataset is named"]


def test_who_goes_on_with_a_run_by_its_folder_alone_is_told_where_its_arguments_are(tmp_path):
    record = tmp_path / "sft_args.json"
    record.write_text("{}", encoding="utf-8")

    hint = f"put {record} first: it has --model_type, --dataset and the other flags of that run"
    found = [str(one) for one in check_sft(parse(SftArgs, [str(tmp_path)]))]
    assert found == [f"unexpected word '{tmp_path}'\nhint: {hint}"]
    hint = f"add {record} before the flags: that run's own arguments"
    found = [str(one) for one in check_sft(parse(SftArgs, ["--resume_from_checkpoint", str(tmp_path)]))]
    assert found == [f"no model is named\nhint: {hint}"]


def test_a_file_of_arguments_behind_flags_is_told_to_come_first():
    found = [str(one) for one in check_sft(parse(SftArgs, ["--lora_rank", "4", "a.yaml"]))]
    assert found == [
        "unexpected word 'a.yaml'\nhint: put a.yaml first, before flags such as --model_type and --dataset"
    ]


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
    older, newer = tmp_path / "model" / "v0" / "checkpoint-50", tmp_path / "model" / "v1" / "checkpoint-4"
    for second, folder in enumerate((older, newer)):
        folder.mkdir(parents=True)
        os.utime(folder, (second, second))
    too_deep = tmp_path / "model" / "v1" / "more" / "checkpoint-9"
    too_deep.mkdir(parents=True)
    assert infer(f"--ckpt_dir {tmp_path}")[0].endswith(
        f"hint: give one of the checkpoints inside: {newer}, {older}"
    )


@pytest.mark.parametrize(
    "words",
    ["--show_dataset_sample 5", "--lazy_tokenize", "--bad_rows skip", "--dataset_seed 1", "--max_length 9"],
)
def test_what_concerns_rows_has_no_effect_in_a_chat(words):
    (message,) = infer(f"--model_type tiny-math-chat {words}")
    assert message.startswith(f"{words.split()[0]} has no effect in a chat, and no dataset is named")
    assert "\nhint: remove it, or add --dataset NAME_OR_FILE" in message


def test_infer_holds_nothing_out_of_rows_for_validation():
    (message,) = infer("--model_type tiny-math-chat --val_dataset gsm8k --dataset_test_ratio 0.1")
    assert message.startswith("--val_dataset and --dataset_test_ratio exclude each other")


def test_what_has_no_effect_on_answers_to_rows(tmp_path):
    rows = "--model_type tiny-math-chat --val_dataset demo-math-zh"
    defaults = "--max_length 2048 --truncation_strategy delete --packing true --stream true"
    assert infer(f"{rows} --show_dataset_sample 5 --lazy_tokenize false {defaults}") == []
    for words in (
        "--max_length 64",
        "--truncation_strategy truncation_left",
        "--preprocess_num_proc 4",
        "--fused_operators true",
    ):
        (message,) = infer(f"{rows} {words}")
        assert message.startswith(f"{words.split()[0]} has no effect here: it is for training")
        assert f"{words.split()[0]}\n" not in command_help("infer", InferArgs)
    assert infer(f"{rows} --show_dataset_sample 0")[0].startswith("--show_dataset_sample must be above 0")
    assert infer(f"{rows} --max_bad_fraction 0.1")[0].startswith("--max_bad_fraction has no effect without")
    (tmp_path / "adapter_config.json").touch()
    assert infer(f"--ckpt_dir {tmp_path} --load_dataset_config true --max_bad_fraction 0.1") == []


def test_a_whole_model_has_nothing_to_merge(tmp_path):
    (tmp_path / "config.json").touch()
    assert infer(f"--ckpt_dir {tmp_path}") == []
    (message,) = infer(f"--ckpt_dir {tmp_path} --merge_lora true")
    assert message.startswith(f"--merge_lora true: {tmp_path} is a whole model, not an adapter")


def test_export_says_what_is_missing(tmp_path):
    def export(words):
        return [str(mistake) for mistake in check_export(parse(ExportArgs, words.split()))]

    assert export("--merge_lora")[0].startswith("no checkpoint is named")
    (tmp_path / "adapter_config.json").touch()
    assert export(f"--ckpt_dir {tmp_path}")[0].startswith("nothing to export")
    assert export(f"--ckpt_dir {tmp_path} --merge_lora true") == []


def test_a_file_of_a_checkpoint_is_answered_with_its_folder(tmp_path):
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    file.parent.mkdir()
    file.touch()
    expected = f"{file} is a file, not the folder of a checkpoint\nhint: give {file.parent}"
    infer = check_infer(parse(InferArgs, ["--ckpt_dir", str(file)]))
    export = check_export(parse(ExportArgs, ["--ckpt_dir", str(file), "--merge_lora"]))
    assert [str(one) for one in infer] == [str(one) for one in export] == [expected]
    assert sft(f"--resume_from_checkpoint {file}") == [expected]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model_tpye a --datset b", ["did you mean --model_type?", "did you mean --dataset?"]),
        ("--base_model a --dataset_name b", ["use --model_id_or_path", "use --dataset, a FILE"]),
        ("--lora_r 8", ["use --lora_rank", "add --model_type NAME", "add --dataset NAME"]),
    ],
)
def test_what_was_typed_under_another_name_is_not_also_missing(words, expected):
    mistakes = check_sft(parse(SftArgs, words.split()))
    assert len(mistakes) == len(expected)
    assert all(mistake.hint.startswith(hint) for mistake, hint in zip(mistakes, expected, strict=True))


def test_what_a_file_that_cannot_be_read_may_hold_is_not_also_missing():
    (mistake,) = check_sft(parse(SftArgs, ["missing.yaml"]))
    assert mistake.message == "no such file: missing.yaml"
