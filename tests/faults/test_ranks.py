"""F23 to F30, F33, F50 on two ranks under the launcher: the cause is named first and once, and no process stays."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from cases import NUM_STEPS, repeat

SITES = ("fwd", "bwd", "opt", "ckpt.fsync")
STACK = "most recent call first"


def check_ended(run, done, golden=None, *, within_s=60.0):
    """Check that nothing of the run is left."""
    until = time.monotonic() + 10
    while run.left() and time.monotonic() < until:
        time.sleep(0.1)
    assert run.left() == [], done.text


def check_resumed(runs, golden_of_two):
    ranks = runs.run_ranks(2, resume_from_checkpoint="auto")
    assert [done.code for done in ranks] == [0, 0], ranks[0].text
    assert runs.hashes(NUM_STEPS) == golden_of_two.hashes(NUM_STEPS)


@pytest.mark.parametrize("number", repeat(1, 60))
def test_f23_a_killed_rank_is_named_and_the_run_starts_again_by_itself(runs, golden_of_two, number):
    site = SITES[number % 4]
    rank, step = (0, 8) if site == "ckpt.fsync" else (1, 6)
    run = runs.launch(2, fault=f"{site}:rank={rank}:step={step}:restart=0=kill9", max_restarts=1)
    done = run.wait()
    assert done.code == 0, done.text
    assert done.text.count(f"rank {rank}: killed by signal 9 (SIGKILL) in phase ") == 1
    said = done.text.index(f"rank {rank}: killed by signal 9")
    assert "Traceback" not in done.text[:said], "the first cause comes first"
    assert "the run failed with exit code 1; it starts again from its last valid checkpoint" in done.text
    assert f"continuing {runs.output}/checkpoint-4 after step 4" in done.text
    check_ended(run, done)
    assert runs.hashes(NUM_STEPS) == golden_of_two.hashes(NUM_STEPS)


def test_f23_ranks_that_torchrun_itself_starts_again_go_on_in_the_folder_of_the_run(runs):
    """The fault comes at each start, so the second one ends it; the first left addresses in torchrun's store."""
    done = runs.torchrun(
        2,
        fault="opt:rank=1:step=6=exit=3",
        resume_from_checkpoint="auto",
        add_output_dir_suffix="true",
    )
    assert done.code == 1, done.text
    (folder,) = runs.output.glob("*/*")
    assert f"continuing {folder}/checkpoint-4 after step 4" in done.text


def leftovers(runs):
    """Return what a run that has ended left in the temporary folder and, beside whole checkpoints, in its own."""
    temporary = [path.name for path in runs.folder.glob("swiftlet-*")]
    return temporary + runs.drafts() + [path.name for path in runs.output.glob(".lock")]


