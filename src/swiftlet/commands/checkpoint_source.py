"""What a checkpoint folder is and where its base model stands, for the commands that read one. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.commands.merge_proof import check_weights
from swiftlet.commands.model_source import Source, find_source
from swiftlet.commands.run_folder import read_args
from swiftlet.config.args import DataArgs, ModelArgs
from swiftlet.config.configfile import HIDDEN
from swiftlet.config.fields import flags_of, with_values
from swiftlet.config.filenames import ARGS_FILE
from swiftlet.config.parse import parse_mapping
from swiftlet.config.places import expanded
from swiftlet.errors import (
    CheckpointError,
    DataError,
    SwiftletError,
    UsageError,
    describe,
    first_line,
    raise_all,
)
from swiftlet.models.safety import ADAPTER_CONFIG, read_json
from swiftlet.train.manifest import NAME as MANIFEST
from swiftlet.train.manifest import OPTIMIZER_FILES, STATE_FILE, find_damage, read_manifest

# What the launcher has checked byte by byte, for the processes of a run.
CHECKED = "SWIFTLET_CHECKED_CHECKPOINT"
ONLY_RESUMED = (OPTIMIZER_FILES, STATE_FILE)  # read by nobody else, and large: they may be gone
# What inference takes from a checkpoint, and what --load_dataset_config true adds.
TAKEN = ("model_type", "template_type", "system", "dtype")
TAKEN_WITH_DATA = (
    "dataset val_dataset dataset_seed dataset_test_ratio columns bad_rows max_bad_fraction check_dataset_strategy"
).split()

SPLIT = ("dataset_seed", "dataset_test_ratio", "check_dataset_strategy")


class CheckpointSource(NamedTuple):
    """A checkpoint: its folder, the base model (None where the folder holds a whole model), and its arguments."""

    folder: Path
    base: Source | None
    args: dict[str, Any]

    @property
    def model_folder(self) -> Path:
        """The folder that holds the whole model: the base of an adapter, or the checkpoint itself."""
        return self.base.folder if self.base else self.folder

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer is used: the checkpoint's own where it has one."""
        has_own = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return self.folder if has_own else self.model_folder


def open_checkpoint_source(ckpt_dir: str, model: Any) -> CheckpointSource:
    """Return what a checkpoint folder is; an adapter's base comes from the arguments, else from its own records.

    Raises:
        CheckpointError: a file is not what the manifest or the proof of a merge says, or the base model is not known
            or not there.
    """
    folder = expanded(ckpt_dir).absolute()
    with staying(folder):
        check_files(folder)
        args = read_args(folder)
        if not (folder / ADAPTER_CONFIG).is_file():
            if log.rank() == 0:
                check_weights(folder)
            return CheckpointSource(folder, None, args)
        if model.model_id_or_path or model.model_type:
            return CheckpointSource(folder, find_source(model), args)
        return CheckpointSource(folder, _recorded_base(folder, args, model.trust_remote_code), args)


@contextmanager
def staying(folder: Path) -> Iterator[None]:
    """Say of a block that reads a checkpoint and fails that the folder has gone meanwhile, where it has.

    Raises:
        CheckpointError: a run under way, or somebody, has removed it.
    """
    try:
        yield
    except (OSError, SwiftletError) as error:
        if folder.is_dir():
            raise
        raise CheckpointError(
            f"{folder} was removed while it was read: {first_line(error)}",
            "a run under way keeps --save_total_limit checkpoints: take another one, or copy it elsewhere first",
        ) from error


def check_files(folder: Path) -> None:
    """Check the files that a model is read from, where the folder has a manifest: other tools write none.

    Raises:
        CheckpointError: the manifest is damaged, or a file is not what it says.
    """
    if os.environ.get(CHECKED) == str(folder) or not (folder / MANIFEST).exists():
        return
    manifest = read_manifest(folder)
    damage = manifest if isinstance(manifest, str) else find_damage(folder, manifest, unread=ONLY_RESUMED)
    if damage is not None:
        raise CheckpointError(
            f"{folder} is damaged: {damage}",
            f"restore it from a copy, or take another checkpoint; if you changed it on purpose, remove {MANIFEST}",
        )


def _recorded_base(folder: Path, args: Mapping[str, Any], trust_remote_code: bool) -> Source:
    recorded = args.get("model_dir")
    if recorded and Path(str(recorded)).is_dir():
        return Source(str(args.get("model", "")), Path(str(recorded)))
    hint = "add --model_id_or_path FOLDER_OF_THE_BASE_MODEL, or --model_type NAME"
    if args.get("model_type") or args.get("model_id_or_path"):
        names = {name: args.get(name) for name in ("model_type", "model_id_or_path", "model_revision")}
        names = {name: None if value is None else str(value) for name, value in names.items()}
        try:
            return find_source(ModelArgs(**names, trust_remote_code=trust_remote_code))
        except SwiftletError as error:
            if not recorded:
                raise
            raise CheckpointError(
                f"the base model of {folder} was {str(recorded)!r}, which is no longer there, and it was not found "
                f"by its name either: {error.message}",
                hint,
            ) from error
    return _base_of_another_tool(folder, trust_remote_code, hint)


