"""One fault at a time in an otherwise healthy machine: found, named, with one cause and one command."""

from __future__ import annotations

import os

import pytest
from machines import GIGABYTE, TOOLKIT, card_lines, pip_install, write

from swiftlet.doctor.examine import examine
from swiftlet.doctor.finding import ERROR, NOTE, WARNING, exit_code

FAULTS = {}


def fault(name, *, cause, command, **scene):
    """Register a fault: what must be found, and what its words must hold; `scene` are facts of the machine."""

    def register(make):
        FAULTS[make.__name__] = (make, name, cause, command, scene)
        return make

    return register


def env(server, **variables):
    server.environ.update(variables)


@fault("python.old", cause="Python 3.9 is too old", command="python=3.11", python=(3, 9))
def python_too_old(server):
    server.uninstall("torch")
    pip_install(server.site, {"torch": "2.7.1+cpu"})


@fault("python.plugin", cause="Python 3.10 to 3.14; this is 3.15", command="python=3.14", python=(3, 15))
def python_too_new_for_the_plugin(server):
    pass


@fault("torch.missing", cause="torch is not installed", command="pip install torch")
def no_torch(server):
    server.uninstall("torch")


@fault(
    "torch.plugin_missing",
    cause="torch-npu is not installed",
    command="pip install torch-npu==2.12.0 decorator",
)
def no_plugin(server):
    server.uninstall("torch-npu")


@fault("torch.pair", cause="torch 2.3.1 and torch-npu 2.2.0", command="torch-npu==2.3.1")
def torch_and_plugin_differ(server):
    server.reinstall("torch", "2.3.1")
    server.reinstall("torch-npu", "2.2.0")


@fault("package.twice", cause="several versions at once (", command="pip uninstall -y torch-npu")
def plugin_installed_twice(server):
    pip_install(server.site, {"torch-npu": "2.1.0"})


@fault(
    "package.old",
    cause="transformers 5.3.0 does not do",
    command="pip install -U 'transformers>=6'",
    requirements=["transformers>=6"],
)
def package_too_old(server):
    pass


@fault(
    "package.missing",
    cause="the package peft",
    command="pip install 'peft>=0.18'",
    requirements=["peft>=0.18"],
)
def package_missing(server):
    pass


@fault("package.vulnerable", cause="CVE-2026-4372", command="transformers>=5.3.0")
def weak_transformers(server):
    server.reinstall("transformers", "4.57.1")


@fault("package.vulnerable", cause="CVE-2025-32434", command="torch>=2.6.0")
def weak_torch(server):
    server.reinstall("torch", "2.5.1")


@fault("package.vulnerable", cause="CVE-2024-43497", command="deepspeed>=0.15.1")
def weak_deepspeed(server):
    server.reinstall("deepspeed", "0.14.0")


@fault("toolkit.tbe_package", cause="the package decorator", command="pip install decorator")
def no_decorator(server):
    server.uninstall("decorator")


@fault("toolkit.tbe_package", cause="the package attrs", command="pip install attrs")
def no_attrs(server):
    server.uninstall("attrs")


@fault("toolkit.tbe_package", cause="the package psutil", command="pip install psutil")
def no_psutil(server):
    server.uninstall("psutil")


@fault("toolkit.numpy", cause="NumPy 2.1.0 does not work with CANN 8.5.0", command='pip install "numpy<2"')
def numpy_too_new(server):
    server.toolkit_version("8.5.0")
    server.reinstall("torch-npu", "2.9.0")
    server.reinstall("numpy", "2.1.0")


@fault("toolkit.missing", cause="no CANN toolkit is found", command="Ascend-cann-toolkit")
def no_toolkit(server):
    server.remove(f"{TOOLKIT}/latest")


@fault("toolkit.not_sourced", cause="set_env.sh was not sourced", command=f"source /{TOOLKIT}/set_env.sh")
def set_env_not_sourced(server):
    for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        del server.environ[name]


@fault("deepspeed.home", cause="reads ASCEND_HOME_PATH, which is not set", command="set_env.sh")
def home_path_not_set_for_deepspeed(server):
    del server.environ["ASCEND_HOME_PATH"]


@fault("toolkit.home_gone", cause="ASCEND_HOME_PATH=/opt/cann does not exist", command="set_env.sh")
def home_path_leads_nowhere(server):
    env(server, ASCEND_HOME_PATH="/opt/cann")


