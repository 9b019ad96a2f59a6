"""What reads like a cause and is none: loose words, lists of what may be, warnings, what happened elsewhere."""

from __future__ import annotations

import pytest
from explaining import cause_of, explained

from swiftlet.doctor.levels import ERROR, PLAIN, QUIET, WARNING, level_of
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.tables import LANGUAGES
from swiftlet.doctor.wording import as_json, in_words, look_at

OOM = (
    "RuntimeError: NPU out of memory. Tried to allocate 4.00 GiB (NPU 1; 32.00 GiB total capacity; 29.00 GiB already "
    "allocated; 29.00 GiB current active; 1.00 GiB free; 30.00 GiB reserved in total by PyTorch)"
)
STEP = "{'loss': 1.5, 'grad_norm': 0.3}"
BIND = "[W socket.cpp:9] [c10d] The server socket has failed to bind to [::]:29511 (errno: 98 - Address already in use)"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("[INFO] a", QUIET),
        ("[rank0]: [INFO] HCCL(1,python): a", QUIET),
        ("2026-01-01 10:00:00,123 - swift.trainer - INFO - a", QUIET),
        ("2026-01-01 10:00:00.1 | DEBUG    | a:b:1 | c", QUIET),
        ("(train pid=4) INFO a", QUIET),
        ("[I1011 15:09:34 ProcessGroup.cpp:7] a", QUIET),
        ("HBM Double Bit Error Count : 0", QUIET),
        ("link down count: 0", QUIET),
        ("device count: 0", PLAIN),
        ("[WARNING] TBE(7,python): a", WARNING),
        ("[rank0]:[W1117 11:40:21.5 compiler.ts:5] Warning: a", WARNING),
        ("/x/a.py:82: UserWarning: b", WARNING),
        ("W40010: [PID: 1] a", WARNING),
        ("[2026-01-01 10:00:00,1] torch.distributed.run: [WARNING] a", WARNING),
        ("[rank0]:[2026-01-01 10:00:00,1] torch.x: [WARNING] RuntimeError: a", WARNING),
        ("[2026-01-01 10:00:00,000][WARNING][module] a", WARNING),
        ("2026-01-01 10:00:00,000 my.module WARNING a", WARNING),
        ("[1,3]<stderr>:[WARNING] a", WARNING),
        ('time="2026-01-01T10:00:00Z" level=warning msg="a error"', WARNING),
        ('{"ts": 1.5, "level":"warn","msg":"RuntimeError: a"}', WARNING),
        ('{"level":"info","msg":"RuntimeError: a"}', QUIET),
        ("[ERROR] HCCL(1,python): a [INFO]", ERROR),
        (
            "node7:8:8 [3] NCCL INFO NET/Plugin: libnccl-net.so: cannot open shared object file: No such",
            QUIET,
        ),
        ("(Worker pid=9) node7:8:8 [3] NCCL INFO Failed to open libnccl-net.so", QUIET),
        ("node7:8:8 [3] NCCL WARN NET: error", PLAIN),
        ("Jan 11 15:09:34 node1 python[1]: ERROR a", ERROR),
        ("RuntimeError: set TORCH_DEBUG to INFO or DETAIL", ERROR),
        ("EI0002: [PID: 1] a", ERROR),
        ("LEVEL=INFO was given", PLAIN),
        ("step 3 of INFO", PLAIN),
        # as grep -n and loggers of C++ write them
        ("plog/plog-7_2026.log:305:[ERROR] HCCP(7,python): a", ERROR),
        ("75:[WARNING] HCCP(7,python): a", WARNING),
        ("run/plog/plog-7.log:3:[INFO] HCCL(7,python): a error", QUIET),
        ("[2026-01-01 10:00:00.12345] [error] [36815] [runner.cpp:132] a", ERROR),
        ("[2026-01-01 10:00:00.12345] [info] [36815] [runner.cpp:132] a", QUIET),
        ("[warning] a", WARNING),
        ("E20260101 06:43:02.966156  5793 transport.cpp:820] a", ERROR),
        ("I20260101 06:43:02.966156  5793 transport.cpp:820] a error", QUIET),
        ("an [error] of a sentence", PLAIN),
        ('{"level":"error","msg":"a"}', ERROR),
        ("level=loud a", PLAIN),
    ],
)
def test_level_of_a_line(text, level):
    assert level_of(text) == level


