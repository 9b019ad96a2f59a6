"""The program from outside: messages, exit codes, and that a mistake costs no import of torch."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import swiftlet
from swiftlet import cli, heartbeat, watchdog
from swiftlet.errors import Mistakes, UsageError, describe, pick, raise_all, suggest
from swiftlet.models.families import FAMILIES


def swift(*words, **environ):
    env = {name: value for name, value in os.environ.items() if name not in ("NPROC_PER_NODE", "NNODES")}
    command = [sys.executable, "-X", "importtime", "-m", "swiftlet.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**env, **environ})
    lines = done.stderr.splitlines()
    modules = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    errors = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, done.stdout, errors, modules


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code, out, _, modules = swift("--help")
    assert code == 0
    assert all(f"  {name}" in out for name in ("sft", "infer", "export", "plan", "doctor"))
    assert not {"torch", "yaml", "numpy", "dataclasses"} & modules


MISTAKES = [
    (["sftt"], "unknown command 'sftt'", "did you mean sft?"),
    (["train"], "unknown command 'train'", "use swift sft"),
    (["--model", "x"], "unknown command '--model'", "the command comes first: swift sft --model ..."),
    (["doctor", "a.log"], "unexpected word 'a.log'", "type --log a.log"),
    (["doctor", "—logs"], "unexpected word '—logs'", "flags start with two dashes"),
    (["pt"], "unknown command 'pt'", "use swift sft: rows of plain text"),
    (["web-ui"], "unknown command 'web-ui'", "there is no server here; other engines load"),
    (
        ["sft", "--model_type", "tiny-math-cha", "--dataset", "demo-math-zh"],
        "unknown --model_type 'tiny-math-cha'",
        "did you mean tiny-math-chat?",
    ),
    (
        ["infer", "--model_type", "tiny-math-chat", "--val_dataset", "demo-math-z#20"],
        "unknown dataset 'demo-math-z'",
        "did you mean demo-math-zh?",
    ),
    (
        "sft --model_type tiny-math-chat --dataset demo-math-zh --columns question=qury".split(),
        "--columns question=qury: 'qury' is no column of ours",
        "did you mean query?",
    ),
    (
        ["sft", "--model_type", "qwen1half-7b-chat-int4", "--dataset", "demo-math-zh"],
        "qwen1half-7b-chat-int4 is quantised with gptq: such a model is for swift infer, not for training",
        "use the model it was made from",
    ),
    (
        ["infer", "--model_type", "tiny-math-chat", "--model_revision", "v2"],
        "--model_revision has no effect: ",
        "remove it",
    ),
    (
        ["infer", "--model_id_or_path", "XY::a/b"],
        "unknown hub 'XY' in XY::a/b",
        "write MS::owner/name or HF::owner/name",
    ),
    (
        ["sft", "--model_type", "tiny-math-chat", "--dataset", "demo-math-zh", "--device", "npu"],
        "--device npu, but torch_npu is not installed",
        "type pip install torch-npu decorator; or --device cpu to run without it",
    ),
    (
        "sft --model_type qwen2_5 --model Qwen/Qwen2.5-7B --dataset demo-math-zh".split(),
        "unknown --model_type 'qwen2_5'",
        "leave it out: --model_id_or_path Qwen/Qwen2.5-7B says enough",
    ),
    (
        "sft --model_type Qwen/Qwen2.5-7B --dataset demo-math-zh".split(),
        "unknown --model_type 'Qwen/Qwen2.5-7B'",
        "leave it out: --model_id_or_path Qwen/Qwen2.5-7B says enough",
    ),
    (
        "sft --model Qwen2.5-7B-Instruct --dataset demo-math-zh".split(),
        "--model_id_or_path Qwen2.5-7B-Instruct does not exist",
        "did you mean Qwen/Qwen2.5-7B-Instruct?",
    ),
    (
        "sft --model https://modelscope.cn/models/a/b-v2 --dataset demo-math-zh".split(),
        "no such folder: https://modelscope.cn/models/a/b-v2",
        "give a folder with config.json, or a hub id such as a/b-v2",
    ),
    (
        "sft --model_type zzz --dataset demo-math-zh".split(),
        "unknown --model_type 'zzz'",
        f"{len(FAMILIES)} names are known, such as ",
    ),
    (
        ["sft --model_type x"],
        "unknown command 'sft --model_type x'",
        "quotes belong around single values, not around a command line",
    ),
    ([], "no command is given", "type swift --help, or swift sft --help"),
    (
        ["sft", "--learnin_rate", "1", "--model_type", "tiny-math-chat", "--dataset", "demo-math-zh"],
        "unknown flag --learnin_rate",
        "did you mean --learning_rate?",
    ),
    (
        ["sft", "nowhere.yaml"],
        "no such file: nowhere.yaml",
        "give the path of a YAML or JSON file of arguments",
    ),
]
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from swiftlet import cli
for words in json.load(sys.stdin):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(words)
    print(json.dumps([code, out.getvalue(), errors.getvalue(), list(sys.modules)]))
"""


