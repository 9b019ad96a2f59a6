"""F16 to F22, F24, F25, F47, F48: numbers that are not finite, memory, folders and logs that cannot be used."""

from __future__ import annotations

import json
import math
import signal
import time

import pytest
from cases import NUM_STEPS, check_golden, repeat


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null/run"])
def test_f16_a_folder_that_cannot_be_written_is_found_before_the_model_is_loaded(runs, folder):
    done = runs.run(output_dir=folder)
    assert done.code == 2
    assert f"error: {folder}" in done.text or f"error: --output_dir {folder}" in done.text, done.text
    assert "model from" not in done.text


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f17_a_loss_that_is_not_finite_stops_before_the_update(runs, golden, number):
    step = 5 + number % 4
    done = runs.run(fault=f"fwd:step={step}=nan")
    assert done.code == 6
    assert f"the loss of step {step} is not finite; nothing was updated. rank 0, rows " in done.text
    assert "rows.jsonl:" in done.text
    assert runs.valid_steps() == [4]
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f17_all_ranks_stop_alike_and_name_the_rank(runs, golden_of_two, number):
    ranks = runs.run_ranks(2, fault=f"fwd:rank={number % 2}:step=6=nan")
    assert [done.code for done in ranks] == [6, 6], ranks[0].text
    assert all(f"nothing was updated. rank {number % 2}, rows " in done.text for done in ranks)
    assert runs.valid_steps() == [4]
    assert runs.hashes(4)["adapter_model.safetensors"]
    assert all(done.code == 0 for done in runs.run_ranks(2, resume_from_checkpoint="auto"))
    assert runs.hashes(NUM_STEPS) == golden_of_two.hashes(NUM_STEPS)


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f18_a_gradient_that_is_not_finite_names_its_parameter(runs, golden, number):
    done = runs.run(fault=f"bwd:step={5 + number % 4}=inf")
    assert done.code == 6
    assert f"the gradient of step {5 + number % 4} is not finite; nothing was updated." in done.text
    assert "parameter " in done.text
    assert "lora_" in done.text
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 10))
def test_f19_a_spike_is_skipped_and_counted_or_stops_the_run(runs, number):
    options = {"max_steps": 20, "eval_steps": 10, "save_steps": 10, "seed": 42 + number}
    done = runs.run(fault="bwd:step=18=spike=1000", spike_policy="skip", **options)
    assert done.code == 0, done.text
    assert "step 18 was skipped: gradient norm " in done.text
    last = json.loads((runs.output / "logging.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["num_skipped_steps"] == 1
    stopped = runs.another("stopped").run(fault="bwd:step=18=spike=1000", spike_policy="stop", **options)
    assert stopped.code == 6
    assert "of step 18 is a spike" in stopped.text


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f20_a_row_that_teaches_nothing_is_counted_and_changes_nothing(runs, rows_file, number):
    runs.folder.mkdir(parents=True)
    lines = rows_file.read_text("utf-8").splitlines()
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "loss": False}]
    edited = runs.folder / "rows.jsonl"
    lines.insert(7 * number, json.dumps({"messages": turns}))
    edited.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = runs.run(dataset=edited, bad_rows="skip", max_bad_fraction=0.1)
    assert done.code == 0, done.text
    assert "no_label_tokens" in done.text
    whole = runs.another("whole")
    assert whole.run(fault="").code == 0
    assert all(math.isfinite(loss) for loss in runs.losses().values())
    assert runs.losses() == whole.losses(), "the rows that are left are the same"
    refused = runs.another("refused").run(dataset=edited)
    assert refused.code == 4
    assert f"rows.jsonl:{7 * number + 1}" in refused.text


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f21_a_loader_worker_that_fails_ends_the_run_with_its_reason(runs, golden, number):
    done = runs.run(fault=f"data.next:step={2 + number % 10}=exc", dataloader_num_workers=1 + number % 2)
    assert done.code == 1
    assert done.text.count("RuntimeError: injected at data.next") == 1
    assert "in _work" in done.text, "the traceback is that of the worker"
    assert done.seconds < 60
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f22_a_loader_that_hangs_is_ended_by_the_watchdog(runs, golden, number):
    run = runs.launch(fault="data.next:step=3=sleep=600", dataloader_num_workers=number % 2, hang_timeout=3)
    done = run.wait()
    assert done.code == 1
    assert "rank 0 shows no progress for " in done.text
    assert "in phase step, step " in done.text
    assert "in fault" in done.text, "the stacks show where it waits"
    assert run.left() == []
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f47_too_little_memory_names_remedies_and_leaves_a_checkpoint(runs, golden, number):
    step = (1, 6)[number % 2]
    done = runs.run(fault=f"fwd:step={step}=oom")
    assert done.code == 7
    assert f"out of memory at step {step}" in done.text
    assert "hint: type --micro_batch_tokens" in done.text
    assert runs.valid_steps() in (
        [[], [4]] if step == 6 else [[]]
    )  # a save that was still being written is lost
    check_golden(runs, golden)


def test_f47_a_remedy_that_is_another_engine_says_what_to_leave_out(runs):
    done = runs.run(fault="fwd:step=2=oom", deepspeed="default-zero2")
    assert done.code == 7
    assert "hint: leave out --deepspeed and type --micro_batch_tokens" in done.text


@pytest.mark.parametrize("number", repeat(1, 3))
def test_f48_logs_that_go_away_cost_a_warning(runs, golden, number):
    runs.output.mkdir(parents=True)
    (runs.output / "runs").write_text("a file in the way of the events")
    run = runs.start(report_to="tensorboard", fault="data.next:step=6=sleep=1")
    until = time.monotonic() + 120
    while 2 not in runs.losses() and time.monotonic() < until:
        time.sleep(0.02)
    (runs.output / "logging.jsonl").unlink()
    done = run.wait()
    assert done.code == 0, done.text
    assert done.text.count("cannot be written: ") == 1
    assert (
        runs.hashes(NUM_STEPS)["adapter_model.safetensors"]
        == (golden.hashes(NUM_STEPS)["adapter_model.safetensors"])
    )


@pytest.mark.parametrize("number", repeat(1, 3))
def test_f25_a_bug_leaves_a_traceback_and_the_checkpoint_before(runs, golden, number):
    done = runs.run(fault=f"opt:step={6 + number}=exc")
    assert done.code == 1
    assert done.text.count("RuntimeError: injected at opt") == 1
    check_golden(runs, golden)


@pytest.mark.parametrize("number", repeat(1, 3))
@pytest.mark.parametrize("action, code", [("segv", -signal.SIGSEGV), ("exit=9", 9)])
def test_f24_a_crash_of_the_interpreter_leaves_the_checkpoint_before(runs, golden, action, code, number):
    done = runs.run(fault=f"opt:step={6 + number}={action}")
    assert done.code == code
    assert runs.valid_steps() in ([], [4])  # a save that was still being written is lost
    check_golden(runs, golden)


@pytest.mark.parametrize("error", ["enospc", "eio"])
def test_f48_a_disk_that_takes_no_line_for_a_while_costs_a_warning(runs, golden, error):
    done = runs.run(fault=f"log:nth=3={error}")
    assert done.code == 0, done.text
    assert done.text.count("logging.jsonl cannot be written: ") == 1
    missing = [line for line in golden.log_lines() if line not in runs.log_lines()]
    assert len(missing) == 1 and len(runs.log_lines()) == len(golden.log_lines()) - 1
    assert runs.hashes(NUM_STEPS) == golden.hashes(NUM_STEPS)
