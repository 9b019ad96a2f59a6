"""Numbers that follow from other arguments and the number of processes: arithmetic only."""

from __future__ import annotations

import math
from typing import Any

from swiftlet.config.fields import with_values

SAMPLES_PER_STEP = 16
LEARNING_RATES = {"lora": 1e-4, "full": 1e-5}
# Flags of older commands that nothing reads, with what is done in their place.
NOT_NEEDED = {
    "lazy_tokenize": "rows are tokenised once, before the run, into a file that is mapped",
    "eval_batch_size": "evaluation takes as many samples at once as fit into a micro-batch of training",
}


def inherited(args: Any, world_size: int) -> dict[str, Any]:
    """Return the values of the sft flags that were not given: name -> inherited value."""
    train, output = args.train, args.output
    accumulation = math.ceil(SAMPLES_PER_STEP / train.batch_size / world_size)
    rules = {
        "gradient_accumulation_steps": (train.gradient_accumulation_steps, accumulation),
        "eval_batch_size": (train.eval_batch_size, train.batch_size),
        "learning_rate": (train.learning_rate, LEARNING_RATES[args.tuner.sft_type]),
        "save_steps": (output.save_steps, output.eval_steps),
    }
    return {name: value for name, (given, value) in rules.items() if given is None}


def not_needed(args: Any) -> list[str]:
    """Return a line of the log for each flag that was given and changes nothing."""
    train = args.train
    asked = train.eval_batch_size not in (None, train.batch_size)  # the arguments of a run have it filled in
    given = {"lazy_tokenize": args.data.lazy_tokenize, "eval_batch_size": asked}
    return [f"--{name} is not needed: {NOT_NEEDED[name]}" for name, value in given.items() if value]


def resolve_sft(args: Any, world_size: int) -> Any:
    """Return the arguments of sft with every inherited number filled in."""
    return with_values(args, **inherited(args, world_size))