@pytest.mark.parametrize(
    "line",
    [
        "IndexError: list index out of range",
        "IndexError: index out of range in self",
        "ImportError: cannot import name 'set_attribute' from 'tools_of_mine'",
        "hccl: the default is to link down the tree",
        "HBM bandwidth REDUCE kernel",
        "HBM Multi-bit ECC Error Count : 0",
        "requests tls1.3 session differs from the cached one",
        "2 devices dropped duplicates; npu_rows dropped",
        "model sha EI0002 saved, uuid 1E40021-EZ9999",
        "step 507014 of 600000",
        "HCCL_EXEC_TIMEOUT=1800; notify wait timeout is 1800",
        "2026-01-01 10:00:00 | INFO | a retry on EI0006: is enabled; EI0005: handler registered",
        "undefined symbol: get_answer_of_mine",
        "undefined symbol: dataatbase_open",
    ],
)
def test_loose_words_are_no_cause(line):
    assert cause_of(line) in ("unknown", "program.exception", "env.symbol")
    assert cause_of(f"{line}\nKeyError: 'labels'") != "env.symbol_cann"


def test_a_module_of_a_package_is_not_the_package():
    assert cause_of("ModuleNotFoundError: No module named 'google.cloud'") == "env.python_part"
    assert cause_of("ModuleNotFoundError: No module named 'google.protobuf'") == "env.tbe_package"
    assert cause_of("ModuleNotFoundError: No module named 'acl_tools'") == "env.python_module"


def test_a_kernel_with_an_index_out_of_range_is_still_found():
    text = "EZ9999: the aicore kernel Gather_1 failed: index out of bounds at core 3"
    assert cause_of(text) == "operator.bounds"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "EI0012: [PID: 1] SDMA memory copy task exception occurred. Remote rank: [3].\n"
            "        Possible Cause: 1. The HCCS link is down.\n        2. A multi-bit ECC error of the other device.\n"
            "        3. No space left on device\n        Solution: 1. Look.\n        2. Too many open files\n",
            "collective.sdma",
        ),
        (
            "EI0006: [PID: 1] Getting socket times out.\n        Possible Cause: 1. It is stuck.\n"
            "        2. The TLS config of ranks is inconsistent.\n        3. HCCL versions are inconsistent.\n",
            "collective.socket",
        ),
        (
            "[ERROR] HCCL(5,py):2026-01-01-10:00:00 [a.cc:1][7]| 10.0.0.2(1) | 10.0.0.1(0) | server | no connect |\n"
            "[ERROR] HCCL(5,py):2026-01-01-10:00:00 [a.cc:2][7]it may have the following reasons:\n"
            "[ERROR] HCCL(5,py):2026-01-01-10:00:00 [a.cc:3][7]1. the port is broken.\n"
            "[ERROR] HCCL(5,py):2026-01-01-10:00:00 [a.cc:4][7]2. TLS switches of both are inconsistent.\n",
            "collective.socket",
        ),
        (
            "EI0006: Getting socket times out.\n可能原因：1. 网络不通。\n2. TLS switch is inconsistent\n",
            "collective.socket",
        ),
    ],
)
def test_lists_of_reasons_are_no_cause(text, cause):
    assert cause_of(text) == cause


def test_what_follows_a_list_counts_again():
    text = (
        "EI0006: Getting socket times out.\n  Possible Cause: 1. a\n  2. b\nconfig\nNo space left on device\n"
    )
    assert cause_of(text) == "system.disk"


@pytest.mark.parametrize(
    "warning",
    [
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.2.6 as it may crash.",
        BIND,
        "W40010: [PID: 1] Value 7 for environment variable TE_PARALLEL_COMPILER is invalid. Result: ignored.",
        "grad_norm: inf (skipping this step)",
        "[W x.ts:6] Warning: the feature is not there: driver version and firmware do not match",
    ],
)
@pytest.mark.parametrize(("error", "cause"), [(OOM, "memory.own"), ("KeyError: 'a'", "program.exception")])
@pytest.mark.parametrize("steps", ["", STEP + "\n"])
def test_a_warning_comes_after_an_error(warning, error, cause, steps):
    assert cause_of(f"{warning}\n{steps}{error}") == cause


def test_a_warning_is_a_probable_cause_only_where_nothing_else_is_known():
    assert explained(BIND).first.cause.is_likely and cause_of(BIND) == "system.master_port"
    assert cause_of(f"{BIND}\n{STEP}") == "unknown"
    found = explained(f"{BIND}\nRuntimeError: something else")
    assert found.first is None
    said = in_words(found, "en")
    assert "known: RuntimeError: something else" in said and "the port (29511) at which" in said
    assert cause_of(f"{BIND}\nRuntimeError: {BIND[17:]}") == "system.master_port"


