"""Writing checkpoints: a draft folder, its manifest, one rename. Never over an existing folder.

Every rank calls `save`; rank 0 writes, and all ranks learn the outcome. The newest and the best checkpoint are
kept; an older one goes only after the new one is whole, so there is never less than one valid checkpoint.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from swiftlet import log
from swiftlet.errors import SaveError
from swiftlet.faults import fault
from swiftlet.parallel.engine import Engine
from swiftlet.parallel.world import World
from swiftlet.train.manifest import DRAFT, PREFIX, STATE_FILE, Identity, seal, sync
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import write_optimizer

SPARE_BYTES = 16 * 2**20
MOST_RETRIES = 3


@dataclass
class Saver:
    """Saves a run into `folder`.

    Args:
        write_model: writes the model's own files into a folder; called on every rank, only rank 0 may write.
        expected_bytes: size of a checkpoint, for the first check of free space; later the last one's size is used.
        total_limit: checkpoints kept, the best among them; -1 for all.
        saved_steps: valid checkpoints that the folder already holds.
        is_model_only: leave out what a resumed run needs.
        is_error_fatal: a failed save stops the run; otherwise it is retried after 1, 2 and 4 steps.
    """

    folder: Path
    world: World
    engine: Engine
    write_model: Callable[[Path], None]
    identity: Identity
    version: str
    total_limit: int = 2
    is_model_only: bool = False
    is_error_fatal: bool = False
    expected_bytes: int = 0
    saved_steps: list[int] = field(default_factory=list)
    newest_step: int = 0
    failed_step: int = 0
    num_failures: int = 0

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"{PREFIX}{step}"

    def is_retry_due(self, state: TrainState) -> bool:
        """Return whether a failed save should be tried again after this step."""
        waited = state.global_step - self.failed_step
        return 0 < self.num_failures <= MOST_RETRIES and waited == 2 ** (self.num_failures - 1)

    def save(self, state: TrainState, *, is_final: bool = False) -> Path | None:
        """Write `checkpoint-{global_step}`; return its folder, None when it could not be written.

        Raises:
            SaveError: it could not be written and nothing will follow that could retry it.
        """
        target = self.path(state.global_step)
        if self.newest_step == state.global_step:
            return target
        problem = self._write(state, target)
        if problem is None:
            self.num_failures, self.newest_step = 0, state.global_step
            self.saved_steps.append(state.global_step)
            if self.world.is_main:
                self._prune(state)
            return target
        self.num_failures += 1
        self.failed_step = state.global_step
        message = f"{target} could not be written: {problem}; earlier checkpoints are intact"
        if self.is_error_fatal or is_final:
            raise SaveError(
                message, "free space on the disk of --output_dir, then --resume_from_checkpoint auto"
            )
        if self.world.is_main:
            log.warning(message + ". The run goes on and tries again")
        return None

    def _write(self, state: TrainState, target: Path) -> str | None:
        draft = target.with_name(f"{DRAFT}{state.global_step}-{uuid.uuid4().hex}")
        draft = Path(self.world.broadcast(str(draft)))
        phases = (self._begin, self._write_model, self._write_optimizer, self._finish)
        for phase in phases:
            problem = self._attempt(phase, draft, state)
            if problem is not None:
                if self.world.is_main:
                    shutil.rmtree(draft, ignore_errors=True)
                return problem
        return None

    def _attempt(
        self, phase: Callable[[Path, TrainState], None], draft: Path, state: TrainState
    ) -> str | None:
        problem = None
        try:
            phase(draft, state)
        except (OSError, SafetensorError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        problems = [f"rank {rank}: {p}" for rank, p in enumerate(self.world.gather(problem)) if p is not None]
        return "; ".join(problems).removeprefix("rank 0: ") if problems else None

    def _begin(self, draft: Path, state: TrainState) -> None:
        fault("ckpt.begin", step=state.global_step, path=draft)
        if self.world.is_main:
            check_space(self.folder, self.expected_bytes)
            draft.mkdir(parents=True)

    def _write_model(self, draft: Path, state: TrainState) -> None:
        self.write_model(draft)

    def _write_optimizer(self, draft: Path, state: TrainState) -> None:
        if not self.is_model_only:
            write_optimizer(draft if self.world.is_main else None, self.engine.optimizer_tensors())

    def _finish(self, draft: Path, state: TrainState) -> None:
        if not self.world.is_main:
            return
        step = state.global_step
        if not self.is_model_only:
            (draft / STATE_FILE).write_text(state.to_json(), encoding="utf-8")
        world_size = self.world.world_size
        manifest = seal(draft, step=step, world_size=world_size, identity=self.identity, version=self.version)
        self.expected_bytes = sum(entry["bytes"] for entry in manifest.files.values())
        set_aside(self.path(step))
        draft.rename(self.path(step))
        fault("ckpt.rename", step=step, path=self.path(step))
        sync(self.folder)

    def _prune(self, state: TrainState) -> None:
        for step in superfluous(self.saved_steps, state.best_step, self.total_limit):
            doomed = self.path(step).with_name(f"{DRAFT}prune-{step}")
            try:
                self.path(step).rename(doomed)
                fault("ckpt.prune", step=state.global_step, path=doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning(f"{self.path(step)} could not be removed: {error.strerror}")
            self.saved_steps.remove(step)


def set_aside(folder: Path) -> None:
    """Rename a checkpoint folder that is in the way, such as a broken one; nothing is overwritten."""
    if folder.exists():
        aside = folder.with_name(f"old-{folder.name}-{uuid.uuid4().hex[:8]}")
        log.warning(f"{folder} exists already; it is now {aside.name}")
        folder.rename(aside)


def superfluous(steps: list[int], best_step: int, limit: int) -> list[int]:
    """Return the steps whose checkpoints are not kept: all but the newest and, with a limit of 2 or more, the best."""
    if limit < 0 or len(steps) <= limit:
        return []
    newest = sorted(steps)
    kept = {newest[-1]}
    if limit > 1 and best_step in steps:
        kept.add(best_step)
    for step in reversed(newest):
        if len(kept) < limit:
            kept.add(step)
    return [step for step in newest if step not in kept]


def check_space(folder: Path, needed_bytes: int) -> None:
    """Check that a checkpoint fits on the disk.

    Raises:
        OSError: there is less free space than the checkpoint needs.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise OSError(
            f"{free / 2**20:.0f} MiB are free on {folder}, a checkpoint needs {needed_bytes / 2**20:.0f} MiB"
        )