@fault("toolkit.opp_gone", cause="ASCEND_OPP_PATH=/opt/opp does not exist", command="set_env.sh")
def opp_path_leads_nowhere(server):
    env(server, ASCEND_OPP_PATH="/opt/opp")


@fault("toolkit.dangling", cause="latest points to 9.9.9", command="ln -sfn")
def latest_is_dangling(server):
    server.remove(f"{TOOLKIT}/latest")
    (server.root / TOOLKIT / "latest").symlink_to("9.9.9")


@fault(
    "toolkit.architecture",
    cause="is for x86_64, this machine is aarch64",
    command="aarch64",
    architecture="aarch64",
)
def toolkit_of_another_processor(server):
    pass


@fault("toolkit.library_path", cause="LD_LIBRARY_PATH does not hold CANN's", command="set_env.sh")
def library_path_overwritten(server):
    env(server, LD_LIBRARY_PATH="/usr/local/Ascend/driver/lib64/driver")


@fault("toolkit.python_path", cause="No module named 'tbe'", command="set_env.sh")
def python_path_overwritten(server):
    env(server, PYTHONPATH="/home/me/src")


@fault("toolkit.kernels", cause="kernels (ops) package of CANN is not installed", command="CANN 9.1.0")
def no_kernels(server):
    (server.root / TOOLKIT / "9.1.0/opp/built-in/op_impl/ai_core/tbe/kernel/ascend910b").rmdir()


@fault("toolkit.kernels_other", cause="for ascend910b, but this machine's Ascend910", command="ascend910_93")
def kernels_of_another_chip(server):
    server.cards([card_lines(0, name="Ascend910"), card_lines(1, name="Ascend910")])


@fault(
    "toolkit.plugin",
    cause="torch-npu 2.12.0 belongs to CANN 9.1.0; installed is 8.3.RC1",
    command="install CANN 9.1.0",
)
def plugin_of_a_newer_toolkit(server):
    server.toolkit_version("8.3.RC1")


@fault("toolkit.driver", cause="25.0.RC1 is too old for CANN 9.1.0", command="25.2.0")
def driver_older_than_the_newest_toolkit_takes(server):
    write(server.root / "usr/local/Ascend/driver/version.info", "Version=25.0.RC1\n")


@fault("toolkit.driver", cause="24.1.rc3 is too old for CANN 8.5.0", command="25.0.RC1")
def driver_too_old(server):
    server.toolkit_version("8.5.0")
    write(server.root / "usr/local/Ascend/driver/version.info", "Version=24.1.rc3\n")


@fault("driver.missing", cause="not mounted into this container", command="-v /usr/local/Ascend/driver:")
def driver_not_mounted(server):
    (server.root / "usr/local/Ascend/driver").rename(server.root / "elsewhere")


@fault("driver.library", cause="libascend_hal.so is not in", command="-v /usr/local/Ascend/driver:")
def driver_without_libraries(server):
    server.remove("usr/local/Ascend/driver/lib64/driver/libascend_hal.so")


@fault("driver.library_path", cause="does not hold the driver's", command="export LD_LIBRARY_PATH=")
def driver_not_on_the_library_path(server):
    env(server, LD_LIBRARY_PATH=f"/{TOOLKIT}/latest/lib64")


@fault(
    "driver.install_info", cause="/etc/ascend_install.info is missing", command="-v /etc/ascend_install.info"
)
def install_info_not_mounted(server):
    server.remove("etc/ascend_install.info")


@fault("device.none", cause="/dev shows no davinci device", command="--device /dev/davinci0")
def no_device_mapped(server):
    server.remove("dev/davinci0")
    server.remove("dev/davinci1")


@fault("device.manager", cause="/dev/hisi_hdc is missing", command="--device /dev/hisi_hdc")
def manager_not_mapped(server):
    server.remove("dev/hisi_hdc")


@fault("device.smi_missing", cause="npu-smi is not found", command="-v /usr/local/bin/npu-smi")
def no_npu_smi(server):
    env(server, PATH="")


@fault("device.smi_failed", cause="ret is -8005", command="docker ps")
def npu_smi_fails(server):
    server.smi_program("print('dcmi module initialize failed. ret is -8005')")


@fault("device.smi_failed", cause="libc_sec.so", command="docker ps")
def npu_smi_lacks_a_library(server):
    server.smi_program(
        "import sys; sys.exit('npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object')"
    )


@fault("device.smi_failed", cause="did not answer within", command="dmesg", smi_timeout_s=0.3)
def npu_smi_hangs(server):
    server.smi_program("import time; time.sleep(30)")


