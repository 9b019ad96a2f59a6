"""`swift infer` over a dataset gives the same rows in the same order on any number of processes."""

import json

from harness import Runs


def results(folder):
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_answers_of_two_processes_are_those_of_one(shapes):
    checkpoint = shapes.golden("golden-lora", sft_type="lora").output / "checkpoint-4"
    folder = shapes.folder / "infer"
    options = {
        "ckpt_dir": checkpoint,
        "load_dataset_config": "true",
        "do_sample": "false",
        "max_new_tokens": 4,
        "show_dataset_sample": 7,
        "device": "cpu",
    }
    alone = Runs(folder, {**options, "result_dir": folder / "one"}, shapes.environ)
    done = alone.run("infer")
    assert done.code == 0, done.text
    assert len(results(folder / "one")) == 7
    launched = Runs(folder, {**options, "result_dir": folder / "two"}, shapes.environ)
    done = launched.launch(2, command="infer").wait()
    assert done.code == 0, done.text
    assert results(folder / "two") == results(folder / "one")
