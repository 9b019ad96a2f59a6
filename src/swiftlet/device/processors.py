"""How many processors this process may use at once: those it is bound to, or the quota of its container. No torch.

A quota is time, not certain processors: a thread or a process for each that is seen would only wait for its share.
Sources: cpu.max of cgroups, second version (microseconds of processor time, or max, in a period), and
cpu.cfs_quota_us (-1 for none) and cpu.cfs_period_us of the first.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
QUOTA_BEFORE = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_processors() -> int:
    """Return the number of processors that this process may keep busy, at least 1."""
    bound, quota = len(os.sched_getaffinity(0)), quota_of_container()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def quota_of_container() -> float | None:
    """Return how many processors' time the container has; None where it has no limit."""
    paths = (QUOTA,) if QUOTA.is_file() else QUOTA_BEFORE
    if not all(path.is_file() for path in paths):
        return None
    words = " ".join(path.read_text(encoding="ascii") for path in paths).split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])
