"""What follows from the way that was chosen to run a job."""

from __future__ import annotations

from dataclasses import replace

from swiftlet.plan import timing
from swiftlet.plan.setting import Setting
from swiftlet.plan.strategies import Job, Way


def setting_of_way(job: Job, way: Way) -> Setting:
    """Return what of a way shapes its memory."""
    return replace(job.setting, engine=way.engine, recompute=way.recompute, tokens=way.largest, labels=None)


def pays_to_share(job: Job, way: Way) -> bool:
    """Return whether to compute equal beginnings of samples once: the device is not kept waiting for it, by the plan.

    It spares tokens and costs launches in every layer. On a processor what it spares is always more than what it costs,
    from data/prefixes.py's share of the tokens on.
    """
    if job.card.is_host:
        return True
    setting = setting_of_way(job, way)
    times = [
        timing.micro_batch(job.sizes, setting, job.card, load, has_dropout=job.has_dropout)
        for loads in job.feed(way.budget).steps
        for load in loads
    ]
    launching = sum(one.launch for one in times) + len(times) * timing.sharing_launch(job.sizes, job.card)
    return launching <= sum(one.products + one.moving for one in times)
