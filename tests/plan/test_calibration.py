"""What is measured of a machine is kept and used; times follow the rates."""

import json
import os
from dataclasses import replace

import pytest

from swiftlet.cli import main
from swiftlet.commands.calibration import calibration_file, measured_here
from swiftlet.data.cutting import Schedule
from swiftlet.data.survey import largest_micro_batch, sampled_cuts, spread
from swiftlet.models.families import FAMILIES
from swiftlet.plan.cards import host_card, read_cards
from swiftlet.plan.setting import FULL, Setting
from swiftlet.plan.timing import Load, matrix_rate, micro_batch

G = FAMILIES["qwen1half-7b-chat"].geometry


def test_calibration_is_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path))
    monkeypatch.setattr("swiftlet.commands.calibration.MOVED_BYTES", 2**22)
    monkeypatch.setattr("swiftlet.commands.calibration.ROWS", (16, 64))
    assert main(["plan", "--calibrate", "--device", "cpu"]) == 0
    found = measured_here("cpu", os.environ)
    assert found["launch_us"] > 0
    assert found["bandwidth_gb_s"] > 0
    assert [rows for rows, _ in found["matrix_gflops"]] == [16, 64]
    assert json.loads(calibration_file(os.environ).read_text("utf-8")).keys() == {"cpu"}
    card = host_card(16, found)
    assert card.is_measured
    assert card.matrix_gflops[0][0] == 16


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cpu": {}}',
        '{"cpu": {"launch_us": "x", "bandwidth_gb_s": 1, "matrix_gflops": [[64, 1]], "date": "d"}}',
        '{"cpu": {"launch_us": 0, "bandwidth_gb_s": 1, "matrix_gflops": [[64, 1]], "date": "d"}}',
        '{"cpu": {"launch_us": 1, "bandwidth_gb_s": 1, "matrix_gflops": [], "date": "d"}}',
    ],
)
def test_damaged_measurements_are_a_mistake_that_says_what_to_type(tmp_path, monkeypatch, capsys, text):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path))
    path = calibration_file(os.environ)
    path.write_text(text, "utf-8")
    for words in (["--calibrate"], ["--model_type", "qwen1half-7b-chat", "--dataset", "blossom-math-zh"]):
        assert main(["plan", "--device", "cpu", *words]) == 2
        told = capsys.readouterr().err
        assert f"{path} holds no measurements of cpu" in told
        assert f"rm {path}; swift plan --calibrate" in told


def test_rates_between_measured_rows_are_interpolated():
    card = replace(host_card(16), matrix_gflops=((10, 1.0), (20, 3.0)))
    assert [matrix_rate(card, rows) / 1e9 for rows in (5, 10, 15, 20, 99)] == [1, 1, 2, 3, 3]


def test_a_host_that_launches_slowly_is_what_short_micro_batches_wait_for():
    card, setting = read_cards()["910B3"], Setting(itemsize=2, tokens=170, recompute=FULL)
    short = micro_batch(G, setting, card, Load(170, 100, 170**2), has_dropout=True)
    assert short.total == short.launch
    long = micro_batch(G, setting, card, Load(8192, 5000, 8192 * 170), has_dropout=True)
    assert long.total > long.launch


def test_a_processor_reads_its_weights_before_it_multiplies_and_adds_their_gradients():
    card, load = host_card(64), Load(16, 10, 16**2)
    setting = Setting(itemsize=4, tokens=16, is_host=True)
    found = micro_batch(G, setting, card, load, has_dropout=False)
    assert found.products > 2 * 4 * G.num_active_parameters / (card.bandwidth_gb_s * 1e9)
    slow_memory = replace(card, bandwidth_gb_s=card.bandwidth_gb_s / 2)
    assert micro_batch(G, setting, slow_memory, load, has_dropout=False).products > found.products
    full = micro_batch(G, replace(setting, is_full=True), card, load, has_dropout=False)
    added = 3 * 4 * G.num_parameters / (card.bandwidth_gb_s * 1e9)
    assert full.moving == pytest.approx(found.moving * 1.2 + added, rel=0.05)


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2", "zero3-offload"])
def test_sharding_costs_time(engine):
    card, load = read_cards()["910B3"], Load(170, 100, 170**2)
    plain = Setting(itemsize=2, tokens=170, world_size=4)
    alone = micro_batch(G, plain, card, load, has_dropout=True).total
    assert micro_batch(G, replace(plain, engine=engine), card, load, has_dropout=True).total > alone


def test_lengths_of_statistics_keep_mean_spread_and_ends():
    lengths = spread(10000, 169.3, 58.7, 35, 563)
    assert (lengths.min(), lengths.max(), len(lengths)) == (35, 563, 10000)
    assert lengths.mean() == pytest.approx(169.3, rel=0.01)
    assert lengths.std() == pytest.approx(58.7, rel=0.05)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("budget", [0, 300, 2000])
def test_the_largest_micro_batch_is_that_of_all_steps(budget, world_size):
    lengths = spread(200, 80, 40, 10, 250)
    schedule = Schedule(1, 8, 25, 50, budget, world_size)
    every = [
        int(lengths[samples].sum())
        for step in range(50)
        for part in schedule.cuts(lengths, schedule.rows(200, step))
        for samples in part
        if samples
    ]
    found = largest_micro_batch(lengths, schedule)
    assert found.num_tokens == int(lengths[found.samples].sum())
    assert 0.99 * max(every) <= found.num_tokens <= max(every)
    assert all(sampled_cuts(lengths, schedule))
