"""Equal beginnings computed once: the same loss and gradients as with every token computed, in every kind of model."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from tiny_models import save, start_adapters

from swiftlet.data.batching import collate
from swiftlet.data.prefixes import LEAST_SHARE
from swiftlet.models.causal import apply_partial_checkpointing, build_causal
from swiftlet.models.load import load_model, load_plain
from swiftlet.models.sharing import _Saved
from swiftlet.models.tuner import LoraSettings, apply_full, apply_lora

CPU = torch.device("cpu")
PROMPT = [1, 40, 41, 42, 43, 44, 45]


class Store:
    """A system prompt before all rows, one question three times, one row of another kind and one a prompt alone."""

    rows = (
        ([*PROMPT, 50, 51, 60, 61, 62], 9),
        ([*PROMPT, 50, 51, 70, 71], 9),
        ([*PROMPT, 50, 51, 72, 73], 9),
        ([*PROMPT, 52, 53, 54, 80], 10),
        ([3, 4, 5, 6], 2),
        ([*PROMPT, 52, 53], 9),
        ([*PROMPT[:4], 90, 91, 92], 5),
    )

    def __getitem__(self, index):
        ids, num_prompt = self.rows[index]
        return np.array(ids), np.array([-100] * num_prompt + ids[num_prompt:])


def micro_batch():
    batch = collate(Store(), range(len(Store.rows)), shares=True)
    assert len(batch.prefixes.first_U) < len(batch.prefixes.source_T) - 20
    assert len(batch.prefixes.copies) > 1  # of several classes
    return batch


def build(folder, *, kind, tuner, dtype=torch.float32, **settings):
    model = (
        load_plain(folder, dtype=dtype, device=CPU)
        if kind == "own"
        else load_model(folder, dtype=dtype, device=CPU)
    )
    torch.manual_seed(1)
    if tuner == "full":
        apply_full(model)
    else:
        model = apply_lora(model, LoraSettings(dropout=0.0, target_modules=("ALL",)))
        start_adapters(model)
    return build_causal(model, **settings).train()


def run(causal, batch, *, shares):
    for parameter in causal.parameters():
        parameter.grad = None
    prefixes = batch.prefixes if shares else None
    losses = causal(batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T, prefixes)
    losses.loss_sum.backward()
    return losses, {name: p.grad for name, p in causal.named_parameters() if p.grad is not None}


def assert_same(one, other, close=1e-5):
    (expected, their_grads), (found, our_grads) = one, other
    assert torch.allclose(found.loss_sum, expected.loss_sum, rtol=close / 10)
    assert (int(found.num_correct), found.num_tokens) == (int(expected.num_correct), expected.num_tokens)
    assert their_grads.keys() == our_grads.keys()
    for name, grad in their_grads.items():
        assert torch.allclose(our_grads[name], grad, rtol=close, atol=close * float(grad.abs().max())), name


@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize(
    ("kind", "architecture", "settings"),
    [
        ("own", "qwen2", {}),
        ("own", "qwen3", {}),
        ("own", "mistral", {"sliding_window": 4}),
        ("transformers", "qwen2", {}),
        ("transformers", "gemma2", {}),
        ("transformers", "gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("transformers", "qwen3_moe", {}),
    ],
)
def test_loss_and_gradients_are_those_of_all_tokens(tmp_path, kind, architecture, settings, tuner):
    save(tmp_path, architecture, **settings)
    batch, causal = micro_batch(), build(tmp_path, kind=kind, tuner=tuner)
    assert_same(run(causal, batch, shares=False), run(causal, batch, shares=True))


@pytest.mark.parametrize("recompute", ["true", "partial"])
def test_recomputing_takes_the_rows_too(tmp_path, recompute):
    save(tmp_path, "qwen2")
    plain = build(tmp_path, kind="own", tuner="lora")
    again = build(tmp_path, kind="own", tuner="lora", gradient_checkpointing=recompute == "true")
    if recompute == "partial":
        apply_partial_checkpointing(again)
    batch = micro_batch()
    assert_same(run(plain, batch, shares=True), run(again, batch, shares=True))


def test_shorter_types_differ_by_their_rounding_only(tmp_path):
    save(tmp_path, "qwen2")
    batch, causal = micro_batch(), build(tmp_path, kind="own", tuner="lora", dtype=torch.bfloat16)
    assert_same(run(causal, batch, shares=False), run(causal, batch, shares=True), close=5e-2)


def test_twice_the_same_to_the_last_bit(tmp_path):
    save(tmp_path, "qwen2")
    batch, causal = micro_batch(), build(tmp_path, kind="own", tuner="full")
    (_, first), (_, second) = (run(causal, batch, shares=True) for _ in range(2))
    assert all(torch.equal(grad, second[name]) for name, grad in first.items())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_attention_keeps_rows_and_not_tokens(tmp_path, gradient_checkpointing):
    save(tmp_path, "qwen2")
    causal, batch = build(tmp_path, kind="own", tuner="full"), micro_batch()
    if gradient_checkpointing:
        causal = build(tmp_path, kind="own", tuner="full", gradient_checkpointing=True)
    losses = causal(
        batch.input_ids_T, batch.position_ids_T, batch.cu_seqlens, batch.targets_T, batch.prefixes
    )
    gc.collect()
    kept = [saved for saved in gc.get_objects() if type(saved) is _Saved]
    num_rows, num_layers = len(batch.prefixes.first_U), len(causal.model.model.layers)
    held = [len(saved.rows_UF) for saved in kept if saved.rows_UF is not None]
    # queries, keys, values and the output; what is computed again is not kept at all
    assert held == ([] if gradient_checkpointing else [num_rows] * 4 * num_layers)
    for saved in kept:
        assert saved.tensor is None or saved.tensor.numel() <= len(batch.targets_T) * 8  # a sum for each head
    losses.loss_sum.backward()


def test_a_token_costs_more_of_a_row_where_layers_are_computed_again(tmp_path):
    save(tmp_path, "qwen2")
    kept, again, each = (
        build(tmp_path, kind="own", tuner="full", **settings).token_cost
        for settings in ({}, {"gradient_checkpointing": True}, {"share_prefixes": False})
    )
    assert LEAST_SHARE <= kept < again < 1
    assert each is None


def test_an_output_of_attention_that_is_changed_in_place_is_seen(tmp_path):
    save(tmp_path, "qwen2")
    causal, batch = build(tmp_path, kind="own", tuner="full"), micro_batch()
    layer = causal.model.model.layers[0].self_attn
    plain = layer.forward
    layer.forward = lambda *args: plain(*args).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        run(causal, batch, shares=True)


def rows_of_first_layer(causal, batch):
    seen = []
    layer = causal.model.model.layers[0]
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    run(causal, batch, shares=True)
    handle.remove()
    return seen


def test_layers_see_each_beginning_once(tmp_path):
    save(tmp_path, "qwen2")
    batch = micro_batch()
    assert rows_of_first_layer(build(tmp_path, kind="own", tuner="full"), batch) == [
        len(batch.prefixes.first_U)
    ]


@pytest.mark.parametrize(
    "settings", [{"share_prefixes": False}, {"neftune_alpha": 5.0}], ids=["off", "neftune"]
)
def test_every_token_is_computed_where_it_must_be(tmp_path, settings):
    save(tmp_path, "qwen2")
    batch = micro_batch()
    assert rows_of_first_layer(build(tmp_path, kind="own", tuner="full", **settings), batch) == [
        len(batch.targets_T)
    ]
