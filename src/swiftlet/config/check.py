"""Rules over the arguments of one command: each finds at most one mistake, and all are asked.

Only facts of the command line and of files it names are read here; no model, no data and no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from swiftlet.config.args import AUTO
from swiftlet.config.check_effects import INFER, SFT, without_effect
from swiftlet.config.check_engines import ENGINE_RULES
from swiftlet.config.check_tuner import TUNER_RULES
from swiftlet.config.deepspeed import NAMES, read_settings, settings_mistake
from swiftlet.config.fields import to_flat
from swiftlet.config.filenames import REPLACED
from swiftlet.config.parse import Parsed
from swiftlet.config.places import expanded, record_in
from swiftlet.errors import SwiftletError, UsageError, describe

PAGE = re.compile(r"://[^/]+/(?:models/)?([\w.-]+/[\w.-]+)")  # of a model on its hub
FLAG = re.compile(r"--[a-z_]+")
Rule = Callable[[Any, frozenset[str]], "UsageError | None"]


def check_sft(parsed: Parsed) -> list[SwiftletError]:
    """Return every mistake of an sft command line, those of parsing first."""
    useless = without_effect(SFT, parsed.args, parsed.given)
    return [*parsed.mistakes, *_found(SFT_RULES, parsed), *useless]


def check_infer(parsed: Parsed) -> list[SwiftletError]:
    """Return every mistake of an infer command line."""
    useless = without_effect(INFER, parsed.args, parsed.given)
    return [*parsed.mistakes, *_found(INFER_RULES, parsed), *useless]


def check_export(parsed: Parsed) -> list[SwiftletError]:
    """Return every mistake of an export command line."""
    return [*parsed.mistakes, *_found(EXPORT_RULES, parsed)]


def _found(rules: tuple[Rule, ...], parsed: Parsed) -> Iterator[UsageError]:
    told = {flag for mistake in parsed.mistakes for flag in FLAG.findall(str(mistake))}
    for rule in rules:
        mistake = rule(parsed.args, parsed.given)
        is_missing = mistake is not None and mistake.hint.startswith("add ")
        # typed with a wrong value or under another name, as was said, or in a file that could not be read
        if mistake and not (is_missing and (not parsed.is_whole or told & {*FLAG.findall(mistake.hint)})):
            yield mistake


def _model_named(args: Any, given: frozenset[str]) -> UsageError | None:
    if args.model.model_type or args.model.model_id_or_path:
        return None
    if record := record_in(args.output.resume_from_checkpoint):
        return UsageError("no model is named", f"add {record} before the flags: that run's own arguments")
    return UsageError("no model is named", "add --model_type NAME, or --model_id_or_path HUB_ID_OR_FOLDER")


def _model_folder(args: Any, given: frozenset[str]) -> UsageError | None:
    return model_folder_mistake(args.model.model_id_or_path)


def model_folder_mistake(path: str | None) -> UsageError | None:
    """Return what is wrong with a value of --model_id_or_path that is meant as a folder."""
    if path is None:
        return None
    looks_local = path.startswith((".", "/", "~")) or os.path.isdir(path) or path.count("/") > 1
    if not looks_local:
        return None
    folder = expanded(path)
    if not folder.is_dir():
        page = PAGE.search(path)
        hint = f"a hub id such as {page[1] if page else 'Qwen/Qwen2.5-7B'}"
        return UsageError(f"no such folder: {path}", f"give a folder with config.json, or {hint}")
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        hint = (
            "for an adapter use swift infer --ckpt_dir"
            if "adapter_config.json" in found
            else "give the model's folder"
        )
        return UsageError(f"{path} has no config.json; it holds {found}", hint)
    return None


def _system(args: Any, given: frozenset[str]) -> UsageError | None:
    text = args.model.system or ""
    if "\n" in text or len(text) > 200 or not Path(text).is_file():
        return None
    return UsageError(
        f"--system is the prompt itself, and {describe(text)} is a file", f'type --system "$(cat {text})"'
    )


def _dataset_named(args: Any, given: frozenset[str]) -> UsageError | None:
    if args.data.dataset or (_model_named(args, given) and record_in(args.output.resume_from_checkpoint)):
        return None  # what a missing model is told of has both
    return UsageError("no dataset is named", "add --dataset NAME, HUB_ID or FILE, such as blossom-math-zh")


def _exclude(one: str, other: str, args: Any, given: frozenset[str]) -> UsageError | None:
    values = to_flat(args)
    if not all(name in given and _asks(name, values[name]) for name in (one, other)):
        return None
    return UsageError(f"--{one} and --{other} exclude each other", "keep one of them")


def _asks(name: str, value: Any) -> bool:
    """Return whether a value asks for something: nothing and a share of 0 do not, 0 steps do."""
    return value not in (None, []) and not (name.endswith("_ratio") and value == 0)


def _deepspeed_settings(args: Any, given: frozenset[str]) -> UsageError | None:
    asked, train, dtype = args.parallel.deepspeed, args.train, args.model.dtype
    if asked is None or asked in NAMES:
        return None
    known = {"train_micro_batch_size_per_gpu": train.batch_size, "gradient_clipping": train.max_grad_norm}
    if train.gradient_accumulation_steps is not None:
        known["gradient_accumulation_steps"] = train.gradient_accumulation_steps
    try:
        return settings_mistake(read_settings(asked), known, None if dtype == AUTO else dtype)
    except UsageError as mistake:
        return mistake


def _writable(args: Any, given: frozenset[str]) -> UsageError | None:
    return _writable_mistake("output_dir", args.output.output_dir)


def _writable_mistake(flag: str, path: str) -> UsageError | None:
    if "\0" in path:
        return UsageError(f"--{flag} holds a NUL character", "give a plain path")
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return UsageError(f"--{flag} {path}: {folder} is a file", "give a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        return UsageError(
            f"--{flag} {path}: no permission to write in {folder}",
            f"give another --{flag}, or change its owner",
        )
    return None


def _report_to(args: Any, given: frozenset[str]) -> UsageError | None:
    asked = args.output.report_to
    if "none" not in asked or set(asked) == {"none"}:
        return None
    return UsageError("--report_to none excludes the others", "type --report_to none, or leave none out")


def _resume(args: Any, given: frozenset[str]) -> UsageError | None:
    path = args.output.resume_from_checkpoint
    if path in (None, "auto") or expanded(path).is_dir():
        return None
    hint = "give checkpoint-N's folder, or --resume_from_checkpoint auto; leave it out to start anew"
    return _file_mistake(path) or UsageError(f"no such checkpoint folder: {path}", hint)


def _file_mistake(path: str) -> UsageError | None:
    """Return a mistake for a file where a checkpoint's folder is meant."""
    if not expanded(path).is_file():
        return None
    return UsageError(f"{path} is a file, not the folder of a checkpoint", f"give {Path(path).parent}")


