"""F01 to F04, F07, F08, F32, F34 to F36: what a resumed run continues, and what it refuses to continue."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time

import pytest
from cases import NUM_STEPS, SAVE_STEPS, check_golden, repeat

POINTS = {"early": 2, "between saves": 3, "a save": 4, "epoch end": 9, "last step": 12}
VARIANTS = {
    "lora": {},
    "full": {"sft_type": "full"},
    "no workers": {"dataloader_num_workers": 0},
    "two workers": {"dataloader_num_workers": 2},
}


@pytest.mark.parametrize(
    "variant", [*VARIANTS][:1] + [pytest.param(v, marks=pytest.mark.slow) for v in [*VARIANTS][1:]]
)
@pytest.mark.parametrize("step", POINTS.values(), ids=POINTS)
def test_f01_a_run_stopped_at_a_step_and_resumed_equals_the_golden_run(runs, golden, step, variant):
    options = VARIANTS[variant]
    if options:
        golden = golden.another(f"golden-{variant}".replace(" ", "-"), **options)
        assert golden.output.exists() or golden.run().code == 0
    # A request that comes before the evaluation of a step is heard right after it.
    site = "ckpt.begin" if (step - 1) % SAVE_STEPS == 0 else "fwd"
    stopped = runs.run(fault=f"{site}:step={step - 1}=term", **options)
    is_last = step == NUM_STEPS
    assert stopped.code == (0 if is_last else 128 + signal.SIGTERM), stopped.text
    if not is_last:
        assert f"stopped by signal 15 after step {step} of 12; checkpoint-{step} is saved" in stopped.text
    check_golden(runs, golden, **options)
    assert runs.log_lines() == golden.log_lines()
    # The best and the last are kept; where the last is the best, the one before it is that of the stop.
    assert runs.valid_steps()[-1] == golden.valid_steps()[-1] == NUM_STEPS


@pytest.mark.parametrize("number", repeat(1, 3))
def test_f01_two_ranks_stopped_and_resumed_equal_the_golden_run_of_two(runs, golden_of_two, number):
    stopped = runs.run_ranks(2, fault=f"fwd:rank=1:step={4 + number}=term")
    assert [done.code for done in stopped] == [143, 143], stopped[0].text
    resumed = runs.run_ranks(2, resume_from_checkpoint="auto")
    assert [done.code for done in resumed] == [0, 0], resumed[0].text
    assert runs.hashes(NUM_STEPS) == golden_of_two.hashes(NUM_STEPS)
    assert runs.log_lines() == golden_of_two.log_lines()


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f02_resuming_twice_from_one_checkpoint_gives_the_same(runs, golden, stopped_at_8, number):
    results = []
    for name in ("one", "two"):
        copy = runs.another(name)
        shutil.copytree(stopped_at_8, copy.output)
        done = copy.run(resume_from_checkpoint=copy.output / f"checkpoint-{SAVE_STEPS}")
        assert done.code == 0, done.text
        results.append(copy.hashes(NUM_STEPS))
    assert results[0] == results[1] == golden.hashes(NUM_STEPS)


@pytest.mark.parametrize("number", repeat(1, 3))
def test_f03_an_edited_row_is_noticed(runs, stopped_at_8, rows_file, number):
    shutil.copytree(stopped_at_8, runs.output)
    edited = runs.folder / "rows.jsonl"
    lines = rows_file.read_text("utf-8").splitlines(keepends=True)
    lines[number] = lines[number].replace('"w', '"w1 w', 1)
    edited.write_text("".join(lines), encoding="utf-8")
    done = runs.run(resume_from_checkpoint="auto", dataset=edited)
    assert done.code == 3
    assert "belongs to another run" in done.text
    assert "dataset: " in done.text
    assert "--resume_override true" in done.text
    assert runs.valid_steps() == [4, 8]


def test_f03_other_rows_are_said_with_the_flags_that_they_follow_from(runs, stopped_at_8, rows_file):
    shutil.copytree(stopped_at_8, runs.output)
    done = runs.run(resume_from_checkpoint="auto", max_length=16, dataset_seed=7, dataloader_num_workers=0)
    assert done.code == 3
    assert (
        "  --dataset_seed: 42 in the checkpoint, 7 now\n  --max_length: 2048 in the checkpoint, 16 now\n"
        in done.text
    )
    assert "--dataset:" not in done.text and "no flag" not in done.text
    own = runs.another("own")
    own.options["dataset"] = own.folder.parent / "mine.jsonl"
    shutil.copyfile(rows_file, own.options["dataset"])
    assert own.run(fault="opt:step=6=exc").code == 1
    with own.options["dataset"].open("a", encoding="utf-8") as file:
        file.write('{"query": "w1", "response": "w2"}\n')
    done = own.run(resume_from_checkpoint="auto")
    assert done.code == 3
    assert "  the files of --dataset are not those that the run has read\nhint: " in done.text


CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} w1 {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant w1 {% endif %}"
)


def test_f03_a_chat_template_that_was_edited_is_named_with_its_file(runs, stopped_at_8, model_folder):
    """The settings are the same, and so are the weights: only the file says why the rows are others."""
    shutil.copytree(stopped_at_8, runs.output)
    edited = runs.folder / "edited"
    shutil.copytree(model_folder, edited)
    (edited / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    done = runs.run(resume_from_checkpoint="auto", model_id_or_path=edited)
    assert done.code == 3, done.text
    assert f"  {edited}/chat_template.jinja is not the one in the checkpoint\nhint: " in done.text
    assert "no flag" not in done.text and "--dataset" not in done.text


@pytest.mark.parametrize("name, value", [("template_type", "chatml"), ("system", "w1 w2")])
def test_f03_rows_that_differ_by_the_template_alone_are_not_said_to_differ_by_no_flag(
    runs, stopped_at_8, name, value
):
    shutil.copytree(stopped_at_8, runs.output)
    done = runs.run(resume_from_checkpoint="auto", **{name: value})
    assert done.code == 3, done.text
    assert f"  {name}: None in the checkpoint, '{value}' now\nhint: " in done.text


CHANGES = {
    "learning_rate": 2e-3,
    "batch_size": 2,
    "seed": 7,
    "weight_decay": 0.2,
    "lora_rank": 4,
    "lr_scheduler_type": "cosine",
    "system": "w1 w2",
    "neftune_noise_alpha": 5,
}


@pytest.mark.parametrize(
    "name",
    [n if n in ("learning_rate", "seed") else pytest.param(n, marks=pytest.mark.slow) for n in CHANGES],
)
def test_f04_changed_settings_are_refused_unless_overridden(runs, stopped_at_8, name):
    shutil.copytree(stopped_at_8, runs.output)
    done = runs.run(resume_from_checkpoint="auto", **{name: CHANGES[name]})
    if name == "batch_size":  # refused as a mistake of the command line, with the numbers that fit
        assert done.code == 2, done.text
        assert "was made with 4 samples a step" in done.text
        return
    assert done.code == 3, done.text
    assert "belongs to another run" in done.text
    assert ("dataset" if name == "system" else name) in done.text
    if name == "learning_rate":
        done = runs.run(resume_from_checkpoint="auto", resume_override="true", **{name: CHANGES[name]})
        assert done.code == 0, done.text
        assert "although these differ" in done.text


@pytest.mark.parametrize("number", repeat(2, 60))
def test_f07_a_kill_while_the_state_is_read_costs_nothing(runs, golden, stopped_at_8, number):
    shutil.copytree(stopped_at_8, runs.output)
    if number == 0:
        assert runs.run(resume_from_checkpoint="auto", fault="resume.read=kill9").code == -signal.SIGKILL
    else:
        run = runs.start(resume_from_checkpoint="auto")
        run.kill_after(random.Random(number).uniform(0, golden.seconds / 3))
        run.wait()
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f08_a_second_run_in_a_folder_is_refused_and_a_dead_one_is_not_in_the_way(runs, golden, number):
    first = runs.start(fault="data.next:step=2=sleep=600", dataloader_num_workers=0)
    lock, until = runs.output / ".lock", time.monotonic() + 120
    while not (lock.exists() and lock.read_text("utf-8")) and time.monotonic() < until:
        time.sleep(0.05)
    second = runs.run()
    assert second.code == 2, second.text
    assert f"process {first.pid} on " in second.text
    assert "is already running in" in second.text
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 5))
@pytest.mark.parametrize("start, then", [(2, 1), (1, 2)])
def test_f32_another_number_of_ranks_continues_with_the_same_order_and_rates(runs, start, then, number):
    same = {"lora_dropout_p": 0.0, "seed": 42 + number}
    shape = {1: {"gradient_accumulation_steps": 2}, 2: {"gradient_accumulation_steps": 1}}
    whole = runs.another("whole", **same)
    assert all(done.code == 0 for done in whole.run_ranks(start, **shape[start]))
    part = runs.another("part", **same)
    stopped = part.run_ranks(start, fault=f"fwd:rank=0:step={4 + number}=term", **shape[start])
    assert {done.code for done in stopped} == {143}, stopped[0].text
    resumed = part.run_ranks(then, resume_from_checkpoint="auto", **shape[then])
    assert {done.code for done in resumed} == {0}, resumed[0].text
    assert part.losses() == pytest.approx(whole.losses(), rel=1e-5)
    mine, theirs = part.log_lines(), whole.log_lines()
    for name in ("learning_rate", "epoch", "global_step"):
        assert [line.get(name) for line in mine] == [line.get(name) for line in theirs], name


def test_f34_a_number_of_ranks_that_does_not_fit_the_batch_is_refused(runs, stopped_at_8):
    shutil.copytree(stopped_at_8, runs.output)
    for done in runs.run_ranks(3, resume_from_checkpoint="auto"):
        assert done.code == 2
    assert "4 x 1 x 3 processes = 12" in done.text
    assert "hint: use one of 1, 2, 4 processes" in done.text


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f35_three_epochs_with_kills_see_every_row_once_an_epoch(runs, golden, number):
    options = {"max_steps": -1, "num_train_epochs": 3, "batch_size": 3}
    order = random.Random(number)
    kills = [order.randrange(first, first + 7) for first in (5, 13, 21, 29)]
    for step in kills:
        done = runs.run(resume_from_checkpoint="auto", fault=f"opt:step={step}=kill9", **options)
        assert done.code == -signal.SIGKILL, done.text
    assert runs.run(resume_from_checkpoint="auto", **options).code == 0
    whole = runs.another("whole")
    assert whole.run(**options).code == 0
    assert runs.hashes(36) == whole.hashes(36)
    state = json.loads((runs.output / "checkpoint-36" / "trainer_state.json").read_text("utf-8"))
    assert state["epoch"] == 3
    assert state["num_tokens"] % 3 == 0, "the same rows in each epoch"


@pytest.mark.parametrize("workers", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_f36_the_order_of_rows_does_not_depend_on_the_number_of_workers(runs, golden, workers):
    assert runs.run(dataloader_num_workers=workers).code == 0
    assert runs.hashes(NUM_STEPS)["trainer_state.json"] == golden.hashes(NUM_STEPS)["trainer_state.json"]
    name = "adapter_model.safetensors"
    assert runs.hashes(NUM_STEPS)[name] == golden.hashes(NUM_STEPS)[name]


def test_a_run_that_starts_again_by_itself_leaves_an_earlier_one_in_its_folder_alone(runs, stopped_at_8):
    shutil.copytree(stopped_at_8, runs.output)
    own = {"learning_rate": 2e-3}
    done = runs.launch(fault="opt:step=3:restart=0=kill9", max_restarts=1, **own).wait()
    assert done.code == 0, done.text
    assert "it starts again from its last valid checkpoint" in done.text
    assert done.text.count("holds an earlier run, which is now in former-run-") == 1
    (former,) = runs.output.glob("former-run-*")
    assert {path.name for path in former.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    whole = runs.another("whole")
    assert whole.run(**own).code == 0
    assert runs.hashes(NUM_STEPS) == whole.hashes(NUM_STEPS)


def test_ranks_that_find_different_checkpoints_do_not_train_together(runs, golden, stopped_at_8):
    """Without a launcher each rank looks for itself, and the disk of another node may hold another folder."""
    shutil.copytree(stopped_at_8, runs.output)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        runs.start(
            variables={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            resume_from_checkpoint="auto",
            output_dir=folder,
            batch_size=2,
        )
        for rank, folder in enumerate((runs.output, runs.folder / "other"))
    ]
    for done in (rank.wait() for rank in ranks):
        assert done.code == 2, done.text
        assert "the step that the run continues after is 8 on rank 0, 0 on rank 1" in done.text
    assert runs.valid_steps() == [4, 8]
