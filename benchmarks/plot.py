"""Pictures of what peers.py, curves.py and scaling.py measured.

python benchmarks/plot.py peers docs/benchmarks/peers-*.json --out docs/benchmarks/peers.png
python benchmarks/plot.py peers docs/benchmarks/peers-60m-8k*.json --out docs/benchmarks/peers-60m.png
python benchmarks/plot.py curves docs/benchmarks/curves.json --out docs/benchmarks/curves.png
python benchmarks/plot.py scaling docs/benchmarks/scaling.json --out docs/benchmarks/scaling.png
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from report import parser_of

OURS, OTHERS = "#FF7043", "#90A4AE"
LINES = (OURS, "#BF360C", "#1565C0", "#2E7D32", "#6A1B9A", "#455A64")
SMOOTHED = 10  # steps of a curve that are one point
FIGURES = {
    "tokens_per_s": ("trained tokens/s", 1.0),
    "peak_above_weights_bytes": ("memory above the weights, MB", 1e-6),
    "first_step_s": ("shell to the first step, s", 1.0),
}


def draw_peers(results: list[dict[str, Any]]) -> Figure:
    """Return one row of bars a case: speed, memory and start of every tool, with the range of the rounds."""
    cases = [case for result in results for case in result["cases"]]
    figure = Figure(figsize=(13, 2.6 * len(cases)), dpi=100, layout="constrained")
    grid = figure.subplots(len(cases), len(FIGURES), squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        tools = {
            name: one["summary"] for name, one in case["tools"].items() if one["summary"].get("tokens_per_s")
        }
        for axes, (name, (title, factor)) in zip(row, FIGURES.items(), strict=True):
            values = [summary[name]["median"] * factor for summary in tools.values()]
            errors = [
                [
                    abs(summary[name][end] * factor - value)
                    for summary, value in zip(tools.values(), values, strict=True)
                ]
                for end in ("min", "max")
            ]
            colours = [OURS if tool.startswith("swiftlet") else OTHERS for tool in tools]
            bars = axes.barh(list(tools), values, xerr=errors, color=colours, ecolor="#455A64")
            axes.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=8)
            axes.set_xlim(0, 1.18 * max(values))
            axes.invert_yaxis()
            axes.set_title(title if axes is not row[0] else f"{case['case']}: {title}", fontsize=9)
            axes.tick_params(labelsize=8)
            if axes is not row[0]:
                axes.set_yticklabels([])
    return figure


def draw_curves(results: list[dict[str, Any]]) -> Figure:
    """Return the losses of each run over its steps, as means of a few steps."""
    runs = {name: run for result in results for name, run in result["runs"].items()}
    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for (name, run), colour in zip(runs.items(), LINES, strict=False):
        losses = run["losses"]
        starts = range(0, len(losses) - SMOOTHED + 1, SMOOTHED)
        means = [statistics.fmean(losses[start : start + SMOOTHED]) for start in starts]
        style = "--" if name.endswith("bf16") else "-"
        ends = [start + SMOOTHED for start in starts]
        axes.plot(ends, means, style, color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, mean of {SMOOTHED} steps")
    axes.set_yscale("log")
    for part in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        part(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def draw_scaling(results: list[dict[str, Any]]) -> Figure:
    """Return speed and memory over each scale, one line a variant."""
    points = [point for result in results for point in result["points"]]
    scales = [name for name in ("length", "batch", "size") if any(point["what"] == name for point in points)]
    figure = Figure(figsize=(4.4 * len(scales), 6), dpi=100, layout="constrained")
    grid = figure.subplots(2, len(scales), squeeze=False)
    for column, scale in enumerate(scales):
        found = [point for point in points if point["what"] == scale]
        for variant in dict.fromkeys(point["variant"] for point in found):
            mine = [point for point in found if point["variant"] == variant and "tokens_per_s" in point]
            where = [str(point.get(scale) or point["samples"]) for point in mine]
            colour = OURS if variant.startswith("ours") else OTHERS
            for axes, name, factor in (
                (grid[0][column], "tokens_per_s", 1.0),
                (grid[1][column], "peak_above_model_bytes", 1e-6),
            ):
                style = "-" if variant in ("ours", "padded") else "--"
                axes.plot(
                    where,
                    [point[name] * factor for point in mine],
                    style,
                    marker="o",
                    color=colour,
                    label=variant,
                )
        for axes, title in (
            (grid[0][column], "tokens / cpu s"),
            (grid[1][column], "peak above the model, MB"),
        ):
            axes.set_title(f"{title} over {scale}", fontsize=9)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Draw one picture."""
    parser = parser_of(__doc__)
    parser.add_argument("kind", choices=["peers", "curves", "scaling"])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    draw = {"peers": draw_peers, "curves": draw_curves, "scaling": draw_scaling}[options.kind]
    draw(results).savefig(options.out)


if __name__ == "__main__":
    main()
