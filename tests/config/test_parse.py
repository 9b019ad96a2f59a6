"""argv to arguments: every form of a value, and every mistake with its hint."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftlet.commands.run_folder import args_text
from swiftlet.config.aliases import ALIASES
from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.check import check_sft
from swiftlet.config.elsewhere import BEGINNINGS, CALLED_HERE, ELSEWHERE
from swiftlet.config.fields import flags_of, to_flat
from swiftlet.config.parse import parse, parse_mapping
from swiftlet.config.resolve import resolve_sft


def errors(*words):
    return [str(mistake) for mistake in parse(SftArgs, words).mistakes]


def test_values_of_every_type():
    words = (
        "--lora_rank 4 --learning_rate=2e-5 --use_dora --packing false --dataset a b,c#20 --system".split()
    )
    parsed = parse(SftArgs, [*words, ""])
    assert parsed.mistakes == ()
    assert parsed.args.tuner.lora_rank == 4
    assert parsed.args.train.learning_rate == 2e-5
    assert parsed.args.tuner.use_dora is True
    assert parsed.args.data.packing is False
    assert parsed.args.data.dataset == ("a", "b", "c#20")
    assert parsed.args.model.system == ""
    assert parsed.given == {"lora_rank", "learning_rate", "use_dora", "packing", "dataset", "system"}


def test_a_comma_inside_the_name_of_a_file_does_not_split_it(tmp_path):
    file = tmp_path / "a,b.jsonl"
    file.touch()
    for text in (str(file), f"{file}#20"):
        assert parse(SftArgs, ["--dataset", text]).args.data.dataset == (text,)


def test_columns_repeat_and_take_json():
    words = ["--columns", "question=query", "--columns", '{"answer": "response"}']
    assert parse(SftArgs, words).args.data.columns == {"question": "query", "answer": "response"}


def test_a_negative_number_is_a_value():
    assert parse(SftArgs, ["--max_steps", "-1"]).args.train.max_steps == -1


def test_switches_of_three_states():
    def value(*words):
        return parse(SftArgs, words).args.train.gradient_checkpointing

    assert value("--gradient_checkpointing") == "true"
    assert value("--gradient_checkpointing", "False") == "false"
    assert value("--gradient_checkpointing", "auto") == "AUTO"
    assert value("--gradient_checkpointing", "partial") == "partial"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--learnin_rate 1", "unknown flag --learnin_rate\nhint: did you mean --learning_rate?"),
        ("--zzzzzz 1", "unknown flag --zzzzzz\nhint: leave it out, or see --help"),
        ("--bf16 true", "there is no flag --bf16 here\nhint: use --dtype bf16"),
        ("--lora_rank", "--lora_rank has no value\nhint: type --lora_rank 8"),
        ("--lora_rank x", "--lora_rank is a whole number, found 'x'\nhint: type --lora_rank 8"),
        ("--lora_rank 1.5", "--lora_rank is a whole number, found '1.5'\nhint: type --lora_rank 8"),
        ("--lora_rank 0", "--lora_rank must be at least 1, found 0\nhint: type --lora_rank 8"),
        ("--lora_dropout_p 1", "--lora_dropout_p must be below 1, found 1\nhint: type --lora_dropout_p 0.05"),
        ("--learning_rate 0", "--learning_rate must be above 0, found 0\nhint: type --learning_rate 1e-4"),
        ("--warmup_ratio 2", "--warmup_ratio must be at most 1, found 2\nhint: type --warmup_ratio 0.05"),
        ("--learning_rate nan", "--learning_rate is a number, found 'nan'\nhint: type --learning_rate 1e-4"),
        ("--sft_type lor", "--sft_type 'lor' is not known\nhint: did you mean lora?"),
        ("--optim AdamW", "--optim 'AdamW' is not known\nhint: type --optim adamw_torch"),
        ("--report_to wandb", "--report_to 'wandb' is not known\nhint: choose one of none, tensorboard"),
        (
            "--report_to tensorboard,tensorbord",
            "--report_to 'tensorbord' is not known\nhint: did you mean tensorboard?",
        ),
        ("--report_to", "--report_to has no value\nhint: type --report_to tensorboard"),
        ("--use_dora maybe", "--use_dora is true or false, found 'maybe'\nhint: type --use_dora true"),
        ("word", "unexpected word 'word'\nhint: flags start with two dashes: --name value"),
        ("--columns a", "--columns takes theirs=ours, found 'a'\nhint: type --columns question=query"),
        ("--config", "--config has no value\nhint: type --config FILE.yaml"),
        ("--lora_rank 1 --lora_rank 2", "--lora_rank is given twice: 1 and 2\nhint: keep one of them"),
        ("--batch_size none", "--batch_size is a whole number, found 'none'\nhint: type --batch_size 1"),
    ],
)
def test_each_mistake_says_what_to_type(words, expected):
    assert errors(*words.split()) == [expected]


@pytest.mark.parametrize(
    ("command", "flag", "hint"),
    [
        (SftArgs, "merge_lora", "it is a flag of swift infer and swift export"),
        (SftArgs, "load_data_args", "it is a flag of swift infer"),
        (InferArgs, "learning-rate", "it is a flag of swift sft"),
        (ExportArgs, "stream", "it is a flag of swift infer"),
        (SftArgs, "max-samples", "use --dataset NAME#1000"),
        (SftArgs, "push_to_hub", "nothing is uploaded here"),
        (SftArgs, "micro-batch-size", "use --batch_size"),
        (SftArgs, "lora_model_dir", "use --ckpt_dir FOLDER (swift infer)"),
        (SftArgs, "assistant_only_loss", "the answers are trained on, and nothing else"),
        (InferArgs, "vllm_max_model_len", "not available; other engines load"),
        (InferArgs, "resume_from_checkpoint", "use --ckpt_dir FOLDER"),
        (InferArgs, "per_device_eval_batch_size", "use --infer_batch_tokens"),
        (InferArgs, "output_dir", "use --result_dir FOLDER"),
        (ExportArgs, "output_dir", "use --export_dir FOLDER"),
        (ExportArgs, "quant_n_samples", "quantised training and export are not available"),
        (SftArgs, "dataset_config", "use --dataset NAME:SUBSET"),
        (SftArgs, "dataset_text_field", "use --columns FIELD=text"),
        (SftArgs, "use_loss_scale", "not available: the tokens of the answers"),
        (SftArgs, "vera_rank", "of an adapter that is not built in; use --sft_type lora"),
        (SftArgs, "load_best_model_at_end", "not needed: the best checkpoint is kept"),
        (SftArgs, "galore_rank", "not available; --sft_type lora, or --optim adafactor"),
        (SftArgs, "adapter_length", "of an adapter that is not built in"),
        *(
            (SftArgs, name, "to go on with a run: --resume_from_checkpoint FOLDER; to train anew")
            for name in ("ckpt_dir", "adapters")
        ),
    ],
)
def test_a_flag_of_another_command_or_tool_is_no_typing_mistake(command, flag, hint):
    (mistake,) = parse(command, [f"--{flag}", "1"]).mistakes
    assert mistake.hint.startswith(hint)


def test_what_is_told_of_flags_elsewhere_is_of_no_flag_that_is_here():
    known = {name for command in (SftArgs, InferArgs, ExportArgs) for name in flags_of(command)}
    assert not set(ELSEWHERE) & (known | set(ALIASES))
    hints = [*ELSEWHERE.values(), *BEGINNINGS.values(), *(hint for _, _, hint in CALLED_HERE)]
    asked = {word for hint in hints for word in re.findall(r"(?<=--)[a-z_]+", hint)}
    assert asked <= known


@pytest.mark.parametrize("value", ["AUTO", "auto", "none"])
def test_a_template_that_is_not_chosen(value):
    parsed = parse(SftArgs, ["--template_type", value, "--lora_target_modules", "AUTO"])
    assert parsed.mistakes == ()
    assert (parsed.args.model.template_type, parsed.args.tuner.lora_target_modules) == (None, ("DEFAULT",))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--infer_backend vllm", "type --infer_backend pt; other engines load what swift merge-lora writes"),
        ("--flash_attn xx", "choose one of AUTO, false, true"),
    ],
)
def test_a_value_of_another_tool_says_what_to_type(words, hint):
    (mistake,) = parse(InferArgs, words.split()).mistakes
    assert mistake.hint == hint


def record(tmp_path, **changed):
    args = parse(SftArgs, "--model_type tiny-math-chat --dataset demo-math-zh#9 --max_steps 3".split()).args
    facts = {"model_dir": "/somewhere", "base_hash": "abc", "model": "tiny-math-chat"}
    path = tmp_path / "sft_args.json"
    path.write_text(json.dumps({**json.loads(args_text(resolve_sft(args, 2), facts)), **changed}))
    return str(path)


def test_the_record_of_a_run_repeats_it(tmp_path):
    parsed = parse(SftArgs, [record(tmp_path), "--seed", "7"])
    assert parsed.mistakes == ()
    assert parsed.given == {
        *("model_type", "dataset", "max_steps", "seed"),
        *("gradient_accumulation_steps", "eval_batch_size", "learning_rate", "save_steps"),
    }
    assert parsed.args.train.gradient_accumulation_steps == 8
    assert check_sft(parsed) == []


def test_a_record_that_hides_a_secret_or_is_given_to_another_command_is_refused(tmp_path):
    (mistake,) = parse(SftArgs, [record(tmp_path, hidden=["dataset"])]).mistakes
    assert "sft_args.json does not show --dataset: the value held a secret" in mistake.message
    assert mistake.hint == "copy the file without hidden and these arguments, and give them as flags"
    (mistake,) = parse(InferArgs, [record(tmp_path)]).mistakes
    assert mistake.message.endswith("sft_args.json has the arguments of a swift sft")
    assert mistake.hint == "give the folder it lies in: --ckpt_dir CHECKPOINT"


def test_columns_that_are_not_json():
    (message,) = errors("--columns", "{nonsense")
    assert message.startswith("--columns is not JSON: ")
    assert message.endswith("hint: type --columns theirs=ours")


@pytest.mark.parametrize("value", [5, [1], ["a=b", None]])
def test_columns_of_a_file_that_are_neither_names_nor_a_mapping(value):
    (mistake,) = parse_mapping(SftArgs, {"columns": value}).mistakes
    assert mistake.message.startswith("--columns takes theirs=ours, found ")


def test_a_list_without_a_value():
    assert parse_mapping(SftArgs, {"dataset": None}).args.data.dataset == ()
    assert parse_mapping(SftArgs, {"val_dataset": []}).mistakes == ()
    for words in (["--val_dataset"], ["--val_dataset", ""], ["--val_dataset="]):
        assert errors(*words) == ["--val_dataset has no value\nhint: type --val_dataset VAL_DATASET"]
    assert errors("--dataset=,") == ["--dataset has no value\nhint: type --dataset DATASET"]
    for words in (["--lora_target_modules"], ["--lora_target_modules", ""]):
        assert errors(*words) == ["--lora_target_modules has no value\nhint: type --lora_target_modules ALL"]


def test_texts_are_taken_as_typed():
    args = parse(InferArgs, ["--stop_words", "\n", " ", "a, b", "\nUser:", "--system", ""]).args
    assert args.generation.stop_words == ("\n", " ", "a, b", "\nUser:")
    assert args.model.system == ""


@pytest.mark.parametrize("flag", ["output_dir", "resume_from_checkpoint", "deepspeed", "model_type"])
def test_an_empty_value_such_as_of_an_unset_variable_is_none(flag):
    (message,) = errors(f"--{flag}", "")
    assert message.startswith(f"--{flag} has no value\nhint: type --{flag} ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--seed 99999999999999999999999",
            "--seed must be at most 9223372036854775807, found 9999999999999999",
        ),
        ("--max_steps 1e300", "--max_steps must be at most 2147483647, found 1000"),
        ("--num_train_epochs 1e300", "--num_train_epochs must be at most 1e+09, found 1e+300"),
        ("--lora_alpha 1e300", "--lora_alpha must be at most 3.4e+38, found 1e+300"),
        ("--learning_rate 1e300", "--learning_rate must be at most 3.4e+38, found 1e+300"),
    ],
)
def test_no_number_is_beyond_what_can_be_computed(words, expected):
    (message,) = errors(*words.split())
    assert message.startswith(expected)


def test_all_mistakes_at_once():
    assert len(errors("--learnin_rate", "1", "--lora_rank", "0", "--sft_type", "x")) == 3


def test_a_file_gives_defaults_and_flags_win(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-3\ndataset: [a, b]\nmax_length: 128\ncolumns: {q: query}\n")
    parsed = parse(SftArgs, [str(file), "--max_length", "64"])
    assert parsed.mistakes == ()
    assert parsed.args.train.learning_rate == 1e-3
    assert parsed.args.data.dataset == ("a", "b")
    assert parsed.args.data.max_length == 64
    assert parsed.args.data.columns == {"q": "query"}


def test_yaml_values_are_what_was_written(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_revision: 1.10\nsystem: no\noutput_dir: 0123456\nval_dataset: 1:30\nuse_dora: yes\nmax_steps: ~\n"
        "deepspeed: {zero_optimization: {stage: 2}, bf16: {enabled: true}}\n"
    )

    parsed = parse(SftArgs, [str(file)])

    (mistake,) = parsed.mistakes
    assert mistake.message == "--max_steps has no value in " + str(file)
    args = parsed.args
    assert (args.model.model_revision, args.model.system, args.output.output_dir) == ("1.10", "no", "0123456")
    assert (args.data.val_dataset, args.tuner.use_dora) == (("1:30",), True)
    assert json.loads(args.parallel.deepspeed) == {
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
    }


def test_a_json_file_through_config(tmp_path):
    file = tmp_path / "run.json"
    text = json.dumps({"deepspeed": {"zero_optimization": {"stage": 2}}, "lora_rank": 4})
    file.write_text(text, encoding="utf-8-sig")  # editors of Windows begin a file so
    parsed = parse(SftArgs, ["--config", str(file)])
    assert json.loads(parsed.args.parallel.deepspeed) == {"zero_optimization": {"stage": 2}}
    assert parsed.args.tuner.lora_rank == 4


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", b"lora_rnk: 4", "unknown flag --lora_rnk in "),
        ("a.yaml", b"- a\n- b", "holds no arguments"),
        ("a.yaml", b"a: !!python/object/apply:os.system ['touch canary']", "uses the YAML tag"),
        ("a.yaml", b"a: [1", "is not plain YAML"),
        ("a.yaml", b"max_steps: 5\nmax_steps: 6", "has max_steps twice"),
        ("a.json", b'{"max_steps": 1, "max_steps": 2}', "has max_steps twice"),
        ("a.yaml", b"a: &x [1]\nb: *x", "uses YAML anchors"),
        ("a.yaml", b"\xff\xfe", "is not UTF-8"),
        ("a.json", b"{", "is not JSON"),
        ("missing.yaml", None, "no such file"),
        ("large.yaml", b" " * (1 << 21), "not a file of arguments"),
    ],
)
def test_a_broken_file_is_a_mistake_and_runs_nothing(tmp_path, name, content, expected):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    (message,) = errors(str(file))
    assert expected in message
    assert "hint: " in message
    assert not (tmp_path / "canary").exists()


@given(st.lists(st.text(max_size=12), max_size=8))
def test_no_command_line_breaks_the_parser(words):
    parsed = parse(SftArgs, words)
    assert parsed.mistakes or parsed.given or not [word for word in words if word != "--config"]


@pytest.mark.parametrize("command_args", [SftArgs, InferArgs, ExportArgs])
def test_defaults_survive_the_way_through_a_flat_record(command_args):
    first = parse(command_args, []).args
    again = parse_mapping(command_args, to_flat(first))
    assert again.mistakes == ()
    assert again.args == first


def test_every_flag_has_help_and_a_default_it_accepts():
    for command_args in (SftArgs, InferArgs, ExportArgs):
        for flag in flags_of(command_args).values():
            assert flag.help[0].isupper() or flag.help[0].isdigit(), flag.name
            if flag.choices and flag.default is not None:
                defaults = flag.default if flag.is_list else (flag.default,)
                assert set(defaults) <= set(flag.choices), flag.name


def test_a_file_of_defaults_may_stand_behind_an_equals_sign(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora_rank: 4")
    parsed = parse(SftArgs, [f"--config={file}", "--lora_alpha", "8"])
    assert (parsed.mistakes, parsed.args.tuner.lora_rank, parsed.args.tuner.lora_alpha) == ((), 4, 8)
    for words in (["--config="], ["--config"]):
        (mistake,) = parse(SftArgs, words).mistakes
        assert mistake.message == "--config has no value"


@pytest.mark.parametrize("text", ["9007199254740993", "9007199254740993.0", "9.007199254740993e15"])
def test_a_large_whole_number_keeps_its_last_digit(text):
    assert parse(SftArgs, ["--seed", text]).args.train.seed == 9007199254740993


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_apex_fused"])
def test_an_optimizer_of_other_tools_says_what_to_take(name):
    (mistake,) = parse(SftArgs, ["--optim", name]).mistakes
    assert "use --optim ada" in mistake.hint


@pytest.mark.parametrize(
    "words",
    [
        ["--output_dir", "q\udcc4\udce3"],
        ["--dataset", "a.jsonl", "\udcc4.jsonl"],
        ["--columns", "\udcc4=query"],
    ],
)
def test_a_value_that_is_not_text_is_refused(words):
    (mistake,) = parse(SftArgs, words).mistakes
    assert f"{words[0]} " in mistake.message
    assert "\\udcc4" in mistake.message
    assert "is not text in the encoding of this shell" in mistake.message
    assert mistake.hint == "rename it in UTF-8, and set LC_ALL=C.UTF-8"
    assert not parse(SftArgs, ["--output_dir", "你好"]).mistakes


def test_a_value_of_a_mapping_that_is_not_text_is_refused():
    assert "is not text" in parse_mapping(SftArgs, {"columns": {"question": "\ud800"}}).mistakes[0].message


def test_a_list_of_mappings_is_not_taken_for_words(tmp_path):
    file = tmp_path / "theirs.yaml"
    file.write_text("dataset:\n  - path: a/b\n    type: alpaca\n", encoding="utf-8")
    (mistake,) = parse(SftArgs, [str(file)]).mistakes
    assert mistake.message.startswith("--dataset takes words, found [{'path': 'a/b', 'type': 'alpaca'}]")
    assert mistake.hint == "type --dataset DATASET"
