"""Whose fault it is: waits of groups, circles, success that names a rank, and what is called a rank and is none."""

from __future__ import annotations

import pytest
from explaining import TABLES, explained

from swiftlet.doctor.explain import explain
from swiftlet.doctor.log_files import read_logs
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.wording import in_words, look_at


def notify(rank, other, group="hccl_world_group"):
    return (
        f"EI0002: [PID: {1000 + rank}] The wait execution of the Notify register times out: no record came from remote "
        f"rank: [{other}]. group:[{group}], rankSize[8], rankId[{rank}].\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "[rank0]: [INFO] HCCL(1,python): transport ready, local rank[0], remote rank[7], link type HCCS",
        "[rank0]: HCCL(1,python): transport ready, local rank[0], remote rank[7], link type HCCS",
        "2026-01-01 10:00:00 rank=0 link established with remote rank[7]",
    ],
)
def test_success_is_no_wait(line):
    assert explained(f"{line}\n{notify(0, 2)}").blame.rank == "2"


def test_of_two_failures_the_ranks_heard_of_the_earlier_counts():
    def location(device, clock):
        return (
            f"Cluster Exception Location[IP/ID]:[{device}], Arrival Time:[Thu Jan  8 {clock} 2026], "
            "Discoverer:[10.0.0.2/0], ExceptionType:[Heartbeat Lost Occurred]"
        )

    late, early = location("10.0.0.1/3", "11:56:34"), location("10.0.0.9/7", "11:46:34")
    for text in (f"{late}\n{early}", f"{late}; {early}", f"{early}\n{late}"):
        assert look_at(explained(text), "en") == "device 10.0.0.9/7, which the log itself names"
    odd = location("10.0.0.1/3", "99:99:99")
    assert explained(odd).first.fields["place"] == "10.0.0.1/3"


def test_ranks_of_two_groups_are_two_numbers():
    found = explained(notify(0, 1, "group_name_5") + notify(1, 0, "group_name_6"))
    assert found.first.cause.id == "collective.waited"
    assert found.blame.rank == "1 of group_name_5, rank 0 of group_name_6"
    both = explained(notify(0, 1, "group_name_5") + notify(0, 1, "group_name_6"))
    assert look_at(both, "en") == "rank 1 of group_name_5, rank 1 of group_name_6, which rank 0 waits for"
    assert explained(
        notify(0, 1, "group_name_5") + notify(2, 1, "group_name_5") + notify(0, 3, "group_name_6")
    ).blame[0] == ("1 of group_name_5")


def test_a_circle_of_connected_ranks_is_not_the_network():
    found = explained(notify(0, 1, "group_name_5") + notify(1, 0, "group_name_5"))
    assert found.first.cause.id == "collective.waits_cycle"
    assert "could not connect" not in in_words(found, "en")
    assert look_at(found, "en") == "ranks 0, 1 of group_name_5, which wait for each other"


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        (
            "(train pid=4242) LoRA config: target=all rank=64 alpha=16\n(train pid=4242) Too many open files",
            None,
        ),
        ("LoraConfig(rank=64)\nToo many open files", None),
        ("rank=3 Too many open files", "3"),
        ("2026-01-01 10:00:00 rank=3 Too many open files", "3"),
        ("(train pid=7, rank=3) Too many open files", "3"),
    ],
)
def test_the_rank_of_an_adapter_is_no_rank_of_a_process(text, rank):
    assert explained(text).first.line.rank == rank


@pytest.mark.parametrize(
    ("name", "rank"),
    [("run_lora_rank2.txt", None), ("node_rank1.log", None), ("global_rank3.log", "3"), ("rank-6.log", "6")],
)
def test_ranks_of_file_names(name, rank):
    assert lines_of("a", name)[0].rank == rank


SUMMARY = """torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  time      : 2026-01-01_10:00:01
  rank      : 1 (local_rank: 1)
  exitcode  : -15 (pid: 101)
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_10:00:00
  host      : h
  rank      : 3 (local_rank: 3)
  exitcode  : {} (pid: 103)
after
"""


def test_the_summary_of_a_launcher_names_the_rank():
    assert look_at(explained(SUMMARY.format(-9)), "en") == "rank 3, which shows the cause"
    found = explained(SUMMARY.format(1))
    assert found.first.cause.id == "system.killed_child"
    assert look_at(found, "en") == "rank 3, which the log itself names"
    assert in_words(found, "en").startswith("cause: another process of the run (rank 3) failed first")
    assert lines_of(SUMMARY, "x")[-2].rank is None