def test_a_line_without_level_that_the_run_survived_comes_last():
    assert cause_of(f"No space left on device\n{STEP}\nKeyError: 'a'") == "program.exception"
    assert cause_of(f"OSError: No space left on device\n{STEP}\nKeyError: 'a'") == "system.disk"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            'File "/x/bitsandbytes/autograd/f.py", line 5, in matmul\ntorch.OutOfMemoryError: CUDA out of memory.',
            "memory.gpu_short",
        ),
        (
            'File "/torch/cuda/__init__.py", line 7, in _lazy_init\nRuntimeError: The NVIDIA driver on your system is '
            "too old (found version 11040).",
            "driver.nvidia_old",
        ),
        (
            "EI0007: Failed to allocate resource[Notify] with info [a]. Reason: Memory is exhausted.",
            "operator.notify",
        ),
        ("EI0007: Failed to allocate resource[DeviceMemory] with info [a].", "memory.device"),
        # An inner null pointer, and not kernels that are missing.
        ("NPU function error: call aclnnFlashAttentionScore failed, error code is 561103", "unknown"),
        ("call aclnnAdd failed, error code is 561107", "env.opp_path"),
        ("call aclnnAdd failed, error code is 561112", "program.cann_missing_op"),
        ("EO9999: An unknown error occurred.", "unknown"),
        ("EF2007: Invalid GE graph.", "code.EF2007"),
        ("EL0007: You have no permission.", "code.EL0007"),
        (
            "{'loss': nan, 'grad_norm': nan, 'epoch': 0.1}\n{'loss': 0.0, 'grad_norm': nan}",
            "operator.loss_nan",
        ),
        ("{'loss': nan, 'grad_norm': nan}\nKeyError: 'a'", "program.exception"),
        ("DistStoreError: Timed out after 61 seconds waiting for clients.", "collective.torch_timeout"),
        ("wait for link establish timeout, timeout[120 s], the default value is 120", "collective.socket"),
    ],
)
def test_causes_that_were_taken_for_others(text, cause):
    assert cause_of(text) == cause


def test_a_graph_that_is_invalid_is_no_option():
    assert in_words(explained("EF2007: Invalid GE graph."), "en").startswith("cause: a graph is invalid")


def test_the_reason_of_what_may_be_refused_is_open():
    found = explained("[drv api] halDeviceOpen failed. device_id=0, drvRetCode=46.")
    assert "another process or container holds it, this user may not use it" in in_words(found, "en")
    assert "drvRetCode=46: this process may not use the device: another process" in in_words(found, "en")
    assert "something else has the resource, or" in in_words(
        explained("EL0007: You have no permission."), "en"
    )


def test_out_of_memory_of_a_device_is_not_that_of_the_host():
    found = explained("torch.OutOfMemoryError: NPU out of memory.")
    assert [one.cause.id for one in (found.first, *found.others)] == ["memory.torch_short"]
    assert cause_of("numpy._ArrayMemoryError: Unable to allocate 9 GiB") == "memory.hostfull"


def test_a_gpu_is_told_what_can_be_done_with_a_gpu():
    said = in_words(explained("torch.OutOfMemoryError: CUDA out of memory."), "en")
    assert "nvidia-smi" in said and "npu-smi" not in said


CARRIERS = {
    "quoted": "> ",
    "quoted twice": "> > ",
    "container": "2026-01-01T10:00:00.123456789Z stderr F ",
    "kubectl": "2026-01-01T10:00:00.123456789Z ",
}


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_what_carries_a_line_hides_nothing_of_it(carrier):
    text = f"[rank0]:[W1126 10:00:00.1 a.ts:6] Warning: 0Failed to find function aclrtA\n{STEP}\n{TRACEBACK}"
    found = explained("\n".join(carrier + line for line in text.splitlines()))
    assert found.first.fields == {"what": "KeyError: 'labels'", "where": "train.py:8"}
    if "T10" in carrier:
        assert found.first.line.time_s is not None


def test_the_clock_of_a_container_goes_before_those_of_its_lines():
    first, second = lines_of("2026-01-01T02:00:00Z 2026-01-01 10:00:00 a\n2026-01-01T02:00:01Z b")
    assert second.time_s - first.time_s == 1


@pytest.mark.parametrize(
    "error",
    [
        f'Traceback (most recent call last): File "a.py", line 8, in b {OOM}',
        f"ERROR 02-26 02:05:15 [a.py:1] {OOM}",
        "[ERROR] RUNTIME(7,python):2026-01-01-10:00:00 EL0004: a",
    ],
)
def test_an_error_behind_a_lost_line_break_is_read(error):
    quiet = "INFO 02-26 02:05:13 [a.py:1] all is well"
    assert cause_of(f"{quiet} {error}") != "unknown"
    assert cause_of(f"{quiet} {error}") == cause_of(error)
    assert cause_of(f"{quiet} after an ERROR or a Traceback") == "unknown"


def test_bars_of_progress_hide_no_line():
    assert cause_of("10%\r20%\rKeyError: 'a'") == "program.exception"


TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 8, in main
    row["labels"]
  File "/x/site-packages/datasets/table.py", line 3, in get
    raise KeyError(name)
