"""Inherited numbers follow from the arguments and the number of processes."""

import pytest

from swiftlet.config.args import SftArgs
from swiftlet.config.parse import parse
from swiftlet.config.resolve import inherited, not_needed, resolve_sft


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation"),
    [(1, 1, 16), (1, 4, 4), (1, 8, 2), (8, 1, 2), (3, 4, 2), (1, 32, 1)],
)
def test_sixteen_samples_make_a_step(batch_size, world_size, accumulation):
    args = parse(SftArgs, ["--batch_size", str(batch_size)]).args
    assert resolve_sft(args, world_size).train.gradient_accumulation_steps == accumulation


def test_learning_rate_follows_what_is_trained():
    assert resolve_sft(parse(SftArgs, []).args, 1).train.learning_rate == 1e-4
    assert resolve_sft(parse(SftArgs, ["--sft_type", "full"]).args, 1).train.learning_rate == 1e-5


def test_what_was_given_is_kept_and_not_called_inherited():
    args = parse(SftArgs, "--learning_rate 3e-4 --eval_steps 7 --batch_size 2".split()).args
    assert inherited(args, 1) == {"gradient_accumulation_steps": 8, "eval_batch_size": 2, "save_steps": 7}
    resolved = resolve_sft(args, 1)
    assert (resolved.train.learning_rate, resolved.output.save_steps) == (3e-4, 7)


def test_a_flag_that_nothing_reads_says_what_is_done_in_its_place():
    args = parse(SftArgs, "--lazy_tokenize true --eval_batch_size 4".split()).args

    assert not_needed(args) == [
        "--lazy_tokenize is not needed: rows are tokenised once, before the run, into a file that is mapped",
        "--eval_batch_size is not needed: evaluation takes as many samples at once as fit into a micro-batch of "
        "training",
    ]
    assert not_needed(SftArgs()) == []


def test_the_arguments_of_a_run_say_nothing_of_what_was_filled_in():
    args = parse(SftArgs, ["--batch_size", "4"]).args
    assert not_needed(resolve_sft(args, 1)) == []
