"""One PNG a scalar of logging.jsonl, drawn when a run ends; matplotlib is imported only then.

The training loss and accuracy are shown raw with their smoothed course over them.
Source of the smoothing: TensorBoard's scalar chart, an exponential mean corrected for its start.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftlet import log

SMOOTHING = 0.9
SMOOTHED = ("loss", "acc", "grad_norm")
NOT_DRAWN = ("global_step", "epoch")
Series = list[tuple[int, float]]


def smooth(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Return the exponential mean of `values`, corrected for its start."""
    smoothed, last = [], 0.0
    for number, value in enumerate(values, start=1):
        last = last * weight + (1 - weight) * value
        smoothed.append(last / (1 - weight**number))
    return smoothed


def read_series(logging_file: Path) -> dict[str, Series]:
    """Return (step, value) of each scalar; lines that are not figures of a step are left out."""
    series: dict[str, Series] = {}
    for line in logging_file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or "global_step" not in entry or "train_runtime" in entry:
            continue
        for name, value in entry.items():
            is_number = isinstance(value, (int, float)) and math.isfinite(value)
            if is_number and name not in NOT_DRAWN:
                series.setdefault(name, []).append((int(entry["global_step"]), float(value)))
    return series


def draw(logging_file: Path, folder: Path) -> int:
    """Draw every scalar into `folder`; return the number of pictures, 0 with a warning when they cannot be written."""
    try:
        series = read_series(logging_file)
        folder.mkdir(parents=True, exist_ok=True)
        for name, points in series.items():
            _draw_one(name, points, folder / f"{name if name.startswith('eval_') else 'train_' + name}.png")
    except OSError as error:
        log.warning(f"the pictures of {folder} could not be drawn: {error.strerror}")
        return 0
    return len(series)


def import_figure() -> Any:
    """Return matplotlib's Figure, whatever back end the environment names: notebooks set one that is not everywhere."""
    os.environ.pop("MPLBACKEND", None)  # an unknown one is an error on import; a file needs none
    from matplotlib.figure import Figure

    return Figure


def _draw_one(name: str, points: Series, path: Path) -> None:
    figure_class = import_figure()
    steps, values = [step for step, _ in points], [value for _, value in points]
    figure = figure_class(figsize=(8, 5), dpi=100)
    axes = figure.subplots()
    if name in SMOOTHED:
        axes.plot(steps, values, color="#FFE2D9", marker="." if len(points) == 1 else "")
        axes.plot(steps, smooth(values), color="#FF7043")
    else:
        axes.plot(steps, values, color="#FF7043", marker="." if len(points) < 3 else "")
    axes.set_title(name)
    axes.set_xlabel("global_step")
    axes.grid(alpha=0.3)
    figure.savefig(path)
