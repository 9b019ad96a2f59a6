"""What is a secret and what is ordinary text: both must come through the log and the files of a run unharmed."""

import json
import subprocess
import sys

import pytest

from swiftlet.commands.checkpoint_source import with_checkpoint
from swiftlet.commands.run_folder import args_text
from swiftlet.config.args import InferArgs, SftArgs
from swiftlet.config.parse import parse_mapping
from swiftlet.errors import CheckpointError
from swiftlet.log import is_secret_name, redact
from swiftlet.train.manifest import Identity, Manifest, read_manifest

KEY = "sk-" + "a1b2c3d4" * 4


@pytest.mark.parametrize(
    "text",
    [
        "You are a risk-management assistant.",
        "output/task-summarization-2024-run/checkpoint-2",
        "/data/disk-0123456789/desk-top",
        "/data/sk-learn-classification-2024/train.jsonl",
        "Bearer authentication is described in RFC 6750",
        "hf_transfer hf_hub_download",
        "http://host:80/path@2",
        "https://host/search?q=tokenizer&monkey=banana&page=123456",
        "ssh://git-user@host/ms-swift/AKIAIOS-2024 ghp_is_a_prefix ms-0123abcd",
        "Basic authentication: see RFC 7617",
    ],
)
def test_prose_and_paths_stay_as_they_are(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "Abcdefgh" * 4,
        KEY,
        "sk-proj-" + "A_b1-" * 3 + "x9y8z7w6" * 3,
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
        "ms-0a1b2c3d-4e5f-6a7b-8c9d-0e1f2a3b4c5d",
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "11ABCdef_" * 5,
        "glpat-" + "x1Y2z" * 4,
        "AKIA" + "IOSF0DNN" * 2,
    ],
)
def test_keys_are_masked_wherever_they_stand(secret):
    assert redact(f"key {secret}, and on") == "key ***, and on"
    assert redact(f"https://user:{secret.split()[-1]}@host") == "https://***@host"


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://host/x?token=abc123def&page=2", "https://host/x?token=***&page=2"),
        (
            "https://b.s3.com/f?X-Amz-Date=2&X-Amz-Signature=0a1b2c3d",
            "https://b.s3.com/f?X-Amz-Date=2&X-Amz-Signature=***",
        ),
        ("GET /models?private_token=abcdefgh'", "GET /models?private_token=***'"),
        ("https://0123456789abcdef0123@host/git", "https://***@host/git"),
        ("redis://:hunter22@host", "redis://***@host"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
    ],
)
def test_what_a_link_is_allowed_by_is_masked(url, shown):
    assert redact(url) == shown


@pytest.mark.parametrize(
    "name", ["lazy_tokenize", "TOKENIZERS_PARALLELISM", "num_tokens", "tokenizer", "KEYBOARD"]
)
def test_names_that_only_look_like_a_secret(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "api_key",
        "OPENAI_APIKEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "API_KEYS",
        "accessToken",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


def test_values_of_the_environment_are_masked_as_they_are_and_as_they_are_escaped(monkeypatch):
    value = 'pa"ss\\w1é'
    monkeypatch.setenv("MY_API_KEY", value)
    for text in (value, json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value)):
        assert "ss" not in redact(text)


def test_a_short_secret_is_masked_where_it_stands_alone(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    monkeypatch.setenv("MY_SECRET", "letters")
    monkeypatch.setenv("MY_KEY", "1234567")
    assert redact("postgres://db?password=hunter2&x") == "postgres://db?password=***&x"
    for text in ("hunter24 and xhunter2", "letters stay", "1234567 rows"):
        assert redact(text) == text


def sft_text(**options):
    parsed = parse_mapping(SftArgs, options)
    assert not parsed.mistakes
    return json.loads(args_text(parsed.args, {}))


def test_arguments_are_kept_word_for_word():
    options = {"system": 'Use the header Bearer abc123", or a task-oriented one', "lazy_tokenize": True}
    kept = sft_text(
        dataset=["/data/task-classification-data/train.jsonl"], columns={"answer_key": "response"}, **options
    )
    assert kept["system"] == options["system"]
    assert kept["lazy_tokenize"] is True
    assert kept["dataset"] == ["/data/task-classification-data/train.jsonl"]
    assert kept["columns"] == {"answer_key": "response"}
    assert "hidden" not in kept


def test_an_argument_with_a_secret_is_not_taken_from_a_checkpoint_in_part():
    kept = sft_text(system=f"Use {KEY}")
    assert kept["system"] == "Use ***"
    assert kept["hidden"] == ["system"]
    args = parse_mapping(InferArgs, {}).args
    with pytest.raises(CheckpointError, match=r"--system held a secret.*'Use \*\*\*'\nhint: type --system"):
        with_checkpoint(args, frozenset(), kept, with_data=False)
    assert with_checkpoint(args, frozenset({"system"}), kept, with_data=False).model.system is None


def test_a_manifest_keeps_a_hash_of_a_setting_with_a_secret_and_compares_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "correct-horse")
    mine = Identity("d", "b", {"system": "say correct-horse", "seed": 1})
    text = Manifest(1, 1, mine, "0", {}).to_json()
    assert "horse" not in text
    (tmp_path / "MANIFEST.json").write_text(text)
    kept = read_manifest(tmp_path).identity
    monkeypatch.delenv("MY_TOKEN")  # whether it is known as a secret now does not matter
    assert kept.differences(mine) == mine.differences(kept) == []
    (line,) = kept.differences(Identity("d", "b", {"system": "say something", "seed": 1}))
    assert line.startswith("system: 'sha256:")


@pytest.mark.parametrize("error", ["OSError", "ValueError"])
def test_a_traceback_has_no_secrets(error):
    code = (
        "import sys, swiftlet.cli as cli\n"
        "def fail(argv): raise {0}('no access with ' + argv[0])\n"
        "cli.run_command = fail\nsys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(error), KEY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{error}: no access with ***" in done.stderr
    assert KEY not in done.stderr
