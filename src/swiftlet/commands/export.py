"""`swift export`: merge an adapter into its base model, with a proof that both give the same answers."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swiftlet import log
from swiftlet.commands.checkpoint_source import CheckpointSource, open_checkpoint_source, staying
from swiftlet.commands.merge_proof import PROOF_FILE, check_weights
from swiftlet.commands.model_source import apply_environment
from swiftlet.config.args import ExportArgs
from swiftlet.config.check import check_export
from swiftlet.config.filenames import ARGS_FILE, REPLACED
from swiftlet.config.parse import Parsed, parse_mapping
from swiftlet.config.places import expanded
from swiftlet.device.possible import impossible
from swiftlet.errors import CheckpointError, SwiftletError, UsageError, raise_all
from swiftlet.faults import fault
from swiftlet.files import sha256, sync
from swiftlet.models.safety import ADAPTER_WEIGHTS
from swiftlet.train.lock import drafting, remove_abandoned
from swiftlet.train.manifest import DRAFT, saving

ARGS = ExportArgs
EXAMPLE = "swift export --ckpt_dir output/.../checkpoint-100 --merge_lora true"


def check(parsed: Parsed, environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return the mistakes of the command line."""
    return [*check_export(parsed), *impossible(parsed.args.checkpoint.device, environ)]


def run(parsed: Parsed) -> int:
    """Merge; return the exit code."""
    print(merge(parsed.args))
    return 0


def call(options: Mapping[str, Any]) -> str:
    """Merge with keyword options and return the folder that was written.

    Raises:
        SwiftletError: a mistake in the options, or a merge that does not agree with its adapter.
    """
    parsed = parse_mapping(ARGS, options)
    raise_all(check(parsed, os.environ))
    return str(merge(parsed.args))


def merged_folder(checkpoint: Path) -> Path:
    """Return the folder of the merged model: beside the checkpoint."""
    return checkpoint.with_name(checkpoint.name + "-merged")


def check_merged(merged: Path, checkpoint: Path) -> None:
    """Check that a merged folder was made from this adapter and has not changed.

    Raises:
        CheckpointError: it was made from another one, its weights are not those, or its proof is gone.
    """
    try:
        proof = json.loads((merged / PROOF_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{merged} has no readable {PROOF_FILE}", f"move {merged} away, and it is merged again"
        ) from error
    hint = f"remove {merged}, or type swift export --ckpt_dir {checkpoint} --merge_lora true --overwrite true"
    if proof.get("adapter_sha256") != sha256(checkpoint / ADAPTER_WEIGHTS):
        raise CheckpointError(f"{merged} was merged from another adapter than {checkpoint}", hint)
    check_weights(merged)


def merge(args: Any) -> Path:
    """Merge the adapter of a checkpoint and return the folder of the merged model.

    Raises:
        SwiftletError: the base model is not there, the folder exists, or the merged model answers differently.
    """
    source = open_checkpoint_source(args.checkpoint.ckpt_dir, args.checkpoint)
    with staying(source.folder):
        return _merge(args, source)


def _merge(args: Any, source: CheckpointSource) -> Path:
    asked = args.merge.export_dir
    target = (expanded(asked) if asked else merged_folder(source.folder)).resolve()
    put_back(target)
    if target.exists():
        _check_replaceable(target, source, is_asked=args.merge.overwrite)
    prefix = f"{DRAFT}{target.name}-"
    with saving(target):
        remove_abandoned(target.parent, prefix)
    draft = target.with_name(prefix + uuid.uuid4().hex)
    with drafting(draft):
        proof = _write(args, source, draft)
        with saving(target):
            (draft / PROOF_FILE).write_text(json.dumps(proof, indent=2) + "\n", encoding="utf-8")
            if (source.folder / ARGS_FILE).is_file():
                shutil.copyfile(source.folder / ARGS_FILE, draft / ARGS_FILE)
            for path in sorted(draft.rglob("*")):
                sync(path)
            _take_place(draft, target)
    log.info(f"merged model: {target}")
    return target


def _take_place(draft: Path, target: Path) -> None:
    """Rename a whole draft to `target`; what was there goes once its successor has the name."""
    former = _former(target)
    if target.exists():
        target.rename(former)
    try:
        fault("export.replace", path=target)
        draft.rename(target)
    except OSError:
        if former.exists():
            former.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def put_back(target: Path) -> None:
    """Give an earlier merged model its name again where an export that replaced it was killed between two renames.

    One that was killed after them has left only what was to be removed.

    Raises:
        SaveError: the disk does not take it.
    """
    former = _former(target)
    if not former.is_dir():
        return
    with saving(target):
        if target.exists():
            shutil.rmtree(former)
            return
        former.rename(target)
    log.warning(f"an export that replaced {target} was killed: the earlier merged model is back")


def _former(target: Path) -> Path:
    return target.with_name(REPLACED + target.name)


def _check_replaceable(target: Path, source: CheckpointSource, *, is_asked: bool) -> None:
    """Check that replacing what is there loses nothing but an earlier merge.

    Raises:
        UsageError: nobody asked to replace it, it is no merged model, or it holds something that stays in use.
    """
    hint = "type --export_dir FOLDER with a folder that is not there yet"
    if not is_asked:
        raise UsageError(f"{target} exists already", "add --overwrite true, or --export_dir FOLDER")
    in_use = {
        "the checkpoint": source.folder,
        "the base model": source.model_folder,
        "the working directory": Path.cwd(),
    }
    for name, folder in in_use.items():
        if folder.resolve().is_relative_to(target):
            raise UsageError(f"--overwrite true would remove {name}: {target} is or holds {folder}", hint)
    if not target.is_dir() or (any(target.iterdir()) and not (target / PROOF_FILE).is_file()):
        raise UsageError(f"--overwrite true replaces merged models, and {target} has no {PROOF_FILE}", hint)


def _write(args: Any, source: CheckpointSource, draft: Path) -> dict[str, Any]:
    """Write the merged model and return its proof."""
    apply_environment(args.checkpoint.device)
    from swiftlet.commands.merging import write_merged

    return {**write_merged(args, source, draft), "adapter_sha256": sha256(source.folder / ADAPTER_WEIGHTS)}
