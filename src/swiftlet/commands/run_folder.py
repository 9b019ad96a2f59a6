"""The folder of a run, and the arguments that it keeps.

`output_dir/model_type/v{number}-{time}`: the number rises by one a run, so that the newest run sorts last. The
launcher makes the folder and tells its processes by an environment variable; a process that is alone makes its own, as
does rank 0 of processes that no launcher of ours has started: the others hear of it once they have met.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from swiftlet import __version__, log
from swiftlet.config.configfile import HIDDEN, RECORD
from swiftlet.config.fields import to_flat
from swiftlet.config.filenames import ARGS_FILE, BAD_ROWS, TOKENIZER_FILES
from swiftlet.config.places import expanded
from swiftlet.data.spec import absolute_text
from swiftlet.errors import CheckpointError, reading
from swiftlet.files import files_like, move, sha256, write_whole
from swiftlet.log import MASK, is_secret_name, redacted
from swiftlet.train.lock import locked, unwritable
from swiftlet.train.manifest import PREFIX
from swiftlet.train.report import EVENTS, IMAGES
from swiftlet.train.report import FILE as LOGGING_FILE
from swiftlet.train.resume import FORMER

VARIABLE = "SWIFTLET_RUN_FOLDER"
# What the launcher has found, for the processes of a run and for the launchers of other nodes.
RESUMED = "SWIFTLET_RESUMED_CHECKPOINT"
DATA_HASH = "SWIFTLET_DATA_HASH"
BASE_HASH = "SWIFTLET_BASE_HASH"
PRINTED_DATE = "SWIFTLET_PRINTED_DATE"
NUMBERED = re.compile(r"v(\d+)-\d{8}-\d{6}")
# What says where and how often a run was started, not what it computes: left out of a checkpoint, whose bytes are
# the same however the run was interrupted.
OF_THIS_START = frozenset(
    "output_dir add_output_dir_suffix resume_from_checkpoint resume_override force hang_timeout max_restarts".split()
)

# Groups of arguments that shape the trajectory, and the names in them that do not.
SHAPING = ("model", "tuner", "train")
NOT_SHAPING = frozenset(
    "model_id_or_path model_revision trust_remote_code batch_size gradient_accumulation_steps eval_batch_size "
    "micro_batch_tokens gradient_checkpointing dataloader_num_workers predict_with_generate "
    "early_stopping_patience".split()
)
# Of these, what the weights in a checkpoint follow from.
OF_THE_WEIGHTS = frozenset(
    "sft_type lora_rank lora_alpha lora_dropout_p lora_bias_trainable lora_target_modules lora_modules_to_save "
    "use_dora use_rslora init_lora_weights".split()
)
# What the rows follow from, beside the files, the tokenizer and the template.
OF_THE_ROWS = (
    "dataset val_dataset dataset_test_ratio dataset_seed columns max_length truncation_strategy check_dataset_strategy "
    "bad_rows"
).split()
# The same, but named among the settings that shape the trajectory.
OF_THE_TEMPLATE = ("template_type", "system")
# What shows that a folder holds a run, and what else belongs to it.
OF_A_RUN = (f"{PREFIX}*", LOGGING_FILE, ARGS_FILE)
BESIDE_IT = (EVENTS, IMAGES, BAD_ROWS)


def runs_root(output: Any, name: str) -> Path:
    """Return the folder in which the runs of this model stand, without making it."""
    root = expanded(output.output_dir).absolute()
    return root / name if output.add_output_dir_suffix else root


def new_folder(output: Any, name: str) -> Path:
    """Make and return the folder of a new run.

    Raises:
        UsageError: it cannot be made.
    """
    root = runs_root(output, name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        while output.add_output_dir_suffix:
            numbers = [int(match[1]) for entry in root.iterdir() if (match := NUMBERED.fullmatch(entry.name))]
            time = datetime.now().strftime("%Y%m%d-%H%M%S")
            folder = root / f"v{max(numbers, default=-1) + 1}-{time}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # another run took the number in between
                continue
    except OSError as error:
        raise unwritable(root, error) from error
    return root


@contextmanager
def run_folder(output: Any, name: str, resumed: Path | None) -> Iterator[Path]:
    """Give the folder of this run: that of the checkpoint it continues, the launcher's, or a new one; on a rank that
    cannot know it yet the one in which it will stand.

    A numbered one that is still empty when the block fails goes again.
    """
    told = resumed.parent if resumed is not None else os.environ.get(VARIABLE)
    if not told and log.rank():
        yield runs_root(output, name)
        return
    folder = Path(told) if told else new_folder(output, name)
    is_failed = True
    try:
        yield folder
        is_failed = False
    finally:
        if is_failed and not told and output.add_output_dir_suffix:
            with suppress(OSError):  # it holds the names of bad rows
                folder.rmdir()


def holds_run(folder: Path) -> bool:
    """Return whether an earlier run, or one under way, has left anything in the folder.

    Raises:
        UsageError: the folder cannot be listed.
    """
    try:
        return any(True for pattern in OF_A_RUN for _ in folder.glob(pattern))
    except OSError as error:
        raise unwritable(folder, error) from error


def set_aside_former(folder: Path) -> None:
    """Move what an earlier run left in the folder of a new one into a folder in it, so that they never mix.

    Raises:
        UsageError: the folder cannot be written, or a run is under way in it.
    """
    if not holds_run(folder):
        return
    with locked(folder):
        aside = folder / f"{FORMER}{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        try:
            aside.mkdir()
            for pattern in (*OF_A_RUN, *BESIDE_IT):
                for path in folder.glob(pattern):
                    move(path, aside / path.name)
        except OSError as error:
            raise unwritable(folder, error) from error
    log.warning(
        f"{folder} holds an earlier run, which is now in {aside.name}; --resume_from_checkpoint {aside} continues it"
    )


def shaping_settings(args: Any) -> dict[str, Any]:
    """Return the arguments that shape the trajectory of a run, as JSON values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for group in SHAPING
        for name, value in vars(getattr(args, group)).items()
        if name not in NOT_SHAPING
    }


