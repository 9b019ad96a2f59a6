"""`swift infer`: chat with a model or a checkpoint, or answer the rows of a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftlet import heartbeat, log
from swiftlet.commands.checkpoint_source import (
    CHECKED,
    CheckpointSource,
    check_rows,
    open_checkpoint_source,
    staying,
    with_checkpoint,
)
from swiftlet.commands.model_source import (
    apply_environment,
    check_within_reach,
    find_source,
    open_template,
    unknown_names,
    warn_of_devices,
)
from swiftlet.commands.run_folder import ARGS_FILE
from swiftlet.config.args import InferArgs
from swiftlet.config.check import check_infer
from swiftlet.config.parse import Parsed, parse_mapping
from swiftlet.config.places import expanded
from swiftlet.device.possible import impossible
from swiftlet.errors import SwiftletError, UsageError, raise_all
from swiftlet.startup import freed_afterwards, without_collector

if TYPE_CHECKING:
    from swiftlet.data.template import Template

ARGS = InferArgs
EXAMPLE = "swift infer --ckpt_dir output/.../checkpoint-100 --load_dataset_config true"
RESULTS = "infer_result"


class Ready(NamedTuple):
    """What is known before torch is imported: the folders, the template, and the arguments with the checkpoint's."""

    args: Any
    source: CheckpointSource
    template: Template


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    args = parsed.args
    wrong = impossible(args.machine.device, environ)
    return [*check_infer(parsed), *unknown_names(args.model, args.data), *wrong]


def prepare(parsed: Parsed) -> dict[str, str]:
    """Merge before the processes of a run exist, where that is asked for; a chat is for one process.

    Raises:
        SwiftletError: a chat is asked of several processes, or the merge fails.
    """
    ready = get_ready(parsed)
    if not _has_rows(ready.args):
        raise UsageError(
            "several processes answer the rows of a dataset, not a chat",
            "leave NPROC_PER_NODE out, or add --dataset or --load_dataset_config true",
        )
    warn_of_devices(ready.args.machine.device, os.environ)
    return {CHECKED: str(ready.source.folder)}


def run(parsed: Parsed) -> int:
    """Chat, or answer the rows of a dataset; return the exit code."""
    answer(parsed)
    return 0


def call(options: Mapping[str, Any], found: Sequence[SwiftletError] = ()) -> list[dict[str, Any]]:
    """Answer the rows of a dataset with keyword options and return the results.

    Raises:
        SwiftletError: a mistake in the options, or a run that failed.
    """
    parsed = parse_mapping(ARGS, options)
    raise_all([*check(parsed, os.environ), *found])
    with freed_afterwards():
        return answer(parsed)


def get_ready(parsed: Parsed) -> Ready:
    """Return what is known before torch is imported; merges first where that is asked for."""
    args, given = parsed.args, parsed.given
    if args.answer.ckpt_dir is None:
        check_within_reach(args.model, args.data)
        found = find_source(args.model)
        source = CheckpointSource(found.folder, None, {})
    else:
        source = open_checkpoint_source(args.answer.ckpt_dir, args.model)
        args = with_checkpoint(args, given, source.args, with_data=args.answer.load_dataset_config)
        if (
            args.answer.load_dataset_config
            and given.isdisjoint(("dataset", "val_dataset"))
            and _has_rows(args)
        ):
            check_rows(source, args.data)
        if source.base is not None and not source.args and args.model.system is None:
            log.info(
                f"{source.folder} has no {ARGS_FILE}: the system message is the model's own (--system, where the "
                "adapter was trained with another)"
            )
        if args.answer.merge_lora:
            source = _merged(args, source)
    if not args.answer.load_dataset_config:
        args = _asked_whole(args, given)
    _, template = open_template(
        source.tokenizer_folder, template_type=args.model.template_type, system=args.model.system
    )
    return Ready(args, source, template)


def _asked_whole(args: Any, given: frozenset[str]) -> Any:
    """Return the arguments so that every row of --dataset is asked, unless a ratio says which are held out."""
    if not args.data.dataset or "dataset_test_ratio" in given:
        return args
    return replace(args, data=replace(args.data, dataset=(), val_dataset=args.data.dataset))


def _merged(args: Any, source: CheckpointSource) -> CheckpointSource:
    from swiftlet.commands import export

    merged = export.merged_folder(source.folder)
    if log.rank() == 0:
        export.put_back(merged)
    if merged.is_dir():
        log.info(f"{merged} exists and is used")
        if log.rank() == 0:
            export.check_merged(merged, source.folder)
        return CheckpointSource(merged, None, source.args)
    options = {"ckpt_dir": str(source.folder), "merge_lora": True, "dtype": args.model.dtype}
    options |= {"device": args.machine.device, "model_id_or_path": str(source.model_folder)}
    options |= {"trust_remote_code": args.model.trust_remote_code}
    return CheckpointSource(Path(export.call(options)), None, source.args)


def _has_rows(args: Any) -> bool:
    return bool(args.data.dataset or args.data.val_dataset) and not args.answer.eval_human


def answer(parsed: Parsed) -> list[dict[str, Any]]:
    """Answer as one process of the run; return the results of the rows, none for a chat."""
    with heartbeat.answering():
        heartbeat.beat("start")
        with log.silent(CHECKED in os.environ):  # the launcher has said it
            ready = get_ready(parsed)
        path, has_rows = result_path(ready), _has_rows(ready.args)
        if has_rows:
            check_results(path.parent)
        if log.world_size() == 1:
            warn_of_devices(ready.args.machine.device, os.environ)
        apply_environment(ready.args.machine.device)
        with without_collector():
            from swiftlet.commands import answering

        results: list[dict[str, Any]] = []
        with staying(ready.source.folder):
            if has_rows:
                results = answering.answer_dataset(ready, path)
            else:
                answering.chat(ready)
        heartbeat.beat("end")
        return results


def check_results(folder: Path) -> None:
    """Make the folder of the results, before anything costly is done for them.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UsageError(f"the results cannot be written to {folder}: {reason}", "type --result_dir FOLDER")


def result_path(ready: Ready) -> Path:
    """Return the file of the results: below the checkpoint, or below output/ for a model without one."""
    asked = ready.args.answer.result_dir
    if asked:
        folder = expanded(asked)
    elif ready.args.answer.ckpt_dir:
        folder = expanded(ready.args.answer.ckpt_dir) / RESULTS
    else:
        folder = Path("output") / (ready.args.model.model_type or ready.source.folder.name) / RESULTS
    return folder / f"{datetime.now():%Y%m%d-%H%M%S}.jsonl"
