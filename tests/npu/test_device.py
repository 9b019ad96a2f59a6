"""What torch_npu says about the simulated cards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from swiftlet.train.objective import seed_step

pytestmark = pytest.mark.npu_sim


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process: the settings are read when the runtime starts."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_eight_cards_of_a_910b3_with_64_gigabytes():
    assert torch.npu.is_available() and torch.npu.device_count() == 8
    properties = torch.npu.get_device_properties(0)
    assert properties.name == "Ascend910B3"
    assert properties.total_memory == 64 << 30
    assert (properties.cube_core_num, properties.vector_core_num) == (20, 40)
    assert properties.L2_cache_size == 192 << 20
    assert torch.npu.is_bf16_supported()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NPUSIM_DEVICE_COUNT": "2"}, "2"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4,6"}, "2"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "3,2"}, "0"),  # ids must ascend: torch_npu's own rule
        ({"ASCEND_RT_VISIBLE_DEVICES": ""}, "0"),
        ({"NPUSIM_SOC": "Ascend310P3"}, "8"),
    ],
)
def test_the_number_of_cards_follows_the_settings(settings, expected):
    done = run_python("import torch; print(torch.npu.device_count())", **settings)
    assert done.stdout.split()[-1] == expected, done.stderr


def test_it_stays_off_without_the_switch():
    done = run_python("import torch", NPUSIM="0")
    assert done.returncode != 0 and "libhccl.so: cannot open shared object file" in done.stderr


def test_it_stays_off_where_a_real_runtime_is_found(tmp_path):
    library = tmp_path / "lib64" / "libascendcl.so"
    library.parent.mkdir()
    library.touch()
    done = run_python("import sys; print('simnpu.activate' in sys.modules)", ASCEND_HOME_PATH=str(tmp_path))
    assert "simnpu: stays off, there is a real" in done.stderr


def test_children_that_are_spawned_see_the_cards_too(tmp_path):
    code = (
        "import torch, torch.multiprocessing as mp\n"
        "def work(rank):\n    torch.npu.set_device(rank)\n    print(torch.ones(2, device='npu').sum().item())\n"
        "if __name__ == '__main__':\n    mp.spawn(work, nprocs=2)\n"
    )
    script = tmp_path / "spawn.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2.0", "2.0"], done.stderr


def test_a_cpu_tensor_among_npu_tensors_is_refused():
    with pytest.raises(
        RuntimeError, match="Expected NPU tensor, please check whether the input tensor device is"
    ):
        torch.ones(2, device="npu") + torch.ones(2)
    with pytest.raises(RuntimeError, match="found at least two devices, npu:0 and npu:1"):
        torch.ones(2, device="npu:0") + torch.ones(2, device="npu:1")
    assert (torch.ones(2, device="npu") + torch.tensor(1.0)).tolist() == [2.0, 2.0]


def test_a_cpu_generator_is_refused():
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="npu", generator=torch.Generator())


def test_a_step_seeds_its_card_and_the_host():
    drawn = []
    for _ in range(2):
        seed_step(42, 1, 0, torch.device("npu:0"))
        drawn.append(torch.cat([torch.rand(4, device="npu").cpu(), torch.rand(4)]))
    assert torch.equal(drawn[0], drawn[1])


def test_random_numbers_repeat_after_the_same_seed():
    torch.npu.manual_seed(7)
    first, second = torch.rand(4, device="npu"), torch.rand(4, device="npu")
    torch.npu.manual_seed(7)
    assert torch.equal(torch.rand(4, device="npu"), first) and not torch.equal(first, second)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    torch.nn.functional.dropout(torch.ones(64, device="npu"), 0.5)
    assert torch.equal(torch.random.get_rng_state(), before), "the CPU's generator must not move"
