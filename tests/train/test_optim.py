"""Optimizers by name, and what decays."""

import pytest
import torch
from toy import Toy

from swiftlet.errors import UsageError
from swiftlet.train.optim import OPTIMIZERS, OptimizerSettings, build_groups, build_optimizer, no_decay_names

SETTINGS = OptimizerSettings(learning_rate=1e-2, weight_decay=0.3)


def test_biases_and_norms_do_not_decay():
    assert no_decay_names(Toy()) == {"norm.weight", "norm.bias", "head.bias"}


def test_a_norm_is_known_by_its_class_name_too():
    class FancyRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

    assert no_decay_names(torch.nn.ModuleDict({"a": FancyRMSNorm()})) == {"a.scale"}


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out():
    model = Toy()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "head.weight")
    (group,) = build_groups(model, SETTINGS)
    assert group == {"params": [model.head.weight], "weight_decay": 0.3, "lr": 1e-2}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_loss_and_knows_its_peak(name):
    model = Toy(dropout=0.0)
    optimizer = build_optimizer(name, build_groups(model, SETTINGS), SETTINGS)
    assert all(group["initial_lr"] == 1e-2 for group in optimizer.param_groups)
    ids = torch.arange(1, 9)
    before = model(ids, None, [0, 8], ids).loss_sum
    before.backward()
    optimizer.step()
    assert model(ids, None, [0, 8], ids).loss_sum < before


def test_unknown_and_unavailable_optimizers_say_what_to_type():
    with pytest.raises(UsageError, match="unknown --optim 'adamw_torc'") as caught:
        build_optimizer("adamw_torc", [], SETTINGS)
    assert "did you mean adamw_torch?" in str(caught.value)
    with pytest.raises(UsageError, match="--optim adamw_torch_npu_fused is not available") as caught:
        build_optimizer("adamw_torch_npu_fused", [], SETTINGS)
    assert "--optim adamw_torch" in caught.value.hint


def test_a_device_brings_its_own_optimizer():
    model = Toy()
    groups = build_groups(model, SETTINGS)
    extra = {"adamw_torch": lambda groups, s: torch.optim.SGD(groups, lr=s.learning_rate)}
    assert isinstance(build_optimizer("adamw_torch", groups, SETTINGS, extra), torch.optim.SGD)


def test_fused_is_refused_where_torch_has_no_kernel():
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(UsageError, match="torch has no fused AdamW for meta"):
        build_optimizer("adamw_torch_fused", [{"params": [parameter]}], SETTINGS)
