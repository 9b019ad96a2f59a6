"""A machine without a connection: all that has to be brought there is said at once, and where it goes."""

import json

import pytest

from swiftlet.cli import run_command, show_error
from swiftlet.errors import SwiftletError

MODEL = ["--model_type", "qwen1half-7b-chat"]
DATA = ["--dataset", "blossom-math-zh", "demo-math-zh#9"]


@pytest.fixture(autouse=True)
def no_connection(monkeypatch, tmp_path):
    for name in ("USE_HF", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("command", ["sft", "infer"])
def test_model_and_dataset_are_said_together(command, tmp_path):
    words = ["--output_dir", str(tmp_path / "out")] if command == "sft" else []
    with pytest.raises(SwiftletError) as caught:
        run_command([command, *MODEL, *DATA, "--device", "cpu", *words])
    text = show_error(caught.value)
    assert text.count("error: ") == 2
    assert "modelscope download qwen/Qwen1.5-7B-Chat --local_dir Qwen1.5-7B-Chat; " in text
    assert "modelscope download --dataset AI-ModelScope/blossom-math-v2 --local_dir blossom-math-v2; " in text
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_dataset_put_where_the_hint_says_is_the_named_one(tmp_path, model_folder):
    command = ["sft", "--model", str(model_folder), *DATA[:2], "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SwiftletError) as caught:
        run_command([*command, "--device", "cpu"])
    place = tmp_path / "ms/datasets/AI-ModelScope--blossom-math-v2/snapshots/master"
    assert f"copy the folder here as {place} and type the same command again" in caught.value.hint
    place.mkdir(parents=True)
    row = {"id": "1", "input": "hello", "output": "world", "answer": "7", "dataset": "x"}
    (place / "rows.json").write_text("\n".join([json.dumps(row)] * 20))

    from swiftlet.data.sources import read_records
    from swiftlet.data.spec import parse_spec

    assert next(read_records(parse_spec(DATA[1]))).row["response"] == "world\n\nAnswer: 7"
