"""First causes of logs: one made log a cause, then what hides a cause, what follows from one, and whose it is."""

from __future__ import annotations

import json

import pytest
from explaining import TABLES, cause_of, explained

from swiftlet.doctor.explain import explain
from swiftlet.doctor.log_files import LARGEST_BYTES, read_logs
from swiftlet.doctor.logs import LONGEST_LINE, lines_of
from swiftlet.doctor.tables import LANGUAGES, TableError, fill, language, load, user_folder
from swiftlet.doctor.wording import as_json, in_words, look_at
from swiftlet.errors import UsageError

OOM = (
    "RuntimeError: NPU out of memory. Tried to allocate {} GiB (NPU 1; 60.0 GiB total capacity; {} GiB already "
    "allocated; 9 GiB current active; {} GiB free; {} GiB reserved in total by PyTorch)"
)
OOM_LIMITED = (
    "torch.OutOfMemoryError: NPU out of memory. Tried to allocate 96.00 MiB (NPU 0; 32.00 GiB total capacity; "
    "512.00 MiB allowed; 450.00 MiB already allocated; 450.00 MiB current active; 20.00 GiB free; "
    "460.00 MiB reserved in total by PyTorch)"
)
OOM_GPU = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 1 has a total capacity of 74.0 GiB "
    "of which 2.0 GiB is free. {}Including non-PyTorch memory, this process has {} GiB memory in use. Of the "
    "allocated memory {} GiB is allocated by PyTorch, and {} GiB is reserved by PyTorch but unallocated."
)
CAUSES = [
    ("AttributeError: `np.float_` was removed in the NumPy 2.0 release.", "env.numpy2"),
    (
        "npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object file",
        "env.libc_sec",
    ),
    ("ImportError: libascend_hal.so: cannot open shared object file", "env.driver_library"),
    ("OSError: libatb.so: cannot open shared object file: No such file", "env.atb_library"),
    ("ImportError: libascendcl.so: cannot open shared object file", "env.set_env"),
    ("libop_plugin_atb.so: undefined symbol: _ZN3atb5thing", "env.symbol_atb"),
    ("ImportError: libtorch_npu.so: undefined symbol: _ZN2at6detail10noopDelete", "env.symbol_torch"),
    ("ImportError: libtorch_npu.so: undefined symbol: aclrtNewThing", "env.symbol_cann"),
    ("Failed to find function HcclCommInitRootInfoConfig", "env.symbol_cann"),
    ("ImportError: /x/libfoo.so: undefined symbol: foo_bar", "env.symbol"),
    ("/lib64/libstdc++.so.6: version `GLIBCXX_3.4.30' not found", "env.torch_abi"),
    ("AttributeError: module 'torch_npu' has no attribute '_autoload'", "env.autoload"),
    ("ModuleNotFoundError: No module named 'tbe.common'", "env.tbe"),
    ("ModuleNotFoundError: No module named 'decorator'", "env.tbe_package"),
    ("EC0010: Failed to import Python module [ImportError: cannot import name x]", "env.tbe_python"),
    ("ModuleNotFoundError: No module named 'einops'", "env.python_module"),
    ("ModuleNotFoundError: No module named 'transformers.models.new'", "env.python_part"),
    ("ModuleNotFoundError: No module named 'torch_npu._C'", "env.source_folder"),
    ("ImportError: /x/lib/libgomp.so.1: cannot allocate memory in static TLS block", "env.static_tls"),
    ("/x/nnal/atb/lib/libtbe.so: undefined symbol: _ZN3Mki2Dl", "env.symbol_atb"),
    (
        "AttributeError: module 'torch_npu.dynamo.torchair' has no attribute 'get_it'",
        "env.torch_npu_part",
    ),
    ("EH9999  [Init][Env]init env failed!", "env.compiler_start"),
    ("torch-npu: torch_npu 2.1.0 requires torch==2.1.0, but you have torch 2.3.1", "env.torch_pair"),
    ("ASCEND_OPP_PATH is not set", "env.opp_path"),
    ("KeyError: 'ASCEND_HOME_PATH'", "env.home_path"),
    ("RuntimeError: 0 active drivers ([]). There should only be one.", "env.triton"),
    ("dcmi model initialized failed, because the device is used. ret is -8020", "driver.used"),
    ("dcmi module initialize failed. ret is -8005", "driver.inner"),
    ("open /dev/davinci3 fail: Permission denied", "driver.permission"),
    ("dcmi module initialize failed. ret is -8012", "driver.other"),
    ("EE1015: rtX failed. Reason: The driver version capability is insufficient.", "driver.mismatch"),
    ("[drv api] halDeviceOpen failed. device_id=3, drvRetCode=7.", "driver.open"),
    ("GetDeviceCount:Call drvGetDevNum, drvRetCode=87.", "driver.count"),
    ("E30005: Failed to connect the device.", "driver.lost"),
    ("rtX execution failed, reason=lost heartbeat[FUNC:f]\nEL0001: Device not found.", "driver.lost"),
    ("ret = 107001\n[ERROR] RUNTIME: no logic dev id, driver may not be loaded", "driver.not_loaded"),
    ("error code is 507054", "driver.ecc"),
    ("error code is 507056", "hardware.link"),
    ("[ascend] [tsdrv] [ERROR] hdc connect down, devid(3) fid(0) tsid(0)", "driver.hdc_down"),
    ("[ERROR] HCCP(7,x): verify fail, certificate is not yet valid", "collective.certificate"),
    ("[ERROR] HCCL(7,x): connected p2p timeout, timeout:130 s. remote physic id:1.", "collective.p2p"),
    ("Set visible device failed, invalid device=0, input visible devices:6", "visible.not_here"),
    ("set ASCEND_RT_VISIBLE_DEVICES:4 error, input data rang[0-2)", "visible.range"),
    ("ASCEND_RT_VISIBLE_DEVICES must be in ascending order", "visible.order"),
    ("AssertionError: DeepSpeed is not compatible with MP. n_gpu: 8, local_world_size: 1", "visible.mp"),
    ("RuntimeError: No NPUs are available", "visible.hidden"),
    ("NPU function error: aclrtMallocHostWithCfg, error code is 207001", "memory.locked"),
    ("Memory_Allocation_Failure(EL0004): Failed to allocate memory.", "memory.device"),
    ("halMemAlloc failed: device_id=6, size=32212254720, drvRetCode=6!", "memory.device"),
    (OOM.format(1, 9, 1, 10), "memory.others"),
    (OOM.format(5, 45, 1, 58), "memory.fragments"),
    (OOM.format(5, 57, 1, 58), "memory.own"),
    ("RuntimeError: NPU out of memory.", "memory.torch_short"),
    ("torch.OutOfMemoryError: CUDA out of memory.", "memory.gpu_short"),
    (OOM_LIMITED, "memory.allowed"),
    (OOM_GPU.format("Process 7 has 50.0 GiB memory in use. ", "22.0", "20.0", "1.5"), "memory.others_gpu"),
    (OOM_GPU.format("", "72.0", "50.0", "21.0"), "memory.fragments_gpu"),
    (OOM_GPU.format("", "72.0", "70.0", "1.0"), "memory.own"),
    ("exitcode  : -9 (pid: 77)", "memory.host_killed"),
    ("run.sh: line 3: 77 Killed                  python train.py", "memory.host_killed"),
    ("      Reason:       OOMKilled\n      Exit Code:    137", "memory.host_killed"),
    ("ERROR: Unexpected bus error ... insufficient shared memory (shm)", "memory.shm"),
    ("OSError: [Errno 12] Cannot allocate memory", "memory.hostfull"),
    ("OSError: [Errno 28] No space left on device: '/data/x'", "system.disk"),
    ("OSError: [Errno 24] Too many open files", "system.files"),
    ("RuntimeError: can't start new thread", "system.processes"),
    ("what(): thread: Resource temporarily unavailable [system:11]", "system.processes"),
    ("SafetensorError: Error while deserializing header: HeaderTooLarge", "system.weights"),
    (
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        "system.weights",
    ),
    ("[enforce fail at inline_container.cc:7] . unexpected pos 70 vs 7", "system.write_failed"),
    (
        "RuntimeError: PytorchStreamWriter failed writing file data/3: file write failed",
        "system.write_failed",
    ),
    ("ValueError: No available memory for the cache blocks. Try more.", "memory.cache"),
    (
        "ValueError: The model's max seq len (8) is larger than the maximum number of tokens that can be stored in "
        "KV cache (7).",
        "memory.cache",
    ),
    ("x.api.SignalException: Process 7 got signal: 15", "system.stopped"),
    ("[WARNING] Received Signals.SIGTERM death signal, shutting down workers", "system.stopped"),
    ("FatalError: `Termination signal` is detected by the operating system.", "system.stopped"),
    ("FatalError: `Segmentation fault` is detected by the operating system.", "program.crash"),
    ("run.sh: line 3: 77 Illegal instruction     (core dumped) python a.py", "program.crash"),
    ("exec /usr/bin/python: exec format error", "env.architecture"),
    ("ImportError: /x/libtorch_npu.so: wrong ELF class: ELFCLASS32", "env.architecture"),
    (
        "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices huawei.com/Ascend910",
        "driver.unhealthy",
    ),
    (
        "(raylet) The node with node id: ab7 and address: 10.0.0.7 and node name: n has been marked dead because",
        "system.ray_node",
    ),
    ("ABORT!!! Out of all 8 trainers, the trainer process with rank=[3] was aborted.", "system.killed_child"),
    ("[ERROR] failed (exitcode: -6) local_rank: 1 (pid: 7) of binary: python", "system.crashed_child"),
    ("a.mlir: error: ub overflow, requires 20 bits while 10 bits avaliable!", "operator.ub_overflow"),
    (
        "Tensor self not implemented for DT_COMPLEX32,\nshould be in dtype support list [DT_FLOAT]",
        "operator.dtype",
    ),
    ("RuntimeError: HCCL AllReduce & Reduce: Unsupported data type at::kByte/at::kBool", "collective.dtype"),
    ("RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'", "operator.on_cpu"),
    ("RuntimeError: \"nll_loss_cuda_kernel\" not implemented for 'Half'", "unknown"),
    ("Could not run 'npu::npu_format_cast' with arguments from the 'CPU' backend.", "operator.devices"),
    ("EZ9999: Do not find tiling func of RotaryX!", "program.cann_missing_op"),
    ("CompileGraph failed: Can not find any available kernel info for: HSwish.", "program.cann_missing_op"),
    (
        "RuntimeError: Current device type 1 does not match the installed version's device type 0",
        "operator.soc",
    ),
    ("LoadOpInfoJson] Get op info json suffix path failed, soc_version: Ascend310P3", "operator.soc"),
    ("Set device failed, invalid device, current device=8, valid device range is [0, 8)", "visible.range"),
    ("client : device[1] rank[1] get socket timeout, total[4] remain[3]", "collective.socket"),
    (
        "AssertionError: Rank 3: found NaN in local forward loss calculation. Device: 3",
        "operator.gradient_nan",
    ),
    ("undefined symbol: _ZN3Mki2DlC1ERKNSt7", "env.symbol_atb"),
    ("x.cu:7: f: block: [0,0,0], thread: [7,0,0] Assertion `t < n` failed.", "program.cuda_kernel"),
    ("socket type[2], listen on ip[10.0.0.1%eth0] and specific port[60000] fail.", "system.port"),
    ("EI0019: The IP address 10.0.0.1 and port 50001 have already been bound.", "system.port"),
    (
        "[E socket.cpp:9] [c10d] The server socket has failed to listen on [::]:29511 (Address already in use)",
        "system.master_port",
    ),
    ("OSError: [Errno 98] Address already in use", "system.address_used"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "driver.nvidia_old"),
    ("RuntimeError: CUDA error: device-side assert triggered", "program.cuda_kernel"),
    ("ValueError: bad shape", "program.exception"),
    ("Segmentation fault (core dumped)", "program.crash"),
    (
        "  rank      : 5 (local_rank: 5)\n  exitcode  : -11 (pid: 7)\n",
        "system.crashed_child",
    ),
    ("EE1001: [PID: 7] The argument is invalid.Reason: coreDim=9 is too much.", "program.runtime_argument"),
    (
        "call aclnnX failed, detail:EZ1001: [PID: 4] Get path and read binary_info_config.json failed",
        "program.cann_missing_op",
    ),
    ("RuntimeError: Tensors must be contiguous", "operator.contiguous"),
    ("Do not support TASK_QUEUE_ENABLE = 2 during NPU graph capture", "operator.task_queue"),
    ("RuntimeError: Cannot run aclop operators during NPU graph capture.", "operator.aclop_captured"),
    ("RuntimeError: Initialize: Unsupported soc version: Ascend910_1", "operator.soc"),
    ("E40021: Failed to compile Op [Add_1,].\nfatal error: 'a.h' file not found", "operator.compile"),
    ("ub overflow, requires 8 bits while 4 bits available!", "operator.ub_overflow"),
    ("E80012: In op, the number of dimensions is 10.", "operator.tbe"),
    ("AclNN_Parameter_Error(EZ1001): the D of cos must be 64 but got 80.", "operator.shape"),
    (
        'File "/x/bitsandbytes/autograd/_functions.py", line 5\nFile "/x/torch/cuda/__init__.py"',
        "program.bitsandbytes",
    ),
    ("AssertionError: Torch not compiled with CUDA enabled", "program.cuda"),
    ("ImportError: FlashAttention2 has been toggled on, but it cannot be used", "program.flash_attn"),
    ("RuntimeError: Distributed package doesn't have NCCL built in", "program.nccl"),
    ("EZ9999: Op Sort does not has any binary.", "program.cann_missing_op"),
    (
        "EZ1001: self not implemented for DT_BFLOAT16, should be in dtype support list [DT_FLOAT]",
        "operator.bf16",
    ),
    (
        "call aclnnSort failed: EZ1001: x not implemented for DT_DOUBLE, should be in dtype support list",
        "operator.double",
    ),
    ("EZ1001: x not implemented for DT_INT4, should be in dtype support list [DT_FLOAT]", "operator.dtype"),
    (
        "NotImplementedError: Could not run 'aten::foo' with arguments from the 'npu' backend",
        "operator.unsupported",
    ),
    ("RuntimeError: Expected all tensors to be on the same device, but found two", "operator.devices"),
    ("EZ1001: Expected dim of x to be 4 but got shape 3", "operator.shape"),
    ("errorStr: The DDR address of the MTE instruction is out of range. fixp", "operator.bounds"),
    ("errorStr: Illegal instruction, which is usually caused by unaligned addresses.", "operator.bounds"),
    ("Kernel task happen error, retCode=0x25, [aicore timeout].", "operator.timeout"),
    ("Aicpu kernel execute failed, fault kernel_name=GetNext, fault op_name=", "operator.aicpu"),
    ("Aicore kernel execute failed, device_id=0, fault kernel_name=add_1, func_name=f", "operator.aicore"),
    ("export ASCEND_LAUNCH_BLOCKING=1\nerror code is 107027", "operator.capture"),
    ("Alloc Stream resource failed. Reason: Too many streams are created.", "operator.streams"),
    ("Alloc Event resource failed. Reason: Too many events are created.", "operator.events"),
    ("Alloc Notify resource failed. Reason: Too many Notify objects are created.", "operator.notify"),
    ("There are too many asynchronous copy tasks in the ACL Graph.", "operator.copies"),
    ("ProgramRegister:Program register failed, program out of 40000000", "operator.programs"),
    ("Task execute failed, base info: device_id=0, stream_id=2, task_id=3, task_type=3.", "operator.task"),
    ("step 7: loss is nan", "operator.loss_nan"),
    ("RuntimeError: Cannot re-initialize NPU in forked subprocess.", "operator.context_fork"),
    ("NPU function error: aclrtGetCurrentContext, error code is 107002", "operator.context"),
    ("Value 9 for environment variable HCCL_RDMA_SL is invalid.", "collective.env"),
    ('Value Disable for config "tls" is invalid.', "collective.tls"),
    ("EI0016: Value a for config b is invalid.", "collective.config"),
    ("the IP address(1) in the ranktable is inconsistent with the IP(2)", "collective.ranktable"),
    ("EI0008: The HCCL versions are inconsistent", "collective.version"),
    ("EJ0001: Failed to initialize the HCCP process.", "collective.left_over"),
    ('Env config "HCCL_ENTRY_LOG" value "-1" is invalid. Should be 0 or 1', "collective.env"),
    ("CMD information count check fail. local[16], remote[8]", "collective.unequal"),
    ("fault kernel_name=aiv_all_reduce_910b_float, fault kernel info", "collective.kernel"),
    ("Aicore kernel execute failed, fault kernel_name=aiv_all_reduce_910b, x", "collective.kernel"),
    ("[gloo/device.cc:84] ifa != nullptr. Unable to find address for: eth0", "collective.gloo_address"),
    ("[gloo/buffer.cc:81] Timed out waiting 1800000ms for recv operation", "collective.torch_timeout"),
    ("EI0005: parameter count, local end 16, remote end 8", "collective.unequal"),
    (
        "Cluster Exception Location[IP/ID]:[10.0.0.1/3], Discoverer:[10.0.0.2/1], ExceptionType:[Stuck Occurred]",
        "collective.heartbeat",
    ),
    ("Execution_Error_SDMA(EI0012): SDMA memory copy task exception", "collective.sdma"),
    ("EI0013: An error CQE occurred", "collective.cqe"),
    ("EI0006: Getting socket times out.", "collective.socket"),
    ('fault_info["Failed to connect agent[1,3,]"]', "collective.rootinfo"),
    ("EI0002: The wait execution of the Notify register times out.", "collective.waited"),
    (
        "[Rank 1] Watchdog caught collective operation timeout: Work(OpType=ALLREDUCE)",
        "collective.torch_timeout",
    ),
    ("RuntimeError: Connection closed by peer [10.0.0.1]:2222", "collective.peer_gone"),
    ("set ifname to [abc] by HCCL_SOCKET_IFNAME, but not found in the environment", "collective.address"),
    ("torch.distributed.elastic.multiprocessing.errors.ChildFailedError:", "system.killed_child"),
    ("Find error, ErrCode=207004, desc=[no device]", "code.207004"),
    ("task failed, err_type=4[fftsplus sdma error]", "collective.sdma"),
    ("[InitChannelStage][Timeout]Transport init error!", "collective.socket"),
    ("RuntimeError: [Rank 0]: Ranks 5 failed to pass monitoredBarrier in 100 ms", "collective.torch_timeout"),
    ("[topoinfo_ranktableParser.cc:6] json file[/a.json] is not a valid real path", "collective.ranktable"),
    (
        "[c10d] The client socket has timed out after 60s while trying to connect to (10.0.0.1, 29500).",
        "collective.master",
    ),
    ("The server socket on [::ffff:10.0.0.1]:4195 has timed out, will retry.", "collective.master"),
    ("socket.gaierror: [Errno -2] Name or service not known", "system.host_name"),
    (
        "The IPv6 network addresses of (master-0, 29500) cannot be retrieved (gai error: -2)",
        "system.host_name",
    ),
    ("OSError: We couldn't connect to 'https://hub.example' to load the files", "system.hub"),
    (
        "requests.exceptions.SSLError: HTTPSConnectionPool(host='hub.example', port=443): Max retries exceeded",
        "system.hub",
    ),
    ("OSError: [Errno 30] Read-only file system: '/out/a'", "system.read_only"),
    ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", "system.time_limit"),
    (
        "0/4 nodes are available: 4 Insufficient huawei.com/Ascend910.",
        "system.no_free_device",
    ),
    ("ValueError: Total available GPUs 0 is less than total desired GPUs 8", "system.ray_devices"),
    ("AssertionError: found NaN in local grad norm in backward pass. Device: 3", "operator.gradient_nan"),
    ("| lm loss: nan | grad norm: nan | number of skipped iterations:   0 |", "operator.loss_nan"),
    (
        "RuntimeError: Expected one of cpu, cuda device type at start of device string: npu",
        "env.plugin_missing",
    ),
    ("OSError: You seem to have cloned a repository without having git-lfs installed.", "system.git_lfs"),
    (
        '  File "/x/site-packages/transformer_engine/common/__init__.py", line 250, in _load_cudnn\n'
        "subprocess.CalledProcessError: Command 'ldconfig -p' returned non-zero exit status 1.",
        "program.transformer_engine",
    ),
    ("Device(id:0) memory isn't enough and alloc failed, kernel name: MatMul-op1", "memory.device"),
    (
        "EZ9999[PID: 4] 2026-02-05-11:47:24.075.926 (EZ9999):  get unsupported atten_mask shape, the shape is [16, 1]."
        "[FUNC:AnalyzeOptionalInput][FILE:flash_attention_score_tiling_general.cpp][LINE:1606]",
        "operator.shape",
    ),
    (
        "EZ9999: [PID: 4] 2026-02-05-11:47:24.075.926 actual length has 9 items, should be 16",
        "operator.shape",
    ),
    (
        "[INFO] HCCL(6,python):2025-10-23-07:52:59.191.363 [heartbeat.cc:9] [8][HCCL_TRACE]rank [10.0.0.1/1]: "
        "rank [10.0.0.1/9] status[LOST] by rank [10.0.0.1/1]",
        "collective.heartbeat",
    ),
    ("docker: unknown or invalid runtime name: ascend.", "driver.docker_runtime"),
    ('docker: adding custom device "/dev/davinci9": no such file or directory', "driver.device_file"),
    ("ImportError: libGL.so.1: cannot open shared object file: No such file", "env.library"),
    ("error while loading shared libraries: libx.so.2: wrong ELF class", "env.architecture"),
    ("OMP: System error #11: Resource temporarily unavailable", "system.processes"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=9.0.", "memory.host_killed"),
    ("    Reason:       OOMKilled", "memory.host_killed"),
    ("Evicted  kubelet  The node was low on resource: memory. Container a was using", "memory.host_killed"),
    ("Evicted  kubelet  The node was low on resource: ephemeral-storage.", "system.disk"),
    (
        "| 10.0.0.2(1) | 16666 | 10.0.0.1(0) | 5 | server | time out | DISABLE |\n"
        "| 10.0.0.1(0) | 16666 | 10.0.0.2(1) | 5 | client | time out | ENABLE |",
        "collective.tls_of_links",
    ),
    ("| 10.0.0.2(1) | 16666 | 10.0.0.1(0) | 5 | server | time out | ENABLE |", "collective.socket"),
    ("[ERROR] ['/usr/bin/python', 'a.py'] exits with return code = -9", "memory.host_killed"),
    ("CalledProcessError: Command 'a' died with <Signals.SIGKILL: 9>.", "memory.host_killed"),
    ("process rank 2 with PID 0 on node n1 exited on signal 9 (Killed).", "memory.host_killed"),
    (
        "process rank 2 with PID 0 on node n1 exited on signal 11 (Segmentation fault).",
        "system.crashed_child",
    ),
    ("[ERROR] ['/usr/bin/python', 'a.py'] exits with return code = -11", "system.crashed_child"),
    ("ray.exceptions.OutOfMemoryError: Task was killed: the node runs low on memory.", "memory.hostfull"),
    ("PermissionError: [Errno 13] Permission denied: '/dev/davinci_manager'", "driver.permission"),
    ("Exception: ASCEND_HOME_PATH environment variable is not set.", "env.home_path"),
    ("torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError", "collective.master"),
    ("the server exited with code 137", "memory.container_killed"),
    (
        "errcode:(0x20000, 0, 0) errorStr: L0C read/write conflict(cube write operation).",
        "operator.core_error",
    ),
    ("errorStr: timeout or trap error.", "unknown"),
    (
        "there is a sdma error, sdma channel is 2\nEI9999: Memory async copy failed, device_id=3, stream_id=2",
        "operator.copy",
    ),
    (
        "EE9999: get error: phyid:5 realDeviceId:0 is err:0x7010003[FUNC:GetDeviceIndexByPhyId][FILE:a.cc]",
        "visible.peers",
    ),
    ("EE1001: ctx is NULL\n[Init][Version]init soc version failed, ret = 507008", "driver.soc_version"),
    ("Call aclInit(nullptr) failed : 507008 at file a.cc", "driver.soc_version"),
    ("EL0005: The resources are busy.\n[Init][Version]init soc version failed.", "code.EL0005"),
    ("runc create failed: failed to mount src: /usr/local/bin/npu-smi.failed to mount dev.", "driver.mount"),
    ("RuntimeError: Unsupported SOC version: Ascend310B4", "operator.soc"),
    ("RuntimeError: Can not support soc_version: 104.", "operator.soc"),
    (
        "E90003: Compile operator failed, cause: Template constraint: bfloat16 of tbe.dsl.add is not supported.",
        "operator.bf16",
    ),
    (
        "E40024: Failed call Python Func [f], Reason[SystemError: PY_SSIZE_T_CLEAN macro must be defined]",
        "env.python_abi",
    ),
    (
        "CUDA error: no kernel image is available for execution on the device",
        "env.gpu_arch",
    ),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "driver.gpu_ecc"),
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid=7, GPU has fallen off the bus.", "driver.gpu_lost"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling f", "memory.gpu_short"),
    ("RuntimeError: NPU out of memory. Tried to allocate more than 1EB memory", "memory.size"),
    ("(raylet) 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 crashed", "memory.hostfull"),
    ("RuntimeError: No backend type associated with device type npu", "program.backend"),
    ("KeyError: 'getpwuid(): uid not found: 1000'", "system.user"),
    ("h:7:9 [0] NCCL WARN Net : Connect to 10.0.0.9<5> failed : No route to host", "collective.nccl_network"),
    ("RuntimeError: HCCS LINK ERROR", "hardware.link"),
    ("RuntimeError: SUSPECT MEM ERROR", "code.SUSPECT MEM ERROR"),
    ("[RanktablCheck] 'device ip' is not set correctly, must be set", "collective.device_address"),
    ("[7]RanktableRealPath: /x/hccl.json is not a valid real path", "collective.ranktable"),
    ("[heartbeat.cc:5][7][Heartbeat]cqe err status[12], time:[2026-01-01 10:00:00.1]", "collective.cqe"),
    ("Task run failed, base information is streamID:[3], taskType[Notify Wait], tag[a]", "collective.waited"),
    ("[ 81.1] uda_occupy_dev_by_ns Conflict open udevid 3", "driver.used"),
    ("Container ID verify failed (session ct_id=0; device ct_id=7)", "driver.used"),
    ("StreamIdAlloc:drvStreamIdAlloc failed: errorcode=17, device_id=0", "operator.streams"),
    ("Set device failed, invalid device, set drv device=100, valid device range is [0, 8)", "visible.range"),
    (
        "The error from device(2), serial number is 1. there is a sdma error, sdma channel is 0",
        "operator.copy",
    ),
    ("bishengir-compile: Cannot find option named 'Ascend310P9'!", "operator.soc"),
    ("Op type Foo of ops kernel AIcoreEngine is unsupported, reason : not found.", "program.cann_missing_op"),
    (
        "Op type Foo of ops kernel AIcoreEngine is unsupported, reason : a. Reason is: In op [foo], [b].",
        "operator.tbe",
    ),
    ("Last error:\nFailed to open libnvidia-ml.so.1", "env.library"),
    ("[http] Failed to bind 127.0.0.1:1025, address already in use", "system.address_used"),
    ("[Modelarts Service Log]Training end with return code: 137", "memory.container_killed"),
    ("- ERROR - proc-rank-3-device-3 (pid: 158) has exited with non-zero code: 1", "system.killed_child"),
    (
        "[ASSERT] [CANN_VERSION : 8.1] a.h:7: Assertion `(val < size)' Index 9 out of range[0 9)!",
        "operator.bounds",
    ),
    ("[ASSERT] [CANN_VERSION : 8.1] a.h:7: Assertion `(n % 8 == 0)' ", "operator.core_error"),
]