@pytest.fixture(scope="module")
def answers():
    """What is said to each mistake, all of them in one process that has imported nothing before."""
    env = {name: value for name, value in os.environ.items() if name not in ("NPROC_PER_NODE", "NNODES")}
    words = json.dumps([words for words, _, _ in MISTAKES])
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER]
    done = subprocess.run(command, input=words, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_a_mistake_is_a_message_a_hint_and_exit_code_2_without_torch(answers, number):
    code, out, errors, modules = answers[number]
    _, message, hint = MISTAKES[number]
    assert code == 2
    assert out == ""
    assert f"error: {message}" in errors
    assert f"hint: {hint}" in errors
    assert "Traceback" not in errors
    assert not {"torch", "transformers", "numpy", "jinja2", "tokenizers"} & set(modules)


def test_mistakes_of_every_kind_come_together():
    words = "--model_type tiny-math-chat --dataset nope.jsonl ./other.csv demo-math-zh:foo --val_dataset nope2.json"
    words += " --template_type foo --learnin_rate 1 --ddp_backend nccl --device cpu --max_steps 0"
    code, _, errors, modules = swift("sft", *words.split())
    assert code == 2
    assert "torch" not in modules
    for message in (
        "no such data file or folder: nope.jsonl\nhint: check the path given to --dataset",
        "no such data file or folder: ./other.csv\nhint: check the path given to --dataset",
        "no such data file or folder: nope2.json\nhint: check the path given to --val_dataset",
        "demo-math-zh has no subset foo: it has none",
        "unknown --template_type 'foo'",
        "unknown flag --learnin_rate",
        "--ddp_backend nccl does not go with --device cpu",
        "--max_steps must be above 0",
    ):
        assert f"error: {message}" in errors
    assert errors.count("error: ") == 8


def test_no_arguments_at_all_names_everything_that_is_missing():
    code, _, errors, _ = swift("sft")
    assert code == 2
    assert errors.count("error: ") == 2


def test_mistakes_in_flags_and_in_devices_come_together_without_torch():
    words = "sft --model_type tiny-math-chat --dataset demo-math-zh --device cpu --learning_rate -1".split()
    code, _, errors, modules = swift(*words, ASCEND_RT_VISIBLE_DEVICES="0,0", NNODES="x")
    assert code == 2
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
        "error: --learning_rate must be above 0, found -1",
        "error: NNODES is a whole number of at least 1, found 'x'",
        "error: ASCEND_RT_VISIBLE_DEVICES=0,0 names device 0 twice",
    ]
    assert not {"torch", "transformers", "numpy"} & modules


@pytest.mark.parametrize("command", ["sft", "infer", "export", "completion"])
def test_help_of_a_command_is_grouped(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: swift {command}" in out
    if command == "sft":
        for group in ("Model:", "Tuner:", "Data:", "Training:", "Output:", "Devices:", "Generation:"):
            assert f"\n{group}" in out
        assert "--learning_rate" in out
        assert "[0.05]" in out
    assert ("  NPROC_PER_NODE=2\n" in out) == (command in ("sft", "infer"))


@pytest.mark.parametrize("columns", ["80", "97"])
def test_help_keeps_names_whole(columns, capsys, monkeypatch):
    """At 80 columns, held-out was cut behind its dash."""
    monkeypatch.setenv("COLUMNS", columns)
    for command in cli.COMMANDS:
        assert cli.main([command, "--help"]) == 0
        assert not [line for line in capsys.readouterr().out.splitlines() if line.endswith("-")]


def test_help_of_a_command_either_way_round(capsys):
    assert cli.main(["help", "sft"]) == cli.main(["sft", "--help"]) == cli.main(["sft", "help"]) == 0
    text = capsys.readouterr().out
    assert text == text[: len(text) // 3] * 3
    assert cli.main(["help", "sftt"]) == 2


def test_errors_that_cannot_be_written_keep_the_exit_code():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "swiftlet.cli", "sft"], stderr=full, check=False)
    assert done.returncode == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"swiftlet {swiftlet.__version__}\n"