def test_an_exception_comes_before_the_signal_that_ended_the_others():
    found = explained("[rank3]: KeyError: 'a'\nSending process 7 closing signal SIGTERM\n")
    assert found.first.cause.id == "program.exception" and look_at(found, "en").startswith("rank 3")


def test_a_file_is_not_called_a_rank():
    found = explained(
        "EI0002: The wait execution of the Notify register times out. remote rank: [6].", "logs/x.txt"
    )
    assert look_at(found, "en") == "rank 6, which is waited for"
    assert look_at(found, "zh") == "rank 6，别的 rank 在等它"


def test_what_is_quoted_below_a_line_is_of_the_same_file():
    text = "==> rank-5.log <==\nToo many open files\n==> rank-6.log <==\nfine\n"
    assert [line.source for line in explained(text).excerpt] == ["rank-5.log"]


def plogs(folder, *, errors_in, entries, entry="Entry-HcclCommInitRootInfoInner:ranks"):
    info = "".join(
        f"[INFO] HCCL(77,python):2026-01-01-10:00:00 [a.cc:1] [77]Entry-HcclCommInitRootInfoInner:ranks[{size}], "
        f"rank[{rank}], rootinfo: x\n"
        for size, rank in entries
    )
    info = info.replace("Entry-HcclCommInitRootInfoInner:ranks", entry)
    error = "[ERROR] RUNTIME(77,python):2026-01-01-10:00:09 [a.cc:1]77 f:EL0004: no memory\n"
    for place, text in (("a/run/plog", info), (f"{errors_in}/debug/plog", error)):
        (folder / place).mkdir(parents=True)
        (folder / place / "plog-77_1.log").write_text(text)
    return look_at(explain(read_logs([str(folder)]).lines, TABLES), "en")


@pytest.mark.parametrize(
    ("errors_in", "entries", "rank"),
    [
        ("a", [(4, 3)], "rank 3, which shows the cause"),
        ("a", [(2, 0), (4, 3), (2, 1)], "rank 3, which shows the cause"),
        ("a", [(4, 3), (4, 1)], ""),  # a number that two processes had, one after the other
        ("b", [(4, 3)], ""),  # another machine may have a process of the same number
    ],
)
def test_a_rank_that_only_an_informing_plog_says(tmp_path, errors_in, entries, rank):
    assert plogs(tmp_path, errors_in=errors_in, entries=entries) == rank


@pytest.mark.parametrize("entry", ["SetupAgent rankNum", "hcom init by file success, rankNum"])
def test_a_rank_that_older_plogs_say(tmp_path, entry):
    assert plogs(tmp_path, errors_in="a", entries=[(4, 3)], entry=entry) == "rank 3, which shows the cause"


def came(*ranks):
    return "[ERROR] connected rankinfo[LINE 0]: " + ",".join(f"[{rank:016}]" for rank in ranks) + ";\n"


def test_ranks_that_never_came_follow_from_those_that_did():
    head = "topo exchange server get socket timeout!\n[ERROR] need connect rankNum is [4]\n"
    found = explained(head + came(0, 2))
    assert "(missing: 1,3)" in in_words(found, "en")
    assert look_at(found, "en") == "ranks 1,3, which the log itself names"
    assert "missing" not in in_words(explained(head), "en")
    assert "missing" not in in_words(explained(head.replace("[4]", "[400]") + came(0, 2)), "en")
    failed = "[ERROR] HcclCommInitRootInfo failed, return[0x5], rankNum[3], rank[0]\n"
    assert "(missing: 2)" in in_words(explained(head.splitlines()[0] + "\n" + came(0, 1) + failed), "en")


def test_where_nothing_says_how_many_are_needed_those_between_others_are_missing():
    found = explained("topo exchange server get socket timeout!\n" + came(0, 1) + came(3, 4))
    assert "(missing: 2)" in in_words(found, "en")


@pytest.mark.parametrize(
    "text",
    [
        "EI0013: An error CQE occurred. Peer information: server 10.0.0.2, device ID 1, device IP 10.1.0.2.",
        "cqe error status[12],localInfo{server[10.0.0.1]}, remoteIP{server[10.0.0.2],deviceId[1],deviceIp[10.1.0.2]}",
    ],
)
def test_the_other_end_of_a_failed_transfer_is_named(text):
    assert look_at(explained(text), "en") == "device 1 of server 10.0.0.2, the other end"
    assert "10.0.0.2" in look_at(explained(text), "zh")


