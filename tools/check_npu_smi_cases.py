"""Read every output of npu-smi in a folder and print where the result differs from its key.

    python tools/check_npu_smi_cases.py FOLDER

The folder has MANIFEST.jsonl with one object a line: "file", "command" and "truth". Exit code 1 on any difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from swiftlet.device.npu_smi import Card, is_info, parse_info
from swiftlet.device.npu_smi_lists import (
    find_error,
    is_mapping,
    npu_of,
    parse_blocks,
    parse_mapping,
    per_chip,
)
from swiftlet.device.topology import TopologyError, is_topology, parse_topology


def card_facts(card: Card) -> dict[str, Any]:
    """Return a card as the keys write it; the extra number only where the layout has one."""
    facts = {
        name: list(value) if isinstance(value, tuple) else value for name, value in card._asdict().items()
    }
    for name in ("phy_id", "device"):
        if facts[name] is None:
            del facts[name]
    return facts | {"memory_used_mb": card.used_mb, "memory_total_mb": card.total_mb}


def read_info(text: str) -> dict[str, Any]:
    """Return the table of cards and processes."""
    info = parse_info(text)
    facts: dict[str, Any] = {
        "kind": "info",
        "npu_smi_version": info.npu_smi_version,
        "driver_version": info.driver_version,
    }
    facts |= {"chips": len(info.cards), "cards": [card_facts(card) for card in info.cards]}
    facts |= {"process_table": info.process_table, "process_memory_unit": info.process_memory_unit}
    return facts | {"processes": [one._asdict() for one in info.processes], "idle_npus": info.idle_npus}


def read_topology(text: str) -> dict[str, Any]:
    """Return the matrix, or null ids where it is refused."""
    try:
        return {"kind": "topo", **parse_topology(text)._asdict()}
    except TopologyError:
        return {"kind": "topo", "ids": None}


def read_output(text: str) -> dict[str, Any]:
    """Return what the text says, by what it is; the question that was asked is not needed."""
    if is_info(text):
        return read_info(text)
    if is_mapping(text):
        table = parse_mapping(text)
        return {"kind": "mapping", "columns": table.columns, "rows": table.rows, "npus": table.npus}
    if is_topology(text):
        return read_topology(text)
    blocks = parse_blocks(text)
    if blocks:
        facts: dict[str, Any] = {"kind": "key_values", "blocks": blocks}
        chips = per_chip(blocks)
        return facts | ({"per_chip": chips, "npu": npu_of(blocks)} if chips else {})
    return {"kind": "error", "npus": None, "message": find_error(text)}


def differences(found: Any, truth: Any, place: str = "") -> list[str]:
    """Return every place where two values differ, as readable lines; notes of the key are left out."""
    if isinstance(found, dict) and isinstance(truth, dict):
        names = (found.keys() | truth.keys()) - {"note"}
        return [
            line
            for name in sorted(names, key=str)
            for line in differences(
                found.get(name, "(missing)"), truth.get(name, "(missing)"), f"{place}.{name}"
            )
        ]
    if isinstance(found, list) and isinstance(truth, list) and len(found) == len(truth):
        return [
            line
            for at, (one, other) in enumerate(zip(found, truth, strict=True))
            for line in differences(one, other, f"{place}[{at}]")
        ]
    return [] if found == truth else [f"{place}: read {found!r}, the key says {truth!r}"]


def main(folder: Path) -> int:
    """Print the differences of all outputs in a folder and return the exit code."""
    lines = (folder / "MANIFEST.jsonl").read_text(encoding="utf-8").splitlines()
    keys = [json.loads(line) for line in lines if line.strip()]
    wrong = 0
    for key in keys:
        text = (folder / key["file"]).read_text(encoding="utf-8", errors="replace")
        found = differences(read_output(text), key["truth"])
        wrong += bool(found)
        for line in found:
            print(f"{key['file']}: {line}")
    print(f"{len(keys) - wrong} of {len(keys)} are read as their key says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
