"""The second half of `swift infer`: device, model, and a chat or the rows of a dataset."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from swiftlet import heartbeat, log
from swiftlet.commands.device_setup import bind_to_device, open_own_device
from swiftlet.commands.evaluation import build_generator, sample_rows, stop_ids
from swiftlet.commands.infer import Ready
from swiftlet.commands.model_source import context_length, longest_sample
from swiftlet.data.held_out import read_split
from swiftlet.data.rows import Sample
from swiftlet.data.template import TemplateError
from swiftlet.device.spec import Device, resolve_dtype
from swiftlet.errors import DataError
from swiftlet.inference.answers import PROGRESS_BAR_ABOVE, ResultFile, Row, answer_rows, compared
from swiftlet.inference.chat import Chat, line_reader
from swiftlet.inference.generate import Generator
from swiftlet.inference.metrics import score
from swiftlet.models.adapter import load_adapter
from swiftlet.models.load import load_model
from swiftlet.parallel.world import World, close_world, init_world
from swiftlet.startup import without_collector
from swiftlet.train.progress import short_time

TENTHS = 10
LINE = "-" * 50


def _open(ready: Ready) -> tuple[Device, World]:
    machine = ready.args.machine
    device = open_own_device(machine.device)
    world = init_world(device.backend, device.torch_device)
    if machine.bind_cpu:
        bind_to_device(device, world)
    return device, world


def load_generator(ready: Ready, device: Device) -> Generator:
    """Return the model of a checkpoint, ready to answer."""
    source, args = ready.source, ready.args
    stops = stop_ids(ready.template, args.generation.stop_words)
    heartbeat.beat("load")
    dtype = resolve_dtype(args.model.dtype, device)
    log.info(f"model from {source.model_folder}: {dtype}, {device.name}")
    with without_collector():
        model: Any = load_model(
            source.model_folder,
            dtype=dtype,
            device=device.torch_device,
            trust_remote_code=args.model.trust_remote_code,
        )
        if source.base is not None:
            model = load_adapter(model, source.folder, is_trainable=False)
            log.info(f"adapter from {source.folder}")
    length = context_length(source.model_folder)
    return build_generator(model.eval(), ready.template, args.generation, stops=stops, context_length=length)


def answer_dataset(ready: Ready, path: Path) -> list[dict[str, Any]]:
    """Answer the held-out rows and write the results; return them (on the first process; elsewhere none).

    Raises:
        DataError: there is no row to answer.
    """
    rows = _rows(ready)
    device, world = _open(ready)
    try:
        generator = load_generator(ready, device)
        torch.manual_seed(ready.args.machine.seed)
        heartbeat.beat("eval")
        file = ResultFile(path if world.is_alone else path.with_suffix(f".rank{world.rank}.jsonl"))
        answers = answer_rows(
            generator,
            rows,
            batch_tokens=ready.args.answer.infer_batch_tokens,
            rank=world.rank,
            world_size=world.world_size,
        )
        with file.kept():
            for count, (index, result) in enumerate(_shown(answers, len(rows), world), start=1):
                file.add(index, result)
                heartbeat.beat("eval", count)
        return _finish(file, path, world, ready.template.thoughts.closing)
    finally:
        close_world(world, is_failed=sys.exc_info()[0] is not None)


def _rows(ready: Ready) -> list[Row]:
    args = ready.args
    num_train, held_out = _held_out(args)
    samples = [sample for sample in held_out if sample.messages]
    if len(samples) < len(held_out) and log.rank() == 0:
        log.warning(
            f"{len(held_out) - len(samples)} of {len(held_out)} rows are plain text, which asks nothing: not answered"
        )
    if not samples:
        raise DataError("there are no rows to answer", "add --val_dataset FILE, or --dataset_test_ratio 0.1")
    most = args.answer.show_dataset_sample
    chosen = samples if most < 0 else samples[:most]
    rows = sample_rows(chosen, ready.template, args.data.bad_rows)
    if not rows:
        raise DataError("the chat template refuses all rows", "choose another one with --template_type")
    notes = ["--show_dataset_sample -1 for all"] if len(chosen) < len(samples) else []
    notes += [f"{num_train} rows are not held out"] if num_train else []
    others = f" ({'; '.join(notes)})" if notes else ""
    rows_said = "held-out rows" if num_train else "rows"
    log.info(f"{len(rows)} of {len(samples)} {rows_said} are answered{others}")
    if log.rank() == 0:
        _tell_over_long(ready, samples)
    # rows without a system message of their own are asked with that of the command line or the checkpoint
    system = ready.template.system
    return [row if row.system is not None else row._replace(system=system) for row in rows]


def _held_out(args: Any) -> tuple[int, list[Sample]]:
    if args.answer.load_dataset_config:  # the rows that the run has counted, no more
        return read_split(args.data)
    try:
        return read_split(args.data, may_ask=True)
    except DataError as error:
        if args.data.val_dataset:
            raise
        raise DataError(error.message, f"{error.hint}; rows of --val_dataset need no answer") from error


def _tell_over_long(ready: Ready, samples: list[Sample]) -> None:
    """Say how many rows are held out but were too long for the evaluation of the run, so that the numbers agree."""
    run = ready.source.args
    asked, is_deleted = run.get("max_length"), run.get("truncation_strategy") == "delete"
    if not (ready.args.answer.load_dataset_config and is_deleted and isinstance(asked, int)):
        return
    longest = longest_sample(asked, ready.source.model_folder)
    count = 0
    for sample in samples:
        with suppress(TemplateError):  # left out of the run for another reason
            count += 0 < longest < len(ready.template.encode(sample).input_ids)
    if count:
        log.info(
            f"{count} of these {len(samples)} rows are longer than the run's --max_length {longest}: "
            "its evaluation was without them"
        )


def _shown(answers: Any, total: int, world: World) -> Any:
    """Yield the answers; print each one, or the first process's progress where there are many."""
    if total > PROGRESS_BAR_ABOVE and not world.is_main:
        yield from answers
        return
    if total > PROGRESS_BAR_ABOVE:
        yield from _counted(answers, -(-total // world.world_size))
        return
    for index, result in answers:
        label = "" if result["label"] is None else f"[LABELS] {result['label']}\n"
        said = (
            f"[RESPONSE] {result['response']}"
            if "error" not in result
            else f"[NO RESPONSE] {result['error']}"
        )
        print(f"[QUERY] {result['query']}\n{said}\n{label}{LINE}")
        yield index, result


def _counted(answers: Any, total: int) -> Any:
    """Yield the answers; show a bar at a terminal, and log each tenth of them elsewhere, where a bar shows nothing."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(answers, "answering", total=total, console=Console(stderr=True))
        return
    start_s = time.monotonic()
    for count, answer in enumerate(answers, start=1):
        yield answer
        if count * TENTHS // total > (count - 1) * TENTHS // total and count < total:
            left_s = (time.monotonic() - start_s) / count * (total - count)
            log.info(f"answered {count} of {total}, {short_time(left_s)} left")


def _finish(file: ResultFile, path: Path, world: World, end_of_thought: str) -> list[dict[str, Any]]:
    parts = world.gather(sorted(file.results.items()))
    if not world.is_alone:
        file.discard()
    if not world.is_main:
        return []
    whole = ResultFile(path) if not world.is_alone else file
    for part in parts:
        whole.results.update(part)
    results = whole.close()
    labelled = [result for result in results if result["label"] is not None]
    answers = [compared(result, end_of_thought) for result in labelled]
    figures = score(answers, [result["label"] for result in labelled])
    said = [f"{name} {value:.4f}" for name, value in figures.items()]
    without = sum(text != result["response"] for text, result in zip(answers, labelled, strict=True))
    if without:
        said.append(f"{without} compared without what was thought before the answer")
    if len(labelled) < len(results):
        said.append(f"{len(results) - len(labelled)} without a label")
    print(f"{len(results)} rows: " + ", ".join(said))
    unanswered = [result["error"] for result in results if "error" in result]
    if unanswered:
        log.warning(f"{len(unanswered)} of {len(results)} rows have no answer, such as: {unanswered[0]}")
    log.info(f"results: {whole.path}")
    return results


def chat(ready: Ready) -> None:
    """Talk at the terminal until the user leaves."""
    device, world = _open(ready)
    try:
        generator = load_generator(ready, device)
        torch.manual_seed(ready.args.machine.seed)
        is_streaming = ready.args.answer.stream

        def answer(messages: list[dict[str, Any]], on_text: Any) -> str:
            prompt = ready.template.encode_prompt(messages)
            if is_streaming:
                return generator.answer(prompt, on_text).said
            [(_, reply)] = generator.replies_as_they_end([prompt])
            on_text(reply.text)
            return reply.said

        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        Chat(answer, line_reader(), write, ready.args.model.system).run()
    finally:
        close_world(world, is_failed=sys.exc_info()[0] is not None)
