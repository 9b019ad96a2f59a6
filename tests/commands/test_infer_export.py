"""`swift infer` and `swift export` on checkpoints: the same held-out rows, chat, merge with its proof."""

import io
import json
import os
import re
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from swiftlet import cli, export, infer
from swiftlet.commands import infer as infer_command
from swiftlet.commands.checkpoint_source import open_checkpoint_source
from swiftlet.commands.model_source import open_template
from swiftlet.config.args import InferArgs
from swiftlet.config.parse import parse_mapping
from swiftlet.errors import CheckpointError, DataError, SaveError, UsageError
from swiftlet.faults import damage
from swiftlet.inference.generate import Reply
from swiftlet.inference.proof import MergeError
from swiftlet.models.safety import read_header

GREEDY = {"do_sample": False, "max_new_tokens": 5, "device": "cpu"}


@pytest.fixture
def checkpoint(fine_tune):
    return Path(fine_tune(max_steps=3).last_checkpoint)


def answers(rows):
    return [row["response"] for row in rows]


def test_the_same_held_out_rows_come_back(checkpoint, rows_file):
    rows = infer(ckpt_dir=str(checkpoint), load_dataset_config=True, show_dataset_sample=-1, **GREEDY)
    texts = [json.loads(line) for line in rows_file.read_text("utf-8").splitlines()]
    assert len(rows) == 4
    assert all(
        any(row["query"] == text["query"] and row["label"] == text["response"] for text in texts)
        for row in rows
    )
    (file,) = (checkpoint / "infer_result").glob("*.jsonl")
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == rows
    again = infer(ckpt_dir=str(checkpoint), load_dataset_config=True, show_dataset_sample=2, **GREEDY)
    assert again == rows[:2]


@pytest.mark.parametrize(
    "name",
    ["checkpoint_source.find_damage", "merging.load_adapter", "merging.copy_files", "answering.load_adapter"],
)
def test_a_checkpoint_that_its_run_removes_meanwhile_is_said_to_be_gone(checkpoint, monkeypatch, name):
    """A run keeps two; that one goes looks like a damage, a full disk or a bug, by what is read next."""
    module = import_module("swiftlet.commands." + name.partition(".")[0])
    function = name.partition(".")[2]
    real = getattr(module, function)

    def after_removal(*args, **options):
        shutil.rmtree(checkpoint)
        return real(*args, **options)

    monkeypatch.setattr(module, function, after_removal)
    options = {"ckpt_dir": str(checkpoint), "device": "cpu"}
    with pytest.raises(CheckpointError, match=f"{checkpoint.name} was removed while it was read: ") as caught:
        if name.startswith("answering"):
            infer(**options, load_dataset_config=True)
        else:
            export(**options, merge_lora=True)
    assert "--save_total_limit" in caught.value.hint
    assert [path.name for path in checkpoint.parent.glob("*merged*")] == []


def test_rows_are_not_held_out_of_a_file_that_changed_after_the_run(checkpoint, rows_file, tmp_path):
    options = {"ckpt_dir": str(checkpoint), "load_dataset_config": True, **GREEDY}
    before = rows_file.read_text("utf-8")
    rows_file.write_text(before + before.splitlines(keepends=True)[0], "utf-8")
    with pytest.raises(DataError, match="changed after .* was trained on it") as caught:
        infer(**options)
    assert str(rows_file) in caught.value.message and "--val_dataset FILE" in caught.value.hint
    mine = tmp_path / "mine.jsonl"
    mine.write_text(before.splitlines()[0] + "\n", "utf-8")
    assert len(infer(**options, val_dataset=str(mine))) == 1
    assert len(infer(**options, dataset=str(rows_file))) == 4  # the user's own choice
    rows_file.write_text(before, "utf-8")
    assert len(infer(**options)) == 4


