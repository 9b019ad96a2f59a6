"""Finding the checkpoint to continue: the newest valid one; every one passed over is named with its reason.

When there are checkpoints and none is valid, the run stops: it never starts afresh unasked. No torch is needed: the
launcher asks too, before any process of the run exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftlet import log
from swiftlet.errors import CheckpointError, UsageError, describe, reading
from swiftlet.faults import fault
from swiftlet.train.manifest import (
    DRAFT,
    NAME,
    PREFIX,
    STATE_FILE,
    Identity,
    Manifest,
    concealed,
    find_damage,
    read_manifest,
)
from swiftlet.train.state import TrainState, parse_state

AUTO = "auto"
NUMBERED = re.compile(rf"^{PREFIX}(\d+)$")
RUN = re.compile(r"^v(\d+)-")
FORMER = "former-run-"  # begins the folder into which a new run sets aside what an earlier one left
MOST_LEVELS = 3
STEP = "the step that the run continues after"
MODEL_ONLY = "holds only the model (--save_only_model true)"
Foreign = Callable[[Identity], list[str]]


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files are all what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def has_state(self) -> bool:
        """Whether a run can continue it; one saved with --save_only_model true is for inference only."""
        return STATE_FILE in self.manifest.files

    def read_state(self) -> TrainState:
        """Return where the run stood.

        Raises:
            CheckpointError: the checkpoint was saved without what a resumed run needs.
            SwiftletError: the disk does not give it.
        """
        if not self.has_state:
            raise CheckpointError(
                f"{self.path} {MODEL_ONLY}",
                "continue from another checkpoint, or start a new run from this model",
            )
        with reading(self.path):
            fault("resume.read", step=self.manifest.step, path=self.path)
            return parse_state((self.path / STATE_FILE).read_text(encoding="utf-8"))


def open_checkpoint(path: Path) -> Checkpoint | str:
    """Return the checkpoint in this folder, or what is wrong with it."""
    manifest = read_manifest(path)
    if isinstance(manifest, str):
        return manifest
    named = NUMBERED.match(path.name)
    if named and int(named[1]) != manifest.step:
        return f"{NAME} is of step {manifest.step}: the folder was renamed"
    return find_damage(path, manifest) or Checkpoint(path, manifest)


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders in and below `root`, the newest first: by number of the run, then by step.

    Those that a new run has set aside are left out.

    Raises:
        CheckpointError: `root` cannot be listed.
    """
    try:
        level = _folders_in(root)
    except OSError as error:
        raise CheckpointError(
            f"{root} cannot be listed: {error.strerror}", "look at its disk; or choose another --output_dir"
        ) from error
    found = list(level)
    for _ in range(MOST_LEVELS - 1):
        level = [inner for path in level if not NUMBERED.match(path.name) for inner in _folders_below(path)]
        found += level
    numbered = [(path, int(match[1])) for path in found if (match := NUMBERED.match(path.name))]
    newest_first = sorted(numbered, key=lambda item: (_run(item[0].parent), item[1]), reverse=True)
    return [path for path, _ in newest_first]


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in which checkpoints may be; none where `folder` is not there, or not any more."""
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith((FORMER, DRAFT))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders_below(folder: Path) -> list[Path]:
    try:
        return _folders_in(folder)
    except PermissionError:  # another user's
        return []
    except OSError as error:
        log.warning(f"{folder} cannot be listed: {error.strerror}; checkpoints in it are not seen")
        return []


def _run(folder: Path) -> tuple[int, str]:
    match = RUN.match(folder.name)
    return (int(match[1]) if match else -1, str(folder))


def saved_steps(folder: Path, newest: int) -> list[int]:
    """Return the steps up to `newest` of the finished checkpoints in the folder of a run."""
    found = [(path, NUMBERED.match(path.name)) for path in folder.glob(PREFIX + "*")]
    steps = [int(match[1]) for path, match in found if match and isinstance(read_manifest(path), Manifest)]
    return sorted(step for step in steps if step <= newest)


def find_checkpoint(root: Path, foreign: Foreign = lambda identity: []) -> Checkpoint | None:
    """Return the newest valid checkpoint in or below `root`, None when there is no checkpoint folder at all.

    Args:
        foreign: in what a checkpoint is known to belong to another run. Such ones are passed over where there are
            others; where all are such, the newest is returned, for the error that names the differences.

    Raises:
        CheckpointError: there are checkpoints, and none of them is valid.
    """
    paths = list_checkpoints(root)
    differences = {path: _differences(path, foreign) for path in paths}
    has_own = not all(differences.values())
    reasons = []
    for path in paths:
        if has_own and differences[path]:
            log.warning(f"checkpoint passed over: {path}: of another run, {'; '.join(differences[path])}")
            continue
        checkpoint = open_checkpoint(path)
        if isinstance(checkpoint, Checkpoint) and checkpoint.has_state:
            return checkpoint
        reasons.append(f"{path}: {checkpoint if isinstance(checkpoint, str) else MODEL_ONLY}")
        log.warning(f"checkpoint passed over: {reasons[-1]}")
    if reasons:
        raise CheckpointError(
            "no checkpoint is valid:\n" + "\n".join(reasons),
            "restore one of these folders from a copy, or leave out --resume_from_checkpoint to start a new run",
        )
    return None


def _differences(path: Path, foreign: Foreign) -> list[str]:
    manifest = read_manifest(path)
    return foreign(manifest.identity) if isinstance(manifest, Manifest) else []


def choose_checkpoint(
    asked: str, output_dir: Path, foreign: Foreign = lambda identity: []
) -> Checkpoint | None:
    """Return the checkpoint that `--resume_from_checkpoint` asks for, None when `auto` finds no checkpoint folder.

    Args:
        asked: `auto` for the newest valid one of `output_dir`, a checkpoint folder, or the folder of a run.
        foreign: as in `find_checkpoint`.

    Raises:
        CheckpointError: the folder does not exist, holds no checkpoint, or none that is valid.
    """
    if asked == AUTO:
        return find_checkpoint(output_dir, foreign)
    path = Path(asked)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {asked}: no such folder", "a checkpoint-N folder, or auto")
    path = path.resolve()  # the run goes on beside the checkpoint itself, not beside a link to it or in it
    if NUMBERED.match(path.name) or (path / STATE_FILE).exists():
        checkpoint = open_checkpoint(path)
        if isinstance(checkpoint, str):
            raise CheckpointError(f"{path}: {checkpoint}", "use auto to take the newest valid checkpoint")
        return checkpoint
    found = find_checkpoint(path, foreign)
    if found is None:
        raise CheckpointError(
            f"no checkpoint in {asked}", "a checkpoint-N folder, the folder of a run, or auto"
        )
    return found


def check_identity(
    checkpoint: Checkpoint,
    identity: Identity,
    *,
    is_override: bool,
    fixed: Collection[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Check that a checkpoint belongs to this run.

    Args:
        notes: what is known of the differences beside them.
        fixed: settings that no override changes, because the weights in the checkpoint follow from them.

    Raises:
        CheckpointError: dataset, base model or settings differ and no override was asked for, or none is possible.
    """
    differences = checkpoint.manifest.identity.differences(identity)
    if not differences:
        return
    lines = "\n".join(f"  {line}" for line in (*differences, *notes))
    kept = [name for line in differences if (name := line.partition(":")[0]) in fixed]
    if kept or not is_override:
        hint = "repeat the first command with --resume_from_checkpoint, or add --resume_override true"
        if kept:
            hint = (
                f"the weights of a checkpoint fix {', '.join(kept)}: give the first values, or start a new run without "
                "--resume_from_checkpoint"
            )
        raise CheckpointError(f"{checkpoint.path} belongs to another run:\n{lines}", hint)
    if log.rank() == 0:
        log.warning(f"continuing {checkpoint.path} although these differ:\n{lines}")