def test_an_alias_of_a_command(capsys):
    assert cli.main(["merge-lora"]) == 2
    assert "no checkpoint is named" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--merge_lora false", "--merge-lora=false"])
def test_an_alias_that_is_contradicted(words, tmp_path, capsys):
    (tmp_path / "adapter_config.json").touch()
    assert cli.main(["merge-lora", "--ckpt_dir", str(tmp_path), *words.split()]) == 2
    assert capsys.readouterr().err == "error: nothing to export\nhint: add --merge_lora true\n"


def test_secrets_in_a_message_are_hidden(capsys, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "abcdefgh12345678")
    cli.main(
        ["sft", "--model_type", "abcdefgh12345678", f"--hub_token=hf_{'abcdef' * 5}", f"Bearer {'abc1' * 5}"]
    )
    shown = capsys.readouterr().err
    assert "abcdefgh12345678" not in shown
    assert "abcdefabcdef" not in shown
    assert "Bearer abc" not in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_flags(shell, capsys):
    assert cli.main(["completion", "--shell", shell]) == 0
    script = capsys.readouterr().out
    assert "sft" in script
    for flag in ("learning_rate", "calibrate", "shell", "log"):
        assert flag in script
    assert script.count("merge_tolerance") == 2  # of export, and of merge-lora


@pytest.mark.parametrize(
    "words", ["npu", "plan --device 8x910B3 --model_type qwen1half-7b-chat --dataset blossom-math-zh"]
)
def test_a_table_that_nobody_reads_on_leaves_the_exit_code_alone(words):
    """As under `swift plan | head`, and `swift doctor | head`, where 1 would say that a run fails here."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "swiftlet.cli", *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_bash_script_completes(tmp_path, capsys):
    cli.main(["completion", "--shell", "bash"])
    file = tmp_path / "swift.bash"
    file.write_text(capsys.readouterr().out)
    lines = f"source {file}; COMP_WORDS=(swift sft --learning); COMP_CWORD=2; _swift; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout == "--learning_rate\n"


def test_ctrl_c_exits_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    assert cli.main(["sft"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_signal_to_all_processes_of_a_run_is_said_once_by_their_watchdog(monkeypatch, tmp_path, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    assert cli.main(["infer"]) == 130
    assert capsys.readouterr().err == ""
    assert watchdog.tell_end([], 1, asked=[signal.SIGINT]) == 130
    assert capsys.readouterr().err == "stopped by signal 2\n"


LEFT = """
import sys, swiftlet.cli as cli
def fail(argv):
    {how}
cli.run_command = fail
sys.exit(cli.main(["npu"]))
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("raise BrokenPipeError(32, 'of a socket')", 1, "of a socket"),
        ("while True: print('a' * 9999)", 0, ""),
    ],
)
def test_only_a_reader_who_has_left_is_a_good_end(how, code, said):
    command = f'{sys.executable} -c "$1" | head -c 9; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, "bash", LEFT.format(how=how)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr and bool(said) == bool(done.stderr)


FAILED_RANK = """
    from swiftlet import heartbeat, watchdog
    return watchdog.tell_end([heartbeat.End(0, 6, "error: the loss is not finite", 1.0)], 1)
"""


