"""Compare the first cause of keyed failure logs with their keys.

A key tells the cause in free words and on what it rests; `unknown` means that the log does not show it. The verdict
is by rule and not by file: `unknown` exactly where the key says so, and where the key knows the cause, words of that
key that stand for ours (`MEANS`). What the rule cannot judge is printed for a person.

    python tools/check_npu_error_cases.py FOLDER [--words]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from swiftlet.doctor.explain import Explanation, explain
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.tables import load
from swiftlet.doctor.wording import in_words, look_at

# What a key says where it means one of our causes: the id begins so, and the words are found in its cause or remedy.
MEANS = {
    "env.numpy2": r"numpy ?2",
    "env.set_env": r"set_env|LD_LIBRARY_PATH|not sourced",
    "env.driver_library": r"driver|LD_LIBRARY_PATH|set_env",
    "env.libc_sec": r"LD_LIBRARY_PATH|driver",
    "env.atb_library": r"nnal|atb",
    "env.symbol_atb": r"nnal|atb",
    "env.symbol": r"match|version|newer|older",
    "env.torch": r"match|version|torch",
    "env.autoload": r"_autoload|half-installed|older|reinstall",
    "env.tbe": r"PYTHONPATH|set_env|tbe|package|decorator|attrs|psutil|depend",
    "env.python_module": r"package|module|install",
    "env.compiler_start": r"version|CANN|package|depend|install",
    "env.source_folder": r"source|folder|shadow|half-installed",
    "env.static_tls": r"TLS|LD_PRELOAD",
    "env.opp_path": r"OPP|set_env",
    "env.home_path": r"ASCEND_HOME_PATH|set_env",
    "env.triton": r"triton",
    "driver.used": r"-8020|occupied|belongs to another|in use",
    "driver.inner": r"-8005|container|permission|restart|occupied",
    "driver.permission": r"permission|HwHiAiUser|user",
    "driver.mismatch": r"driver|version",
    "driver.open": r"open device|refused|held",
    "driver.count": r"driver|container|occupied|device",
    "driver.lost": r"lost|heartbeat|connect|reset",
    "driver.ecc": r"ECC|UCE|memory error",
    "driver": r"driver|device",
    "hardware": r"link|network|down|ECC",
    "visible": r"VISIBLE|device_?id|index|range|NPROC|process",
    "memory.others": r"other process|another process|belong to other",
    "memory.fragments": r"fragment|expandable",
    "memory.own": r"batch|length|model|memory|needs more",
    "memory.locked": r"memlock|ulimit -l|pin",
    "memory.container_killed": r"kill|137|memory",
    "memory.host": r"host memory|OOM|kill|memory",
    "memory.shm": r"shm|shared memory",
    "memory": r"memory",
    "system.port": r"port|bind",
    "system.master_port": r"port|bind",
    "system.address_used": r"port|bind",
    "system": r"disk|file|space|thread|process|damaged|truncat|limit",
    "program.bitsandbytes": r"bitsandbytes",
    "program.cuda": r"cuda",
    "program.flash_attn": r"flash",
    "program.exception": r"Error",
    "program.crash": r"crash|segmentation|abort|core dump",
    "program.runtime_argument": r"argument|param",
    "program.nccl": r"nccl|hccl|backend",
    "program.cann_missing_op": r"kernel|binary|ops|package|no kernel",
    "operator.bf16": r"bfloat16|bf16",
    "operator.d": r"float64|double|dtype|type|device",
    "operator.unsupported": r"not supported|unsupported|fallback",
    "operator.shape": r"shape|parameter|param|dim",
    "operator.bounds": r"out of (?:range|bounds)|address|index|illegal|unaligned|bounds",
    "operator.timeout": r"timeout|did not finish|hang",
    "operator.aicpu": r"aicpu|ai ?cpu|getnext",
    "operator.aicore": r"ai ?core|vector|operator|out of bounds|overflow",
    "operator.capture": r"captur",
    "operator.streams": r"stream",
    "operator.events": r"event",
    "operator.notify": r"notify",
    "operator.context": r"context|fork|set_device|spawn",
    "operator": r"operator|getnext|task|graph",
    "collective.env": r"HCCL_\w+|environment variable",
    "collective.tls": r"tls",
    "collective.ranktable": r"rank ?table",
    "collective.certificate": r"certificate|tls|clock",
    "collective.p2p": r"p2p|connect|link|time",
    "collective.version": r"version",
    "collective.left_over": r"HCCP|leftover|last training|still running|already in use",
    "collective.unequal": r"differ|inconsisten|unequal|mismatch|count",
    "collective.heartbeat": r"heartbeat|exited|notify wait|network cut|stuck|lost",
    "collective.sdma": r"sdma",
    "collective.cqe": r"cqe|rdma|roce|network",
    "collective.links_cycle": r"cycle|wait for each other|network|link",
    "collective.waits_cycle": r"order|stuck|wait for each other|hang",
    "collective.socket": r"socket|connect|link|time",
    "collective.rootinfo": r"root|rank|connect|time|server",
    "collective.waited": r"wait|notify|hung|slow|timed? ?out|never came",
    "collective.torch_timeout": r"time|wait|slow",
    "collective.peer_gone": r"exit|peer|closed|ended",
    "collective.address": r"ifname|network card|nic|address",
}


def is_right(found: Explanation, key: dict) -> bool | None:
    """Return whether the first cause is that of the key; None where a person must judge."""
    if key.get("cause_basis") == "unknown":
        return found.first is None
    if found.first is None:
        return False
    said = f"{key['cause']} {key.get('remedy', '')}"
    ours = found.first.cause.id
    if ours.startswith("code."):
        return ours.removeprefix("code.") in " ".join(map(str, key["codes"])) + said
    name = max((name for name in MEANS if ours.startswith(name)), key=len, default=None)
    return bool(re.search(MEANS[name], said, re.IGNORECASE)) if name else None


def main() -> int:
    """Print one line a log, and the counts; exit code 1 when a verdict is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", action="store_true", help="print each explanation beside its key")
    arguments = parser.parse_args()
    tables = load({})
    marks = {True: "right", False: "WRONG", None: "judge"}
    counts: dict[tuple[str, str], int] = {}
    for row in (arguments.folder / "MANIFEST.jsonl").read_text("utf-8").splitlines():
        key = json.loads(row)
        text = (arguments.folder / key["file"]).read_text("utf-8", "replace")
        found = explain(lines_of(text, key["file"]), tables)
        kind = "unknown" if key.get("cause_basis") == "unknown" else "keyed"
        mark = marks[is_right(found, key)]
        counts[kind, mark] = counts.get((kind, mark), 0) + 1
        ours = found.first.cause.id if found.first else "unknown"
        print(f"{mark}  {key['file']:<58} {ours:<28} {look_at(found, 'en')}")
        if arguments.words or mark != "right":
            print(f"    key:  {key['cause']}\n    rank: {key.get('guilty_rank')}")
            print("    ours: " + in_words(found, "en").replace("\n", "\n          "))
    for kind in ("keyed", "unknown"):
        total = sum(number for (of, _), number in counts.items() if of == kind)
        parts = ", ".join(f"{counts.get((kind, mark), 0)} {mark}" for mark in ("right", "WRONG", "judge"))
        print(f"{kind}: {total} logs: {parts}")
    return int(any(mark == "WRONG" for _, mark in counts))


if __name__ == "__main__":
    sys.exit(main())
