"""F05, F06, F29 to F31: kills and requests to stop at any instant. A resumed run ends like the golden one."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import sys
import time

import pytest
from cases import SAVE_STEPS, check_golden, repeat

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer-00001.safetensors",
    "sft_args.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
)
SITES = ("begin", *(f"file.{name}" for name in FILES), "fsync", "manifest", "rename", "prune")
QUICK = ("begin", "file.adapter_model.safetensors", "manifest", "rename", "prune")


@pytest.mark.parametrize("number", repeat(1, 10))
@pytest.mark.parametrize(
    "site", [site if site in QUICK else pytest.param(site, marks=pytest.mark.slow) for site in SITES]
)
def test_f05_a_kill_at_any_place_of_a_save_leaves_the_checkpoint_before(runs, golden, site, number):
    step = (8, 12, 4)[number % 3] if site != "prune" else (8, 12)[number % 2]
    limit = 1 if site == "prune" else 2
    killed = runs.run(fault=f"ckpt.{site}:step={step}=kill9", save_total_limit=limit)
    assert killed.code == -signal.SIGKILL, killed.text
    is_named = site in ("rename", "prune")
    newest = step if is_named else step - SAVE_STEPS
    assert runs.valid_steps()[-1:] == ([newest] if newest else [])
    check_golden(runs, golden, save_total_limit=limit)


@pytest.mark.parametrize("number", repeat(6, 200))
def test_f06_a_kill_at_any_instant_costs_no_more_than_the_steps_since_the_last_save(runs, golden, number):
    run = runs.start(resume_from_checkpoint="auto")
    run.kill_after(random.Random(number).uniform(0, golden.seconds))
    code = run.wait().code
    assert code in (0, -signal.SIGKILL)
    steps, valid = runs.losses(), runs.valid_steps()
    lost = max(steps, default=0) - max(valid, default=0)
    assert lost <= SAVE_STEPS, (lost, valid, runs.drafts())
    check_golden(runs, golden)


@pytest.mark.parametrize("ranks", [1, 2])
def test_f06_a_slow_save_is_waited_for_before_a_kill_could_cost_more(runs, golden, golden_of_two, ranks):
    started = runs.start_ranks(ranks, fault="ckpt.manifest:step=8=sleep=600")
    until = time.monotonic() + 120
    while not (max(runs.losses(), default=0) >= 8 and runs.drafts()) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(2)
    for one in started:
        os.kill(one.pid, signal.SIGKILL)
    assert [one.wait().code for one in started] == [-signal.SIGKILL] * ranks
    assert (max(runs.losses()), runs.valid_steps()) == (8, [4])
    assert all(done.code == 0 for done in runs.run_ranks(ranks, resume_from_checkpoint="auto"))
    assert runs.hashes(12) == (golden if ranks == 1 else golden_of_two).hashes(12)


@pytest.mark.parametrize("number", repeat(3, 100))
def test_f29_sigterm_at_any_instant_saves_at_the_next_step(runs, golden, number):
    run = runs.start(resume_from_checkpoint="auto")
    run.kill_after(random.Random(number).uniform(0, golden.seconds), signal.SIGTERM)
    done = run.wait()
    assert done.code in (0, 143, -signal.SIGTERM), done.text
    if done.code == 143 and "after step" not in done.text:
        assert "stopped by signal 15" in done.text
        assert not runs.losses()
        assert not runs.valid_steps()
    elif done.code == 143:
        step = max(runs.losses())
        assert f"after step {step} of 12; checkpoint-{step} is saved" in done.text
        assert runs.valid_steps()[-1] == step
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f30_sigterm_to_one_rank_stops_all_at_one_step(runs, golden_of_two, number):
    rank, step = number % 2, 1 + number % 9
    ranks = runs.run_ranks(2, fault=f"bwd:rank={rank}:step={step}=term")
    assert [done.code for done in ranks] == [143, 143], ranks[0].text
    stop = step if step % SAVE_STEPS == 0 else step + 1  # ranks agree again after an evaluation
    assert all(f"stopped by signal 15 after step {stop}" in done.text for done in ranks)
    assert runs.valid_steps()[-1] == stop
    assert all(done.code == 0 for done in runs.run_ranks(2, resume_from_checkpoint="auto"))
    assert runs.hashes(12) == golden_of_two.hashes(12)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f30_sigterm_twice_ends_at_once(runs, golden, number):
    run = runs.start(fault="data.next:step=3=sleep=600", dataloader_num_workers=0)
    until = time.monotonic() + 120
    while 2 not in runs.losses() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(0.1)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(30).code == -signal.SIGTERM
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f30_sigterm_during_a_save_waits_for_it(runs, golden, number):
    done = runs.run(fault=f"ckpt.fsync:step=4=sleep=0.{1 + number % 9};fwd:step=5=term")
    assert done.code == 143, done.text
    assert runs.valid_steps() == [4, 6]
    assert runs.drafts() == []
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 60))
def test_f31_a_grace_shorter_than_a_save_leaves_the_checkpoint_before(runs, golden, number):
    run = runs.start(fault="fwd:step=5=term;ckpt.fsync:step=6=sleep=60")
    until = time.monotonic() + 120
    while not runs.drafts() and time.monotonic() < until or max(runs.losses(), default=0) < 6:
        time.sleep(0.02)
    time.sleep(random.Random(number).uniform(0, 0.5))
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait().code == -signal.SIGKILL
    assert runs.valid_steps() == [4]
    check_golden(runs, golden)


def test_a_terminal_that_closes_asks_for_a_save(tmp_path):
    run = tmp_path / "run"
    words = ["sft", "--model_type", "tiny-math-chat", "--dataset", "demo-math-zh#200", "--device", "cpu"]
    words += [
        "--max_steps",
        "5000",
        "--logging_steps",
        "1",
        "--evaluation_strategy",
        "no",
        "--save_steps",
        "5000",
    ]
    words += ["--output_dir", str(run), "--add_output_dir_suffix", "false", "--report_to", "none"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "swiftlet.cli", *words])
    shown = b""
    while b"[3/5000]" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    steps = [json.loads(line)["global_step"] for line in (run / "logging.jsonl").read_text().splitlines()]
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{max(steps)}"]
