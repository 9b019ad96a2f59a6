"""Graphs of simulated NPUs: what is captured is not done, and is done at each replay."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.npu_sim


def test_a_capture_changes_nothing_and_a_replay_reads_what_is_there_then(npu):
    x, total = torch.zeros(3, device="npu"), torch.ones(3, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x * 2 + 1
        total += y
        normed = npu.npu_rms_norm(y, torch.ones(3, device="npu"))[0]
    assert total.tolist() == [1, 1, 1]
    x.copy_(torch.arange(3.0))
    for expected in ([2, 4, 6], [3, 7, 11]):
        graph.replay()
        assert total.tolist() == expected
    assert y.tolist() == [1, 3, 5]
    torch.testing.assert_close(normed.cpu(), torch.nn.functional.rms_norm(y.cpu(), (3,), eps=1e-6))


def test_random_numbers_of_replays_are_those_of_the_card(npu):
    def draw():
        noise = torch.rand(8, device="npu")
        return noise, torch.nn.functional.dropout(noise, 0.5), npu._npu_dropout(noise, 0.5)[0]

    torch.npu.manual_seed(5)
    eager = [[x.tolist() for x in draw()] for _ in range(2)]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = draw()
    torch.npu.manual_seed(5)
    for expected in eager:
        graph.replay()
        assert [x.tolist() for x in captured] == expected


def test_another_stream_that_waits_is_captured_too():
    x = torch.ones(2, device="npu")
    graph, other = torch.npu.NPUGraph(), torch.npu.Stream()
    with torch.npu.graph(graph):
        main = torch.npu.current_stream()
        other.wait_stream(main)
        with torch.npu.stream(other):
            y = x + 1
        main.wait_stream(other)
        z = y * 2
    x.fill_(5)
    graph.replay()
    assert z.tolist() == [12, 12]


def test_a_wait_for_a_captured_stream_is_refused_and_the_capture_goes_on():
    graph = torch.npu.NPUGraph()
    x = torch.ones(2, device="npu")
    with torch.npu.graph(graph):
        with pytest.raises(RuntimeError, match="107027"):
            x.sum().item()
        y = x + 1
    graph.replay()
    assert y.tolist() == [2, 2]


def test_work_of_a_group_is_replaced(npu):
    q, k, v = (torch.randn(1, 2, length, 8, device="npu") for length in (1, 6, 6))
    keys = {"num_heads": 2, "input_layout": "BNSD", "scale": 0.3}
    few, many = (
        npu.npu_fused_infer_attention_score(q, k, v, actual_seq_lengths_kv=[length], **keys)[0]
        for length in (2, 5)
    )
    workspace = npu._npu_fused_infer_attention_score_get_max_workspace(q, k, v, **keys)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        out = [torch.empty_like(few), torch.empty(1, device="npu")]
        npu.npu_fused_infer_attention_score.out(
            q, k, v, actual_seq_lengths_kv=[2], workspace=workspace, out=out, **keys
        )
    graph.replay()
    torch.testing.assert_close(out[0], few)
    graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [5]}])
    graph.replay()
    torch.testing.assert_close(out[0], many)


def test_attention_of_training_is_replaced_with_its_gradients(npu):
    q, k, v, dy = (torch.randn(12, 2, 8, device="npu") for _ in range(4))
    keys = {"head_num": 2, "input_layout": "TND"}

    def both(queries, ends):
        lengths = {"actual_seq_qlen": torch.tensor(queries), "actual_seq_kvlen": torch.tensor(ends)}
        out, maximum, total, *_ = npu.npu_fusion_attention_v3(q, k, v, scale=0.3, **keys, **lengths)
        statistics = {"softmax_max": maximum, "softmax_sum": total, "attention_in": out}
        back = npu.npu_fusion_attention_grad_v3(q, k, v, dy, scale_value=0.3, **statistics, **keys, **lengths)
        return out, maximum, total, *back[:3], lengths

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        *captured, _ = both([6, 12], [6, 12])
    for queries, ends in ([3, 12], [9, 12]), ([9, 12], [3, 12]):
        *expected, lengths = both(queries, ends)
        graph.update(cpu_update_input=[lengths, lengths])
        graph.replay()
        torch.testing.assert_close(captured, expected)


@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND"])
def test_results_of_captured_attention_have_their_places(npu, layout):
    shape = {"BSH": (3, 4, 16), "SBH": (4, 3, 16), "BSND": (3, 4, 2, 8)}[layout]
    q, k, v = (torch.randn(shape, device="npu") for _ in range(3))
    expected = npu.npu_fusion_attention_v3(q, k, v, 2, layout, scale=0.3)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        captured = npu.npu_fusion_attention_v3(q, k, v, 2, layout, scale=0.3)
    graph.replay()
    torch.testing.assert_close(captured[:3], expected[:3])


def test_a_training_step_replays(npu):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).npu()
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).npu()
    twin.load_state_dict(plain.state_dict())
    example = torch.randn(3, 4, device="npu", requires_grad=True)
    graphed = torch.npu.make_graphed_callables(twin, (example,))
    x = torch.randn(3, 4, device="npu")
    plain(x).square().sum().backward()
    graphed(x).square().sum().backward()
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_graph_prints_its_work_and_forgets_it(npu, tmp_path):
    from simnpu import graphs

    x = torch.ones(2, 4, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        npu.npu_swiglu(x + 1)
    known = len(graphs.works)
    graph.debug_dump(str(tmp_path / "graph.json"))
    names = [work["name"] for work in json.loads((tmp_path / "graph.json").read_text())]
    assert names == ["aten::add", "npu_swiglu"]
    graph.reset()
    del graph
    gc.collect()
    other = torch.npu.NPUGraph()
    with torch.npu.graph(other):
        npu.npu_swiglu(x)
    assert len(graphs.works) == known


def test_communication_on_a_captured_stream_is_refused(tmp_path):
    script = tmp_path / "capture.py"
    script.write_text(
        "import os, torch, torch.distributed as dist, torch.multiprocessing as mp\n"
        "def work(rank, store):\n"
        "    torch.npu.set_device(rank)\n"
        "    dist.init_process_group('hccl', init_method=f'file://{store}', rank=rank, world_size=2)\n"
        "    x = torch.ones(2, device='npu')\n    dist.all_reduce(x)\n"
        "    try:\n"
        "        with torch.npu.graph(torch.npu.NPUGraph()):\n            dist.all_reduce(x)\n"
        "    finally:\n        os._exit(0 if x.tolist() == [2, 2] else 1)\n"
        f"if __name__ == '__main__':\n    mp.spawn(work, args=('{tmp_path}/store',), nprocs=2)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 and "communication on a captured stream is not simulated" in done.stderr, (
        done.stderr
    )
