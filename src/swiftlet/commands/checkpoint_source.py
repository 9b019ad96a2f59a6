"""What a checkpoint folder is and where its base model stands, for the commands that read one. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.commands.merge_proof import check_weights
from swiftlet.commands.model_source import Source, find_source
from swiftlet.commands.run_folder import read_args
from swiftlet.config.fields import flags_of, with_values
from swiftlet.errors import CheckpointError

ADAPTER_FILE = "adapter_config.json"
# What inference takes from a checkpoint, and what --load_dataset_config true adds.
TAKEN = ("model_type", "template_type", "system", "dtype")
TAKEN_WITH_DATA = (
    "dataset val_dataset dataset_seed dataset_test_ratio columns bad_rows max_bad_fraction check_dataset_strategy"
).split()


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
        CheckpointError: the base model is not known or not there, or a merged model has changed.
    """
    folder = Path(ckpt_dir).expanduser().absolute()
    args = read_args(folder)
    if not (folder / ADAPTER_FILE).is_file():
        if log.rank() == 0:
            check_weights(folder)
        return CheckpointSource(folder, None, args)
    if model.model_id_or_path or model.model_type:
        return CheckpointSource(folder, find_source(model), args)
    recorded = args.get("model_dir")
    if recorded and Path(recorded).is_dir():
        return CheckpointSource(folder, Source(str(args.get("model", "")), Path(recorded)), args)
    if args.get("model_type") or args.get("model_id_or_path"):
        names = {name: args.get(name) for name in ("model_type", "model_id_or_path", "model_revision")}
        return CheckpointSource(
            folder, find_source(_Names(**names, trust_remote_code=model.trust_remote_code)), args
        )
    base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if base and Path(base).is_dir():
        return CheckpointSource(folder, Source(Path(base).name, Path(base)), args)
    raise CheckpointError(
        f"{folder} is an adapter, and its base model {base!r} is not on this machine",
        "add --model_id_or_path FOLDER_OF_THE_BASE_MODEL, or --model_type NAME",
    )


class _Names(NamedTuple):
    model_type: str | None
    model_id_or_path: str | None
    model_revision: str | None
    trust_remote_code: bool


def with_checkpoint(args: Any, given: frozenset[str], found: Mapping[str, Any], *, with_data: bool) -> Any:
    """Return the arguments with what the checkpoint says where the user says nothing; each value is shown.

    Raises:
        CheckpointError: the data is asked for and the checkpoint does not name it.
    """
    if with_data and not (found.get("dataset") or found.get("val_dataset")):
        raise CheckpointError(
            "--load_dataset_config true: the checkpoint names no dataset",
            "add --dataset, or leave the flag out",
        )
    names = [*TAKEN, *(TAKEN_WITH_DATA if with_data else ())]
    command: Any = type(args)
    flags = flags_of(command)
    taken = {
        name: tuple(found[name]) if flags[name].is_list else found[name]
        for name in names
        if name in flags and name not in given and found.get(name) is not None
    }
    for name, value in taken.items():
        log.info(f"{name} is {value!r} (from the checkpoint)")
    return with_values(args, **taken)
