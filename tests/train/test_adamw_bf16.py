"""AdamW over bf16 weights: unbiased rounding, the same path as fp32, and the same numbers after a restart."""

from __future__ import annotations

import copy

import pytest
import torch

from swiftlet.train import adamw_bf16
from swiftlet.train.adamw_bf16 import BFloat16AdamW, round_randomly
from swiftlet.train.optim import OptimizerSettings, build_optimizer

RATE = 1e-5


def rounded(values, times=4000):
    generator = torch.Generator().manual_seed(0)
    out = torch.empty(times, len(values), dtype=torch.bfloat16)
    round_randomly(out, values.repeat(times, 1).contiguous(), generator)
    return out


def test_rounding_keeps_the_mean_and_takes_neighbours_only():
    values = torch.tensor([1.0, 1.001, -1.001, 3e-5, -0.3333, 0.0])
    found = rounded(values)
    step = values.abs() * 2**-7
    assert torch.all((found.float() - values).abs() <= step)
    assert torch.allclose(found.float().mean(0), values, atol=float(step.max()) * 0.05)
    assert (
        found[:, 0].unique().numel() == 1 and found[:, 1].unique().numel() == 2
    )  # a bf16 number stays itself


def train(dtype, optimizer, steps=200):
    """Follow a noisy but steady gradient; return how far the weights have moved."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64).mul_(0.02).to(torch.bfloat16).to(dtype))
    start = weight.detach().float().clone()
    built = optimizer([{"params": [weight], "weight_decay": 0.0}])
    for _ in range(steps):
        weight.grad = (1e-3 * (torch.randn(64, 64) + 2)).to(torch.bfloat16).to(dtype)
        built.step()
    return weight.detach().float() - start


def make(groups):
    return BFloat16AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)


def test_small_updates_add_up_as_in_fp32():
    def torch_adamw(groups):
        return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)

    wide = train(torch.float32, torch_adamw)
    ours, lossy = train(torch.bfloat16, make), train(torch.bfloat16, torch_adamw)
    assert float(ours.mean() / wide.mean()) == pytest.approx(1, abs=0.05)
    assert float(lossy.mean() / wide.mean()) < 0.6  # what rounding to the nearest makes of the same run


def test_fp32_weights_get_the_update_of_torch():
    def torch_adamw(groups):
        return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)

    assert torch.allclose(
        train(torch.float32, make, 5), train(torch.float32, torch_adamw, 5), rtol=0, atol=1e-8
    )


def test_the_same_numbers_after_a_restart_and_in_chunks_of_one_run(monkeypatch):
    torch.manual_seed(0)
    grads = [torch.randn(7, 9, dtype=torch.bfloat16) for _ in range(6)]
    start = torch.randn(7, 9, dtype=torch.bfloat16)
    whole, cut = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one, other = make([whole]), make([cut])
    for number, grad in enumerate(grads):
        whole.grad, cut.grad = grad.clone(), grad.clone()
        one.step()
        other.step()
        if number == 2:
            saved = copy.deepcopy(other.state_dict())
            other = make([cut])
            other.load_state_dict(saved)
    assert torch.equal(whole, cut)
    monkeypatch.setattr(adamw_bf16, "CHUNK", 10)
    whole.grad = grads[0].clone()
    one.step()
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_hf", "adamw_torch_fused"])
def test_it_is_chosen_where_weights_are_bf16(name):
    def built(*dtypes):
        parameters = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes]
        return build_optimizer(name, [{"params": parameters}], OptimizerSettings(RATE))

    assert isinstance(built(torch.float32, torch.bfloat16), BFloat16AdamW)
    assert isinstance(built(torch.float32), torch.optim.AdamW)