def test_other_rows_than_those_that_the_run_held_out_are_said(checkpoint, capfd):
    options = {"ckpt_dir": str(checkpoint), "load_dataset_config": True, "show_dataset_sample": 1, **GREEDY}
    said = "other rows are held out than in the run, which was trained on some of these: "
    for more, expected in (
        ({"dataset_seed": 7}, "--dataset_seed 7 (there 42)"),
        ({"dataset_test_ratio": 0.5}, "--dataset_test_ratio 0.5 (there 0.1)"),
        ({"check_dataset_strategy": "discard"}, "--check_dataset_strategy discard (there none)"),
    ):
        infer(**options, **more)
        assert said + expected in capfd.readouterr().err
    first = infer(**options, dataset_test_ratio=0.05, seed=7)
    assert said not in capfd.readouterr().err
    assert [row["query"] for row in first] == [row["query"] for row in infer(**options)]


def test_rows_of_the_users_own_are_answered_where_the_run_had_validation_data(fine_tune, rows_file, tmp_path):
    lines = rows_file.read_text("utf-8").splitlines(keepends=True)
    val, mine = tmp_path / "val.jsonl", tmp_path / "mine.jsonl"
    val.write_text("".join(lines[:3]), "utf-8")
    mine.write_text("".join(lines[-8:]), "utf-8")
    checkpoint = fine_tune(max_steps=3, val_dataset=str(val), dataset_test_ratio=None).last_checkpoint
    options = {"ckpt_dir": checkpoint, "load_dataset_config": True, **GREEDY}
    assert [row["query"] for row in infer(**options)] == [json.loads(line)["query"] for line in lines[:3]]
    (row,) = infer(**options, dataset=str(mine), dataset_test_ratio=0.125)
    assert row["query"] in [json.loads(line)["query"] for line in lines[-8:]]
    with pytest.raises(UsageError, match="--dataset has no effect beside --val_dataset"):
        infer(**options, dataset=str(mine), val_dataset=str(val))


