"""How many processes start, with which words, and what a run that starts again says."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch.distributed.launcher.api

from swiftlet import launch
from swiftlet.commands.run_folder import VARIABLE
from swiftlet.config.args import ParallelArgs, SftArgs
from swiftlet.config.parse import parse
from swiftlet.launch import Shape, is_watched, read_shape, worker_command
from swiftlet.startup import module_command


def shape(environ):
    found, mistakes = read_shape({"NPROC_PER_NODE": "2", **environ})
    assert mistakes == []
    return found


def test_one_node_meets_by_itself_and_several_at_the_master():
    one = worker_command("sft", ["--a", "b c"], shape({}))
    assert "--standalone" in one
    assert one[-6:] == [*module_command("swiftlet.cli"), "sft", "--a", "b c"]
    many = worker_command(
        "sft", [], shape({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "7"})
    )
    assert many[3:8] == [
        "--nnodes=2",
        "--node_rank=1",
        "--master_addr=h",
        "--master_port=7",
        "--nproc_per_node=2",
    ]


def test_a_single_process_is_watched_where_that_is_asked_for():
    alone = Shape(1, 1, 0, "", 0, False)
    words = ["--model_type", "x", "--dataset", "y"]
    assert not is_watched(alone, parse(SftArgs, words))
    assert is_watched(alone, parse(SftArgs, [*words, "--max_restarts", "2"]))
    assert is_watched(alone, parse(SftArgs, [*words, "--hang_timeout", "60"]))
    assert is_watched(shape({}), parse(SftArgs, words))
    worker = Shape(2, 1, 0, "", 0, True)
    assert not is_watched(worker, parse(SftArgs, [*words, "--max_restarts", "2"]))
    assert worker_command("sft", words, alone) == [*module_command("swiftlet.cli"), "sft", *words]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NPROC_PER_NODE": "x"}, "NPROC_PER_NODE is a whole number of at least 1, found 'x'"),
        (
            {"MASTER_PORT": "70000"},
            "MASTER_PORT is a whole number of at least 1 and at most 65535, found '70000'",
        ),
        ({"NNODES": "2"}, "NNODES=2, but MASTER_ADDR is not set"),
        ({"NODE_RANK": "3", "NNODES": "2", "MASTER_ADDR": "h"}, "NODE_RANK=3, but NNODES=2"),
        ({"RANK": "x"}, "RANK is a whole number of at least 0, found 'x'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is a whole number of at least 0, found 'x'"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is a whole number of at least 1, found '0'"),
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "RANK=1 and WORLD_SIZE=2 are set, but not LOCAL_RANK: torchrun sets all three",
        ),
        ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1 are set, but not LOCAL_RANK: torchrun sets all three"),
    ],
)
def test_numbers_that_do_not_fit_are_named(environ, message):
    _, mistakes = read_shape({"NPROC_PER_NODE": "2", **environ})
    assert message in [one.message for one in mistakes]


@pytest.mark.parametrize(
    "asked",
    [
        ["--resume_from_checkpoint", "auto"],
        ["--resume_from_checkpoint=auto"],
        ["--resume-from-checkpoint", "auto"],
        ["--resume", "auto"],
        ["--resume=auto", "--resume_from_checkpoint", "auto"],
    ],
)
def test_a_run_that_starts_again_stays_in_its_folder(tmp_path, monkeypatch, asked):
    monkeypatch.setenv(VARIABLE, "set back at the end of this test")
    words = [*asked, "--seed", "1"]
    assert launch._again(words, None) == words
    assert launch._again(words, str(tmp_path)) == words, "nothing is saved yet"
    assert launch.os.environ[VARIABLE] == str(tmp_path)
    (tmp_path / "checkpoint-4").mkdir()
    assert launch._again(words, str(tmp_path)) == ["--seed", "1", "--resume_from_checkpoint", str(tmp_path)]
    words = ["--dataset", "a", "b", *asked]
    assert launch._again(words, str(tmp_path))[:3] == ["--dataset", "a", "b"]


@pytest.mark.parametrize(("code", "starts"), [(1, 3), (6, 1), (2, 1), (129, 1), (143, 1)])
def test_a_run_starts_again_where_that_may_help(monkeypatch, code, starts):
    seen = []
    monkeypatch.setattr(launch, "_prepared", lambda *a: {})
    monkeypatch.setattr(launch, "_run_watched", lambda *a: seen.append(a) or code)
    words = ["--model_type", "x", "--dataset", "y", "--max_restarts", "2"]
    assert launch.launch("sft", words, shape({}), SimpleNamespace(ARGS=SftArgs)) == code
    assert len(seen) == starts


def test_torchrun_waits_for_a_step_or_a_save_that_takes_long(monkeypatch):
    seen = {}
    monkeypatch.setattr(launch, "watch", lambda command, **told: seen.update(told["environ"]) or 0)
    words = ["--model_type", "x", "--dataset", "y"]
    for settings, seconds in (
        (parse(SftArgs, [*words, "--ddp_timeout", "77"]).args.parallel, "77"),
        (ParallelArgs(), "1800"),  # of a command without such flags
    ):
        launch._run_watched(["true"], shape({}), {}, settings)
        assert seen["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == seconds
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in inspect.getsource(torch.distributed.launcher.api)


def test_the_ranks_of_the_nodes_of_a_cluster_are_answered_with_the_variables_of_nodes():
    _, (mistake,) = read_shape({"RANK": "1", "WORLD_SIZE": "2"})
    assert mistake.hint == (
        "type unset RANK WORLD_SIZE; for 2 nodes type NNODES=2 NODE_RANK=1 MASTER_ADDR=address of node 0"
    )
    for environ in (
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h"},
    ):
        assert read_shape(environ)[1] == []


def test_processes_read_the_arguments_that_the_run_itself_has_moved_away(tmp_path, monkeypatch):
    first, second = tmp_path / "sft_args.json", tmp_path / "more.yaml"
    first.write_text('{"seed": 5}')
    second.write_text("max_length: 64")
    seen = []

    def prepared(name, words, *others):
        first.unlink()
        seen.append(parse(SftArgs, words))
        return {}

    monkeypatch.setattr(launch, "_prepared", prepared)
    monkeypatch.setattr(launch, "_run_watched", lambda *a: 0)
    words = [str(first), "--lora_rank", "4", f"--config={second}"]
    assert launch.launch("sft", words, shape({}), SimpleNamespace(ARGS=SftArgs)) == 0
    assert seen[0].mistakes == ()
    assert seen[0].given == {"seed", "max_length", "lora_rank"}
