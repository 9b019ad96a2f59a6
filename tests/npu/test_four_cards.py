"""Four simulated NPUs under each engine give the losses of one CPU process: fp32, fused operators on and off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

# five processes that import torch: minutes on two processors
pytestmark = [pytest.mark.npu_sim, pytest.mark.slow, pytest.mark.xdist_group("engines")]

LINE = (
    "swift sft --model_type tiny-math-chat --dataset demo-math-zh#120 --sft_type full --dtype fp32 --max_steps 4 "
    "--learning_rate 1e-3 --logging_steps 1 --save_strategy no --evaluation_strategy no --output_dir engines"
)
FOUR = "NPROC_PER_NODE=4 ASCEND_RT_VISIBLE_DEVICES=0,1,2,3 " + LINE
ENGINES = {
    "ddp": FOUR,
    "zero2": FOUR + " --deepspeed default-zero2",
    "zero3": FOUR + " --deepspeed default-zero3",
    "fsdp": FOUR + " --fsdp full_shard",
}
PLAIN = " --use_flash_attn false --fused_operators false"


def losses(done) -> list[float]:
    assert done.returncode == 0, done.stdout[-4000:]
    folder = Path(re.search(r"images_dir: (\S+)", done.stdout)[1]).parent
    lines = [json.loads(line) for line in (folder / "logging.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("more", ["", PLAIN], ids=["fused", "plain"])
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_equal_those_of_one_cpu_process(machine, engine, more):
    expected = losses(machine.once(LINE + " --device cpu"))
    found = losses(machine.once(ENGINES[engine] + more))
    print(
        f"{engine}{more}: largest difference {max(abs(a - b) for a, b in zip(found, expected, strict=True)):.1e}"
    )
    assert len(expected) == 4 and expected[-1] < expected[0]
    assert found == pytest.approx(expected, abs=1e-5)
