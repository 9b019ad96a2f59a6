"""The memory of a plan as a bar chart."""

from __future__ import annotations

import io
from pathlib import Path

from swiftlet.commands.plan_report import Answer
from swiftlet.plan.memory import GIB, Memory
from swiftlet.plan.strategies import Way
from swiftlet.train.plots import import_figure

COLOURS = ("#4c78a8", "#72b7b2", "#f58518", "#e45756", "#b279a2", "#9d755d", "#54a24b", "#eeca3b", "#ff9da6")


def draw(answer: Answer, path: str) -> None:
    """Write a bar chart of the memory: one bar an engine, its parts stacked, and the device as a line.

    A page of HTML holds the same picture as SVG.
    """
    first: dict[str, Way] = {}
    for way in answer.table:
        first.setdefault(way.title, way)
    figure = import_figure()(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    bottoms = [0.0] * len(first)
    for number, name in enumerate(Memory._fields):
        sizes = [getattr(way.figures.memory, name) / GIB for way in first.values()]
        axes.bar(list(first), sizes, bottom=bottoms, label=name, color=COLOURS[number])
        bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    rest = [way.figures.visible / GIB - bottom for way, bottom in zip(first.values(), bottoms, strict=True)]
    axes.bar(list(first), rest, bottom=bottoms, label="allocator, context, idle", color="#bab0ac")
    card = answer.subject.card
    axes.axhline(card.memory_gib, color="black", linewidth=1, label=card.name)
    axes.axhline(0.8 * card.memory_gib, color="black", linewidth=1, linestyle="--", label="80 %")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("GiB a device")
    axes.set_title(f"{answer.subject.sized.name} on {answer.subject.world_size} x {card.name}")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    if not path.endswith(".html"):
        figure.savefig(path, dpi=120)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    picture_text = picture.getvalue()[picture.getvalue().index("<svg") :]
    page = f"<!DOCTYPE html><meta charset='utf-8'><title>swift plan</title>{picture_text}"
    Path(path).write_text(page, encoding="utf-8")
