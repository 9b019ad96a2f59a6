"""Made machines: a folder as root, with the files of an Ascend server, and packages as pip leaves them."""

from __future__ import annotations

import dataclasses
import stat
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "device"))

from npu_smi_texts import card_lines, info_text, install, mapping_text  # noqa: E402

from swiftlet.doctor.scene import Scene, read_packages  # noqa: E402

TOOLKIT = "usr/local/Ascend/ascend-toolkit"
GOOD_PACKAGES = {
    "torch": "2.12.0+cpu",
    "torch-npu": "2.12.0",
    "transformers": "5.3.0",
    "deepspeed": "0.19.8",
    "numpy": "1.26.4",
    **dict.fromkeys(("attrs", "decorator", "psutil", "scipy", "sympy", "cffi"), "5.4.0"),
}
GIGABYTE = 1 << 30


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pip_install(site: Path, packages: dict[str, str]) -> None:
    for name, version in packages.items():
        folder = f"{name.replace('-', '_')}-{version}.dist-info"
        write(site / folder / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


class Server:
    """A healthy Ascend server with two 910B3, which a test then breaks; `scene` is what the doctor sees of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = root / "site-packages"
        pip_install(self.site, GOOD_PACKAGES)
        for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
            write(root / "dev" / name)
        write(root / "usr/local/Ascend/driver/version.info", "Version=26.1.0\n")
        write(root / "usr/local/Ascend/driver/lib64/driver/libascend_hal.so")
        write(root / "etc/ascend_install.info", "Driver_Install_Path_Param=/usr/local/Ascend\n")
        version = root / TOOLKIT / "9.1.0"
        write(version / "x86_64-linux/ascend_toolkit_install.info", "version=9.1.0\narch=x86_64\n")
        (version / "opp/built-in/op_impl/ai_core/tbe/kernel/ascend910b").mkdir(parents=True)
        write(root / TOOLKIT / "set_env.sh")
        (root / TOOLKIT / "latest").symlink_to("9.1.0")
        write(root / "proc/meminfo", "MemTotal: 500000000 kB\nMemAvailable: 400000000 kB\n")
        (root / "sys/class/net/eth0").mkdir(parents=True)
        (root / "sys/class/net/lo").mkdir()
        latest = f"/{TOOLKIT}/latest"
        libraries = f"{latest}/lib64:/usr/local/Ascend/driver/lib64/driver"
        self.environ = {
            "ASCEND_HOME_PATH": latest,
            "ASCEND_OPP_PATH": f"{latest}/opp",
            "LD_LIBRARY_PATH": libraries,
            "PYTHONPATH": f"{latest}/python/site-packages",
            "HOME": "/root",
            "PWD": "/work",
        }
        self.settings: dict = {
            "free_bytes": {"/dev/shm": 16 * GIGABYTE, "/work": 500 * GIGABYTE, "/tmp": GIGABYTE * 50}
        }
        self.cards([card_lines(0), card_lines(1)])

    def cards(self, cards: list[str], processes=(), **options) -> None:
        """Let npu-smi show these cards."""
        self.environ.update(
            install(self.root, info_text(cards, processes), mapping_text(range(len(cards))), **options)
        )

    def smi_program(self, code: str) -> None:
        """Put a program in the place of npu-smi."""
        program = write(self.root / "bin/npu-smi", f"#!{sys.executable}\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def toolkit_version(self, version: str) -> None:
        write(
            self.root / TOOLKIT / "9.1.0/x86_64-linux/ascend_toolkit_install.info",
            f"version={version}\narch=x86_64\n",
        )

    def remove(self, place: str) -> None:
        (self.root / place).unlink()

    def uninstall(self, name: str) -> None:
        for folder in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (folder / "METADATA").unlink()
            folder.rmdir()

    def reinstall(self, name: str, version: str) -> None:
        self.uninstall(name)
        pip_install(self.site, {name: version})

    def listen(self, port: int) -> None:
        line = f"   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
        write(self.root / "proc/net/tcp", "  sl  local_address rem_address   st\n" + line)

    def process(self, pid: int, parent: int) -> None:
        write(self.root / f"proc/{pid}/status", f"Name:\tpython\nPPid:\t{parent}\n")

    def scene(self, **changes) -> Scene:
        scene = Scene(self.environ, self.root, read_packages([str(self.site)]), cpus=48)
        return dataclasses.replace(scene, **{**self.settings, **changes})
