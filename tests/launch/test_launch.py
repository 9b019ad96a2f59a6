"""How many processes start, with which words, and what a run that starts again says."""

from __future__ import annotations

import inspect
import socket
import threading
from types import SimpleNamespace

import pytest
import torch.distributed.launcher.api

from swiftlet import elastic, heartbeat, infer, launch, preflight, reach, sft
from swiftlet.commands.run_folder import (
    BASE_HASH,
    DATA_HASH,
    OF_THIS_START,
    PRINTED_DATE,
    RESUMED,
    VARIABLE,
)
from swiftlet.config.args import ParallelArgs, SftArgs
from swiftlet.config.parse import parse
from swiftlet.errors import DataError, UsageError
from swiftlet.files import code_hash
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


@pytest.mark.parametrize("command", [sft, infer])
def test_a_run_from_python_is_not_one_process_where_several_are_asked_for(command, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    with pytest.raises(UsageError) as caught:
        command()
    name = command.__name__
    assert "NPROC_PER_NODE=8 asks for 8 processes, and a run from Python is one" in str(caught.value)
    assert f"hint: type NPROC_PER_NODE=8 swift {name} with the same flags, or unset it" in str(caught.value)
    assert "no model is named" in str(caught.value) or "nor a model is named" in str(caught.value)


def test_a_run_from_python_says_which_devices_it_leaves_unused(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(launch, "warning", said.append)
    assert launch.check_alone({"CUDA_VISIBLE_DEVICES": "0,1"}, "swift sft") == []
    assert launch.check_alone({"CUDA_VISIBLE_DEVICES": "0"}, "swift sft") == []
    assert launch.check_alone({"LOCAL_RANK": "0", "NPROC_PER_NODE": "2"}, "swift sft") == []
    assert said == [
        "a run from Python is one process; swift sft starts one for each of the 2 visible devices"
    ]


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


def test_a_node_tells_its_processes_who_they_are_and_how_many_cores_each_has(monkeypatch):
    told = {}
    monkeypatch.setattr(launch, "watch", lambda command, **rest: told.update(rest) or 0)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    launch._run_watched(["true"], Shape(3, 2, 1, "h", 7, False), {"A": "b"}, ParallelArgs())
    assert (told["ranks"], told["num_nodes"], told["hang_timeout_s"]) == (range(3, 6), 2, None)
    assert (told["environ"]["OMP_NUM_THREADS"], told["environ"]["A"]) == ("2", "b")
    assert "RANK" not in told["environ"], "torchrun gives each its own"
    launch._run_watched(["true"], Shape(8, 1, 0, "h", 7, False), {}, ParallelArgs())
    assert (told["ranks"], told["environ"]["OMP_NUM_THREADS"]) == (range(8), "1")
    launch._run_watched(["true"], Shape(1, 1, 0, "h", 7, False), {}, ParallelArgs())
    assert [told["environ"][name] for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE")] == ["0", "0", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launch._run_watched(["true"], Shape(8, 1, 0, "h", 7, False), {}, ParallelArgs())
    assert told["environ"]["OMP_NUM_THREADS"] == "5"


def test_nodes_compare_what_shapes_the_run_and_not_how_it_was_started(tmp_path):
    words = ["--model_type", "x", "--dataset", "y", "--output_dir", "here", "--max_restarts", "2"]
    own = {DATA_HASH: "d", BASE_HASH: "b", VARIABLE: "run", RESUMED: str(tmp_path / "checkpoint-4")}
    facts = launch._facts("sft", parse(SftArgs, words), Shape(2, 3, 1, "h", 7, False), own, None)
    assert (facts.node, facts.problem) == (1, "")
    assert facts.shared == {VARIABLE: "run", RESUMED: str(tmp_path / "checkpoint-4")}
    told = {
        name: facts.same[name] for name in ("NNODES", "NPROC_PER_NODE", "dataset", "base model", "--seed")
    }
    assert told == {"NNODES": "3", "NPROC_PER_NODE": "2", "dataset": "d", "base model": "b", "--seed": "42"}
    assert facts.same.keys().isdisjoint(f"--{name}" for name in OF_THIS_START)


def test_nodes_compare_their_code_and_the_day_that_a_template_prints(tmp_path, monkeypatch):
    """A copy that was changed has the version of the others, and another time zone another day for hours."""

    def same(day):
        words, node = ["--model_type", "x", "--dataset", "y"], Shape(1, 2, 1, "h", 7, False)
        return launch._facts("sft", parse(SftArgs, words), node, {PRINTED_DATE: day}, None).same

    for content in ("a = 1", "a = 2"):
        (tmp_path / "launch.py").write_text(content)
        monkeypatch.setattr(launch, "__file__", str(tmp_path / "launch.py"))
        content, here = code_hash(tmp_path)[:12], same("29 Nov 2026")
        assert here["the code of swiftlet"] == content
    (tmp_path / "launch.py").write_text("a = 1")
    first, second = preflight.Facts(0, "a", here), preflight.Facts(1, "b", same("30 Nov 2026"))
    differences = preflight.find_mistakes([first, second])
    assert [text.partition(" differs")[0] for text in differences] == [
        "the code of swiftlet",
        "the day that the chat template prints (by clock and TZ)",
    ]
    assert differences[1].endswith(": 29 Nov 2026 on node 0, 30 Nov 2026 on node 1")


def test_a_node_whose_data_are_bad_says_so_before_it_waits_for_the_others(monkeypatch, capfd):
    def prepare(parsed):
        raise DataError("rows.jsonl:3: not JSON\n  and more", "mend it")

    def meet(facts, **_):
        assert facts.problem.startswith("rows.jsonl:3: not JSON")
        assert "rows.jsonl:3: not JSON (the other nodes are told" in capfd.readouterr().err
        return preflight.Verdict([f"node 1 (b): {facts.problem}"], {}, "127.0.0.1")

    monkeypatch.setenv(VARIABLE, "")  # put back afterwards
    monkeypatch.setattr(preflight, "meet", meet)
    words, command = ["--model_type", "x", "--dataset", "y"], SimpleNamespace(ARGS=SftArgs, prepare=prepare)
    with pytest.raises(DataError):
        launch._prepared("sft", words, Shape(1, 2, 1, "127.0.0.1", 7, False), command)


def test_a_node_0_whose_command_line_is_wrong_tells_those_that_wait(tmp_path, swift_here):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    heard = []

    def wait():
        heard.append(
            preflight.meet(
                preflight.Facts(1, "b"),
                num_nodes=2,
                address="127.0.0.1",
                port=port,
                server=None,
                timeout_s=30,
            )
        )

    waiting = threading.Thread(target=wait)
    waiting.start()
    node = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gone = str(tmp_path / "rows.jsonl")
    done = swift_here(node, "sft", "--model_type", "qwen1half-7b-chat", "--dataset", gone, "--device", "cpu")
    waiting.join(40)
    assert done.returncode == 2
    (verdict,) = heard
    assert verdict.mistakes == [f"node 0 ({socket.gethostname()}): no such data file or folder: {gone}"]


def test_a_node_without_the_checkpoint_of_node_0_says_so(tmp_path):
    node = Shape(2, 2, 1, "h", 7, False)
    gone = str(tmp_path / "checkpoint-4")
    assert launch._missing(node, {}) == launch._missing(node, {RESUMED: str(tmp_path)}) == []
    (message,) = launch._missing(node, {RESUMED: gone})
    assert message == f"node 1 has no {gone}: --output_dir must be on storage that all nodes see"


def test_a_node_tells_node_0_what_is_wrong_with_its_command_line_alone(tmp_path, swift_here):
    with preflight.listen(0) as server:
        node = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
        node["MASTER_PORT"] = str(server.getsockname()[1])
        gone = str(tmp_path / "rows.jsonl")
        done = swift_here(
            node, "sft", "--model_type", "qwen1half-7b-chat", "--dataset", gone, "--device", "cpu"
        )
        assert done.returncode == 2
        line, _ = server.accept()
        with line:
            facts = reach.receive(line, 5.0, "node 1")
    assert (facts["node"], facts["problem"]) == (1, f"no such data file or folder: {gone}")


def test_another_node_says_where_node_0_makes_the_run(tmp_path, monkeypatch, capfd):
    shared = {VARIABLE: "/runs/v3", RESUMED: "/runs/v3/checkpoint-4"}
    found = preflight.Verdict([], shared, "127.0.0.1")
    monkeypatch.setenv(VARIABLE, "")  # put back afterwards
    monkeypatch.setattr(preflight, "meet", lambda *_, **__: found)
    words = ["--model_type", "x", "--dataset", "y", "--resume_from_checkpoint", "auto"]
    command = SimpleNamespace(ARGS=SftArgs, prepare=lambda parsed: {VARIABLE: "aside", RESUMED: ""})
    told = launch._prepared("sft", words, Shape(1, 2, 1, "127.0.0.1", 7, False), command)
    assert told[RESUMED] == shared[RESUMED]
    assert "node 0 makes the run in /runs/v3, from /runs/v3/checkpoint-4" in capfd.readouterr().err


def test_the_ranks_of_the_nodes_of_a_cluster_are_answered_with_the_variables_of_nodes():
    _, (mistake,) = read_shape({"RANK": "1", "WORLD_SIZE": "2"})
    assert mistake.hint == (
        "type unset RANK WORLD_SIZE; for 2 nodes type NNODES=2 NODE_RANK=1 MASTER_ADDR=address of node 0"
    )
    for environ in (
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "7"},
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


@pytest.mark.parametrize(
    ("ends", "codes"),
    [
        ([(-9, 0), (-15, 1)], {0: 1}),  # torchrun ends the others with SIGTERM
        ([(1, 0), (-9, 30)], {}),  # and kills what does not leave
        ([(1, 0), (-9, 19)], {1: 1}),
        ([(1, 0), (-15, 0)], {}),
        ([(-15, 0), (-15, 1)], {0: 143, 1: 143}),  # from outside
    ],
)
def test_ranks_that_a_signal_killed_are_spoken_for_and_those_that_torchrun_ended_are_not(
    tmp_path, monkeypatch, ends, codes
):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=at) for rank, (code, at) in enumerate(ends)}
    elastic.speak_for_the_killed(SimpleNamespace(failures=failures))
    assert {words.rank: words.exit_code for words in heartbeat.read_ends(tmp_path)} == codes


def test_torchrun_leaves_nothing_behind_under_tmp(tmp_path, monkeypatch):
    """Its own folder for logs is never removed: one would stay of each run. That of the watchdog goes with the run."""
    from torch.distributed import run

    seen = []
    monkeypatch.setattr(run, "main", lambda words: seen.append(run.parse_args(words).log_dir))
    monkeypatch.setattr(elastic, "end_with_parent", lambda: None)
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path))
    monkeypatch.setenv(elastic.LOG_FOLDER, str(tmp_path / "mine"))
    assert elastic.main(["--nproc_per_node=2", "--no-python", "true"]) == 0
    monkeypatch.delenv(elastic.LOG_FOLDER)
    assert elastic.main(["--nproc_per_node=2", "--no-python", "true"]) == 0
    assert seen == [str(tmp_path / "mine"), str(tmp_path / "torchrun")]
