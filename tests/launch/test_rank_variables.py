"""What launchers tell each process: a run of several that would silently become several runs is refused."""

import pytest

from swiftlet.launch import read_shape

SEVERAL = [
    ("OMPI_COMM_WORLD_SIZE", "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_STEP_NUM_TASKS", "srun", "SLURM_PROCID", "SLURM_LOCALID"),
    ("PMI_SIZE", "mpiexec", "PMI_RANK", "MPI_LOCALRANKID"),
]


def mistakes_of(**environ):
    return read_shape({"NPROC_PER_NODE": "1", **environ})[1]


@pytest.mark.parametrize(("size", "name", "rank", "local_rank"), SEVERAL)
def test_processes_that_nobody_told_of_each_other_are_refused(size, name, rank, local_rank):
    (mistake,) = mistakes_of(**{size: "4", rank: "1"})
    assert mistake.message == f"{name} starts this command 4 times ({size}=4), each a run of its own"
    assert (
        f"RANK=${rank} WORLD_SIZE=${size} LOCAL_RANK=${local_rank} MASTER_ADDR=address of rank 0"
        in mistake.hint
    )
    assert mistake.hint.endswith(f"or, for separate runs, unset {size}")
    (mistake,) = mistakes_of(**{size: "4", rank: "1", "NNODES": "1"})
    assert name in mistake.message


@pytest.mark.parametrize(("size", "name", "rank", "local_rank"), SEVERAL)
def test_one_process_nodes_and_ranks_are_none_of_these(size, name, rank, local_rank):
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h"}
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "7"}
    assert mistakes_of(**{size: "1", rank: "0"}) == []
    assert mistakes_of(**{size: "2", rank: "1"}, **nodes) == []
    assert mistakes_of(**{size: "2", rank: "1"}, **ranks) == []


def test_the_script_of_a_job_of_slurm_is_one_process():
    assert mistakes_of(SLURM_JOB_ID="7", SLURM_NTASKS="8", SLURM_PROCID="0", SLURM_LOCALID="0") == []


def test_the_nodes_of_a_job_of_modelarts_are_answered_with_the_variables_of_nodes():
    (mistake,) = mistakes_of(MA_NUM_HOSTS="2", VC_TASK_INDEX="1")
    assert mistake.message == "MA_NUM_HOSTS=2, but NNODES is not set: each node would make a run of its own"
    assert mistake.hint.startswith(
        "type NNODES=$MA_NUM_HOSTS NODE_RANK=$VC_TASK_INDEX MASTER_ADDR=${VC_WORKER_HOSTS%%,*} before"
    )
    assert mistakes_of(MA_NUM_HOSTS="1", VC_TASK_INDEX="0") == []


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK=2, but WORLD_SIZE=2"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1, but WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT are not set"),
        (
            {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"},
            "WORLD_SIZE=2, but MASTER_PORT is not set",
        ),
        (
            {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "x"},
            "LOCAL_WORLD_SIZE is a whole number of at least 1, found 'x'",
        ),
    ],
)
def test_what_a_process_of_a_run_lacks_is_named(environ, message):
    assert message in [mistake.message for mistake in mistakes_of(**environ)]