@pytest.mark.parametrize(
    "text", ["err status[12], ip:[10.1.0.2]", "error status[12] remoteIP{deviceIp[10.1.0.2]}"]
)
def test_the_other_end_of_which_only_the_address_is_known_is_named(text):
    found = explained(f"[heartbeat.cc:5] cqe {text}")
    assert look_at(found, "en") == "the device with address 10.1.0.2, the other end"
    assert "10.1.0.2" in look_at(found, "zh")


def test_one_logical_super_pod_of_two_physical_ones():
    def ranks(*pods):
        return "\n".join(f"rank: logicSuperPodId[{one}], phySuperPodId[{other}]." for one, other in pods)

    found = explained(ranks(("a", 0), ("a", 0), ("a", 1)))
    assert found.first.cause.id == "collective.super_pods" and found.first.fields["what"] == "0, 1"
    assert explained(ranks(("a", 0), ("b", 1), ("a", 0))).first is None


HEAD = "[ERROR] 2026-01-01-10:00:00 (PID:{}, Device:3, RankID:{}) ERR02200 DIST call hccl api failed.\n"
IN_USE = (
    "EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.\n"
)
RAISED = 'Traceback (most recent call last):\n  File "/w/a.py", line 3, in f\n    g()\nNameError: g\n'


@pytest.mark.parametrize("log", [HEAD.format(7, 3) + IN_USE, RAISED + HEAD.format(7, 3)])
def test_the_head_of_a_message_says_the_rank_of_all_its_lines(log):
    found = explained(log)
    assert look_at(found, "en").startswith("rank 3")
    assert "?" not in in_words(found, "en")


def test_a_head_gives_no_rank_to_lines_of_others():
    found = explained(HEAD.format(7, 3) + "[rank1]: " + IN_USE)
    assert look_at(found, "en").startswith("rank 1")
    assert look_at(explained(HEAD.format(7, 3) + RAISED), "en") == ""
    assert look_at(explained(HEAD.format(7, -1) + IN_USE), "en") == ""


@pytest.mark.parametrize("worker", ["Worker_TP3 pid=9", "Worker_TP3_EP3 pid=9", "VllmWorker TP3 pid=9"])
def test_a_worker_of_an_inference_server_is_named_by_its_rank(worker):
    assert look_at(explained(f"({worker}) ERROR 01-01 10:00:00 [a.py:1] {IN_USE}"), "en").startswith("rank 3")


LOCATION = (
    "[rank0]: [ERROR]HCCL(1,python):Cluster Exception Location[IP/ID]:[10.0.0.1/1], ExceptionType:[Heartbeat Lost "
    "Occurred], Possible Reason:1. Process has exited\n"
)


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ("[rank1]: ".join(["", *RAISED.splitlines(keepends=True)]), "program.exception"),
        ("[rank1]: EZ1001: [PID: 5] index dim 3 should equal src dim 2\n", "operator.shape"),
        ("[rank1]: E90000: Compile operator failed, cause: no tiling\n", "operator.compile"),
        ("[rank2]: err_type=4[fftsplus sdma error]\n", "collective.heartbeat"),
        ("[rank1]: error code is 507018\n", "collective.heartbeat"),
        ("[rank2]: EI0002: The wait execution of the Notify register times out.\n", "collective.heartbeat"),
    ],
)
def test_what_the_lost_rank_says_itself_goes_before_its_lost_heartbeat(other, cause):
    for log in (LOCATION + other, other + LOCATION):
        assert explained(log).first.cause.id == cause


def test_the_run_log_only_informs_of_the_rank_that_failed_first():
    heard = (
        "[INFO] HCCL(6,python):2026-01-01-07:52:59.1 [TaskExecStage][HeartbeatAbnormal]local rank [10.0.0.1/1]: "
        "crimer rank [10.0.0.2/2] {}by informer rank [10.0.0.3/3]\n"
    )
    waited = "[ERROR] HCCL(6,python):2026-01-01-07:59:59.1 [TaskExecStage][Timeout][Host]Task run failed\n"
    for status in ("", "status[LOST] "):
        found = explained(heard.format(status) + waited)
        assert found.first.cause.id == "collective.heartbeat"
        assert look_at(found, "en") == "device 10.0.0.2/2, which the log itself names"


