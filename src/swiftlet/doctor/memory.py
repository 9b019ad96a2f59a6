"""Who has the memory of a card, by what an allocator says when it has no more."""

from __future__ import annotations

import re
from collections.abc import Mapping

UNITS = {"": 1.0, "b": 1 / 1024**3, "K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
OTHERS_SHARE, FRAGMENTED_SHARE = 0.15, 0.10


def who_has_memory(fields: Mapping[str, str | None]) -> tuple[str, dict[str, str | None]]:
    """Return the cause, and what to say of it: others, gaps between own pieces, a limit, or the process itself.

    Args:
        fields: total, free, allocated and asked; `reserved` for the pieces and the gaps between them, or
            `unallocated` for the gaps alone; `held` is all that the process has, `allowed` all that it may have.
    """
    size = {
        name: _gib(fields.get(name)) for name in ("total", "free", "allocated", "asked", "held", "allowed")
    }
    gaps = _gib(fields.get("unallocated")) or _gib(fields.get("reserved")) - size["allocated"]
    reserved = size["allocated"] + gaps
    others = size["total"] - size["free"] - (size["held"] or reserved)
    which = "memory.own"
    if size["allowed"] and reserved + size["asked"] > size["allowed"]:
        which = "memory.allowed"
    elif others > OTHERS_SHARE * size["total"]:
        which = "memory.others"
    elif gaps > FRAGMENTED_SHARE * size["total"]:
        which = "memory.fragments"
    own = fields.get("held") or fields.get("reserved") or f"{reserved:.2f} GiB"
    return which, {
        **fields,
        "others": f"{others:.1f} GiB",
        "held": own,
        "reserved": fields.get("reserved") or f"{reserved:.2f} GiB",
    }


def _gib(text: str | None) -> float:
    found = re.match(r"([\d.]+) ?([KMGTb]?)", text or "")
    return float(found[1]) * UNITS[found[2]] if found else 0.0
