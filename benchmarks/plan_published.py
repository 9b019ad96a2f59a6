"""The published rows beside the model's figures: the tables and the picture of docs/planning.md.

python benchmarks/plan_published.py docs/planning.svg
"""

from __future__ import annotations

import sys

from matplotlib import rcParams
from matplotlib.figure import Figure
from published import hours_on_ascend, read_rows, reserved_on_a100, visible_on_ascend

from swiftlet.models.families import FAMILIES


def main() -> None:
    """Print both tables and draw the picture."""
    rcParams["svg.hashsalt"] = "swiftlet"  # the same picture is the same file
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    print(
        "| model | training | longest | batch | rank | published | model | difference | part |\n"
        + "|---" * 9
        + "|"
    )
    for row in read_rows("published_a100.csv", "gib"):
        found, d = reserved_on_a100(FAMILIES[row.model].geometry, row), row.details
        print(
            f"| {row.model} | {d['sft_type']} | {d['max_length']} | {d['batch_size']} | {d['rank']} | "
            f"{row.published:.2f} | {found:.2f} | {found / row.published - 1:+.1%} | {d['set']} |"
        )
        left.plot(row.published, found, {"calibration": "o", "full": "s", "other": "x"}[d["set"]], color="C0")
    print(
        "\n| model | NPUs | engine | GB | April 19 | model | difference | hours | model |\n"
        + "|---" * 9
        + "|"
    )
    for row in read_rows("published_ascend.csv", "gb"):
        sizes, d = FAMILIES[row.model].geometry, row.details
        found = visible_on_ascend(sizes, row)
        print(
            f"| {row.model} | {d['world_size']} | {d['engine']} | {row.published:.0f} | {d['april_gb']} | {found:.1f} "
            f"| "
            f"{found / row.published - 1:+.0%} | {d['hours']} | {hours_on_ascend(sizes, row):.1f} |"
        )
        right.plot(row.published, found, "o", color="C1")
        if d["april_gb"]:
            right.plot(float(d["april_gb"]), found, "o", color="C1", alpha=0.3)
    for axes, title, unit in (
        (left, "A100, reserved", "GiB"),
        (right, "910B3, npu-smi (pale: April 19)", "GB"),
    ):
        most = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, most], [0, most], color="black", linewidth=0.8)
        axes.set(
            title=title,
            xlabel=f"published [{unit}]",
            ylabel=f"model [{unit}]",
            xlim=(0, most),
            ylim=(0, most),
        )
    if len(sys.argv) > 1:
        figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
