"""`swift sft` as a whole on a tiny model: files, trajectories, resume, and agreement with transformers and peft."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch

from run_files import hashes, lines
from swiftlet.commands.run_folder import PRINTED_DATE
from swiftlet.errors import CheckpointError, DataError, UsageError


def losses(folder, name="loss"):
    return [line[name] for line in lines(folder) if name in line]


def test_a_run_leaves_the_files_of_the_contract(fine_tune):
    outcome = fine_tune(add_output_dir_suffix=True, is_drawn=True)
    folder = Path(outcome.output_dir)
    assert folder.name.startswith("v0-")
    for name in ("sft_args.json", "logging.jsonl", "runs"):
        assert (folder / name).exists(), name
    for name in ("train_loss", "eval_loss"):
        assert (folder / "images" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    checkpoint = Path(outcome.last_checkpoint)
    assert checkpoint == folder / "checkpoint-6"
    found = {path.name for path in checkpoint.iterdir()}
    assert found >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "sft_args.json",
        "trainer_state.json",
        "optimizer-00001.safetensors",
        "MANIFEST.json",
    }
    args = json.loads((folder / "sft_args.json").read_text("utf-8"))
    assert args["sft_type"] == "lora"
    assert args["dtype"] == "fp32"
    assert args["gradient_accumulation_steps"] == 1
    first = lines(folder)[0]
    keys = {
        "loss",
        "acc",
        "grad_norm",
        "learning_rate",
        "epoch",
        "global_step",
        "memory_gib",
        "tokens_per_second",
    }
    assert keys <= set(first)
    assert lines(folder)[-1]["last_model_checkpoint"] == str(checkpoint)
    second = fine_tune(add_output_dir_suffix=True, max_steps=1)
    assert Path(second.output_dir).name.startswith("v1-")


def test_the_loss_falls(fine_tune):
    outcome = fine_tune(sft_type="full", max_steps=40, num_train_epochs=100, eval_steps=40)
    assert losses(outcome.output_dir)[-1] < 0.8 * losses(outcome.output_dir)[0]


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_the_trajectory_does_not_depend_on_batch_and_accumulation(fine_tune, sft_type):
    shared = {"dataset_test_ratio": 0.2}  # 32 rows: as many steps an epoch for each batch
    shared |= {"lora_dropout_p": 0.0} if sft_type == "lora" else {}
    runs = [
        fine_tune(
            f"run{batch}",
            sft_type=sft_type,
            batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            **shared,
        )
        for batch in (1, 4, 8)
    ]
    padded = fine_tune("alone", sft_type=sft_type, batch_size=8, packing=False, **shared)
    for name in ("loss", "grad_norm", "eval_loss"):
        golden = losses(runs[0].output_dir, name)
        for run in (*runs[1:], padded):
            assert losses(run.output_dir, name) == pytest.approx(golden, rel=1e-5), name


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_what_rows_begin_with_alike_is_computed_once(fine_tune, sft_type, capfd):
    shared = {"sft_type": sft_type, "system": " ".join(f"w{number}" for number in range(20))}
    shared |= {"lora_dropout_p": 0.0} if sft_type == "lora" else {}
    golden = fine_tune("each", share_prefixes=False, **shared)
    assert "were not computed again" not in capfd.readouterr().err
    found = fine_tune("once", **shared)
    assert re.search(r"[3-7]\d% of the tokens were not computed again", capfd.readouterr().err)
    for name in ("loss", "acc", "grad_norm", "eval_loss"):
        assert losses(found.output_dir, name) == pytest.approx(losses(golden.output_dir, name), rel=1e-5), (
            name
        )


@pytest.mark.parametrize("sft_type", ["lora", "full"])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_resumed_run_equals_an_uninterrupted_one_in_every_byte(
    fine_tune, plan_fault, tmp_path, sft_type, step
):
    golden = fine_tune("golden", sft_type=sft_type, save_steps=1, learning_rate=1e-3)
    plan_fault(f"opt:step={step + 1}=exc")
    with pytest.raises(RuntimeError, match="injected at opt"):
        fine_tune("broken", sft_type=sft_type, save_steps=1, learning_rate=1e-3)
    resumed = fine_tune(
        "broken", sft_type=sft_type, save_steps=1, learning_rate=1e-3, resume_from_checkpoint="auto"
    )
    assert hashes(resumed.last_checkpoint) == hashes(golden.last_checkpoint)


def test_a_template_that_prints_the_date_keeps_to_that_of_the_run_past_midnight(
    fine_tune, model_folder, tmp_path, monkeypatch, plan_fault, capfd
):
    """It made other rows on the next day, so that a run which broke off at night could not go on."""

    def it_is(day):
        moment = datetime(2026, 1, day, 23, 59)
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls: moment)})
        monkeypatch.setattr("swiftlet.data.template.datetime", clock)

    dated = tmp_path / "dated"
    shutil.copytree(model_folder, dated)
    path = dated / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["chat_template"] = "{{ strftime_now('w%d') }} " + settings["chat_template"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    it_is(11)
    golden = fine_tune("golden", model_id_or_path=str(dated))
    plan_fault("opt:step=5=exc")
    with pytest.raises(RuntimeError, match="injected"):
        fine_tune("broken", model_id_or_path=str(dated))
    it_is(12)
    resumed = fine_tune("broken", model_id_or_path=str(dated), resume_from_checkpoint="auto")
    assert "the chat template prints 2026-01-11, the day on which the run began" in capfd.readouterr().err
    assert hashes(resumed.last_checkpoint) == hashes(golden.last_checkpoint)
    monkeypatch.setenv(PRINTED_DATE, "2026-01-11")  # as the launcher of several processes tells them
    told = fine_tune("told", model_id_or_path=str(dated))
    assert hashes(told.last_checkpoint) == hashes(golden.last_checkpoint)


@pytest.mark.parametrize(("answer", "is_said"), [("", True), ("w9 w8 ", False)])
def test_a_prompt_that_ends_with_what_is_not_in_the_rows_is_said(
    fine_tune, model_folder, rows_file, tmp_path, capfd, answer, is_said
):
    """Such as a tag that opens thoughts: the tuned model was asked behind it, and had never seen it."""
    asking = tmp_path / "asking"
    shutil.copytree(model_folder, asking)
    path = asking / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["chat_template"] += "{% if add_generation_prompt %}w9 w8 {% endif %}"
    path.write_text(json.dumps(settings), encoding="utf-8")
    rows = [json.loads(line) for line in rows_file.read_text("utf-8").splitlines()]
    data = tmp_path / "begun.jsonl"
    data.write_text(
        "".join(json.dumps({**row, "response": answer + row["response"]}) + "\n" for row in rows), "utf-8"
    )
    fine_tune(model_id_or_path=str(asking), dataset=str(data), max_steps=1)
    said = "ends the prompt for an answer with 'w9 w8', which this sample does not have"
    assert (said in capfd.readouterr().err) == is_said


def test_a_resumed_run_with_other_settings_or_data_is_refused(fine_tune, rows_file, tmp_path):
    fine_tune(max_steps=3, num_train_epochs=3)
    with pytest.raises(CheckpointError, match="learning_rate: 0.01 in the checkpoint, 0.001 now"):
        fine_tune(max_steps=3, num_train_epochs=3, learning_rate=1e-3, resume_from_checkpoint="auto")
    edited = tmp_path / "rows.jsonl"
    edited.write_text(rows_file.read_text("utf-8").replace("w1 ", "w2 ", 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match="dataset: "):
        fine_tune(max_steps=3, num_train_epochs=3, dataset=str(edited), resume_from_checkpoint="auto")


def test_a_finished_run_resumed_says_so_and_does_nothing_more(fine_tune, capfd):
    first = fine_tune()
    logged = (Path(first.output_dir) / "logging.jsonl").read_text("utf-8")
    capfd.readouterr()

    again = fine_tune(resume_from_checkpoint="auto")

    assert again == first
    said = capfd.readouterr().err
    assert (
        "is of the last of 6 steps: nothing is left to train. To go on, type a larger --num_train_epochs"
        in said
    )
    assert (Path(first.output_dir) / "logging.jsonl").read_text("utf-8") == logged


def test_a_run_that_ended_without_its_summary_gets_it(fine_tune):
    first = fine_tune()
    log = Path(first.output_dir) / "logging.jsonl"
    log.write_text("".join(log.read_text("utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")

    assert fine_tune(resume_from_checkpoint="auto").num_steps == 6
    assert "train_runtime" in log.read_text("utf-8").splitlines()[-1]


def written(tokenizer, rows_file, line):
    """Return the tokens of a row as transformers writes them."""
    row = json.loads(rows_file.read_text("utf-8").splitlines()[line - 1])
    messages = [{"role": "user", "content": row["query"]}, {"role": "assistant", "content": row["response"]}]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_losses_equal_those_of_a_plain_loop_of_transformers_and_peft(
    fine_tune, model_folder, rows_file, capfd
):
    """Ten steps written here from the public API: padded batches, full logits, torch's AdamW, linear schedule."""
    outcome = fine_tune(
        max_steps=10,
        num_train_epochs=10,
        lora_dropout_p=0.0,
        save_strategy="no",
        save_steps=None,
        eval_steps=100,
    )
    assert capfd.readouterr().err.count("warning: --save_strategy no: this run keeps no weights\n") == 1
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

    from swiftlet.config.args import SftArgs
    from swiftlet.config.parse import parse_mapping
    from swiftlet.data.batching import Batches
    from swiftlet.data.cutting import Schedule
    from swiftlet.data.prepare import prepare
    from swiftlet.data.template import build_template
    from swiftlet.data.tokenizer import load_tokenizer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="eager"
    )
    torch.manual_seed(42)
    model = get_peft_model(
        model,
        LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj"]),
    )
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1
    )
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=10)
    args = parse_mapping(SftArgs, {"dataset": str(rows_file), "dataset_test_ratio": 0.1}).args
    template = build_template(load_tokenizer(model_folder))
    cache = rows_file.parent / "cache"
    store = prepare(args.data, template, max_length=128, cache_dir=cache, bad_rows=None).train
    order = Batches(store, Schedule(42, 4, len(store) // 4, -1, 0))
    found = []
    for step in range(10):
        rows = order.step(step // (len(store) // 4), step % (len(store) // 4)).samples
        encoded = [
            torch.tensor(written(tokenizer, rows_file, int(store.origin(row).rpartition(":")[2])))
            for row in rows
        ]
        assert [ids.tolist() for ids in encoded] == [store[row][0].tolist() for row in rows]
        labels = [torch.tensor(store[row][1].astype("int64")) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = pad(encoded, batch_first=True, padding_value=0)
        mask = pad([torch.ones_like(ids) for ids in encoded], batch_first=True)
        targets = pad(labels, batch_first=True, padding_value=-100)
        logits = model(input_ids=batch, attention_mask=mask).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets[:, 1:].flatten(), reduction="sum")
        loss = loss / (targets[:, 1:] != -100).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert losses(outcome.output_dir) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_lr_ratio": 16.0},
        {"lora_target_modules": ["ALL"], "lora_modules_to_save": ["lm_head"]},
        {"lora_target_modules": ["EMBEDDING", "q_proj"]},
        {"neftune_noise_alpha": 5.0},
        {"init_lora_weights": "pissa"},
        {"sft_type": "full", "freeze_parameters": ["model.embed_tokens"]},
        {"gradient_checkpointing": True},
        {"predict_with_generate": True, "max_new_tokens": 4, "do_sample": False},
        {"dtype": "bf16"},
        {"optim": "adafactor", "lr_scheduler_type": "cosine"},
        {"truncation_strategy": "truncation_left", "max_length": 12},
        {"evaluation_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "save_steps": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_can_be_chosen_trains_saves_and_answers(fine_tune, options):
    from swiftlet import infer

    outcome = fine_tune(
        max_steps=8 if "evaluation_strategy" in options else 3, **{"learning_rate": 1e-3, **options}
    )
    assert all(loss > 0 for loss in losses(outcome.output_dir))
    rows = infer(ckpt_dir=outcome.last_checkpoint, load_dataset_config=True, max_new_tokens=3, device="cpu")
    assert len(rows) == 4
    assert set(rows[0]) == {"response", "query", "label", "history", "system"}


def test_a_quantised_folder_is_refused_before_its_data_is_read(fine_tune, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UsageError, match="gptq is quantised: such a model is for swift infer"):
        fine_tune(model_id_or_path=str(folder))
    assert not (tmp_path / "run").exists()


def test_generated_answers_are_scored(fine_tune):
    outcome = fine_tune(predict_with_generate=True, max_new_tokens=4, do_sample=False, max_steps=3)
    line = next(line for line in lines(outcome.output_dir) if "eval_rouge_l" in line)
    assert {"eval_loss", "eval_acc", "eval_exact_match", "eval_rouge_l"} <= set(line)


def test_generated_answers_end_where_the_positions_of_the_model_do(fine_tune, model_folder, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    shutil.copytree(model_folder, folder)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=48, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    options = {"predict_with_generate": True, "max_new_tokens": 100, "do_sample": False, "max_steps": 3}
    outcome = fine_tune(model_id_or_path=str(folder), **options)
    assert any("eval_rouge_l" in line for line in lines(outcome.output_dir))


def test_mistakes_are_named(fine_tune, tmp_path):
    with pytest.raises(UsageError, match="no such data file"):
        fine_tune(dataset=str(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no config.json"):
        fine_tune(model_id_or_path=str(tmp_path / "empty"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "w1", "response": "w2"}\n{"query": "w1", "response":\n', encoding="utf-8")
    with pytest.raises(DataError, match="bad.jsonl:2"):
        fine_tune(dataset=str(bad))
    assert json.loads((tmp_path / "run" / "bad_rows.jsonl").read_text("utf-8"))["line"] == 2


def test_a_run_without_data_leaves_no_empty_folder(fine_tune, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="the cache of tokenised data .* cannot be written"):
        fine_tune(add_output_dir_suffix=True)
    (of_model,) = (tmp_path / "run").iterdir()
    assert list(of_model.iterdir()) == []


def test_an_empty_cache_variable_is_as_if_it_were_not_set():
    from swiftlet.config.places import cache_folder

    assert cache_folder({"XDG_CACHE_HOME": ""}) == cache_folder({}) == Path("~/.cache/swiftlet").expanduser()
    assert cache_folder({"XDG_CACHE_HOME": "/x", "SWIFTLET_CACHE": ""}) == Path("/x/swiftlet")


def test_arguments_that_cannot_be_written_leave_no_draft(tmp_path):
    from swiftlet.commands.run_folder import write_args

    (tmp_path / "sft_args.json").mkdir()
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        write_args(tmp_path, "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["sft_args.json"]


def test_a_missing_deepspeed_is_told_before_anything_is_made(fine_tune, monkeypatch, tmp_path):
    monkeypatch.setattr("swiftlet.commands.sft.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--deepspeed needs DeepSpeed, which is not installed") as caught:
        fine_tune(deepspeed="default-zero2")
    assert caught.value.hint == "pip install deepspeed"
    assert not (tmp_path / "run").exists()
