"""The table of devices on this machine: what opens, what is refused and why, memory and types."""

from __future__ import annotations

import importlib.util
import mmap
import platform
from dataclasses import replace

import pytest
import torch

from swiftlet.device.cpu import ResidentSet, cpu_memory, cpu_name
from swiftlet.device.inventory import GIB, cpu_flags, cpu_has_native_bf16, host_memory_gib
from swiftlet.device.machine import Machine
from swiftlet.device.settings import apply_settings, environment, guess_kind
from swiftlet.device.spec import DeviceError, choose, dtype_name, open_device, resolve_dtype, see
from swiftlet.errors import UsageError

has_torch_npu = importlib.util.find_spec("torch_npu") is not None
on_a_plain_cpu = pytest.mark.skipif(
    has_torch_npu or torch.cuda.is_available(), reason="a machine with a device"
)


@pytest.fixture
def cpu():
    return open_device("cpu", environ={})


def test_the_cpu(cpu):
    assert (cpu.kind, cpu.index, cpu.backend, cpu.torch_device) == ("cpu", 0, "gloo", torch.device("cpu"))
    assert cpu.name and not cpu.kernels and not cpu.optimizers
    assert cpu.default_dtype == ("bf16" if cpu_has_native_bf16() else "fp32")
    cpu.synchronize()
    cpu.empty_cache()


def test_the_cpu_waits_for_no_program_of_a_driver(tmp_path):
    program = tmp_path / "npu-smi"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    program.chmod(0o755)
    assert open_device("cpu", environ={"PATH": f"{tmp_path}:/usr/bin:/bin"}).kind == "cpu"
    assert not (tmp_path / "asked").exists()


def test_memory_of_the_cpu_is_the_growth_of_this_process(cpu):
    free, total = cpu.memory()
    assert 0 < free <= total
    cpu.reset_peak_memory()
    before = cpu.peak_memory_bytes()
    # Pages of its own: a tensor of this size may lie in memory that an earlier test has freed.
    with mmap.mmap(-1, 32_000_000) as block:
        block.write(bytes(len(block)))
        assert cpu.peak_memory_bytes() - before >= 30_000_000
    cpu.reset_peak_memory()
    assert cpu.peak_memory_bytes() < 30_000_000


def test_where_the_kernel_forbids_it_the_peak_of_before_is_no_growth(monkeypatch, tmp_path):
    monkeypatch.setattr("swiftlet.device.cpu.PROC", tmp_path)
    (tmp_path / "self" / "clear_refs").mkdir(parents=True)  # nobody writes into a folder, not even root
    status = tmp_path / "self" / "status"
    status.write_text("VmHWM:\t 300 kB\nVmRSS:\t 100 kB\n")
    grown = ResidentSet()
    assert grown.peak() == 0
    status.write_text("VmHWM:\t 350 kB\nVmRSS:\t 120 kB\n")
    assert grown.peak() == 50 * 1024
    grown.reset()
    assert grown.peak() == 0


def test_a_system_without_proc_tells_nothing_of_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("swiftlet.device.cpu.PROC", tmp_path)
    assert cpu_name() == f"{platform.machine()} CPU"
    assert cpu_memory() == (0, 0) and ResidentSet().peak() == 0


def test_a_smaller_container_is_the_total(monkeypatch, tmp_path):
    limit, use = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text("1000000\n")
    use.write_text("400000\n")
    for room in ("cpu", "inventory"):
        monkeypatch.setattr(f"swiftlet.device.{room}.CGROUP_LIMITS", (tmp_path / "none", limit))
    monkeypatch.setattr("swiftlet.device.cpu.CGROUP_USE", (use,))
    assert cpu_memory() == (600_000, 1_000_000)
    assert host_memory_gib() * GIB == 1_000_000
    limit.write_text("max\n")
    assert cpu_memory()[1] > 1_000_000


@pytest.mark.parametrize(
    "text, native",
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_tile amx_bf16\n", True),
        ("flags : fpu avx2 avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features : fp asimd\n", False),
        ("", False),
    ],
)
def test_native_bf16_by_the_flags_of_the_cpu(text, native):
    assert cpu_has_native_bf16(text) is native
    assert "fpu" in cpu_flags(text) or "fp" in cpu_flags(text) or not text


@pytest.mark.parametrize(
    "asked, default, dtype",
    [
        ("AUTO", "bf16", torch.bfloat16),
        ("AUTO", "fp32", torch.float32),
        ("fp16", "bf16", torch.float16),
        ("fp32", "bf16", torch.float32),
        ("bf16", "fp32", torch.bfloat16),
    ],
)
def test_types(cpu, asked, default, dtype):
    assert resolve_dtype(asked, replace(cpu, default_dtype=default)) == dtype
    assert dtype_name(dtype) in cpu.dtypes


