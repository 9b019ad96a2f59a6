"""What people type on a machine with NPUs, word for word, on simulated ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from page_commands import (
    CHECK,
    DEVICES,
    DOCTOR,
    HUGGING_FACE,
    INFER,
    INFER_CHECKPOINT,
    INFER_MERGED,
    MERGE,
    PLAN,
    SFT,
    SMI,
    TEN,
)

pytestmark = [pytest.mark.npu_sim, pytest.mark.xdist_group("swift")]
# Several simulated cards on two processors take minutes: the default run has DDP on four, the others are slow.
slow = pytest.mark.slow
DEFAULT = ("one lora", "four lora")


def folder_of(done) -> Path:
    """The run's folder, from its last lines."""
    assert done.returncode == 0, done.stdout[-4000:]
    return Path(re.search(r"last_model_checkpoint: (\S+)", done.stdout)[1]).parent


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "logging.jsonl").read_text("utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def with_checkpoint(line: str, machine) -> str:
    (checkpoint,) = folder_of(machine.once(SFT["one lora"])).glob("checkpoint-*[0-9]")
    return line.replace("xxx/checkpoint-xxx", str(checkpoint))


def test_the_check_of_the_installation(machine):
    done = machine.type(CHECK)
    assert done.returncode == 0, done.stdout
    assert re.search(r"True\n8\n.*tensor\(\[.*device='npu:0'\)", done.stdout, re.DOTALL)


@pytest.mark.parametrize("line", SMI)
def test_npu_smi(machine, line):
    assert "NPU" in machine.type(line).stdout


def test_the_devices_their_links_and_the_seats_of_processes(machine):
    shown = [machine.type(line, COLUMNS="160").stdout for line in DEVICES]
    assert all("910B3" in text and "HCCS" in text and "144-167" in text for text in shown)
    assert "8 processes" in shown[0].replace("NPROC_PER_NODE=8", "8 processes")
    assert "4 processes" in shown[1]


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=slow) for name in SFT]
)
def test_fine_tuning(machine, name):
    done = machine.once(SFT[name])
    folder = folder_of(done)
    assert "Ascend910B3 (npu 0), collectives by hccl" in done.stdout
    assert (
        "fused operators of Ascend910B3: attention, rms_norm, rotary, swiglu" in done.stdout
        or "zero3" in name
    )
    assert "torch.bfloat16" in done.stdout and "nccl" not in done.stdout.lower()
    args = json.loads((folder / "sft_args.json").read_text("utf-8"))
    assert args["dtype"] == "bf16"  # never fp16, and not fp32 for full
    assert args["gradient_accumulation_steps"] == (4 if name.startswith("four") else 16)
    assert args["deepspeed"] == (f"default-{name[-5:]}" if "zero" in name else None)
    logged = [line for line in lines(folder) if "loss" in line]
    assert logged[-1]["global_step"] == 10  # 39 rows, 16 a step
    assert all(line["memory_gib"] > 0 for line in logged)
    (checkpoint,) = folder.glob("checkpoint-*")
    file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    assert (checkpoint / file).is_file() and (checkpoint / "trainer_state.json").is_file()


@slow
@pytest.mark.parametrize("name", [name for name in SFT if name.startswith("four")])
def test_four_cards_learn_what_one_learns(machine, name):
    kind = name.split()[1]
    one, four = (losses(folder_of(machine.once(SFT[which]))) for which in (f"one {kind}", name))
    # LoRA: dropout draws anew on each rank. Full with ZeRO: its bf16 weights show an update of their fp32 copies once
    # it has added up to half the distance of two bf16 numbers; one process rounds at random and shows it at once.
    assert four == pytest.approx(one, rel=5e-2 if kind == "lora" else 2e-2)


@slow
@pytest.mark.parametrize("line", [INFER, HUGGING_FACE])
def test_a_chat_with_the_original_model(machine, line):
    done = machine.type(line, answers="1+1=?\nexit\n")
    assert done.returncode == 0, done.stdout[-4000:]
    cache = "huggingface" if line == HUGGING_FACE else "modelscope"
    assert f"hubs/{cache}" in done.stdout and "Ascend910B3 (npu 0)" in done.stdout


def answered(machine, line: str) -> list[dict]:
    done = machine.type(with_checkpoint(line, machine))
    assert done.returncode == 0, done.stdout[-4000:]
    place = Path(re.search(r"--ckpt_dir (\S+)", with_checkpoint(line, machine))[1])
    (file,) = (place / "infer_result").glob("*.jsonl")
    return [json.loads(row) for row in file.read_text("utf-8").splitlines()]


@slow
def test_a_checkpoint_answers_the_rows_that_were_held_out(machine):
    (row,) = answered(machine, INFER_CHECKPOINT)
    assert {"response", "query", "label", "history", "system"} <= set(row) and row["label"].count(
        "Answer: "
    ) == 1
    done = machine.type(with_checkpoint(MERGE, machine))
    assert done.returncode == 0, done.stdout[-4000:]
    (merged,) = answered(machine, INFER_MERGED)
    assert merged["query"] == row["query"]


@slow
def test_the_doctor_finds_nothing_serious(machine):
    done = machine.type(DOCTOR)
    assert done.returncode in (0, 10), done.stdout  # nothing, or warnings: the limit of locked memory
    assert "error" not in done.stdout and "all-reduce is right on npu 0" in done.stdout


@slow
def test_the_plan_of_four_cards(machine):
    done = machine.type(PLAN)
    assert done.returncode == 0 and "GiB" in done.stdout, done.stdout


@slow
def test_ten_minutes_on_a_card(machine):
    on_cpu, one, two = (losses(folder_of(machine.type(line))) for line in TEN)
    assert one == pytest.approx(on_cpu, rel=1e-4)
    assert two == pytest.approx(on_cpu, rel=1e-4)
