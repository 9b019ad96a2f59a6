"""F09 to F15: checkpoints that are damaged, cut, missing, mixed, and disks that are full."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time

import pytest
from cases import NUM_STEPS, check_golden, repeat

from swiftlet.train.manifest import NAME as MANIFEST

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def broken(runs, stopped_at_8):
    """A stopped run with checkpoints 4 and 8."""
    shutil.copytree(stopped_at_8, runs.output)
    return runs


def files(runs):
    """Return the files of the newest checkpoint that its manifest names."""
    folder = runs.output / "checkpoint-8"
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def check_passed_over(runs, golden, name):
    """Check that the run goes on from step 4, that the file is named, and that it ends like the golden one."""
    done = runs.run(resume_from_checkpoint="auto")
    assert done.code == 0, done.text
    assert f"checkpoint passed over: {runs.output}/checkpoint-8: {name}" in done.text
    assert f"continuing {runs.output}/checkpoint-4 after step 4" in done.text
    assert runs.hashes(NUM_STEPS) == golden.hashes(NUM_STEPS)
    return done.text


@pytest.mark.parametrize("number", repeat(2, 40))
def test_f09_a_flipped_bit_is_noticed(broken, golden, number):
    order = random.Random(number)
    path = files(broken)[number % len(files(broken))]
    content = bytearray(path.read_bytes())
    content[order.randrange(len(content))] ^= 1 << order.randrange(8)
    path.write_bytes(content)
    text = check_passed_over(broken, golden, path.name)
    assert "has sha256 " in text
    assert ", expected " in text


@pytest.mark.parametrize("number", repeat(2, 40))
def test_f10_a_cut_empty_or_missing_file_is_noticed(broken, golden, number):
    path = files(broken)[number % len(files(broken))]
    size = path.stat().st_size
    if number % 3 == 0:
        path.unlink()
        reason = f"{path.name} is missing"
    else:
        left = random.Random(number).randrange(size) if number % 3 == 1 else 0
        path.write_bytes(path.read_bytes()[:left])
        reason = f"{path.name} has {left} bytes, expected {size}"
    check_passed_over(broken, golden, reason)


@pytest.mark.parametrize("number", repeat(1, 20))
def test_f11_a_tail_of_zeros_is_noticed(broken, golden, number):
    path = broken.output / "checkpoint-8" / WEIGHTS
    content = path.read_bytes()
    kept = random.Random(number).randrange(len(content) // 2, len(content) - 64)
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    check_passed_over(broken, golden, f"{WEIGHTS} has sha256 ")


@pytest.mark.parametrize(
    "text",
    [
        None,
        *(
            pytest.param(text, marks=pytest.mark.slow)
            for text in ("", "{", "[]", "null", '{"format": 1}', '{"format": 2}', "\x00" * 400, "{}", "[[[[")
        ),
    ],
)
def test_f12_a_manifest_that_is_missing_or_nonsense_is_no_manifest(broken, golden, text):
    path = broken.output / "checkpoint-8" / MANIFEST
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    check_passed_over(broken, golden, MANIFEST)


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f13_no_valid_checkpoint_at_all_is_an_error_not_a_fresh_start(broken, number):
    for step in (4, 8):
        (broken.output / f"checkpoint-{step}" / WEIGHTS).unlink()
    done = broken.run(resume_from_checkpoint="auto")
    assert done.code == 3
    assert "no checkpoint is valid" in done.text
    assert done.text.count(f"{WEIGHTS} is missing") >= 2
    assert not (broken.output / "checkpoint-12").exists()


@pytest.mark.parametrize("number", repeat(1, 10))
def test_f14_a_file_of_another_step_is_noticed(broken, golden, number):
    name = (WEIGHTS, "optimizer-00001.safetensors", "trainer_state.json")[number % 3]
    shutil.copyfile(broken.output / "checkpoint-4" / name, broken.output / "checkpoint-8" / name)
    check_passed_over(broken, golden, name)


SAVE_FAULTS = ("ckpt.begin", "ckpt.fsync", "ckpt.manifest", f"ckpt.file.{WEIGHTS}")


@pytest.mark.parametrize("number", repeat(2, 20))
def test_f15_a_disk_that_is_full_for_a_while_costs_a_warning(runs, golden, number):
    site, action = SAVE_FAULTS[number % 4], ("enospc", "eio")[number // 4 % 2]
    done = runs.run(fault=f"{site}:step=4={action}", save_total_limit=-1)
    assert done.code == 0, done.text
    reason = {"enospc": "No space left on device", "eio": "Input/output error"}[action]
    assert f"checkpoint-4 could not be written: {reason}; earlier checkpoints are intact" in done.text
    assert runs.drafts() == []
    assert 4 not in runs.valid_steps()
    assert runs.hashes(NUM_STEPS)[WEIGHTS] == golden.hashes(NUM_STEPS)[WEIGHTS]


@pytest.mark.parametrize("number", repeat(1, 5))
def test_f15_a_full_disk_stops_the_run_where_that_is_asked_for(runs, golden, number):
    site = SAVE_FAULTS[number % 4]
    done = runs.run(fault=f"{site}:step=8=enospc", on_save_error="stop")
    assert done.code == 5, done.text
    assert "checkpoint-8 could not be written: No space left on device" in done.text
    assert runs.valid_steps() == [4]
    assert runs.drafts() == []
    check_golden(runs, golden)


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_f15_a_base_model_that_is_gone_for_a_while_costs_a_warning(runs, golden, model_folder, name):
    """Saves copy from its folder; one without the tokenizer would be sealed as whole and replace those that have it."""
    base, aside = runs.folder / "base", runs.folder / "aside"
    shutil.copytree(model_folder, base)
    run = runs.start(model_id_or_path=base, fault="opt:step=7=sleep=3;opt:step=11=sleep=3")
    wait_until(lambda: 6 in runs.losses())
    (base / name).rename(aside)
    wait_until(lambda: "checkpoint-8 could not be written" in run.output.read_text("utf-8"))
    aside.rename(base / name)
    done = run.wait()
    assert done.code == 0, done.text
    said = f"{base / name} is gone" if name else f"{base} is not a folder"
    assert f"checkpoint-8 could not be written: {said}; earlier checkpoints are intact" in done.text
    assert f"meanwhile put back the base model's folder {base}" in done.text
    assert runs.drafts() == []
    mine, whole = runs.hashes(NUM_STEPS), golden.hashes(NUM_STEPS)
    assert mine.keys() == whole.keys()
    assert mine[WEIGHTS] == whole[WEIGHTS]


def test_f15_a_base_model_that_stays_away_ends_the_run_with_what_to_do(runs, model_folder):
    base = runs.folder / "base"
    shutil.copytree(model_folder, base)
    run = runs.start(model_id_or_path=base, fault="opt:step=7=sleep=3", sft_type="full")
    wait_until(lambda: 6 in runs.losses())
    shutil.rmtree(base)
    done = run.wait()
    assert done.code == 5, done.text
    assert f"checkpoint-{NUM_STEPS} could not be written: {base} is not a folder" in done.text
    assert "from which each save copies, then --resume_from_checkpoint auto" in done.text
    assert runs.valid_steps() == [4]
    assert runs.drafts() == []


def test_f48_a_folder_that_is_removed_while_its_run_goes_on_is_one_of_a_run_again(runs, golden):
    run = runs.start(fault="opt:step=7=sleep=3")
    wait_until(lambda: 6 in runs.losses())
    shutil.rmtree(runs.output)
    done = run.wait()
    assert done.code == 0, done.text
    assert f"{runs.output} was removed: it is made again; what it held is gone" in done.text
    assert json.loads((runs.output / "sft_args.json").read_text("utf-8"))["output_dir"] == str(runs.output)
    assert runs.valid_steps() == [8, 12]
    assert runs.hashes(NUM_STEPS)[WEIGHTS] == golden.hashes(NUM_STEPS)[WEIGHTS]


def wait_until(holds, timeout_s=120.0):
    until = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    assert holds()


def test_f16_a_disk_without_a_free_byte_is_found_before_the_model_is_loaded(runs):
    runs.output.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(runs.output)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={runs.output / 'zeros'}"], capture_output=True, check=False
        )
        done = runs.run()
        assert done.code == 2, done.text
        assert f"error: {runs.output} cannot be written: No space left on device" in done.text
        assert [path.name for path in runs.output.iterdir()] == ["zeros"]
    finally:
        subprocess.run(["umount", str(runs.output)], check=True)


def test_f15_a_file_system_of_8_mb(runs, golden):
    runs.output.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(runs.output)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        done = runs.run()
        assert done.code == 5, done.text
        assert "MiB are free on" in done.text
        assert runs.drafts() == []
    finally:
        subprocess.run(["umount", str(runs.output)], check=True)
