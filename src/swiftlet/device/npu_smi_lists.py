"""What the other questions to npu-smi answer: the list of chips (-m), figures by name (-l, -t ...), and errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Row = dict[str, int | str]
Block = dict[str, str]
FIGURE = re.compile(r"^\s*(\S.*?)(\s*):(?:\s+(.*))?$")
LONGEST_PADDED = 30  # a name as long as its column has no space before the colon
PROMPT = re.compile(r"npu-smi\s+info|^\S*[#$]\s")
RETURN_CODE = re.compile(r"\bret(?: is|=)\s*(-\d+)")
FAILURE = re.compile(
    r"error|fail|not found|denied|no npu|no such|not support|no device|not permitted", re.IGNORECASE
)


@dataclass
class ChipTable:
    """The table of `npu-smi info -m`; `npus` are its rows that are NPUs and not the board's controller."""

    columns: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def npus(self) -> list[Row]:
        """Return the rows of chips that a program can use."""
        return [row for row in self.rows if not _is_controller(row)]


def _is_controller(row: Row) -> bool:
    return str(row.get("Chip Name", "")).lower() == "mcu" or row.get("Chip Logic ID") == "-"


def _columns(line: str) -> list[str]:
    return [part.strip() for part in re.split(r"\t+|\s{2,}", line.strip())]


def is_mapping(text: str) -> bool:
    """Return whether the text holds the list of chips."""
    return any(_is_heading(line) for line in text.splitlines())


def _is_heading(line: str) -> bool:
    columns = _columns(line)
    return columns[0] == "NPU ID" and len(columns) > 2 and columns[-1] == "Chip Name"


def parse_mapping(text: str) -> ChipTable:
    """Return the list of chips; the table ends with the first line that is no row of it."""
    table = ChipTable()
    for line in text.splitlines():
        if _is_heading(line):
            table.columns = _columns(line)
            continue
        values = _columns(line)
        if not table.columns or not values[0].isdigit():
            if table.rows:
                break
            continue
        values += [""] * (len(table.columns) - len(values))
        table.rows.append(
            {
                name: int(value) if value.isdigit() else value
                for name, value in zip(table.columns, values, strict=False)
            }
        )
    return table


def parse_blocks(text: str) -> list[Block]:
    """Return the figures `name : value` in blocks; a blank line, or a name seen before, begins the next one."""
    blocks: list[Block] = [{}]
    for line in text.splitlines():
        if not line.strip():
            blocks.append({})
            continue
        found = FIGURE.match(line)
        if found is None or PROMPT.search(line):
            continue
        name, padding, value = found.groups()
        if not padding and len(name) < LONGEST_PADDED:
            continue
        if name in blocks[-1]:
            blocks.append({})
        blocks[-1][name] = (value or "").strip()
    return [block for block in blocks if block]


def per_chip(blocks: list[Block]) -> dict[str, Block]:
    """Return the figures of each chip by its number, wherever in its block the number stands."""
    return {block["Chip ID"]: block for block in blocks if "Chip ID" in block}


def npu_of(blocks: list[Block]) -> int | None:
    """Return the card that the figures belong to."""
    number = next((block["NPU ID"] for block in blocks if "NPU ID" in block), "")
    return int(number) if number.isdigit() else None


def find_error(text: str) -> str:
    """Return the line that says what went wrong: of npu-smi's library first, the last line when none looks so."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not PROMPT.search(line)]
    with_code = [line for line in lines if "dcmi" in line.lower() and RETURN_CODE.search(line)]
    failures = [line for line in lines if FAILURE.search(line)]
    found = with_code or failures or lines
    return found[-1] if found else ""


def return_code(message: str) -> int | None:
    """Return the number that npu-smi gives with an error, such as -8005."""
    found = RETURN_CODE.search(message)
    return int(found.group(1)) if found else None


# Source: the return values of the driver's DCMI library. -8005 has several causes, so none is said to be the one.
MEANINGS = {
    -8001: "a parameter is invalid",
    -8002: "this user may not do that",
    -8003: "the driver has a memory problem",
    -8005: "the driver gives an inner error: another container may hold the cards, this user may lack permission on "
    "/dev/davinci*, or the machine was not restarted after a new firmware",
    -8006: "the driver did not answer in time",
    -8007: "there is no such device",
    -8008: "the device does not exist",
    -8012: "the device is not ready",
    -8013: "this does not work inside a container",
    -8015: "a reset failed",
    -8017: "a firmware upgrade is running",
    -8020: "the device is in use elsewhere, by another container or a virtual machine",
    -8255: "this device does not support the question",
}


def explain_error(message: str) -> str:
    """Return what an error of npu-smi is known to mean, empty when it is not known."""
    code = return_code(message)
    if code is not None:
        return MEANINGS.get(code, "")
    if "error while loading shared libraries" in message:
        library = message.split("libraries:")[-1].split(":")[0].strip()
        return (
            f"the driver's library {library} is not here: mount /usr/local/Ascend/driver into the container"
        )
    return ""