def test_the_device_that_could_not_be_connected_is_named():
    found = explained(
        "wait socket establish timeout, role[1] rank[1] timeout[120 s]\nThis node (server 10.0.0.1, device ID 1) "
        "detects that srcRank (server 10.0.0.1, device ID 1) fails to connect to dstRank (server 10.0.0.2, device ID "
        "0).\n"
    )
    assert look_at(found, "en") == "device 0 of server 10.0.0.2, the other end"


def test_a_launcher_names_the_rank_that_was_killed():
    found = explained(
        "E0101 10:00:00.0 1 api.py:8] failed (exitcode: -9) local_rank: 2 (pid: 7) of binary: /usr/bin/python\n"
        "Root Cause (first observed failure):\n[0]:\n  host      : n1\n  rank      : 10 (local_rank: 2)\n"
        "  exitcode  : -9 (pid: 7)\n"
    )
    assert found.first.cause.id == "memory.host_killed"
    assert look_at(found, "en") == "rank 10, which the log itself names"


def test_a_benign_refusal_while_the_first_process_starts_is_no_cause():
    log = "[W socket.cpp:9] [c10d] The client socket has failed to connect to [n1]:29500 (errno: 111).\n"
    assert (
        explained(log + "[rank0]: {'loss': 1.0}\n" + "[rank1]: " + IN_USE).first.cause.id
        == "collective.left_over"
    )
    assert explained(log).first.cause.is_likely


def test_workers_of_several_groups_are_told_apart():
    memory = "(Worker_DP1_TP3_EP7 pid=100) ERROR 01-01 00:00:00 [x.py:1] EL0004: Failed to allocate memory.\n"
    waits = "(Worker_DP0_TP3_EP3 pid=101) ERROR 01-01 00:00:10 [x.py:1] EI0002: The wait timed out.\n"
    assert look_at(explained(waits + memory), "en") == "rank DP1_TP3, which shows the cause"
    assert [line.rank for line in lines_of("(Worker_PCP0_TP4_EP4 pid=6) a\n(Worker_TP2 pid=7) b", "x")] == [
        "PCP0_TP4",
        "2",
    ]


def test_a_message_that_a_terminal_broke_still_names_who_is_waited_for():
    broken = (
        "[rank3]: EI0002: The wait execution of the Notify register times\n"
        "[rank3]: out. It has not received the Notify record\n[rank3]: from remote rank [6].\n"
    )
    assert explained(broken).blame.rank == "6"
    assert explained(broken.replace("[rank3]: from", "[rank5]: from")).blame.rank is None


def test_a_link_that_could_not_be_made_names_its_other_end():
    text = (
        "[rank1]: EI0009: Transport init error. Reason: [Create][DestLink]Create Dest error! createLink "
        "para:rank[1]-localUserrank[1]-localIpAddr[10.0.0.1], dst_rank[0]-remoteUserrank[0]-remote_ip_addr[10.0.0.1]\n"
    )
    assert look_at(explained(text), "en") == "rank 0, which rank 1 waits for"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("EZ9999: The error from device(chipId:6, dieId:0), there is an exception of aivec error", "6"),
        ("[ERROR] 2026-02-05-11:47:24 (PID:41, Device:3, RankID:-1) ERR00100 PTA call acl api failed.", "3"),
        ("Aicore kernel execute failed, device_id=2, stream_id=2, fault kernel_name=Cast_1", "2"),
    ],
)
def test_without_ranks_the_device_that_reports_is_named(text, device):
    assert look_at(explained(text), "en") == f"device {device}, which reports it"
    missing = "ImportError: libhccl.so: cannot open shared object file\n"
    assert look_at(explained(missing + text), "en") == ""


def test_the_device_that_a_line_above_the_cause_tells_is_named():
    head = "[ERROR] RUNTIME(7,python):2026-01-01-10:00:00.1 [a.cc:1]7 f:"
    cause = "Kernel task happen error, retCode=0x25, [aicore timeout]."
    text = f"{head}The error from device(chipId:4, dieId:0)\n{head}{cause}"
    assert look_at(explained(text), "en") == "device 4, which reports it"
    other = text.replace("RUNTIME(7", "RUNTIME(8", 1)
    assert look_at(explained(other), "en") == ""


def test_a_device_that_lost_its_heartbeat_is_named():
    assert look_at(explained("Device[3] lost heartbeat.[FUNC:SyncTask]"), "en").startswith("device 3,")


def test_the_device_whose_memory_is_broken_is_named():
    text = "[rank1]: The error from device(chipId:5, dieId:0), serial number is 1, there is a HBM ECC error"
    assert look_at(explained(text), "en") == "device 5, which the log itself names"
