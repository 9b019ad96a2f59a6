"""Rows rounded up: the same loss and gradients as without the rows that were added, and which models ask for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make, save, start_adapters

from swiftlet.data.batching import collate
from swiftlet.models import rounding
from swiftlet.models.causal import apply_partial_checkpointing, build_causal
from swiftlet.models.load import load_model, load_plain
from swiftlet.models.rounding import MULTIPLE, Tokens, rounded, rounded_rows, row_multiple
from swiftlet.models.tuner import LoraSettings, apply_lora

CPU = torch.device("cpu")


class Store:
    """Rows that begin alike, and one of another kind; more than half of the tokens are trained on."""

    rows = (
        ([1, 40, 41, 42, 50, 60, 61, 62, 63], 4),
        ([1, 40, 41, 42, 51, 70, 71], 4),
        ([1, 40, 41, 42, 51, 72, 73], 5),
        ([3, 4, 5, 6, 7, 8], 1),
    )

    def __getitem__(self, index):
        ids, num_prompt = self.rows[index]
        return np.array(ids), np.array([-100] * num_prompt + ids[num_prompt:])


def batch(*, shares):
    made = collate(Store(), range(len(Store.rows)), shares=True)
    assert made.prefixes is not None
    tokens = made.input_ids_T, made.position_ids_T, made.cu_seqlens, made.targets_T
    return Tokens(*tokens, made.prefixes if shares else None)


def build(folder, *, is_own=True, dtype=torch.float32, **settings):
    model = (load_plain if is_own else load_model)(folder, dtype=dtype, device=CPU)
    torch.manual_seed(1)
    model = apply_lora(model, LoraSettings(dropout=0.25, target_modules=("ALL",)))
    start_adapters(model)
    return build_causal(model, **settings).train()


def run(causal, tokens, multiple):
    causal.row_multiple = multiple
    for parameter in causal.parameters():
        parameter.grad = None
    losses = causal(*tokens, mask_seed=5)
    losses.loss_sum.backward()
    return losses, {name: p.grad for name, p in causal.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("multiple", [2, 8, 32])
@pytest.mark.parametrize("is_own", [True, False])
def test_added_rows_change_neither_loss_nor_gradient(tmp_path, is_own, multiple, shares):
    save(tmp_path)
    causal = build(tmp_path, is_own=is_own)
    tokens = batch(shares=shares)
    expected, right = run(causal, tokens, 1)
    found, grads = run(causal, tokens, multiple)
    torch.testing.assert_close(found.loss_sum, expected.loss_sum, rtol=1e-6, atol=0)
    assert (int(found.num_correct), found.num_tokens) == (int(expected.num_correct), expected.num_tokens)
    assert grads.keys() == right.keys()
    for name, grad in right.items():
        bound = 1e-5 * float(grad.abs().max())
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=bound, msg=name)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {}])
def test_layers_that_are_computed_again_have_the_added_rows_too(tmp_path, settings):
    save(tmp_path)
    causal = build(tmp_path, **settings)
    if not settings:
        apply_partial_checkpointing(causal)
    tokens = batch(shares=True)
    (expected, right), (found, grads) = run(causal, tokens, 1), run(causal, tokens, 8)
    torch.testing.assert_close(found.loss_sum, expected.loss_sum, rtol=1e-6, atol=0)
    for name, grad in right.items():
        torch.testing.assert_close(
            grads[name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()), msg=name
        )


def test_all_numbers_of_rows_are_multiples(tmp_path, monkeypatch):
    save(tmp_path)
    causal, seen = build(tmp_path, dtype=torch.bfloat16), set()
    assert causal.row_multiple == MULTIPLE
    real = torch.mm

    def noted(left, right, **options):
        seen.update(size for size in left.shape if size not in (8, 16, 24, 32, 48, 120))
        return real(left, right, **options)

    monkeypatch.setattr(torch, "mm", noted)
    losses = causal(*batch(shares=False), mask_seed=5)
    losses.loss_sum.backward()
    assert seen <= {64, 15, 16}, seen  # the head alone has as many rows as there are labels


def test_a_sample_of_zeros_goes_last():
    tokens = batch(shares=True)
    num_tokens, num_rows = len(tokens.input_ids_T), len(tokens.prefixes.first_U)
    found = rounded(tokens, 16, -100)
    added = -num_rows % 16
    assert 0 < added == len(found.input_ids_T) - num_tokens == len(found.prefixes.first_U) - num_rows
    assert found.cu_seqlens == [*tokens.cu_seqlens, num_tokens + added]
    assert not found.input_ids_T[num_tokens:].any() and (found.targets_T[num_tokens:] == -100).all()
    assert found.position_ids_T[num_tokens:].tolist() == list(range(added))
    rows = found.prefixes
    assert (rows.source_T[rows.first_U] == np.arange(len(rows.first_U))).all()
    assert rounded(found, 16, -100) is found


def test_rows_of_the_last_layer():
    asked = torch.tensor([7, 2, 5])
    wanted, places = rounded_rows(asked, 20, 4)
    assert wanted.tolist() == [0, 2, 5, 7] and wanted[places].tolist() == asked.tolist()
    for rows, num_rows, multiple in ((asked, 4, 4), (asked, 3, 4), (asked, 20, 3), (asked[:0], 20, 4)):
        found, places = rounded_rows(rows, num_rows, multiple)
        assert found is rows and places is None


def test_which_models_ask_for_them(monkeypatch):
    model = make("qwen2")
    assert row_multiple(model) == 1
    assert row_multiple(model.to("meta").bfloat16()) == 1
    short = make("qwen2").bfloat16()
    assert row_multiple(short) == MULTIPLE
    monkeypatch.setattr(rounding, "MOST_PARAMETERS", 1000)
    assert row_multiple(short) == 1
