"""Whether what samples begin with alike is computed once: it spares tokens, and costs launches in every layer."""

from __future__ import annotations

from dataclasses import replace

from swiftlet.plan import timing
from swiftlet.plan.strategies import Job, Way


def pays_to_share(job: Job, way: Way) -> bool:
    """Return whether to compute equal beginnings of samples once: the device is not kept waiting for it, by the plan.

    On a processor what it spares is always more than what it costs, from data/prefixes.py's share of the tokens on.
    """
    if job.card.is_host:
        return True
    fed = job.feed(way.budget)
    setting = replace(
        job.setting, engine=way.engine, recompute=way.recompute, tokens=fed.largest, labels=None
    )
    times = [
        timing.micro_batch(job.sizes, setting, job.card, load, has_dropout=job.has_dropout)
        for loads in fed.steps
        for load in loads
    ]
    launching = sum(one.launch for one in times) + len(times) * timing.sharing_launch(job.sizes, job.card)
    return launching <= sum(one.products + one.moving for one in times)