@pytest.mark.parametrize(("text", "cause"), CAUSES)
def test_a_line_shows_its_cause(text, cause):
    found = explained(text)
    assert (found.first.cause.id if found.first else "unknown") == cause
    for tongue in LANGUAGES:
        said = in_words(found, tongue)
        assert "{" not in said and "?" not in said.split("\n")[0]


@pytest.mark.parametrize("name", TABLES.causes)
def test_words_need_no_more_than_any_pattern_gives(name):
    cause = TABLES.causes[name]
    for pattern in cause.match:
        fields = dict.fromkeys([*pattern.groupindex, "package"], "x")
        for words in (cause.words, cause.remedy):
            assert all("?" not in fill(words[tongue], fields) for tongue in LANGUAGES), pattern.pattern


def test_a_request_that_ray_cannot_serve_yet_is_a_probable_cause():
    found = explained("(autoscaler) Warning: it cannot be scheduled right now: {'CPU': 1.0, 'NPU': 1.0}.")
    assert found.first.cause.id == "system.ray_devices" and found.first.cause.is_likely


def test_advice_is_not_taken_for_the_cause():
    text = (
        "EI0006: Getting socket times out. Reason: 1. a rank is abnormal. 2. TLS configurations are inconsistent.\n"
        "        Possible Cause: No space left on device.\n        Solution: 1. Too many open files\n"
    )
    assert cause_of(text) == "collective.socket"


