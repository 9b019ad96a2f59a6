"""Where the figures of a run go: logging.jsonl, TensorBoard, the progress bar, and pictures at the end.

A file that cannot be written costs one warning, never the run. Times come from a clock that never jumps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.faults import fault
from swiftlet.files import append_whole, write_whole
from swiftlet.train import plots
from swiftlet.train.events import append_scalars, event_file
from swiftlet.train.progress import Lines, build_progress, short_time
from swiftlet.train.state import TrainState

FILE = "logging.jsonl"
IMAGES = "images"
EVENTS = "runs"
EVALUATION, SAVE = "evaluation", "save"  # what steps wait for
SETTLED_STEPS = 20  # after which the pace of a run is known


def significant(value: float, digits: int = 8) -> float:
    """Return `value` rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


@dataclass
class Clock:
    """Seconds of training, without evaluation and saving, and tokens in them."""

    mark: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    num_tokens: int = 0

    def count(self, num_tokens: int) -> None:
        """Add the time since the mark and the tokens made in it."""
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.num_tokens += num_tokens
        self.mark = now

    @property
    def tokens_per_second(self) -> float:
        """The speed so far."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


class Forecast(NamedTuple):
    """What was expected before the run: memory of a device [GiB], seconds of a step and of one evaluation."""

    needed_gib: float
    reserved_gib: float
    visible_gib: float
    step_seconds: float
    evaluation_seconds: float = 0.0


@dataclass
class Report:
    """The report of rank 0; build it with `build_report`.

    Args:
        peak_memory_bytes: the most device memory that this process had in use; 0 when not known.
        events: the TensorBoard file, None for no TensorBoard.
        forecast: compared with what is measured; None for none.
        memory_in_use: (held by the allocator at most, in use on the whole device) [bytes]; 0 when not known.
        to_come: how many evaluations and saves the rest of the run has.
        pauses: the seconds of each that there was.
    """

    folder: Path
    progress: Lines
    peak_memory_bytes: Callable[[], int]
    events: Path | None
    first_step: int = 0
    started: float = field(default_factory=time.perf_counter)
    whole: Clock = field(default_factory=Clock)
    recent: Clock = field(default_factory=Clock)
    last_text: str = ""
    warned: set[str] = field(default_factory=set)
    forecast: Forecast | None = None
    memory_in_use: Callable[[], tuple[int, int]] = lambda: (0, 0)
    num_steps: int = 0
    first_seconds: float = 0.0
    to_come: Mapping[str, Callable[[TrainState], int]] = field(default_factory=dict)
    pauses: dict[str, list[float]] = field(default_factory=dict)

    def step(self, state: TrainState, num_tokens: int) -> None:
        """Count a step for the speed and move the progress bar."""
        self.whole.count(num_tokens)
        self.recent.count(num_tokens)
        self.num_steps += 1
        if self.num_steps == 1:
            self.first_seconds = self.whole.seconds
        if self.num_steps == SETTLED_STEPS:
            self._tell_pace(state)
        self.progress.move(state.global_step, f"{self.last_text} {self.whole.tokens_per_second:.0f} tokens/s")

    def log(self, state: TrainState, figures: Mapping[str, float]) -> None:
        """Write one training line."""
        speed = self.recent.tokens_per_second
        self.recent = Clock(self.recent.mark)
        memory = self.peak_memory_bytes() / 2**30
        self._write(state, {**figures, "memory_gib": memory, "tokens_per_second": round(speed, 1)}, "train/")
        self.last_text = f"loss {figures['loss']:.4f}"
        text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        held = f" {memory:.3g} GiB" if memory else ""
        self.progress.line(state.global_step, f"{text} {speed:.0f} tokens/s{held}, {self._left(state)} left")

    def _tell_pace(self, state: TrainState) -> None:
        """Say after a few steps how long the run will really take, evaluations and checkpoints included."""
        expected = f", {self.forecast.step_seconds:.3g} s by the plan" if self.forecast else ""
        self.progress.line(
            state.global_step,
            f"after {self.num_steps} steps: {self._pace():.3g} s a step{expected}; {self._left(state)} left",
        )

    def _pace(self) -> float:
        """Return the seconds of a step so far; the first one, which makes what later ones find, counts alone only."""
        if self.num_steps < 2:
            return self.whole.seconds
        return (self.whole.seconds - self.first_seconds) / (self.num_steps - 1)

    def _left(self, state: TrainState) -> str:
        """Return the time that the rest of the run takes: its steps, evaluations and saves, each as long as so far."""
        seconds = self._pace() * (state.num_steps - state.global_step)
        seconds += sum(number(state) * self._pause(name) for name, number in self.to_come.items())
        return short_time(seconds)

    def _pause(self, name: str) -> float:
        """Return the seconds of one evaluation or save; until there was one, of an evaluation those of the plan.

        Its mistake in the time of an evaluation is that in the time of a step.
        """
        if seconds := self.pauses.get(name):
            return sum(seconds) / len(seconds)
        if name != EVALUATION or self.forecast is None:
            return 0.0
        return self.forecast.evaluation_seconds * self._pace() / self.forecast.step_seconds

    def _comparison(self) -> dict[str, float]:
        """Return what was expected and what was measured."""
        reserved, visible = self.memory_in_use()
        figures = {
            "reserved_gib": reserved / 2**30,
            "visible_gib": visible / 2**30,
            "step_seconds": self.whole.seconds / max(1, self.num_steps),
        }
        if self.forecast is not None:
            figures |= {f"predicted_{name}": value for name, value in self.forecast._asdict().items()}
        return {name: significant(value) for name, value in figures.items()}

    def evaluation(self, state: TrainState, scores: Mapping[str, float]) -> None:
        """Write one evaluation line."""
        self._write(state, scores, "eval/")
        self.progress.line(
            state.global_step, " ".join(f"{name} {value:.4g}" for name, value in scores.items())
        )

    def resume_clock(self, pause: str = "") -> None:
        """Do not count the time since the last step as training time, but as that of an evaluation or a save."""
        now = time.perf_counter()
        if pause:
            self.pauses.setdefault(pause, []).append(now - self.whole.mark)
        self.whole.mark = self.recent.mark = now

    def summary(self, state: TrainState, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write the last line of logging.jsonl and draw the pictures; return the line."""
        line = {
            "train_runtime": round(time.perf_counter() - self.started, 2),
            "train_tokens_per_second": round(self.whole.tokens_per_second, 1),
            "num_tokens": state.num_tokens,
            "num_label_tokens": state.num_label_tokens,
            "num_skipped_steps": state.num_skipped,
            "memory_gib": significant(self.peak_memory_bytes() / 2**30),
            "epoch": significant(state.epochs_done),
            "global_step": state.global_step,
            **self._comparison(),
            **results,
        }
        self._append(line)
        plots.draw(self.folder / FILE, self.folder / IMAGES)
        return line

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.progress.close()

    def _write(self, state: TrainState, figures: Mapping[str, float], group: str) -> None:
        rounded = {name: significant(value) for name, value in figures.items()}
        where = {"epoch": significant(state.epochs_done), "global_step": state.global_step}
        self._append({**rounded, **where})
        if self.events is not None:
            tagged = {group + name.removeprefix("eval_"): value for name, value in rounded.items()}
            step, first = state.global_step, self.first_step + 1
            self._survive(lambda path: append_scalars(path, step, tagged, first_step=first), self.events)

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False) + "\n"

        def write(path: Path) -> None:
            fault("log", path=path)
            append_whole(path, text.encode())

        self._survive(write, self.folder / FILE)

    def _survive(self, write: Callable[[Path], None], path: Path) -> None:
        try:
            write(path)
        except OSError as error:
            if str(path) not in self.warned:
                log.warning(f"{path} cannot be written: {error.strerror}; the run goes on without it")
            self.warned.add(str(path))


