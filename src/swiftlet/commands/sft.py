"""`swift sft`: everything that a fine-tuning run needs, built in order and handed to the loop.

First what needs no torch: names, the folder, the checkpoint to continue, the tokenised data. Then the device, the
model, the engine, the loop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftlet import heartbeat, log
from swiftlet.commands.model_source import (
    Source,
    apply_environment,
    cache_folder,
    check_trainable,
    find_source,
    longest_sample,
    open_template,
    unknown_names,
    warn_of_devices,
)
from swiftlet.commands.run_folder import BASE_HASH, DATA_HASH, RESUMED, VARIABLE, run_folder, runs_root
from swiftlet.commands.step_size import fit_step
from swiftlet.config.args import SftArgs
from swiftlet.config.check import check_sft
from swiftlet.config.parse import Parsed, parse_mapping
from swiftlet.config.resolve import inherited, resolve_sft
from swiftlet.device.possible import impossible
from swiftlet.errors import SwiftletError, raise_all
from swiftlet.models.identity import base_hash
from swiftlet.startup import without_collector
from swiftlet.train.resume import Checkpoint, choose_checkpoint, trusted_checkpoint

if TYPE_CHECKING:
    from swiftlet.data.prepare import Prepared
    from swiftlet.data.template import Template

ARGS = SftArgs
EXAMPLE = (
    "swift sft --model_type qwen1half-7b-chat --dataset blossom-math-zh --sft_type lora --output_dir output"
)


class Outcome(NamedTuple):
    """Where everything is after a run, and how it went."""

    output_dir: str
    last_checkpoint: str | None
    best_checkpoint: str | None
    num_steps: int
    metric: float | None


class Ready(NamedTuple):
    """What is known before torch is imported."""

    source: Source
    template: Template
    max_length: int
    checkpoint: Checkpoint | None
    folder: Path
    data: Prepared


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    args = parsed.args
    devices = args.parallel
    wrong = impossible(devices.device, environ, backend=devices.ddp_backend, optim=args.train.optim)
    return [*check_sft(parsed), *unknown_names(args.model, args.data, is_trained=True), *wrong]


def prepare(parsed: Parsed) -> dict[str, str]:
    """Make everything ready before the processes of a run exist; return what they find in their environment.

    Raises:
        SwiftletError: the model, the data or the checkpoint cannot be used.
    """
    warn_of_devices(parsed.args.parallel.device, os.environ)
    ready = get_ready(parsed.args, os.environ)
    show_sample(ready)
    checkpoint = str(ready.checkpoint.path) if ready.checkpoint else ""
    return {
        VARIABLE: str(ready.folder),
        RESUMED: checkpoint,
        DATA_HASH: ready.data.data_hash,
        BASE_HASH: base_hash(ready.source.folder),
    }


def get_ready(args: Any, environ: Mapping[str, str]) -> Ready:
    """Return what is known before torch is imported: the model's folder, the run's folder and the tokenised data."""
    from swiftlet.data.prepare import prepare as prepare_data

    source = find_source(args.model)
    check_trainable(source.folder)
    _, template = open_template(
        source.folder, template_type=args.model.template_type, system=args.model.system
    )
    checkpoint = _checkpoint(args.output, source.name, environ)
    folder = run_folder(args.output, source.name, checkpoint.path if checkpoint else None)
    max_length = longest_sample(args.data.max_length, source.folder)
    heartbeat.beat("tokenise")
    data = prepare_data(
        args.data, template, max_length=max_length, cache_dir=cache_folder(environ), output_dir=folder
    )
    return Ready(source, template, max_length, checkpoint, folder, data)


def _checkpoint(output: Any, name: str, environ: Mapping[str, str]) -> Checkpoint | None:
    told = environ.get(RESUMED)
    if told is not None:  # the launcher has checked every byte of it
        return trusted_checkpoint(Path(told)) if told else None
    if output.resume_from_checkpoint is None:
        return None
    found = choose_checkpoint(output.resume_from_checkpoint, runs_root(output, name))
    if found is None:
        log.info(f"no checkpoint below {runs_root(output, name)}: the run starts from its beginning")
    return found


def show_sample(ready: Ready) -> None:
    """Log one sample with its masked part visible."""
    ids, labels = ready.data.train[0]
    log.info("one sample, [masked] and trained:\n" + ready.template.show_ids(ids.tolist(), labels.tolist()))


def run(parsed: Parsed) -> int:
    """Fine-tune; return the exit code."""
    fine_tune(parsed)
    return 0


def call(options: Mapping[str, Any]) -> Outcome:
    """Fine-tune with keyword options, as the Python API does; return where everything is.

    Raises:
        SwiftletError: a mistake in the options, or a run that failed.
    """
    parsed = parse_mapping(ARGS, options)
    raise_all(check(parsed, os.environ))
    return fine_tune(parsed)


def fine_tune(parsed: Parsed) -> Outcome:
    """Make the run that the arguments describe, as one of its processes."""
    with heartbeat.answering():
        heartbeat.beat("start")
        world_size = log.world_size()
        args = resolve_sft(parsed.args, world_size)
        for name, value in inherited(parsed.args, world_size).items():
            log.info(f"{name} is {value:g} (not given)")
        is_alone = VARIABLE not in os.environ
        if is_alone:
            warn_of_devices(args.parallel.device, os.environ)
        with log.silent(not is_alone):  # the launcher has said it
            ready = get_ready(args, os.environ)
        is_given = parsed.args.train.gradient_accumulation_steps is not None
        args = fit_step(args, ready.checkpoint, world_size, is_given=is_given)
        if is_alone:
            show_sample(ready)
        from swiftlet.device.settings import environment

        apply_environment(
            environment(
                args.parallel.device,
                os.environ,
                timeout_s=args.parallel.ddp_timeout,
                deterministic=args.train.deterministic,
            )
        )
        with without_collector():
            from swiftlet.commands.training import train_model

        outcome = train_model(args, ready)
        heartbeat.beat("end", outcome.num_steps)
        return outcome