def _base_of_another_tool(folder: Path, trust_remote_code: bool, hint: str) -> Source:
    """Return the base that adapter_config.json alone names, by a folder or by the id of a hub."""
    config = read_json(folder / ADAPTER_CONFIG)
    base, revision = (config.get(name) or None for name in ("base_model_name_or_path", "revision"))
    said = f"{folder} is an adapter, and its base model {base!r}"
    if base is None:
        raise CheckpointError(f"{folder} is an adapter, and {ADAPTER_CONFIG} names no base model", hint)
    if Path(str(base)).is_dir():
        return Source(Path(str(base)).name, Path(str(base)))
    named = ModelArgs(
        model_id_or_path=str(base),
        model_revision=None if revision is None else str(revision),
        trust_remote_code=trust_remote_code,
    )
    try:
        return find_source(named)
    except UsageError as error:  # a folder of the machine where it was trained
        raise CheckpointError(f"{said} is not on this machine", hint) from error
    except SwiftletError as error:
        hints = "; or ".join(filter(None, (error.hint, hint)))
        raise CheckpointError(f"{said} was not found: {error.message}", hints) from error


def with_checkpoint(args: Any, given: frozenset[str], found: Mapping[str, Any], *, with_data: bool) -> Any:
    """Return the arguments with what the checkpoint says where the user says nothing; each value is shown.

    Raises:
        CheckpointError: the data is asked for and the checkpoint does not name it, or a value is of the wrong kind or
            held a secret.
    """
    if with_data and not (found.get("dataset") or found.get("val_dataset")):
        raise CheckpointError(
            "--load_dataset_config true: the checkpoint names no dataset",
            "add --dataset, or leave the flag out",
        )
    # rows of the user's own are answered, not those of the checkpoint's --val_dataset in their place
    data = [name for name in TAKEN_WITH_DATA if name != "val_dataset" or "dataset" not in given]
    names = [*TAKEN, *(data if with_data else ())]
    command: Any = type(args)
    flags = flags_of(command)
    recorded = {
        name: found[name]
        for name in names
        if name in flags and name not in given and found.get(name) is not None
    }
    hidden = found.get(HIDDEN)
    for name in [name for name in recorded if isinstance(hidden, list) and name in hidden]:
        raise CheckpointError(
            f"--{name} held a secret, so the checkpoint has no more of it than {describe(found[name])}",
            f"type --{name} as it was given to swift sft",
        )
    parsed = parse_mapping(command, recorded)
    try:
        raise_all(parsed.mistakes)
    except SwiftletError as error:
        raise CheckpointError(
            f"{ARGS_FILE} of the checkpoint: {error.message}",
            "type that flag, and its value is not taken from there",
        ) from error
    taken = {name: getattr(getattr(parsed.args, flags[name].group), name) for name in recorded}
    for name, value in taken.items():
        log.info(f"{name} is {value!r} (from the checkpoint)")
    return with_values(args, **taken)


def check_rows(source: CheckpointSource, data: DataArgs) -> None:
    """Check that the rows which a run held out are still found in the files that it names.

    Raises:
        DataError: the files have changed, so what would be drawn now are rows that the run may have been trained on.
    """
    from swiftlet.data.cachekey import rows_hash  # with numpy: mistakes are told before it is imported

    recorded = source.args.get("rows_hash")
    if recorded and rows_hash(data) != recorded:
        raise DataError(
            f"{', '.join(data.dataset)} changed after {source.folder} was trained on it: its held-out rows cannot be "
            "found again, and others may have been trained on",
            "restore the data; or answer rows of your own: --val_dataset FILE",
        )
    others = _draws_others(data, source.args) if recorded and log.rank() == 0 else []
    if others:
        log.warning(
            f"other rows are held out than in the run, which was trained on some of these: {', '.join(others)}"
        )


def _draws_others(data: DataArgs, run: Mapping[str, Any]) -> list[str]:
    """Return the flags by which rows are drawn that a run did not hold out; a smaller share draws the first of them."""
    then = {name: run.get(name, getattr(data, name)) for name in SPLIT}
    differs = {
        "dataset_seed": data.dataset_seed != then["dataset_seed"],
        "dataset_test_ratio": data.dataset_test_ratio > then["dataset_test_ratio"],
        "check_dataset_strategy": (data.check_dataset_strategy == "discard")
        != (then["check_dataset_strategy"] == "discard"),
    }
    return [f"--{name} {getattr(data, name)} (there {then[name]})" for name in SPLIT if differs[name]]