@pytest.mark.parametrize(
    ("how", "code"), [(FAILED_RANK, 6), ("raise RuntimeError('a bug')", 1)], ids=["rank", "bug"]
)
def test_a_failed_run_that_nobody_reads_has_failed(how, code):
    """As under `swift sft ... 2>&1 | head`, or beside a `tee` that is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-c", LEFT.format(how=how)]
    done = subprocess.run(words, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == code


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"]])
def test_output_that_cannot_be_written_is_named(words, unbuffered):
    command = [sys.executable, "-m", "swiftlet.cli", *words]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output cannot be written: No space left on device\n"
        "hint: make room where it goes, or send it elsewhere\n"
    )


@pytest.mark.parametrize(("level", "code"), [("verbose", 2), ("", 0), ("warning", 0)])
def test_a_level_of_the_log_that_is_not_known_is_named(monkeypatch, capsys, level, code):
    monkeypatch.setenv("SWIFTLET_LOG_LEVEL", level)
    assert cli.main(["completion"]) == code
    expected = (
        "error: SWIFTLET_LOG_LEVEL=verbose is not known\n"
        "hint: choose one of DEBUG, INFO, WARNING, ERROR, CRITICAL\n"
    )
    assert capsys.readouterr().err == (expected if code else "")


def test_pick_says_what_is_possible():
    table = {"linear": 1, "cosine": 2}
    assert pick(table, "linear", "schedule") == 1
    with pytest.raises(UsageError, match="unknown schedule 'liner'\nhint: did you mean linear"):
        pick(table, "liner", "schedule")
    assert suggest("zzz", table) == "choose one of cosine, linear"


def test_one_mistake_or_all_of_them():
    raise_all([])
    with pytest.raises(UsageError, match="^one$"):
        raise_all([UsageError("one")])
    with pytest.raises(Mistakes) as caught:
        raise_all([UsageError("one", "a"), UsageError("two", "b")])
    assert str(caught.value) == "one\nhint: a\ntwo\nhint: b"
    assert len(describe("x" * 200)) == 80


def test_the_package_imports_without_torch():
    code = "import sys, swiftlet; assert 'torch' not in sys.modules; print(swiftlet.sft.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "sft\n"
    assert Path(swiftlet.__file__).name == "__init__.py"


@pytest.mark.parametrize("name", [b"gone", b"\xc4\xe3"])
def test_a_working_folder_that_cannot_be_used_is_named(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    code = (
        "import os, sys; from swiftlet.cli import main\n"
        "if sys.argv[1] == 'gone': os.rmdir(os.getcwd())\n"
        "sys.exit(main(['sft', '--model_type', 'tiny-math-chat', '--dataset', 'demo-math-zh']))"
    )
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    expected = "the working folder cannot be used: No such file" if name == b"gone" else "is not UTF-8"
    assert expected in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "gbk", "latin-1"])
def test_letters_that_a_terminal_lacks_are_printed_as_escapes(tmp_path, encoding):
    code = (
        "import sys; from swiftlet import cli\n"
        "cli.run_command = lambda argv: print('3 × 4 \U0001f680') or 0\n"
        "sys.exit(cli.main([]))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding.partition(":")[0])
    assert shown in ("3 × 4 \\U0001f680\n", "3 \\xd7 4 \\U0001f680\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_open_for_files_and_children(tmp_path, closed):
    code = (
        "import os, subprocess, sys; from swiftlet import cli\n"
        "cli.run_command = lambda argv: open('found', 'w').write(f'{os.fstat(2).st_rdev} {sys.stderr.isatty()} ' + str("
        "subprocess.run([sys.executable, '-c', 'import sys; sys.exit(sys.stderr is None)']).returncode)) and 0\n"
        "sys.exit(cli.main([]))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    line = f"{sys.executable} script.py {closed}"
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "found").read_text() == f"{Path(os.devnull).stat().st_rdev} False 0"


def test_the_package_is_the_program():
    command = [sys.executable, "-m", "swiftlet", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"swiftlet {swiftlet.__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_asked_to_stop_cleans_up(tmp_path, monkeypatch, capsys, number):
    former = signal.getsignal(number)

    def stopped(parsed):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), number)
        raise AssertionError("it did not stop")

    monkeypatch.setattr("swiftlet.commands.export.run", stopped)
    monkeypatch.setattr("swiftlet.commands.export.check", lambda parsed, environ: [])
    assert cli.main(["export", "--ckpt_dir", "x", "--merge_lora", "true"]) == 128 + number
    assert capsys.readouterr().err == f"stopped by signal {number}\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == former
