"""`swift sft`: everything that a fine-tuning run needs, built in order and handed to the loop.

First what needs no torch: names, the folder, the checkpoint to continue, the tokenised data. Then the device, the
model, the engine, the loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftlet import heartbeat, log
from swiftlet.commands.model_source import (
    Source,
    apply_environment,
    check_trainable,
    check_within_reach,
    find_source,
    longest_sample,
    open_template,
    unknown_names,
    warn_of_devices,
)
from swiftlet.commands.run_folder import (
    BASE_HASH,
    DATA_HASH,
    PRINTED_DATE,
    RESUMED,
    VARIABLE,
    holds_run,
    read_args,
    run_folder,
    runs_root,
    set_aside_former,
    shaping_settings,
)
from swiftlet.commands.step_size import fit_step
from swiftlet.config.args import SftArgs
from swiftlet.config.check import check_sft
from swiftlet.config.filenames import BAD_ROWS
from swiftlet.config.parse import Parsed, parse_mapping
from swiftlet.config.places import cache_folder, expanded
from swiftlet.config.resolve import NOT_NEEDED, inherited, not_needed, resolve_sft
from swiftlet.device.possible import impossible
from swiftlet.errors import SwiftletError, UsageError, raise_all
from swiftlet.models.base_hash import base_hash
from swiftlet.startup import freed_afterwards, without_collector
from swiftlet.train.lock import locked
from swiftlet.train.manifest import PREFIX, Identity
from swiftlet.train.resume import (
    AUTO,
    Checkpoint,
    choose_checkpoint,
    list_checkpoints,
    trusted_checkpoint,
)

if TYPE_CHECKING:
    from swiftlet.data.prepare import Prepared
    from swiftlet.data.template import Template
    from swiftlet.device.spec import Device
    from swiftlet.parallel.world import World
    from swiftlet.train.state import TrainState

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


def outcome_of(folder: Path, steps: Sequence[int], state: TrainState) -> Outcome:
    """Return the outcome of a run in `folder` that has checkpoints of these steps."""
    saved = {step: str(folder / f"{PREFIX}{step}") for step in sorted(steps)}
    last = list(saved.values())[-1] if saved else None
    return Outcome(str(folder), last, saved.get(state.best_step), state.global_step, state.best_metric)


class Ready(NamedTuple):
    """What is known before torch is imported."""

    source: Source
    template: Template
    max_length: int
    checkpoint: Checkpoint | None
    folder: Path
    data: Prepared


class Setup(NamedTuple):
    """A run as one of its processes has it: what was asked for, what is ready, its device and the other processes."""

    args: Any
    ready: Ready
    device: Device
    world: World


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    args = parsed.args
    devices = args.parallel
    wrong = impossible(devices.device, environ, backend=devices.ddp_backend, optim=args.train.optim)
    mistakes = [*check_sft(parsed), *unknown_names(args.model, args.data, is_trained=True), *wrong]
    if devices.deepspeed and find_spec("deepspeed") is None:
        mistakes.append(
            UsageError("--deepspeed needs DeepSpeed, which is not installed", "pip install deepspeed")
        )
    return mistakes


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
        PRINTED_DATE: ready.template.printed_date,
    }


def get_ready(args: Any, environ: Mapping[str, str]) -> Ready:
    """Return what is known before torch is imported: the model's folder, the run's folder and the tokenised data."""
    from swiftlet.data.prepare import prepare as prepare_data

    check_within_reach(args.model, args.data)
    source = find_source(args.model)
    check_trainable(source.folder)
    checkpoint = _checkpoint(args, source, environ)
    template = _template(args.model, source, checkpoint, environ)
    max_length = longest_sample(args.data.max_length, source.folder)
    heartbeat.beat("tokenise")
    is_new = args.output.resume_from_checkpoint is None and VARIABLE not in environ and log.rank() == 0
    with run_folder(args.output, source.name, checkpoint.path if checkpoint else None) as folder:
        data = prepare_data(
            args.data,
            template,
            max_length=max_length,
            cache_dir=cache_folder(environ),
            bad_rows=folder / BAD_ROWS,
            refused_rows=folder / f"refused-{BAD_ROWS}" if is_new and holds_run(folder) else None,
            claim=partial(set_aside_former, folder) if is_new else lambda: None,
        )
    return Ready(source, template, max_length, checkpoint, folder, data)


def _template(
    model: Any, source: Source, checkpoint: Checkpoint | None, environ: Mapping[str, str]
) -> Template:
    """Return the template of a run. One that prints the date keeps to the day the run began on: past midnight the rows
    would be others than those of the checkpoint, or of the launcher.
    """
    day = environ.get(PRINTED_DATE) or ""
    if checkpoint is not None:
        day = str(read_args(checkpoint.path).get("printed_date") or day)
    _, template = open_template(
        source.folder, template_type=model.template_type, system=model.system, day=day
    )
    if checkpoint is not None and template.printed_date:
        log.info(f"the chat template prints {template.printed_date}, the day on which the run began")
    return template


def _checkpoint(args: Any, source: Source, environ: Mapping[str, str]) -> Checkpoint | None:
    told, output = environ.get(RESUMED), args.output
    if told is not None:  # the launcher has checked every byte of it
        return trusted_checkpoint(Path(told)) if told else None
    if output.resume_from_checkpoint is None:
        return None
    asked = str(expanded(output.resume_from_checkpoint))
    root, foreign = runs_root(output, source.name), _foreign(args, source)
    place = root if asked == AUTO else Path(asked)
    is_first = VARIABLE not in environ and log.rank() == 0
    while True:
        with log.silent():  # choosing says what is to be said
            seen = list_checkpoints(place)
        found = choose_checkpoint(asked, root, foreign)
        if is_first:
            _check_idle(found.path.parent if found else root)
        with log.silent():
            is_settled = not is_first or seen == list_checkpoints(place)
        if is_settled:
            break
    is_first_node = not int(environ.get("NODE_RANK") or 0)  # another one goes on with what node 0 finds
    if found is None and is_first_node:
        log.info(f"no checkpoint below {root}: the run starts from its beginning")
    return found


def _check_idle(folder: Path) -> None:
    """Check that no run is under way in a folder: a stopped one that still saves would change what is to be continued.

    Raises:
        UsageError: there is one, or the folder cannot be written.
    """
    if folder.is_dir():
        with locked(folder):
            pass


def _foreign(args: Any, source: Source) -> Callable[[Identity], list[str]]:
    """Return what tells checkpoints of another run, as far as it is known before the data and the device are."""
    if args.output.resume_override:
        return lambda identity: []
    base, settings = base_hash(source.folder), shaping_settings(resolve_sft(args, 1))
    if settings["dtype"] == "AUTO":
        del settings["dtype"]
    return lambda theirs: theirs.differences(
        replace(theirs, base_model=base, settings={**theirs.settings, **settings})
    )


def show_sample(ready: Ready) -> None:
    """Log one sample with its masked part visible, and what it lacks of the prompt that the model is asked with."""
    ids, labels = (array.tolist() for array in ready.data.train[0])
    template = ready.template
    log.info("one sample, [masked] and trained:\n" + template.show_ids(ids, labels))
    missing = template.unprinted_prompt
    if missing and missing not in template.tokenizer.decode(ids):
        log.warning(
            f"chat template {template.name!r} ends the prompt for an answer with {missing!r}, which this sample does "
            "not have: at inference the model goes on from there, and is not trained to. Give answers that have it "
            "(with their thoughts, say), or choose another template with --template_type"
        )


def run(parsed: Parsed) -> int:
    """Fine-tune; return the exit code."""
    fine_tune(parsed)
    return 0


def call(options: Mapping[str, Any], found: Sequence[SwiftletError] = ()) -> Outcome:
    """Fine-tune with keyword options, as the Python API does; return where everything is.

    Raises:
        SwiftletError: a mistake in the options, or a run that failed.
    """
    parsed = parse_mapping(ARGS, options)
    raise_all([*check(parsed, os.environ), *found])
    with freed_afterwards():
        return fine_tune(parsed)


def fine_tune(parsed: Parsed) -> Outcome:
    """Make the run that the arguments describe, as one of its processes."""
    with heartbeat.answering():
        heartbeat.beat("start")
        world_size = log.world_size()
        args = resolve_sft(parsed.args, world_size)
        for name, value in inherited(parsed.args, world_size).items():
            if name not in NOT_NEEDED:
                log.info(f"{name} is {value:g} (not given)")
        for line in not_needed(parsed.args):
            log.info(line)
        is_alone = VARIABLE not in os.environ
        if is_alone:
            warn_of_devices(args.parallel.device, os.environ)
        with log.silent(not is_alone):  # the launcher has said it
            ready = get_ready(args, os.environ)
        is_given = parsed.args.train.gradient_accumulation_steps is not None
        args = fit_step(args, ready.checkpoint, world_size, is_given=is_given)
        if is_alone:
            show_sample(ready)
        apply_environment(
            args.parallel.device, timeout_s=args.parallel.ddp_timeout, deterministic=args.train.deterministic
        )
        with without_collector():
            from swiftlet.commands.training import train_model

        outcome = train_model(args, ready)
        heartbeat.beat("end", outcome.num_steps)
        return outcome
