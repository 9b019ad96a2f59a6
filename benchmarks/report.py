"""What every result carries (machine, versions, command, date), and tables in Markdown."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft")


def parser_of(text: str) -> argparse.ArgumentParser:
    """Return a parser of the command line whose help is a module's docstring as it is."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def write(path: Path | None, result: Any) -> None:
    """Write a result as JSON, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the command, the machine, the versions and the date of a measurement."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "options": {name: str(value) for name, value in vars(options).items()},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def peers_table(case: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one case of peers.py: medians, and ours as a multiple of each tool's."""
    ours = next(iter(case["tools"].values()))["summary"]
    header = ["tool", "tokens/s", "ours is", "tokens/cpu s", "ours is", "peak MB", "above weights MB"]
    header += ["shell to first step s", "whole run s", "mean loss"]
    has_device = any("device_reserved_bytes" in found["summary"] for found in case["tools"].values())
    if has_device:
        header += ["device: above weights MB", "reserved MB"]
    rows = []
    for name, found in case["tools"].items():
        summary = found["summary"]
        if not summary["rounds"] or "tokens_per_s" not in summary:
            rows.append([name, "failed", *[""] * (len(header) - 2)])
            continue
        rows.append(
            [
                name,
                _number(summary, "tokens_per_s"),
                _ratio(ours, summary, "tokens_per_s"),
                _number(summary, "tokens_per_cpu_s"),
                _ratio(ours, summary, "tokens_per_cpu_s"),
                _number(summary, "peak_rss_bytes", 1e-6),
                _number(summary, "peak_above_weights_bytes", 1e-6),
                _number(summary, "first_step_s"),
                _number(summary, "wall_s"),
                f"{summary['loss']['median']:.4f}",
            ]
        )
        if has_device:
            names = ("device_peak_above_weights_bytes", "device_reserved_bytes")
            rows[-1] += [_number(summary, name, 1e-6) for name in names]
    return header, rows


def _number(summary: dict[str, Any], name: str, factor: float = 1.0) -> str:
    return f"{summary[name]['median'] * factor:,.0f}" if name in summary else ""


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> str:
    if ours is theirs or name not in ours or name not in theirs:
        return ""
    return f"{ours[name]['median'] / theirs[name]['median']:.2f}x"