def _restarts(args: Any, given: frozenset[str]) -> UsageError | None:
    if not args.parallel.max_restarts or not args.output.save_only_model:
        return None
    return UsageError(
        "--max_restarts goes on from a checkpoint, and --save_only_model true leaves out what that needs",
        "leave out one of them",
    )


def _source_of_answers(args: Any, given: frozenset[str]) -> UsageError | None:
    if args.answer.ckpt_dir or args.model.model_type or args.model.model_id_or_path:
        return None
    return UsageError(
        "neither a checkpoint nor a model is named", "add --ckpt_dir FOLDER or --model_type NAME"
    )


def _checkpoint_folder(args: Any, given: frozenset[str]) -> UsageError | None:
    return _checkpoint_mistake(args.answer.ckpt_dir, is_merged=args.answer.merge_lora)


def _checkpoint_mistake(path: str | None, *, is_merged: bool) -> UsageError | None:
    if path is None:
        return None
    folder = expanded(path)
    if not folder.is_dir():
        former = folder.with_name(REPLACED + folder.name)
        hint = "the folder is printed at the end of swift sft"
        if former.is_dir():
            hint = (
                f"a swift export that replaced it was killed; type mv {former} {folder}, or that export again"
            )
        return _file_mistake(path) or UsageError(f"no such checkpoint folder: {path}", hint)
    if (folder / "adapter_config.json").is_file():
        return None
    if (folder / "config.json").is_file():
        if not is_merged:
            return None
        return UsageError(
            f"--merge_lora true: {path} is a whole model, not an adapter",
            "give the folder of a LoRA checkpoint; swift infer answers with a whole model as it is, without the flag",
        )
    found = _checkpoints_below(folder)
    hint = (
        f"give one of the checkpoints inside: {', '.join(found[:3])}"
        if found
        else "give a checkpoint-N folder"
    )
    return UsageError(f"{path} has neither adapter_config.json nor config.json", hint)


def _checkpoints_below(folder: Path) -> list[str]:
    """Return the checkpoints of the runs in an --output_dir, the newest first; no further down than runs lie."""
    found = [
        entry
        for pattern in ("checkpoint-*", "*/checkpoint-*", "*/*/checkpoint-*")
        for entry in folder.glob(pattern)
        if entry.is_dir()
    ]
    return [str(entry) for entry in sorted(found, key=os.path.getmtime, reverse=True)]


def _needs_checkpoint(args: Any, given: frozenset[str]) -> UsageError | None:
    for name in ("load_dataset_config", "merge_lora"):
        if getattr(args.answer, name) and not args.answer.ckpt_dir:
            return UsageError(f"--{name} needs a checkpoint", "add --ckpt_dir FOLDER")
    return None


def _export_checkpoint(args: Any, given: frozenset[str]) -> UsageError | None:
    if not args.checkpoint.ckpt_dir:
        return UsageError("no checkpoint is named", "add --ckpt_dir FOLDER")
    return _checkpoint_mistake(args.checkpoint.ckpt_dir, is_merged=args.merge.merge_lora)


def _export_work(args: Any, given: frozenset[str]) -> UsageError | None:
    if args.merge.merge_lora:
        return None
    return UsageError("nothing to export", "add --merge_lora true")


def _export_folder(args: Any, given: frozenset[str]) -> UsageError | None:
    return _writable_mistake("export_dir", args.merge.export_dir) if args.merge.export_dir else None


RATIO_OR_ROWS: Rule = partial(_exclude, "val_dataset", "dataset_test_ratio")
SFT_RULES: tuple[Rule, ...] = (
    _model_named,
    _model_folder,
    _system,
    _dataset_named,
    RATIO_OR_ROWS,
    partial(_exclude, "warmup_ratio", "warmup_steps"),
    partial(_exclude, "deepspeed", "fsdp"),
    *TUNER_RULES,
    _deepspeed_settings,
    *ENGINE_RULES,
    _writable,
    _report_to,
    _resume,
    _restarts,
)
INFER_RULES: tuple[Rule, ...] = (
    _source_of_answers,
    _checkpoint_folder,
    _model_folder,
    _system,
    RATIO_OR_ROWS,
    _needs_checkpoint,
)
EXPORT_RULES: tuple[Rule, ...] = (_export_checkpoint, _export_work, _export_folder)
