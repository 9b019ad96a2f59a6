"""`swift sft` in this process on a simulated NPU: the losses of a CPU, one wait a step, and no silent substitute."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swiftlet.commands.plan_flags import setting_of
from swiftlet.config.args import SftArgs
from swiftlet.config.parse import parse_mapping
from swiftlet.models.families import EMBEDDED
from swiftlet.models.geometry import geometry_of_config
from swiftlet.models.safety import read_config
from swiftlet.plan.memory import estimate

pytestmark = pytest.mark.npu_sim
WITHOUT = {"use_flash_attn": "false", "fused_operators": "false"}


@pytest.fixture
def fine_tune(tmp_path, monkeypatch):
    """Run sft on the embedded model; returns the lines of its log."""
    import torch_npu  # noqa: F401  (before a run on the CPU: see the last test)

    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))

    def run(folder: str, **options):
        from swiftlet import sft

        settings = {
            "model_type": "tiny-math-chat",
            "dataset": "demo-math-zh#120",
            "dtype": "fp32",
            "output_dir": str(tmp_path / folder),
            "add_output_dir_suffix": False,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "lora_dropout_p": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "evaluation_strategy": "no",
            "bind_cpu": False,
        }
        if options.get("sft_type") == "full":
            del settings["lora_dropout_p"]
        outcome = sft(**settings | options)
        return [
            json.loads(line)
            for line in (Path(outcome.output_dir) / "logging.jsonl").read_text("utf-8").splitlines()
        ]

    return run


def losses(lines) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_losses_equal_those_of_the_cpu_with_fused_operators_and_without(fine_tune, sft_type):
    expected = losses(fine_tune("cpu", device="cpu", sft_type=sft_type))
    assert losses(fine_tune("fused", sft_type=sft_type)) == pytest.approx(expected, abs=1e-5)
    assert losses(fine_tune("plain", sft_type=sft_type, **WITHOUT)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch_npu_fused"])
def test_the_fused_optimizers_follow_the_plain_one(fine_tune, optim):
    expected = losses(fine_tune("plain"))
    assert losses(fine_tune(optim, optim=optim)) == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def traces(monkeypatch):
    """What every step after the first two asked of the card."""
    from simnpu.trace import trace

    from swiftlet.train import loop

    found, make_step = [], loop.make_step

    def traced(*arguments):
        with trace() as counts:
            answer = make_step(*arguments)
        found.append(counts)
        return answer

    monkeypatch.setattr(loop, "make_step", traced)
    return found


@pytest.mark.parametrize("sft_type", ["lora", "full"])
@pytest.mark.parametrize("micro_batch_tokens", [None, 400])
def test_a_step_waits_once_for_its_card(fine_tune, traces, sft_type, micro_batch_tokens):
    fine_tune("run", sft_type=sft_type, micro_batch_tokens=micro_batch_tokens)
    parts = 1 if micro_batch_tokens is None else 3
    for counts in traces[2:]:
        assert counts.waits == 1, counts  # the figures of the log
        assert counts.copies["d2h"] == 1
        assert counts.copies["h2d"] >= 4 * parts  # tokens, positions, and which of them are trained on what


def test_fused_operators_are_the_ones_that_run(fine_tune, traces):
    fine_tune("run")
    counts = traces[-1].operators
    layers = 5
    assert counts["npu::npu_fusion_attention"] == layers
    assert counts["npu::npu_rms_norm"] == 2 * layers + 1
    assert counts["npu::npu_rotary_mul"] == 2 * layers
    assert counts["npu::npu_swiglu"] == layers
    assert "npu::npu_fusion_attention_grad" in counts


def test_an_npu_run_never_opens_another_kind_of_device(fine_tune):
    fine_tune("run", max_steps=1)
    assert "swiftlet.device.cuda" not in sys.modules


@pytest.mark.parametrize("changes", [{}, {"lora_target_modules": "ALL"}, {"sft_type": "full"}], ids=str)
def test_a_step_takes_what_the_plan_says_of_operators_that_keep_what_they_are_given(fine_tune, changes):
    import torch

    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    summary = fine_tune("run", dtype="bf16", max_steps=2, share_prefixes="false", **changes)[-1]
    # Never too low; too high by the logits of tokens without a label, most of this vocabulary's peak.
    assert 0.97 < summary["predicted_needed_gib"] / summary["memory_gib"] < 1.35
    args = parse_mapping(SftArgs, changes).args
    geometry = geometry_of_config(read_config(EMBEDDED["tiny-math-chat"]))
    tokens, labels = (summary[name] // 2 for name in ("num_tokens", "num_label_tokens"))
    setting = replace(setting_of(args, geometry, 1, 2), tokens=tokens, labels=labels, keeps_inputs=True)
    assert estimate(geometry, setting).needed / 2**30 == pytest.approx(summary["memory_gib"], rel=0.1)


def test_memory_in_the_log_is_the_peak_of_torch_npus_allocator(fine_tune):
    import torch

    torch.npu.reset_peak_memory_stats()
    lines = fine_tune("run", max_steps=1, sft_type="full", batch_size=16)
    peak = torch.npu.max_memory_allocated() / 2**30
    (step,) = [line["memory_gib"] for line in lines if "loss" in line]
    summary = lines[-1]
    assert step == summary["memory_gib"] == pytest.approx(peak, rel=1e-6) and peak > 0.05
    # of the card's 64 GiB the allocator holds what the simulated runtime has given out
    assert summary["reserved_gib"] == pytest.approx(torch.npu.max_memory_reserved() / 2**30, rel=1e-3)
    assert summary["visible_gib"] > peak


def test_a_library_of_another_device_is_refused_for_collectives(machine):
    line = "swift sft --model_type tiny-math-chat --dataset demo-math-zh#50 --max_steps 1 --ddp_backend nccl"
    done = machine.type(line, NPROC_PER_NODE="2")
    assert done.returncode not in (0, -9)
    assert "NPUs need hccl" in done.stdout


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_card_that_fails_in_the_middle_ends_the_run_with_an_exit_code(machine, processes):
    line = (
        "swift sft --model_type tiny-math-chat --dataset demo-math-zh#200 --max_steps 50 --output_dir broken"
    )
    done = machine.type(
        line, NPROC_PER_NODE=processes, NPUSIM_FAULT="aclrtSynchronizeStreamWithTimeout@0+60=507015"
    )
    assert done.returncode == 1, done.stdout[-3000:]
    assert "507015" in done.stdout


def test_a_full_card_ends_the_run_with_its_own_exit_code(machine):
    line = "swift sft --model_type tiny-math-chat --dataset demo-math-zh#200 --max_steps 5 --output_dir full"
    done = machine.type(line, NPUSIM_MEMORY_GB="0.004")
    assert done.returncode == 7, done.stdout[-3000:]


def test_a_busy_card_is_named_before_the_model_is_loaded(machine):
    line = "swift sft --model_type tiny-math-chat --dataset demo-math-zh#50 --max_steps 1 --output_dir busy"
    done = machine.type(line, ASCEND_RT_VISIBLE_DEVICES="3", NPUSIM_FAULT="busy@3;Alarm@3;busy@5")
    named, loaded = done.stdout.index("NPU 3 (NPU3) is busy"), done.stdout.find("trainable params")
    assert named < loaded or loaded < 0
    assert "has health Alarm" in done.stdout and "NPU 5" not in done.stdout


def test_a_run_without_its_cards_never_falls_to_the_cpu(machine):
    line = "swift sft --model_type tiny-math-chat --dataset demo-math-zh#50 --max_steps 1 --output_dir none"
    done = machine.type(line, ASCEND_RT_VISIBLE_DEVICES="3,2")
    assert done.returncode == 2 and "is not in ascending order" in done.stdout
    done = machine.type(line, NPUSIM_FAULT=";".join(f"lost@{card}" for card in range(8)))
    assert done.returncode not in (0, 2) and "(cpu" not in done.stdout


def test_gradients_before_torch_npu_are_named(machine):
    code = (
        "import sys, torch\n"
        "torch.ones(1, requires_grad=True).sum().backward()\n"
        "assert 'torch_npu' not in sys.modules\n"
        "from swiftlet import sft\n"
        "sft(model_type='tiny-math-chat', dataset='demo-math-zh#50', max_steps=1, save_strategy='no', device='npu',"
        " output_dir='first')\n"
    )
    done = machine.type(f'python -c "{code}"', TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode != 0
    assert "this process computed gradients before torch_npu was imported" in done.stdout, done.stdout[-3000:]
    assert "hint: start another process" in done.stdout