def test_causes_say_what_the_log_says():
    def said(text):
        return in_words(explained(text), "en")

    assert "pip install scikit-learn" in said("ModuleNotFoundError: No module named 'sklearn'")
    assert "pip install einops" in said("ModuleNotFoundError: No module named 'einops'")
    assert "pip install torch" not in said("ModuleNotFoundError: No module named 'torch_npu._C'")
    lines = (
        "[rank0]: E40021: Failed to compile Op [Add_1,].\n[EB0500] Compile failed: bisheng: command not found"
    )
    assert "operator [Add_1] could not be compiled (bisheng: command not found)" in said(lines)
    assert "(coreDim=9 is too much.)" in said(
        "EE1001: The argument is invalid.Reason: coreDim=9 is too much."
    )
    assert "(tag: AllGather here, AllReduce there)" in said(
        "CMD information tag check fail. local[AllGather_10.0.0.1_7], remote[AllReduce_10.0.0.1_7]"
    )
    shapes = "({'errCode': 'E80012', 'x': 1}, 'In op[a], the parameter is [2].')"
    assert "inputs: In op[a], the parameter is [2].\n" in said(shapes)
    assert "the D of cos must be 64" in said("AclNN_Parameter_Error(EZ1001): the D of cos must be 64.")
    most = "self cannot have more than 8 dimensions"
    assert f": {most}." in said(f"AclNN_Parameter_Error(EZ1001): {most}.")
    assert f": {most}." in said(f"EZ1001: [PID: 1] 2025-01-01-10:00:00.123.456 {most}.")
    nothing = (
        OOM.format(1, 0, 0.1, 0)
        .replace("0 GiB already", "0 bytes already")
        .replace("0 GiB res", "0 bytes res")
    )
    assert "this one has 0 bytes" in said(nothing)