KeyError: 'labels'
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_exception_of_the_program_is_quoted_with_its_line(language):
    said = in_words(explained(TRACEBACK), language)
    assert "KeyError: 'labels'" in said and "train.py:8" in said and "plog" not in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_exception_is_known_but_no_cause(language):
    text = TRACEBACK.replace("KeyError: 'labels'", "mytool.StrangeError: 7")
    found = explained(text)
    said = in_words(found, language)
    assert found.first is None and "mytool.StrangeError: 7" in said and "train.py:8" in said
    assert as_json(found, language)["evidence"][0]["text"] == "mytool.StrangeError: 7"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_log_without_anything_names_no_device(language):
    said = in_words(explained("fine\n"), language)
    assert "--log" in said and "plog" not in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_no_error_is_known_the_first_one_is_quoted(language):
    text = "starts\n[ERROR] DEVICE(7,python): the stream is odd\n[ERROR] DEVICE(7,python): it ends\n"
    found = explained(text)
    assert found.first is None and "the stream is odd" in in_words(found, language)
    assert as_json(found, language)["evidence"][0]["line"] == 2
    survived = explained(text + "{'loss': 1.5}\n")
    assert "the stream is odd" in in_words(survived, language)


def test_an_exception_after_an_error_of_its_process_follows_from_it():
    assert cause_of(
        "ACL stream synchronize failed, error code is 507018\nTypeError: 'NoneType' is no function"
    ) == ("unknown")


def test_of_ranks_the_one_with_an_exception_comes_before_those_that_waited():
    waits = "".join(
        f"[rank{rank}]: EI0002: The wait execution of the Notify register times out. remote rank: [2]. rankId[{rank}]\n"
        for rank in (0, 1, 3)
    )
    found = explained(waits + "".join(f"[rank2]: {line}\n" for line in TRACEBACK.splitlines()))
    assert found.first.fields["what"] == "KeyError: 'labels'"
    assert look_at(found, "en") == "rank 2, which shows the cause"


BAR = "Train:   0%|          | 0/465 [00:00<?, ?it/s]"
KERNEL = "EZ9999: the extend info: errorStr: The UB address accessed by the VEC instruction is not aligned."


def test_a_warning_behind_a_bar_of_progress_is_a_warning():
    warning = "[W AclInterface.cpp:181] Warning: 0Failed to find function aclrtNewThing (function operator())"
    assert cause_of(f"{BAR}{warning}\n{KERNEL}") == "operator.bounds"
    assert cause_of(f"{BAR} {warning}") == cause_of(warning)


HCCL = "[ERROR] HCCL(36,python):2026-01-01-10:00:00.068.817 [op_base.cc:9][3]errNo[0x0000000005000002]init failed."


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (HCCL, "unknown"),
        ("Traceback (most recent call last):\nValueError: a", "program.exception"),
        ("HCCL function error: hcclCommInitRootInfo, error code is 4", "unknown"),
    ],
)
def test_a_container_that_is_stopped_after_an_error_did_not_end_by_that(error, cause):
    assert cause_of(f"{error}\nserver exited with code 137") == cause
    assert cause_of(f"{error}\nReason: OOMKilled\nExit Code: 137") == "memory.host_killed"
    assert cause_of(f"all is well\n{BAR}\nserver exited with code 137") == "memory.container_killed"


def test_a_code_of_collectives_in_a_number_of_an_error_is_known():
    assert [one.shown for one in explained(HCCL).symptoms] == ["HCCL 2"]


def test_a_pipe_whose_other_end_is_gone_is_no_fault_of_the_program():
    text = (
        "[ERROR] 2026-01-01-10:00:00 (PID:7, Device:2, RankID:2) ERR02200 DIST call hccl api failed.\n"
        "Exception in thread Thread-2:\nTraceback (most recent call last):\n"
        '  File "<string>", line 2, in get\n    raise EOFError\nEOFError{}\n'
    )
    assert cause_of(text.format("")) == "unknown"
    assert cause_of(text.format(": Ran out of input")) == "program.exception"


def test_what_a_launcher_says_is_not_of_the_rank_that_reported_above():
    text = (
        "RuntimeError: a\n[ERROR] 2026-01-01-10:00:00 (PID:7, Device:0, RankID:0) ERR02200 DIST call failed.\n"
        "E0101 10:00:01.000 1 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: -9) "
        "local_rank: 3 (pid: 9) of binary: python"
    )
    found = explained(text)
    assert found.first.cause.id == "memory.host_killed" and look_at(found, "en") == ""


def test_the_device_is_named_that_a_line_beside_the_cause_tells():
    text = f"EZ9999: The error from device(chipId:7, dieId:0), retCode=0x26\na\nb\n{KERNEL.removeprefix('EZ9999: ')}"
    assert "device 7" in look_at(explained(text), "en")
