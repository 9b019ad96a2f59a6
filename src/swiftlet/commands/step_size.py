"""A resumed run keeps the samples of a step, whatever its number of processes, or says which numbers would fit."""

from __future__ import annotations

from typing import Any

from swiftlet import log
from swiftlet.config.fields import with_values
from swiftlet.errors import UsageError
from swiftlet.train.resume import Checkpoint


def fit_step(args: Any, checkpoint: Checkpoint | None, world_size: int, *, is_given: bool) -> Any:
    """Return the arguments with batches a step such that a step has as many samples as in the checkpoint.

    Args:
        is_given: the user has given --gradient_accumulation_steps.

    Raises:
        UsageError: with this number of processes and these arguments a step has another size.
    """
    size = checkpoint.manifest.identity.settings.get("step_size") if checkpoint is not None else None
    train, once = args.train, args.train.batch_size * world_size
    if size is None or size == once * train.gradient_accumulation_steps or args.output.resume_override:
        return args
    if size % once == 0 and not is_given:
        log.info(f"gradient_accumulation_steps is {size // once}: a step keeps its {size} samples")
        return with_values(args, gradient_accumulation_steps=size // once)
    found = f"{train.batch_size} x {train.gradient_accumulation_steps} x {world_size} processes"
    fitting = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
    if size % world_size == 0:
        batch = train.batch_size if size % once == 0 else 1
        hint = f"type --batch_size {batch} --gradient_accumulation_steps {size // world_size // batch}"
    else:
        hint = f"use one of {fitting} processes, or add --resume_override true: steps have another size from there on"
    raise UsageError(
        f"{checkpoint.path} was made with {size} samples a step; --batch_size x --gradient_accumulation_steps x "
        f"processes gives {found} = {once * train.gradient_accumulation_steps}",  # type: ignore[union-attr]
        hint,
    )