@fault("device.fewer", cause="/dev shows 2 NPUs, npu-smi only 1", command="dmesg")
def a_card_has_gone(server):
    server.cards([card_lines(0)])


@fault("device.gone", cause="NPU 1 (NPU1) has no memory (0 / 0 MB, health OK)", command="dmesg")
def a_card_without_memory_has_gone(server):
    server.cards([card_lines(0), card_lines(1, used=0, total=0)])


@fault("device.health", cause="NPU 1 (NPU1) has health Alarm", command="npu-smi info -t health -i 1")
def a_card_is_ill(server):
    server.cards([card_lines(0), card_lines(1, health="Alarm")])


@fault("device.health_warning", cause="has health Warning", command="npu-smi info -t health -i 0")
def a_card_warns(server):
    server.cards([card_lines(0, health="Warning"), card_lines(1)])


@fault("device.full", cause="64000 of 65536 MB are in use (77 python)", command="ASCEND_RT_VISIBLE_DEVICES=1")
def a_card_is_full(server):
    server.process(77, 50)
    server.cards([card_lines(0, used=64000), card_lines(1)], [(0, 77, "python", 60000)])


@fault("device.busy", cause="30000 of 65536 MB", command="ASCEND_RT_VISIBLE_DEVICES=0")
def a_card_is_busy(server):
    server.cards([card_lines(0), card_lines(1, used=30000)])


@fault("device.orphan", cause="process 78 (python) holds NPU 1, but its parent is gone", command="kill 78")
def an_orphan_holds_a_card(server):
    server.process(78, 1)
    server.cards([card_lines(0), card_lines(1)], [(1, 78, "python", 100)])


@fault("device.elsewhere", cause="process 79", command="ps -fp 79")
def another_container_holds_a_card(server):
    server.cards([card_lines(0), card_lines(1)], [(0, 79, "", 100)])


@fault("visible.value", cause="not in ascending order", command="ASCEND_RT_VISIBLE_DEVICES=0,1")
def ids_descend(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="1,0")


@fault("visible.value", cause="twice", command="ASCEND_RT_VISIBLE_DEVICES=0")
def ids_repeat(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="0,0")


@fault("visible.value", cause="names device 4", command="ASCEND_RT_VISIBLE_DEVICES=0")
def ids_out_of_range(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="4")


@fault("visible.value", cause="whole numbers", command="ASCEND_RT_VISIBLE_DEVICES=0,1")
def ids_are_a_range(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="0-1")


@fault("visible.value", cause="NPROC_PER_NODE=2", command="NPROC_PER_NODE=1")
def processes_differ_from_ids(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="0", NPROC_PER_NODE="2")


@fault(
    "visible.value", cause="NPU_VISIBLE_DEVICES=1 does not choose NPUs", command="ASCEND_RT_VISIBLE_DEVICES=1"
)
def ids_in_a_wrong_variable(server):
    env(server, NPU_VISIBLE_DEVICES="1")


@fault("visible.hidden", cause="hides every device", command="unset ASCEND_RT_VISIBLE_DEVICES")
def ids_empty(server):
    env(server, ASCEND_RT_VISIBLE_DEVICES="")


@fault("system.shm", cause="/dev/shm has 67 MB free", command="--shm-size=16g")
def shared_memory_small(server):
    server.settings["free_bytes"]["/dev/shm"] = 64 << 20


@fault("system.disk", cause="/work has 5.4 GB free", command="df -h /work")
def disk_small(server):
    server.settings["free_bytes"]["/work"] = 5 * GIGABYTE


@fault("system.disk_full", cause="/work has 10 MB free", command="df -h /work")
def disk_full(server):
    server.settings["free_bytes"]["/work"] = 10_000_000


@fault(
    "system.unwritable", cause="HF_HOME=/etc/ascend_install.info cannot be written", command="export HF_HOME="
)
def cache_is_no_folder(server):
    env(server, HF_HOME="/etc/ascend_install.info")


@fault("system.memlock", cause="64 KB (ulimit -l)", command="--ulimit memlock=-1", memlock_kb=64)
def memlock_small(server):
    pass


@fault("system.files", cause="only 1024 files", command="ulimit -n 65535", open_files=1024)
def few_open_files(server):
    pass


@fault("system.memory", cause="the host has 1.0 GB of memory left", command="free -h")
def host_memory_low(server):
    write(server.root / "proc/meminfo", "MemAvailable: 1000000 kB\n")