def test_a_type_that_the_device_lacks(cpu):
    old = replace(cpu, name="Ascend910A", dtypes=frozenset({"fp16", "fp32"}), default_dtype="fp32")
    assert resolve_dtype("AUTO", old) == torch.float32  # never fp16 unless it was asked for
    with pytest.raises(UsageError, match="Ascend910A does not have bf16; it has fp16, fp32"):
        resolve_dtype("bf16", old)
    with pytest.raises(UsageError, match="--dtype"):
        resolve_dtype("fp8", cpu)


@on_a_plain_cpu
@pytest.mark.parametrize(
    "environ, said, typed",
    [
        ({"ASCEND_RT_VISIBLE_DEVICES": "0"}, "torch_npu is not installed", "pip install torch-npu decorator"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "is built without CUDA", "pip install torch"),
    ],
)
def test_never_a_silent_fall_to_the_cpu(environ, said, typed):
    with pytest.raises(DeviceError) as caught:
        open_device("AUTO", environ=environ)
    assert said in caught.value.message and next(iter(environ)) in caught.value.message
    assert typed in caught.value.hint and "--device cpu" in caught.value.hint
    assert open_device("cpu", environ=environ).kind == "cpu"


@on_a_plain_cpu
def test_devices_that_are_there_but_not_seen():
    with pytest.raises(DeviceError, match="this machine shows 8 NPUs, but torch_npu is not installed"):
        choose({}, Machine(npus=8))
    with pytest.raises(DeviceError, match="this machine shows one NPU, but"):
        choose({}, Machine(npus=1))
    with pytest.raises(DeviceError, match="this machine shows 2 NVIDIA devices, but torch"):
        choose({}, Machine(gpus=2))
    assert choose({"CUDA_VISIBLE_DEVICES": ""}, Machine(gpus=2)) == "cpu"  # hidden on purpose
    assert choose({}, Machine()) == "cpu"


@on_a_plain_cpu
@pytest.mark.parametrize(
    "kind, said", [("npu", "this machine shows no NPU, and"), ("cuda", "no NVIDIA device, and")]
)
def test_a_device_that_was_asked_for_and_is_not_here(kind, said):
    with pytest.raises(DeviceError, match=said):
        open_device(kind, environ={"PATH": ""})


def test_hidden_gpus_say_so():
    sight = see("cuda", {"CUDA_VISIBLE_DEVICES": "-1"}, Machine(gpus=1))
    assert sight.reason == "CUDA_VISIBLE_DEVICES=-1 hides every GPU" and not sight.is_expected


def test_an_unknown_kind():
    with pytest.raises(UsageError, match="unknown --device 'tpu'"):
        open_device("tpu", environ={})


def test_variables_of_an_npu():
    found = environment("npu", {}, timeout_s=1800, deterministic=True)
    assert found == {
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "TASK_QUEUE_ENABLE": "2",
        "HCCL_CONNECT_TIMEOUT": "1800",
        "HCCL_EXEC_TIMEOUT": "1836",
        "HCCL_DETERMINISTIC": "true",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    assert environment("npu", {}, timeout_s=60)["HCCL_CONNECT_TIMEOUT"] == "120"
    assert environment("npu", {}, timeout_s=60)["HCCL_EXEC_TIMEOUT"] == "68"


def test_what_the_user_has_set_stays():
    mine = {"TASK_QUEUE_ENABLE": "1", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert "TASK_QUEUE_ENABLE" not in environment("npu", mine)
    assert "PYTORCH_ALLOC_CONF" not in environment("cuda", mine)


def test_variables_of_other_devices_do_not_mix():
    assert environment("cuda", {})["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_NPU_ALLOC_CONF" not in environment("cuda", {})
    assert environment("cpu", {}) == {
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "GOMP_SPINCOUNT": "1000",
        "THP_MEM_ALLOC_ENABLE": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        "LRU_CACHE_CAPACITY": "16",
    }
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in environment("cpu", {"DNNL_PRIMITIVE_CACHE_CAPACITY": "9"})
    assert "GOMP_SPINCOUNT" not in environment("cpu", {"OMP_WAIT_POLICY": "ACTIVE"})


def test_the_guess_before_torch(monkeypatch):
    assert guess_kind({}, Machine(npus=1)) == "npu"
    for spec, kind in ((None, "cpu"), (object(), "npu")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        assert guess_kind({}, Machine(gpus=1)) == "cuda"
        assert guess_kind({}, Machine()) == kind


def test_settings_are_logged_and_applied(cpu):
    was, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        assert apply_settings(cpu) == [f"device: {cpu.name} (cpu 0), collectives by gloo"]
        assert torch.are_deterministic_algorithms_enabled() == was
        lines = apply_settings(cpu, deterministic=True)
        assert lines == [
            f"device: {cpu.name} (cpu 0), collectives by gloo",
            "only deterministic operators are used",
        ]
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    finally:
        torch.use_deterministic_algorithms(was)
        torch.set_num_threads(threads)
