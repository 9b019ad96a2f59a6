"""How adapters may start, and what does not go with a start."""

from __future__ import annotations

import re

from swiftlet.errors import UsageError, describe

STARTS = ("true", "gaussian", "pissa", "pissa_niter_[n]", "olora", "orthogonal")
_KNOWN = re.compile(r"true|gaussian|pissa(_niter_\d+)?|olora|orthogonal")
_EXACT = ("pissa", "olora")
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_taken_from_base(init: str) -> bool:
    """Return whether a start, in lower case, moves directions out of the base weights."""
    return init.startswith(("pissa", "olora"))


def changes_base(init: object) -> bool:
    """Return whether an adapter of peft with this start is relative to a base that the start has changed."""
    return isinstance(init, str) and init.lower().startswith(_CHANGE_BASE)


def is_exact(init: str) -> bool:
    """Return whether the base that such a start leaves follows from the base model and the rank alone."""
    return init.lower() in _EXACT


def start_mistake(init: str, *, rank: int, use_dora: bool) -> UsageError | None:
    """Return what is wrong with a value of --init_lora_weights, alone or beside the other flags of adapters."""
    name = init.lower()
    if not _KNOWN.fullmatch(name):
        return UsageError(
            f"--init_lora_weights {describe(init)} is not known", "choose one of " + ", ".join(STARTS)
        )
    if use_dora and is_taken_from_base(name):
        return UsageError(f"--use_dora does not go with --init_lora_weights {init}", "leave one of them out")
    if name == "orthogonal" and rank % 2:
        return UsageError(
            f"--init_lora_weights orthogonal needs an even rank, found {rank}",
            f"type --lora_rank {rank + 1}",
        )
    return None
