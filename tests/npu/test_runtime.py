"""Functions of the runtime that torch_npu looks up: limits, profilers, memory of other processes, texts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.npu_sim
ROOT = Path(__file__).parents[2]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("chip", "expected"), [("Ascend910B3", "True"), ("Ascend910A", "False")])
def test_infinities_are_an_overflow_on_cards_that_make_them(chip, expected):
    code = (
        "import torch\nfrom torch_npu.npu.utils import is_support_inf_nan, npu_check_overflow\n"
        "print(is_support_inf_nan(), npu_check_overflow(torch.tensor([float('inf')], device='npu')),"
        " npu_check_overflow(torch.ones(1, device='npu')))"
    )
    done = run_python("-c", code, NPUSIM_SOC=chip)
    assert done.stdout.split() == [expected, expected, "False"], done.stderr


def test_an_id_beyond_the_cards_is_refused_in_the_runtimes_words():
    text = r"The argument is invalid.+Set device failed, invalid device, set device=8, valid device range is \[0, 8\)"
    with pytest.raises(RuntimeError, match=text):
        torch.npu.set_device(8)


def test_core_limits_of_a_card_and_of_its_streams_are_kept():
    whole, less, few = ({"cube_core_num": c, "vector_core_num": v} for c, v in ((20, 40), (12, 24), (3, 5)))
    torch.ones(1, device="npu:7")
    assert torch.npu.get_device_limit(7) == whole
    # torch_npu allows it once in a process, so of a card that no other test uses.
    torch.npu.set_device_limit(7, 12, 24)
    with torch.npu.device(7):
        stream = torch.npu.Stream()
        assert torch.npu.get_device_limit(7) == torch.npu.get_stream_limit(stream) == less
        torch.npu.set_stream_limit(stream, 3, 5)
        assert torch.npu.get_stream_limit(stream) == few
        torch.npu.reset_stream_limit(stream)
        assert torch.npu.get_stream_limit(stream) == less
        with pytest.raises(RuntimeError, match="107000"):
            torch.npu.set_stream_limit(stream, 21, 40)


def test_an_event_tells_when_it_was_recorded():
    first, second = (torch.npu.Event(enable_timing=True) for _ in range(2))
    first.record()
    time.sleep(0.01)
    second.record()
    torch.npu.synchronize()
    microseconds = second.recorded_time() - first.recorded_time()
    assert microseconds == pytest.approx(first.elapsed_time(second) * 1e3, rel=1e-2)


def test_lists_are_copied_between_the_host_and_cards():
    from simnpu.trace import trace

    here, there = [torch.ones(2), torch.zeros(3)], [torch.zeros(2).npu(), torch.ones(3).npu()]
    with trace() as counts:
        torch._foreach_copy_(there, here)
    assert counts.copies["h2d"] == 2 and [x.tolist() for x in there] == [[1, 1], [0, 0, 0]]
    other = [torch.zeros(2, device="npu:1"), torch.ones(3, device="npu:1")]
    torch._foreach_copy_(other, there)
    torch._foreach_copy_([x.zero_() for x in here], other)
    assert [x.tolist() for x in here] == [[1, 1], [0, 0, 0]]
    torch._foreach_copy_(there, [x.half() + 1 for x in there])
    assert [x.tolist() for x in there] == [[2, 2], [1, 1, 1]]
    with pytest.raises(RuntimeError, match="Tensor lists must have the same number of tensors"):
        torch._foreach_copy_(there, there[:1])


def test_memory_may_be_fetched_ahead():
    import torch_npu

    x = torch.arange(64.0).npu()
    torch_npu.npu_prefetch(x, None, 256)
    torch_npu.npu_prefetch(x, x + 1, 1000, 16)
    assert x.tolist() == list(range(64))
    with pytest.raises(
        RuntimeError, match="offset out of range of tensor size, tensor size: 256, offset: 1000"
    ):
        torch_npu.npu_prefetch(x, None, 256, 1000)
    with pytest.raises(RuntimeError, match="max_size should be greater than zero"):
        torch_npu.npu_prefetch(x, None, 0)


def test_profilers_start_and_stop(tmp_path):
    import torch_npu

    with torch.profiler.profile() as profiler:
        torch.ones(2, device="npu") + 1
    assert "aten::add" in {event.key for event in profiler.key_averages()}
    handler = torch_npu.profiler.tensorboard_trace_handler(str(tmp_path))
    with torch_npu.profiler.profile(on_trace_ready=handler):
        torch.ones(2, device="npu") + 1
    assert list(tmp_path.glob("*_ascend_pt"))


@pytest.mark.parametrize("segments", ["expandable_segments:False", "expandable_segments:True"])
def test_another_process_sees_and_changes_the_same_memory(tmp_path, segments):
    script = tmp_path / "share.py"
    script.write_text(
        "import torch, torch.multiprocessing as mp\n"
        "def work(queue, done):\n"
        "    shared = queue.get()\n    assert shared.tolist() == [0, 1, 2], shared\n    shared.add_(10)\n"
        "    torch.npu.synchronize()\n    del shared\n    done.set()\n"
        "if __name__ == '__main__':\n"
        "    context = mp.get_context('spawn')\n    queue, done = context.Queue(), context.Event()\n"
        "    mine = torch.arange(3.0, device='npu')\n"
        "    process = context.Process(target=work, args=(queue, done))\n    process.start()\n"
        # What torch_npu has queued must be done: an event of another process waits for nothing here.
        "    torch.npu.synchronize()\n    queue.put(mine)\n"
        "    done.wait(120)\n    process.join(60)\n    print(mine.tolist())\n"
    )
    done = run_python(str(script), PYTORCH_NPU_ALLOC_CONF=segments)
    assert done.stdout.strip() == "[10.0, 11.0, 12.0]", done.stderr


def test_public_tests_may_lie_in_a_relative_folder(tmp_path):
    (tmp_path / "public").mkdir()
    (tmp_path / "public/test_one.py").write_text("def test_it():\n    pass\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_torch_npu_tests.py"), "public"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "passed 1 of 1 that ran" in done.stdout, done.stdout + done.stderr


def test_packages_that_public_tests_import_are_there():
    missing = [name for name in ("einops", "expecttest") if importlib.util.find_spec(name) is None]
    assert missing == []


def test_operators_may_be_given_a_time_limit(npu):
    npu.set_op_timeout_ms(1000)
    assert torch.ones(2, device="npu").sum().item() == 2


CHECKED_TRAINING = """
import torch
model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8)).npu()
tokens = torch.arange(8).npu()
for _ in range(3):
    torch.nn.functional.cross_entropy(model(tokens), tokens).backward()
"""


def test_training_runs_with_the_check_for_silent_errors():
    """torch_npu asks libopapi.so what CANN can do, already on import."""
    done = run_python("-c", CHECKED_TRAINING, NPU_ASD_ENABLE="1")
    assert done.returncode == 0, done.stderr
    assert "Silent check 2.0 version will be enabled" in done.stderr


def test_a_norm_that_leaps_is_a_silent_error(npu):
    gradient, state, step = torch.ones(3).npu(), torch.zeros(3).npu(), torch.zeros(1, dtype=torch.int64).npu()

    def check(value: float, detect: int = 1) -> int:
        val = torch.tensor(value).npu()
        return npu._npu_silent_check_v2(val, gradient, state, step, 2, 1e6, 1e5, 1e4, 5e3, detect).item()

    assert [check(1.0), check(2.0), check(2e4)] == [0, 0, 1]
    assert (state.tolist(), step.item()) == ([2e4, 1, 2e4], 3)
    assert check(float("nan"), 2) == 2
    assert gradient.tolist() == [0, 0, 0] and step.item() == 3
