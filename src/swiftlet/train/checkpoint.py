"""Writing checkpoints: a draft folder, its manifest, one rename. Never over an existing folder.

Every rank calls `save`, which returns once a copy is taken; rank 0 writes the copy while the training goes on, and all
ranks learn the outcome together. The next save waits for the one under way, and so does the update of a step that a
kill must not cost. The newest and the best checkpoint are
kept; an older one goes only after the new one is whole, so there is never less than one valid checkpoint.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from swiftlet import heartbeat, log
from swiftlet.errors import SaveError, SwiftletError
from swiftlet.faults import fault
from swiftlet.files import move, sync
from swiftlet.parallel.engine import Engine
from swiftlet.parallel.world import World
from swiftlet.train.lock import keep_owned
from swiftlet.train.manifest import DRAFT, PREFIX, STATE_FILE, Identity, reason_of, revoke, seal
from swiftlet.train.state import TrainState
from swiftlet.train.statefile import copied, write_optimizer

SPARE_BYTES = 16 * 2**20
MOST_RETRIES = 3
FAILURES = (OSError, SafetensorError, SwiftletError)
HINT, GO_ON = "see that --output_dir has free space and can be written", "then --resume_from_checkpoint auto"
Rest = Callable[[], None]


@dataclass
class Pending:
    """A save under way: what was best with it and before it, and on rank 0 how far the writing is."""

    step: int
    best_step: int
    former_best: tuple[float | None, int]
    writing: Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether this rank knows that the writing has ended, well or not."""
        return self.writing is not None and self.writing.done()


