"""What a machine shows of its devices without torch: nodes under /dev, and npu-smi on the search path."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DAVINCI = re.compile(r"davinci\d+")
NVIDIA = re.compile(r"nvidia\d+")
NPU_SMI = "npu-smi"
# Where drivers put npu-smi when it is not on the search path.
NPU_SMI_PLACES = (
    "/usr/local/bin/npu-smi",
    "/usr/local/sbin/npu-smi",
    "/usr/local/Ascend/driver/tools/npu-smi",
)
TIMEOUT_S = 20.0


class Machine(NamedTuple):
    """Numbers of devices; None where nothing tells."""

    npus: int | None = None
    gpus: int | None = None

    @property
    def has_npus(self) -> bool:
        """Whether this is an Ascend machine, as far as is known."""
        return bool(self.npus)

    @property
    def has_gpus(self) -> bool:
        """Whether this is a machine with NVIDIA devices, as far as is known."""
        return bool(self.gpus)


def _count(folder: Path, pattern: re.Pattern[str]) -> int | None:
    if not folder.is_dir():
        return None
    return sum(bool(pattern.fullmatch(entry.name)) for entry in folder.iterdir()) or None


def look_at_nodes(folder: Path = Path("/dev")) -> Machine:
    """Return how many devices have a node here."""
    return Machine(_count(folder, DAVINCI), _count(folder, NVIDIA))


def look_at_machine(environ: Mapping[str, str], folder: Path = Path("/dev")) -> Machine:
    """Return how many devices this machine, or this container, shows.

    The nodes of /dev are counted, since a container keeps the host's numbers but counts its own devices from 0;
    npu-smi is asked only where there are none.
    """
    seen = look_at_nodes(folder)
    if seen.npus is None and find_npu_smi(environ):
        from swiftlet.device.cards import query_mapping

        return seen._replace(npus=len(query_mapping(environ)) or None)
    return seen


def find_npu_smi(environ: Mapping[str, str]) -> str | None:
    """Return the path of npu-smi, None when there is none."""
    found = shutil.which(NPU_SMI, path=environ.get("PATH", ""))
    return found or next((place for place in NPU_SMI_PLACES if Path(place).is_file()), None)


class Output(NamedTuple):
    """What a program of the driver said; `failure` says in a sentence why it has nothing to say."""

    text: str
    failure: str = ""


def ask(program: str, *arguments: str, environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> Output:
    """Run a program that only reports, and return what it printed; one that hangs is stopped."""
    command = [program, *arguments]
    shown = " ".join([Path(program).name, *arguments])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=dict(environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Output("", f"{shown} did not answer within {timeout_s:.0f} s")
    except OSError as error:
        return Output("", f"{shown} cannot be run: {error.strerror}")
    text = done.stdout if done.stdout.strip() else done.stderr
    if done.returncode:
        code = done.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Output(text, f"{shown} {how}")
    return Output(text)
