"""The end of a run on one screen: where the checkpoints and pictures are, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from swiftlet import log
from swiftlet.train.checkpoint import Saver
from swiftlet.train.progress import short_time
from swiftlet.train.report import IMAGES, Report
from swiftlet.train.state import TrainState


def _against_the_plan(line: Mapping[str, Any]) -> list[str]:
    """Return one line of what was expected and what was measured, none where nothing was expected."""
    if "predicted_needed_gib" not in line:
        return []
    pairs = [("allocated", "memory_gib", "needed_gib"), ("reserved", "reserved_gib", "reserved_gib")]
    pairs.append(("visible", "visible_gib", "visible_gib"))
    parts = [
        f"{name} {line[measured]:.4g} GiB ({line[f'predicted_{expected}']:.4g} expected)"
        for name, measured, expected in pairs
        if line[measured]
    ]
    pace = f"{line['step_seconds']:.3g} s a step ({line['predicted_step_seconds']:.3g} expected)"
    return ["against the plan: " + ", ".join([*parts, pace])]


def _of_the_best(state: TrainState, best: str | None, saved: Sequence[int]) -> str:
    """Return why the best checkpoint is not there, where one was saved."""
    if best or not saved or not state.best_step:
        return ""
    return f" (checkpoint-{state.best_step} was the best and is not kept: --save_total_limit 2 keeps both)"


def summarise(report: Report, state: TrainState, saver: Saver | None, next_command: str = "") -> list[str]:
    """Write the summary into the log files and return its lines; they are logged too.

    Args:
        next_command: what to type next; `{checkpoint}` in it becomes the best checkpoint, or the last one.
    """
    saved = sorted(saver.kept_steps()) if saver is not None else []
    last = str(saver.path(saved[-1])) if saver is not None and saved else None
    best = str(saver.path(state.best_step)) if saver is not None and state.best_step in saved else None
    results = {"best_metric": state.best_metric, "best_model_checkpoint": best, "last_model_checkpoint": last}
    line = report.summary(state, results)
    report.close()
    lines = [
        f"{state.global_step} steps, {state.epochs_done:.2f} epochs, {state.num_tokens} tokens "
        f"({state.num_label_tokens} trained on) in {short_time(line['train_runtime'])}; "
        f"{line['train_tokens_per_second']:.0f} tokens/s, {line['memory_gib']:.2f} GiB",
        *_against_the_plan(line),
        f"best_model_checkpoint: {best}{_of_the_best(state, best, saved)}",
        f"last_model_checkpoint: {last}",
        f"images_dir: {report.folder / IMAGES}",
    ]
    if next_command and (best or last):
        lines.append("next: " + next_command.replace("{checkpoint}", shlex.quote(best or last or "")))
    for text in lines:
        log.info(text)
    return lines