def args_text(args: Any, extra: Mapping[str, Any], *, of_checkpoint: bool = False) -> str:
    """Return the arguments and further facts of a run as JSON, without secrets; `hidden` names what held one.

    Paths of data are absolute: a checkpoint is used from other folders too.
    """
    flat = {RECORD: __version__, **to_flat(args), **extra}
    flat |= {name: [absolute_text(text) for text in flat[name]] for name in ("dataset", "val_dataset")}
    if of_checkpoint:
        flat = {name: value for name, value in flat.items() if name not in OF_THIS_START}
    shown = {
        name: MASK if value and is_secret_name(name) else redacted(value) for name, value in flat.items()
    }
    if hidden := [name for name, value in shown.items() if value != flat[name]]:
        shown[HIDDEN] = hidden
    return json.dumps(shown, ensure_ascii=False, indent=2) + "\n"


def write_args(folder: Path, text: str) -> None:
    """Write sft_args.json into the folder of a run; one rename.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        write_whole(folder / ARGS_FILE, text)
    except OSError as error:
        raise unwritable(folder, error) from error


def read_args(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments that a checkpoint was trained with; empty when it was not made here.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    path = checkpoint / ARGS_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have put a mark first
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "restore the checkpoint from a copy"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no arguments", "restore the checkpoint from a copy")
    return content


def data_changes(args: Any, checkpoint: Path, base: Path, rows_hash: str) -> list[str]:
    """Return why the rows of a checkpoint are known to be others, a line each, where its settings do not say it.

    Args:
        base: the model's folder, whose tokenizer files the checkpoint holds copies of.
        rows_hash: of the files that rows are held out of; empty where none are.
    """
    former, now = read_args(checkpoint), json.loads(args_text(args, {}))
    if not former:
        return []
    changed = [
        f"--{name}: {former[name]!r} in the checkpoint, {now[name]!r} now"
        for name in OF_THE_ROWS
        if name in former and former[name] != now[name]
    ]
    if changed or any(former.get(name) != now[name] for name in OF_THE_TEMPLATE):
        return changed
    found = [f"{base / name} is not the one in the checkpoint" for name in _other_files(base, checkpoint)]
    if rows_hash and former.get("rows_hash") not in (None, rows_hash):
        found.append("the files of --dataset are not those that the run has read")
    return found or ["no flag of the data differs: the files of the data or this program do"]


def _other_files(base: Path, checkpoint: Path) -> list[str]:
    """Return the names of tokenizer files, chat templates among them, that only one has or that differ."""
    names = {name for folder in (base, checkpoint) for name in files_like(folder, TOKENIZER_FILES)}
    return [name for name in sorted(names) if _hash(base / name) != _hash(checkpoint / name)]


def _hash(path: Path) -> str:
    with reading(path):
        return sha256(path) if path.is_file() else ""
