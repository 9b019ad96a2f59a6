"""What launchers of processes tell each of them: RANK and its friends, which a run reads, and those of others, which
nothing reads.

Whoever starts a command several times means one run of several processes. Where the variables do not say so, each
process would make a run of its own, and none would say that it is alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from swiftlet.device.visible import PROCESSES, read_whole
from swiftlet.errors import SwiftletError, UsageError

MEETING = ("MASTER_ADDR", "MASTER_PORT")


class Starter(NamedTuple):
    """One that starts a command several times, and the variables by which it numbers what it has started."""

    name: str
    size: str
    rank: str
    local_rank: str


# Each starts processes. Slurm sets SLURM_NTASKS in the script of a job too, which runs once; a step has its own.
OF_PROCESSES = (
    Starter("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    Starter("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    Starter("mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)
# ModelArts runs the command of a job once on each node.
HOSTS, HOSTS_HINT = (
    "MA_NUM_HOSTS",
    "NNODES=$MA_NUM_HOSTS NODE_RANK=$VC_TASK_INDEX MASTER_ADDR=${VC_WORKER_HOSTS%%,*}",
)


def check_ranks(environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return what is wrong with the variables by which a launcher tells a process of a run who it is."""
    mistakes: list[SwiftletError] = []
    local_rank = read_whole(environ, "LOCAL_RANK", 0, 0, mistakes)
    rank = read_whole(environ, "RANK", 0, 0, mistakes)
    world_size = read_whole(environ, "WORLD_SIZE", 1, 1, mistakes)
    read_whole(environ, "LOCAL_WORLD_SIZE", 1, 1, mistakes)
    if mistakes:
        return mistakes
    if "LOCAL_RANK" in environ:
        return _check_worker(environ, rank, local_rank, world_size)
    nodes = environ.get("NNODES", "")
    if (rank or world_size > 1) and not nodes:
        return [_no_local_rank(rank, world_size)]
    return [] if nodes.isdecimal() and int(nodes) > 1 else _check_starters(environ)


def _check_worker(
    environ: Mapping[str, str], rank: int, local_rank: int, world_size: int
) -> list[SwiftletError]:
    mistakes: list[SwiftletError] = []
    for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if number >= world_size:
            told = "WORLD_SIZE is not set" if "WORLD_SIZE" not in environ else f"WORLD_SIZE={world_size}"
            hint = "type WORLD_SIZE=number of all processes, the same for each, or unset LOCAL_RANK RANK"
            mistakes.append(UsageError(f"{name}={number}, but {told}", hint))
    missing = [name for name in MEETING if not environ.get(name)]
    if world_size > 1 and missing:
        message = (
            f"WORLD_SIZE={world_size}, but {' and '.join(missing)} {'are' if missing[1:] else 'is'} not set"
        )
        mistakes.append(
            UsageError(
                message, "type MASTER_ADDR=address of rank 0 MASTER_PORT=29500, the same for each process"
            )
        )
    return mistakes


def _no_local_rank(rank: int, world_size: int) -> UsageError:
    """Return the mistake of a job of a cluster that has RANK and WORLD_SIZE of its nodes: without a launcher of
    processes they would make this process one of a run that nobody else joins.
    """
    several = (
        f"; for {world_size} nodes type NNODES={world_size} NODE_RANK={rank} MASTER_ADDR=address of node 0"
    )
    return UsageError(
        f"RANK={rank} and WORLD_SIZE={world_size} are set, but not LOCAL_RANK: torchrun sets all three",
        f"type unset RANK WORLD_SIZE{several if world_size > 1 else ''}",
    )


def _check_starters(environ: Mapping[str, str]) -> list[SwiftletError]:
    for starter in OF_PROCESSES:
        size = environ.get(starter.size, "")
        if size.isdecimal() and int(size) > 1:
            message = f"{starter.name} starts this command {size} times ({starter.size}={size}), each a run of its own"
            hint = (
                f"start it once on each node, with {PROCESSES}=devices of one; or type RANK=${starter.rank} "
                f"WORLD_SIZE=${starter.size} LOCAL_RANK=${starter.local_rank} MASTER_ADDR=address of rank 0 "
                f"MASTER_PORT=29500 in what {starter.name} starts; or, for separate runs, unset {starter.size}"
            )
            return [UsageError(message, hint)]
    hosts = environ.get(HOSTS, "")
    if hosts.isdecimal() and int(hosts) > 1:
        message = f"{HOSTS}={hosts}, but NNODES is not set: each node would make a run of its own"
        return [
            UsageError(message, f"type {HOSTS_HINT} before the command; or, for separate runs, unset {HOSTS}")
        ]
    return []
