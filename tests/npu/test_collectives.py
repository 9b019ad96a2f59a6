"""Collectives of torch_npu's own process group on two simulated cards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.npu_sim

BEGIN = """
import os, torch, torch.distributed as dist
rank = int(os.environ["RANK"])
torch.npu.set_device(rank)
dist.init_process_group("hccl")
other = 1 - rank
"""
END = "\ndist.destroy_process_group()\n"


def on_two_cards(folder: Path, body: str) -> str:
    """Run a script on two ranks; return what they said if one failed, an assertion of theirs or otherwise."""
    script = folder / "ranks.py"
    script.write_text(BEGIN + body + END)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HCCL_EXEC_TIMEOUT": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout[-3000:] if done.returncode else ""


def test_gathered_booleans_are_right_each_time(tmp_path):
    """torch_npu pads them in the queue of its own thread, and casts them past the dispatcher."""
    failure = on_two_cards(
        tmp_path,
        """
for _ in range(200):
    found = [torch.zeros(2, dtype=torch.bool, device="npu") for _ in range(2)]
    dist.all_gather(found, torch.ones(2, device="npu").bool())
    assert all(part.tolist() == [True, True] for part in found), found
""",
    )
    assert not failure, failure


def test_sends_and_receives_of_a_batch_do_not_wait_for_each_other(tmp_path):
    """Both ranks send first, more than fits on the way."""
    failure = on_two_cards(
        tmp_path,
        """
mine = torch.full((1 << 20,), float(rank), device="npu")
theirs = torch.empty_like(mine)
batch = [dist.P2POp(dist.isend, mine, other), dist.P2POp(dist.irecv, theirs, other)]
for work in dist.batch_isend_irecv(batch):
    work.wait()
assert (theirs == other).all()
""",
    )
    assert not failure, failure


def test_synchronised_batch_norm_equals_that_of_the_whole_batch(tmp_path):
    failure = on_two_cards(
        tmp_path,
        """
torch.manual_seed(0)
whole = torch.randn(8, 3, 5)
plain = torch.nn.BatchNorm1d(3)
expected = plain(inputs := whole.clone().requires_grad_())
expected.square().sum().backward()
norm = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm1d(3)).npu()
part = whole.chunk(2)[rank].npu().requires_grad_()
found = norm(part)
found.square().sum().backward()
close = lambda a, b: torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
close(found, expected.chunk(2)[rank])
close(part.grad, inputs.grad.chunk(2)[rank])
close(norm.running_mean, plain.running_mean)
close(norm.running_var, plain.running_var)
dist.all_reduce(norm.weight.grad)
close(norm.weight.grad, plain.weight.grad)
""",
    )
    assert not failure, failure
