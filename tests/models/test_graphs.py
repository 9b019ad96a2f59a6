"""Recorded passes: the losses and gradients of micro-batches that run as they come, whatever their shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from recorder import ATTENTION, Recorder, attend
from tiny_models import save, start_adapters

from swiftlet.data.batching import collate
from swiftlet.device.kernels import DeviceAttention, RowDropout
from swiftlet.models import graphs
from swiftlet.models.attention import segment_attention
from swiftlet.models.causal import build_causal
from swiftlet.models.cross_entropy import Head, linear_cross_entropy
from swiftlet.models.graphs import rounded_up, shape_of
from swiftlet.models.load import load_plain
from swiftlet.models.recording import obstacle, record_passes
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora

CPU = torch.device("cpu")


class Store:
    """Rows of any length, half of each trained on."""

    def __init__(self, lengths, seed=0):
        random = np.random.default_rng(seed)
        self.rows = [random.integers(1, 90, length) for length in lengths]

    def __getitem__(self, index):
        ids = self.rows[index]
        labels = ids.copy()
        labels[: len(ids) // 2] = -100
        return ids, labels


def micro_batch(*lengths, seed=0):
    return collate(Store(lengths, seed), range(len(lengths)))


def build(folder, *, dropout=0.1, **settings):
    model = load_plain(folder, dtype=torch.float32, device=CPU)
    torch.manual_seed(1)
    model = apply_lora(model, LoraSettings(dropout=dropout, target_modules=("ALL",)))
    start_adapters(model)
    return build_causal(model, share_prefixes=False, kernels={"attention": ATTENTION}, **settings).train()


def gradients(causal, batch, seed=7, scale=1.0):
    for parameter in causal.parameters():
        parameter.grad = None
    losses = causal(
        batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T, mask_seed=seed
    )
    (losses.loss_sum * scale).backward()
    return losses, {name: p.grad.clone() for name, p in causal.named_parameters() if p.grad is not None}


def assert_same(one, other):
    (expected, their_grads), (found, our_grads) = one, other
    assert torch.allclose(found.loss_sum, expected.loss_sum, rtol=1e-6)
    assert (int(found.num_correct), found.num_tokens) == (int(expected.num_correct), expected.num_tokens)
    assert their_grads.keys() == our_grads.keys()
    assert their_grads
    for name, grad in their_grads.items():
        assert torch.allclose(our_grads[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max())), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "qwen2"
    save(path, "qwen2")
    return path


def test_every_micro_batch_gives_what_it_gives_as_it_comes(folder):
    plain, recorded, recorder = build(folder), build(folder), Recorder()
    record_passes(recorded, recorder)
    batches = [
        micro_batch(30, 41, 9, seed=1),
        micro_batch(50, 20, 22, seed=2),  # of one shape with the first
        micro_batch(12, 40, 25, seed=3),
        micro_batch(150, 7, seed=4),
        micro_batch(64, seed=5),  # nothing is added
        micro_batch(64, seed=6),
        micro_batch(30, 41, 9, seed=1),
        micro_batch(64, seed=7),
        micro_batch(64, seed=8),
    ]
    for number, batch in enumerate(batches):
        scale = 0.5 ** (number % 3)
        assert_same(gradients(plain, batch, number, scale), gradients(recorded, batch, number, scale))
    assert (recorder.num_recorded, recorder.num_played) == (2, 4)  # of each shape, its third and later ones
    assert recorded.graphs.is_on


def test_gradients_of_several_micro_batches_add_up(folder):
    plain, recorded = build(folder), build(folder)
    record_passes(recorded, Recorder())
    sums = []
    for causal in (plain, recorded):
        for seed in range(6):
            batch = micro_batch(20 + seed, 30, seed=seed)
            inputs = batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T
            causal(*inputs, mask_seed=seed).loss_sum.backward()
        sums.append({name: p.grad for name, p in causal.named_parameters() if p.grad is not None})
    for name, grad in sums[0].items():
        assert torch.allclose(sums[1][name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max())), name


def test_a_pass_that_was_played_again_has_no_gradient_any_more(folder):
    causal = build(folder)
    record_passes(causal, Recorder())
    batch = micro_batch(20, 30)
    inputs = batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T
    for seed in range(3):
        causal(*inputs, mask_seed=seed).loss_sum.backward()
    early = causal(*inputs, mask_seed=1)
    causal(*inputs, mask_seed=2)
    with pytest.raises(RuntimeError, match="before the gradient of the last one"):
        early.loss_sum.backward()


def test_weights_that_changed_are_read_again(folder):
    plain, recorded = build(folder), build(folder)
    record_passes(recorded, Recorder())
    batch = micro_batch(20, 30)
    for _ in range(5):
        assert_same(gradients(plain, batch), gradients(recorded, batch))
        with torch.no_grad():
            for causal in (plain, recorded):
                for parameter in causal.parameters():
                    parameter.add_(parameter.grad if parameter.grad is not None else 0, alpha=-0.1)


def test_what_cannot_be_recorded_runs_as_it_comes_and_says_so(folder):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    said = []
    plain, causal = build(folder), build(folder)
    record_passes(causal, refuse, said.append)
    batch = micro_batch(20, 30)
    for _ in range(3):
        assert_same(gradients(plain, batch), gradients(causal, batch))
    assert said == [
        "passes are not replayed as graphs, each operator is launched by itself: "
        "operation not permitted when stream is capturing"
    ]


def test_the_cause_is_said_where_the_end_of_a_recording_fails_too(folder):
    def refuse(work):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    said, causal = [], build(folder)
    record_passes(causal, refuse, said.append)
    for _ in range(2):
        gradients(causal, micro_batch(20, 30))
    assert len(said) == 1
    assert said[0].endswith("not permitted when stream is capturing")


def test_a_micro_batch_without_a_gradient_says_nothing_about_a_recording(folder):
    causal, recorder, said = build(folder), Recorder(), []
    record_passes(causal, recorder, said.append)
    batch = micro_batch(20, 30)
    for scale in (1.0, 1.0, 0.0, math.nan, 1.0, 1.0):
        for name, parameter in causal.named_parameters():
            if "lora_" in name:
                parameter.data.fill_(scale * 0.01)
        gradients(causal, batch)
    assert said == []
    assert causal.graphs.num_passes == 4
    assert recorder.num_played == 4
    assert len(causal.graphs._trusted) == 1


@pytest.mark.parametrize("play", ["nothing", "the same", "no number"])
def test_a_recording_that_is_wrong_is_found_before_it_is_used(folder, play):
    plain, causal, said = build(folder), build(folder), []

    def capture(work):
        places = work()
        recorded = causal.graphs.gradient.clone()

        def replay():
            if play == "the same":  # as if a number of the host had been recorded
                causal.graphs.gradient.copy_(recorded)
            if play == "no number":
                causal.graphs.gradient.fill_(math.nan)

        return replay, places

    record_passes(causal, capture, said.append)
    for seed in range(5):
        batch = micro_batch(20, 30, seed=seed)
        assert_same(gradients(plain, batch, seed), gradients(causal, batch, seed))
    assert len(said) == 1
    assert "the gradient of a micro-batch differed by" in said[0]
    assert not causal.graphs._recordings  # nor the memory that is theirs


def test_only_so_many_shapes_are_kept(folder, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    plain, causal, recorder = build(folder), build(folder), Recorder()
    record_passes(causal, recorder)
    short, long = micro_batch(20, 30), micro_batch(90, 80)
    for batch in (short, long, long, long, short, short):
        assert_same(gradients(plain, batch), gradients(causal, batch))
    assert (recorder.num_recorded, recorder.num_played) == (1, 1)


def test_evaluation_and_passes_without_a_seed_are_not_recorded(folder):
    causal, recorder = build(folder), Recorder()
    record_passes(causal, recorder)
    batch = micro_batch(20, 30)
    inputs = batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T
    for _ in range(2):
        causal(*inputs)
        causal.eval()
        causal(*inputs, mask_seed=1)
        causal.train()
    assert recorder.num_recorded == 0


def test_shapes():
    assert [rounded_up(number) for number in (1, 64, 65, 1024, 1025, 3000)] == [64, 64, 128, 1024, 1152, 3072]
    found = shape_of(3000, 1700, [0, 1000, 2000, 3000])
    assert found == (3072, 1920, 16, 1024)
    assert shape_of(2049, 2049, [0, 2049]).longest == 4096
    assert shape_of(2056, 8, [0, 1028, 2056]) == (2304, 288, 16, 2048)


def test_positions_that_do_not_count_have_no_part_in_a_head():
    torch.manual_seed(0)
    head = Head(torch.nn.Linear(8, 40), softcap=5.0)
    hidden = torch.randn(6, 8, requires_grad=True)
    targets, counted = torch.tensor([3, 7, 0, 9, 0, 1]), torch.tensor([1.0, 1, 0, 1, 0, 1])
    is_counted = counted > 0
    found, correct = linear_cross_entropy(hidden, targets, head, counted)
    expected, their_correct = linear_cross_entropy(hidden[is_counted], targets[is_counted], head)
    wanted = [hidden, head.module.weight, head.module.bias]
    ours, theirs = torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted)
    assert torch.allclose(found, expected)
    assert correct == their_correct
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not ours[0][~is_counted].any()


def obstacle_of(folder, *, tuner=apply_lora, attention=ATTENTION, dropout=0.1, by_rows=True, **settings):
    model = load_plain(folder, dtype=torch.float32, device=CPU)
    if tuner is apply_lora:
        model = apply_lora(model, LoraSettings(dropout=dropout, target_modules=("ALL",)))
    else:
        tuner(model)
    operator = RowDropout(torch.dropout, torch.dropout) if by_rows else torch.dropout
    kernels = {"attention": attention, "dropout": operator}
    settings = {"share_prefixes": False, "kernels": kernels, **settings}
    return obstacle(build_causal(model, use_fused=True, **settings).train())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"dropout": 0.0, "by_rows": False}, None),
        ({"by_rows": False}, "masks of dropout do not follow"),
        ({"tuner": apply_full}, "the head is trained"),
        ({"attention": segment_attention}, "told of its samples by the host"),
        ({"attention": DeviceAttention(attend, lambda dtype, head_dim: False)}, "does not take these heads"),
        ({"share_prefixes": True}, "equal beginnings are shared"),
        ({"gradient_checkpointing": True}, "layers are recomputed"),
        ({"neftune_alpha": 5.0}, "noise is added"),
    ],
)
def test_what_is_in_the_way_of_recording(folder, settings, reason):
    found = obstacle_of(folder, **settings)
    assert found is None if reason is None else reason in found
