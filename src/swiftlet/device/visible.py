"""The variables that say which devices a run may use, read before torch is imported.

A wrong value never reaches the device's own software: that drops what it does not like, or sees no device at all,
and the run then goes on somewhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from swiftlet.device.machine import Machine, look_at_machine
from swiftlet.errors import SwiftletError, UsageError, describe

ASCEND = "ASCEND_RT_VISIBLE_DEVICES"
CUDA = "CUDA_VISIBLE_DEVICES"
VISIBLE = (ASCEND, CUDA)
PROCESSES = "NPROC_PER_NODE"
CONTAINER = "ASCEND_VISIBLE_DEVICES"  # read by Ascend's container runtime, outside the container
# Names that people type for ASCEND_RT_VISIBLE_DEVICES, and that nothing reads.
MISTAKEN = re.compile(
    r"(?:NPU|ASCEND|ASCEND_RT|ASCEND_NPU|CANN|DAVINCI)_?(?:RT_)?VISIBLE_?(?:DEVICES?|IDS?|CARDS?)"
)
MISTAKEN_PROCESSES = re.compile(r"(?!NPROC_PER_NODE$)N_?PROC(?:S|ESS|ESSES)?_?P(?:ER|RE)_?NODES?")
NUMBER = re.compile(r"[0-9]{1,9}")
MOST_DEVICES = 1024  # of one machine, by far
NEGATIVE = re.compile(r"(?:^|[^\w\s])\s*-\s*[0-9.]+")
WHOLE_DECIMAL = re.compile(r"(?<![0-9.])([0-9]+)\.0+(?![0-9.])")  # 1.0, as a YAML file or a sheet writes 1
RANGE = re.compile(r"(?<![0-9])([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?(?![0-9])")
UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]+")


class CardNumbers(NamedTuple):
    """What is known of cards: their numbers here by the number that npu-smi calls them, and which ones are free."""

    here: Mapping[int, Sequence[int]] = {}
    free: Sequence[int] = ()


UNKNOWN = CardNumbers()


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _ids_inside(text: str, known: int | None = None) -> list[int]:
    """Return the numbers that may be devices in a list that may also hold ranges (0-3), in order, each once."""
    text = WHOLE_DECIMAL.sub(r"\1", NEGATIVE.sub(" ", text))
    found: set[int] = set()
    for first, last in RANGE.findall(text):
        end = int(last or first) + 1
        if known or end <= MOST_DEVICES:
            found.update(range(int(first), min(end, known or end)))
    return sorted(found)


def _hint(name: str, ids: list[int]) -> str:
    return f"type {name}={','.join(map(str, ids)) if ids else '0'}"


def _format_mistakes(name: str, text: str, known: int | None) -> UsageError | None:
    items = _items(text)
    if name == CUDA and all(UUID.fullmatch(item) for item in items):
        numbers: list[int] = []
    elif all(NUMBER.fullmatch(item) for item in items):
        numbers = [int(item) for item in items]
    else:
        wrong = next(item for item in items if not NUMBER.fullmatch(item))
        found = f"{describe(wrong)} in {describe(text)}" if wrong != text else describe(text)
        return UsageError(
            f"{name} is a list of small whole numbers, such as 0,1,2,3; found {found}",
            _hint(name, _ids_inside(text, known)),
        )
    if name == ASCEND and any(mark.isspace() for mark in text):
        return UsageError(
            f"{name}={describe(text)} holds a space, behind which nothing is read", _hint(name, numbers)
        )
    items = [str(number) for number in numbers] or items
    if len(set(items)) < len(items):
        twice = next(item for item in items if items.count(item) > 1)
        unique = list(dict.fromkeys(items))
        return UsageError(f"{name}={text} names device {twice} twice", f"type {name}={','.join(unique)}")
    if name == ASCEND and numbers != sorted(numbers):
        return UsageError(
            f"{name}={text} is not in ascending order, with which no NPU is found",
            _hint(name, sorted(numbers)),
        )
    return None


def is_hidden(name: str, text: str) -> bool:
    """Return whether the value hides every device."""
    return not text.strip() or (name == CUDA and text.strip() == "-1")


def visible_ids(name: str, environ: Mapping[str, str]) -> list[str] | None:
    """Return the ids of a variable; None when it is not set, an empty list when it hides every device."""
    if name not in environ:
        return None
    return [] if is_hidden(name, environ[name]) else _items(environ[name])


def _numbers_here(numbers: Sequence[int], wrong: Sequence[int], cards: CardNumbers) -> list[int]:
    """Return the numbers here of cards that were named by their own; empty where they were not."""
    if not all(number in cards.here for number in wrong):
        return []
    # Numbers that may be either are the cards' own only where all are.
    own = numbers if all(number in cards.here for number in numbers) else wrong
    found = {here for number in numbers for here in (cards.here[number] if number in own else [number])}
    return sorted(found) if len(found) >= len(numbers) else []


def _range_mistake(name: str, text: str, known: int | None, cards: CardNumbers) -> UsageError | None:
    numbers = [int(item) for item in _items(text) if item.isdecimal()]
    wrong = [number for number in numbers if known and number >= known]
    if not wrong or not known:
        return None
    kind = "NPU" if name == ASCEND else "GPU"
    shown = f"{known} {kind}s: 0 to {known - 1}" if known > 1 else f"one {kind}: 0"
    reason = f"{name}={text} names device {wrong[0]}, but this machine shows {shown}"
    logical = _numbers_here(numbers, wrong, cards) if name == ASCEND else []
    if logical:
        first = " and ".join(map(str, cards.here[wrong[0]]))
        note = f" (NPU {wrong[0]} of npu-smi is device {first} here)"
        return UsageError(reason + note, _hint(name, logical))
    rest = [number for number in numbers if number < known]
    note = "" if rest else " (inside a container the numbers begin at 0, whatever the host calls them)"
    other = (cards.free if name == ASCEND else ()) or range(known)
    return UsageError(reason + note, _hint(name, rest or [*other][: len(numbers)]))


def _count_mistake(name: str, ids: list[str], environ: Mapping[str, str]) -> UsageError | None:
    processes = environ.get(PROCESSES, "").strip()
    if not processes.isdecimal() or int(processes) < 1 or int(processes) == len(ids):
        return None
    least = int(processes)
    change = f", or {name}={','.join(ids[:least])}" if least < len(ids) else f", or name {least} devices"
    return UsageError(
        f"{PROCESSES}={processes}, but {name} names {len(ids)} device{'s' * (len(ids) != 1)}",
        f"type {PROCESSES}={len(ids)}{change}",
    )


def _wrong_names(environ: Mapping[str, str], machine: Machine) -> list[SwiftletError]:
    if ASCEND in environ:
        return []
    found: list[SwiftletError] = []
    for name in sorted(environ):
        text = environ[name]
        if not MISTAKEN.fullmatch(name.upper()) or not text.strip():
            continue
        ids = _ids_inside(text)
        if name == CONTAINER and (not ids or machine.npus == len(ids)):
            continue  # a container that was given these devices; inside they are numbered from 0
        reader = "only the container runtime reads it" if name == CONTAINER else "nothing reads it"
        found.append(UsageError(f"{name}={text} does not choose NPUs: {reader}", _hint(ASCEND, ids)))
    if machine.has_npus and not machine.has_gpus and not is_hidden(CUDA, environ.get(CUDA, "")):
        text = environ[CUDA]
        message = f"{CUDA}={text} does not choose NPUs, and this machine has no NVIDIA devices"
        found.append(UsageError(message, _hint(ASCEND, _ids_inside(text))))
    return found


def _wrong_processes(environ: Mapping[str, str]) -> list[SwiftletError]:
    """Return names like NPROC_PER_NODE that nothing reads: the run would have another number of processes."""
    if environ.get(PROCESSES):
        return []
    names = [name for name in sorted(environ) if environ[name] and MISTAKEN_PROCESSES.fullmatch(name.upper())]
    return [
        UsageError(f"{name}={environ[name]}: nothing reads this name", f"type {PROCESSES}={environ[name]}")
        for name in names
    ]


def check_visible(
    environ: Mapping[str, str], machine: Machine | None = None, cards: CardNumbers = UNKNOWN
) -> list[SwiftletError]:
    """Return every mistake in the variables that choose devices, and in their number of processes."""
    machine = machine or look_at_machine(environ)
    mistakes = [*_wrong_names(environ, machine), *_wrong_processes(environ)]
    for name, known in ((ASCEND, machine.npus), (CUDA, machine.gpus)):
        text = environ.get(name, "")
        if is_hidden(name, text) or (name == CUDA and not _cuda_counts(environ, machine)):
            continue
        wrong = _format_mistakes(name, text, known) or _range_mistake(name, text, known, cards)
        wrong = wrong or _count_mistake(name, _items(text), environ)
        mistakes += [wrong] if wrong else []
    return mistakes


def _cuda_counts(environ: Mapping[str, str], machine: Machine) -> bool:
    """Return whether CUDA's variable matters: not beside Ascend's own, nor on a machine with NPUs only."""
    return ASCEND not in environ and (machine.has_gpus or not machine.has_npus)


def hiding(environ: Mapping[str, str], machine: Machine) -> list[str]:
    """Return the variables that are set and empty, and so hide devices that this machine has."""
    here = ((ASCEND, machine.has_npus), (CUDA, machine.has_gpus))
    return [name for name, has in here if has and name in environ and not environ[name].strip()]


def count_visible(kind: str, environ: Mapping[str, str], machine: Machine) -> int:
    """Return how many devices of a kind (npu, cuda, cpu) a run that is started here may use."""
    if kind == "cpu":
        return 1
    name, there = (ASCEND, machine.npus) if kind == "npu" else (CUDA, machine.gpus)
    ids = visible_ids(name, environ)
    return len(ids) if ids is not None else there or 1


def read_whole(
    environ: Mapping[str, str],
    name: str,
    default: int,
    least: int,
    mistakes: list[SwiftletError],
    most: int | None = None,
) -> int:
    """Return the whole number of a variable, the default where it is not set; a mistake in it is added to the list."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if text.isdecimal() and int(text) >= least and (most is None or int(text) <= most):
        return int(text)
    limit = "" if most is None else f" and at most {most}"
    message = f"{name} is a whole number of at least {least}{limit}, found {text!r}"
    mistakes.append(UsageError(message, f"type {name}={max(default, least)} before the command"))
    return default


def processes_per_node(environ: Mapping[str, str]) -> int:
    """Return how many processes run when NPROC_PER_NODE is not set: one a device that a variable names, else one."""
    for name in (ASCEND, CUDA):
        ids = visible_ids(name, environ)
        if ids is not None:
            return max(1, len(ids))
    return 1