def forget_after(logging_file: Path, step: int) -> None:
    """Drop the lines of later steps and a summary, which a resumed run writes again; one rename."""
    if not logging_file.exists():
        return
    kept = []
    try:
        for line in logging_file.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a kill, or what a disk has made of it when the power failed
                continue
            if isinstance(entry, dict) and "train_runtime" not in entry and _step_of(entry) <= step:
                kept.append(line.decode())
        write_whole(logging_file, "".join(kept))
    except OSError as error:
        log.warning(f"{logging_file} cannot be cut back to step {step}: {error.strerror}; the run goes on")


def _step_of(entry: Mapping[str, Any]) -> float:
    found = entry.get("global_step", 0)
    return found if isinstance(found, (int, float)) else 0


def has_summary(folder: Path) -> bool:
    """Return whether the log of a run ends with its summary: the run came to its end."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        return bool(lines) and "train_runtime" in json.loads(lines[-1])
    except (OSError, ValueError, TypeError):  # TypeError: what a spoilt line holds is no object
        return False


def build_report(
    folder: Path,
    state: TrainState,
    *,
    peak_memory_bytes: Callable[[], int],
    has_tensorboard: bool = True,
    forecast: Forecast | None = None,
    memory_in_use: Callable[[], tuple[int, int]] = lambda: (0, 0),
    to_come: Mapping[str, Callable[[TrainState], int]] | None = None,
) -> Report:
    """Return the report of a run that writes into `folder`; see `Report` for what it compares."""
    forget_after(folder / FILE, state.global_step)
    events = event_file(folder / EVENTS) if has_tensorboard else None
    progress = build_progress(state.num_steps, state.global_step)
    return Report(
        folder,
        progress,
        peak_memory_bytes,
        events,
        first_step=state.global_step,
        forecast=forecast,
        memory_in_use=memory_in_use,
        to_come=to_come or {},
    )
