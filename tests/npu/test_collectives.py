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


def on_two_cards(folder: Path, body: str, timeout_s: int = 60) -> str:
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
        env=os.environ | {"OMP_NUM_THREADS": "1", "HCCL_EXEC_TIMEOUT": str(timeout_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout[-6000:] if done.returncode else ""


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


PRODUCTS = """
import torch_npu
def name_of(group):
    return group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
def near(found, expected):
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=2e-2)
whole = dist.distributed_c10d._get_default_group()
name = name_of(whole)
torch.manual_seed(0)
x = [torch.randn(8, 16).half() for _ in range(2)]
w = [torch.randn(16, 6).half() for _ in range(2)]
own = x[rank].npu(), w[rank].npu()
parts = [a.float() @ b.float() for a, b in zip(x, w)]
"""


def test_products_and_their_collectives(tmp_path):
    failure = on_two_cards(
        tmp_path,
        PRODUCTS
        + """
bias, more = torch.randn(6).half(), torch.randn(8, 6).half()
near(torch_npu.npu_mm_all_reduce_base(*own, name), sum(parts).half())
found = torch_npu.npu_mm_all_reduce_base(*own, name, bias=bias.npu(), x3=more.npu())
near(found, (sum(parts) + 2 * bias.float() + 2 * more.float()).half())
out, rows = torch_npu.npu_all_gather_base_mm(*own, name, 2)
near(rows, torch.cat(x))
near(out, (torch.cat(x).float() @ w[rank].float()).half())
near(torch_npu.npu_mm_reduce_scatter_base(*own, name, 2), sum(parts).half().chunk(2)[rank])
alone = name_of([dist.new_group([0]), dist.new_group([1])][rank])
near(torch_npu.npu_mm_all_reduce_base(*own, alone), parts[rank].half())
wide = [torch.randn(32, 6).half() for _ in range(2)]
out, rows = torch_npu.npu_all_to_all_matmul(own[0], wide[rank].npu(), name, 2)
expected = torch.cat([part.chunk(2)[rank] for part in x], 1)
near(rows, expected)
near(out, (expected.float() @ wide[rank].float()).half())
near(torch_npu.npu_matmul_all_to_all(*own, name, 2), torch.cat([part.chunk(2, 1)[rank] for part in parts]).half())
""",
    )
    assert not failure, failure


def test_products_of_quantised_inputs_and_their_sum(tmp_path):
    failure = on_two_cards(
        tmp_path,
        PRODUCTS
        + """
a = [torch.randint(-9, 9, (8, 16), dtype=torch.int8) for _ in range(2)]
b = [torch.randint(-9, 9, (16, 6), dtype=torch.int8) for _ in range(2)]
scale, tokens = torch.rand(6) * 0.1, torch.rand(8)
given = a[rank].npu(), b[rank].npu()
found = torch_npu.npu_mm_all_reduce_base(*given, name, dequant_scale=scale.npu(), pertoken_scale=tokens.npu())
near(found, (sum(p.float() @ q.float() for p, q in zip(a, b)) * scale * tokens[:, None]).half())
scale = (scale[None].half(), -scale[None].half())
found = torch_npu.npu_mm_all_reduce_base(
    own[0], b[rank].npu(), name, antiquant_scale=scale[0].npu(), antiquant_offset=scale[1].npu()
)
plain = [(q.float() + scale[1].float()) * scale[0].float() for q in b]
near(found, sum(p.float() @ q for p, q in zip(x, plain)).half())
""",
    )
    assert not failure, failure


def test_tokens_go_to_the_experts_of_other_ranks_and_back(tmp_path):
    failure = on_two_cards(
        tmp_path,
        PRODUCTS
        + """
sent = [[1, 2, 3, 2], [2, 1, 1, 4]]  # a row for each rank: two experts of rank 0, then two of rank 1
received = [sent[0][2 * rank : 2 * rank + 2], sent[1][2 * rank : 2 * rank + 2]]
weight = torch.randn(2, 16, 6).half()
mine, shared = own[0], torch.randn(16, 6).half()
counts = sent[rank], sum(received, [])
out, common, rows = torch_npu.npu_alltoallv_gmm(
    mine, weight.npu(), name, 2, *counts, mm_x=mine, mm_weight=shared.npu(), permute_out_flag=True
)
def of(source, expert):
    return x[source].split(sent[source])[2 * rank + expert]
experts = [torch.cat([of(source, expert) for source in range(2)]) for expert in range(2)]
near(rows, torch.cat(experts))
expected = torch.cat([part.float() @ weight[i].float() for i, part in enumerate(experts)])
near(out, expected.half())
near(common, (x[rank].float() @ shared.float()).half())
back = torch.randn(2, 6, 16).half()
found, none = torch_npu.npu_gmm_alltoallv(out, back.npu(), name, 2, counts[1], counts[0])
assert none is None
there = torch_npu.npu_alltoallv_gmm(mine, weight.npu(), name, 2, *counts)[0]
both = [weight[i % 2].float() @ back[i % 2].float() for i in range(4)]
whole_way = torch.cat([part.float() @ both[i] for i, part in enumerate(x[rank].split(sent[rank]))])
torch.testing.assert_close(found.cpu().float(), whole_way, rtol=1e-2, atol=0.2)
turned = torch_npu.npu_alltoallv_gmm(
    mine, weight.transpose(1, 2).contiguous().npu(), name, 2, *counts, trans_gmm_weight=True
)[0]
near(turned, there.cpu())
""",
    )
    assert not failure, failure


def test_what_a_product_with_a_collective_refuses(tmp_path):
    failure = on_two_cards(
        tmp_path,
        PRODUCTS
        + """
def refused(text, call):
    try:
        call()
    except RuntimeError as error:
        assert text in str(error), error
        return
    raise AssertionError(text)
refused("no communicator of this process is named 'none'", lambda: torch_npu.npu_mm_all_reduce_base(*own, "none"))
refused("only sum, but got max", lambda: torch_npu.npu_mm_all_reduce_base(*own, name, reduce_op="max"))
refused("does not fit", lambda: torch_npu.npu_mm_all_reduce_base(own[0], own[0], name))
refused("world_size is 4, but", lambda: torch_npu.npu_all_gather_base_mm(*own, name, 4))
refused("only 0, but got 1", lambda: torch_npu.npu_all_gather_base_mm(*own, name, 2, gather_index=1))
odd = own[0][:7], own[1]
refused("7 rows are not divisible by 2 ranks", lambda: torch_npu.npu_mm_reduce_scatter_base(*odd, name, 2))
refused("the simulator knows [-1, -2]", lambda: torch_npu.npu_matmul_all_to_all(*own, name, 2, all2all_axes=[0, 1]))
refused("does not know comm_quant_mode=1", lambda: torch_npu.npu_mm_all_reduce_base(*own, name, comm_quant_mode=1))
""",
    )
    assert not failure, failure


def test_pieces_of_a_matrix_of_counts_go_round(tmp_path):
    failure = on_two_cards(
        tmp_path,
        """
from torch_npu.distributed import all_to_all_vc
counts = [[1, 3], [2, 1]]
mine = [10.0 * rank + to for to in range(2) for _ in range(counts[rank][to])]
found = torch.zeros(counts[0][rank] + counts[1][rank], device="npu")
all_to_all_vc(found, torch.tensor(mine).npu(), counts)
assert found.tolist() == [10.0 * i + rank for i in range(2) for _ in range(counts[i][rank])], found
""",
    )
    assert not failure, failure


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("if rank: time.sleep(9)\n", ("ERR02200 DIST call hccl api failed", "EI0006")),
        ("dist.all_reduce(x)\nif rank: time.sleep(9)\n", ("error code is 507048", "EI0002")),
        ("x = torch.ones(4 + rank).npu()\n", ("EI0005", "inconsistent between ranks")),
    ],
    ids=["a rank that joins late", "a rank that comes late", "other sizes"],
)
def test_a_rank_that_others_wait_for_in_vain(tmp_path, monkeypatch, body, words):
    """The launch of a collective returns; its failure is seen at the next wait, except while ranks join."""
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "2")
    failure = on_two_cards(
        tmp_path,
        f"import time\nx = torch.ones(4).npu()\n{body}dist.all_reduce(x)\ntorch.npu.synchronize()\n",
        timeout_s=2,
    )
    for word in words:
        assert word in failure, failure