@pytest.mark.parametrize("name, number", [("torchrun", 9), ("rank", 9), ("rank", 3), ("launcher", 3)])
def test_f23_processes_that_are_killed_in_a_save_leave_nothing_but_checkpoints(runs, name, number):
    """Half a checkpoint of a large model fills a disk; the launcher, which lives on, removes it."""
    run = runs.launch(2, fault="ckpt.fsync:rank=0:step=8=sleep=600")
    beats = run.wait_for_step(9, 2)
    assert leftovers(runs) != []
    torchrun = int(Path(f"/proc/{beats[0]['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    pids = {"torchrun": torchrun, "rank": beats[0]["pid"], "launcher": run.process.pid}
    os.kill(pids[name], number)
    done = run.wait(120)
    assert done.code == (128 + number if name == "launcher" else 1), done.text
    assert "--resume_from_checkpoint auto goes on from the last checkpoint" in done.text
    check_ended(run, done)
    assert leftovers(runs) == [], done.text
    assert runs.valid_steps() == [4]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_f24_a_crashed_rank_ends_the_run(runs, golden_of_two, number):
    name, signed = (("segv", "SIGSEGV"), ("exit=3", ""))[number % 2]
    run = runs.launch(2, fault=f"fwd:rank=0:step=6={name}")
    done = run.wait()
    assert done.code == 1
    if signed:
        assert "rank 0: killed by signal 11 (SIGSEGV) in phase step, step 6" in done.text
    check_ended(run, done)
    check_resumed(runs, golden_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_f25_the_traceback_of_the_rank_that_failed_first_is_printed_first_and_once(runs, number):
    run = runs.launch(2, fault=f"fwd:rank={number % 2}:step=6=exc")
    done = run.wait()
    assert done.code == 1
    assert done.text.count("Traceback (most recent call last)") == 1, done.text
    assert done.text.count("RuntimeError: injected at fwd") == 1
    assert f"rank {number % 2}: Traceback" in done.text
    assert f"then rank {1 - number % 2}: " in done.text
    check_ended(run, done)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f26_a_stopped_rank_is_named_with_all_stacks_and_the_group_is_ended(runs, golden_of_two, number):
    rank = number % 2
    run = runs.launch(2, fault=f"bwd:rank={rank}:step=6=stop", hang_timeout=8)
    done = run.wait()
    assert done.code == 1
    named = f"rank {rank} shows no progress for "
    assert done.text.count(named) == 1
    assert f"stacks of rank {rank}:" in done.text
    assert f"stacks of rank {1 - rank}:" in done.text
    assert done.text.count(STACK) >= 2
    assert "(limit 8 s): it was stopped, by SIGSTOP or a debugger; the run is ended" in done.text
    check_ended(run, done)
    if number == 0:
        check_resumed(runs, golden_of_two)


@pytest.mark.slow
def test_f26_a_rank_that_is_stopped_while_a_checkpoint_is_begun_is_named(runs):
    done = runs.launch(2, fault="ckpt.begin:rank=1:step=4=stop", hang_timeout=6).wait(120)
    assert done.code == 1
    assert "rank 1 shows no progress for " in done.text
    assert "(limit 6 s): it was stopped, by SIGSTOP or a debugger; the run is ended" in done.text


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_f27_a_rank_that_falls_behind_is_named_by_its_step(runs, number):
    rank = number % 2
    run = runs.launch(
        2, fault=f"data.next:rank={rank}:step=6=sleep=600", dataloader_num_workers=0, hang_timeout=8
    )
    done = run.wait()
    assert done.code == 1
    assert f"rank {rank} shows no progress for " in done.text
    check_ended(run, done)


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(2))
def test_f22_a_rank_that_gets_no_data_after_a_save_is_named(runs, rank):
    run = runs.launch(2, fault=f"data.next:rank={rank}:step=5=sleep=600", hang_timeout=8)
    done = run.wait()
    assert done.code == 1
    assert f"rank {rank} shows no progress for " in done.text
    assert "in phase step, step 5 " in done.text
    check_ended(run, done)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_f27_a_long_evaluation_or_save_is_legal(runs, golden, number):
    site = ("eval:nth=1", "ckpt.fsync:step=8")[number % 2]
    run = runs.launch(fault=f"{site}=sleep=6", hang_timeout=3)
    done = run.wait()
    assert done.code == 0, done.text
    assert runs.hashes(NUM_STEPS) == golden.hashes(NUM_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_f28_a_rank_that_spins_is_named_by_the_process_that_watches(runs, number):
    run = runs.launch(fault=f"opt:step={5 + number % 3}=spin", hang_timeout=3)
    done = run.wait()
    assert done.code == 1
    assert "rank 0 shows no progress for " in done.text
    assert "stacks of rank 0:" in done.text
    assert STACK in done.text
    check_ended(run, done)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_f29_sigterm_to_the_launcher_at_any_instant(runs, golden_of_two, number):
    run = runs.launch(2)
    if number % 2:
        run.wait_for_step(1 + number % 9, 2)
    else:
        time.sleep(random.Random(number).uniform(0, golden_of_two.seconds or 20))
    run.process.send_signal(signal.SIGTERM)
    done = run.wait()
    assert done.code in (0, 143, -signal.SIGTERM), done.text
    check_ended(run, done)
    if number % 2 and done.code == 143:
        assert " is saved" in done.text
    check_resumed(runs, golden_of_two)


def test_f29_a_notice_that_a_scheduler_gives_to_every_process_is_one_request(runs, golden_of_two):
    run = runs.launch(2)
    run.wait_for_step(2, 2)
    for pid in run.left():
        os.kill(pid, signal.SIGUSR1)
    done = run.wait()
    assert done.code == 128 + signal.SIGUSR1, done.text
    assert done.text.count(" is saved\nhint: continue with the same command") == 1
    check_ended(run, done)
    check_resumed(runs, golden_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_a_killed_launcher_leaves_no_orphan(runs, golden_of_two, number):
    run = runs.launch(2)
    run.wait_for_step(2 + number, 2)
    os.kill(run.process.pid, signal.SIGKILL)
    done = run.wait()
    until = time.monotonic() + 60
    while run.left() and time.monotonic() < until:
        time.sleep(0.2)
    assert run.left() == []
    assert done.code == -signal.SIGKILL
    check_resumed(runs, golden_of_two)


ENGINES = ({"deepspeed": "default-zero2"}, {"deepspeed": "default-zero3"}, {"fsdp": "full_shard"})


@pytest.mark.parametrize(
    "engine",
    [{}, *(pytest.param(one, marks=pytest.mark.slow) for one in ENGINES)],
    ids=lambda e: "".join(e.values()),
)
def test_f15_a_disk_that_is_full_on_one_rank_costs_a_warning(runs, engine):
    """The other rank has begun the same save: both give it up, and no collective is left half way."""
    runs.options |= {"sft_type": "full", **engine}
    whole = runs.another("whole")
    assert {done.code for done in whole.run_ranks(2)} == {0}
    ranks = runs.run_ranks(2, fault="ckpt.begin:rank=1:step=4=enospc")
    assert [done.code for done in ranks] == [0, 0], ranks[0].text
    assert "checkpoint-4 could not be written: rank 1: No space left on device" in ranks[0].text
    assert runs.drafts() == []
    assert runs.hashes(NUM_STEPS)["model.safetensors"] == whole.hashes(NUM_STEPS)["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: "-".join(engine.values()))
def test_f33_a_sharded_run_continues_on_another_number_of_ranks_without_its_engine(runs, engine, kind):
    same = {"sft_type": kind, **({"lora_dropout_p": 0.0} if kind == "lora" else {})}
    whole = runs.another("whole", **same)
    assert {done.code for done in whole.run_ranks(2)} == {0}
    part = runs.another("part", **same)
    ranks = part.run_ranks(2, fault="fwd:rank=0:step=5=term", **engine)
    assert [done.code for done in ranks] == [143, 143], ranks[0].text
    done = part.run(resume_from_checkpoint="auto", gradient_accumulation_steps=2)
    assert done.code == 0, done.text
    assert part.losses() == pytest.approx(whole.losses(), rel=1e-5)


@pytest.mark.parametrize("engine", [ENGINES[1], pytest.param(ENGINES[2], marks=pytest.mark.slow)])
def test_a_sharded_run_stopped_in_an_evaluation_makes_it_when_it_goes_on(runs, engine):
    """Its first forward pass is then one without gradients, after which weights are gathered for a checkpoint."""
    runs.options |= {"sft_type": "full", **engine}
    whole = runs.another("whole")
    assert [done.code for done in whole.run_ranks(2)] == [0, 0]
    stopped = runs.run_ranks(2, fault="eval.batch:rank=1:nth=2=term")
    assert [done.code for done in stopped] == [143, 143], stopped[0].text
    assert "FutureWarning" not in stopped[0].text, (
        "DeepSpeed calls collectives by former names, in every step"
    )
    assert not [line for line in runs.log_lines() if line["global_step"] == 8 and "eval_loss" in line]
    resumed = runs.run_ranks(2, resume_from_checkpoint="auto")
    assert [done.code for done in resumed] == [0, 0], resumed[0].text
    assert runs.log_lines() == whole.log_lines()
    assert runs.hashes(NUM_STEPS) == whole.hashes(NUM_STEPS)