@dataclass
class Saver:
    """Saves a run into `folder`.

    Args:
        take_model: called on every rank with the draft folder; takes a copy of what the next step changes, or writes
            at once what no rank may hold whole. What it returns writes the rest, later and on rank 0 only.
        expected_bytes: size of a checkpoint, for the first check of free space; later the last one's size is used.
        total_limit: checkpoints kept, the best among them; -1 for all.
        saved_steps: valid checkpoints that the folder already holds.
        is_model_only: leave out what a resumed run needs.
        is_error_fatal: a failed save stops the run; otherwise it is retried after 1, 2 and 4 steps.
        is_streamed: write the optimizer state while it is gathered, because no rank may hold it whole.
        fill_folder: writes what a run keeps beside its checkpoints; called where the folder was removed meanwhile.
        most_lost: steps that a kill may cost at most, as long as saves succeed; 0 for no bound.
    """

    folder: Path
    world: World
    engine: Engine
    take_model: Callable[[Path], Rest]
    identity: Identity
    version: str
    total_limit: int = 2
    is_model_only: bool = False
    is_error_fatal: bool = False
    is_streamed: bool = False
    fill_folder: Rest = lambda: None
    most_lost: int = 0
    expected_bytes: int = 0
    saved_steps: list[int] = field(default_factory=list)
    newest_step: int = 0
    begun_step: int = 0
    num_failures: int = 0
    pending: Pending | None = None
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "saver"))

    def kept_steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there: one that somebody has removed is not."""
        return [step for step in self.saved_steps if not self.world.is_main or self.path(step).is_dir()]

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"{PREFIX}{step}"

    def hold(self, state: TrainState) -> None:
        """Wait for the save under way where a kill after the step at hand would cost more than `most_lost` steps.

        Every rank asks before an update, so all of a step but its update overlaps with the writing.
        """
        lost = state.global_step + 1 - self.newest_step
        if self.pending is None or not 0 < self.most_lost < lost:
            return
        heartbeat.beat("save", state.global_step)
        self.settle(state)
        heartbeat.beat("step", state.global_step + 1)

    def is_retry_due(self, state: TrainState) -> bool:
        """Return whether a failed save should be tried again after this step; every rank asks after every step.

        The save under way is looked at 1, 2, 4, ... steps after it began.
        """
        waited = state.global_step - self.begun_step
        if waited < 1 or waited & (waited - 1):
            return False
        if self.pending is not None and self.world.agree(self.pending.is_over):
            self.settle(state)
        is_failed = self.pending is None and 0 < self.num_failures <= MOST_RETRIES
        return is_failed and waited >= 2 ** (self.num_failures - 1)

    def save(
        self,
        state: TrainState,
        *,
        former_best: tuple[float | None, int] = (None, 0),
        is_final: bool = False,
    ) -> Path | None:
        """Begin to write `checkpoint-{global_step}`; return its folder, None when that failed at once.

        Args:
            former_best: metric and step of the best checkpoint before; `state` has them again when this save fails.
            is_final: come back when it is written.

        Raises:
            SaveError: it could not be written and nothing will follow that could retry it.
        """
        self.settle(state)
        target = self.path(state.global_step)
        if self.newest_step == state.global_step:
            return target
        self.begun_step = state.global_step
        self.pending = Pending(state.global_step, state.best_step, former_best)
        draft = target.with_name(f"{DRAFT}{state.global_step}-{uuid.uuid4().hex}")
        draft = Path(self.world.broadcast(str(draft)))
        rest: list[Rest] = []
        for phase in (self._begin, self._take_model, self._take_optimizer):
            problem = self._attempt(partial(phase, draft, rest))
            if problem is not None:
                if self.world.is_main:
                    shutil.rmtree(draft, ignore_errors=True)
                self._fail(state, problem, is_fatal=is_final)
                return None
        if self.world.is_main:
            self.pending.writing = self.writer.submit(self._write, draft, rest, self.pending, state.to_json())
        if is_final:
            self.settle(state, is_final=True)
        return target

    def settle(self, state: TrainState, *, is_final: bool = False) -> None:
        """Wait for the save under way, on every rank, and take note of its outcome.

        Raises:
            SaveError: it failed, and that is fatal.
        """
        if self.pending is None:
            return
        writing = self.pending.writing
        problem = self._attempt(writing.result if writing is not None else lambda: None)
        if problem is not None:
            self._fail(state, problem, is_fatal=is_final)
            return
        step, best_step = self.pending.step, self.pending.best_step
        self.pending, self.num_failures, self.newest_step = None, 0, step
        doomed = superfluous([*self.kept_steps(), step], best_step, self.total_limit)
        self.saved_steps = [kept for kept in (*self.kept_steps(), step) if kept not in doomed]

    def close(self) -> None:
        """Wait for a save under way when the run ends before its time; a failure costs a warning."""
        self.writer.shutdown(wait=True)
        writing = self.pending.writing if self.pending is not None else None
        error = writing.exception() if writing is not None else None
        if error is not None:
            log.warning(f"the last checkpoint could not be written: {reason_of(error)}")

    def _fail(self, state: TrainState, problem: tuple[str, str], *, is_fatal: bool) -> None:
        assert self.pending is not None
        state.best_metric, state.best_step = self.pending.former_best
        target, self.pending = self.path(self.pending.step), None
        self.num_failures += 1
        reason, hint = problem
        message = f"{target} could not be written: {reason}; earlier checkpoints are intact"
        if self.is_error_fatal or is_fatal:
            raise SaveError(message, f"{hint}, {GO_ON}")
        if self.world.is_main:
            log.warning(f"{message}. The run goes on and tries again; meanwhile {hint}")

    def _attempt(self, phase: Rest) -> tuple[str, str] | None:
        """Do a part of a save; return, on every rank, why it failed on any and what to do about it."""
        problem = None
        try:
            phase()
        except FAILURES as error:
            problem = reason_of(error), getattr(error, "hint", "") or HINT
        found = [(rank, *one) for rank, one in enumerate(self.world.gather(problem)) if one]
        reasons = "; ".join(f"rank {rank}: {reason}" for rank, reason, _ in found)
        return (reasons.removeprefix("rank 0: "), found[0][2]) if found else None

    def _begin(self, draft: Path, rest: list[Rest]) -> None:
        fault("ckpt.begin", step=self.begun_step, path=draft)
        if self.world.is_main:
            if not self.folder.is_dir():
                log.warning(f"{self.folder} was removed: it is made again; what it held is gone")
                self.folder.mkdir(parents=True)
                self.fill_folder()
            keep_owned(self.folder)
            check_space(self.folder, self.expected_bytes)
            draft.mkdir(parents=True)

    def _take_model(self, draft: Path, rest: list[Rest]) -> None:
        rest.append(self.take_model(draft))

    def _take_optimizer(self, draft: Path, rest: list[Rest]) -> None:
        if self.is_model_only:
            return
        tensors, folder = self.engine.optimizer_tensors(), draft if self.world.is_main else None
        if self.is_streamed or folder is None:
            write_optimizer(folder, tensors)
        else:
            rest.append(partial(write_optimizer, folder, copied(tensors)))

    def _write(self, draft: Path, rest: list[Rest], pending: Pending, state_text: str) -> None:
        """Write, flush, name and prune; in a thread of rank 0, which touches nothing that a step changes."""
        step, target, is_named = pending.step, self.path(pending.step), False
        try:
            for write in rest:
                write()
            if not self.is_model_only:
                (draft / STATE_FILE).write_text(state_text, encoding="utf-8")
            size = self.world.world_size
            manifest = seal(draft, step=step, world_size=size, identity=self.identity, version=self.version)
            set_aside(target)
            draft.rename(target)
            is_named = True
            fault("ckpt.rename", step=step, path=target)
            sync(self.folder)
        except FAILURES:
            if is_named:  # its name may not be on the disk: a failed save leaves nothing
                target.rename(draft)
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self.expected_bytes = sum(entry["bytes"] for entry in manifest.files.values())
        for doomed in superfluous([*self.kept_steps(), step], pending.best_step, self.total_limit):
            self._prune(doomed, step)

    def _prune(self, step: int, newest_step: int) -> None:
        doomed = self.path(step).with_name(f"{DRAFT}prune-{step}")
        try:
            doomed = revoke(self.path(step), doomed)
            fault("ckpt.prune", step=newest_step, path=doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning(f"{self.path(step)} could not be removed: {error.strerror}")


def set_aside(folder: Path) -> None:
    """Rename a checkpoint folder that is in the way, such as a broken one; nothing is overwritten."""
    if folder.exists():
        aside = folder.with_name(f"old-{folder.name}-{uuid.uuid4().hex[:8]}")
        log.warning(f"{folder} exists already; it is now {aside.name}")
        move(folder, aside)


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
