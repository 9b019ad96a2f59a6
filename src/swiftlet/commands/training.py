"""The second half of `swift sft`: device, model, engine and loop, built in order.

Every process of the run goes through the same lines; only the first one writes files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from swiftlet import heartbeat, log
from swiftlet.commands.device_setup import bind_to_device, open_own_device
from swiftlet.commands.engine_setup import Trainer, build_engine
from swiftlet.commands.evaluation import build_evaluator
from swiftlet.commands.model_setup import build_model, needs_even_passes
from swiftlet.commands.planning import schedule_of
from swiftlet.commands.run_folder import OF_THE_WEIGHTS, args_text, data_changes, shaping_settings, write_args
from swiftlet.commands.saving import build_saver
from swiftlet.commands.sft import Outcome, Ready, Setup, outcome_of
from swiftlet.commands.steering import Steered, steer
from swiftlet.config.fields import with_values
from swiftlet.data.batching import Batches, collate
from swiftlet.data.cutting import Schedule, num_steps
from swiftlet.data.loader import load_steps
from swiftlet.device.spec import Device, dtype_name, resolve_dtype
from swiftlet.errors import OutOfMemoryError, first_line
from swiftlet.models import tuner
from swiftlet.models.arena import trim
from swiftlet.models.base_hash import base_hash
from swiftlet.models.causal import CausalLM
from swiftlet.models.save import model_bytes
from swiftlet.parallel.world import close_world, init_world
from swiftlet.startup import without_collector
from swiftlet.train.checkpoint import Saver
from swiftlet.train.evaluate import Goal
from swiftlet.train.lock import locked
from swiftlet.train.loop import train
from swiftlet.train.manifest import Identity
from swiftlet.train.report import EVALUATION, SAVE, Forecast, Report, build_report, has_summary
from swiftlet.train.resume import check_agreement, check_identity, said_of, saved_steps
from swiftlet.train.run import Every, Run, Silence
from swiftlet.train.schedule import build_schedule, num_warmup_steps
from swiftlet.train.signals import StopRequest, listening
from swiftlet.train.spikes import find_policy
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import open_optimizer
from swiftlet.train.summary import summarise

NEXT, HELD_OUT = "swift infer --ckpt_dir {checkpoint}", "--load_dataset_config true"


def train_model(args: Any, ready: Ready) -> Outcome:
    """Train the model that is ready and return where everything is."""
    device = open_own_device(args.parallel.device, deterministic=args.train.deterministic)
    dtype = dtype_name(resolve_dtype(args.model.dtype, device))
    args = with_values(args, dtype=dtype)
    heartbeat.beat("init")
    backend = device.backend if args.parallel.ddp_backend == "AUTO" else args.parallel.ddp_backend
    needs_group = bool(args.parallel.fsdp or args.parallel.deepspeed)
    world = init_world(backend, device.torch_device, timeout_s=args.parallel.ddp_timeout, always=needs_group)
    try:
        ready = ready._replace(folder=Path(world.broadcast(str(ready.folder))))
        if args.parallel.bind_cpu:
            bind_to_device(device, world)
        with listening() as stop, locked(ready.folder) if world.is_main else nullcontext():
            return _train(Setup(args, ready, device, world), stop)
    except torch.OutOfMemoryError as error:  # while loading: of a step or an evaluation the loop says more
        raise OutOfMemoryError(
            f"out of memory: {first_line(error)}",
            "choose a free device or one with more memory; swift plan says what a run needs",
        ) from error
    finally:
        close_world(world, is_failed=sys.exc_info()[0] is not None)


def _train(setup: Setup, stop: StopRequest) -> Outcome:
    args, ready, _, world = setup
    base = base_hash(ready.source.folder)
    facts = {"model_dir": str(ready.source.folder), "base_hash": base, "model": ready.source.name}
    facts |= {"rows_hash": ready.data.rows_hash, "printed_date": ready.template.printed_date}
    text = partial(args_text, args, facts)
    state, identity = _state(setup, base)
    check_agreement(world.gather(said_of(state.global_step, identity)))
    if ready.checkpoint is not None and state.is_done and has_summary(ready.folder):
        return _finished(ready.folder, ready.checkpoint.path, state)
    fill_folder = partial(write_args, ready.folder, text())
    if world.is_main:
        fill_folder()
    steered = steer(setup)
    setup = setup._replace(args=steered.args)
    heartbeat.beat("load")
    with without_collector():
        model = build_model(setup)
        log.info(tuner.describe_parameters(model.model))
        num_bytes = model_bytes(model.model, is_adapter=args.tuner.sft_type != "full")
        trainer = build_engine(setup, model)
    if ready.checkpoint is not None:
        trainer.engine.load_optimizer(open_optimizer(ready.checkpoint.path))
        log.info(f"continuing {ready.checkpoint.path} after step {state.global_step}")
    saver = build_saver(
        setup,
        model,
        trainer.engine,
        state,
        identity,
        text(of_checkpoint=True),
        num_bytes=num_bytes,
        fill_folder=fill_folder,
    )
    run = _run(setup, steered, model, trainer, saver, stop, state)
    try:
        train(run, state)
    finally:
        if isinstance(run.report, Report):
            run.report.close()  # the terminal is as it was before anything is said about the end
    trim()  # before matplotlib is imported
    if model.num_spared:
        share = model.num_spared / model.num_tokens
        log.info(f"{share:.0%} of the tokens were not computed again: rows began alike (--share_prefixes)")
    return _outcome(run, state, ready)


def _state(setup: Setup, base: str) -> tuple[TrainState, Identity]:
    """Return where the run starts, and what its checkpoints belong to."""
    args, ready = setup.args, setup.ready
    train_args = args.train
    schedule = schedule_of(args, len(ready.data.train), setup.world.world_size)
    batch, steps_per_epoch, total = schedule.step_size, schedule.steps_per_epoch, schedule.num_steps
    identity = Identity(ready.data.data_hash, base, {**shaping_settings(args), "step_size": batch})
    if ready.checkpoint is None:
        log.info(f"{total} steps of {batch} samples, {steps_per_epoch} an epoch")
        return TrainState(total, batch, steps_per_epoch, seed=train_args.seed), identity
    former = ready.checkpoint
    has_same_rows = former.manifest.identity.data_hash == ready.data.data_hash
    notes = []
    if not has_same_rows:
        notes = data_changes(args, former.path, ready.source.folder, ready.data.rows_hash)
    check_identity(
        former, identity, is_override=args.output.resume_override, fixed=OF_THE_WEIGHTS, notes=notes
    )
    state = former.read_state()
    if args.output.resume_override:
        if not has_same_rows or state.step_size != batch:  # the same step of their own schedule
            state.step_size, state.steps_per_epoch = batch, steps_per_epoch
            state.epoch, state.step_in_epoch = divmod(state.global_step, steps_per_epoch)
        state.num_steps = num_steps(state.steps_per_epoch, train_args.num_train_epochs, train_args.max_steps)
    return state, identity


def _when(strategy: str, steps: int) -> Every:
    return {"steps": Every(steps), "epoch": Every(at_epoch_end=True), "no": Every()}[strategy]


def _run(
    setup: Setup,
    steered: Steered,
    model: CausalLM,
    trainer: Trainer,
    saver: Saver | None,
    stop: StopRequest,
    state: TrainState,
) -> Run:
    args, ready, device, world = setup
    budget, memory, store = steered.token_budget, steered.memory, ready.data.train
    if needs_even_passes(args, model):
        budget = 0
        if memory.largest is not None:
            memory = replace(memory, largest=collate(store, [int(store.lengths.argmax())]))
    train_args, output = args.train, args.output
    schedule = Schedule(
        train_args.seed, state.step_size, state.steps_per_epoch, state.num_steps, budget, world.world_size
    )
    batches = Batches(store, schedule, world.rank, model.token_cost)
    evaluate = build_evaluator(setup, model, budget)
    warmup = num_warmup_steps(state.num_steps, train_args.warmup_ratio, train_args.warmup_steps)
    by_text = train_args.predict_with_generate
    evaluate_when = _when(output.evaluation_strategy, output.eval_steps) if evaluate else Every()
    save_when = _when(output.save_strategy, output.save_steps)
    to_come = {EVALUATION: evaluate_when.times_left, SAVE: save_when.times_left}
    return Run(
        model=trainer.module,
        engine=trainer.engine,
        world=world,
        device=device.torch_device,
        load_steps=lambda epoch, step: load_steps(
            batches, epoch=epoch, step_in_epoch=step, num_workers=train_args.dataloader_num_workers
        ),
        learning_rate=build_schedule(
            train_args.lr_scheduler_type, warmup=warmup, total=state.num_steps, peak=train_args.learning_rate
        ),
        report=_report(setup, state, steered.forecast, to_come),
        stop=stop,
        evaluate=evaluate,
        saver=saver,
        goal=Goal("eval_rouge_l" if by_text else "eval_loss", by_text, train_args.early_stopping_patience),
        log_when=Every(output.logging_steps, at_first=True),
        evaluate_when=evaluate_when,
        save_when=save_when,
        max_grad_norm=train_args.max_grad_norm,
        spikes=find_policy(train_args.spike_policy),
        name_rows=lambda ids: [store.origin(i) for i in ids],
        memory=memory,
    )


def _report(
    setup: Setup,
    state: TrainState,
    forecast: Forecast | None,
    to_come: Mapping[str, Callable[[TrainState], int]],
) -> Report | Silence:
    device = setup.device
    if not setup.world.is_main:
        return Silence()
    return build_report(
        setup.ready.folder,
        state,
        peak_memory_bytes=device.peak_memory_bytes,
        has_tensorboard="tensorboard" in setup.args.output.report_to,
        forecast=forecast,
        memory_in_use=lambda: (device.peak_reserved_bytes(), _in_use(device)),
        to_come=to_come,
    )


def _in_use(device: Device) -> int:
    free, total = device.memory()
    return 0 if device.kind == "cpu" else total - free


def _outcome(run: Run, state: TrainState, ready: Ready) -> Outcome:
    saver, report = run.saver, run.report
    if isinstance(report, Report):
        summarise(report, state, saver, NEXT if ready.data.val is None else f"{NEXT} {HELD_OUT}")
    return outcome_of(ready.folder, saver.kept_steps() if saver is not None else [], state)


def _finished(folder: Path, last: Path, state: TrainState) -> Outcome:
    """Return the outcome of a run that was continued after its last step; nothing is trained or written."""
    log.info(
        f"{last} is of the last of {state.num_steps} steps: nothing is left to train. To go on, type a larger "
        "--num_train_epochs or --max_steps, and --resume_override true"
    )
    return outcome_of(folder, saved_steps(folder, state.global_step), state)