def said_of(step: int, identity: Identity) -> dict[str, Any]:
    """Return what a process says of the run that it is about to make, without secrets."""
    settings = {name: concealed(value) for name, value in identity.settings.items()}
    return {
        STEP: step,
        "dataset": identity.data_hash,
        "base model": identity.base_model,
        **settings,
    }


def check_agreement(said: Sequence[Mapping[str, Any]]) -> None:
    """Check that all processes make the same run: where no launcher has prepared it, each has read it by itself.

    Args:
        said: what `said_of` returned on each rank.

    Raises:
        UsageError: one differs from the first.
    """
    first = said[0]
    for rank, theirs in enumerate(said):
        for name in first:
            if theirs.get(name) != first[name]:
                hint = "give every process the same command and the same files"
                if name == STEP:
                    hint = "--output_dir must be on storage that all processes see"
                raise UsageError(
                    f"{name} is {describe(first[name])} on rank 0, {describe(theirs.get(name))} on rank {rank}",
                    hint,
                )


def trusted_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint that another process of this run has just checked byte by byte.

    Raises:
        CheckpointError: its manifest is gone.
    """
    manifest = read_manifest(path)
    if isinstance(manifest, str):
        raise CheckpointError(f"{path}: {manifest}", "start the run again")
    return Checkpoint(path, manifest)
