"""What comes along in pasting a command: each slip is one mistake, and the rest is read as it was meant."""

import pytest

from swiftlet.config.args import ExportArgs, InferArgs, SftArgs
from swiftlet.config.check import check_export, check_infer, check_sft
from swiftlet.config.configfile import SUFFIXES
from swiftlet.config.fields import flags_of
from swiftlet.config.parse import parse
from swiftlet.errors import nearest

PLAIN = ["--model_type", "tiny-math-chat", "--dataset", "demo-math-zh"]
LAST = "a backslash goes on with a line where nothing, not even a space, stands behind it"
WINDOWS = r"remove the line ends of Windows: sed -i 's/\r$//' SCRIPT"


def mistakes(*words):
    return [str(mistake) for mistake in check_sft(parse(SftArgs, words))]


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("—model_type", "— is not two times the dash of the keyboard"),
        ("–-model_type", "–- is not two times the dash of the keyboard"),
        ("−−model_type", "−− is not two times the dash of the keyboard"),
        ("-model_type", "flags start with two dashes"),
        ("---model_type", "flags start with two dashes"),
    ],
)
def test_other_dashes_are_one_mistake_and_the_flag_is_read(typed, reason):
    parsed = parse(SftArgs, [typed, *PLAIN[1:]])
    assert [str(one) for one in check_sft(parsed)] == [
        f"'{typed}' is no flag: {reason}\nhint: type --model_type"
    ]
    assert parsed.args.model.model_type == "tiny-math-chat"


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", " "])
def test_a_space_that_the_shell_does_not_know_is_one_mistake(space):
    word = f"--lora_rank{space}4"
    parsed = parse(SftArgs, [*PLAIN, word])
    hint = "type a plain space, and quotes around no more than the value: --lora_rank VALUE"
    assert [str(one) for one in check_sft(parsed)] == [f"{word!r} is one word for the shell\nhint: {hint}"]
    assert parsed.args.tuner.lora_rank == 4


@pytest.mark.parametrize("text", ["- be brief", "— be brief", "-output JSON", "–model_type of text", " x\r"])
def test_a_text_that_begins_with_a_dash_is_a_text(text):
    parsed = parse(SftArgs, [*PLAIN, "--system", text, f"--stop_words={text}"])
    assert parsed.mistakes == ()
    assert (parsed.args.model.system, parsed.args.generation.stop_words) == (text, (text,))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # a space or a carriage return behind the backslash ends the command there, and the rest of it is lost
        ([*PLAIN, " "], ["--dataset ' ' holds the end of a line\nhint: " + LAST]),
        ([*PLAIN, "--lora_rank", "4", " "], ["unexpected word ' '\nhint: " + LAST]),
        ([*PLAIN, "--lora_rank", "4", "\\"], ["unexpected word '\\\\'\nhint: " + LAST]),
        ([*PLAIN, "--lora_rank", "4", "\r"], ["unexpected word '\\r'\nhint: " + WINDOWS]),
        ([*PLAIN, "--lora_rank", "4\r"], ["--lora_rank '4\\r' holds the end of a line\nhint: " + WINDOWS]),
        (
            [*PLAIN, "--output_dir", "a "],
            ["--output_dir 'a ' has white space around it\nhint: type --output_dir a"],
        ),
        ([*PLAIN, "--use_dora\r"], ["'--use_dora\\r' is one word for the shell\nhint: " + WINDOWS]),
        (
            [*PLAIN, "--seed", "="],
            ["--seed = is no value\nhint: type --seed VALUE, or --seed=VALUE without spaces"],
        ),
    ],
)
def test_ends_of_lines_that_were_pasted(words, expected):
    assert mistakes(*words) == expected


def test_a_value_that_came_along_is_not_missing_as_well():
    parsed = parse(InferArgs, ["--ckpt_dir", "a\r", "--load_dataset_config", "true"])
    assert [str(one) for one in check_infer(parsed)] == [
        "--ckpt_dir 'a\\r' holds the end of a line\nhint: " + WINDOWS
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("-bs", "flags start with two dashes"),
        ("——batch_sise", "—— is not two times the dash of the keyboard"),
    ],
)
def test_a_word_with_other_dashes_is_no_value_of_a_list(word, reason):
    assert mistakes(*PLAIN, word, "2") == [
        f"'{word}' behind --dataset is no flag: {reason}\nhint: flags start with two dashes: --name value"
    ]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("helpful”", "the quotes of a shell are straight: 'a value with spaces'"),
        ("lora_rank=4", "type --lora_rank=4"),
        ("word", "flags start with two dashes: --name value"),
        ("~nobody-here", "flags start with two dashes: --name value"),
    ],
)
def test_a_word_that_nothing_takes(word, hint):
    assert mistakes(*PLAIN, "--seed", "1", word) == [f"unexpected word {word!r}\nhint: {hint}"]


