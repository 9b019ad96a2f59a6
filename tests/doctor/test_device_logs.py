"""What the driver, the device's communication process (HCCP) and loggers of C++ write, also as grep prints it."""

from __future__ import annotations

import pytest

from swiftlet.doctor.explain import explain
from swiftlet.doctor.logs import lines_of
from swiftlet.doctor.tables import load
from swiftlet.doctor.wording import in_words, look_at

TABLES = load({})
HCCP = "[ERROR] HCCP(7,hccp_service.bin):2026-01-01-10:00:00.100.200 [rs_socket.c:9]tid:7,"
OOM = (
    "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 3; 61.00 GiB total capacity; 58.00 GiB already "
    "allocated; 58.00 GiB current active; 1.00 GiB free; 59.00 GiB reserved in total by PyTorch)"
)
FRAME = '  File "/w/train.py", line 3, in main\n    main()\n'


def explained(text, source="any.log"):
    return explain(lines_of(text, source), TABLES)


def cause_of(text):
    first = explained(text).first
    return first.cause.id if first else "unknown"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            HCCP + "rs_listen(9) : bind fail! family:2, IP:10.0.0.1, port:60001, ret:0xffffffff, error:98",
            "system.port",
        ),
        (HCCP + "rs_start(9) : bind and listen fail, err_no:98, listen_fd:27", "system.port"),
        (
            "Failed to bind the IP port. Reason: The IP address and port have been bound already.",
            "system.port",
        ),
        ("Communication_Error_Bind_IP_Port(EI0020): listening failed.", "system.port"),
        (HCCP + "rs_bind_client(9) : client bind fail! IP:fe80::1, sock:5, error:99", "collective.address"),
        (HCCP + "ra_hdc_server_init(9) : Create Server failed, ret(61)", "collective.left_over"),
        (HCCP + "rs_create(9) : socket create failed, errno:24", "system.files"),
        (
            HCCP + "rs_vnic(9) : phy_id:9 get_vnic_ip_by_sdid fail! sdid:0xffffffff ret:1",
            "collective.ranktable",
        ),
        (HCCP + "ra_hdc_rdev_init(9) : message process failed ret(-67) phy_id(3)", "hardware.link"),
        ("[devid 3]link status: DOWN", "hardware.link"),
        ("[ERROR] ROCE(7,hccp_service.bin): ibv_cmd_create_cq failed, ret 12", "memory.device"),
        (
            "[ERROR] DRV(7,python): Mem create failed. (ret=6; size=20971520; side=1; devid=0)",
            "memory.device",
        ),
        ("[ascend] [drv_pcie] [ERROR] device 3 heartbeat lost", "driver.lost"),
        (
            "ValueError: Free memory on NPU device (3.2/61 GiB) is less than desired NPU memory utilization (0.9)",
            "memory.cache",
        ),
        (".: gethostbyname failed, node-7 (errno 1)", "system.host_name"),
        ("main.o: in function `main': undefined reference to `aclrtGetVersion'", "env.symbol_cann"),
        (
            "[ERROR] TSCH(-1,null): bs_done_exception_proc_timeout: slot_id=1, fault_task=0.",
            "operator.timeout",
        ),
        ("rtModelExecute execute failed, reason=[aicpu timeout][FUNC:f]", "operator.aicpu"),
        ("[ERROR] TEFUSION(7,atc): InitPyLogger Failed to import te.platform.log_util", "env.tbe"),
        ("[ERROR] TEFUSION(7,python): InitCannKB call CannKbInit failed. res = [3].", "env.compiler_start"),
        ("E10016: Opname [x] in [--input_shape] is not found in the model.", "code.E10016"),
        ("E19999: Inner Error!", "unknown"),
        ("[ERROR] RUNTIME(7,python): event wait timeout occurred during task execution", "unknown"),
        ("The certificate has expired: pip cannot reach the index", "unknown"),
    ],
)
def test_causes_that_only_device_logs_tell(text, cause):
    assert cause_of(text) == cause


@pytest.mark.parametrize(
    ("text", "who"),
    [
        (
            "EL0004: Failed to allocate memory.\n a\n b\n c\n open device 2 failed, runtime result = 507033.",
            "device 2",
        ),
        (OOM, "device 3"),
        ("EH9999: Inner Error!\n a\n b\nDEVICE[5] PID[415]:", "device 5"),
        ("errcode[EJ0001]\n a\n b\n TsdOpen failed, deviceId[4].", "device 4"),
        ("[ERROR] DRV(7,python): Mem create failed. (ret=6; devid=6)", "device 6"),
        ("EH9999: Inner Error!\n[rank0]:[W1 x.cpp:3] Warning: a", "rank 0 reports"),
        (f"[rank8]:{FRAME}", "rank 8 reports"),
        (f"[rank8]:{FRAME}[rank7]:{FRAME}", "rank 8 reports"),
        (
            '[PID: 7] Communication_Error_Ranktable_Detect(EI0015): List of unconnected ranks: "[3,5,]"',
            "ranks 3,5",
        ),
        ("[error] [1] [hccl_runner.cpp:132] Init fail, error:2, rank:1, rankSize:4", "rank 1 reports"),
        (
            "EI0005: arguments are inconsistent: parameter count, local end 8, remote end 9\n"
            "Create Dest error! createLink para:rank[5]-localUserrank[4]-a, dst_rank[6]-remoteUserrank[7]-b",
            "ranks 4, 7",
        ),
    ],
)
def test_who_is_named_where_only_lines_beside_the_cause_say_it(text, who):
    named = look_at(explained(text), "en")
    assert named.startswith(who)


def test_the_device_of_a_message_about_visible_ids_is_not_the_one_to_look_at():
    text = "Set visible device failed, invalid device=0, input visible devices:4\nopen device 0 failed"
    assert cause_of(text) == "visible.not_here" and look_at(explained(text), "en") == ""


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: needed for the gradient, modified by an inplace operation: [torch.npu.FloatTensor [4]]",
        "RuntimeError: indices should be either on cpu or on the same device as the indexed tensor (npu:0)",
        "yaml.scanner.ScannerError: mapping values are not allowed here",
        "OSError: Qwen/Qwen9 is not a local folder and is not a valid model identifier",
    ],
)
def test_a_mistake_of_the_program_is_its_own_also_with_tensors_of_an_npu(error):
    text = f"Traceback (most recent call last):\n{FRAME}{error}"
    assert cause_of(text) == "program.exception" and error in in_words(explained(text), "en")


def test_an_error_of_a_file_without_a_traceback_is_only_known():
    assert cause_of("OSError: handle is closed") == "unknown"


def test_an_error_of_a_file_yields_to_what_its_rank_said_before():
    waited = "[rank0]: EI0002: The wait execution of the Notify register times out: remote rank [1]."
    text = f"{waited}\nTraceback (most recent call last):\n{FRAME}OSError: [Errno 5] Input/output error"
    text = text.replace("\n", "\n[rank0]: ")
    assert cause_of(text) == "collective.waited" and cause_of(text.partition("\n")[2]) == "program.exception"


def test_pieces_of_a_traceback_before_further_steps_are_no_failure():
    assert look_at(explained(f"[rank0]:{FRAME}[rank0]: {{'loss': 0.9}}"), "en") == ""
