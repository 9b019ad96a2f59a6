"""What a kind of device, or this machine, cannot have is said before torch is imported."""

import importlib.util

import pytest

from swiftlet.device import possible
from swiftlet.device.machine import Machine

ASCEND = {"ASCEND_RT_VISIBLE_DEVICES": "0"}


@pytest.fixture
def look(monkeypatch):
    """Ask on a machine with or without the library of NPUs, and with so many GPUs."""

    def ask(kind, environ=None, *, has_library=False, gpus=None, **flags):
        spec = object() if has_library else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(possible, "look_at_machine", lambda environ: Machine(None, gpus))
        return [str(mistake) for mistake in possible.impossible(kind, environ or {}, **flags)]

    return ask


@pytest.mark.parametrize(
    ("kind", "environ", "flags", "expected"),
    [
        ("npu", {}, {}, "--device npu, but torch_npu is not installed"),
        ("AUTO", ASCEND, {}, "ASCEND_RT_VISIBLE_DEVICES=0, but torch_npu is not installed"),
        ("AUTO", {}, {"backend": "hccl"}, "--ddp_backend hccl needs an NPU, but torch_npu is not installed"),
        (
            "AUTO",
            {},
            {"optim": "adamw_torch_npu_fused"},
            "--optim adamw_torch_npu_fused needs an NPU, but torch_npu is not installed",
        ),
    ],
)
def test_what_needs_the_library_of_npus(look, kind, environ, flags, expected):
    (message,) = look(kind, environ, **flags)
    assert message.startswith(expected)
    assert message.endswith("hint: type pip install torch-npu decorator; or --device cpu to run without it")
    assert look(kind, environ, has_library=True, **flags) == []


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("cpu", {"backend": "nccl"}, "--ddp_backend nccl does not go with --device cpu, which has gloo"),
        (
            "npu",
            {"backend": "nccl"},
            "--ddp_backend nccl does not go with --device npu, which has hccl and gloo",
        ),
        (
            "cpu",
            {"optim": "adamw_torch_npu_fused"},
            "--optim adamw_torch_npu_fused does not go with --device cpu",
        ),
    ],
)
def test_flags_that_do_not_go_with_a_device(look, kind, flags, expected):
    (message,) = look(kind, has_library=True, **flags)
    assert message.startswith(expected)
    assert "\nhint: " in message


def test_what_can_be_is_accepted(look):
    assert (
        look("AUTO")
        == look("cpu", ASCEND)
        == look("cuda", backend="nccl", gpus=1)
        == look("cpu", backend="gloo")
        == []
    )
    assert look("AUTO", ASCEND, gpus=1) == []  # the GPU is taken
    assert look("npu", has_library=True, optim="adamw_torch_npu_fused") == []


def test_a_gpu_that_is_not_here(look, monkeypatch, tmp_path):
    monkeypatch.setattr(possible, "OTHER_NODES", (str(tmp_path / "dxg"),))
    (message,) = look("cuda")
    assert message.startswith(
        "--device cuda, but this machine shows no GPU: there is no /dev/nvidia0\nhint: "
    )

    (tmp_path / "dxg").touch()  # WSL
    assert look("cuda") == []
