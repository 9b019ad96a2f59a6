"""The light AdamW is torch's fused one, bit by bit, and its state fits torch's."""

from __future__ import annotations

import pytest
import torch

from swiftlet.train.adamw import FusedAdamW
from swiftlet.train.adamw_bf16 import BFloat16AdamW
from swiftlet.train.optim import LIGHT, OptimizerSettings, build_optimizer

SHAPES = [(3, 5), (7,), (4, 4)]
SETTINGS = OptimizerSettings(learning_rate=0.02, weight_decay=0.1)


def groups(dtype=torch.float32):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    return [
        {"params": parameters[:2], "weight_decay": 0.1, "lr": 0.02},
        {"params": parameters[2:], "weight_decay": 0.0, "lr": 0.05},
    ]


def test_updates_are_those_of_torch():
    first, second = groups(), groups()
    torchs = torch.optim.AdamW(first, lr=0.02, betas=(0.9, 0.99), eps=1e-6, fused=True)
    ours = FusedAdamW(second, lr=0.02, betas=(0.9, 0.99), eps=1e-6)
    for step in range(5):
        for optimizer in (torchs, ours):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
                for parameter in group["params"]:
                    parameter.grad = torch.randn_like(parameter)
        if step == 3:
            for given in (first, second):
                given[0]["params"][1].grad = None
        torchs.step()
        ours.step()
    for theirs, mine in zip(first, second, strict=True):
        for a, b in zip(theirs["params"], mine["params"], strict=True):
            assert torch.equal(a, b)
            assert {k: v.tolist() for k, v in torchs.state[a].items()} == {
                k: v.tolist() for k, v in ours.state[b].items()
            }


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("adamw_torch", torch.float32, FusedAdamW),
        ("adamw_torch_fused", torch.float32, FusedAdamW),
        ("adamw_torch", torch.bfloat16, BFloat16AdamW),
        ("sgd", torch.float32, torch.optim.SGD),
    ],
)
def test_it_stands_in_for_adamw_over_fp32_alone(name, dtype, kind):
    optimizer = build_optimizer(name, groups(dtype), SETTINGS, LIGHT)
    assert type(optimizer) is kind
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.02, 0.05]


def test_an_optimizer_of_the_device_wins():
    of_device = {"adamw_torch": lambda g, s: torch.optim.SGD(g, lr=s.learning_rate)}
    own = build_optimizer("adamw_torch", groups(), SETTINGS, {**LIGHT, **of_device})
    assert isinstance(own, torch.optim.SGD)