def test_a_bare_folder_is_perhaps_a_checkpoint(tmp_path):
    found = check_infer(parse(InferArgs, [str(tmp_path)]))
    assert found[0].hint == f"type --ckpt_dir {tmp_path}, or --model_id_or_path {tmp_path}"


@pytest.mark.parametrize(
    ("args", "check", "flag"),
    [(SftArgs, check_sft, "output_dir"), (ExportArgs, check_export, "export_dir")],
)
def test_quotes_of_a_word_processor_make_no_folder(args, check, flag):
    found = [str(one) for one in check(parse(args, [f"--{flag}", "“out”"]))]
    assert f"--{flag} “out”: the shell takes such quotes for letters\nhint: type --{flag} out" in found


@pytest.mark.parametrize("flag", ["dataset", "model_id_or_path", "sft_type"])
def test_quotes_of_a_word_processor_are_no_part_of_a_name(flag):
    (found,) = parse(SftArgs, [f"--{flag}", "“train.jsonl”"]).mistakes
    assert (
        str(found)
        == f"--{flag} “train.jsonl”: the shell takes such quotes for letters\nhint: type --{flag} train.jsonl"
    )
    assert not parse(SftArgs, ["--system", "“be brief”"]).mistakes


def test_a_file_is_no_system_prompt(tmp_path):
    file = tmp_path / "system.txt"
    file.touch()
    for args, check in ((SftArgs, check_sft), (InferArgs, check_infer)):
        found = [str(one) for one in check(parse(args, ["--system", str(file)]))]
        expected = (
            f"--system is the prompt itself, and '{file}' is a file\nhint: type --system \"$(cat {file})\""
        )
        assert expected[:60] in "\n".join(found)
    assert mistakes(*PLAIN, "--system", "long " * 200) == []


@pytest.mark.parametrize("words", ['["q_proj","v_proj"]', "[q_proj,v_proj]", "['q_proj', 'v_proj']"])
def test_a_list_of_another_language_is_no_name(words):
    (found,) = mistakes(*PLAIN, "--lora_target_modules", words)
    assert found.endswith("\nhint: type --lora_target_modules q_proj v_proj")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("topk", "top_k"),
        ("LORA_RANK", "lora_rank"),
        ("num_epoch", "num_train_epochs"),
        ("lr_scheduler", "lr_scheduler_type"),
        ("warmup-step", "warmup_steps"),
        ("maxlen", "max_length"),
    ],
)
def test_the_nearest_flag_is_proposed_by_its_own_name(typed, name):
    assert mistakes(*PLAIN, f"--{typed}", "1") == [f"unknown flag --{typed}\nhint: did you mean --{name}?"]


@pytest.mark.parametrize(
    "typed", "use_galore eval_delay ref_model acc_strategy rsho eos_token lora_dtype".split()
)
def test_a_flag_of_another_tool_is_not_taken_for_one_of_ours(typed):
    assert nearest(typed, flags_of(SftArgs)) == []
    (told,) = mistakes(*PLAIN, f"--{typed}", "1")
    assert "did you mean" not in told


@pytest.mark.parametrize("typed", ["no_packing", "no-gradient-checkpointing"])
def test_a_switch_that_is_denied(typed):
    name = typed.replace("-", "_").removeprefix("no_")
    assert mistakes(*PLAIN, f"--{typed}") == [f"unknown flag --{typed}\nhint: type --{name} false"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_chosen_in_a_file(suffix, tmp_path):
    file = tmp_path / f"args{suffix}"
    file.write_text('{"resume_from_checkpoint": false, "deepspeed": false, "fsdp": false}')
    parsed = parse(SftArgs, [str(file), *PLAIN])
    assert check_sft(parsed) == []
    assert (parsed.args.output.resume_from_checkpoint, parsed.args.parallel.deepspeed) == (None, None)
    assert parse(SftArgs, ["--resume_from_checkpoint", "true"]).args.output.resume_from_checkpoint == "auto"


def test_a_list_that_is_given_twice_is_given_once():
    (found,) = mistakes(*PLAIN, "--dataset", "self-cognition:A/B")
    assert found.endswith("\nhint: type --dataset demo-math-zh self-cognition:A/B")


def test_another_name_of_a_zero_stage():
    (found,) = mistakes(*PLAIN, "--deepspeed", "zero3_offload")
    assert found == (
        "--deepspeed 'zero3_offload' is neither a name nor a file that can be read: No such file or directory\n"
        "hint: did you mean zero3-offload?"
    )
