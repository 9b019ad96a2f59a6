"""A resumed run keeps the samples of a step on another number of processes, or names the numbers that fit."""

from pathlib import Path

import pytest

from swiftlet.commands.step_size import fit_step
from swiftlet.config.args import SftArgs
from swiftlet.config.parse import parse_mapping
from swiftlet.config.resolve import resolve_sft
from swiftlet.errors import UsageError
from swiftlet.train.manifest import Identity, Manifest
from swiftlet.train.resume import Checkpoint


def fitted(world_size, step_size=16, **options):
    args = parse_mapping(SftArgs, {"model_type": "m", "dataset": "d", **options}).args
    is_given = args.train.gradient_accumulation_steps is not None
    manifest = Manifest(4, 1, Identity(settings={"step_size": step_size}), "test", {})
    checkpoint = Checkpoint(Path("run/checkpoint-4"), manifest)
    return fit_step(resolve_sft(args, world_size), checkpoint, world_size, is_given=is_given).train


def test_accumulation_follows_where_it_was_not_given():
    assert fitted(2, step_size=24).gradient_accumulation_steps == 12
    assert fitted(4, batch_size=2, step_size=24).gradient_accumulation_steps == 3
    assert fitted(4, batch_size=2, gradient_accumulation_steps=2).gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    "world_size, options, said, hint",
    [
        (3, {}, "1 x 6 x 3 processes = 18", "use one of 1, 2, 4, 8, 16 processes, or add --resume_override"),
        (2, {"gradient_accumulation_steps": 4}, "= 8", "--batch_size 1 --gradient_accumulation_steps 8"),
        (4, {"batch_size": 3}, "= 24", "--batch_size 1 --gradient_accumulation_steps 4"),
    ],
)
def test_numbers_that_do_not_fit(world_size, options, said, hint):
    with pytest.raises(UsageError) as caught:
        fitted(world_size, **options)
    assert "run/checkpoint-4 was made with 16 samples a step" in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_nothing_to_fit():
    args = resolve_sft(parse_mapping(SftArgs, {"model_type": "m", "dataset": "d"}).args, 3)
    assert fit_step(args, None, 3, is_given=False) is args
    assert fitted(3, resume_override=True).gradient_accumulation_steps == 6