def test_a_checkpoint_of_relative_paths_is_used_from_another_folder(
    fine_tune, model_folder, rows_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(model_folder.parent)
    dataset = f"{os.path.relpath(rows_file)}#20"
    ran = fine_tune(max_steps=3, model_id_or_path=model_folder.name, dataset=dataset)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(infer(ckpt_dir=ran.last_checkpoint, load_dataset_config=True, **GREEDY)) == 2
    assert Path(export(ckpt_dir=ran.last_checkpoint, merge_lora=True, device="cpu")).is_dir()


def test_a_run_without_held_out_rows_does_not_propose_to_answer_them(fine_tune, capfd):
    ran = fine_tune(max_steps=3, dataset_test_ratio=0, eval_steps=None)
    assert f"next: swift infer --ckpt_dir {ran.last_checkpoint}\n" in capfd.readouterr().err


def test_a_process_that_answers_is_bound_unless_told_otherwise(checkpoint, monkeypatch, capfd):
    from swiftlet.commands import device_setup

    monkeypatch.setattr(device_setup, "bind_process", lambda *asked: [f"bound {asked[:3]}"])
    options = {"ckpt_dir": str(checkpoint), "load_dataset_config": True, "show_dataset_sample": 1, **GREEDY}
    infer(**options)
    assert "bound ('cpu', 0, 1)" in capfd.readouterr().err
    infer(**options, bind_cpu=False)
    assert "bound" not in capfd.readouterr().err


def test_held_out_rows_that_the_run_did_not_evaluate_are_counted(fine_tune, capfd):
    checkpoint = fine_tune(max_steps=3, max_length=16, dataset_test_ratio=0.5).last_checkpoint
    evaluated = int(re.search(r"size=(\d+) \(validation\)", capfd.readouterr().err)[1])
    rows = infer(ckpt_dir=checkpoint, load_dataset_config=True, show_dataset_sample=-1, **GREEDY)
    told = capfd.readouterr().err
    assert len(rows) == 20 > evaluated
    assert "20 of 20 held-out rows are answered (20 rows are not held out)" in told
    infer(ckpt_dir=checkpoint, load_dataset_config=True, show_dataset_sample=1, **GREEDY)
    told = capfd.readouterr().err
    assert "1 of 20 held-out rows are answered (--show_dataset_sample -1 for all; 20 rows" in told
    assert f"{20 - evaluated} of these 20 rows are longer than the run's --max_length 16" in told


def test_adapter_merged_and_merged_by_infer_answer_alike(checkpoint):
    options = {"load_dataset_config": True, **GREEDY}
    rows = infer(ckpt_dir=str(checkpoint), **options)
    merged = infer(ckpt_dir=str(checkpoint), merge_lora=True, **options)
    assert answers(merged) == answers(rows)
    folder = checkpoint.with_name("checkpoint-3-merged")
    proof = json.loads((folder / "merge_proof.json").read_text("utf-8"))
    assert proof["max_difference"] <= proof["tolerance"]
    assert proof["num_prompts"] > 0
    assert answers(infer(ckpt_dir=str(folder), **options)) == answers(rows)
    assert answers(infer(ckpt_dir=str(checkpoint), merge_lora=True, **options)) == answers(rows)


def flip(path, place):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_merged_model_that_has_changed_is_refused(checkpoint):
    options = {"load_dataset_config": True, **GREEDY}
    infer(ckpt_dir=str(checkpoint), merge_lora=True, **options)
    merged = checkpoint.with_name("checkpoint-3-merged")
    flip(merged / "model.safetensors", -2001)
    for ckpt_dir, more in ((checkpoint, {"merge_lora": True}), (merged, {})):
        with pytest.raises(
            CheckpointError, match="model.safetensors is damaged: merge_proof.json has another sha256"
        ) as caught:
            infer(ckpt_dir=str(ckpt_dir), **more, **options)
        assert "--overwrite true" in caught.value.hint
    (merged / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        infer(ckpt_dir=str(merged), **options)


def test_a_base_model_that_has_changed_is_not_merged(fine_tune, model_folder, tmp_path, capfd):
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    checkpoint = Path(fine_tune(max_steps=3, model_id_or_path=str(base)).last_checkpoint)
    header = read_header(base / "model.safetensors")
    tensor = header["model.layers.0.mlp.gate_proj.weight"]  # larger than what is sampled of it
    flip(base / "model.safetensors", tensor.begin + 1100)
    with pytest.raises(CheckpointError, match="are not those that the adapter was trained on: sha256"):
        export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu")
    flip(base / "model.safetensors", tensor.begin + 1100)
    export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu")
    assert "keeps no hash" not in capfd.readouterr().err


def test_an_adapter_without_a_hash_of_its_whole_base_says_so(checkpoint, tmp_path, capfd):
    foreign = Path(shutil.copytree(checkpoint, tmp_path / "foreign"))
    for name in ("proof_base.json", "MANIFEST.json"):
        (foreign / name).unlink()
    said = "keeps no hash of all weights of its base model: "
    export(ckpt_dir=str(foreign), merge_lora=True, device="cpu")
    assert said + "samples of each are compared" in capfd.readouterr().err
    (foreign / "adapter_base.json").unlink()
    export(ckpt_dir=str(foreign), merge_lora=True, device="cpu", overwrite=True)
    assert said + "any that fits is taken" in capfd.readouterr().err


@pytest.fixture
def foreign(checkpoint, tmp_path):
    """An adapter as other tools save it: its settings and its weights, and a tokenizer."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(checkpoint / name, folder / name)
    return folder


def change_adapter(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), encoding="utf-8")


def test_an_adapter_of_another_tool_has_no_system_message_of_its_own(foreign, rows_file, capfd):
    options = {"ckpt_dir": str(foreign), "val_dataset": str(rows_file), "show_dataset_sample": 1, **GREEDY}
    said = "has no sft_args.json: the system message is the model's own (--system, "
    infer(**options)
    assert said in capfd.readouterr().err
    infer(**options, system="hello")
    assert said not in capfd.readouterr().err


def test_a_base_that_an_adapter_names_by_the_id_of_a_hub_is_looked_for_there(
    foreign, model_folder, rows_file, monkeypatch
):
    options = {"ckpt_dir": str(foreign), "val_dataset": str(rows_file), "show_dataset_sample": 1, **GREEDY}
    change_adapter(foreign, base_model_name_or_path="me/tiny", revision="v2")
    with pytest.raises(CheckpointError, match="its base model 'me/tiny' was not found: ") as caught:
        infer(**options)
    assert "; or add --model_id_or_path FOLDER_OF_THE_BASE_MODEL" in caught.value.hint

    def fetch(choice, *, revision, trust_remote_code):
        assert (choice.hf_id, revision, trust_remote_code) == ("me/tiny", "v2", False)
        return model_folder

    monkeypatch.setattr("swiftlet.commands.model_source.fetch", fetch)
    assert len(infer(**options)) == 1
    change_adapter(foreign, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="adapter_config.json names no base model"):
        infer(**options)


def test_an_adapter_whose_vocabulary_was_resized_says_what_its_base_needs(foreign, rows_file):
    tensors = load_file(foreign / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(66, 32)
    save_file(tensors, foreign / "adapter_model.safetensors")
    change_adapter(foreign, modules_to_save=["embed_tokens"])
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight is \(66, 32\), not \(64, 32\)") as caught:
        infer(ckpt_dir=str(foreign), val_dataset=str(rows_file), **GREEDY)
    assert "resize_token_embeddings" in caught.value.hint


def test_an_adapter_of_single_experts_says_what_to_do(foreign, experts_folder, rows_file):
    place = "base_model.model.model.layers.0.mlp.experts.0.down_proj"
    tensors = {f"{place}.lora_A.weight": torch.zeros(8, 16), f"{place}.lora_B.weight": torch.zeros(32, 8)}
    save_file(tensors, foreign / "adapter_model.safetensors")
    change_adapter(foreign, target_modules=["down_proj"], base_model_name_or_path=str(experts_folder))
    with pytest.raises(CheckpointError, match=r"left over: .*experts\.0\.down_proj") as caught:
        infer(ckpt_dir=str(foreign), val_dataset=str(rows_file), **GREEDY)
    assert "merge it with the versions that trained it" in caught.value.hint


def test_rows_that_have_no_answer_are_counted(checkpoint, tmp_path, capfd):
    rows = [{"query": "hello " * number, "response": "world"} for number in (1, 300)]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert infer(ckpt_dir=str(checkpoint), val_dataset=str(file), **GREEDY)[1]["response"] is None
    said = "warning: 1 of 2 rows have no answer, such as: a prompt of 305 tokens leaves no room in a context of 128"
    assert said in capfd.readouterr().err


def test_rows_that_ask_nothing_are_counted(checkpoint, tmp_path, capfd):
    file = tmp_path / "mixed.jsonl"
    file.write_text('{"text": "hello world"}\n{"query": "hello", "response": "world"}\n', "utf-8")
    assert len(infer(ckpt_dir=str(checkpoint), val_dataset=str(file), **GREEDY)) == 1
    assert "warning: 1 of 2 rows are plain text, which asks nothing: not answered" in capfd.readouterr().err


def test_results_have_the_system_message_that_was_asked_with(fine_tune):
    checkpoint = fine_tune(max_steps=3, system="w7 w8").last_checkpoint
    rows = infer(ckpt_dir=checkpoint, load_dataset_config=True, show_dataset_sample=1, **GREEDY)
    assert [row["system"] for row in rows] == ["w7 w8"]


def test_all_files_of_a_checkpoint_may_be_read_by_the_same_people(checkpoint):
    export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu")
    for folder in (checkpoint, checkpoint.with_name("checkpoint-3-merged")):
        assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1


def test_a_merge_that_the_disk_does_not_take_leaves_nothing(checkpoint, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    options = {"ckpt_dir": str(checkpoint), "merge_lora": True, "device": "cpu"}
    before = sorted(checkpoint.parent.iterdir())
    monkeypatch.setattr("swiftlet.commands.merging.write_model", full)
    with pytest.raises(
        SaveError, match=r"could not be written: .*No space left on device.*\nhint: free space"
    ):
        export(**options)
    assert sorted(checkpoint.parent.iterdir()) == before


def test_results_that_cannot_be_written_are_said_before_the_model_is_loaded(checkpoint, monkeypatch):
    (checkpoint / "infer_result").touch()
    monkeypatch.setattr("swiftlet.commands.answering.load_model", None)
    with pytest.raises(
        UsageError, match=r"the results cannot be written to .*infer_result.*\nhint: type --result_dir"
    ):
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="results cannot be written to .*: it is read-only"):
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, result_dir=str(checkpoint / "r"), **GREEDY)


def test_a_merge_is_never_silently_skipped(checkpoint):
    folder = Path(export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu"))
    with pytest.raises(UsageError, match="exists already"):
        export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu")
    assert Path(export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu", overwrite=True)) == folder
    weights = load_file(checkpoint / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, checkpoint / "adapter_model.safetensors")
    (checkpoint / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="was merged from another adapter"):
        infer(ckpt_dir=str(checkpoint), merge_lora=True, load_dataset_config=True, **GREEDY)
    (folder / "merge_proof.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no readable merge_proof.json\nhint: move "):
        infer(ckpt_dir=str(checkpoint), merge_lora=True, load_dataset_config=True, **GREEDY)


def test_an_earlier_merge_comes_back_where_its_successor_cannot_take_its_place(checkpoint, monkeypatch):
    folder = Path(export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu"))
    before = sorted((path, path.stat().st_ino) for path in checkpoint.parent.rglob("*"))
    rename, seen = Path.rename, []

    def fails_at_the_second(path, target):
        if Path(target) == folder and not seen:
            seen.append(path)
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_at_the_second)
    with pytest.raises(SaveError, match="Input/output error"):
        export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu", overwrite=True)
    assert sorted((path, path.stat().st_ino) for path in checkpoint.parent.rglob("*")) == before


def test_only_a_merged_model_is_replaced(checkpoint, model_folder, tmp_path, monkeypatch):
    merge = partial(export, ckpt_dir=str(checkpoint), merge_lora=True, device="cpu", overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    (checkpoint.parent / "merge_proof.json").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "notes")
    for target, message in (
        (checkpoint, "would remove the checkpoint"),
        (checkpoint.parent, "would remove the checkpoint"),
        (Path(model_folder), "would remove the base model"),
        (tmp_path / "notes", "would remove the working directory"),
        (checkpoint / "adapter_config.json", "is a file"),
    ):
        with pytest.raises(UsageError, match=message):
            merge(export_dir=str(target))
    monkeypatch.chdir("/")
    for name in ("notes", "link"):
        with pytest.raises(UsageError, match="replaces merged models, and .*notes has no merge_proof.json"):
            merge(export_dir=str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert Path(merge(export_dir=str(tmp_path / "empty"))).joinpath("merge_proof.json").is_file()


def test_a_merge_that_answers_differently_is_refused_and_leaves_nothing(checkpoint):
    with pytest.raises(MergeError, match="the merged model differs from the adapter by"):
        export(ckpt_dir=str(checkpoint), merge_lora=True, device="cpu", merge_tolerance=1e-30)
    assert not checkpoint.with_name("checkpoint-3-merged").exists()
    assert not list(checkpoint.parent.glob(".tmp-*"))


def test_a_merge_by_infer_trusts_what_infer_trusts(checkpoint, monkeypatch):
    class Asked(Exception):
        pass

    def call(options):
        raise Asked(options["trust_remote_code"])

    monkeypatch.setattr("swiftlet.commands.export.call", call)
    for trusts in (True, False):
        with pytest.raises(Asked, match=str(trusts)):
            infer(ckpt_dir=str(checkpoint), merge_lora=True, trust_remote_code=trusts, **GREEDY)


def test_a_stop_word_that_is_a_control_token_ends_an_answer(checkpoint):
    from swiftlet.commands.evaluation import stop_ids

    _, template = open_template(checkpoint, template_type=None, system=None)
    start = template.tokenizer.id_of("<|im_start|>")
    assert start not in template.stop_token_ids
    assert stop_ids(template, ["w1", "<|im_start|>"]) == [*template.stop_token_ids, start]
    assert stop_ids(template, ["w1"]) == template.stop_token_ids
    with pytest.raises(UsageError, match="has the control token <|im_start|> in it") as caught:
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, stop_words=["<|im_start|> user"], **GREEDY)
    assert caught.value.hint == "type the token alone: --stop_words '<|im_start|>'"


def test_the_tools_of_a_row_are_in_its_prompt():
    from swiftlet.commands.evaluation import sample_row
    from swiftlet.data.formats import Sample
    from swiftlet.data.sources import Origin

    class Template:
        def encode_prompt(self, messages, tools=None):
            return tools

    messages = [{"role": "user", "content": "a"}]
    sample = Sample(messages, Origin("f", 1, 0), tools=["tool"])
    assert sample_row(sample, Template()).prompt_ids == ["tool"]


def test_a_full_checkpoint_answers_too(fine_tune):
    outcome = fine_tune(sft_type="full", max_steps=2, learning_rate=1e-3)
    rows = infer(ckpt_dir=outcome.last_checkpoint, load_dataset_config=True, **GREEDY)
    assert len(rows) == 4
    for command in (export, infer):
        with pytest.raises(UsageError, match="is a whole model, not an adapter"):
            command(ckpt_dir=outcome.last_checkpoint, merge_lora=True)


def test_chat_at_the_terminal(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\nclear\nw3\nexit\n"))
    code = cli.main(
        [
            "infer",
            "--ckpt_dir",
            str(checkpoint),
            "--do_sample",
            "false",
            "--max_new_tokens",
            "4",
            "--device",
            "cpu",
        ]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert out.count("-" * 50) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_what_was_thought_is_not_in_the_next_prompt_of_a_chat(checkpoint, stream, monkeypatch, capsys):
    asked = []

    class Thinking:
        def answer(self, prompt, on_text):
            [(_, reply)] = self.replies_as_they_end([prompt])
            on_text(reply.text)
            return reply

        def replies_as_they_end(self, prompts):
            asked.append(prompts[0])
            return [(0, Reply("w7 w8", "w8"))]

    monkeypatch.setattr("swiftlet.commands.answering.load_generator", lambda ready, device: Thinking())
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\nw2\nexit\n"))
    infer(ckpt_dir=str(checkpoint), stream=stream, device="cpu")
    _, template = open_template(checkpoint, template_type=None, system=None)
    assert template.tokenizer.decode(asked[1]).count("w8") == 1
    assert "w7" not in template.tokenizer.decode(asked[1])
    assert "w7 w8" in capsys.readouterr().out


def record(checkpoint, **changes):
    """Change what a checkpoint records, as its owner may."""
    path = checkpoint / "sft_args.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")
    (checkpoint / "MANIFEST.json").unlink()


def test_a_moved_base_model_is_named(checkpoint, model_folder):
    record(checkpoint, model_dir="/nowhere/model", model_id_or_path=None)
    adapter = json.loads((checkpoint / "adapter_config.json").read_text("utf-8"))
    adapter["base_model_name_or_path"] = "/nowhere/model"
    (checkpoint / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match="its base model '/nowhere/model' is not on this machine"
    ) as caught:
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)
    assert "--model_id_or_path" in caught.value.hint
    rows = infer(
        ckpt_dir=str(checkpoint), load_dataset_config=True, model_id_or_path=str(model_folder), **GREEDY
    )
    assert len(rows) == 4


def test_a_base_model_that_is_gone_is_named_where_it_was(checkpoint):
    record(checkpoint, model_dir="/nowhere/k/base", model_id_or_path="k/base")
    with pytest.raises(CheckpointError, match="was '/nowhere/k/base', which is no longer there") as caught:
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)
    assert "--model_id_or_path" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("dataset", 5, "--dataset takes words, found 5"), ("columns", 5, "--columns takes theirs=ours, found 5"),
     ("dtype", "fp7", "--dtype 'fp7' is not known"), ("dataset_seed", "x", "--dataset_seed is a whole number")],
)  # fmt: skip
def test_a_recorded_value_of_the_wrong_kind_is_named(checkpoint, name, value, expected):
    record(checkpoint, **{name: value})
    with pytest.raises(CheckpointError, match=expected):
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_neither_answers_nor_is_merged(checkpoint, name):
    damage(checkpoint / name, "bitflip")
    for use in (infer, partial(export, merge_lora=True)):
        with pytest.raises(CheckpointError, match=f"is damaged: {name} has sha256 ") as caught:
            use(ckpt_dir=str(checkpoint), device="cpu")
        assert "remove MANIFEST.json" in caught.value.hint


def test_a_chat_template_that_was_added_to_a_checkpoint_does_not_answer(checkpoint):
    (checkpoint / "optimizer-00002.safetensors").touch()  # inference reads none
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(
        CheckpointError, match="is damaged: chat_template.jinja is not in MANIFEST.json"
    ) as caught:
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)
    assert "remove MANIFEST.json" in caught.value.hint


def test_a_damaged_manifest_proves_nothing(checkpoint):
    (checkpoint / "MANIFEST.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged: MANIFEST.json is damaged"):
        infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)


def test_a_checkpoint_answers_without_what_only_a_resumed_run_reads(checkpoint):
    for path in (*checkpoint.glob("optimizer-*"), checkpoint / "trainer_state.json"):
        path.unlink()
    assert len(infer(ckpt_dir=str(checkpoint), load_dataset_config=True, **GREEDY)) == 4


def test_the_ranks_do_not_check_again_what_the_launcher_has_checked(checkpoint, monkeypatch):
    told = infer_command.prepare(
        parse_mapping(
            infer_command.ARGS, {"ckpt_dir": str(checkpoint), "load_dataset_config": True, **GREEDY}
        )
    )
    monkeypatch.setattr(
        "swiftlet.commands.checkpoint_source.find_damage", lambda *a, **k: pytest.fail("again")
    )
    monkeypatch.setenv(*next(iter(told.items())))
    assert open_checkpoint_source(str(checkpoint), InferArgs().model).folder == checkpoint


def test_every_row_of_a_named_dataset_is_asked_unless_a_ratio_is_given(checkpoint, rows_file, capfd):
    options = {"ckpt_dir": str(checkpoint), "dataset": str(rows_file), **GREEDY}
    asked = [json.loads(line)["query"] for line in rows_file.read_text("utf-8").splitlines()]
    assert [row["query"] for row in infer(**options, show_dataset_sample=-1)] == asked
    assert f"{len(asked)} of {len(asked)} rows are answered\n" in capfd.readouterr().err
    assert [row["query"] for row in infer(**options)] == asked[:10]
    assert len(infer(**options, dataset_test_ratio=0.1, show_dataset_sample=-1)) == len(asked) // 10
    twice = {**options, "dataset": [str(rows_file), str(rows_file)], "show_dataset_sample": -1}
    assert len(infer(**twice, check_dataset_strategy="discard")) == len(asked)


def test_rows_that_end_with_their_question_are_asked(checkpoint, tmp_path, capfd):
    rows = [
        {"query": "hello", "response": "world"},
        {"query": "hello"},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = infer(ckpt_dir=str(checkpoint), val_dataset=str(file), **GREEDY)
    assert [row["label"] for row in found] == ["world", None, None]
    assert len({row["response"] for row in found}) == 1
    out = capfd.readouterr().out
    assert out.count("[LABELS]") == 1 and "3 rows: exact_match" in out and ", 2 without a label" in out
    with pytest.raises(DataError, match="no answer column") as caught:  # a run would have counted other rows
        infer(ckpt_dir=str(checkpoint), dataset=str(file), dataset_test_ratio=0.5, **GREEDY)
    assert caught.value.hint.endswith("; rows of --val_dataset need no answer")