def test_every_cause_has_a_log():
    tried = {cause for _, cause in CAUSES} | {
        "collective.unequal_operation",
        "collective.links_cycle",
        "collective.waits_cycle",
        "memory.torch",
        "memory.torch_gpu",
        "collective.super_pods",
    }
    assert set(TABLES.causes) <= tried


HIDDEN = [
    "NPU warning, error code is 507018[Error]:\nThe aicpu execution is abnormal.",
    "error code is 507035\nERR00100 PTA call acl api failed\nThe vector core execution is abnormal.",
    "EE1002: Stream synchronize timeout.\nruntime result = 507046.",
    "EH9999: Inner Error!\nreason=[fftsplus timeout]\nruntime result = 507048",
    "hwts sdma error, error code=0x20b\nruntime result = 507013",
    "HCCL function error: hcclCommInitRootInfoConfig, error code is 11",
    "[rank8]:   File main_process_first\n[rank8]:     next(self.gen)",
    "aicore exception, slot_id=31, error code=0x26",
    "RuntimeError: FORCE STOP",
    "[ERROR] TBE Subprocess[task_distribute] raise error[], main process disappeared!",
    "A worker died or was killed while executing a task by an unexpected system error.",
    "The error from device(chipId:0, dieId:0), an exception occurred during AICPU execution, stream_id:2",
    "",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_codes_that_hide_their_cause_are_not_guessed(text):
    found = explained(text)
    assert found.first is None
    said = in_words(found, "en")
    assert said.startswith("cause: the log does not show the cause") and "next: " in said
    assert as_json(found, "zh")["cause"] is None and as_json(found, "en")["remedy"]


def test_signs_of_an_end_come_after_codes_and_hide_no_exception():
    gone = "[ERROR] TBE Subprocess[task_distribute] raise error[], main process disappeared!\n"
    found = explained(gone + "RuntimeError: error code is 507018")
    assert [one.kind for one in found.symptoms] == ["number", "sign"]
    assert cause_of(f"{gone}Traceback (most recent call last):\nKeyError: 'a'") == "program.exception"


def test_the_surface_code_gives_way_to_what_caused_it():
    text = (
        "aclrtSetDevice failed: error code is 507033\n"
        "[PID: 5] 2026-01-01-10:00:02.000.000 Invalid_Argument(EE1001): The argument is invalid.\n"
        "open device 2 failed, runtime result = 507033.\n"
        "EL0004: [PID: 5] 2026-01-01-10:00:01.000.000 Failed to allocate memory.\n"
    )
    found = explained(text)
    assert found.first.cause.id == "memory.device"
    assert [one.code for one in found.symptoms if one.kind == "number"] == ["507033"]
    assert "507033 ACL_ERROR_RT_DEV_SETUP_ERROR: the device could not be started" in in_words(found, "en")
    assert "设备启动失败" in in_words(found, "zh")


def test_the_earliest_of_equal_causes_comes_first():
    text = "2026-01-01-10:00:09.000.000 No space left on device\n2026-01-01-10:00:03.000.000 Too many open files\n"
    assert cause_of(text) == "system.files"


def test_the_rank_that_is_waited_for_is_named():
    text = (
        "EI0002: remote rank: [24]. task: remote rank:[24]]. group information: [group:[group_name_7], rankId[25]]\n"
        "[ERROR] (PID:1, Device:0, RankID:101) ERR00100\n"
    )
    found = explained(text)
    assert look_at(found, "en") == "rank 24 of group_name_7, which rank 25 waits for"
    assert "rank 25 在等它" in look_at(found, "zh")


CHAIN = """==> worker-0/plog-1.log <==
[ERROR] HCCL(1,python): |  10.0.0.2(1)   |   10.0.0.1(0)   |  server  | no connect |
==> worker-1/plog-2.log <==
[ERROR] HCCL(2,python): |  10.0.0.3(2)  | 16666 |  10.0.0.2(1)  | 0 |  client  | time out |
"""


def test_a_chain_of_waits_ends_at_the_one_that_waits_for_nobody():
    found = explained(CHAIN)
    assert found.first.cause.id == "collective.socket"
    assert found.blame.rank == "2" and found.blame.waiting == ("1",)


def test_a_circle_of_waits_is_the_network():
    found = explained(CHAIN + "[ERROR] HCCL(3,python): | 10.0.0.1(0) | 10.0.0.3(2) | client | no connect |\n")
    assert found.first.cause.id == "collective.links_cycle"
    assert look_at(found, "en") == "the network between ranks 0, 1, 2, which wait for each other"


def test_a_rank_that_ran_out_of_memory_is_named_before_those_that_waited():
    text = (
        "[rank0]: EI0002: The wait execution of the Notify register times out. remote rank [1]. rankId[0]\n"
        "[rank1]: RuntimeError: NPU out of memory.\n"
    )
    found = explained(text)
    assert found.first.cause.id == "memory.torch_short"
    assert look_at(found, "en") == "rank 1, which shows the cause"


def test_unequal_collectives_of_two_ranks():
    def rank(number, operation, count):
        head = f"[ERROR] HCCL({number + 70},test): Task run failed, "
        return (
            f"{head}base information is streamID:[2], tag[{operation}_10.0.0.1_7].\n"
            f"{head}groupRank information is group:[10.0.0.1_7], rankSize[2], rankId[{number}].\n"
            f"{head}opData information is index[21], count[{count}], src[0x1], dataType[float32].\n"
        )

    found = explained(rank(0, "AllReduce", 256) + rank(1, "AllGather", 256))
    assert found.first.cause.id == "collective.unequal_operation"
    assert "rank 0: AllReduce, 256 x float32; rank 1: AllGather" in in_words(found, "en")
    assert explained(rank(0, "AllReduce", 256) + rank(1, "AllReduce", 8)).first.fields["index"] == "21"
    assert cause_of(rank(0, "AllReduce", 256) + rank(1, "AllReduce", 256)) == "unknown"


def test_ranks_of_lines():
    text = "[rank3]: a\n(VllmWorker TP1 pid=9) b\nx (PID:7, RankID:5) ERR\nHCCL(7,python) c\nrank2:\nd\n"
    assert [line.rank for line in lines_of(text, "any.log")] == ["3", "1", "5", "5", "2", "2"]
    assert lines_of("a", "out/rank-6.log")[0].rank == "6"
    assert lines_of('{"detail": "one\\nEL0004: two"}', "x")[1].text.startswith("EL0004")


def test_lines_of_every_step_are_left_out_and_failures_are_not():
    steps = "".join(f"{{'loss': 1.{step}, 'step': {step}}}\n" for step in range(5000))
    assert len([line for line in lines_of(steps, "x") if line.text]) == 3
    assert cause_of(steps + "OSError: [Errno 28] No space left on device\n" + steps) == "system.disk"


def test_of_a_huge_file_the_ends_are_read(tmp_path):
    path = tmp_path / "huge.log"
    with path.open("wb") as file:
        file.write(b"KeyError: 'ASCEND_HOME_PATH'\n")
        file.write((b"step" * 50 + b"\n") * (LARGEST_BYTES // 100))
    log = read_logs([str(path)])
    assert explain(log.lines, TABLES).first.cause.id == "env.home_path"
    assert len(log.notes) == 1 and "lines the first " in log.notes[0]


def test_a_line_without_end_costs_no_minutes():
    lines = lines_of("x" * 400_000 + " Too many open files", "x")
    assert all(len(line.text) <= LONGEST_LINE for line in lines)
    assert explain(lines, TABLES).first.cause.id == "system.files"


def test_files_and_folders(tmp_path):
    (tmp_path / "plog").mkdir()
    (tmp_path / "plog" / "rank-1.log").write_text("Too many open files\n")
    assert read_logs([str(tmp_path)]).lines[0].rank == "1"
    with pytest.raises(UsageError, match="there is no such file"):
        read_logs([str(tmp_path / "none.log")])


def test_every_code_and_remedy_has_words_in_each_language():
    assert sum(len(codes) for codes in TABLES.codes.values()) > 450
    for codes in TABLES.codes.values():
        for known in codes.values():
            assert all(known.words[tongue] and known.remedy[tongue] for tongue in LANGUAGES)
    assert TABLES.code("message", "E62501").words["en"].startswith("an operator")
    assert TABLES.code("message", "EX1234") is None


def test_people_add_tables_of_their_own(tmp_path):
    (tmp_path / "mine.json").write_text(
        json.dumps(
            {
                "causes": [
                    {
                        "id": "site.proxy",
                        "depth": 5,
                        "match": "squid-7 refused",
                        "en": "the proxy is down",
                        "remedy": {"en": "call 1234"},
                    }
                ],
                "codes": {"number": {"507018": {"en": "our own words", "zh": "自己的话", "remedy": "plog"}}},
            }
        )
    )
    tables = load({"SWIFTLET_DOCTOR_DIR": str(tmp_path)})
    found = explain(lines_of("error code is 507018\nsquid-7 refused\n", "x"), tables)
    assert in_words(found, "zh").startswith("原因: the proxy is down") and "call 1234" in in_words(
        found, "en"
    )
    assert tables.code("number", "507018").words["en"] == "our own words"
    assert user_folder({"XDG_CONFIG_HOME": "/c"}).as_posix() == "/c/swiftlet/doctor"


@pytest.mark.parametrize(
    "text",
    ["{", '{"causes": [{"id": "a"}]}', '{"causes": [{"id": "a", "en": "b", "remedy": "nothing"}]}', "[1]"],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(TableError, match="broken.json is no table of the doctor"):
        load({"SWIFTLET_DOCTOR_DIR": str(tmp_path)})


def test_language_and_what_the_log_does_not_say():
    assert language({"LANG": "zh_CN.UTF-8"}) == "zh" and language({"LANG": "zh_CN", "LC_ALL": "C"}) == "en"
    assert language({"LANG": "zh_CN"}, "en") == "en" and language({}) == "en"
    assert (
        fill("a ({x}) b {y} [{z}]", {"y": "1"}) == "a b 1" and fill("设备 {x}（{y}）", {"x": "2"}) == "设备 2"
    )


def test_an_argument_without_its_reason_hides_what_failed():
    log = "error code is 507011\nInvalid_Argument(EL0003): The argument is invalid.\n error code = 0x800000, dump"
    found = explained(log)
    assert found.first is None
    assert "EL0003" in in_words(found, "en")