@fault("system.cpus", cause="8 processes share 4 processors", command="NPROC_PER_NODE=4", cpus=4)
def more_processes_than_processors(server):
    env(server, NPROC_PER_NODE="8")


@fault("system.port", cause="port 60003", command="export HCCL_IF_BASE_PORT=60016")
def port_of_collectives_taken(server):
    server.listen(60003)


@fault("system.master_port", cause="MASTER_PORT=29500 is in use", command="export MASTER_PORT=29501")
def master_port_taken(server):
    env(server, MASTER_PORT="29500")
    server.listen(29500)


@fault("system.interface", cause="HCCL_SOCKET_IFNAME=bond7, but", command="export HCCL_SOCKET_IFNAME=eth0")
def network_card_of_another_machine(server):
    env(server, HCCL_SOCKET_IFNAME="bond7")


@fault("setting.range", cause="HCCL_RDMA_SL=1000 is outside of 0 to 7", command="unset HCCL_RDMA_SL")
def setting_out_of_range(server):
    env(server, HCCL_RDMA_SL="1000")


@fault("setting.range", cause="HCCL_CONNECT_TIMEOUT=60", command="unset HCCL_CONNECT_TIMEOUT")
def time_out_too_short(server):
    env(server, HCCL_CONNECT_TIMEOUT="60")


@fault("setting.slow", cause="ASCEND_LAUNCH_BLOCKING=1", command="unset ASCEND_LAUNCH_BLOCKING")
def blocking_left_on(server):
    env(server, ASCEND_LAUNCH_BLOCKING="1")


@fault(
    "setting.ignored", cause="PYTORCH_CUDA_ALLOC_CONF is not read on NPUs", command="PYTORCH_NPU_ALLOC_CONF="
)
def setting_of_another_device(server):
    env(server, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")


@pytest.mark.parametrize("value", ["^docker0", "^=eth", "=eth0", "eth0:1,bond"])
def test_a_variable_that_leaves_a_network_card_is_no_finding(server, value):
    env(server, HCCL_SOCKET_IFNAME=value)
    assert examine(server.scene()) == []


def test_a_healthy_server_has_no_findings(server):
    assert examine(server.scene()) == []


@pytest.mark.parametrize("name", FAULTS)
def test_fault(server, name):
    make, wanted, cause, command, facts = FAULTS[name]
    make(server)
    findings = {finding.id: finding for finding in reversed(examine(server.scene(**facts)))}
    assert wanted in findings, f"found {list(findings)}"
    said = [one for one in examine(server.scene(**facts)) if one.id == wanted]
    assert any(cause in one.cause("en") for one in said), [one.cause("en") for one in said]
    assert any(command in one.command("en") for one in said), [one.command("en") for one in said]
    for one in findings.values():
        assert "{" not in one.cause("zh") + one.command("zh")
        assert one.cause("zh") and one.command("zh")
    assert len({one.id for one in examine(server.scene(**facts))} - {wanted}) <= 2, list(findings)


def test_there_are_forty_faults():
    assert len(FAULTS) >= 40


def test_a_node_that_this_user_may_not_open(server, monkeypatch):
    assert "device.permission" not in {finding.id for finding in examine(server.scene())}
    node, may = server.root / "dev/davinci0", os.access  # a mode of 0 would not do: root may open everything
    monkeypatch.setattr(os, "access", lambda path, mode: path != node and may(path, mode))
    (finding,) = [finding for finding in examine(server.scene()) if finding.id == "device.permission"]
    assert "/dev/davinci0" in finding.cause("en")


def test_gpus_that_torch_and_the_driver_do_not_know(tmp_path):
    from swiftlet.doctor.scene import Scene

    write(tmp_path / "dev/nvidia0")
    scene = Scene({"PATH": "", "CUDA_VISIBLE_DEVICES": ""}, tmp_path, {"torch": ["2.9.0+cpu"]})
    ids = {finding.id for finding in examine(scene)}
    assert {"torch.cpu_only", "gpu.smi", "visible.hidden"} <= ids


def test_exit_codes(server):
    assert exit_code([]) == 0
    server.environ["ASCEND_LAUNCH_BLOCKING"] = "1"
    findings = examine(server.scene())
    assert [finding.severity for finding in findings] == [WARNING] and exit_code(findings) == 10
    server.environ["HCCL_RDMA_SL"] = "-1"
    assert exit_code(examine(server.scene())) == 1
    assert NOTE != ERROR
