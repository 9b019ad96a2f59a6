"""Learning rates equal those of transformers, whose names they bear."""

import pytest
import torch
from transformers import get_scheduler

from swiftlet.errors import UsageError
from swiftlet.train.schedule import SCHEDULES, build_schedule, num_warmup_steps

SPECIFIC = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4, "min_lr_ratio": 0.0},
}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_schedule_equals_that_of_transformers(name, warmup):
    total, peak = 40, 1e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        scheduler_specific_kwargs=SPECIFIC.get(name),
    )
    ours = build_schedule(name, warmup=warmup, total=total, peak=peak)
    for step in range(total):
        assert ours(step) * peak == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        optimizer.step()
        theirs.step()


def test_warm_up_is_a_share_rounded_up_or_a_number():
    assert num_warmup_steps(3090, 0.05) == 155
    assert num_warmup_steps(3090, 0.05, 7) == 7
    assert num_warmup_steps(10, 0.0, 0) == 0


def test_an_unknown_schedule_is_named():
    with pytest.raises(UsageError, match="unknown --lr_scheduler_type 'liner'") as caught:
        build_schedule("liner", warmup=0, total=1)
    assert caught.value.hint == "did you mean linear?"
